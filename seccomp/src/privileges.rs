//! What a workload may still do as itself: its user, its capabilities, its secure bits.
//!
//! A workload given a [`User`] keeps no capability at all. One that stays root keeps
//! [`KEPT_BY_ROOT`]: what ordinary root programs (apt, pip, tar, chown, su) need, and nothing that
//! reaches the fence, the kernel or another user's processes. It is the default set of container
//! engines less `NET_RAW`, `MKNOD`, `AUDIT_WRITE` and `SETFCAP`.
//!
//! Without a file-system policy a root workload can still write root's files on this host: that is
//! what running as root means, and [`crate::Enforcement`] says so.

use crate::limits::GROUPS_MAX;

/// The identity a workload runs under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Real, effective and saved user id.
    pub uid: u32,
    /// Real, effective and saved group id.
    pub gid: u32,
    /// Supplementary groups; empty means none.
    pub groups: Vec<u32>,
}

impl User {
    /// A user with a primary group and no supplementary ones.
    pub fn new(uid: u32, gid: u32) -> Self {
        Self { uid, gid, groups: Vec::new() }
    }

    pub(crate) fn groups_fit(&self) -> bool {
        self.groups.len() <= GROUPS_MAX
    }
}

/// One capability a root workload keeps, and who needs it.
#[derive(Clone, Copy, Debug)]
pub struct Kept {
    /// The kernel's number (`linux/capability.h`).
    pub number: u32,
    /// The kernel's name without `CAP_`.
    pub name: &'static str,
    /// Which ordinary program stops working without it.
    pub why: &'static str,
}

const fn kept(number: u32, name: &'static str, why: &'static str) -> Kept {
    Kept { number, name, why }
}

/// The capabilities of a workload that stays root. Everything else leaves all five sets.
///
/// `KILL` is harmless only while signals cannot leave the sandbox: the launch drops it as well when
/// neither a pid namespace nor Landlock's signal scope holds.
pub const KEPT_BY_ROOT: &[Kept] = &[
    kept(0, "CHOWN", "tar, dpkg and install give files to other users"),
    kept(1, "DAC_OVERRIDE", "root reads and writes files of every user, as installers expect"),
    kept(3, "FOWNER", "chmod and utime on files root does not own"),
    kept(4, "FSETID", "keeps set-id bits when a package manager writes files"),
    kept(5, "KILL", "a root supervisor stops children that changed their user"),
    kept(6, "SETGID", "su, apt's _apt user, every daemon that drops its group"),
    kept(7, "SETUID", "su, apt's _apt user, every daemon that drops its user"),
    kept(8, "SETPCAP", "programs that shrink their own bounding set; it can only shrink"),
    kept(10, "NET_BIND_SERVICE", "servers on ports below 1024 inside the sandbox"),
    kept(18, "SYS_CHROOT", "debootstrap, sftp servers; without MKNOD or mounts it opens nothing"),
];

/// `CAP_KILL`, which [`KEPT_BY_ROOT`] keeps on a condition.
const CAP_KILL: u32 = 5;

/// The capability sets and secure bits of one workload, worked out before the clone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// Permitted, effective and bounding set as one bit per capability; inheritable and ambient are empty.
    pub(crate) kept: u64,
    /// `PR_SET_SECUREBITS`.
    pub(crate) securebits: u32,
}

/// `linux/securebits.h`: uid 0 means nothing, user changes fix up nothing, capabilities are neither kept
/// over a user change nor raised to ambient; each bit with its lock.
const LOCKED_FOR_USERS: u32 = 0b11 | 0b11 << 2 | 0b10 << 4 | 0b11 << 6;

impl Credentials {
    /// `signals_contained`: neither `KILL` nor the same-user rule lets a signal out of the sandbox.
    pub(crate) fn of(user: Option<&User>, signals_contained: bool) -> Self {
        if user.is_some_and(|user| user.uid != 0) {
            return Self { kept: 0, securebits: LOCKED_FOR_USERS };
        }
        let kept = KEPT_BY_ROOT
            .iter()
            .filter(|kept| signals_contained || kept.number != CAP_KILL)
            .fold(0, |set, kept| set | 1u64 << kept.number);
        // Root programs that change their user (setpriv, daemons) use these bits; the bounding set holds.
        Self { kept, securebits: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Capabilities that reach the fence, the kernel or the host.
    const FORBIDDEN: &[u32] =
        &[2, 12, 13, 16, 17, 19, 20, 21, 22, 23, 24, 25, 27, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40];

    #[test]
    fn root_keeps_nothing_that_reaches_the_fence() {
        let held = Credentials::of(None, true).kept;
        for number in FORBIDDEN {
            assert_eq!(held & (1 << number), 0, "capability {number} must not be kept");
        }
        assert_ne!(held & 1, 0);
    }

    #[test]
    fn kill_goes_when_signals_could_leave_the_sandbox() {
        assert_ne!(Credentials::of(None, true).kept & (1 << CAP_KILL), 0);
        assert_eq!(Credentials::of(None, false).kept & (1 << CAP_KILL), 0);
    }

    #[test]
    fn a_plain_user_keeps_nothing() {
        assert_eq!(Credentials::of(Some(&User::new(1000, 1000)), true).kept, 0);
    }
}
