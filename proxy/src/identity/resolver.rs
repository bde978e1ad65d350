//! One sandbox's lookups: the quick look on a worker, and the settling of what that leaves open.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::connectors::{Connectors, Place, Verdict};
use super::diag::{DiagError, DiagSocket};
use super::holders::{Finding, Holder, Holders, Search};
use super::process::{Facts, Process, View};
use super::procfs::{ProcRoot, metadata};
use super::roster::{Elsewhere, Members};
use super::sources::Tables;
use super::table::{Reading, Sighting, Tuple};
use super::trace::Trace;
use super::trail::{Answer, Holding, Source, Trail};
use super::{ConnectNotes, Identity, Need, Protocol, Query};

/// Processes whose tables are tried, one after the other, before the global table is: they may end as they are read.
const PID_TABLES_TRIED_MAX: usize = 3;

/// How far identity is sought for a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The process.
    Process,
    /// Only the uid of its socket.
    Uid,
    /// Not at all: nothing can be known (a microVM behind a tap). Policies that name binaries are refused at load.
    Off,
}

/// What a sandbox's lookups need to know about it.
pub struct Setup {
    /// How far identity is sought.
    pub mode: Mode,
    /// The sandbox's network namespace; none for one that lives in the daemon's own.
    pub netns: Option<OwnedFd>,
    /// Where its processes are listed.
    pub members: Members,
    /// Namespaces that are not the sandbox's.
    pub elsewhere: Arc<Elsewhere>,
    /// The process whose mount namespace gives paths their meaning (a container's first); none for the daemon's own.
    /// Only needed while the resolver is opened.
    pub view_of: Option<u32>,
    /// Its witness, if it has one.
    pub notes: Option<Arc<dyn ConnectNotes>>,
    /// The trace of this host's connects, where it can be had. Not needed with a witness.
    pub trace: Option<Arc<Trace>>,
    /// Where the tcp tables come from: [`ProcTables`](super::ProcTables) of `/proc`.
    pub tables: Arc<dyn Tables>,
    /// The proc file system: `/proc`.
    pub proc: PathBuf,
}

/// Why a sandbox's processes can not be looked up.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The proc file system can not be read.
    #[error(
        "cannot open {path}: {error}; mount proc there (without hidepid) and run the daemon in the host's pid namespace"
    )]
    Proc {
        /// What was tried.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// The namespace can not be told.
    #[error("cannot tell the sandbox's network namespace: {0}")]
    Namespace(Errno),
    /// The process whose file system gives paths their meaning can not be looked at.
    #[error(
        "cannot open the root directory of process {pid}: {error}; it must be alive, and the daemon needs CAP_SYS_PTRACE"
    )]
    View {
        /// The process; 0 for the daemon itself.
        pid: u32,
        /// Why not.
        error: std::io::Error,
    },
    /// The namespace can not be entered.
    #[error(transparent)]
    Diag(DiagError),
}

/// What the quick look found.
#[derive(Debug)]
pub enum Quick {
    /// The answer; nothing more can be found out by a search.
    Known(Arc<Identity>),
    /// Hand this to the [`Scanner`](super::Scanner) and await the answer.
    NeedsScan(Ticket),
}

/// Lookups of one sandbox on one worker. Shared by several workers it works too, one lookup at a time;
/// [`Resolver::for_another_worker`] avoids the waiting.
pub struct Resolver {
    shared: Arc<Shared>,
    diag: Mutex<Result<DiagSocket, Answer>>,
}

/// What the workers and the scanner share of a sandbox.
pub(super) struct Shared {
    mode: Mode,
    netns: Option<OwnedFd>,
    notes: Option<Arc<dyn ConnectNotes>>,
    connectors: Option<Connectors>,
    tables: Arc<dyn Tables>,
    facts: Facts,
    holders: Mutex<Holders>,
    /// Tickets that wait for the scanner.
    pub(super) waiting: AtomicUsize,
}

