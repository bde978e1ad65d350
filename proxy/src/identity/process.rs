//! The facts of a process: its binary, its ancestors', when it started, who runs it.
//!
//! The path of `/proc/<pid>/exe` is the kernel's word, not the process's, with two exceptions that [`Standing`] tells:
//! - " (deleted)" is appended when the file has lost that name, but a file may also really be named so;
//! - in a mount namespace of its own a workload can put any file at `/usr/bin/curl`. The path then counts only if the
//!   same path in the sandbox's own view leads to the same file.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Stat, openat, openat2, statat};
use rustix::io::Errno;

use super::Seen;
use super::procfs::{ProcDir, ProcRoot, metadata};
use super::stat;

/// Ancestors that are looked at. Deeper is a fork chain made to tire us.
const ANCESTORS_MAX: usize = 64;
/// Processes whose facts are kept at hand per sandbox. Each holds a descriptor of ours, and one per ancestor.
const KNOWN_MAX: usize = 16;
/// What the kernel appends to the path of a file that has lost its name.
const DELETED: &[u8] = b" (deleted)";

/// What the path of a running binary is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Standing {
    /// The path leads to the running image.
    Present,
    /// It did, when the process was started; the file has since been deleted or replaced (an upgrade).
    Deleted,
    /// The process sees other files than the sandbox does, and there the path leads to something else, or nothing. A
    /// policy must not go by this path.
    Masked,
    /// As the witness noted it at the connect; the process has gone, or runs something else now.
    Noted,
}

/// Tells one content of a file from another without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ImageKey {
    /// The file system.
    pub device: u64,
    /// The file in it.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// Last change of the content, in nanoseconds since 1970.
    pub modified_ns: i128,
    /// Last change of content, names or mode, in nanoseconds since 1970; can not be set back.
    pub changed_ns: i128,
}

/// A process as it was when it was looked at, or as the witness saw it connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Process (thread group) id in the daemon's pid namespace.
    pub pid: u32,
    /// Clock ticks after boot; with the pid, unique as long as the machine is up.
    pub start_time: u64,
    /// Its binary, as the sandbox spells it. Go by it in a policy only through [`Process::exe_for_policy`].
    pub exe: PathBuf,
    /// What the path is worth.
    pub standing: Standing,
    /// The main thread's name; with the witness, that of the thread that connected. Anything the process likes.
    pub comm: String,
    /// Effective uid.
    pub uid: u32,
    /// Its parent.
    pub ppid: u32,
    /// The binaries of its ancestors in the sandbox, nearest first. A masked one is left out.
    pub ancestors: Vec<PathBuf>,
    /// The running image, to be hashed; none if it has gone, or was not the one that connected.
    pub image: Option<ImageKey>,
}

impl Process {
    /// The path a policy may match: none if it is one of the process's own making.
    pub fn exe_for_policy(&self) -> Option<&Path> {
        (self.standing != Standing::Masked).then_some(self.exe.as_path())
    }

    /// Whether two holders of one socket run the same binary.
    pub(super) fn runs_the_same_as(&self, other: &Self) -> bool {
        self.exe == other.exe && self.standing == other.standing && self.same_image(other)
    }

    fn same_image(&self, other: &Self) -> bool {
        match (self.image, other.image) {
            (Some(ours), Some(theirs)) => (ours.device, ours.inode) == (theirs.device, theirs.inode),
            _ => true,
        }
    }
}

