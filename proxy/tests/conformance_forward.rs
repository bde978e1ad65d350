//! Forward requests, byte by byte: what the origin hears, what the client hears, and interim answers between.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

mod conformance;

use conformance::{Head, OK, Origin, Peer, Proxy};

/// A GET of `path` at `origin`, with more field lines.
fn get(origin: &Origin, path: &str, fields: &str) -> String {
    let at = origin.address();
    format!("GET http://{at}{path} HTTP/1.1\r\nHost: {at}\r\n{fields}\r\n")
}

/// What the origin hears of a request, which it answers with [`OK`].
fn heard(request: impl AsRef<[u8]>, origin: &Origin) -> Head {
    let mut client = Proxy::shared().ask(request);
    let mut upstream = origin.accept();
    let head = upstream.head();
    upstream.send(OK);
    assert_eq!(client.message().0.status(), 200);
    head
}

/// What the client hears of an answer to a GET.
fn answered(answer: impl AsRef<[u8]>) -> (Peer, Peer) {
    let origin = Origin::new();
    let client = Proxy::shared().ask(get(&origin, "/", ""));
    let mut upstream = origin.accept();
    upstream.head();
    upstream.send(answer);
    (client, upstream)
}

#[test]
fn the_origin_is_asked_in_origin_form_with_the_host_of_the_target() {
    let origin = Origin::new();
    let at = origin.address();
    let head = heard(
        format!("GET http://{at}/a//b/../c;d=%2F?e=f?g HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n"),
        &origin,
    );
    assert_eq!(head.start(), "GET /a//b/../c;d=%2F?e=f?g HTTP/1.1");
    assert_eq!(head.field("host"), Some(at.to_string().as_str()));
    assert_eq!(head.names()[0], "host");
}

#[test]
fn an_empty_path_becomes_a_slash_and_for_options_an_asterisk() {
    let origin = Origin::new();
    let at = origin.address();
    let rows = [
        (format!("GET http://{at}"), "GET / HTTP/1.1"),
        (format!("GET http://{at}?q"), "GET /?q HTTP/1.1"),
        (format!("OPTIONS http://{at}"), "OPTIONS * HTTP/1.1"),
        (format!("OPTIONS http://{at}/"), "OPTIONS / HTTP/1.1"),
    ];
    let mut client = Proxy::shared().connect();
    let mut upstream = None;
    for (line, expected) in rows {
        client.send(format!("{line} HTTP/1.1\r\nHost: {at}\r\n\r\n"));
        let upstream = upstream.get_or_insert_with(|| origin.accept());
        assert_eq!(upstream.head().start(), expected);
        upstream.send(OK);
        client.message();
    }
}

#[test]
fn unknown_methods_and_fields_pass_and_same_named_ones_keep_their_order() {
    let origin = Origin::new();
    let at = origin.address();
    let head = heard(
        format!(
            "BREW http://{at}/pot HTTP/1.1\r\nHost: {at}\r\nX-One: 1\r\nAccept: a\r\nX-One:  2 \r\nauthorization: Basic eA==\r\n\r\n"
        ),
        &origin,
    );
    assert_eq!(head.start(), "BREW /pot HTTP/1.1");
    assert_eq!(head.all("x-one"), ["1", "2"]);
    assert_eq!(head.field("authorization"), Some("Basic eA=="));
}

#[test]
fn fields_that_mean_this_hop_only_are_dropped() {
    let origin = Origin::new();
    let fields = "Connection: X-Private, keep-alive\r\nX-Private: 1\r\nKeep-Alive: timeout=5\r\n\
                  Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eA==\r\nProxy-Anything: x\r\n\
                  TE: gzip\r\nAccept: */*\r\nX-Public: 2\r\n";
    let head = heard(get(&origin, "/", fields), &origin);
    assert_eq!(head.names()[..], ["host", "accept", "x-public", "via"]);
}

/// RFC 9110 section 5.6.1.2: empty elements of a list count for nothing.
#[test]
fn empty_elements_of_a_list_are_skipped() {
    let origin = Origin::new();
    let fields = "Connection: , X-Private ,, ,\r\nConnection:\r\nX-Private: 1\r\nX-Public: 2\r\n";
    assert_eq!(heard(get(&origin, "/", fields), &origin).names()[..], ["host", "x-public", "via"]);
}

#[test]
fn trailers_are_asked_for_only_if_this_client_asks() {
    let origin = Origin::new();
    let head = heard(get(&origin, "/", "TE: trailers\r\nConnection: TE\r\n"), &origin);
    assert_eq!((head.field("te"), head.field("connection")), (Some("trailers"), Some("TE")));
    let origin = Origin::new();
    assert_eq!(heard(get(&origin, "/", "TE: trailers\r\n"), &origin).field("te"), None);
}

