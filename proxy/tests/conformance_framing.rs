//! Framing is strict: whatever two implementations could read in two ways is refused by the one in the middle, and not
//! one byte of it gets further (issue 3, "Framing is strict by type"; RFC 9112 section 11).

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

mod conformance;

use conformance::{Origin, Proxy};

/// Each request is refused with this status and reason, the connection closes, and the origin is never dialled. `§` is
/// the origin's authority. The same bytes are then sent one by one.
#[track_caller]
fn all_refused(rows: &[(&str, u16, &str)]) {
    let origin = Origin::new();
    let at = origin.address().to_string();
    for (request, status, reason) in rows {
        let octets = request.replace('§', &at);
        let mut client = Proxy::shared().ask(&octets);
        assert_eq!(client.refusal(), (*status, (*reason).to_owned()), "{}", request.escape_debug());
        client.hears_end();
        let mut client = Proxy::shared().connect();
        for octet in octets.as_bytes() {
            // Refused as soon as it is clear, so the rest may find nobody.
            if !client.try_send([*octet]) {
                break;
            }
        }
        let end = String::from_utf8(client.end().rest).unwrap();
        if !end.is_empty() {
            assert!(end.starts_with(&format!("HTTP/1.1 {status} ")), "{}: {end}", request.escape_debug());
        }
    }
    origin.is_untouched();
}

#[test]
fn length_and_coding_together_are_refused() {
    all_refused(&[
        (
            "POST http://§/ HTTP/1.1\r\nHost: §\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "length_and_coding",
        ),
        (
            "POST http://§/ HTTP/1.1\r\nHost: §\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
            400,
            "length_and_coding",
        ),
        (
            "POST http://§/ HTTP/1.1\r\nHost: §\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n",
            400,
            "length_and_coding",
        ),
    ]);
}

#[test]
fn a_content_length_that_is_not_one_plain_number_is_refused() {
    let rows = [
        ("5\r\nContent-Length: 5", "length_repeated"),
        ("5\r\nContent-Length: 6", "length_repeated"),
        ("5, 5", "length_repeated"),
        ("5,6", "length_repeated"),
        ("+5", "length"),
        ("-5", "length"),
        ("0x5", "length"),
        ("5 5", "length"),
        ("5_0", "length"),
        ("\u{665}", "length"),
        ("", "length"),
        ("\"5\"", "length"),
        ("5.0", "length"),
        ("9223372036854775808", "length_too_large"),
        ("18446744073709551621", "length_too_large"),
        ("000000000000000000000", "length_too_large"),
    ];
    for (value, reason) in rows {
        let request = format!("POST http://§/ HTTP/1.1\r\nHost: §\r\nContent-Length: {value}\r\n\r\nhello");
        all_refused(&[(&request, 400, reason)]);
    }
}

#[test]
fn a_transfer_coding_that_is_not_chunked_once_is_refused() {
    let rows = [
        ("gzip", 400, "transfer_coding"),
        ("identity", 400, "transfer_coding"),
        ("chunked, gzip", 400, "transfer_coding"),
        ("chunked, chunked", 400, "transfer_coding"),
        ("chunked\r\nTransfer-Encoding: chunked", 400, "transfer_coding"),
        ("chunked\r\nTransfer-Encoding: identity", 400, "transfer_coding"),
        ("xchunked", 400, "transfer_coding"),
        ("\"chunked\"", 400, "transfer_coding"),
        ("chunked;q=1", 400, "transfer_coding"),
        ("", 400, "transfer_coding"),
        ("gzip, chunked", 501, "transfer_coding_unknown"),
    ];
    for (value, status, reason) in rows {
        let request =
            format!("POST http://§/ HTTP/1.1\r\nHost: §\r\nTransfer-Encoding: {value}\r\n\r\n0\r\n\r\n");
        all_refused(&[(&request, status, reason)]);
    }
    all_refused(&[(
        "POST http://§/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "transfer_coding_in_10",
    )]);
}

