//! A suggested policy loads, allows all that was seen, and nothing that was not.

#![allow(clippy::unwrap_used, reason = "a test fails where it must")]

mod policy_generated;
#[allow(dead_code, reason = "the product's own answer is all that is wanted here")]
mod policy_naive;

use std::path::Path;

use policy_generated::question;
use policy_naive::{Answer, Question, compiled};
use proptest::prelude::*;
use sluice::destination::{Destination, Host};
use sluice::diagnostic::Diagnostics;
use sluice::policy::path::canonical;
use sluice::policy::{
    Ask, Asker, BinaryFacts, Denial, Kind, Observed, Policy, PolicyFile, Program, Reason, Request,
    Suggestion, Way, decide, parse, suggest,
};

#[derive(Clone, Debug, PartialEq)]
struct Seen {
    destination: Destination,
    exe: Option<&'static str>,
    request: Option<(&'static str, &'static str)>,
}

const HOSTS: &[&str] = &["a.example.com", "b.example.com", "10.1.2.3", "[2001:db8::1]"];
const EXES: &[&str] = &["/usr/bin/curl", "/usr/bin/wget", "/opt/a*b/x", "/opt/aXb/x", "/opt/[x]{y}?\\/\"é"];
const PATHS: &[&str] = &[
    "/",
    "/a",
    "/a*",
    "/ab",
    "/a/b",
    "/a%3Fb",
    "/a%2Fb",
    "/a%5Bb%5D",
    "/%7Bx%7D",
    "/%25",
    "/%2525",
    "/a%20b",
    "/%C3%A9",
    "/a\"b",
    "/a#",
    "/x%23",
    "/.x/...",
];

fn seen() -> impl Strategy<Value = Seen> {
    let request =
        (prop::sample::select(&["GET", "HEAD", "POST", "DELETE", "BREW"][..]), prop::sample::select(PATHS));
    (
        prop::sample::select(HOSTS),
        prop::sample::select(&[80_u16, 443][..]),
        prop::option::weighted(0.9, prop::sample::select(EXES)),
        prop::option::of(request),
    )
        .prop_map(|(host, port, exe, request)| Seen {
            destination: Destination { host: Host::parse(host.as_bytes()).unwrap(), port },
            exe,
            request,
        })
}

fn allows(policy: &Policy, seen: &Seen) -> bool {
    let exe = seen.exe.map(|exe| Program { path: Path::new(exe), sha256: None });
    let set = exe.map(|exe| policy.classify(&BinaryFacts { exe, ancestors: &[] }));
    let kind = match seen.request {
        None => Kind::Connect,
        Some((method, path)) => {
            Kind::Request(Request { method: method.as_bytes(), path: path.as_bytes(), query: None })
        }
    };
    let asker = set.as_ref().map_or(Asker::Unknown, Asker::Known);
    decide(policy, &Ask { destination: &seen.destination, asker, kind }).is_ok()
}

/// Whether having seen `one` says that `other` may be: the same, or what cannot be told apart from it.
fn covers(one: &Seen, other: &Seen) -> bool {
    let same_place = one.destination == other.destination && one.exe == other.exe && one.exe.is_some();
    same_place
        && match (one.request, other.request) {
            // A raw tunnel may carry any request; an inspected one is opened before its requests are judged.
            (None, _) | (_, None) => true,
            (Some((seen, seen_path)), Some((method, path))) => {
                seen_path == path && (seen == method || (seen, method) == ("GET", "HEAD"))
            }
        }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn a_suggestion_is_exactly_what_was_seen(
        seen in prop::collection::vec(seen(), 0..12),
        others in prop::collection::vec(seen(), 20),
    ) {
        let observed = seen.iter().map(|seen| Observed {
            destination: &seen.destination,
            exe: seen.exe.map(Path::new),
            request: seen.request,
        });
        let suggestion = Suggestion::new(observed);
        let text = suggestion.policy();
        let mut out = Diagnostics::default();
        let file = parse(&text, &"s.yaml".into(), &mut out);
        prop_assert!(!out.has_errors(), "{out}{text}");
        let policy = Policy::compile(&file.unwrap());
        let left_out: Vec<_> = suggestion.left_out().collect();
        for one in &seen {
            let told = left_out.iter().any(|line| line.starts_with(&one.destination.to_string()));
            // `/a#` is not a path on the wire; it is left out, and said so.
            let possible = one.exe.is_some() && one.request.is_none_or(|(_, path)| path != "/a#");
            prop_assert!(allows(&policy, one) || (!possible && told), "{one:?} should be allowed by\n{text}");
        }
        for other in &others {
            let covered = seen.iter().any(|one| covers(one, other));
            prop_assert!(covered || !allows(&policy, other), "{other:?} should not be allowed by\n{text}");
        }
    }
}

