//! What the witness saw, kept for its two readers.
//!
//! The proxy asks "who owns the connection from this port to me?" and leaves the note where it is; the
//! bypass core asks "whose connect is this log line?" and takes it. Both join by source port, exactly.
//! A note whose socket could not be named has no port and joins by destination, oldest first.

use crate::limits::{NOTES_MAX, PORTLESS_NOTE_AGE_MS_MAX};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The transport of a noted attempt. MPTCP counts as TCP: that is what is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Proto {
    /// TCP or MPTCP.
    Tcp,
    /// UDP.
    Udp,
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
    /// The socket's local port: `SPT=` in the fence's log line, the peer's port at the proxy. `None`
    /// when the socket could not be named.
    pub src_port: Option<u16>,
    /// Where to; a v4-mapped IPv6 address is given as IPv4.
    pub dst: SocketAddr,
    /// Through which call.
    pub call: Call,
}

/// How a note was joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    /// Protocol, source port and destination agree.
    Exact,
    /// Protocol and destination agree, and it is the oldest such note without a port.
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

/// A bounded ring of notes, shared by the witness thread and the readers.
#[derive(Debug)]
pub struct Notes {
    ring: Mutex<Ring>,
    capacity: usize,
}

#[derive(Debug, Default)]
struct Ring {
    slots: VecDeque<Slot>,
    /// The number of the slot at the front.
    first: u64,
    /// Slots by protocol and source port, oldest first.
    by_port: HashMap<(Proto, u16), VecDeque<u64>>,
    /// Slots without a port, oldest first.
    portless: VecDeque<u64>,
    overflow: u64,
}

#[derive(Debug)]
struct Slot {
    note: Arc<Note>,
    /// A reader has seen it; its loss is none.
    used: bool,
}

impl Default for Notes {
    fn default() -> Self {
        Self::with_capacity(NOTES_MAX)
    }
}

impl Notes {
    /// A ring of `capacity` notes (at least one); [`Notes::default`] holds [`NOTES_MAX`].
    pub fn with_capacity(capacity: usize) -> Self {
        Self { ring: Mutex::default(), capacity: capacity.max(1) }
    }

    /// Adds a note, dropping the oldest when full.
    pub fn push(&self, note: Note) {
        let mut ring = self.lock();
        if ring.slots.len() >= self.capacity {
            ring.drop_oldest();
        }
        let number = ring.first + ring.slots.len() as u64;
        match note.src_port {
            Some(port) => ring.by_port.entry((note.proto, port)).or_default().push_back(number),
            None => ring.portless.push_back(number),
        }
        ring.slots.push_back(Slot { note: Arc::new(note), used: false });
    }

    /// For the proxy: the latest TCP note from this port to this destination. It stays.
    pub fn lookup_tcp(&self, src_port: u16, dst: SocketAddr) -> Option<Arc<Note>> {
        let mut ring = self.lock();
        let number = ring.latest(Proto::Tcp, src_port, canonical(dst))?;
        let slot = ring.slot(number)?;
        slot.used = true;
        Some(Arc::clone(&slot.note))
    }

    /// For the bypass core: the note behind one log line, seen at `now_ns` (CLOCK_MONOTONIC).
    ///
    /// A TCP note is taken: one connect, one line. A UDP note stays, since a connected socket sends many
    /// datagrams. Lines must be joined in the order of the log, as notes without a port join by order;
    /// those older than [`PORTLESS_NOTE_AGE_MS_MAX`] no longer do.
    pub fn join_log_line(&self, proto: Proto, src_port: u16, dst: SocketAddr, now_ns: u64) -> Option<Found> {
        let dst = canonical(dst);
        let mut ring = self.lock();
        if let Some(number) = ring.oldest(proto, src_port, dst) {
            if proto == Proto::Tcp {
                ring.unindex_port(proto, src_port, number);
            }
            return ring.found(number, Join::Exact);
        }
        let number = ring.oldest_portless(proto, dst, now_ns)?;
        ring.portless.retain(|other| *other != number);
        ring.found(number, Join::Order)
    }

