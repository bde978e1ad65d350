//! Threads that confine themselves before they do anything (`sluice_seccomp::harden`).

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread::{Builder, JoinHandle};

use sluice_seccomp::harden::{self, Mode, Role};

/// The variable that chooses the mode where no configuration does.
pub const VARIABLE: &str = "SLUICE_HARDENING";

/// What `hardening` may be, in the configuration and in [`VARIABLE`].
pub const MODES: &[(&str, Mode)] =
    &[("enforce", Mode::Enforce), ("strict", Mode::Strict), ("off", Mode::Off)];

/// The mode that [`VARIABLE`] asks for, or the usual one.
pub fn mode_of_environment() -> Result<Mode, String> {
    let Some(asked) = std::env::var_os(VARIABLE) else { return Ok(Mode::default()) };
    let found = MODES.iter().find(|(name, _)| asked == *name).map(|(_, mode)| *mode);
    found.ok_or_else(|| format!("{VARIABLE}={} is none of enforce, strict, off", asked.display()))
}

/// A confined thread; it gives nothing when it could not confine itself.
pub type Confined<T = ()> = JoinHandle<Option<T>>;

/// Starts a thread of a kind; `body` runs once it is confined. `writes` are the directories it may write to.
pub fn spawn<T: Send + 'static>(
    role: Role,
    writes: Vec<PathBuf>,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Confined<T>> {
    let (tell, told) = channel();
    let thread = Builder::new().name(role.name().to_owned()).spawn(move || {
        let writes: Vec<_> = writes.iter().map(PathBuf::as_path).collect();
        let entered = harden::enter(role, &writes);
        let confined = entered.is_ok();
        let heard = tell.send(entered).is_ok();
        drop(tell);
        (confined && heard).then(body)
    })?;
    told.recv().map_err(|_| io::Error::other("the thread died at its start"))??;
    Ok(thread)
}

/// Says once more when a thread of ours has made calls that its list does not have: a mistake in the list, or somebody
/// else's code.
pub fn tell_refused() {
    static TOLD: AtomicU64 = AtomicU64::new(0);
    let total = refused_total();
    if total > TOLD.swap(total, Ordering::Relaxed) {
        let calls = harden::refused();
        tracing::error!(
            ?calls,
            "threads of Sluice made system calls outside their lists, which were refused; report this"
        );
    }
}

/// Calls refused so far.
pub fn refused_total() -> u64 {
    harden::refused().iter().map(|(_, count)| count).sum()
}
