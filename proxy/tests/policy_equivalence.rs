//! The compiled policy decides as a naive reading of the same file does, on generated policies and questions.
//!
//! The reader below walks the file's rules from top to bottom, with its own globs, and knows no table, no trie, no
//! bit set. It is the specification in `policy/mod.rs`, written down a second time.

use std::net::IpAddr;
use std::path::Path;

use proptest::prelude::*;
use sluice::destination::{Destination, Host};
use sluice::diagnostic::Diagnostics;
use sluice::policy::host::HostPattern;
use sluice::policy::model::{Allow, Binaries, Endpoint, RequestPolicy, RequestRule};
use sluice::policy::{
    Ask, Asker, BinaryFacts, Enforcement, Kind, Policy, PolicyFile, Program, Protocol, Reach, Reason,
    Request, decide, parse,
};

/// What both must agree on.
#[derive(Debug, PartialEq)]
enum Answer {
    Allowed {
        rule: String,
        judged: bool,
        audited: Option<Reason>,
        private: bool,
        listed: bool,
        path: Vec<u8>,
    },
    Denied(Reason),
}

struct Question {
    destination: Destination,
    exe: Option<&'static str>,
    request: Option<(&'static str, &'static str, Option<&'static str>)>,
}

const PRIVATE: &str = "10.7.0.1";
const LISTED: &str = "10.1.0.1";

fn compiled(file: &PolicyFile, question: &Question) -> Answer {
    let policy = Policy::compile(file);
    let set = question.exe.map(|exe| policy.classify(&facts(exe)));
    let kind = match question.request {
        None => Kind::Connect,
        Some((method, path, query)) => Kind::Request(Request {
            method: method.as_bytes(),
            path: path.as_bytes(),
            query: query.map(str::as_bytes),
        }),
    };
    let asker = set.as_ref().map_or(Asker::Unknown, Asker::Known);
    let ask = Ask { destination: &question.destination, asker, kind };
    match decide(&policy, &ask) {
        Err(deny) => Answer::Denied(deny.reason),
        Ok(permit) => {
            let admits = |ip: &str| permit.admits(ip.parse().unwrap(), Reach::Private);
            Answer::Allowed {
                rule: permit.rule().to_owned(),
                judged: permit.protocol() == Protocol::Http,
                audited: permit.audited().map(|deny| deny.reason),
                private: admits(PRIVATE),
                listed: admits(LISTED),
                path: permit.path().to_vec(),
            }
        }
    }
}

fn facts(exe: &'static str) -> BinaryFacts<'static> {
    BinaryFacts { exe: Program { path: Path::new(exe), sha256: None }, ancestors: &[] }
}

fn naive(file: &PolicyFile, question: &Question) -> Answer {
    let all: Vec<&Endpoint> = file.rules.iter().flat_map(|rule| &rule.endpoints).map(|e| &**e).collect();
    let host = &question.destination.host;
    let by_host: Vec<_> = all.iter().copied().filter(|e| e.host.matches(host)).collect();
    let by_port: Vec<_> =
        by_host.iter().copied().filter(|e| e.ports.contains(question.destination.port)).collect();
    let by_address: Vec<_> = by_port.iter().copied().filter(|e| address_fits(e, host)).collect();
    let mut matched: Vec<_> = by_address.iter().copied().filter(|e| binary_fits(e, question.exe)).collect();
    let mut audited = None;
    if matched.is_empty() {
        let reason = if !by_address.is_empty() {
            if question.exe.is_some() { Reason::BinaryNotAllowed } else { Reason::IdentityUnknown }
        } else if !by_port.is_empty() {
            Reason::AddressNotAllowed
        } else if by_host.iter().any(|e| e.host != HostPattern::Any) {
            Reason::PortNotAllowed
        } else {
            Reason::HostNotAllowed
        };
        matched = by_address.into_iter().filter(|e| e.enforcement == Enforcement::Audit).collect();
        if matched.is_empty() {
            return Answer::Denied(reason);
        }
        audited = Some(reason);
    }
    let judging: Vec<_> = matched.iter().copied().filter(|e| e.requests.is_some()).collect();
    let judged = !judging.is_empty();
    let allowed = |granted: &[&Endpoint], audited, path: &str| Answer::Allowed {
        rule: granted[0].rule.name.to_string(),
        judged,
        audited,
        private: granted.iter().any(|e| admits(e, PRIVATE)),
        listed: granted.iter().any(|e| admits(e, LISTED)),
        path: path.as_bytes().to_vec(),
    };
    let Some((method, path, query)) = question.request else { return allowed(&matched, audited, "") };
    if !judged {
        return allowed(&matched, audited, path);
    }
    let unless_all_audit = |endpoints: &[&Endpoint], reason, path: &str| {
        if endpoints.iter().all(|e| e.enforcement == Enforcement::Audit) {
            allowed(endpoints, audited.or(Some(reason)), path)
        } else {
            Answer::Denied(reason)
        }
    };
    // The questions' paths, with what each means; see `PATHS`.
    let meaning = PATHS.iter().find(|(spelt, _)| *spelt == path).unwrap().1;
    let Some(path) = meaning else { return unless_all_audit(&judging, Reason::PathMalformed, path) };
    let selects =
        |r: &RequestPolicy| r.path.as_ref().is_none_or(|glob| fits(glob.text().as_bytes(), path.as_bytes()));
    let selected: Vec<_> =
        judging.iter().copied().filter(|e| selects(e.requests.as_ref().unwrap())).collect();
    if selected.is_empty() {
        return unless_all_audit(&judging, Reason::PathNotAllowed, path);
    }
    let query = query.unwrap_or("");
    let mut forbidden = None;
    for endpoint in &selected {
        let denies = |rule: &RequestRule| {
            rule.method.matches(method.as_bytes()) && path_fits(rule, path) && query_denies(rule, query)
        };
        if endpoint.requests.as_ref().unwrap().deny.iter().any(denies) {
            if endpoint.enforcement == Enforcement::Enforce {
                return Answer::Denied(Reason::DenyRule);
            }
            forbidden = Some(Reason::DenyRule);
        }
    }
    let rank = |e: &Endpoint| {
        e.requests
            .as_ref()
            .unwrap()
            .path
            .as_ref()
            .map(|glob| glob.text().chars().filter(|c| *c != '*').count())
    };
    let most = selected.iter().map(|e| rank(e)).max().unwrap();
    let selected: Vec<_> = selected.into_iter().filter(|e| rank(e) == most).collect();
    let results: Vec<_> = selected
        .iter()
        .map(|e| (*e, request_allowed(e.requests.as_ref().unwrap(), method, path, query)))
        .collect();
    let granted: Vec<_> = results.iter().filter(|(_, miss)| miss.is_none()).map(|(e, _)| *e).collect();
    if !granted.is_empty() {
        return allowed(&granted, audited.or(forbidden), path);
    }
    let nearest = results.iter().filter_map(|(_, miss)| *miss).max_by_key(|miss| match miss {
        Reason::PathNotAllowed => 0,
        Reason::MethodNotAllowed => 1,
        _ => 2,
    });
    let reason = forbidden.or(nearest).unwrap();
    let reporting: Vec<_> = selected.into_iter().filter(|e| e.enforcement == Enforcement::Audit).collect();
    if reporting.is_empty() {
        return Answer::Denied(reason);
    }
    allowed(&reporting, audited.or(Some(reason)), path)
}

fn request_allowed(requests: &RequestPolicy, method: &str, path: &str, query: &str) -> Option<Reason> {
    let rules = match &requests.allow {
        Allow::Preset(access) => {
            let allowed = match access.text() {
                "read-only" => ["GET", "HEAD", "OPTIONS"].contains(&method),
                "read-write" => ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH"].contains(&method),
                _ => true,
            };
            return (!allowed).then_some(Reason::MethodNotAllowed);
        }
        Allow::Rules(rules) => rules,
    };
    let on_path: Vec<_> = rules.iter().filter(|rule| path_fits(rule, path)).collect();
    let on_method: Vec<_> = on_path.iter().filter(|rule| rule.method.matches(method.as_bytes())).collect();
    if on_method.iter().any(|rule| query_allows(rule, query)) {
        None
    } else if !on_method.is_empty() {
        Some(Reason::QueryNotAllowed)
    } else if !on_path.is_empty() {
        Some(Reason::MethodNotAllowed)
    } else {
        Some(Reason::PathNotAllowed)
    }
}

fn path_fits(rule: &RequestRule, path: &str) -> bool {
    rule.path.as_ref().is_none_or(|glob| fits(glob.text().as_bytes(), path.as_bytes()))
}

fn pairs(query: &str) -> Vec<(&str, &str)> {
    query.split('&').map(|part| part.split_once('=').unwrap_or((part, ""))).collect()
}

fn query_allows(rule: &RequestRule, query: &str) -> bool {
    rule.query.parameters.iter().all(|(name, globs)| {
        let values: Vec<_> = pairs(query).into_iter().filter(|(key, _)| **key == **name).collect();
        !values.is_empty()
            && values
                .iter()
                .all(|(_, value)| globs.iter().any(|g| fits(g.text().as_bytes(), value.as_bytes())))
    })
}

fn query_denies(rule: &RequestRule, query: &str) -> bool {
    rule.query.parameters.iter().all(|(name, globs)| {
        pairs(query).iter().any(|(key, value)| {
            **key == **name && globs.iter().any(|g| fits(g.text().as_bytes(), value.as_bytes()))
        })
    })
}

/// `*` and `**` by trying everything.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    match pattern {
        [] => text.is_empty(),
        [b'*', b'*', rest @ ..] => (0..=text.len()).any(|n| fits(rest, &text[n..])),
        [b'*', rest @ ..] => {
            let most = text.iter().position(|&b| b == b'/').unwrap_or(text.len());
            (0..=most).any(|n| fits(rest, &text[n..]))
        }
        [octet, rest @ ..] => text.first() == Some(octet) && fits(rest, &text[1..]),
    }
}

