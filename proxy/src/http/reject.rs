//! Everything Sluice answers itself instead of an origin: one closed list and one table.
//!
//! A [`Reject`] holds no octet of any peer. What it says to a client is written by [`super::answer`], what it says to
//! operators are its label and blame.

use super::fault::Fault;
use super::rewrite::Stop;
use crate::address::{Class, Refused};
use crate::tls::Problem;

/// Why a request was not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reject {
    // The client.
    /// The request is malformed.
    Request(Fault),
    /// The request's head did not arrive in time.
    HeadTimeout,
    /// The request's body stopped arriving.
    BodyTimeout,
    /// `Max-Forwards` ran out here, and nothing here answers TRACE. (OPTIONS gets [`super::answer::write_options`].)
    LastHop,
    // The policy.
    /// The policy says no; the word is its reason, from its own closed set.
    Denied(&'static str),
    /// The destination's address may not be dialled.
    Address(Class),
    /// A tunnel was to hold HTTP and holds something else.
    NotHttp,
    /// The TLS inside a tunnel names another host than CONNECT did.
    SniMismatch,
    /// The TLS inside a tunnel names no host.
    SniMissing,
    /// The TLS inside a tunnel hides its name, and shows another host than CONNECT named.
    SniEncrypted,
    // Limits.
    /// The sandbox has as many connections as it may.
    TooManyConnections,
    /// The sandbox sends requests faster than it may.
    TooManyRequests,
    /// No descriptor, buffer or port is left.
    Exhausted,
    /// The sandbox wants certificates for new names faster than it may.
    TooManyNames,
    /// Sluice is shutting down.
    Draining,
    // The way there.
    /// The request has been here before, or asks for a listener of ours.
    Loop,
    /// The name does not exist, or has no address.
    NameNotFound,
    /// The resolver failed.
    NameFailed,
    /// The resolver did not answer in time.
    NameTimeout,
    /// Every address refused the connection.
    DialRefused,
    /// There is no route to any address.
    DialUnreachable,
    /// No address answered in time.
    DialTimeout,
    /// The dial failed in another way.
    DialFailed,
    // The origin.
    /// The response is malformed.
    Response(Fault),
    /// The origin closed without an answer.
    OriginClosed,
    /// The origin did not answer in time.
    OriginTimeout,
    /// TLS with the origin did not come about.
    OriginTls(Problem),
    /// The origin switched protocols though nobody had offered that.
    UnaskedUpgrade,
    // Us.
    /// A defect of ours.
    Internal,
}

/// Who is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Blame {
    /// Who asked.
    Client,
    /// Who was asked: the origin, its name or the way there.
    Upstream,
    /// Sluice, or the machine it runs on.
    Us,
    /// Nobody: it was not allowed.
    Policy,
}

/// One row of the table.
struct Row {
    status: u16,
    /// The reason phrase: one ASCII line.
    phrase: &'static str,
    /// The stable word in events, metrics and the body's `reason`.
    label: &'static str,
    blame: Blame,
    /// The body's `error`.
    error: &'static str,
    /// The error type of RFC 9209 section 2.3.
    proxy_error: &'static str,
}

impl Reject {
    /// The status code.
    pub fn status(self) -> u16 {
        self.row().status
    }

