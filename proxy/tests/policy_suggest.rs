//! A suggested policy loads, allows all that was seen, and nothing that was not.

#![allow(clippy::unwrap_used, reason = "a test fails where it must")]

use std::path::Path;

use proptest::prelude::*;
use sluice::destination::{Destination, Host};
use sluice::diagnostic::Diagnostics;
use sluice::policy::{
    Ask, Asker, BinaryFacts, Kind, Observed, Policy, Program, Request, Suggestion, decide, parse,
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
