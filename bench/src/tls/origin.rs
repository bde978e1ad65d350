//! The origin inside TLS: a thread a connection, on the load's cores. It lives in the bench's own process.
//!
//! `GET /close` answers and closes; `GET /<bytes>` sends so many; anything with a body is read to its end.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::authority::Authority;
use super::wire::Wire;
use crate::load::head;

/// Octets of a small answer.
pub(crate) const SMALL_BYTES: u64 = 1024;
/// Octets of one write or read of a body.
const PIECE_BYTES: usize = 64 * 1024;

/// Where it listens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Secure {
    /// Nobody resumes anything here.
    pub(crate) fresh: u16,
    /// Sessions are resumed.
    pub(crate) resuming: u16,
}

/// Serves on two free ports for as long as the process lives. The threads stay on the cores of the caller.
pub(crate) fn serve(authority: &Authority) -> Result<Secure> {
    Ok(Secure { fresh: listen(&authority.server(false)?)?, resuming: listen(&authority.server(true)?)? })
}

fn listen(config: &Arc<ServerConfig>) -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port for the origin")?;
    let port = listener.local_addr()?.port();
    // A name below `localhost` has both addresses: whoever asks for it must not be refused by the first one tried.
    let second = TcpListener::bind((Ipv6Addr::LOCALHOST, port)).ok();
    for listener in std::iter::once(listener).chain(second) {
        let config = Arc::clone(config);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let config = Arc::clone(&config);
                // A broken connection is the client's to count.
                thread::spawn(move || drop(converse(stream, config)));
            }
        });
    }
    Ok(port)
}

fn converse(stream: TcpStream, config: Arc<ServerConfig>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let connection = ServerConnection::new(config).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, Wire::new(stream));
    let mut piece = vec![0; PIECE_BYTES];
    let mut inbox = Vec::new();
    loop {
        let length = loop {
            if let Some(length) = head::end(&inbox) {
                break length;
            }
            match stream.read(&mut piece)? {
                0 => return Ok(()),
                count => inbox.extend_from_slice(&piece[..count]),
            }
        };
        let request = inbox[..length].to_vec();
        inbox.drain(..length);
        let mut body = body_of(&request).saturating_sub(inbox.len() as u64);
        inbox.clear(); // the clients of the bench ask for one thing after the other
        while body > 0 {
            match stream.read(&mut piece)? {
                0 => return Ok(()),
                count => body = body.saturating_sub(count as u64),
            }
        }
        let path = request.split(|&byte| byte == b' ').nth(1).unwrap_or_default();
        let closes = path == b"/close";
        let wanted = std::str::from_utf8(path.get(1..).unwrap_or_default()).ok();
        let octets = wanted.and_then(|text| text.parse().ok()).unwrap_or(SMALL_BYTES);
        answer(&mut stream, octets, closes, &piece)?;
        if closes {
            stream.conn.send_close_notify();
            return stream.flush();
        }
    }
}

fn answer(
    stream: &mut StreamOwned<ServerConnection, Wire>,
    octets: u64,
    closes: bool,
    piece: &[u8],
) -> io::Result<()> {
    let connection = if closes { "Connection: close\r\n" } else { "" };
    let mut first = format!("HTTP/1.1 200 OK\r\n{connection}Content-Length: {octets}\r\n\r\n").into_bytes();
    let mut left = octets;
    if octets <= SMALL_BYTES {
        first.extend_from_slice(&piece[..octets as usize]);
        left = 0;
    }
    stream.write_all(&first)?;
    while left > 0 {
        let part = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        stream.write_all(&piece[..part])?;
        left -= part as u64;
    }
    stream.flush()
}

/// The length of a request's body.
fn body_of(request: &[u8]) -> u64 {
    let mut lines = request.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii_end);
    let length = lines.find_map(|line| head::field(line, b"content-length"));
    length.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()).unwrap_or(0)
}
