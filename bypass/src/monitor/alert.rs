//! The alert state: look for records at short intervals, because one is due.

use std::io;
use std::task::Context;
use std::time::{Duration, Instant};

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::watched::Watched;
use crate::limits::{ALERT_POLL, ALERT_TIME};

/// A timer that ticks while the monitor is alert. tokio's own timers are no finer than 1 ms.
pub(super) struct Alert {
    timer: Watched<TimerFd>,
    /// Alert at all times, at this interval.
    always: bool,
    /// The alert ends here; `None` while the timer is off.
    until: Option<Instant>,
}

impl Alert {
    /// Off, or on at all times with the interval `always`.
    pub(super) fn new(always: Option<Duration>) -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = Watched::new(TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?)?;
        let alert = Self { timer, always: always.is_some(), until: None };
        if let Some(interval) = always {
            alert.start(interval)?;
        }
        Ok(alert)
    }

    /// Begins or prolongs the alert.
    pub(super) fn raise(&mut self) -> io::Result<()> {
        if self.always {
            return Ok(());
        }
        if self.until.is_none() {
            self.start(ALERT_POLL)?;
        }
        self.until = Some(Instant::now() + ALERT_TIME);
        Ok(())
    }

    /// Whether it is time to look.
    pub(super) fn poll_look(&mut self, context: &mut Context<'_>) -> io::Result<bool> {
        if !self.timer.poll_woken(context)? {
            return Ok(false);
        }
        // Reading also sets the timer up for its next interval; nothing to read is no error.
        let _ = self.timer.get().wait();
        if self.until.is_some_and(|until| until <= Instant::now()) {
            self.until = None;
            self.timer.get().unset()?;
        }
        Ok(true)
    }

    fn start(&self, interval: Duration) -> io::Result<()> {
        let interval = Expiration::Interval(TimeSpec::from_duration(interval));
        Ok(self.timer.get().set(interval, TimerSetTimeFlags::empty())?)
    }
}
