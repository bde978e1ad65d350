//! The kernel's trace of connects: who connected, exact and as of the connect, for sandboxes that have no witness.
//!
//! Owns: perf events on the tracepoint `sock:inet_sock_set_state`, one a processor, and what they tell. Never: `/proc`,
//! sandboxes, policy. It sees every TCP connect of the host, in all namespaces: the asker tells which is its.
//!
//! # The life of a note
//!
//! 1. A process calls connect(2). The kernel's `tcp_v4_connect` sets the socket to SYN_SENT, in that process's context:
//!    `ring.rs` gets a sample with its pid and the socket's address in the kernel, but no port yet.
//! 2. The socket becomes ESTABLISHED (or CLOSE, if it is refused), in whatever context the answer comes: a second
//!    sample, with the port. Both are there before the peer's `accept` can return, because the state is set before the
//!    ACK is sent.
//! 3. Whoever looks something up empties the rings first, under a short lock: `record.rs` reads the bytes, `ledger.rs`
//!    joins the two samples. A thread empties them when nobody asks and one is a quarter full.
//! 4. Each exec and each new process leaves a record too. So a note says which program connected (its [`Life`]), and
//!    whoever reads `/proc` afterwards can tell whether what is read is of that program.
//!
//! A record may be seen before one of another processor that is older. So no record is taken that is younger than the
//! look itself: what has happened before the look is complete, and in the order of the times.

mod format;
mod ledger;
mod record;
mod ring;
mod tracefs;

use std::io;
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};

use super::table::Tuple;
use format::Layout;
pub use ledger::Figures;
use ledger::Ledger;
pub(super) use ledger::{Life, Note, Notes};
use record::Record;
use ring::Ring;

/// TCP connects only: as they begin, and as they end.
const FILTER: &std::ffi::CStr = c"protocol == 6 && (newstate == 2 || oldstate == 2)";
/// How often the processors are counted: one that comes has no ring yet.
const PROCESSORS_EVERY: Duration = Duration::from_secs(1);
/// What a ring says that will have no more records.
const GONE: PollFlags = PollFlags::POLLHUP.union(PollFlags::POLLERR);

/// Why connects can not be traced.
#[derive(Debug, thiserror::Error)]
#[error("{}; {}", self.cause(), self.remedy())]
pub enum TraceError {
    /// tracefs can not be reached.
    Tracefs(io::Error),
    /// The tracepoint has other fields than are known.
    Unknown(String),
    /// Refused.
    NotPermitted(io::Error),
    /// An event or its ring can not be had.
    Open(io::Error),
    /// A thread or pipe of ours.
    Thread(io::Error),
}

impl TraceError {
    /// What is not there.
    pub fn cause(&self) -> String {
        match self {
            Self::Tracefs(error) => {
                format!("the tracepoint sock:inet_sock_set_state cannot be read from tracefs: {error}")
            }
            Self::Unknown(what) => format!("the tracepoint sock:inet_sock_set_state has no {what} as known"),
            Self::NotPermitted(error) => format!("perf events are not permitted: {error}"),
            Self::Open(error) => format!("perf events cannot be opened: {error}"),
            Self::Thread(error) => format!("the thread that empties the trace cannot be started: {error}"),
        }
    }

    /// What to do about it.
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::Tracefs(_) => {
                "give the daemon CAP_SYS_ADMIN and a kernel with CONFIG_FTRACE, or mount tracefs: \
                 mount -t tracefs nodev /sys/kernel/tracing"
            }
            Self::Unknown(_) => "report this with the kernel's version: Linux 4.16 to 6.18 are known",
            Self::NotPermitted(_) => {
                "give the daemon CAP_PERFMON (or CAP_SYS_ADMIN) and CAP_IPC_LOCK, and allow perf_event_open in its \
                 seccomp profile"
            }
            Self::Open(_) => {
                "use a kernel with CONFIG_PERF_EVENTS, and give the daemon CAP_IPC_LOCK or raise sysctl \
                 kernel.perf_event_mlock_kb"
            }
            Self::Thread(_) => "raise the limit of threads or descriptors",
        }
    }

    fn from_opening(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => Self::NotPermitted(error),
            _ => Self::Open(error),
        }
    }
}

/// The trace of this host's connects. Dropping it ends the tracing.
#[derive(Debug)]
pub struct Trace {
    shared: Arc<Shared>,
    /// Closed to end the thread.
    stop: Option<io::PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    tracepoint: u64,
    layout: Layout,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rings: Vec<Ring>,
    /// The processors they are of, as the kernel lists them.
    processors: String,
    ledger: Ledger,
    /// Records that are younger than the last look.
    later: Vec<Record>,
    /// Scratch.
    bytes: Vec<u8>,
}

impl Trace {
    /// Begins to trace. What has connected before is not known.
    pub fn open() -> Result<Self, TraceError> {
        let (tracepoint, layout) = tracefs::tracepoint()?;
        let processors = online().map_err(TraceError::Open)?;
        let rings = open_rings(&processors, tracepoint).map_err(TraceError::from_opening)?;
        let (ledger, later, bytes) = (Ledger::default(), Vec::new(), Vec::new());
        let state = Mutex::new(State { rings, processors, ledger, later, bytes });
        let shared = Arc::new(Shared { tracepoint, layout, state });
        let (stopped, stop) = io::pipe().map_err(TraceError::Thread)?;
        let thread = std::thread::Builder::new()
            .name("identity-trace".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || attend(&shared, &stopped)
            })
            .map_err(TraceError::Thread)?;
        Ok(Self { shared, stop: Some(stop), thread: Some(thread) })
    }

    /// What happened so far.
    pub fn figures(&self) -> Figures {
        self.shared.look(Ledger::figures)
    }

    /// Who connected a socket with these ends, the latest first.
    pub(super) fn find(&self, tuple: &Tuple) -> Notes {
        self.shared.look(|ledger| ledger.find(tuple))
    }

    /// Its connection has been asked for, and the asker told.
    pub(super) fn settle(&self, note: &Note) {
        self.shared.lock().ledger.mark_settled(note);
    }

    /// Whether the process runs what it ran when it connected, as of now.
    pub(super) fn is_current(&self, note: &Note) -> bool {
        self.shared.look(|ledger| ledger.life(note.pid) == Some(note.life))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that empties the trace had panicked");
        }
    }
}

