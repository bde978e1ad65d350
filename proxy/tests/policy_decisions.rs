//! What a policy decides: each rule of matching in a table, and what the answer carries.

#![allow(clippy::unwrap_used, reason = "a test fails where it must")]
#![allow(clippy::format_push_string, reason = "the text of a policy is written once")]

#[allow(dead_code, reason = "shared by several test files")]
mod policy_questions;

use std::net::IpAddr;
use std::path::Path;

use policy_questions::{answer, ask, policy};
use sluice::address::Reach;
use sluice::destination::{Destination, Host};
use sluice::policy::{Ask, Asker, BinaryFacts, Kind, Policy, Program, Protocol, Reason, Sni, decide, hint};

const CURL: Option<&str> = Some("/usr/bin/curl");
const PYTHON: Option<&str> = Some("/usr/bin/python3.11");

/// A policy of these endpoints, written in flow style, all for curl.
fn for_curl(endpoints: &[&str]) -> Policy {
    let mut text = String::from("version: 1\nnetwork_policies:\n");
    for (number, endpoint) in endpoints.iter().enumerate() {
        text.push_str(&format!(
            "  r{number}:\n    binaries: [{{path: /usr/bin/curl}}]\n    endpoints: [{{{endpoint}}}]\n"
        ));
    }
    policy(&text)
}

/// Each question and its answer; all questions are curl's.
fn table(endpoints: &[&str], rows: &[(&str, Result<&str, Reason>)]) {
    let policy = for_curl(endpoints);
    for (question, expected) in rows {
        let expected = expected.map(ToOwned::to_owned);
        assert_eq!(answer(&policy, CURL, question), expected, "{endpoints:?}: {question}");
    }
}

#[test]
fn host_and_port_decide_a_connection() {
    table(
        &[
            "host: a.example, port: 443",
            "host: '*.b.example.com', ports: [80, 443]",
            "host: '**.c.example.com', port: 1",
        ],
        &[
            ("CONNECT a.example:443", Ok("r0")),
            ("CONNECT A.EXAMPLE.:443", Ok("r0")),
            ("CONNECT a.example:80", Err(Reason::PortNotAllowed)),
            ("CONNECT b.a.example:443", Err(Reason::HostNotAllowed)),
            ("CONNECT x.b.example.com:80", Ok("r1")),
            ("CONNECT x.b.example.com:81", Err(Reason::PortNotAllowed)),
            ("CONNECT b.example.com:443", Err(Reason::HostNotAllowed)),
            ("CONNECT y.x.b.example.com:443", Err(Reason::HostNotAllowed)),
            ("CONNECT y.x.c.example.com:1", Ok("r2")),
            ("CONNECT c.example.com:1", Err(Reason::HostNotAllowed)),
            ("CONNECT 10.0.0.1:443", Err(Reason::HostNotAllowed)),
        ],
    );
}

#[test]
fn wildcards_of_every_shape_share_one_tree() {
    table(
        &[
            "host: '*-api.example.com', port: 1",
            "host: 'api.*.example.com', port: 1",
            "host: '**.*.example.com', port: 2",
            "host: '*.*.example.com', port: 3",
            "host: 'x*y.z.example.com', port: 3",
        ],
        &[
            ("CONNECT eu-api.example.com:1", Ok("r0")),
            ("CONNECT api.eu.example.com:1", Ok("r1")),
            ("CONNECT api.eu.example.com:2", Ok("r2")),
            ("CONNECT a.b.c.d.example.com:2", Ok("r2")),
            ("CONNECT a.example.com:2", Err(Reason::HostNotAllowed)),
            ("CONNECT xay.z.example.com:3", Ok("r3")),
            ("CONNECT xay.z.example.com:1", Err(Reason::PortNotAllowed)),
        ],
    );
}