fn load(text: &str) -> PolicyFile {
    let mut out = Diagnostics::default();
    let file = parse(text, &"p.yaml".into(), &mut out);
    assert!(!out.has_errors(), "{out}{text}");
    file.unwrap()
}

fn denial<'q>(question: &'q Question, reason: &'q str) -> Denial<'q> {
    let request = question.request.as_ref().map(|(method, path, _)| (&**method, &**path));
    let asked =
        Observed { destination: &question.destination, exe: question.exe.as_deref().map(Path::new), request };
    Denial { asked, reason, way: Way::Proxy }
}

/// The policy with what was suggested pasted under its `network_policies`.
fn together(current: &PolicyFile, suggestion: &Suggestion) -> PolicyFile {
    let mut file = current.clone();
    file.rules.extend(load(&suggestion.policy()).rules);
    file
}

/// Whether allowing `denied` says that `other` is allowed: the same, or what a policy cannot tell from it.
fn speaks_for(denied: &Question, other: &Question) -> bool {
    let same_place =
        denied.destination == other.destination && denied.exe == other.exe && denied.exe.is_some();
    same_place
        && match (&denied.request, &other.request) {
            (None, _) | (_, None) => true,
            (Some((method, path, _)), Some((other_method, other_path, _))) => {
                let judged = |path: &str| canonical(path.as_bytes()).map(|path| path.judged.into_owned());
                let methods = (&**method, &**other_method);
                judged(path) == judged(other_path) && (method == other_method || methods == ("GET", "HEAD"))
            }
        }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn what_a_policy_denied_and_nothing_else_is_allowed_with_the_suggestion(
        text in policy_generated::policy(),
        questions in prop::collection::vec(question(), 12),
        others in prop::collection::vec(question(), 40),
    ) {
        let file = load(&text);
        // A suggestion is for the program alone.
        let alone = |mut question: Question| {
            question.ancestors.clear();
            question
        };
        let questions: Vec<_> = questions.into_iter().map(alone).collect();
        let others: Vec<_> = others.into_iter().map(alone).collect();
        let denied: Vec<(&Question, Reason)> = questions
            .iter()
            .filter_map(|question| match compiled(&file, question) {
                Answer::Denied(reason) => Some((question, reason)),
                Answer::Allowed { .. } => None,
            })
            .collect();
        let denials: Vec<_> = denied.iter().map(|(question, reason)| denial(question, reason.as_str())).collect();
        let suggestion = suggest(&denials, &file);
        let after = together(&file, &suggestion);
        let left_out: Vec<_> = suggestion.left_out().collect();
        for (question, _) in &denied {
            let told = left_out.iter().any(|line| line.starts_with(&question.destination.to_string()));
            let allowed = matches!(compiled(&after, question), Answer::Allowed { .. });
            prop_assert!(allowed || told, "{question:?} should be allowed by\n{text}{suggestion}");
        }
        for other in questions.iter().chain(&others) {
            let before = matches!(compiled(&file, other), Answer::Allowed { .. });
            let allowed = matches!(compiled(&after, other), Answer::Allowed { .. });
            prop_assert!(allowed || !before, "{other:?} was allowed before\n{text}{suggestion}");
            let asked_for = denied.iter().any(|(question, _)| speaks_for(question, other));
            prop_assert!(before || !allowed || asked_for, "{other:?} was not asked for\n{text}{suggestion}");
        }
    }
}

