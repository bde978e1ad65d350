//! Which records were never read: the kernel's log is a ring, and a reader that falls behind is overtaken.

use std::fmt;

/// Records that are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss {
    /// How many.
    pub records: u64,
    /// The first of them, by number.
    pub first_seq: u64,
    /// The last record read before the gap, in µs of its source's clock; `None` if none was read yet.
    pub after_us: Option<u64>,
    /// The first record behind the gap, in µs of its source's clock.
    pub before_us: u64,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} log records lost, from number {} on", self.records, self.first_seq)
    }
}

/// The numbers seen so far of one source.
///
/// The kernel numbers records one by one (printk's `seq`, NFLOG's `NFULA_SEQ`), so a gap between two records
/// read is exactly the number lost. EPIPE on `/dev/kmsg` only announces a gap that the next record's number
/// then measures; counting it as well would count twice. Clearing the log (`dmesg -C`) only moves what
/// `dmesg` shows: neither numbers nor this reader are touched.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sequence {
    /// Number and time of the last record read.
    last: Option<Seen>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    seq: u64,
    time_us: Option<u64>,
}

impl Sequence {
    /// Starts anywhere: the first record read is not preceded by a loss.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts behind record `seq`, which an earlier reader has delivered: what is missing from there on counts.
    pub fn after(seq: u64) -> Self {
        Self { last: Some(Seen { seq, time_us: None }) }
    }

    /// Number of the last record read.
    pub fn last(&self) -> Option<u64> {
        self.last.map(|seen| seen.seq)
    }

    /// Takes note of a record; says what is missing before it.
    pub fn note(&mut self, seq: u64, time_us: u64) -> Option<Loss> {
        let before = self.last.replace(Seen { seq, time_us: Some(time_us) })?;
        let first_seq = before.seq.wrapping_add(1);
        // A number that goes backwards is a source that began anew, not 2^64 lost records.
        let records = seq.checked_sub(first_seq).filter(|&records| records > 0)?;
        Some(Loss { records, first_seq, after_us: before.time_us, before_us: time_us })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_gap_is_exactly_the_records_between() {
        let mut sequence = Sequence::new();
        assert_eq!(sequence.note(500, 10), None, "start-up in the middle of the log loses nothing");
        assert_eq!(sequence.note(501, 11), None);
        let loss = sequence.note(510, 20).unwrap();
        assert_eq!(loss, Loss { records: 8, first_seq: 502, after_us: Some(11), before_us: 20 });
        assert_eq!(sequence.note(511, 21), None);
        assert_eq!(sequence.last(), Some(511));
    }

    #[test]
    fn a_restart_counts_what_it_missed() {
        let mut sequence = Sequence::after(100);
        assert_eq!(sequence.note(104, 9).map(|loss| (loss.records, loss.after_us)), Some((3, None)));
        assert_eq!(Sequence::after(100).note(101, 9), None);
    }

    #[test]
    fn numbers_that_begin_anew_are_no_loss() {
        let mut sequence = Sequence::after(u64::MAX);
        assert_eq!(sequence.note(0, 1), None);
        let mut sequence = Sequence::after(1000);
        assert_eq!(sequence.note(3, 1), None);
        assert_eq!(sequence.note(4, 1), None);
    }

    proptest! {
        #[test]
        fn read_and_lost_add_up_to_all(kept in proptest::collection::vec(any::<bool>(), 1..300)) {
            let mut sequence = Sequence::after(41);
            let (mut read, mut lost, mut last) = (0, 0, 0);
            for (at, _) in kept.iter().enumerate().filter(|(_, kept)| **kept) {
                lost += sequence.note(42 + at as u64, 0).map_or(0, |loss| loss.records);
                read += 1;
                last = at as u64 + 1;
            }
            prop_assert_eq!(read + lost, last);
        }
    }
}
