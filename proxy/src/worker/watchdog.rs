//! Time-outs that cost nothing while traffic flows: a connection stores when it must be done, a sweep looks now and then.
//!
//! An expired connection is woken by shutting its sockets down; it finds the cause in its [`Watch`]. The same way ends
//! those left when the worker or their sandbox stops, and those whose client is gone while nobody reads it.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{Shutdown, SockaddrStorage, getpeername, shutdown};

use super::live::Standing;
use super::socket::{keep_alive, poll_now};

/// How often the sweep looks at most and at least: so late may a time-out be noticed, twice over. In between, often
/// enough for the shortest time-out that is configured.
const SWEEP_EVERY: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_millis(250);
/// Sweeps within the shortest time-out.
const SWEEPS_PER_TIMEOUT: u32 = 4;

/// How long a connection that was told to end may take to say so to its client.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How long a tunnel is silent before TCP asks whether the peer is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Why a connection was ended from outside its own flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The deadline that was armed has passed.
    Expired,
    /// The connection has lived as long as one may.
    TooOld,
    /// The worker or the sandbox is stopping.
    Stopping,
    /// The client has ended the connection by a reset while it was not read.
    ClientGone,
    /// A new policy denies what it does.
    PolicyChanged,
}

impl Cause {
    /// The word events carry.
    pub(crate) const fn reason(self) -> &'static str {
        match self {
            Self::Expired => "timeout",
            Self::TooOld => "lifetime",
            Self::Stopping => "stopping",
            Self::ClientGone => "reset",
            Self::PolicyChanged => "policy_changed",
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

/// What the sweep looks for at a client that nobody reads: its end would go unnoticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heed {
    /// Nothing: somebody reads it.
    Nothing,
    /// A reset, and the end of what it sends: from then on silence may last so long and no longer.
    End(Duration),
}

/// What the sweep knows of one connection.
pub(crate) struct Watch {
    deadline: Cell<u64>,
    end: Cell<u64>,
    aim: Cell<Aim>,
    heed: Cell<Heed>,
    /// Waits during which the client is not read, whatever `heed` says.
    unread: Cell<u8>,
    client: RawFd,
    upstream: Cell<Option<RawFd>>,
    /// TCP is to keep both sides alive, from the next sweep on.
    keep_alive: Cell<bool>,
    cause: Cell<Option<Cause>>,
    /// One request of several on its connection: it is told, and no socket is shut down.
    shares: bool,
    /// Who waits to be told.
    told: Cell<Option<Waker>>,
    clock: Rc<Cell<u64>>,
    /// How far behind the clock may be: what is armed between two sweeps must not expire early.
    late: u64,
    /// Which sandbox it belongs to: its address is compared, never read.
    owner: *const (),
    /// What it does, for when the policy changes.
    pub(super) standing: Standing,
}

/// The clients looked at in one go, in memory that is used again.
#[derive(Default)]
struct Looked {
    heeded: Vec<Rc<Watch>>,
    clients: Vec<libc::pollfd>,
}

/// All connections of one worker.
pub(crate) struct Watchdog {
    started: Instant,
    clock: Rc<Cell<u64>>,
    every: Duration,
    looked: RefCell<Looked>,
    watches: RefCell<Vec<Weak<Watch>>>,
}

impl Watchdog {
    /// Of connections whose shortest time-out is `shortest`.
    pub(crate) fn new(shortest: Duration) -> Self {
        let every = (shortest / SWEEPS_PER_TIMEOUT).clamp(*SWEEP_EVERY.start(), *SWEEP_EVERY.end());
        Self {
            started: Instant::now(),
            clock: Rc::default(),
            every,
            looked: RefCell::default(),
            watches: RefCell::default(),
        }
    }

    /// How often [`Self::sweep`] is to be called.
    pub(crate) fn every(&self) -> Duration {
        self.every
    }

    /// Watches a connection of the client socket `client`, whose owner drops both without a wait between: the descriptor is
    /// used for as long as the watch lives.
    pub(crate) fn watch<T>(&self, client: &impl AsRawFd, owner: *const T, lifetime: Duration) -> Rc<Watch> {
        self.add(Watch {
            end: Cell::new(self.after(lifetime)),
            ..Watch::of(client.as_raw_fd(), owner.cast(), Rc::clone(&self.clock), millis(self.every))
        })
    }