fn address_fits(endpoint: &Endpoint, host: &Host) -> bool {
    match host {
        Host::Ip(ip) => {
            endpoint.allowed_ips.is_empty() || endpoint.allowed_ips.iter().any(|net| net.contains(ip))
        }
        Host::Name(_) => true,
    }
}

fn binary_fits(endpoint: &Endpoint, exe: Option<&str>) -> bool {
    match (&endpoint.rule.binaries, exe) {
        (Binaries::Any, _) => true,
        (Binaries::Listed(_), None) => false,
        (Binaries::Listed(list), Some(exe)) => {
            list.iter().any(|pattern| fits(pattern.path.text().as_bytes(), exe.as_bytes()))
        }
    }
}

fn admits(endpoint: &Endpoint, ip: &str) -> bool {
    let ip: IpAddr = ip.parse().unwrap();
    match &endpoint.host {
        _ if !endpoint.allowed_ips.is_empty() => endpoint.allowed_ips.iter().any(|net| net.contains(&ip)),
        HostPattern::Exact(_) => true,
        _ => false,
    }
}

// Small alphabets, so that things meet.
const HOSTS: &[&str] = &[
    "a.example.com",
    "b.example.com",
    "x.a.example.com",
    "y.x.a.example.com",
    "example.com",
    "x-a.example.com",
    "10.1.0.1",
    "10.9.0.1",
    "other.org",
];
const HOST_PATTERNS: &[&str] = &[
    "a.example.com",
    "b.example.com",
    "x.a.example.com",
    "10.1.0.1",
    "'*.example.com'",
    "'**.example.com'",
    "'**.a.example.com'",
    "'*-a.example.com'",
    "'x.*.example.com'",
    "'*.*.example.com'",
    "'y.*.*.example.com'",
    "'**.*.example.com'",
];
const EXES: &[&str] = &["/usr/bin/curl", "/usr/bin/wget", "/opt/a/b/node", "/bin/sh"];
const BINARIES: &[&str] = &["/usr/bin/curl", "/usr/bin/*", "/opt/**", "/**", "/bin/sh", "/opt/*/node"];
/// Spellings and their meaning; none where there is no single one.
const PATHS: &[(&str, Option<&str>)] = &[
    ("/", Some("/")),
    ("/a", Some("/a")),
    ("/a/b", Some("/a/b")),
    ("/a/b/c", Some("/a/b/c")),
    ("/b/", Some("/b/")),
    ("/x/../a", Some("/a")),
    ("//a//b", Some("/a/b")),
    ("/%61", Some("/a")),
    ("/a/%2e%2e/b/", Some("/b/")),
    ("/%", None),
    ("/a/..;/b", None),
];
const PATH_GLOBS: &[&str] = &["/a", "/a/**", "/*", "/**", "'**/b'", "/a/*/c", "/b/", "/**/b*"];
const METHODS: &[&str] = &["GET", "HEAD", "POST", "DELETE", "get"];
const QUERIES: &[Option<&str>] = &[None, Some("q=1"), Some("q=2&q=1"), Some("r=1&q=12"), Some("q")];