#[test]
fn addresses_are_held_against_allowed_ips_at_once() {
    table(
        &["port: 443, allowed_ips: [10.1.0.0/16, 'fd00::/8']", "host: 192.0.2.1, port: 80"],
        &[
            ("CONNECT 10.1.2.3:443", Ok("r0")),
            ("CONNECT [fd00::1]:443", Ok("r0")),
            ("CONNECT [::ffff:10.1.2.3]:443", Ok("r0")),
            ("CONNECT 10.2.0.1:443", Err(Reason::AddressNotAllowed)),
            ("CONNECT any.example:443", Ok("r0")),
            ("CONNECT any.example:80", Err(Reason::HostNotAllowed)),
            ("CONNECT 192.0.2.1:80", Ok("r1")),
            ("CONNECT [::ffff:192.0.2.1]:80", Ok("r1")),
        ],
    );
}

#[test]
fn binaries_match_by_program_and_ancestor_and_need_identity() {
    let policy = for_curl(&["host: a.example, port: 443"]);
    let connect = "CONNECT a.example:443";
    assert_eq!(answer(&policy, CURL, connect), Ok("r0".into()));
    assert_eq!(answer(&policy, PYTHON, connect), Err(Reason::BinaryNotAllowed));
    assert_eq!(answer(&policy, None, connect), Err(Reason::IdentityUnknown));
    let destination = Destination { host: Host::parse(b"a.example").unwrap(), port: 443 };
    let asked = |asker| {
        let ask = Ask { destination: &destination, asker, kind: Kind::Connect };
        decide(&policy, &ask).map(|_| ()).map_err(|deny| deny.reason)
    };
    assert_eq!(asked(Asker::Ambiguous), Err(Reason::IdentityAmbiguous));
    let program = |path| Program { path: Path::new(path), sha256: None };
    let facts = |ancestors| BinaryFacts { exe: program("/usr/lib/git-remote-http"), ancestors };
    let ancestors = [program("/bin/sh"), program("/usr/bin/curl")];
    let child = policy.classify(&facts(&ancestors));
    assert_eq!(asked(Asker::Known(&child)), Ok(()));
    let orphan = policy.classify(&facts(&[]));
    assert_eq!(asked(Asker::Known(&orphan)), Err(Reason::BinaryNotAllowed));
    // A set made for another policy says nothing here.
    let other = policy_questions::policy(
        "version: 1\nnetwork_policies: {r: {binaries: [{path: /x}], endpoints: [{host: a.b, port: 1}]}}\n",
    );
    let foreign = other.classify(&facts(&ancestors));
    assert_eq!(asked(Asker::Known(&foreign)), Err(Reason::IdentityUnknown));
}

#[test]
fn presets_allow_their_methods() {
    for (access, yes, no) in [
        ("read-only", &["GET", "HEAD", "OPTIONS"][..], &["POST", "DELETE", "get", "TRACE"][..]),
        ("read-write", &["GET", "POST", "PUT", "PATCH"], &["DELETE", "PROPFIND"]),
        ("full", &["GET", "DELETE", "BREW"], &[]),
    ] {
        let policy = for_curl(&[&format!("host: a.example, port: 80, protocol: http, access: {access}")]);
        for method in yes {
            let found = answer(&policy, CURL, &format!("{method} a.example:80/x"));
            assert_eq!(found, Ok("r0".into()), "{access} {method}");
        }
        for method in no {
            let found = answer(&policy, CURL, &format!("{method} a.example:80/x"));
            assert_eq!(found, Err(Reason::MethodNotAllowed), "{access} {method}");
        }
    }
}

