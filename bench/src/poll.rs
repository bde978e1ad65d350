//! One epoll instance and its batch of events: what load, origin and the epoll yardsticks wait with.

use std::io;
use std::os::fd::AsFd;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollTimeout};

pub(crate) use nix::sys::epoll::EpollFlags as Interest;

/// Events taken per wait: one system call serves a full round of 64 tunnels, both sides and timers.
const EVENTS_MAX: usize = 256;

/// The set of descriptors waited for. Level triggered unless the interest says otherwise.
#[derive(Debug)]
pub(crate) struct Poll(Epoll);

/// A reusable batch of events.
#[derive(Debug)]
pub(crate) struct Events {
    buffer: Vec<EpollEvent>,
    filled: usize,
}

impl Events {
    /// An empty batch.
    pub(crate) fn new() -> Self {
        Self { buffer: vec![EpollEvent::empty(); EVENTS_MAX], filled: 0 }
    }

    /// Number of events of the last wait.
    pub(crate) fn len(&self) -> usize {
        self.filled
    }

    /// Token and readiness of event `index`.
    pub(crate) fn get(&self, index: usize) -> (u64, Interest) {
        let event = self.buffer[index];
        (event.data(), event.events())
    }
}

impl Poll {
    /// A new, empty set.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    /// Waits for `interest` on `fd`; events carry `token`. Closing the descriptor takes it out again.
    pub(crate) fn add(&self, fd: impl AsFd, interest: Interest, token: u64) -> io::Result<()> {
        Ok(self.0.add(fd, EpollEvent::new(interest, token))?)
    }

    /// Changes what is waited for on `fd`.
    pub(crate) fn change(&self, fd: impl AsFd, interest: Interest, token: u64) -> io::Result<()> {
        Ok(self.0.modify(fd, &mut EpollEvent::new(interest, token))?)
    }

    /// Waits until something is ready, at most `milliseconds` (none: for ever).
    pub(crate) fn wait(&self, events: &mut Events, milliseconds: Option<u16>) -> io::Result<()> {
        let timeout = milliseconds.map_or(EpollTimeout::NONE, EpollTimeout::from);
        events.filled = match self.0.wait(&mut events.buffer, timeout) {
            Ok(filled) => filled,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        Ok(())
    }
}