    /// Watches one request of several on a watched connection, which it must not outlive.
    pub(crate) fn watch_shared(&self, connection: &Watch) -> Rc<Watch> {
        let Watch { client, owner, late, .. } = *connection;
        self.add(Watch { shares: true, ..Watch::of(client, owner, Rc::clone(&self.clock), late) })
    }

    fn add(&self, watch: Watch) -> Rc<Watch> {
        let watch = Rc::new(watch);
        self.watches.borrow_mut().push(Rc::downgrade(&watch));
        watch
    }

    fn after(&self, within: Duration) -> u64 {
        if within.is_zero() {
            return u64::MAX;
        }
        self.clock.get().saturating_add(millis(within)).saturating_add(millis(self.every))
    }

    /// Ends what has expired, and whose client is gone, and forgets what is no more. Linear in the connections: 10,000 of
    /// them cost some 20 µs.
    pub(crate) fn sweep(&self) {
        let now = millis(self.started.elapsed());
        self.clock.set(now);
        self.look();
        self.watches.borrow_mut().retain(|weak| {
            let Some(watch) = weak.upgrade() else { return false };
            watch.keep_alive();
            if now >= watch.end.get() {
                watch.aim.set(Aim::Both);
                watch.stop(watch.cause.get().unwrap_or(Cause::TooOld));
            } else if now >= watch.deadline.get() {
                watch.stop(Cause::Expired);
            }
            true
        });
    }

    /// Looks at the clients that nobody reads.
    fn look(&self) {
        let Looked { heeded, clients } = &mut *self.looked.borrow_mut();
        for watch in self.watches.borrow().iter().filter_map(Weak::upgrade) {
            let heeds = watch.heed.get() != Heed::Nothing || watch.unread.get() > 0;
            if heeds && watch.cause.get().is_none() {
                clients.push(libc::pollfd { fd: watch.client, events: libc::POLLRDHUP, revents: 0 });
                heeded.push(watch);
            }
        }
        poll_now(clients);
        for (watch, seen) in heeded.drain(..).zip(clients.drain(..)) {
            // POLLHUP alone is no reset: both ends have said their last, and what the client said may still be unread.
            if seen.revents & libc::POLLERR != 0 {
                watch.aim.set(Aim::Both);
                watch.stop(Cause::ClientGone);
            } else if seen.revents & libc::POLLRDHUP != 0
                && let Heed::End(linger) = watch.heed.get()
            {
                watch.deadline.set(watch.deadline.get().min(watch.after(linger)));
            }
        }
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

    /// The last connection before position `at`, and its position. The sweep moves connections to the front only, so
    /// that whoever walks by this from the end misses none.
    pub(crate) fn before(&self, at: usize) -> Option<(usize, Rc<Watch>)> {
        let watches = self.watches.borrow();
        let part = watches.get(..at.min(watches.len())).unwrap_or_default();
        part.iter().enumerate().rev().find_map(|(index, weak)| Some((index, weak.upgrade()?)))
    }

    /// Connections alive.
    pub(crate) fn alive(&self) -> usize {
        self.watches.borrow().iter().filter(|weak| weak.strong_count() > 0).count()
    }
}

impl Watch {
    /// Of something without any bound yet.
    fn of(client: RawFd, owner: *const (), clock: Rc<Cell<u64>>, late: u64) -> Self {
        Self {
            deadline: Cell::new(u64::MAX),
            end: Cell::new(u64::MAX),
            aim: Cell::new(Aim::Both),
            heed: Cell::new(Heed::Nothing),
            unread: Cell::new(0),
            client,
            upstream: Cell::new(None),
            keep_alive: Cell::new(false),
            cause: Cell::new(None),
            shares: false,
            told: Cell::default(),
            clock,
            late,
            owner,
            standing: Standing::default(),
        }
    }

    /// Must be done within `within`, or the sockets of `aim` are shut down. Zero means no limit.
    pub(crate) fn arm(&self, within: Duration, aim: Aim) {
        self.aim.set(aim);
        self.deadline.set(if within.is_zero() { u64::MAX } else { self.after(within) });
    }

    /// The time of a wait that is no silence of anybody's does not count.
    pub(crate) fn postpone(&self, by: Duration) {
        self.deadline.set(self.deadline.get().saturating_add(millis(by)));
    }

    fn after(&self, within: Duration) -> u64 {
        self.clock.get().saturating_add(millis(within)).saturating_add(self.late)
    }

