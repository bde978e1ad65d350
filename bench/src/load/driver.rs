//! Runs sessions on pinned threads and measures them: warm-up, the measured stretch, the proxy's accounts at both ends.

use std::collections::BTreeMap;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use hdrhistogram::Histogram;

use super::pace::Pace;
use super::session::Session;
use super::thread::{LoadThread, Results};
use crate::accounting::{Meter, Spent};
use crate::pinning::{self, Precedence};
use crate::progress::Progress;
use crate::statistics::latencies;

/// What to run.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// One load thread each.
    pub(crate) cores: Vec<usize>,
    /// When to stop.
    pub(crate) until: Until,
    /// When operations begin.
    pub(crate) pace: Pace,
    /// Load threads run before all others (SCHED_FIFO), so that latency is the proxy's and not the generator's.
    pub(crate) first: bool,
}

/// The length of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    /// Run for `warm_up` unmeasured, then for `measured`.
    Time {
        /// Not measured.
        warm_up: Duration,
        /// Measured.
        measured: Duration,
    },
    /// Exactly this many operations, all measured.
    Operations(u64),
}

/// What was seen.
#[derive(Debug)]
pub(crate) struct Measured {
    /// Operations completed in the measured stretch.
    pub(crate) operations: u64,
    /// Payload bytes moved in it.
    pub(crate) bytes: u64,
    /// Failures over the whole run, warm-up included, by kind.
    pub(crate) failures: BTreeMap<String, u64>,
    /// Latencies, ns.
    pub(crate) latency: Histogram<u64>,
    /// Accounts of the proxy.
    pub(crate) spent: Spent,
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Phase {
    /// Operations run, nothing is recorded.
    WarmUp,
    /// Latencies are recorded.
    Measured,
    /// Threads end at the next look.
    Over,
}

/// What coordinator and load threads share.
#[derive(Debug)]
pub(crate) struct Board {
    phase: AtomicU8,
    running: AtomicUsize,
    /// Completed operations and bytes of each thread.
    counts: Vec<[AtomicU64; 2]>,
}

impl Board {
    fn new(threads: usize, phase: Phase) -> Self {
        let counts = (0..threads).map(|_| [AtomicU64::new(0), AtomicU64::new(0)]).collect();
        Self { phase: AtomicU8::new(phase as u8), running: AtomicUsize::new(threads), counts }
    }

    /// The phase to obey now.
    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::WarmUp,
            1 => Phase::Measured,
            _ => Phase::Over,
        }
    }

    fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
    }

    /// Publishes one thread's totals.
    pub(crate) fn publish(&self, thread: usize, operations: u64, bytes: u64) {
        self.counts[thread][0].store(operations, Relaxed);
        self.counts[thread][1].store(bytes, Relaxed);
    }

    fn totals(&self) -> [f64; 2] {
        [0, 1].map(|which| self.counts.iter().map(|count| count[which].load(Relaxed)).sum::<u64>() as f64)
    }
}

/// Runs `sessions` by `plan`, reading the proxy's accounts with `meter`.
pub(crate) fn run<S: Session>(
    sessions: &mut [S],
    plan: &Plan,
    meter: &Meter,
    progress: &Progress,
) -> Result<Measured> {
    let share = sessions.len().div_ceil(plan.cores.len().max(1)).max(1);
    let threads = sessions.len().div_ceil(share);
    let start_phase =
        if matches!(plan.until, Until::Operations(_)) { Phase::Measured } else { Phase::WarmUp };
    let board = Board::new(threads, start_phase);
    let gate = Barrier::new(threads + 1);
    thread::scope(|scope| {
        let mut handles = Vec::new();
        for (index, (sessions, &core)) in sessions.chunks_mut(share).zip(&plan.cores).enumerate() {
            let (board, gate) = (&board, &gate);
            let quota = quota_of(plan.until, index, threads);
            let pace = match plan.pace {
                Pace::Closed => Pace::Closed,
                Pace::Open { per_second } => Pace::Open { per_second: per_second / threads as f64 },
            };
            let first = plan.first;
            handles.push(scope.spawn(move || {
                let prepared = pinning::pin(&[core])
                    .and_then(|()| if first { pinning::take_precedence(Precedence::Latency) } else { Ok(()) })
                    .and_then(|()| LoadThread::new(index, sessions, pace, quota, board));
                gate.wait();
                let results = prepared.and_then(LoadThread::run);
                board.running.fetch_sub(1, Relaxed);
                results
            }));
        }
        let watched = watch(&board, &gate, plan.until, meter, progress);
        board.enter(Phase::Over);
        let mut all = Results::new();
        for handle in handles {
            let one = handle.join().map_err(|_| anyhow!("a load thread panicked"))??;
            all.absorb(one);
        }
        let (spent, [operations, bytes]) = watched?;
        Ok(Measured { operations, bytes, failures: all.failures, latency: all.latency, spent })
    })
}

