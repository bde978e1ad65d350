//! A policy that is swapped while connections are open: what it still allows goes on, what it denies ends with a reason,
//! what is under way is not lost.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

mod conformance;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use conformance::{DEADLINE, OK, Origin, Peer, Proxy, Setup, policy_of};

/// Whatever is asked, judged all the same.
const ANYTHING: &str = "rules: [{allow: {method: '*', path: '/**'}}]";

fn raw(origin: &Origin) -> String {
    format!("host: 127.0.0.1, port: {}", origin.port())
}

fn judged(origin: &Origin, access: &str) -> String {
    format!("host: 127.0.0.1, port: {}, protocol: http, {access}", origin.port())
}

fn get(origin: &Origin, path: &str) -> String {
    let at = origin.address();
    format!("GET http://{at}{path} HTTP/1.1\r\nHost: {at}\r\n\r\n")
}

/// A tunnel through which a few bytes have gone both ways.
fn tunnel(proxy: &Proxy, origin: &Origin) -> (Peer, Peer) {
    let mut client = proxy.tunnel(origin.address());
    let mut upstream = origin.accept();
    echo(&mut client, &mut upstream);
    (client, upstream)
}

#[track_caller]
fn echo(client: &mut Peer, upstream: &mut Peer) {
    client.send("ping");
    upstream.hears("ping");
    upstream.send("pong");
    client.hears("pong");
}

fn closed(proxy: &Proxy, origin: &Origin) -> serde_json::Value {
    let event = proxy.event_about("tunnel.closed", origin.port());
    assert_eq!(event["reason"], "policy_changed", "{event}");
    event
}

#[test]
fn only_the_tunnel_that_is_now_denied_is_closed() {
    let (stays, goes) = (Origin::new(), Origin::new());
    let proxy = Setup::default().endpoints(&[raw(&stays), raw(&goes)]).start();
    let mut staying: Vec<_> = (0..5).map(|_| tunnel(&proxy, &stays)).collect();
    let (mut client, mut upstream) = tunnel(&proxy, &goes);
    proxy.write_policy(&policy_of(&[raw(&stays)]));
    proxy.hang_up();
    client.end();
    upstream.end();
    let event = closed(&proxy, &goes);
    // Both are on one address: what is left names the other port.
    assert!(event["detail"].as_str().unwrap().contains("port_not_allowed"), "{event}");
    assert_eq!((&event["bytes_up"], &event["bytes_down"]), (&4.into(), &4.into()), "{event}");
    for (client, upstream) in &mut staying {
        echo(client, upstream);
    }
    let at = goes.address();
    assert_eq!(proxy.ask(format!("CONNECT {at} HTTP/1.1\r\nHost: {at}\r\n\r\n")).head().status(), 403);
}

#[test]
fn a_file_that_changes_is_noticed_without_a_signal() {
    let origin = Origin::new();
    let proxy = Setup::default().endpoints(&[raw(&origin)]).start();
    let (mut client, _upstream) = tunnel(&proxy, &origin);
    let told = proxy.loads();
    proxy.write_policy("version: 1\nnetwork_policies: {}\n");
    proxy.loaded_after(told);
    client.end();
    closed(&proxy, &origin);
}

