//! Where leaves are signed: a thread of its own, so that no worker waits for a signature, and one place, so that no leaf
//! is made twice.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::SystemTime;

use sluice_seccomp::harden::Role;
use thiserror::Error;

use super::authority::{AuthorityError, Leaf};
use super::interception::Interception;
use crate::confined::{self, Confined};
use crate::destination::Host;

/// Requests that may wait: a second's work.
const WAITING_MAX: usize = 4_096;
/// Leaves remembered, of all sandboxes together, some 2 KiB each; at the bound all are forgotten.
const REMEMBERED_MAX: usize = 4_096;

/// Why there is no leaf.
#[derive(Clone, Debug, Error)]
pub enum SignError {
    /// Making it failed.
    #[error(transparent)]
    Failed(#[from] AuthorityError),
    /// Too many are waiting.
    #[error("too many certificates are waiting to be signed")]
    Busy,
}

/// The answer to a request.
pub type Signed = Result<Leaf, SignError>;

struct Request {
    interception: Arc<Interception>,
    host: Host,
    answer: Box<dyn FnOnce(Signed) + Send>,
}

/// The signing thread; it ends when this is dropped.
pub struct Signer {
    requests: Option<SyncSender<Request>>,
    thread: Option<Confined>,
}

impl Signer {
    /// Starts the thread.
    pub fn start() -> io::Result<Self> {
        let (requests, inbox) = sync_channel(WAITING_MAX);
        let thread = confined::spawn(Role::Signer, Vec::new(), move || work(&inbox))?;
        Ok(Self { requests: Some(requests), thread: Some(thread) })
    }

    /// Has a leaf for `host` signed and hands it to `answer`, on the signing thread. Never waits.
    pub fn request(
        &self,
        interception: &Arc<Interception>,
        host: Host,
        answer: impl FnOnce(Signed) + Send + 'static,
    ) {
        let request = Request { interception: Arc::clone(interception), host, answer: Box::new(answer) };
        let Some(requests) = &self.requests else { return };
        if let Err(TrySendError::Full(request) | TrySendError::Disconnected(request)) =
            requests.try_send(request)
        {
            (request.answer)(Err(SignError::Busy));
        }
    }
}

impl Drop for Signer {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the signing thread panicked");
        }
    }
}

fn work(inbox: &Receiver<Request>) {
    // Several workers may ask for the same name at once.
    let mut made: HashMap<(u64, Host), Leaf> = HashMap::new();
    while let Ok(Request { interception, host, answer }) = inbox.recv() {
        let now = SystemTime::now();
        let key = (interception.id(), host);
        if let Some(leaf) = made.get(&key).filter(|leaf| now < leaf.good_until) {
            answer(Ok(leaf.clone()));
            continue;
        }
        let signed = interception.authority().sign(&key.1, now);
        if let Ok(leaf) = &signed {
            if made.len() >= REMEMBERED_MAX {
                made.clear();
            }
            made.insert(key, leaf.clone());
        }
        answer(signed.map_err(SignError::from));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::tls::{Oldest, Roots, Trust};

    #[test]
    fn one_name_is_signed_once_and_each_sandbox_has_its_own() {
        let trust = Trust::new(Roots::default(), Oldest::Tls12).unwrap();
        let make = || Arc::new(Interception::new(&trust, "a", None, SystemTime::now()).unwrap());
        let (one, other) = (make(), make());
        let signer = Signer::start().unwrap();
        let (sender, receiver) = channel();
        for interception in [&one, &one, &other] {
            let sender = sender.clone();
            signer.request(interception, Host::parse(b"a.example").unwrap(), move |signed| {
                sender.send(signed.unwrap().certified.cert[0].clone()).unwrap();
            });
        }
        let leaves: Vec<_> = receiver.iter().take(3).collect();
        assert_eq!(leaves[0], leaves[1]);
        assert_ne!(leaves[0], leaves[2]);
    }
}
