//! The seccomp notification listener: its three ioctls.
#![allow(unsafe_code)]

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Answer on the caller's CPU at once instead of waking a second one: 14 µs instead of 140-230.
const SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP: u64 = 1;

/// One call of the workload that waits for an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Notification {
    /// The kernel's cookie for it.
    pub(super) id: u64,
    /// The calling thread, in this process's pid namespace.
    pub(super) tid: u32,
    /// The call's number.
    pub(super) syscall: i64,
    /// Its arguments.
    pub(super) args: [u64; 6],
}

/// A notification, with room for what a later kernel may add to its end: the kernel writes its whole
/// structure whatever this program knew when it was built.
#[repr(C)]
struct Taken {
    notification: libc::seccomp_notif,
    room: [u64; 32],
}

/// What [`Listener::wait`] woke up for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A call waits.
    Call,
    /// Nobody is left to call, or the stop descriptor is readable.
    End,
}

#[derive(Debug)]
pub(super) struct Listener {
    fd: OwnedFd,
}

impl Listener {
    pub(super) fn new(fd: OwnedFd) -> Self {
        let listener = Self { fd };
        if let Err(error) = listener.wake_synchronously() {
            tracing::warn!(%error, "the kernel (before 6.6) cannot wake the witness synchronously; each connect costs about 0.2 ms more");
        }
        listener
    }

    fn wake_synchronously(&self) -> io::Result<()> {
        // SAFETY: this ioctl takes its flags by value.
        let done = unsafe {
            libc::ioctl(
                self.fd.as_raw_fd(),
                libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS,
                SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP,
            )
        };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Sleeps until a call waits, the last process with the filter is gone, or `stop` is readable.
    pub(super) fn wait(&self, stop: Option<BorrowedFd<'_>>) -> io::Result<Event> {
        let mut fds = [
            PollFd::new(self.fd.as_fd(), PollFlags::POLLIN),
            PollFd::new(stop.unwrap_or(self.fd.as_fd()), PollFlags::POLLIN),
        ];
        let watched = if stop.is_some() { &mut fds[..] } else { &mut fds[..1] };
        loop {
            match poll(watched, PollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(_) => break,
            }
        }
        let ready = |fd: &PollFd<'_>, flag| fd.revents().is_some_and(|events| events.contains(flag));
        let stopped = stop.is_some() && fds.get(1).is_some_and(|fd| ready(fd, PollFlags::POLLIN));
        let called = fds.first().is_some_and(|fd| ready(fd, PollFlags::POLLIN));
        Ok(if called && !stopped { Event::Call } else { Event::End })
    }

    /// Takes the waiting call; `None` when it was interrupted meanwhile.
    pub(super) fn receive(&self) -> io::Result<Option<Notification>> {
        // SAFETY: plain integers; the kernel insists that the structure is zero.
        let mut taken: Taken = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one `struct seccomp_notif` of its own size, which `Taken` has room for.
        let done =
            unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut taken) };
        if done == 0 {
            let raw = taken.notification;
            return Ok(Some(Notification {
                id: raw.id,
                tid: raw.pid,
                syscall: raw.data.nr.into(),
                args: raw.data.args,
            }));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR | libc::ENOENT) => Ok(None),
            _ => Err(error),
        }
    }

    /// Whether the caller still waits: then its thread id and memory were its own all the time.
    pub(super) fn still_waits(&self, id: u64) -> bool {
        // SAFETY: reads one integer.
        unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &raw const id) == 0 }
    }

    /// Lets the call go on as if nothing had happened. A caller that has gone is no error.
    pub(super) fn resume(&self, id: u64) -> io::Result<()> {
        let answer = libc::seccomp_notif_resp {
            id,
            val: 0,
            error: 0,
            flags: libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
        };
        // SAFETY: reads one `struct seccomp_notif_resp`.
        let done =
            unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const answer) };
        let error = io::Error::last_os_error();
        if done == 0 || error.raw_os_error() == Some(libc::ENOENT) { Ok(()) } else { Err(error) }
    }
}
