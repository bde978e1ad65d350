//! The processes inside a namespace: finding them, and ending them for certain.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::thread;
use std::time::Instant;

use crate::{Error, NamespaceId, SandboxName, kernel, limits};

/// The pids whose main thread is in `namespace`. Never includes the calling process, nor zombies.
pub(crate) fn in_namespace(namespace: NamespaceId) -> Result<Vec<u32>, Error> {
    let own = std::process::id();
    let entries = fs::read_dir("/proc").map_err(Error::io("list", "/proc"))?;
    Ok(entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|&pid| pid != own && is_inside(pid, namespace))
        .collect())
}

/// Kills every process in `namespace` and waits until none is left. Returns how many there were.
pub(crate) fn kill_all(name: &SandboxName, namespace: NamespaceId) -> Result<usize, Error> {
    let begun = Instant::now();
    let mut pause = limits::KILL_POLL_MIN;
    let mut killed = BTreeSet::new();
    loop {
        // Again from the start each time: a process may have forked between the look and the kill.
        let pids = in_namespace(namespace)?;
        if pids.is_empty() {
            return Ok(killed.len());
        }
        if begun.elapsed() > limits::KILL_WAIT {
            return Err(Error::ProcessesLeft { name: name.clone(), pids, waited: begun.elapsed() });
        }
        for pid in pids {
            match kill_if_inside(pid, namespace) {
                Ok(true) => {
                    killed.insert(pid); // seen again while it is still dying
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(pid, %error, "cannot kill a process of sandbox {name}"),
            }
        }
        thread::sleep(pause);
        pause = (pause * 2).min(limits::KILL_POLL_MAX);
    }
}

/// Kills `pid` if it is (still) inside. The pidfd is taken first and the question asked second, so that a pid used
/// again in between cannot be hit.
fn kill_if_inside(pid: u32, namespace: NamespaceId) -> io::Result<bool> {
    let gone = |error: &io::Error| error.raw_os_error() == Some(libc::ESRCH);
    let pidfd = match kernel::pidfd_open(pid) {
        Ok(pidfd) => pidfd,
        Err(error) if gone(&error) => return Ok(false),
        Err(error) => return Err(error),
    };
    if !is_inside(pid, namespace) {
        return Ok(false);
    }
    match kernel::pidfd_kill(pidfd.as_fd()) {
        Ok(()) => Ok(true),
        Err(error) if gone(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_inside(pid: u32, namespace: NamespaceId) -> bool {
    // A process that is gone or a zombie has no namespace to look at.
    NamespaceId::of_path(format!("/proc/{pid}/ns/net")).is_ok_and(|of_process| of_process == namespace)
}
