//! A refusal that explains itself: a reason from a closed set, the rule if one forbade it, and what was nearly
//! allowed, as data; text is made only when somebody reads it.

use std::fmt::{self, Write as _};
use std::path::Path;
use std::sync::Arc;

use super::compile::Policy;
use super::decide::{Ask, Asker, Kind, Request};
use super::model::{Allow, Binaries, Endpoint, Ports, RequestPolicy};
use super::requests::Refusal;
use crate::destination::{Destination, Host};
use crate::diagnostic::Place;

/// Near misses kept; more do not help anybody.
pub const NEAR_MISSES_MAX: usize = 8;

/// Why a policy says no. The text of [`as_str`](Self::as_str) is stable: events, metrics and clients see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No endpoint names the host.
    HostNotAllowed,
    /// An endpoint names the host, none with this port.
    PortNotAllowed,
    /// The address asked for is not in `allowed_ips`.
    AddressNotAllowed,
    /// Host and port are allowed, to other programs.
    BinaryNotAllowed,
    /// Host and port are allowed to named programs, and nobody knows which one asks.
    IdentityUnknown,
    /// The same, and several different programs may be asking.
    IdentityAmbiguous,
    /// The path is allowed, with other methods.
    MethodNotAllowed,
    /// No rule allows the path.
    PathNotAllowed,
    /// Method and path are allowed, with other query parameters.
    QueryNotAllowed,
    /// A deny rule forbids the request.
    DenyRule,
    /// The path cannot be brought into one spelling.
    PathMalformed,
    /// The query holds a broken escape, and rules look at it.
    QueryMalformed,
    /// The path holds `%2F` and the endpoint has no `allow_encoded_slash`.
    EncodedSlash,
}

impl Reason {
    /// The word in events, metrics and the JSON body.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HostNotAllowed => "host_not_allowed",
            Self::PortNotAllowed => "port_not_allowed",
            Self::AddressNotAllowed => "address_not_allowed",
            Self::BinaryNotAllowed => "binary_not_allowed",
            Self::IdentityUnknown => "identity_unknown",
            Self::IdentityAmbiguous => "identity_ambiguous",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::PathNotAllowed => "path_not_allowed",
            Self::QueryNotAllowed => "query_not_allowed",
            Self::DenyRule => "deny_rule",
            Self::PathMalformed => "path_malformed",
            Self::QueryMalformed => "query_malformed",
            Self::EncodedSlash => "encoded_slash",
        }
    }

    /// For a destination that no endpoint matches.
    pub(super) fn host_or_port(policy: &Policy, host: &Host) -> Self {
        let mut named = false;
        policy.naming(host, |_| named = true);
        if named { Self::PortNotAllowed } else { Self::HostNotAllowed }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A refusal. Owned: it outlives the policy that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deny {
    /// Why.
    pub reason: Reason,
    /// Where to.
    pub destination: Destination,
    /// The program that asked, when known.
    pub exe: Option<Arc<Path>>,
    /// The request, when it was one that rules looked at.
    pub request: Option<DeniedRequest>,
    /// The endpoint that forbade it or came nearest to allowing it.
    pub endpoint: Option<Arc<Endpoint>>,
    /// The deny rule, for [`Reason::DenyRule`].
    pub rule: Option<Place>,
    /// What was nearly allowed; at most [`NEAR_MISSES_MAX`].
    pub misses: Vec<NearMiss>,
}

/// What was asked for; octets that are not UTF-8 are replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeniedRequest {
    /// As sent.
    pub method: Box<str>,
    /// As sent, without the query.
    pub path: Box<str>,
}

/// An endpoint that would have allowed it but for one thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearMiss {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// The one thing.
    pub what: Miss,
}

/// What kept an endpoint from matching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// Its host is a relative of the one asked for.
    Host,
    /// Other ports.
    Port,
    /// Other addresses.
    Address,
    /// Other programs, or the program is not known.
    Binary,
    /// Other requests.
    Request,
}

