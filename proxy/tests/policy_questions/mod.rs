//! Questions to a policy in one line of text, for the policy tests.

#![allow(clippy::unwrap_used, reason = "a test fails where it must")]

use std::path::Path;

use sluice::destination::{Destination, Host};
use sluice::diagnostic::Diagnostics;
use sluice::policy::{
    Ask, Asker, BinaryFacts, Deny, Kind, Permit, Policy, Program, Reason, Request, decide, parse,
};

/// A policy from text that must be fine.
pub(crate) fn policy(text: &str) -> Policy {
    let mut out = Diagnostics::default();
    let file = parse(text, &"p.yaml".into(), &mut out);
    assert!(!out.has_errors(), "{out}");
    Policy::compile(&file.unwrap())
}

/// Puts `CONNECT host:port` or `METHOD host:port/path?query` to a policy and shows `look` the answer.
pub(crate) fn ask<T>(
    policy: &Policy,
    exe: Option<&str>,
    question: &str,
    look: impl FnOnce(Result<Permit<'_>, Box<Deny>>) -> T,
) -> T {
    let set = exe.map(|exe| {
        let exe = Program { path: Path::new(exe), sha256: None };
        policy.classify(&BinaryFacts { exe, ancestors: &[] })
    });
    let (method, target) = question.split_once(' ').unwrap();
    let (authority, path) = target.split_at(target.find('/').unwrap_or(target.len()));
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    let (host, port) = authority.rsplit_once(':').unwrap();
    let destination =
        Destination { host: Host::parse(host.as_bytes()).unwrap(), port: port.parse().unwrap() };
    let kind = match method {
        "CONNECT" => Kind::Connect,
        _ => Kind::Request(Request {
            method: method.as_bytes(),
            path: path.as_bytes(),
            query: query.map(str::as_bytes),
        }),
    };
    let asker = set.as_ref().map_or(Asker::Unknown, Asker::Known);
    look(decide(policy, &Ask { destination: &destination, asker, kind }))
}

/// The rule that allows, or the reason against.
pub(crate) fn answer(policy: &Policy, exe: Option<&str>, question: &str) -> Result<String, Reason> {
    ask(policy, exe, question, |answer| match answer {
        Ok(permit) => Ok(permit.rule().to_owned()),
        Err(deny) => Err(deny.reason),
    })
}
