//! When operations begin: as soon as the one before is done (closed loop), or on a schedule (open loop).

use std::time::{Duration, Instant};

/// How operations follow one another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Pace {
    /// Every session begins again as soon as it is done.
    Closed,
    /// This many operations a second begin, over all sessions, whatever the proxy does. Latency counts from the
    /// scheduled moment, so that a stall is seen by every operation it delayed (no coordinated omission).
    Open {
        /// Operations a second over all threads.
        per_second: f64,
    },
}

/// The moments at which one thread's operations are due.
#[derive(Debug)]
pub(crate) struct Schedule {
    start: Instant,
    interval: Duration,
    given: u64,
}

impl Schedule {
    /// A schedule of `per_second` operations from `start` on.
    pub(crate) fn new(start: Instant, per_second: f64) -> Self {
        Self { start, interval: Duration::from_secs_f64(1.0 / per_second.max(1e-3)), given: 0 }
    }

    /// The next scheduled moment if it has come; each is given once.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<Instant> {
        let due = self.start + self.interval.mul_f64(self.given as f64);
        (due <= now).then(|| {
            self.given += 1;
            due
        })
    }

    /// How often to look: once an interval, but no more than once in 20 µs.
    pub(crate) fn tick(&self) -> Duration {
        self.interval.max(Duration::from_micros(20))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_does_not_move_the_schedule() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, 1000.0);
        assert_eq!(schedule.take_due(start), Some(start));
        assert_eq!(schedule.take_due(start), None);
        let after_stall = start + Duration::from_millis(10);
        let due: Vec<Duration> =
            std::iter::from_fn(|| schedule.take_due(after_stall)).map(|at| at - start).collect();
        assert_eq!(due.len(), 10);
        assert_eq!(due[0], Duration::from_millis(1));
        assert_eq!(due[9], Duration::from_millis(10));
    }
}