#[test]
fn rules_match_method_path_and_query() {
    table(
        &["host: a.example, port: 80, protocol: rest, rules: [\
           {allow: {method: GET, path: '/repos/**'}}, \
           {allow: {method: POST, path: '/repos/*/issues'}}, \
           {allow: {method: '*', path: /any}}, \
           {allow: {method: GET, path: /search, query: {q: 'x*', page: {any: ['1', '2']}}}}]"],
        &[
            ("GET a.example:80/repos/a/b", Ok("r0")),
            ("HEAD a.example:80/repos/a/b", Ok("r0")),
            ("GET a.example:80/repos", Err(Reason::PathNotAllowed)),
            ("GET a.example:80/REPOS/a", Err(Reason::PathNotAllowed)),
            ("POST a.example:80/repos/a/issues", Ok("r0")),
            ("POST a.example:80/repos/a/b/issues", Err(Reason::MethodNotAllowed)),
            ("DELETE a.example:80/any", Ok("r0")),
            ("GET a.example:80/search?q=xyz&page=2", Ok("r0")),
            ("GET a.example:80/search?q=xyz&page=3", Err(Reason::QueryNotAllowed)),
            ("GET a.example:80/search?q=xyz&page=2&page=3", Err(Reason::QueryNotAllowed)),
            ("GET a.example:80/search?q=xyz", Err(Reason::QueryNotAllowed)),
            ("GET a.example:80/search?q=%zz", Err(Reason::QueryMalformed)),
            // Spellings of the same path are the same path.
            ("GET a.example:80/x/../repos/%61", Ok("r0")),
            ("GET a.example:80//repos//a", Ok("r0")),
            ("GET a.example:80/repos/../secret", Err(Reason::PathNotAllowed)),
            ("GET a.example:80/repos/%2e%2e/secret", Err(Reason::PathNotAllowed)),
            ("GET a.example:80/repos/..;/secret", Err(Reason::PathMalformed)),
            ("GET a.example:80/repos/a%2fb", Err(Reason::EncodedSlash)),
            ("GET a.example:80/repos/%", Err(Reason::PathMalformed)),
        ],
    );
}

#[test]
fn a_deny_rule_beats_every_allow() {
    table(
        &[
            "host: a.example, port: 80, protocol: http, access: full, allow_encoded_slash: true, \
             deny_rules: [{method: '*', path: '/admin/**'}, {method: GET, path: /x, query: {force: '1'}}]",
            "host: '*.example.com', port: 80, protocol: http, access: full",
            "host: b.example.com, port: 80, protocol: http, access: read-only, deny_rules: [{method: GET, path: /no}]",
        ],
        &[
            ("GET a.example:80/admin/x", Err(Reason::DenyRule)),
            ("GET a.example:80/a/../admin/x", Err(Reason::DenyRule)),
            ("GET a.example:80/%61dmin/x", Err(Reason::DenyRule)),
            ("GET a.example:80/admin%2Fx", Err(Reason::DenyRule)),
            ("GET a.example:80/other%2Fx", Ok("r0")),
            ("GET a.example:80/x?force=0&force=1", Err(Reason::DenyRule)),
            ("HEAD a.example:80/x?force=1", Err(Reason::DenyRule)),
            ("GET a.example:80/x?force=0", Ok("r0")),
            // Also one of another endpoint for the same host.
            ("POST b.example.com:80/yes", Ok("r1")),
            ("GET b.example.com:80/no", Err(Reason::DenyRule)),
        ],
    );
}

#[test]
fn the_most_specific_path_selects_the_endpoint() {
    table(
        &[
            "host: a.example, port: 80, protocol: http, access: full",
            "host: a.example, port: 80, protocol: http, access: read-only, path: '/v1/**'",
            "host: a.example, port: 80, protocol: http, access: read-write, path: '/v1/upload/**'",
        ],
        &[
            ("DELETE a.example:80/v2/x", Ok("r0")),
            ("GET a.example:80/v1/x", Ok("r1")),
            ("DELETE a.example:80/v1/x", Err(Reason::MethodNotAllowed)),
            ("POST a.example:80/v1/upload/x", Ok("r2")),
            ("DELETE a.example:80/v1/upload/x", Err(Reason::MethodNotAllowed)),
        ],
    );
    table(
        &["host: a.example, port: 80, protocol: http, access: full, path: '/v1/**'"],
        &[("GET a.example:80/v2", Err(Reason::PathNotAllowed))],
    );
}

#[test]
fn an_endpoint_that_judges_silences_raw_ones() {
    let policy = for_curl(&[
        "host: '*.example.com', port: 80",
        "host: a.example.com, port: 80, protocol: http, access: read-only",
    ]);
    let protocol = |question| ask(&policy, CURL, question, |answer| answer.unwrap().protocol());
    assert_eq!(protocol("CONNECT a.example.com:80"), Protocol::Http);
    assert_eq!(protocol("CONNECT b.example.com:80"), Protocol::Raw);
    assert_eq!(answer(&policy, CURL, "GET a.example.com:80/"), Ok("r1".into()));
    assert_eq!(answer(&policy, CURL, "POST a.example.com:80/"), Err(Reason::MethodNotAllowed));
    // Unjudged requests are passed on as they came.
    ask(&policy, CURL, "POST b.example.com:80/x/../y", |answer| {
        let permit = answer.unwrap();
        assert_eq!((permit.path(), permit.rewritten_path()), (&b"/x/../y"[..], None));
    });
}