    /// Notes dropped from the full ring before any reader had seen them.
    pub fn overflow(&self) -> u64 {
        self.lock().overflow
    }

    /// Notes in the ring, used ones included.
    pub fn len(&self) -> usize {
        self.lock().slots.len()
    }

    /// Whether nothing was noted yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies of the notes now in the ring, oldest first.
    pub fn snapshot(&self) -> Vec<Arc<Note>> {
        self.lock().slots.iter().map(|slot| Arc::clone(&slot.note)).collect()
    }

    /// The ring is consistent between any two statements that may panic, so a poisoned lock is usable.
    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn slot(&mut self, number: u64) -> Option<&mut Slot> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.slots.get_mut(index)
    }

    fn matches(&self, number: u64, dst: SocketAddr) -> bool {
        let index = number.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        index.and_then(|index| self.slots.get(index)).is_some_and(|slot| slot.note.dst == dst)
    }

    fn latest(&self, proto: Proto, port: u16, dst: SocketAddr) -> Option<u64> {
        let numbers = self.by_port.get(&(proto, port))?;
        numbers.iter().rev().copied().find(|number| self.matches(*number, dst))
    }

    /// TCP lines arrive in the order of their connects, so the oldest; a UDP port's present owner is the latest.
    fn oldest(&self, proto: Proto, port: u16, dst: SocketAddr) -> Option<u64> {
        if proto == Proto::Udp {
            return self.latest(proto, port, dst);
        }
        let numbers = self.by_port.get(&(proto, port))?;
        numbers.iter().copied().find(|number| self.matches(*number, dst))
    }

    fn oldest_portless(&self, proto: Proto, dst: SocketAddr, now_ns: u64) -> Option<u64> {
        let not_before = now_ns.saturating_sub(PORTLESS_NOTE_AGE_MS_MAX * 1_000_000);
        self.portless.iter().copied().find(|number| {
            let index = number.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
            index.and_then(|index| self.slots.get(index)).is_some_and(|slot| {
                slot.note.proto == proto && slot.note.dst == dst && slot.note.time_ns >= not_before
            })
        })
    }

    fn found(&mut self, number: u64, join: Join) -> Option<Found> {
        let slot = self.slot(number)?;
        slot.used = true;
        Some(Found { note: Arc::clone(&slot.note), join })
    }

    fn unindex_port(&mut self, proto: Proto, port: u16, number: u64) {
        if let Some(numbers) = self.by_port.get_mut(&(proto, port)) {
            numbers.retain(|other| *other != number);
            if numbers.is_empty() {
                self.by_port.remove(&(proto, port));
            }
        }
    }

    fn drop_oldest(&mut self) {
        let Some(slot) = self.slots.pop_front() else { return };
        let number = self.first;
        self.first += 1;
        self.overflow += u64::from(!slot.used);
        match slot.note.src_port {
            Some(port) => self.unindex_port(slot.note.proto, port, number),
            None if self.portless.front() == Some(&number) => drop(self.portless.pop_front()),
            None => {}
        }
    }
}

