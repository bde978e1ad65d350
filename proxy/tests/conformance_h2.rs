//! HTTP/2 inside TLS: judged by stream, passed on as it comes, and bounded whatever either side sends.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

mod conformance;

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use conformance::inside::{self as tls, BOTH};
use conformance::two::{ANY, HOST, READ_ONLY, Scene, ask, asynchronous, open, serve, text, within};
use conformance::{DEADLINE, OK, Setup};
use h2::Reason;
use http::{HeaderMap, Request};

#[test]
fn a_stream_that_is_allowed_reaches_the_origin_and_one_that_is_not_is_refused_in_words() {
    let mut scene = Scene::new(READ_ONLY);
    scene.run(async |scene, sender| {
        let mut response = ask(&sender, scene.request("GET", "/x/../a?b")).await.unwrap();
        assert_eq!(response.status(), 200);
        let via = response.headers()["x-via"].to_str().unwrap();
        assert!(via.starts_with("2 sluice-"), "{via}");
        assert_eq!(response.headers()["via"], via, "one name, both ways");
        let seen = text(response.body_mut()).await;
        assert_eq!(seen, format!("GET https://{}/a?b", scene.authority()), "the path is canonical");
        let mut response = ask(&sender, scene.request("POST", "/a")).await.unwrap();
        assert_eq!(response.status(), 403);
        assert!(response.headers().contains_key("proxy-status"));
        let body: serde_json::Value = serde_json::from_str(&text(response.body_mut()).await).unwrap();
        assert_eq!(
            (&body["error"], &body["reason"]),
            (&"policy_denied".into(), &"method_not_allowed".into())
        );
        assert_eq!(ask(&sender, scene.request("GET", "/a")).await.unwrap().status(), 200, "it goes on");
    });
    let event = scene.proxy.event_about("request.allowed", scene.port);
    assert_eq!((&event["path"], &event["status"]), (&"/x/../a".into(), &200.into()));
    let event = scene.proxy.event_about("request.denied", scene.port);
    assert_eq!((&event["method"], &event["reason"]), (&"POST".into(), &"method_not_allowed".into()));
}

#[test]
fn a_request_with_a_body_is_refused_before_the_body_comes() {
    Scene::new(READ_ONLY).run(async |scene, sender| {
        let (response, upload) = open(&sender, scene.request("POST", "/echo"), false).await;
        assert_eq!(response.await.unwrap().status(), 403);
        drop(upload);
        assert_eq!(ask(&sender, scene.request("GET", "/a")).await.unwrap().status(), 200);
    });
}

#[test]
fn an_authority_or_scheme_that_is_not_the_tunnels_is_400() {
    let mut scene = Scene::new(ANY);
    scene.run(async |scene, sender| {
        for (uri, host) in [
            ("https://other.localhost/".to_owned(), None),
            (format!("https://{HOST}/"), None),
            (format!("http://{}/", scene.authority()), None),
            (format!("https://{}/", scene.authority()), Some("other.localhost")),
        ] {
            let mut request = Request::builder().uri(&uri);
            if let Some(host) = host {
                request = request.header("host", host);
            }
            let response = ask(&sender, request.body(()).unwrap()).await.unwrap();
            assert_eq!(response.status(), 400, "{uri} {host:?}");
        }
    });
    scene.proxy.event(|event| event["event"] == "request.denied" && event["reason"] == "host_mismatch");
}