    /// What to look for at the client from now on.
    pub(crate) fn heed(&self, what: Heed) {
        self.heed.set(what);
    }

    /// Waits for room at a receiver. The sender is not read meanwhile: should that be the client, its reset is looked for.
    pub(crate) async fn unread<T>(&self, room: impl Future<Output = T>) -> T {
        let _unread = Unread::new(&self.unread);
        room.await
    }

    /// Names the upstream socket, or says that there is none any more (before it is closed or pooled).
    pub(crate) fn set_upstream(&self, upstream: Option<&dyn AsRawFd>) {
        self.upstream.set(upstream.map(AsRawFd::as_raw_fd));
    }

    /// The connection is a tunnel now, which may be silent for long: TCP notices peers that vanish. The calls for it are
    /// left to the sweep, so that tunnels which end sooner do not pay for them.
    pub(crate) fn is_tunnel(&self) {
        self.keep_alive.set(true);
    }

    fn keep_alive(&self) {
        if let Some(upstream) = self.upstream.get().filter(|_| self.keep_alive.take()) {
            keep_alive(self.client, KEEP_ALIVE);
            keep_alive(upstream, KEEP_ALIVE);
        }
    }

    /// Whether the client's connection still stands: neither reset nor aborted.
    pub(crate) fn client_is_connected(&self) -> bool {
        !matches!(getpeername::<SockaddrStorage>(self.client), Err(Errno::ENOTCONN))
    }

    /// Why the connection was ended, if it was.
    pub(crate) fn cause(&self) -> Option<Cause> {
        self.cause.get()
    }

