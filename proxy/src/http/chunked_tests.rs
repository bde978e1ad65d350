//! Chunked bodies, octet for octet.

use proptest::prelude::*;

use super::*;

/// What a body comes to: the octets forwarded, those used up, and how it went.
type Outcome = (Vec<u8>, usize, Then);

fn pass_whole(keep: Keep, nominated: &Nominated, bytes: &[u8]) -> Outcome {
    let mut buf = bytes.to_vec();
    let passed = ChunkedBody::new(keep, nominated.clone()).pass(&mut buf);
    buf.truncate(passed.kept);
    (buf, passed.consumed, passed.then)
}

/// As a driver does it: what is not used up is handed in again, with more behind it.
fn pass_in_pieces(keep: Keep, bytes: &[u8], piece_octets: usize) -> Outcome {
    let mut body = ChunkedBody::new(keep, Nominated::default());
    let (mut forwarded, mut consumed, mut buf) = (Vec::new(), 0, Vec::new());
    for piece in bytes.chunks(piece_octets) {
        buf.extend_from_slice(piece);
        let passed = body.pass(&mut buf);
        forwarded.extend_from_slice(buf.get(..passed.kept).unwrap_or_default());
        buf.drain(..passed.consumed);
        consumed += passed.consumed;
        if passed.then != Then::More {
            return (forwarded, consumed, passed.then);
        }
    }
    (forwarded, consumed, Then::More)
}

fn chunks(bytes: &[u8]) -> Outcome {
    pass_whole(Keep::Chunks, &Nominated::default(), bytes)
}

#[test]
fn a_plain_body_passes_as_it_is_and_ends_where_it_ends() {
    let body = b"5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n";
    let with_more = [&body[..], b"GET / HTTP/1.1\r\n"].concat();
    assert_eq!(chunks(&with_more), (body.to_vec(), body.len(), Then::End));
    let data = pass_whole(Keep::Data, &Nominated::default(), &with_more);
    assert_eq!(data, (b"hello0123456789".to_vec(), body.len(), Then::End));
}

#[test]
fn an_incomplete_line_is_not_used_up() {
    assert_eq!(chunks(b"5\r\nhel"), (b"5\r\nhel".to_vec(), 6, Then::More));
    assert_eq!(chunks(b"5\r"), (vec![], 0, Then::More));
    assert_eq!(chunks(b"1\r\nx\r"), (b"1\r\nx".to_vec(), 4, Then::More));
    assert_eq!(chunks(b"0\r\nX: y\r\n"), (b"0\r\nX: y\r\n".to_vec(), 9, Then::More));
    assert_eq!(chunks(b""), (vec![], 0, Then::More));
}

#[test]
fn malformed_chunks_are_refused() {
    let nines = [b'9'; 17];
    let long_line = [&b"1;"[..], &[b'a'; 300]].concat();
    let rows: &[(&[u8], Fault)] = &[
        (b"+5\r\n", Fault::ChunkSize),
        (b"-5\r\n", Fault::ChunkSize),
        (b" 5\r\n", Fault::ChunkSize),
        (b"5 \r\n", Fault::ChunkSize),
        (b"0x5\r\n", Fault::ChunkSize),
        (b"5g\r\n", Fault::ChunkSize),
        (b"\r\n", Fault::ChunkSize),
        (b";a\r\n", Fault::ChunkSize),
        (b"5\n", Fault::ChunkSize),
        (b"5\r\r\n", Fault::ChunkSize),
        (b"5\0\r\n", Fault::ChunkSize),
        (b"5_0\r\n", Fault::ChunkSize),
        (b"\xef\xbc\x95\r\n", Fault::ChunkSize),
        (b"8000000000000000\r\n", Fault::ChunkTooLarge),
        (b"FFFFFFFFFFFFFFFF\r\n", Fault::ChunkTooLarge),
        (b"00000000000000005\r\n", Fault::ChunkTooLarge),
        (&[&nines[..], b"\r\n"].concat(), Fault::ChunkTooLarge),
        (b"5;\r\n", Fault::ChunkExtension),
        (b"5; a\r\n", Fault::ChunkExtension),
        (b"5;a =b\r\n", Fault::ChunkExtension),
        (b"5;a=\r\n", Fault::ChunkExtension),
        (b"5;a=\"b\r\n", Fault::ChunkExtension),
        (b"5;a=\"\x01\"\r\n", Fault::ChunkExtension),
        (b"5;a=b\rc\r\n", Fault::ChunkExtension),
        (b"5;a\n", Fault::ChunkSize),
        (&long_line, Fault::ChunkExtension),
    ];
    for (bytes, fault) in rows {
        assert_eq!(chunks(bytes), (vec![], 0, Then::Fault(*fault)), "{}", bytes.escape_ascii());
    }
    for ending in [&b"x\n"[..], b"xy", b"x\ry", b"x0\r\n", b"x\r\r\n"] {
        let bytes = [b"1\r\n", ending].concat();
        assert_eq!(chunks(&bytes).2, Then::Fault(Fault::ChunkEnd), "{}", bytes.escape_ascii());
    }
}

#[test]
fn what_came_before_a_fault_was_right_and_is_forwarded_but_never_completed() {
    let (forwarded, consumed, then) = chunks(b"5\r\nhello\r\nzz\r\n");
    assert_eq!(
        (forwarded.as_slice(), consumed, then),
        (&b"5\r\nhello\r\n"[..], 10, Then::Fault(Fault::ChunkSize))
    );
}