#[test]
fn a_framing_field_in_disguise_is_refused() {
    all_refused(&[
        ("POST http://§/ HTTP/1.1\r\nHost: §\r\nContent_Length: 5\r\n\r\nhello", 400, "disguised_field"),
        (
            "POST http://§/ HTTP/1.1\r\nHost: §\r\nTransfer_Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "disguised_field",
        ),
        ("POST http://§/ HTTP/1.1\r\nHost: §\r\nContent-Length : 5\r\n\r\nhello", 400, "space_before_colon"),
        (
            "POST http://§/ HTTP/1.1\r\nHost: §\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n",
            400,
            "space_before_colon",
        ),
        (
            "POST http://§/ HTTP/1.1\r\nHost: §\r\nConnection: Content-Length\r\nContent-Length: 5\r\n\r\nhello",
            400,
            "connection_option",
        ),
        ("GET http://§/ HTTP/1.1\r\nHost: §\r\nConnection: Host\r\n\r\n", 400, "connection_option"),
    ]);
}

#[test]
fn lines_that_do_not_end_in_crlf_are_refused() {
    all_refused(&[
        ("GET http://§/ HTTP/1.1\nHost: §\n\n", 400, "bare_lf"),
        ("GET http://§/ HTTP/1.1\r\nHost: §\n\r\n", 400, "bare_lf"),
        ("GET http://§/ HTTP/1.1\r\nHost: §\r\nX: a\nContent-Length: 5\r\n\r\nhello", 400, "bare_lf"),
        ("GET http://§/ HTTP/1.1\rHost: §\r\n\r\n", 400, "bare_cr"),
        ("GET http://§/ HTTP/1.1\r\nHost: §\r\nX: a\rContent-Length: 5\r\n\r\nhello", 400, "bare_cr"),
        ("\n\nGET http://§/ HTTP/1.1\r\nHost: §\r\n\r\n", 400, "bare_lf"),
    ]);
}

#[test]
fn folded_lines_and_control_octets_are_refused() {
    all_refused(&[
        ("GET http://§/ HTTP/1.1\r\nHost: §\r\nX: a\r\n folded\r\n\r\n", 400, "line_folding"),
        ("GET http://§/ HTTP/1.1\r\nHost: §\r\nX: a\r\n\tContent-Length: 5\r\n\r\n", 400, "line_folding"),
        ("GET http://§/ HTTP/1.1\r\n Host: §\r\n\r\n", 400, "line_folding"),
        (" GET http://§/ HTTP/1.1\r\nHost: §\r\n\r\n", 400, "leading_space"),
        ("GET http://§/ HTTP/1.1\r\nHost: §\r\nX: a\0b\r\n\r\n", 400, "control_octet"),
        ("GET http://§/ HTTP/1.1\r\nHost: §\r\nX\0: a\r\n\r\n", 400, "control_octet"),
        ("GET http://§/\0 HTTP/1.1\r\nHost: §\r\n\r\n", 400, "control_octet"),
        ("GET http://§/ HTTP/1.1\r\nHost: §\r\nX: a\x7fb\r\n\r\n", 400, "control_octet"),
        ("GET http://§/ HTTP/1.1\r\nHost: §\r\nno colon\r\n\r\n", 400, "field_line"),
        ("GET http://§/ HTTP/1.1\r\nHost: §\r\n: nameless\r\n\r\n", 400, "field_name"),
        ("GET http://§/ HTTP/1.1\r\nHost: §\r\nX(Y): a\r\n\r\n", 400, "field_name"),
    ]);
}

