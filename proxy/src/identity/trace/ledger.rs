//! Joins records to notes: which process connected which four-tuple, and whether it still runs that program. Pure.
//!
//! A connect is two records of one socket: who began it, when the port may not be chosen yet, and which ends it got.
//! A process that connects gets a [`Life`], a number for the program it runs; an exec, or another process under the same
//! pid, gets another. So a note says not only who connected but running what, without having looked.
//!
//! When records are lost everything is forgotten: a note could be of an earlier connection of the same ends, or an exec
//! be missing. Nothing that is kept was ever guessed.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use smallvec::SmallVec;

use super::super::table::Tuple;
use super::record::Record;

/// Notes kept, at most, about 150 bytes each. They are asked for right after the connect; eight times as many
/// connections as a sandbox may have by default can wait.
pub(super) const NOTES_MAX: usize = 32_768;
/// Connects under way that are remembered, at most, about 50 bytes each. One that leads nowhere is under way for two
/// minutes.
pub(super) const PENDING_MAX: usize = 65_536;
/// Notes of one four-tuple that are handed out, the latest first.
const NOTES_OF_TUPLE_MAX: usize = 8;

/// A process while it runs one program. Never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in super::super) struct Life(u64);

/// Who connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Note {
    pub pid: u32,
    pub life: Life,
    /// When it called connect: CLOCK_MONOTONIC, in nanoseconds.
    pub time_ns: u64,
    /// Somebody has asked for this connection, and was told.
    pub settled: bool,
    /// Its place in the order of notes.
    number: u64,
}

/// The notes of one four-tuple, the latest first. Sandboxes may use the same addresses: the asker tells which is its.
pub(in super::super) type Notes = SmallVec<[Note; 2]>;

#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// By the kernel's address of the socket.
    pending: HashMap<u64, Note>,
    notes: VecDeque<Kept>,
    /// The number of the first of `notes`; they are numbered in the order they come.
    first: u64,
    /// The latest note of each life that connected a tuple, the latest first.
    index: HashMap<Tuple, SmallVec<[u64; 2]>>,
    /// The processes of `pending` and `notes`.
    lives: HashMap<u32, Running>,
    lives_given: u64,
    figures: Figures,
}

#[derive(Debug)]
struct Kept {
    note: Note,
    tuple: Tuple,
}

#[derive(Debug)]
struct Running {
    life: Life,
    /// Notes and pending connects that are its process's, or were of an earlier process with its pid.
    uses: usize,
}

/// What happened so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    /// Connects noted.
    pub noted: u64,
    /// Times everything was forgotten because records were lost.
    pub losses: u64,
    /// Connects that were not noted because too many were under way.
    pub overflowed: u64,
}

impl Ledger {
    /// Takes the next record. They come in the order of their times.
    pub(super) fn take(&mut self, record: Record) {
        match record {
            Record::Connecting { time_ns, pid, socket } => self.begin(pid, socket, time_ns),
            Record::Settled { socket, tuple, .. } => self.settle(socket, tuple),
            Record::Executed { pid, .. } | Record::Started { pid, .. } => self.renew(pid),
            Record::Lost { .. } => self.forget(),
        }
    }

    /// Forgets everything: something may be missing.
    pub(super) fn forget(&mut self) {
        self.first += self.notes.len() as u64;
        self.pending.clear();
        self.notes.clear();
        self.index.clear();
        self.lives.clear();
        self.figures.losses += 1;
    }

    /// Who connected a socket with these ends, the latest first.
    pub(super) fn find(&self, tuple: &Tuple) -> Notes {
        let latest = self.index.get(tuple).into_iter().flatten();
        latest.filter_map(|&number| self.kept(number)).map(|kept| kept.note).collect()
    }

    /// Its connection has been asked for.
    pub(super) fn mark_settled(&mut self, note: &Note) {
        let at = note.number.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        if let Some(kept) = at.and_then(|at| self.notes.get_mut(at)) {
            kept.note.settled = true;
        }
    }

    /// The life of a process now; none if it is not known to have connected.
    pub(super) fn life(&self, pid: u32) -> Option<Life> {
        self.lives.get(&pid).map(|running| running.life)
    }

    pub(super) const fn figures(&self) -> Figures {
        self.figures
    }

    fn kept(&self, number: u64) -> Option<&Kept> {
        self.notes.get(number.checked_sub(self.first)?.try_into().ok()?)
    }

