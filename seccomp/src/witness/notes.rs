//! What the witnesses of one sandbox saw, kept for its two readers.
//!
//! Notes come by rings (`ring.rs`), one for each launcher, and are indexed here (`index.rs`) when somebody asks. The
//! proxy asks "who owns the connection from this port to me?" and leaves the note where it is; the bypass core asks
//! "whose packet is this log line?" and takes it. Both join by source port, exactly. A note whose socket could not be
//! named has no port and joins by destination and time. What was refused without a line (the log has a limit, and
//! lines may be lost) the bypass core knows by number only, and asks whose calls no line has claimed.

use super::index::{Index, Pick};
use super::ring::NoteReader;
use crate::limits::{NOTES_MAX, RINGS_MAX};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The transport of a noted attempt. MPTCP counts as TCP: that is what is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Proto {
    /// TCP or MPTCP.
    Tcp,
    /// UDP and UDP-Lite.
    Udp,
    /// ICMP and ICMPv6, by ping sockets.
    Icmp,
}

/// The system call that was noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `connect(2)`.
    Connect,
    /// `sendto(2)` with an address.
    SendTo,
    /// `sendmsg(2)` with `MSG_FASTOPEN`.
    SendMsg,
    /// `sendmmsg(2)` with `MSG_FASTOPEN`.
    SendMmsg,
}

/// A process as it was when it called. Shared by all its notes until it executes another program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Process id (thread group) in the launcher's pid namespace.
    pub pid: u32,
    /// Clock ticks since boot, field 22 of `/proc/<pid>/stat`: with the pid, names one process for ever.
    pub start_time: u64,
    /// The target of `/proc/<pid>/exe`, raw: it may end in ` (deleted)`, and lies in the process's mounts.
    pub exe: Arc<Path>,
    /// Short name of the main thread, at most 15 bytes, from `/proc/<pid>/comm`; the process chooses it.
    pub comm: Box<str>,
    /// Real user id.
    pub uid: u32,
    /// The programs of its parents, nearest first, up to the sandbox's first process.
    pub ancestors: Arc<[Arc<Path>]>,
    /// How it was started, at most [`crate::limits::ARGS_MAX`] words. Empty where [`Self::proxy_variable`] is `None`.
    pub args: Arc<[Box<str>]>,
    /// Whether it was started with a proxy variable; `None` if that was not looked at, as for clients of the proxy.
    pub proxy_variable: Option<ProxyVariable>,
}

/// Whether a process was started with one of `http_proxy`, `https_proxy`, `all_proxy`, in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyVariable {
    /// With none.
    Absent,
    /// With at least one that is not empty.
    Present,
}

/// One attempt to reach something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// CLOCK_MONOTONIC nanoseconds.
    pub time_ns: u64,
    /// The calling thread, in the launcher's pid namespace.
    pub tid: u32,
    /// The calling process.
    pub process: Arc<Process>,
    /// Transport.
    pub proto: Proto,
    /// The socket's local port: `SPT=` in the fence's log line (`ID=` for ICMP), the peer's port at the proxy. `None`
    /// when the socket could not be named.
    pub src_port: Option<u16>,
    /// Where to; a v4-mapped IPv6 address is given as IPv4. ICMP has no port: 0.
    pub dst: SocketAddr,
    /// Through which call.
    pub call: Call,
}

impl Note {
    /// Whether the call sends exactly one packet, unless it fails before. `connect` of UDP sends none, and what is sent
    /// afterwards is not noted.
    pub(super) fn is_one_packet(&self) -> bool {
        self.proto == Proto::Tcp || self.call == Call::SendTo
    }
}

/// How a note was joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// Protocol, source port and destination agree.
    Exact,
    /// Protocol, destination and time agree; the note has no port.
    Order,
}

/// A note and how sure the join is.
#[derive(Clone, Debug)]
pub struct Found {
    /// The note.
    pub note: Arc<Note>,
    /// How it was joined.
    pub join: Join,
}

/// A packet that left a trace in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its protocol.
    pub proto: Proto,
    /// Its source port; of ICMP the identifier.
    pub src_port: Option<u16>,
    /// Where it was to go; port 0 for ICMP.
    pub dst: SocketAddr,
    /// CLOCK_MONOTONIC nanoseconds at which it was logged, as nearly as is known.
    pub logged_ns: u64,
}

/// A number of packets of one protocol that are known to have been refused and left no trace in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Untold {
    /// Their protocol.
    pub proto: Proto,
    /// How many.
    pub count: u64,
    /// They were refused after this time (CLOCK_MONOTONIC nanoseconds),
    pub after_ns: u64,
    /// and before this one.
    pub before_ns: u64,
    /// The proxy's address: calls to it are not refused.
    pub proxy: IpAddr,
}

/// Names an attached ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RingId(u64);

