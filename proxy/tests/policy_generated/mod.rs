//! Policies and questions to them, generated.

#![allow(clippy::unwrap_used, reason = "a test fails where it must")]
#![allow(clippy::format_push_string, reason = "the text of a policy is written once")]

use proptest::prelude::*;
use sluice::destination::{Destination, Host};

use crate::policy_naive::Question;

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
const PATHS: &[&str] = &[
    "/",
    "/a",
    "/a/b",
    "/a/b/c",
    "/b/",
    "/x/../a",
    "//a//b",
    "/%61",
    "/a/%2e%2e/b/",
    "/%",
    "/a/..;/b",
    "/a%2fb",
    "/a%2Fb/c",
    "*",
    "a",
];
const PATH_GLOBS: &[&str] = &["/a", "/a/**", "/*", "/**", "'**/b'", "/a/*/c", "/b/", "/**/b*"];
const METHODS: &[&str] = &["GET", "HEAD", "POST", "DELETE", "get"];
const QUERIES: &[Option<&str>] =
    &[None, Some("q=1"), Some("q=2&q=1"), Some("r=1&q=12"), Some("q"), Some("q=%zz")];

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
    let slash = prop::sample::select(&["", ", allow_encoded_slash: true"][..]);
    let websocket = prop::bool::weighted(0.2);
    (base, deny, path, slash, websocket).prop_map(|(base, deny, path, slash, websocket)| {
        let deny = deny.map_or(String::new(), |rules| format!(", deny_rules: [{}]", rules.join(", ")));
        let path = path.map_or(String::new(), |path| format!(", path: {path}"));
        let protocol = if websocket && base != "access: read-only" { "websocket" } else { "http" };
        format!(", protocol: {protocol}, {base}{deny}{path}{slash}")
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

/// The text of a policy.
pub(crate) fn policy() -> impl Strategy<Value = String> {
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

/// A question to it.
pub(crate) fn question() -> impl Strategy<Value = Question> {
    let host = prop::sample::select(HOSTS);
    let port = prop::sample::select(&[80_u16, 443, 8080][..]);
    let exe = prop::option::weighted(0.9, prop::sample::select(EXES));
    let request = prop::option::weighted(
        0.75,
        (prop::sample::select(METHODS), prop::sample::select(PATHS), prop::sample::select(QUERIES)),
    );
    let ancestors = prop::collection::vec(prop::sample::select(EXES), 0..3);
    (host, port, exe, ancestors, request).prop_map(|(host, port, exe, ancestors, request)| Question {
        destination: Destination { host: Host::parse(host.as_bytes()).unwrap(), port },
        exe: exe.map(Into::into),
        ancestors: ancestors.into_iter().map(Into::into).collect(),
        request: request.map(|(method, path, query)| (method.into(), path.into(), query.map(Into::into))),
    })
}
