//! What an origin port does with one connection.

use std::io;
use std::net::TcpStream;

use crate::poll::Interest;

/// What a connection wants after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// To be called again when its socket is ready for this.
    Wait(Interest),
    /// To be closed.
    Close,
}

/// The server's side of one connection.
pub(crate) trait Service {
    /// The socket is ready. `WouldBlock` means: call again when it is ready for what [`Service::wait`] says.
    fn ready(&mut self, stream: &TcpStream, scratch: &mut [u8]) -> io::Result<Next>;

    /// What it waits for.
    fn wait(&self) -> Next {
        Next::Wait(Interest::EPOLLIN)
    }
}
