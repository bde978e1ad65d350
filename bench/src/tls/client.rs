//! The clients: TLS in a CONNECT tunnel, or straight to a proxy that takes TLS itself.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, StreamOwned};

use super::wire::Wire;
use crate::load::{head, tunnel};

/// Octets of one write or read of a body.
const PIECE_BYTES: usize = 64 * 1024;
/// Longest a client waits for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// How to get to the origin through one proxy.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    /// The proxy.
    pub(crate) proxy: SocketAddr,
    /// What the CONNECT asks for; `None` where the proxy takes TLS at once.
    pub(crate) target: Option<String>,
    /// The name asked for in TLS and in requests.
    pub(crate) name: String,
    /// Whom the client trusts and whether it resumes.
    pub(crate) manners: Arc<ClientConfig>,
}

/// A client whose handshake is done.
pub(crate) struct Client {
    stream: StreamOwned<ClientConnection, Wire>,
    host: String,
    piece: Vec<u8>,
}

impl Way {
    /// Connects and shakes hands.
    pub(crate) fn enter(&self) -> Result<Client> {
        let stream = match &self.target {
            Some(target) => tunnel::open(self.proxy, target).context("opening a tunnel")?,
            None => tunnel::dial(self.proxy)?,
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        let name = ServerName::try_from(self.name.clone()).context("a name")?;
        let connection = ClientConnection::new(Arc::clone(&self.manners), name)?;
        let mut stream = StreamOwned::new(connection, Wire::new(stream));
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).context("the handshake")?;
        }
        let host = self.target.clone().unwrap_or_else(|| self.name.clone());
        Ok(Client { stream, host, piece: vec![0; PIECE_BYTES] })
    }
}

impl Client {
    /// Whether a session was resumed.
    pub(crate) fn is_resumed(&self) -> bool {
        self.stream.conn.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// GETs `path`, whose answer has a body of so many octets.
    pub(crate) fn get(&mut self, path: &str, octets: u64) -> Result<()> {
        write!(self.stream, "GET /{path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.host)?;
        self.hear(octets)
    }

    /// PUTs so many octets; the answer is small.
    pub(crate) fn put(&mut self, octets: u64) -> Result<()> {
        write!(self.stream, "PUT /up HTTP/1.1\r\nHost: {}\r\nContent-Length: {octets}\r\n\r\n", self.host)?;
        let mut left = octets;
        while left > 0 {
            let part = self.piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.stream.write_all(&self.piece[..part])?;
            left -= part as u64;
        }
        self.stream.flush()?;
        self.hear(super::origin::SMALL_BYTES)
    }

    fn hear(&mut self, octets: u64) -> Result<()> {
        let mut inbox = Vec::new();
        let head = loop {
            let count = self.stream.read(&mut self.piece).context("reading the answer's head")?;
            ensure!(count > 0, "closed before it was answered");
            inbox.extend_from_slice(&self.piece[..count]);
            if let Some(head) = head::parse(&inbox)? {
                break head;
            }
        };
        if head.status != 200 {
            bail!("status {}: {}", head.status, String::from_utf8_lossy(&inbox));
        }
        ensure!(head.body == Some(octets), "a body of {:?} where {octets} were expected", head.body);
        let mut left = octets.saturating_sub((inbox.len() - head.length) as u64);
        while left > 0 {
            let count = self.stream.read(&mut self.piece).context("reading the answer's body")?;
            ensure!(count > 0, "closed with {left} octets of the body to come");
            left = left.saturating_sub(count as u64);
        }
        Ok(())
    }
}
