//! Connections and the requests on them: kept on both sides, pipelined, each request judged, and none repeated that may
//! have been heard.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

mod conformance;

use conformance::{OK, Origin, Proxy, Refusing, Setup};

/// A GET of `path` at `origin`, with more field lines.
fn get(origin: &Origin, path: &str, fields: &str) -> String {
    let at = origin.address();
    format!("GET http://{at}{path} HTTP/1.1\r\nHost: {at}\r\n{fields}\r\n")
}

#[test]
fn one_connection_on_each_side_serves_many_requests() {
    let origin = Origin::new();
    let mut client = Proxy::shared().ask(get(&origin, "/0", ""));
    let mut upstream = origin.accept();
    for round in 0..5 {
        assert_eq!(upstream.head().start(), format!("GET /{round} HTTP/1.1"));
        upstream.send(OK);
        let (head, body) = client.message();
        assert_eq!((head.status(), head.field("connection"), &*body), (200, None, "ok"));
        client.send(get(&origin, &format!("/{}", round + 1), ""));
    }
    origin.is_untouched();
}

#[test]
fn another_client_connection_uses_the_same_upstream_connection() {
    let origin = Origin::new();
    let mut first = Proxy::shared().ask(get(&origin, "/first", ""));
    let mut upstream = origin.accept();
    upstream.head();
    upstream.send(OK);
    first.message();
    let mut second = Proxy::shared().ask(get(&origin, "/second", ""));
    assert_eq!(upstream.head().start(), "GET /second HTTP/1.1");
    upstream.send(OK);
    second.message();
    origin.is_untouched();
}

