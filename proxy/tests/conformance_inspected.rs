//! `protocol: http` inside CONNECT: the requests in the tunnel are judged one by one, and after 101 it is raw.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

mod conformance;

use conformance::{OK, Origin, Peer, Proxy, Setup};

/// A daemon whose policy judges requests to `origin`: GET anything under `/public/`, POST `/in`.
fn judging(origin: &Origin) -> Proxy {
    let rules = "rules: [{allow: {method: GET, path: /public/**}}, {allow: {method: POST, path: /in}}]";
    let endpoint = format!("host: 127.0.0.1, port: {}, protocol: http, {rules}", origin.port());
    Setup::default().endpoints(&[endpoint]).start()
}

fn get(origin: &Origin, path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {}\r\n{fields}\r\n", origin.address())
}

/// A tunnel with its two ends.
fn tunnel(proxy: &Proxy, origin: &Origin) -> (Peer, Peer) {
    let client = proxy.tunnel(origin.address());
    (client, origin.accept())
}

#[test]
fn requests_in_the_tunnel_are_forwarded_over_one_connection() {
    let origin = Origin::new();
    let proxy = judging(&origin);
    let (mut client, mut upstream) = tunnel(&proxy, &origin);
    for path in ["/public/a", "/public/b?q=1"] {
        client.send(get(&origin, path, "Proxy-Connection: keep-alive\r\n"));
        let head = upstream.head();
        assert_eq!(head.start(), format!("GET {path} HTTP/1.1"));
        assert_eq!(head.field("host"), Some(origin.address().to_string().as_str()));
        assert!(head.field("via").is_some_and(|via| via.contains("sluice-")));
        assert_eq!(head.field("proxy-connection"), None);
        upstream.send(OK);
        assert_eq!(client.message().1, "ok");
    }
    origin.is_untouched();
    let event = proxy.event_about("request.allowed", origin.port());
    assert_eq!(
        (&event["method"], &event["path"], &event["status"]),
        (&"GET".into(), &"/public/a".into(), &200.into())
    );
}

#[test]
fn a_request_may_come_with_the_connect() {
    let origin = Origin::new();
    let proxy = judging(&origin);
    let at = origin.address();
    let request = get(&origin, "/public/a", "");
    let mut client = proxy.ask(format!("CONNECT {at} HTTP/1.1\r\nHost: {at}\r\n\r\n{request}"));
    assert_eq!(client.head().status(), 200);
    let mut upstream = origin.accept();
    assert_eq!(upstream.head().start(), "GET /public/a HTTP/1.1");
    upstream.send(OK);
    assert_eq!(client.message().1, "ok");
}

#[test]
fn a_method_or_path_the_policy_denies_is_403_with_json_and_the_tunnel_goes_on() {
    let origin = Origin::new();
    let proxy = judging(&origin);
    let (mut client, mut upstream) = tunnel(&proxy, &origin);
    let at = origin.address();
    for (line, reason) in [("GET /secret", "path_not_allowed"), ("DELETE /public/a", "method_not_allowed")] {
        client.send(format!("{line} HTTP/1.1\r\nHost: {at}\r\n\r\n"));
        let (head, body) = client.message();
        assert_eq!((head.status(), head.field("content-type")), (403, Some("application/json")));
        let json: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((&json["error"], &json["reason"]), (&"policy_denied".into(), &reason.into()));
    }
    client.send(get(&origin, "/public/a", ""));
    assert_eq!(upstream.head().start(), "GET /public/a HTTP/1.1");
    upstream.send(OK);
    assert_eq!(client.message().1, "ok");
}

/// Its body would be taken for the next request.
#[test]
fn a_denied_request_with_a_body_ends_the_tunnel() {
    let origin = Origin::new();
    let proxy = judging(&origin);
    let (mut client, mut upstream) = tunnel(&proxy, &origin);
    let smuggled = get(&origin, "/public/a", "");
    let length = smuggled.len();
    client.send(format!(
        "POST /out HTTP/1.1\r\nHost: {}\r\nContent-Length: {length}\r\n\r\n{smuggled}",
        origin.address()
    ));
    let (head, _) = client.message();
    assert_eq!((head.status(), head.field("connection")), (403, Some("close")));
    client.hears_end();
    drop(client);
    let mut next = proxy.tunnel(origin.address());
    next.send(get(&origin, "/public/next", ""));
    assert_eq!(origin.accept().head().start(), "GET /public/next HTTP/1.1");
    drop(proxy);
    assert_eq!(upstream.end().rest, b"");
}