fn request_rule() -> impl Strategy<Value = String> {
    let method = prop::sample::select(&["GET", "POST", "'*'", "DELETE"][..]);
    let path = prop::option::of(prop::sample::select(PATH_GLOBS));
    let query =
        prop::option::weighted(0.3, prop::sample::select(&["q: '1'", "q: {any: ['1*', '2']}", "r: '*'"][..]));
    (method, path, query).prop_map(|(method, path, query)| {
        let path = path.map_or(String::new(), |path| format!(", path: {path}"));
        let query = query.map_or(String::new(), |query| format!(", query: {{{query}}}"));
        format!("{{method: {method}{path}{query}}}")
    })
}

fn requests() -> impl Strategy<Value = String> {
    let base = prop_oneof![
        prop::sample::select(&["read-only", "read-write", "full"][..]).prop_map(|a| format!("access: {a}")),
        prop::collection::vec(request_rule(), 1..4).prop_map(|rules| {
            let rules: Vec<_> = rules.iter().map(|rule| format!("{{allow: {rule}}}")).collect();
            format!("rules: [{}]", rules.join(", "))
        }),
    ];
    let deny = prop::option::weighted(0.3, prop::collection::vec(request_rule(), 1..3));
    let path = prop::option::weighted(0.3, prop::sample::select(PATH_GLOBS));
    (base, deny, path).prop_map(|(base, deny, path)| {
        let deny = deny.map_or(String::new(), |rules| format!(", deny_rules: [{}]", rules.join(", ")));
        let path = path.map_or(String::new(), |path| format!(", path: {path}"));
        format!(", protocol: http, {base}{deny}{path}")
    })
}

