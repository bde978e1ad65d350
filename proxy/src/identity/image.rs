//! SHA-256 of running binaries, and the notice that a path runs another binary than it did at first.
//!
//! The image is read through `/proc/<pid>/exe`, not through its path: what runs is what is hashed, even if the path has
//! been given to another file since. One thread hashes, one image at a time, and remembers each by device, inode, size
//! and change times: many connections of one binary cost one hash. Nothing is hashed unless somebody asks.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use sluice_seccomp::harden::Role;

use super::process::{ImageKey, Process, Standing, open_path_of};
use super::procfs::{ProcRoot, metadata};
use crate::confined::{self, Confined};

/// The largest image that is hashed: about a second's work. Larger is no program.
const IMAGE_BYTES_MAX: u64 = 1 << 30;
/// Images whose hash is remembered (about 100 bytes each).
const REMEMBERED_MAX: usize = 4_096;
/// Paths per sandbox whose first binary is remembered. Beyond, changes of further paths go unnoticed: to forget the
/// first ones instead would let a workload flush them.
const PATHS_PER_SANDBOX_MAX: usize = 1_024;
/// Hashes that may wait.
const WAITING_MAX: usize = 1_024;
/// Read at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// A SHA-256, shown in lower-case hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest(pub [u8; 32]);

/// Why an image has no hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// The process ended, and its path leads elsewhere now.
    #[error("{0} has ended, and its binary can not be found any more")]
    Gone(PathBuf),
    /// Its bytes changed while they were read, or it runs something else by now.
    #[error("the binary {0} changed while it was hashed")]
    Changing(PathBuf),
    /// Larger than any program.
    #[error("the binary {path} has {bytes} bytes, more than the {IMAGE_BYTES_MAX} that are hashed")]
    TooLarge {
        /// Its path.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// It can not be read.
    #[error("cannot read the binary {path}: errno {errno}")]
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// Why not.
        errno: i32,
    },
    /// Too many hashes are waiting.
    #[error("too many binaries are waiting to be hashed")]
    Busy,
}

/// A path runs another binary than when it was first seen in the sandbox (the event `binary.changed`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// The sandbox.
    pub sandbox: Arc<str>,
    /// The path.
    pub path: PathBuf,
    /// What ran there first.
    pub first: Digest,
    /// What runs there now.
    pub now: Digest,
    /// The process that shows it.
    pub process: Arc<Process>,
}

type Done = Box<dyn FnOnce(Result<Digest, HashError>) + Send>;

/// The hashing thread and what it remembers.
pub struct Images {
    memory: Arc<Mutex<Memory>>,
    queue: Option<SyncSender<Job>>,
    thread: Option<Confined>,
}

struct Job {
    sandbox: Arc<str>,
    process: Arc<Process>,
    done: Done,
}

#[derive(Default)]
struct Memory {
    digests: HashMap<ImageKey, Digest>,
    /// Per sandbox: what ran first at a path.
    first: HashMap<Arc<str>, HashMap<PathBuf, Digest>>,
    /// Changes that were told.
    told: HashSet<(Arc<str>, PathBuf, Digest)>,
}

impl Images {
    /// Starts the thread. `on_change` is called on it.
    pub fn start(on_change: impl Fn(Changed) + Send + 'static) -> io::Result<Self> {
        let memory = Arc::new(Mutex::new(Memory::default()));
        let (queue, jobs) = sync_channel(WAITING_MAX);
        let proc = ProcRoot::open("/proc".as_ref())?;
        let shared = Arc::clone(&memory);
        let body = move || run(&jobs, &shared, &proc, &on_change);
        let thread = confined::spawn(Role::Hashing, Vec::new(), body)?;
        Ok(Self { memory, queue: Some(queue), thread: Some(thread) })
    }

    /// The hash of a process's image, if it is known already. For a worker: takes well under a microsecond.
    pub fn known(&self, process: &Process) -> Option<Digest> {
        lock(&self.memory).digests.get(process.image.as_ref()?).copied()
    }

