//! A launch made ready: every string, descriptor and program the child needs, as plain memory.

use super::mounts::Mounts;
use super::report::{Failure, Step};
use super::{Launch, LaunchError, Terminal};
use crate::filesystem::{self, Prepared};
use crate::filter::{FilterOptions, Programs, ROWS, compile};
use crate::privileges::Credentials;
use crate::witness;
use seccompiler::BpfProgram;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Where programs are looked for when the environment has no PATH (as execvp does).
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// All the child needs. It allocates nothing; it reads this.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Paths to execute, in the order tried.
    pub(super) candidates: Vec<CString>,
    pub(super) argv: Pointers,
    pub(super) envp: Pointers,
    pub(super) cwd: Option<CString>,
    pub(super) netns: Option<RawFd>,
    /// Duplicates above 2, so that no `dup2` onto 0, 1 or 2 destroys one still needed.
    pub(super) stdio: [Option<OwnedFd>; 3],
    pub(super) user: Option<Ids>,
    pub(super) credentials: Credentials,
    pub(super) landlock: Prepared,
    pub(super) filters: Programs,
    /// Rows of the filter's table that are part of it.
    rules: usize,
    pub(super) witness: Option<BpfProgram>,
    pub(super) mounts: Option<Mounts>,
    /// The clone is the first process of a pid namespace and forks the workload.
    pub(super) is_init: bool,
    pub(super) foreground: bool,
    program: String,
    path: String,
}

#[derive(Debug)]
pub(super) struct Ids {
    pub(super) uid: libc::uid_t,
    pub(super) gid: libc::gid_t,
    pub(super) groups: Vec<libc::gid_t>,
}

/// A null-terminated array of C strings, as execve takes it.
#[derive(Debug)]
pub(super) struct Pointers {
    _strings: Vec<CString>,
    pointers: Vec<*const libc::c_char>,
}

impl Pointers {
    fn new(strings: Vec<CString>) -> Self {
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect();
        Self { _strings: strings, pointers }
    }

    pub(super) fn as_ptr(&self) -> *const *const libc::c_char {
        self.pointers.as_ptr()
    }
}

impl Plan {
    pub(super) fn prepare(launch: &Launch<'_>) -> Result<Self, LaunchError> {
        if let Some(user) = launch.user.as_ref().filter(|user| !user.groups_fit()) {
            return Err(LaunchError::Invalid(format!(
                "{} groups are more than the kernel takes",
                user.groups.len()
            )));
        }
        let landlock = filesystem::prepare(launch.landlock.as_ref(), &remounted(launch))?;
        let contained = launch.namespaces.pids || landlock.is_scoped();
        let traced_inside = launch.namespaces.pids || landlock.ruleset.is_some();
        let options = FilterOptions { tracing: traced_inside, ..FilterOptions::from(launch) };
        let path = search_path(&launch.env);
        let mut argv = vec![c_string(&launch.program)?];
        for arg in &launch.args {
            argv.push(c_string(arg)?);
        }
        Ok(Self {
            candidates: candidates(&launch.program, &path)?,
            argv: Pointers::new(argv),
            envp: Pointers::new(launch.env.iter().map(environment_entry).collect::<Result<_, _>>()?),
            cwd: directory(launch)?,
            netns: launch.netns.map(|fd| fd.as_raw_fd()),
            stdio: duplicate_stdio(launch).map_err(LaunchError::prepare("the standard descriptors"))?,
            user: launch.user.as_ref().map(|user| Ids {
                uid: user.uid,
                gid: user.gid,
                groups: user.groups.clone(),
            }),
            credentials: Credentials::of(launch.user.as_ref(), contained),
            landlock,
            filters: compile(&options)?,
            rules: ROWS.iter().filter(|row| options.includes(row.on)).count(),
            witness: launch.witness.then(witness::program),
            mounts: Mounts::prepare(launch.namespaces, &launch.hidden, &launch.replaced)?,
            is_init: launch.namespaces.pids,
            foreground: launch.terminal == Terminal::Foreground && holds_terminal(),
            program: launch.program.to_string_lossy().into_owned(),
            path: path.to_string_lossy().into_owned(),
        })
    }

