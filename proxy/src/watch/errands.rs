//! What the bypass core wants to know of `/proc` and must not wait for: done one after the other on a thread of its own.

use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};

use sluice_seccomp::harden::Role;

use crate::confined::{self, Confined};

/// Errands that wait at a time; what comes beyond is not run. One lists the processes of a sandbox: milliseconds.
const WAITING_MAX: usize = 256;

type Errand = Box<dyn FnOnce() + Send>;

/// The thread. It ends, after what waits, when this is dropped.
pub(super) struct Errands {
    queue: Option<SyncSender<Errand>>,
    thread: Option<Confined>,
}

impl Errands {
    pub(super) fn start() -> io::Result<Self> {
        let (queue, errands) = sync_channel::<Errand>(WAITING_MAX);
        let run = move || errands.into_iter().for_each(|errand| errand());
        let thread = confined::spawn(Role::Errands, Vec::new(), run)?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Has `errand` run, unless too many wait.
    pub(super) fn run(&self, errand: impl FnOnce() + Send + 'static) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.try_send(Box::new(errand)).is_ok())
    }
}

impl Drop for Errands {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
