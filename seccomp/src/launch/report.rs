//! What the child tells the launcher before it executes: one datagram, ready or failed.
//!
//! The socket is a close-on-exec SEQPACKET pair. "Ready" carries the witness's listener and, by the
//! kernel's word (`SCM_CREDENTIALS`), the sender's pid as the launcher sees it. The child goes on only
//! after one byte of answer: by then its death signal is set and its parent is known to be alive. After
//! it, end of file means the program runs; a second datagram means execve failed.

use crate::syscalls;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixCredentials, recvmsg, send,
    setsockopt, socketpair, sockopt,
};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

macro_rules! steps {
    ($($name:ident = $number:literal $doc:literal $text:literal,)*) => {
        /// The steps between clone and execve, in their order. The order is `child.rs`'s.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Step { $(#[doc = $doc] $name = $number,)* }

        impl Step {
            /// All of them, in their order.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
            fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

steps! {
    Stdio = 1 "Standard descriptors put in place." "standard descriptors",
    Signals = 2 "Signal dispositions back to default." "signal dispositions",
    NetworkNamespace = 3 "The sandbox's network namespace entered." "network namespace (setns)",
    SetId = 4 "Set-id bits and file capabilities of programs ignored." "programs without set-id (mount_setattr)",
    Mounts = 5 "Fresh /proc, read-only kernel knobs, private /tmp." "private mounts",
    CoreLimit = 6 "No core dumps." "core limit",
    BoundingSet = 7 "Ambient set cleared, bounding set cut." "capability bounding set",
    SecureBits = 8 "Secure bits set and locked." "secure bits",
    Groups = 9 "Supplementary groups set." "groups (setgroups)",
    Gid = 10 "Group ids set." "group (setresgid)",
    Uid = 11 "User ids set." "user (setresuid)",
    Capabilities = 12 "Permitted, effective and inheritable sets cut." "capabilities (capset)",
    DeathSignal = 13 "Killed when the launcher goes." "parent death signal",
    NoNewPrivs = 14 "No set-id program gives anything any more." "no_new_privs",
    Landlock = 15 "File-system policy and scopes." "Landlock (landlock_restrict_self)",
    Directory = 16 "Working directory entered." "working directory (chdir)",
    CloseOnExec = 17 "Every inherited descriptor but 0-2 marked close-on-exec." "inherited descriptors (close_range)",
    Witness = 18 "The witness's filter and its listener." "seccomp witness listener",
    Filter = 19 "The workload's seccomp filter." "seccomp filter",
    Init = 20 "The sandbox's first process forks the workload." "first process (clone)",
    Session = 21 "Own session, or own process group in the terminal's foreground." "session and terminal",
    SignalMask = 22 "Signals unblocked." "signal mask",
    Report = 23 "The launcher told that all holds." "report to the launcher",
    Exec = 24 "The program executed." "execve",
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

impl Step {
    /// What an operator can do about a failure there; empty when the errno says it all.
    pub(super) fn remedy(self) -> &'static str {
        match self {
            Self::NetworkNamespace | Self::SetId | Self::Mounts => "; run as root with CAP_SYS_ADMIN",
            Self::BoundingSet | Self::SecureBits => "; run as root with CAP_SETPCAP",
            Self::Groups | Self::Gid | Self::Uid => "; run as root with CAP_SETUID and CAP_SETGID",
            Self::Filter => "; the kernel needs CONFIG_SECCOMP_FILTER",
            Self::Witness => {
                "; the kernel needs seccomp user notification (Linux 5.5), and no other listener may hold this process (is it run inside another sandbox?)"
            }
            Self::CloseOnExec => "; the kernel needs close_range with CLOEXEC (Linux 5.11)",
            Self::Directory => {
                "; check that the directory exists, is not below a private /tmp, and that the workload's user may enter it"
            }
            _ => "",
        }
    }
}

/// The datagram: a step's number (0 for ready) and an errno.
pub(super) const MESSAGE_BYTES: usize = 8;

/// A datagram about `step`, or readiness when it is 0.
pub(super) fn encode(step: u32, errno: i32) -> [u8; MESSAGE_BYTES] {
    let mut message = [0; MESSAGE_BYTES];
    let (head, tail) = message.split_at_mut(4);
    head.copy_from_slice(&step.to_ne_bytes());
    tail.copy_from_slice(&errno.to_ne_bytes());
    message
}

fn decode(message: [u8; MESSAGE_BYTES]) -> (u32, i32) {
    let [step, errno] = [0, 4].map(|from| {
        let mut word = [0; 4];
        word.copy_from_slice(&message[from..from + 4]);
        word
    });
    (u32::from_ne_bytes(step), i32::from_ne_bytes(errno))
}

/// What a started child has handed over.
#[derive(Debug)]
pub(super) struct Started {
    /// The workload's pid in the launcher's namespace: the clone itself, or the child of the sandbox's
    /// first process.
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
    pub(super) witness: Option<OwnedFd>,
}

/// A step that failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failure {
    pub(super) step: Step,
    pub(super) errno: i32,
}

/// The launcher's end and the child's.
pub(super) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    setsockopt(&ours, sockopt::PassCred, &true)?;
    Ok((ours, theirs))
}

/// Carries the workload's wait status from the sandbox's first process: read end, write end.
pub(super) fn status_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?)
}

