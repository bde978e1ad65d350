//! Judging one request against the endpoints that matched its connection.

use std::borrow::Cow;

use super::compile::{EndpointId, Policy};
use super::decide::{Ids, Request};
use super::deny::Reason;
use super::model::{Allow, Enforcement, RequestPolicy, RequestRule};
use super::path::{CanonicalPath, canonical};
use super::query;
use crate::diagnostic::Place;

/// A request that may pass.
pub(super) struct Verdict<'a> {
    /// Who allowed it.
    pub(super) granted: Ids,
    /// The path to send.
    pub(super) path: Cow<'a, [u8]>,
    /// What an endpoint in audit mode would have refused it for.
    pub(super) audited: Option<Refusal>,
}

/// A request that may not.
pub(super) struct Refusal {
    pub(super) reason: Reason,
    /// The endpoint that came nearest to allowing it, or that forbade it.
    pub(super) by: Option<EndpointId>,
    /// The deny rule.
    pub(super) rule: Option<Place>,
}

/// The request part of an endpoint, if it judges requests.
pub(super) fn of(policy: &Policy, id: EndpointId) -> Option<&RequestPolicy> {
    policy.row(id).and_then(|row| row.endpoint.requests.as_ref())
}

/// Judges; at least one of `matched` judges requests, the others have no say.
pub(super) fn judge<'a>(
    policy: &Policy,
    matched: &Ids,
    request: &Request<'a>,
) -> Result<Verdict<'a>, Refusal> {
    let judging: Ids = matched.iter().copied().filter(|&id| of(policy, id).is_some()).collect();
    let Ok(path) = canonical(request.path) else {
        return all_audit(policy, judging, Reason::PathMalformed, Cow::Borrowed(request.path));
    };
    let selected: Ids =
        judging.iter().copied().filter(|&id| of(policy, id).is_some_and(|r| selects(r, &path))).collect();
    if selected.is_empty() {
        return all_audit(policy, judging, Reason::PathNotAllowed, path.sent);
    }
    let query = request.query.unwrap_or_default();
    if !query::is_well_formed(query) && selected.iter().any(|&id| of(policy, id).is_some_and(asks_query)) {
        return all_audit(policy, selected, Reason::QueryMalformed, path.sent);
    }
    let forbidden = forbidden(policy, &selected, request.method, &path, query)?;
    allowed(policy, &selected, request.method, path, query, forbidden)
}

/// A refusal that is the same for all endpoints: it stands unless each of them only reports.
fn all_audit<'a>(
    policy: &Policy,
    ids: Ids,
    reason: Reason,
    path: Cow<'a, [u8]>,
) -> Result<Verdict<'a>, Refusal> {
    let refusal = Refusal { reason, by: ids.first().copied(), rule: None };
    if ids.iter().all(|&id| is_audit(policy, id)) {
        return Ok(Verdict { granted: ids, path, audited: Some(refusal) });
    }
    Err(refusal)
}

fn is_audit(policy: &Policy, id: EndpointId) -> bool {
    policy.row(id).is_some_and(|row| row.endpoint.enforcement == Enforcement::Audit)
}

fn selects(requests: &RequestPolicy, path: &CanonicalPath<'_>) -> bool {
    requests.path.as_ref().is_none_or(|glob| glob.matches(&path.judged))
}

fn asks_query(requests: &RequestPolicy) -> bool {
    let allow: &[RequestRule] = match &requests.allow {
        Allow::Rules(rules) => rules,
        Allow::Preset(_) => &[],
    };
    allow.iter().chain(&requests.deny).any(|rule| !rule.query.is_empty())
}

