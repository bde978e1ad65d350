//! The daemon's sandboxes: made, attached and external, from the configuration and from the admin API.
//!
//! Owns which sandboxes there are, what is noted about them for the next daemon, and their end. Never: HTTP
//! (`admin`), the data path (`worker`), rules and namespaces themselves (`sluice-netns`).
//!
//! The life of a served sandbox: an [`Order`] (`order.rs`) comes from the configuration, from the API or from what an
//! earlier daemon noted (`state.rs`); [`Daemon::establish`] (`make.rs`) makes, attaches or takes over its network,
//! fences it (its link on the host too, `links.rs`), watches it and serves it; it is a [`Member`] (`member.rs`) until it is removed (`make.rs`) or its
//! namespace ends (`upkeep.rs`). `view.rs` tells about it, `denials.rs` about what it was refused; `launches.rs` keeps
//! the commands that were started in it.
//!
//! A stop of the daemon ends no made or attached sandbox: what runs in it stays fenced, and the next daemon takes it
//! over. Names are claimed before the work and given up after it, so that two calls never work on one sandbox.

mod denials;
mod launches;
mod links;
mod make;
mod member;
mod order;
mod refusal;
mod state;
mod upkeep;
mod view;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use launches::Attended;
pub use member::Member;
pub use order::Order;
pub use refusal::Refusal;

use crate::appliance::Appliance;
use crate::sandbox::Sources;

/// Most sandboxes of one daemon; each is a label of a dozen figures.
pub const SANDBOXES_MAX: usize = 10_000;

/// What of the configuration all sandboxes share.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the proxy listens inside every made or attached sandbox.
    pub proxy_address: SocketAddr,
    /// The host's listener.
    pub listen: Option<SocketAddr>,
    /// Where namespaces are pinned and sandboxes noted.
    pub state_dir: PathBuf,
    /// Listening sockets a sandbox gets at most, each served by a worker of its own.
    pub listeners_per_sandbox: usize,
}

/// The daemon: its appliance and its sandboxes.
pub struct Daemon {
    appliance: Appliance,
    settings: Settings,
    /// External sandboxes, as the host's listener knows them.
    sources: Arc<Sources>,
    /// Held while they are listed and set: of two lists made at once the older one must not win.
    enrolling: Mutex<()>,
    members: Mutex<BTreeMap<Arc<str>, Place>>,
    links: links::Links,
    /// Held while sandboxes of the configuration are brought about or removed: two lists of them at once would undo each
    /// other.
    following: Mutex<()>,
    upkeep: Mutex<upkeep::Upkeep>,
}

/// What is behind a name.
#[derive(Clone)]
enum Place {
    /// Somebody is making or removing it.
    Claimed,
    /// A sandbox.
    Living(Arc<Member>),
}

impl Daemon {
    /// A daemon without sandboxes.
    pub fn new(appliance: Appliance, settings: Settings) -> Self {
        Self {
            appliance,
            settings,
            sources: Arc::default(),
            enrolling: Mutex::default(),
            members: Mutex::default(),
            links: links::Links::default(),
            following: Mutex::default(),
            upkeep: Mutex::default(),
        }
    }

    /// What serves them.
    pub fn appliance(&self) -> &Appliance {
        &self.appliance
    }

    /// The external sandboxes, for the host's listener.
    pub fn sources(&self) -> &Arc<Sources> {
        &self.sources
    }

    /// All sandboxes, by name.
    pub fn members(&self) -> Vec<Arc<Member>> {
        let living = |place: &Place| match place {
            Place::Living(member) => Some(Arc::clone(member)),
            Place::Claimed => None,
        };
        self.lock().values().filter_map(living).collect()
    }

    /// The sandbox called `name`.
    pub fn member(&self, name: &str) -> Result<Arc<Member>, Refusal> {
        match self.lock().get(name) {
            Some(Place::Living(member)) => Ok(Arc::clone(member)),
            Some(Place::Claimed) => Err(Refusal::busy(name)),
            None => Err(Refusal::NotFound(name.to_owned())),
        }
    }

    /// Ends the appliance. Sandboxes with a network stay fenced for the next daemon.
    pub fn stop(self) {
        self.appliance.unwatch_all();
        for member in self.members() {
            if let Some(network) = member.take_network()
                && let Err(error) = network.release()
            {
                tracing::warn!(%error, sandbox = member.name(), "a sandbox was not given up cleanly");
            }
        }
        self.appliance.stop();
    }

    /// Claims a name for somebody who makes a sandbox.
    fn claim(&self, name: &str) -> Result<Claim<'_>, Refusal> {
        let mut members = self.lock();
        match members.get(name) {
            Some(Place::Living(_)) => return Err(Refusal::Exists(format!("sandbox {name} exists already"))),
            Some(Place::Claimed) => return Err(Refusal::busy(name)),
            None => {}
        }
        if members.len() >= SANDBOXES_MAX {
            return Err(Refusal::Unavailable(format!(
                "there are {SANDBOXES_MAX} sandboxes, the most there may be"
            )));
        }
        let name: Arc<str> = name.into();
        members.insert(Arc::clone(&name), Place::Claimed);
        Ok(Claim { daemon: self, name, becomes: None })
    }

    /// Claims an existing sandbox for somebody who removes it.
    fn claim_living(&self, name: &str) -> Result<(Claim<'_>, Arc<Member>), Refusal> {
        let mut members = self.lock();
        let Some(place) = members.get_mut(name) else { return Err(Refusal::NotFound(name.to_owned())) };
        match std::mem::replace(place, Place::Claimed) {
            Place::Living(member) => Ok((Claim { daemon: self, name: name.into(), becomes: None }, member)),
            Place::Claimed => Err(Refusal::busy(name)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Place>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name that somebody works on. Dropped, it names what it was settled with, or nothing.
struct Claim<'a> {
    daemon: &'a Daemon,
    name: Arc<str>,
    becomes: Option<Arc<Member>>,
}

impl Claim<'_> {
    fn settle(mut self, member: Arc<Member>) {
        self.becomes = Some(member);
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut members = self.daemon.lock();
        match self.becomes.take() {
            Some(member) => {
                members.insert(Arc::clone(&self.name), Place::Living(member));
                // Its link is the member's from now on. Before the name is given up: its next user may have one too.
                self.daemon.links.others().remove(&*self.name);
            }
            None => drop(members.remove(&self.name)),
        }
    }
}