/// IPv4 whichever family the socket had, without flow labels and scopes, which a log line lacks.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(pid: u32, src_port: Option<u16>, dst: &str) -> Note {
        let process = Process {
            pid,
            start_time: 1,
            exe: Path::new("/bin/x").into(),
            comm: "x".into(),
            uid: 0,
            ancestors: Arc::new([]),
        };
        Note {
            time_ns: 1_000,
            tid: pid,
            process: Arc::new(process),
            proto: Proto::Tcp,
            src_port,
            dst: dst.parse().unwrap(),
            call: Call::Connect,
        }
    }

    fn dst(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_log_line_takes_one_tcp_note() {
        let notes = Notes::default();
        notes.push(note(7, Some(40_000), "1.2.3.4:80"));
        let found = notes.join_log_line(Proto::Tcp, 40_000, dst("1.2.3.4:80"), 1_000).unwrap();
        assert_eq!((found.note.process.pid, found.join), (7, Join::Exact));
        assert!(notes.join_log_line(Proto::Tcp, 40_000, dst("1.2.3.4:80"), 1_000).is_none());
    }

    #[test]
    fn a_reused_port_joins_oldest_line_first_and_the_proxy_sees_the_latest() {
        let notes = Notes::default();
        notes.push(note(1, Some(40_000), "1.2.3.4:80"));
        notes.push(note(2, Some(40_000), "1.2.3.4:80"));
        assert_eq!(notes.lookup_tcp(40_000, dst("1.2.3.4:80")).unwrap().process.pid, 2);
        let first = notes.join_log_line(Proto::Tcp, 40_000, dst("1.2.3.4:80"), 0).unwrap();
        assert_eq!(first.note.process.pid, 1);
    }

    #[test]
    fn a_udp_note_answers_for_every_datagram() {
        let notes = Notes::default();
        notes.push(Note { proto: Proto::Udp, ..note(3, Some(5_000), "8.8.8.8:53") });
        for _ in 0..3 {
            assert!(notes.join_log_line(Proto::Udp, 5_000, dst("8.8.8.8:53"), 0).is_some());
        }
    }

    #[test]
    fn a_note_without_a_port_joins_by_destination_and_order_once() {
        let notes = Notes::default();
        notes.push(note(1, None, "1.2.3.4:80"));
        notes.push(note(2, None, "1.2.3.4:80"));
        for pid in [1, 2] {
            let found = notes.join_log_line(Proto::Tcp, 999, dst("1.2.3.4:80"), 2_000).unwrap();
            assert_eq!((found.note.process.pid, found.join), (pid, Join::Order));
        }
        assert!(notes.join_log_line(Proto::Tcp, 999, dst("1.2.3.4:80"), 2_000).is_none());
    }

    #[test]
    fn an_old_note_without_a_port_joins_nothing() {
        let notes = Notes::default();
        notes.push(note(1, None, "1.2.3.4:80"));
        let later = 2_000 + PORTLESS_NOTE_AGE_MS_MAX * 1_000_000;
        assert!(notes.join_log_line(Proto::Tcp, 999, dst("1.2.3.4:80"), later).is_none());
    }

    #[test]
    fn mapped_addresses_join_with_plain_ones() {
        let notes = Notes::default();
        notes.push(note(1, Some(9), "1.2.3.4:80"));
        assert!(notes.lookup_tcp(9, dst("[::ffff:1.2.3.4]:80")).is_some());
    }

    #[test]
    fn a_full_ring_drops_the_oldest_and_counts_only_unseen_ones() {
        let notes = Notes::with_capacity(2);
        notes.push(note(1, Some(1), "1.2.3.4:80"));
        notes.lookup_tcp(1, dst("1.2.3.4:80")).unwrap();
        notes.push(note(2, Some(2), "1.2.3.4:80"));
        notes.push(note(3, Some(3), "1.2.3.4:80"));
        assert_eq!((notes.len(), notes.overflow()), (2, 0));
        notes.push(note(4, None, "1.2.3.4:80"));
        assert_eq!((notes.len(), notes.overflow()), (2, 1));
        assert!(notes.lookup_tcp(2, dst("1.2.3.4:80")).is_none());
        assert!(notes.lookup_tcp(3, dst("1.2.3.4:80")).is_some());
        notes.push(note(5, None, "1.2.3.4:80"));
        notes.push(note(6, None, "1.2.3.4:80"));
        let found = notes.join_log_line(Proto::Tcp, 1, dst("1.2.3.4:80"), 0).unwrap();
        assert_eq!(found.note.process.pid, 5);
    }
}
