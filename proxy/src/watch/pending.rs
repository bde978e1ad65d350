//! Attempts that wait for something that is found out on another thread, and what is told of them if that takes too long.

use std::collections::BTreeMap;

use super::guarded::Facts;
use super::who::Who;

/// Attempts of one sandbox that wait at a time; what comes beyond is told at once.
const WAITING_MAX: usize = 4_096;

/// How long one waits, in µs. Reading of a process can take as long as that process likes: its memory may be a file of
/// its own file system.
pub(super) const PATIENCE_US: u64 = 2_000_000;

/// The attempts of one sandbox that wait.
#[derive(Default)]
pub(super) struct Pending {
    /// By number: in the order in which they came.
    waiting: BTreeMap<u64, Held>,
    next: u64,
}

struct Held {
    facts: Facts,
    otherwise: Who,
    since_us: u64,
}

impl Pending {
    /// Holds `facts` until somebody comes with the number that is given, or until it takes too long: then they are the
    /// act of `otherwise`. `None` when too many wait.
    pub(super) fn hold(&mut self, facts: Facts, otherwise: Who, now_us: u64) -> Option<u64> {
        if self.waiting.len() >= WAITING_MAX {
            return None;
        }
        let number = self.next;
        self.next += 1;
        self.waiting.insert(number, Held { facts, otherwise, since_us: now_us });
        Some(number)
    }

    /// What is held under `number`; `None` when it was told already.
    pub(super) fn take(&mut self, number: u64) -> Option<(Facts, Who)> {
        self.waiting.remove(&number).map(|held| (held.facts, held.otherwise))
    }

    /// The first one that has waited for too long.
    pub(super) fn take_overdue(&mut self, now_us: u64) -> Option<(Facts, Who)> {
        let first = self.waiting.first_entry()?;
        let overdue = now_us.saturating_sub(first.get().since_us) >= PATIENCE_US;
        overdue.then(|| first.remove()).map(|held| (held.facts, held.otherwise))
    }

    /// All of them, in their order.
    pub(super) fn drain(&mut self) -> Vec<(Facts, Who)> {
        std::mem::take(&mut self.waiting).into_values().map(|held| (held.facts, held.otherwise)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_told_once_and_not_later_than_it_may() {
        let mut pending = Pending::default();
        let facts = Facts::of_nothing();
        let first = pending.hold(facts, Who::Nobody, 0).unwrap();
        let second = pending.hold(facts, Who::Nobody, 10).unwrap();
        assert!(pending.take_overdue(PATIENCE_US - 1).is_none());
        assert!(pending.take_overdue(PATIENCE_US).is_some());
        assert!(pending.take_overdue(PATIENCE_US).is_none(), "the second has some time left");
        assert!(pending.take(first).is_none(), "an answer that comes too late tells nothing twice");
        assert!(pending.take(second).is_some());
        assert!(pending.drain().is_empty());
    }

    #[test]
    fn only_so_many_wait() {
        let mut pending = Pending::default();
        let held = (0..WAITING_MAX + 5).filter_map(|_| pending.hold(Facts::of_nothing(), Who::Nobody, 0));
        assert_eq!(held.count(), WAITING_MAX);
        assert_eq!(pending.drain().len(), WAITING_MAX);
    }
}
