//! The loop of one origin thread: accept, hand ready sockets to their service, close.

use std::io;
use std::net::{TcpListener, TcpStream};

use anyhow::{Context, Result};

use super::service::{Next, Service};
use crate::poll::{Events, Interest, Poll};
use crate::socket;

/// Tokens of listeners: above any connection's.
const LISTENERS: u64 = 1 << 32;
/// Scratch space of a thread, bytes.
const SCRATCH_BYTES: usize = 1 << 20;
/// Accepts in a row, so that a flood of connections does not starve those that stand.
const ACCEPTS_PER_TURN: usize = 64;

type Make = Box<dyn Fn() -> Box<dyn Service>>;

/// The connections of one thread.
pub(crate) struct Server {
    poll: Poll,
    listeners: Vec<(TcpListener, Make)>,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    scratch: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    service: Box<dyn Service>,
    waits_for: Interest,
}

impl Server {
    /// A server without ports.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            poll: Poll::new().context("epoll")?,
            listeners: Vec::new(),
            connections: Vec::new(),
            free: Vec::new(),
            scratch: vec![0; SCRATCH_BYTES],
        })
    }

    /// Adds a port and what makes the service of each of its connections.
    pub(crate) fn with(
        mut self,
        listener: TcpListener,
        make: impl Fn() -> Box<dyn Service> + 'static,
    ) -> Self {
        self.listeners.push((listener, Box::new(make)));
        self
    }

    /// Serves for ever.
    pub(crate) fn run(mut self) -> Result<()> {
        for (index, (listener, _)) in self.listeners.iter().enumerate() {
            self.poll.add(listener, Interest::EPOLLIN, LISTENERS + index as u64).context("epoll_ctl")?;
        }
        let mut events = Events::new();
        loop {
            self.poll.wait(&mut events, None).context("epoll_wait")?;
            for event in 0..events.len() {
                let (token, _) = events.get(event);
                match token.checked_sub(LISTENERS) {
                    Some(listener) => self.accept(listener as usize).context("accepting at the origin")?,
                    None => self.serve(token as usize),
                }
            }
        }
    }

    fn accept(&mut self, listener: usize) -> io::Result<()> {
        for _ in 0..ACCEPTS_PER_TURN {
            let Some((listener, make)) = self.listeners.get(listener) else { return Ok(()) };
            let Some(stream) = socket::accept(listener)? else { return Ok(()) };
            let slot = self.free.pop().unwrap_or(self.connections.len());
            self.poll.add(&stream, Interest::EPOLLIN, slot as u64)?;
            let connection = Some(Connection { stream, service: make(), waits_for: Interest::EPOLLIN });
            match self.connections.get_mut(slot) {
                Some(place) => *place = connection,
                None => self.connections.push(connection),
            }
        }
        Ok(())
    }

    fn serve(&mut self, slot: usize) {
        let Some(Some(connection)) = self.connections.get_mut(slot) else { return };
        let next = match connection.service.ready(&connection.stream, &mut self.scratch) {
            Ok(next) => next,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => connection.service.wait(),
            Err(_) => Next::Close, // the client sees it and counts it
        };
        match next {
            Next::Wait(interest) if interest == connection.waits_for => return,
            Next::Wait(interest) => {
                connection.waits_for = interest;
                if self.poll.change(&connection.stream, interest, slot as u64).is_ok() {
                    return;
                }
            }
            Next::Close => {}
        }
        if let Some(place) = self.connections.get_mut(slot) {
            *place = None;
            self.free.push(slot);
        }
    }
}
