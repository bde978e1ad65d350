//! The yardstick of looking inside TLS: rustls on both sides and nothing between, on epoll, one thread.
//!
//! The life of a pair: a CONNECT to an address is dialled and answered; both sides shake hands, with one certificate for
//! all clients and one name for all origins; what either side says is opened, sealed and sent on. Sealed octets are read
//! 64 KiB at a time, not in the 4 KiB that rustls would ask a socket for. A side whose peer does not keep up is not read.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls::{ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection};

use super::BUFFER_BYTES;
use super::request::{self, ESTABLISHED, UNREACHABLE};
use crate::poll::{Events, Interest, Poll};
use crate::socket;
use crate::tls::authority::{self, Authority, ORIGIN};

/// Token of the listener: above any pair's.
const LISTENER: u64 = u64::MAX;
/// Reads in one turn, while each fills the buffer.
const ROUNDS_PER_TURN: usize = 4;

/// Serves for ever with the certificates in `folder`.
pub(super) fn serve(address: SocketAddr, folder: &Path) -> Result<()> {
    let files = Authority::in_folder(folder);
    let mut relay = Relay {
        server: files.server(true)?,
        client: authority::client(&files.root(), true)?,
        poll: Poll::new().context("epoll")?,
        sealed: vec![0; BUFFER_BYTES],
        plain: vec![0; BUFFER_BYTES],
    };
    let listener = socket::listen(address, false).with_context(|| format!("cannot listen on {address}"))?;
    relay.poll.add(&listener, Interest::EPOLLIN, LISTENER).context("epoll_ctl")?;
    let mut pairs: Vec<Option<Box<Pair>>> = Vec::new();
    let (mut free, mut closed) = (Vec::new(), Vec::new());
    let mut events = Events::new();
    loop {
        relay.poll.wait(&mut events, None).context("epoll_wait")?;
        for event in 0..events.len() {
            let (token, ready) = events.get(event);
            if token == LISTENER {
                while let Some(client) = socket::accept(&listener).context("accept")? {
                    let slot = free.pop().unwrap_or(pairs.len());
                    let pair = Some(Box::new(Pair::accept(client, &relay.poll, slot as u64 * 2)?));
                    match pairs.get_mut(slot) {
                        Some(place) => *place = pair,
                        None => pairs.push(pair),
                    }
                }
                continue;
            }
            let slot = (token / 2) as usize;
            let Some(Some(pair)) = pairs.get_mut(slot) else { continue };
            if !pair.ready(token.is_multiple_of(2), ready, &mut relay).unwrap_or(false) {
                pairs[slot] = None;
                closed.push(slot);
            }
        }
        free.append(&mut closed); // not before the batch is done: it may hold events of the old pair
    }
}

/// Shared by all pairs.
struct Relay {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    poll: Poll,
    sealed: Vec<u8>,
    plain: Vec<u8>,
}

/// One side: its socket, its TLS once that has begun, and whether it has said its last.
struct End {
    stream: TcpStream,
    tls: Option<Connection>,
    over: bool,
    interest: Interest,
}

struct Pair {
    near: End,
    far: Option<End>,
    head: Vec<u8>,
    token: u64,
}

impl End {
    fn new(stream: TcpStream, interest: Interest) -> Self {
        Self { stream, tls: None, over: false, interest }
    }

