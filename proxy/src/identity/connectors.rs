//! From a note of the kernel's trace to the process of this sandbox that connected, as it was then.
//!
//! The trace says which pid connected, and running which program ([`Life`]). The facts are read from `/proc` at the
//! first lookup of a life, and count only if they are of that life: nothing must have been executed between the connect
//! and the end of the reading. Two traps:
//! - An exec shows the new program in `/proc` before the trace tells of it (`begin_new_exec`: first the memory, then the
//!   descriptors that are closed, then the name). Its new memory has no code yet then: `stat` tells.
//! - A process in another namespace may have connected the same four-tuple. It is told by its namespace, after which it
//!   must still be in the life that connected.
//!
//! What was read once holds for the whole life: a process that is gone is still known by it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;

use super::process::{Facts, Process};
use super::procfs::ProcRoot;
use super::roster::Elsewhere;
use super::stat;
use super::table::Tuple;
use super::trace::{Life, Note, Trace};
use super::trail::Answer;

/// Lives whose facts are kept per sandbox, each about 500 bytes.
const REMEMBERED_MAX: usize = 1_024;

/// What the trace makes of a connection.
#[derive(Debug)]
pub(super) enum Verdict {
    /// This process connected, and this is what it ran.
    Named(Arc<Process>),
    /// No process of this sandbox is known to have connected.
    Unknown,
    /// A process did, but what it ran can no longer be told: nobody that is found now is proven.
    Doubtful(Answer),
}

/// The connecting processes of one sandbox.
#[derive(Debug)]
pub(super) struct Connectors {
    trace: Arc<Trace>,
    proc: Arc<ProcRoot>,
    netns: u64,
    place: Place,
    remembered: Mutex<Remembered>,
}

/// Where the sandbox's clients may be.
#[derive(Debug)]
pub(super) enum Place {
    /// In its network namespace, where nobody else's four-tuples are.
    Namespace,
    /// Anywhere but in these: all that is known of the sandbox is its address.
    AnywhereBut(Arc<Elsewhere>),
}

impl Connectors {
    pub(super) fn new(trace: Arc<Trace>, proc: Arc<ProcRoot>, netns: u64, place: Place) -> Self {
        Self { trace, proc, netns, place, remembered: Mutex::default() }
    }

    /// Who connected a socket with these ends. A few microseconds if that process has been looked up before, about a
    /// hundred otherwise.
    pub(super) fn connected(&self, facts: &Facts, tuple: &Tuple) -> Verdict {
        let notes = self.trace.find(tuple);
        match self.place {
            Place::Namespace => notes
                .iter()
                .find_map(|note| match self.judge(facts, note) {
                    Verdict::Unknown => None,
                    verdict => Some(verdict),
                })
                .unwrap_or(Verdict::Unknown),
            // The last one, unless another with the same ends is still waiting to be asked for.
            Place::AnywhereBut(_) => match &notes[..] {
                [] => Verdict::Unknown,
                [_, earlier @ ..] if earlier.iter().any(|note| !note.settled) => {
                    Verdict::Doubtful(Answer::Several)
                }
                [last, ..] => {
                    let verdict = self.judge(facts, last);
                    if matches!(verdict, Verdict::Named(_)) {
                        self.trace.settle(last);
                    }
                    verdict
                }
            },
        }
    }

    fn judge(&self, facts: &Facts, note: &Note) -> Verdict {
        let known = self.remembered().get(note.life);
        let netns = self.proc.netns(note.pid);
        let current = self.trace.is_current(note);
        match (netns, known) {
            // Only now is it certain whose namespace was read.
            (Ok(netns), _) if current && !self.may_be_in(netns) => Verdict::Unknown,
            (_, Some(process)) => Verdict::Named(process),
            (Ok(_), None) if current => self.read(facts, note),
            (Ok(_), None) => Verdict::Doubtful(Answer::Changed),
            (Err(errno), None) => Verdict::Doubtful(unread(errno)),
        }
    }

    fn may_be_in(&self, netns: u64) -> bool {
        netns == self.netns
            || matches!(&self.place, Place::AnywhereBut(elsewhere) if !elsewhere.contains(netns))
    }

    fn read(&self, facts: &Facts, note: &Note) -> Verdict {
        let read = self.proc.process(note.pid).and_then(|dir| {
            let dir = Arc::new(dir);
            let start_time = dir.stat(|bytes| stat::parse(bytes).map(|stat| stat.start_time))?;
            let process = facts.of(&dir, start_time)?;
            let has_code = dir.stat(|bytes| stat::parse(bytes).map(|stat| stat.start_code > 1))?;
            Ok((process, has_code))
        });
        let (process, has_code) = match read {
            Ok(read) => read,
            Err(errno) => return Verdict::Doubtful(unread(errno)),
        };
        if !has_code || !self.trace.is_current(note) {
            return Verdict::Doubtful(Answer::Changed);
        }
        self.remembered().put(note.life, Arc::clone(&process));
        Verdict::Named(process)
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, Remembered> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why what `/proc` says of a process could not be read.
const fn unread(errno: Errno) -> Answer {
    match errno {
        Errno::ACCESS | Errno::PERM => Answer::NotPermitted,
        _ => Answer::Gone,
    }
}

/// The facts of the lives read last.
#[derive(Debug, Default)]
struct Remembered {
    processes: HashMap<Life, Arc<Process>>,
    /// The oldest first.
    order: VecDeque<Life>,
}

impl Remembered {
    fn get(&self, life: Life) -> Option<Arc<Process>> {
        self.processes.get(&life).cloned()
    }

    fn put(&mut self, life: Life, process: Arc<Process>) {
        if self.processes.insert(life, process).is_some() {
            return;
        }
        self.order.push_back(life);
        if self.order.len() > REMEMBERED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.processes.remove(&oldest);
        }
    }
}
