//! Request heads, octet for octet: what is refused and why, what is understood, and that it makes no difference how
//! the octets arrive.

use proptest::prelude::*;

use super::*;

fn limits() -> HeadLimits {
    HeadLimits::default()
}

fn read(bytes: &[u8]) -> Result<Option<RequestHead>, Fault> {
    RequestReader::new(limits()).read(bytes)
}

/// The verdict on `bytes` fed in pieces that end at each of `ends` and at the end.
fn read_in_pieces(bytes: &[u8], ends: impl Iterator<Item = usize>) -> Result<Option<RequestHead>, Fault> {
    let mut reader = RequestReader::new(limits());
    for end in ends.chain([bytes.len()]) {
        match reader.read(bytes.get(..end).unwrap_or(bytes)) {
            Ok(None) => {}
            verdict => return verdict,
        }
    }
    Ok(None)
}

/// A whole request: `GET http://a/` in HTTP/1.1 with a Host and these further lines.
fn with_lines(lines: &str) -> Vec<u8> {
    format!("GET http://a/ HTTP/1.1\r\nHost: a\r\n{lines}\r\n").into_bytes()
}

fn accepted(bytes: &[u8]) -> RequestHead {
    let text = bytes.escape_ascii().to_string();
    read(bytes)
        .unwrap_or_else(|fault| panic!("{text}: {fault:?}"))
        .unwrap_or_else(|| panic!("{text} is whole"))
}

#[test]
fn a_head_is_read_to_its_end_and_not_beyond() {
    let bytes = b"POST http://a.example/x?y HTTP/1.1\r\nHost: b\r\nContent-Length: 3\r\nX: 1\r\n\r\nabcGET";
    let head = accepted(bytes);
    assert_eq!(head.len, bytes.len() - 6);
    assert_eq!((head.method, head.method_name(bytes)), (Method::Post, &b"POST"[..]));
    assert_eq!(head.target(bytes), b"http://a.example/x?y");
    assert_eq!(head.version, Version::Http11);
    assert_eq!(head.framing, Framing::Length(3));
    assert_eq!(head.host(bytes), Some(&b"b"[..]));
    let fields: Vec<_> = head.fields(bytes).map(|f| (f.name, f.value)).collect();
    let expected: &[(&[u8], &[u8])] = &[(b"Host", b"b"), (b"Content-Length", b"3"), (b"X", b"1")];
    assert_eq!(fields, expected);
}

#[test]
fn the_first_line_is_method_space_target_space_version() {
    let rows: &[(&[u8], Fault)] = &[
        (b"GET /\r\n", Fault::RequestLine),
        (b"GET\r\n", Fault::RequestLine),
        (b"GET  / HTTP/1.1\r\n", Fault::RequestLine),
        (b"GET /  HTTP/1.1\r\n", Fault::RequestLine),
        (b"GET / HTTP/1.1 \r\n", Fault::RequestLine),
        (b"GET / x HTTP/1.1\r\n", Fault::RequestLine),
        (b"GET / http/1.1\r\n", Fault::RequestLine),
        (b"GET / HTTP/1.1x\r\n", Fault::RequestLine),
        (b"GET / HTTP/11\r\n", Fault::RequestLine),
        (b"GET / HTTP/1.\r\n", Fault::RequestLine),
        (b"GET / FTP/1.1\r\n", Fault::RequestLine),
        (b"GET\t/\tHTTP/1.1\r\n", Fault::RequestLine),
        (b"GE(T / HTTP/1.1\r\n", Fault::Method),
        (b"G\xc3\x89T / HTTP/1.1\r\n", Fault::Method),
        (b"GET / HTTP/0.9\r\n", Fault::Version),
        (b"GET / HTTP/1.2\r\n", Fault::Version),
        (b"GET / HTTP/2.0\r\n", Fault::Version),
        (b"GET / HTTP/3.0\r\n", Fault::Version),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Fault::Version),
        (b"GET /\tx HTTP/1.1\r\n", Fault::TargetOctet),
        (b"GET /\\x HTTP/1.1\r\n", Fault::TargetOctet),
        (b"GET /\xc3\xa9 HTTP/1.1\r\n", Fault::TargetOctet),
        (b"GET /\0 HTTP/1.1\r\n", Fault::ControlOctet),
        (b"GET /\x7f HTTP/1.1\r\n", Fault::ControlOctet),
        (b"GET /\rx HTTP/1.1\r\n", Fault::BareCr),
        (b"GET / HTTP/1.1\r\r\n", Fault::BareCr),
        (b"GET / HTTP/1.1\n", Fault::BareLf),
        (b"GET / HTTP/1.1\nHost: a\n\n", Fault::BareLf),
        (b"GET / HTTP/1.1\n\r\n", Fault::BareLf),
        (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA / HTTP/1.1\r\n", Fault::MethodTooLong),
    ];
    for (bytes, fault) in rows {
        assert_eq!(read(bytes), Err(*fault), "{}", bytes.escape_ascii());
    }
}

