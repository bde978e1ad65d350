//! The way of a note from the witness's thread to its readers, which may be in another process.
//!
//! ```text
//! word 0       MAGIC
//! word 1, 2    notes begun, notes written since the ring was made
//! word 3       words of text begun since then
//! word 8…      notes, RING_NOTES of NOTE_WORDS each; number n is at n mod RING_NOTES
//! behind them  text: processes (`record.rs`), each at a multiple of a word and never across the end
//! ```
//!
//! One writer, any number of readers, no lock: the writer says first that it begins to write over something (a
//! *begun* counter), then writes, then says that it is done. A reader copies, and only then looks whether the writer
//! had begun to write over what it copied (a seqlock, with the number of the note in the place of the lock). A slow
//! reader loses the oldest notes and knows how many. A writer that is not ours, or has gone mad, can make a reader
//! believe anything about its own sandbox, but not make it panic, wait, or read more than one ring per visit.

use super::memory::Memory;
use super::notes::{Call, Note, Process, Proto};
use super::record;
use crate::limits::{PROCESS_RECORD_BYTES_MAX, PROCESSES_READ_MAX, RING_NOTES, RING_TEXT_WORDS};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::atomic::{Ordering, fence};

/// Also the layout's version.
const MAGIC: u64 = u64::from_ne_bytes(*b"sluice-1");
const BEGUN: usize = 1;
const WRITTEN: usize = 2;
const TEXT_BEGUN: usize = 3;
const NOTES_AT: usize = 8;
/// A cache line.
const NOTE_WORDS: usize = 8;
const TEXT_AT: usize = NOTES_AT + RING_NOTES * NOTE_WORDS;
const WORDS: usize = TEXT_AT + RING_TEXT_WORDS;

/// Senseless notes in one visit after which the rest of them is not looked at.
const GARBLED_MAX: u64 = 64;

/// A new ring: the witness's end, and the memory to be handed to [`super::Notes::attach`], here or in another process.
pub fn note_ring() -> io::Result<(NoteWriter, OwnedFd)> {
    let (memory, fd) = Memory::create(WORDS)?;
    memory.words().first().inspect(|magic| magic.store(MAGIC, Release));
    Ok((NoteWriter { memory, written: 0, text: 0, told: HashMap::new() }, fd))
}

/// The only writer of a ring.
#[derive(Debug)]
pub struct NoteWriter {
    memory: Memory,
    /// Notes written.
    written: u64,
    /// Words of text begun.
    text: u64,
    /// Where in the text the processes told of lately are, by their address. Each is held, so that no other gets it.
    told: HashMap<usize, (u64, Arc<Process>)>,
}

impl NoteWriter {
    /// Adds a note; the oldest one gives way.
    pub fn push(&mut self, note: &Note) {
        let process = self.tell(&note.process);
        let words = encode(note, process);
        let number = self.written;
        self.written += 1;
        self.store(BEGUN, self.written);
        // Whoever sees a word of this note also sees that it was begun.
        fence(Release);
        let at = NOTES_AT + slot(number) * NOTE_WORDS;
        for (word, value) in self.memory.words().iter().skip(at).zip(words) {
            word.store(value, Relaxed);
        }
        if let Some(written) = self.memory.words().get(WRITTEN) {
            written.store(self.written, Release);
        }
    }

    /// The position of the process in the text, where it is written if it is not there or will soon be written over.
    fn tell(&mut self, process: &Arc<Process>) -> u64 {
        let key = Arc::as_ptr(process).addr();
        let young = self.text.saturating_sub(RING_TEXT_WORDS as u64 / 2);
        match self.told.get(&key) {
            Some((position, _)) if *position >= young => return *position,
            _ => {}
        }
        self.told.retain(|_, (position, _)| *position >= young);
        let bytes = record::encode(process);
        let words = bytes.len().div_ceil(8);
        let left = RING_TEXT_WORDS - position_in_text(self.text);
        let position = self.text + if words > left { left as u64 } else { 0 };
        self.text = position + words as u64;
        self.store(TEXT_BEGUN, self.text);
        fence(Release);
        let into = self.memory.words().iter().skip(TEXT_AT + position_in_text(position));
        for (word, chunk) in into.zip(bytes.chunks(8)) {
            let mut value = [0; 8];
            value.iter_mut().zip(chunk).for_each(|(into, from)| *into = *from);
            word.store(u64::from_ne_bytes(value), Relaxed);
        }
        self.told.insert(key, (position, Arc::clone(process)));
        position
    }

    fn store(&self, word: usize, value: u64) {
        if let Some(word) = self.memory.words().get(word) {
            word.store(value, Relaxed);
        }
    }
}

/// One reader of a ring: it gets each note once, in order.
#[derive(Debug)]
pub(super) struct NoteReader {
    memory: Memory,
    /// The number of the next note.
    next: u64,
    processes: HashMap<u64, Arc<Process>>,
}

/// What a visit to a ring missed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Missed {
    /// Notes that were written over before they were read.
    pub(super) overwritten: u64,
    /// Notes that make no sense: the writer is not one of ours.
    pub(super) garbled: u64,
}

