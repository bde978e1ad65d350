//! Bodies, byte by byte: every framing in both directions, to its end and not beyond, streamed as it comes.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

mod conformance;

use std::io::Write as _;

use conformance::{OK, Origin, Peer, Proxy, pattern};

fn request(origin: &Origin, line: &str, fields: &str) -> String {
    let (method, rest) = line.split_once(' ').unwrap();
    let (path, version) = rest.split_once(' ').unwrap_or((rest, "HTTP/1.1"));
    let at = origin.address();
    format!("{method} http://{at}{path} {version}\r\nHost: {at}\r\n{fields}\r\n")
}

/// A client and an origin with a request between them that is still to be answered.
fn asked(line: &str, fields: &str) -> (Origin, Peer, Peer) {
    let origin = Origin::new();
    let client = Proxy::shared().ask(request(&origin, line, fields));
    let mut upstream = origin.accept();
    upstream.head();
    (origin, client, upstream)
}

/// The connections serve another request: what came before ended where both sides think.
fn go_on(origin: &Origin, client: &mut Peer, upstream: &mut Peer) {
    client.send(request(origin, "GET /next", ""));
    assert_eq!(upstream.head().start(), "GET /next HTTP/1.1");
    upstream.send(OK);
    assert_eq!(client.message().1, "ok");
    origin.is_untouched();
}

