//! The bypass core: one thread that reads the packet log and hands every attempt to its owner at once.
//!
//! [`Monitor::start`] opens the source on the caller's thread, so whatever is logged after it returns is seen.
//! The thread runs a tokio-uring runtime, waits for readiness, and then reads with plain non-blocking read(2)
//! until the source is empty. Reads through the ring were measured and left: every record is one operation
//! that completes at once, 3.2 µs against 2.0 µs, and at 120,000 lines a second 5 % were lost against none.
//! (A read of a *blocking* device through the ring goes to a kernel worker and loses nearly all.) The owner's
//! [`Sink`] runs on this thread and needs no locks. Other threads reach it through a [`Handle`].
//!
//! printk wakes the readers of `/dev/kmsg` from the next timer tick, up to 1/HZ later (4 ms at HZ=250). Who
//! knows that a line is due says so with [`Handle::nudge`] (the witness does, before it lets the connect go
//! on): the monitor then looks at once and, ever less often, for [some milliseconds](crate::limits::ALERT_FIRST);
//! in a flood it does so every [half millisecond](crate::limits::ALERT_REST).

mod alert;
mod counters;
mod driver;
mod place;
mod sources;
mod watched;

use std::io;
use std::sync::Arc;
use std::sync::mpsc as std_mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc;

pub use counters::{Counters, Totals};
pub use sources::SourceId;

use crate::attempt::{Attempt, Malformed};
use crate::kmsg;
use crate::limits::{KMSG_RECORD_BYTES, OLD_RECORDS_MAX, TICK};
use crate::loss::{Loss, Sequence};
use crate::nflog;
use driver::{Command, Driver};

/// The owner of the attempts. Every method runs on the monitor's thread and delays all that follow it: no
/// waiting, no locks that others hold for long.
pub trait Sink: Send + 'static {
    /// One refused packet.
    fn attempt(&mut self, attempt: &Attempt<'_>, when: Moment);

    /// Records of a source are gone, ours perhaps among them.
    fn lost(&mut self, loss: Loss);

    /// User space wrote a line that begins as ours do. It was ignored.
    fn forged(&mut self) {}

    /// A line of ours could not be read. It was counted.
    fn malformed(&mut self, why: Malformed) {
        let _ = why;
    }

    /// A watched NFLOG socket cannot be read and was closed: its namespace's attempts are refused, but no longer
    /// told.
    fn source_failed(&mut self, source: SourceId, error: &io::Error) {
        let _ = (source, error);
    }

    /// All sources have been read to their end; comes at least every [`Settings::tick`]. `now_us` is
    /// CLOCK_MONOTONIC in µs. The place to end folding windows and to write out what was gathered.
    fn idle(&mut self, now_us: u64) {
        let _ = now_us;
    }
}

/// Two times of one attempt, both in µs of CLOCK_MONOTONIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// When the packet was refused: the log's own stamp, corrected by what [`crate::clock::LogClock`] learnt.
    pub logged_us: u64,
    /// When the monitor read the record.
    pub read_us: u64,
}

/// How a monitor is set up.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Read `/dev/kmsg`; `None` leaves only the NFLOG sockets given with [`Handle::watch`].
    pub kmsg: Option<Resume>,
    /// Pin the thread to this core (its number as `sched_setaffinity` counts).
    pub core: Option<usize>,
    /// Longest time between two calls of [`Sink::idle`].
    pub tick: Duration,
    /// Look for records at this interval at all times instead of waiting to be woken. `None` (the default)
    /// waits; 500 µs costs about 1 % of a core and bounds the delay where nobody can nudge.
    pub poll: Option<Duration>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { kmsg: Some(Resume::Fresh), core: None, tick: TICK, poll: None }
    }
}

/// Where the reading of `/dev/kmsg` begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// Behind everything logged so far.
    Fresh,
    /// Behind record `seq` of this boot, the last that an earlier monitor delivered
    /// ([`Totals::last_seq`]). What the ring no longer holds is reported as lost.
    After(u64),
}

