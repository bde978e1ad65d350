//! Where and how this process runs: cores, limits, priority, and its tie to the parent.
#![allow(unsafe_code)] // two calls that nix lacks: sched_setscheduler and setpriority

use std::fs;

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

/// Runs the calling thread, and what it starts from now on, on these cores only.
pub(crate) fn pin(cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for &core in cores {
        set.set(core).with_context(|| format!("core {core} is out of range"))?;
    }
    sched_setaffinity(Pid::from_raw(0), &set)
        .with_context(|| format!("cannot run on cores {cores:?}: choose from those this machine has"))
}

/// Runs `start` with the calling thread on `cores` and returns to where it was: a child inherits its parent's cores.
pub(crate) fn started_on<T>(cores: &[usize], start: impl FnOnce() -> T) -> Result<T> {
    let here = sched_getaffinity(Pid::from_raw(0)).context("sched_getaffinity")?;
    pin(cores)?;
    let made = start();
    sched_setaffinity(Pid::from_raw(0), &here).context("sched_setaffinity")?;
    Ok(made)
}

/// Raises RLIMIT_NOFILE to `wanted` descriptors or as far as this process may, and returns the limit that holds now;
/// the processes started later inherit it.
pub(crate) fn raise_descriptors(wanted: u64) -> Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("getrlimit")?;
    if soft >= wanted || setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)).is_ok() {
        return Ok(soft.max(wanted));
    }
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("setrlimit")?;
    Ok(hard)
}

/// Who runs first on a core that several threads want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precedence {
    /// Like everybody.
    Ordinary,
    /// Before the ordinary ones: threads that measure latency.
    Latency,
    /// Before those too: the thread that ends a run.
    Conductor,
}

/// Sets the calling thread's precedence (SCHED_FIFO above the ordinary one).
pub(crate) fn take_precedence(precedence: Precedence) -> Result<()> {
    let (policy, sched_priority) = match precedence {
        Precedence::Ordinary => (libc::SCHED_OTHER, 0),
        Precedence::Latency => (libc::SCHED_FIFO, 1),
        Precedence::Conductor => (libc::SCHED_FIFO, 2),
    };
    let parameters = libc::sched_param { sched_priority };
    // SAFETY: the pointer is to a live sched_param; pid 0 is the calling thread.
    if unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) } != 0 {
        bail!("SCHED_FIFO refused: run as root, or without a limit on real-time priority");
    }
    Ok(())
}

/// Where the kernel keeps the nice value of this session, when it groups processes by session.
const AUTOGROUP: &str = "/proc/self/autogroup";

/// A nice value in force for this process, what it starts, and (under autogrouping, where a thread's own nice value
/// means nothing to other sessions) its session. The session's goes back to what it was on drop.
#[derive(Debug)]
pub(crate) struct Niceness {
    session_before: Option<i32>,
}

impl Niceness {
    /// Sets `nice`, -20 to 19.
    pub(crate) fn set(nice: i32) -> Result<Self> {
        // SAFETY: no pointers; 0 is the calling thread.
        if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) } != 0 {
            bail!("nice {nice} refused: below 0 it needs root");
        }
        let group = fs::read_to_string(AUTOGROUP).ok(); // absent: no autogrouping
        let session_before = group.as_deref().and_then(session_nice);
        if session_before.is_some() {
            fs::write(AUTOGROUP, nice.to_string())
                .with_context(|| format!("{AUTOGROUP}: nice {nice} refused"))?;
        }
        Ok(Self { session_before })
    }
}

impl Drop for Niceness {
    fn drop(&mut self) {
        if let Some(before) = self.session_before {
            let _ = fs::write(AUTOGROUP, before.to_string());
        }
    }
}

/// The number in `/autogroup-8 nice 0`.
fn session_nice(text: &str) -> Option<i32> {
    text.rsplit(' ').next()?.trim().parse().ok()
}

/// Ends this process when the thread that started it ends, so that nothing outlives a killed bench.
pub(crate) fn die_with_parent() -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("PR_SET_PDEATHSIG")
}

/// Lets timers of this thread fire on time instead of up to 50 µs late.
pub(crate) fn exact_timers() -> Result<()> {
    prctl::set_timerslack(1).context("PR_SET_TIMERSLACK")
}

/// The highest core of this machine, plus one.
pub(crate) fn cores_online() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nice_value_of_a_session_is_read() {
        assert_eq!(session_nice("/autogroup-8 nice 0\n"), Some(0));
        assert_eq!(session_nice("/autogroup-12 nice -20\n"), Some(-20));
        assert_eq!(session_nice(""), None);
    }
}
