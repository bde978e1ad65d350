//! One load thread: its sessions, its poll set, its clock.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::driver::{Board, Phase};
use super::pace::{Pace, Schedule};
use super::session::{Failure, Session, Step, Turn};
use crate::pinning;
use crate::poll::{Events, Interest, Poll};
use crate::statistics::latencies;

/// Token of the open loop's timer.
const TIMER: u64 = u64::MAX;
/// A thread gives up after so many failures: something is broken, and hammering it tells nothing more.
const FAILURES_MAX: u64 = 1000;
/// Scratch space of a thread: one read takes a whole socket buffer's worth in bulk.
const SCRATCH_BYTES: usize = 1 << 20;
/// How long a thread sleeps at most before it looks at the phase, ms.
const LOOK_MS: u16 = 50;

/// What a thread hands back.
#[derive(Debug)]
pub(crate) struct Results {
    /// Failures by kind.
    pub(crate) failures: BTreeMap<String, u64>,
    /// Latencies of the measured phase, ns.
    pub(crate) latency: Histogram<u64>,
}

/// A load thread, ready to go.
pub(crate) struct LoadThread<'a, S> {
    index: usize,
    board: &'a Board,
    poll: Poll,
    sessions: &'a mut [S],
    /// When the operation of each session began, or should have.
    began: Vec<Instant>,
    /// Sessions that wait for the schedule.
    idle: Vec<usize>,
    pace: Pace,
    timer: Option<TimerFd>,
    /// Operations that may still begin.
    quota: u64,
    busy: usize,
    operations: u64,
    bytes: u64,
    failed: u64,
    scratch: Vec<u8>,
    results: Results,
}

impl<'a, S: Session> LoadThread<'a, S> {
    /// Puts the sessions into a poll set.
    pub(crate) fn new(
        index: usize,
        sessions: &'a mut [S],
        pace: Pace,
        quota: Option<u64>,
        board: &'a Board,
    ) -> Result<Self> {
        let mut thread = Self {
            index,
            board,
            poll: Poll::new().context("epoll")?,
            began: vec![Instant::now(); sessions.len()],
            idle: (0..sessions.len()).rev().collect(),
            sessions,
            pace,
            timer: None,
            quota: quota.unwrap_or(u64::MAX),
            busy: 0,
            operations: 0,
            bytes: 0,
            failed: 0,
            scratch: vec![0; SCRATCH_BYTES],
            results: Results { failures: BTreeMap::new(), latency: latencies() },
        };
        for session in 0..thread.sessions.len() {
            let (target, mut turn) = thread.turn(session);
            target.join(&mut turn)?;
        }
        Ok(thread)
    }

    /// Runs until the board says it is over, the quota is done, or no session is left.
    pub(crate) fn run(mut self) -> Result<Results> {
        let mut schedule = self.start_schedule()?;
        let mut events = Events::new();
        loop {
            self.begin_due(schedule.as_mut());
            if self.board.phase() == Phase::Over || self.is_spent() {
                return Ok(self.results);
            }
            self.poll.wait(&mut events, Some(LOOK_MS)).context("epoll_wait")?;
            for event in 0..events.len() {
                let (token, ready) = events.get(event);
                if token == TIMER {
                    self.timer.as_ref().map(TimerFd::wait).transpose().context("timerfd")?;
                } else {
                    self.advance(token as usize, ready);
                }
            }
            self.board.publish(self.index, self.operations, self.bytes);
        }
    }

    /// The schedule of the open loop, and the timer that wakes this thread for it.
    fn start_schedule(&mut self) -> Result<Option<Schedule>> {
        let Pace::Open { per_second } = self.pace else { return Ok(None) };
        pinning::exact_timers()?;
        let schedule = Schedule::new(Instant::now(), per_second);
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK).context("timerfd")?;
        let every = Expiration::Interval(TimeSpec::from_duration(schedule.tick()));
        timer.set(every, TimerSetTimeFlags::empty()).context("timerfd")?;
        self.poll.add(timer.as_fd(), Interest::EPOLLIN, TIMER).context("epoll_ctl")?;
        self.timer = Some(timer);
        Ok(Some(schedule))
    }

    /// Whether nothing is under way and nothing can begin.
    fn is_spent(&self) -> bool {
        self.busy == 0 && (self.quota == 0 || self.idle.is_empty())
    }

    /// Begins what may begin: everything idle in a closed loop, what is due in an open one.
    fn begin_due(&mut self, mut schedule: Option<&mut Schedule>) {
        while self.quota > 0 {
            let Some(&session) = self.idle.last() else { return };
            let now = Instant::now();
            let at = match schedule.as_mut() {
                None => now,
                Some(schedule) => match schedule.take_due(now) {
                    Some(due) => due,
                    None => return,
                },
            };
            self.idle.pop();
            self.quota -= 1;
            self.busy += 1;
            self.began[session] = at;
            let (target, mut turn) = self.turn(session);
            let step = target.begin(&mut turn);
            let moved = turn.moved;
            self.settle(session, step, moved);
        }
    }

    /// The descriptor of `session` is ready.
    fn advance(&mut self, session: usize, ready: Interest) {
        let (target, mut turn) = self.turn(session);
        let step = target.ready(&mut turn, ready);
        let moved = turn.moved;
        self.settle(session, step, moved);
        if self.pace == Pace::Closed && !self.idle.is_empty() {
            self.begin_due(None); // at once: the next request should not wait for the rest of the batch
        }
    }

    /// Books the outcome of a step.
    fn settle(&mut self, session: usize, step: Result<Step, Failure>, moved: u64) {
        self.bytes += moved;
        match step {
            Ok(Step::Waiting) => {}
            Ok(Step::Done) => {
                self.operations += 1;
                self.busy -= 1;
                self.idle.push(session);
                if self.board.phase() == Phase::Measured {
                    self.results.latency.saturating_record(self.began[session].elapsed().as_nanos() as u64);
                }
            }
            Err(failure) => {
                *self.results.failures.entry(failure.to_string()).or_default() += 1;
                self.failed += 1;
                self.busy = self.busy.saturating_sub(1);
                if self.sessions[session].recover() && self.failed < FAILURES_MAX {
                    self.idle.push(session);
                } else if self.failed >= FAILURES_MAX {
                    self.quota = 0;
                }
            }
        }
        if self.busy == 0 || self.quota == 0 {
            self.board.publish(self.index, self.operations, self.bytes);
        }
    }

    fn turn(&mut self, session: usize) -> (&mut S, Turn<'_>) {
        let turn = Turn { poll: &self.poll, token: session as u64, scratch: &mut self.scratch, moved: 0 };
        (&mut self.sessions[session], turn)
    }
}