/// Waits until the program runs or a step failed.
pub(super) fn await_start(ours: &OwnedFd) -> Result<Started, Failure> {
    let broken =
        |error: io::Error| Failure { step: Step::Report, errno: error.raw_os_error().unwrap_or(libc::EPIPE) };
    let ready = receive(ours).map_err(broken)?;
    let (pid, witness) = match ready {
        Received::Ready { pid, witness } => (pid, witness),
        Received::Failed(failure) => return Err(failure),
        Received::End => return Err(Failure { step: Step::Report, errno: libc::EPIPE }),
    };
    // It waits for the answer, so its pid cannot have been reused.
    let pidfd = syscalls::pidfd_open(pid.unsigned_abs(), 0).map_err(broken)?;
    send(ours.as_raw_fd(), &[1], MsgFlags::MSG_NOSIGNAL).map_err(|errno| broken(errno.into()))?;
    match receive(ours).map_err(broken)? {
        Received::End => Ok(Started { pid, pidfd, witness }),
        Received::Failed(failure) => Err(failure),
        Received::Ready { .. } => Err(Failure { step: Step::Report, errno: libc::EPROTO }),
    }
}

enum Received {
    Ready { pid: i32, witness: Option<OwnedFd> },
    Failed(Failure),
    End,
}

fn receive(ours: &OwnedFd) -> io::Result<Received> {
    let mut message = [0; MESSAGE_BYTES];
    let mut space = nix::cmsg_space!(UnixCredentials, [std::os::fd::RawFd; 1]);
    let mut parts = [IoSliceMut::new(&mut message)];
    let got = loop {
        match recvmsg::<()>(ours.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Err(nix::errno::Errno::EINTR) => {}
            other => break other?,
        }
    };
    let (mut pid, mut witness) = (0, None);
    for part in got.cmsgs()? {
        match part {
            ControlMessageOwned::ScmCredentials(credentials) => pid = credentials.pid(),
            ControlMessageOwned::ScmRights(fds) => witness = fds.into_iter().map(adopt).next(),
            _ => {}
        }
    }
    let bytes = got.bytes;
    if bytes == 0 {
        return Ok(Received::End);
    }
    let (step, errno) = decode(message);
    Ok(match step {
        0 => Received::Ready { pid, witness },
        number => {
            Received::Failed(Failure { step: Step::from_number(number).unwrap_or(Step::Report), errno })
        }
    })
}

#[allow(unsafe_code)]
fn adopt(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just installed this descriptor for the message; nothing else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