#[test]
fn a_mounted_config_map_is_followed_when_its_data_are_swapped() {
    let origin = Origin::new();
    let proxy = Setup::default().endpoints(&[raw(&origin)]).start();
    let at = |name: &str| proxy.folder().join(name);
    // As the kubelet lays it out: policy.yaml → ..data/policy.yaml, ..data → a folder of its own.
    for (folder, endpoints) in [("..1", vec![raw(&origin)]), ("..2", vec![])] {
        fs::create_dir(at(folder)).unwrap();
        let text = if endpoints.is_empty() { "version: 1\n".to_owned() } else { policy_of(&endpoints) };
        fs::write(at(folder).join("policy.yaml"), text).unwrap();
    }
    symlink("..1", at("..data")).unwrap();
    symlink("..data/policy.yaml", at("policy.new")).unwrap();
    let told = proxy.loads();
    fs::rename(at("policy.new"), at("policy.yaml")).unwrap();
    proxy.loaded_after(told);
    let (mut client, mut upstream) = tunnel(&proxy, &origin);
    let told = proxy.loads();
    symlink("..2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    proxy.loaded_after(told);
    client.end();
    upstream.end();
    closed(&proxy, &origin);
}

#[test]
fn a_bad_policy_changes_nothing_and_every_error_is_told() {
    let origin = Origin::new();
    let proxy = Setup::default().endpoints(&[raw(&origin)]).start();
    let (mut client, mut upstream) = tunnel(&proxy, &origin);
    proxy.write_policy("version: 2\nnetwork_policies:\n  a:\n    endpoints: [{host: '*.com', port: 0}]\n");
    proxy.hang_up();
    let event = proxy.event(|event| event["event"] == "policy.rejected");
    assert_eq!(event["sandbox"], "box");
    let detail = event["detail"].as_str().unwrap();
    for part in ["policy.yaml:1:10: error", "policy.yaml:4:24: error", "policy.yaml:4:39: error"] {
        assert!(detail.contains(part), "{part} in {detail}");
    }
    echo(&mut client, &mut upstream);
    tunnel(&proxy, &origin);
    // Mended, it is taken by itself.
    let told = proxy.loads();
    proxy.write_policy("version: 1\n");
    proxy.loaded_after(told);
    client.end();
}

#[test]
fn a_request_under_way_is_answered_and_the_next_one_judged_anew() {
    let origin = Origin::new();
    let proxy = Setup::default().endpoints(&[judged(&origin, ANYTHING)]).start();
    let mut client = proxy.ask(get(&origin, "/slow"));
    let mut upstream = origin.accept();
    upstream.head();
    proxy.write_policy(&policy_of(&[judged(&origin, "rules: [{allow: {method: GET, path: /other}}]")]));
    proxy.hang_up();
    upstream.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nab");
    upstream.send("cdef");
    assert_eq!(client.message().1, "abcdef");
    // The same connection: what the new policy allows, and what it does not.
    client.send(get(&origin, "/slow"));
    let (head, body) = client.message();
    assert_eq!(head.status(), 403, "{body}");
    assert!(body.contains("path_not_allowed"), "{body}");
    client.send(get(&origin, "/other"));
    assert_eq!(upstream.head().start(), "GET /other HTTP/1.1", "over the connection that was kept");
    upstream.send(OK);
    assert_eq!(client.message().1, "ok");
}

#[test]
fn a_request_that_does_not_end_is_ended_in_time() {
    let origin = Origin::new();
    let proxy = Setup::default().endpoints(&[judged(&origin, ANYTHING)]).start();
    let mut waiting = proxy.ask(get(&origin, "/waits"));
    let mut silent = origin.accept();
    silent.head();
    let mut streaming = proxy.ask(get(&origin, "/streams"));
    let mut stream = origin.accept();
    stream.head();
    stream.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nbegun");
    streaming.head();
    streaming.hears("begun");
    proxy.write_policy("version: 1\n");
    let began = Instant::now();
    proxy.hang_up();
    let (head, body) = waiting.message();
    assert!(began.elapsed() >= Duration::from_secs(4), "it had its time: {:?}", began.elapsed());
    assert_eq!(head.status(), 403, "{body}");
    assert!(head.start().ends_with("403 Denied by policy: policy changed meanwhile"), "{}", head.start());
    assert!(body.contains("\"reason\":\"policy_changed\""), "{body}");
    streaming.end();
    let event = proxy.event(|event| event["event"] == "request.denied");
    assert_eq!(event["reason"], "policy_changed");
    assert!(event["detail"].as_str().unwrap().contains("host_not_allowed"), "{event}");
}

#[test]
fn an_idle_tunnel_with_judged_requests_is_closed_when_its_destination_is_denied() {
    let (stays, goes) = (Origin::new(), Origin::new());
    let rules = |access: &str| [judged(&stays, access), judged(&goes, access)];
    let proxy = Setup::default().endpoints(&rules(ANYTHING)).start();
    let ask = |origin: &Origin, client: &mut Peer| {
        client.send(format!("GET / HTTP/1.1\r\nHost: {}\r\n\r\n", origin.address()));
    };
    let mut open = Vec::new();
    for origin in [&stays, &goes] {
        let mut client = proxy.tunnel(origin.address());
        let mut upstream = origin.accept();
        ask(origin, &mut client);
        upstream.head();
        upstream.send(OK);
        assert_eq!(client.message().1, "ok");
        open.push((client, upstream));
    }
    proxy.write_policy(&policy_of(&[judged(&stays, "access: read-only")]));
    proxy.hang_up();
    let (mut client, mut upstream) = open.pop().unwrap();
    client.hears_end();
    upstream.end();
    closed(&proxy, &goes);
    let (mut client, mut upstream) = open.pop().unwrap();
    ask(&stays, &mut client);
    upstream.head();
    upstream.send(OK);
    assert_eq!(client.message().1, "ok");
}

#[test]
fn a_raw_tunnel_is_closed_when_its_requests_are_to_be_judged() {
    let origin = Origin::new();
    let proxy = Setup::default().endpoints(&[raw(&origin)]).start();
    let (mut client, _upstream) = tunnel(&proxy, &origin);
    proxy.write_policy(&policy_of(&[judged(&origin, ANYTHING)]));
    proxy.hang_up();
    client.end();
    let event = closed(&proxy, &origin);
    assert!(event["detail"].as_str().unwrap().contains("judged now"), "{event}");
}

#[test]
fn a_tunnel_to_an_address_that_is_no_longer_listed_is_closed() {
    let origin = Origin::new();
    let named = |extra: &str| format!("host: localhost, port: {}{extra}", origin.port());
    let proxy = Setup::default().endpoints(&[named("")]).start();
    let mut client = proxy.tunnel(format!("localhost:{}", origin.port()));
    let mut upstream = origin.accept();
    echo(&mut client, &mut upstream);
    proxy.write_policy(&policy_of(&[named(", allowed_ips: [10.0.0.0/8]")]));
    proxy.hang_up();
    client.end();
    let event = closed(&proxy, &origin);
    assert!(event["detail"].as_str().unwrap().contains("127.0.0.1"), "{event}");
}

#[test]
fn a_tunnel_after_101_is_judged_by_the_request_that_made_it() {
    let origin = Origin::new();
    let rules = |path: &str| judged(&origin, &format!("rules: [{{allow: {{method: GET, path: {path}}}}}]"));
    let proxy = Setup::default().endpoints(&[rules("'/*'")]).start();
    let at = origin.address();
    let open = |path: &str| {
        let mut client = proxy.ask(format!(
            "GET http://{at}{path} HTTP/1.1\r\nHost: {at}\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n"
        ));
        let mut upstream = origin.accept();
        upstream.head();
        upstream.send("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
        assert_eq!(client.head().status(), 101);
        echo(&mut client, &mut upstream);
        (client, upstream)
    };
    let (mut stays, mut goes) = (open("/stays"), open("/goes"));
    proxy.write_policy(&policy_of(&[rules("/stays")]));
    proxy.hang_up();
    goes.0.end();
    goes.1.end();
    closed(&proxy, &origin);
    echo(&mut stays.0, &mut stays.1);
}

/// An origin that answers whoever comes, each on a thread of its own.
fn busy_origin() -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut upstream = Peer::new(stream);
                while let Some(head) = upstream.try_head() {
                    let body = if head.start().contains("/always") { "answered" } else { "allowed!" };
                    // In two parts, so that some are under way at every swap.
                    let sent = upstream.try_send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n");
                    if !sent || !upstream.try_send(body) {
                        break;
                    }
                }
            });
        }
    });
    at
}

