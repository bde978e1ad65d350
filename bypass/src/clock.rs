//! From the kernel's log clock to CLOCK_MONOTONIC.
//!
//! printk stamps records with `local_clock()`. It starts at boot like CLOCK_MONOTONIC but is not disciplined by
//! NTP, so the two drift apart by milliseconds an hour. A record is always read after it was written, hence
//! (time read − time stamped) is the offset of the two clocks plus the delay of the read, and the smallest such
//! difference seen lately is the offset, up to the shortest delay (tens of µs).

/// Length of one observation window in µs. Drift within two of them (10 ppm of 20 s) is 200 µs.
const WINDOW_US: u64 = 10_000_000;

/// Learns the offset from the records read.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogClock {
    /// Smallest offset (µs) in the current window and the window's end on CLOCK_MONOTONIC.
    current: Option<(i64, u64)>,
    /// Smallest offset of the window before.
    previous: Option<i64>,
}

impl LogClock {
    /// Takes note that a record stamped `log_us` was read at `read_us` of CLOCK_MONOTONIC; returns the best
    /// estimate, in µs of CLOCK_MONOTONIC, of when it was written. Never later than `read_us`.
    pub fn observe(&mut self, log_us: u64, read_us: u64) -> u64 {
        let offset = read_us.wrapping_sub(log_us) as i64;
        self.current = Some(match self.current {
            Some((smallest, end_us)) if read_us < end_us => (smallest.min(offset), end_us),
            ended => {
                self.previous = ended.map(|(smallest, _)| smallest);
                (offset, read_us.saturating_add(WINDOW_US))
            }
        });
        let smallest = self.current.map_or(offset, |(smallest, _)| smallest);
        let smallest = self.previous.map_or(smallest, |previous| smallest.min(previous));
        log_us.wrapping_add_signed(smallest).min(read_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_delay_sets_the_offset() {
        let mut clock = LogClock::default();
        // The log clock is 1,000 µs behind; delays of the reads: 50, 900, 10 µs.
        assert_eq!(clock.observe(10_000, 11_050), 11_050);
        assert_eq!(clock.observe(20_000, 21_900), 21_050);
        assert_eq!(clock.observe(30_000, 31_010), 31_010);
        assert_eq!(clock.observe(40_000, 41_900), 41_010);
    }

    #[test]
    fn drift_is_followed_after_two_windows() {
        let mut clock = LogClock::default();
        clock.observe(0, 5_000);
        for window in 1..=2_u64 {
            let read_us = window * (WINDOW_US + 10_000);
            clock.observe(read_us - 6_000, read_us);
        }
        let read_us = 3 * (WINDOW_US + 10_000);
        assert_eq!(clock.observe(read_us - 7_000, read_us), read_us - 7_000 + 6_000);
    }

    #[test]
    fn a_log_clock_ahead_of_monotonic_works_too() {
        let mut clock = LogClock::default();
        assert_eq!(clock.observe(50_000, 20_000), 20_000);
        assert_eq!(clock.observe(60_000, 31_000), 30_000);
    }
}
