//! A sandbox as the proxy sees it, whatever kind it is: a name, a policy, limits, and how to find out who is asking.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use ipnet::IpNet;

use crate::event::Reporter;
use crate::identity::Resolver;
use crate::limits::SandboxLimits;
use crate::measures::SandboxMeasures;
use crate::pace::Pace;
use crate::policy::Policy;
use crate::tls::Interception;

/// One sandbox; shared by all workers.
pub struct Sandbox {
    name: Arc<str>,
    policy: ArcSwap<Policy>,
    policy_version: AtomicU64,
    limits: SandboxLimits,
    resolver: Option<Arc<Resolver>>,
    measures: SandboxMeasures,
    reporter: Reporter,
    connections: AtomicU32,
    requests: Option<Pace>,
    bytes: Option<Pace>,
    interception: Option<Arc<Interception>>,
}

impl Sandbox {
    /// A sandbox called `name` under `policy`. Without a `resolver` its programs are not identified.
    pub fn new(
        name: &str,
        policy: Arc<Policy>,
        limits: SandboxLimits,
        resolver: Option<Arc<Resolver>>,
        reporter: Reporter,
    ) -> Self {
        Self {
            name: name.into(),
            policy: ArcSwap::new(policy),
            policy_version: AtomicU64::new(1),
            limits,
            resolver,
            measures: SandboxMeasures::default(),
            reporter,
            connections: AtomicU32::new(0),
            requests: Pace::new(limits.requests_per_s.into()),
            bytes: Pace::new(limits.bytes_per_s),
            interception: None,
        }
    }

    /// The same, and TLS inside it can be looked into where its policy judges requests.
    #[must_use]
    pub fn intercepted(mut self, interception: Interception) -> Self {
        self.interception = Some(Arc::new(interception));
        self
    }

    /// How TLS inside it is looked into; without it, a tunnel whose requests are judged must hold plaintext.
    pub fn interception(&self) -> Option<&Arc<Interception>> {
        self.interception.as_ref()
    }

    /// Its name in events and labels.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The same, to be kept.
    pub fn shared_name(&self) -> &Arc<str> {
        &self.name
    }

    /// The policy in force. One decision reads one snapshot.
    pub fn policy_now(&self) -> Arc<Policy> {
        self.policy.load_full()
    }

    /// Counts the policies that were in force. Read before [`policy_now`](Self::policy_now), it is never newer than the
    /// policy: what was granted under an older version than this is to be judged again.
    pub fn policy_version(&self) -> u64 {
        self.policy_version.load(Ordering::Acquire)
    }

    /// Puts another policy in force: every decision after this call is made by it. Returns the one before, which may be
    /// large: it is not for a worker to free. What is open stays open until the workers are told
    /// ([`Appliance::put_policies`](crate::appliance::Appliance::put_policies) does both).
    #[must_use]
    pub fn set_policy(&self, policy: Arc<Policy>) -> Arc<Policy> {
        let before = self.policy.swap(policy);
        self.policy_version.fetch_add(1, Ordering::Release);
        before
    }

    /// Finds out who is asking, if that is wanted and possible.
    pub fn resolver(&self) -> Option<&Arc<Resolver>> {
        self.resolver.as_ref()
    }

    /// Its figures.
    pub fn measures(&self) -> &SandboxMeasures {
        &self.measures
    }

    /// Connections open now.
    pub fn connections_now(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Where its events go.
    pub fn reporter(&self) -> &Reporter {
        &self.reporter
    }

    /// Whether it may make one more request at `now` (since whatever zero all workers share), which is only asked for if
    /// there is a rate.
    pub fn may_request(&self, now: impl FnOnce() -> Duration) -> bool {
        self.requests.as_ref().is_none_or(|pace| pace.try_take(now()))
    }

    /// The rate its bytes are held to, both directions together.
    pub fn bytes_pace(&self) -> Option<&Pace> {
        self.bytes.as_ref()
    }

    /// Admits one more connection, unless the sandbox has as many as it may.
    pub fn admit(self: &Arc<Self>) -> Option<Admitted> {
        let before = self.connections.fetch_add(1, Ordering::Relaxed);
        if self.limits.connections != 0 && before >= self.limits.connections {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        self.measures.connections_active.increment(1.0);
        Some(Admitted(Arc::clone(self)))
    }
}

/// A connection's place among those its sandbox may have; given up when dropped.
pub struct Admitted(Arc<Sandbox>);

impl Admitted {
    /// Whose place it is.
    pub fn sandbox(&self) -> &Arc<Sandbox> {
        &self.0
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
        self.0.measures.connections_active.decrement(1.0);
    }
}

/// Externally managed sandboxes: known by the source address of their connections.
#[derive(Default)]
pub struct Sources {
    /// Narrowest range first.
    ranges: ArcSwap<Vec<(IpNet, Arc<Sandbox>)>>,
}

impl Sources {
    /// The sandboxes behind these ranges; where ranges overlap the narrower one holds.
    pub fn new(ranges: Vec<(IpNet, Arc<Sandbox>)>) -> Self {
        let sources = Self::default();
        sources.set(ranges);
        sources
    }

    /// The same for those that are there from now on.
    pub fn set(&self, mut ranges: Vec<(IpNet, Arc<Sandbox>)>) {
        ranges.sort_by_key(|(range, _)| std::cmp::Reverse(range.prefix_len()));
        self.ranges.store(Arc::new(ranges));
    }

    /// The sandbox a connection from `ip` belongs to.
    pub fn find(&self, ip: IpAddr) -> Option<Arc<Sandbox>> {
        let ip = ip.to_canonical();
        let ranges = self.ranges.load();
        ranges.iter().find(|(range, _)| range.contains(&ip)).map(|(_, sandbox)| Arc::clone(sandbox))
    }
}
