//! Who holds a socket: the search through the descriptors of a sandbox's processes, and what is remembered of it.
//!
//! # A process that has not run can not have changed its descriptors
//!
//! To prove that a socket has one holder, every process of the sandbox has to be accounted for. Reading all descriptors
//! costs about 1 µs each, so they are read once and remembered with the scheduling counters of the process's threads
//! (`schedstat`). As long as those stand still, what is remembered is what is: receiving a descriptor, opening one, or
//! starting a thread takes running. Two traps:
//! - The time a thread ran is only brought up to date at a tick, but the number of its stints as each begins. A thread
//!   that was on a processor when its descriptors were read, and still is, shows neither. So counters vouch for a
//!   reading only once it is older than [`SETTLED`], longer than a running thread can go without a tick.
//! - A process may start between the listing and the reading. It is a child of one that was listed, which has then run.
//!
//! What is proven is as of the look. Processes that pass a socket around among them while they are looked at can hide a
//! holder; only the witness, which sees the connect itself, is beyond that.
//!
//! Processes that share a descriptor table without sharing memory (`clone(CLONE_FILES)`) change each other's; an exec
//! ends that sharing, so they run one binary and the one that ran speaks for both.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::Need;
use super::procfs::{ProcDir, ProcRoot, RunCounter, Runs};
use super::roster::{Elsewhere, Members, Roster};
use super::stat;

/// Longer than a running thread goes without a tick: 10 ms at the lowest tick rate (CONFIG_HZ=100), twice.
const SETTLED: Duration = Duration::from_millis(20);
/// The same where processors may run without ticks (`nohz_full`): the kernel still ticks them once a second.
const SETTLED_TICKLESS: Duration = Duration::from_secs(2);
/// Descriptors read in one search, at most: about 0.2 s. More in one sandbox is an attack on the others' patience.
const DESCRIPTORS_PER_SEARCH_MAX: usize = 200_000;
/// Scheduling counters held open per sandbox; each is a descriptor of ours. Processes beyond are read every time, as they
/// are when all sandboxes together hold as many as [`RunCounter`]s there may be.
const COUNTERS_MAX: usize = 4_096;
/// Threads of one process that are watched: beyond, reading its descriptors is cheaper.
const COUNTERS_PER_PROCESS_MAX: usize = 16;
/// Last owners that are remembered for the worker's own look.
const OWNERS_MAX: usize = 8;
/// Readings of descriptors a worker does itself, at most: about 1 µs each.
const QUICK_READINGS_MAX: usize = 6;
/// How far up the daemon's own ancestors are followed.
const OUR_ANCESTORS_MAX: usize = 64;
/// Recently used descriptors that are remembered per owner.
const RECENT_DESCRIPTORS: usize = 4;

/// A process that holds the socket.
#[derive(Debug, Clone)]
pub(super) struct Holder {
    pub dir: Arc<ProcDir>,
    pub fd: u32,
    /// When it started, as it was when its descriptors were read.
    pub start_time: u64,
}

/// What a search found out about one socket.
#[derive(Debug, Clone, Default)]
pub(super) struct Finding {
    pub holders: Vec<Holder>,
}

/// What a search found out.
#[derive(Debug, Default)]
pub(super) struct Search {
    /// In the order of the inodes asked for.
    pub findings: Vec<Finding>,
    /// Processes of the sandbox.
    pub processes: u32,
    /// Those whose descriptors could not be read.
    pub unreadable: u32,
}

/// What is remembered of a sandbox's processes.
#[derive(Debug)]
pub(super) struct Holders {
    proc: Arc<ProcRoot>,
    roster: Roster,
    netns: u64,
    elsewhere: Arc<Elsewhere>,
    settled: Duration,
    snapshots: HashMap<u32, Snapshot>,
    counters: usize,
    /// The last first.
    owners: Vec<Owner>,
    /// The highest pid in the last search.
    newest: Option<u32>,
}

/// The descriptors of one process when they were last read.
#[derive(Debug)]
struct Snapshot {
    start_time: u64,
    readable: bool,
    /// (inode, descriptor), sorted.
    sockets: Vec<(u64, u32)>,
    watch: Option<Watch>,
}

/// What tells whether a process has run since.
#[derive(Debug)]
struct Watch {
    threads: Vec<Thread>,
    /// When these counters were first seen to be as they are.
    since: Instant,
}

