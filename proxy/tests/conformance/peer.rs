//! One end of a TCP connection: says what it is told to, and checks what it hears.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::SockRef;

use super::DEADLINE;

/// A connected socket, and what was read of it beyond what a test has asked for.
pub(crate) struct Peer {
    stream: TcpStream,
    read: Vec<u8>,
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// What came before.
    pub(crate) rest: Vec<u8>,
    /// By RST, not FIN.
    pub(crate) reset: bool,
}

impl Peer {
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Self { stream, read: Vec::new() }
    }

    pub(crate) fn send(&mut self, octets: impl AsRef<[u8]>) {
        self.stream.write_all(octets.as_ref()).expect("the other side no longer takes bytes");
    }

    /// Sends what it can: the other side may have hung up already.
    pub(crate) fn try_send(&mut self, octets: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(octets.as_ref()).is_ok()
    }

    /// Says that nothing more will be sent.
    pub(crate) fn finish(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Ends the connection by RST.
    pub(crate) fn reset(self) {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Reads a head to its empty line.
    pub(crate) fn head(&mut self) -> Head {
        loop {
            if let Some(at) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                let octets: Vec<u8> = self.read.drain(..at + 4).collect();
                return Head(String::from_utf8(octets).expect("a head in ASCII"));
            }
            let count = self.fill().expect("a head, not a reset");
            assert_ne!(
                count,
                0,
                "closed before a head had ended: {:?}",
                self.read.escape_ascii().to_string()
            );
        }
    }

    /// Reads a head, if another one comes.
    pub(crate) fn try_head(&mut self) -> Option<Head> {
        while !self.read.windows(4).any(|four| four == b"\r\n\r\n") {
            if self.fill().unwrap_or(0) == 0 {
                return None;
            }
        }
        Some(self.head())
    }

    /// Reads exactly so many octets.
    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        while self.read.len() < count {
            let more = self.fill().unwrap_or_else(|error| panic!("{error} {}", self.progress(count)));
            assert_ne!(more, 0, "closed {}", self.progress(count));
        }
        self.read.drain(..count).collect()
    }

    fn progress(&self, wanted: usize) -> String {
        let shown = &self.read[self.read.len().saturating_sub(200)..];
        format!("after {} of {wanted} octets, ending {:?}", self.read.len(), shown.escape_ascii().to_string())
    }

    /// The next octets are these.
    #[track_caller]
    pub(crate) fn hears(&mut self, expected: impl AsRef<[u8]>) {
        let expected = expected.as_ref();
        let heard = self.bytes(expected.len());
        assert_eq!(heard.escape_ascii().to_string(), expected.escape_ascii().to_string());
    }

    /// Reads to the end, whichever way it comes.
    pub(crate) fn end(&mut self) -> End {
        let reset = loop {
            match self.fill() {
                Ok(0) => break false,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break true,
                Err(error) => panic!("no end: {error}, after {:?}", self.read.escape_ascii().to_string()),
            }
        };
        End { rest: std::mem::take(&mut self.read), reset }
    }

    /// The connection ends here, by FIN, and nothing came before.
    #[track_caller]
    pub(crate) fn hears_end(&mut self) {
        let End { rest, reset } = self.end();
        assert_eq!((rest.escape_ascii().to_string(), reset), (String::new(), false));
    }

    /// The connection ends here by RST, and nothing came before.
    #[track_caller]
    pub(crate) fn hears_reset(&mut self) {
        let End { rest, reset } = self.end();
        assert_eq!((rest.escape_ascii().to_string(), reset), (String::new(), true));
    }

    /// A head and the body its `Content-Length` announces.
    pub(crate) fn message(&mut self) -> (Head, String) {
        let head = self.head();
        let length = head.field("content-length").expect("a Content-Length").parse().unwrap();
        let body = String::from_utf8(self.bytes(length)).unwrap();
        (head, body)
    }

    /// The refusal Sluice writes: its status, and `reason` of its JSON.
    pub(crate) fn refusal(&mut self) -> (u16, String) {
        let (head, body) = self.message();
        let json: serde_json::Value = serde_json::from_str(&body).expect("a refusal is JSON");
        assert!(head.field("proxy-status").is_some_and(|status| status.starts_with("sluice; error=")));
        (head.status(), json["reason"].as_str().unwrap().to_owned())
    }

    pub(crate) fn local(&self) -> SocketAddr {
        self.stream.local_addr().unwrap()
    }

    /// The socket alone.
    pub(crate) fn into_stream(self) -> TcpStream {
        assert!(self.read.is_empty(), "bytes would be lost");
        self.stream
    }

    /// The socket itself, for bulk and odd manners.
    pub(crate) fn stream(&self) -> &TcpStream {
        assert!(self.read.is_empty(), "bytes would be passed by");
        &self.stream
    }

    fn fill(&mut self) -> std::io::Result<usize> {
        let mut chunk = [0; 16 << 10];
        let count = self.stream.read(&mut chunk)?;
        self.read.extend_from_slice(&chunk[..count]);
        Ok(count)
    }
}

/// The head of a message, as it came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Head(String);

impl Head {
    pub(crate) fn text(&self) -> &str {
        &self.0
    }

    pub(crate) fn start(&self) -> &str {
        self.0.split("\r\n").next().unwrap()
    }

    pub(crate) fn status(&self) -> u16 {
        let mut words = self.start().split(' ');
        assert_eq!(words.next(), Some("HTTP/1.1"), "{self:?}");
        words.next().unwrap().parse().unwrap()
    }

    /// The values of all fields with this name, in order.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let lines = self.0.split("\r\n").skip(1).filter_map(|line| line.split_once(": "));
        lines.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value).collect()
    }

    /// The value of the one field with this name.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() <= 1, "{name} more than once: {self:?}");
        all.first().copied()
    }

    /// The names of the fields in order, in lower case.
    pub(crate) fn names(&self) -> Vec<String> {
        let lines = self.0.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        lines.map(|(name, _)| name.to_ascii_lowercase()).collect()
    }
}