#[test]
fn other_protocols_are_refused_by_their_first_octet() {
    let rows: &[(&[u8], Fault)] = &[
        (b"\x16", Fault::Tls),
        (b"\x16\x03\x01\x02\x00\x01", Fault::Tls),
        (b"\0", Fault::ControlOctet),
        (b"\x05\x01\x00", Fault::ControlOctet),
        (b" GET", Fault::LeadingSpace),
        (b"\tGET", Fault::LeadingSpace),
        (b"\n", Fault::BareLf),
        (b"\xff", Fault::Method),
        (b"(", Fault::Method),
        (b"{\"a\":1}", Fault::Method),
    ];
    for (bytes, fault) in rows {
        assert_eq!(read(bytes), Err(*fault), "{}", bytes.escape_ascii());
    }
}

#[test]
fn one_empty_line_may_precede_a_request() {
    let bytes = b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let head = accepted(bytes);
    assert_eq!((head.len, head.target(bytes)), (bytes.len(), &b"/"[..]));
    assert_eq!(head.fields(bytes).count(), 1);
    assert_eq!(read(b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), Err(Fault::LeadingSpace));
    assert_eq!(read(b"\r\n GET / HTTP/1.1\r\n"), Err(Fault::LeadingSpace));
    assert_eq!(read(b"\r\n\nGET / HTTP/1.1\r\n"), Err(Fault::BareLf));
    assert_eq!(read(b"\rGET / HTTP/1.1\r\n"), Err(Fault::BareCr));
}

#[test]
fn each_bad_field_line_is_refused_by_name() {
    let rows = [
        ("a b: c\r\n", Fault::FieldName),
        ("a : c\r\n", Fault::SpaceBeforeColon),
        ("Content-Length : 5\r\n", Fault::SpaceBeforeColon),
        ("X: a\r\n b\r\n", Fault::LineFolding),
        ("X: a\r\n\tb\r\n", Fault::LineFolding),
        ("X: a\r\n \r\n", Fault::LineFolding),
        ("X: a\0b\r\n", Fault::ControlOctet),
        ("X: a\rb\r\n", Fault::BareCr),
        ("X: a\nY: b\r\n", Fault::BareLf),
        ("X\r\n", Fault::FieldLine),
        (": x\r\n", Fault::FieldName),
        ("Host: a\r\n", Fault::HostRepeated),
        ("host: b\r\n", Fault::HostRepeated),
        ("Content-Length: 1\r\nContent-Length: 1\r\n", Fault::LengthRepeated),
        ("Content-Length: 1, 1\r\n", Fault::LengthRepeated),
        ("Content-Length: +5\r\n", Fault::Length),
        ("Content-Length: -5\r\n", Fault::Length),
        ("Content-Length: 5 5\r\n", Fault::Length),
        ("Content-Length: 0x5\r\n", Fault::Length),
        ("Content-Length:\r\n", Fault::Length),
        ("Content-Length: 9223372036854775808\r\n", Fault::LengthTooLarge),
        ("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", Fault::LengthAndCoding),
        ("Transfer-Encoding: chunked\r\nContent-Length: 1\r\n", Fault::LengthAndCoding),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Fault::TransferCoding),
        ("Transfer-Encoding: gzip, chunked\r\n", Fault::TransferCodingUnknown),
        ("Transfer-Encoding: chunked, gzip\r\n", Fault::TransferCoding),
        ("Transfer-Encoding: identity\r\n", Fault::TransferCoding),
        ("Transfer-Encoding: \x0bchunked\r\n", Fault::ControlOctet),
        ("Transfer-Encoding:\r\n", Fault::TransferCoding),
        ("Transfer-Encoding\t: chunked\r\n", Fault::SpaceBeforeColon),
        ("Transfer_Encoding: chunked\r\n", Fault::DisguisedField),
        ("content_length: 5\r\n", Fault::DisguisedField),
        ("Connection: host\r\n", Fault::ConnectionOption),
        ("Connection: close, Content-Length\r\n", Fault::ConnectionOption),
        ("Connection: a b\r\n", Fault::ConnectionOption),
        ("Connection: a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q\r\n", Fault::ConnectionOption),
        ("Upgrade: web socket\r\n", Fault::ConnectionOption),
        ("Expect: 200-ok\r\n", Fault::Expectation),
        ("Expect: 100-continue, x\r\n", Fault::Expectation),
    ];
    for (lines, fault) in rows {
        assert_eq!(read(&with_lines(lines)), Err(fault), "{}", lines.escape_debug());
    }
}