#[derive(Debug)]
struct Thread {
    tid: u32,
    counter: RunCounter,
    runs: Runs,
}

/// A process that was found to hold a socket lately.
#[derive(Debug)]
struct Owner {
    dir: Arc<ProcDir>,
    start_time: u64,
    /// The last first.
    recent: Vec<u32>,
}

impl Holders {
    pub(super) fn new(proc: Arc<ProcRoot>, members: Members, netns: u64, elsewhere: Arc<Elsewhere>) -> Self {
        let tickless = std::fs::read_to_string("/sys/devices/system/cpu/nohz_full")
            .is_ok_and(|cpus| !matches!(cpus.trim(), "" | "(null)"));
        Self {
            proc,
            roster: Roster::new(members),
            netns,
            elsewhere,
            settled: if tickless { SETTLED_TICKLESS } else { SETTLED },
            snapshots: HashMap::new(),
            counters: 0,
            owners: Vec::new(),
            newest: None,
        }
    }

    /// The holder of a socket if a few readings tell: a process that held one lately, and where it would have it.
    pub(super) fn quick(&mut self, inode: u64) -> Option<Holder> {
        let mut left = QUICK_READINGS_MAX;
        let (at, fd) = self.owners.iter().enumerate().find_map(|(at, owner)| {
            let remembered =
                self.snapshots.get(&owner.dir.pid()).and_then(|snapshot| snapshot.descriptor_of(inode));
            let next = owner.recent.first().map(|fd| fd.saturating_add(1));
            let places = remembered.into_iter().chain(owner.recent.iter().copied()).chain(next);
            for fd in places {
                left = left.checked_sub(1)?;
                if owner.dir.socket_at(fd) == Some(inode) {
                    return Some((at, fd));
                }
            }
            None
        })?;
        let owner = self.owners.get(at)?;
        let holder = Holder { dir: Arc::clone(&owner.dir), fd, start_time: owner.start_time };
        self.remember(&holder);
        Some(holder)
    }

    /// Searches the processes of the sandbox for these sockets. With [`Need::Name`] the search ends as soon as each has
    /// a holder; with [`Need::Proof`] it goes through all. `afresh` trusts nothing that is remembered.
    pub(super) fn search(&mut self, inodes: &[u64], need: Need, afresh: bool) -> std::io::Result<Search> {
        let mut pids = self.roster.list(&self.proc)?.to_vec();
        self.order(&mut pids);
        let search = self.search_among(&pids, inodes, need, afresh);
        self.forget_all_but(&pids);
        for holder in search.findings.iter().flat_map(|finding| &finding.holders) {
            self.remember(holder);
        }
        Ok(search)
    }

    /// Processes in the sandbox's own namespace, the most recently started first.
    pub(super) fn living(&mut self) -> std::io::Result<impl Iterator<Item = u32>> {
        let pids = self.roster.list(&self.proc)?.iter().copied();
        Ok(pids.filter(|&pid| self.proc.netns(pid).is_ok_and(|netns| netns == self.netns)))
    }

    /// Processes made since the last search first, then the last owners; then as listed, the latest first.
    fn order(&mut self, pids: &mut [u32]) {
        for owner in self.owners.iter().rev() {
            if let Some(at) = pids.iter().position(|&pid| pid == owner.dir.pid())
                && let Some(head) = pids.get_mut(..=at)
            {
                head.rotate_right(1);
            }
        }
        let newest = self.newest.replace(pids.iter().copied().max().unwrap_or(0));
        // A stable sort: the rest keeps its order.
        if let Some(newest) = newest {
            pids.sort_by_key(|&pid| pid <= newest);
        }
    }

    fn search_among(&mut self, pids: &[u32], inodes: &[u64], need: Need, afresh: bool) -> Search {
        let mut search = Search { findings: vec![Finding::default(); inodes.len()], ..Search::default() };
        let (now, mut budget) = (Instant::now(), DESCRIPTORS_PER_SEARCH_MAX);
        for &pid in pids {
            match self.look_at(pid, afresh, now, &mut budget) {
                Look::Outside => continue,
                Look::Unreadable => search.unreadable = search.unreadable.saturating_add(1),
                Look::Read => self.match_sockets(pid, inodes, &mut search.findings),
            }
            search.processes = search.processes.saturating_add(1);
            if need == Need::Name && search.findings.iter().all(|finding| !finding.holders.is_empty()) {
                break;
            }
        }
        search
    }

