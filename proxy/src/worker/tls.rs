//! A side whose bytes are sealed: TLS over a socket of this worker. One more side, not a second engine.
//!
//! Sealed octets are read into a scratch that all connections of the worker share, so an idle connection holds no
//! buffer of its own but what rustls keeps.

use std::borrow::Borrow;
use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, sendmsg};

use super::socket::{Side, Socket};
use crate::tls::Records;

/// Octets of ciphertext one read may take: four whole records.
pub(crate) const SEALED_OCTETS: usize = 68 << 10;

/// Reads of one call that may bring nothing but what TLS says to itself, before others get their turn.
const READS_PER_TURN: u8 = 4;

/// Where sealed octets are read to; one per worker, never held across a wait.
pub(crate) type Sealed = Rc<RefCell<Box<[u8]>>>;

/// TLS over a socket that it owns (towards an origin) or borrows (towards a client).
pub(crate) struct Tls<S> {
    socket: S,
    records: RefCell<Records>,
    sealed: Sealed,
    /// The peer must not take what it got for all there is: no `close_notify` is sent.
    cut: Cell<bool>,
    /// Plain octets have come.
    heard: Cell<bool>,
}

/// Why a handshake came to nothing.
#[derive(Debug)]
pub(super) enum HandshakeError {
    /// The peer closed.
    Closed,
    /// The socket failed.
    Socket(io::Error),
    /// TLS failed; the peer has been sent an alert.
    Tls(rustls::Error),
}

impl<S: Borrow<Socket>> Tls<S> {
    pub(super) fn new(socket: S, records: Records, sealed: Sealed) -> Self {
        let records = RefCell::new(records);
        Self { socket, records, sealed, cut: Cell::new(false), heard: Cell::new(false) }
    }

    /// Shakes hands, `early` being what was read of the peer before. What it does not wait for goes out with the first
    /// octets that are written.
    pub(super) async fn shake_hands(&self, early: &[u8]) -> Result<(), HandshakeError> {
        let socket = self.socket.borrow();
        self.take_in(early)?;
        loop {
            if self.records.borrow().may_hold_back() {
                return Ok(());
            }
            self.flush().await.map_err(HandshakeError::Socket)?;
            if !self.records.borrow().is_handshaking() {
                return Ok(());
            }
            socket.readable().await.map_err(HandshakeError::Socket)?;
            let mut sealed = self.sealed.borrow_mut();
            match socket.try_read(&mut sealed).map_err(HandshakeError::Socket)? {
                None => {}
                Some(0) => return Err(HandshakeError::Closed),
                Some(count) => self.take_in(sealed.get(..count).unwrap_or_default())?,
            }
        }
    }

    /// Octets of the handshake, and what of the session came with its end.
    fn take_in(&self, sealed: &[u8]) -> Result<(), HandshakeError> {
        let taken = self.records.borrow_mut().open(sealed, &mut []);
        taken.map(drop).map_err(|error| {
            // The alert says more to the peer than a close.
            let _ = self.send_some();
            HandshakeError::Tls(error)
        })
    }

    /// Whether an earlier session was resumed.
    pub(super) fn is_resumed(&self) -> bool {
        self.records.borrow().is_resumed()
    }

    /// Whether the peer has said anything since the handshake.
    pub(super) fn has_heard(&self) -> bool {
        self.heard.get() || self.records.borrow().has_plain()
    }

    /// Whether HTTP/2 was agreed on.
    pub(super) fn speaks_h2(&self) -> bool {
        self.records.borrow().speaks_h2()
    }