/// The notes of one sandbox, shared by the workers and the bypass core.
#[derive(Debug)]
pub struct Notes {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    index: Index,
    rings: Vec<(RingId, NoteReader)>,
    last_ring: u64,
    /// Notes that were written over in a ring before they were read.
    overwritten: u64,
    garbled: u64,
}

impl Default for Notes {
    fn default() -> Self {
        Self::with_capacity(NOTES_MAX)
    }
}

impl Notes {
    /// An index of at most `capacity` notes (at least one); [`Notes::default`] holds [`NOTES_MAX`].
    pub fn with_capacity(capacity: usize) -> Self {
        let state = State {
            index: Index::new(capacity.max(1)),
            rings: Vec::new(),
            last_ring: 0,
            overwritten: 0,
            garbled: 0,
        };
        Self { state: Mutex::new(state) }
    }

    /// Notes with a ring of their own, for a witness in this process.
    pub fn with_writer() -> io::Result<(Arc<Self>, super::NoteWriter)> {
        let (writer, memory) = super::note_ring()?;
        let notes = Arc::new(Self::default());
        notes.attach(memory)?;
        Ok((notes, writer))
    }

    /// Takes notes also from the ring in `memory` ([`super::note_ring`]'s), from its oldest on. An error: that is no
    /// ring of ours, it could change its size, or there are [`RINGS_MAX`] already.
    pub fn attach(&self, memory: impl AsFd) -> io::Result<RingId> {
        let reader = NoteReader::open(memory.as_fd())?;
        let mut state = self.lock();
        if state.rings.len() >= RINGS_MAX {
            return Err(io::Error::other(format!("the sandbox has {RINGS_MAX} witnesses already")));
        }
        state.last_ring += 1;
        let id = RingId(state.last_ring);
        state.rings.push((id, reader));
        Ok(id)
    }

    /// Reads what is left in a ring and lets go of it: its writer has ended.
    pub fn detach(&self, id: RingId) {
        let mut state = self.lock();
        state.refresh();
        state.rings.retain(|(ring, _)| *ring != id);
    }

    /// Reads the rings; whether there was anything new. Whoever asks a question causes it too; the bypass core does it
    /// in between, lest a ring that nobody asks about runs over.
    pub fn refresh(&self) -> bool {
        self.lock().refresh()
    }

    /// For the proxy: the latest TCP note from this port to this destination. It stays.
    pub fn lookup_tcp(&self, src_port: u16, dst: SocketAddr) -> Option<Arc<Note>> {
        let dst = canonical(dst);
        let mut state = self.lock();
        // The note was written before the connect went on, so it is there by now; mostly it is the newest of all.
        state.refresh();
        state.index.latest_tcp(src_port, dst)
    }

    /// For the bypass core: the note behind one log line.
    ///
    /// A note of one packet (a TCP connect, a `sendto`) is taken: one call, one line. That of a UDP `connect` stays, as
    /// the socket may send any number of datagrams.
    pub fn join(&self, refused: &Refused) -> Option<Found> {
        let refused = Refused { dst: canonical(refused.dst), ..*refused };
        let mut state = self.lock();
        state.refresh();
        state
            .index
            .pick(&refused)
            .map(|Pick { note, exact }| Found { note, join: if exact { Join::Exact } else { Join::Order } })
    }

    /// For the bypass core: hands out the notes of the calls that sent what is `untold`, at most as many as there are
    /// such packets, oldest first. Returns how many it handed out.
    pub fn settle(&self, untold: &Untold, give: impl FnMut(&Arc<Note>)) -> u64 {
        let mut state = self.lock();
        state.refresh();
        state.index.settle(untold, give)
    }

    /// Notes dropped before any reader had seen them.
    pub fn overflow(&self) -> u64 {
        let state = self.lock();
        state.overwritten.saturating_add(state.index.dropped_unseen())
    }

    /// Things in the rings that are no notes: a writer is none of ours.
    pub fn garbled(&self) -> u64 {
        self.lock().garbled
    }

    /// Notes in the index, used ones included.
    pub fn len(&self) -> usize {
        let mut state = self.lock();
        state.refresh();
        state.index.len()
    }

    /// Whether nothing was noted yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies of the notes now in the index, oldest first.
    pub fn snapshot(&self) -> Vec<Arc<Note>> {
        let mut state = self.lock();
        state.refresh();
        state.index.all().cloned().collect()
    }

    /// The index is consistent between any two statements that may panic, so a poisoned lock is usable.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn refresh(&mut self) -> bool {
        let mut news = false;
        for (_, ring) in self.rings.iter_mut().filter(|(_, ring)| ring.has_news()) {
            news = true;
            let missed = ring.read(|note| self.index.add(note));
            self.overwritten = self.overwritten.saturating_add(missed.overwritten);
            self.garbled = self.garbled.saturating_add(missed.garbled);
        }
        news
    }
}

/// IPv4 whichever family the socket had, without flow labels and scopes, which a log line lacks.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
