//! Landlock: which files a workload may touch, and the scopes every workload gets.
//!
//! Two lists make the plan: directories and files to read and execute, and ones to write as well.
//! All else on the file system is refused. Even without a plan a workload gets a scope-only rule
//! set (kernel 6.12 and later): signals and abstract sockets cannot leave the sandbox. Any Landlock
//! domain at all also stops `ptrace`, `process_vm_*`, `pidfd_getfd` and `/proc/<pid>/mem` towards
//! processes outside it.
//!
//! TCP bind is never handled: a rule set that handles it forbids every bind not listed.

use crate::syscalls;
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, NetPort, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, Scope,
};
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What happens when the kernel or the file system falls short of the plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Requirement {
    /// A missing path or a kernel without Landlock stops the launch.
    #[default]
    Required,
    /// Missing paths are left out and reported; without Landlock the launch goes on and says so.
    BestEffort,
}

/// The file-system part of a policy.
#[derive(Clone, Debug, Default)]
pub struct LandlockPlan {
    /// Files and directories (with all beneath them) that may be read and executed.
    pub read_only: Vec<PathBuf>,
    /// Files and directories that may be read, executed, written, created and removed.
    pub read_write: Vec<PathBuf>,
    /// What a shortfall does.
    pub requirement: Requirement,
    /// When given, TCP connects are allowed to this port alone (the proxy's), a second lock beside the
    /// fence. It also forbids connecting to servers inside the sandbox on other ports.
    pub connect_only_to_port: Option<u16>,
}

/// Why a Landlock plan cannot be enforced.
#[derive(Debug, thiserror::Error)]
pub enum FilesystemError {
    /// A listed path cannot be opened.
    #[error(
        "filesystem policy lists {path}, which cannot be opened ({reason}); correct the path or make the policy best_effort"
    )]
    Path {
        /// The path as listed.
        path: PathBuf,
        /// The system's reason.
        reason: String,
    },
    /// The kernel has no Landlock.
    #[error(
        "the policy has a file-system part but this kernel does not offer Landlock; boot with lsm=landlock,… on Linux 5.13 or later, or make the policy best_effort"
    )]
    Unsupported,
    /// The kernel's Landlock knows files only.
    #[error(
        "the policy limits TCP connects to one port, which this kernel's Landlock (ABI {0}) cannot; use Linux 6.7 or later, or leave that to the fence"
    )]
    NoConnectRule(u32),
    /// The kernel refused the rule set.
    #[error("the kernel refused the Landlock rule set: {0}")]
    Ruleset(#[from] landlock::RulesetError),
}

impl FilesystemError {
    fn unopened(path: &Path, reason: &dyn std::error::Error) -> Self {
        Self::Path { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// A rule set ready to be enforced, and what it holds.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// Handed to `landlock_restrict_self` by the child; `None` when the kernel has nothing to offer.
    pub(crate) ruleset: Option<OwnedFd>,
    /// The kernel's Landlock ABI; 0 when absent.
    pub(crate) abi: u32,
    /// Rules for paths on mounts that only the child makes; it adds them.
    pub(crate) late: Vec<LateRule>,
    /// Listed paths left out under [`Requirement::BestEffort`].
    pub(crate) skipped: Vec<PathBuf>,
}

/// A rule the child adds once its mounts are in place.
#[derive(Debug)]
pub(crate) struct LateRule {
    /// The listed path.
    pub(crate) path: CString,
    /// `LANDLOCK_ACCESS_FS_…` bits.
    pub(crate) access: u64,
    /// Best effort: go on when it is not there.
    pub(crate) skip_missing: bool,
}

/// The first ABI with scoped signals and abstract sockets (Linux 6.12).
pub(crate) const SCOPES_ABI: u32 = 6;

/// The first ABI with rules about TCP ports (Linux 6.7).
const CONNECT_ABI: u32 = 4;

impl Prepared {
    /// Signals and abstract Unix sockets stay inside the sandbox.
    pub(crate) fn is_scoped(&self) -> bool {
        self.ruleset.is_some() && self.abi >= SCOPES_ABI
    }
}

/// Opens every path and builds the rule set, before the clone. Paths beneath `remounted` are left to
/// the child: a rule holds for the file it was made with, and a new mount will cover that.
pub(crate) fn prepare(plan: Option<&LandlockPlan>, remounted: &[&Path]) -> Result<Prepared, FilesystemError> {
    let version = syscalls::landlock_abi();
    if version == 0 || (plan.is_none() && version < SCOPES_ABI) {
        // Before the scopes came there was nothing a rule set without files could hold.
        return without_ruleset(plan, version);
    }
    if version < CONNECT_ABI && plan.is_some_and(|plan| plan.connect_only_to_port.is_some()) {
        return Err(FilesystemError::NoConnectRule(version));
    }
    let abi = ABI::from(i32::try_from(version).unwrap_or(i32::MAX));
    let mut prepared = Prepared { ruleset: None, abi: version, late: Vec::new(), skipped: Vec::new() };
    let mut ruleset = handled(plan, abi)?.create()?;
    if let Some(plan) = plan {
        let lists =
            [(&plan.read_only, AccessFs::from_read(abi)), (&plan.read_write, AccessFs::from_all(abi))];
        for (path, access) in
            lists.into_iter().flat_map(|(paths, access)| paths.iter().map(move |path| (path, access)))
        {
            let best_effort = plan.requirement == Requirement::BestEffort;
            let file = match PathFd::new(path) {
                Ok(file) => file,
                Err(_) if best_effort => {
                    prepared.skipped.push(path.clone());
                    continue;
                }
                Err(error) => return Err(FilesystemError::unopened(path, &error)),
            };
            // Directory rights on a file are refused by the kernel.
            let access = if path.is_dir() { access } else { access & AccessFs::from_file(abi) };
            if remounted.iter().any(|mount| path.starts_with(mount)) {
                let path = CString::new(path.as_os_str().as_bytes())
                    .map_err(|error| FilesystemError::unopened(path, &error))?;
                prepared.late.push(LateRule { path, access: access.bits(), skip_missing: best_effort });
            } else {
                ruleset = ruleset.add_rule(PathBeneath::new(file, access))?;
            }
        }
        if let Some(port) = plan.connect_only_to_port {
            ruleset = ruleset.add_rule(NetPort::new(port, AccessNet::ConnectTcp))?;
        }
    }
    prepared.ruleset = ruleset.into();
    Ok(prepared)
}

fn without_ruleset(plan: Option<&LandlockPlan>, abi: u32) -> Result<Prepared, FilesystemError> {
    let mut skipped = Vec::new();
    if let Some(plan) = plan {
        if plan.requirement == Requirement::Required {
            return Err(FilesystemError::Unsupported);
        }
        skipped = [plan.read_only.clone(), plan.read_write.clone()].concat();
    }
    Ok(Prepared { ruleset: None, abi, late: Vec::new(), skipped })
}

/// What the rule set is about: all file accesses with a plan, the scopes where the kernel has them.
fn handled(plan: Option<&LandlockPlan>, abi: ABI) -> Result<Ruleset, FilesystemError> {
    let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
    if !Scope::from_all(abi).is_empty() {
        ruleset = ruleset.scope(Scope::AbstractUnixSocket | Scope::Signal)?;
    }
    if let Some(plan) = plan {
        ruleset = ruleset.handle_access(AccessFs::from_all(abi))?;
        if plan.connect_only_to_port.is_some() {
            ruleset = ruleset.handle_access(AccessNet::ConnectTcp)?;
        }
    }
    Ok(ruleset)
}
