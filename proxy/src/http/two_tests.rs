use http::header::VIA;

use super::*;
use crate::http::answer::{self, Details};
use crate::http::framing::Framing;
use crate::http::head::RequestReader;
use crate::http::reject::Reject;

fn request(method: &str, uri: &str, fields: &[(&str, &str)], ends: bool) -> (Result<(), Fault>, String) {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let mut out = Vec::new();
    let fits = write_request(&mut out, &request.body(()).unwrap().into_parts().0, ends);
    (fits, String::from_utf8(out).unwrap())
}

fn read(text: &str) -> Result<RequestHead, Fault> {
    RequestReader::new(HeadLimits::default()).read(text.as_bytes()).map(|head| head.expect("a whole head"))
}

#[test]
fn a_request_is_written_as_the_strict_reader_reads_it_and_comes_back_as_it_was() {
    let fields = [("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers"), ("x-odd", "\u{e9} \t!")];
    let (fits, text) = request("POST", "https://a.example:8443/x?y=z", &fields, false);
    assert_eq!(fits, Ok(()));
    assert!(text.starts_with("POST /x?y=z HTTP/1.1\r\nhost: a.example:8443\r\n"), "{text}");
    let head = read(&text).unwrap();
    assert!(head.te_trailers && !head.framing.is_empty());
    let back = read_request(&head, text.as_bytes()).unwrap();
    assert_eq!(back.uri(), "https://a.example:8443/x?y=z");
    assert_eq!(back.method(), "POST");
    let cookies: Vec<_> = back.headers().get_all("cookie").iter().collect();
    assert_eq!(cookies, ["a=1", "b=2"]);
    assert_eq!(back.headers()["te"], "trailers");
    assert_eq!(back.headers().len(), 4, "nothing of HTTP/1.1 is left: {:?}", back.headers());
}

#[test]
fn there_is_a_body_unless_the_head_was_all() {
    let framing = |fields: &[(&str, &str)], ends| {
        read(&request("PUT", "https://a.example/", fields, ends).1).map(|head| head.framing)
    };
    assert_eq!(framing(&[], true), Ok(Framing::None));
    assert_eq!(framing(&[], false), Ok(Framing::Chunked));
    assert_eq!(framing(&[("content-length", "7")], false), Ok(Framing::Length(7)));
    assert_eq!(
        framing(&[("content-length", "7"), ("content-length", "7")], false),
        Err(Fault::LengthRepeated)
    );
    assert_eq!(framing(&[("content-length", "+7")], false), Err(Fault::Length));
    assert_eq!(read(&request("TRACE", "https://a.example/", &[], false).1), Err(Fault::BodyNotAllowed));
}

#[test]
fn one_host_and_https_or_it_is_refused_and_still_readable() {
    for (uri, host, fits) in [
        ("https://a.example/", Some("A.EXAMPLE"), true),
        ("https://a.example/", Some("b.example"), false),
        ("http://a.example/", None, false),
        ("/", Some("a.example"), true),
    ] {
        let fields: Vec<_> = host.map(|host| ("host", host)).into_iter().collect();
        let (outcome, text) = request("GET", uri, &fields, true);
        assert_eq!(outcome.is_ok(), fits, "{uri} {host:?}");
        assert!(read(&text).is_ok(), "{text}");
    }
    assert_eq!(read(&request("GET", "/", &[], true).1), Err(Fault::HostMissing));
    let (_, text) = request("CONNECT", "a.example:443", &[], true);
    assert!(text.starts_with("CONNECT a.example:443 HTTP/1.1\r\n"), "{text}");
}

#[test]
fn a_refusal_becomes_a_response_without_what_http2_has_not() {
    let mut text = Vec::new();
    let details = Details { hint: Some("ask"), ..Details::default() };
    let reject = Reject::Denied("method_not_allowed");
    answer::write(&mut text, reject, None, &details, HttpDate::from_unix(0), true);
    let (response, body_at) = read_response(&text, &HeadLimits::default()).unwrap();
    assert_eq!(response.status(), 403);
    assert!(!response.headers().contains_key("connection"), "{:?}", response.headers());
    assert!(response.headers().contains_key("proxy-status"));
    let body = &text[body_at..];
    assert_eq!(response.headers()["content-length"], body.len().to_string());
    assert!(body.starts_with(b"{"));
}