#[test]
fn a_malformed_chunk_that_comes_with_the_head_is_refused() {
    let long_extension = format!("5;{}\r\nhello\r\n0\r\n\r\n", "x".repeat(300));
    let rows = [
        ("+5\r\nhello\r\n0\r\n\r\n", "chunk_size"),
        ("-5\r\nhello\r\n0\r\n\r\n", "chunk_size"),
        ("0x5\r\nhello\r\n0\r\n\r\n", "chunk_size"),
        (" 5\r\nhello\r\n0\r\n\r\n", "chunk_size"),
        ("5 \r\nhello\r\n0\r\n\r\n", "chunk_size"),
        ("\r\nhello\r\n0\r\n\r\n", "chunk_size"),
        ("5\nhello\r\n0\r\n\r\n", "chunk_size"),
        ("fffffffffffffffff\r\nhello", "chunk_too_large"),
        ("8000000000000000\r\nhello", "chunk_too_large"),
        ("10000000000000005\r\nhello\r\n0\r\n\r\n", "chunk_too_large"),
        ("5\r\nhelloX\r\n0\r\n\r\n", "chunk_end"),
        ("5\r\nhello\n0\r\n\r\n", "chunk_end"),
        ("5\r\nhello0\r\n\r\n", "chunk_end"),
        ("5;\x01\r\nhello\r\n0\r\n\r\n", "chunk_extension"),
        ("5;a\nb\r\nhello\r\n0\r\n\r\n", "chunk_size"),
        (long_extension.as_str(), "chunk_extension"),
        ("0\r\nContent-Length: 5\r\n\r\n", "trailer_forbidden"),
        ("0\r\nHost: x\r\n\r\n", "trailer_forbidden"),
        ("0\r\n folded\r\n\r\n", "line_folding"),
    ];
    for (body, reason) in rows {
        let request =
            format!("POST http://§/ HTTP/1.1\r\nHost: §\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        refused_before_a_byte(&request, reason);
    }
}

/// As [`all_refused`], but the connection may have been dialled: the body is looked at when there is one to send it to.
fn refused_before_a_byte(request: &str, reason: &str) {
    let origin = Origin::new();
    let at = origin.address().to_string();
    let mut client = Proxy::shared().ask(request.replace('§', &at));
    assert_eq!(client.refusal(), (400, reason.into()), "{}", request.escape_debug());
    client.hears_end();
    let heard = origin.accept().end().rest;
    assert_eq!(heard, b"", "{}", request.escape_debug());
}

#[test]
fn a_body_on_what_has_none_is_refused() {
    all_refused(&[
        ("TRACE http://§/ HTTP/1.1\r\nHost: §\r\nContent-Length: 5\r\n\r\nhello", 400, "body_not_allowed"),
        ("CONNECT § HTTP/1.1\r\nHost: §\r\nContent-Length: 5\r\n\r\nhello", 400, "body_not_allowed"),
        (
            "CONNECT § HTTP/1.1\r\nHost: §\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            "body_not_allowed",
        ),
    ]);
}

#[test]
fn a_host_that_is_not_one_authority_is_refused() {
    all_refused(&[
        ("GET http://§/ HTTP/1.1\r\n\r\n", 400, "host_missing"),
        ("CONNECT § HTTP/1.1\r\n\r\n", 400, "host_missing"),
        ("GET http://§/ HTTP/1.1\r\nHost: §\r\nHost: §\r\n\r\n", 400, "host_repeated"),
        ("GET http://§/ HTTP/1.1\r\nHost: §\r\nhost: other\r\n\r\n", 400, "host_repeated"),
        ("GET http://§/ HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "host"),
        ("GET http://§/ HTTP/1.1\r\nHost: a,b\r\n\r\n", 400, "host"),
        ("GET http://§/ HTTP/1.1\r\nHost: user@§\r\n\r\n", 400, "host"),
        ("GET http://§/ HTTP/1.1\r\nHost: a:99999\r\n\r\n", 400, "host"),
        ("GET http://§/ HTTP/1.1\r\nHost: http://a/\r\n\r\n", 400, "host"),
    ]);
}

#[test]
fn a_target_that_is_none_is_refused() {
    all_refused(&[
        ("GET http://user@§/ HTTP/1.1\r\nHost: §\r\n\r\n", 400, "userinfo"),
        ("GET http://user:pass@§/ HTTP/1.1\r\nHost: §\r\n\r\n", 400, "userinfo"),
        ("CONNECT user@§ HTTP/1.1\r\nHost: §\r\n\r\n", 400, "userinfo"),
        ("GET http://§/#fragment HTTP/1.1\r\nHost: §\r\n\r\n", 400, "fragment"),
        ("GET http://§/a\\b HTTP/1.1\r\nHost: §\r\n\r\n", 400, "target_octet"),
        ("GET http://§/\u{e9} HTTP/1.1\r\nHost: §\r\n\r\n", 400, "target_octet"),
        ("GET http://§/a b HTTP/1.1\r\nHost: §\r\n\r\n", 400, "request_line"),
        ("GET  http://§/ HTTP/1.1\r\nHost: §\r\n\r\n", 400, "request_line"),
        ("GET\thttp://§/ HTTP/1.1\r\nHost: §\r\n\r\n", 400, "method"),
        ("GET http://127.0.0.1:0/ HTTP/1.1\r\nHost: §\r\n\r\n", 400, "port"),
        ("GET http://127.0.0.1:65536/ HTTP/1.1\r\nHost: §\r\n\r\n", 400, "port"),
        ("GET http://127.0.0.1:+80/ HTTP/1.1\r\nHost: §\r\n\r\n", 400, "port"),
        ("CONNECT 127.0.0.1 HTTP/1.1\r\nHost: §\r\n\r\n", 400, "port"),
        ("CONNECT 127.0.0.1: HTTP/1.1\r\nHost: §\r\n\r\n", 400, "port"),
        ("CONNECT 127.0.0.1:0 HTTP/1.1\r\nHost: §\r\n\r\n", 400, "port"),
        ("CONNECT 127.0.0.1:80x HTTP/1.1\r\nHost: §\r\n\r\n", 400, "port"),
        ("GET http:/// HTTP/1.1\r\nHost: §\r\n\r\n", 400, "host_empty"),
        ("GET http://:80/ HTTP/1.1\r\nHost: §\r\n\r\n", 400, "host_empty"),
        ("GET / HTTP/1.1\r\nHost: §\r\n\r\n", 400, "origin_form_to_proxy"),
        ("GET § HTTP/1.1\r\nHost: §\r\n\r\n", 400, "target_form"),
        ("GET https://§/ HTTP/1.1\r\nHost: §\r\n\r\n", 501, "scheme_https"),
        ("GET ftp://§/ HTTP/1.1\r\nHost: §\r\n\r\n", 501, "scheme_unknown"),
        ("GET http://2130706433/ HTTP/1.1\r\nHost: §\r\n\r\n", 400, "host_odd_ipv4"),
        ("GET http://0x7f.1/ HTTP/1.1\r\nHost: §\r\n\r\n", 400, "host_odd_ipv4"),
        ("GET http://017700000001/ HTTP/1.1\r\nHost: §\r\n\r\n", 400, "host_odd_ipv4"),
        ("GET http://0x7f000001/ HTTP/1.1\r\nHost: §\r\n\r\n", 400, "host_odd_ipv4"),
        ("GET http://127.0.0.01/ HTTP/1.1\r\nHost: §\r\n\r\n", 400, "host_odd_ipv4"),
        ("GET http://127.0.0.256/ HTTP/1.1\r\nHost: §\r\n\r\n", 400, "host_odd_ipv4"),
        ("GET http://%31%32%37.0.0.1/ HTTP/1.1\r\nHost: §\r\n\r\n", 400, "host_name"),
        ("GET http://[::1/ HTTP/1.1\r\nHost: §\r\n\r\n", 400, "host_bad_ipv6"),
        ("GET http://[fe80::1%25lo]/ HTTP/1.1\r\nHost: §\r\n\r\n", 400, "host_bad_ipv6"),
        ("GET http://::1/ HTTP/1.1\r\nHost: §\r\n\r\n", 400, "port"),
        ("GET http://0177.0.0.1/ HTTP/1.1\r\nHost: §\r\n\r\n", 400, "host_odd_ipv4"),
        ("CONNECT 127.1:80 HTTP/1.1\r\nHost: §\r\n\r\n", 400, "host_odd_ipv4"),
        ("G(T http://§/ HTTP/1.1\r\nHost: §\r\n\r\n", 400, "method"),
    ]);
}

#[test]
fn other_versions_and_protocols_are_refused() {
    all_refused(&[
        ("GET http://§/\r\n", 400, "request_line"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "version"),
        ("GET http://§/ HTTP/2.0\r\nHost: §\r\n\r\n", 505, "version"),
        ("GET http://§/ HTTP/0.9\r\nHost: §\r\n\r\n", 505, "version"),
        ("GET http://§/ HTTP/1.2\r\nHost: §\r\n\r\n", 505, "version"),
        ("GET http://§/ http/1.1\r\nHost: §\r\n\r\n", 400, "request_line"),
        ("GET http://§/ HTTP/1.10\r\nHost: §\r\n\r\n", 400, "request_line"),
        ("\x16\x03\x01\x02\0\x01\0", 400, "tls"),
        ("\x05\x01\0", 400, "control_octet"),
        ("GET http://§/ HTTP/1.1\r\nHost: §\r\nExpect: the-unexpected\r\n\r\n", 417, "expectation"),
    ]);
}

#[test]
fn a_refused_head_ends_the_connection_though_more_is_pipelined() {
    let origin = Origin::new();
    let at = origin.address();
    let mut client = Proxy::shared().ask(format!(
        "GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\nContent-Length: +5\r\n\r\nGET http://{at}/smuggled HTTP/1.1\r\nHost: {at}\r\n\r\n"
    ));
    assert_eq!(client.refusal().0, 400);
    client.hears_end();
    origin.is_untouched();
}

/// What an origin may not say either: the client gets 502, nothing of the answer, and the connection is dropped.
#[test]
fn the_same_strictness_towards_origins_is_502() {
    let rows = [
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "length_and_coding",
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", "length_repeated"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello", "length_repeated"),
        ("HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello", "length"),
        ("HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nhello", "length"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775808\r\n\r\nhello", "length_too_large"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello", "transfer_coding"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", "transfer_coding"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "transfer_coding_unknown"),
        ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "transfer_coding_in_10"),
        ("HTTP/1.1 200 OK\r\nContent-Length : 5\r\n\r\nhello", "space_before_colon"),
        ("HTTP/1.1 200 OK\r\nX: a\r\n folded\r\n\r\n", "line_folding"),
        ("HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n", "bare_cr"),
        ("HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n", "control_octet"),
        ("HTTP/1.1 200 OK\nContent-Length: 0\n\n", "bare_lf"),
        ("HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "field_line"),
        ("HTTP/1.1 20 OK\r\n\r\n", "status_line"),
        ("HTTP/1.1 2000 OK\r\n\r\n", "status_line"),
        ("HTTP/1.1 600 OK\r\n\r\n", "status_line"),
        ("HTTP/1.1  200 OK\r\n\r\n", "status_line"),
        ("HTTP/2.0 200 OK\r\n\r\n", "version"),
        ("ICY 200 OK\r\n\r\n", "status_line"),
        ("hello\r\n\r\n", "status_line"),
        ("\r\nHTTP/1.1 200 OK\r\n\r\n", "leading_space"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: Content-Length\r\n\r\nx", "connection_option"),
    ];
    let origin = Origin::new();
    let at = origin.address();
    for (answer, reason) in rows {
        let mut client = Proxy::shared().ask(format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\n\r\n"));
        let mut upstream = origin.accept();
        upstream.head();
        upstream.send(answer);
        assert_eq!(client.refusal(), (502, reason.into()), "{}", answer.escape_debug());
        // Unread bytes of the answer may make it a reset; either way nothing more is asked.
        assert_eq!(upstream.end().rest, b"");
    }
}

#[test]
fn an_answer_whose_head_is_too_large_is_502() {
    let origin = Origin::new();
    let at = origin.address();
    let many = (0..200).map(|n| format!("X-{n}: y\r\n")).collect::<Vec<_>>().concat();
    let large = format!("X: {}\r\n", "y".repeat(70_000));
    for (fields, reason) in [(many, "too_many_fields"), (large, "head_too_large")] {
        let mut client = Proxy::shared().ask(format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\n\r\n"));
        let mut upstream = origin.accept();
        upstream.head();
        upstream.try_send(format!("HTTP/1.1 200 OK\r\n{fields}\r\n"));
        assert_eq!(client.refusal(), (502, reason.into()));
    }
}
