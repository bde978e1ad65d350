//! CONNECT, one byte to the origin and back, close: what a short-lived tunnel costs.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use super::head;
use super::session::{Failure, Session, Step, Turn, unless_blocked};
use crate::poll::Interest;
use crate::socket;

/// A succession of short tunnels.
#[derive(Debug)]
pub(crate) struct Visit {
    proxy: SocketAddr,
    head: Arc<str>,
    stream: Option<TcpStream>,
    state: State,
    answer: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The connection is being made.
    Dialling,
    /// The head is sent, its answer is awaited.
    Asked,
    /// The byte is sent, its echo is awaited.
    Greeted,
}

/// The byte.
const BYTE: u8 = b'!';

impl Visit {
    /// Visits through `proxy` with the CONNECT head `head`.
    pub(crate) fn new(proxy: SocketAddr, head: Arc<str>) -> Self {
        Self { proxy, head, stream: None, state: State::Dialling, answer: Vec::new() }
    }

    fn ask(&mut self) -> Result<bool, Failure> {
        let Some(mut stream) = self.stream.as_ref() else { return Err(Failure::Closed("asking")) };
        send_head(&mut stream, &self.head).inspect(|&sent| {
            if sent {
                self.state = State::Asked;
            }
        })
    }
}

/// Sends a request's head on a fresh connection. `false` while the connection is still being made.
pub(crate) fn send_head(stream: &mut &TcpStream, head: &str) -> Result<bool, Failure> {
    match unless_blocked(stream.write(head.as_bytes()), "sending the head")? {
        Some(sent) if sent == head.len() => Ok(true),
        Some(_) => Err(Failure::Closed("sending: a fresh connection did not take the head whole")),
        None => Ok(false),
    }
}

impl Session for Visit {
    fn begin(&mut self, turn: &mut Turn<'_>) -> Result<Step, Failure> {
        let stream = socket::begin_connect(self.proxy).map_err(Failure::while_("connecting to the proxy"))?;
        self.stream = Some(stream);
        self.state = State::Dialling;
        self.answer.clear();
        let wait = if self.ask()? { Interest::EPOLLIN } else { Interest::EPOLLOUT }; // on loopback it stands at once
        let stream = self.stream.as_ref().ok_or(Failure::Closed("asking"))?;
        turn.poll.add(stream, wait, turn.token).map_err(Failure::while_("epoll_ctl"))?;
        Ok(Step::Waiting)
    }

    fn ready(&mut self, turn: &mut Turn<'_>, _ready: Interest) -> Result<Step, Failure> {
        if self.stream.is_none() {
            return Ok(Step::Waiting);
        }
        if self.state == State::Dialling {
            if self.ask()? {
                let stream = self.stream.as_ref().ok_or(Failure::Closed("asking"))?;
                turn.poll
                    .change(stream, Interest::EPOLLIN, turn.token)
                    .map_err(Failure::while_("epoll_ctl"))?;
            }
            return Ok(Step::Waiting);
        }
        let Some(mut stream) = self.stream.as_ref() else { return Ok(Step::Waiting) };
        let Some(count) = unless_blocked(stream.read(turn.scratch), "reading")? else {
            return Ok(Step::Waiting);
        };
        if count == 0 {
            return Err(Failure::Closed(if self.state == State::Asked {
                "awaiting 200"
            } else {
                "awaiting the echo"
            }));
        }
        let bytes = turn.scratch.get(..count).unwrap_or_default();
        if self.state == State::Greeted {
            turn.moved += 1;
            self.stream = None;
            return if bytes == [BYTE] { Ok(Step::Done) } else { Err(Failure::Changed("echoing a byte")) };
        }
        self.answer.extend_from_slice(bytes);
        let Some(head) = head::parse(&self.answer)? else { return Ok(Step::Waiting) };
        if head.status != 200 {
            return Err(Failure::Status { expected: 200, seen: head.status });
        }
        self.state = State::Greeted;
        stream.write_all(&[BYTE]).map_err(Failure::while_("sending the byte"))?;
        Ok(Step::Waiting)
    }

    fn recover(&mut self) -> bool {
        self.stream = None;
        true
    }
}