#[test]
fn a_response_goes_on_with_our_name_a_date_and_within_bounds() {
    let via = Pseudonym::new(1);
    let limits = HeadLimits { fields_max: 8, ..HeadLimits::default() };
    let how = Onward { via: &via, date: HttpDate::from_unix(0), limits };
    let pass = |response: http::response::Builder| {
        let mut parts = response.body(()).unwrap().into_parts().0;
        pass_response(&mut parts, &how).map(|()| parts)
    };
    let response = || Response::builder();
    let passed =
        pass(response().header("proxy-authenticate", "Basic").header("via", "1.1 b").header("x", "y"));
    let fields = passed.unwrap().headers;
    assert!(!fields.contains_key("proxy-authenticate"));
    let vias: Vec<_> = fields.get_all(VIA).iter().map(|via| via.to_str().unwrap()).collect();
    assert_eq!(vias, ["1.1 b", &format!("2 {}", via.as_str())]);
    assert_eq!(fields["date"], "Thu, 01 Jan 1970 00:00:00 GMT");
    assert!(!pass(response().status(103)).unwrap().headers.contains_key("date"));
    assert_eq!(pass(response().status(101)).err(), Some(Fault::Http2));
    let many = (0..9).fold(response(), |response, number| response.header("x", number));
    assert_eq!(pass(many).err(), Some(Fault::TooManyFields));
    let long = response().header("x", "y".repeat(limits.head_octets_max));
    assert_eq!(pass(long).err(), Some(Fault::HeadTooLarge));
}

#[test]
fn trailers_pass_but_for_what_frames_the_message_or_belongs_into_its_head() {
    let pass = |fields: &[(&str, &str)]| {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap());
        }
        pass_trailers(&mut map).map(|()| map)
    };
    let passed = pass(&[("grpc-status", "0"), ("grpc-message", ""), ("authorization", "x")]).unwrap();
    assert_eq!(passed.len(), 2, "{passed:?}");
    assert_eq!(pass(&[("content-length", "3")]).err(), Some(Fault::TrailerForbidden));
    assert_eq!(pass(&[("host", "b.example")]).err(), Some(Fault::TrailerForbidden));
    let many: Vec<_> = (0..=TRAILER_FIELDS_MAX).map(|_| ("x", "y")).collect();
    assert_eq!(pass(&many).err(), Some(Fault::TrailerTooLarge));
}

proptest::proptest! {
    /// Whatever the library lets through: the text is one head and nothing behind it, or it is refused; and what is judged is
    /// what goes on.
    #[test]
    fn any_request_is_one_head_and_means_the_same(
        method in "[A-Z!#$%&'*+.^_`|~a-z0-9-]{1,12}",
        authority in "[a-z]{1,8}([.][a-z]{1,8}){0,2}(:[0-9]{1,4})?|[a-zA-Z0-9.:@%\\[\\]-]{1,24}",
        path in "/[!-~]{0,16}|/[ -~\u{80}-\u{ff}]{0,40}",
        fields in proptest::collection::vec(
            ("(host|te|content-length|expect)|(cookie|trailer|via)|x-[a-z]{1,6}|x-[a-z]{1,6}", "[\t -~\u{80}-\u{ff}]{0,24}"), 0..8),
        ends in proptest::bool::ANY,
    ) {
        let uri = Uri::builder().scheme("https").authority(authority).path_and_query(path).build();
        let Ok(uri) = uri else { return Ok(()) };
        let Ok(method) = Method::from_bytes(method.as_bytes()) else { return Ok(()) };
        let mut request = Request::builder().method(method.clone()).uri(uri.clone());
        for (name, value) in &fields {
            request = request.header(name, value.as_str());
        }
        let Ok(request) = request.body(()) else { return Ok(()) };
        let mut text = Vec::new();
        let fits = write_request(&mut text, &request.into_parts().0, ends);
        let Ok(head) = RequestReader::new(HeadLimits::default()).read(&text) else { return Ok(()) };
        let head = head.expect("a whole head");
        proptest::prop_assert_eq!(head.len, text.len());
        proptest::prop_assert_eq!(head.method_name(&text), method.as_str().as_bytes());
        if let (Ok(()), Some(back)) = (fits, read_request(&head, &text)) {
            proptest::prop_assert_eq!(back.method(), &method);
            proptest::prop_assert_eq!(back.uri().path_and_query(), uri.path_and_query());
            let (there, here) = (back.uri().authority().unwrap().as_str(), uri.authority().unwrap().as_str());
            proptest::prop_assert!(there.eq_ignore_ascii_case(here), "{} {}", there, here);
        }
    }
}