/// A lookup that needs a search, and what is known already.
pub struct Ticket {
    shared: Arc<Shared>,
    query: Query,
    tuple: Tuple,
    inode: Option<u64>,
    uid: Option<u32>,
    /// The trace knows that somebody connected whom nothing can prove any more.
    doubtful: bool,
    trail: Trail,
}

impl Resolver {
    /// Opens a sandbox's lookups. A kernel that refuses sock_diag is not an error: the tables are read instead, and
    /// every trail says so; see [`Resolver::diag_state`].
    pub fn open(setup: Setup) -> Result<Self, OpenError> {
        let proc = ProcRoot::open(&setup.proc)
            .map(Arc::new)
            .map_err(|error| OpenError::Proc { path: setup.proc, error })?;
        let netns = match &setup.netns {
            Some(fd) => metadata(fd).map_err(OpenError::Namespace)?.st_ino,
            None => ProcRoot::open("/proc".as_ref())
                .map_err(|error| OpenError::Proc { path: "/proc".into(), error })?
                .netns(std::process::id())
                .map_err(OpenError::Namespace)?,
        };
        let view = View::open(&proc, setup.view_of)
            .map_err(|error| OpenError::View { pid: setup.view_of.unwrap_or(0), error })?;
        let place = match &setup.netns {
            Some(_) => Place::Namespace,
            None => Place::AnywhereBut(Arc::clone(&setup.elsewhere)),
        };
        let connectors = setup.trace.map(|trace| Connectors::new(trace, Arc::clone(&proc), netns, place));
        let shared = Arc::new(Shared {
            mode: setup.mode,
            netns: setup.netns,
            notes: setup.notes,
            connectors,
            tables: setup.tables,
            facts: Facts::new(Arc::clone(&proc), netns, view),
            holders: Mutex::new(Holders::new(proc, setup.members, netns, setup.elsewhere)),
            waiting: AtomicUsize::new(0),
        });
        Self::with(shared)
    }

    /// The same sandbox for another worker: it shares what is known, and asks the kernel on a line of its own.
    pub fn for_another_worker(&self) -> Result<Self, OpenError> {
        Self::with(Arc::clone(&self.shared))
    }

    fn with(shared: Arc<Shared>) -> Result<Self, OpenError> {
        let diag = if shared.mode == Mode::Off {
            Err(Answer::Absent)
        } else {
            match DiagSocket::open(shared.netns.as_ref().map(|netns| netns.as_fd())) {
                Ok(socket) => Ok(socket),
                Err(error @ (DiagError::Enter(_) | DiagError::Thread(_))) => {
                    return Err(OpenError::Diag(error));
                }
                Err(error) => Err(Answer::from(&error)),
            }
        };
        Ok(Self { shared, diag: Mutex::new(diag) })
    }

    /// Whether the kernel can be asked: [`Answer::Found`] if so, else what every trail will say of it.
    pub fn diag_state(&self) -> Answer {
        lock(&self.diag).as_ref().map_or_else(|answer| *answer, |_| Answer::Found)
    }

    /// Looks where it costs microseconds: at the witness's notes, at the kernel's socket table, at the last owners.
    /// Ask right after `accept`: without a witness the answer is as of now, not of the connect.
    pub fn quick(&self, query: &Query) -> Quick {
        let mut ticket = Ticket::new(&self.shared, query);
        if self.shared.mode == Mode::Off {
            ticket.trail.diag = Answer::Absent;
            ticket.trail.pid_table = Answer::Absent;
            ticket.trail.global_table = Answer::Absent;
            return Quick::Known(ticket.nobody());
        }
        if self.shared.mode == Mode::Process
            && let Some(notes) = &self.shared.notes
        {
            if let Some(seen) = notes.find(query.client, query.proxy) {
                ticket.trail.witness = Answer::Found;
                return Quick::Known(ticket.named_by(Source::Witness, self.shared.facts.of_note(seen)));
            }
            ticket.trail.witness = Answer::NotFound;
        }
        if let Some(process) = self.shared.connected(&mut ticket) {
            return Quick::Known(ticket.named_by(Source::Trace, process));
        }
        self.ask_the_kernel(&mut ticket);
        let ends_here = match ticket.trail.diag {
            // The kernel has said all there is to say: the tables are made of the same sockets.
            Answer::Orphan => true,
            Answer::Found => self.shared.mode == Mode::Uid,
            // The tables that are read are those of tcp.
            _ => query.protocol == Protocol::Udp,
        };
        if ends_here {
            return Quick::Known(ticket.nobody());
        }
        match self.shared.last_owner(&ticket) {
            Some(process) => Quick::Known(ticket.named(process, Holding::Named)),
            None => Quick::NeedsScan(ticket),
        }
    }

