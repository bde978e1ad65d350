//! How other threads reach a worker: a queue and a socket pair that wakes its ring.
//!
//! monoio's wakers stay on their thread; nothing else crosses over. The queue's lock is held for a push or a swap only,
//! and never by the data path.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use super::Message;

/// The sending side; clones send to the same worker.
#[derive(Clone)]
pub(crate) struct Sender {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Vec<Message>>,
    bell: UnixStream,
}

/// The worker's side.
pub(crate) struct Mailbox {
    shared: Arc<Shared>,
    bell: UnixStream,
}

/// Makes a mailbox and its first sender.
pub(crate) fn mailbox() -> io::Result<(Sender, Mailbox)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    let shared = Arc::new(Shared { queue: Mutex::default(), bell: theirs });
    Ok((Sender { shared: Arc::clone(&shared) }, Mailbox { shared, bell: ours }))
}

impl Sender {
    /// Delivers `message`; never blocks. A worker that is gone drops it.
    pub(crate) fn send(&self, message: Message) {
        let first = {
            let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.push(message);
            queue.len() == 1
        };
        if first {
            // A full bell is ringing already.
            let _ = (&self.shared.bell).write(&[1]);
        }
    }
}

impl Mailbox {
    /// Waits for messages and swaps them into `into`, which is empty.
    pub(crate) async fn receive(
        &self,
        ring: &monoio::net::UnixStream,
        into: &mut Vec<Message>,
    ) -> io::Result<()> {
        loop {
            let mut tolled = [0; 64];
            // Silence the bell before looking, so that a message sent meanwhile rings it again.
            while matches!((&self.bell).read(&mut tolled), Ok(count) if count == tolled.len()) {}
            {
                let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
                std::mem::swap(&mut *queue, into);
            }
            if !into.is_empty() {
                return Ok(());
            }
            ring.readable(false).await?;
        }
    }

    /// The bell on this thread's ring.
    pub(crate) fn on_ring(&self) -> io::Result<monoio::net::UnixStream> {
        monoio::net::UnixStream::from_std(self.bell.try_clone()?)
    }
}
