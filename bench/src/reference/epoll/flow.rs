//! One direction of a relay: copied through a shared buffer, or spliced through a pipe.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

use super::Engine;

/// Size asked for each pipe, bytes. A kernel that grants less still works.
const PIPE_BYTES: usize = 256 * 1024;
/// A read of at least so many bytes moves an adaptive flow to splice.
const BULK_BYTES: usize = 32 * 1024;
/// Rounds in one turn: enough that bulk over one tunnel does not pay a wait per round.
const ROUNDS_PER_TURN: usize = 4;

/// A pipe that holds nothing.
pub(super) struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
}

/// Shared by all flows of the thread.
pub(super) struct Shop {
    pub(super) engine: Engine,
    pub(super) scratch: Vec<u8>,
    /// Empty pipes for reuse.
    pipes: Vec<Pipe>,
}

/// What a flow waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// More from its source.
    Source,
    /// Room at its destination.
    Room,
    /// Nothing: its source has ended and that was passed on.
    Over,
}

/// The state of one direction. Nothing is allocated while it is idle and has not been bulk.
#[derive(Default)]
pub(super) struct Flow {
    /// Bytes that the destination has not taken yet.
    rest: Vec<u8>,
    taken: usize,
    pipe: Option<Pipe>,
    in_pipe: usize,
    over: bool,
}

impl Shop {
    pub(super) fn new(engine: Engine) -> Self {
        Self { engine, scratch: vec![0; crate::reference::BUFFER_BYTES], pipes: Vec::new() }
    }

    fn pipe(&mut self) -> io::Result<Pipe> {
        if let Some(pipe) = self.pipes.pop() {
            return Ok(pipe);
        }
        let (out, into) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
        let _ = fcntl(&into, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES as i32)); // smaller works too, only slower
        Ok(Pipe { out, into })
    }
}

impl Flow {
    /// Puts bytes before all others: an answer, or what came behind a head.
    pub(super) fn queue(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
    }

    /// Whether the destination has taken everything.
    pub(super) fn is_drained(&self) -> bool {
        self.rest.is_empty() && self.in_pipe == 0
    }

    /// Whether the source's end was passed on.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// What it waits for now.
    pub(super) fn wait(&self) -> Wait {
        match (self.over, self.is_drained()) {
            (true, _) => Wait::Over,
            (false, true) => Wait::Source,
            (false, false) => Wait::Room,
        }
    }

    /// Moves what can be moved in one turn.
    pub(super) fn pump(&mut self, from: &TcpStream, to: &TcpStream, shop: &mut Shop) -> io::Result<()> {
        if self.over || !self.flush(to)? {
            return Ok(());
        }
        let moved = if self.pipe.is_some() || shop.engine == Engine::Splice {
            self.splice_rounds(from, to, shop)
        } else {
            self.copy_rounds(from, to, shop)
        };
        match moved {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }

    /// Sends what the destination has not taken. `false` when it still has not.
    pub(super) fn flush(&mut self, mut to: &TcpStream) -> io::Result<bool> {
        while let Some(rest) = self.rest.get(self.taken..).filter(|rest| !rest.is_empty()) {
            match to.write(rest) {
                Ok(count) => self.taken += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        self.rest.clear();
        self.taken = 0;
        self.drain_pipe(to)
    }

    /// Gives an empty pipe back. One that holds bytes is closed with the flow: they are nobody else's.
    pub(super) fn retire(&mut self, shop: &mut Shop) {
        if let Some(pipe) = self.pipe.take().filter(|_| self.in_pipe == 0) {
            shop.pipes.push(pipe);
        }
    }

    fn copy_rounds(&mut self, mut from: &TcpStream, mut to: &TcpStream, shop: &mut Shop) -> io::Result<()> {
        for _ in 0..ROUNDS_PER_TURN {
            let count = from.read(&mut shop.scratch)?;
            if count == 0 {
                return self.finish(to);
            }
            let bytes = &shop.scratch[..count];
            let sent = match to.write(bytes) {
                Ok(sent) => sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error),
            };
            if sent < count {
                self.rest.extend_from_slice(&bytes[sent..]);
                return Ok(());
            }
            if shop.engine == Engine::Adaptive && count >= BULK_BYTES {
                return self.splice_rounds(from, to, shop);
            }
            if count < shop.scratch.len() {
                return Ok(()); // level triggered: should there be more, the next wait says so
            }
        }
        Ok(())
    }

    fn splice_rounds(&mut self, from: &TcpStream, to: &TcpStream, shop: &mut Shop) -> io::Result<()> {
        if self.pipe.is_none() {
            self.pipe = Some(shop.pipe()?);
        }
        for _ in 0..ROUNDS_PER_TURN {
            let Some(pipe) = &self.pipe else { return Ok(()) };
            let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
            let count = splice(from, None, &pipe.into, None, PIPE_BYTES, flags)?;
            if count == 0 {
                return self.finish(to);
            }
            self.in_pipe = count;
            if !self.drain_pipe(to)? || count < BULK_BYTES {
                return Ok(());
            }
        }
        Ok(())
    }

    fn drain_pipe(&mut self, to: &TcpStream) -> io::Result<bool> {
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
        while let (Some(pipe), true) = (&self.pipe, self.in_pipe > 0) {
            match splice(&pipe.out, None, to, None, self.in_pipe, flags) {
                Ok(count) => self.in_pipe -= count,
                Err(Errno::EAGAIN) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    fn finish(&mut self, to: &TcpStream) -> io::Result<()> {
        self.over = true;
        match to.shutdown(Shutdown::Write) {
            Err(error) if error.kind() != ErrorKind::NotConnected => Err(error),
            _ => Ok(()),
        }
    }
}
