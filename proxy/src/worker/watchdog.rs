//! Time-outs that cost nothing while traffic flows: a connection stores when it must be done, a sweep looks now and then.
//!
//! An expired connection is woken by shutting its sockets down; it finds the cause in its [`Watch`]. The same way ends
//! those left when the worker or their sandbox stops.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsRawFd, RawFd};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};

/// How often the sweep looks, and so how late a time-out may be noticed.
pub(crate) const SWEEP_EVERY: Duration = Duration::from_millis(250);

/// How long a connection that was told to end may take to say so to its client.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Why a connection was ended from outside its own flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The deadline that was armed has passed.
    Expired,
    /// The connection has lived as long as one may.
    TooOld,
    /// The worker or the sandbox is stopping.
    Stopping,
}

impl Cause {
    /// The word events carry.
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::Expired => "timeout",
            Self::TooOld => "lifetime",
            Self::Stopping => "stopping",
        }
    }
}

/// Which socket is shut down when the deadline passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aim {
    /// Reading from the client: an answer can still be written.
    ClientRead,
    /// The upstream: the client still gets its answer.
    Upstream,
    /// Both.
    Both,
}

/// What the sweep knows of one connection.
pub(crate) struct Watch {
    deadline: Cell<u64>,
    end: Cell<u64>,
    aim: Cell<Aim>,
    client: RawFd,
    upstream: Cell<Option<RawFd>>,
    cause: Cell<Option<Cause>>,
    clock: Rc<Cell<u64>>,
    /// Which sandbox it belongs to: its address is compared, never read.
    owner: *const (),
}

/// All connections of one worker.
pub(crate) struct Watchdog {
    started: Instant,
    clock: Rc<Cell<u64>>,
    watches: RefCell<Vec<Weak<Watch>>>,
}

impl Watchdog {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), clock: Rc::default(), watches: RefCell::default() }
    }

    /// Watches a connection of the client socket `client`, whose owner drops the watch before the socket.
    pub(crate) fn watch<T>(&self, client: &impl AsRawFd, owner: *const T, lifetime: Duration) -> Rc<Watch> {
        let watch = Rc::new(Watch {
            deadline: Cell::new(u64::MAX),
            end: Cell::new(self.after(lifetime)),
            aim: Cell::new(Aim::Both),
            client: client.as_raw_fd(),
            upstream: Cell::new(None),
            cause: Cell::new(None),
            clock: Rc::clone(&self.clock),
            owner: owner.cast(),
        });
        self.watches.borrow_mut().push(Rc::downgrade(&watch));
        watch
    }

    fn after(&self, within: Duration) -> u64 {
        if within.is_zero() { u64::MAX } else { self.clock.get().saturating_add(millis(within)) }
    }

    /// Ends what has expired and forgets what is gone. Linear in the connections, four times a second: 10,000 of them
    /// cost some 20 µs.
    pub(crate) fn sweep(&self) {
        let now = millis(self.started.elapsed());
        self.clock.set(now);
        self.watches.borrow_mut().retain(|weak| {
            let Some(watch) = weak.upgrade() else { return false };
            if now >= watch.end.get() {
                watch.aim.set(Aim::Both);
                watch.stop(watch.cause.get().unwrap_or(Cause::TooOld));
            } else if now >= watch.deadline.get() {
                watch.stop(Cause::Expired);
            }
            true
        });
    }

    /// Ends every connection of `owner`, or of all owners.
    pub(crate) fn stop_all<T>(&self, owner: Option<*const T>, cause: Cause) {
        for watch in self.watches.borrow().iter().filter_map(Weak::upgrade) {
            if owner.is_none_or(|owner| owner.cast() == watch.owner) && watch.cause.get().is_none() {
                watch.aim.set(Aim::Both);
                watch.stop(cause);
            }
        }
    }

    /// Connections alive.
    pub(crate) fn alive(&self) -> usize {
        self.watches.borrow().iter().filter(|weak| weak.strong_count() > 0).count()
    }
}

impl Watch {
    /// Must be done within `within`, or the sockets of `aim` are shut down. Zero means no limit.
    pub(crate) fn arm(&self, within: Duration, aim: Aim) {
        self.aim.set(aim);
        let forever = within.is_zero();
        self.deadline.set(if forever { u64::MAX } else { self.clock.get().saturating_add(millis(within)) });
    }

    /// Names the upstream socket, or says that there is none any more (before it is closed or pooled).
    pub(crate) fn set_upstream(&self, upstream: Option<&dyn AsRawFd>) {
        self.upstream.set(upstream.map(AsRawFd::as_raw_fd));
    }

    /// Why the connection was ended, if it was.
    pub(crate) fn cause(&self) -> Option<Cause> {
        self.cause.get()
    }

    fn stop(&self, cause: Cause) {
        self.cause.set(Some(cause));
        self.deadline.set(u64::MAX);
        self.end.set(self.end.get().min(self.clock.get().saturating_add(millis(LAST_WORDS))));
        let aim = self.aim.get();
        match aim {
            Aim::ClientRead => shut(self.client, Shutdown::Read),
            Aim::Both => shut(self.client, Shutdown::Both),
            Aim::Upstream => {}
        }
        if let (Aim::Upstream | Aim::Both, Some(upstream)) = (aim, self.upstream.get()) {
            shut(upstream, Shutdown::Both);
        }
    }
}

/// A socket that is not connected any more needs no shutting down.
fn shut(socket: RawFd, how: Shutdown) {
    let _ = shutdown(socket, how);
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