    fn begin(&mut self, pid: u32, socket: u64, time_ns: u64) {
        // No number in our pid namespace: nobody that could be looked at.
        if pid == 0 || pid == u32::MAX {
            return;
        }
        if self.pending.len() >= PENDING_MAX && !self.pending.contains_key(&socket) {
            self.figures.overflowed += 1;
            return;
        }
        let life = self.use_life(pid);
        if let Some(never_settled) =
            self.pending.insert(socket, Note { pid, life, time_ns, settled: false, number: 0 })
        {
            self.leave_life(never_settled.pid);
        }
    }

    fn settle(&mut self, socket: u64, tuple: Option<Tuple>) {
        let Some(mut note) = self.pending.remove(&socket) else {
            // Who connected now is not known, and whoever had these ends before is not it.
            if let Some(tuple) = tuple {
                self.index.remove(&tuple);
            }
            return;
        };
        let Some(tuple) = tuple else { return self.leave_life(note.pid) };
        if self.notes.len() >= NOTES_MAX {
            self.drop_first();
        }
        let number = self.first + self.notes.len() as u64;
        note.number = number;
        let mut latest = self.index.remove(&tuple).unwrap_or_default();
        latest.retain(|number| self.kept(*number).is_some_and(|kept| kept.note.life != note.life));
        latest.truncate(NOTES_OF_TUPLE_MAX - 1);
        latest.insert(0, number);
        self.index.insert(tuple, latest);
        self.notes.push_back(Kept { note, tuple });
        self.figures.noted += 1;
    }

    fn drop_first(&mut self) {
        let Some(kept) = self.notes.pop_front() else { return };
        if let Entry::Occupied(mut latest) = self.index.entry(kept.tuple) {
            latest.get_mut().retain(|number| *number != self.first);
            if latest.get().is_empty() {
                latest.remove();
            }
        }
        self.first += 1;
        self.leave_life(kept.note.pid);
    }

    /// The process with this pid is another, or runs another program.
    fn renew(&mut self, pid: u32) {
        if let Some(running) = self.lives.get_mut(&pid) {
            self.lives_given += 1;
            running.life = Life(self.lives_given);
        }
    }

    fn use_life(&mut self, pid: u32) -> Life {
        let running = self.lives.entry(pid).or_insert_with(|| {
            self.lives_given += 1;
            Running { life: Life(self.lives_given), uses: 0 }
        });
        running.uses += 1;
        running.life
    }