impl Shared {
    /// Looks at the ledger once everything that happened before now is in it.
    fn look<R>(&self, at: impl FnOnce(&Ledger) -> R) -> R {
        let mut state = self.lock();
        state.catch_up(&self.layout);
        at(&state.ledger)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the rings anew if there are other processors than before. What was known is forgotten: something may have
    /// happened on one that had none.
    fn follow_processors(&self) -> io::Result<()> {
        let processors = online()?;
        let mut state = self.lock();
        if state.processors != processors {
            state.rings = open_rings(&processors, self.tracepoint)?;
            state.processors = processors;
            state.later.clear();
            state.ledger.forget();
        }
        Ok(())
    }
}

impl State {
    fn catch_up(&mut self, layout: &Layout) {
        if self.later.is_empty() && !self.rings.iter().any(Ring::has_news) {
            return;
        }
        let now_ns = monotonic_ns();
        let mut complete = true;
        for ring in &mut self.rings {
            self.bytes.clear();
            complete &= !ring.empty_into(&mut self.bytes);
            complete &= record::each(&self.bytes, layout, |record| self.later.push(record));
        }
        self.later.sort_by_key(Record::time_ns);
        let due = self.later.partition_point(|record| record.time_ns() <= now_ns);
        for record in self.later.drain(..due) {
            self.ledger.take(record);
        }
        if !complete {
            self.ledger.forget();
        }
    }
}

/// What the bytes of one ring would have told, under a tracepoint of this `format`: everything of this module that takes
/// bytes, and nothing of the machine. For fuzzing.
pub fn replay(format: &str, bytes: &[u8]) -> Option<Figures> {
    let layout = format::parse(format).ok()?;
    let mut ledger = Ledger::default();
    if !record::each(bytes, &layout, |record| ledger.take(record)) {
        ledger.forget();
    }
    Some(ledger.figures())
}

/// Empties the rings that fill up while nobody asks, and follows the processors, until `stopped` is closed.
fn attend(shared: &Shared, stopped: &io::PipeReader) {
    loop {
        let rings: Vec<_> =
            shared.lock().rings.iter().filter_map(|ring| ring.as_fd().try_clone_to_owned().ok()).collect();
        let mut polled: Vec<_> = std::iter::once(stopped.as_fd())
            .chain(rings.iter().map(|ring| ring.as_fd()))
            .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
            .collect();
        let until = Instant::now() + PROCESSORS_EVERY;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            match poll(&mut polled, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return tracing::error!(%error, "the trace is no longer emptied"),
            }
            if polled.first().and_then(PollFd::any).unwrap_or(false) {
                return;
            }
            // A processor that goes leaves its ring for good: it is not polled again until all are opened anew.
            polled.retain(|fd| !fd.revents().unwrap_or(PollFlags::empty()).intersects(GONE));
            shared.look(|_| ());
        }
        if let Err(error) = shared.follow_processors() {
            tracing::warn!(%error, "connects of new processors cannot be traced");
            // Who connects on one without a ring may be taken for who had the same ends before.
            shared.lock().ledger.forget();
        }
    }
}

fn open_rings(processors: &str, tracepoint: u64) -> io::Result<Vec<Ring>> {
    numbers(processors)
        .ok_or_else(|| io::Error::other(format!("the list of processors is {processors:?}")))?
        .map(|cpu| Ring::open(cpu, tracepoint, FILTER))
        .collect()
}

/// `0-3,8`
fn online() -> io::Result<String> {
    Ok(std::fs::read_to_string("/sys/devices/system/cpu/online")?.trim().to_owned())
}

fn numbers(list: &str) -> Option<impl Iterator<Item = u32> + use<>> {
    let ranges: Option<Vec<_>> = list
        .split(',')
        .map(|range| {
            let (from, to) = range.split_once('-').unwrap_or((range, range));
            Some(from.parse::<u32>().ok()?..=to.parse::<u32>().ok()?)
        })
        .collect();
    Some(ranges?.into_iter().flatten())
}

/// CLOCK_MONOTONIC, in nanoseconds.
fn monotonic_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_listed_in_ranges() {
        let listed = |list| numbers(list).map(Iterator::collect::<Vec<_>>);
        assert_eq!(listed("0"), Some(vec![0]));
        assert_eq!(listed("0-2,5,8-9"), Some(vec![0, 1, 2, 5, 8, 9]));
        assert_eq!(listed(""), None);
        assert_eq!(listed("0-x"), None);
    }

    #[test]
    fn a_connect_of_ours_is_noted_with_its_ends_before_it_is_accepted() {
        let trace = Trace::open().expect("tracing connects needs root (CAP_PERFMON) and tracefs");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        for _ in 0..100 {
            let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (accepted, client) = listener.accept().unwrap();
            let notes = trace.find(&Tuple::new(client, accepted.local_addr().unwrap()));
            assert_eq!(notes.first().map(|note| note.pid), Some(std::process::id()));
            assert!(trace.is_current(&notes[0]));
            drop(stream);
        }
        assert!(trace.figures().noted >= 100);
    }
}