#[test]
fn ten_pipelined_requests_are_answered_in_order() {
    let origin = Origin::new();
    let requests: String = (0..10).map(|n| get(&origin, &format!("/{n}"), "")).collect();
    let mut client = Proxy::shared().ask(requests);
    let mut upstream = origin.accept();
    for n in 0..10 {
        assert_eq!(upstream.head().start(), format!("GET /{n} HTTP/1.1"));
        upstream.send(format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{n}"));
    }
    for n in 0..10 {
        assert_eq!(client.message().1, n.to_string());
    }
}

#[test]
fn each_pipelined_request_is_judged_on_its_own() {
    let origin = Origin::new();
    let rules = "protocol: http, rules: [{allow: {method: GET, path: /public/**}}]";
    let endpoint = format!("host: 127.0.0.1, port: {}, {rules}", origin.port());
    let proxy = Setup::default().endpoints(&[endpoint]).start();
    let paths = ["/public/a", "/secret", "/public/b"];
    let requests: String = paths.iter().map(|path| get(&origin, path, "")).collect();
    let mut client = proxy.ask(requests);
    let mut upstream = origin.accept();
    for path in ["/public/a", "/public/b"] {
        assert_eq!(upstream.head().start(), format!("GET {path} HTTP/1.1"));
        upstream.send(OK);
    }
    assert_eq!(client.message().0.status(), 200);
    assert_eq!(client.refusal(), (403, "path_not_allowed".into()));
    assert_eq!(client.message().0.status(), 200);
    let event = proxy.event_about("request.denied", origin.port());
    assert_eq!((&event["method"], &event["path"]), (&"GET".into(), &"/secret".into()));
}

/// Bytes behind a body are the next request, however they look.
#[test]
fn a_request_behind_a_body_is_judged_on_its_own() {
    let origin = Origin::new();
    let rules = "protocol: http, rules: [{allow: {method: POST, path: /in}}]";
    let endpoint = format!("host: 127.0.0.1, port: {}, {rules}", origin.port());
    let proxy = Setup::default().endpoints(&[endpoint]).start();
    let at = origin.address();
    let mut client = proxy.ask(format!(
        "POST http://{at}/in HTTP/1.1\r\nHost: {at}\r\nContent-Length: 4\r\n\r\nbodyGET http://{at}/x HTTP/1.1\r\nHost: {at}\r\n\r\n"
    ));
    let mut upstream = origin.accept();
    assert_eq!(upstream.head().start(), "POST /in HTTP/1.1");
    upstream.hears("body");
    upstream.send(OK);
    assert_eq!(client.message().0.status(), 200);
    assert_eq!(client.refusal().0, 403);
    // Asked once more, so that all that could have been sent has been.
    client.send(format!("POST http://{at}/in HTTP/1.1\r\nHost: {at}\r\nContent-Length: 0\r\n\r\n"));
    assert_eq!(upstream.head().start(), "POST /in HTTP/1.1");
}

/// The origin had closed the connection that was kept: the request goes out once more, over a fresh one.
#[test]
fn a_get_that_met_a_closed_connection_is_sent_again() {
    let origin = Origin::new();
    let mut client = Proxy::shared().ask(get(&origin, "/1", ""));
    let mut first = origin.accept();
    first.head();
    first.send(OK);
    client.message();
    client.send(get(&origin, "/2", ""));
    // Closed with the request in it, and without a word.
    first.head();
    drop(first);
    let mut second = origin.accept();
    assert_eq!(second.head().start(), "GET /2 HTTP/1.1");
    second.send(OK);
    assert_eq!(client.message().0.status(), 200);
    origin.is_untouched();
}

/// A connection the origin has closed while it waited is noticed before it is used: nothing needs sending twice.
#[test]
fn a_post_does_not_go_over_a_connection_that_is_known_to_be_closed() {
    let origin = Origin::new();
    let at = origin.address();
    let mut client = Proxy::shared().ask(get(&origin, "/1", ""));
    let mut first = origin.accept();
    first.head();
    first.send(OK);
    client.message();
    drop(first);
    client.send(format!("POST http://{at}/pay HTTP/1.1\r\nHost: {at}\r\nContent-Length: 0\r\n\r\n"));
    let mut second = origin.accept();
    assert_eq!(second.head().start(), "POST /pay HTTP/1.1");
    second.send(OK);
    assert_eq!(client.message().0.status(), 200);
}

#[test]
fn a_post_that_met_a_closed_connection_is_not_sent_again() {
    let origin = Origin::new();
    let at = origin.address();
    let mut client = Proxy::shared().ask(get(&origin, "/1", ""));
    let mut first = origin.accept();
    first.head();
    first.send(OK);
    client.message();
    client.send(format!("POST http://{at}/pay HTTP/1.1\r\nHost: {at}\r\nContent-Length: 0\r\n\r\n"));
    assert_eq!(first.head().start(), "POST /pay HTTP/1.1");
    drop(first);
    assert_eq!(client.refusal(), (502, "origin_closed".into()));
    origin.is_untouched();
}

/// An answer that has begun is an answer: asking again could do the thing twice.
#[test]
fn a_get_that_was_answered_in_part_is_not_sent_again() {
    let answers = [
        ("HTTP/1.1 200 OK\r\nContent-Le", "origin_closed"),
        ("HTTP/1.1 103 Early Hints\r\n\r\n", "origin_closed"),
        ("HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n", "length"),
        ("HTTP/1.1 101 Switching Protocols\r\n\r\n", "unasked_upgrade"),
    ];
    for (answer, reason) in answers {
        let origin = Origin::new();
        let mut client = Proxy::shared().ask(get(&origin, "/1", ""));
        let mut kept = origin.accept();
        kept.head();
        kept.send(OK);
        client.message();
        client.send(get(&origin, "/2", ""));
        kept.head();
        kept.send(answer);
        drop(kept);
        if answer.contains(" 103 ") {
            assert_eq!(client.head().status(), 103);
        }
        assert_eq!(client.refusal(), (502, reason.into()), "{answer}");
        origin.is_untouched();
    }
}

#[test]
fn a_request_on_a_fresh_connection_that_closes_is_502() {
    let origin = Origin::new();
    let mut client = Proxy::shared().ask(get(&origin, "/", ""));
    let mut upstream = origin.accept();
    upstream.head();
    drop(upstream);
    assert_eq!(client.refusal(), (502, "origin_closed".into()));
    origin.is_untouched();
}

#[test]
fn a_request_to_a_closed_port_is_502_and_the_connection_goes_on() {
    let closed = Refusing::new();
    let origin = Origin::new();
    let mut client =
        Proxy::shared().ask(format!("GET http://{0}/ HTTP/1.1\r\nHost: {0}\r\n\r\n", closed.address()));
    assert_eq!(client.refusal(), (502, "dial_refused".into()));
    client.send(get(&origin, "/", ""));
    let mut upstream = origin.accept();
    upstream.head();
    upstream.send(OK);
    assert_eq!(client.message().0.status(), 200);
}

/// The origin says that it closes, or closes silently: the next request gets a connection of its own.
#[test]
fn an_upstream_connection_that_has_ended_is_not_used_again() {
    for answer in [
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ] {
        let origin = Origin::new();
        let mut client = Proxy::shared().ask(get(&origin, "/1", ""));
        let mut first = origin.accept();
        first.head();
        first.send(answer);
        let (head, _) = client.message();
        assert_eq!(head.field("connection"), None, "the client's connection is its own");
        first.hears_end();
        client.send(get(&origin, "/2", ""));
        let mut second = origin.accept();
        assert_eq!(second.head().start(), "GET /2 HTTP/1.1");
        second.send(OK);
        client.message();
    }
}

#[test]
fn bytes_behind_an_answer_are_never_an_answer() {
    let origin = Origin::new();
    let mut client = Proxy::shared().ask(get(&origin, "/1", ""));
    let mut first = origin.accept();
    first.head();
    first.send(
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    );
    assert_eq!(client.message().1, "ok");
    client.send(get(&origin, "/2", ""));
    let mut second = origin.accept();
    second.head();
    second.send(OK);
    assert_eq!(client.message().1, "ok");
}

/// The same, when the bytes come while the connection waits for its next request.
#[test]
fn bytes_nobody_asked_for_spoil_a_kept_connection() {
    let origin = Origin::new();
    let mut client = Proxy::shared().ask(get(&origin, "/1", ""));
    let mut first = origin.accept();
    first.head();
    first.send(OK);
    assert_eq!(client.message().1, "ok");
    first.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
    client.send(get(&origin, "/2", ""));
    let mut second = origin.accept();
    second.head();
    second.send(OK);
    assert_eq!(client.message().1, "ok");
}

#[test]
fn after_connection_close_nothing_more_is_processed() {
    let origin = Origin::new();
    let requests = get(&origin, "/1", "Connection: close\r\n") + &get(&origin, "/2", "");
    let mut client = Proxy::shared().ask(requests);
    let mut upstream = origin.accept();
    upstream.head();
    upstream.send(OK);
    assert_eq!(client.message().0.field("connection"), Some("close"));
    client.hears_end();
    // Whatever was to be sent has been when the next client's request arrives.
    let _next = Proxy::shared().ask(get(&origin, "/3", ""));
    assert_eq!(upstream.head().start(), "GET /3 HTTP/1.1");
    origin.is_untouched();
}