impl Deny {
    /// A refused connection.
    pub(super) fn connection(policy: &Policy, ask: &Ask<'_>, reason: Reason) -> Self {
        let mut deny = Self::new(ask, reason);
        let host = &ask.destination.host;
        match reason {
            Reason::HostNotAllowed => deny.add_relatives(policy, host),
            Reason::PortNotAllowed => policy.naming(host, |row| deny.add(&row.endpoint, Miss::Port)),
            Reason::AddressNotAllowed => {
                policy.matching(host, ask.destination.port, |_, row| deny.add(&row.endpoint, Miss::Address));
            }
            _ => policy.matching(host, ask.destination.port, |_, row| deny.add(&row.endpoint, Miss::Binary)),
        }
        deny
    }

    /// A refused request.
    pub(super) fn request(policy: &Policy, ask: &Ask<'_>, request: &Request<'_>, refusal: Refusal) -> Self {
        let mut deny = Self::new(ask, refusal.reason);
        let text = |octets| String::from_utf8_lossy(octets).into();
        deny.request = Some(DeniedRequest { method: text(request.method), path: text(request.path) });
        deny.rule = refusal.rule;
        deny.endpoint = refusal.by.and_then(|id| policy.row(id)).map(|row| Arc::clone(&row.endpoint));
        if let Some(endpoint) = deny.endpoint.clone().filter(|_| deny.rule.is_none()) {
            deny.add(&endpoint, Miss::Request);
        }
        deny
    }

    fn new(ask: &Ask<'_>, reason: Reason) -> Self {
        let exe = match ask.asker {
            Asker::Known(set) => Some(Arc::clone(set.exe())),
            Asker::Unknown | Asker::Ambiguous => None,
        };
        let request = match ask.kind {
            Kind::Connect => None,
            Kind::Request(request) => Some(DeniedRequest {
                method: String::from_utf8_lossy(request.method).into(),
                path: String::from_utf8_lossy(request.path).into(),
            }),
        };
        let destination = ask.destination.clone();
        Self { reason, destination, exe, request, endpoint: None, rule: None, misses: Vec::new() }
    }

    fn add(&mut self, endpoint: &Arc<Endpoint>, what: Miss) {
        if self.misses.len() < NEAR_MISSES_MAX
            && !self.misses.iter().any(|m| Arc::ptr_eq(&m.endpoint, endpoint))
        {
            self.misses.push(NearMiss { endpoint: Arc::clone(endpoint), what });
            self.endpoint.get_or_insert_with(|| Arc::clone(endpoint));
        }
    }

    /// Endpoints for the parent domain, and wildcards just beside the name: `*.example.com` for `example.com`.
    fn add_relatives(&mut self, policy: &Policy, host: &Host) {
        let Host::Name(name) = host else { return };
        let below = Host::Name(format!("x.{name}").into());
        let above = name.split_once('.').map(|(_, parent)| Host::Name(parent.into()));
        for relative in above.iter().chain([&below]) {
            policy.naming(relative, |row| {
                self.misses.push(NearMiss { endpoint: Arc::clone(&row.endpoint), what: Miss::Host });
            });
        }
        self.misses.truncate(NEAR_MISSES_MAX);
    }

    /// The near misses as sentences, such as `host matched rule github, port 8443 did not (443)`.
    pub fn near_misses(&self) -> impl Iterator<Item = String> + '_ {
        self.misses.iter().map(|miss| self.sentence(miss))
    }

    fn sentence(&self, miss: &NearMiss) -> String {
        let endpoint = &*miss.endpoint;
        let rule = &endpoint.rule.name;
        let host = &self.destination.host;
        match miss.what {
            Miss::Host => format!("rule {rule} allows {}, which does not include {host}", endpoint.host),
            Miss::Port => {
                let port = self.destination.port;
                format!("host matched rule {rule}, port {port} did not ({})", ports(&endpoint.ports))
            }
            Miss::Address => format!("port matched rule {rule}, address {host} is not in its allowed_ips"),
            Miss::Binary => match &self.exe {
                Some(exe) => format!("rule {rule} allows {}, not {}", binaries(endpoint), exe.display()),
                None => {
                    format!("rule {rule} allows {}; which program asked is not known", binaries(endpoint))
                }
            },
            Miss::Request => match &endpoint.requests {
                Some(requests) => format!("rule {rule} allows {}", allowed(requests)),
                None => format!("rule {rule} does not judge requests"),
            },
        }
    }

    /// `POST http path on host:port`, or `host:port`.
    fn what(&self) -> String {
        match &self.request {
            Some(DeniedRequest { method, path }) if self.is_about_the_request() => {
                format!("{method} {path} on {}", self.destination)
            }
            _ => self.destination.to_string(),
        }
    }

    fn is_about_the_request(&self) -> bool {
        match self.reason {
            Reason::HostNotAllowed
            | Reason::PortNotAllowed
            | Reason::AddressNotAllowed
            | Reason::BinaryNotAllowed
            | Reason::IdentityUnknown
            | Reason::IdentityAmbiguous => false,
            Reason::MethodNotAllowed
            | Reason::PathNotAllowed
            | Reason::QueryNotAllowed
            | Reason::DenyRule
            | Reason::PathMalformed
            | Reason::QueryMalformed
            | Reason::EncodedSlash => true,
        }
    }
}