#[test]
fn full_access_gives_a_connect_a_raw_tunnel() {
    let full = "host: a.example, port: 443, protocol: http, access: full";
    let inside = |endpoints: &[&str]| {
        ask(&for_curl(endpoints), CURL, "CONNECT a.example:443", |answer| answer.unwrap().protocol())
    };
    assert_eq!(inside(&[full]), Protocol::Raw);
    assert_eq!(inside(&[full, "host: a.example, port: 443"]), Protocol::Raw);
    for more in [
        ", deny_rules: [{method: DELETE, path: /x}]",
        ", path: '/v1/**'",
        ", enforcement: audit, deny_rules: [{method: GET}]",
    ] {
        assert_eq!(inside(&[&format!("{full}{more}")]), Protocol::Http, "{more}");
    }
    assert_eq!(inside(&["host: a.example, port: 443, protocol: websocket, access: full"]), Protocol::Http);
    assert_eq!(inside(&[full, "host: a.example, port: 443, access: read-only"]), Protocol::Http);
    // A forward request is a request all the same: it is allowed, in one spelling.
    ask(&for_curl(&[full]), CURL, "DELETE a.example:443/a/../b", |answer| {
        assert_eq!(answer.unwrap().path(), b"/b");
    });
}

#[test]
fn access_or_rules_without_protocol_are_honoured() {
    let policy = for_curl(&[
        "host: a.example, port: 80, access: read-only",
        "host: b.example, port: 80, access: full",
    ]);
    assert_eq!(answer(&policy, CURL, "POST a.example:80/"), Err(Reason::MethodNotAllowed));
    ask(&policy, CURL, "CONNECT a.example:80", |answer| {
        assert_eq!(answer.unwrap().protocol(), Protocol::Http);
    });
    ask(&policy, CURL, "CONNECT b.example:80", |answer| {
        assert_eq!(answer.unwrap().protocol(), Protocol::Raw);
    });
}

#[test]
fn a_websocket_endpoint_lets_only_upgrades_in() {
    table(
        &[
            "host: a.example, port: 80, protocol: websocket, rules: [{allow: {method: GET, path: '/s/*'}}]",
            "host: b.example, port: 80, protocol: websocket, access: full",
        ],
        &[
            ("GET a.example:80/s/1", Ok("r0")),
            ("GET a.example:80/t", Err(Reason::PathNotAllowed)),
            ("GET b.example:80/t", Ok("r1")),
            ("POST b.example:80/t", Err(Reason::MethodNotAllowed)),
        ],
    );
}

#[test]
fn the_path_judged_is_the_path_sent() {
    let policy =
        for_curl(&["host: a.example, port: 80, protocol: http, access: full, allow_encoded_slash: true"]);
    for (path, sent) in [
        ("/a/./b//c/%7euser", Some("/a/b/c/~user")),
        ("/a%2fb", Some("/a%2Fb")),
        ("/plain", None),
        ("/a%2Fb", None),
    ] {
        ask(&policy, CURL, &format!("GET a.example:80{path}"), |answer| {
            let permit = answer.unwrap();
            assert_eq!(permit.rewritten_path(), sent.map(str::as_bytes), "{path}");
            assert_eq!(permit.path(), sent.unwrap_or(path).as_bytes(), "{path}");
        });
    }
}