    fn match_sockets(&self, pid: u32, inodes: &[u64], findings: &mut [Finding]) {
        let Some(snapshot) = self.snapshots.get(&pid) else { return };
        let mut opened: Option<Arc<ProcDir>> = None;
        for (inode, finding) in inodes.iter().zip(findings) {
            let Some(fd) = snapshot.descriptor_of(*inode) else { continue };
            if opened.is_none() {
                opened = self.open_as(pid, snapshot.start_time);
            }
            let Some(dir) = &opened else { return };
            finding.holders.push(Holder { dir: Arc::clone(dir), fd, start_time: snapshot.start_time });
        }
    }

    /// The process that started then, not another that was given the same pid.
    fn open_as(&self, pid: u32, started: u64) -> Option<Arc<ProcDir>> {
        let dir = self.proc.process(pid).ok()?;
        (dir.stat(start_time) == Ok(started)).then(|| Arc::new(dir))
    }

    /// Brings what is remembered of a process up to date. `now` is when the search began.
    fn look_at(&mut self, pid: u32, afresh: bool, now: Instant, budget: &mut usize) -> Look {
        let settled = self.settled;
        let known = self.snapshots.get(&pid);
        let unchanged = known.and_then(|snapshot| snapshot.watch.as_ref()).and_then(Watch::unchanged_since);
        if !afresh
            && let (Some(since), Some(snapshot)) = (unchanged, known)
            && now.saturating_duration_since(since) >= settled
        {
            return snapshot.look();
        }
        match self.proc.netns(pid) {
            Ok(netns) if self.is_outside(netns) => {
                self.drop_snapshot(pid);
                return Look::Outside;
            }
            Ok(_) => {}
            // It is gone, or a kernel thread's last moment.
            Err(Errno::NOENT | Errno::SRCH) => {
                self.drop_snapshot(pid);
                return Look::Outside;
            }
            Err(_) => {
                self.drop_snapshot(pid);
                return if self.started_us(pid) { Look::Outside } else { Look::Unreadable };
            }
        }
        self.read(pid, unchanged.is_some(), budget)
    }

    /// Whether a process that can not be read is an ancestor of this one: an init or supervisor with more privilege than
    /// the daemon has. It could do to the daemon what it likes, and is not the sandbox's.
    fn started_us(&self, pid: u32) -> bool {
        let mut ours = std::process::id();
        for _ in 0..OUR_ANCESTORS_MAX {
            let parent =
                self.proc.process(ours).and_then(|dir| dir.stat(|bytes| Some(stat::parse(bytes)?.ppid)));
            match parent {
                Ok(parent) if parent == pid => return true,
                Ok(parent) if parent != 0 => ours = parent,
                _ => return false,
            }
        }
        false
    }

    fn is_outside(&self, netns: u64) -> bool {
        match self.roster.members() {
            Members::Namespace => netns != self.netns && self.elsewhere.contains(netns),
            Members::Cgroup(_) => false,
        }
    }

    /// Reads the descriptors of a process. `unchanged`: it was watched, and its counters are as they were.
    fn read(&mut self, pid: u32, unchanged: bool, budget: &mut usize) -> Look {
        let old = self.take_snapshot(pid);
        let opened = self.proc.process(pid).and_then(|dir| Ok((dir.stat(start_time)?, dir)));
        let (start_time, dir) = match opened {
            Ok(opened) => opened,
            Err(Errno::NOENT | Errno::SRCH) => return Look::Outside,
            Err(_) => return Look::Unreadable,
        };
        let old = old.filter(|old| old.start_time == start_time);
        let (mut sockets, old_watch) = old.map(|old| (old.sockets, old.watch)).unwrap_or_default();
        // The counters first: if it runs while its descriptors are read, they have moved when next looked at.
        let watch = if unchanged { old_watch } else { self.watch(&dir, old_watch) };
        sockets.clear();
        let readable = match dir.sockets(budget, &mut sockets) {
            Ok(()) => true,
            Err(Errno::NOENT | Errno::SRCH) => return Look::Outside,
            Err(_) => false,
        };
        sockets.sort_unstable();
        self.counters += watch.as_ref().map_or(0, |watch| watch.threads.len());
        let snapshot = Snapshot { start_time, readable, sockets, watch };
        let look = snapshot.look();
        self.snapshots.insert(pid, snapshot);
        look
    }