    /// The processes of a user in the sandbox, at most `max`, the latest first. Reads `/proc` for milliseconds: never on
    /// a worker.
    pub fn processes_of(&self, uid: u32, max: usize) -> Vec<Arc<Process>> {
        let mut holders = lock(&self.shared.holders);
        let living: Vec<u32> = holders.living().map(Iterator::collect).unwrap_or_default();
        drop(holders);
        let of_uid = |pid: u32| self.shared.facts.of_user(pid, uid);
        living.into_iter().filter_map(of_uid).take(max).collect()
    }

    fn ask_the_kernel(&self, ticket: &mut Ticket) {
        let mut diag = lock(&self.diag);
        let answer = diag.as_mut().map_err(|answer| *answer).and_then(|socket| {
            socket.lookup(ticket.query.protocol, &ticket.tuple).map_err(|error| Answer::from(&error))
        });
        ticket.trail.diag = match answer {
            Ok(Some(found)) if found.inode == 0 => Answer::Orphan,
            Ok(Some(found)) => {
                ticket.inode = Some(found.inode);
                ticket.uid = Some(found.uid);
                Answer::Found
            }
            Ok(None) => Answer::NotFound,
            Err(answer) => answer,
        };
    }
}

impl Shared {
    /// Who connected, by the kernel's trace.
    fn connected(&self, ticket: &mut Ticket) -> Option<Arc<Process>> {
        if self.mode != Mode::Process || ticket.query.protocol != Protocol::Tcp {
            return None;
        }
        ticket.trail.trace = match self.connectors.as_ref()?.connected(&self.facts, &ticket.tuple) {
            Verdict::Named(process) => {
                ticket.trail.trace = Answer::Found;
                return Some(process);
            }
            Verdict::Unknown => Answer::NotFound,
            Verdict::Doubtful(answer) => {
                ticket.doubtful = true;
                answer
            }
        };
        None
    }

    /// One of the last owners, if one process is enough and the scanner is not at work on them.
    fn last_owner(&self, ticket: &Ticket) -> Option<Arc<Process>> {
        if ticket.query.need == Need::Proof {
            return None;
        }
        let holder = match self.holders.try_lock() {
            Ok(mut holders) => holders.quick(ticket.inode?)?,
            Err(std::sync::TryLockError::Poisoned(holders)) => holders.into_inner().quick(ticket.inode?)?,
            Err(std::sync::TryLockError::WouldBlock) => return None,
        };
        self.facts.of(&holder.dir, holder.start_time).ok()
    }

    /// Reads the tables once for all tickets whose socket is not known yet.
    fn read_tables(&self, tickets: &mut [Ticket]) {
        let sought: Vec<Tuple> =
            tickets.iter().filter(|ticket| ticket.inode.is_none()).map(|ticket| ticket.tuple).collect();
        if sought.is_empty() {
            return;
        }
        let mut reading = Reading::new(sought.iter().copied());
        let answer = self.read_pid_table(&mut reading);
        for ticket in tickets.iter_mut().filter(|ticket| ticket.inode.is_none()) {
            ticket.trail.pid_table = ticket.take(&reading).unwrap_or(answer);
        }
        let left = tickets.iter().filter(|ticket| ticket.inode.is_none()).map(|ticket| ticket.tuple);
        let mut reading = Reading::new(left);
        if reading.is_complete() {
            return;
        }
        let answer =
            self.tables.global(&mut reading).map_or_else(|error| Answer::from(&error), |()| Answer::NotFound);
        for ticket in tickets.iter_mut().filter(|ticket| ticket.inode.is_none()) {
            ticket.trail.global_table = ticket.take(&reading).unwrap_or(answer);
        }
    }

