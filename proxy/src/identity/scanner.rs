//! The one thread that reads `/proc` at length, so that no worker has to.
//!
//! Tickets that arrive while it works wait together, and are then answered together: one reading of the tables and one
//! search of the processes per sandbox serves them all. A sandbox that asks more than its share is turned away, and so
//! is everybody when the queue is full: identity is then unknown, and a policy that names binaries denies.

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use sluice_seccomp::harden::Role;

use super::Identity;
use super::resolver::{Shared, Ticket, settle};
use crate::confined::{self, Confined};

/// Lookups one sandbox may have waiting: as many as it may have connections by default.
const WAITING_PER_SANDBOX_MAX: usize = 4_096;
/// Tickets answered in one go.
const BATCH_MAX: usize = 4_096;

type Done = Box<dyn FnOnce(Arc<Identity>) + Send>;

/// The scanning thread. Dropping it answers what waits, then ends the thread.
#[derive(Debug)]
pub struct Scanner {
    queue: Option<SyncSender<(Ticket, Done)>>,
    thread: Option<Confined>,
}

impl Scanner {
    /// Starts the thread; at most `waiting_max` tickets wait for it (each about 300 bytes).
    pub fn start(waiting_max: usize) -> io::Result<Self> {
        let (queue, tickets) = sync_channel(waiting_max);
        let thread = confined::spawn(Role::Scanner, Vec::new(), move || run(&tickets))?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Has a ticket answered. `done` is called once: on the scanner's thread, where it should do no more than wake the
    /// asker; or on this one, at once, if too many are waiting.
    pub fn submit(&self, ticket: Ticket, done: impl FnOnce(Arc<Identity>) + Send + 'static) {
        if !ticket.shared().admit(WAITING_PER_SANDBOX_MAX) {
            return done(ticket.turned_away());
        }
        let Some(queue) = &self.queue else { return };
        if let Err(TrySendError::Full((ticket, done)) | TrySendError::Disconnected((ticket, done))) =
            queue.try_send((ticket, Box::new(done)))
        {
            ticket.shared().release(1);
            done(ticket.turned_away());
        }
    }
}

impl Drop for Scanner {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the identity scanner had panicked");
        }
    }
}

fn run(tickets: &Receiver<(Ticket, Done)>) {
    while let Ok(first) = tickets.recv() {
        let mut sandboxes: HashMap<*const Shared, (Vec<Ticket>, Vec<Done>)> = HashMap::new();
        let waiting = std::iter::once(first).chain(tickets.try_iter()).take(BATCH_MAX);
        for (ticket, done) in waiting {
            let (tickets, callbacks) = sandboxes.entry(Arc::as_ptr(ticket.shared())).or_default();
            tickets.push(ticket);
            callbacks.push(done);
        }
        for (tickets, callbacks) in sandboxes.into_values() {
            answer(tickets, callbacks);
        }
    }
}

fn answer(tickets: Vec<Ticket>, callbacks: Vec<Done>) {
    let Some(shared) = tickets.first().map(|ticket| Arc::clone(ticket.shared())) else { return };
    shared.release(tickets.len());
    for (identity, done) in settle(tickets).into_iter().zip(callbacks) {
        // One asker's mistake is not the others'.
        if catch_unwind(AssertUnwindSafe(|| done(identity))).is_err() {
            tracing::error!("a callback of the identity scanner panicked");
        }
    }
}
