//! What holds for any policy, any question to it, and any configuration.

use std::io;
use std::path::Path;

use sluice::config::{self, Shape};
use sluice::destination::{Destination, Host};
use sluice::diagnostic::Diagnostics;
use sluice::policy::{Policy, parse};

use crate::policy_naive::{Question, compiled, naive};

/// A policy, a NUL, and a question: the policy loads or says why not, and its tables answer as the file reads.
pub(crate) fn policy(bytes: &[u8]) {
    let (text, asked) = bytes.split_at(bytes.iter().position(|&octet| octet == 0).unwrap_or(bytes.len()));
    let Ok(text) = std::str::from_utf8(text) else { return };
    let mut out = Diagnostics::default();
    let file = parse(text, &"p.yaml".into(), &mut out);
    assert!(file.is_some() || out.has_errors());
    assert_eq!(out.is_empty(), out.with_source().to_string().is_empty());
    let Some(file) = file else { return };
    let policy = Policy::compile(&file);
    assert_eq!(policy.endpoints(), file.rules.iter().map(|rule| rule.endpoints.len()).sum::<usize>());
    if let Some(question) = question(asked) {
        assert_eq!(compiled(&file, &question), naive(&file, &question), "{question:?}");
    }
}

/// Three lines: the program (empty for unknown) and its ancestors, with tabs between, `host:port`, and for a request its method, path and query.
fn question(bytes: &[u8]) -> Option<Question> {
    let text = String::from_utf8_lossy(bytes.get(1..)?);
    let mut lines = text.split('\n');
    let mut programs = lines.next()?.split('\t').map(ToOwned::to_owned);
    let exe = programs.next().filter(|exe| !exe.is_empty());
    let ancestors = programs.collect();
    let (host, port) = lines.next()?.rsplit_once(':')?;
    let port = port.parse().ok().filter(|&port| port != 0)?;
    let destination = Destination { host: Host::parse(host.as_bytes()).ok()?, port };
    let request = lines.next().and_then(|line| line.split_once(' ')).map(|(method, target)| {
        let (path, query) =
            target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        (method.to_owned(), path.to_owned(), query.map(ToOwned::to_owned))
    });
    Some(Question { destination, exe, ancestors, request })
}

/// A configuration whose policies are the configuration's own text: it loads, or says why not.
pub(crate) fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let read = |path: &Path| match path.to_str() {
        Some("self.yaml") => Ok(text.to_owned()),
        Some("ok.yaml") => Ok("version: 1\n".to_owned()),
        _ => Err(io::Error::from(io::ErrorKind::NotFound)),
    };
    let mut out = Diagnostics::default();
    let config = config::parse(text, &"c.yaml".into(), &read, &mut out);
    assert!(config.is_some() || out.has_errors());
    assert_eq!(out.is_empty(), out.to_string().is_empty());
    let Some(config) = config.filter(|_| !out.has_errors()) else { return };
    let external = |sandbox: &config::SandboxConfig| matches!(sandbox.shape, Shape::External { .. });
    assert!(config.listen.is_some() || !config.sandboxes.iter().any(external));
    for (index, sandbox) in config.sandboxes.iter().enumerate() {
        assert!(config::is_name(&sandbox.name));
        let earlier = config.sandboxes.iter().take(index);
        assert!(earlier.into_iter().all(|other| {
            other.name != sandbox.name && (other.shape == Shape::Made || other.shape != sandbox.shape)
        }));
    }
}
