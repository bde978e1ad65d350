//! The links of sandboxes, fenced on the host's side.
//!
//! One table guards the links of all sandboxes that live, and of those that do not yet or cannot: a link that an earlier
//! daemon fenced stays fenced until its sandbox is removed, whatever hinders it from being served. What the kernel has is
//! held against what it should have every few seconds: a firewall that is loaded anew takes everybody's rules away.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sluice_netns::{
    Admit, GuardedLink, HostCounterReader, HostFence, HostFenceOwner, LogLimit, LogToken, SandboxName,
    Traffic,
};

use super::order::Order;
use super::{Daemon, Member, Refusal};
use crate::admin::wire::{FenceState, HostFence as HostFenceView};
use crate::config::Shape;
use crate::made::MadeError;

/// Every how many rounds the host fence is read back in full, which takes `nft` some milliseconds; that a sandbox is
/// missing from it is seen in every round.
const READ_BACK_EVERY: u32 = 5;

/// What is known of the host fence.
#[derive(Default)]
pub(super) struct Links {
    /// Links of sandboxes that are no members: being made, waiting, or kept without being served.
    others: Mutex<BTreeMap<String, GuardedLink>>,
    /// Held while the fence is loaded: it is one table for all.
    loaded: Mutex<Loaded>,
}

/// What was loaded last.
struct Loaded {
    /// By sandbox, each link with its index: one made anew under its name has no chain. `None` after a failure.
    links: Option<BTreeMap<String, (LogToken, u32)>>,
    rounds: u32,
    /// The table is ours for as long as it guards anything.
    owner: Option<HostFenceOwner>,
    /// Why loading it again failed, as it was said last: the same is said once.
    failure: Option<String>,
}

impl Default for Loaded {
    fn default() -> Self {
        Self { links: Some(BTreeMap::new()), rounds: 0, owner: None, failure: None }
    }
}

impl Links {
    pub(super) fn others(&self) -> MutexGuard<'_, BTreeMap<String, GuardedLink>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn loaded(&self) -> MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Daemon {
    /// Fences the link of a sandbox that is coming, if it names one, before anything is served behind it.
    pub(super) fn guard_link(&self, order: &Order) -> Result<Option<GuardedLink>, Refusal> {
        let name = order.name.as_str();
        let Some(wanted) = guarded_link(order, self.settings.listen)? else {
            self.links.others().remove(name);
            return Ok(None);
        };
        let Some(index) = index_of(&wanted) else {
            return Err(Refusal::Invalid(format!(
                "there is no link {} on this host; `ip link` shows those there are",
                wanted.link
            )));
        };
        let before = self.links.others().get(name).filter(|before| guards_the_same(before, &wanted)).cloned();
        let is_new = before.is_none();
        let guarded = before.unwrap_or(wanted);
        let as_loaded = (guarded.token, index);
        if !is_new && self.links.loaded().links.as_ref().and_then(|links| links.get(name)) == Some(&as_loaded)
        {
            return Ok(Some(guarded));
        }
        self.links.others().insert(name.to_owned(), guarded.clone());
        self.load_host_fence().inspect_err(|_| {
            if is_new {
                self.links.others().remove(name);
            }
        })?;
        Ok(Some(guarded))
    }

    /// Fences the links of all that are coming at the start, at once, and those of `left` that cannot be served: what an
    /// earlier daemon fenced is never without.
    pub(super) fn guard_links(&self, orders: &[Order], left: Vec<GuardedLink>) {
        let coming =
            orders.iter().filter_map(|order| guarded_link(order, self.settings.listen).ok().flatten());
        let links: Vec<GuardedLink> = coming.chain(left).filter(|one| index_of(one).is_some()).collect();
        if links.is_empty() {
            return;
        }
        let by_name =
            |links: &[GuardedLink]| links.iter().map(|one| (one.name.to_string(), one.clone())).collect();
        *self.links.others() = by_name(&links);
        let Err(error) = self.load_host_fence() else { return };
        tracing::error!(%error, "the links cannot be fenced together");
        // Until then the kernel has what the earlier daemon loaded.
        let (good, bad): (Vec<_>, Vec<_>) =
            links.into_iter().partition(|one| self.fence_of(vec![one.clone()]).try_out().is_ok());
        for one in bad {
            tracing::error!(link = %one.link, name = %one.name, "this link cannot be fenced; its sandbox has to wait");
        }
        *self.links.others() = by_name(&good);
        if let Err(error) = self.load_host_fence() {
            tracing::error!(%error, "the host fence cannot be loaded; sandboxes with links have to wait");
        }
    }