    /// The reason phrase: one ASCII line that holds no byte of a peer's.
    pub fn phrase(self) -> &'static str {
        self.row().phrase
    }

    /// The stable word for events, metrics and the body; from a closed set.
    pub fn label(self) -> &'static str {
        self.row().label
    }

    /// Who is to blame.
    pub fn blame(self) -> Blame {
        self.row().blame
    }

    /// The kind of failure in the body: `policy_denied` is said of a policy's no and of nothing else.
    pub fn error(self) -> &'static str {
        self.row().error
    }

    /// The error type in `Proxy-Status`.
    pub fn proxy_error(self) -> &'static str {
        self.row().proxy_error
    }

    /// Whether the connection to the client cannot go on, whatever was asked: where its next request starts is not
    /// known, or there is no room for one. A refused CONNECT closes too; [`super::answer`] sees to that.
    pub fn must_close(self) -> bool {
        matches!(
            self,
            Self::Request(_)
                | Self::HeadTimeout
                | Self::BodyTimeout
                | Self::NotHttp
                | Self::SniMismatch
                | Self::SniMissing
                | Self::SniEncrypted
                | Self::TooManyConnections
                | Self::Exhausted
                | Self::Draining
                | Self::Internal
        )
    }

    /// Seconds after which trying again may help.
    pub fn retry_after_s(self) -> Option<u32> {
        match self {
            Self::TooManyConnections | Self::TooManyRequests | Self::TooManyNames => Some(1),
            Self::Exhausted | Self::Draining => Some(5),
            _ => None,
        }
    }

    #[rustfmt::skip]
    fn row(self) -> Row {
        use Blame::{Client, Policy, Upstream, Us};
        let row = |status, phrase, label, blame, error, proxy_error| {
            Row { status, phrase, label, blame, error, proxy_error }
        };
        match self {
            Self::Request(fault) => row(fault.status(), fault.phrase(), fault.label(), Client, "malformed_request", "http_request_error"),
            Self::HeadTimeout => row(408, "the request head did not arrive in time", "head_timeout", Client, "timeout", "http_request_error"),
            Self::BodyTimeout => row(408, "the request body did not arrive in time", "body_timeout", Client, "timeout", "http_request_error"),
            Self::LastHop => row(405, "Max-Forwards is used up and TRACE is not answered here", "last_hop", Client, "malformed_request", "http_request_error"),

            Self::Denied(label) => row(403, denied_phrase(label), label, Policy, "policy_denied", "http_request_denied"),
            Self::Address(class) => row(403, class.refusal(), class.label(), Policy, "policy_denied", "destination_ip_prohibited"),
            Self::NotHttp => row(403, "Denied by policy: the tunnel does not hold HTTP", "not_http", Policy, "policy_denied", "http_request_denied"),
            Self::SniMismatch => row(403, "Denied by policy: TLS names another host than CONNECT", "sni_mismatch", Policy, "policy_denied", "http_request_denied"),
            Self::SniMissing => row(403, "Denied by policy: TLS names no host", "sni_missing", Policy, "policy_denied", "http_request_denied"),
            Self::SniEncrypted => row(403, "Denied by policy: TLS hides the host it names", "sni_encrypted", Policy, "policy_denied", "http_request_denied"),

            Self::TooManyConnections => row(429, "the sandbox has too many connections", "too_many_connections", Client, "limit", "connection_limit_reached"),
            Self::TooManyRequests => row(429, "the sandbox sends requests too fast", "too_many_requests", Client, "limit", "http_request_denied"),
            Self::Exhausted => row(503, "the proxy is out of resources", "exhausted", Us, "unavailable", "proxy_internal_error"),
            Self::TooManyNames => row(503, "the sandbox asks for too many new names to look into", "too_many_names", Client, "limit", "http_request_denied"),
            Self::Draining => row(503, "the proxy is shutting down", "draining", Us, "unavailable", "proxy_internal_response"),

            Self::Loop => row(508, "the request leads back to this proxy", "loop", Client, "loop", "proxy_loop_detected"),
            Self::NameNotFound => row(502, "the host name does not resolve", "name_not_found", Upstream, "dns_failed", "dns_error"),
            Self::NameFailed => row(502, "resolving the host name failed", "name_failed", Upstream, "dns_failed", "dns_error"),
            Self::NameTimeout => row(504, "resolving the host name took too long", "name_timeout", Upstream, "timeout", "dns_timeout"),
            Self::DialRefused => row(502, "the origin refused the connection", "dial_refused", Upstream, "dial_failed", "connection_refused"),
            Self::DialUnreachable => row(502, "there is no route to the origin", "dial_unreachable", Upstream, "dial_failed", "destination_ip_unroutable"),
            Self::DialTimeout => row(504, "connecting to the origin took too long", "dial_timeout", Upstream, "timeout", "connection_timeout"),
            Self::DialFailed => row(502, "connecting to the origin failed", "dial_failed", Upstream, "dial_failed", "destination_unavailable"),

            Self::Response(fault) => row(502, response_phrase(fault), fault.label(), Upstream, "malformed_response", response_error(fault)),
            Self::OriginClosed => row(502, "the origin closed the connection without an answer", "origin_closed", Upstream, "origin_failed", "connection_terminated"),
            Self::OriginTimeout => row(504, "the origin did not answer in time", "origin_timeout", Upstream, "timeout", "http_response_timeout"),
            Self::OriginTls(problem) => row(if problem == Problem::Timeout { 504 } else { 502 }, problem.phrase(), problem.label(), Upstream, "tls_failed", tls_error(problem)),
            Self::UnaskedUpgrade => row(502, "the origin switched protocols unasked", "unasked_upgrade", Upstream, "malformed_response", "http_upgrade_failed"),

            Self::Internal => row(500, "a defect in the proxy", "internal", Us, "internal", "proxy_internal_error"),
        }
    }
}

