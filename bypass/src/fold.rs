//! Repetition told once: a program that tries the same address a thousand times is one event with a count.

use std::collections::VecDeque;
use std::collections::hash_map::{Entry, HashMap};
use std::hash::Hash;
use std::net::IpAddr;
use std::time::Duration;

use crate::attempt::Proto;
use crate::limits::{FOLD_KEYS, FOLD_WINDOW};

/// What makes two attempts of one sandbox the same.
///
/// `P` names the process as the owner knows it, for instance `(pid, start time)`, or a unit value for "unknown".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key<P> {
    /// The process.
    pub process: P,
    /// Destination address.
    pub dst: IpAddr,
    /// Destination port.
    pub dst_port: Option<u16>,
    /// Transport protocol.
    pub proto: Proto,
}

/// A number of attempts and when they happened, in µs on the clock that the owner passes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// How many; at least 1.
    pub count: u64,
    /// When the first of them happened.
    pub first_us: u64,
    /// When the last of them happened.
    pub last_us: u64,
}

/// What is to be reported. The counts of all emissions of a [`Fold`] add up to the attempts it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Emission<P> {
    /// Something not seen in this window: report it at once.
    First(Key<P>, Tally),
    /// Repetitions since the last report of the same key.
    Repeated(Key<P>, Tally),
    /// Attempts beyond the keys that are told apart, to any destination, of one process; of any process where even of
    /// those there are too many.
    Other(Option<P>, Proto, Tally),
}

impl<P> Emission<P> {
    /// The tally, whatever the kind.
    pub fn tally(&self) -> Tally {
        match self {
            Self::First(_, tally) | Self::Repeated(_, tally) | Self::Other(_, _, tally) => *tally,
        }
    }
}

/// Folds the attempts of **one** sandbox; keep one per sandbox, so that a sandbox which scans ports cannot use
/// up the keys of another.
///
/// An attempt with a new key is emitted at once. Repetitions are held back until `window` after that and come
/// out as one emission; as long as they go on there is one such emission per window. A key that was quiet for
/// a whole window is forgotten, and is news again the next time.
#[derive(Debug)]
pub struct Fold<P> {
    window_us: u64,
    keys_max: usize,
    held: HashMap<Key<P>, Option<Tally>>,
    /// Ends of windows. All are equally long, so the order of insertion is the order in time.
    ends: VecDeque<(u64, Key<P>)>,
    other: HashMap<(Option<P>, Proto), Tally>,
    other_end_us: u64,
}

impl<P: Eq + Hash + Clone> Default for Fold<P> {
    fn default() -> Self {
        Self::new(FOLD_WINDOW, FOLD_KEYS)
    }
}

impl<P: Eq + Hash + Clone> Fold<P> {
    /// A fold with windows of `window` that tells at most `keys_max` keys apart at a time.
    pub fn new(window: Duration, keys_max: usize) -> Self {
        Self {
            window_us: u64::try_from(window.as_micros()).unwrap_or(u64::MAX),
            keys_max,
            held: HashMap::new(),
            ends: VecDeque::new(),
            other: HashMap::new(),
            other_end_us: 0,
        }
    }

    /// Takes `count` attempts with the same key at `now_us`. Returns what must be reported at once.
    ///
    /// `count` is above 1 where attempts are known by number only (log lines that a limit suppressed).
    pub fn add(&mut self, now_us: u64, key: Key<P>, count: u64) -> Option<Emission<P>> {
        let tally = Tally { count, first_us: now_us, last_us: now_us };
        if count == 0 {
            return None;
        }
        let full = self.held.len() >= self.keys_max;
        match self.held.entry(key) {
            Entry::Occupied(mut held) => {
                match held.get_mut() {
                    Some(held) => held.add(tally),
                    none => *none = Some(tally),
                }
                None
            }
            Entry::Vacant(vacant) if full => {
                let Key { process, proto, .. } = vacant.into_key();
                self.add_other(now_us, Some(process), proto, count);
                None
            }
            Entry::Vacant(vacant) => {
                let key = vacant.key().clone();
                self.ends.push_back((now_us.saturating_add(self.window_us), key.clone()));
                vacant.insert(None);
                Some(Emission::First(key, tally))
            }
        }
    }

    /// Takes `count` attempts at `now_us` of which it is not known where to they were, and perhaps not whose. They are
    /// told when their window ends.
    pub fn add_other(&mut self, now_us: u64, process: Option<P>, proto: Proto, count: u64) {
        if count == 0 {
            return;
        }
        if self.other.is_empty() {
            self.other_end_us = now_us.saturating_add(self.window_us);
        }
        let mut key = (process, proto);
        if self.other.len() >= self.keys_max && !self.other.contains_key(&key) {
            key = (None, proto);
        }
        let tally = Tally { count, first_us: now_us, last_us: now_us };
        self.other.entry(key).and_modify(|held| held.add(tally)).or_insert(tally);
    }

    /// Ends the windows that are over at `now_us` and hands out what they held.
    pub fn expire(&mut self, now_us: u64, mut emit: impl FnMut(Emission<P>)) {
        while self.ends.front().is_some_and(|(end_us, _)| *end_us <= now_us) {
            let Some((_, key)) = self.ends.pop_front() else { break };
            if let Some(tally) = self.held.get_mut(&key).and_then(Option::take) {
                emit(Emission::Repeated(key.clone(), tally));
                self.ends.push_back((now_us.saturating_add(self.window_us), key));
            } else {
                self.held.remove(&key);
            }
        }
        if self.other_end_us <= now_us {
            self.other
                .drain()
                .for_each(|((process, proto), tally)| emit(Emission::Other(process, proto, tally)));
        }
    }

