//! The links of sandboxes, fenced on the host's side.

use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};

use sluice_netns::{Admit, GuardedLink, HostFence, LogLimit, LogToken};

use super::order::Order;
use super::{Daemon, Refusal};
use crate::config::Shape;
use crate::made::MadeError;

impl Daemon {
    /// Fences the link of a sandbox that is coming, if it names one, before anything is served behind it.
    pub(super) fn guard_link(&self, order: &Order) -> Result<Option<GuardedLink>, Refusal> {
        let name = order.name.as_str();
        if let Some(guarded) = self.coming().get(name) {
            return Ok(Some(guarded.clone()));
        }
        let Some(guarded) = guarded_link(order, self.settings.listen)? else { return Ok(None) };
        if !exists(&guarded) {
            return Err(Refusal::Invalid(format!(
                "there is no link {} on this host; `ip link` shows those there are",
                guarded.link
            )));
        }
        self.coming().insert(name.to_owned(), guarded.clone());
        self.load_host_fence().inspect_err(|_| {
            self.coming().remove(name);
        })?;
        Ok(Some(guarded))
    }

    /// The same for all that are coming at the start, at once: what an earlier daemon fenced is never without.
    pub(super) fn guard_links(&self, orders: &[Order]) {
        let links =
            orders.iter().filter_map(|order| guarded_link(order, self.settings.listen).ok().flatten());
        let links: Vec<_> = links.filter(exists).map(|guarded| (guarded.name.to_string(), guarded)).collect();
        if links.is_empty() {
            return;
        }
        self.coming().extend(links);
        if let Err(error) = self.load_host_fence() {
            tracing::error!(%error, "the links cannot be fenced together; each is tried by itself");
            self.coming().clear();
        }
    }

    /// The guarded links of sandboxes that are being made.
    pub(super) fn coming(&self) -> MutexGuard<'_, BTreeMap<String, GuardedLink>> {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the kernel's host fence that of all sandboxes that live or are coming, as far as their links are there.
    pub(super) fn load_host_fence(&self) -> Result<(), Refusal> {
        let _alone = self.host_fence.lock().unwrap_or_else(PoisonError::into_inner);
        // First those that are coming: one that becomes a member meanwhile is in either or in both.
        let mut links: BTreeMap<String, GuardedLink> = self.coming().clone();
        let members = self.members();
        let living =
            members.iter().filter_map(|member| Some((member.name().to_owned(), member.guarded()?.clone())));
        links.extend(living);
        let links: Vec<_> = links.into_values().filter(exists).collect();
        let limit = LogLimit { into: self.appliance.bypass_source().log_into(), ..LogLimit::default() };
        let fence = HostFence { links, limit };
        if !fence.links.is_empty() {
            self.appliance.watch_host().map_err(MadeError::Source)?;
        }
        let done = if fence.links.is_empty() { HostFence::remove() } else { fence.load() };
        done.map_err(Refusal::from)
    }

    /// A link that was made anew under its old name has no chain of ours: the host fence is loaded again.
    pub(super) fn follow_links(&self) {
        let index = |link: &str| nix::net::if_::if_nametoindex(link).ok();
        let now: BTreeMap<String, u32> = self
            .members()
            .iter()
            .filter_map(|member| member.guarded())
            .filter_map(|guarded| Some((guarded.link.to_string(), index(&guarded.link.to_string())?)))
            .collect();
        let mut upkeep = self.upkeep.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut upkeep.links, now.clone());
        drop(upkeep);
        let replaced = now.iter().any(|(link, index)| before.get(link) != Some(index));
        if replaced {
            match self.load_host_fence() {
                Ok(()) => tracing::debug!("the host fence was loaded for a link that is new"),
                Err(error) => tracing::error!(%error, "a link is new; the host fence cannot be loaded"),
            }
        }
    }
}

/// Whether its link is on this host.
fn exists(guarded: &GuardedLink) -> bool {
    nix::net::if_::if_nametoindex(guarded.link.to_string().as_str()).is_ok()
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
