//! The alert state: look for records of one's own accord, because one is due.

use std::io;
use std::task::Context;
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::watched::Watched;
use crate::limits::{ALERT_FIRST, ALERT_LAST, ALERT_REST};

/// A timer that goes off while the monitor is alert. tokio's own timers are no finer than 1 ms.
pub(super) struct Alert {
    timer: Watched<TimerFd>,
    /// Alert at all times, at this interval.
    always: Option<Duration>,
    /// Time to the look after the coming one; `None` while the timer is off.
    next: Option<Duration>,
    /// The coming look is the one that attempts gather for.
    resting: bool,
}

impl Alert {
    /// Off, or on at all times with the interval `always`.
    pub(super) fn new(always: Option<Duration>) -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let timer = Watched::new(TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?)?;
        let alert = Self { timer, always, next: None, resting: false };
        if let Some(interval) = always {
            alert.set(interval)?;
        }
        Ok(alert)
    }

    /// Begins the looks anew: soon, then ever later.
    pub(super) fn raise(&mut self) -> io::Result<()> {
        if self.always.is_none() {
            self.set(ALERT_FIRST)?;
            self.next = Some(ALERT_FIRST * 2);
        }
        Ok(())
    }

    /// The same after a look that found something: the next one is for all that come until then.
    pub(super) fn rest(&mut self) -> io::Result<()> {
        if self.always.is_none() {
            self.set(ALERT_REST)?;
            self.next = Some(ALERT_REST * 2);
            self.resting = true;
        }
        Ok(())
    }

    /// Whether a look is due within [`ALERT_REST`], so that none is needed before.
    pub(super) fn is_resting(&self) -> bool {
        self.resting
    }

    /// Whether it is time to look.
    pub(super) fn poll_look(&mut self, context: &mut Context<'_>) -> io::Result<bool> {
        if !self.timer.poll_woken(context)? {
            return Ok(false);
        }
        self.resting = false;
        if let Some(interval) = self.always {
            self.set(interval)?;
        } else if let Some(next) = self.next.filter(|next| *next <= ALERT_LAST) {
            self.set(next)?;
            self.next = Some(next * 2);
        } else {
            self.next = None;
        }
        Ok(true)
    }

    /// Goes off once, after `delay`. Setting the timer also takes back that it went off before.
    fn set(&self, delay: Duration) -> io::Result<()> {
        let once = Expiration::OneShot(TimeSpec::from_duration(delay));
        Ok(self.timer.get().set(once, TimerSetTimeFlags::empty())?)
    }
}