impl ImageKey {
    pub(super) fn of(stat: &Stat) -> Self {
        let nanoseconds = |seconds: i64, rest: u64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size as u64,
            modified_ns: nanoseconds(stat.st_mtime, stat.st_mtime_nsec),
            changed_ns: nanoseconds(stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

/// The files as the sandbox sees them: where paths of its binaries have their meaning.
#[derive(Debug)]
pub(super) struct View {
    root: OwnedFd,
    mount_ns: Option<u64>,
}

impl View {
    /// The view of a process (a container's first), or the daemon's own. Outlives the process.
    pub(super) fn open(proc: &ProcRoot, of: Option<u32>) -> std::io::Result<Self> {
        let pid = of.unwrap_or_else(std::process::id);
        let path = of.map_or_else(|| PathBuf::from("/"), |pid| PathBuf::from(format!("/proc/{pid}/root")));
        let root = openat(CWD, &path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mount_ns = proc.process(pid).and_then(|dir| dir.mount_ns()).ok();
        Ok(Self { root, mount_ns })
    }

    /// Whether `path` leads to `image`, never out of the view.
    fn leads_to(&self, path: &Path, image: &Stat) -> bool {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        openat2(&self.root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
            .and_then(metadata)
            .is_ok_and(|found| (found.st_dev, found.st_ino) == (image.st_dev, image.st_ino))
    }

    /// What the kernel's spelling of a running image means.
    fn judge(&self, dir: &ProcDir, spelt: &Path, image: &Stat) -> (PathBuf, Standing) {
        let ours = dir.mount_ns().ok().is_some_and(|mount_ns| Some(mount_ns) == self.mount_ns);
        let Some(stripped) = spelt.as_os_str().as_bytes().strip_suffix(DELETED) else {
            let standing =
                if ours || self.leads_to(spelt, image) { Standing::Present } else { Standing::Masked };
            return (spelt.to_owned(), standing);
        };
        // A deleted file has no links; one that was replaced by a hard link may. Only a file of that name is not deleted.
        if image.st_nlink > 0 && self.leads_to(spelt, image) {
            return (spelt.to_owned(), Standing::Present);
        }
        let standing = if ours { Standing::Deleted } else { Standing::Masked };
        (PathBuf::from(OsStr::from_bytes(stripped)), standing)
    }
}

/// The facts of a sandbox's processes, kept as long as they hold.
#[derive(Debug)]
pub(super) struct Facts {
    proc: Arc<ProcRoot>,
    netns: u64,
    view: View,
    /// The last used first.
    known: Mutex<VecDeque<Known>>,
}

/// A process, and what to look at again to know that all of it still holds.
#[derive(Debug)]
struct Known {
    own: Link,
    image: ImageKey,
    /// The nearest first.
    line: Vec<Arc<Ancestor>>,
    process: Arc<Process>,
}

/// A process on the way up, and how the kernel spelt its binary.
#[derive(Debug)]
struct Link {
    dir: Arc<ProcDir>,
    spelt: PathBuf,
}

impl Link {
    fn holds(&self) -> bool {
        self.dir.exe_is(&self.spelt)
    }
}

impl Known {
    /// A parent that dies fails to be read, so the line is the one that was walked.
    fn holds(&self) -> bool {
        self.own.holds()
            && self.own.dir.image().is_ok_and(|image| ImageKey::of(&image) == self.image)
            && self.line.iter().all(|ancestor| ancestor.link.holds())
    }
}

impl Facts {
    pub(super) const fn new(proc: Arc<ProcRoot>, netns: u64, view: View) -> Self {
        Self { proc, netns, view, known: Mutex::new(VecDeque::new()) }
    }

    /// The facts of a process, as they are now. About 1 µs for each process of its line if they are known already.
    pub(super) fn of(&self, dir: &Arc<ProcDir>, start_time: u64) -> Result<Arc<Process>, Errno> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let at = known
            .iter()
            .position(|known| (known.process.pid, known.process.start_time) == (dir.pid(), start_time));
        if let Some(entry) = at.and_then(|at| known.remove(at))
            && entry.holds()
        {
            let process = Arc::clone(&entry.process);
            known.push_front(entry);
            return Ok(process);
        }
        let entry = self.read(dir, &known)?;
        if entry.process.start_time != start_time {
            return Err(Errno::SRCH);
        }
        let process = Arc::clone(&entry.process);
        known.push_front(entry);
        known.truncate(KNOWN_MAX);
        Ok(process)
    }

    /// The facts of a process, if it is one of this user.
    pub(super) fn of_user(&self, pid: u32, uid: u32) -> Option<Arc<Process>> {
        let dir = Arc::new(self.proc.process(pid).ok()?);
        if dir.uid() != Ok(uid) {
            return None;
        }
        let start_time = dir.stat(|bytes| stat::parse(bytes).map(|stat| stat.start_time)).ok()?;
        self.of(&dir, start_time).ok()
    }

    /// The process that the witness noted, with what can still be added to it: the note's binary counts, whatever the
    /// process runs by now.
    pub(super) fn of_note(&self, seen: Seen) -> Arc<Process> {
        let live =
            self.proc.process(seen.pid).ok().and_then(|dir| self.of(&Arc::new(dir), seen.start_time).ok());
        if let Some(live) = &live
            && seen.ancestors.is_none()
            && (live.exe == seen.exe || is_spelling_of(&seen.exe, live))
            && (live.uid, live.comm.as_str()) == (seen.uid, seen.comm.as_str())
        {
            return Arc::clone(live);
        }
        let same = live.as_ref().filter(|live| live.exe == seen.exe || is_spelling_of(&seen.exe, live));
        let (standing, image) = same.map_or((Standing::Noted, None), |live| (live.standing, live.image));
        let looked_up = || live.as_ref().map(|live| live.ancestors.clone()).unwrap_or_default();
        let ancestors = seen.ancestors.unwrap_or_else(looked_up);
        Arc::new(Process {
            pid: seen.pid,
            start_time: seen.start_time,
            exe: same.map_or(seen.exe, |live| live.exe.clone()),
            standing,
            comm: seen.comm,
            uid: seen.uid,
            ppid: live.as_ref().map_or(0, |live| live.ppid),
            ancestors,
            image,
        })
    }

    fn read(&self, dir: &Arc<ProcDir>, known: &VecDeque<Known>) -> Result<Known, Errno> {
        let spelt = dir.exe()?;
        let image = dir.image()?;
        let (exe, standing) = self.view.judge(dir, &spelt, &image);
        let (ppid, start_time, comm) = dir.stat(|bytes| {
            let stat = stat::parse(bytes)?;
            Some((stat.ppid, stat.start_time, String::from_utf8_lossy(stat.comm).into_owned()))
        })?;
        let uid = dir.uid()?;
        let line = known_line(known, ppid).unwrap_or_else(|| self.line_from(ppid));
        let ancestors = line.iter().filter_map(|ancestor| ancestor.exe.clone()).collect();
        let image = ImageKey::of(&image);
        let process = Process {
            pid: dir.pid(),
            start_time,
            exe,
            standing,
            comm,
            uid,
            ppid,
            ancestors,
            image: Some(image),
        };
        let own = Link { dir: Arc::clone(dir), spelt };
        Ok(Known { own, image, line, process: Arc::new(process) })
    }

    /// Walks up from `parent` to the sandbox's first process: its parent is in another namespace, or in none we see.
    fn line_from(&self, parent: u32) -> Vec<Arc<Ancestor>> {
        let mut line: Vec<Arc<Ancestor>> = Vec::new();
        let mut next = parent;
        while next != 0 && line.len() < ANCESTORS_MAX {
            let Some(ancestor) = self.ancestor(next) else { break };
            next = ancestor.parent;
            line.push(Arc::new(ancestor));
        }
        line
    }

    fn ancestor(&self, pid: u32) -> Option<Ancestor> {
        let dir = Arc::new(self.proc.process(pid).ok()?);
        if dir.netns().ok()? != self.netns {
            return None;
        }
        let spelt = dir.exe().ok()?;
        let image = dir.image().ok()?;
        let (exe, standing) = self.view.judge(&dir, &spelt, &image);
        let parent = dir.stat(|bytes| stat::parse(bytes).map(|stat| stat.ppid)).ok()?;
        let exe = (standing != Standing::Masked).then_some(exe);
        Some(Ancestor { link: Link { dir, spelt }, exe, parent })
    }
}

/// One step of the way up.
#[derive(Debug)]
struct Ancestor {
    link: Link,
    /// None if masked.
    exe: Option<PathBuf>,
    parent: u32,
}

/// The line of a sibling, if it still holds: a shell's commands come one after the other.
fn known_line(known: &VecDeque<Known>, parent: u32) -> Option<Vec<Arc<Ancestor>>> {
    let is_parent = |ancestor: &&Arc<Ancestor>| ancestor.link.dir.pid() == parent;
    let sibling = known.iter().find(|known| known.line.first().as_ref().is_some_and(is_parent))?;
    sibling.line.iter().all(|ancestor| ancestor.link.holds()).then(|| sibling.line.clone())
}

/// The witness may note the path as the kernel spells it, " (deleted)" and all.
fn is_spelling_of(noted: &Path, live: &Process) -> bool {
    let mut spelt = live.exe.clone().into_os_string().into_vec();
    spelt.extend_from_slice(DELETED);
    live.standing == Standing::Deleted && noted.as_os_str().as_bytes() == spelt
}

/// The file at a path, if it is `image`: the way to a running image whose process has gone.
pub(super) fn open_path_of(path: &Path, image: &ImageKey) -> Option<OwnedFd> {
    let found = statat(CWD, path, AtFlags::empty()).ok()?;
    (ImageKey::of(&found) == *image)
        .then(|| openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty()).ok())
        .flatten()
}
