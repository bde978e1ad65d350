//! What Sluice tells the world: one event per decision, attempt and change of state.
//!
//! This module owns the shape of an event and its way out. It never decides anything and never blocks whoever reports.
//!
//! The life of an event: a worker, the bypass core or the control plane fills an [`Event`] with borrowed text and hands
//! it to the [`Reporter`] (`reporter.rs`). That renders one line of NDJSON into the bounded buffer of the
//! [`Journal`](journal::Journal) (`journal.rs`), which a single writer thread empties into its file and into the
//! [`Feed`](feed::Feed) (`feed.rs`) of whoever asks the daemon; folds it into the
//! [`Ledger`](ledger::Ledger) (`ledger.rs`) behind the summary of `exec`; and says refusals in words in the log.

pub mod feed;
pub mod journal;
pub mod ledger;
mod render;
mod reporter;
mod time;

use std::net::IpAddr;
use std::str::FromStr;

use serde::{Serialize, Serializer};

pub use reporter::{Reporter, Words};
pub use time::Time;

/// What happened. The names are relied upon by shippers and dashboards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A CONNECT was granted and dialled.
    ConnectAllowed,
    /// A CONNECT was refused, by policy or because the dial failed.
    ConnectDenied,
    /// A request was granted and forwarded.
    RequestAllowed,
    /// A request was refused.
    RequestDenied,
    /// A client broke off the TLS that was to be looked into.
    TlsFailed,
    /// A tunnel ended.
    TunnelClosed,
    /// Somebody tried a way other than the proxy.
    BypassDetected,
    /// Something got past the inner fence and was dropped by the host's.
    FenceViolation,
    /// A sandbox is ready.
    SandboxStarted,
    /// A sandbox is gone.
    SandboxStopped,
    /// A policy is in force.
    PolicyLoaded,
    /// A policy was bad; the one before it stays in force.
    PolicyRejected,
    /// A path of a sandbox runs another binary than when it was first seen.
    BinaryChanged,
    /// Log records were lost before they could be read.
    MonitorLost,
}

impl Kind {
    /// All of them, in their order.
    pub const ALL: [Self; 14] = [
        Self::ConnectAllowed,
        Self::ConnectDenied,
        Self::RequestAllowed,
        Self::RequestDenied,
        Self::TlsFailed,
        Self::TunnelClosed,
        Self::BypassDetected,
        Self::FenceViolation,
        Self::SandboxStarted,
        Self::SandboxStopped,
        Self::PolicyLoaded,
        Self::PolicyRejected,
        Self::BinaryChanged,
        Self::MonitorLost,
    ];

    /// The name in the line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ConnectAllowed => "connect.allowed",
            Self::ConnectDenied => "connect.denied",
            Self::RequestAllowed => "request.allowed",
            Self::RequestDenied => "request.denied",
            Self::TlsFailed => "tls.failed",
            Self::TunnelClosed => "tunnel.closed",
            Self::BypassDetected => "bypass.detected",
            Self::FenceViolation => "fence.violation",
            Self::SandboxStarted => "sandbox.started",
            Self::SandboxStopped => "sandbox.stopped",
            Self::PolicyLoaded => "policy.loaded",
            Self::PolicyRejected => "policy.rejected",
            Self::BinaryChanged => "binary.changed",
            Self::MonitorLost => "monitor.lost",
        }
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// By which way the traffic went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    /// Through the proxy.
    Proxy,
    /// Past it.
    Direct,
}

impl Via {
    /// The word in the line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Proxy => "proxy",
            Self::Direct => "direct",
        }
    }
}

/// What was done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Passed.
    Allowed,
    /// Refused with an answer.
    Denied,
    /// Passed although the policy would refuse it (`enforcement: audit`).
    Audited,
    /// Refused by the kernel at once.
    Rejected,
    /// Swallowed by the kernel.
    Dropped,
}

impl Action {
    /// The word in the line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Audited => "audited",
            Self::Rejected => "rejected",
            Self::Dropped => "dropped",
        }
    }
}

/// A process as events show it.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct ProcessView<'a> {
    /// Process id in the host's namespace.
    pub pid: u32,
    /// Path of the program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exe: Option<&'a str>,
    /// SHA-256 of the program, when it was computed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<&'a str>,
    /// The kernel's short name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comm: Option<&'a str>,
    /// Programs of the parents, nearest first.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub ancestors: &'a [String],
}

/// A process that may have been it, as events show it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CandidateView<'a> {
    /// Process id in the host's namespace.
    pub pid: u32,
    /// Path of the program.
    pub exe: &'a str,
    /// The kernel's short name.
    pub comm: &'a str,
}

/// One event. Absent fields are left out of the line.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs)] // named as in docs/events.md, which says what they mean
pub struct Event<'a> {
    pub time: Time,
    pub event: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<Via>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action: Option<Action>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proto: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst_host: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst_ip: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dst_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessView<'a>>,
    /// Where the process is not known: those of the same user in the sandbox.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub candidates: &'a [CandidateView<'a>],
    /// How the process is known (decision 5).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<&'a str>,
    /// What each source of identity said, when it was not found at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity_trail: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_up: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_down: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// Of a direct attempt: whether the program would reach that address and port through the proxy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_via_proxy: Option<bool>,
    /// Free words on the cause: an errno in words, the errors of a policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<Time>,
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        if let Some(kind) = Self::ALL.into_iter().find(|kind| kind.name() == name) {
            return Ok(kind);
        }
        let names: Vec<&str> = Self::ALL.iter().map(|kind| kind.name()).collect();
        Err(format!("there is no kind {name:?}; there are {}", names.join(", ")))
    }
}

impl Event<'_> {
    /// An event of `kind` at this moment, with nothing else said yet.
    pub fn now(kind: Kind) -> Self {
        Self::at(kind, Time::now())
    }

    /// An event of `kind` at `time`, with nothing else said yet.
    pub const fn at(kind: Kind, time: Time) -> Self {
        Self {
            time,
            event: kind,
            sandbox: None,
            reason: None,
            via: None,
            action: None,
            proto: None,
            dst_host: None,
            dst_ip: None,
            dst_port: None,
            src_port: None,
            uid: None,
            process: None,
            candidates: &[],
            identity: None,
            identity_trail: None,
            rule: None,
            method: None,
            path: None,
            status: None,
            bytes_up: None,
            bytes_down: None,
            duration_ms: None,
            allowed_via_proxy: None,
            detail: None,
            hint: None,
            count: None,
            first: None,
            last: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_can_be_asked_for_by_its_name() {
        for (number, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, number, "{kind:?} is not in its place");
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        // The last one: a kind that is added behind it belongs into the list too.
        assert_eq!(Kind::MonitorLost as usize + 1, Kind::ALL.len());
        assert!("bypass.detcted".parse::<Kind>().is_err());
    }

    #[test]
    fn an_event_is_one_flat_line_without_what_is_not_known() {
        let mut event = Event::at(Kind::BypassDetected, Time::from_unix_micros(1_700_000_000_000_001));
        event.sandbox = Some("a\n\"b");
        event.via = Some(Via::Direct);
        event.action = Some(Action::Rejected);
        event.process = Some(ProcessView { pid: 7, exe: Some("/bin/x"), ..ProcessView::default() });
        assert_eq!(
            serde_json::to_string(&event).unwrap(),
            r#"{"time":"2023-11-14T22:13:20.000001Z","event":"bypass.detected","sandbox":"a\n\"b","via":"direct","action":"rejected","process":{"pid":7,"exe":"/bin/x"}}"#
        );
    }
}
