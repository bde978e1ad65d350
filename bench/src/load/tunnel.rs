//! Opens tunnels before a run: CONNECT or a WebSocket upgrade, blocking, with a deadline.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::head;
use super::session::Failure;

/// Longest a proxy may take to open one tunnel.
const OPEN_MAX: Duration = Duration::from_secs(10);

/// The key and the answer of RFC 6455, section 1.3: the origin knows this pair only and so needs no SHA-1.
pub(crate) const WEBSOCKET_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// What a server answers to [`WEBSOCKET_KEY`].
pub(crate) const WEBSOCKET_ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// The head of a CONNECT for `target`.
pub(crate) fn connect_head(target: &str) -> String {
    format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")
}

/// The head of an upgrade. `prefix` is the URL's origin for a proxy, nothing inside a tunnel.
pub(crate) fn upgrade_head(prefix: &str, host: &str) -> String {
    format!(
        "GET {prefix}/ws HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {WEBSOCKET_KEY}\r\n\r\n"
    )
}

/// A connection to the proxy.
pub(crate) fn dial(proxy: SocketAddr) -> Result<TcpStream, Failure> {
    let stream =
        TcpStream::connect_timeout(&proxy, OPEN_MAX).map_err(Failure::while_("connecting to the proxy"))?;
    stream.set_nodelay(true).map_err(Failure::while_("TCP_NODELAY"))?;
    stream.set_read_timeout(Some(OPEN_MAX)).map_err(Failure::while_("SO_RCVTIMEO"))?;
    Ok(stream)
}

/// Sends `head` and reads the answer, which must have status `expected` and no byte behind its head.
pub(crate) fn ask(stream: &mut TcpStream, head: &str, expected: u16) -> Result<Vec<u8>, Failure> {
    stream.write_all(head.as_bytes()).map_err(Failure::while_("sending the head"))?;
    let mut answer = Vec::with_capacity(1024);
    let mut piece = [0; 1024];
    loop {
        let count = stream.read(&mut piece).map_err(Failure::while_("reading the answer's head"))?;
        if count == 0 {
            return Err(Failure::Closed("reading the answer's head"));
        }
        answer.extend_from_slice(piece.get(..count).unwrap_or_default());
        if let Some(parsed) = head::parse(&answer)? {
            if parsed.status != expected {
                return Err(Failure::Status { expected, seen: parsed.status });
            }
            if parsed.length != answer.len() {
                return Err(Failure::Head("bytes behind the head before any were asked for"));
            }
            return Ok(answer);
        }
    }
}

/// Opens a tunnel to `target` through `proxy`.
pub(crate) fn open(proxy: SocketAddr, target: &str) -> Result<TcpStream, Failure> {
    let mut stream = dial(proxy)?;
    ask(&mut stream, &connect_head(target), 200)?;
    Ok(stream)
}

/// Opens a WebSocket on `host`: by a forward request, or inside a CONNECT tunnel.
pub(crate) fn open_websocket(proxy: SocketAddr, host: &str, in_tunnel: bool) -> Result<TcpStream, Failure> {
    let mut stream = if in_tunnel { open(proxy, host)? } else { dial(proxy)? };
    let prefix = if in_tunnel { String::new() } else { format!("http://{host}") };
    let answer = ask(&mut stream, &upgrade_head(&prefix, host), 101)?;
    if !answer.windows(WEBSOCKET_ACCEPT.len()).any(|window| window == WEBSOCKET_ACCEPT.as_bytes()) {
        return Err(Failure::Head("101 without the right Sec-WebSocket-Accept"));
    }
    Ok(stream)
}
