//! Log lines joined to the witness's notes, one to one.
//!
//! The witness of a launched workload notes who is about to connect where, and then lets the call go on; the
//! fence refuses it and the kernel logs a line. By then the socket may be gone, so the note is the only thing
//! that names the process. What a note says is the owner's: this crate only carries it (`N`).

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use crate::attempt::{Attempt, Proto};
use crate::limits::{NOTES_CLOCK_SLACK, NOTES_MAX, NOTES_NEAR, NOTES_SCAN, NOTES_WINDOW};

/// What a note and a line must have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Target {
    /// Transport protocol.
    pub proto: Proto,
    /// Destination address; an IPv4 address in IPv6 clothes is the IPv4 address.
    pub dst: IpAddr,
    /// Destination port.
    pub dst_port: Option<u16>,
}

impl Target {
    /// The target of a call: a socket of IPv6 that names `::ffff:1.2.3.4` sends IPv4.
    pub fn new(proto: Proto, dst: IpAddr, dst_port: Option<u16>) -> Self {
        Self { proto, dst: dst.to_canonical(), dst_port }
    }

    /// The target of a refused packet.
    pub fn of(attempt: &Attempt<'_>) -> Self {
        Self::new(attempt.proto, attempt.dst, attempt.dst_port)
    }
}

/// A note and what was known when it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noted<N> {
    /// When it was taken, in µs of CLOCK_MONOTONIC.
    pub at_us: u64,
    /// File-system uid of the caller, if known.
    pub uid: Option<u32>,
    /// The note.
    pub note: N,
}

/// The notes of **one** sandbox that no line has claimed yet.
///
/// A line claims a note with its target and uid: the oldest one of the last [`NOTES_NEAR`], for lines come in
/// the order of their notes; failing that, the newest one before, for an older one is rather a call that never
/// sent a packet. Two processes that connect to one target at the same instant may get each other's line, but
/// each gets one: counts stay exact. A note that no line claims within the window is handed back by [`Notes::expire`]:
/// its line was lost or suppressed by a limit (or the fence let the call through), and it still tells who.
#[derive(Debug)]
pub struct Notes<N> {
    window_us: u64,
    max: usize,
    held: HashMap<Target, VecDeque<Noted<N>>>,
    len: usize,
}

impl<N> Default for Notes<N> {
    fn default() -> Self {
        Self::new(NOTES_WINDOW, NOTES_MAX)
    }
}

impl<N> Notes<N> {
    /// Notes that wait for their line for `window`, at most `notes_max` at a time.
    pub fn new(window: Duration, notes_max: usize) -> Self {
        let window_us = u64::try_from(window.as_micros()).unwrap_or(u64::MAX);
        Self { window_us, max: notes_max, held: HashMap::new(), len: 0 }
    }

    /// How many notes wait.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes a note. Gives it back when too many wait already; count it like an expired one.
    pub fn add(&mut self, target: Target, noted: Noted<N>) -> Result<(), Noted<N>> {
        if self.len >= self.max {
            return Err(noted);
        }
        self.len += 1;
        let queue = self.held.entry(target).or_default();
        // Nearly always the end: notes come in the order in which they were taken.
        let at = queue.partition_point(|before| before.at_us <= noted.at_us);
        queue.insert(at, noted);
        Ok(())
    }

    /// The note that belongs to a line with `target` and `uid`, logged at `logged_us`
    /// ([`crate::Moment::logged_us`]).
    pub fn claim(&mut self, target: &Target, uid: Option<u32>, logged_us: u64) -> Option<Noted<N>> {
        let queue = self.held.get_mut(target)?;
        let at = find(queue, uid, logged_us, self.window_us)?;
        let noted = queue.remove(at)?;
        self.len -= 1;
        if queue.is_empty() {
            self.held.remove(target);
        }
        Some(noted)
    }

    /// Hands back the notes that no line will claim any more.
    pub fn expire(&mut self, now_us: u64, mut give: impl FnMut(Target, Noted<N>)) {
        let oldest_us = now_us.saturating_sub(self.window_us);
        let len = &mut self.len;
        self.held.retain(|target, queue| {
            while queue.front().is_some_and(|noted| noted.at_us < oldest_us) {
                if let Some(noted) = queue.pop_front() {
                    *len -= 1;
                    give(*target, noted);
                }
            }
            !queue.is_empty()
        });
    }

    /// Hands back all notes: the sandbox ends.
    pub fn flush(&mut self, mut give: impl FnMut(Target, Noted<N>)) {
        self.len = 0;
        for (target, queue) in self.held.drain() {
            for noted in queue {
                give(target, noted);
            }
        }
    }
}

