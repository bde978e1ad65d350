//! `sluice check FILE`: every error in a configuration or policy, at once.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use crate::config::{self, Config};
use crate::diagnostic::{Diagnostics, Place, Severity};
use crate::policy::{self, Policy, PolicyFile};
use crate::yaml::{self, Node, Value};

/// Exit code for a configuration or policy that cannot be used (EX_CONFIG).
pub const EXIT_BAD_CONFIG: u8 = 78;

/// What a file turned out to be.
enum Checked {
    Config(Box<Config>),
    Policy(PolicyFile),
}

/// Checks a file; 0 if it can be used, 78 if not. Findings go to stderr, a summary to stdout.
pub fn run(file: &Path) -> ExitCode {
    let mut out = Diagnostics::default();
    let checked = check(file, &mut out);
    print(&out);
    match checked {
        Some(checked) if !out.has_errors() => {
            // A reader that went away is not a bad file.
            let _ = writeln!(std::io::stdout(), "{}: {}", file.display(), summary(&checked));
            ExitCode::SUCCESS
        }
        _ => ExitCode::from(EXIT_BAD_CONFIG),
    }
}

/// Prints findings to stderr: with source lines for a person, one a line for a program.
pub fn print(out: &Diagnostics) {
    let stderr = std::io::stderr();
    let text = if stderr.is_terminal() { out.with_source().to_string() } else { out.to_string() };
    let _ = stderr.lock().write_all(text.as_bytes());
}

fn check(file: &Path, out: &mut Diagnostics) -> Option<Checked> {
    let name: Arc<str> = file.to_string_lossy().into();
    let text = match policy::read(file) {
        Ok(text) => text,
        Err(error) => {
            out.error(Place::whole(&name), format!("cannot read the file: {error}"));
            return None;
        }
    };
    out.add_source(&name, &text);
    let root = yaml::parse(&text, &name, out)?;
    if is_policy(&root) {
        policy::from_tree(&root, &name, out).map(Checked::Policy)
    } else {
        config::from_tree(&root, &name, &policy::read, out).map(|config| Checked::Config(Box::new(config)))
    }
}

/// A policy is told from a configuration by the keys that only it has.
fn is_policy(root: &Node) -> bool {
    const ONLY_IN_POLICIES: &[&str] =
        &["version", "network_policies", "filesystem_policy", "landlock", "process", "network_middlewares"];
    match &root.value {
        Value::Mapping(entries) => {
            entries.iter().any(|(key, _)| ONLY_IN_POLICIES.contains(&key.text().unwrap_or_default()))
        }
        _ => false,
    }
}

fn summary(checked: &Checked) -> String {
    match checked {
        Checked::Policy(file) => {
            let policy = Policy::compile(file);
            let binaries = if file.names_binaries() { "names binaries" } else { "for any program" };
            format!("a policy: {}, {}, {binaries}", rules(file.rules.len()), endpoints(policy.endpoints()))
        }
        Checked::Config(config) => {
            let count = config.sandboxes.len();
            let sandboxes = if count == 1 { "1 sandbox".into() } else { format!("{count} sandboxes") };
            let listen = match config.listen {
                Some(address) => format!("listens on {address}"),
                None => "no host listener".into(),
            };
            format!("a configuration: {sandboxes}, {listen}, proxy at {}", config.proxy_address)
        }
    }
}

fn rules(count: usize) -> String {
    if count == 1 { "1 rule".into() } else { format!("{count} rules") }
}

fn endpoints(count: usize) -> String {
    if count == 1 { "1 endpoint".into() } else { format!("{count} endpoints") }
}

/// Number of errors, for callers that print their own line.
pub fn errors(out: &Diagnostics) -> usize {
    out.of(Severity::Error).len()
}