    /// The table of a living process, chosen afresh: no process is relied on to stay.
    fn read_pid_table(&self, reading: &mut Reading) -> Answer {
        let living: Vec<u32> = match lock(&self.holders).living() {
            Ok(living) => living.take(PID_TABLES_TRIED_MAX).collect(),
            Err(error) => return Answer::from(&error),
        };
        let mut answer = Answer::Absent;
        for pid in living {
            match self.tables.of_process(pid, reading) {
                Ok(()) => return Answer::NotFound,
                Err(error) => {
                    reading.leave_table();
                    answer = Answer::from(&error);
                }
            }
        }
        answer
    }

    /// Searches for the holders of all sockets that are known, once.
    fn search(&self, inodes: &[u64], need: Need, afresh: bool) -> std::io::Result<Search> {
        if inodes.is_empty() {
            return Ok(Search::default());
        }
        lock(&self.holders).search(inodes, need, afresh)
    }

    fn judge(&self, ticket: Ticket, finding: &Finding, search: &Search) -> Arc<Identity> {
        let facts = |holder: &Holder| self.facts.of(&holder.dir, holder.start_time).ok();
        let mut holders: Vec<Arc<Process>> = finding.holders.iter().filter_map(facts).collect();
        holders.sort_by_key(|process| (process.start_time, process.pid));
        let count = holders.len() as u32;
        // Holders whose facts could not be read, or that ended meanwhile.
        let unknown = (finding.holders.len() - holders.len()) as u32;
        let (processes, unreadable) = (search.processes, search.unreadable.saturating_add(unknown));
        let Some(first) = holders.first() else {
            let mut ticket = ticket;
            ticket.trail.holding = Holding::Nobody { processes, unreadable };
            return ticket.nobody();
        };
        let holding = if !holders.iter().all(|other| other.runs_the_same_as(first)) {
            Holding::Different { holders: count }
        } else if ticket.query.need == Need::Name {
            Holding::Named
        } else if unreadable > 0 {
            Holding::Unsure { unreadable }
        } else {
            Holding::Proven { holders: count }
        };
        ticket.named(Arc::clone(first), holding)
    }
}

impl Ticket {
    fn new(shared: &Arc<Shared>, query: &Query) -> Self {
        Self {
            shared: Arc::clone(shared),
            query: *query,
            tuple: Tuple::new(query.client, query.proxy),
            inode: None,
            uid: None,
            doubtful: false,
            trail: Trail { witness: Answer::Absent, trace: Answer::Absent, ..Trail::default() },
        }
    }

    /// Searches now, on this thread, for as long as it takes: milliseconds. Never on a worker.
    pub fn settle(self) -> Arc<Identity> {
        settle(vec![self]).pop().unwrap_or_else(|| unreachable!("one ticket has one answer"))
    }

    /// The answer when there is nobody to search: the scanner is overloaded or gone.
    pub(super) fn turned_away(mut self) -> Arc<Identity> {
        self.trail.pid_table = Answer::Busy;
        self.trail.global_table = Answer::Busy;
        self.nobody()
    }

    /// Whether the socket is known, and only its holder sought.
    pub const fn knows_socket(&self) -> bool {
        self.inode.is_some()
    }

    pub(super) const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Takes what a table said. None: it said nothing about this connection.
    fn take(&mut self, reading: &Reading) -> Option<Answer> {
        self.trail.malformed_rows = self.trail.malformed_rows.saturating_add(reading.malformed());
        match reading.sighting(&self.tuple) {
            Sighting::Unseen => None,
            Sighting::Orphan => Some(Answer::Orphan),
            Sighting::Socket { inode, uid } => {
                self.inode = Some(inode);
                self.uid = Some(uid);
                Some(Answer::Found)
            }
        }
    }