#[test]
fn messages_stream_both_ways_as_they_come_and_trailers_pass() {
    Scene::new(ANY).run(async |scene, sender| {
        let (response, mut upload) = open(&sender, scene.request("POST", "/echo"), false).await;
        let mut response = response.await.unwrap();
        // Each comes back before the next is sent.
        for message in ["one", "two", "three"] {
            upload.send_data(Bytes::from(message), false).unwrap();
            assert_eq!(response.body_mut().data().await.unwrap().unwrap(), message);
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        trailers.insert("authorization", "never".parse().unwrap());
        upload.send_trailers(trailers).unwrap();
        let trailers = response.body_mut().trailers().await.unwrap().unwrap();
        assert_eq!((trailers.len(), &trailers["grpc-status"]), (1, &"0".parse().unwrap()));
    });
}

#[test]
fn interim_answers_pass_and_are_not_taken_for_the_final_one() {
    Scene::new(ANY).run(async |scene, sender| {
        let (mut response, _) = open(&sender, scene.request("GET", "/early"), true).await;
        let interim = std::future::poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
        assert_eq!((interim.status().as_u16(), &interim.headers()["link"]), (103, &"</x>".parse().unwrap()));
        assert_eq!(response.await.unwrap().status(), 200);
    });
}

#[test]
fn resets_pass_both_ways_and_leave_the_connection_alone() {
    let mut scene = Scene::new(ANY);
    scene.run(async |scene, sender| {
        let error = ask(&sender, scene.request("GET", "/reset")).await.unwrap_err();
        assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM));
        let (response, mut upload) = open(&sender, scene.request("POST", "/never"), false).await;
        upload.send_data(Bytes::from("x"), false).unwrap();
        // It is known to be on its way when a later one has been answered.
        assert_eq!(ask(&sender, scene.request("GET", "/a")).await.unwrap().status(), 200);
        upload.send_reset(Reason::CANCEL);
        drop(response);
        assert_eq!(ask(&sender, scene.request("GET", "/a")).await.unwrap().status(), 200);
    });
    scene.proxy.event(|event| event["path"] == "/never" && event["status"].is_null());
}

#[test]
fn an_origin_that_takes_no_more_has_its_client_go_elsewhere_when_all_is_answered() {
    Scene::new(ANY).run(async |scene, mut sender| {
        let (echo, mut upload) = open(&sender, scene.request("POST", "/echo"), false).await;
        assert_eq!(ask(&sender, scene.request("GET", "/last")).await.unwrap().status(), 200);
        upload.send_data(Bytes::from("still here"), true).unwrap();
        assert_eq!(text(echo.await.unwrap().body_mut()).await, "still here");
        let ended = loop {
            match std::future::poll_fn(|cx| sender.poll_ready(cx)).await {
                Ok(()) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(error) => break error,
            }
        };
        assert!(ended.is_go_away() || ended.is_io(), "{ended}");
    });
}

#[test]
fn what_the_origin_does_not_speak_its_clients_are_not_offered() {
    let mut scene = Scene::new(ANY);
    let get = format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", scene.authority());
    let (mut client, mut origin) = scene.enter(&["h2", "http/1.1"], &["http/1.1"]);
    assert_eq!(client.alpn.as_deref(), Some(b"http/1.1".as_slice()));
    // What was asked with is what the request goes over.
    client.peer.send(&get);
    assert_eq!(origin.peer.head().start(), "GET / HTTP/1.1");
    origin.peer.send(OK);
    assert_eq!(client.peer.message().1, "ok");
    // A client that offers HTTP/1.1 alone gets that of an origin that speaks both.
    let mut scene = Scene::new(ANY);
    let authority = scene.authority();
    let mut asking = tls::client(&scene.proxy.authority(), BOTH);
    asking.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut client = tls::enter(&scene.proxy, &authority, HOST, &Arc::new(asking)).unwrap();
    client.peer.send(format!("GET / HTTP/1.1\r\nHost: {authority}\r\n\r\n"));
    let mut serving = tls::server(&scene.root.issue(&[HOST]), BOTH);
    Arc::get_mut(&mut serving).unwrap().alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let origin = tls::accept(scene.origin.as_ref().unwrap(), &serving).unwrap();
    assert_eq!(origin.alpn.as_deref(), Some(b"http/1.1".as_slice()));
    scene.origin.take();
}

#[test]
fn an_origin_that_cannot_be_trusted_is_told_in_words_over_http_1_1() {
    let mut scene = Scene::new(ANY);
    let authority = scene.authority();
    let mut serving = tls::server(&tls::self_signed(HOST), BOTH);
    Arc::get_mut(&mut serving).unwrap().alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let origin = scene.origin.take().unwrap();
    // Once before the client's handshake, and once for its request.
    std::thread::spawn(move || while tls::accept(&origin, &serving).is_err() {});
    let mut asking = tls::client(&scene.proxy.authority(), BOTH);
    asking.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let mut client = tls::enter(&scene.proxy, &authority, HOST, &Arc::new(asking)).unwrap();
    assert_eq!(client.alpn.as_deref(), Some(b"http/1.1".as_slice()));
    client.peer.send(format!("GET / HTTP/1.1\r\nHost: {authority}\r\n\r\n"));
    assert_eq!(client.peer.refusal(), (502, "certificate_self_signed".into()));
}

