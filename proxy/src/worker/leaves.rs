//! Leaves as one worker remembers them. A name is signed once, however many connections wait for it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::SystemTime;

use futures_channel::oneshot;
use rustls::sign::CertifiedKey;

use super::Message;
use super::mailbox::Sender;
use super::relay::since_start;
use crate::destination::Host;
use crate::http::reject::Reject;
use crate::measures::WorkerMeasures;
use crate::tls::Interception;
use crate::tls::authority::Leaf;
use crate::tls::signer::{Signed, Signer};

/// Leaves remembered for one sandbox, some 2 KiB each: a client that asks for a thousand names displaces its own.
const PER_SANDBOX_MAX: usize = 256;
/// Prices set aside before those that are over are forgotten.
const RESERVED_MAX: usize = 1_024;
/// Sandboxes whose leaves are remembered; at the bound all are forgotten.
const SANDBOXES_MAX: usize = 64;

type Waiters = Vec<oneshot::Sender<Signed>>;

/// A worker's leaves.
pub(crate) struct Leaves {
    signer: Arc<Signer>,
    sender: Sender,
    cached: RefCell<HashMap<u64, HashMap<Host, Leaf>>>,
    waiting: RefCell<HashMap<(u64, Host), Waiters>>,
    reserved: RefCell<HashMap<(u64, Host), Weak<Price>>>,
}

/// The price of a leaf, set aside before a tunnel is granted, since only then a client can be told that there are too many.
/// Tunnels to the same name share it. Nothing is in it when the leaf is there already.
pub(super) struct Reservation(Option<Rc<Price>>);

/// What one signature costs; given back unless it is spent.
struct Price {
    of: Arc<Interception>,
    spent: Cell<bool>,
}

impl Drop for Price {
    fn drop(&mut self) {
        if !self.spent.get() {
            self.of.give_back();
        }
    }
}

impl Leaves {
    pub(crate) fn new(signer: Arc<Signer>, sender: Sender) -> Self {
        Self {
            signer,
            sender,
            cached: RefCell::default(),
            waiting: RefCell::default(),
            reserved: RefCell::default(),
        }
    }

    fn cached(&self, interception: &Interception, host: &Host) -> Option<Leaf> {
        let cached = self.cached.borrow();
        let leaf = cached.get(&interception.id())?.get(host)?;
        (SystemTime::now() < leaf.good_until).then(|| leaf.clone())
    }

    /// Sees to it that a leaf for `host` can be had: it is there, or its price is.
    pub(super) fn reserve(
        &self,
        interception: &Arc<Interception>,
        host: &Host,
    ) -> Result<Reservation, Reject> {
        if self.cached(interception, host).is_some() {
            return Ok(Reservation(None));
        }
        let key = (interception.id(), host.clone());
        let mut reserved = self.reserved.borrow_mut();
        if let Some(price) = reserved.get(&key).and_then(Weak::upgrade).filter(|price| !price.spent.get()) {
            return Ok(Reservation(Some(price)));
        }
        if !interception.may_sign(since_start()) {
            return Err(Reject::TooManyNames);
        }
        if reserved.len() >= RESERVED_MAX {
            reserved.retain(|_, price| price.strong_count() > 0);
        }
        let price = Rc::new(Price { of: Arc::clone(interception), spent: Cell::new(false) });
        reserved.insert(key, Rc::downgrade(&price));
        Ok(Reservation(Some(price)))
    }

    /// The leaf for `host`, from memory or signed now.
    pub(super) async fn get(
        &self,
        interception: &Arc<Interception>,
        host: &Host,
        reservation: Reservation,
        measures: &WorkerMeasures,
    ) -> Result<Arc<CertifiedKey>, Reject> {
        if let Some(leaf) = self.cached(interception, host) {
            measures.leaves_cached.increment(1);
            return Ok(leaf.certified);
        }
        match self.join_request(interception, host, reservation, measures)?.await {
            Ok(Ok(leaf)) => Ok(leaf.certified),
            Ok(Err(error)) => {
                tracing::error!(%error, "no certificate for a name");
                Err(Reject::Internal)
            }
            Err(_) => Err(Reject::Internal),
        }
    }

    fn join_request(
        &self,
        interception: &Arc<Interception>,
        host: &Host,
        reservation: Reservation,
        measures: &WorkerMeasures,
    ) -> Result<oneshot::Receiver<Signed>, Reject> {
        let (waiter, receiver) = oneshot::channel();
        let key = (interception.id(), host.clone());
        let mut waiting = self.waiting.borrow_mut();
        if let Some(waiters) = waiting.get_mut(&key) {
            waiters.push(waiter);
            return Ok(receiver);
        }
        // It may have been there when the tunnel was granted, and have been displaced or signed and displaced since.
        let paid = reservation.0.filter(|price| !price.spent.get());
        let price =
            paid.map_or_else(|| self.reserve(interception, host).map(|new| new.0), |paid| Ok(Some(paid)))?;
        if let Some(price) = price {
            price.spent.set(true);
        }
        measures.leaves_signed.increment(1);
        waiting.insert(key.clone(), vec![waiter]);
        let sender = self.sender.clone();
        self.signer.request(interception, host.clone(), move |signed| {
            sender.send(Message::Signed(key, signed));
        });
        Ok(receiver)
    }

    /// The signer has answered.
    pub(crate) fn answered(&self, key: (u64, Host), signed: Signed) {
        for waiter in self.waiting.borrow_mut().remove(&key).unwrap_or_default() {
            let _ = waiter.send(signed.clone());
        }
        let Ok(leaf) = signed else { return };
        let (id, host) = key;
        let mut cached = self.cached.borrow_mut();
        if cached.len() >= SANDBOXES_MAX && !cached.contains_key(&id) {
            cached.clear();
        }
        let of_sandbox = cached.entry(id).or_default();
        if of_sandbox.len() >= PER_SANDBOX_MAX
            && let Some(displaced) = of_sandbox.keys().next().cloned()
        {
            of_sandbox.remove(&displaced);
        }
        of_sandbox.insert(host, leaf);
    }

    /// Forgets the leaves of a sandbox that is gone.
    pub(crate) fn forget(&self, interception: &Interception) {
        self.cached.borrow_mut().remove(&interception.id());
    }
}
