//! Questions a worker has asked of another thread, and the tasks that wait for the answers.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use futures_channel::oneshot;

/// Open questions with answers of type `T`.
pub(crate) struct Pending<T> {
    next: Cell<u64>,
    waiting: RefCell<HashMap<u64, oneshot::Sender<T>>>,
}

impl<T> Default for Pending<T> {
    fn default() -> Self {
        Self { next: Cell::new(0), waiting: RefCell::default() }
    }
}

impl<T> Pending<T> {
    /// Opens a question: its ticket travels with it, the receiver gets the answer.
    pub(crate) fn open(&self) -> (u64, oneshot::Receiver<T>) {
        let ticket = self.next.get();
        self.next.set(ticket.wrapping_add(1));
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().insert(ticket, sender);
        (ticket, receiver)
    }

    /// Hands an answer to whoever still waits for it.
    pub(crate) fn answer(&self, ticket: u64, answer: T) {
        let waiting = self.waiting.borrow_mut().remove(&ticket);
        if let Some(sender) = waiting {
            let _ = sender.send(answer);
        }
    }
}
