//! Heads for the next hop, octet for octet.

use super::*;
use crate::destination::Host;
use crate::http::fault::Fault;
use crate::http::head::{Method, RequestReader};
use crate::http::limits::HeadLimits;
use crate::http::response::ResponseReader;
use crate::http::target::{self, HTTP_PORT, Target};

const US: u64 = 0xa;
const OUR_NAME: &str = "sluice-000000000000000a";

/// What goes upstream for a forward request made of this line and these field lines.
fn forwarded_as(line: &str, lines: &str, adapt: impl FnOnce(&mut Upstream<'_>)) -> Result<String, Stop> {
    let bytes = format!("{line}\r\nHost: ignored.example\r\n{lines}\r\n").into_bytes();
    let read = RequestReader::new(HeadLimits::default()).read(&bytes);
    let head = read.unwrap_or_else(|fault| panic!("{lines}: {fault:?}")).unwrap_or_else(|| panic!("{lines}"));
    let Ok(Target::Forward(authority, path)) = target::on_proxy(&head, &bytes) else { panic!("{line}") };
    let destination = authority.to_destination(HTTP_PORT);
    let via = Pseudonym::new(US);
    let mut how = Upstream {
        destination: &destination,
        default_port: HTTP_PORT,
        path,
        via: Some(&via),
        upgrade: false,
        close: false,
    };
    adapt(&mut how);
    let mut out = b"before".to_vec();
    let result = request(&mut out, &head, &bytes, &how);
    let out = String::from_utf8_lossy(&out).into_owned();
    if result.is_err() {
        assert_eq!(out, "before");
    }
    result.map(|()| out.trim_start_matches("before").to_owned())
}

/// The field lines that go upstream, without the Host and Via that always do.
fn forwarded(lines: &str) -> String {
    let out = forwarded_as("GET http://a.example/ HTTP/1.1", lines, |_| ()).unwrap_or_default();
    let out = out.strip_prefix("GET / HTTP/1.1\r\nHost: a.example\r\n").unwrap_or("WRONG START").to_owned();
    let out = out.replacen(&format!("Via: 1.1 {OUR_NAME}\r\n"), "", 1);
    out.strip_suffix("\r\n").unwrap_or("WRONG END").to_owned()
}

#[test]
fn a_forward_request_becomes_origin_form_with_the_targets_host() {
    let out = forwarded_as("GET http://A.example:8080/x?y HTTP/1.1", "Accept: */*\r\n", |_| ());
    let expected =
        format!("GET /x?y HTTP/1.1\r\nHost: a.example:8080\r\nAccept: */*\r\nVia: 1.1 {OUR_NAME}\r\n\r\n");
    assert_eq!(out, Ok(expected));
    let out = forwarded_as("OPTIONS http://[::1] HTTP/1.0", "", |how| how.close = true);
    let expected =
        format!("OPTIONS * HTTP/1.1\r\nHost: [::1]\r\nVia: 1.0 {OUR_NAME}\r\nConnection: close\r\n\r\n");
    assert_eq!(out, Ok(expected));
    let out = forwarded_as("GET http://a?q HTTP/1.1", "", |how| how.via = None);
    assert_eq!(out, Ok("GET /?q HTTP/1.1\r\nHost: a\r\n\r\n".into()));
}

#[test]
fn unknown_fields_pass_in_order_and_untouched() {
    let lines =
        "b: 1\r\nA: x\r\nb: 2, \"q\"\r\nCookie: a=b\r\nAuthorization: Basic eA==\r\nIf-None-Match: \"x\"\r\n";
    assert_eq!(forwarded(lines), lines);
    let websocket =
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nOrigin: http://a\r\n";
    assert_eq!(forwarded(websocket), websocket);
}

#[test]
fn what_means_one_hop_only_is_left_behind() {
    assert_eq!(forwarded("Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n"), "");
    assert_eq!(
        forwarded("Proxy-Connection: Keep-Alive\r\nProxy-Authorization: Basic eA==\r\nproxy-x: 1\r\n"),
        ""
    );
    assert_eq!(
        forwarded("Connection: X-One\r\nx-one: 1\r\nX-Two: 2\r\nConnection: x-three\r\nX-Three: 3\r\n"),
        "X-Two: 2\r\n"
    );
    assert_eq!(forwarded("TE: trailers\r\n"), "");
    assert_eq!(forwarded("TE: gzip, trailers\r\nConnection: TE\r\n"), "TE: trailers\r\nConnection: TE\r\n");
    assert_eq!(forwarded("Connection: close\r\n"), "");
}

#[test]
fn framing_is_written_from_what_was_understood() {
    assert_eq!(forwarded("Content-Length: 007\r\n"), "Content-Length: 7\r\n");
    assert_eq!(forwarded("Content-Length: 0\r\n"), "Content-Length: 0\r\n");
    assert_eq!(
        forwarded("Transfer-Encoding: CHUNKED\r\nTrailer: X\r\n"),
        "Trailer: X\r\nTransfer-Encoding: chunked\r\n"
    );
    assert_eq!(
        forwarded("Transfer-Encoding: chunked\r\nConnection: Transfer-Encoding\r\n"),
        "Transfer-Encoding: chunked\r\n"
    );
    assert_eq!(
        forwarded("Expect: 100-continue\r\nContent-Length: 3\r\n"),
        "Expect: 100-continue\r\nContent-Length: 3\r\n"
    );
}

#[test]
fn an_upgrade_passes_only_where_allowed_and_h2c_never() {
    let upgrade = |lines: &str, allowed| {
        let out = forwarded_as("GET http://a/ HTTP/1.1", lines, |how| {
            how.upgrade = allowed;
            how.via = None;
        });
        out.map(|out| out.trim_start_matches("GET / HTTP/1.1\r\nHost: a\r\n").to_owned())
    };
    let websocket = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n";
    assert_eq!(upgrade(websocket, true), Ok("Upgrade: websocket\r\nConnection: upgrade\r\n\r\n".into()));
    assert_eq!(upgrade(websocket, false), Ok("\r\n".into()));
    // cargo over http asks for this, and is content to be served without it.
    let h2c =
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n";
    assert_eq!(upgrade(h2c, true), Ok("\r\n".into()));
    let both = "Connection: Upgrade\r\nUpgrade: h2c, websocket\r\n";
    assert_eq!(upgrade(both, true), Ok("Upgrade: websocket\r\nConnection: upgrade\r\n\r\n".into()));
    assert_eq!(upgrade("Upgrade: websocket\r\n", true), Ok("\r\n".into()));
}

#[test]
fn max_forwards_counts_down_and_ends_at_zero() {
    let hops = |method: &str, n: &str| {
        let line = format!("{method} http://a/ HTTP/1.1");
        let out = forwarded_as(&line, &format!("Max-Forwards: {n}\r\n"), |_| ())?;
        Ok(out.lines().find_map(|line| line.strip_prefix("Max-Forwards: ")).map(str::to_owned))
    };
    assert_eq!(hops("OPTIONS", "0"), Err(Stop::LastHop));
    assert_eq!(hops("TRACE", "0"), Err(Stop::LastHop));
    assert_eq!(hops("OPTIONS", "5"), Ok(Some("4".into())));
    assert_eq!(hops("GET", "0"), Ok(Some("0".into())));
    assert_eq!(
        forwarded_as("OPTIONS http://a/ HTTP/1.1", "", |_| ()).map(|out| out.contains("Max-")),
        Ok(false)
    );
}

#[test]
fn our_own_name_in_via_is_a_loop_and_any_other_is_not() {
    let via = |value: &str| {
        forwarded_as("GET http://a/ HTTP/1.1", &format!("Via: {value}\r\n"), |_| ())
            .map(|out| out.contains(value))
    };
    assert_eq!(via(&format!("1.1 {OUR_NAME}")), Err(Stop::Loop));
    assert_eq!(via(&format!("1.0 fred, HTTP/1.1\t{OUR_NAME} (comment), 1.1 x")), Err(Stop::Loop));
    assert_eq!(via("1.1 sluice-000000000000000b"), Ok(true));
    assert_eq!(via("1.1 fred"), Ok(true));
    let nominated = format!("Connection: via\r\nVia: 1.1 {OUR_NAME}\r\n");
    assert_eq!(forwarded_as("GET http://a/ HTTP/1.1", &nominated, |_| ()), Err(Stop::Loop));
    // Ours comes last.
    let out = forwarded_as("GET http://a/ HTTP/1.1", "Via: 1.0 fred\r\n", |_| ()).unwrap_or_default();
    assert!(out.contains(&format!("Via: 1.0 fred\r\nVia: 1.1 {OUR_NAME}\r\n")), "{out}");
}

/// What goes to a client of this version for a response with this status line and these field lines.
fn answered_to(
    client: Version,
    method: Method,
    status: &str,
    lines: &str,
    close: bool,
) -> Result<String, Fault> {
    let bytes = format!("HTTP/1.1 {status}\r\n{lines}\r\n").into_bytes();
    let head = ResponseReader::new(HeadLimits::default()).read(&bytes)?.ok_or(Fault::FieldLine)?;
    let via = Pseudonym::new(US);
    let framing = towards_client(head.framing(method), client);
    let how = Downstream { framing, close, via: Some(&via), date: HttpDate::from_unix(784_111_777) };
    let mut out = Vec::new();
    response(&mut out, &head, &bytes, &how);
    Ok(String::from_utf8_lossy(&out).replacen(&format!("Via: 1.1 {OUR_NAME}\r\n"), "", 1))
}

fn answered(status: &str, lines: &str) -> Result<String, Fault> {
    answered_to(Version::Http11, Method::Get, status, lines, false)
}

const DATE: &str = "Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n";

#[test]
fn a_response_passes_without_its_hop_by_hop_fields() {
    let lines = "Server: x\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nDate: d\r\nWWW-Authenticate: Basic\r\nAllow: GET\r\n\
                 Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nUpgrade: h2,h2c\r\n\
                 Proxy-Authenticate: Basic\r\nProxy-Status: sluice; error=http_request_denied\r\nContent-Length: 3\r\n";
    let expected = "HTTP/1.1 200 Fine\r\nServer: x\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nDate: d\r\n\
                    WWW-Authenticate: Basic\r\nAllow: GET\r\nContent-Length: 3\r\n\r\n";
    assert_eq!(answered("200 Fine", lines), Ok(expected.into()));
}

#[test]
fn a_date_is_added_to_a_final_response_without_one() {
    assert_eq!(answered("204", ""), Ok(format!("HTTP/1.1 204 \r\n{DATE}\r\n")));
    assert_eq!(
        answered("103 Early Hints", "Link: x\r\n"),
        Ok("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n".into())
    );
}

#[test]
fn a_body_until_close_closes_the_connection_to_the_client() {
    assert_eq!(answered("200 OK", ""), Ok(format!("HTTP/1.1 200 OK\r\n{DATE}Connection: close\r\n\r\n")));
    let told = answered_to(Version::Http11, Method::Get, "200 OK", "Content-Length: 1\r\n", true);
    assert_eq!(told, Ok(format!("HTTP/1.1 200 OK\r\n{DATE}Content-Length: 1\r\nConnection: close\r\n\r\n")));
}

#[test]
fn chunks_go_to_http_1_1_clients_only() {
    let lines = "Transfer-Encoding: chunked\r\nTrailer: X\r\n";
    let new = answered("200 OK", lines);
    assert_eq!(new, Ok(format!("HTTP/1.1 200 OK\r\nTrailer: X\r\n{DATE}Transfer-Encoding: chunked\r\n\r\n")));
    let old = answered_to(Version::Http10, Method::Get, "200 OK", lines, true);
    assert_eq!(old, Ok(format!("HTTP/1.1 200 OK\r\n{DATE}Connection: close\r\n\r\n")));
}

#[test]
fn a_response_without_a_body_keeps_only_the_length_that_informs() {
    let length = |method, status: &str| {
        let out =
            answered_to(Version::Http11, method, status, "Content-Length: 9\r\n", false).unwrap_or_default();
        out.contains("Content-Length: 9\r\n")
    };
    assert!(length(Method::Head, "200 OK"));
    assert!(length(Method::Get, "304 x"));
    assert!(!length(Method::Get, "204 x"));
    assert!(!length(Method::Get, "103 x"));
    assert!(!length(Method::Get, "101 x"));
    let chunked = answered("204 x", "Transfer-Encoding: chunked\r\n");
    assert_eq!(chunked, Ok(format!("HTTP/1.1 204 x\r\n{DATE}\r\n")));
}

#[test]
fn a_switch_of_protocols_keeps_its_handshake() {
    let lines =
        "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
    let expected = "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
                    Upgrade: websocket\r\nConnection: upgrade\r\n\r\n";
    assert_eq!(answered("101 Switching Protocols", lines), Ok(expected.into()));
}

#[test]
fn warm_heads_are_written_without_an_allocation_once_the_buffer_has_grown() {
    let lines = "Accept: */*\r\nUser-Agent: x\r\n";
    let bytes = format!("GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n{lines}\r\n").into_bytes();
    let head = RequestReader::new(HeadLimits::default()).read(&bytes).ok().flatten();
    let destination = Destination { host: Host::Name("a.example".into()), port: 80 };
    let path = Path { path: b"/", query: None };
    let via = Pseudonym::new(US);
    let how = Upstream {
        destination: &destination,
        default_port: 80,
        path,
        via: Some(&via),
        upgrade: true,
        close: false,
    };
    let mut out = Vec::with_capacity(512);
    let at = out.as_ptr();
    for _ in 0..3 {
        out.clear();
        assert_eq!(head.map(|head| request(&mut out, &head, &bytes, &how)), Some(Ok(())));
    }
    assert_eq!((out.as_ptr(), out.capacity()), (at, 512));
}
