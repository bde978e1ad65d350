//! What is on disk about sandboxes, and who owns each.
//!
//! ```text
//! <state_dir>/lock                     held for moments: claiming, judging and removing directories
//! <state_dir>/sandboxes/               0700, a mount of its own (see `mount.rs`)
//! <state_dir>/sandboxes/<name>/lock    held for life by the owner; free = the owner is dead, also after kill -9
//! <state_dir>/sandboxes/<name>/netns   the namespace, bind-mounted: `nsenter --net=` takes it
//! <state_dir>/sandboxes/<name>/sandbox.json
//! ```
//!
//! Locks are flock(2) on close-on-exec descriptors: they do not survive their owner and are not inherited by what
//! it executes. A child that is forked and never executes anything would keep them; Sluice makes no such child.

mod mount;
mod record;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use nix::fcntl::{Flock, FlockArg};

pub(crate) use record::{Record, RecordedNamespace};

use crate::limits::{LINGERING_LOCK_MAX, LINGERING_LOCK_POLL};
use crate::{Error, SandboxName};

/// Where the kernel tells which boot this is.
pub(crate) const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The id of this boot: cookies and pids mean something only within one.
pub(crate) fn boot_id() -> io::Result<String> {
    fs::read_to_string(BOOT_ID).map(|text| text.trim().to_owned())
}

/// Whether a process runs. A zombie does not: its descriptors are gone.
fn is_alive(pid: u32) -> bool {
    // The state follows the last parenthesis: the name before it may hold anything.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// The state directory of an owner or of several.
#[derive(Clone, Debug)]
pub(crate) struct StateDir {
    root: PathBuf,
}

impl StateDir {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Whether there ever was a sandbox here.
    pub(crate) fn exists(&self) -> bool {
        self.root.join("lock").exists()
    }

    /// Keeps every other Sluice process from claiming, judging or removing a directory here. Hold it for moments,
    /// and never ask for it twice: a second lock of the same process waits for the first.
    pub(crate) fn lock(&self) -> Result<Guard<'_>, Error> {
        DirBuilder::new().recursive(true).create(&self.root).map_err(Error::io("create", &self.root))?;
        let path = self.root.join("lock");
        let lock = Flock::lock(open_lock(&path)?, FlockArg::LockExclusive)
            .map_err(|(_, errno)| Error::io("lock", &path)(errno))?;
        Ok(Guard { state: self, _lock: lock })
    }

    fn sandboxes(&self) -> PathBuf {
        self.root.join("sandboxes")
    }
}

/// The state directory, locked.
pub(crate) struct Guard<'a> {
    state: &'a StateDir,
    _lock: Flock<File>,
}

impl Guard<'_> {
    /// Makes and locks the directory of a new sandbox. `None` if there is one of that name.
    pub(crate) fn claim(&self, name: &SandboxName) -> Result<Option<Claim>, Error> {
        let sandboxes = self.state.sandboxes();
        create_private(&sandboxes)?;
        mount::isolate(&sandboxes)?;
        let dir = sandboxes.join(name.as_str());
        match DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
            Err(error) => return Err(Error::io("create", &dir)(error)),
        }
        self.take_if_ownerless(name)
    }

    /// Takes the lock of an existing directory, which succeeds only if its owner is dead.
    pub(crate) fn take_if_ownerless(&self, name: &SandboxName) -> Result<Option<Claim>, Error> {
        let dir = self.state.sandboxes().join(name.as_str());
        let path = dir.join("lock");
        let began = Instant::now();
        loop {
            match Flock::lock(open_lock(&path)?, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Some(Claim { name: name.clone(), dir, _lock: lock })),
                Err((_, nix::Error::EWOULDBLOCK)) => {}
                Err((_, errno)) => return Err(Error::io("lock", &path)(errno)),
            }
            // Whoever looks into /proc/<pid>/fd just then holds a dead owner's file a moment longer than the owner.
            let owner = self.read_record(name).ok().flatten().map(|record| record.pid);
            if owner.is_none_or(is_alive) || began.elapsed() >= LINGERING_LOCK_MAX {
                return Ok(None);
            }
            thread::sleep(LINGERING_LOCK_POLL);
        }
    }

    /// The names of all sandboxes here, living or not, in order. Other entries are none of ours and are left alone.
    pub(crate) fn names(&self) -> Result<Vec<SandboxName>, Error> {
        let sandboxes = self.state.sandboxes();
        let entries = match fs::read_dir(&sandboxes) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io("list", &sandboxes)(error)),
        };
        let mut names: Vec<SandboxName> =
            entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// What the owner of `name` wrote about it; `None` if it did not get that far.
    pub(crate) fn read_record(&self, name: &SandboxName) -> Result<Option<Record>, Error> {
        record::read(&self.state.sandboxes().join(name.as_str()))
    }

    /// The error that says who owns `name`.
    pub(crate) fn exists(&self, name: &SandboxName) -> Result<Error, Error> {
        let owner = self.read_record(name)?.map_or_else(|| "?".to_owned(), |record| record.pid.to_string());
        Ok(Error::Exists { name: name.clone(), owner })
    }

    /// Removes the directory of `claim`, whose namespace is already unpinned, and gives up the name. With the last
    /// one goes the mount of the directory.
    pub(crate) fn retire(&self, claim: Claim) -> Result<(), Error> {
        // The lock file goes last and under the guard: nobody can lock a file that is about to be removed.
        fs::remove_dir_all(&claim.dir).map_err(Error::io("remove", &claim.dir))?;
        drop(claim);
        let sandboxes = self.state.sandboxes();
        if fs::read_dir(&sandboxes).map_err(Error::io("list", &sandboxes))?.next().is_none() {
            mount::undo_isolation(&sandboxes)?;
            fs::remove_dir(&sandboxes).map_err(Error::io("remove", &sandboxes))?;
        }
        Ok(())
    }
}

/// A sandbox's directory, owned: the lock is held until this is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    name: SandboxName,
    dir: PathBuf,
    _lock: Flock<File>,
}

impl Claim {
    pub(crate) fn name(&self) -> &SandboxName {
        &self.name
    }

    /// Where the namespace is pinned.
    pub(crate) fn netns_path(&self) -> PathBuf {
        self.dir.join("netns")
    }

    pub(crate) fn write_record(&self, record: &Record) -> Result<(), Error> {
        record::write(&self.dir, record)
    }

    pub(crate) fn read_record(&self) -> Result<Option<Record>, Error> {
        record::read(&self.dir)
    }
}

/// A file to lock, made if need be, for root alone.
pub(crate) fn open_lock(path: &Path) -> Result<File, Error> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(Error::io("open the lock", path))
}

/// Only root may look: a record holds the token that makes log lines trustworthy.
fn create_private(dir: &Path) -> Result<(), Error> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(Error::io("create", dir)(error)),
        _ => Ok(()),
    }
}
