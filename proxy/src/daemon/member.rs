//! One sandbox of the daemon's.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use sluice_netns::{Counters, GuardedLink, Sandbox as Network};

use sluice_seccomp::Notes;

use super::launches::Launches;
use super::order::Order;
use crate::admin::wire::{Kind, Origin, PolicyText};
use crate::config::{IdentityMode, Shape};
use crate::event::Time;
use crate::limits::SandboxLimits;
use crate::measures::Fenced;
use crate::policy::PolicyFile;
use crate::sandbox::Sandbox;

/// A served sandbox. It lives until it is removed or its namespace ends.
pub struct Member {
    sandbox: Arc<Sandbox>,
    shape: Shape,
    origin: Origin,
    identity: IdentityMode,
    limits: SandboxLimits,
    since: Time,
    policy: Mutex<PolicyNow>,
    /// Its namespace and fence; `None` for an external one, and once it is removed.
    network: Mutex<Option<Network>>,
    /// What is fenced on the host's side.
    guarded: Option<GuardedLink>,
    /// What the witnesses of its workloads note, if it may have any.
    notes: Option<Arc<Notes>>,
    launches: Launches,
}

/// The policy in force, as it is shown and noted.
#[derive(Clone)]
pub(super) struct PolicyNow {
    pub(super) file: Arc<PolicyFile>,
    pub(super) label: Arc<str>,
    pub(super) text: Option<PolicyText>,
}

impl Member {
    pub(super) fn new(
        order: Order,
        sandbox: Arc<Sandbox>,
        network: Option<Network>,
        guarded: Option<GuardedLink>,
        notes: Option<Arc<Notes>>,
    ) -> Self {
        Self {
            sandbox,
            shape: order.shape,
            origin: order.origin,
            identity: order.identity,
            limits: order.limits,
            since: order.since,
            policy: Mutex::new(PolicyNow {
                file: order.policy,
                label: order.policy_label,
                text: order.policy_text,
            }),
            network: Mutex::new(network),
            guarded,
            notes,
            launches: Launches::default(),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.sandbox.name()
    }

    /// As the proxy sees it.
    pub fn sandbox(&self) -> &Arc<Sandbox> {
        &self.sandbox
    }

    /// Made, attached or external.
    pub fn kind(&self) -> Kind {
        match self.shape {
            Shape::Made => Kind::Made,
            Shape::Attached { .. } => Kind::Attached,
            Shape::External { .. } => Kind::External,
        }
    }

    /// The addresses of an external one.
    pub fn source(&self) -> Option<IpNet> {
        match self.shape {
            Shape::External { source, .. } => Some(source),
            _ => None,
        }
    }

    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }

    pub(super) fn origin(&self) -> Origin {
        self.origin
    }

    /// The order that would bring it about again, for one of the configuration that is attached.
    pub(super) fn configured_again(&self) -> Option<Order> {
        if self.origin != Origin::Config || !matches!(self.shape, Shape::Attached { .. }) {
            return None;
        }
        let policy = self.policy().clone();
        Some(Order {
            name: self.name().parse().ok()?,
            shape: self.shape.clone(),
            policy: policy.file,
            policy_label: policy.label,
            policy_text: None,
            identity: self.identity,
            limits: self.limits,
            origin: self.origin,
            since: Time::now(),
        })
    }

    pub(super) fn identity(&self) -> IdentityMode {
        self.identity
    }

    pub(super) fn limits(&self) -> SandboxLimits {
        self.limits
    }

    pub(super) fn since(&self) -> Time {
        self.since
    }

    pub(super) fn notes(&self) -> Option<&Arc<Notes>> {
        self.notes.as_ref()
    }

    pub(super) fn launches(&self) -> &Launches {
        &self.launches
    }

    pub(super) fn guarded(&self) -> Option<&GuardedLink> {
        self.guarded.as_ref()
    }

    pub(super) fn policy(&self) -> MutexGuard<'_, PolicyNow> {
        self.policy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `work` makes of its network; `None` if it has none, or no more.
    pub(super) fn with_network<R>(&self, work: impl FnOnce(&Network) -> R) -> Option<R> {
        self.lock().as_ref().map(work)
    }

    pub(super) fn take_network(&self) -> Option<Network> {
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Network>> {
        self.network.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What its fence counted; `None` if it has none or it cannot be read.
    pub(super) fn counters(&self) -> Option<Counters> {
        self.with_network(|network| network.counters().ok()).flatten()
    }

    /// What its fences counted, for the figures.
    pub(super) fn fenced(&self, dropped: Option<u64>) -> Fenced {
        let refused = self.counters().map(|counters| {
            [
                ("tcp", counters.tcp.packets),
                ("udp", counters.udp.packets),
                ("icmp", counters.icmp.packets),
                ("other", counters.other.packets),
            ]
        });
        let notes_lost = self
            .notes
            .as_ref()
            .map(|notes| [("overwritten", notes.overflow()), ("garbled", notes.garbled())]);
        Fenced { refused, dropped, notes_lost }
    }
}
