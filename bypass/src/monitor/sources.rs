//! What the monitor reads: the kmsg device, and any number of NFLOG sockets.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Context;

use nix::sys::time::TimeSpec;
use nix::time::ClockId;

use super::counters::{Counters, add};
use super::watched::Watched;
use super::{Moment, Sink};
use crate::attempt::{Line, Malformed};
use crate::clock::LogClock;
use crate::kmsg::reader::Outcome;
use crate::kmsg::{self, Record};
use crate::limits::{KMSG_RECORD_BYTES, NFLOG_DATAGRAM_BYTES, RECORDS_PER_TURN};
use crate::loss::Sequence;
use crate::nflog;

/// Names a watched NFLOG socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SourceId(u64);

impl SourceId {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Whether a source has more to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Read to its end.
    Empty,
    /// The turn's share is used up.
    More,
}

/// `/dev/kmsg` and what is known about its numbers and its clock.
pub(super) struct Kmsg {
    reader: Watched<kmsg::Reader>,
    sequence: Sequence,
    /// Records up to this one were delivered by an earlier monitor.
    skip_to: Option<u64>,
    clock: LogClock,
    buffer: Box<[u8]>,
}

impl Kmsg {
    pub(super) fn new(reader: kmsg::Reader, sequence: Sequence) -> io::Result<Self> {
        Ok(Self {
            reader: Watched::new(reader)?,
            sequence,
            skip_to: sequence.last(),
            clock: LogClock::default(),
            buffer: vec![0; KMSG_RECORD_BYTES].into_boxed_slice(),
        })
    }

    pub(super) fn poll_woken(&self, context: &mut Context<'_>) -> io::Result<bool> {
        self.reader.poll_woken(context)
    }

    /// Reads up to a turn's share of records.
    pub(super) fn turn<S: Sink>(&mut self, sink: &mut S, counters: &Counters) -> io::Result<Turn> {
        for _ in 0..RECORDS_PER_TURN {
            match self.reader.get().read(&mut self.buffer)? {
                Outcome::Record(bytes) => self.deliver(bytes, sink, counters),
                Outcome::Overrun => add(&counters.overruns, 1),
                Outcome::Empty => return Ok(Turn::Empty),
            }
        }
        Ok(Turn::More)
    }

    fn deliver<S: Sink>(&mut self, bytes: usize, sink: &mut S, counters: &Counters) {
        let Some(record) = self.buffer.get(..bytes).and_then(Record::parse) else {
            // No kernel prints such a record; it has no number either.
            add(&counters.malformed, 1);
            sink.malformed(Malformed::Truncated);
            return;
        };
        if self.skip_to.is_some_and(|seq| record.seq <= seq) {
            return;
        }
        add(&counters.records, 1);
        if let Some(loss) = self.sequence.note(record.seq, record.time_us) {
            add(&counters.lost, loss.records);
            sink.lost(loss);
        }
        counters.last_seq.store(record.seq, Ordering::Relaxed);
        let line = kmsg::parse_text(&record);
        if line == Line::Foreign {
            return;
        }
        let read_us = monotonic_us();
        let when = Moment { logged_us: self.clock.observe(record.time_us, read_us), read_us };
        hand_over(&line, when, sink, counters);
    }
}

/// One namespace's NFLOG group.
pub(super) struct Nflog {
    pub(super) id: SourceId,
    socket: Watched<nflog::Socket>,
    sequence: Sequence,
    buffer: Box<[u8]>,
}

impl Nflog {
    pub(super) fn new(id: SourceId, socket: nflog::Socket) -> io::Result<Self> {
        Ok(Self {
            id,
            socket: Watched::new(socket)?,
            // A fresh group counts from 0.
            sequence: Sequence::after(u64::MAX),
            buffer: vec![0; NFLOG_DATAGRAM_BYTES].into_boxed_slice(),
        })
    }

    pub(super) fn poll_woken(&self, context: &mut Context<'_>) -> io::Result<bool> {
        self.socket.poll_woken(context)
    }

    /// Reads up to a turn's share of datagrams.
    pub(super) fn turn<S: Sink>(&mut self, sink: &mut S, counters: &Counters) -> io::Result<Turn> {
        for _ in 0..RECORDS_PER_TURN {
            match self.socket.get().read(&mut self.buffer)? {
                nflog::Outcome::Datagram(bytes) => self.deliver(bytes, sink, counters),
                nflog::Outcome::Overrun => add(&counters.overruns, 1),
                nflog::Outcome::Forged => {
                    add(&counters.forged, 1);
                    sink.forged();
                }
                nflog::Outcome::Empty => return Ok(Turn::Empty),
            }
        }
        Ok(Turn::More)
    }

    fn deliver<S: Sink>(&mut self, bytes: usize, sink: &mut S, counters: &Counters) {
        let read_us = monotonic_us();
        for message in nflog::messages(self.buffer.get(..bytes).unwrap_or_default()) {
            add(&counters.records, 1);
            let (seq, line) = nflog::parse(message, read_us);
            if let Some(loss) = seq.and_then(|seq| self.sequence.note(u64::from(seq), read_us)) {
                add(&counters.lost, loss.records);
                sink.lost(loss);
            }
            hand_over(&line, Moment { logged_us: read_us, read_us }, sink, counters);
        }
    }
}

fn hand_over<S: Sink>(line: &Line<'_>, when: Moment, sink: &mut S, counters: &Counters) {
    match line {
        Line::Attempt(attempt) => {
            add(&counters.attempts, 1);
            sink.attempt(attempt, when);
        }
        Line::Forged => {
            add(&counters.forged, 1);
            sink.forged();
        }
        Line::Malformed(why) => {
            add(&counters.malformed, 1);
            sink.malformed(*why);
        }
        Line::Foreign => {}
    }
}

/// CLOCK_MONOTONIC in µs.
pub(super) fn monotonic_us() -> u64 {
    // The call cannot fail for this clock.
    let now = ClockId::CLOCK_MONOTONIC.now().unwrap_or(TimeSpec::new(0, 0));
    (now.tv_sec() as u64).saturating_mul(1_000_000).saturating_add(now.tv_nsec() as u64 / 1000)
}
