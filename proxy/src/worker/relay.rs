//! Raw bytes both ways, for as long as it takes: the adaptive relay of decision 2.
//!
//! A direction waits until its source is readable, reads into the worker's scratch and writes on. A read that fills half
//! the scratch is bulk: from then on the bytes move socket → pipe → socket by splice(2) and never enter this process,
//! until a trickle shows that the bulk is over. While a direction waits it holds neither buffer nor pipe.
//! Work per turn is bounded, so that a bulk tunnel cannot hold the core against its neighbours.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};

use super::buffers::Buffers;
use super::pipes::{PIPE_OCTETS, Pipe, Pipes};
use super::socket::Side;
use super::tls::{SEALED_OCTETS, Sealed};
use super::watchdog::{Aim, Watch};
use crate::pace::Pace;

/// Octets one read into the shared scratch may take.
pub(crate) const SCRATCH_OCTETS: usize = 64 << 10;
/// A read this large means bulk (docs/decisions/0002).
pub(super) const BULK_OCTETS: usize = 32 << 10;
/// A splice this small, [`TRICKLES_MAX`] times in a row, means that the bulk is over.
const TRICKLE_OCTETS: usize = 4 << 10;
const TRICKLES_MAX: u8 = 8;
/// Splices before the others get their turn; fewer, once they have moved what a pipe holds.
pub(super) const SPLICES_PER_TURN: usize = 4;

/// How long a wait for the rate lasts before it is seen that the connection must end.
const PACE_PART: Duration = Duration::from_millis(250);

/// Time since this process first asked: a zero that all workers share.
pub(crate) fn since_start() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}

/// What relaying borrows from its worker.
#[derive(Clone)]
pub(crate) struct Means {
    /// Read target shared by all connections of the worker; never held across a wait.
    pub(crate) scratch: Rc<RefCell<Box<[u8]>>>,
    pub(crate) pipes: Pipes,
    pub(crate) buffers: Buffers,
    /// Where sealed octets of TLS are read to, by the same rule.
    pub(crate) sealed: Sealed,
}

impl Means {
    pub(crate) fn new(pipes_max: usize) -> Self {
        Self {
            scratch: Rc::new(RefCell::new(vec![0; SCRATCH_OCTETS].into_boxed_slice())),
            pipes: Pipes::new(pipes_max),
            buffers: Buffers::default(),
            sealed: Rc::new(RefCell::new(vec![0; SEALED_OCTETS].into_boxed_slice())),
        }
    }
}

/// The account of one direction.
pub(crate) struct Flow<'a> {
    octets: Cell<u64>,
    copied: &'a metrics::Counter,
    spliced: &'a metrics::Counter,
    pace: Option<&'a Pace>,
    owed: Cell<Duration>,
}

impl<'a> Flow<'a> {
    pub(crate) fn new(
        copied: &'a metrics::Counter,
        spliced: &'a metrics::Counter,
        pace: Option<&'a Pace>,
    ) -> Self {
        Self { octets: Cell::new(0), copied, spliced, pace, owed: Cell::new(Duration::ZERO) }
    }

    /// Waits as long as the sandbox' rate wants after what has moved, unless the connection is to end. That wait is
    /// nobody's silence.
    pub(crate) async fn keep_pace(&self, watch: &Watch) {
        let mut owed = self.owed.replace(Duration::ZERO);
        while !owed.is_zero() && watch.cause().is_none() {
            let part = owed.min(PACE_PART);
            watch.postpone(part);
            monoio::time::sleep(part).await;
            owed = owed.saturating_sub(part);
        }
    }

    fn add(&self, counter: &metrics::Counter, count: usize) {
        if count == 0 {
            return;
        }
        counter.increment(count as u64);
        self.octets.set(self.octets.get().saturating_add(count as u64));
        if let Some(pace) = &self.pace {
            self.owed.set(pace.take(count as u64, since_start()));
        }
    }

    /// Octets written to the other side so far.
    pub(crate) fn octets(&self) -> u64 {
        self.octets.get()
    }

    /// Counts octets that went through this process' memory.
    pub(crate) fn add_copied(&self, count: usize) {
        self.add(self.copied, count);
    }

    /// Counts octets that never entered this process.
    pub(super) fn add_spliced(&self, count: usize) {
        self.add(self.spliced, count);
    }
}

/// How long silence may last.
#[derive(Clone, Copy)]
pub(crate) struct Patience {
    /// Neither side says anything.
    pub(crate) idle: Duration,
    /// One side has said its last, the other is silent.
    pub(crate) half_closed: Duration,
}

/// The watch of a tunnel, shared by its two directions.
pub(crate) struct Vigil<'a> {
    pub(crate) watch: &'a Watch,
    pub(crate) patience: Patience,
    half_closed: Cell<bool>,
}

impl<'a> Vigil<'a> {
    pub(crate) fn new(watch: &'a Watch, patience: Patience) -> Self {
        let vigil = Self { watch, patience, half_closed: Cell::new(false) };
        vigil.touch();
        vigil
    }

