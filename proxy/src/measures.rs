//! The figures Prometheus scrapes: names, units and the handles the data path holds.
//!
//! Labels come from the configuration and from closed sets, never from a peer's bytes. Those of one sandbox are in
//! `measures/sandbox.rs` and end with it: a daemon that makes a thousand sandboxes a day keeps no figure of a dead one.

mod sandbox;

pub use sandbox::{Counted, Fenced, SandboxMeasures, render, unknown_source};

use std::cell::RefCell;

use metrics::{
    Counter, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

/// Upper bounds of the latency histograms, in seconds: 1 µs to 10 s.
pub const SECONDS_BUCKETS: [f64; 15] =
    [1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 5e-3, 2.5e-2, 0.1, 1.0, 10.0];

/// The figures of one worker, shared by its connections.
pub struct WorkerMeasures {
    /// From the head of a CONNECT to its answer.
    pub connect_duration: Histogram,
    /// One policy decision.
    pub policy_decision: Histogram,
    /// One slice of judging open connections again after a policy was swapped: for so long nothing else moved.
    pub rejudge_slice: Histogram,
    /// Identity lookups answered in place.
    pub identity_hits: Counter,
    /// Identity lookups that had to wait for a search.
    pub identity_scans: Counter,
    /// Names answered from the worker's cache.
    pub dns_hits: Counter,
    /// Names asked of the control plane.
    pub dns_misses: Counter,
    /// From the question to the answer.
    pub dns_duration: Histogram,
    /// Accepts put off because descriptors or memory ran out.
    pub accept_pauses: Counter,
    /// Requests that went over an upstream connection kept from before.
    pub upstream_reused: Counter,
    /// Upstream connections dialled.
    pub upstream_dialled: Counter,
    /// Identity lookups by the source that answered, as they turn up: to look a handle up costs more than to record.
    identity_lookups: RefCell<Vec<(&'static str, Histogram)>>,
    /// Certificates signed for intercepted names.
    pub leaves_signed: Counter,
    /// Those found in the worker's memory.
    pub leaves_cached: Counter,
    /// Handshakes with clients.
    pub tls_clients: Handshakes,
    /// Handshakes with origins.
    pub tls_origins: Handshakes,
}

impl WorkerMeasures {
    /// The handles of a worker.
    pub fn new() -> Self {
        Self {
            connect_duration: histogram!("sluice_connect_duration_seconds"),
            policy_decision: histogram!("sluice_policy_decisions_seconds"),
            rejudge_slice: histogram!("sluice_policy_rejudge_slice_seconds"),
            identity_hits: counter!("sluice_identity_cache_total", "result" => "hit"),
            identity_scans: counter!("sluice_identity_cache_total", "result" => "scan"),
            dns_hits: counter!("sluice_dns_lookups_total", "result" => "cached"),
            dns_misses: counter!("sluice_dns_lookups_total", "result" => "asked"),
            dns_duration: histogram!("sluice_dns_duration_seconds"),
            accept_pauses: counter!("sluice_accept_pauses_total"),
            upstream_reused: counter!("sluice_upstream_connections_total", "how" => "reused"),
            upstream_dialled: counter!("sluice_upstream_connections_total", "how" => "dialled"),
            identity_lookups: RefCell::default(),
            leaves_signed: counter!("sluice_tls_leaves_total", "how" => "signed"),
            leaves_cached: counter!("sluice_tls_leaves_total", "how" => "cached"),
            tls_clients: Handshakes::with("client"),
            tls_origins: Handshakes::with("origin"),
        }
    }
}

impl WorkerMeasures {
    /// Counts one identity lookup, by the source that answered; of a closed set.
    pub fn identified(&self, source: &'static str, seconds: f64) {
        let mut known = self.identity_lookups.borrow_mut();
        let at = known.iter().position(|(name, _)| *name == source).unwrap_or_else(|| {
            known.push((source, histogram!("sluice_identity_lookup_seconds", "source" => source)));
            known.len() - 1
        });
        known[at].1.record(seconds);
    }
}

impl Default for WorkerMeasures {
    fn default() -> Self {
        Self::new()
    }
}

/// TLS handshakes with one kind of peer, by outcome.
pub struct Handshakes {
    full: Counter,
    resumed: Counter,
    failed: Counter,
}

impl Handshakes {
    fn with(peer: &'static str) -> Self {
        let outcome = |outcome: &'static str| counter!("sluice_tls_handshakes_total", "peer" => peer, "outcome" => outcome);
        Self { full: outcome("full"), resumed: outcome("resumed"), failed: outcome("failed") }
    }

    /// One has come about.
    pub fn done(&self, resumed: bool) {
        if resumed { &self.resumed } else { &self.full }.increment(1);
    }

    /// One has not.
    pub fn failed(&self) {
        self.failed.increment(1);
    }
}

/// Says what every figure means, for `# HELP`.
pub fn describe() {
    gauge!("sluice_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    describe_gauge!("sluice_build_info", "Version of the running binary; always 1");
    describe_histogram!(
        "sluice_connect_duration_seconds",
        Unit::Seconds,
        "From the head of a CONNECT to its answer"
    );
    describe_histogram!("sluice_policy_decisions_seconds", Unit::Seconds, "One policy decision");
    describe_histogram!(
        "sluice_policy_rejudge_slice_seconds",
        Unit::Seconds,
        "One slice of judging open connections again after a policy was swapped"
    );
    describe_histogram!(
        "sluice_identity_lookup_seconds",
        Unit::Seconds,
        "One identity lookup, by the source that answered"
    );
    describe_counter!("sluice_identity_trace_total", "What became of the kernel's trace of connects");
    describe_counter!("sluice_identity_cache_total", "Identity cache hits and misses");
    describe_counter!("sluice_kmsg_forged_total", "Log lines that only looked like ours");
    describe_counter!("sluice_kmsg_lost_total", "Kernel log records overwritten before they were read");
    describe_counter!("sluice_dns_lookups_total", "Names looked up, by where the answer came from");
    describe_histogram!("sluice_dns_duration_seconds", Unit::Seconds, "Names asked of the control plane");
    describe_gauge!("sluice_sandbox_count", "Sandboxes served now");
    describe_gauge!("sluice_pipes_in_use", "Pipes that carry bulk now");
    describe_counter!("sluice_accept_pauses_total", "Accepts put off because descriptors or memory ran out");
    describe_counter!("sluice_upstream_connections_total", "Upstream connections dialled and reused");
    describe_counter!(
        "sluice_tls_handshakes_total",
        "TLS handshakes of intercepted tunnels, by peer and outcome"
    );
    describe_counter!("sluice_tls_leaves_total", "Certificates for intercepted names, signed and remembered");
    describe_counter!(
        "sluice_events_dropped_total",
        "Events lost because their file was slower than they came"
    );
}