    fn is_backed_up(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    fn send(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        while tls.wants_write() {
            match tls.write_tls(&mut self.stream) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Opens what has come and seals it for `to`.
    fn pass(&mut self, to: &mut Self, sealed: &mut [u8], plain: &mut [u8]) -> io::Result<()> {
        for _ in 0..ROUNDS_PER_TURN {
            let count = match self.stream.read(sealed) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            };
            self.over |= count == 0;
            self.open(&sealed[..count], to, plain)?;
            to.send()?;
            if self.over {
                let _ = to.stream.shutdown(Shutdown::Write);
            }
            if count < sealed.len() || self.over || to.is_backed_up() {
                break; // level triggered: should there be more, the next wait says so
            }
        }
        self.send() // its own side of the handshake
    }

    fn open(&mut self, mut sealed: &[u8], to: &mut Self, plain: &mut [u8]) -> io::Result<()> {
        let (Some(from), Some(onward)) = (&mut self.tls, &mut to.tls) else { return Ok(()) };
        while !sealed.is_empty() {
            from.read_tls(&mut sealed)?;
            let state = from.process_new_packets().map_err(io::Error::other)?;
            let mut left = state.plaintext_bytes_to_read();
            while left > 0 {
                let opened = from.reader().read(plain)?;
                onward.writer().write_all(&plain[..opened])?;
                left -= opened;
            }
            if state.peer_has_closed() {
                self.over = true;
                break;
            }
        }
        if self.over {
            onward.send_close_notify();
        }
        Ok(())
    }
}

impl Pair {
    /// Takes an accepted client in. `token` and `token + 1` are its own.
    fn accept(client: TcpStream, poll: &Poll, token: u64) -> io::Result<Self> {
        poll.add(&client, Interest::EPOLLIN, token)?;
        Ok(Self { near: End::new(client, Interest::EPOLLIN), far: None, head: Vec::new(), token })
    }

    /// Handles an event. `Ok(false)` or an error: the pair is over.
    fn ready(&mut self, is_near: bool, ready: Interest, relay: &mut Relay) -> io::Result<bool> {
        match &mut self.far {
            None => return self.read_head(relay),
            Some(far) if far.tls.is_none() => {
                if is_near {
                    return Ok(!ready.contains(Interest::EPOLLHUP));
                }
                if far.stream.take_error()?.is_some() {
                    let _ = self.near.stream.write(UNREACHABLE);
                    return Ok(false);
                }
                let unlimited = |mut tls: Connection| {
                    tls.set_buffer_limit(None); // what was read is sealed; the next read waits
                    Some(tls)
                };
                let name = ORIGIN.try_into().map_err(io::Error::other)?;
                let client = ClientConnection::new(Arc::clone(&relay.client), name);
                far.tls = unlimited(client.map_err(io::Error::other)?.into());
                let server = ServerConnection::new(Arc::clone(&relay.server));
                self.near.tls = unlimited(server.map_err(io::Error::other)?.into());
                self.near.stream.write_all(ESTABLISHED)?;
                far.send()?;
            }
            Some(far) => {
                let (from, to) = if is_near { (&mut self.near, far) } else { (far, &mut self.near) };
                from.send()?;
                if ready.intersects(Interest::EPOLLIN | Interest::EPOLLHUP | Interest::EPOLLERR) {
                    from.pass(to, &mut relay.sealed, &mut relay.plain)?;
                }
            }
        }
        self.settle(&relay.poll)
    }

    fn read_head(&mut self, relay: &mut Relay) -> io::Result<bool> {
        let count = self.near.stream.read(&mut relay.plain)?;
        self.head.extend_from_slice(&relay.plain[..count]);
        match request::parse(&self.head) {
            _ if count == 0 => Ok(false),
            Ok(None) => Ok(true),
            Ok(Some(request)) if request.origin.is_none() && request.length == self.head.len() => {
                let upstream = socket::begin_connect(request.target)?;
                relay.poll.add(&upstream, Interest::EPOLLOUT, self.token + 1)?;
                self.far = Some(End::new(upstream, Interest::EPOLLOUT));
                Ok(true)
            }
            Ok(Some(_)) | Err(_) => {
                let _ = self.near.stream.write(request::BAD);
                Ok(false)
            }
        }
    }

    /// Waits for what can happen next. False when both sides have said their last and all of it was sent.
    fn settle(&mut self, poll: &Poll) -> io::Result<bool> {
        let Some(far) = &mut self.far else { return Ok(true) };
        let backed_up = (self.near.is_backed_up(), far.is_backed_up());
        if self.near.over && far.over && backed_up == (false, false) {
            return Ok(false);
        }
        for (end, onward, token) in
            [(&mut self.near, backed_up.1, self.token), (far, backed_up.0, self.token + 1)]
        {
            let mut interest = Interest::empty();
            interest.set(Interest::EPOLLIN, !end.over && !onward);
            interest.set(Interest::EPOLLOUT, end.is_backed_up());
            if end.interest != interest {
                poll.change(&end.stream, interest, token)?;
                end.interest = interest;
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin::{Ports, free_port};
    use crate::tls::client::Way;
    use crate::tls::origin;

    #[test]
    fn requests_and_volume_pass_both_ways_and_sessions_are_resumed() {
        let folder = tempfile::tempdir().unwrap();
        let files = Authority::make(folder.path()).unwrap();
        let secure = origin::serve(&files).unwrap();
        let proxy = SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()));
        let path = folder.path().to_owned();
        std::thread::spawn(move || serve(proxy, &path).unwrap());
        let manners = authority::client(&files.root(), true).unwrap();
        let target = Some(Ports::authority(secure.resuming));
        let way = Way { proxy, target, name: ORIGIN.into(), manners };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while TcpStream::connect(proxy).is_err() {
            assert!(std::time::Instant::now() < deadline, "it does not listen");
            std::thread::yield_now();
        }
        for resumed in [false, true] {
            let mut client = way.enter().unwrap();
            assert_eq!(client.is_resumed(), resumed);
            client.get("1024", 1024).unwrap();
            client.get("3000000", 3_000_000).unwrap();
            client.put(3_000_000).unwrap();
            client.get("close", origin::SMALL_BYTES).unwrap();
        }
    }
}
