//! The smallest policy that allows what was seen: for `exec --learn` and `denials --suggest`.
//!
//! Nothing is generalised. Hosts, ports, programs, methods and paths come out as they were asked for, with every
//! character that means something in a pattern escaped; no wildcard is ever written. Two things are not part of what
//! was asked for: the query of a request, and the ancestors of a program. What would need a wider rule than was asked
//! for (a program nobody could identify) is left out and said so.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::deny::{Deny, Reason};
use super::path::canonical;
use crate::destination::Destination;

/// One thing that was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Observed<'a> {
    /// Where to.
    pub destination: &'a Destination,
    /// By which program; none if nobody knows.
    pub exe: Option<&'a Path>,
    /// Method and path, where requests are judged or were forwarded; none for a raw tunnel.
    pub request: Option<(&'a str, &'a str)>,
}

impl<'a> Observed<'a> {
    /// What a denial asked for; none where no further rule would help (a deny rule, a malformed path).
    pub fn denied(deny: &'a Deny) -> Option<Self> {
        match deny.reason {
            Reason::DenyRule | Reason::PathMalformed | Reason::QueryMalformed => None,
            Reason::HostNotAllowed
            | Reason::PortNotAllowed
            | Reason::AddressNotAllowed
            | Reason::BinaryNotAllowed
            | Reason::IdentityUnknown
            | Reason::IdentityAmbiguous
            | Reason::MethodNotAllowed
            | Reason::PathNotAllowed
            | Reason::EncodedSlash
            | Reason::QueryNotAllowed => Some(Self {
                destination: &deny.destination,
                exe: deny.exe.as_deref(),
                request: deny.request.as_ref().map(|request| (&*request.method, &*request.path)),
            }),
        }
    }
}

/// Rules that allow what was seen, and nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suggestion {
    /// For each set of programs, what all of them asked for.
    rules: BTreeMap<BTreeSet<String>, BTreeMap<Target, Requests>>,
    left_out: BTreeSet<String>,
    /// Names of rules that are in use elsewhere.
    taken: BTreeSet<String>,
}

/// Host and port, as text to be written.
type Target = (String, u16);

/// Method and path pattern.
type Asked = (String, String);

/// What was asked of one destination.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Requests {
    /// A tunnel; it covers requests too.
    Raw,
    /// These methods and path patterns.
    Judged(BTreeSet<Asked>),
}

impl Suggestion {
    /// Collects what was seen.
    pub fn new<'a>(observed: impl IntoIterator<Item = Observed<'a>>) -> Self {
        let mut suggestion = Self::default();
        let mut seen: BTreeMap<(Target, Option<Asked>), BTreeSet<String>> = BTreeMap::new();
        for one in observed {
            match expressible(&one) {
                Ok((exe, request)) => {
                    let target = (one.destination.host.to_string(), one.destination.port);
                    seen.entry((target, request)).or_default().insert(exe);
                }
                Err(why) => {
                    suggestion.left_out.insert(format!("{}: {why}", one.destination));
                }
            }
        }
        // A tunnel covers the requests of the same program to the same place.
        let tunnels: BTreeMap<_, _> = seen
            .iter()
            .filter(|((_, request), _)| request.is_none())
            .map(|((t, _), e)| (t.clone(), e.clone()))
            .collect();
        for ((target, request), mut programs) in seen {
            if let (Some(_), Some(covered)) = (&request, tunnels.get(&target)) {
                programs.retain(|program| !covered.contains(program));
            }
            if !programs.is_empty() {
                suggestion.add(programs, target, request);
            }
        }
        suggestion
    }

    /// The same, beside rules of these names.
    pub(super) fn beside(mut self, names: impl IntoIterator<Item = String>) -> Self {
        self.taken.extend(names);
        self
    }

    /// Says of something that it is left out, and why.
    pub fn leave_out(&mut self, what: &Destination, why: &str) {
        self.left_out.insert(format!("{what}: {why}"));
    }

    fn add(&mut self, programs: BTreeSet<String>, target: Target, request: Option<Asked>) {
        let endpoints = self.rules.entry(programs).or_default();
        match request {
            None => {
                endpoints.insert(target, Requests::Raw);
            }
            Some(request) => {
                let judged = endpoints.entry(target).or_insert_with(|| Requests::Judged(BTreeSet::new()));
                if let Requests::Judged(requests) = judged {
                    let (method, path) = &request;
                    // GET speaks for HEAD too; and it comes first.
                    if method != "HEAD" || !requests.contains(&("GET".to_owned(), path.clone())) {
                        requests.insert(request);
                    }
                }
            }
        }
    }

    /// Whether there is nothing to allow.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// What could not be suggested, and why.
    pub fn left_out(&self) -> impl Iterator<Item = &str> {
        self.left_out.iter().map(String::as_str)
    }

    /// A whole policy file.
    pub fn policy(&self) -> String {
        let rules = if self.is_empty() { " {}\n".into() } else { format!("\n{self}") };
        let mut text = format!("version: 1\nnetwork_policies:{rules}");
        for left_out in self.left_out() {
            let _ = writeln!(text, "# left out: {}", left_out.replace(char::is_control, "?"));
        }
        text
    }
}

