//! Answers of our own, octet for octet.

use super::*;
use crate::address::Class;
use crate::http::fault::Fault;
use crate::http::framing::Framing;
use crate::http::limits::HeadLimits;
use crate::http::reject::Blame;
use crate::http::response::ResponseReader;

fn date() -> HttpDate {
    HttpDate::from_unix(784_111_777)
}

fn written(reject: Reject, method: Option<Method>, details: &Details<'_>) -> String {
    let mut out = Vec::new();
    write(&mut out, reject, method, details, date(), false);
    String::from_utf8_lossy(&out).into_owned()
}

/// One of each kind.
fn all() -> Vec<Reject> {
    let mut all = vec![
        Reject::Request(Fault::BareLf),
        Reject::Request(Fault::LineTooLong),
        Reject::Request(Fault::HeadTooLarge),
        Reject::Request(Fault::SchemeHttps),
        Reject::Request(Fault::Version),
        Reject::HeadTimeout,
        Reject::BodyTimeout,
        Reject::LastHop,
        Reject::NotHttp,
        Reject::SniMismatch,
        Reject::SniMissing,
        Reject::SniEncrypted,
        Reject::Address(Class::Metadata),
        Reject::TooManyConnections,
        Reject::TooManyRequests,
        Reject::Exhausted,
        Reject::Draining,
        Reject::Loop,
        Reject::NameNotFound,
        Reject::NameFailed,
        Reject::NameTimeout,
        Reject::DialRefused,
        Reject::DialUnreachable,
        Reject::DialTimeout,
        Reject::DialFailed,
        Reject::Response(Fault::BareLf),
        Reject::Response(Fault::HeadTooLarge),
        Reject::OriginClosed,
        Reject::OriginTimeout,
        Reject::UnaskedUpgrade,
        Reject::Internal,
    ];
    let reasons = [
        "host_not_allowed",
        "port_not_allowed",
        "address_not_allowed",
        "binary_not_allowed",
        "identity_unknown",
        "identity_ambiguous",
        "method_not_allowed",
        "path_not_allowed",
        "query_not_allowed",
        "deny_rule",
        "path_malformed",
        "query_malformed",
        "encoded_slash",
        "a_reason_of_the_future",
    ];
    all.extend(reasons.map(Reject::Denied));
    all
}

#[test]
fn a_denied_request_hears_why_in_the_status_line_a_field_and_the_body() {
    let details = Details {
        sandbox: Some("a"),
        binary: Some("/usr/bin/curl"),
        destination: Some("b.example:80"),
        hint: Some("allow it"),
    };
    let body = "{\"error\":\"policy_denied\",\"reason\":\"host_not_allowed\",\
                \"message\":\"Denied by policy: host not allowed\",\"sandbox\":\"a\",\"binary\":\"/usr/bin/curl\",\
                \"destination\":\"b.example:80\",\"hint\":\"allow it\"}\n";
    let expected = format!(
        "HTTP/1.1 403 Denied by policy: host not allowed\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
         Proxy-Status: sluice; error=http_request_denied; details=\"Denied by policy: host not allowed\"\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    assert_eq!(written(Reject::Denied("host_not_allowed"), Some(Method::Get), &details), expected);
}

#[test]
fn every_answer_is_one_ascii_line_a_head_our_own_parser_takes_and_a_json_body() {
    for reject in all() {
        let text = written(reject, Some(Method::Get), &Details::default());
        let bytes = text.as_bytes();
        let phrase = reject.phrase();
        assert!(phrase.bytes().all(|b| b.is_ascii_graphic() || b == b' '), "{phrase}");
        assert!(!phrase.contains(['"', '\\']), "{phrase} would need escaping in Proxy-Status");
        let head = ResponseReader::new(HeadLimits::default()).read(bytes).ok().flatten();
        let head = head.unwrap_or_else(|| panic!("{text}"));
        assert_eq!((head.status, head.reason(bytes)), (reject.status(), phrase.as_bytes()));
        let body = bytes.get(head.len..).unwrap_or_default();
        assert_eq!(head.framing(Method::Get), Framing::Length(body.len() as u64), "{text}");
        let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        assert_eq!(json.get("reason").and_then(|v| v.as_str()), Some(reject.label()), "{text}");
        assert_eq!(head.connection.close, reject.must_close(), "{text}");
    }
}

#[test]
fn status_blame_and_error_agree() {
    for reject in all() {
        let (status, blame) = (reject.status(), reject.blame());
        assert_eq!(blame == Blame::Policy, status == 403, "{reject:?}");
        assert_eq!(blame == Blame::Policy, reject.error() == "policy_denied", "{reject:?}");
        assert_eq!(blame == Blame::Upstream, matches!(status, 502 | 504), "{reject:?}");
        assert_eq!(reject.retry_after_s().is_some(), matches!(status, 429 | 503), "{reject:?}");
        assert_ne!(status, 407, "{reject:?} would make clients ask for passwords");
        assert_ne!(status, 421, "{reject:?} is for origins to say");
        assert!(
            reject.label().bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
            "{reject:?}"
        );
    }
}

#[test]
fn a_refused_connect_closes_and_so_does_what_was_not_understood() {
    let closes = |reject, method| {
        let mut out = Vec::new();
        let says = write(&mut out, reject, method, &Details::default(), date(), false);
        assert_eq!(String::from_utf8_lossy(&out).contains("\r\nConnection: close\r\n"), says);
        says
    };
    assert!(closes(Reject::Denied("host_not_allowed"), Some(Method::Connect)));
    assert!(!closes(Reject::Denied("host_not_allowed"), Some(Method::Get)));
    assert!(closes(Reject::Request(Fault::BareLf), None));
    assert!(closes(Reject::Request(Fault::HostMismatch), Some(Method::Get)));
    assert!(closes(Reject::DialRefused, Some(Method::Connect)));
    assert!(!closes(Reject::DialRefused, Some(Method::Get)));
}

#[test]
fn head_gets_the_same_length_and_no_body() {
    let get = written(Reject::DialTimeout, Some(Method::Get), &Details::default());
    let head = written(Reject::DialTimeout, Some(Method::Head), &Details::default());
    assert!(head.ends_with("\r\n\r\n") && get.starts_with(&head), "{head}");
}

#[test]
fn limits_say_when_to_come_back() {
    assert!(
        written(Reject::TooManyRequests, Some(Method::Get), &Details::default())
            .contains("\r\nRetry-After: 1\r\n")
    );
    assert!(
        written(Reject::Draining, Some(Method::Get), &Details::default()).contains("\r\nRetry-After: 5\r\n")
    );
}

#[test]
fn what_peers_said_is_escaped_and_stays_in_the_body() {
    let evil = "x\"\r\nSet-Cookie: a=b\r\n\r\n\0\u{7f}é\\";
    let details =
        Details { sandbox: Some(evil), binary: Some(evil), destination: Some(evil), hint: Some(evil) };
    let text = written(Reject::Denied("binary_not_allowed"), Some(Method::Get), &details);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { panic!("{text}") };
    assert!(!head.contains("Set-Cookie") && head.is_ascii(), "{head}");
    assert_eq!(body.lines().count(), 1, "{body}");
    let json: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    assert_eq!(json.get("hint").and_then(|v| v.as_str()), Some(evil));
}

#[test]
fn an_established_tunnel_has_no_framing_field() {
    let mut out = Vec::new();
    write_established(&mut out);
    assert_eq!(out, b"HTTP/1.1 200 Connection established\r\n\r\n");
}