    /// Nobody asks for this sandbox any more: its link is fenced no longer.
    pub(super) fn unguard(&self, name: &str) {
        if self.links.others().remove(name).is_some() {
            self.load_host_fence()
                .unwrap_or_else(|error| tracing::error!(%error, "the host fence cannot be loaded"));
        }
    }

    /// Makes the kernel's host fence that of all sandboxes that live or are coming, as far as their links are there.
    pub(super) fn load_host_fence(&self) -> Result<(), Refusal> {
        let mut loaded = self.links.loaded();
        let links = self.links_wanted();
        // Until it has gone well: upkeep tries again.
        loaded.links = None;
        let known = links.iter().map(|(one, index)| (one.name.to_string(), (one.token, *index))).collect();
        let fence = self.fence_of(links.into_iter().map(|(one, _)| one).collect());
        let owner = loaded.owner.take().map_or_else(HostFenceOwner::claim, Ok);
        if fence.links.is_empty() {
            // Where it is another daemon's, there is nothing of ours to remove.
            if owner.is_ok() {
                HostFence::remove()?;
            }
        } else {
            loaded.owner = Some(owner?);
            self.appliance.watch_host().map_err(MadeError::Source)?;
            fence.load()?;
        }
        loaded.links = Some(known);
        loaded.failure = None;
        Ok(())
    }

    /// All links to be fenced that are on this host, each with its index.
    fn links_wanted(&self) -> Vec<(GuardedLink, u32)> {
        // First the others: one that becomes a member meanwhile is in either or in both.
        let mut links: BTreeMap<String, GuardedLink> = self.links.others().clone();
        let members = self.members();
        let living =
            members.iter().filter_map(|member| Some((member.name().to_owned(), member.guarded()?.clone())));
        links.extend(living);
        links.into_values().filter_map(|one| index_of(&one).map(|index| (one, index))).collect()
    }

    fn fence_of(&self, links: Vec<GuardedLink>) -> HostFence {
        let limit = LogLimit { into: self.appliance.bypass_source().log_into(), ..LogLimit::default() };
        HostFence { links, limit }
    }

    /// Loads the host fence again where a link was made anew under its old name, where loading had failed, and where
    /// somebody took it away or changed it.
    pub(super) fn check_host_fence(&self) {
        let mut loaded = self.links.loaded();
        let wanted = self.links_wanted();
        loaded.rounds = loaded.rounds.wrapping_add(1);
        let thorough = loaded.rounds.is_multiple_of(READ_BACK_EVERY);
        let known: BTreeMap<_, _> =
            wanted.iter().map(|(one, index)| (one.name.to_string(), (one.token, *index))).collect();
        let changed = match &loaded.links {
            // No table, and none is wanted.
            Some(before) if before.is_empty() && known.is_empty() => return,
            Some(before) if *before == known => match self.host_fence_difference(&wanted, thorough) {
                None => return,
                difference => difference,
            },
            _ => None,
        };
        drop(loaded);
        if let Some(difference) = changed {
            for (one, _) in &wanted {
                self.tell_tampered(one.name.as_str(), &difference);
            }
        }
        match self.load_host_fence() {
            Ok(()) => tracing::debug!("the host fence was loaded again"),
            Err(error) => {
                let failure = Some(error.to_string());
                let mut loaded = self.links.loaded();
                if loaded.failure != failure {
                    tracing::error!(%error, "the host fence cannot be loaded; this is tried again every few seconds");
                    loaded.failure = failure;
                }
            }
        }
    }

