//! The running workload as the launcher holds it.

use super::report::Started;
use crate::enforcement::Enforcement;
use crate::syscalls;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, getpgrp, tcsetpgrp};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A workload that executes its program.
///
/// Dropping it without [`Child::wait`] kills the workload (with its pid namespace, everything in it).
#[derive(Debug)]
pub struct Child {
    /// The clone: the workload itself or the sandbox's first process.
    cloned: Pid,
    cloned_fd: OwnedFd,
    workload: i32,
    workload_fd: Option<OwnedFd>,
    witness: Option<OwnedFd>,
    status: OwnedFd,
    foreground: bool,
    is_init: bool,
    reaped: bool,
    enforcement: Enforcement,
}

/// How the workload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// It returned this code.
    Exited(i32),
    /// This signal ended it.
    Signaled(i32),
}

impl ExitStatus {
    /// The code a shell would give: its own, or 128 + the signal's number.
    pub fn code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128 + signal,
        }
    }

    /// From a wait status as the kernel packs it.
    fn from_raw(status: i32) -> Self {
        if libc::WIFSIGNALED(status) {
            Self::Signaled(libc::WTERMSIG(status))
        } else {
            Self::Exited(libc::WEXITSTATUS(status))
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit code {code}"),
            Self::Signaled(number) => match Signal::try_from(*number) {
                Ok(signal) => write!(f, "ended by {signal}"),
                Err(_) => write!(f, "ended by signal {number}"),
            },
        }
    }
}

enum Change {
    Stopped,
    Ended(ExitStatus),
}

impl Child {
    pub(super) fn new(
        cloned: i32,
        cloned_fd: OwnedFd,
        status: OwnedFd,
        foreground: bool,
        is_init: bool,
        enforcement: Enforcement,
    ) -> Self {
        Self {
            cloned: Pid::from_raw(cloned),
            cloned_fd,
            workload: cloned,
            workload_fd: None,
            witness: None,
            status,
            foreground,
            is_init,
            reaped: false,
            enforcement,
        }
    }

    pub(super) fn started(mut self, started: Started) -> Self {
        self.workload = started.pid;
        self.workload_fd = Some(started.pidfd);
        self.witness = started.witness;
        self
    }

    /// Clears away a child that reported a failed step.
    pub(super) fn abandon(self) {
        drop(self);
    }

    /// The workload's pid as the launcher sees it. Notes and events use the same numbers.
    pub fn pid(&self) -> u32 {
        self.workload.unsigned_abs()
    }

    /// Readable once the workload has ended; for polling. [`Child::wait`] then does not block.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.cloned_fd.as_fd()
    }

    /// The witness's listener, once. Until someone serves it the workload's connects wait.
    pub fn take_witness(&mut self) -> Option<OwnedFd> {
        self.witness.take()
    }

    /// What holds for this workload.
    pub fn enforcement(&self) -> &Enforcement {
        &self.enforcement
    }

    /// Sends a signal to the workload's first process. A workload that has ended is no error.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        let target = self.workload_fd.as_ref().unwrap_or(&self.cloned_fd);
        gone_is_fine(syscalls::pidfd_send_signal(target.as_fd(), signal, 0))
    }

    /// Kills the workload; with a pid namespace every process it has started, too.
    pub fn kill(&self) -> io::Result<()> {
        gone_is_fine(syscalls::pidfd_send_signal(self.cloned_fd.as_fd(), libc::SIGKILL, 0))
    }

    /// A handle that can signal the workload from another thread.
    pub fn signaller(&self) -> io::Result<Signaller> {
        Ok(Signaller(self.workload_fd.as_ref().unwrap_or(&self.cloned_fd).try_clone()?))
    }

    /// Waits for the end. When the workload in the terminal's foreground is stopped (Ctrl-Z), the
    /// launcher takes the terminal, stops itself, and hands it back when continued. The terminal is
    /// the launcher's again on return.
    pub fn wait(mut self) -> io::Result<ExitStatus> {
        loop {
            match self.next_change()? {
                Change::Stopped if self.foreground => self.stop_with_it()?,
                Change::Stopped => {}
                Change::Ended(status) => {
                    self.reap()?;
                    return Ok(status);
                }
            }
        }
    }

    fn next_change(&self) -> io::Result<Change> {
        if self.is_init {
            return self.next_change_told();
        }
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WSTOPPED | WaitPidFlag::WNOWAIT;
        loop {
            match waitid(Id::PIDFd(self.cloned_fd.as_fd()), flags) {
                Err(Errno::EINTR) => {}
                Ok(WaitStatus::Exited(_, code)) => return Ok(Change::Ended(ExitStatus::Exited(code))),
                Ok(WaitStatus::Signaled(_, signal, _)) => {
                    return Ok(Change::Ended(ExitStatus::Signaled(signal as i32)));
                }
                Ok(_) => {
                    // A stop is taken from the queue, or the next wait would return it again.
                    waitid(Id::PIDFd(self.cloned_fd.as_fd()), WaitPidFlag::WSTOPPED | WaitPidFlag::WNOHANG)?;
                    return Ok(Change::Stopped);
                }
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// The sandbox's first process writes each wait status of the workload into the pipe.
    fn next_change_told(&self) -> io::Result<Change> {
        let mut status = [0u8; 4];
        let got = loop {
            match nix::unistd::read(&self.status, &mut status) {
                Err(Errno::EINTR) => {}
                other => break other?,
            }
        };
        if got < status.len() {
            // Killed before it could say: everything in the sandbox was.
            return Ok(Change::Ended(ExitStatus::Signaled(libc::SIGKILL)));
        }
        let status = i32::from_ne_bytes(status);
        Ok(if libc::WIFSTOPPED(status) {
            Change::Stopped
        } else {
            Change::Ended(ExitStatus::from_raw(status))
        })
    }

    fn reap(&mut self) -> io::Result<()> {
        self.reaped = true;
        if self.foreground {
            take_terminal(getpgrp()).ok();
        }
        loop {
            match waitpid(self.cloned, None) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(_) => return Ok(()),
            }
        }
    }

    fn stop_with_it(&self) -> io::Result<()> {
        take_terminal(getpgrp())?;
        nix::sys::signal::kill(Pid::this(), Signal::SIGSTOP)?;
        // Continued by the shell, in the foreground or in the background.
        take_terminal(Pid::from_raw(self.workload)).ok();
        nix::sys::signal::killpg(Pid::from_raw(self.workload), Signal::SIGCONT)
            .or_else(|errno| if errno == Errno::ESRCH { Ok(()) } else { Err(io::Error::from(errno)) })
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            self.kill().ok();
            self.reap().ok();
        }
    }
}

/// Sends signals to one workload from any thread; a reused pid is never hit.
#[derive(Debug)]
pub struct Signaller(OwnedFd);

impl Signaller {
    /// Sends `signal`; a workload that has ended is no error.
    pub fn send(&self, signal: i32) -> io::Result<()> {
        gone_is_fine(syscalls::pidfd_send_signal(self.0.as_fd(), signal, 0))
    }
}

fn gone_is_fine(sent: io::Result<()>) -> io::Result<()> {
    sent.or_else(|error| if error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) })
}

/// Makes `group` the terminal's foreground group; a background process may, with SIGTTOU blocked.
fn take_terminal(group: Pid) -> io::Result<()> {
    let mut output = SigSet::empty();
    output.add(Signal::SIGTTOU);
    let before = output.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let taken = tcsetpgrp(io::stdin().as_fd(), group);
    before.thread_set_mask()?;
    Ok(taken?)
}
