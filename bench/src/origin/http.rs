//! The HTTP port: `GET /<bytes>` answers with so many bytes, `GET /ws` becomes a WebSocket that echoes frames.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use super::service::{Next, Service};
use crate::load::head;
use crate::load::tunnel::{WEBSOCKET_ACCEPT, WEBSOCKET_KEY};
use crate::poll::Interest;

/// Largest body that can be asked for, bytes: 16 MiB.
const BODY_BYTES_MAX: usize = 16 << 20;
/// Longest request head, bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Bytes read at a time.
const READ_BYTES: usize = 64 * 1024;

/// One connection of the HTTP port.
#[derive(Debug, Default)]
pub(crate) struct Http {
    input: Vec<u8>,
    /// What is still to be sent of `response`.
    response: Vec<u8>,
    sent: usize,
    /// Length of the body of the response that `response` holds ready.
    ready_for: Option<usize>,
    is_websocket: bool,
    closing: bool,
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// A body of so many bytes; close afterwards or not.
    Body { bytes: usize, close: bool },
    /// A WebSocket.
    Upgrade,
    /// Nothing known.
    Unknown,
}

impl Http {
    fn answer(&mut self, asked: &Asked) {
        match *asked {
            Asked::Body { bytes, close } => {
                self.closing = close;
                if self.ready_for != Some(bytes) {
                    let head = format!(
                        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {bytes}\r\n\r\n"
                    );
                    self.response = head.into_bytes();
                    self.response.resize(self.response.len() + bytes, b'x');
                    self.ready_for = Some(bytes);
                }
            }
            Asked::Upgrade => {
                self.is_websocket = true;
                self.respond(&format!(
                    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                     Sec-WebSocket-Accept: {WEBSOCKET_ACCEPT}\r\n\r\n"
                ));
            }
            Asked::Unknown => {
                self.closing = true;
                self.respond("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            }
        }
        self.sent = 0;
    }

    fn respond(&mut self, text: &str) {
        self.ready_for = None;
        self.response = text.as_bytes().to_vec();
    }

    /// Sends what is left of the response.
    fn flush(&mut self, mut stream: &TcpStream) -> io::Result<()> {
        while let Some(rest) = self.response.get(self.sent..).filter(|rest| !rest.is_empty()) {
            self.sent += stream.write(rest)?;
        }
        Ok(())
    }

    /// Takes one request or frame off the input and answers it. `false` when there is none whole.
    fn serve_one(&mut self) -> bool {
        if self.is_websocket {
            let Some((frame, reply)) = echo_frame(&self.input) else { return false };
            self.input.drain(..frame);
            self.ready_for = None;
            self.response = reply;
            self.sent = 0;
            return true;
        }
        if let Some(end) = head::end(&self.input) {
            let asked = parse(self.input.get(..end).unwrap_or_default());
            self.input.drain(..end);
            self.answer(&asked);
            return true;
        }
        if self.input.len() > HEAD_BYTES_MAX {
            self.answer(&Asked::Unknown);
            return true;
        }
        false
    }

    fn is_flushed(&self) -> bool {
        self.sent >= self.response.len()
    }
}

impl Service for Http {
    fn ready(&mut self, mut stream: &TcpStream, scratch: &mut [u8]) -> io::Result<Next> {
        if self.is_flushed() {
            let count = stream.read(scratch.get_mut(..READ_BYTES).unwrap_or_default())?;
            if count == 0 {
                return Ok(Next::Close);
            }
            self.input.extend_from_slice(scratch.get(..count).unwrap_or_default());
        }
        loop {
            self.flush(stream)?;
            if self.closing {
                return Ok(Next::Close);
            }
            if !self.serve_one() {
                return Ok(self.wait());
            }
        }
    }

    fn wait(&self) -> Next {
        Next::Wait(if self.is_flushed() { Interest::EPOLLIN } else { Interest::EPOLLOUT })
    }
}

/// Reads a request's head.
fn parse(bytes: &[u8]) -> Asked {
    let mut lines = bytes.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii_end);
    let line = lines.next().unwrap_or_default();
    let Some(path) = line.strip_prefix(b"GET /").and_then(|rest| rest.split(|&byte| byte == b' ').next())
    else {
        return Asked::Unknown;
    };
    if path == b"ws" {
        let keyed =
            lines.any(|line| head::field(line, b"sec-websocket-key") == Some(WEBSOCKET_KEY.as_bytes()));
        return if keyed { Asked::Upgrade } else { Asked::Unknown };
    }
    let close =
        lines.any(|line| head::field(line, b"connection").is_some_and(|v| v.eq_ignore_ascii_case(b"close")));
    let bytes = std::str::from_utf8(path).ok().and_then(|digits| digits.parse().ok());
    bytes
        .filter(|&bytes| bytes <= BODY_BYTES_MAX)
        .map_or(Asked::Unknown, |bytes| Asked::Body { bytes, close })
}

/// The length of the first whole masked frame (payload up to 125 bytes) and the frame that echoes it.
fn echo_frame(input: &[u8]) -> Option<(usize, Vec<u8>)> {
    let (&opcode, &length) = (input.first()?, input.get(1)?);
    let payload = usize::from(length & 0x7f);
    let mask = input.get(2..6)?;
    let masked = input.get(6..6 + payload)?;
    let mut reply = vec![opcode, length & 0x7f];
    reply.extend(masked.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    Some((6 + payload, reply))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::exchange::Messages;

    #[test]
    fn requests_are_told_apart() {
        assert_eq!(
            parse(b"GET /1024 HTTP/1.1\r\nHost: a\r\n\r\n"),
            Asked::Body { bytes: 1024, close: false }
        );
        assert_eq!(
            parse(b"GET /0 HTTP/1.1\r\nconnection: Close\r\n\r\n"),
            Asked::Body { bytes: 0, close: true }
        );
        assert_eq!(parse(b"GET /ws HTTP/1.1\r\n\r\n"), Asked::Unknown);
        assert_eq!(parse(b"GET /99999999999 HTTP/1.1\r\n\r\n"), Asked::Unknown);
        assert_eq!(parse(b"POST /1 HTTP/1.1\r\n\r\n"), Asked::Unknown);
        let upgrade = crate::load::tunnel::upgrade_head("", "h");
        assert_eq!(parse(upgrade.as_bytes()), Asked::Upgrade);
    }

    #[test]
    fn a_frame_is_echoed_once_it_is_whole() {
        let messages = Messages::frames(64);
        assert!(echo_frame(&messages.question[..69]).is_none());
        assert_eq!(echo_frame(&messages.question), Some((70, messages.answer)));
    }
}