impl NoteReader {
    /// Begins at the oldest note of the ring in `fd`.
    pub(super) fn open(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let memory = Memory::open(fd, WORDS)?;
        let reader = Self { memory, next: 0, processes: HashMap::new() };
        if reader.load(0) != MAGIC {
            let what = "the memory holds no ring of notes; both ends must be the same version";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        Ok(reader)
    }

    /// Whether there is anything to read.
    pub(super) fn has_news(&self) -> bool {
        self.load(WRITTEN) != self.next
    }

    /// Hands over what was written since the last visit, at most one ring full.
    pub(super) fn read(&mut self, mut take: impl FnMut(Note)) -> Missed {
        let mut missed = Missed::default();
        let written = self.load(WRITTEN);
        fence(Ordering::Acquire);
        let news = written.wrapping_sub(self.next);
        if news > u64::MAX / 2 {
            // It goes backwards: no writer of ours does that. What it says from now on may still be true.
            missed.garbled = 1;
            self.next = written;
            return missed;
        }
        if let Some(lost) = news.checked_sub(RING_NOTES as u64).filter(|lost| *lost > 0) {
            missed.overwritten = lost;
            self.next = self.next.wrapping_add(lost);
        }
        while self.next != written {
            if missed.garbled >= GARBLED_MAX {
                // Not worth the time: no writer of ours makes even one.
                missed.garbled = missed.garbled.saturating_add(written.wrapping_sub(self.next));
                self.next = written;
                break;
            }
            match self.one(self.next) {
                Ok(note) => take(note),
                Err(one) => {
                    missed.overwritten = missed.overwritten.saturating_add(one.overwritten);
                    missed.garbled = missed.garbled.saturating_add(one.garbled);
                }
            }
            self.next = self.next.wrapping_add(1);
        }
        missed
    }

    fn one(&mut self, number: u64) -> Result<Note, Missed> {
        let overwritten = Missed { overwritten: 1, ..Missed::default() };
        let mut words = [0; NOTE_WORDS];
        let from = self.memory.words().iter().skip(NOTES_AT + slot(number) * NOTE_WORDS);
        words.iter_mut().zip(from).for_each(|(into, from)| *into = from.load(Relaxed));
        fence(Ordering::Acquire);
        if self.load(BEGUN).wrapping_sub(number) > RING_NOTES as u64 {
            return Err(overwritten);
        }
        let garbled = Missed { garbled: 1, ..Missed::default() };
        let position = words.get(2).copied().unwrap_or_default();
        let process = match self.processes.get(&position) {
            Some(process) => Arc::clone(process),
            None => self.process(position)?.ok_or(garbled)?,
        };
        decode(&words, process).ok_or(garbled)
    }

    /// The process written at `position`; `Ok(None)` when there is none.
    fn process(&mut self, position: u64) -> Result<Option<Arc<Process>>, Missed> {
        let overwritten = Missed { overwritten: 1, ..Missed::default() };
        let is_overwritten = || self.load(TEXT_BEGUN).wrapping_sub(position) > RING_TEXT_WORDS as u64;
        if is_overwritten() {
            return Err(overwritten);
        }
        let at = position_in_text(position);
        let words = (RING_TEXT_WORDS - at).min(PROCESS_RECORD_BYTES_MAX.div_ceil(8));
        let from = self.memory.words().iter().skip(TEXT_AT + at).take(words);
        let bytes: Vec<u8> = from.flat_map(|word| word.load(Relaxed).to_ne_bytes()).collect();
        fence(Ordering::Acquire);
        if is_overwritten() {
            return Err(overwritten);
        }
        let Some(process) = record::decode(&bytes).map(Arc::new) else { return Ok(None) };
        if self.processes.len() >= PROCESSES_READ_MAX {
            self.processes.clear();
        }
        self.processes.insert(position, Arc::clone(&process));
        Ok(Some(process))
    }

    fn load(&self, word: usize) -> u64 {
        self.memory.words().get(word).map_or(0, |word| word.load(Relaxed))
    }
}

fn slot(number: u64) -> usize {
    (number % RING_NOTES as u64) as usize
}

fn position_in_text(position: u64) -> usize {
    (position % RING_TEXT_WORDS as u64) as usize
}

const HAS_PORT: u64 = 1 << 16;
const IS_IPV4: u64 = 1 << 17;

fn encode(note: &Note, process: u64) -> [u64; NOTE_WORDS] {
    let call = match note.call {
        Call::Connect => 0,
        Call::SendTo => 1,
        Call::SendMsg => 2,
        Call::SendMmsg => 3,
    };
    let proto = match note.proto {
        Proto::Tcp => 0,
        Proto::Udp => 1,
        Proto::Icmp => 2,
    };
    let port = note.src_port.map_or(0, |port| u64::from(port) | HAS_PORT);
    let (family, address) = match note.dst.ip() {
        IpAddr::V4(ip) => (IS_IPV4, ip.to_ipv6_mapped()),
        IpAddr::V6(ip) => (0, ip),
    };
    let address = address.to_bits();
    let how = port | family | proto << 20 | call << 24 | u64::from(note.dst.port()) << 32;
    [note.time_ns, note.tid.into(), process, how, (address >> 64) as u64, address as u64, 0, 0]
}

fn decode(words: &[u64; NOTE_WORDS], process: Arc<Process>) -> Option<Note> {
    let [time_ns, tid, _, how, high, low, ..] = *words;
    let address = Ipv6Addr::from_bits(u128::from(high) << 64 | u128::from(low));
    let ip = if how & IS_IPV4 != 0 { address.to_ipv4_mapped()?.into() } else { IpAddr::V6(address) };
    Some(Note {
        time_ns,
        tid: u32::try_from(tid).ok()?,
        process,
        proto: match how >> 20 & 0xf {
            0 => Proto::Tcp,
            1 => Proto::Udp,
            2 => Proto::Icmp,
            _ => return None,
        },
        src_port: (how & HAS_PORT != 0).then_some(how as u16),
        dst: SocketAddr::new(ip, (how >> 32) as u16),
        call: match how >> 24 & 0xf {
            0 => Call::Connect,
            1 => Call::SendTo,
            2 => Call::SendMsg,
            3 => Call::SendMmsg,
            _ => return None,
        },
    })
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
