//! Yardsticks on epoll, level triggered: a ready socket costs one read and one write, never a read that finds nothing.
//!
//! The life of a tunnel: accepted here; `tunnel` reads its head, dials, and then lets two `flow`s move its bytes.

mod flow;
mod tunnel;

use std::net::SocketAddr;

use anyhow::{Context, Result};

use crate::poll::{Events, Interest, Poll};
use crate::socket;
use flow::Shop;
use tunnel::{Side, Tunnel};

/// Token of the listener: above any tunnel's.
const LISTENER: u64 = u64::MAX;
/// Accepts in a row, so that a flood of connections does not starve those that stand.
const ACCEPTS_PER_TURN: usize = 64;

/// How bytes are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Engine {
    /// Always recv and send.
    Copy,
    /// Always splice(2).
    Splice,
    /// Copy until a read shows bulk, then splice; forwards GETs too.
    Adaptive,
}

/// Serves for ever.
pub(super) fn serve(address: SocketAddr, engine: Engine) -> Result<()> {
    let listener = socket::listen(address, false).with_context(|| format!("cannot listen on {address}"))?;
    let poll = Poll::new().context("epoll")?;
    poll.add(&listener, Interest::EPOLLIN, LISTENER).context("epoll_ctl")?;
    let mut shop = Shop::new(engine);
    let mut tunnels: Vec<Option<Box<Tunnel>>> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut closed: Vec<usize> = Vec::new();
    let mut events = Events::new();
    loop {
        poll.wait(&mut events, None).context("epoll_wait")?;
        for event in 0..events.len() {
            let (token, ready) = events.get(event);
            if token == LISTENER {
                for _ in 0..ACCEPTS_PER_TURN {
                    let Some(client) = socket::accept(&listener).context("accept")? else { break };
                    let slot = free.pop().unwrap_or(tunnels.len());
                    let tunnel =
                        Some(Box::new(Tunnel::accept(client, &poll, slot as u64 * 2).context("epoll_ctl")?));
                    match tunnels.get_mut(slot) {
                        Some(place) => *place = tunnel,
                        None => tunnels.push(tunnel),
                    }
                }
                continue;
            }
            let slot = (token / 2) as usize;
            let side = if token.is_multiple_of(2) { Side::Client } else { Side::Upstream };
            let Some(Some(tunnel)) = tunnels.get_mut(slot) else { continue };
            if !tunnel.ready(side, ready, &poll, &mut shop).unwrap_or(false) {
                tunnel.retire(&mut shop);
                tunnels[slot] = None;
                closed.push(slot);
            }
        }
        free.append(&mut closed); // not before the batch is done: it may hold events of the old tunnel
    }
}
