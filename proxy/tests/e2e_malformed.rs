//! Malformed requests from inside: refused, closed, and never a byte of them at an origin. The worker survives all.

mod e2e;

use e2e::*;

/// What is sent, with `{at}` for the origin's `host:port`; the status and the reason in the answer.
const REQUESTS: [(&[u8], u16, &str); 22] = [
    (b"POST http://{at}/ HTTP/1.1\r\nHost: {at}\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "length_and_coding"),
    (b"POST http://{at}/ HTTP/1.1\r\nHost: {at}\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", 400, "length_and_coding"),
    (b"POST http://{at}/ HTTP/1.1\r\nHost: {at}\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde", 400, "length_repeated"),
    (b"POST http://{at}/ HTTP/1.1\r\nHost: {at}\r\nContent-Length: +5\r\n\r\nabcde", 400, "length"),
    (b"POST http://{at}/ HTTP/1.1\r\nHost: {at}\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n", 501, "transfer_coding_unknown"),
    (b"POST http://{at}/ HTTP/1.1\r\nHost: {at}\r\nTransfer_Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "disguised_field"),
    (b"GET http://{at}/ HTTP/1.1\nHost: {at}\n\n", 400, "bare_lf"),
    (b"GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\nX: a\rb\r\n\r\n", 400, "bare_cr"),
    (b"GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\nX: a\0b\r\n\r\n", 400, "control_octet"),
    (b"GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\nHost: other.test\r\n\r\n", 400, "host_repeated"),
    (b"GET http://{at}/ HTTP/1.1\r\n\r\n", 400, "host_missing"),
    (b"GET http://{at}/ HTTP/1.1\r\nHost : {at}\r\n\r\n", 400, "space_before_colon"),
    (b"GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\nX: a\r\n b\r\n\r\n", 400, "line_folding"),
    (b"GET http://{at}/\r\n\r\n", 400, "request_line"),
    (b"GET http://{at}/ HTTP/2.0\r\nHost: {at}\r\n\r\n", 505, "version"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "version"),
    (b"GET /path HTTP/1.1\r\nHost: {at}\r\n\r\n", 400, "origin_form_to_proxy"),
    (b"GET http://user:secret@{at}/ HTTP/1.1\r\nHost: {at}\r\n\r\n", 400, "userinfo"),
    (b"GET https://{at}/ HTTP/1.1\r\nHost: {at}\r\n\r\n", 501, "scheme_https"),
    (b"CONNECT origin.test HTTP/1.1\r\nHost: origin.test\r\n\r\n", 400, "port"),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "tls"),
    (b"\xff\xfe\xfd garbage \x80\r\n\r\n", 400, "method"),
];

#[test]
fn each_is_refused_and_closed_without_a_byte_at_the_origin_and_the_worker_lives_on() {
    let (scene, origin) = (Scene::new(), HttpOrigin::start());
    let at = origin.at("origin.test");
    // Behind each follows a good request, which must not be served: where it begins is not certain.
    let good = format!("GET http://{at}/good HTTP/1.1\r\nHost: {at}\r\n\r\n");
    let mut conversations: Vec<Vec<Step>> = REQUESTS
        .iter()
        .map(|(request, ..)| vec![send([filled(request, &at), good.clone().into()].concat()), Step::ToEnd])
        .collect();
    conversations.push(vec![send(&good), until(BODY)]);
    let (heard, outcome) = talk(scene.exec().open(), &conversations);

    let (last, answers) = heard.split_last().expect("answers");
    for ((request, status, reason), answer) in REQUESTS.iter().zip(answers) {
        let request = String::from_utf8_lossy(request);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
        assert!(answer.contains("\r\nConnection: close\r\n"), "{request:?}: {answer}");
        assert!(answer.contains(&format!(r#""reason":"{reason}""#)), "{request:?}: {answer}");
        assert!(answer.contains(r#""error":"malformed_request""#), "{request:?}: {answer}");
        assert_eq!(answer.matches("\r\nDate: ").count(), 1, "{request:?} got a second answer: {answer}");
    }
    assert!(last.starts_with("HTTP/1.1 200 "), "the worker is dead: {last}");
    assert_eq!(origin.connections(), 1, "only the good request got there");
    assert!(origin.received().starts_with("GET /good HTTP/1.1\r\n"), "{}", origin.received());
    let denied = outcome.events_of("request.denied").len() + outcome.events_of("connect.denied").len();
    assert_eq!(denied, REQUESTS.len(), "{outcome}");
}

/// The request with the origin's place filled in; it may hold octets that are no text.
fn filled(request: &[u8], at: &str) -> Vec<u8> {
    const MARK: &[u8] = b"{at}";
    let mut octets = Vec::new();
    let mut rest = request;
    while let Some(found) = rest.windows(MARK.len()).position(|window| window == MARK) {
        octets.extend_from_slice(&rest[..found]);
        octets.extend_from_slice(at.as_bytes());
        rest = &rest[found + MARK.len()..];
    }
    octets.extend_from_slice(rest);
    octets
}

#[test]
fn a_head_without_end_is_refused_before_it_fills_the_memory() {
    let (scene, origin) = (Scene::new(), HttpOrigin::start());
    let at = origin.at("origin.test");
    let long = "a".repeat(200_000);
    let conversations = [
        vec![send(format!("GET http://{at}/{long} HTTP/1.1\r\nHost: {at}\r\n\r\n")), until("\r\n\r\n")],
        vec![
            send(format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\nX: {long}\r\n\r\n")),
            until("\r\n\r\n"),
        ],
    ];
    let (heard, _) = talk(scene.exec().open(), &conversations);
    assert!(heard[0].starts_with("HTTP/1.1 414 "), "{heard:?}");
    assert!(heard[1].starts_with("HTTP/1.1 431 "), "{heard:?}");
    assert_eq!(origin.connections(), 0);
}

#[test]
fn a_broken_chunk_ends_the_exchange_and_nothing_behind_it_is_served() {
    let (scene, origin) = (Scene::new(), HttpOrigin::start());
    let at = origin.at("origin.test");
    let body = format!("5\r\nhello\r\nZZ\r\nGET http://{at}/smuggled HTTP/1.1\r\nHost: {at}\r\n\r\n");
    let request =
        format!("POST http://{at}/ HTTP/1.1\r\nHost: {at}\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
    let (heard, outcome) = talk(scene.exec().open(), &[vec![send(request), Step::ToEnd]]);
    assert!(!heard[0].contains("200 OK"), "{heard:?}");
    assert!(!origin.received().contains("smuggled"), "{}", origin.received());
    assert!(!origin.received().contains("0\r\n\r\n"), "the body was completed: {}", origin.received());
    assert!(outcome.events_of("request.allowed").iter().all(|event| event["status"] != 200), "{outcome}");
}

#[test]
fn a_connection_that_says_nothing_or_half_a_head_disturbs_nobody() {
    let (scene, origin) = (Scene::new(), HttpOrigin::start());
    let at = origin.at("origin.test");
    let conversations = [
        vec![Step::HalfClose, Step::ToEnd],
        vec![send("GET http://"), Step::HalfClose, Step::ToEnd],
        vec![send(format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\n\r\n")), until(BODY)],
    ];
    let (heard, _) = talk(scene.exec().open(), &conversations);
    assert_eq!(heard[0], "");
    assert!(!heard[1].contains(" 200 "), "{heard:?}");
    assert!(heard[2].starts_with("HTTP/1.1 200 "), "{heard:?}");
}
