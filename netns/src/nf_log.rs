//! `net.netfilter.nf_log_all_netns`: without it the kernel drops every log line of a namespace silently.
//!
//! The setting belongs to the whole host and so does what is remembered about it, whichever state directory a
//! sandbox uses: one file holds the value found, and every living sandbox holds a shared lock on that file. Whoever
//! can lock it exclusively knows that no sandbox lives, also after a crash, and puts the value back.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use crate::Error;
use crate::state::boot_id;

/// The setting; only there in the initial namespace's view (nf_log(7) of the kernel's `Documentation/networking`).
pub(crate) const SYSCTL: &str = "/proc/sys/net/netfilter/nf_log_all_netns";

/// What was found before the first sandbox: `<value> <boot id>`, or empty when nothing was changed.
const REMEMBERED: &str = "/run/sluice.nf_log_all_netns";

/// While it lives, the kernel logs from all namespaces. Close-on-exec, so it dies with its owner.
#[derive(Debug)]
pub(crate) struct LoggingOn {
    lock: Flock<File>,
}

/// Switches logging from namespaces on if it is off, remembering that it was.
pub(crate) fn ensure() -> Result<LoggingOn, Error> {
    let lock = lock(FlockArg::LockShared)?;
    if read_setting()? == "0" {
        // First remembered, then changed: a crash in between restores what is already so. Several processes may be
        // here at once, and all of them do the same.
        let mut file: &File = &lock;
        file.set_len(0)
            .and_then(|()| file.write_all(format!("0 {}", boot_id()?).as_bytes()))
            .map_err(Error::io("write", REMEMBERED))?;
        fs::write(SYSCTL, "1").map_err(Error::io("switch on logging from namespaces in", SYSCTL))?;
        tracing::info!("net.netfilter.nf_log_all_netns was 0, is 1 while a sandbox lives");
    }
    Ok(LoggingOn { lock })
}

impl LoggingOn {
    /// Gives up this sandbox's share and restores the setting if it was the last.
    pub(crate) fn release(self) -> Result<(), Error> {
        drop(self.lock);
        restore_if_unused()
    }
}

/// Restores the setting if somebody changed it for sandboxes and no sandbox lives on this host.
pub(crate) fn restore_if_unused() -> Result<(), Error> {
    if !Path::new(REMEMBERED).exists() {
        return Ok(());
    }
    let Some(lock) = try_lock_alone()? else { return Ok(()) };
    let mut file: &File = &lock;
    let mut remembered = String::new();
    file.read_to_string(&mut remembered).map_err(Error::io("read", REMEMBERED))?;
    // After a reboot the kernel's own default holds and the memory is of another life.
    let of_this_boot = boot_id().map_err(Error::io("read", crate::state::BOOT_ID))?;
    if remembered == format!("0 {of_this_boot}") {
        fs::write(SYSCTL, "0").map_err(Error::io("restore", SYSCTL))?;
        tracing::info!("net.netfilter.nf_log_all_netns is 0 again");
    }
    file.set_len(0).map_err(Error::io("empty", REMEMBERED))
}

/// The setting as it is now.
pub(crate) fn read_setting() -> Result<String, Error> {
    let text = fs::read_to_string(SYSCTL).map_err(Error::io("read", SYSCTL))?;
    Ok(text.trim().to_owned())
}

fn lock(kind: FlockArg) -> Result<Flock<File>, Error> {
    Flock::lock(open()?, kind).map_err(|(_, errno)| Error::io("lock", REMEMBERED)(errno))
}

fn try_lock_alone() -> Result<Option<Flock<File>>, Error> {
    match Flock::lock(open()?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(Error::io("lock", REMEMBERED)(errno)),
    }
}

fn open() -> Result<File, Error> {
    // Never truncated on opening and never removed: a lock on a file that is gone would exclude nobody.
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(REMEMBERED)
        .map_err(Error::io("open", REMEMBERED))
}