    /// Reads the counters of all threads, which `old` may have open already. None if there are too many, or they can not
    /// be told for certain.
    fn watch(&self, dir: &ProcDir, old: Option<Watch>) -> Option<Watch> {
        let mut tids = Vec::new();
        dir.threads(&mut tids).ok()?;
        if tids.is_empty()
            || tids.len() > COUNTERS_PER_PROCESS_MAX
            || self.counters + tids.len() > COUNTERS_MAX
        {
            return None;
        }
        let watch = old
            .filter(|old| old.is_of(&tids))
            .and_then(Watch::renewed)
            .or_else(|| Watch::open(dir, &tids))?;
        // A thread started before its maker's counters were read would go unwatched.
        let mut tids_after = Vec::with_capacity(tids.len());
        dir.threads(&mut tids_after).ok()?;
        (tids == tids_after).then_some(watch)
    }

    fn remember(&mut self, holder: &Holder) {
        let pid = holder.dir.pid();
        let known = self
            .owners
            .iter()
            .position(|owner| owner.dir.pid() == pid && owner.start_time == holder.start_time);
        let mut owner = match known {
            Some(at) => self.owners.remove(at),
            None => Owner {
                dir: Arc::clone(&holder.dir),
                start_time: holder.start_time,
                recent: Vec::with_capacity(RECENT_DESCRIPTORS + 1),
            },
        };
        owner.recent.retain(|&fd| fd != holder.fd);
        owner.recent.insert(0, holder.fd);
        owner.recent.truncate(RECENT_DESCRIPTORS);
        self.owners.retain(|other| other.dir.pid() != pid);
        self.owners.insert(0, owner);
        self.owners.truncate(OWNERS_MAX);
    }

    /// Forgets processes that are no longer listed, once there must be some: they are never believed, but take room.
    fn forget_all_but(&mut self, pids: &[u32]) {
        if self.snapshots.len() <= pids.len() {
            return;
        }
        let listed: HashSet<u32> = pids.iter().copied().collect();
        let gone: Vec<u32> = self.snapshots.keys().copied().filter(|pid| !listed.contains(pid)).collect();
        for pid in gone {
            self.drop_snapshot(pid);
        }
    }

    fn drop_snapshot(&mut self, pid: u32) {
        self.take_snapshot(pid);
    }

    fn take_snapshot(&mut self, pid: u32) -> Option<Snapshot> {
        let snapshot = self.snapshots.remove(&pid)?;
        let held = snapshot.watch.as_ref().map_or(0, |watch| watch.threads.len());
        self.counters = self.counters.saturating_sub(held);
        Some(snapshot)
    }
}

/// The outcome of looking at one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Not the sandbox's, or gone.
    Outside,
    /// Its descriptors are closed to us, or more than are read.
    Unreadable,
    /// Its snapshot is up to date.
    Read,
}

impl Snapshot {
    fn descriptor_of(&self, inode: u64) -> Option<u32> {
        let at = self.sockets.partition_point(|&(other, _)| other < inode);
        self.sockets.get(at).filter(|(other, _)| *other == inode).map(|&(_, fd)| fd)
    }

    const fn look(&self) -> Look {
        if self.readable { Look::Read } else { Look::Unreadable }
    }
}

impl Watch {
    fn open(dir: &ProcDir, tids: &[u32]) -> Option<Self> {
        let mut threads = Vec::with_capacity(tids.len());
        for &tid in tids {
            let counter = dir.run_counter(tid).ok()?;
            let runs = counter.read()?;
            threads.push(Thread { tid, counter, runs });
        }
        Some(Self { threads, since: Instant::now() })
    }

    /// The same threads, if none has ended, as they are now.
    fn renewed(mut self) -> Option<Self> {
        for thread in &mut self.threads {
            thread.runs = thread.counter.read()?;
        }
        self.since = Instant::now();
        Some(self)
    }

    fn is_of(&self, tids: &[u32]) -> bool {
        self.threads.iter().map(|thread| thread.tid).eq(tids.iter().copied())
    }

    /// Since when the counters are known to be what they are, if they still are.
    fn unchanged_since(&self) -> Option<Instant> {
        let unchanged = |thread: &Thread| thread.counter.read() == Some(thread.runs);
        self.threads.iter().all(unchanged).then_some(self.since)
    }
}

fn start_time(bytes: &[u8]) -> Option<u64> {
    stat::parse(bytes).map(|stat| stat.start_time)
}

#[cfg(test)]
mod tests;
