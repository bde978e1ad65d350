//! The way of events out of the process: a bounded buffer and one writer thread.
//!
//! Whoever reports renders its line into the buffer and goes on; only the writer waits for files. When the destination
//! is slower than the events, lines are dropped at the bound and counted, never blocked on.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sluice_seccomp::harden::Role;

use super::Event;
use super::feed::Feed;
use super::render::render;
use crate::confined::{self, Confined};

/// Octets of rendered events that may wait for the writer; at some 500 octets a line that is 16,000 events.
const WAITING_OCTETS_MAX: usize = 8 << 20;
/// How long lines may wait that nobody asked to see at once.
const LAZY_FLUSH: Duration = Duration::from_millis(50);
/// Octets that do not wait any longer: what is written while it is still in the processor's cache costs half.
const LAZY_OCTETS_MAX: usize = 128 << 10;

/// Where the lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Nowhere; rendering is skipped altogether.
    None,
    /// Standard output.
    Stdout,
    /// Appended to a file, which is opened anew on [`Journal::reopen`] (log rotation).
    File(PathBuf),
}

impl Target {
    /// `-` is standard output, anything else a path.
    pub fn parse(text: &str) -> Self {
        if text == "-" { Self::Stdout } else { Self::File(text.into()) }
    }

    /// The directory its writer opens files in.
    fn directory(&self) -> Vec<PathBuf> {
        let Self::File(path) = self else { return Vec::new() };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        vec![parent.unwrap_or(Path::new(".")).to_owned()]
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("nowhere"),
            Self::Stdout => f.write_str("standard output"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// How soon a line must be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Within 50 ms: the reporter is on the data path and pays at most one wake-up in that time.
    Lazy,
    /// Now: the writer is woken.
    Now,
}

/// A handle to report through; clones share the writer.
#[derive(Clone)]
pub struct Journal {
    shared: Option<Arc<Shared>>,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    dropped: AtomicU64,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    urgent: bool,
    reopen: bool,
    closing: bool,
}

/// Ends the writer when the process is done: everything reported before is written.
pub struct Writer {
    shared: Option<Arc<Shared>>,
    thread: Option<Confined>,
}

impl Journal {
    /// Opens `target` and starts its writer, which hands every line to `feed` too.
    pub fn open(target: &Target, feed: Option<Arc<Feed>>) -> io::Result<(Self, Writer)> {
        let sink = match target {
            Target::None => return Ok((Self { shared: None }, Writer { shared: None, thread: None })),
            Target::Stdout => Sink::Stdout,
            Target::File(path) => Sink::open(path)?,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(State::default()),
            wake: Condvar::new(),
            dropped: AtomicU64::new(0),
        });
        let of_writer = Arc::clone(&shared);
        let thread = confined::spawn(Role::Events, target.directory(), move || {
            write_loop(&of_writer, sink, feed.as_deref());
        })?;
        Ok((
            Self { shared: Some(Arc::clone(&shared)) },
            Writer { shared: Some(shared), thread: Some(thread) },
        ))
    }

    /// A journal that drops everything.
    pub const fn none() -> Self {
        Self { shared: None }
    }

    /// Whether anybody reads what is reported.
    pub const fn is_open(&self) -> bool {
        self.shared.is_some()
    }

    /// Renders `event` as one line.
    pub fn record(&self, event: &Event<'_>, urgency: Urgency) {
        let Some(shared) = &self.shared else { return };
        let mut state = shared.lock();
        if state.waiting.len() >= WAITING_OCTETS_MAX {
            shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let first = state.waiting.is_empty();
        render(&mut state.waiting, event);
        state.waiting.push(b'\n');
        let sooner = (urgency == Urgency::Now || state.waiting.len() >= LAZY_OCTETS_MAX) && !state.urgent;
        state.urgent |= sooner;
        if first || sooner {
            shared.wake.notify_one();
        }
    }

    /// Lines lost because the destination was slower than the events.
    pub fn dropped(&self) -> u64 {
        self.shared.as_ref().map_or(0, |shared| shared.dropped.load(Ordering::Relaxed))
    }

    /// Opens the file anew, after log rotation moved it away.
    pub fn reopen(&self) {
        if let Some(shared) = &self.shared {
            let mut state = shared.lock();
            state.reopen = true;
            state.urgent = true;
            shared.wake.notify_one();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Writer {
    /// Writes what waits and ends the thread.
    pub fn close(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        if let Some(shared) = self.shared.take() {
            let mut state = shared.lock();
            state.closing = true;
            state.urgent = true;
            shared.wake.notify_one();
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.finish();
    }
}

enum Sink {
    Stdout,
    File(File, PathBuf),
}

impl Sink {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self::File(file, path.to_owned()))
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(lines)?;
                out.flush()
            }
            Self::File(file, _) => file.write_all(lines),
        }
    }
}

fn write_loop(shared: &Shared, mut sink: Sink, feed: Option<&Feed>) {
    let mut lines = Vec::new();
    let mut failing = false;
    loop {
        let mut state = shared
            .wake
            .wait_while(shared.lock(), |state| state.waiting.is_empty() && !state.urgent)
            .unwrap_or_else(PoisonError::into_inner);
        if !state.urgent {
            state = shared
                .wake
                .wait_timeout_while(state, LAZY_FLUSH, |state| !state.urgent)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        state.urgent = false;
        let closing = state.closing;
        let reopen = std::mem::take(&mut state.reopen);
        lines.clear();
        std::mem::swap(&mut state.waiting, &mut lines);
        drop(state);
        if !lines.is_empty() {
            // First those who look on: a file may be slow.
            if let Some(feed) = feed {
                feed.push(&lines);
            }
            match sink.write(&lines) {
                Ok(()) => failing = false,
                Err(error) => {
                    let lost = memchr::memchr_iter(b'\n', &lines).count();
                    shared.dropped.fetch_add(lost as u64, Ordering::Relaxed);
                    if !std::mem::replace(&mut failing, true) {
                        tracing::error!(%error, lost, "events cannot be written; what is lost is counted");
                    }
                }
            }
        }
        if let (true, Sink::File(_, path)) = (reopen, &sink) {
            match Sink::open(path) {
                Ok(new) => sink = new,
                Err(error) => {
                    tracing::error!(%error, path = %path.display(), "the events file cannot be reopened");
                }
            }
        }
        if closing {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Kind, Time};
    use super::*;

    #[test]
    fn everything_reported_before_close_is_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.ndjson");
        let (journal, writer) = Journal::open(&Target::File(path.clone()), None).unwrap();
        for n in 0..1000 {
            let event = Event::at(Kind::ConnectAllowed, Time::from_unix_micros(n));
            journal.record(&event, if n % 7 == 0 { Urgency::Now } else { Urgency::Lazy });
        }
        writer.close();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 1000);
        assert!(text.lines().last().unwrap().contains("00.000999Z"));
        assert_eq!(journal.dropped(), 0);
    }

    #[test]
    fn a_destination_that_refuses_is_counted_not_waited_for() {
        let (journal, writer) = Journal::open(&Target::File("/dev/full".into()), None).unwrap();
        journal.record(&Event::now(Kind::ConnectAllowed), Urgency::Now);
        writer.close();
        assert_eq!(journal.dropped(), 1);
    }
}
