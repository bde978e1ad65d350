//! A request and its whole response: GETs over kept or new connections, refusals.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use super::head;
use super::session::{Failure, Session, Step, Turn, unless_blocked};
use super::visit::send_head;
use crate::poll::Interest;
use crate::socket;

/// What is asked, and what must come back.
#[derive(Debug)]
pub(crate) struct Request {
    /// The request's head; there is no body.
    pub(crate) head: String,
    /// The status that is right.
    pub(crate) status: u16,
    /// The body's length that is right; `None` for any.
    pub(crate) body: Option<u64>,
    /// A new connection for each request.
    pub(crate) new_connection: bool,
}

/// A succession of requests.
#[derive(Debug)]
pub(crate) struct Fetch {
    proxy: SocketAddr,
    request: Arc<Request>,
    stream: Option<TcpStream>,
    state: State,
    answer: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The connection is being made.
    Dialling,
    /// The response's head is awaited.
    Head,
    /// So many bytes of the body are awaited.
    Body { left: u64, closes: bool },
}

impl Fetch {
    /// Sends `request` to `proxy` again and again.
    pub(crate) fn new(proxy: SocketAddr, request: Arc<Request>) -> Self {
        Self { proxy, request, stream: None, state: State::Dialling, answer: Vec::new() }
    }

    fn dial(&mut self, turn: &mut Turn<'_>) -> Result<(), Failure> {
        let stream = socket::begin_connect(self.proxy).map_err(Failure::while_("connecting to the proxy"))?;
        let stands = send_head(&mut &stream, &self.request.head)?;
        let (state, wait) =
            if stands { (State::Head, Interest::EPOLLIN) } else { (State::Dialling, Interest::EPOLLOUT) };
        turn.poll.add(&stream, wait, turn.token).map_err(Failure::while_("epoll_ctl"))?;
        self.state = state;
        self.stream = Some(stream);
        Ok(())
    }

    /// The head is complete, or not yet: what it says of the body, and how much of that has come already.
    fn read_head(&mut self, bytes: &[u8]) -> Result<Option<(u64, bool)>, Failure> {
        let gathered = !self.answer.is_empty();
        if gathered {
            self.answer.extend_from_slice(bytes);
        }
        let seen = if gathered { &self.answer } else { bytes };
        let Some(head) = head::parse(seen)? else {
            if !gathered {
                self.answer.extend_from_slice(bytes);
            }
            return Ok(None);
        };
        if head.status != self.request.status {
            return Err(Failure::Status { expected: self.request.status, seen: head.status });
        }
        let body = match head.body {
            Some(body) => body,
            None if self.request.body.is_none() && self.request.new_connection => 0,
            None => return Err(Failure::Head("no Content-Length")),
        };
        if self.request.body.is_some_and(|expected| expected != body) {
            return Err(Failure::Changed("fetching: the body has another length"));
        }
        let left = body.checked_sub((seen.len() - head.length) as u64);
        let left = left.ok_or(Failure::Head("bytes behind the body"))?;
        self.answer.clear();
        Ok(Some((left, head.closes)))
    }

    fn finish(&mut self, closes: bool) -> Step {
        if closes || self.request.new_connection {
            self.stream = None;
        }
        Step::Done
    }
}

impl Session for Fetch {
    fn begin(&mut self, turn: &mut Turn<'_>) -> Result<Step, Failure> {
        self.answer.clear();
        if let Some(mut stream) = self.stream.as_ref() {
            self.state = State::Head;
            stream.write_all(self.request.head.as_bytes()).map_err(Failure::while_("sending the head"))?;
        } else {
            self.dial(turn)?;
        }
        Ok(Step::Waiting)
    }

    fn ready(&mut self, turn: &mut Turn<'_>, _ready: Interest) -> Result<Step, Failure> {
        let Some(mut stream) = self.stream.as_ref() else { return Ok(Step::Waiting) };
        if self.state == State::Dialling {
            if send_head(&mut stream, &self.request.head)? {
                self.state = State::Head;
                turn.poll
                    .change(stream, Interest::EPOLLIN, turn.token)
                    .map_err(Failure::while_("epoll_ctl"))?;
            }
            return Ok(Step::Waiting);
        }
        let Some(count) = unless_blocked(stream.read(turn.scratch), "reading the response")? else {
            return Ok(Step::Waiting);
        };
        if count == 0 {
            return Err(Failure::Closed("awaiting the response"));
        }
        turn.moved += count as u64;
        let bytes = turn.scratch.get(..count).unwrap_or_default();
        let (left, closes) = match self.state {
            State::Body { left, closes } => {
                (left.checked_sub(count as u64).ok_or(Failure::Head("bytes behind the body"))?, closes)
            }
            State::Head | State::Dialling => match self.read_head(bytes)? {
                Some(head) => head,
                None => return Ok(Step::Waiting),
            },
        };
        if left == 0 {
            return Ok(self.finish(closes));
        }
        self.state = State::Body { left, closes };
        Ok(Step::Waiting)
    }

    fn recover(&mut self) -> bool {
        self.stream = None;
        true
    }
}