    /// In what the kernel's host fence is not the one that was loaded for `links`.
    fn host_fence_difference(&self, links: &[(GuardedLink, u32)], thorough: bool) -> Option<String> {
        let counted = match host_counts() {
            Ok(counted) => counted,
            Err(why) => return Some(why),
        };
        if let Some((missing, _)) = links.iter().find(|(one, _)| !counted.contains_key(one.name.as_str())) {
            return Some(missing_from_host_fence(&missing.name));
        }
        let fence = || self.fence_of(links.iter().map(|(one, _)| one.clone()).collect());
        thorough.then(|| fence().check().err()).flatten().map(|error| error.to_string())
    }

    /// How the fence on the host's side of a sandbox' link stands, read back from the kernel.
    pub(super) fn host_fence_of(&self, member: &Member) -> HostFenceView {
        let Some(guarded) = member.guarded() else {
            return HostFenceView { state: FenceState::None, link: None, dropped: None, detail: None };
        };
        let dropped = host_counts().ok().and_then(|counts| Some(counts.get(member.name())?.packets));
        let loaded = self.links.loaded();
        let wanted = self.links_wanted();
        let detail = match (&loaded.links, wanted.iter().find(|(one, _)| one.name == guarded.name)) {
            (_, None) => Some(format!("there is no link {} on this host just now", guarded.link)),
            (None, _) => {
                Some("it could not be loaded; the daemon's log says why, and it tries again".to_owned())
            }
            (Some(known), Some((one, index))) if known.get(member.name()) != Some(&(one.token, *index)) => {
                Some(format!("link {} was made anew; it is about to be fenced again", one.link))
            }
            _ => self.host_fence_difference(&wanted, true),
        };
        let state = if detail.is_none() { FenceState::Up } else { FenceState::Differs };
        HostFenceView { state, link: Some(guarded.link.to_string()), dropped, detail }
    }
}

/// What the links of each sandbox dropped, by its name.
pub(super) fn host_counts() -> Result<HashMap<String, Traffic>, String> {
    HostCounterReader::open().and_then(|reader| reader.read()).map_err(|error| error.to_string())
}

fn missing_from_host_fence(name: &SandboxName) -> String {
    format!("sandbox {name} was missing from the fence on the host's side")
}

/// The link's index; `None` if it is not on this host.
fn index_of(guarded: &GuardedLink) -> Option<u32> {
    nix::net::if_::if_nametoindex(guarded.link.to_string().as_str()).ok()
}

fn guards_the_same(one: &GuardedLink, other: &GuardedLink) -> bool {
    (&one.name, &one.link, one.admit) == (&other.name, &other.link, other.admit)
}

/// The link to be fenced on the host's side, and what may come out of it.
fn guarded_link(order: &Order, listen: Option<std::net::SocketAddr>) -> Result<Option<GuardedLink>, Refusal> {
    let (link, admit) = match (&order.shape, listen) {
        (Shape::Attached { link: Some(link), .. }, _) => (link, Admit::Nothing),
        (Shape::External { source, link: Some(link) }, Some(listen)) => {
            (link, Admit::Proxy { source: source.addr(), listen })
        }
        _ => return Ok(None),
    };
    let token = LogToken::random()?;
    Ok(Some(GuardedLink { name: order.name.clone(), token, link: link.clone(), admit }))
}

/// The link of a sandbox that was kept and can not be served: nothing may come out of it.
pub(super) fn shut_link(name: &SandboxName, link: &str) -> Option<GuardedLink> {
    let (link, token) = (link.parse().ok()?, LogToken::random().ok()?);
    Some(GuardedLink { name: name.clone(), token, link, admit: Admit::Nothing })
}
