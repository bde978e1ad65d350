//! Starting a workload: everything that can fail or allocate is done here, before the clone; the child
//! then walks one list of system calls (`child.rs`) and reports through a socket (`report.rs`).

mod child;
mod mounts;
mod plan;
mod process;
mod report;

pub use mounts::ReplacedFile;
pub use process::{Child, ExitStatus, Signaller};
pub use report::Step;

use crate::enforcement::Enforcement;
use crate::filesystem::{FilesystemError, LandlockPlan};
use crate::filter::{FilterError, FilterOptions, Netlink};
use crate::privileges::User;
use nix::sys::signal::{SigSet, SigmaskHow};
pub(crate) use plan::Plan;
use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

/// A workload to be started.
#[derive(Debug)]
pub struct Launch<'fd> {
    /// A path, or a name without a slash that is looked up in the `PATH` of `env`.
    pub program: OsString,
    /// Arguments after the program's own name.
    pub args: Vec<OsString>,
    /// The whole environment; nothing is inherited.
    pub env: Vec<(OsString, OsString)>,
    /// Where to start; the launcher's directory when absent. Entered as the workload's user.
    pub cwd: Option<PathBuf>,
    /// Network namespace to enter.
    pub netns: Option<BorrowedFd<'fd>>,
    /// Who the workload is; when absent it stays root with [`crate::KEPT_BY_ROOT`].
    pub user: Option<User>,
    /// Which netlink sockets it may open.
    pub netlink: Netlink,
    /// Whether executable memory files may be made.
    pub memfd_exec: bool,
    /// What Landlock holds beside the scopes, which are applied without a plan, too.
    pub landlock: Option<LandlockPlan>,
    /// Pid and mount namespaces of its own.
    pub namespaces: Namespaces,
    /// Files and directories this workload must not see, such as the launcher's state and sockets; the
    /// kernel's log and the control sockets of systemd and container engines always are. A path that
    /// does not exist is left out. Needs `namespaces.pids`.
    pub hidden: Vec<PathBuf>,
    /// Files whose contents are replaced for this workload. Needs `namespaces.pids`.
    pub replaced: Vec<ReplacedFile>,
    /// Whether a witness notes its connects; if so [`Child::take_witness`] must be served from the start.
    pub witness: bool,
    /// Its relation to the terminal.
    pub terminal: Terminal,
    /// Its standard descriptors.
    pub stdio: Stdio<'fd>,
}

impl Launch<'_> {
    /// A launch with the defaults: this environment, root with few capabilities, own pid and mount
    /// namespaces, `NETLINK_ROUTE`, no file-system policy, no witness, own session.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: std::env::vars_os().collect(),
            cwd: None,
            netns: None,
            user: None,
            netlink: Netlink::default(),
            memfd_exec: true,
            landlock: None,
            namespaces: Namespaces::default(),
            hidden: Vec::new(),
            replaced: Vec::new(),
            witness: false,
            terminal: Terminal::default(),
            stdio: Stdio::default(),
        }
    }
}

/// Namespaces a workload gets beside the network one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespaces {
    /// Own process ids and System V objects, with a fresh `/proc`: no process of the host can be named, and the end of the
    /// launcher or of the workload ends every process it left behind, on any kernel. The kernel's
    /// knobs (`/proc/sys`, `/sys`, sysrq) become read-only and `/dev/kmsg` empty, which matters to a
    /// root workload. Pids the workload prints then differ from those in events.
    pub pids: bool,
    /// An empty `/tmp` in memory, seen by this workload alone. Needs `pids`.
    pub private_tmp: bool,
}

impl Default for Namespaces {
    fn default() -> Self {
        Self { pids: true, private_tmp: false }
    }
}

/// The workload's relation to the launcher's terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Terminal {
    /// A session of its own: no controlling terminal, no signals from one.
    #[default]
    Detached,
    /// A process group of its own, made the terminal's foreground group when standard input is the
    /// launcher's controlling terminal and the launcher is in its foreground; else as `Detached`.
    Foreground,
}

/// Standard descriptors; absent ones are the launcher's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stdio<'fd> {
    /// Descriptor 0.
    pub stdin: Option<BorrowedFd<'fd>>,
    /// Descriptor 1.
    pub stdout: Option<BorrowedFd<'fd>>,
    /// Descriptor 2.
    pub stderr: Option<BorrowedFd<'fd>>,
}

/// Why a workload did not start. Nothing of it runs after any of these.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// No such program.
    #[error("{program}: not found; give a path or a name in PATH={path}")]
    NotFound {
        /// As given.
        program: String,
        /// Where it was looked for.
        path: String,
    },
    /// The program is there but cannot be executed.
    #[error(
        "{program}: cannot be executed ({reason}); check its mode, its #! line, and that the filesystem policy and the workload's user may execute it"
    )]
    NotExecutable {
        /// As given.
        program: String,
        /// The kernel's reason.
        reason: io::Error,
    },
    /// A step of the list failed.
    #[error("confining the workload failed at step \"{step}\": {reason}{}", step.remedy())]
    Step {
        /// Which step.
        step: Step,
        /// The kernel's reason.
        reason: io::Error,
    },
    /// A value of the launch is impossible.
    #[error("{0}")]
    Invalid(String),
    /// The file-system policy cannot be enforced.
    #[error(transparent)]
    Filesystem(#[from] FilesystemError),
    /// The filter's table does not compile.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The launcher itself could not prepare or clone.
    #[error("preparing the workload failed at {what}: {reason}")]
    Prepare {
        /// What was being done.
        what: &'static str,
        /// The kernel's reason.
        reason: io::Error,
    },
}

impl LaunchError {
    /// The exit code a shell would give: 127 not found, 126 not executable, 70 internal (`EX_SOFTWARE`).
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::NotFound { .. } => 127,
            Self::NotExecutable { .. } => 126,
            _ => 70,
        }
    }

    fn prepare(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |reason| Self::Prepare { what, reason }
    }
}

/// Starts a workload and returns once it executes its program (or failed to).
///
/// Call it from a thread that lives as long as the workload: the kernel kills the workload when the
/// **thread** that started it ends (`PR_SET_PDEATHSIG`). Needs root.
pub fn launch(launch: &Launch<'_>) -> Result<Child, LaunchError> {
    let plan = Plan::prepare(launch)?;
    let enforcement = Enforcement::of(launch, &plan);
    let (ours, theirs) = report::socket_pair().map_err(LaunchError::prepare("the report socket"))?;
    let (status_read, status_write) =
        report::status_pipe().map_err(LaunchError::prepare("the status pipe"))?;

    // No handler of the launcher may run in the child, so signals stay blocked until it has none.
    let blocked = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK);
    let before = blocked.map_err(|errno| LaunchError::prepare("blocking signals")(errno.into()))?;
    let cloned = child::clone_and_run(&plan, &theirs, &status_write);
    let restored = before.thread_set_mask();
    let (pid, pidfd) = cloned.map_err(LaunchError::prepare("clone"))?;
    drop((theirs, status_write));

    let child = Child::new(pid, pidfd, status_read, plan.foreground, plan.is_init, enforcement);
    restored.map_err(|errno| LaunchError::prepare("restoring signals")(errno.into()))?;
    match report::await_start(&ours) {
        Ok(started) => Ok(child.started(started)),
        Err(failure) => {
            child.abandon();
            Err(plan.explain(failure))
        }
    }
}

impl From<&Launch<'_>> for FilterOptions {
    fn from(launch: &Launch<'_>) -> Self {
        Self { netlink: launch.netlink, memfd_exec: launch.memfd_exec, tracing: true }
    }
}