#[test]
fn audit_lets_pass_and_tells_what_it_would_have_been() {
    let policy = policy(
        "version: 1\nnetwork_policies:\n  strict:\n    binaries: [{path: /usr/bin/wget}]\n    endpoints:\n      \
         - {host: strict.example, port: 80}\n  lax:\n    binaries: [{path: /usr/bin/curl}]\n    endpoints:\n      \
         - {host: raw.example, port: 443, enforcement: audit}\n      \
         - {host: api.example, port: 80, protocol: http, access: read-only, enforcement: audit, deny_rules: [{method: GET, path: /no}]}\n",
    );
    let audited = |exe, question: &str| {
        ask(&policy, exe, question, |answer| match answer {
            Ok(permit) => Ok(permit.audited().map(|deny| deny.reason)),
            Err(deny) => Err(deny.reason),
        })
    };
    for (exe, question, expected) in [
        (CURL, "CONNECT raw.example:443", Ok(None)),
        (PYTHON, "CONNECT raw.example:443", Ok(Some(Reason::BinaryNotAllowed))),
        (None, "CONNECT raw.example:443", Ok(Some(Reason::IdentityUnknown))),
        (PYTHON, "CONNECT raw.example:80", Err(Reason::PortNotAllowed)),
        (PYTHON, "CONNECT strict.example:80", Err(Reason::BinaryNotAllowed)),
        (CURL, "GET api.example:80/", Ok(None)),
        (CURL, "POST api.example:80/", Ok(Some(Reason::MethodNotAllowed))),
        (CURL, "GET api.example:80/no", Ok(Some(Reason::DenyRule))),
        (CURL, "GET api.example:80/a%2Fb", Ok(Some(Reason::EncodedSlash))),
        (CURL, "GET api.example:80/%", Ok(Some(Reason::PathMalformed))),
        // Both the program and the request would be refused: the connection comes first.
        (PYTHON, "POST api.example:80/", Ok(Some(Reason::BinaryNotAllowed))),
    ] {
        assert_eq!(audited(exe, question), expected, "{exe:?} {question}");
    }
}

#[test]
fn an_enforced_endpoint_for_the_same_program_is_not_loosened_by_an_audited_one_for_others() {
    let policy = policy(
        "version: 1\nnetwork_policies:\n  mine:\n    binaries: [{path: /usr/bin/curl}]\n    endpoints:\n      \
         - {host: a.example, port: 80, protocol: http, access: read-only}\n  others:\n    binaries: [{path: /usr/bin/wget}]\n    \
         endpoints:\n      - {host: a.example, port: 80, enforcement: audit}\n",
    );
    assert_eq!(answer(&policy, CURL, "POST a.example:80/"), Err(Reason::MethodNotAllowed));
    assert_eq!(answer(&policy, PYTHON, "POST a.example:80/"), Ok("others".into()));
}

#[test]
fn the_addresses_a_name_may_resolve_to_come_with_the_permit() {
    let policy = for_curl(&[
        "host: exact.example, port: 1",
        "host: '*.wild.example.com', port: 1",
        "host: listed.example, port: 1, allowed_ips: [10.1.0.0/16]",
        "port: 2, allowed_ips: [10.2.0.0/16]",
        "port: 2, allowed_ips: [10.3.0.0/16]",
        "host: both.example, port: 2",
    ]);
    let private = |ip: &str| (ip.parse::<IpAddr>().unwrap(), Reach::Private);
    let public = |ip: &str| (ip.parse::<IpAddr>().unwrap(), Reach::Public);
    for (question, (ip, reach), expected) in [
        ("CONNECT exact.example:1", private("10.9.0.1"), true),
        ("CONNECT exact.example:1", public("192.0.2.1"), true),
        ("CONNECT a.wild.example.com:1", private("10.9.0.1"), false),
        ("CONNECT a.wild.example.com:1", public("192.0.2.1"), true),
        ("CONNECT listed.example:1", private("10.1.0.1"), true),
        ("CONNECT listed.example:1", private("::ffff:10.1.0.1"), true),
        ("CONNECT listed.example:1", private("10.2.0.1"), false),
        ("CONNECT listed.example:1", public("192.0.2.1"), false),
        ("CONNECT any.example:2", private("10.2.0.1"), true),
        ("CONNECT any.example:2", private("10.3.0.1"), true),
        ("CONNECT any.example:2", private("10.4.0.1"), false),
        ("CONNECT any.example:2", public("192.0.2.1"), false),
        ("CONNECT both.example:2", private("10.4.0.1"), true),
    ] {
        ask(&policy, CURL, question, |answer| {
            let permit = answer.unwrap();
            assert_eq!(permit.admits(ip, reach), expected, "{question} {ip}");
            assert_eq!(permit.address_rule().admits(ip, reach), expected, "{question} {ip}");
        });
    }
}

