//! Response heads, octet for octet.

use proptest::prelude::*;

use super::*;

fn read(bytes: &[u8]) -> Result<Option<ResponseHead>, Fault> {
    ResponseReader::new(HeadLimits::default()).read(bytes)
}

fn accepted(text: &str) -> ResponseHead {
    read(text.as_bytes())
        .unwrap_or_else(|fault| panic!("{text:?}: {fault:?}"))
        .unwrap_or_else(|| panic!("{text:?} is whole"))
}

#[test]
fn a_status_line_is_version_space_three_digits_and_a_reason() {
    let line = |text: &str| {
        let bytes = format!("{text}\r\n\r\n").into_bytes();
        let head = read(&bytes)?.ok_or(Fault::FieldLine)?;
        let reason = String::from_utf8_lossy(head.reason(&bytes)).into_owned();
        Ok((head.version, head.status, reason))
    };
    assert_eq!(line("HTTP/1.1 200 OK"), Ok((Version::Http11, 200, "OK".into())));
    assert_eq!(line("HTTP/1.0 404 Not  Found "), Ok((Version::Http10, 404, "Not  Found ".into())));
    assert_eq!(line("HTTP/1.1 599 "), Ok((Version::Http11, 599, String::new())));
    assert_eq!(line("HTTP/1.1 200"), Ok((Version::Http11, 200, String::new())));
    let rows = [
        ("HTTP/1.1  200 OK", Fault::StatusLine),
        ("HTTP/1.1\t200 OK", Fault::StatusLine),
        ("HTTP/1.1 20 OK", Fault::StatusLine),
        ("HTTP/1.1 2000 OK", Fault::StatusLine),
        ("HTTP/1.1 +20 OK", Fault::StatusLine),
        ("HTTP/1.1 099 Low", Fault::StatusLine),
        ("HTTP/1.1 600 High", Fault::StatusLine),
        ("HTTP/1.1 200OK", Fault::StatusLine),
        ("HTTP/1.1", Fault::StatusLine),
        ("HTTP/1.12 200 OK", Fault::StatusLine),
        ("http/1.1 200 OK", Fault::StatusLine),
        ("ICY 200 OK", Fault::StatusLine),
        ("<html>", Fault::StatusLine),
        ("HTTP/2.0 200 OK", Fault::Version),
        ("HTTP/0.9 200 OK", Fault::Version),
        (" HTTP/1.1 200 OK", Fault::LeadingSpace),
        ("\r\nHTTP/1.1 200 OK", Fault::LeadingSpace),
        ("HTTP/1.1 200 O\0K", Fault::ControlOctet),
        ("HTTP/1.1 200 O\rK", Fault::BareCr),
        ("HTTP/1.1 200 OK\nX: y", Fault::BareLf),
    ];
    for (text, fault) in rows {
        assert_eq!(line(text), Err(fault), "{text:?}");
    }
}

#[test]
fn origins_are_held_to_the_same_field_rules() {
    let rows = [
        ("Content-Length : 5\r\n", Fault::SpaceBeforeColon),
        ("X: a\r\n b\r\n", Fault::LineFolding),
        ("X: a\nY: b\r\n", Fault::BareLf),
        ("X: a\0\r\n", Fault::ControlOctet),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", Fault::LengthRepeated),
        ("Content-Length: 5, 5\r\n", Fault::LengthRepeated),
        ("Content-Length: +5\r\n", Fault::Length),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", Fault::LengthAndCoding),
        ("Transfer-Encoding: gzip, chunked\r\n", Fault::TransferCodingUnknown),
        ("Transfer-Encoding: gzip\r\n", Fault::TransferCoding),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Fault::TransferCoding),
        ("Connection: content-length\r\n", Fault::ConnectionOption),
    ];
    for (lines, fault) in rows {
        assert_eq!(read(format!("HTTP/1.1 200 OK\r\n{lines}\r\n").as_bytes()), Err(fault), "{lines:?}");
    }
    assert_eq!(
        read(b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        Err(Fault::TransferCodingIn10)
    );
}

