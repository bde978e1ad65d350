//! The process behind an attempt, as far as it is known.

use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;

use sluice_bypass::ProxyEnv;
use sluice_seccomp::{HowStarted, Process as NotedProcess, ProxyVariable};

use crate::identity::{Identity, Process, Source};

/// Candidates that an event names; a sandbox with more processes of one user has too many to choose from.
pub(super) const CANDIDATES_MAX: usize = 16;

/// Equal when it is the same process (or the same candidates), known in the same way.
#[derive(Clone, Debug)]
pub(super) enum Who {
    /// This one.
    Process(Arc<Known>),
    /// One of these.
    Candidates(Arc<[Candidate]>),
    /// Nobody knows.
    Nobody,
}

#[derive(Debug)]
pub(super) struct Known {
    pub(super) pid: u32,
    pub(super) start_time: u64,
    pub(super) exe: PathBuf,
    pub(super) comm: String,
    pub(super) uid: u32,
    pub(super) ancestors: Vec<PathBuf>,
    pub(super) source: Source,
    pub(super) trail: Option<String>,
    pub(super) args: Arc<[Box<str>]>,
    pub(super) proxy_env: ProxyEnv,
}

/// A process that may have been it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Candidate {
    pub(super) pid: u32,
    pub(super) start_time: u64,
    pub(super) exe: String,
    pub(super) comm: String,
}

impl Who {
    /// The process of a witness's note.
    pub(super) fn noted(process: &NotedProcess) -> Self {
        Self::Process(Arc::new(Known {
            pid: process.pid,
            start_time: process.start_time,
            exe: process.exe.to_path_buf(),
            comm: process.comm.to_string(),
            uid: process.uid,
            ancestors: process.ancestors.iter().map(|path| path.to_path_buf()).collect(),
            source: Source::Witness,
            trail: None,
            args: Arc::clone(&process.args),
            proxy_env: proxy_env(process.proxy_variable),
        }))
    }

    /// The process that holds the socket, without how it was started. `None`: nobody was found.
    pub(super) fn found(identity: &Identity) -> Option<Self> {
        let process = identity.process.as_ref()?;
        Some(Self::Process(Arc::new(Known {
            pid: process.pid,
            start_time: process.start_time,
            exe: process.exe.clone(),
            comm: process.comm.clone(),
            uid: process.uid,
            ancestors: process.ancestors.clone(),
            source: identity.source,
            trail: Some(identity.trail.to_string()),
            args: Arc::default(),
            proxy_env: ProxyEnv::Unknown,
        })))
    }

    /// The same, with how it was started.
    pub(super) fn started(self, how: HowStarted) -> Self {
        let Self::Process(mut known) = self else { return self };
        if let Some(known) = Arc::get_mut(&mut known) {
            known.args = how.args;
            known.proxy_env = proxy_env(how.proxy_variable);
        }
        Self::Process(known)
    }

    /// One of some processes. The first one of a launched workload is Sluice's own, and only waits for the others.
    pub(super) fn one_of(processes: &[Arc<Process>]) -> Self {
        let own = std::env::current_exe().unwrap_or_default();
        let processes: Vec<_> = processes.iter().filter(|process| process.exe != own).collect();
        if processes.is_empty() {
            return Self::Nobody;
        }
        let candidate = |process: &Arc<Process>| Candidate {
            pid: process.pid,
            start_time: process.start_time,
            exe: process.exe.to_string_lossy().into_owned(),
            comm: process.comm.clone(),
        };
        Self::Candidates(processes.into_iter().take(CANDIDATES_MAX).map(candidate).collect())
    }

    /// How it is known, as events and metrics say it.
    pub(super) fn label(&self) -> &'static str {
        match self {
            Self::Process(known) => known.source.label(),
            Self::Candidates(_) => "candidates",
            Self::Nobody => Source::None.label(),
        }
    }

    /// Whether it is `process`, or may be.
    pub(super) fn may_be(&self, process: &Self) -> bool {
        let Some(other) = process.known() else { return false };
        let id = (other.pid, other.start_time);
        match self {
            Self::Process(known) => (known.pid, known.start_time) == id,
            Self::Candidates(candidates) => candidates.iter().any(|one| (one.pid, one.start_time) == id),
            Self::Nobody => false,
        }
    }

    pub(super) fn known(&self) -> Option<&Known> {
        match self {
            Self::Process(known) => Some(known),
            _ => None,
        }
    }
}

fn proxy_env(variable: Option<ProxyVariable>) -> ProxyEnv {
    match variable {
        Some(ProxyVariable::Present) => ProxyEnv::Present,
        Some(ProxyVariable::Absent) => ProxyEnv::Absent,
        None => ProxyEnv::Unknown,
    }
}

impl PartialEq for Who {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Process(one), Self::Process(other)) => {
                Arc::ptr_eq(one, other)
                    || (one.pid, one.start_time, &one.exe, one.source)
                        == (other.pid, other.start_time, &other.exe, other.source)
            }
            (Self::Candidates(some), Self::Candidates(others)) => some == others,
            (Self::Nobody, Self::Nobody) => true,
            _ => false,
        }
    }
}

impl Eq for Who {}

impl Hash for Who {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Process(known) => (known.pid, known.start_time).hash(state),
            Self::Candidates(candidates) => candidates.hash(state),
            Self::Nobody => {}
        }
    }
}