#[test]
fn what_has_been_allowed_meanwhile_or_was_never_proven_is_not_suggested() {
    let file = load(
        "version: 1\nnetwork_policies:\n  seen_curl:\n    binaries: [{path: /usr/bin/curl}]\n    endpoints:\n      \
         - {host: b.example, port: 443}\n      - {host: c.example, port: 443, allowed_ips: [10.0.0.0/8]}\n",
    );
    let exe = Some(Path::new("/usr/bin/curl"));
    for (host, reason) in [
        ("b.example", "host_not_allowed"),
        ("b.example", "too_many_requests"),
        ("d.example", "identity_ambiguous"),
        ("c.example", "address_public"),
    ] {
        let destination = Destination { host: Host::parse(host.as_bytes()).unwrap(), port: 443 };
        let asked = Observed { destination: &destination, exe, request: None };
        let suggestion = suggest(&[Denial { asked, reason, way: Way::Proxy }], &file);
        assert!(suggestion.is_empty(), "{host} {reason}: {}", suggestion.policy());
    }
}

#[test]
fn what_no_rule_can_help_with_is_said_and_not_suggested() {
    let file = load(
        "version: 1\nnetwork_policies:\n  seen_curl:\n    binaries: [{path: /usr/bin/curl}]\n    endpoints:\n      \
         - {host: a.example, port: 80, protocol: http, access: full, deny_rules: [{method: DELETE, path: /x}]}\n",
    );
    let to = |host: &str, port| Destination { host: Host::parse(host.as_bytes()).unwrap(), port };
    let (a, b, direct) = (to("a.example", 80), to("b.example", 443), to("192.0.2.7", 443));
    let curl = Some(Path::new("/usr/bin/curl"));
    let by = |destination, exe, request, reason, way| Denial {
        asked: Observed { destination, exe, request },
        reason,
        way,
    };
    let suggestion = suggest(
        &[
            by(&a, curl, Some(("DELETE", "/x")), "deny_rule", Way::Proxy),
            by(&b, curl, None, "host_not_allowed", Way::Proxy),
            by(&b, None, None, "identity_unknown", Way::Proxy),
            by(&a, curl, None, "direct_tcp", Way::DirectTcp),
            by(&direct, curl, None, "direct_tcp", Way::DirectTcp),
            by(&direct, curl, None, "direct_udp", Way::Direct),
        ],
        &file,
    );
    assert_eq!(
        suggestion.policy(),
        r#"version: 1
network_policies:
  seen_curl_2:
    endpoints:
      - {host: "192.0.2.7", port: 443}
      - {host: "b.example", port: 443}
    binaries:
      - path: "/usr/bin/curl"
# left out: 192.0.2.7:443: only TCP can go through the proxy
# left out: a.example:80: a deny rule forbids it
# left out: a.example:80: allowed already: the program must go through the proxy, and tried to go past it
# left out: b.example:443: which program asked is not known
"#
    );
}

#[test]
fn a_judged_tunnel_is_learned_by_its_requests() {
    let file = load(
        "version: 1\nnetwork_policies:\n  r:\n    endpoints:\n      - {host: a.example, port: 80, access: read-only}\n      \
         - {host: b.example, port: 80, access: read-only}\n      - {host: c.example, port: 443}\n",
    );
    let to = |host: &str, port| Destination { host: Host::parse(host.as_bytes()).unwrap(), port };
    let (a, b, c) = (to("a.example", 80), to("b.example", 80), to("c.example", 443));
    let see = |destination, request| Observed { destination, exe: Some(Path::new("/usr/bin/curl")), request };
    let learned = sluice::policy::learn(
        &[
            see(&a, None),
            see(&a, Some(("GET", "/x%2Fy"))),
            see(&a, Some(("HEAD", "/x%2Fy"))),
            see(&b, None),
            see(&c, None),
        ],
        &file,
    );
    assert_eq!(
        learned.policy(),
        r#"version: 1
network_policies:
  seen_curl:
    endpoints:
      - {host: "a.example", port: 80, protocol: http, rules: [{allow: {method: "GET", path: "/x%2Fy"}}], allow_encoded_slash: true}
      - {host: "c.example", port: 443}
    binaries:
      - path: "/usr/bin/curl"
# left out: b.example:80: nothing was asked in the tunnel, whose requests are judged
"#
    );
}