#[test]
fn host_is_one_authority_and_may_be_missing_in_http_1_0_only() {
    let with_host = |lines: &str, version: &str| {
        read(format!("GET http://a/ HTTP/{version}\r\n{lines}\r\n").as_bytes()).map(|head| head.is_some())
    };
    assert_eq!(with_host("", "1.1"), Err(Fault::HostMissing));
    assert_eq!(with_host("", "1.0"), Ok(true));
    assert_eq!(with_host("Host: \r\n", "1.1"), Err(Fault::Host));
    assert_eq!(with_host("Host: a\r\nHost: a\r\n", "1.0"), Err(Fault::HostRepeated));
    for bad in ["a b", "u@a", "a:0", "a:", "a/b", "a,b", "127.1", "http://a", "[::1", "a:80:80"] {
        assert_eq!(with_host(&format!("Host: {bad}\r\n"), "1.1"), Err(Fault::Host), "{bad}");
    }
    for good in ["a", "a:80", "[::1]", "[::1]:80", "10.0.0.1:8080", "A.Example."] {
        assert_eq!(with_host(&format!("Host: {good}\r\n"), "1.1"), Ok(true), "{good}");
    }
    // pip and requests send this.
    assert!(read(b"CONNECT pypi.org:443 HTTP/1.0\r\n\r\n").is_ok_and(|head| head.is_some()));
    assert_eq!(read(b"CONNECT pypi.org:443 HTTP/1.1\r\n\r\n"), Err(Fault::HostMissing));
}

#[test]
fn http_1_0_has_no_transfer_coding_no_expectation_no_upgrade_and_no_second_request() {
    let ten = |lines: &str| read(format!("POST http://a/ HTTP/1.0\r\n{lines}\r\n").as_bytes());
    assert_eq!(ten("Transfer-Encoding: chunked\r\n"), Err(Fault::TransferCodingIn10));
    let lines = "Expect: 100-continue\r\nConnection: keep-alive, upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n";
    let head = ten(lines).ok().flatten();
    assert_eq!(
        head.map(|h| (h.expect_continue, h.upgrade, h.is_persistent())),
        Some((false, Upgrade::None, false))
    );
    assert_eq!(head.map(|h| h.framing), Some(Framing::Length(2)));
}

#[test]
fn connect_and_trace_have_no_body() {
    for line in ["CONNECT a:443", "TRACE http://a/"] {
        let read = |lines: &str| read(format!("{line} HTTP/1.1\r\nHost: a\r\n{lines}\r\n").as_bytes());
        assert_eq!(read("Content-Length: 1\r\n"), Err(Fault::BodyNotAllowed));
        assert_eq!(read("Transfer-Encoding: chunked\r\n"), Err(Fault::BodyNotAllowed));
        assert_eq!(read("Content-Length: 0\r\n").map(|h| h.map(|h| h.framing)), Ok(Some(Framing::None)));
    }
}