    fn leave_life(&mut self, pid: u32) {
        if let Entry::Occupied(mut running) = self.lives.entry(pid) {
            running.get_mut().uses = running.get().uses.saturating_sub(1);
            if running.get().uses == 0 {
                running.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tuple(port: u16) -> Tuple {
        Tuple::new(([10, 0, 0, 1], port).into(), ([10, 0, 0, 2], 3128).into())
    }

    fn connect(ledger: &mut Ledger, pid: u32, port: u16) {
        let socket = u64::from(port);
        ledger.take(Record::Connecting { time_ns: 1, pid, socket });
        ledger.take(Record::Settled { time_ns: 2, socket, tuple: Some(tuple(port)) });
    }

    fn pids(ledger: &Ledger, port: u16) -> Vec<u32> {
        ledger.find(&tuple(port)).iter().map(|note| note.pid).collect()
    }

    #[test]
    fn a_connect_that_settles_is_a_note() {
        let mut ledger = Ledger::default();
        ledger.take(Record::Connecting { time_ns: 1, pid: 7, socket: 100 });
        assert!(pids(&ledger, 5).is_empty());
        ledger.take(Record::Settled { time_ns: 2, socket: 100, tuple: Some(tuple(5)) });
        assert_eq!(pids(&ledger, 5), [7]);
        // Another socket at the same address in the kernel, whose beginning nobody saw.
        ledger.take(Record::Settled { time_ns: 3, socket: 100, tuple: Some(tuple(6)) });
        assert!(pids(&ledger, 6).is_empty());
    }

    #[test]
    fn a_connect_that_was_not_noted_is_not_taken_for_an_earlier_one_of_the_same_ends() {
        let mut ledger = Ledger::default();
        connect(&mut ledger, 7, 5);
        for socket in 0..PENDING_MAX as u64 {
            ledger.take(Record::Connecting { time_ns: 1, pid: 8, socket: 100_000 + socket });
        }
        connect(&mut ledger, 9, 5);
        assert_eq!((pids(&ledger, 5), ledger.figures().overflowed), (vec![], 1));
    }

    #[test]
    fn notes_of_the_same_ends_come_latest_first_and_once_a_life() {
        let mut ledger = Ledger::default();
        for pid in [1, 2, 2, 3] {
            connect(&mut ledger, pid, 5);
        }
        assert_eq!(pids(&ledger, 5), [3, 2, 1]);
    }

    #[test]
    fn an_exec_or_a_new_process_of_the_same_pid_ends_a_life() {
        let mut ledger = Ledger::default();
        connect(&mut ledger, 7, 5);
        let [note] = ledger.find(&tuple(5))[..] else { panic!("one note") };
        assert_eq!(ledger.life(7), Some(note.life));
        ledger.take(Record::Executed { time_ns: 3, pid: 8 });
        assert_eq!(ledger.life(7), Some(note.life), "somebody else's exec");
        ledger.take(Record::Executed { time_ns: 3, pid: 7 });
        let after = ledger.life(7);
        assert!(after.is_some() && after != Some(note.life));
        ledger.take(Record::Started { time_ns: 4, pid: 7 });
        assert_ne!(ledger.life(7), after);
        connect(&mut ledger, 7, 6);
        assert_eq!(ledger.find(&tuple(6))[0].life, ledger.life(7).unwrap());
    }

    #[test]
    fn a_loss_leaves_nothing_to_be_mistaken() {
        let mut ledger = Ledger::default();
        connect(&mut ledger, 7, 5);
        ledger.take(Record::Connecting { time_ns: 1, pid: 7, socket: 6 });
        let life = ledger.life(7);
        ledger.take(Record::Lost { time_ns: 3, records: 1 });
        ledger.take(Record::Settled { time_ns: 4, socket: 6, tuple: Some(tuple(6)) });
        assert_eq!((pids(&ledger, 5), pids(&ledger, 6)), (vec![], vec![]));
        connect(&mut ledger, 7, 5);
        assert_ne!(ledger.life(7), life, "an exec may be among what was lost");
        assert_eq!(ledger.figures(), Figures { noted: 2, losses: 1, overflowed: 0 });
    }

    #[test]
    fn a_full_ledger_drops_the_oldest() {
        let mut ledger = Ledger::default();
        connect(&mut ledger, 7, 1);
        connect(&mut ledger, 8, 1);
        for _ in 0..NOTES_MAX - 1 {
            connect(&mut ledger, 9, 2);
        }
        assert_eq!(pids(&ledger, 1), [8]);
        assert_eq!(ledger.life(7), None);
        connect(&mut ledger, 9, 2);
        assert_eq!((pids(&ledger, 1), pids(&ledger, 2)), (vec![], vec![9]));
        assert_eq!((ledger.notes.len(), ledger.index.len(), ledger.lives.len()), (NOTES_MAX, 1, 1));
    }

    #[test]
    fn connects_under_way_are_bounded() {
        let mut ledger = Ledger::default();
        for socket in 0..=PENDING_MAX as u64 {
            ledger.take(Record::Connecting { time_ns: 1, pid: 7, socket });
        }
        assert_eq!((ledger.pending.len(), ledger.figures().overflowed), (PENDING_MAX, 1));
    }

    fn any_record() -> impl Strategy<Value = Record> {
        let (socket, pid, port) = (0_u64..4, 1_u32..4, 1_u16..3);
        prop_oneof![
            4 => (socket.clone(), pid.clone())
                .prop_map(|(socket, pid)| Record::Connecting { time_ns: 0, pid, socket }),
            4 => (socket, proptest::option::of(port)).prop_map(|(socket, port)| Record::Settled {
                time_ns: 0,
                socket,
                tuple: port.map(tuple)
            }),
            1 => pid.clone().prop_map(|pid| Record::Executed { time_ns: 0, pid }),
            1 => pid.prop_map(|pid| Record::Started { time_ns: 0, pid }),
            1 => Just(Record::Lost { time_ns: 0, records: 1 }),
        ]
    }

    proptest! {
        /// Whatever comes: as many uses as there are notes and pending connects, and a note's life is its process's
        /// unless that has been renewed since.
        #[test]
        fn the_books_balance(records in proptest::collection::vec(any_record(), 0..200)) {
            let mut ledger = Ledger::default();
            let mut renewed: Vec<(u32, u64)> = Vec::new();
            for (at, record) in records.into_iter().enumerate() {
                if let Record::Executed { pid, .. } | Record::Started { pid, .. } = record {
                    renewed.push((pid, at as u64));
                }
                let record = match record {
                    Record::Connecting { pid, socket, .. } => Record::Connecting { time_ns: at as u64, pid, socket },
                    other => other,
                };
                ledger.take(record);
            }
            let uses: usize = ledger.lives.values().map(|running| running.uses).sum();
            prop_assert_eq!(uses, ledger.notes.len() + ledger.pending.len());
            for port in 1..3 {
                for note in ledger.find(&tuple(port)) {
                    let since = renewed.iter().any(|&(pid, at)| pid == note.pid && at > note.time_ns);
                    prop_assert_eq!(ledger.life(note.pid) == Some(note.life), !since);
                }
            }
        }
    }
}