/// Operations that thread `index` of `threads` has to do.
fn quota_of(until: Until, index: usize, threads: usize) -> Option<u64> {
    match until {
        Until::Time { .. } => None,
        Until::Operations(total) => {
            let (index, threads) = (index as u64, threads as u64);
            Some(total / threads + u64::from(index < total % threads))
        }
    }
}

/// Opens the gate, waits the phases out, and returns what was spent and counted in the measured one.
fn watch(
    board: &Board,
    gate: &Barrier,
    until: Until,
    meter: &Meter,
    progress: &Progress,
) -> Result<(Spent, [u64; 2])> {
    let before_gate = meter.read();
    gate.wait();
    let before_gate = before_gate?;
    match until {
        Until::Time { warm_up, measured } => {
            pass(board, warm_up, "warm-up", progress);
            let (from, counted_from) = sample(board, meter)?;
            board.enter(Phase::Measured);
            pass(board, measured, "measured", progress);
            let (to, counted_to) = sample(board, meter)?;
            let delta = [0, 1].map(|which| (counted_to[which] - counted_from[which]).round() as u64);
            Ok((to.since(&from), delta))
        }
        Until::Operations(_) => {
            pass(board, Duration::MAX, "operations", progress);
            let to = meter.read().context("after the run")?;
            Ok((to.since(&before_gate), board.totals().map(|total| total as u64)))
        }
    }
}

/// The proxy's accounts, and the counts of that moment: the mean of a look before and one after, because this thread
/// may be held up between them.
fn sample(board: &Board, meter: &Meter) -> Result<(crate::accounting::Reading, [f64; 2])> {
    let before = board.totals();
    let reading = meter.read()?;
    let after = board.totals();
    Ok((reading, [0, 1].map(|which| f64::midpoint(before[which], after[which]))))
}

/// Sleeps for `length` or until no load thread runs any more.
fn pass(board: &Board, length: Duration, what: &str, progress: &Progress) {
    let start = Instant::now();
    while board.running.load(Relaxed) > 0 {
        let left = length.saturating_sub(start.elapsed());
        if left.is_zero() {
            return;
        }
        thread::sleep(left.min(Duration::from_millis(if length == Duration::MAX { 5 } else { 100 })));
        progress.show(&format!(
            "{what} {:.1} s, {} operations",
            start.elapsed().as_secs_f64(),
            board.totals()[0]
        ));
    }
}

impl Results {
    /// No results.
    fn new() -> Self {
        Self { failures: BTreeMap::new(), latency: latencies() }
    }

    /// Adds those of another thread.
    fn absorb(&mut self, other: Self) {
        for (kind, count) in other.failures {
            *self.failures.entry(kind).or_default() += count;
        }
        let _ = self.latency.add(&other.latency); // same bounds: cannot fail
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quotas_of_all_threads_add_up() {
        for threads in 1..5 {
            let sum: u64 =
                (0..threads).filter_map(|index| quota_of(Until::Operations(1003), index, threads)).sum();
            assert_eq!(sum, 1003);
        }
    }
}