impl fmt::Display for Deny {
    /// One line: `api.github.com:8443 denied (port_not_allowed): host matched rule github, port 8443 did not (443)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} denied ({})", self.what(), self.reason)?;
        if let (Some(rule), Some(endpoint)) = (&self.rule, &self.endpoint) {
            return write!(f, ": rule {} forbids it at {rule}", endpoint.rule.name);
        }
        match self.near_misses().next() {
            Some(miss) => write!(f, ": {miss}"),
            None => Ok(()),
        }
    }
}

/// What a refused client, human or agent, should know and do. `operator` is a sentence of the operator's own, such as
/// whom to ask.
pub fn hint(deny: &Deny, operator: Option<&str>) -> String {
    let mut text = match deny.reason {
        Reason::PathMalformed | Reason::QueryMalformed => {
            "policy cannot judge this request because its path or query has no single meaning; \
             send it in plain form"
                .to_owned()
        }
        Reason::EncodedSlash => format!(
            "policy refuses encoded slashes (%2F) in paths for this destination; \
             ask the operator to set allow_encoded_slash for {}",
            deny.destination
        ),
        Reason::IdentityUnknown | Reason::IdentityAmbiguous => format!(
            "policy allows {} only to named programs, and the program that asked could not be told; \
             retrying may help, bypassing the proxy will not; tell the operator",
            deny.destination
        ),
        Reason::DenyRule => format!(
            "policy forbids this request; retrying or bypassing the proxy will not help; \
             ask the operator about {}",
            deny.what()
        ),
        _ => {
            let about = if deny.is_about_the_request() { "request" } else { "destination" };
            let mut text = format!(
                "policy denied this {about}; retrying or bypassing the proxy will not help; \
                 ask the operator to allow {}",
                deny.what()
            );
            if let Some(exe) = &deny.exe {
                let _ = write!(text, " for {}", exe.display());
            }
            text
        }
    };
    if let Some(operator) = operator {
        text.push_str("; ");
        text.push_str(operator);
    }
    text
}

/// Items of a list that a sentence shows.
const SHOWN_MAX: usize = 4;

fn list(items: impl ExactSizeIterator<Item = String>) -> String {
    let more = items.len().saturating_sub(SHOWN_MAX);
    let mut text = items.take(SHOWN_MAX).collect::<Vec<_>>().join(", ");
    if more > 0 {
        let _ = write!(text, " and {more} more");
    }
    text
}

fn ports(ports: &Ports) -> String {
    match ports {
        Ports::Any => "any".into(),
        Ports::Listed(ports) => list(ports.iter().map(u16::to_string)),
    }
}

fn binaries(endpoint: &Endpoint) -> String {
    match &endpoint.rule.binaries {
        Binaries::Any => "any program".into(),
        Binaries::Listed(patterns) => list(patterns.iter().map(|pattern| {
            let pinned = if pattern.sha256.is_some() { " (of one hash)" } else { "" };
            format!("{}{pinned}", pattern.path)
        })),
    }
}

/// `read-only requests`, `GET /repos/**, POST /x`.
fn allowed(requests: &RequestPolicy) -> String {
    let mut text = match &requests.allow {
        _ if requests.websocket => "WebSocket upgrades".into(),
        Allow::Preset(access) => format!("{} requests", access.text()),
        Allow::Rules(rules) => list(rules.iter().map(|rule| {
            let path = rule.path.as_ref().map_or("**", |glob| glob.text());
            let query = if rule.query.is_empty() { "" } else { " with some queries" };
            format!("{} {path}{query}", rule.method)
        })),
    };
    if let Some(path) = &requests.path {
        let _ = write!(text, " under {path}");
    }
    text
}
