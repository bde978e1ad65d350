//! Removing what dead owners left behind, and only that.

use std::path::Path;

use crate::state::{Claim, Record, StateDir};
use crate::{Error, SandboxName, nf_log, removal};

/// A sandbox whose owner was found dead.
#[derive(Debug)]
pub struct Swept {
    /// Its name.
    pub name: SandboxName,
    /// The owner that died, if it had come to noting itself.
    pub owner: Option<u32>,
    /// What was done, or why the sandbox is still there (the next sweep tries again).
    pub outcome: Result<Outcome, Error>,
}

/// What a sweep did with a dead owner's sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is gone.
    Removed {
        /// How many processes had to be killed.
        killed: usize,
    },
    /// It is an attached namespace in which processes still run, so its fence was kept: they have no way out until
    /// somebody attaches again under the same name. A sweep never opens a fence.
    KeptFenced,
}

/// Removes every sandbox under `state_dir` whose owner is dead: kills the processes in it, unmounts and removes.
///
/// Living owners' sandboxes, kept ones ([`crate::Spec::kept`]), attached namespaces in which something still runs ([`Outcome::KeptFenced`]) and
/// everything else on the host are left alone. Also restores the kernel's log setting
/// if no sandbox lives any more. Safe to call at any time, from several processes at once.
pub fn sweep(state_dir: &Path) -> Result<Vec<Swept>, Error> {
    let state = StateDir::new(state_dir);
    let dead = if state.exists() { claim_dead(&state)? } else { Vec::new() };
    let swept = dead.into_iter().map(|(claim, owner)| remove(&state, claim, owner)).collect();
    nf_log::HOST.restore_if_unused()?;
    Ok(swept)
}

/// The names of the kept sandboxes under `state_dir` that have no living owner, in order.
pub fn kept(state_dir: &Path) -> Result<Vec<SandboxName>, Error> {
    let state = StateDir::new(state_dir);
    if !state.exists() {
        return Ok(Vec::new());
    }
    let guard = state.lock()?;
    let mut kept = Vec::new();
    for name in guard.names()? {
        let record = guard.read_record(&name)?;
        if record.as_ref().map_or(Ok(false), Record::is_kept)? && guard.take_if_ownerless(&name)?.is_some() {
            kept.push(name);
        }
    }
    Ok(kept)
}

/// Removes the kept sandbox `name`, which has no living owner, and ends what runs in it if it was made. `None` if
/// there is no such sandbox.
pub fn discard(state_dir: &Path, name: &SandboxName) -> Result<Option<Swept>, Error> {
    let state = StateDir::new(state_dir);
    if !state.exists() {
        return Ok(None);
    }
    let claimed = {
        let guard = state.lock()?;
        if !guard.names()?.contains(name) {
            return Ok(None);
        }
        guard.take_if_ownerless(name)?
    };
    let Some(claim) = claimed else { return Err(state.lock()?.exists(name)?) };
    let owner = claim.read_record()?.map(|record| record.pid);
    let outcome = removal::tear_down(&state, claim).map(|killed| Outcome::Removed { killed });
    nf_log::HOST.restore_if_unused()?;
    Ok(Some(Swept { name: name.clone(), owner, outcome }))
}

/// The same, if nothing runs in it: true when it is gone.
pub fn discard_empty(state_dir: &Path, name: &SandboxName) -> Result<bool, Error> {
    let state = StateDir::new(state_dir);
    let Some(claim) = state.lock()?.take_if_ownerless(name)? else { return Err(state.lock()?.exists(name)?) };
    if !removal::is_empty(&claim)? {
        return Ok(false);
    }
    removal::tear_down(&state, claim)?;
    nf_log::HOST.restore_if_unused()?;
    Ok(true)
}

/// Takes over all sandboxes whose lock is free and which nobody is to inherit.
fn claim_dead(state: &StateDir) -> Result<Vec<(Claim, Option<u32>)>, Error> {
    let guard = state.lock()?;
    let mut dead = Vec::new();
    for name in guard.names()? {
        let record = guard.read_record(&name)?;
        if record.as_ref().map_or(Ok(false), Record::is_kept)? {
            continue;
        }
        if let Some(claim) = guard.take_if_ownerless(&name)? {
            dead.push((claim, guard.read_record(&name)?.map(|record| record.pid)));
        }
    }
    Ok(dead)
}

fn remove(state: &StateDir, claim: Claim, owner: Option<u32>) -> Swept {
    let name = claim.name().clone();
    let outcome = match removal::fences_living_processes(&claim) {
        Ok(true) => Ok(Outcome::KeptFenced),
        Ok(false) => removal::tear_down(state, claim).map(|killed| Outcome::Removed { killed }),
        Err(error) => Err(error),
    };
    match &outcome {
        Ok(done) => tracing::info!(%name, ?owner, ?done, "swept the sandbox of a dead owner"),
        Err(error) => tracing::error!(%name, ?owner, %error, "cannot remove the sandbox of a dead owner"),
    }
    Swept { name, owner, outcome }
}