#[test]
fn head_204_and_304_have_no_body_whatever_their_fields_say() {
    let rows = [
        ("HEAD /", "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", Some("7")),
        ("HEAD /", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", None),
        ("HEAD /", "HTTP/1.1 200 OK\r\n\r\n", None),
        ("GET /", "HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n", Some("7")),
        ("GET /", "HTTP/1.1 304 Not Modified\r\n\r\n", None),
        ("GET /", "HTTP/1.1 204 No Content\r\n\r\n", None),
        ("GET /", "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", None),
    ];
    for (line, answer, length) in rows {
        let (origin, mut client, mut upstream) = asked(line, "");
        upstream.send(answer);
        let head = client.head();
        assert_eq!(head.field("content-length"), length, "{answer}");
        go_on(&origin, &mut client, &mut upstream);
    }
}

/// Some origins send the body a 204 announces: their connection is not used again.
#[test]
fn a_204_that_announces_a_body_ends_the_upstream_connection() {
    let (origin, mut client, mut upstream) = asked("GET /", "");
    upstream.send("HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nevil");
    let head = client.head();
    assert_eq!((head.status(), head.field("content-length")), (204, None));
    client.send(request(&origin, "GET /next", ""));
    let mut second = origin.accept();
    second.head();
    second.send(OK);
    assert_eq!(client.message().1, "ok");
}

#[test]
fn an_http_1_0_answer_until_close_arrives_whole_and_closes() {
    let (_origin, mut client, mut upstream) = asked("GET /", "");
    upstream.send("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nold but ");
    let head = client.head();
    assert_eq!((head.start(), head.field("connection")), ("HTTP/1.1 200 OK", Some("close")));
    client.hears("old but ");
    upstream.send("good");
    drop(upstream);
    client.hears("good");
    client.hears_end();
}

/// Each part is heard before the next is sent, with silences longer than the daemon's shortest time-outs between them.
#[test]
fn a_slow_body_until_close_is_not_cut() {
    let proxy =
        conformance::Setup::default().timeouts("first_byte: 1s, head_read: 1s, idle_keepalive: 1s").start();
    let origin = Origin::new();
    let mut client = proxy.ask(request(&origin, "GET /", ""));
    let mut upstream = origin.accept();
    upstream.head();
    upstream.send("HTTP/1.1 200 OK\r\n\r\n");
    client.head();
    // A silence that lasts is the point: another connection's time-out says that it has lasted.
    for part in ["one", "two"] {
        let mut clock = proxy.ask("GET /");
        assert_eq!(clock.refusal().0, 408);
        upstream.send(part);
        client.hears(part);
    }
    drop(upstream);
    client.hears_end();
}

#[test]
fn chunks_pass_with_their_trailers() {
    let (origin, mut client, mut upstream) = asked("GET /", "TE: trailers\r\nConnection: TE\r\n");
    upstream.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n");
    let head = client.head();
    assert_eq!((head.field("transfer-encoding"), head.field("trailer")), (Some("chunked"), Some("X-Sum")));
    assert_eq!(head.field("content-length"), None);
    upstream.send("5\r\nhello\r\n");
    client.hears("5\r\nhello\r\n");
    upstream.send("6\r\n world\r\n0\r\nX-Sum: 11\r\n\r\n");
    client.hears("6\r\n world\r\n0\r\nX-Sum: 11\r\n\r\n");
    go_on(&origin, &mut client, &mut upstream);
}

#[test]
fn chunks_may_be_cut_anywhere() {
    let (origin, mut client, mut upstream) = asked("GET /", "");
    upstream.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.head();
    for octet in b"5\r\nhello\r\n0000a\r\n0123456789\r\n0\r\nX-Sum: 15\r\n\r\n" {
        upstream.send([*octet]);
    }
    let mut body = String::new();
    while !body.ends_with("\r\n\r\n") {
        body.push(char::from(client.bytes(1)[0]));
    }
    let data: String = body.split("\r\n").filter(|line| line.contains("hello") || line.len() == 10).collect();
    assert_eq!(data, "hello0123456789", "{body}");
    assert!(body.ends_with("0\r\nX-Sum: 15\r\n\r\n"), "{body}");
    go_on(&origin, &mut client, &mut upstream);
}

#[test]
fn trailers_that_frame_or_route_are_not_passed_on() {
    let (_origin, mut client, mut upstream) = asked("GET /", "");
    upstream.send(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nContent-Length: 9\r\n\r\n",
    );
    client.head();
    let end = client.end();
    assert!(end.reset, "{end:?}");
    assert!(!end.rest.ends_with(b"0\r\n\r\n"), "{end:?}");
}

/// What a head nominates means one hop only, also when it comes as a trailer; so do fields that would change the message
/// were they merged into its head (RFC 9110 sections 6.5.1 and 7.6.1). The rest passes, and stays behind the body.
#[test]
fn nominated_and_head_only_trailers_are_dropped_both_ways() {
    let body = "1\r\nx\r\n0\r\nX-Hop: 1\r\nX-Sum: 2\r\nSet-Cookie: a=b\r\nAuthorization: c\r\nConnection: close\r\nVia: d\r\n\r\n";
    let passed = "1\r\nx\r\n0\r\nX-Sum: 2\r\n\r\n";
    let fields = "Transfer-Encoding: chunked\r\nConnection: x-hop\r\n";
    let (origin, mut client, mut upstream) = asked("POST /", fields);
    client.send(body);
    upstream.hears(passed);
    upstream.send(format!("HTTP/1.1 200 OK\r\n{fields}\r\n{body}"));
    let head = client.head();
    for name in ["x-hop", "x-sum", "set-cookie", "authorization"] {
        assert_eq!(head.field(name), None, "{name}");
    }
    client.hears(passed);
    go_on(&origin, &mut client, &mut upstream);
}

/// A client of HTTP/1.0 gets the data alone, and the end by close.
#[test]
fn chunks_become_data_until_close_for_an_http_1_0_client() {
    let (_origin, mut client, mut upstream) = asked("GET / HTTP/1.0", "");
    upstream.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n5\r\nhello\r\n");
    let head = client.head();
    assert_eq!((head.field("transfer-encoding"), head.field("trailer")), (None, None));
    assert_eq!(head.field("connection"), Some("close"));
    client.hears("hello");
    upstream.send("6\r\n world\r\n0\r\nX: y\r\n\r\n");
    client.hears(" world");
    client.hears_end();
}

/// A cut body must not look like a whole one: the connection ends by RST where a FIN would say that all is well.
#[test]
fn a_body_that_is_cut_is_never_completed() {
    let rows = [
        ("GET /", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", "half"),
        ("GET /", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "4\r\nhalf\r\n"),
        ("GET /", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "8\r\nhalf"),
        ("GET / HTTP/1.0", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "4\r\nhalf\r\n"),
        ("GET / HTTP/1.0", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", "half"),
    ];
    for (line, head, part) in rows {
        let (_origin, mut client, mut upstream) = asked(line, "");
        upstream.send(head);
        client.head();
        upstream.send(part);
        // Heard first: a reset takes what is on its way with it.
        let heard = if line.ends_with("1.0") { "half" } else { part };
        client.hears(heard);
        drop(upstream);
        client.hears_reset();
    }
}

#[test]
fn a_body_until_close_that_ends_by_reset_is_passed_on_as_a_reset() {
    let (_origin, mut client, mut upstream) = asked("GET /", "");
    upstream.send("HTTP/1.1 200 OK\r\n\r\nhalf");
    client.head();
    client.hears("half");
    upstream.reset();
    client.hears_reset();
}

#[test]
fn a_request_body_passes_as_it_comes() {
    let (origin, mut client, mut upstream) = asked("POST /", "Content-Length: 9\r\n");
    for part in ["one", "two", "six"] {
        client.send(part);
        upstream.hears(part);
    }
    upstream.send(OK);
    assert_eq!(client.message().1, "ok");
    go_on(&origin, &mut client, &mut upstream);
}

/// RFC 9112 section 6.3: without a length or a coding a request has no body, so what follows is the next request.
#[test]
fn an_http_1_0_body_passes_and_one_without_a_length_is_none() {
    let (origin, mut client, mut upstream) = asked("POST / HTTP/1.0", "Content-Length: 4\r\n");
    client.send("body");
    upstream.hears("body");
    upstream.send(OK);
    assert_eq!(client.message().0.field("connection"), Some("close"));
    client.hears_end();
    let mut client = Proxy::shared().ask(request(&origin, "POST / HTTP/1.0", "") + "body");
    assert_eq!(upstream.head().field("content-length"), None);
    upstream.send(OK);
    assert_eq!(client.message().1, "ok");
    client.end();
}

#[test]
fn a_chunked_request_body_passes_with_its_trailers() {
    let (origin, mut client, mut upstream) =
        asked("POST /", "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n");
    client.send("3\r\none\r\n");
    upstream.hears("3\r\none\r\n");
    client.send("3;name=value\r\ntwo\r\n0\r\nX-Sum: 6\r\n\r\n");
    // Extensions mean this hop only.
    upstream.hears("3\r\ntwo\r\n0\r\nX-Sum: 6\r\n\r\n");
    upstream.send(OK);
    assert_eq!(client.message().1, "ok");
    go_on(&origin, &mut client, &mut upstream);
}

/// An answer may come while the request is still being sent, and both go on to their ends.
#[test]
fn an_answer_streams_down_while_the_request_streams_up() {
    let (_origin, mut client, mut upstream) = asked("POST /", "Transfer-Encoding: chunked\r\n");
    upstream.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    assert_eq!(client.head().status(), 200);
    for part in ["4\r\nping\r\n", "5\r\nagain\r\n"] {
        client.send(part);
        upstream.hears(part);
        upstream.send(part);
        client.hears(part);
    }
    client.send("0\r\n\r\n");
    upstream.hears("0\r\n\r\n");
    upstream.send("0\r\n\r\n");
    client.hears("0\r\n\r\n");
}

/// The origin answers and wants no more of the body: the answer arrives, though the client is still sending.
#[test]
fn an_early_final_answer_arrives_while_the_upload_runs() {
    const OCTETS: usize = 32 << 20;
    let (_origin, mut client, mut upstream) = asked("PUT /", &format!("Content-Length: {OCTETS}\r\n"));
    let stream = client.stream().try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        let mut stream = stream;
        // Fails when the proxy has closed, which is the point.
        let _ = stream.write_all(&vec![b'x'; OCTETS]);
    });
    upstream.bytes(100_000);
    upstream.send("HTTP/1.1 403 No\r\nContent-Length: 6\r\n\r\nno way");
    drop(upstream);
    let (head, body) = client.message();
    assert_eq!((head.status(), head.field("connection"), &*body), (403, Some("close"), "no way"));
    client.end();
    sending.join().unwrap();
}

/// A client that gives up in the middle of its body: the origin must not take what came for the whole.
#[test]
fn an_upload_that_is_cut_is_never_completed() {
    for (fields, part) in [
        ("Content-Length: 10\r\n", "half"),
        ("Transfer-Encoding: chunked\r\n", "4\r\nhalf\r\n"),
        ("Transfer-Encoding: chunked\r\n", "8\r\nhalf"),
    ] {
        let (origin, mut client, mut upstream) = asked("POST /", fields);
        client.send(part);
        upstream.hears(part);
        drop(client);
        assert_eq!(upstream.end().rest, b"", "{fields}");
        origin.is_untouched();
    }
}

/// The answer had begun when the upload was cut: its end by FIN would make half of it look whole.
#[test]
fn an_answer_to_an_upload_that_is_cut_is_never_completed() {
    let (_origin, mut client, mut upstream) = asked("POST /", "Content-Length: 10\r\n");
    upstream.send("HTTP/1.1 200 OK\r\n\r\nhalf an answer");
    client.head();
    client.hears("half an answer");
    client.send("half");
    upstream.hears("half");
    client.finish();
    client.hears_reset();
}

/// RFC 9112 section 9.6: closing with unread bytes would take back what of the answer is still on its way.
#[test]
fn bytes_behind_the_last_request_do_not_cost_its_answer() {
    const OCTETS: usize = 2 << 20;
    let (_origin, mut client, upstream) = asked("GET /", "Connection: close\r\n");
    // Never read by anybody.
    client.send("\r\nGET /");
    let data = pattern(OCTETS);
    let mut stream = upstream.stream();
    stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {OCTETS}\r\n\r\n").as_bytes()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| stream.write_all(&data).unwrap());
        // The other client's answer comes when the first one's has been written, and its connection closed.
        client.head();
        assert!(client.bytes(OCTETS) == data);
    });
    client.hears_end();
}