    /// Writes what fits of several pieces in a row: `None` when nothing does.
    pub(super) fn try_write_pieces(&self, from: &[IoSlice<'_>]) -> io::Result<Option<usize>> {
        if !self.send_some()? {
            return Ok(None);
        }
        let count = self.records.borrow_mut().seal_pieces(from);
        self.send_some()?;
        Ok(Some(count))
    }

    /// Says the last word and sees it off, unless what was said must not look whole.
    pub(super) async fn say_last(&self) {
        if !self.cut.get() {
            self.records.borrow_mut().close();
            let _ = self.flush().await;
        }
    }

    /// Sends what is sealed as far as the socket takes it. True when nothing is left.
    fn send_some(&self) -> io::Result<bool> {
        let mut records = self.records.borrow_mut();
        while records.has_sealed() {
            match records.send(&mut Wire(self.as_raw_fd())) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

impl<S: Borrow<Socket>> Side for Tls<S> {
    async fn readable(&self) -> io::Result<()> {
        let has_plain_or_end = |records: &Records| records.has_plain() || records.has_ended();
        if has_plain_or_end(&self.records.borrow()) { Ok(()) } else { self.socket.borrow().readable().await }
    }

    async fn writable(&self) -> io::Result<()> {
        self.flush().await
    }

    fn try_read(&self, into: &mut [u8]) -> io::Result<Option<usize>> {
        let mut records = self.records.borrow_mut();
        let mut sealed = self.sealed.borrow_mut();
        let (mut fresh, mut reads) = (0, 0);
        let opened = loop {
            match records.open(sealed.get(..fresh).unwrap_or_default(), into) {
                Ok(0) if records.has_ended() => return Ok(Some(0)),
                Ok(0) => {}
                opened => break opened,
            }
            if reads == READS_PER_TURN {
                break Ok(0);
            }
            reads += 1;
            fresh = match self.socket.borrow().try_read(&mut sealed)? {
                None => break Ok(0),
                // Without the last word of TLS: what is missing may have been cut away by anybody.
                Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Some(count) => count,
            };
        };
        drop(sealed);
        drop(records);
        match opened {
            Ok(0) => {
                // What TLS answers by itself (a key update) goes out when there is room, at the latest with the next write.
                self.send_some()?;
                Ok(None)
            }
            Ok(count) => {
                self.heard.set(true);
                Ok(Some(count))
            }
            Err(error) => {
                let _ = self.send_some();
                Err(io::Error::new(io::ErrorKind::InvalidData, error))
            }
        }
    }

    fn try_write(&self, from: &[u8]) -> io::Result<Option<usize>> {
        // Sealed behind what waits already, if there is room, so that both leave with one call.
        let count = self.records.borrow_mut().seal(from);
        let sent = self.send_some()?;
        if count > 0 || from.is_empty() {
            return Ok(Some(count));
        }
        if !sent {
            return Ok(None);
        }
        let count = self.records.borrow_mut().seal(from);
        self.send_some()?;
        Ok(Some(count))
    }

    async fn flush(&self) -> io::Result<()> {
        while !self.send_some()? {
            self.socket.borrow().writable().await?;
        }
        Ok(())
    }

    fn is_flushed(&self) -> bool {
        !self.records.borrow().has_sealed()
    }

    fn shutdown_write(&self) -> io::Result<()> {
        if !self.cut.get() {
            self.records.borrow_mut().close();
            let _ = self.send_some();
        }
        self.socket.borrow().shutdown_write()
    }

    fn raw(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn has_news(&self) -> bool {
        // A ticket of the peer's is no news.
        !matches!(self.try_read(&mut [0; 1]), Ok(None))
    }

    /// Inside TLS a close without the last word says it, and takes nothing back.
    fn reset_on_close(&self) {
        self.cut.set(true);
    }
}

impl<S: Borrow<Socket>> AsRawFd for Tls<S> {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.borrow().as_raw_fd()
    }
}

/// Where rustls writes its records: several of them with one call.
struct Wire(RawFd);

impl io::Write for Wire {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(octets)])
    }

    fn write_vectored(&mut self, octets: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        loop {
            match sendmsg::<()>(self.0, octets, &[], flags, None) {
                Err(Errno::EINTR) => {}
                outcome => return Ok(outcome?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
