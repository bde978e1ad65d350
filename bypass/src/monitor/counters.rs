//! What the monitor has read, for any thread to see (metrics).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Counters shared with the monitor's thread. Read them as [`Totals`].
#[derive(Debug, Default)]
pub struct Counters {
    pub(super) records: AtomicU64,
    pub(super) attempts: AtomicU64,
    pub(super) forged: AtomicU64,
    pub(super) malformed: AtomicU64,
    pub(super) lost: AtomicU64,
    pub(super) overruns: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) last_seq: AtomicU64,
    nudged: AtomicBool,
}

/// The counters at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Records read from all sources, whoever wrote them.
    pub records: u64,
    /// Refused packets handed to the sink.
    pub attempts: u64,
    /// Lines in our form that user space wrote.
    pub forged: u64,
    /// Lines of ours that could not be read.
    pub malformed: u64,
    /// Records that were gone before they could be read.
    pub lost: u64,
    /// How often the kmsg ring overtook the reader (EPIPE), or an NFLOG socket overflowed (ENOBUFS).
    pub overruns: u64,
    /// NFLOG sockets that had to be closed because they could not be read.
    pub failed: u64,
    /// Number of the last kmsg record read; 0 before the first.
    pub last_seq: u64,
}

impl Counters {
    pub(super) fn totals(&self) -> Totals {
        Totals {
            records: self.records.load(Relaxed),
            attempts: self.attempts.load(Relaxed),
            forged: self.forged.load(Relaxed),
            malformed: self.malformed.load(Relaxed),
            lost: self.lost.load(Relaxed),
            overruns: self.overruns.load(Relaxed),
            failed: self.failed.load(Relaxed),
            last_seq: self.last_seq.load(Relaxed),
        }
    }

    /// Whether no other nudge is on its way; marks this one as being so.
    pub(super) fn nudge_is_new(&self) -> bool {
        !self.nudged.swap(true, std::sync::atomic::Ordering::AcqRel)
    }

    /// The nudge has arrived. Called before the look that it asks for, so that a later one counts anew.
    pub(super) fn nudge_arrived(&self) {
        self.nudged.store(false, std::sync::atomic::Ordering::Release);
    }
}

/// Adds to a counter that only this thread writes.
pub(super) fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(more), Relaxed);
}