/// Clients ask without a pause while two policies take turns, by signal and by swapped file. What both allow is always
/// answered; what one of them denies is answered or refused, and after each swap by the policy that is in force.
#[test]
fn under_load_no_request_is_lost_or_wrongly_judged() {
    const SWAPS: usize = 16;
    let at = busy_origin();
    let rules = |path: &str| {
        let rules = format!("rules: [{{allow: {{method: GET, path: {path}}}}}]");
        policy_of(&[format!("host: 127.0.0.1, port: {}, protocol: http, {rules}", at.port())])
    };
    let (narrow, wide) = (rules("/always"), rules("'/**'"));
    let proxy = Setup::default().policy(wide.clone()).start();
    let (over, answered, refused) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let began = Instant::now();
    let ask = |client: &mut Peer, path: &str| {
        client.send(format!("GET http://{at}{path} HTTP/1.1\r\nHost: {at}\r\n\r\n"));
        let (head, body) = client.message();
        (head.status(), body)
    };
    std::thread::scope(|scope| {
        for number in 0..4 {
            let (proxy, ask, over, answered, refused) = (&proxy, &ask, &over, &answered, &refused);
            scope.spawn(move || {
                let mut client = proxy.connect();
                let mut count = 0_u64;
                // Also when the other side fails, and so never says that it is over.
                while !over.load(Ordering::Relaxed) && began.elapsed() < 4 * DEADLINE {
                    let (status, body) = ask(&mut client, &format!("/always?{number}-{count}"));
                    assert_eq!((status, &*body), (200, "answered"));
                    let (status, body) = ask(&mut client, "/sometimes");
                    match status {
                        200 => assert_eq!(body, "allowed!"),
                        403 => assert!(body.contains("\"reason\":\"path_not_allowed\""), "{body}"),
                        other => panic!("{other}: {body}"),
                    }
                    (if status == 200 { answered } else { refused }).fetch_add(1, Ordering::Relaxed);
                    count += 1;
                    std::thread::sleep(Duration::from_millis(1));
                    if count.is_multiple_of(16) {
                        client = proxy.connect();
                    }
                }
            });
        }
        for swap in 0..SWAPS {
            let (text, expected) = if swap % 2 == 0 { (&narrow, 403) } else { (&wide, 200) };
            let next = proxy.folder().join("next.yaml");
            fs::write(&next, text).unwrap();
            fs::rename(&next, proxy.folder().join("policy.yaml")).unwrap();
            if swap % 2 == 0 {
                proxy.signal_reload();
            }
            let mut client = proxy.connect();
            let began = Instant::now();
            while ask(&mut client, "/sometimes").0 != expected {
                assert!(began.elapsed() < DEADLINE, "swap {swap} is not in force");
                std::thread::sleep(Duration::from_millis(5));
            }
            // From the first answer by it on, it decides everything, on new and on old connections.
            for _ in 0..10 {
                assert_eq!(ask(&mut client, "/sometimes").0, expected, "after swap {swap}");
                assert_eq!(ask(&mut proxy.connect(), "/sometimes").0, expected, "after swap {swap}");
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    let counts = (answered.load(Ordering::Relaxed), refused.load(Ordering::Relaxed));
    assert!(counts.0 > 0 && counts.1 > 0, "both policies were asked: {counts:?}");
    assert!(proxy.events().iter().all(|event| event["event"] != "policy.rejected"));
}
