//! `net.netfilter.nf_log_all_netns`: without it the kernel drops every log line of a namespace silently.
//!
//! The setting belongs to the whole host and so does what is remembered about it, whichever state directory a
//! sandbox uses: one file holds the value found, and every living sandbox holds a shared lock on that file. Whoever
//! can lock it exclusively knows that no sandbox lives, also after a crash, and puts the value back.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use crate::Error;
use crate::fence::LogInto;
use crate::state::{BOOT_ID, boot_id};

/// The setting as a file, and the file that remembers what it was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogSetting {
    /// Where the kernel has it; only seen from the initial namespace.
    pub(crate) sysctl: &'static str,
    /// `<value> <boot id>` as found before the first sandbox, or empty when nothing was changed.
    remembered: &'static str,
}

/// The setting of this host.
pub(crate) const HOST: LogSetting = LogSetting {
    sysctl: "/proc/sys/net/netfilter/nf_log_all_netns",
    remembered: "/run/sluice.nf_log_all_netns",
};

/// While it lives, the kernel logs from all namespaces. Close-on-exec, so it dies with its owner.
#[derive(Debug)]
pub(crate) struct LoggingOn {
    setting: LogSetting,
    lock: Flock<File>,
}

impl LoggingOn {
    /// Gives up this sandbox's share and restores the setting if it was the last.
    pub(crate) fn release(self) -> Result<(), Error> {
        drop(self.lock);
        self.setting.restore_if_unused()
    }
}

impl LogSetting {
    /// The same where lines go into the kernel log; groups need no setting.
    pub(crate) fn ensure_for(self, into: LogInto) -> Result<Option<LoggingOn>, Error> {
        match into {
            LogInto::Kernel => self.ensure().map(Some),
            LogInto::Group(_) => Ok(None),
        }
    }

    /// Switches logging from namespaces on if it is off, remembering that it was.
    pub(crate) fn ensure(self) -> Result<LoggingOn, Error> {
        let lock = Flock::lock(self.open()?, FlockArg::LockShared)
            .map_err(|(_, errno)| Error::io("lock", self.remembered)(errno))?;
        if self.read()? == "0" {
            // First remembered, then changed: a crash in between restores what is already so. Several processes
            // may be here at once, and all of them do the same.
            let boot = boot_id().map_err(Error::io("read", BOOT_ID))?;
            lock.write_all_at(format!("0 {boot}").as_bytes(), 0)
                .map_err(Error::io("write", self.remembered))?;
            self.write("1")?;
            tracing::info!("net.netfilter.nf_log_all_netns was 0, is 1 while a sandbox lives");
        }
        Ok(LoggingOn { setting: self, lock })
    }

    /// Restores the setting if it was changed for sandboxes and no sandbox lives on this host.
    pub(crate) fn restore_if_unused(self) -> Result<(), Error> {
        if !Path::new(self.remembered).exists() {
            return Ok(());
        }
        let mut alone = match Flock::lock(self.open()?, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((_, nix::Error::EWOULDBLOCK)) => return Ok(()), // a sandbox lives
            Err((_, errno)) => return Err(Error::io("lock", self.remembered)(errno)),
        };
        let mut remembered = String::new();
        alone.read_to_string(&mut remembered).map_err(Error::io("read", self.remembered))?;
        // After a reboot the kernel's own default holds and the memory is of another life.
        let of_this_boot = boot_id().map_err(Error::io("read", BOOT_ID))?;
        if remembered == format!("0 {of_this_boot}") {
            self.write("0")?;
            tracing::info!("net.netfilter.nf_log_all_netns is 0 again");
        }
        alone.set_len(0).map_err(Error::io("empty", self.remembered))
    }

    /// The setting as it is now.
    pub(crate) fn read(self) -> Result<String, Error> {
        let text = fs::read_to_string(self.sysctl).map_err(Error::io("read", self.sysctl))?;
        Ok(text.trim().to_owned())
    }

    fn write(self, value: &str) -> Result<(), Error> {
        fs::write(self.sysctl, value).map_err(Error::io("set logging from namespaces in", self.sysctl))
    }

    fn open(self) -> Result<File, Error> {
        // Never truncated on opening and never removed: a lock on a file that is gone would exclude nobody.
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(self.remembered)
            .map_err(Error::io("open", self.remembered))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A setting of files, so that the host's stays as it is.
    fn setting(dir: &tempfile::TempDir, value: &str) -> LogSetting {
        let path = |name| -> &'static str {
            Box::leak(dir.path().join(name).into_os_string().into_string().expect("UTF-8").into_boxed_str())
        };
        let setting = LogSetting { sysctl: path("sysctl"), remembered: path("remembered") };
        fs::write(setting.sysctl, value).expect("write");
        setting
    }

    #[test]
    fn what_was_off_is_on_until_the_last_sandbox_ends() {
        let dir = tempfile::tempdir().expect("tempdir");
        let setting = setting(&dir, "0\n");
        let first = setting.ensure().expect("ensure");
        let second = setting.ensure().expect("ensure");
        assert_eq!(setting.read().expect("read"), "1");
        first.release().expect("release");
        assert_eq!(setting.read().expect("read"), "1");
        second.release().expect("release");
        assert_eq!(setting.read().expect("read"), "0");
    }

    #[test]
    fn what_the_administrator_switched_on_stays_on() {
        let dir = tempfile::tempdir().expect("tempdir");
        let setting = setting(&dir, "1\n");
        setting.ensure().expect("ensure").release().expect("release");
        assert_eq!(setting.read().expect("read"), "1");
    }

    #[test]
    fn after_a_crash_the_next_sweep_restores_it() {
        let dir = tempfile::tempdir().expect("tempdir");
        let setting = setting(&dir, "0\n");
        drop(setting.ensure().expect("ensure")); // as the kernel does for a killed owner: the lock goes, no more
        assert_eq!(setting.read().expect("read"), "1");
        setting.restore_if_unused().expect("restore");
        assert_eq!(setting.read().expect("read"), "0");
        fs::write(setting.sysctl, "1").expect("write");
        setting.restore_if_unused().expect("restore");
        assert_eq!(setting.read().expect("read"), "1", "restored twice");
    }

    #[test]
    fn a_memory_of_another_boot_restores_nothing() {
        let dir = tempfile::tempdir().expect("tempdir");
        let setting = setting(&dir, "1\n");
        fs::write(setting.remembered, "0 00000000-0000-0000-0000-000000000000").expect("write");
        setting.restore_if_unused().expect("restore");
        assert_eq!(setting.read().expect("read"), "1");
    }
}