#[test]
fn via_is_added_both_ways_behind_what_is_there() {
    let origin = Origin::new();
    let mut client = Proxy::shared().ask(get(&origin, "/", "Via: 1.0 first\r\n"));
    let mut upstream = origin.accept();
    let up = upstream.head();
    let own = up.all("via")[1].to_owned();
    assert_eq!(up.all("via")[0], "1.0 first");
    assert!(own.starts_with("1.1 sluice-"), "{own}");
    upstream.send("HTTP/1.0 200 OK\r\nVia: 1.1 cache\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.head().all("via"), ["1.1 cache".to_owned(), own.replace("1.1 ", "1.0 ")]);
}

#[test]
fn hop_fields_of_an_answer_are_dropped_and_its_own_pass() {
    let (mut client, _upstream) = answered(
        "HTTP/1.1 200 Fine By Me\r\nConnection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: x\r\nProxy-Authenticate: y\r\n\
         Allow: GET\r\nWWW-Authenticate: Basic\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 0\r\n\r\n",
    );
    let head = client.head();
    assert_eq!(head.start(), "HTTP/1.1 200 Fine By Me");
    for name in ["connection", "x-hop", "keep-alive", "proxy-authenticate"] {
        assert_eq!(head.field(name), None, "{name}");
    }
    assert_eq!((head.field("allow"), head.field("www-authenticate")), (Some("GET"), Some("Basic")));
    assert_eq!(head.all("set-cookie"), ["a", "b"]);
}

#[test]
fn date_is_added_where_the_origin_has_none_and_kept_where_it_has() {
    let (mut client, _upstream) = answered("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    assert!(client.head().field("date").is_some_and(|date| date.ends_with(" GMT") && date.len() == 29));
    let (mut client, _upstream) = answered("HTTP/1.1 200 OK\r\nDate: once\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.head().field("date"), Some("once"));
}

/// What cargo 1.95 sends over http. A proxy that refuses h2c breaks it.
#[test]
fn an_offer_of_h2c_is_dropped_and_the_request_served() {
    let origin = Origin::new();
    let at = origin.address();
    let head = heard(
        format!(
            "GET http://{at}/config.json HTTP/1.1\r\nHost: {at}\r\nUser-Agent: cargo/1.95.0\r\nAccept: */*\r\n\
             Accept-Encoding: gzip\r\nProxy-Connection: Keep-Alive\r\nConnection: Upgrade, HTTP2-Settings\r\n\
             Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n"
        ),
        &origin,
    );
    assert_eq!(head.names()[..], ["host", "user-agent", "accept", "accept-encoding", "via"]);
}

#[test]
fn a_body_waits_for_100_continue() {
    let origin = Origin::new();
    let at = origin.address();
    let mut client = Proxy::shared().ask(format!(
        "PUT http://{at}/x HTTP/1.1\r\nHost: {at}\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    ));
    let mut upstream = origin.accept();
    assert_eq!(upstream.head().field("expect"), Some("100-continue"));
    upstream.send("HTTP/1.1 100 Continue\r\n\r\n");
    assert_eq!(client.head().status(), 100);
    client.send("body");
    upstream.hears("body");
    upstream.send(OK);
    assert_eq!(client.message().0.status(), 200);
    client.send(get(&origin, "/next", ""));
    assert_eq!(upstream.head().start(), "GET /next HTTP/1.1");
}

#[test]
fn a_final_answer_in_place_of_100_ends_the_connection_without_the_body() {
    let origin = Origin::new();
    let at = origin.address();
    let mut client = Proxy::shared().ask(format!(
        "PUT http://{at}/x HTTP/1.1\r\nHost: {at}\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    ));
    let mut upstream = origin.accept();
    upstream.head();
    upstream.send("HTTP/1.1 413 Too much\r\nContent-Length: 2\r\n\r\nno");
    let (head, body) = client.message();
    assert_eq!((head.status(), head.field("connection"), &*body), (413, Some("close"), "no"));
    client.hears_end();
    upstream.hears_end();
}

#[test]
fn any_number_of_interim_answers_is_passed_on_before_the_final_one() {
    let (mut client, _upstream) = answered(
        "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n\
         HTTP/1.1 103 Early Hints\r\nLink: </b.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    );
    let hints = client.head();
    assert_eq!((hints.status(), hints.field("link")), (103, Some("</a.css>")));
    assert_eq!(client.head().status(), 100);
    assert_eq!(client.head().status(), 102);
    assert_eq!(client.head().field("link"), Some("</b.css>"));
    assert_eq!(client.message().1, "ok");
}

/// A build or a query that reports its progress for hours.
#[test]
fn hundreds_of_interim_answers_are_passed_on() {
    let (mut client, mut upstream) = answered("");
    for n in 0..500 {
        upstream.send(format!("HTTP/1.1 102 Processing\r\nX-Step: {n}\r\n\r\n"));
    }
    for n in 0..500 {
        assert_eq!(client.head().field("x-step"), Some(n.to_string().as_str()));
    }
    upstream.send(OK);
    assert_eq!(client.message().0.status(), 200);
}

#[test]
fn an_interim_answer_is_passed_on_before_the_final_one_exists() {
    let (mut client, mut upstream) = answered("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n");
    assert_eq!(client.head().status(), 103);
    upstream.send(OK);
    assert_eq!(client.message().0.status(), 200);
}

#[test]
fn an_http_1_0_client_sees_no_interim_answer() {
    let origin = Origin::new();
    let mut client = Proxy::shared().ask(format!("GET http://{}/ HTTP/1.0\r\n\r\n", origin.address()));
    let mut upstream = origin.accept();
    let head = upstream.head();
    assert_eq!(
        (head.start(), head.field("host")),
        ("GET / HTTP/1.1", Some(origin.address().to_string().as_str()))
    );
    upstream.send("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n");
    upstream.send(OK);
    let (head, body) = client.message();
    assert_eq!((head.status(), head.field("connection"), &*body), (200, Some("close"), "ok"));
    client.hears_end();
}

/// RFC 9110 section 10.1.1: nobody there would hear the 100.
#[test]
fn an_expectation_of_an_http_1_0_client_is_dropped_and_its_body_passes() {
    let origin = Origin::new();
    let at = origin.address();
    let mut client = Proxy::shared()
        .ask(format!("POST http://{at}/x HTTP/1.0\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\nbody"));
    let mut upstream = origin.accept();
    let head = upstream.head();
    assert_eq!((head.field("expect"), head.field("content-length")), (None, Some("4")));
    upstream.hears("body");
    upstream.send(OK);
    assert_eq!(client.message().1, "ok");
    client.hears_end();
}

#[test]
fn max_forwards_is_counted_down_and_answered_at_zero() {
    let origin = Origin::new();
    let at = origin.address();
    let options =
        |hops| format!("OPTIONS http://{at}/ HTTP/1.1\r\nHost: {at}\r\nMax-Forwards: {hops}\r\n\r\n");
    let mut client = Proxy::shared().ask(options(0));
    let head = client.head();
    assert_eq!(head.status(), 204);
    assert!(head.field("allow").is_some());
    client.send(format!("TRACE http://{at}/ HTTP/1.1\r\nHost: {at}\r\nMax-Forwards: 0\r\n\r\n"));
    assert_eq!(client.refusal(), (405, "last_hop".into()));
    origin.is_untouched();
    client.send(options(7));
    let mut upstream = origin.accept();
    assert_eq!(upstream.head().field("max-forwards"), Some("6"));
    upstream.send(OK);
    client.message();
    // For other methods it means nothing, and is never made up.
    client.send(get(&origin, "/", "Max-Forwards: 0\r\n"));
    assert_eq!(upstream.head().field("max-forwards"), Some("0"));
    upstream.send(OK);
    client.message();
    client.send(get(&origin, "/", ""));
    assert_eq!(upstream.head().field("max-forwards"), None);
}

#[test]
fn a_request_that_has_been_here_is_508() {
    let origin = Origin::new();
    let via = heard(get(&origin, "/", ""), &origin).field("via").unwrap().to_owned();
    let mut client = Proxy::shared().ask(get(&origin, "/", &format!("Via: 1.1 other, {via}\r\n")));
    assert_eq!(client.refusal(), (508, "loop".into()));
    let mut client = Proxy::shared()
        .ask(format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\nVia: {via}\r\n\r\n", origin.address()));
    assert_eq!(client.refusal(), (508, "loop".into()));
    client.hears_end();
}

#[test]
fn a_request_to_our_own_listener_is_508() {
    let at = Proxy::shared().address();
    let mut client = Proxy::shared().ask(format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\n\r\n"));
    assert_eq!(client.refusal(), (508, "loop".into()));
    let mut client = Proxy::shared().ask(format!("CONNECT {at} HTTP/1.1\r\nHost: {at}\r\n\r\n"));
    assert_eq!(client.refusal(), (508, "loop".into()));
    client.hears_end();
}

/// Java's clients send `Content-Length: 0` with a GET; RFC 9112 section 2.2 lets an empty line precede a request.
#[test]
fn an_empty_line_before_and_an_empty_body_behind_a_get_are_fine() {
    let origin = Origin::new();
    let head = heard(format!("\r\n{}", get(&origin, "/", "Content-Length: 0\r\n")), &origin);
    assert_eq!(head.start(), "GET / HTTP/1.1");
    assert_eq!(head.field("content-length"), Some("0"));
}

#[test]
fn a_conditional_request_is_passed_on_unjudged() {
    let origin = Origin::new();
    let head = heard(get(&origin, "/", "If-None-Match: \"a\"\r\nRange: bytes=0-1\r\n"), &origin);
    assert_eq!((head.field("if-none-match"), head.field("range")), (Some("\"a\""), Some("bytes=0-1")));
}