#[test]
fn extensions_are_read_and_dropped_and_bounded() {
    let (forwarded, _, then) = chunks(b"5;a;b=c;d=\"e\\\"f;\"\r\nhello\r\n0;x=y\r\n\r\n");
    assert_eq!((forwarded.as_slice(), then), (&b"5\r\nhello\r\n0\r\n\r\n"[..], Then::End));
    let chunk = [&b"1;a="[..], &[b'x'; 200], b"\r\nx\r\n"].concat();
    let few = chunk.repeat(20);
    assert_eq!(chunks(&few).2, Then::More);
    assert_eq!(chunks(&chunk.repeat(21)).2, Then::Fault(Fault::ChunkExtension));
}

#[test]
fn trailers_travel_unless_they_frame_route_or_belong_to_a_head() {
    let trailers = |lines: &str| chunks(format!("0\r\n{lines}\r\n").as_bytes());
    let kept = |lines: &str| String::from_utf8_lossy(&trailers(lines).0).into_owned();
    assert_eq!(kept("grpc-status: 0\r\nDigest: x\r\n"), "0\r\ngrpc-status: 0\r\nDigest: x\r\n\r\n");
    assert_eq!(
        kept("A: 1\r\nSet-Cookie: x\r\nIf-Match: y\r\nConnection: A\r\nB: 2\r\n"),
        "0\r\nA: 1\r\nB: 2\r\n\r\n"
    );
    assert_eq!(kept("Proxy-Authorization: x\r\nUpgrade: y\r\nVia: z\r\n"), "0\r\n\r\n");
    let rows = [
        ("Content-Length: 5\r\n", Fault::TrailerForbidden),
        ("Transfer-Encoding: chunked\r\n", Fault::TrailerForbidden),
        ("transfer_encoding: chunked\r\n", Fault::TrailerForbidden),
        ("Host: b\r\n", Fault::TrailerForbidden),
        ("A : 1\r\n", Fault::SpaceBeforeColon),
        (" A: 1\r\n", Fault::LineFolding),
        ("A: 1\r\n B\r\n", Fault::LineFolding),
        ("A\r\n", Fault::FieldLine),
        ("A: \0\r\n", Fault::ControlOctet),
        ("A: 1\n", Fault::BareLf),
        ("\n", Fault::BareLf),
        ("GET / HTTP/1.1\r\n", Fault::FieldLine),
    ];
    for (lines, fault) in rows {
        assert_eq!(trailers(lines).2, Then::Fault(fault), "{lines:?}");
    }
    assert_eq!(trailers(&"A: 1\r\n".repeat(TRAILER_FIELDS_MAX + 1)).2, Then::Fault(Fault::TrailerTooLarge));
    assert_eq!(trailers(&format!("A: {}", "x".repeat(5000))).2, Then::Fault(Fault::TrailerTooLarge));
    assert_eq!(
        trailers(&format!("A: {}\r\n", "x".repeat(4000)).repeat(3)).2,
        Then::Fault(Fault::TrailerTooLarge)
    );
}

#[test]
fn nominated_names_do_not_come_back_as_trailers() -> Result<(), Fault> {
    let head =
        b"POST http://a/ HTTP/1.1\r\nHost: a\r\nConnection: X-Secret, close\r\nConnection: Other\r\n\r\n";
    let reader = &mut crate::http::head::RequestReader::new(crate::http::limits::HeadLimits::default());
    let read = reader.read(head)?.ok_or(Fault::FieldLine)?;
    let nominated = Nominated::of(read.connection, read.fields(head));
    let trailers = b"0\r\nx-secret: 1\r\nOTHER: 2\r\nX: 3\r\n\r\n";
    assert_eq!(pass_whole(Keep::Chunks, &nominated, trailers).0, b"0\r\nX: 3\r\n\r\n");
    Ok(())
}

#[test]
fn data_may_be_moved_without_being_looked_at() {
    let mut body = ChunkedBody::new(Keep::Chunks, Nominated::default());
    let mut start = *b"10\r\nabc";
    assert_eq!(body.pass(&mut start).kept, 7);
    assert_eq!(body.data_left(), 13);
    body.data_moved(13);
    assert_eq!(body.data_left(), 0);
    let mut end = *b"\r\n0\r\n\r\n";
    assert_eq!(body.pass(&mut end).then, Then::End);
}

fn scraps() -> impl Strategy<Value = Vec<u8>> {
    let scrap = prop_oneof![
        6 => prop::sample::select(vec![
            &b"5\r\nhello\r\n"[..], b"1;a=b\r\nx\r\n", b"0\r\n", b"\r\n", b"A: 1\r\n", b"Set-Cookie: x\r\n", b"3\r\n",
            b"abc", b"000a\r\n0123456789\r\n", b"F\r\n", b"0\r\n\r\n", b"Host: a\r\n", b";", b"\n", b"\r", b"GET / ",
        ]).prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(any::<u8>(), 0..3),
    ];
    prop::collection::vec(scrap, 0..10).prop_map(|scraps| scraps.concat())
}

proptest! {
    #[test]
    fn it_makes_no_difference_how_a_body_arrives(bytes in scraps(), octets in 1..9_usize, data in any::<bool>()) {
        let keep = if data { Keep::Data } else { Keep::Chunks };
        let whole = pass_whole(keep, &Nominated::default(), &bytes);
        prop_assert_eq!(&pass_in_pieces(keep, &bytes, 1), &whole);
        prop_assert_eq!(&pass_in_pieces(keep, &bytes, octets), &whole);
    }

    #[test]
    fn what_was_forwarded_is_a_body_with_the_same_data_and_nothing_left_to_drop(bytes in scraps()) {
        let (forwarded, _, then) = chunks(&bytes);
        if then == Then::End {
            let data = |bytes: &[u8]| pass_whole(Keep::Data, &Nominated::default(), bytes).0;
            prop_assert_eq!(data(&forwarded), data(&bytes));
            let length = forwarded.len();
            prop_assert_eq!(chunks(&forwarded), (forwarded, length, Then::End));
        }
    }
}
