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
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, Scope,
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

/// What a policy wants of Landlock beyond the scopes, which every workload gets.
#[derive(Clone, Debug, Default)]
pub struct LandlockPlan {
    /// The file-system part; without one no file is refused.
    pub files: Option<FileLists>,
    /// What a shortfall does.
    pub requirement: Requirement,
    /// When given, TCP connects are allowed to this port alone (the proxy's), a second lock beside the
    /// fence. It also forbids connecting to servers inside the sandbox on other ports.
    pub connect_only_to_port: Option<u16>,
}

/// The file-system part of a policy. What is in neither list is refused.
#[derive(Clone, Debug, Default)]
pub struct FileLists {
    /// Files and directories (with all beneath them) that may be read and executed.
    pub read_only: Vec<PathBuf>,
    /// Files and directories that may be read, executed, written, created and removed.
    pub read_write: Vec<PathBuf>,
}

impl LandlockPlan {
    fn best_effort(&self) -> bool {
        self.requirement == Requirement::BestEffort
    }

    /// Whether anything is asked for beyond the scopes.
    fn asks(&self) -> bool {
        self.files.is_some() || self.connect_only_to_port.is_some()
    }
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
        "the policy limits files or connects by Landlock, which this kernel does not offer; boot with lsm=landlock,… on Linux 5.13 or later, or make the policy best_effort"
    )]
    Unsupported,
    /// The kernel's Landlock knows files only.
    #[error(
        "the policy limits TCP connects to the proxy, which this kernel's Landlock (ABI {0}) cannot; use Linux 6.7 or later, leave that to the fence, or make the policy best_effort"
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
    /// Whether the rule set holds files to the lists.
    pub(crate) files: bool,
    /// The one port TCP connects may go to.
    pub(crate) connects_to: Option<u16>,
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

/// The first ABI with a rule about truncating files (Linux 6.2).
pub(crate) const TRUNCATE_ABI: u32 = 3;

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
pub(crate) fn prepare(
    plan: Option<&LandlockPlan>,
    remounted: &[PathBuf],
) -> Result<Prepared, FilesystemError> {
    let version = syscalls::landlock_abi();
    let plan = plan.filter(|plan| plan.asks());
    let mut prepared = Prepared {
        ruleset: None,
        abi: version,
        late: Vec::new(),
        skipped: Vec::new(),
        files: false,
        connects_to: None,
    };
    if version == 0 && plan.is_some_and(|plan| !plan.best_effort()) {
        return Err(FilesystemError::Unsupported);
    }
    let files = plan.and_then(|plan| plan.files.as_ref());
    let port = plan.and_then(|plan| plan.connect_only_to_port);
    if port.is_some() && version < CONNECT_ABI && plan.is_some_and(|plan| !plan.best_effort()) {
        return Err(FilesystemError::NoConnectRule(version));
    }
    prepared.files = files.is_some() && version > 0;
    prepared.connects_to = port.filter(|_| version >= CONNECT_ABI);
    if !prepared.files && prepared.connects_to.is_none() && version < SCOPES_ABI {
        // Nothing that this kernel's rule sets could hold.
        return Ok(prepared);
    }
    let abi = ABI::from(i32::try_from(version).unwrap_or(i32::MAX));
    let mut ruleset = handled(&prepared, abi)?.create()?;
    if let (Some(files), Some(plan)) = (files, plan) {
        ruleset = add_files(ruleset, files, plan.best_effort(), abi, remounted, &mut prepared)?;
    }
    if let Some(port) = prepared.connects_to {
        ruleset = ruleset.add_rule(NetPort::new(port, AccessNet::ConnectTcp))?;
    }
    prepared.ruleset = ruleset.into();
    Ok(prepared)
}

fn add_files(
    mut ruleset: RulesetCreated,
    files: &FileLists,
    best_effort: bool,
    abi: ABI,
    remounted: &[PathBuf],
    prepared: &mut Prepared,
) -> Result<RulesetCreated, FilesystemError> {
    let lists = [(&files.read_only, AccessFs::from_read(abi)), (&files.read_write, AccessFs::from_all(abi))];
    for (path, access) in
        lists.into_iter().flat_map(|(paths, access)| paths.iter().map(move |path| (path, access)))
    {
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
        let real = path.canonicalize().unwrap_or_else(|_| path.clone());
        if remounted.iter().any(|mount| real.starts_with(mount)) {
            let path = CString::new(path.as_os_str().as_bytes())
                .map_err(|error| FilesystemError::unopened(path, &error))?;
            prepared.late.push(LateRule { path, access: access.bits(), skip_missing: best_effort });
        } else {
            ruleset = ruleset.add_rule(PathBeneath::new(file, access))?;
        }
    }
    Ok(ruleset)
}

/// What the rule set is about: all file accesses with lists, TCP connects with a port, the scopes where
/// the kernel has them.
fn handled(prepared: &Prepared, abi: ABI) -> Result<Ruleset, FilesystemError> {
    let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
    if !Scope::from_all(abi).is_empty() {
        ruleset = ruleset.scope(Scope::AbstractUnixSocket | Scope::Signal)?;
    }
    if prepared.files {
        ruleset = ruleset.handle_access(AccessFs::from_all(abi))?;
    }
    if prepared.connects_to.is_some() {
        ruleset = ruleset.handle_access(AccessNet::ConnectTcp)?;
    }
    Ok(ruleset)
}

/// Holds the calling thread to the directories it writes to: no other file, no TCP, no signal and no
/// abstract socket towards others. Kernels without Landlock hold nothing.
pub(crate) fn restrict_thread(writes: &[&Path]) -> Result<(), FilesystemError> {
    let version = syscalls::landlock_abi();
    if version == 0 {
        return Ok(());
    }
    let abi = ABI::from(i32::try_from(version).unwrap_or(i32::MAX));
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?;
    for path in writes {
        let directory = PathFd::new(path).map_err(|error| FilesystemError::unopened(path, &error))?;
        ruleset = ruleset.add_rule(PathBeneath::new(directory, AccessFs::from_all(abi)))?;
    }
    ruleset.restrict_self()?;
    Ok(())
}