    /// Named by a source that saw the connect.
    fn named_by(self, source: Source, process: Arc<Process>) -> Arc<Identity> {
        let uid = Some(process.uid);
        Arc::new(Identity { source, process: Some(process), uid, ambiguous: false, trail: self.trail })
    }

    fn named(mut self, process: Arc<Process>, holding: Holding) -> Arc<Identity> {
        self.trail.holding = holding;
        let proven = match holding {
            Holding::Proven { .. } => !self.doubtful,
            Holding::Named => self.query.need == Need::Name,
            _ => false,
        };
        Arc::new(Identity {
            source: self.trail.found_by().unwrap_or(Source::None),
            process: Some(process),
            uid: self.uid,
            ambiguous: !proven,
            trail: self.trail,
        })
    }

    fn nobody(self) -> Arc<Identity> {
        Arc::new(Identity {
            source: Source::None,
            process: None,
            uid: self.uid,
            ambiguous: false,
            trail: self.trail,
        })
    }
}

/// Settles tickets of one sandbox: one reading of the tables and one search of the processes for all of them.
pub(super) fn settle(mut tickets: Vec<Ticket>) -> Vec<Arc<Identity>> {
    let Some(shared) = tickets.first().map(|ticket| Arc::clone(&ticket.shared)) else { return Vec::new() };
    shared.read_tables(&mut tickets);
    if shared.mode == Mode::Uid {
        return tickets.into_iter().map(Ticket::nobody).collect();
    }
    let inodes: Vec<u64> = tickets.iter().filter_map(|ticket| ticket.inode).collect();
    let need = tickets.iter().map(|ticket| ticket.query.need).max().unwrap_or(Need::Proof);
    let mut search = shared.search(&inodes, need, false);
    // A socket that was handed over while we looked has no holder in what was seen: look once more, at everything.
    let lost = |search: &Search| search.findings.iter().any(|finding| finding.holders.is_empty());
    if search.as_ref().is_ok_and(lost) {
        search = shared.search(&inodes, need, true);
    }
    let search = search.unwrap_or_else(|error| {
        tracing::warn!(%error, "the sandbox's processes cannot be listed: nobody can be named");
        Search { unreadable: 1, ..Search::default() }
    });
    let (none, mut findings) = (Finding::default(), search.findings.iter());
    tickets
        .into_iter()
        .map(|ticket| match ticket.inode {
            Some(_) => {
                let finding = findings.next().unwrap_or(&none);
                shared.judge(ticket, finding, &search)
            }
            None => ticket.nobody(),
        })
        .collect()
}

impl Shared {
    /// Counts a ticket in, unless `max` are waiting already.
    pub(super) fn admit(&self, max: usize) -> bool {
        let admitted = |waiting: usize| (waiting < max).then_some(waiting + 1);
        self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, admitted).is_ok()
    }

    /// Counts tickets out.
    pub(super) fn release(&self, tickets: usize) {
        self.waiting.fetch_sub(tickets, Ordering::Relaxed);
    }
}

impl From<&DiagError> for Answer {
    fn from(error: &DiagError) -> Self {
        match error {
            DiagError::NotPermitted(_) => Self::NotPermitted,
            DiagError::Missing(_) => Self::Absent,
            DiagError::Enter(errno) | DiagError::Failed(errno) => Self::Failed(*errno as i32),
            DiagError::Thread(error) => Self::from(error),
            DiagError::Garbled => Self::Failed(nix::libc::EBADMSG),
        }
    }
}

impl From<&std::io::Error> for Answer {
    fn from(error: &std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(nix::libc::EACCES | nix::libc::EPERM) => Self::NotPermitted,
            Some(errno) => Self::Failed(errno),
            None => Self::Failed(nix::libc::EIO),
        }
    }
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ticket")
            .field("query", &self.query)
            .field("trail", &self.trail)
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these guard is valid after every step: a panic elsewhere does not make it wrong.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