/// Looks for a deny rule. An enforced one is final; one in audit mode is handed on.
fn forbidden(
    policy: &Policy,
    selected: &Ids,
    method: &[u8],
    path: &CanonicalPath<'_>,
    query: &[u8],
) -> Result<Option<Refusal>, Refusal> {
    // An origin may take `%2F` for a slash: a deny rule must hold for both readings.
    let opened = path.escaped_slash.then(|| open_slashes(&path.judged));
    let hits = |rule: &RequestRule| {
        let on_path = |glob: &super::glob::Glob| {
            glob.matches(&path.judged) || opened.as_ref().is_some_and(|opened| glob.matches(opened))
        };
        rule.method.matches(method) && rule.path.as_ref().is_none_or(on_path) && rule.query.denies(query)
    };
    let mut reported = None;
    for &id in selected {
        let rules = of(policy, id).map(|requests| &*requests.deny).unwrap_or_default();
        let Some(rule) = rules.iter().find(|rule| hits(rule)) else { continue };
        let refusal = Refusal { reason: Reason::DenyRule, by: Some(id), rule: Some(rule.place.clone()) };
        if !is_audit(policy, id) {
            return Err(refusal);
        }
        reported.get_or_insert(refusal);
    }
    Ok(reported)
}

fn open_slashes(judged: &[u8]) -> Vec<u8> {
    let mut opened = Vec::with_capacity(judged.len());
    let mut left = judged;
    while let Some((&octet, after)) = left.split_first() {
        let escaped = left.strip_prefix(b"%2F");
        opened.push(if escaped.is_some() { b'/' } else { octet });
        left = escaped.unwrap_or(after);
    }
    opened
}

/// Asks the endpoints with the most specific `path`; one that allows is enough.
fn allowed<'a>(
    policy: &Policy,
    selected: &Ids,
    method: &[u8],
    path: CanonicalPath<'a>,
    query: &[u8],
    forbidden: Option<Refusal>,
) -> Result<Verdict<'a>, Refusal> {
    let rank = |id| of(policy, id).and_then(|r| r.path.as_ref()).map(super::glob::Glob::specificity);
    let most = selected.iter().map(|&id| rank(id)).max().flatten();
    let mut granted = Ids::new();
    let mut reporting = Ids::new();
    let mut nearest: Option<(Miss, EndpointId)> = None;
    for &id in selected.iter().filter(|&&id| rank(id) == most) {
        let Some(requests) = of(policy, id) else { continue };
        let Err(miss) = allows(requests, method, &path, query) else {
            granted.push(id);
            continue;
        };
        if is_audit(policy, id) {
            reporting.push(id);
        }
        if nearest.is_none_or(|(best, _)| miss > best) {
            nearest = Some((miss, id));
        }
    }
    if !granted.is_empty() {
        return Ok(Verdict { granted, path: path.sent, audited: forbidden });
    }
    let refusal = forbidden.unwrap_or_else(|| Refusal {
        reason: nearest.map_or(Reason::PathNotAllowed, |(miss, _)| miss.reason()),
        by: nearest.map(|(_, id)| id),
        rule: None,
    });
    if reporting.is_empty() {
        return Err(refusal);
    }
    Ok(Verdict { granted: reporting, path: path.sent, audited: Some(refusal) })
}

/// By what a request missed an endpoint, from far to near.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Miss {
    Path,
    Method,
    EncodedSlash,
    Query,
}

impl Miss {
    fn reason(self) -> Reason {
        match self {
            Self::Path => Reason::PathNotAllowed,
            Self::Method => Reason::MethodNotAllowed,
            Self::EncodedSlash => Reason::EncodedSlash,
            Self::Query => Reason::QueryNotAllowed,
        }
    }
}

fn allows(
    requests: &RequestPolicy,
    method: &[u8],
    path: &CanonicalPath<'_>,
    query: &[u8],
) -> Result<(), Miss> {
    if path.escaped_slash && !requests.allow_encoded_slash {
        return Err(Miss::EncodedSlash);
    }
    if requests.websocket && method != b"GET" {
        return Err(Miss::Method);
    }
    let rules = match &requests.allow {
        Allow::Preset(access) => return access.allows(method).then_some(()).ok_or(Miss::Method),
        Allow::Rules(rules) => rules,
    };
    let mut nearest = Miss::Path;
    for rule in rules {
        let miss = if !rule.path.as_ref().is_none_or(|glob| glob.matches(&path.judged)) {
            Miss::Path
        } else if !rule.method.matches(method) {
            Miss::Method
        } else if !rule.query.allows(query) {
            Miss::Query
        } else {
            return Ok(());
        };
        nearest = nearest.max(miss);
    }
    Err(nearest)
}