/// What is behind a malformed chunk is not sent, and the client hears of it.
#[test]
fn a_fault_in_a_chunked_upload_is_400_and_ends_the_upstream_connection() {
    let (origin, mut client, mut upstream) = asked("POST /", "Transfer-Encoding: chunked\r\n");
    client.send("3\r\none\r\n");
    upstream.hears("3\r\none\r\n");
    client.send("+3\r\ntwo\r\n0\r\n\r\n");
    assert_eq!(client.refusal(), (400, "chunk_size".into()));
    client.hears_end();
    assert_eq!(upstream.end().rest, b"");
    origin.is_untouched();
}

#[test]
fn a_fault_in_a_chunked_answer_is_a_cut() {
    let (_origin, mut client, mut upstream) = asked("GET /", "");
    upstream.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n");
    client.head();
    client.hears("3\r\none\r\n");
    upstream.send("3 \r\ntwo\r\n0\r\n\r\n");
    client.hears_reset();
}

/// Every framing, with more octets than any buffer holds.
#[test]
fn large_bodies_arrive_octet_for_octet() {
    const OCTETS: usize = 8 << 20;
    let data = pattern(OCTETS);
    let mut chunks = Vec::new();
    for chunk in data.chunks(100_003) {
        write!(chunks, "{:x}\r\n", chunk.len()).unwrap();
        chunks.extend_from_slice(chunk);
        chunks.extend_from_slice(b"\r\n");
    }
    chunks.extend_from_slice(b"0\r\n\r\n");
    let length = format!("Content-Length: {OCTETS}\r\n");
    for (fields, body) in [(length.as_str(), &data), ("Transfer-Encoding: chunked\r\n", &chunks), ("", &data)]
    {
        let (_origin, client, upstream) = asked("GET /", "");
        let received = transfer(&upstream, &format!("HTTP/1.1 200 OK\r\n{fields}\r\n"), body, client);
        assert!(decoded(&received, fields) == data, "another answer with {fields:?}");
        if fields.is_empty() {
            continue;
        }
        let (_origin, client, upstream) = asked("POST /", fields);
        let received = transfer(&client, "", body, upstream);
        assert!(decoded(&received, fields) == data, "another upload with {fields:?}");
    }
}

/// Sends head and body at one end; what the other hears behind the head. The sender then hangs up.
fn transfer(from: &Peer, head: &str, body: &[u8], mut to: Peer) -> Vec<u8> {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = from.stream();
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(body).unwrap();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
        });
        if !head.is_empty() {
            to.head();
        }
        to.bytes(body.len())
    })
}

/// The data of a body that came with these fields.
fn decoded(body: &[u8], fields: &str) -> Vec<u8> {
    if !fields.contains("chunked") {
        return body.to_vec();
    }
    let mut data = Vec::new();
    let mut rest = body;
    loop {
        let end = rest.windows(2).position(|two| two == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return data;
        }
        data.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 4 + size..];
    }
}
