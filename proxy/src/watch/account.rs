//! What a fence counted against what was told: the difference left no line in the log. Pure.
//!
//! A packet is counted, logged and refused in one go, so what was counted at some time has its line, if it has one at
//! all, by then. Counts are therefore read first, and held against what was told at the next look, when every line of
//! then has been read. Between the two looks more may have been told than was counted: what is missing is never taken
//! for too much, and what is missed at one look is found at the next.

/// The account of one fence, by `N` kinds of packets.
#[derive(Debug)]
pub(super) struct Account<const N: usize> {
    told: [u64; N],
    /// What was counted at the last look, and when that was.
    counted: [u64; N],
    counted_ns: u64,
    /// What was refused before this is all told.
    clean_ns: u64,
}

/// Packets that left no line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Missing<const N: usize> {
    /// How many, by kind. Whoever gets this number tells them, by [`Account::tell`] too.
    pub(super) counts: [u64; N],
    /// They were refused between these times.
    pub(super) after_ns: u64,
    pub(super) before_ns: u64,
}

impl<const N: usize> Account<N> {
    /// Begins with a fence that has counted `counts`, which are nobody's business any more.
    pub(super) fn new(counts: [u64; N], now_ns: u64) -> Self {
        Self { told: counts, counted: counts, counted_ns: now_ns, clean_ns: now_ns }
    }

    /// `count` more packets were told.
    pub(super) fn tell(&mut self, kind: usize, count: u64) {
        if let Some(told) = self.told.get_mut(kind) {
            *told = told.saturating_add(count);
        }
    }

    /// Takes the counts at `now_ns`, when every line before the last look has been read. At the end, when all lines have
    /// been, two looks tell all that is missing.
    pub(super) fn look(&mut self, counts: [u64; N], now_ns: u64) -> Missing<N> {
        let missing = self.missing();
        for ((told, before), now) in self.told.iter_mut().zip(self.counted).zip(counts) {
            if now < before {
                // The fence was loaded anew: it counts from nothing. What was missing until then is given out below.
                *told = told.saturating_sub(before);
            }
        }
        self.counted = counts;
        self.clean_ns = self.counted_ns;
        self.counted_ns = now_ns;
        missing
    }

    fn missing(&self) -> Missing<N> {
        let mut counts = self.counted;
        counts.iter_mut().zip(self.told).for_each(|(count, told)| *count = count.saturating_sub(told));
        Missing { counts, after_ns: self.clean_ns, before_ns: self.counted_ns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks, and tells what is missing as the owner would.
    fn look(account: &mut Account<2>, counts: [u64; 2], now_ns: u64) -> [u64; 2] {
        let missing = account.look(counts, now_ns);
        missing.counts.into_iter().enumerate().for_each(|(kind, count)| account.tell(kind, count));
        missing.counts
    }

    #[test]
    fn a_packet_is_missed_only_when_its_line_had_time_to_be_read() {
        let mut account = Account::new([5, 0], 0);
        assert_eq!(
            look(&mut account, [7, 1], 10),
            [0, 0],
            "two more were counted, their lines may be on their way"
        );
        account.tell(0, 1);
        let missing = account.look([7, 1], 20);
        assert_eq!(missing, Missing { counts: [1, 1], after_ns: 0, before_ns: 10 });
    }

    #[test]
    fn everything_is_told_once_however_lines_and_looks_mix() {
        let mut account = Account::new([0], 0);
        let (mut counted, mut told) = (0, 0);
        for step in 1..1_000_u64 {
            counted += step % 7;
            // Some lines come, and some only after the next look.
            let lines = (step % 3).min(counted - told);
            account.tell(0, lines);
            told += lines;
            let missing = account.look([counted], step);
            account.tell(0, missing.counts[0]);
            told += missing.counts[0];
            assert!(told <= counted);
        }
        for now_ns in [1_000, 1_001] {
            let missing = account.look([counted], now_ns);
            account.tell(0, missing.counts[0]);
            told += missing.counts[0];
        }
        assert_eq!(told, counted);
    }

    #[test]
    fn a_fence_that_is_loaded_anew_starts_a_new_count() {
        let mut account = Account::new([0, 0], 0);
        account.tell(0, 8);
        assert_eq!(look(&mut account, [8, 3], 10), [0, 0]);
        assert_eq!(look(&mut account, [1, 0], 20), [0, 3], "what the old one had counted is not forgotten");
        account.tell(0, 1);
        assert_eq!(look(&mut account, [1, 0], 30), [0, 0]);
        assert_eq!(look(&mut account, [4, 0], 40), [0, 0]);
        assert_eq!(look(&mut account, [4, 0], 50), [3, 0]);
    }
}
