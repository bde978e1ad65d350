//! What the bypass core wants to know of `/proc` and must not wait for: done one after the other on a thread of its own.

use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use sluice_seccomp::harden::Role;

use crate::confined::{self, Confined};

/// Errands that wait at a time; what comes beyond is not run. One lists the processes of a sandbox: milliseconds.
const WAITING_MAX: usize = 256;

/// How long the end waits for the thread. One that reads of a process which does not let it go on ends with Sluice.
const END_MAX: Duration = Duration::from_millis(500);
const END_POLL: Duration = Duration::from_millis(1);

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
        let Some(thread) = self.thread.take() else { return };
        let began = Instant::now();
        while !thread.is_finished() {
            if began.elapsed() >= END_MAX {
                return tracing::warn!("a process cannot be read of; the thread that tries ends with Sluice");
            }
            std::thread::sleep(END_POLL);
        }
        let _ = thread.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errand_that_never_ends_holds_up_nobody() {
        let errands = Errands::start().unwrap();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let wait = move || {
            let _ = held.recv();
        };
        assert!(errands.run(wait));
        let accepted = (0..2 * WAITING_MAX).filter(|_| errands.run(|| ())).count();
        assert!(accepted <= WAITING_MAX + 1, "{accepted}");
        let began = Instant::now();
        drop(errands);
        assert!(began.elapsed() < 20 * END_MAX);
        drop(release);
    }
}