    pub(crate) fn landlock(&self) -> &Prepared {
        &self.landlock
    }

    pub(crate) fn filter_rules(&self) -> usize {
        self.rules
    }

    pub(crate) fn credentials(&self) -> Credentials {
        self.credentials
    }

    /// Turns a failed step into the error for the user.
    pub(super) fn explain(&self, failure: Failure) -> LaunchError {
        let reason = io::Error::from_raw_os_error(failure.errno);
        match (failure.step, failure.errno) {
            (Step::Exec, libc::ENOENT | libc::ENOTDIR) if !self.exists() => {
                LaunchError::NotFound { program: self.program.clone(), path: self.path.clone() }
            }
            // It is there, but its interpreter is not.
            (Step::Exec, _) => LaunchError::NotExecutable { program: self.program.clone(), reason },
            (step, _) => LaunchError::Step { step, reason },
        }
    }

    fn exists(&self) -> bool {
        self.candidates.iter().any(|path| Path::new(OsStr::from_bytes(path.as_bytes())).exists())
    }
}

/// What the child mounts anew.
fn remounted(launch: &Launch<'_>) -> Vec<PathBuf> {
    let proc = launch.namespaces.pids.then(|| "/proc".into());
    let tmp = launch.namespaces.private_tmp.then(|| "/tmp".into());
    let replaced = launch.replaced.iter().filter_map(|file| file.path.canonicalize().ok());
    proc.into_iter().chain(tmp).chain(replaced).collect()
}

/// With a private `/tmp` the launcher's directory may be one that is covered; it is entered by name.
fn directory(launch: &Launch<'_>) -> Result<Option<CString>, LaunchError> {
    let mut directory = launch.cwd.clone();
    if directory.is_none() && launch.namespaces.private_tmp {
        directory = Some(std::env::current_dir().map_err(LaunchError::prepare("the working directory"))?);
    }
    directory.map(|directory| c_string(directory.as_os_str())).transpose()
}

/// Standard input is the launcher's controlling terminal and it is in its foreground.
fn holds_terminal() -> bool {
    nix::unistd::tcgetpgrp(io::stdin().as_fd()).is_ok_and(|group| group == nix::unistd::getpgrp())
}

fn c_string(text: &OsStr) -> Result<CString, LaunchError> {
    CString::new(text.as_bytes()).map_err(|_| {
        LaunchError::Invalid(format!("{} holds a NUL byte, which no program can be given", text.display()))
    })
}

fn environment_entry((name, value): &(OsString, OsString)) -> Result<CString, LaunchError> {
    let mut entry = name.clone().into_vec();
    entry.push(b'=');
    entry.extend_from_slice(value.as_bytes());
    c_string(OsStr::from_bytes(&entry))
}

fn search_path(env: &[(OsString, OsString)]) -> OsString {
    let given = env.iter().rev().find(|(name, _)| name == "PATH");
    given.map_or_else(|| DEFAULT_PATH.into(), |(_, value)| value.clone())
}

/// A name with a slash stands for itself; another is tried in each directory of the path.
fn candidates(program: &OsStr, path: &OsStr) -> Result<Vec<CString>, LaunchError> {
    let name = program.as_bytes();
    if name.is_empty() {
        return Err(LaunchError::NotFound {
            program: String::new(),
            path: path.to_string_lossy().into_owned(),
        });
    }
    if name.contains(&b'/') {
        return Ok(vec![c_string(program)?]);
    }
    std::env::split_paths(path).map(|directory| c_string(directory.join(program).as_os_str())).collect()
}

fn duplicate_stdio(launch: &Launch<'_>) -> io::Result<[Option<OwnedFd>; 3]> {
    let duplicate = |fd: Option<BorrowedFd<'_>>| -> io::Result<Option<OwnedFd>> {
        fd.map(|fd| crate::syscalls::duplicate_above_stdio(fd)).transpose()
    };
    Ok([duplicate(launch.stdio.stdin)?, duplicate(launch.stdio.stdout)?, duplicate(launch.stdio.stderr)?])
}