/// A path is judged as the origin will read it.
#[test]
fn a_path_in_disguise_is_judged_as_what_it_is() {
    let origin = Origin::new();
    let proxy = judging(&origin);
    let (mut client, _upstream) = tunnel(&proxy, &origin);
    for path in ["/public/../secret", "/public/%2e%2e/secret", "/public/.%2E/secret", "/public/..%2fsecret"] {
        client.send(get(&origin, path, ""));
        assert_eq!(client.refusal().0, 403, "{path}");
    }
}

#[test]
fn a_host_or_target_that_is_not_the_tunnels_is_400() {
    let origin = Origin::new();
    let proxy = judging(&origin);
    let at = origin.address();
    let rows = [
        ("GET /public/a HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n".to_owned(), "host_mismatch"),
        ("GET /public/a HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".to_owned(), "host_mismatch"),
        (format!("GET http://elsewhere.example/public/a HTTP/1.1\r\nHost: {at}\r\n\r\n"), "host_mismatch"),
        (format!("CONNECT {at} HTTP/1.1\r\nHost: {at}\r\n\r\n"), "nested_connect"),
    ];
    let mut dialled = Vec::new();
    for (request, reason) in rows {
        let (mut client, upstream) = tunnel(&proxy, &origin);
        client.send(&request);
        assert_eq!(client.refusal(), (400, reason.into()), "{request}");
        client.hears_end();
        dialled.push(upstream);
    }
    drop(proxy);
    assert!(dialled.iter_mut().all(|upstream| upstream.end().rest.is_empty()));
}

/// What is not HTTP where HTTP was promised: refused with a word, and an event that says so.
#[test]
fn other_bytes_where_http_was_promised_are_refused_as_not_http() {
    for octets in [
        b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
        b"\0\0\0\x08\x04\xd2\x16\x2f".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
    ] {
        let origin = Origin::new();
        let proxy = judging(&origin);
        let (mut client, mut upstream) = tunnel(&proxy, &origin);
        client.send(&octets);
        assert_eq!(client.refusal(), (403, "not_http".into()), "{}", octets.escape_ascii());
        client.end();
        let event = proxy.event_about("request.denied", origin.port());
        assert_eq!(event["reason"], "not_http");
        assert!(event["hint"].as_str().is_some_and(|hint| hint.contains("protocol")), "{event}");
        drop(proxy);
        assert_eq!(upstream.end().rest, b"");
    }
}