#[test]
fn the_body_depends_on_what_was_asked() {
    let head = accepted("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(head.framing(Method::Get), Framing::Length(5));
    assert_eq!(head.framing(Method::Head), Framing::None);
    assert_eq!(head.content_length(), Some(5));
    let head = accepted("HTTP/1.1 200 OK\r\n\r\n");
    assert_eq!(head.framing(Method::Get), Framing::UntilClose);
    let head = accepted("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!(head.framing(Method::Get), Framing::UntilClose);
}

#[test]
fn interim_answers_are_told_from_final_ones_and_from_a_switch() {
    for (status, interim) in [(100, true), (101, false), (102, true), (103, true), (199, true), (200, false)]
    {
        assert_eq!(accepted(&format!("HTTP/1.1 {status} x\r\n\r\n")).is_interim(), interim, "{status}");
    }
    let head = accepted("HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!(head.upgrade, Upgrade::WebSocket);
}

#[test]
fn a_switch_counts_only_as_the_answer_to_its_offer() {
    let accepts = |status: u16, answer: &str, offer: &str| {
        let answer = format!("HTTP/1.1 {status} x\r\n{answer}\r\n");
        let asked = format!("GET http://a/ HTTP/1.1\r\nHost: a\r\n{offer}\r\n");
        let request = crate::http::head::RequestReader::new(HeadLimits::default())
            .read(asked.as_bytes())
            .unwrap()
            .unwrap();
        accepted(&answer).accepts(answer.as_bytes(), &request, asked.as_bytes())
    };
    let websocket = "Connection: upgrade\r\nUpgrade: websocket\r\n";
    let tcp = "Connection: upgrade\r\nUpgrade: tcp/2\r\n";
    let several = "Connection: upgrade\r\nUpgrade: tcp/2, WebSocket\r\n";
    let h2c = "Connection: upgrade\r\nUpgrade: h2c\r\n";
    for (answer, offer) in [(websocket, websocket), (tcp, tcp), (websocket, several), (several, several)] {
        assert!(accepts(101, answer, offer), "{answer} {offer}");
    }
    let rows = [
        (websocket, ""),
        (websocket, "Upgrade: websocket\r\n"),
        (websocket, tcp),
        (tcp, websocket),
        (several, websocket),
        (h2c, h2c),
        (h2c, websocket),
        ("Upgrade: websocket\r\n", websocket),
        ("", websocket),
    ];
    for (answer, offer) in rows {
        assert!(!accepts(101, answer, offer), "{answer} {offer}");
    }
    assert!(!accepts(200, websocket, websocket));
}

#[test]
fn a_connection_to_an_origin_is_reused_only_when_its_end_is_certain() {
    let reused = |text: &str, method| accepted(text).is_persistent(method);
    assert!(reused("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Method::Get));
    assert!(reused("HTTP/1.1 204 x\r\n\r\n", Method::Get));
    assert!(reused("HTTP/1.1 204 x\r\nContent-Length: 0\r\n\r\n", Method::Get));
    assert!(reused("HTTP/1.1 304 x\r\nContent-Length: 9\r\n\r\n", Method::Get));
    assert!(reused("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", Method::Head));
    assert!(!reused("HTTP/1.1 200 OK\r\n\r\n", Method::Get));
    assert!(!reused("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", Method::Get));
    assert!(!reused("HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n", Method::Get));
    // These announce a body they must not have, and may well send it.
    assert!(!reused("HTTP/1.1 204 x\r\nContent-Length: 9\r\n\r\n", Method::Get));
    assert!(!reused("HTTP/1.1 204 x\r\nTransfer-Encoding: chunked\r\n\r\n", Method::Get));
}

proptest! {
    #[test]
    fn it_makes_no_difference_how_a_response_arrives(
        scraps in prop::collection::vec(prop::sample::select(vec![
            "HTTP/1.1 200 OK\r\n", "HTTP/1.0 304 x\r\n", "HTTP/1.1 ", "101", "Content-Length: 5\r\n", "\r\n", "\n",
            "Transfer-Encoding: chunked\r\n", "Connection: close\r\n", " ", ":", "\0", "x", "Date: now\r\n",
        ]), 0..8)
    ) {
        let bytes = scraps.concat().into_bytes();
        let mut reader = ResponseReader::new(HeadLimits::default());
        let pieces = (0..=bytes.len()).map(|end| reader.read(bytes.get(..end).unwrap_or(&bytes)));
        let in_pieces = pieces.into_iter().find(|verdict| *verdict != Ok(None)).unwrap_or(Ok(None));
        prop_assert_eq!(in_pieces, read(&bytes));
    }
}
