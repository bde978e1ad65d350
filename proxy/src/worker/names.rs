//! Names as one worker remembers them. A name is asked for once, however many wait for it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use futures_channel::oneshot;

use super::Message;
use super::mailbox::Sender;
use crate::control::names::{Answer, NameError, Names};
use crate::measures::WorkerMeasures;

/// Names remembered per worker, some 200 octets each; at the bound, what has expired is dropped, then everything.
const CACHED_MAX: usize = 8_192;

/// A worker's names.
pub(crate) struct NameCache {
    names: Names,
    sender: Sender,
    cached: RefCell<HashMap<Box<str>, (Answer, Instant)>>,
    waiting: RefCell<HashMap<Box<str>, Vec<oneshot::Sender<Answer>>>>,
}

impl NameCache {
    pub(crate) fn new(names: Names, sender: Sender) -> Self {
        Self { names, sender, cached: RefCell::default(), waiting: RefCell::default() }
    }

    /// The addresses of `name` (canonical), from memory or by asking the control plane.
    pub(crate) async fn lookup(
        &self,
        name: &str,
        measures: &WorkerMeasures,
    ) -> Result<Arc<[IpAddr]>, NameError> {
        if let Some((answer, until)) = self.cached.borrow().get(name)
            && Instant::now() < *until
        {
            measures.dns_hits.increment(1);
            return answer.addresses.clone();
        }
        measures.dns_misses.increment(1);
        let began = Instant::now();
        let receiver = self.join_question(name);
        let answer = receiver.await;
        measures.dns_duration.record(began.elapsed().as_secs_f64());
        answer.map_err(|_| NameError::Failed("the question was dropped".into()))?.addresses
    }

    fn join_question(&self, name: &str) -> oneshot::Receiver<Answer> {
        let (waiter, receiver) = oneshot::channel();
        let mut waiting = self.waiting.borrow_mut();
        if let Some(waiters) = waiting.get_mut(name) {
            waiters.push(waiter);
            return receiver;
        }
        waiting.insert(name.into(), vec![waiter]);
        let (sender, asked) = (self.sender.clone(), Box::from(name));
        self.names.ask(name.into(), move |answer| sender.send(Message::Resolved(asked, answer)));
        receiver
    }

    /// The control plane has answered.
    pub(crate) fn answered(&self, name: Box<str>, answer: Answer) {
        for waiter in self.waiting.borrow_mut().remove(&name).unwrap_or_default() {
            let _ = waiter.send(answer.clone());
        }
        let now = Instant::now();
        let mut cached = self.cached.borrow_mut();
        if cached.len() >= CACHED_MAX {
            cached.retain(|_, (_, until)| now < *until);
            if cached.len() >= CACHED_MAX {
                cached.clear();
            }
        }
        let until = now + answer.valid_for;
        cached.insert(name, (answer, until));
    }
}
