//! Connections to origins kept for the next request, per worker.
//!
//! A connection serves the sandbox it was dialled for and no other: what one tenant's requests left in an origin's
//! connection is never another's. It is tried before use, since the origin may have closed it meanwhile.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::socket::Side;
use crate::destination::Destination;
use crate::limits::Limits;
use crate::sandbox::Sandbox;

/// Idle connections kept per destination, and in all, on one worker. Two descriptors' worth of memory each.
const PER_DESTINATION_MAX: usize = 64;
const ALL_MAX: usize = 1024;

/// An upstream connection.
pub(super) struct Upstream<O> {
    pub(super) side: O,
    pub(super) address: SocketAddr,
    /// Its last response was long: of the next one no more is read into memory than a head takes.
    pub(super) bulky: Cell<bool>,
}

impl<O> Upstream<O> {
    pub(super) fn new(side: O, address: SocketAddr) -> Self {
        Self { side, address, bulky: Cell::new(false) }
    }
}

struct Idle<O> {
    upstream: Upstream<O>,
    sandbox: *const Sandbox,
    since: Instant,
}

/// The idle connections of one worker, of one kind: what is inside TLS is no plaintext connection.
pub(crate) struct Upstreams<O> {
    limits: Arc<Limits>,
    /// Of the last sweep: near enough for a time-out, and costs nothing.
    clock: Cell<Instant>,
    idle: RefCell<HashMap<Destination, Vec<Idle<O>>>>,
    /// How many that are.
    count: Cell<usize>,
}

impl<O: Side> Upstreams<O> {
    pub(crate) fn new(limits: Arc<Limits>) -> Self {
        Self { limits, clock: Cell::new(Instant::now()), idle: RefCell::default(), count: Cell::new(0) }
    }

    /// A connection to `destination` that was dialled for `sandbox` and is still good; the one used last.
    pub(super) fn take(&self, sandbox: &Arc<Sandbox>, destination: &Destination) -> Option<Upstream<O>> {
        let owner = Arc::as_ptr(sandbox);
        let mut idle = self.idle.borrow_mut();
        let kept = idle.get_mut(destination)?;
        while let Some(index) = kept.iter().rposition(|idle| idle.sandbox == owner) {
            let Idle { upstream, .. } = kept.remove(index);
            self.count.set(self.count.get().saturating_sub(1));
            // Closed meanwhile, or bytes nobody asked for.
            if !upstream.side.has_news() {
                return Some(upstream);
            }
        }
        None
    }

    /// Keeps a connection whose last response has been read to its end.
    pub(super) fn keep(&self, sandbox: &Arc<Sandbox>, destination: &Destination, upstream: Upstream<O>) {
        if self.count.get() >= ALL_MAX {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let entry = Idle { upstream, sandbox: Arc::as_ptr(sandbox), since: self.clock.get() };
        match idle.get_mut(destination) {
            Some(kept) if kept.len() >= PER_DESTINATION_MAX => return,
            Some(kept) => kept.push(entry),
            None => drop(idle.insert(destination.clone(), vec![entry])),
        }
        self.count.set(self.count.get() + 1);
    }

    /// Closes what has been idle for too long.
    pub(crate) fn sweep(&self) {
        let limit = self.limits.idle_keepalive;
        let now = Instant::now();
        self.clock.set(now);
        self.close_unless(|_, idle| now.duration_since(idle.since) < limit);
    }

    /// Closes what `stays` does not want kept: it is asked with the sandbox' address, the destination, and where that was
    /// dialled.
    pub(crate) fn retain(&self, stays: impl Fn(*const Sandbox, &Destination, SocketAddr) -> bool) {
        self.close_unless(|destination, idle| stays(idle.sandbox, destination, idle.upstream.address));
    }

    /// Closes what was dialled for `sandbox`.
    pub(crate) fn forget(&self, sandbox: &Arc<Sandbox>) {
        let owner = Arc::as_ptr(sandbox);
        self.close_unless(|_, idle| idle.sandbox != owner);
    }

    fn close_unless(&self, stays: impl Fn(&Destination, &Idle<O>) -> bool) {
        let mut count = 0;
        self.idle.borrow_mut().retain(|destination, kept| {
            kept.retain(|idle| stays(destination, idle));
            count += kept.len();
            !kept.is_empty()
        });
        self.count.set(count);
    }
}
