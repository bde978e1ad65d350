//! Moving one message body from one side to the other, checked as it passes.
//!
//! What is long and of known length has nothing to check: it is spliced, like the bulk of a tunnel.

use std::cell::Cell;
use std::ops::Range;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use super::buffers::Buffer;
use super::pipes::{PIPE_OCTETS, Pipe};
use super::relay::{BULK_OCTETS, Flow, Means, SPLICES_PER_TURN, empty, move_some};
use super::socket::Side;
use super::watchdog::{Aim, Watch};
use crate::http::chunked::{ChunkedBody, Keep, Passed, Then};
use crate::http::fault::Fault;
use crate::http::framing::Framing;
use crate::http::head::Nominated;

/// A body on its way, and how much of it is still to come.
pub(super) enum Body {
    /// It has ended.
    Ended,
    /// So many octets are to come.
    Length(u64),
    /// Chunks are to come.
    Chunked(ChunkedBody),
    /// Whatever comes until the sender closes.
    UntilClose,
}

/// Why a body did not arrive.
#[derive(Debug)]
pub(super) enum BodyError {
    /// What came is no body.
    Fault(Fault),
    /// The sender closed or failed before the end.
    Cut,
    /// The receiver failed.
    Unwanted,
}

impl Body {
    /// A body with this framing; `keep` says what of the chunks is passed on.
    pub(super) fn new(framing: Framing, keep: Keep, nominated: impl FnOnce() -> Nominated) -> Self {
        match framing {
            Framing::None | Framing::Length(0) => Self::Ended,
            Framing::Length(octets) => Self::Length(octets),
            Framing::Chunked => Self::Chunked(ChunkedBody::new(keep, nominated())),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    /// How much of it may be spliced in one go: of a length that is long, and needs no looking at.
    pub(super) fn bulk(&self) -> Option<usize> {
        match self {
            Self::Length(left) if *left >= BULK_OCTETS as u64 => {
                Some(usize::try_from(*left).unwrap_or(usize::MAX).min(PIPE_OCTETS))
            }
            _ => None,
        }
    }

    /// So much of a body of known length has been moved.
    fn moved(&mut self, octets: usize) {
        if let Self::Length(left) = self {
            *left = left.saturating_sub(octets as u64);
            if *left == 0 {
                *self = Self::Ended;
            }
        }
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self, Self::Ended)
    }

    /// Takes the next octets: those to pass on are at the front of `buf` afterwards.
    fn pass(&mut self, buf: &mut [u8]) -> Passed {
        let all = |octets, then| Passed { kept: octets, consumed: octets, then };
        let passed = match self {
            Self::Ended => all(0, Then::End),
            Self::UntilClose => all(buf.len(), Then::More),
            Self::Chunked(chunks) => chunks.pass(buf),
            Self::Length(left) => {
                let here = buf.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left = left.saturating_sub(here as u64);
                all(here, if *left == 0 { Then::End } else { Then::More })
            }
        };
        if passed.then == Then::End {
            *self = Self::Ended;
        }
        passed
    }

    /// Takes what of the body is in `inbox` already and appends what is passed on to `out`.
    pub(super) fn take_buffered(&mut self, inbox: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<usize, Fault> {
        if self.has_ended() || inbox.is_empty() {
            return Ok(0);
        }
        let passed = self.pass(inbox);
        out.extend_from_slice(inbox.get(..passed.kept).unwrap_or_default());
        discard(inbox, 0..passed.consumed);
        match passed.then {
            Then::Fault(fault) => Err(fault),
            Then::More | Then::End => Ok(passed.kept),
        }
    }
}

/// The account and the watch of one body.
pub(super) struct Passage<'a> {
    pub(super) means: &'a Means,
    pub(super) flow: &'a Flow<'a>,
    pub(super) watch: &'a Watch,
    /// How long nothing may move.
    pub(super) patience: Duration,
    /// What is shut down then, when the sender is waited for and when the receiver is.
    pub(super) aims: (Aim, Aim),
    /// What the first wait for the sender is bounded by, if by something else.
    pub(super) first_wait: Cell<Option<(Duration, Aim)>>,
    /// The head was written ahead ([`Side::try_write_ahead`]): most often the body is there too, and is not waited for.
    pub(super) ahead: Cell<bool>,
}

impl Passage<'_> {
    /// Moves `body` to its end. `inbox` holds what was read of `from` already, all of which has been offered to the body;
    /// what lies behind the end is there afterwards.
    pub(super) async fn carry(
        &self,
        from: &impl Side,
        to: &impl Side,
        inbox: &mut Buffer,
        body: &mut Body,
    ) -> Result<(), BodyError> {
        let mut ahead = self.ahead.take();
        while !body.has_ended() {
            if !ahead {
                let (within, aim) = self.first_wait.take().unwrap_or((self.patience, self.aims.0));
                self.watch.arm(within, aim);
                from.readable().await.map_err(|_| BodyError::Cut)?;
            }
            let before = self.flow.octets();
            let spliced = body.bulk().and_then(|_| Some((from.raw()?, to.raw()?, self.means.pipes.take()?)));
            let then = if let Some((source, sink, pipe)) = spliced {
                self.splice_some(pipe, source, (to, sink), body).await?;
                Then::More
            } else {
                let mut left = None;
                let then = self.carry_some(from, to, inbox, body, &mut left)?;
                if let Some(left) = left {
                    self.watch.arm(self.patience, self.aims.1);
                    self.watch.unread(to.write_all(&left)).await.map_err(|_| BodyError::Unwanted)?;
                }
                then
            };
            if std::mem::take(&mut ahead) && self.flow.octets() == before {
                to.push();
            }
            self.flow.keep_pace(self.watch).await;
            match then {
                Then::Fault(fault) => return Err(BodyError::Fault(fault)),
                Then::More | Then::End => {}
            }
        }
        Ok(())
    }

