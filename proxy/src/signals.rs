//! Signals as something to wait for: blocked in every thread, read from a descriptor.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The signals a process of ours acts on.
pub struct Signals(SignalFd);

/// What a wait ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// This signal.
    Signal(Signal),
    /// The other descriptor is readable.
    Other,
    /// The time is over.
    Nothing,
}

impl Signals {
    /// Blocks SIGINT, SIGTERM, SIGHUP and SIGQUIT in this thread and all it starts. To be called before the first one.
    pub fn block() -> nix::Result<Self> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
            set.add(signal);
        }
        set.thread_block()?;
        SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map(Self)
    }

    /// Waits for a signal, for `other` to be readable, or for `within` to pass, whichever comes first.
    pub fn wait(&self, other: Option<BorrowedFd<'_>>, within: Duration) -> Heard {
        let mut waits = vec![PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        waits.extend(other.map(|other| PollFd::new(other, PollFlags::POLLIN)));
        let timeout = PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX);
        // An interrupted poll is a short wait.
        let _ = poll(&mut waits, timeout);
        if let Ok(Some(received)) = self.0.read_signal()
            && let Ok(number) = i32::try_from(received.ssi_signo)
            && let Ok(signal) = Signal::try_from(number)
        {
            return Heard::Signal(signal);
        }
        let readable = waits.get(1).and_then(PollFd::any).unwrap_or(false);
        if readable { Heard::Other } else { Heard::Nothing }
    }
}
