//! What a refused client gets, octet by octet: the reason where even a library that shows nothing else shows it, a field
//! for proxies, and a body for programs and people.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

mod conformance;

use conformance::{Origin, Proxy, Setup};

/// The whole answer, without its date.
fn answer(proxy: &Proxy, request: &str) -> String {
    let mut client = proxy.ask(request);
    let (head, body) = client.message();
    let lines = head.text().split("\r\n").filter(|line| !line.starts_with("Date: "));
    assert_eq!(head.text().matches("\r\nDate: ").count(), 1);
    lines.collect::<Vec<_>>().join("\r\n") + &body
}

#[test]
fn a_refusal_says_why_what_to_do_and_whom_to_ask() {
    let origin = Origin::new();
    let endpoint = format!("host: 127.0.0.1, port: {}, protocol: http, access: read-only", origin.port());
    let proxy = Setup::default().endpoints(&[endpoint]).refusal_hint("write to egress@corp.example").start();
    let at = origin.address();

    let body = "{\"error\":\"policy_denied\",\"reason\":\"host_not_allowed\",\
                \"message\":\"Denied by policy: host not allowed\",\"sandbox\":\"box\",\"binary\":null,\
                \"destination\":\"api.github.com:443\",\"hint\":\"policy denied this destination; retrying or \
                bypassing the proxy will not help; ask the operator to allow api.github.com:443; \
                write to egress@corp.example\"}\n";
    assert_eq!(
        answer(&proxy, "CONNECT API.GitHub.com.:443 HTTP/1.1\r\nHost: api.github.com:443\r\n\r\n"),
        format!(
            "HTTP/1.1 403 Denied by policy: host not allowed\r\n\
             Proxy-Status: sluice; error=http_request_denied; details=\"Denied by policy: host not allowed\"\r\n\
             Connection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    );

    let body = format!(
        "{{\"error\":\"policy_denied\",\"reason\":\"method_not_allowed\",\
         \"message\":\"Denied by policy: method not allowed\",\"sandbox\":\"box\",\"binary\":null,\"destination\":\"{at}\",\
         \"hint\":\"policy denied this request; retrying or bypassing the proxy will not help; ask the operator to \
         allow DELETE /x on {at}; write to egress@corp.example\"}}\n"
    );
    assert_eq!(
        answer(&proxy, &format!("DELETE http://{at}/x?secret=1 HTTP/1.1\r\nHost: {at}\r\n\r\n")),
        format!(
            "HTTP/1.1 403 Denied by policy: method not allowed\r\n\
             Proxy-Status: sluice; error=http_request_denied; details=\"Denied by policy: method not allowed\"\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    );
    origin.is_untouched();
}

#[test]
fn what_an_audit_lets_pass_is_served_and_told() {
    let origin = Origin::new();
    let at = origin.address();
    let endpoint = format!(
        "host: 127.0.0.1, port: {}, protocol: http, access: read-only, enforcement: audit",
        at.port()
    );
    let proxy = Setup::default().endpoints(&[endpoint]).start();
    let mut client = proxy.ask(format!("DELETE http://{at}/x/../y HTTP/1.1\r\nHost: {at}\r\n\r\n"));
    let mut upstream = origin.accept();
    assert_eq!(upstream.head().start(), "DELETE /y HTTP/1.1", "the path that was judged");
    upstream.send(conformance::OK);
    assert_eq!(client.message().0.status(), 200);
    let event = proxy.event(|event| event["event"] == "request.allowed");
    assert_eq!((&event["action"], &event["reason"]), (&"audited".into(), &"method_not_allowed".into()));
}
