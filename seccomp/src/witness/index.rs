//! Notes in memory, to be found by port, by destination, or by nobody's having claimed them. Pure.

use super::notes::{Note, Proto, Refused, Untold};
use crate::limits::{JOIN_NEAR_NS, JOIN_SCAN, JOIN_SLACK_NS, PORTLESS_NOTE_AGE_MS_MAX};
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

/// The newest notes of one sandbox.
#[derive(Debug)]
pub(super) struct Index {
    slots: VecDeque<Slot>,
    capacity: usize,
    /// The number of the slot at the front.
    first: u64,
    /// Slots by protocol and source port, oldest first.
    by_port: HashMap<(Proto, u16), VecDeque<u64>>,
    /// Slots without a port, oldest first.
    portless: VecDeque<u64>,
    dropped_unseen: u64,
}

#[derive(Debug)]
struct Slot {
    note: Arc<Note>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nobody has asked for it.
    Fresh,
    /// The proxy, or a line of a socket that sends more than one packet, has seen it.
    Seen,
    /// Told because of a counter; its line may still come if another's is missing.
    Settled,
    /// Its line has come.
    Claimed,
}

/// The note of a line.
pub(super) struct Pick {
    pub(super) note: Arc<Note>,
    /// The ports agree.
    pub(super) exact: bool,
}

impl Index {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            slots: VecDeque::new(),
            capacity,
            first: 0,
            by_port: HashMap::new(),
            portless: VecDeque::new(),
            dropped_unseen: 0,
        }
    }

    /// Adds a note, dropping the oldest when full.
    pub(super) fn add(&mut self, note: Note) {
        if self.slots.len() >= self.capacity {
            self.drop_oldest();
        }
        let number = self.first + self.slots.len() as u64;
        match note.src_port {
            Some(port) => self.by_port.entry((note.proto, port)).or_default().push_back(number),
            None => self.portless.push_back(number),
        }
        self.slots.push_back(Slot { note: Arc::new(note), state: State::Fresh });
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Note>> {
        self.slots.iter().map(|slot| &slot.note)
    }

    pub(super) fn dropped_unseen(&self) -> u64 {
        self.dropped_unseen
    }

    /// The newest TCP note from a port to a destination.
    pub(super) fn latest_tcp(&mut self, src_port: u16, dst: SocketAddr) -> Option<Arc<Note>> {
        let numbers = self.by_port.get(&(Proto::Tcp, src_port))?.iter().rev();
        let number =
            numbers.copied().find(|number| self.slot(*number).is_some_and(|slot| slot.note.dst == dst))?;
        let slot = self.slot_mut(number)?;
        if slot.state == State::Fresh {
            slot.state = State::Seen;
        }
        Some(Arc::clone(&slot.note))
    }

    /// The note of a refused packet. One of one packet is claimed by it.
    pub(super) fn pick(&mut self, refused: &Refused) -> Option<Pick> {
        let by_port = refused.src_port.and_then(|port| self.by_port.get(&(refused.proto, port)));
        let exact = by_port.and_then(|numbers| self.choose(numbers, refused, u64::MAX));
        let age_ns = PORTLESS_NOTE_AGE_MS_MAX * 1_000_000;
        let number = exact.or_else(|| self.choose(&self.portless, refused, age_ns))?;
        let slot = self.slot_mut(number)?;
        let note = Arc::clone(&slot.note);
        if !note.is_one_packet() {
            slot.state = State::Seen;
        } else if slot.state != State::Claimed {
            slot.state = State::Claimed;
            if note.proto == Proto::Tcp {
                self.unindex(&note, number);
            }
        }
        Some(Pick { note, exact: exact.is_some() })
    }

    /// Which of several notes a line belongs to: the oldest that nothing has claimed of those shortly before it, for
    /// lines come in the order of their calls; failing that the newest one before, for an older one rather belongs to a
    /// line that was never written. A port that is used again, or a stale note, so takes no other's line.
    fn choose(&self, numbers: &VecDeque<u64>, refused: &Refused, age_ns_max: u64) -> Option<u64> {
        let near_ns = refused.logged_ns.saturating_sub(JOIN_NEAR_NS);
        let until_ns = refused.logged_ns.saturating_add(JOIN_SLACK_NS);
        let oldest_ns = refused.logged_ns.saturating_sub(age_ns_max);
        let (mut near, mut before, mut later, mut told) = (None, None, None, None);
        for number in numbers.iter().rev().take(JOIN_SCAN).copied() {
            let Some(slot) = self.slot(number).filter(|slot| fits(&slot.note, refused)) else { continue };
            let time_ns = slot.note.time_ns;
            if time_ns < oldest_ns {
                break;
            }
            match slot.state {
                State::Fresh | State::Seen if time_ns > until_ns => later = Some(number),
                State::Fresh | State::Seen if time_ns >= near_ns => near = Some(number),
                State::Fresh | State::Seen => before = before.or(Some(number)),
                State::Settled => told = told.or(Some(number)),
                // A UDP or ICMP socket that named its destination once may go on sending in ways that are not noted.
                State::Claimed if slot.note.proto != Proto::Tcp => told = told.or(Some(number)),
                State::Claimed => {}
            }
        }
        near.or(before).or(later).or(told)
    }

    /// Hands out unclaimed notes that may have sent what is untold.
    pub(super) fn settle(&mut self, untold: &Untold, mut give: impl FnMut(&Arc<Note>)) -> u64 {
        let mut given = 0;
        for slot in &mut self.slots {
            if given >= untold.count {
                break;
            }
            let note = &slot.note;
            let may_be = matches!(slot.state, State::Fresh | State::Seen)
                && note.proto == untold.proto
                && note.is_one_packet()
                && (untold.after_ns..untold.before_ns).contains(&note.time_ns)
                && note.dst.ip() != untold.proxy;
            if may_be {
                slot.state = State::Settled;
                given += 1;
                give(note);
            }
        }
        given
    }

    fn slot(&self, number: u64) -> Option<&Slot> {
        self.slots.get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    fn slot_mut(&mut self, number: u64) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }

    fn drop_oldest(&mut self) {
        let Some(slot) = self.slots.pop_front() else { return };
        let number = self.first;
        self.first += 1;
        self.dropped_unseen += u64::from(slot.state == State::Fresh);
        self.unindex(&slot.note, number);
    }

    fn unindex(&mut self, note: &Note, number: u64) {
        let Some(port) = note.src_port else {
            // The oldest is at the front; others stay until they are.
            if self.portless.front() == Some(&number) {
                self.portless.pop_front();
            }
            return;
        };
        if let Some(numbers) = self.by_port.get_mut(&(note.proto, port)) {
            // In order, and the oldest goes first as a rule: one socket may have thousands.
            if numbers.front() == Some(&number) {
                numbers.pop_front();
            } else if let Ok(at) = numbers.binary_search(&number) {
                numbers.remove(at);
            }
            if numbers.is_empty() {
                self.by_port.remove(&(note.proto, port));
            }
        }
    }
}

fn fits(note: &Note, refused: &Refused) -> bool {
    let same_port = refused.proto == Proto::Icmp || note.dst.port() == refused.dst.port();
    note.proto == refused.proto && note.dst.ip() == refused.dst.ip() && same_port
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
