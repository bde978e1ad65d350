//! What this kernel offers to confinement; `sluice doctor` prints it.

use crate::filesystem::SCOPES_ABI;
use crate::syscalls::{self, PIDFD_THREAD};
use std::os::fd::AsFd;

/// One prerequisite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What was tried, a few words, stable.
    pub name: &'static str,
    /// Whether it is there.
    pub ok: bool,
    /// Whether Sluice cannot run without it; else it degrades as `detail` says.
    pub required: bool,
    /// What was found.
    pub detail: String,
    /// What to do when it is missing; empty when it is there.
    pub remedy: &'static str,
}

fn probe(name: &'static str, required: bool, found: Result<String, String>, remedy: &'static str) -> Probe {
    let ok = found.is_ok();
    let (Ok(detail) | Err(detail)) = found;
    Probe { name, ok, required, detail, remedy: if ok { "" } else { remedy } }
}

/// Tries everything; a few milliseconds, no side effects.
pub fn all() -> Vec<Probe> {
    vec![seccomp_filter(), user_notification(), synchronous_wake_up(), socket_naming(), landlock()]
}

fn seccomp_filter() -> Probe {
    let found = syscalls::seccomp_action_available(libc::SECCOMP_RET_ERRNO)
        .map(|()| "filters and ERRNO".to_owned())
        .map_err(|error| error.to_string());
    probe("seccomp filter", true, found, "boot a kernel with CONFIG_SECCOMP_FILTER=y")
}

fn user_notification() -> Probe {
    let found = syscalls::seccomp_action_available(libc::SECCOMP_RET_USER_NOTIF)
        .map(|()| "the witness can note connects".to_owned())
        .map_err(|error| error.to_string());
    probe(
        "seccomp user notification",
        true,
        found,
        "boot Linux 5.5 or later; inside a container allow the seccomp call",
    )
}

fn synchronous_wake_up() -> Probe {
    let found = match syscalls::kernel_release() {
        Some(release) if release >= (6, 6) => Ok("a noted connect costs about 20 µs".to_owned()),
        _ => Err("a noted connect costs about 0.2 ms more".to_owned()),
    };
    probe("seccomp synchronous wake-up", false, found, "boot Linux 6.6 or later")
}

/// Tried on this very process: taking one's own descriptor needs no privilege.
fn socket_naming() -> Probe {
    let found = syscalls::pidfd_open(std::process::id(), PIDFD_THREAD)
        .map(|pidfd| (pidfd, "of threads"))
        .or_else(|_| Ok((syscalls::pidfd_open(std::process::id(), 0)?, "of processes only")))
        .and_then(|(pidfd, kind)| {
            let pipe = nix::unistd::pipe().map_err(std::io::Error::from)?;
            let number = std::os::fd::AsRawFd::as_raw_fd(&pipe.0);
            syscalls::pidfd_getfd(pidfd.as_fd(), number).map(|_| format!("pidfds {kind}"))
        })
        .map_err(|error: std::io::Error| format!("{error}; notes go without source ports and join by order"));
    probe("pidfd_getfd", false, found, "boot Linux 5.6 or later; inside a container grant CAP_SYS_PTRACE")
}

fn landlock() -> Probe {
    let found = match syscalls::landlock_abi() {
        0 => Err("absent: policies with a file-system part do not start".to_owned()),
        abi if abi < SCOPES_ABI => {
            Ok(format!("ABI {abi}: files; signals are kept inside by the pid namespace alone"))
        }
        abi => Ok(format!("ABI {abi}: files, signals, abstract sockets")),
    };
    probe("Landlock", false, found, "boot Linux 5.13 or later with landlock in the lsm= list")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_required_is_here_and_whatever_is_missing_has_a_remedy() {
        for probe in all() {
            assert!(
                probe.ok || !probe.required,
                "the tests need {}: {}; {}",
                probe.name,
                probe.detail,
                probe.remedy
            );
            assert_eq!(probe.ok, probe.remedy.is_empty(), "{probe:?}");
        }
    }
}
