//! What happens without being asked for: taking over what an earlier daemon kept, following the configuration,
//! noticing namespaces that ended, links that were replaced and fences that were changed.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, MutexGuard, PoisonError};

use sluice_netns::{NamespaceId, SandboxName, kept, sweep};

use super::links::shut_link;
use super::order::Order;
use super::{Daemon, Member, Refusal, state};
use crate::admin::wire::{Collected, CollectedSandbox, Kind, Origin, Waiting};
use crate::config::{AttachTo, Config, Shape};
use crate::event::Time;

/// Threads that take over sandboxes at the start: each waits for `nft` most of the time.
const HANDS: usize = 8;

/// What upkeep remembers from one round to the next.
#[derive(Default)]
pub(super) struct Upkeep {
    /// Sandboxes that cannot be yet, and why: of the configuration, or kept by an earlier daemon.
    waiting: Vec<(Order, String)>,
    /// Namespaces in which nobody was found the last time.
    empty: HashSet<Arc<str>>,
    /// Which member's fence is read back next.
    turn: usize,
}

impl Daemon {
    /// Brings the sandboxes of the configuration about, and takes over those that an earlier daemon kept. An error is
    /// one that leaves the configuration unfulfilled for good.
    pub fn begin(&self, config: &Config) -> Result<(), Refusal> {
        let mut orders: Vec<Order> =
            config.sandboxes.iter().map(Order::from_config).collect::<Result<_, _>>()?;
        let configured: HashSet<SandboxName> = orders.iter().map(|order| order.name.clone()).collect();
        let mut left = Vec::new();
        for name in kept(&self.settings.state_dir)? {
            if configured.contains(&name) {
                continue;
            }
            match self.noted_order(&name) {
                Ok(Some(order)) => orders.push(order),
                Ok(None) => self.drop_unclaimed(&name),
                Err(error) => {
                    tracing::error!(%name, %error, "a kept sandbox is not served; it stays fenced");
                    let link = state::noted_link(&state::directory(&self.settings.state_dir, name.as_str()));
                    left.extend(link.and_then(|link| shut_link(&name, &link)));
                }
            }
        }
        self.guard_links(&orders, left);
        let queue = std::sync::Mutex::new(orders.into_iter());
        let failed = std::sync::Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..HANDS {
                scope.spawn(|| {
                    loop {
                        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                        let Some(order) = next else { return };
                        if let Err(refusal) = self.restore(order.clone()) {
                            failed.lock().unwrap_or_else(PoisonError::into_inner).push((order, refusal));
                        }
                    }
                });
            }
        });
        for (order, refusal) in failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            self.begin_failed(order, &refusal)?;
        }
        Ok(())
    }

    /// A sandbox could not be brought about: whether it may come later, is left fenced, or ends the start.
    fn begin_failed(&self, order: Order, refusal: &Refusal) -> Result<(), Refusal> {
        let (name, why) = (&order.name, refusal.to_string());
        match (order.origin, has_link_or_target(&order)) {
            (Origin::Config, false) => {
                return Err(Refusal::Failed(format!("sandbox {name} of the configuration: {why}")));
            }
            (Origin::Config, true) => {
                tracing::warn!(%name, why, "a sandbox of the configuration has to wait");
            }
            (Origin::Api, _) => {
                tracing::error!(%name, why, "a kept sandbox is not served yet; it stays fenced");
            }
        }
        self.upkeep().waiting.push((order, why));
        Ok(())
    }

    fn noted_order(&self, name: &SandboxName) -> Result<Option<Order>, String> {
        let directory = state::directory(&self.settings.state_dir, name.as_str());
        let Some(noted) = state::read(&directory).map_err(|error| error.to_string())? else {
            return Ok(None);
        };
        let since = Time::from_unix_micros(noted.since_us);
        let (order, _) = Order::from_request(&noted.sandbox, since).map_err(|refusal| refusal.to_string())?;
        Ok((order.name == *name).then_some(order))
    }

    /// A kept sandbox that nobody asks for any more: gone from the configuration, or never finished.
    fn drop_unclaimed(&self, name: &SandboxName) {
        match sluice_netns::discard_empty(&self.settings.state_dir, name) {
            Ok(true) => tracing::info!(%name, "removed a sandbox that nobody asks for any more"),
            Ok(false) => tracing::warn!(
                %name,
                "a sandbox is in nobody's configuration, but something runs in it: it stays fenced and is not served; \
                 `sluice sandbox rm {name}` ends it"
            ),
            Err(error) => tracing::error!(%name, %error, "a sandbox that nobody asks for cannot be removed"),
        }
    }

    fn upkeep(&self) -> MutexGuard<'_, Upkeep> {
        self.upkeep.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows a configuration that was read anew: new sandboxes are brought about, those that are gone from it are
    /// removed. Policies are the caller's.
    pub fn follow(&self, config: &Config) {
        let _alone = self.following.lock().unwrap_or_else(PoisonError::into_inner);
        let entries: BTreeMap<&str, _> = config.sandboxes.iter().map(|entry| (&*entry.name, entry)).collect();
        for member in self.members() {
            if member.origin() == Origin::Config && !entries.contains_key(member.name()) {
                let name = member.name();
                if let Err(error) = self.remove(name, "gone from the configuration") {
                    tracing::error!(name, %error, "a sandbox that is gone from the configuration is left");
                }
            }
        }
        let (waited, kept) = std::mem::take(&mut self.upkeep().waiting)
            .into_iter()
            .partition::<Vec<_>, _>(|(order, _)| order.origin == Origin::Config);
        self.upkeep().waiting = kept;
        for (order, _) in waited.iter().filter(|(order, _)| !entries.contains_key(order.name.as_str())) {
            self.unguard(order.name.as_str());
        }
        for entry in entries.values() {
            match self.member(&entry.name) {
                Ok(member) if *member.shape() != entry.shape || member.limits() != entry.limits => {
                    tracing::warn!(
                        name = &*entry.name,
                        "what changed besides the policy takes effect at a restart"
                    );
                }
                Ok(_) => {}
                Err(_) => match Order::from_config(entry) {
                    Ok(order) => match self.restore(order.clone()) {
                        Ok(_) => tracing::info!(name = &*entry.name, "a new sandbox of the configuration"),
                        Err(refusal) => {
                            let why = refusal.to_string();
                            tracing::warn!(name = &*entry.name, why, "a new sandbox has to wait");
                            self.wait(order, why);
                        }
                    },
                    Err(error) => tracing::error!(name = &*entry.name, %error, "a new sandbox cannot be"),
                },
            }
        }
    }

    /// Those that wait for their namespace or link, and why.
    pub fn waiting(&self) -> Vec<Waiting> {
        let upkeep = self.upkeep();
        let told =
            |(order, why): &(Order, String)| Waiting { name: order.name.to_string(), why: why.clone() };
        upkeep.waiting.iter().map(told).collect()
    }

    /// One round, every few seconds.
    pub fn round(&self) {
        self.try_waiting();
        self.end_the_empty(false);
        self.check_host_fence();
        self.check_a_fence();
    }

    fn try_waiting(&self) {
        // While the configuration is followed, that tries them.
        let Ok(_alone) = self.following.try_lock() else { return };
        let waiting = std::mem::take(&mut self.upkeep().waiting);
        for (order, _) in waiting {
            let name = order.name.clone();
            match self.restore(order.clone()) {
                Ok(_) => tracing::info!(%name, "a sandbox that had to wait is served"),
                Err(refusal) => self.wait(order, refusal.to_string()),
            }
        }
    }

    /// Lets a sandbox wait, unless it is there.
    fn wait(&self, order: Order, why: String) {
        let is_there = self.member(order.name.as_str()).is_ok_and(|member| member.origin() == order.origin);
        if !is_there {
            self.upkeep().waiting.push((order, why));
        }
    }

    /// Why a sandbox of the configuration waits, if it does.
    pub(super) fn waits_by_configuration(&self, name: &str) -> Option<String> {
        let upkeep = self.upkeep();
        let of_config =
            |(order, _): &&(Order, String)| order.name.as_str() == name && order.origin == Origin::Config;
        upkeep.waiting.iter().find(of_config).map(|(_, why)| why.clone())
    }

    /// Lets a kept sandbox that is removed wait no longer; whether it did.
    pub(super) fn forget_waiting(&self, name: &str) -> bool {
        let mut upkeep = self.upkeep();
        let before = upkeep.waiting.len();
        upkeep.waiting.retain(|(order, _)| order.name.as_str() != name || order.origin == Origin::Config);
        upkeep.waiting.len() < before
    }

    /// Ends the attached sandboxes whose namespace nobody uses any more. Of two looks in a row, unless `at_once`: a
    /// container's first process may be on its way.
    fn end_the_empty(&self, at_once: bool) -> Vec<String> {
        let attached: Vec<_> =
            self.members().into_iter().filter(|member| member.kind() == Kind::Attached).collect();
        if attached.is_empty() {
            return Vec::new();
        }
        let inhabited = match NamespaceId::all_inhabited() {
            Ok(inhabited) => inhabited,
            Err(error) => {
                tracing::error!(%error, "whether namespaces are in use cannot be told");
                return Vec::new();
            }
        };
        let empty: HashSet<Arc<str>> = attached
            .iter()
            .filter(|member| !is_in_use(member, &inhabited))
            .map(|member| Arc::clone(member.sandbox().shared_name()))
            .collect();
        let before = std::mem::replace(&mut self.upkeep().empty, empty.clone());
        let dead = empty.into_iter().filter(|name| at_once || before.contains(name));
        let mut ended = Vec::new();
        for name in dead {
            let again = self.member(&name).ok().and_then(|member| member.configured_again());
            match self.remove(&name, "its namespace ended") {
                Ok(()) => {
                    tracing::info!(name = &*name, "an attached namespace ended");
                    ended.push(name.to_string());
                    // The configuration still wants it: its namespace may come again under the same path.
                    if let Some(order) = again {
                        self.wait(order, "its namespace ended".to_owned());
                    }
                }
                Err(error) => tracing::error!(name = &*name, %error, "an ended sandbox cannot be removed"),
            }
        }
        ended
    }

    /// Reads one sandbox' fence back, each in its turn, and puts it back where somebody changed it.
    fn check_a_fence(&self) {
        let members = self.members();
        let mut upkeep = self.upkeep();
        upkeep.turn = upkeep.turn.wrapping_add(1);
        let turn = upkeep.turn;
        drop(upkeep);
        // All whose table is gone at once, which is cheap to see; one thoroughly.
        for (number, member) in members.iter().enumerate() {
            let thorough = number == turn % members.len().max(1);
            let found = member.with_network(|network| {
                if !thorough && !matches!(network.read_counters(), Ok(None)) {
                    return None;
                }
                let difference = network.check_fence().err()?;
                Some((difference, network.repair_fence()))
            });
            if let Some((difference, repaired)) = found.flatten() {
                self.tell_tampered(member.name(), &difference.to_string());
                if let Err(error) = repaired {
                    tracing::error!(sandbox = member.name(), %error, "a fence cannot be put back");
                }
            }
        }
    }

    /// Removes what is dead now: sandboxes of `exec` whose owner is, attached namespaces that ended.
    pub fn collect(&self) -> Result<Collected, Refusal> {
        let mut collected = Collected::default();
        for swept in sweep(&self.settings.state_dir)? {
            let (removed, detail) = match swept.outcome {
                Ok(sluice_netns::Outcome::Removed { killed }) => {
                    (true, format!("its owner is dead; {killed} processes ended"))
                }
                Ok(sluice_netns::Outcome::KeptFenced) => {
                    (false, "its owner is dead; processes still run in it, so it stays fenced".to_owned())
                }
                Err(error) => (false, error.to_string()),
            };
            collected.sandboxes.push(CollectedSandbox { name: swept.name.to_string(), removed, detail });
        }
        let ended = self.end_the_empty(true).into_iter();
        collected.sandboxes.extend(ended.map(|name| {
            let detail = "its namespace ended".to_owned();
            CollectedSandbox { name, removed: true, detail }
        }));
        for name in kept(&self.settings.state_dir)? {
            let detail = format!("kept, but not served; `sluice sandbox rm {name}` ends it");
            collected.sandboxes.push(CollectedSandbox { name: name.to_string(), removed: false, detail });
        }
        Ok(collected)
    }
}

fn has_link_or_target(order: &Order) -> bool {
    match &order.shape {
        Shape::Made => false,
        Shape::Attached { .. } => true,
        Shape::External { link, .. } => link.is_some(),
    }
}

/// Whether a process is in the namespace, or the path it was attached by still leads there.
fn is_in_use(member: &Member, inhabited: &HashSet<NamespaceId>) -> bool {
    let Some(id) = member.with_network(sluice_netns::Sandbox::id) else { return false };
    let by_path = match member.shape() {
        Shape::Attached { to: AttachTo::Netns(path), .. } => {
            NamespaceId::of_path(path).is_ok_and(|at| at == id)
        }
        _ => false,
    };
    by_path || inhabited.contains(&id)
}