#[test]
fn a_request_needs_the_address_rule_of_an_endpoint_that_allows_it() {
    let policy = for_curl(&[
        "host: api.example.com, port: 80, protocol: http, access: read-only",
        "host: '*.example.com', port: 80, protocol: http, access: full",
    ]);
    let admits = |question| {
        ask(&policy, CURL, question, |answer| {
            answer.unwrap().admits("10.0.0.1".parse().unwrap(), Reach::Private)
        })
    };
    assert!(admits("GET api.example.com:80/"));
    assert!(
        !admits("POST api.example.com:80/"),
        "only the wildcard allows this, and it speaks of public addresses"
    );
}

#[test]
fn the_name_in_a_client_hello_is_checked_unless_an_endpoint_says_otherwise() {
    let policy = for_curl(&[
        "host: a.example, port: 443",
        "host: b.example, port: 443, sni: ignore",
        "host: 192.0.2.1, port: 443",
    ]);
    let sni = |question| ask(&policy, CURL, question, |answer| answer.unwrap().sni());
    assert_eq!(sni("CONNECT a.example:443"), Sni::Verify);
    assert_eq!(sni("CONNECT b.example:443"), Sni::Ignore);
    assert_eq!(sni("CONNECT 192.0.2.1:443"), Sni::Ignore);
}

#[test]
fn a_denial_explains_itself() {
    let policy = policy(
        "version: 1\nnetwork_policies:\n  github:\n    binaries: [{path: /usr/bin/curl}]\n    endpoints:\n      \
         - {host: api.github.com, port: 443}\n      - {host: '*.github.io', port: 443}\n      \
         - {host: web.example, port: 80, protocol: http, rules: [{allow: {method: GET, path: '/r/**'}}], deny_rules: [{method: GET, path: '/r/no'}]}\n",
    );
    for (exe, question, text, advice) in [
        (
            CURL,
            "CONNECT api.github.com:8443",
            "api.github.com:8443 denied (port_not_allowed): host matched rule github, port 8443 did not (443)",
            "ask the operator to allow api.github.com:8443 for /usr/bin/curl",
        ),
        (
            PYTHON,
            "CONNECT api.github.com:443",
            "api.github.com:443 denied (binary_not_allowed): rule github allows /usr/bin/curl, not /usr/bin/python3.11",
            "policy denied this destination; retrying or bypassing the proxy will not help; \
             ask the operator to allow api.github.com:443 for /usr/bin/python3.11",
        ),
        (
            None,
            "CONNECT api.github.com:443",
            "api.github.com:443 denied (identity_unknown): rule github allows /usr/bin/curl; which program asked is not known",
            "the program that asked could not be told",
        ),
        (
            CURL,
            "CONNECT evil.example:443",
            "evil.example:443 denied (host_not_allowed)",
            "ask the operator to allow evil.example:443 for /usr/bin/curl",
        ),
        (
            CURL,
            "CONNECT a.b.github.io:443",
            "a.b.github.io:443 denied (host_not_allowed): rule github allows *.github.io, which does not include a.b.github.io",
            "ask the operator to allow a.b.github.io:443",
        ),
        (
            CURL,
            "POST web.example:80/r/x",
            "POST /r/x on web.example:80 denied (method_not_allowed): rule github allows GET /r/**",
            "ask the operator to allow POST /r/x on web.example:80 for /usr/bin/curl",
        ),
        (
            CURL,
            "GET web.example:80/r/no",
            "GET /r/no on web.example:80 denied (deny_rule): rule github forbids it at p.yaml:8:116",
            "policy forbids this request",
        ),
    ] {
        let deny = ask(&policy, exe, question, |answer| answer.unwrap_err());
        assert_eq!(deny.to_string(), text);
        let hint = hint(&deny, None);
        assert!(hint.contains(advice), "{question}: {hint}");
    }
    let deny = ask(&policy, CURL, "CONNECT x.example:1", |answer| answer.unwrap_err());
    assert!(hint(&deny, Some("write to #egress")).ends_with("; write to #egress"));
    let apex = ask(&policy, CURL, "CONNECT github.io:443", |answer| answer.unwrap_err());
    assert_eq!(apex.misses.len(), 1);
    assert_eq!(apex.misses[0].endpoint.place.line, 7);
}
