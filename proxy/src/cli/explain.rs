//! `sluice explain`: what a policy says to one question, which rule says it, and what nearly said otherwise.

use std::fmt::Write as _;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::check::{EXIT_BAD_CONFIG, print};
use crate::destination::{Destination, Host};
use crate::diagnostic::nearest;
use crate::identity::Trail;
use crate::policy::{
    self, Ask, Asker, BinaryFacts, Deny, Kind, Permit, Policy, Program, Protocol, Reason, Request, Sni,
    Source, decide,
};

/// Exit code for a question that makes no sense (EX_USAGE).
pub const EXIT_USAGE: u8 = 64;
/// Exit code for a denial.
pub const EXIT_DENIED: u8 = 1;

/// The command's arguments.
#[derive(Clone, Debug)]
pub struct Question {
    /// The policy: `open`, `deny` or a file.
    pub policy: Source,
    /// The program that asks; absent means unknown.
    pub binary: Option<PathBuf>,
    /// The programs of its ancestors, nearest first.
    pub ancestors: Vec<PathBuf>,
    /// `CONNECT`, or a method.
    pub method: String,
    /// `host:port` for CONNECT, else a URL.
    pub target: String,
}

/// Prints the decision: 0 allowed, 1 denied, 64 bad question, 78 bad policy.
pub fn run(question: &Question) -> ExitCode {
    let target = match Target::parse(&question.method, &question.target) {
        Ok(target) => target,
        Err(message) => {
            let _ = writeln!(std::io::stderr(), "sluice explain: {message}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let loaded = match policy::load(&question.policy) {
        Ok(loaded) => loaded,
        Err(errors) => {
            print(&errors);
            return ExitCode::from(EXIT_BAD_CONFIG);
        }
    };
    let policy = Policy::compile_with(&loaded.file, &policy::host_links);
    let (text, allowed) = explain(&policy, question, &target);
    let _ = std::io::stdout().write_all(text.as_bytes());
    if allowed { ExitCode::SUCCESS } else { ExitCode::from(EXIT_DENIED) }
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    destination: Destination,
    /// Path and query of a request.
    request: Option<(String, Option<String>)>,
    /// It is asked for in TLS: through a tunnel, which has to be allowed first.
    in_tls: bool,
}

impl Target {
    fn parse(method: &str, target: &str) -> Result<Self, String> {
        if method == "CONNECT" {
            let destination = authority(target, None)?;
            return Ok(Self { destination, request: None, in_tls: false });
        }
        let (scheme, rest) = target.split_once("://").ok_or_else(|| {
            format!("\"{target}\" is not a URL; write http://host/path, or CONNECT host:port")
        })?;
        let (default_port, in_tls) = match scheme.to_ascii_lowercase().as_str() {
            "http" | "ws" => (80, false),
            "https" | "wss" => (443, true),
            _ => return Err(format!("the scheme \"{scheme}\" is not known; http, https, ws and wss are")),
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (host, path) = rest.split_at(end);
        let (path, query) = match path.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (path, None),
        };
        let path = if path.is_empty() { "/" } else { path };
        let destination = authority(host, Some(default_port))?;
        Ok(Self { destination, request: Some((path.to_owned(), query)), in_tls })
    }
}

fn authority(text: &str, default_port: Option<u16>) -> Result<Destination, String> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let digits = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
    let port = match (port, default_port) {
        (None, Some(default)) => default,
        (None, None) => return Err(format!("\"{text}\" names no port; write host:port")),
        (Some(port), _) => match port.parse::<u16>() {
            Ok(number) if number != 0 && digits(port) => number,
            _ => return Err(format!("\"{port}\" is not a port from 1 to 65535")),
        },
    };
    let host = Host::parse(host.as_bytes()).map_err(|error| format!("\"{host}\": {error}"))?;
    Ok(Destination { host, port })
}

/// The text, and whether the answer is yes.
fn explain(policy: &Policy, question: &Question, target: &Target) -> (String, bool) {
    let method = &*question.method;
    let ancestors: Vec<Program<'_>> =
        question.ancestors.iter().map(|path| Program { path, sha256: None }).collect();
    // The hash of the file as it is now; what a pinned entry asks for is that of the running image.
    let sha256 = question.binary.as_deref().filter(|_| policy.pins_hashes()).and_then(sha256);
    let set = question.binary.as_deref().map(|path| {
        let exe = Program { path, sha256: sha256.as_ref() };
        policy.classify(&BinaryFacts { exe, ancestors: &ancestors })
    });
    let who = set.as_ref().map_or(Asker::Unknown, Asker::Known);
    let question = |kind| Ask { destination: &target.destination, asker: who, kind };
    let tunnel = question(Kind::Connect);
    let Some((path, query)) = &target.request else {
        return answer(&tunnel, decide(policy, &tunnel), policy, target);
    };
    if target.in_tls {
        // What is in TLS comes in a tunnel; in a raw one nobody sees the request.
        let opened = decide(policy, &tunnel);
        if opened.as_ref().map_or(true, |permit| permit.protocol() == Protocol::Raw) {
            return answer(&tunnel, opened, policy, target);
        }
    }
    let request = question(Kind::Request(Request {
        method: method.as_bytes(),
        path: path.as_bytes(),
        query: query.as_deref().map(str::as_bytes),
    }));
    answer(&request, decide(policy, &request), policy, target)
}

fn answer(
    ask: &Ask<'_>,
    outcome: Result<Permit<'_>, Box<Deny>>,
    policy: &Policy,
    target: &Target,
) -> (String, bool) {
    match outcome {
        Ok(permit) => (allowed(&permit, ask, target) + &sought(policy), true),
        Err(deny) => (denied(&deny, policy) + &sought(policy), false),
    }
}

/// How the program would be found out: the same words that events use.
fn sought(policy: &Policy) -> String {
    let order = Trail::default().accounts().map(|account| account.source.label()).join(", ");
    let worth = if policy.names_binaries() {
        "; the first that knows the connection answers, and a program that is not proven is denied"
    } else {
        "; for events only: no rule of this policy names programs"
    };
    format!("  identity  sought by {order}{worth}\n")
}

fn sha256(path: &Path) -> Option<[u8; 32]> {
    use sha2::Digest as _;
    // Once, by a person who waits for it: read as a whole.
    Some(sha2::Sha256::digest(std::fs::read(path).ok()?).into())
}

fn allowed(permit: &Permit<'_>, ask: &Ask<'_>, target: &Target) -> String {
    let mut text = String::from(if permit.audited().is_some() { "allowed (audited)\n" } else { "allowed\n" });
    if let Some(endpoint) = permit.endpoint() {
        let _ = writeln!(text, "  rule      {}", endpoint.rule.name);
        let _ = writeln!(text, "  at        {}", endpoint.place);
        let _ = writeln!(text, "  endpoint  {}", endpoint.host);
    }
    if matches!(ask.kind, Kind::Connect) {
        let inside = match permit.protocol() {
            Protocol::Http => "HTTP; each request is judged",
            Protocol::Raw if permit.sni() == Sni::Verify => "a raw tunnel; a TLS name must be the host",
            Protocol::Raw => "a raw tunnel",
        };
        let _ = writeln!(text, "  inside    {inside}");
        if target.request.is_some() {
            let _ = writeln!(text, "  request   not looked at: TLS in a raw tunnel is the client's own");
        }
    } else if target.in_tls {
        let _ = writeln!(text, "  inside    TLS that is looked into; each request is judged");
    }
    if let Some(path) = permit.rewritten_path() {
        let _ = writeln!(text, "  sent as   {}", String::from_utf8_lossy(path));
    }
    if let Some(deny) = permit.audited() {
        let _ = writeln!(text, "  audit     would be denied: {}", deny.reason);
        forbidden(&mut text, deny);
        misses(&mut text, deny);
    }
    text
}

fn denied(deny: &Deny, policy: &Policy) -> String {
    let mut text = format!("denied ({})\n", deny.reason);
    forbidden(&mut text, deny);
    misses(&mut text, deny);
    if let (Reason::HostNotAllowed, Some(name)) = (deny.reason, deny.destination.host.name())
        && let Some(host) = nearest(name, policy.exact_hosts())
    {
        let _ = writeln!(text, "  near      the policy names {host}");
    }
    if deny.reason == Reason::IdentityUnknown {
        let _ = writeln!(text, "  note      no program was given; ask again with --binary PATH");
    }
    let _ = writeln!(text, "  hint      {}", policy::hint(deny, None));
    text
}

/// The deny rule, if one forbade it.
fn forbidden(text: &mut String, deny: &Deny) {
    if let (Some(rule), Some(endpoint)) = (&deny.rule, &deny.endpoint) {
        let _ = writeln!(text, "  rule      {}", endpoint.rule.name);
        let _ = writeln!(text, "  at        {rule}");
    }
}

fn misses(text: &mut String, deny: &Deny) {
    for (sentence, miss) in deny.near_misses().zip(&deny.misses) {
        let _ = writeln!(text, "  near      {sentence} ({})", miss.endpoint.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::Diagnostics;

    const POLICY: &str = "\
version: 1
network_policies:
  api:
    endpoints:
      - {host: api.example.com, port: 443}
      - {host: web.example.com, port: 80, protocol: http, access: full, deny_rules: [{method: DELETE, path: /x}]}
    binaries:
      - path: /usr/bin/curl
  lax:
    endpoints:
      - {host: 2001:db8::1, port: 443, enforcement: audit}
      - {host: audited.example.com, port: 80, access: read-only, enforcement: audit}
    binaries:
      - path: /usr/bin/wget
";

    fn explained(binary: Option<&str>, method: &str, target: &str) -> (String, bool) {
        // `child < parent < grandparent`
        let mut programs = binary.into_iter().flat_map(|chain| chain.split(" < "));
        let mut out = Diagnostics::default();
        let file = policy::parse(POLICY, &"p.yaml".into(), &mut out).unwrap();
        let target = Target::parse(method, target).unwrap();
        let question = Question {
            policy: Source::Deny,
            binary: programs.next().map(Into::into),
            ancestors: programs.map(Into::into).collect(),
            method: method.into(),
            target: String::new(),
        };
        explain(&Policy::compile(&file), &question, &target)
    }

    #[test]
    fn the_answer_names_the_rule_its_line_and_what_was_near() {
        let curl = Some("/usr/bin/curl");
        for (binary, method, target, allowed, lines) in [
            (
                curl,
                "CONNECT",
                "api.example.com:443",
                true,
                &["allowed", "rule      api", "at        p.yaml:5:9"][..],
            ),
            (curl, "GET", "http://web.example.com/a/../b", true, &["sent as   /b"]),
            (curl, "CONNECT", "web.example.com:80", true, &["inside    HTTP; each request is judged"]),
            (
                curl,
                "DELETE",
                "https://api.example.com/x",
                true,
                &["a raw tunnel; a TLS name must be the host", "request   not looked at"],
            ),
            (curl, "GET", "https://web.example.com:80/y", true, &["inside    TLS that is looked into"]),
            (curl, "DELETE", "https://web.example.com:80/x", false, &["denied (deny_rule)"]),
            (curl, "GET", "https://other.example/", false, &["denied (host_not_allowed)"]),
            (
                curl,
                "DELETE",
                "http://web.example.com/x",
                false,
                &["denied (deny_rule)", "at        p.yaml:6:86"],
            ),
            (
                Some("/usr/bin/env < /bin/sh < /usr/bin/curl"),
                "CONNECT",
                "api.example.com:443",
                true,
                &["rule      api"],
            ),
            (
                curl,
                "CONNECT",
                "[2001:db8::1]:443",
                true,
                &[
                    "allowed (audited)",
                    "rule      lax",
                    "audit     would be denied: binary_not_allowed",
                    "near      rule lax allows /usr/bin/wget, not /usr/bin/curl (p.yaml:11:9)",
                ],
            ),
            (
                Some("/usr/bin/wget"),
                "POST",
                "http://audited.example.com/",
                true,
                &[
                    "allowed (audited)",
                    "would be denied: method_not_allowed",
                    "rule lax allows read-only requests",
                ],
            ),
            (curl, "CONNECT", "[2001:db8::1]:444", false, &["port 444 did not (443) (p.yaml:11:9)"]),
            (curl, "CONNECT", "api.example.com:80", false, &["port 80 did not (443) (p.yaml:5:9)"]),
            (curl, "CONNECT", "api.exmaple.com:443", false, &["near      the policy names api.example.com"]),
            (
                None,
                "CONNECT",
                "api.example.com:443",
                false,
                &["ask again with --binary PATH", "hint      policy allows"],
            ),
            (
                Some("/bin/sh"),
                "CONNECT",
                "api.example.com:443",
                false,
                &["rule api allows /usr/bin/curl, not /bin/sh"],
            ),
        ] {
            let (text, yes) = explained(binary, method, target);
            assert_eq!(yes, allowed, "{text}");
            for line in lines {
                assert!(text.contains(line), "{method} {target} should say {line:?}:\n{text}");
            }
        }
    }

    #[test]
    fn a_pinned_program_is_hashed_as_it_is_now() {
        let folder = tempfile::tempdir().unwrap();
        let tool = folder.path().join("tool");
        std::fs::write(&tool, "abc").unwrap();
        let policy = format!(
            "version: 1\nnetwork_policies:\n  a:\n    endpoints: [{{host: a.example, port: 1}}]\n    binaries:\n      \
             - {{path: {}, sha256: ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad}}\n",
            tool.display()
        );
        let file = policy::parse(&policy, &"p.yaml".into(), &mut Diagnostics::default()).unwrap();
        let policy = Policy::compile(&file);
        let question = Question {
            policy: Source::Deny,
            binary: Some(tool.clone()),
            ancestors: Vec::new(),
            method: "CONNECT".into(),
            target: String::new(),
        };
        let target = Target::parse("CONNECT", "a.example:1").unwrap();
        assert!(explain(&policy, &question, &target).1);
        std::fs::write(&tool, "abd").unwrap();
        assert!(!explain(&policy, &question, &target).1);
    }

    #[test]
    fn targets() {
        let to = |host: &str, port| Destination { host: Host::parse(host.as_bytes()).unwrap(), port };
        for (method, target, destination, request) in [
            ("CONNECT", "Example.com:443", to("example.com", 443), None),
            ("CONNECT", "[::1]:80", to("[::1]", 80), None),
            ("GET", "http://a.b", to("a.b", 80), Some(("/", None))),
            ("GET", "https://a.b:8443/x?y=z#f", to("a.b", 8443), Some(("/x", Some("y=z")))),
            ("GET", "https://a.b?q", to("a.b", 443), Some(("/", Some("q")))),
        ] {
            let request =
                request.map(|(path, query): (&str, Option<&str>)| (path.into(), query.map(Into::into)));
            let in_tls = target.starts_with("https");
            assert_eq!(
                Target::parse(method, target),
                Ok(Target { destination, request, in_tls }),
                "{target}"
            );
        }
        for (method, target) in [
            ("CONNECT", "a.b"),
            ("CONNECT", "a.b:0"),
            ("CONNECT", "a.b:+1"),
            ("CONNECT", "http://a.b:1"),
            ("GET", "a.b/x"),
            ("GET", "ftp://a.b/"),
            ("GET", "http://user@a.b/"),
        ] {
            assert!(Target::parse(method, target).is_err(), "{method} {target}");
        }
    }
}
