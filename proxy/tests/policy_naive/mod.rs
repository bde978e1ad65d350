//! A policy read naively: the rules of `sluice::policy`, written down a second time, without a table, trie or bit set.
//!
//! It walks the file from top to bottom for every question. Its leaves (one host pattern, one glob, one query rule,
//! one path) are the product's own, which have tests of their own; how they go together is what is compared.

#![allow(clippy::unwrap_used, reason = "a test fails where it must")]

use std::path::Path;

use sluice::address::Reach;
use sluice::destination::{Destination, Host};
use sluice::policy::glob::Glob;
use sluice::policy::host::HostPattern;
use sluice::policy::model::{Allow, Binaries, Endpoint, RequestPolicy, RequestRule};
use sluice::policy::path::{CanonicalPath, canonical};
use sluice::policy::query::is_well_formed;
use sluice::policy::{
    Ask, Asker, BinaryFacts, Enforcement, Kind, Policy, PolicyFile, Program, Protocol, Reason, Request,
    decide,
};

/// What both must agree on.
#[derive(Debug, PartialEq)]
pub(crate) enum Answer {
    Allowed {
        rule: String,
        judged: bool,
        audited: Option<Reason>,
        /// Whether a private address that nothing lists may be dialled.
        private: bool,
        /// The same for one that lists are likely to hold.
        listed: bool,
        path: Vec<u8>,
    },
    Denied(Reason),
}

/// One question; the request is method, path and query.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) destination: Destination,
    pub(crate) exe: Option<String>,
    pub(crate) ancestors: Vec<String>,
    pub(crate) request: Option<(String, String, Option<String>)>,
}

const PRIVATE: &str = "10.7.0.1";
const LISTED: &str = "10.1.0.1";