/// Why a monitor could not start, or ended early.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// The device could not be opened.
    #[error(
        "cannot read /dev/kmsg: {0}; it needs CAP_SYSLOG where kernel.dmesg_restrict is 1, and the device in a container"
    )]
    OpenKmsg(#[source] io::Error),
    /// No ring, or no thread, for the bypass core.
    #[error(
        "cannot start the bypass core's io_uring runtime: {0}; io_uring must be allowed (kernel.io_uring_disabled, the container's seccomp profile)"
    )]
    Runtime(#[source] io::Error),
    /// The core does not exist or is not ours.
    #[error("cannot pin the bypass core to core {core}: {source}; choose one of this process's cpuset")]
    Pin {
        /// The core asked for.
        core: usize,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Reading failed in a way that does not pass.
    #[error("reading the packet log failed: {0}")]
    Read(#[source] io::Error),
    /// The thread has ended.
    #[error("the bypass monitor has stopped")]
    Stopped,
    /// The sink panicked.
    #[error("the bypass monitor's sink panicked")]
    Panicked,
    /// [`Handle::drain`] ran out of time.
    #[error("the packet log was not read to its end within {0:?}")]
    Timeout(Duration),
}

/// A running bypass core. Dropping it stops the thread and waits for it.
#[derive(Debug)]
pub struct Monitor<S: Sink> {
    handle: Handle<S>,
    thread: Option<JoinHandle<Result<S, MonitorError>>>,
}

/// Reaches a running monitor from any thread.
#[derive(Debug)]
pub struct Handle<S> {
    commands: mpsc::UnboundedSender<Command<S>>,
    counters: Arc<Counters>,
}

impl<S> Clone for Handle<S> {
    fn clone(&self) -> Self {
        Self { commands: self.commands.clone(), counters: Arc::clone(&self.counters) }
    }
}

impl<S: Sink> Monitor<S> {
    /// Starts the thread. Everything logged from now on will be handed to `sink`.
    pub fn start(settings: Settings, sink: S) -> Result<Self, MonitorError> {
        let kmsg = settings.kmsg.map(open_kmsg).transpose().map_err(MonitorError::OpenKmsg)?;
        let (commands, inbox) = mpsc::unbounded_channel();
        let counters = Arc::new(Counters::default());
        let (ready, started) = std_mpsc::sync_channel(1);
        let shared = Arc::clone(&counters);
        let thread = std::thread::Builder::new()
            .name("sluice-bypass".into())
            .spawn(move || Driver::run(&settings, kmsg, sink, inbox, shared, &ready))
            .map_err(MonitorError::Runtime)?;
        let mut monitor = Self { handle: Handle { commands, counters }, thread: Some(thread) };
        match started.recv() {
            Ok(()) => Ok(monitor),
            // The thread ended before it was ready; its result says why.
            Err(_) => Err(monitor.join().err().unwrap_or(MonitorError::Stopped)),
        }
    }

    /// A handle for other threads.
    pub fn handle(&self) -> Handle<S> {
        self.handle.clone()
    }

    /// What was read so far.
    pub fn totals(&self) -> Totals {
        self.handle.totals()
    }

    /// Whether the thread still runs; if not, [`Monitor::stop`] says why.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Stops the thread, at the latest after one turn of [`crate::limits::RECORDS_PER_TURN`], and returns the
    /// sink. Call [`Handle::drain`] before if the last attempts matter.
    pub fn stop(mut self) -> Result<S, MonitorError> {
        let _ = self.handle.commands.send(Command::Stop);
        self.join()
    }

    fn join(&mut self) -> Result<S, MonitorError> {
        let thread = self.thread.take().ok_or(MonitorError::Stopped)?;
        thread.join().map_err(|_| MonitorError::Panicked)?
    }
}

impl<S: Sink> Drop for Monitor<S> {
    fn drop(&mut self) {
        let _ = self.handle.commands.send(Command::Stop);
        let _ = self.join();
    }
}

impl<S: Sink> Handle<S> {
    /// What was read so far.
    pub fn totals(&self) -> Totals {
        self.counters.totals()
    }

    /// Waits until everything logged before this call has been handed to the sink, then until
    /// [`Sink::idle`] has run. Records are visible as soon as the packet is refused, so after the last
    /// process of a sandbox has gone, this gives its last attempt. Blocks the calling thread.
    pub fn drain(&self, timeout: Duration) -> Result<(), MonitorError> {
        let (done, wait) = std_mpsc::sync_channel(1);
        self.send(Command::Drain(done))?;
        wait.recv_timeout(timeout).map_err(|error| match error {
            std_mpsc::RecvTimeoutError::Timeout => MonitorError::Timeout(timeout),
            std_mpsc::RecvTimeoutError::Disconnected => MonitorError::Stopped,
        })
    }

    /// Says that a log line is due: look now and for the next milliseconds. Cheap to repeat.
    pub fn nudge(&self) -> Result<(), MonitorError> {
        if self.counters.nudge_is_new() { self.send(Command::Nudge) } else { Ok(()) }
    }

    /// Runs `work` on the monitor's thread with the sink, between two records. Calls keep their order.
    pub fn with(&self, work: impl FnOnce(&mut S) + Send + 'static) -> Result<(), MonitorError> {
        self.send(Command::With(Box::new(work)))
    }

    /// Reads a namespace's NFLOG group too, from now on. The socket keeps its namespace alive until
    /// [`Handle::unwatch`].
    pub fn watch(&self, socket: nflog::Socket) -> Result<SourceId, MonitorError> {
        let id = SourceId::new();
        self.send(Command::Watch(id, socket))?;
        Ok(id)
    }

    /// Reads what is left in a watched socket, then closes it.
    pub fn unwatch(&self, id: SourceId) -> Result<(), MonitorError> {
        self.send(Command::Unwatch(id))
    }

    fn send(&self, command: Command<S>) -> Result<(), MonitorError> {
        self.commands.send(command).map_err(|_| MonitorError::Stopped)
    }
}

fn open_kmsg(resume: Resume) -> io::Result<(kmsg::Reader, Sequence)> {
    let reader = kmsg::Reader::open(kmsg::Start::Oldest)?;
    let sequence = match resume {
        Resume::Fresh => skip_old(&reader)?,
        Resume::After(seq) => Sequence::after(seq),
    };
    Ok((reader, sequence))
}

/// Reads past what was logged before. Seeking to the end would be shorter, but would not tell the number to count from:
/// what a flood overwrites before the first look would be lost in silence.
fn skip_old(reader: &kmsg::Reader) -> io::Result<Sequence> {
    let mut buffer = vec![0; KMSG_RECORD_BYTES];
    let mut sequence = Sequence::new();
    for _ in 0..OLD_RECORDS_MAX {
        match reader.read(&mut buffer)? {
            kmsg::reader::Outcome::Empty => break,
            kmsg::reader::Outcome::Overrun => {}
            kmsg::reader::Outcome::Record(bytes) => {
                let record = buffer.get(..bytes).and_then(kmsg::Record::parse);
                sequence = record.map_or(sequence, |record| Sequence::after(record.seq));
            }
        }
    }
    Ok(sequence)
}
