//! The ring: operations in, completions out.
#![allow(unsafe_code)] // submission entries carry raw pointers; each method says whose they are

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result};
use io_uring::squeue::Entry;
use io_uring::{IoUring, cqueue, opcode, types};

use super::tunnel::Action;

/// Submission entries: a round of 1024 tunnels fits before an early submit.
const ENTRIES: u32 = 4096;
/// User data of the accept.
const ACCEPT: u64 = u64::MAX;

/// The ring of this thread.
pub(super) struct Queue {
    ring: IoUring,
}

/// One finished operation.
#[derive(Debug)]
pub(super) enum Completion {
    /// A client came; `more` says whether the accept goes on.
    Accepted { socket: OwnedFd, more: bool },
    /// The accept failed.
    AcceptFailed(#[allow(dead_code, reason = "for the message")] io::Error),
    /// A tunnel's operation ended with `result` (bytes, or minus errno).
    Of { slot: usize, action: Action, result: i32 },
}

impl Queue {
    /// A ring with the flags that Sluice uses.
    pub(super) fn new() -> Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .build(ENTRIES)
            .context("io_uring_setup: Linux 6.1 and a container that allows io_uring are needed")?;
        Ok(Self { ring })
    }

    /// Begins to accept for ever.
    pub(super) fn accept(&mut self, listener: RawFd) -> Result<()> {
        let entry = opcode::AcceptMulti::new(types::Fd(listener)).flags(libc::SOCK_CLOEXEC).build();
        self.push(&entry.user_data(ACCEPT))
    }

    /// Begins to read into `buffer`, which must stay where it is until the completion: the tunnel owns it, and lives
    /// until nothing is in flight.
    pub(super) fn recv(&mut self, fd: RawFd, buffer: &mut [u8], data: u64) -> Result<()> {
        let entry = opcode::Recv::new(types::Fd(fd), buffer.as_mut_ptr(), buffer.len() as u32).build();
        self.push(&entry.user_data(data))
    }

    /// Begins to send all of `bytes`, under the same condition. MSG_WAITALL: a short send goes on inside the kernel.
    pub(super) fn send(&mut self, fd: RawFd, bytes: &[u8], data: u64) -> Result<()> {
        let entry = opcode::Send::new(types::Fd(fd), bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build();
        self.push(&entry.user_data(data))
    }

    /// Begins to connect; the tunnel owns `address` as it does its buffers.
    pub(super) fn connect(&mut self, fd: RawFd, address: &socket2::SockAddr, data: u64) -> Result<()> {
        let entry = opcode::Connect::new(types::Fd(fd), address.as_ptr().cast(), address.len()).build();
        self.push(&entry.user_data(data))
    }

    /// Submits everything and waits for at least one completion.
    pub(super) fn wait(&mut self, completions: &mut Vec<Completion>) -> Result<()> {
        match self.ring.submit_and_wait(1) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                return Err(error).context("io_uring_enter");
            }
            _ => {}
        }
        completions.extend(self.ring.completion().filter_map(|entry| Completion::of(&entry)));
        Ok(())
    }

    fn push(&mut self, entry: &Entry) -> Result<()> {
        loop {
            // SAFETY: what the entry points to is owned by the tunnel until its completion (see the methods above).
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.ring.submit().context("io_uring_enter")?;
        }
    }
}

impl Completion {
    fn of(entry: &cqueue::Entry) -> Option<Self> {
        let result = entry.result();
        if entry.user_data() != ACCEPT {
            let (slot, action) = Action::unpack(entry.user_data())?;
            return Some(Self::Of { slot, action, result });
        }
        if result < 0 {
            return Some(Self::AcceptFailed(io::Error::from_raw_os_error(-result)));
        }
        // SAFETY: the kernel has just made this descriptor for this completion.
        let socket = unsafe { OwnedFd::from_raw_fd(result) };
        Some(Self::Accepted { socket, more: cqueue::more(entry.flags()) })
    }
}