    /// Has a process's image hashed, and its path compared with what ran there first. `done` is called once, on the
    /// hashing thread; or on this one, if too many are waiting.
    pub fn request(
        &self,
        sandbox: &Arc<str>,
        process: &Arc<Process>,
        done: impl FnOnce(Result<Digest, HashError>) + Send + 'static,
    ) {
        let job = Job { sandbox: Arc::clone(sandbox), process: Arc::clone(process), done: Box::new(done) };
        let Some(queue) = &self.queue else { return };
        if let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) = queue.try_send(job) {
            (job.done)(Err(HashError::Busy));
        }
    }

    /// Forgets what ran in a sandbox that has ended.
    pub fn forget(&self, sandbox: &str) {
        let mut memory = lock(&self.memory);
        memory.first.remove(sandbox);
        memory.told.retain(|(other, ..)| &**other != sandbox);
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the hashing thread had panicked");
        }
    }
}

fn run(jobs: &Receiver<Job>, memory: &Mutex<Memory>, proc: &ProcRoot, on_change: &impl Fn(Changed)) {
    for job in jobs {
        let digest = digest(&job.process, memory, proc);
        if let Ok(now) = digest
            && let Some(first) = lock(memory).compare(&job.sandbox, &job.process, now)
        {
            let path = job.process.exe.clone();
            on_change(Changed { sandbox: job.sandbox, path, first, now, process: Arc::clone(&job.process) });
        }
        (job.done)(digest);
    }
}

impl Memory {
    /// What ran first at the process's path, if that was something else and nobody has been told.
    fn compare(&mut self, sandbox: &Arc<str>, process: &Process, now: Digest) -> Option<Digest> {
        if process.standing == Standing::Masked {
            return None;
        }
        let paths = self.first.entry(Arc::clone(sandbox)).or_default();
        let first = match paths.get(&process.exe) {
            Some(first) => *first,
            None if paths.len() < PATHS_PER_SANDBOX_MAX => {
                paths.insert(process.exe.clone(), now);
                return None;
            }
            None => return None,
        };
        let is_news = first != now && self.told.insert((Arc::clone(sandbox), process.exe.clone(), now));
        is_news.then_some(first)
    }

    fn remember(&mut self, key: ImageKey, digest: Digest) {
        if self.digests.len() >= REMEMBERED_MAX {
            // Rare: a few thousand different binaries. They are hashed again as they are seen again.
            self.digests.clear();
        }
        self.digests.insert(key, digest);
    }
}

fn digest(process: &Process, memory: &Mutex<Memory>, proc: &ProcRoot) -> Result<Digest, HashError> {
    let Some(key) = process.image else { return Err(HashError::Gone(process.exe.clone())) };
    if let Some(digest) = lock(memory).digests.get(&key) {
        return Ok(*digest);
    }
    if key.size > IMAGE_BYTES_MAX {
        return Err(HashError::TooLarge { path: process.exe.clone(), bytes: key.size });
    }
    let unreadable = |errno| HashError::Unreadable { path: process.exe.clone(), errno };
    let running = match proc.process(process.pid).and_then(|dir| dir.open_image()) {
        Ok(file) => Some(file).filter(|file| metadata(file).is_ok_and(|stat| ImageKey::of(&stat) == key)),
        Err(Errno::NOENT | Errno::SRCH) => None,
        Err(errno) => return Err(unreadable(errno.raw_os_error())),
    };
    let file = running
        .or_else(|| open_path_of(&process.exe, &key))
        .map(File::from)
        .ok_or_else(|| HashError::Gone(process.exe.clone()))?;
    let digest = hash(&file).map_err(|error| unreadable(error.raw_os_error().unwrap_or(nix::libc::EIO)))?;
    if !metadata(&file).is_ok_and(|stat| ImageKey::of(&stat) == key) {
        return Err(HashError::Changing(process.exe.clone()));
    }
    lock(memory).remember(key, digest);
    Ok(digest)
}

fn hash(mut file: &File) -> io::Result<Digest> {
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(Digest(hasher.finalize().into())),
            Ok(length) => hasher.update(chunk.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn lock(memory: &Mutex<Memory>) -> std::sync::MutexGuard<'_, Memory> {
    memory.lock().unwrap_or_else(PoisonError::into_inner)
}
