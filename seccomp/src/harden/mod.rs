//! Sluice's own threads: each gives up what it does not need before it meets a peer's first byte.
//!
//! [`process`] runs once, before any thread is started: no_new_privs, and the capabilities nobody here
//! needs. [`enter`] runs on a thread of its own kind ([`Role`]), once its ring, its files and its
//! namespace are there: another user id for files, Landlock where it can be, the capabilities of its kind
//! (`table.rs`), and an allow-list of system calls (`calls.rs`). [`limit_rings`] lets a ring carry
//! only the operations its thread makes, which no system-call filter sees. [`held`] reads back what
//! every thread holds.
//!
//! A call outside the list is refused with EPERM and counted ([`refused`]); with [`Mode::Strict`], as in
//! tests, it ends the process. A step that fails stops the start. What is not confined, and why: the
//! threads that make sandboxes, as their children (nft, workloads) inherit whatever they give up.

mod calls;
mod credentials;
pub mod held;
mod refused;
mod ring;
mod table;

pub use refused::refused;
pub use ring::limit_rings;
pub use table::{Holding, Role};

use crate::filesystem::FilesystemError;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

/// How far Sluice confines itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Not at all.
    Off,
    /// A call outside a thread's list fails with EPERM and is counted.
    #[default]
    Enforce,
    /// It ends the process by SIGSYS.
    Strict,
}

/// Why Sluice could not confine itself.
#[derive(Debug, thiserror::Error)]
#[error("confining {who} failed at {step}: {reason}; `hardening: off` in the configuration does without")]
pub struct HardenError {
    who: &'static str,
    step: &'static str,
    reason: io::Error,
}

impl From<HardenError> for io::Error {
    fn from(error: HardenError) -> Self {
        Self::other(error)
    }
}

static MODE: OnceLock<Mode> = OnceLock::new();

/// The mode of this process: [`process`]'s, or off before it has run.
pub fn mode() -> Mode {
    MODE.get().copied().unwrap_or(Mode::Off)
}

/// Fixes the mode for this process, and gives up for all threads to come what none of them needs. To be
/// called before the first of them; later calls change nothing.
pub fn process(mode: Mode) -> Result<(), HardenError> {
    if MODE.set(mode).is_err() || mode == Mode::Off {
        return Ok(());
    }
    let failed = |step| move |reason| HardenError { who: "the process", step, reason };
    if mode == Mode::Enforce {
        refused::count().map_err(failed("the SIGSYS handler"))?;
    }
    credentials::no_new_privileges().map_err(failed("no_new_privs"))?;
    credentials::keep(table::OF_PROCESS).map_err(failed("capabilities (capset)"))
}

/// Confines the calling thread to its kind, for good. `writes` are the directories a thread that writes
/// files may write to.
pub fn enter(role: Role, writes: &[&Path]) -> Result<(), HardenError> {
    let mode = mode();
    if mode == Mode::Off {
        return Ok(());
    }
    let failed = |step| move |reason| HardenError { who: role.name(), step, reason };
    let programs =
        calls::compile(role, mode).map_err(|error| failed("its seccomp table")(io::Error::other(error)))?;
    if role.holding().landlock {
        let landlocked = |error: FilesystemError| failed("Landlock")(io::Error::other(error));
        crate::filesystem::restrict_thread(writes).map_err(landlocked)?;
    }
    if !role.holding().writes_files {
        credentials::files_as_nobody().map_err(failed("its user id for files (setfsuid)"))?;
    }
    credentials::keep(role.holding().capabilities).map_err(failed("capabilities (capset)"))?;
    credentials::install(&programs).map_err(failed("its seccomp filter"))
}

#[cfg(test)]
mod tests;