    /// Hands out everything that is held and forgets all keys: the sandbox or the daemon ends.
    pub fn flush(&mut self, mut emit: impl FnMut(Emission<P>)) {
        for (_, key) in self.ends.drain(..) {
            if let Some(Some(tally)) = self.held.remove(&key) {
                emit(Emission::Repeated(key, tally));
            }
        }
        self.other.drain().for_each(|((process, proto), tally)| emit(Emission::Other(process, proto, tally)));
    }

    /// The keys that are told apart now: each was seen in the last two windows.
    pub fn keys(&self) -> impl Iterator<Item = &Key<P>> {
        self.held.keys()
    }

    /// When [`Fold::expire`] next has something to do, in µs; `None` when nothing is held.
    pub fn next_end_us(&self) -> Option<u64> {
        let keys = self.ends.front().map(|(end_us, _)| *end_us);
        let other = (!self.other.is_empty()).then_some(self.other_end_us);
        keys.into_iter().chain(other).min()
    }
}

impl Tally {
    fn add(&mut self, more: Self) {
        self.count = self.count.saturating_add(more.count);
        self.first_us = self.first_us.min(more.first_us);
        self.last_us = self.last_us.max(more.last_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    const SECOND: u64 = 1_000_000;

    fn key(process: u32, port: u16) -> Key<u32> {
        Key { process, dst: Ipv4Addr::new(1, 2, 3, 4).into(), dst_port: Some(port), proto: Proto::Tcp }
    }

    fn expire(fold: &mut Fold<u32>, now_us: u64) -> Vec<Emission<u32>> {
        let mut out = Vec::new();
        fold.expire(now_us, |emission| out.push(emission));
        out
    }

    #[test]
    fn the_first_is_told_at_once_and_the_rest_as_one() {
        let mut fold = Fold::new(Duration::from_secs(5), 8);
        let once = Tally { count: 1, first_us: 0, last_us: 0 };
        assert_eq!(fold.add(0, key(1, 80), 1), Some(Emission::First(key(1, 80), once)));
        for second in 1..=4 {
            assert_eq!(fold.add(second * SECOND, key(1, 80), 1), None);
        }
        assert_eq!(expire(&mut fold, 4 * SECOND), []);
        assert_eq!(fold.next_end_us(), Some(5 * SECOND));
        let rest = Tally { count: 4, first_us: SECOND, last_us: 4 * SECOND };
        assert_eq!(expire(&mut fold, 5 * SECOND), [Emission::Repeated(key(1, 80), rest)]);
        // Quiet for a window: forgotten, and news again.
        assert_eq!(expire(&mut fold, 10 * SECOND), []);
        assert_eq!(fold.next_end_us(), None);
        assert!(matches!(fold.add(11 * SECOND, key(1, 80), 1), Some(Emission::First(..))));
    }

    #[test]
    fn another_process_port_address_or_protocol_is_news() {
        let mut fold = Fold::new(Duration::from_secs(5), 8);
        let base = key(1, 80);
        let others = [
            Key { process: 2, ..base },
            Key { dst_port: Some(81), ..base },
            Key { dst: Ipv4Addr::new(1, 2, 3, 5).into(), ..base },
            Key { proto: Proto::Udp, ..base },
        ];
        for key in [base].into_iter().chain(others) {
            assert!(matches!(fold.add(0, key, 1), Some(Emission::First(..))), "{key:?}");
        }
        assert_eq!(fold.add(0, base, 1), None);
    }

    #[test]
    fn a_port_scan_is_bounded_and_counted() {
        let mut fold = Fold::new(Duration::from_secs(5), 10);
        let told = (0..1000).filter_map(|port| fold.add(u64::from(port), key(1, port), 1)).count();
        assert_eq!(told, 10);
        let out = expire(&mut fold, 6 * SECOND);
        let rest = Tally { count: 990, first_us: 10, last_us: 999 };
        assert_eq!(out, [Emission::Other(Some(1), Proto::Tcp, rest)], "still by its process");
        assert!(fold.held.is_empty() && fold.ends.is_empty());
    }

    #[test]
    fn processes_without_end_are_bounded_and_counted_too() {
        let mut fold = Fold::new(Duration::from_secs(5), 10);
        let told = (0..1000).filter_map(|process| fold.add(0, key(process, 80), 1)).count();
        assert_eq!(told, 10);
        let out = expire(&mut fold, 6 * SECOND);
        assert_eq!(out.len(), 11);
        assert_eq!(out.iter().map(|emission| emission.tally().count).sum::<u64>(), 990);
        assert!(out.iter().any(|emission| matches!(emission, Emission::Other(None, Proto::Tcp, _))));
    }

    proptest! {
        #[test]
        fn the_counts_add_up_to_the_attempts_given(
            steps in proptest::collection::vec((0_u64..3_000_000, 0_u32..3, 0_u16..6, 0_u64..4, any::<bool>()), 0..400),
            keys_max in 0_usize..12,
        ) {
            let mut fold = Fold::new(Duration::from_secs(2), keys_max);
            let (mut now_us, mut given, mut told) = (0, 0, 0);
            for (step_us, process, port, count, expire) in steps {
                now_us += step_us;
                given += count;
                told += fold.add(now_us, key(process, port), count).map_or(0, |e| e.tally().count);
                if expire {
                    fold.expire(now_us, |emission| {
                        let tally = emission.tally();
                        assert!(tally.first_us <= tally.last_us && tally.last_us <= now_us);
                        told += tally.count;
                    });
                }
                prop_assert!(fold.held.len() <= keys_max);
                prop_assert_eq!(fold.held.len(), fold.ends.len());
            }
            fold.flush(|emission| told += emission.tally().count);
            prop_assert_eq!(told, given);
            prop_assert_eq!(fold.next_end_us(), None);
        }
    }
}