    /// A few splices, until the source has nothing more.
    async fn splice_some(
        &self,
        pipe: Pipe,
        source: BorrowedFd<'_>,
        (to, sink): (&impl Side, BorrowedFd<'_>),
        body: &mut Body,
    ) -> Result<(), BodyError> {
        let mut moved = 0_usize;
        for _ in 0..SPLICES_PER_TURN {
            let Some(most) = body.bulk() else { break };
            let taken = move_some(source, pipe.write.as_fd(), most).map_err(|_| BodyError::Cut)?;
            let Some(taken) = taken else { break };
            if taken == 0 {
                return Err(BodyError::Cut);
            }
            let full = || self.watch.arm(self.patience, self.aims.1);
            empty(&pipe, (to, sink), taken, self.watch, full).await.map_err(|_| BodyError::Unwanted)?;
            self.flow.add_spliced(taken);
            body.moved(taken);
            moved = moved.saturating_add(taken);
            if taken < BULK_OCTETS || moved >= PIPE_OCTETS {
                break;
            }
        }
        pipe.put_back();
        Ok(())
    }

    /// One read, without waiting. What could not be written at once is left in `left`.
    fn carry_some(
        &self,
        from: &impl Side,
        to: &impl Side,
        inbox: &mut Buffer,
        body: &mut Body,
        left: &mut Option<Buffer>,
    ) -> Result<Then, BodyError> {
        let mut scratch = self.means.scratch.borrow_mut();
        // An incomplete line of a chunked body goes first.
        let held = inbox.len();
        let (old, fresh) =
            scratch.split_at_mut_checked(held).ok_or(BodyError::Fault(Fault::ChunkExtension))?;
        let Some(count) = from.try_read(fresh).map_err(|_| BodyError::Cut)? else { return Ok(Then::More) };
        if count == 0 {
            return match body {
                Body::UntilClose => {
                    *body = Body::Ended;
                    Ok(Then::End)
                }
                _ => Err(BodyError::Cut),
            };
        }
        old.copy_from_slice(inbox);
        inbox.clear();
        let Some(octets) = scratch.get_mut(..held.saturating_add(count)) else { return Ok(Then::More) };
        let passed = body.pass(octets);
        let kept = octets.get(..passed.kept).unwrap_or_default();
        self.flow.add_copied(kept.len());
        let written = if kept.is_empty() {
            0
        } else {
            to.try_write(kept).map_err(|_| BodyError::Unwanted)?.unwrap_or(0)
        };
        if let Some(rest) = kept.get(written..).filter(|rest| !rest.is_empty() || !to.is_flushed()) {
            let mut buffer = self.means.buffers.take();
            buffer.extend_from_slice(rest);
            *left = Some(buffer);
        }
        inbox.extend_from_slice(octets.get(passed.consumed..).unwrap_or_default());
        Ok(passed.then)
    }
}

/// Removes a stretch of a buffer, keeping its memory.
pub(super) fn discard(buffer: &mut Vec<u8>, stretch: Range<usize>) {
    let end = stretch.end.min(buffer.len());
    if stretch.start < end {
        buffer.drain(stretch.start..end);
    }
}