/// The product's answer.
pub(crate) fn compiled(file: &PolicyFile, question: &Question) -> Answer {
    let policy = Policy::compile(file);
    let exe = question.exe.as_ref().map(|exe| Program { path: Path::new(exe), sha256: None });
    let ancestors: Vec<_> =
        question.ancestors.iter().map(|path| Program { path: Path::new(path), sha256: None }).collect();
    let set = exe.map(|exe| policy.classify(&BinaryFacts { exe, ancestors: &ancestors }));
    let kind = match &question.request {
        None => Kind::Connect,
        Some((method, path, query)) => Kind::Request(Request {
            method: method.as_bytes(),
            path: path.as_bytes(),
            query: query.as_deref().map(str::as_bytes),
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

/// The naive answer.
pub(crate) fn naive(file: &PolicyFile, question: &Question) -> Answer {
    match connection(file, question) {
        Err(reason) => Answer::Denied(reason),
        Ok((matched, audited)) => {
            let judging: Vec<_> = matched.iter().copied().filter(|e| e.requests.is_some()).collect();
            // Nothing is left to judge inside a tunnel to endpoints that allow everything.
            let judged = match question.request {
                Some(_) => !judging.is_empty(),
                None => judging.iter().any(|e| !allows_everything(policy_of(e))),
            };
            match &question.request {
                Some((method, path, query)) if judged => {
                    let query = query.as_deref().unwrap_or_default();
                    match request(&judging, method.as_bytes(), path.as_bytes(), query.as_bytes()) {
                        Err(reason) => Answer::Denied(reason),
                        Ok((granted, reason, path)) => allowed(&granted, true, audited.or(reason), path),
                    }
                }
                Some((_, path, _)) => allowed(&matched, judged, audited, path.clone().into_bytes()),
                None => allowed(&matched, judged, audited, Vec::new()),
            }
        }
    }
}

fn allowed(granted: &[&Endpoint], judged: bool, audited: Option<Reason>, path: Vec<u8>) -> Answer {
    let admits = |ip| granted.iter().any(|endpoint| admits(endpoint, ip));
    let rule = granted[0].rule.name.to_string();
    Answer::Allowed { rule, judged, audited, private: admits(PRIVATE), listed: admits(LISTED), path }
}

fn allows_everything(requests: &RequestPolicy) -> bool {
    let full = matches!(&requests.allow, Allow::Preset(access) if access.text() == "full");
    full && requests.deny.is_empty() && requests.path.is_none() && !requests.websocket
}

fn is_audit(endpoint: &Endpoint) -> bool {
    endpoint.enforcement == Enforcement::Audit
}

/// The endpoints that match, or those that only report that the binary does not, with the reason.
fn connection<'f>(
    file: &'f PolicyFile,
    question: &Question,
) -> Result<(Vec<&'f Endpoint>, Option<Reason>), Reason> {
    let Destination { host, port } = &question.destination;
    let all = file.rules.iter().flat_map(|rule| &rule.endpoints).map(|endpoint| &**endpoint);
    let by_host: Vec<_> = all.filter(|e| e.host.matches(host)).collect();
    let by_port: Vec<_> = by_host.iter().copied().filter(|e| e.ports.contains(*port)).collect();
    let by_address: Vec<_> = by_port.iter().copied().filter(|e| address_fits(e, host)).collect();
    let exe = question.exe.as_deref();
    let matched: Vec<_> =
        by_address.iter().copied().filter(|e| binary_fits(e, exe, &question.ancestors)).collect();
    if !matched.is_empty() {
        return Ok((matched, None));
    }
    let reason = if !by_address.is_empty() {
        if exe.is_some() { Reason::BinaryNotAllowed } else { Reason::IdentityUnknown }
    } else if !by_port.is_empty() {
        Reason::AddressNotAllowed
    } else if by_host.iter().any(|e| e.host != HostPattern::Any) {
        Reason::PortNotAllowed
    } else {
        Reason::HostNotAllowed
    };
    let reporting: Vec<_> = by_address.into_iter().filter(|e| is_audit(e)).collect();
    if reporting.is_empty() { Err(reason) } else { Ok((reporting, Some(reason))) }
}

/// By what a request misses an endpoint.
const FAR_TO_NEAR: [Reason; 4] =
    [Reason::PathNotAllowed, Reason::MethodNotAllowed, Reason::EncodedSlash, Reason::QueryNotAllowed];

type Granted<'f> = (Vec<&'f Endpoint>, Option<Reason>, Vec<u8>);

fn request<'f>(
    judging: &[&'f Endpoint],
    method: &[u8],
    spelt: &[u8],
    query: &[u8],
) -> Result<Granted<'f>, Reason> {
    let unless_all_audit = |endpoints: &[&'f Endpoint], reason, path: &[u8]| {
        if endpoints.iter().all(|e| is_audit(e)) {
            Ok((endpoints.to_vec(), Some(reason), path.to_vec()))
        } else {
            Err(reason)
        }
    };
    let Ok(path) = canonical(spelt) else { return unless_all_audit(judging, Reason::PathMalformed, spelt) };
    let selects = |r: &RequestPolicy| r.path.as_ref().is_none_or(|glob| glob.matches(&path.judged));
    let selected: Vec<_> = judging.iter().copied().filter(|e| selects(policy_of(e))).collect();
    if selected.is_empty() {
        return unless_all_audit(judging, Reason::PathNotAllowed, &path.sent);
    }
    let asks_query = |e: &&Endpoint| rules_of(policy_of(e)).any(|rule| !rule.query.parameters.is_empty());
    if !is_well_formed(query) && selected.iter().any(asks_query) {
        return unless_all_audit(&selected, Reason::QueryMalformed, &path.sent);
    }
    let denied: Vec<_> =
        selected.iter().copied().filter(|e| denies(policy_of(e), method, &path, query)).collect();
    if denied.iter().any(|e| !is_audit(e)) {
        return Err(Reason::DenyRule);
    }
    let forbidden = (!denied.is_empty()).then_some(Reason::DenyRule);
    let rank = |e: &Endpoint| policy_of(e).path.as_ref().map(Glob::specificity);
    let most = selected.iter().map(|e| rank(e)).max().unwrap();
    let selected: Vec<_> = selected.into_iter().filter(|e| rank(e) == most).collect();
    let misses: Vec<_> = selected.iter().map(|e| miss(policy_of(e), method, &path, query)).collect();
    let granted: Vec<_> =
        selected.iter().copied().zip(&misses).filter(|(_, miss)| miss.is_none()).map(|(e, _)| e).collect();
    if !granted.is_empty() {
        return Ok((granted, forbidden, path.sent.to_vec()));
    }
    let nearness = |miss: &Reason| FAR_TO_NEAR.iter().position(|reason| reason == miss).unwrap();
    let reason = forbidden.unwrap_or_else(|| misses.into_iter().flatten().max_by_key(nearness).unwrap());
    let reporting: Vec<_> = selected.into_iter().filter(|e| is_audit(e)).collect();
    if reporting.is_empty() { Err(reason) } else { Ok((reporting, Some(reason), path.sent.to_vec())) }
}

fn policy_of(endpoint: &Endpoint) -> &RequestPolicy {
    endpoint.requests.as_ref().unwrap()
}

fn rules_of(requests: &RequestPolicy) -> impl Iterator<Item = &RequestRule> {
    let allow = match &requests.allow {
        Allow::Rules(rules) => &rules[..],
        Allow::Preset(_) => &[],
    };
    allow.iter().chain(&requests.deny)
}

fn denies(requests: &RequestPolicy, method: &[u8], path: &CanonicalPath<'_>, query: &[u8]) -> bool {
    // An escaped slash is read both ways.
    let opened = String::from_utf8_lossy(&path.judged).replace("%2F", "/");
    requests.deny.iter().any(|rule| {
        let on_path =
            rule.path.as_ref().is_none_or(|g| g.matches(&path.judged) || g.matches(opened.as_bytes()));
        on_path && rule.method.matches(method) && rule.query.denies(query)
    })
}

/// Why an endpoint does not allow a request.
fn miss(requests: &RequestPolicy, method: &[u8], path: &CanonicalPath<'_>, query: &[u8]) -> Option<Reason> {
    if path.escaped_slash && !requests.allow_encoded_slash {
        return Some(Reason::EncodedSlash);
    }
    if requests.websocket && method != b"GET" {
        return Some(Reason::MethodNotAllowed);
    }
    let rules = match &requests.allow {
        Allow::Rules(rules) => rules,
        Allow::Preset(access) => {
            let methods: &[&[u8]] = match access.text() {
                "read-only" => &[b"GET", b"HEAD", b"OPTIONS"],
                "read-write" => &[b"GET", b"HEAD", b"OPTIONS", b"POST", b"PUT", b"PATCH"],
                _ => &[method],
            };
            return (!methods.contains(&method)).then_some(Reason::MethodNotAllowed);
        }
    };
    let on_path: Vec<_> =
        rules.iter().filter(|rule| rule.path.as_ref().is_none_or(|g| g.matches(&path.judged))).collect();
    let on_method: Vec<_> = on_path.iter().filter(|rule| rule.method.matches(method)).collect();
    if on_method.iter().any(|rule| rule.query.allows(query)) {
        None
    } else if !on_method.is_empty() {
        Some(Reason::QueryNotAllowed)
    } else if !on_path.is_empty() {
        Some(Reason::MethodNotAllowed)
    } else {
        Some(Reason::PathNotAllowed)
    }
}

fn address_fits(endpoint: &Endpoint, host: &Host) -> bool {
    match host {
        Host::Ip(ip) => {
            let ip = ip.to_canonical();
            endpoint.allowed_ips.is_empty() || endpoint.allowed_ips.iter().any(|net| net.contains(&ip))
        }
        Host::Name(_) => true,
    }
}

fn binary_fits(endpoint: &Endpoint, exe: Option<&str>, ancestors: &[String]) -> bool {
    match (&endpoint.rule.binaries, exe) {
        (Binaries::Any, _) => true,
        (Binaries::Listed(_), None) => false,
        (Binaries::Listed(list), Some(exe)) => {
            let programs: Vec<&str> =
                std::iter::once(exe).chain(ancestors.iter().map(String::as_str)).collect();
            let fits = |path: &Glob| programs.iter().any(|program| path.matches(program.as_bytes()));
            list.iter().any(|pattern| pattern.sha256.is_none() && fits(&pattern.path))
        }
    }
}

fn admits(endpoint: &Endpoint, ip: &str) -> bool {
    match &endpoint.host {
        _ if !endpoint.allowed_ips.is_empty() => {
            endpoint.allowed_ips.iter().any(|net| net.contains(&ip.parse::<std::net::IpAddr>().unwrap()))
        }
        HostPattern::Exact(_) => true,
        HostPattern::Wildcard(_) | HostPattern::Any => false,
    }
}
