//! One client connection of an epoll yardstick: its head, its dial, its two flows; requests one by one in `least`.

use std::io::{self, ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};

use super::Engine;
use super::flow::{Flow, Shop, Wait};
use crate::poll::{Interest, Poll};
use crate::reference::request::{self, ESTABLISHED, Request, UNREACHABLE};
use crate::socket;

/// A client's connection and what it leads to.
pub(super) struct Tunnel {
    client: TcpStream,
    upstream: Option<TcpStream>,
    state: State,
    /// What has come of a head.
    head: Vec<u8>,
    up: Flow,
    down: Flow,
    /// What is waited for on either side.
    interest: [Interest; 2],
    token: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The first head is awaited.
    Head,
    /// The origin is dialled.
    Dialling(Purpose),
    /// Bytes flow both ways.
    Relay,
    /// Requests flow up head by head, responses down as bytes.
    Requests { target: SocketAddr },
    /// An error was answered: close once it is sent.
    Refused,
}

/// What a dial is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// A CONNECT: to be answered with 200.
    Connect,
    /// An upgrade: bytes both ways behind its head.
    Upgrade,
    /// Requests to this origin.
    Requests(SocketAddr),
}

/// Which socket an event is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The client's.
    Client,
    /// The origin's.
    Upstream,
}

impl Tunnel {
    /// Takes an accepted client in. `token` and `token + 1` are its own.
    pub(super) fn accept(client: TcpStream, poll: &Poll, token: u64) -> io::Result<Self> {
        poll.add(&client, Interest::EPOLLIN, token)?;
        let interest = [Interest::EPOLLIN, Interest::empty()];
        let (up, down) = (Flow::default(), Flow::default());
        Ok(Self { client, upstream: None, state: State::Head, head: Vec::new(), up, down, interest, token })
    }

    /// Handles an event. `Ok(false)` or an error: the tunnel is over.
    pub(super) fn ready(
        &mut self,
        side: Side,
        ready: Interest,
        poll: &Poll,
        shop: &mut Shop,
    ) -> io::Result<bool> {
        if ready.contains(Interest::EPOLLERR) && !matches!(self.state, State::Dialling(_)) {
            return Ok(false);
        }
        match (self.state, side) {
            (State::Head, _) => {
                if !self.read_head(poll, shop)? {
                    return Ok(false);
                }
            }
            (State::Dialling(purpose), Side::Upstream) => self.dialled(purpose)?,
            (State::Dialling(_), Side::Client) => {
                self.wait(Side::Client, Interest::empty(), poll)?; // early bytes: after the dial
                return Ok(!ready.contains(Interest::EPOLLHUP));
            }
            (State::Relay, _) => self.relay(side, ready, shop)?,
            (State::Requests { target }, Side::Client) => {
                self.down.flush(&self.client)?;
                if self.down.is_drained()
                    && ready.contains(Interest::EPOLLIN)
                    && !self.next_request(target, poll, shop)?
                {
                    return Ok(false);
                }
            }
            (State::Requests { .. }, Side::Upstream) => {
                if let Some(upstream) = &self.upstream {
                    self.up.flush(upstream)?;
                    self.down.pump(upstream, &self.client, shop)?;
                }
            }
            (State::Refused, _) => {}
        }
        self.settle(poll)
    }

    /// Gives its pipes back.
    pub(super) fn retire(&mut self, shop: &mut Shop) {
        self.up.retire(shop);
        self.down.retire(shop);
    }

    /// Reads the first head and acts on it.
    fn read_head(&mut self, poll: &Poll, shop: &mut Shop) -> io::Result<bool> {
        let Some(count) = read(&self.client, &mut shop.scratch)? else { return Ok(true) };
        if count == 0 {
            return Ok(false);
        }
        self.head.extend_from_slice(&shop.scratch[..count]);
        match request::parse(&self.head) {
            Ok(None) => Ok(true),
            Ok(Some(request)) if request.origin.is_none() || shop.engine == Engine::Adaptive => {
                self.dial(&request, poll)?;
                Ok(true)
            }
            Ok(Some(_)) => self.refuse(request::BAD),
            Err(answer) => self.refuse(answer),
        }
    }

    /// Begins to dial, with what is to be sent first queued.
    fn dial(&mut self, request: &Request, poll: &Poll) -> io::Result<()> {
        self.forward(request);
        let upstream = socket::begin_connect(request.target)?;
        poll.add(&upstream, Interest::EPOLLOUT, self.token + 1)?;
        self.interest[1] = Interest::EPOLLOUT;
        self.upstream = Some(upstream);
        self.state = State::Dialling(match request {
            Request { origin: None, .. } => Purpose::Connect,
            Request { upgrades: true, .. } => Purpose::Upgrade,
            Request { target, .. } => Purpose::Requests(*target),
        });
        Ok(())
    }

