//! Bulk over a standing tunnel, up or down, to the last byte: the origin confirms what it got.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use super::session::{Failure, Session, Step, Turn, unless_blocked};
use crate::origin::bulk::{self, Order, PATTERN_PERIOD};
use crate::poll::Interest;
use crate::socket;

/// System calls in one turn, so that 64 tunnels share a thread.
const CALLS_PER_TURN: usize = 4;

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Direction {
    /// From the origin to the client.
    Down,
    /// From the client to the origin.
    Up,
}

/// Transfers over one tunnel.
#[derive(Debug)]
pub(crate) struct Volume {
    stream: Option<TcpStream>,
    direction: Direction,
    /// Bytes of each transfer.
    bytes: u64,
    /// Compare every byte instead of discarding.
    verify: bool,
    left: u64,
    waits_for: Interest,
}

impl Volume {
    /// Takes over a tunnel to the origin's bulk port.
    pub(crate) fn over(
        stream: TcpStream,
        direction: Direction,
        bytes: u64,
        verify: bool,
    ) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream: Some(stream), direction, bytes, verify, left: 0, waits_for: Interest::EPOLLIN })
    }

    /// From now on each transfer has `bytes` bytes, compared or discarded.
    pub(crate) fn set(&mut self, bytes: u64, verify: bool) {
        (self.bytes, self.verify) = (bytes, verify);
    }

    /// Waits for `interest` from now on.
    fn wait_for(&mut self, interest: Interest, turn: &Turn<'_>) -> Result<(), Failure> {
        let Some(stream) = &self.stream else { return Ok(()) };
        if self.waits_for != interest {
            turn.poll.change(stream, interest, turn.token).map_err(Failure::while_("epoll_ctl"))?;
            self.waits_for = interest;
        }
        Ok(())
    }

    fn receive(&mut self, turn: &mut Turn<'_>) -> Result<Step, Failure> {
        let Some(mut stream) = self.stream.as_ref() else { return Ok(Step::Waiting) };
        for _ in 0..CALLS_PER_TURN {
            let most = turn.scratch.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
            let room = turn.scratch.get_mut(..most).unwrap_or_default();
            let got = if self.verify { stream.read(room) } else { socket::discard(stream, room) };
            let Some(count) = unless_blocked(got, "reading bulk")? else { return Ok(Step::Waiting) };
            if count == 0 {
                return Err(Failure::Closed("reading bulk"));
            }
            let place = self.bytes - self.left;
            if self.verify && !bulk::is_pattern(room.get(..count).unwrap_or_default(), place) {
                return Err(Failure::Changed("downloading"));
            }
            self.left -= count as u64;
            turn.moved += count as u64;
            if self.left == 0 {
                return Ok(Step::Done);
            }
        }
        Ok(Step::Waiting)
    }

    fn send(&mut self, turn: &mut Turn<'_>) -> Result<Step, Failure> {
        for _ in 0..CALLS_PER_TURN {
            let Some(mut stream) = self.stream.as_ref() else { return Ok(Step::Waiting) };
            let place = ((self.bytes - self.left) % PATTERN_PERIOD) as usize;
            let pattern = bulk::pattern().get(place..).unwrap_or_default();
            let most = pattern.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
            let piece = pattern.get(..most).unwrap_or_default();
            let Some(count) = unless_blocked(stream.write(piece), "sending bulk")? else {
                self.wait_for(Interest::EPOLLIN | Interest::EPOLLOUT, turn)?;
                return Ok(Step::Waiting);
            };
            self.left -= count as u64;
            turn.moved += count as u64;
            if self.left == 0 {
                self.wait_for(Interest::EPOLLIN, turn)?;
                return Ok(Step::Waiting);
            }
        }
        self.wait_for(Interest::EPOLLIN | Interest::EPOLLOUT, turn)?;
        Ok(Step::Waiting)
    }

    fn receipt(&mut self, turn: &mut Turn<'_>) -> Result<Step, Failure> {
        let Some(mut stream) = self.stream.as_ref() else { return Ok(Step::Waiting) };
        match unless_blocked(stream.read(turn.scratch), "reading the receipt")? {
            None => Ok(Step::Waiting),
            Some(0) => Err(Failure::Closed("awaiting the receipt")),
            Some(1) if turn.scratch.first() == Some(&bulk::RECEIPT) && self.left == 0 => Ok(Step::Done),
            Some(_) => Err(Failure::Changed("uploading: the origin's receipt is wrong")),
        }
    }
}

impl Session for Volume {
    fn join(&mut self, turn: &mut Turn<'_>) -> Result<(), Failure> {
        self.waits_for = Interest::EPOLLIN;
        let Some(stream) = &self.stream else { return Ok(()) };
        turn.poll.add(stream, self.waits_for, turn.token).map_err(Failure::while_("epoll_ctl"))
    }

    fn begin(&mut self, turn: &mut Turn<'_>) -> Result<Step, Failure> {
        let Some(mut stream) = self.stream.as_ref() else { return Err(Failure::Closed("beginning")) };
        let order = match self.direction {
            Direction::Down => Order::Send(self.bytes),
            Direction::Up => Order::Take { bytes: self.bytes, verify: self.verify },
        };
        stream.write_all(&order.encode()).map_err(Failure::while_("sending the order"))?;
        self.left = self.bytes;
        match self.direction {
            Direction::Down => Ok(Step::Waiting),
            Direction::Up => self.send(turn),
        }
    }

    fn ready(&mut self, turn: &mut Turn<'_>, ready: Interest) -> Result<Step, Failure> {
        match self.direction {
            Direction::Down => self.receive(turn),
            Direction::Up if ready.contains(Interest::EPOLLIN) || self.left == 0 => self.receipt(turn),
            Direction::Up => self.send(turn),
        }
    }

    fn recover(&mut self) -> bool {
        self.stream = None;
        false
    }
}
