//! One TLS connection as a machine: sealed octets in, plain octets out, and the other way round. No socket, no clock.
//!
//! What it holds is bounded: sealed octets that were given and not yet opened (at most what one call gave), one record
//! in the making, and the plain octets of one step. Whatever a peer sends is an error of rustls at worst.

use std::io::{self, Read as _, Write as _};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, Connection, Error, HandshakeKind, ProtocolVersion,
    ServerConfig, ServerConnection,
};

use super::asked::noting;
use super::lending::lend;

/// A TLS connection, either end.
pub struct Records {
    connection: Connection,
    /// Lent to rustls while it shakes hands.
    leaf: Option<Arc<CertifiedKey>>,
    /// Sealed octets that came and found no room.
    held: Vec<u8>,
    /// Plain octets that wait inside rustls.
    plain: usize,
    /// The peer has said its last word.
    closed: bool,
    /// The origin has asked for a certificate of the client's.
    was_asked: bool,
}

impl Records {
    /// The end that a client of ours talks to, with the certificate it is shown.
    pub fn server(config: Arc<ServerConfig>, leaf: Arc<CertifiedKey>) -> Result<Self, Error> {
        Ok(Self::new(ServerConnection::new(config)?.into(), Some(leaf)))
    }

    /// The end that talks to the origin `name`.
    pub fn client(config: Arc<ClientConfig>, name: ServerName<'static>) -> Result<Self, Error> {
        Ok(Self::new(ClientConnection::new(config, name)?.into(), None))
    }

    fn new(connection: Connection, leaf: Option<Arc<CertifiedKey>>) -> Self {
        Self { connection, leaf, held: Vec::new(), plain: 0, closed: false, was_asked: false }
    }

    /// Whether the handshake is still under way.
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Whether the handshake is over and the peer waits for nothing that is sealed: it is a client's last message, which may
    /// go with a request, or the tickets of TLS 1.3, which may go with an answer.
    pub fn may_hold_back(&self) -> bool {
        let is_last = match &self.connection {
            Connection::Client(_) => true,
            Connection::Server(server) => server.protocol_version() == Some(ProtocolVersion::TLSv1_3),
        };
        is_last && !self.is_handshaking()
    }

    /// Whether an earlier session was resumed, so that no certificate was shown.
    pub fn is_resumed(&self) -> bool {
        self.connection.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Takes in what came from the peer, behind what is still held, and gives as many plain octets as are there and fit.
    /// May be called with nothing, to go on with what is held.
    pub fn open(&mut self, sealed: &[u8], into: &mut [u8]) -> Result<usize, Error> {
        let mut held = std::mem::take(&mut self.held);
        let mut rest = sealed;
        if !held.is_empty() {
            held.extend_from_slice(sealed);
            rest = &held;
        }
        let given = self.step(&mut rest, into)?;
        if !rest.is_empty() {
            self.held = rest.to_vec();
        }
        Ok(given)
    }

    fn step(&mut self, rest: &mut &[u8], into: &mut [u8]) -> Result<usize, Error> {
        let mut given = 0;
        loop {
            given += self.take(into.get_mut(given..).unwrap_or_default());
            if self.closed {
                // Nothing counts behind the peer's last word.
                *rest = &[];
            }
            if rest.is_empty() || self.plain > 0 {
                return Ok(given);
            }
            // At most 4 KiB are taken at a time; what does not fit there is a message beyond all bounds.
            match self.connection.read_tls(rest) {
                Ok(0) => *rest = &[],
                Ok(_) => {
                    let leaf = self.leaf.as_ref().filter(|_| self.connection.is_handshaking());
                    let (state, asked) = noting(|| lend(leaf, || self.connection.process_new_packets()));
                    self.was_asked |= asked;
                    let state = state.map_err(|error| self.explained(error))?;
                    self.plain = state.plaintext_bytes_to_read();
                    self.closed |= state.peer_has_closed();
                }
                Err(_) => return Err(Error::PeerSentOversizedRecord),
            }
            if !self.connection.is_handshaking() {
                self.leaf = None;
            }
        }
    }

    /// An origin that asked for a certificate and got none means that, whatever its alert says.
    fn explained(&self, error: Error) -> Error {
        match error {
            Error::AlertReceived(_) if self.was_asked => {
                Error::AlertReceived(AlertDescription::CertificateRequired)
            }
            error => error,
        }
    }

    fn take(&mut self, into: &mut [u8]) -> usize {
        if self.plain == 0 || into.is_empty() {
            return 0;
        }
        let mut given = 0;
        while let Some(room) = into.get_mut(given..).filter(|room| !room.is_empty()) {
            match self.connection.reader().read(room) {
                Ok(0) | Err(_) => break,
                Ok(count) => given += count,
            }
        }
        self.plain = self.plain.saturating_sub(given);
        given
    }

    /// Whether plain octets can be had without anything new from the peer.
    pub fn has_plain(&self) -> bool {
        self.plain > 0 || !self.held.is_empty()
    }

    /// Whether the peer has said that it will say no more, and all it said has been taken.
    pub fn has_ended(&self) -> bool {
        self.closed && self.plain == 0
    }

    /// Seals as many of these octets as there is room for (64 KiB that are not yet sent).
    pub fn seal(&mut self, plain: &[u8]) -> usize {
        self.connection.writer().write(plain).unwrap_or(0)
    }

    /// The same of several pieces in a row, which share their records.
    pub fn seal_pieces(&mut self, plain: &[io::IoSlice<'_>]) -> usize {
        self.connection.writer().write_vectored(plain).unwrap_or(0)
    }

    /// Whether HTTP/2 was agreed on (ALPN).
    pub fn speaks_h2(&self) -> bool {
        self.connection.alpn_protocol() == Some(b"h2")
    }

    /// Whether sealed octets wait to be sent.
    pub fn has_sealed(&self) -> bool {
        self.connection.wants_write()
    }

    /// Sends sealed octets: one write, of several records at once.
    pub fn send(&mut self, to: &mut dyn io::Write) -> io::Result<usize> {
        self.connection.write_tls(to)
    }

    /// Says that nothing more will be sealed.
    pub fn close(&mut self) {
        self.connection.send_close_notify();
    }
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