#[test]
fn a_malformed_request_in_the_tunnel_is_400_and_ends_it() {
    let origin = Origin::new();
    let proxy = judging(&origin);
    let rows = [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "length_and_coding"),
        ("X: a\0b\r\n\r\n", "control_octet"),
    ];
    let mut dialled = Vec::new();
    for (fields, reason) in rows {
        let (mut client, upstream) = tunnel(&proxy, &origin);
        client.send(format!("POST /in HTTP/1.1\r\nHost: {}\r\n{fields}", origin.address()));
        assert_eq!(client.refusal(), (400, reason.into()));
        client.hears_end();
        dialled.push(upstream);
    }
    drop(proxy);
    assert!(dialled.iter_mut().all(|upstream| upstream.end().rest.is_empty()));
}

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Extensions: permessage-deflate\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// Field report 2: frames behind the 101 were dropped, and what came later was parsed as HTTP.
#[test]
fn after_101_bytes_are_raw_both_ways_including_those_already_read() {
    let origin = Origin::new();
    let proxy = judging(&origin);
    let (mut client, mut upstream) = tunnel(&proxy, &origin);
    // An optimistic client sends its first frame behind the request.
    client.send(get(&origin, "/public/socket", UPGRADE) + "\u{1}early frame");
    let head = upstream.head();
    assert_eq!((head.field("upgrade"), head.field("connection")), (Some("websocket"), Some("upgrade")));
    assert_eq!(head.field("sec-websocket-key"), Some("dGhlIHNhbXBsZSBub25jZQ=="));
    assert_eq!(head.field("sec-websocket-extensions"), Some("permessage-deflate"));
    upstream.send(SWITCHED.to_owned() + "\u{2}first frame");
    let head = client.head();
    assert_eq!((head.status(), head.field("upgrade")), (101, Some("websocket")));
    assert_eq!(head.field("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!((head.field("date"), head.field("content-length")), (None, None));
    client.hears("\u{2}first frame");
    upstream.hears("\u{1}early frame");
    for octets in [&b"GET /secret HTTP/1.1\r\nHost: other\r\n\r\n"[..], b"\x81\x05hello\0\r\n\xff"] {
        client.send(octets);
        upstream.hears(octets);
        upstream.send(octets);
        client.hears(octets);
    }
    client.finish();
    upstream.hears_end();
    upstream.send("bye");
    drop(upstream);
    client.hears("bye");
    client.hears_end();
    let event = proxy.event_about("request.allowed", origin.port());
    assert_eq!(event["status"], 101);
    assert_eq!(proxy.event_about("tunnel.closed", origin.port())["reason"], "eof");
}

#[test]
fn a_forward_request_may_switch_too() {
    let origin = Origin::new();
    let at = origin.address();
    let mut client =
        Proxy::shared().ask(format!("GET http://{at}/socket HTTP/1.1\r\nHost: {at}\r\n{UPGRADE}\r\n"));
    let mut upstream = origin.accept();
    upstream.head();
    upstream.send(SWITCHED);
    assert_eq!(client.head().status(), 101);
    client.send("\0frame");
    upstream.hears("\0frame");
}

/// RFC 9110 section 7.8: an origin may refuse the offer, and HTTP goes on.
/// What was switched may be idle for as long as any tunnel, so its peers are asked for as well.
#[test]
fn what_was_switched_has_tcp_keep_alive_on_both_sides() {
    let origin = Origin::new();
    let at = origin.address();
    let mut client = Proxy::shared().ask(format!(
        "GET http://{at}/chat HTTP/1.1\r\nHost: {at}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    ));
    let mut upstream = origin.accept();
    upstream.head();
    upstream.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!(client.head().status(), 101);
    client.send("raw");
    upstream.hears("raw");
    conformance::have_keep_alive([client.local(), upstream.local()]);
}

#[test]
fn an_offer_the_origin_ignores_leaves_http_as_it_was() {
    let origin = Origin::new();
    let proxy = judging(&origin);
    let (mut client, mut upstream) = tunnel(&proxy, &origin);
    client.send(get(&origin, "/public/socket", UPGRADE));
    upstream.head();
    upstream.send(OK);
    assert_eq!(client.message().1, "ok");
    client.send(get(&origin, "/secret", ""));
    assert_eq!(client.refusal().0, 403);
}

#[test]
fn a_101_nobody_asked_for_is_502() {
    let offers = [
        "",
        "Upgrade: websocket\r\n",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n",
    ];
    for offer in offers {
        let origin = Origin::new();
        let proxy = judging(&origin);
        let (mut client, mut upstream) = tunnel(&proxy, &origin);
        client.send(get(&origin, "/public/a", offer));
        upstream.head();
        upstream.send(SWITCHED.to_owned() + "raw bytes");
        assert_eq!(client.refusal(), (502, "unasked_upgrade".into()), "{offer}");
    }
}

/// The offer was another protocol than the one the origin switched to: nobody knows what the bytes would be.
#[test]
fn a_101_to_another_protocol_is_502() {
    for answer in [
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: irc\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ] {
        let origin = Origin::new();
        let proxy = judging(&origin);
        let (mut client, mut upstream) = tunnel(&proxy, &origin);
        client.send(get(&origin, "/public/socket", UPGRADE));
        upstream.head();
        upstream.send(answer);
        assert_eq!(client.refusal(), (502, "unasked_upgrade".into()), "{answer}");
    }
}

/// RFC 9110 section 7.8: no switch before the request has been sent whole.
#[test]
fn a_101_before_the_request_has_ended_is_502() {
    let origin = Origin::new();
    let at = origin.address();
    let mut client = Proxy::shared().ask(format!(
        "POST http://{at}/socket HTTP/1.1\r\nHost: {at}\r\nContent-Length: 10\r\n{UPGRADE}\r\nhalf"
    ));
    let mut upstream = origin.accept();
    upstream.head();
    upstream.hears("half");
    upstream.send(SWITCHED);
    assert_eq!(client.refusal(), (502, "unasked_upgrade".into()));
}

#[test]
fn an_http_1_0_request_offers_no_switch() {
    let origin = Origin::new();
    let mut client =
        Proxy::shared().ask(format!("GET http://{}/ HTTP/1.0\r\n{UPGRADE}\r\n", origin.address()));
    let mut upstream = origin.accept();
    assert_eq!(upstream.head().field("upgrade"), None);
    upstream.send(SWITCHED);
    assert_eq!(client.refusal(), (502, "unasked_upgrade".into()));
}

/// The same policy without a tunnel: a forward request is judged by the same rules.
#[test]
fn forward_requests_are_judged_by_the_same_rules() {
    let origin = Origin::new();
    let proxy = judging(&origin);
    let at = origin.address();
    let mut client = proxy.ask(format!("GET http://{at}/secret HTTP/1.1\r\nHost: {at}\r\n\r\n"));
    assert_eq!(client.refusal(), (403, "path_not_allowed".into()));
    origin.is_untouched();
    client.send(format!("GET http://{at}/public/a HTTP/1.1\r\nHost: {at}\r\n\r\n"));
    let mut upstream = origin.accept();
    upstream.head();
    upstream.send(OK);
    assert_eq!(client.message().1, "ok");
}
