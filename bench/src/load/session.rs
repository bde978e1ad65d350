//! What a client connection does, told apart from when it does it.

use std::io;

use crate::poll::{Interest, Poll};

/// What a session may use while it runs: its place in the poll set, a buffer and the byte count.
pub(crate) struct Turn<'a> {
    /// The thread's poll set.
    pub(crate) poll: &'a Poll,
    /// The session's token in it.
    pub(crate) token: u64,
    /// Scratch space shared by all sessions of the thread.
    pub(crate) scratch: &'a mut [u8],
    /// Payload bytes moved in this turn.
    pub(crate) moved: u64,
}

/// How far an operation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// It waits for its descriptor.
    Waiting,
    /// It is complete.
    Done,
}

/// One client connection (or a succession of them) that performs operations, one at a time.
pub(crate) trait Session: Send {
    /// Enters the poll set of the thread it runs on, if it has a connection already.
    fn join(&mut self, _turn: &mut Turn<'_>) -> Result<(), Failure> {
        Ok(())
    }

    /// Begins an operation.
    fn begin(&mut self, turn: &mut Turn<'_>) -> Result<Step, Failure>;

    /// Goes on with it: the descriptor is ready for `ready`.
    fn ready(&mut self, turn: &mut Turn<'_>, ready: Interest) -> Result<Step, Failure>;

    /// Drops what is left of a failed operation. Says whether another one can begin.
    fn recover(&mut self) -> bool;
}

/// Why an operation failed. Each one makes the bench's exit code non-zero.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// A system call on the connection failed.
    #[error("{doing}: {source}")]
    Socket {
        /// What was being done.
        doing: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The proxy closed the connection in the middle.
    #[error("closed by the proxy while {0}")]
    Closed(&'static str),
    /// Not the status that the workload expects.
    #[error("status {seen} where {expected} was expected")]
    Status {
        /// The one that is right.
        expected: u16,
        /// The one that came.
        seen: u16,
    },
    /// Not an HTTP/1 response, or one whose end cannot be known.
    #[error("unusable response head: {0}")]
    Head(&'static str),
    /// Other bytes than were sent.
    #[error("bytes changed on the way while {0}")]
    Changed(&'static str),
}

impl Failure {
    /// Wraps an error of the kernel with what was being done.
    pub(crate) fn while_(doing: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Socket { doing, source }
    }
}

/// `Ok(None)` where a system call would have blocked.
pub(crate) fn unless_blocked(
    result: io::Result<usize>,
    doing: &'static str,
) -> Result<Option<usize>, Failure> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(None)
        }
        Err(source) => Err(Failure::Socket { doing, source }),
    }
}