#[test]
fn why_an_origin_cannot_be_trusted_is_told_of_a_client_without_http_1_1_too() {
    let mut scene = Scene::new(ANY);
    let authority = scene.authority();
    let mut serving = tls::server(&tls::self_signed(HOST), BOTH);
    Arc::get_mut(&mut serving).unwrap().alpn_protocols = vec![b"h2".to_vec()];
    let origin = scene.origin.take().unwrap();
    std::thread::spawn(move || tls::accept(&origin, &serving).is_err());
    let mut asking = tls::client(&scene.proxy.authority(), BOTH);
    asking.alpn_protocols = vec![b"h2".to_vec()];
    assert!(tls::enter(&scene.proxy, &authority, HOST, &Arc::new(asking)).is_err());
    let event = scene.proxy.event_about("connect.denied", scene.port);
    assert_eq!(event["reason"], "certificate_self_signed", "{event}");
    assert!(event["hint"].is_string(), "{event}");
}

#[test]
fn an_operator_can_do_without() {
    let mut scene = Scene::with(ANY, |setup| setup, ", http2: off");
    let authority = scene.authority();
    let mut asking = tls::client(&scene.proxy.authority(), BOTH);
    asking.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let client = tls::enter(&scene.proxy, &authority, HOST, &Arc::new(asking)).unwrap();
    assert_eq!(client.alpn.as_deref(), Some(b"http/1.1".as_slice()));
    scene.origin.take();
}

#[test]
fn limits_and_time_outs_are_per_request() {
    let limited = |setup: Setup| setup.sandbox_limits("requests_per_s: 3").timeouts("first_byte: 1s");
    let mut scene = Scene::with(ANY, limited, "");
    scene.run(async |scene, sender| {
        // The CONNECT was the first of three.
        let (never, _upload) = open(&sender, scene.request("GET", "/never"), true).await;
        assert_eq!(ask(&sender, scene.request("GET", "/a")).await.unwrap().status(), 200);
        let response = ask(&sender, scene.request("GET", "/a")).await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["retry-after"]),
            (429, &"1".parse().unwrap())
        );
        assert_eq!(never.await.unwrap().status(), 504);
        assert_eq!(ask(&sender, scene.request("GET", "/a")).await.unwrap().status(), 200);
    });
}

#[test]
fn a_reader_that_stops_holds_up_itself_and_little_memory() {
    let mut scene = Scene::new(ANY);
    scene.run(async |scene, sender| {
        let before = scene.proxy.resident();
        let mut stopped = Vec::new();
        for _ in 0..3 {
            stopped.push(ask(&sender, scene.request("GET", "/big")).await.unwrap());
        }
        let mut response = ask(&sender, scene.request("GET", "/a")).await.unwrap();
        assert_eq!(text(response.body_mut()).await.split(' ').next(), Some("GET"));
        let grown = scene.proxy.resident().saturating_sub(before);
        assert!(grown < 16 << 20, "{grown} octets for 96 MiB that nobody reads");
        let last = stopped.pop().unwrap();
        drop(stopped);
        assert_eq!(text(&mut last.into_body()).await.len(), 32 << 20);
    });
}

