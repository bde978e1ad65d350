//! A rate with a burst, shared by all workers without a lock: the generic cell rate algorithm.
//!
//! One number is kept: when the account would be even again. Taking moves it on; whoever finds it further ahead than the
//! burst allows is over the rate. Time is an argument.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const NANOS_PER_S: u64 = 1_000_000_000;

/// A rate of so many units a second, with a burst of one second's worth.
#[derive(Debug)]
pub struct Pace {
    /// Nanoseconds after the caller's zero at which nothing is owed any more.
    even_at: AtomicU64,
    units_per_s: u64,
}

impl Pace {
    /// So many units a second; `None` for zero, which means no bound.
    pub fn new(units_per_s: u64) -> Option<Self> {
        (units_per_s != 0).then(|| Self { even_at: AtomicU64::new(0), units_per_s })
    }

    /// Takes `units` at `now` in any case, and tells how long to wait before taking more.
    pub fn take(&self, units: u64, now: Duration) -> Duration {
        let now = nanos(now);
        let cost = self.cost(units);
        let advance = |even_at: u64| Some(even_at.max(now).saturating_add(cost));
        let before = self.even_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, advance).unwrap_or(0);
        let ahead = before.max(now).saturating_add(cost).saturating_sub(now);
        Duration::from_nanos(ahead.saturating_sub(NANOS_PER_S))
    }

    /// Takes one unit at `now` if the rate allows it.
    pub fn try_take(&self, now: Duration) -> bool {
        let now = nanos(now);
        let cost = self.cost(1);
        let advance = |even_at: u64| {
            let next = even_at.max(now).saturating_add(cost);
            (next.saturating_sub(now) <= NANOS_PER_S.max(cost)).then_some(next)
        };
        self.even_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, advance).is_ok()
    }

    /// Gives back one unit that [`try_take`](Self::try_take) took.
    pub fn give_back(&self) {
        let cost = self.cost(1);
        let back = |even_at: u64| Some(even_at.saturating_sub(cost));
        let _ = self.even_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, back);
    }

    fn cost(&self, units: u64) -> u64 {
        let cost = u128::from(units) * u128::from(NANOS_PER_S) / u128::from(self.units_per_s);
        u64::try_from(cost).unwrap_or(u64::MAX)
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_burst_of_one_second_then_the_rate() {
        let pace = Pace::new(10).unwrap();
        assert_eq!((0..20).filter(|_| pace.try_take(at(5_000))).count(), 10);
        assert!(!pace.try_take(at(5_050)));
        assert!(pace.try_take(at(5_100)));
        assert!(!pace.try_take(at(5_100)));
        assert_eq!(
            (0..20).filter(|_| pace.try_take(at(60_000))).count(),
            10,
            "silence saves up one burst, not more"
        );
    }

    #[test]
    fn what_is_taken_beyond_the_rate_is_waited_for() {
        let pace = Pace::new(1_000).unwrap();
        assert_eq!(pace.take(1_000, at(0)), Duration::ZERO);
        assert_eq!(pace.take(500, at(0)), at(500));
        assert_eq!(pace.take(500, at(500)), at(500));
        assert_eq!(pace.take(0, at(1_500)), Duration::ZERO);
    }

    #[test]
    fn a_rate_below_one_a_second_of_one_unit_still_lets_one_pass() {
        let pace = Pace::new(1).unwrap();
        assert!(pace.try_take(at(0)));
        assert!(!pace.try_take(at(999)));
        assert!(pace.try_take(at(1_000)));
    }

    #[test]
    fn what_is_given_back_can_be_taken_again() {
        let pace = Pace::new(2).unwrap();
        assert!(pace.try_take(at(9_000)) && pace.try_take(at(9_000)) && !pace.try_take(at(9_000)));
        pace.give_back();
        assert!(pace.try_take(at(9_000)) && !pace.try_take(at(9_000)));
    }

    #[test]
    fn zero_is_no_bound() {
        assert!(Pace::new(0).is_none());
    }
}