impl fmt::Display for Suggestion {
    /// The rules, to be put under `network_policies`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = self.taken.clone();
        for (programs, endpoints) in &self.rules {
            writeln!(f, "  {}:", name(programs, &mut names))?;
            writeln!(f, "    endpoints:")?;
            for ((host, port), requests) in endpoints {
                write!(f, "      - {{host: {}, port: {port}", quoted(host))?;
                if let Requests::Judged(requests) = requests {
                    let encoded = requests.iter().any(|(_, path)| path.contains("%2F"));
                    let rule = |(method, path): &Asked| {
                        format!("{{allow: {{method: {}, path: {}}}}}", quoted(method), quoted(path))
                    };
                    let rules: Vec<_> = requests.iter().map(rule).collect();
                    write!(f, ", protocol: http, rules: [{}]", rules.join(", "))?;
                    if encoded {
                        f.write_str(", allow_encoded_slash: true")?;
                    }
                }
                writeln!(f, "}}")?;
            }
            writeln!(f, "    binaries:")?;
            for program in programs {
                writeln!(f, "      - path: {}", quoted(program))?;
            }
        }
        Ok(())
    }
}

/// The patterns for a program and a request, or why there are none.
fn expressible(one: &Observed<'_>) -> Result<(String, Option<Asked>), &'static str> {
    let exe = one.exe.ok_or("which program asked is not known")?;
    let exe =
        std::str::from_utf8(exe.as_os_str().as_bytes()).map_err(|_| "the program's path is not UTF-8")?;
    if !exe.starts_with('/') || exe.split('/').any(|part| part == "." || part == "..") {
        return Err("the program's path is not absolute");
    }
    let Some((method, path)) = one.request else { return Ok((program_pattern(exe), None)) };
    if method.is_empty() || !method.bytes().all(|b| b.is_ascii_uppercase() || matches!(b, b'-' | b'_')) {
        return Err("the method is not upper case");
    }
    let path = canonical(path.as_bytes()).map_err(|_| "the path has no single meaning")?;
    if !path.judged.starts_with(b"/") {
        return Err("the request is about no path");
    }
    let path = path_pattern(&path.judged).ok_or("the path is not UTF-8")?;
    Ok((program_pattern(exe), Some((method.to_owned(), path))))
}

fn program_pattern(exe: &str) -> String {
    let mut pattern = String::with_capacity(exe.len());
    for c in exe.chars() {
        if matches!(c, '*' | '?' | '[' | '{' | '}' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

/// A path in a policy may be written with escapes; they are undone before it is matched.
fn path_pattern(judged: &[u8]) -> Option<String> {
    let mut pattern = String::with_capacity(judged.len());
    for c in std::str::from_utf8(judged).ok()?.chars() {
        match c {
            // `%25` stays as it is on both sides.
            '*' | '?' | '[' | '{' | '}' | '\\' | '#' => {
                let _ = write!(pattern, "%{:02X}", c as u32);
            }
            c => pattern.push(c),
        }
    }
    Some(pattern)
}

/// Text as a YAML scalar that means just this.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}') => {
                let _ = write!(quoted, "\\u{:04x}", c as u32);
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A key for a rule, after its first program.
fn name(programs: &BTreeSet<String>, taken: &mut BTreeSet<String>) -> String {
    let first = programs.iter().next().and_then(|path| path.rsplit('/').next()).unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let base: String = format!("seen_{}", first.chars().take(40).map(plain).collect::<String>());
    let numbered = (2..).map(|n| format!("{base}_{n}"));
    let name = std::iter::once(base.clone()).chain(numbered).find(|name| !taken.contains(name));
    let name = name.unwrap_or(base);
    taken.insert(name.clone());
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::destination::Host;

    fn to(host: &str, port: u16) -> Destination {
        Destination { host: Host::parse(host.as_bytes()).unwrap(), port }
    }

    #[test]
    fn what_was_seen_is_grouped_by_who_asked() {
        let (api, web) = (to("api.example.com", 443), to("web.example.com", 80));
        let see = |destination, exe, request| Observed { destination, exe: Some(Path::new(exe)), request };
        let suggestion = Suggestion::new([
            see(&api, "/usr/bin/curl", None),
            see(&web, "/usr/bin/curl", Some(("GET", "/a//b"))),
            see(&web, "/usr/bin/curl", Some(("GET", "/a/b"))),
            see(&web, "/usr/bin/curl", Some(("POST", "/a*"))),
            see(&api, "/usr/bin/wget", None),
            Observed { destination: &web, exe: None, request: None },
        ]);
        assert_eq!(
            suggestion.policy(),
            r#"version: 1
network_policies:
  seen_curl:
    endpoints:
      - {host: "web.example.com", port: 80, protocol: http, rules: [{allow: {method: "GET", path: "/a/b"}}, {allow: {method: "POST", path: "/a%2A"}}]}
    binaries:
      - path: "/usr/bin/curl"
  seen_curl_2:
    endpoints:
      - {host: "api.example.com", port: 443}
    binaries:
      - path: "/usr/bin/curl"
      - path: "/usr/bin/wget"
# left out: web.example.com:80: which program asked is not known
"#
        );
    }

    #[test]
    fn nothing_seen_is_a_policy_that_denies() {
        assert_eq!(Suggestion::default().policy(), "version: 1\nnetwork_policies: {}\n");
    }
}