#[test]
fn a_thousand_requests_on_one_connection_are_each_judged() {
    let mut scene = Scene::new(READ_ONLY);
    scene.run(async |scene, sender| {
        let mut answers = Vec::new();
        for number in 0..1_000 {
            let method = if number % 2 == 0 { "GET" } else { "DELETE" };
            let (sender, request) = (sender.clone(), scene.request(method, &format!("/{number}")));
            answers.push(tokio::spawn(async move {
                let mut response = ask(&sender, request).await.unwrap();
                text(response.body_mut()).await;
                (number, response.status().as_u16())
            }));
            if number % 50 == 49 {
                for answer in answers.drain(..) {
                    let (number, status) = answer.await.unwrap();
                    assert_eq!(status, if number % 2 == 0 { 200 } else { 403 }, "{number}");
                }
            }
        }
    });
    let said = |kind| scene.proxy.events().iter().filter(|event| event["event"] == kind).count();
    let began = Instant::now();
    while said("request.denied") + said("request.allowed") < 1_000 {
        assert!(began.elapsed() < DEADLINE);
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_policy_that_comes_later_judges_new_streams_and_ends_the_connection_when_it_rests() {
    let mut scene = Scene::new(ANY);
    scene.run(async |scene, sender| {
        let (echo, mut upload) = open(&sender, scene.request("POST", "/echo"), false).await;
        let mut echo = echo.await.unwrap();
        scene.proxy.write_policy(&conformance::policy_of(&[format!(
            "host: {HOST}, port: {}, {READ_ONLY}",
            scene.port
        )]));
        scene.proxy.hang_up();
        let response = ask(&sender, scene.request("POST", "/a")).await.unwrap();
        assert_eq!(response.status(), 403, "a new stream is judged by the new policy");
        assert_eq!(ask(&sender, scene.request("GET", "/a")).await.unwrap().status(), 200);
        upload.send_data(Bytes::from("in time"), true).unwrap();
        assert_eq!(echo.body_mut().data().await.unwrap().unwrap(), "in time", "an old one may finish");
        text(echo.body_mut()).await;
        scene.proxy.write_policy("version: 1\nnetwork_policies: {}\n");
        scene.proxy.hang_up();
        let mut sender = sender;
        while std::future::poll_fn(|cx| sender.poll_ready(cx)).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    scene.proxy.event(|event| event["event"] == "tunnel.closed" && event["reason"] == "policy_changed");
}

/// Frames by hand.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut out = vec![length[1], length[2], length[3], kind, flags];
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// HPACK without compression: indexed `:method GET`, `:scheme https`, `:path /`, and the authority in full.
fn get(authority: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x87, 0x84, 0x01, u8::try_from(authority.len()).unwrap()];
    block.extend_from_slice(authority.as_bytes());
    block
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;

/// Sends this for as long as it is taken; the connection must end, and the daemon serve on in bounded memory.
fn is_ended_by(flood: impl Fn(u32) -> Vec<u8>, told: &str) {
    let mut scene = Scene::new(ANY);
    let before = scene.proxy.resident();
    let (mut client, origin) = scene.join();
    let serving = std::thread::spawn(move || within(async { serve(asynchronous(origin)).await }));
    let mut reading = client.try_clone().unwrap();
    let heard = std::thread::spawn(move || {
        let mut all = Vec::new();
        let _ = reading.read_to_end(&mut all);
        all
    });
    client.write_all(PREFACE).unwrap();
    let began = Instant::now();
    let mut number = 0;
    while client.write_all(&flood(number)).is_ok() && !heard.is_finished() {
        number += 1;
        assert!(began.elapsed() < DEADLINE, "{number} times, and no end");
    }
    heard.join().unwrap();
    let _ = serving.join();
    assert!(scene.proxy.resident().saturating_sub(before) < 16 << 20);
    scene.proxy.event(|event| event["event"] == "tunnel.closed" && event["reason"] == told);
    scene.run(async |scene, sender| {
        assert_eq!(ask(&sender, scene.request("GET", "/a")).await.unwrap().status(), 200);
    });
}

#[test]
fn a_flood_of_requests_taken_back_ends_the_connection() {
    let authority = "api.localhost:1";
    let take_back = move |number: u32| {
        let stream = number * 2 + 1;
        let mut out = frame(HEADERS, 5, stream, &get(authority));
        out.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
        out
    };
    is_ended_by(take_back, "http2_flood");
}

#[test]
fn a_head_without_end_ends_the_connection() {
    let padding = |number: u32| {
        // A literal field that is never indexed: `x: ` and 8 KiB.
        let mut field = vec![0x10, 1, b'x', 0x7f, 0x81, 0x3f];
        field.extend(vec![b'y'; 8_192 + 127 - 127]);
        if number == 0 { frame(HEADERS, 1, 1, &field) } else { frame(CONTINUATION, 0, 1, &field) }
    };
    is_ended_by(padding, "http2_flood");
}

#[test]
fn what_is_no_http2_ends_the_connection() {
    // DATA on a stream that was never opened.
    is_ended_by(|_| frame(0, 0, 1, b"x"), "http2_malformed");
}

#[test]
fn a_head_that_is_too_large_is_refused_and_the_connection_goes_on() {
    let mut scene = Scene::new(ANY);
    scene.run(async |scene, sender| {
        let (mut parts, ()) = scene.request("GET", "/a").into_parts();
        parts.headers.insert("x", "y".repeat(40 << 10).parse().unwrap());
        let response = ask(&sender, Request::from_parts(parts, ())).await.unwrap();
        assert_eq!(response.status(), 431);
        assert_eq!(ask(&sender, scene.request("GET", "/a")).await.unwrap().status(), 200);
    });
    scene.proxy.event(|event| event["event"] == "request.denied" && event["reason"] == "head_too_large");
}
