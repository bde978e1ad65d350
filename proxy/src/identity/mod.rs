//! Which binary asked: known in microseconds, and never guessed.
//!
//! Owns: the way from an accepted connection's addresses to the process behind it, the facts about that process, and
//! the account of how each is known. Never: policy, HTTP, events. It says what it knows and what it does not; the
//! caller decides what a doubt is worth (a policy that names binaries denies).
//!
//! # The life of a lookup
//!
//! 1. A worker asks [`Resolver::quick`] right after `accept`. `resolver.rs` first asks the connect witness
//!    ([`ConnectNotes`]): a note is exact, and dates from the connect itself.
//! 2. Else the kernel's trace of connects is asked (`trace`): it knows which process connected, in whatever sandbox, and
//!    `connectors.rs` makes sure that what `/proc` says of it is of the time of the connect.
//! 3. Else `diag.rs` asks the kernel, inside the sandbox's namespace, which socket has the connection's four-tuple
//!    (about 3 µs), and `holders.rs` looks whether a process it knows holds that socket.
//! 4. Only if that is not enough does the worker get a [`Ticket`] and awaits the [`Scanner`], the one thread that reads
//!    `/proc` at length: `sources.rs` reads the tables that `table.rs` matches row by row, `roster.rs` lists the
//!    sandbox's processes, `holders.rs` reads the descriptors of those that have run since it last looked.
//! 5. `process.rs` states the facts of the holder: exe, start time, uid, ancestors. `image.rs` hashes the running image
//!    when somebody wants it, on a thread of its own, and notices when a path's binary changes.
//! 6. The worker gets an [`Identity`], whose [`Trail`] tells what every source said.
//!
//! Each reading of `/proc` goes through a descriptor of the process's own directory (`procfs.rs`), so a pid that was
//! given to another process in between can not be mistaken for the one that was found.

mod connectors;
mod diag;
mod diag_message;
mod holders;
mod image;
mod process;
mod procfs;
mod resolver;
mod roster;
mod scanner;
mod sources;
mod stat;
pub mod table;
mod trace;
mod trail;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

pub use diag::{DiagError, DiagSocket, Found as DiagFound};
pub use image::{Changed, Digest, HashError, Images};
pub use process::{ImageKey, Process, Standing};
pub use resolver::{Mode, OpenError, Quick, Resolver, Setup, Ticket};
pub use roster::{Elsewhere, Members};
pub use scanner::Scanner;
pub use sources::{ProcTables, Tables};
pub use trace::{Figures as TraceFigures, Trace, TraceError, replay as replay_trace};
pub use trail::{Account, Answer, Holding, Source, Trail};

/// The transport of the socket in question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// A client of the proxy, or a direct TCP attempt.
    Tcp,
    /// A direct UDP attempt: the socket outlives the refusal, so it can still be named.
    Udp,
}

/// How much the answer has to stand up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Need {
    /// One process that holds the socket: enough for events, where no rule names binaries.
    Name,
    /// That no process with another binary holds the socket too: what a policy that names binaries needs. Every process
    /// of the sandbox is accounted for, those that have not run since the last look without reading their descriptors.
    Proof,
}

/// A connection whose client is sought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Query {
    /// The transport of both ends.
    pub protocol: Protocol,
    /// The client's address and port: the peer of the accepted socket.
    pub client: SocketAddr,
    /// The proxy's address and port as the client dialled it: the accepted socket's own name.
    pub proxy: SocketAddr,
    /// What the answer is for.
    pub need: Need,
}

/// What the connect witness saw: identity at the moment of the connect, whatever the process did since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Thread group id, in the daemon's pid namespace.
    pub pid: u32,
    /// The thread that connected.
    pub tid: u32,
    /// Clock ticks after boot at which the process started (`/proc/<pid>/stat`, field 22).
    pub start_time: u64,
    /// The binary at the time of the connect, as `/proc/<pid>/exe` read then.
    pub exe: PathBuf,
    /// The thread's name then.
    pub comm: String,
    /// Effective uid in the daemon's user namespace.
    pub uid: u32,
    /// The binaries of its ancestors in the sandbox, nearest first; `None` if the witness did not look: then they are
    /// looked up now.
    pub ancestors: Option<Vec<PathBuf>>,
}

/// The notes of a connect witness, if the sandbox has one.
pub trait ConnectNotes: Send + Sync {
    /// The note of the connect from `client` to `proxy`, matched by source port and destination. Called on a worker:
    /// must not block.
    fn find(&self, client: SocketAddr, proxy: SocketAddr) -> Option<Seen>;
}

/// Who asked, how that is known, and what every source said.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The source that answered; [`Source::None`] if no process could be named.
    pub source: Source,
    /// The process, if one could be named. With `ambiguous` it is the one that started first.
    pub process: Option<Arc<Process>>,
    /// The socket's uid as the kernel has it: known even where the process is not.
    pub uid: Option<u32>,
    /// More than one binary holds the socket, or that could not be ruled out although the caller needed
    /// [`Need::Proof`]. The trail says which. A policy that names binaries denies.
    pub ambiguous: bool,
    /// What each source said.
    pub trail: Trail,
}

impl Identity {
    /// The same, of a connection that was reset before it was known: its ends may be another's by now.
    #[must_use]
    pub fn doubted(&self) -> Arc<Self> {
        let trail = Trail { reset: true, ..self.trail };
        Arc::new(Self { ambiguous: self.process.is_some(), trail, ..self.clone() })
    }

    /// The process a policy that names binaries may go by: known, and alone.
    pub fn proven(&self) -> Option<&Arc<Process>> {
        self.process.as_ref().filter(|_| !self.ambiguous)
    }
}