fn endpoint() -> impl Strategy<Value = String> {
    let host = prop::option::weighted(0.9, prop::sample::select(HOST_PATTERNS));
    let ips = prop::option::weighted(0.2, prop::sample::select(&["10.1.0.0/16", "10.0.0.0/8"][..]));
    let ports = prop::sample::select(&["port: 80", "port: 443", "ports: [80, 443]"][..]);
    let requests = prop::option::of(requests());
    (host, ips, ports, requests, prop::bool::weighted(0.25)).prop_map(
        |(host, ips, ports, requests, audit)| {
            let host = host.map_or(String::new(), |host| format!("host: {host}, "));
            let ips = match (&*host, ips) {
                ("", None) => ", allowed_ips: [10.1.0.0/16]".into(),
                (_, ips) => ips.map_or(String::new(), |ips| format!(", allowed_ips: [{ips}]")),
            };
            let audit = if audit { ", enforcement: audit" } else { "" };
            format!("{{{host}{ports}{ips}{}{audit}}}", requests.unwrap_or_default())
        },
    )
}

fn policy() -> impl Strategy<Value = String> {
    let binaries = prop::option::of(prop::collection::vec(prop::sample::select(BINARIES), 1..3));
    let rule = (binaries, prop::collection::vec(endpoint(), 1..4));
    prop::collection::vec(rule, 0..5).prop_map(|rules| {
        let mut text = String::from("version: 1\nnetwork_policies:\n");
        if rules.is_empty() {
            text.insert_str(text.len() - 1, " {}");
        }
        for (number, (binaries, endpoints)) in rules.iter().enumerate() {
            text.push_str(&format!("  r{number}:\n"));
            if let Some(binaries) = binaries {
                let list: Vec<_> = binaries.iter().map(|path| format!("{{path: {path}}}")).collect();
                text.push_str(&format!("    binaries: [{}]\n", list.join(", ")));
            }
            text.push_str(&format!("    endpoints: [{}]\n", endpoints.join(",\n      ")));
        }
        text
    })
}

fn question() -> impl Strategy<Value = Question> {
    let host = prop::sample::select(HOSTS);
    let port = prop::sample::select(&[80_u16, 443, 8080][..]);
    let exe = prop::option::weighted(0.9, prop::sample::select(EXES));
    let path = prop::sample::select(PATHS).prop_map(|(spelt, _)| spelt);
    let request =
        prop::option::weighted(0.75, (prop::sample::select(METHODS), path, prop::sample::select(QUERIES)));
    (host, port, exe, request).prop_map(|(host, port, exe, request)| Question {
        destination: Destination { host: Host::parse(host.as_bytes()).unwrap(), port },
        exe,
        request,
    })
}

impl std::fmt::Debug for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {:?} {}", self.exe, self.request, self.destination)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn compiled_decides_as_the_file_reads(
        text in policy(),
        questions in prop::collection::vec(question(), 20),
    ) {
        let mut out = Diagnostics::default();
        let file = parse(&text, &"p.yaml".into(), &mut out);
        prop_assert!(!out.has_errors(), "{out}{text}");
        let file = file.unwrap();
        for question in &questions {
            prop_assert_eq!(compiled(&file, question), naive(&file, question), "{:?}\n{}", question, text);
        }
    }
}