/// The phrase for a policy's reason: where the phrase is all that a client library shows, it must tell.
fn denied_phrase(label: &'static str) -> &'static str {
    match label {
        "host_not_allowed" => "Denied by policy: host not allowed",
        "port_not_allowed" => "Denied by policy: port not allowed",
        "address_not_allowed" => "Denied by policy: address not allowed",
        "binary_not_allowed" => "Denied by policy: program not allowed",
        "identity_unknown" => "Denied by policy: calling program unknown",
        "identity_ambiguous" => "Denied by policy: calling program ambiguous",
        "method_not_allowed" => "Denied by policy: method not allowed",
        "path_not_allowed" => "Denied by policy: path not allowed",
        "query_not_allowed" => "Denied by policy: query not allowed",
        "deny_rule" => "Denied by policy: forbidden by a deny rule",
        "path_malformed" => "Denied by policy: path malformed",
        "query_malformed" => "Denied by policy: query malformed",
        "encoded_slash" => "Denied by policy: encoded slash in path",
        "policy_changed" => "Denied by policy: policy changed meanwhile",
        _ => "Denied by policy",
    }
}

/// For most faults the client learns only that the origin is at fault; the label has the rest.
fn response_phrase(fault: Fault) -> &'static str {
    match fault {
        Fault::HeadTooLarge | Fault::LineTooLong | Fault::TooManyFields => {
            "the origin's response head is too large"
        }
        _ => "the origin's response is malformed",
    }
}

fn tls_error(problem: Problem) -> &'static str {
    match problem {
        problem if problem.is_certificate() => "tls_certificate_error",
        Problem::Timeout => "connection_timeout",
        Problem::Closed => "connection_terminated",
        Problem::Alert | Problem::WantsClientCertificate => "tls_alert_received",
        _ => "tls_protocol_error",
    }
}

fn response_error(fault: Fault) -> &'static str {
    match fault {
        Fault::HeadTooLarge | Fault::LineTooLong | Fault::TooManyFields => {
            "http_response_header_section_size"
        }
        Fault::TransferCoding | Fault::TransferCodingUnknown => "http_response_transfer_coding",
        Fault::TrailerTooLarge => "http_response_trailer_section_size",
        _ => "http_protocol_error",
    }
}

impl Reject {
    /// For a fault in the first line of what came through a tunnel that was to hold HTTP: what does not begin as a
    /// request is not HTTP at all.
    pub fn in_tunnel(fault: Fault) -> Self {
        match fault {
            Fault::Tls | Fault::ControlOctet | Fault::Method | Fault::RequestLine | Fault::Version => {
                Self::NotHttp
            }
            _ => Self::Request(fault),
        }
    }
}

impl From<Stop> for Reject {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Loop => Self::Loop,
            Stop::LastHop => Self::LastHop,
        }
    }
}

impl From<Refused> for Reject {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::OwnListener => Self::Loop,
            Refused::Special(class) | Refused::Unnamed(class) => Self::Address(class),
        }
    }
}