/// Where in `queue`, which is in the order of time, the note of a line is.
fn find<N>(queue: &VecDeque<Noted<N>>, uid: Option<u32>, logged_us: u64, window_us: u64) -> Option<usize> {
    let micros = |duration: Duration| duration.as_micros() as u64;
    let fits = |noted: &Noted<N>| noted.uid.zip(uid).is_none_or(|(noted, logged)| noted == logged);
    let near_us = logged_us.saturating_sub(micros(NOTES_NEAR));
    let newest_us = logged_us.saturating_add(micros(NOTES_CLOCK_SLACK));
    let oldest_us = logged_us.saturating_sub(window_us);
    let near = queue.partition_point(|noted| noted.at_us < near_us);
    let waiting = queue.range(near..).take(NOTES_SCAN).take_while(|noted| noted.at_us <= newest_us);
    let waiting = waiting.enumerate().find(|(_, noted)| fits(noted)).map(|(at, _)| near + at);
    let earlier = queue.range(..near).rev().take(NOTES_SCAN).take_while(|noted| noted.at_us >= oldest_us);
    waiting.or_else(|| earlier.enumerate().find(|(_, noted)| fits(noted)).map(|(back, _)| near - 1 - back))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1000;

    fn to(port: u16) -> Target {
        Target::new(Proto::Tcp, "1.2.3.4".parse().unwrap(), Some(port))
    }

    fn noted(at_us: u64, uid: u32, note: u32) -> Noted<u32> {
        Noted { at_us, uid: Some(uid), note }
    }

    #[test]
    fn fifty_processes_at_one_target_get_one_line_each() {
        let mut notes = Notes::default();
        for process in 0..50 {
            notes.add(to(80), noted(u64::from(process), 0, process)).unwrap();
        }
        let claimed: Vec<_> = (0..50).map(|_| notes.claim(&to(80), Some(0), 5 * MS).unwrap().note).collect();
        assert_eq!(claimed, (0..50).collect::<Vec<_>>());
        assert_eq!(notes.claim(&to(80), Some(0), 5 * MS), None);
        assert!(notes.is_empty() && notes.held.is_empty());
    }

    #[test]
    fn target_uid_and_time_must_fit() {
        let mut notes = Notes::new(Duration::from_millis(500), 8);
        notes.add(to(80), noted(1000 * MS, 7, 1)).unwrap();
        assert_eq!(notes.claim(&to(81), Some(7), 1001 * MS), None, "another port");
        assert_eq!(notes.claim(&to(80), Some(8), 1001 * MS), None, "another uid");
        assert_eq!(notes.claim(&to(80), Some(7), 1501 * MS), None, "too late");
        assert_eq!(notes.claim(&to(80), Some(7), 900 * MS), None, "a line from before the note");
        assert!(notes.claim(&to(80), None, 1001 * MS).is_some(), "a line without uid");
        let mapped = Target::new(Proto::Tcp, "::ffff:1.2.3.4".parse().unwrap(), Some(80));
        notes.add(mapped, Noted { at_us: 0, uid: None, note: 2 }).unwrap();
        assert!(notes.claim(&to(80), Some(7), MS).is_some(), "IPv4 through an IPv6 socket");
    }

    #[test]
    fn a_call_that_sent_no_packet_does_not_take_a_later_calls_line() {
        let mut notes = Notes::default();
        notes.add(to(80), noted(0, 0, 1)).unwrap();
        notes.add(to(80), noted(300 * MS, 0, 2)).unwrap();
        assert_eq!(notes.claim(&to(80), Some(0), 300 * MS + 60).map(|noted| noted.note), Some(2));
        // A line that is read and stamped late still finds the note before it.
        assert_eq!(notes.claim(&to(80), Some(0), 400 * MS).map(|noted| noted.note), Some(1));
    }

    #[test]
    fn a_note_without_a_line_comes_back() {
        let mut notes = Notes::new(Duration::from_millis(500), 1);
        notes.add(to(80), noted(0, 0, 1)).unwrap();
        assert_eq!(notes.add(to(80), noted(1, 0, 2)), Err(noted(1, 0, 2)), "bounded");
        let mut back = Vec::new();
        notes.expire(500 * MS, |_, noted| back.push(noted.note));
        assert_eq!(back, []);
        notes.expire(501 * MS, |_, noted| back.push(noted.note));
        assert_eq!(back, [1]);
    }

    proptest! {
        #[test]
        fn every_note_comes_out_exactly_once(
            steps in proptest::collection::vec((0_u8..4, 0_u16..3, 0_u32..2, 0_u64..200_000), 0..300),
        ) {
            let mut notes = Notes::new(Duration::from_millis(500), 40);
            let mut out = Vec::new();
            let (mut now_us, mut given) = (0, 0);
            for (what, port, uid, step_us) in steps {
                now_us += step_us;
                match what {
                    0 | 1 => {
                        if let Err(back) = notes.add(to(port), noted(now_us, uid, given)) {
                            out.push(back.note);
                        }
                        given += 1;
                    }
                    2 => out.extend(notes.claim(&to(port), Some(uid), now_us).map(|noted| noted.note)),
                    _ => notes.expire(now_us, |_, noted| out.push(noted.note)),
                }
                prop_assert_eq!(notes.len(), notes.held.values().map(VecDeque::len).sum::<usize>());
            }
            notes.flush(|_, noted| out.push(noted.note));
            out.sort_unstable();
            prop_assert_eq!(out, (0..given).collect::<Vec<_>>());
        }
    }
}