    /// Queues a request's head in origin form, or what came behind a CONNECT.
    fn forward(&mut self, request: &Request) {
        if let Some(cut) = &request.origin {
            self.up.queue(&self.head[..cut.start]);
            self.up.queue(&self.head[cut.end..request.length]);
        } else {
            self.up.queue(&self.head[request.length..]);
            self.head.clear();
            return;
        }
        self.head.drain(..request.length);
    }

    /// The dial has ended, well or not.
    fn dialled(&mut self, purpose: Purpose) -> io::Result<()> {
        let Some(upstream) = &self.upstream else { return Ok(()) };
        if upstream.take_error()?.is_some() {
            return self.refuse(UNREACHABLE).map(|_| ());
        }
        self.state = match purpose {
            Purpose::Requests(target) => State::Requests { target },
            Purpose::Connect | Purpose::Upgrade => State::Relay,
        };
        if purpose == Purpose::Connect {
            self.down.queue(ESTABLISHED);
            self.down.flush(&self.client)?;
        }
        self.up.flush(upstream).map(|_| ())
    }

    fn relay(&mut self, side: Side, ready: Interest, shop: &mut Shop) -> io::Result<()> {
        let Some(upstream) = &self.upstream else { return Ok(()) };
        let (from, to) = match side {
            Side::Client => ((&mut self.up, &self.client, upstream), &mut self.down),
            Side::Upstream => ((&mut self.down, upstream, &self.client), &mut self.up),
        };
        if ready.contains(Interest::EPOLLOUT) {
            to.flush(from.1)?;
        }
        if ready.intersects(Interest::EPOLLIN | Interest::EPOLLHUP) {
            from.0.pump(from.1, from.2, shop)?;
        }
        Ok(())
    }

    /// Another request on a kept connection: to the same origin over the same upstream, otherwise a new dial.
    fn next_request(&mut self, target: SocketAddr, poll: &Poll, shop: &mut Shop) -> io::Result<bool> {
        let Some(count) = read(&self.client, &mut shop.scratch)? else { return Ok(true) };
        if count == 0 {
            return Ok(false);
        }
        self.head.extend_from_slice(&shop.scratch[..count]);
        loop {
            let request = match request::parse(&self.head) {
                Ok(None) => return Ok(true),
                Ok(Some(request)) if request.origin.is_some() => request,
                Ok(Some(_)) => return self.refuse(request::BAD),
                Err(answer) => return self.refuse(answer),
            };
            if request.target != target || request.upgrades {
                self.dial(&request, poll)?;
                return Ok(true);
            }
            self.forward(&request);
            if let Some(upstream) = &self.upstream {
                self.up.flush(upstream)?;
            }
        }
    }

    fn refuse(&mut self, answer: &[u8]) -> io::Result<bool> {
        self.down.queue(answer);
        self.down.flush(&self.client)?;
        self.state = State::Refused;
        Ok(true)
    }

    /// Sets what either side waits for. `false` when nothing is left to wait for.
    fn settle(&mut self, poll: &Poll) -> io::Result<bool> {
        let (up, down) = (self.up.wait(), self.down.wait());
        match self.state {
            State::Head | State::Dialling(_) => return Ok(true),
            State::Refused => return Ok(down == Wait::Room),
            State::Requests { .. } if self.down.is_over() => return Ok(false),
            State::Relay if self.up.is_over() && self.down.is_over() => return Ok(false),
            State::Relay | State::Requests { .. } => {}
        }
        let when = |condition, interest| if condition { interest } else { Interest::empty() };
        self.wait(
            Side::Client,
            when(up == Wait::Source, Interest::EPOLLIN) | when(down == Wait::Room, Interest::EPOLLOUT),
            poll,
        )?;
        self.wait(
            Side::Upstream,
            when(down == Wait::Source, Interest::EPOLLIN) | when(up == Wait::Room, Interest::EPOLLOUT),
            poll,
        )?;
        Ok(true)
    }

    fn wait(&mut self, side: Side, interest: Interest, poll: &Poll) -> io::Result<()> {
        let (index, stream) = match side {
            Side::Client => (0, Some(&self.client)),
            Side::Upstream => (1, self.upstream.as_ref()),
        };
        let Some(stream) = stream.filter(|_| self.interest[index] != interest) else { return Ok(()) };
        poll.change(stream, interest, self.token + index as u64)?;
        self.interest[index] = interest;
        Ok(())
    }
}

/// `None` where a read would have blocked.
fn read(mut stream: &TcpStream, scratch: &mut [u8]) -> io::Result<Option<usize>> {
    match stream.read(scratch) {
        Ok(count) => Ok(Some(count)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