    /// Something moved: the time starts anew.
    pub(crate) fn touch(&self) {
        let within = if self.half_closed.get() { self.patience.half_closed } else { self.patience.idle };
        self.watch.arm(within, Aim::Both);
    }

    /// One direction has ended. Says whether the other one had before.
    fn half_close(&self) -> bool {
        let both = self.half_closed.replace(true);
        self.touch();
        both
    }
}

/// How a direction moves its bytes.
#[derive(Clone, Copy)]
enum Gear {
    Copy,
    /// By splice; so many small ones in a row.
    Splice(u8),
}

/// Moves bytes from `from` to `to` until `from` ends, then says so to `to`. An error ends the tunnel; what was read is
/// written first.
pub(crate) async fn pump(
    means: &Means,
    from: &impl Side,
    to: &impl Side,
    flow: &Flow<'_>,
    vigil: &Vigil<'_>,
) -> io::Result<()> {
    let mut gear = Gear::Copy;
    loop {
        from.readable().await?;
        vigil.touch();
        let ended = match (gear, from.raw(), to.raw()) {
            (Gear::Splice(trickles), Some(source), Some(sink)) => match means.pipes.take() {
                Some(pipe) => {
                    splice_turn(pipe, source, (to, sink), (flow, vigil), trickles, &mut gear).await?
                }
                None => copy_turn(means, from, to, (flow, vigil), &mut gear).await?,
            },
            _ => copy_turn(means, from, to, (flow, vigil), &mut gear).await?,
        };
        flow.keep_pace(vigil.watch).await;
        if ended {
            // When the other direction has ended too, closing says as much; inside TLS it does not.
            if !vigil.half_close() || to.raw().is_none() {
                // The peer may be gone already; its own direction finds out.
                let _ = to.shutdown_write();
            }
            return Ok(());
        }
    }
}

/// One read into the scratch and its write. True at the end of the stream.
async fn copy_turn(
    means: &Means,
    from: &impl Side,
    to: &impl Side,
    (flow, vigil): (&Flow<'_>, &Vigil<'_>),
    gear: &mut Gear,
) -> io::Result<bool> {
    let left = {
        let mut scratch = means.scratch.borrow_mut();
        let Some(count) = from.try_read(&mut scratch)? else { return Ok(false) };
        if count == 0 {
            return Ok(true);
        }
        *gear = if count >= BULK_OCTETS { Gear::Splice(0) } else { Gear::Copy };
        flow.add_copied(count);
        let read = scratch.get(..count).unwrap_or_default();
        let written = to.try_write(read)?.unwrap_or(0);
        if written == count && to.is_flushed() {
            return Ok(false);
        }
        let mut left = means.buffers.take();
        left.extend_from_slice(read.get(written..).unwrap_or_default());
        left
    };
    vigil.watch.unread(to.write_all(&left)).await?;
    Ok(false)
}

/// A few splices into the pipe and out of it, until the source has nothing more. True at the end of the stream.
async fn splice_turn(
    pipe: Pipe,
    source: BorrowedFd<'_>,
    (to, sink): (&impl Side, BorrowedFd<'_>),
    (flow, vigil): (&Flow<'_>, &Vigil<'_>),
    mut trickles: u8,
    gear: &mut Gear,
) -> io::Result<bool> {
    let (mut ended, mut moved) = (false, 0_usize);
    for _ in 0..SPLICES_PER_TURN {
        let Some(taken) = move_some(source, pipe.write.as_fd(), PIPE_OCTETS)? else { break };
        ended = taken == 0;
        empty(&pipe, (to, sink), taken, vigil.watch, || {}).await?;
        flow.add_spliced(taken);
        moved = moved.saturating_add(taken);
        trickles = if taken <= TRICKLE_OCTETS { trickles + 1 } else { 0 };
        if taken < BULK_OCTETS || moved >= PIPE_OCTETS {
            break;
        }
    }
    *gear = if trickles < TRICKLES_MAX { Gear::Splice(trickles) } else { Gear::Copy };
    pipe.put_back();
    Ok(ended)
}

/// Moves what a pipe holds to where it goes. `full` is called before each wait for room there.
pub(super) async fn empty(
    pipe: &Pipe,
    (to, sink): (&impl Side, BorrowedFd<'_>),
    mut left: usize,
    watch: &Watch,
    full: impl Fn(),
) -> io::Result<()> {
    while left > 0 {
        match move_some(pipe.read.as_fd(), sink, left)? {
            Some(0) => return Err(io::ErrorKind::WriteZero.into()),
            Some(count) => left = left.saturating_sub(count),
            None => {
                full();
                watch.unread(to.writable()).await?;
            }
        }
    }
    Ok(())
}

/// One non-blocking splice: `None` when it would have to wait.
pub(super) fn move_some(from: BorrowedFd<'_>, to: BorrowedFd<'_>, most: usize) -> io::Result<Option<usize>> {
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    loop {
        match splice(from, None, to, None, most, flags) {
            Ok(count) => return Ok(Some(count)),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