#[test]
fn methods_are_case_sensitive_tokens() {
    let method = |name: &str| {
        let bytes = format!("{name} http://a/ HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes();
        let head = accepted(&bytes);
        (head.method, String::from_utf8_lossy(head.method_name(&bytes)).into_owned())
    };
    assert_eq!(method("GET"), (Method::Get, "GET".into()));
    assert_eq!(method("get"), (Method::Other, "get".into()));
    assert_eq!(method("M-SEARCH"), (Method::Other, "M-SEARCH".into()));
    assert_eq!(method("A!#$%&'*+-.^_`|~9"), (Method::Other, "A!#$%&'*+-.^_`|~9".into()));
}

#[test]
fn connection_and_upgrade_are_read_together() {
    let upgrade = |lines: &str| accepted(&with_lines(lines)).upgrade;
    assert_eq!(upgrade("Connection: Upgrade\r\nUpgrade: websocket\r\n"), Upgrade::WebSocket);
    assert_eq!(upgrade("Connection: keep-alive, , Upgrade\r\nUpgrade: WebSocket\r\n"), Upgrade::WebSocket);
    assert_eq!(upgrade("Upgrade: websocket\r\n"), Upgrade::None);
    assert_eq!(upgrade("Connection: Upgrade\r\n"), Upgrade::None);
    assert_eq!(
        upgrade("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"),
        Upgrade::None
    );
    assert_eq!(upgrade("Connection: Upgrade\r\nUpgrade: h2c, websocket\r\n"), Upgrade::WebSocket);
    assert_eq!(upgrade("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"), Upgrade::Other);
    assert_eq!(upgrade("Connection: Upgrade\r\nUpgrade: tcp, websocket\r\n"), Upgrade::Other);
}

#[test]
fn a_connection_goes_on_unless_told_to_close() {
    let persistent = |lines: &str| accepted(&with_lines(lines)).is_persistent();
    assert!(persistent(""));
    assert!(persistent("Connection: keep-alive\r\n"));
    assert!(!persistent("Connection: Close\r\n"));
    assert!(!persistent("Connection: keep-alive\r\nConnection: x, close\r\n"));
    // The name is curl's invention; what it says is not this hop's `Connection`.
    assert!(persistent("Proxy-Connection: close\r\n"));
}

#[test]
fn te_trailers_needs_its_connection_option() {
    let trailers = |lines: &str| accepted(&with_lines(lines)).te_trailers;
    assert!(trailers("TE: gzip, trailers\r\nConnection: TE\r\n"));
    assert!(!trailers("TE: trailers\r\n"));
    assert!(!trailers("TE: gzip;q=0.3\r\nConnection: TE\r\n"));
}

#[test]
fn max_forwards_counts_for_options_and_trace_only() {
    let hops = |method: &str, lines: &str| {
        let bytes = format!("{method} http://a/ HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        read(bytes.as_bytes()).map(|head| head.and_then(|head| head.max_forwards))
    };
    assert_eq!(hops("OPTIONS", "Max-Forwards: 3\r\n"), Ok(Some(3)));
    assert_eq!(hops("TRACE", "Max-Forwards: 0\r\n"), Ok(Some(0)));
    assert_eq!(hops("OPTIONS", "Max-Forwards: 99999999999999999999999\r\n"), Ok(Some(u64::MAX)));
    assert_eq!(hops("OPTIONS", ""), Ok(None));
    assert_eq!(hops("OPTIONS", "Max-Forwards: x\r\n"), Err(Fault::MaxForwards));
    assert_eq!(hops("OPTIONS", "Max-Forwards: 1\r\nMax-Forwards: 1\r\n"), Err(Fault::MaxForwards));
    assert_eq!(hops("GET", "Max-Forwards: x\r\n"), Ok(None));
}

#[test]
fn heads_have_bounds() {
    let limits = HeadLimits { line_octets_max: 30, head_octets_max: 80, fields_max: 2 };
    let read = |text: &str| RequestReader::new(limits).read(text.as_bytes()).map(|head| head.is_some());
    // 30 octets in the line, 80 in the head.
    let line = "GET http://aaaaaaaaaa/ HTTP/1.1\r\n";
    assert_eq!(read(line), Err(Fault::LineTooLong));
    let line = line.replacen('a', "", 1);
    assert_eq!(read(&line), Ok(false));
    assert_eq!(read(line.trim_end()), Ok(false));
    let filled = |octets: usize| format!("{line}Host: a\r\nX: {}\r\n\r\n", "x".repeat(octets));
    assert_eq!(read(&filled(32)), Ok(true));
    assert_eq!(filled(32).len(), 80);
    assert_eq!(read(&filled(33)), Err(Fault::HeadTooLarge));
    assert_eq!(read(&format!("{line}Host: a\r\nA: 1\r\nB: 2\r\n\r\n")), Err(Fault::TooManyFields));
    // A line that never ends is refused as soon as it is too long.
    assert_eq!(read(&"G".repeat(31)), Ok(false));
    assert_eq!(read(&"G".repeat(32)), Err(Fault::LineTooLong));
}

#[test]
fn a_reader_goes_on_to_the_next_head() {
    let first = with_lines("X: 1\r\n");
    let second = b"\r\nHEAD http://b/ HTTP/1.1\r\nHost: b\r\n\r\n";
    let mut reader = RequestReader::new(limits());
    assert!(!reader.has_started());
    assert_eq!(reader.read(first.get(..9).unwrap_or_default()), Ok(None));
    assert!(reader.has_started());
    assert!(reader.read(&first).is_ok_and(|head| head.is_some()));
    assert!(!reader.has_started());
    let head = reader.read(second).ok().flatten();
    assert_eq!(head.map(|head| (head.method, head.len)), Some((Method::Head, second.len())));
}

/// Pieces of which interesting heads are made.
fn scraps() -> impl Strategy<Value = Vec<u8>> {
    let scrap = prop_oneof![
        4 => prop::sample::select(vec![
            &b"GET http://a/ HTTP/1.1\r\n"[..], b"CONNECT a:443 HTTP/1.0\r\n", b"OPTIONS * HTTP/1.1\r\n",
            b"Host: a\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close, x\r\n",
            b"Upgrade: websocket\r\n", b"Expect: 100-continue\r\n", b"X-Y: z\r\n", b"\r\n", b"\n", b"\r", b" ", b":",
            b"\t", b"\0", b"\xff", b"a", b"HTTP/1.1", b"Max-Forwards: 3\r\n", b"TE: trailers\r\n",
        ]).prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ];
    let start = prop::sample::select(vec![
        &b""[..],
        b"GET http://a/ HTTP/1.1\r\nHost: a\r\n",
        b"POST http://a/ HTTP/1.0\r\n",
    ]);
    (start, prop::collection::vec(scrap, 0..8))
        .prop_map(|(start, scraps)| [start.to_vec(), scraps.concat()].concat())
}

/// What `httparse` makes of a head: the method, target, minor version, fields and length.
type Opinion<'b> = (&'b [u8], &'b [u8], u8, Vec<(&'b [u8], &'b [u8])>, usize);

fn second_opinion(bytes: &[u8]) -> Option<Opinion<'_>> {
    let mut fields = [httparse::EMPTY_HEADER; 256];
    let mut request = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(len) = request.parse(bytes).ok()? else { return None };
    let fields = request.headers.iter().map(|field| (field.name.as_bytes(), field.value)).collect();
    Some((request.method?.as_bytes(), request.path?.as_bytes(), request.version?, fields, len))
}

proptest! {
    #[test]
    fn it_makes_no_difference_how_a_head_arrives(bytes in scraps(), cuts in prop::collection::vec(0..200_usize, 0..5)) {
        let whole = read(&bytes);
        prop_assert_eq!(read_in_pieces(&bytes, 0..bytes.len()), whole);
        let mut cuts = cuts;
        cuts.sort_unstable();
        prop_assert_eq!(read_in_pieces(&bytes, cuts.into_iter().filter(|&cut| cut < bytes.len())), whole);
    }

    #[test]
    fn what_is_accepted_means_the_same_to_httparse(bytes in scraps()) {
        if let Ok(Some(head)) = read(&bytes) {
            let fields: Vec<_> = head.fields(&bytes).map(|field| (field.name, field.value)).collect();
            let minor = u8::from(head.version == Version::Http11);
            let ours = (head.method_name(&bytes), head.target(&bytes), minor, fields, head.len);
            prop_assert_eq!(second_opinion(&bytes), Some(ours));
        }
    }
}