    /// Waits until the connection, or the one request of it, is to end. One waits at a time.
    pub(crate) async fn stopped(&self) -> Cause {
        poll_fn(|cx| {
            if let Some(cause) = self.cause.get() {
                return Poll::Ready(cause);
            }
            self.told.set(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await
    }

    /// Which sandbox it belongs to; to be compared only.
    pub(crate) fn owner(&self) -> *const () {
        self.owner
    }

    /// Ends the connection, as far as it is armed: what waits for an origin can still answer its client.
    pub(crate) fn stop(&self, cause: Cause) {
        self.cause.set(Some(cause));
        self.deadline.set(u64::MAX);
        self.end.set(self.end.get().min(self.clock.get().saturating_add(millis(LAST_WORDS))));
        if let Some(told) = self.told.take() {
            told.wake();
        }
        if self.shares {
            return;
        }
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

/// Counts a wait, for as long as it lasts.
struct Unread<'a>(&'a Cell<u8>);

impl<'a> Unread<'a> {
    fn new(count: &'a Cell<u8>) -> Self {
        count.set(count.get().saturating_add(1));
        Self(count)
    }
}

impl Drop for Unread<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// A socket that is not connected any more needs no shutting down.
fn shut(socket: RawFd, how: Shutdown) {
    let _ = shutdown(socket, how);
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use socket2::SockRef;

    use super::*;

    /// Both ends of a connection.
    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    fn watch(watchdog: &Watchdog, client: &TcpStream) -> Rc<Watch> {
        watchdog.watch(client, std::ptr::null::<()>(), Duration::ZERO)
    }

    /// Sweeps as a worker does until something has ended the connection, or the time is over.
    fn swept(watchdog: &Watchdog, watch: &Watch, most: Duration) -> Option<Cause> {
        let began = Instant::now();
        while watch.cause().is_none() && began.elapsed() < most {
            std::thread::sleep(watchdog.every());
            watchdog.sweep();
        }
        watch.cause()
    }

    #[test]
    fn a_request_that_shares_its_connection_ends_alone() {
        let (client, _peer) = pair();
        let watchdog = Watchdog::new(Duration::from_millis(40));
        let connection = watch(&watchdog, &client);
        let (one, other) = (watchdog.watch_shared(&connection), watchdog.watch_shared(&connection));
        one.arm(Duration::from_millis(40), Aim::Both);
        assert_eq!(swept(&watchdog, &one, Duration::from_secs(10)), Some(Cause::Expired));
        assert_eq!((other.cause(), connection.cause()), (None, None));
        assert!(connection.client_is_connected());
        watchdog.stop_all(Some(std::ptr::null::<()>()), Cause::Stopping);
        assert_eq!((other.cause(), one.cause()), (Some(Cause::Stopping), Some(Cause::Expired)));
    }

    #[test]
    fn the_shortest_time_out_says_how_often_to_look() {
        let every = |shortest| Watchdog::new(shortest).every();
        assert_eq!(every(Duration::from_secs(10)), Duration::from_millis(250));
        assert_eq!(every(Duration::from_millis(200)), Duration::from_millis(50));
        assert_eq!(every(Duration::from_millis(1)), Duration::from_millis(10));
    }

    /// Its ends may be another's by then: identity that is found afterwards proves nothing.
    #[test]
    fn a_connection_that_was_reset_no_longer_stands_though_its_bytes_can_be_read() {
        use std::io::{Read as _, Write as _};
        let (mut client, mut accepted) = pair();
        let watchdog = Watchdog::new(Duration::from_secs(1));
        let watch = watchdog.watch(&accepted, std::ptr::null::<()>(), Duration::ZERO);
        client.write_all(b"GET").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(watch.client_is_connected(), "half closed is no reset");
        SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
        drop(client);
        while watch.client_is_connected() {
            std::thread::yield_now();
        }
        let mut bytes = [0; 3];
        accepted.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"GET");
    }

    #[test]
    fn nothing_expires_early_however_stale_the_clock() {
        let (client, _peer) = pair();
        let within = Duration::from_millis(40);
        let watchdog = Watchdog::new(within);
        let watch = watch(&watchdog, &client);
        // Just before the next sweep.
        std::thread::sleep(watchdog.every());
        let armed = Instant::now();
        watch.arm(within, Aim::Both);
        assert_eq!(swept(&watchdog, &watch, Duration::from_secs(10)), Some(Cause::Expired));
        assert!(armed.elapsed() >= within, "{:?}", armed.elapsed());
    }

    #[test]
    fn a_reset_is_seen_behind_bytes_nobody_has_read_and_an_end_shortens_the_wait() {
        let watchdog = Watchdog::new(Duration::from_millis(40));
        for (end, heed, cause) in [
            ("reset", Heed::End(Duration::from_secs(99)), Some(Cause::ClientGone)),
            ("reset", Heed::Nothing, None),
            ("end", Heed::End(Duration::from_millis(20)), Some(Cause::Expired)),
            ("none", Heed::End(Duration::from_millis(20)), None),
        ] {
            let (client, mut peer) = pair();
            let watch = watch(&watchdog, &client);
            watch.arm(Duration::from_secs(99), Aim::Both);
            watch.heed(heed);
            std::io::Write::write_all(&mut peer, b"pipelined").unwrap();
            match end {
                "reset" => SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap(),
                "end" => peer.shutdown(std::net::Shutdown::Write).unwrap(),
                _ => {}
            }
            let kept = (end != "reset").then_some(peer);
            let most = Duration::from_millis(if cause.is_some() { 10_000 } else { 100 });
            assert_eq!(swept(&watchdog, &watch, most), cause, "{end} {heed:?}");
            drop(kept);
        }
    }

    /// The kernel reports POLLHUP for it, as for a reset; but what the client said before its end is still to be read.
    #[test]
    fn a_client_that_ends_behind_our_own_end_is_not_gone() {
        let watchdog = Watchdog::new(Duration::from_millis(40));
        let (client, mut peer) = pair();
        let watch = watch(&watchdog, &client);
        client.shutdown(std::net::Shutdown::Write).unwrap();
        std::io::Write::write_all(&mut peer, b"the rest of an upload").unwrap();
        peer.shutdown(std::net::Shutdown::Write).unwrap();
        let mut waiting = Box::pin(watch.unread(std::future::pending::<()>()));
        let waker = std::task::Waker::noop();
        assert!(waiting.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_pending());
        assert_eq!(swept(&watchdog, &watch, Duration::from_millis(100)), None);
    }

    #[test]
    fn a_reset_is_seen_while_a_receiver_is_waited_for() {
        let watchdog = Watchdog::new(Duration::from_millis(40));
        let (client, peer) = pair();
        let watch = watch(&watchdog, &client);
        SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
        drop(peer);
        assert_eq!(swept(&watchdog, &watch, Duration::from_millis(50)), None);
        let waiting = Box::pin(watch.unread(std::future::pending::<()>()));
        let mut polled = waiting;
        assert!(
            polled.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_pending()
        );
        assert_eq!(swept(&watchdog, &watch, Duration::from_secs(10)), Some(Cause::ClientGone));
        drop(polled);
        assert_eq!(watch.unread.get(), 0);
    }
}
