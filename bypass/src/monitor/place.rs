//! Where and how urgently the monitor's thread runs.

use nix::libc;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::MonitorError;
use crate::limits::NICE;

/// Pins the calling thread.
pub(super) fn on_core(core: Option<usize>) -> Result<(), MonitorError> {
    let Some(core) = core else { return Ok(()) };
    let mut set = CpuSet::new();
    set.set(core)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .map_err(|errno| MonitorError::Pin { core, source: errno.into() })
}

/// Puts the calling thread before others of the host. Without CAP_SYS_NICE it stays where it is: that costs
/// nothing but records in a flood on a busy host, and these are counted as lost.
pub(super) fn first() {
    // SAFETY: the call takes no pointers; 0 is the calling thread.
    #[allow(unsafe_code)]
    let _without_capability = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
}
