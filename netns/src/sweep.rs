//! Removing what dead owners left behind, and only that.

use std::path::Path;

use crate::state::{Claim, StateDir};
use crate::{Error, SandboxName, nf_log, removal};

/// A sandbox whose owner was found dead.
#[derive(Debug)]
pub struct Swept {
    /// Its name.
    pub name: SandboxName,
    /// The owner that died, if it had come to noting itself.
    pub owner: Option<u32>,
    /// How many processes were killed, or why the sandbox is still there (the next sweep tries again).
    pub outcome: Result<usize, Error>,
}

/// Removes every sandbox under `state_dir` whose owner is dead: kills the processes in it, unmounts and removes.
///
/// Living owners' sandboxes and everything else on the host are left alone. Also restores the kernel's log setting
/// if no sandbox lives any more. Safe to call at any time, from several processes at once.
pub fn sweep(state_dir: &Path) -> Result<Vec<Swept>, Error> {
    let state = StateDir::new(state_dir);
    let dead = if state.exists() { claim_dead(&state)? } else { Vec::new() };
    let swept = dead.into_iter().map(|(claim, owner)| remove(&state, claim, owner)).collect();
    nf_log::restore_if_unused()?;
    Ok(swept)
}

/// Takes over all sandboxes whose lock is free.
fn claim_dead(state: &StateDir) -> Result<Vec<(Claim, Option<u32>)>, Error> {
    let guard = state.lock()?;
    let mut dead = Vec::new();
    for name in guard.names()? {
        if let Some(claim) = guard.take_if_ownerless(&name)? {
            dead.push((claim, guard.read_record(&name)?.map(|record| record.pid)));
        }
    }
    Ok(dead)
}

fn remove(state: &StateDir, claim: Claim, owner: Option<u32>) -> Swept {
    let name = claim.name().clone();
    let outcome = removal::tear_down(state, claim);
    match &outcome {
        Ok(killed) => tracing::info!(%name, ?owner, killed, "removed the sandbox of a dead owner"),
        Err(error) => tracing::error!(%name, ?owner, %error, "cannot remove the sandbox of a dead owner"),
    }
    Swept { name, owner, outcome }
}
