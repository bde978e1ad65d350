//! One tunnel on the ring: which operation follows which completion.

use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::Result;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use super::queue::Queue;
use crate::reference::BUFFER_BYTES;
use crate::reference::request::{self, ESTABLISHED, HEAD_BYTES_MAX};

/// What a completion is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Action {
    /// Reading the head.
    Head,
    /// Connecting to the origin.
    Dial,
    /// Sending the 200, or the refusal.
    Answer,
    /// Client to us.
    RecvUp,
    /// Us to the origin.
    SendUp,
    /// Origin to us.
    RecvDown,
    /// Us to the client.
    SendDown,
}

/// Whether a tunnel goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// Operations are in flight.
    Goes,
    /// None is.
    Over,
}

/// A buffer of fixed size on the heap: its address does not change.
pub(super) type Buffer = Box<[u8]>;

/// A tunnel. It lives until `in_flight` is 0, so that what the kernel was given stays valid.
pub(super) struct Tunnel {
    slot: usize,
    client: OwnedFd,
    upstream: Option<Socket>,
    address: Option<SockAddr>,
    up: Buffer,
    down: Buffer,
    /// Bytes of the head in `up`.
    gathered: usize,
    in_flight: u32,
    failed: bool,
}

impl Tunnel {
    /// A tunnel for an accepted client, with spare buffers.
    pub(super) fn new(client: OwnedFd, slot: usize, spare: &mut Vec<Buffer>) -> Self {
        let mut take = || spare.pop().unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice());
        let (up, down) = (take(), take());
        Self {
            slot,
            client,
            upstream: None,
            address: None,
            up,
            down,
            gathered: 0,
            in_flight: 0,
            failed: false,
        }
    }

    /// Puts the buffers back.
    pub(super) fn retire(&mut self, spare: &mut Vec<Buffer>) {
        spare.push(std::mem::take(&mut self.up));
        spare.push(std::mem::take(&mut self.down));
    }

    /// Begins to read the head.
    pub(super) fn begin(&mut self, queue: &mut Queue) -> Result<()> {
        self.in_flight += 1;
        let room = self.up.get_mut(self.gathered..HEAD_BYTES_MAX + 1).unwrap_or_default();
        queue.recv(self.client.as_raw_fd(), room, Action::Head.pack(self.slot))
    }

    /// An operation has ended: begins the next.
    pub(super) fn completed(&mut self, action: Action, result: i32, queue: &mut Queue) -> Result<Life> {
        self.in_flight -= 1;
        if result < 0 || self.failed {
            self.fail();
        } else {
            self.go_on(action, result as usize, queue)?;
        }
        Ok(if self.in_flight == 0 { Life::Over } else { Life::Goes })
    }

    fn go_on(&mut self, action: Action, count: usize, queue: &mut Queue) -> Result<()> {
        let client = self.client.as_raw_fd();
        let upstream = self.upstream.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        match action {
            Action::Head if count == 0 => {}
            Action::Head => return self.read_head(count, queue),
            Action::Dial => {
                self.in_flight += 1;
                queue.send(client, ESTABLISHED, Action::Answer.pack(self.slot))?;
            }
            Action::Answer if self.upstream.is_none() => {} // a refusal
            Action::Answer => {
                self.in_flight += 2;
                queue.recv(upstream, &mut self.down, Action::RecvDown.pack(self.slot))?;
                if self.gathered > 0 {
                    return queue.send(upstream, &self.up[..self.gathered], Action::SendUp.pack(self.slot));
                }
                queue.recv(client, &mut self.up, Action::RecvUp.pack(self.slot))?;
            }
            Action::RecvUp if count == 0 => self.finish(Action::RecvUp),
            Action::RecvDown if count == 0 => self.finish(Action::RecvDown),
            Action::RecvUp => {
                self.in_flight += 1;
                queue.send(upstream, &self.up[..count], Action::SendUp.pack(self.slot))?;
            }
            Action::RecvDown => {
                self.in_flight += 1;
                queue.send(client, &self.down[..count], Action::SendDown.pack(self.slot))?;
            }
            Action::SendUp => {
                self.in_flight += 1;
                queue.recv(client, &mut self.up, Action::RecvUp.pack(self.slot))?;
            }
            Action::SendDown => {
                self.in_flight += 1;
                queue.recv(upstream, &mut self.down, Action::RecvDown.pack(self.slot))?;
            }
        }
        Ok(())
    }

    fn read_head(&mut self, count: usize, queue: &mut Queue) -> Result<()> {
        self.gathered += count;
        match request::parse(&self.up[..self.gathered]) {
            Ok(None) => self.begin(queue),
            Ok(Some(request)) if request.origin.is_none() => {
                self.up.copy_within(request.length..self.gathered, 0);
                self.gathered -= request.length;
                let kind = Domain::for_address(request.target);
                let upstream = Socket::new(kind, Type::STREAM, Some(Protocol::TCP))?;
                upstream.set_tcp_nodelay(true)?;
                let fd = upstream.as_raw_fd();
                self.upstream = Some(upstream);
                let address = self.address.insert(request.target.into());
                self.in_flight += 1;
                queue.connect(fd, address, Action::Dial.pack(self.slot))
            }
            Ok(Some(_)) => self.refuse(request::BAD, queue),
            Err(answer) => self.refuse(answer, queue),
        }
    }

    fn refuse(&mut self, answer: &'static [u8], queue: &mut Queue) -> Result<()> {
        self.in_flight += 1;
        queue.send(self.client.as_raw_fd(), answer, Action::Answer.pack(self.slot))
    }

    /// One direction has ended: passes its end on. The other goes on.
    fn finish(&mut self, action: Action) {
        let _ = match (action, &self.upstream) {
            (Action::RecvUp, Some(upstream)) => upstream.shutdown(Shutdown::Write),
            _ => SockRef::from(&self.client.as_fd()).shutdown(Shutdown::Write),
        };
    }

    /// Ends everything that is in flight.
    fn fail(&mut self) {
        self.failed = true;
        let _ = SockRef::from(&self.client.as_fd()).shutdown(Shutdown::Both);
        if let Some(upstream) = &self.upstream {
            let _ = upstream.shutdown(Shutdown::Both);
        }
    }
}
