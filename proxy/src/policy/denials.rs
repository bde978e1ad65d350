//! What is missing from a policy, by what it denied: for `sluice denials --suggest`; and what of a policy was needed, by
//! what happened under it: for `exec --learn`.
//!
//! Each suggestion is tried before it is made: it is written, read again, put beside the policy's own rules, and asked
//! the question that was denied. What would be denied all the same (a deny rule, an endpoint with a more specific
//! `path`) is left out, and the reason is said.

use std::sync::Arc;

use super::binaries::{BinaryFacts, Program};
use super::compile::Policy;
use super::decide::{Ask, Asker, Kind, Permit, Protocol, Request, decide};
use super::deny::Deny;
use super::load;
use super::model::PolicyFile;
use super::suggest::{Observed, Suggestion};
use crate::diagnostic::Diagnostics;

/// One thing that was refused, or many that are alike.
#[derive(Clone, Copy, Debug)]
pub struct Denial<'a> {
    /// What was asked for, and by whom.
    pub asked: Observed<'a>,
    /// The reason in the event.
    pub reason: &'a str,
    /// How it was tried.
    pub way: Way,
}

/// How something was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Through the proxy.
    Proxy,
    /// Past it, by TCP: through the proxy it could be allowed.
    DirectTcp,
    /// Past it, by anything else: there is no way for that.
    Direct,
}

/// What to add to `current`, so that what it denied is allowed, and nothing else.
pub fn suggest(denials: &[Denial<'_>], current: &PolicyFile) -> Suggestion {
    let names = || current.rules.iter().map(|rule| rule.head.name.to_string());
    let before = Policy::compile(current);
    let mut left_out = Vec::new();
    let mut hopeful: Vec<Observed<'_>> = Vec::new();
    for denial in denials {
        let hopeless = match denial.way {
            Way::Direct => Some("only TCP can go through the proxy"),
            Way::DirectTcp if is_allowed(&before, &denial.asked) => {
                Some("allowed already: the program must go through the proxy, and tried to go past it")
            }
            Way::DirectTcp => hopeless(denial.reason),
            Way::Proxy => hopeless(denial.reason).or_else(|| {
                let by_now = !is_unseen(denial.reason) && is_granted(&before, &denial.asked);
                by_now.then_some("allowed by now, or refused for another reason than a policy's")
            }),
        };
        match hopeless {
            Some(why) => left_out.push((denial.asked.destination, why)),
            None => hopeful.push(denial.asked),
        }
    }
    let after = with(current, &Suggestion::new(hopeful.iter().copied()).beside(names()));
    hopeful.retain(|asked| {
        let helps = asked.exe.is_none() || after.as_ref().is_some_and(|after| is_allowed(after, asked));
        if !helps {
            left_out.push((asked.destination, "another rule decides here: see what `sluice explain` says"));
        }
        helps
    });
    let mut suggestion = Suggestion::new(hopeful).beside(names());
    for (destination, why) in left_out {
        suggestion.leave_out(destination, why);
    }
    suggestion
}

/// The smallest policy that covers what was seen under `current`. A tunnel whose requests are judged there is covered by
/// them: as a tunnel it would let in any other.
pub fn learn(seen: &[Observed<'_>], current: &PolicyFile) -> Suggestion {
    let policy = Policy::compile(current);
    let is_of = |one: &Observed<'_>, other: &Observed<'_>| {
        one.destination == other.destination && one.exe == other.exe && other.request.is_some()
    };
    let (kept, covered): (Vec<_>, Vec<_>) =
        seen.iter().partition(|one| one.request.is_some() || !is_inspected(&policy, one));
    let mut suggestion = Suggestion::new(kept.into_iter().copied());
    for one in covered {
        if !seen.iter().any(|other| is_of(one, other)) {
            suggestion
                .leave_out(one.destination, "nothing was asked in the tunnel, whose requests are judged");
        }
    }
    suggestion
}

fn is_inspected(policy: &Policy, tunnel: &Observed<'_>) -> bool {
    asked(policy, tunnel, |decision| decision.is_ok_and(|permit| permit.protocol() == Protocol::Http))
}

/// Whether what was refused is not part of what the policy is asked again: the address a name led to, or the query.
fn is_unseen(reason: &str) -> bool {
    reason.starts_with("address_") || reason == "query_not_allowed"
}

/// Why no further rule would help against a refusal for this reason, if none would.
fn hopeless(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "deny_rule" => "a deny rule forbids it",
        "path_malformed" | "query_malformed" => "the request has no single meaning",
        "not_http" => "the tunnel held no HTTP; only an endpoint without request rules takes that",
        "sni_mismatch" | "sni_missing" | "sni_encrypted" => {
            "TLS in the tunnel did not name the host that was asked for"
        }
        "unknown_source" => "no sandbox has this source",
        "identity_ambiguous" => "which of several programs asked is not known",
        "address_public" => "it leads outside the endpoint's allowed_ips: add the address there",
        "address_loopback"
        | "address_link_local"
        | "address_metadata"
        | "address_own"
        | "address_unspecified"
        | "address_multicast"
        | "address_broadcast"
        | "address_reserved" => "no policy can allow the address it leads to",
        _ => return None,
    })
}

/// The policy with the suggestion added.
fn with(current: &PolicyFile, suggestion: &Suggestion) -> Option<Policy> {
    let mut findings = Diagnostics::default();
    let added = load::parse(&suggestion.policy(), &Arc::from("suggestion"), &mut findings)?;
    let mut file = current.clone();
    file.rules.extend(added.rules);
    (!findings.has_errors()).then(|| Policy::compile(&file))
}

fn is_allowed(policy: &Policy, wish: &Observed<'_>) -> bool {
    asked(policy, wish, |decision| decision.is_ok())
}

/// Allowed, and not only by an audit.
fn is_granted(policy: &Policy, wish: &Observed<'_>) -> bool {
    asked(policy, wish, |decision| decision.is_ok_and(|permit| permit.audited().is_none()))
}

fn asked(
    policy: &Policy,
    wish: &Observed<'_>,
    look: impl FnOnce(Result<Permit<'_>, Box<Deny>>) -> bool,
) -> bool {
    let exe = wish.exe.map(|path| Program { path, sha256: None });
    let set = exe.map(|exe| policy.classify(&BinaryFacts { exe, ancestors: &[] }));
    let kind = match wish.request {
        None => Kind::Connect,
        Some((method, path)) => {
            Kind::Request(Request { method: method.as_bytes(), path: path.as_bytes(), query: None })
        }
    };
    let who = set.as_ref().map_or(Asker::Unknown, Asker::Known);
    look(decide(policy, &Ask { destination: wish.destination, asker: who, kind }))
}
