//! Reads `/proc` through directory descriptors, into buffers of its own.
//!
//! A [`ProcDir`] is `/proc/<pid>` held open. The kernel ties it to the process, not to the number: once the process is
//! gone every reading fails, even if its pid has been given to another. So facts read through one `ProcDir` are facts of
//! one process.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, Stat, fstat, openat, readlinkat_raw, statat};
use rustix::io::{Errno, pread, read};
use rustix::process::{Resource, getrlimit};

/// Directory entries read at once, in bytes: about 270 descriptors or processes.
const ENTRIES_BYTES: usize = 8 * 1024;
/// The longest link that is read: PATH_MAX and the kernel's " (deleted)".
const LINK_BYTES: usize = 4096 + 16;
/// `socket:[4294967295]`, `net:[4026531840]` and what else is longer and no use here.
const SHORT_LINK_BYTES: usize = 48;
/// `/proc/<pid>/stat` is about 350 bytes.
const STAT_BYTES: usize = 1024;
/// `/proc/<pid>/task/<tid>/schedstat`: three numbers.
const SCHEDSTAT_BYTES: usize = 80;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const HANDLE: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const FILE: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC);

/// The proc file system, or a fixture of one.
#[derive(Debug)]
pub(super) struct ProcRoot {
    dir: OwnedFd,
}

impl ProcRoot {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { dir: rustix::fs::open(path, HANDLE, Mode::empty())? })
    }

    /// Appends the pids of all processes.
    pub(super) fn pids(&self, into: &mut Vec<u32>) -> Result<(), Errno> {
        let dir = openat(&self.dir, c".", DIRECTORY, Mode::empty())?;
        each_number(&dir, |pid| into.push(pid))
    }

    /// The pid given last, to a process or a thread: as long as it stays, none has been made. None in a fixture.
    pub(super) fn last_pid(&self) -> Option<u32> {
        let file = openat(&self.dir, c"loadavg", FILE, Mode::empty()).ok()?;
        let mut buffer = [0; SCHEDSTAT_BYTES];
        let length = read(&file, &mut buffer[..]).ok()?;
        std::str::from_utf8(buffer.get(..length)?).ok()?.split_ascii_whitespace().nth(4)?.parse().ok()
    }

    pub(super) fn process(&self, pid: u32) -> Result<ProcDir, Errno> {
        let dir = openat(&self.dir, number("", pid, "").as_str(), HANDLE, Mode::empty())?;
        Ok(ProcDir { dir, pid })
    }

    /// The network namespace of a process whose directory is not worth opening.
    pub(super) fn netns(&self, pid: u32) -> Result<u64, Errno> {
        bracketed(&self.dir, &number("", pid, "/ns/net"), b"net:[")
            .and_then(|inode| inode.ok_or(Errno::INVAL))
    }
}

/// One process's directory.
#[derive(Debug)]
pub(super) struct ProcDir {
    dir: OwnedFd,
    pid: u32,
}

impl ProcDir {
    pub(super) const fn pid(&self) -> u32 {
        self.pid
    }

    /// The inode of the socket that is descriptor `fd`; none if that is closed, or something else.
    pub(super) fn socket_at(&self, fd: u32) -> Option<u64> {
        bracketed(&self.dir, &number("fd/", fd, ""), b"socket:[").ok().flatten()
    }

    /// Appends the inode and descriptor of every socket, until more than `budget` descriptors have been read: then
    /// [`Errno::MFILE`].
    pub(super) fn sockets(&self, budget: &mut usize, into: &mut Vec<(u64, u32)>) -> Result<(), Errno> {
        let fds = openat(&self.dir, c"fd", DIRECTORY, Mode::empty())?;
        let mut outcome = Ok(());
        each_number(&fds, |fd| {
            let Some(left) = budget.checked_sub(1) else {
                outcome = Err(Errno::MFILE);
                return;
            };
            *budget = left;
            match bracketed(&fds, &number("", fd, ""), b"socket:[") {
                Ok(Some(inode)) => into.push((inode, fd)),
                // Something else, or closed since it was listed.
                Ok(None) | Err(Errno::NOENT) => {}
                Err(errno) => outcome = Err(errno),
            }
        })?;
        outcome
    }

    /// Appends the ids of all threads.
    pub(super) fn threads(&self, into: &mut Vec<u32>) -> Result<(), Errno> {
        let tasks = openat(&self.dir, c"task", DIRECTORY, Mode::empty())?;
        each_number(&tasks, |tid| into.push(tid))
    }

    /// A thread's scheduling counters, held open; [`Errno::MFILE`] if too many are.
    pub(super) fn run_counter(&self, tid: u32) -> Result<RunCounter, Errno> {
        let place = Place::take()?;
        let file = openat(&self.dir, number("task/", tid, "/schedstat").as_str(), FILE, Mode::empty())?;
        Ok(RunCounter { file, _place: place })
    }

    pub(super) fn netns(&self) -> Result<u64, Errno> {
        bracketed(&self.dir, "ns/net", b"net:[").and_then(|inode| inode.ok_or(Errno::INVAL))
    }

    pub(super) fn mount_ns(&self) -> Result<u64, Errno> {
        bracketed(&self.dir, "ns/mnt", b"mnt:[").and_then(|inode| inode.ok_or(Errno::INVAL))
    }

    /// The target of `exe` as the kernel spells it.
    pub(super) fn exe(&self) -> Result<PathBuf, Errno> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); LINK_BYTES];
        let (link, _) = readlinkat_raw(&self.dir, c"exe", &mut buffer[..])?;
        Ok(PathBuf::from(OsStr::from_bytes(link)))
    }

    /// Whether `exe` still leads to `path`.
    pub(super) fn exe_is(&self, path: &Path) -> bool {
        let mut buffer = [MaybeUninit::<u8>::uninit(); LINK_BYTES];
        readlinkat_raw(&self.dir, c"exe", &mut buffer[..])
            .is_ok_and(|(link, _)| &*link == path.as_os_str().as_bytes())
    }

    /// The running image itself, whatever has become of its path.
    pub(super) fn image(&self) -> Result<Stat, Errno> {
        statat(&self.dir, c"exe", AtFlags::empty())
    }

    /// The running image, opened for reading.
    pub(super) fn open_image(&self) -> Result<OwnedFd, Errno> {
        openat(&self.dir, c"exe", FILE, Mode::empty())
    }

    /// The bytes of `stat`, handed to `read`.
    pub(super) fn stat<R>(&self, read: impl FnOnce(&[u8]) -> Option<R>) -> Result<R, Errno> {
        self.file::<STAT_BYTES, R>(c"stat", read)
    }

    /// The effective uid. Not the directory's owner: that is root for a process that can not be dumped.
    pub(super) fn uid(&self) -> Result<u32, Errno> {
        self.file::<{ 4 * STAT_BYTES }, u32>(c"status", |status| {
            let line = status.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"Uid:"))?;
            std::str::from_utf8(line).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
        })
    }

    fn file<const BYTES: usize, R>(
        &self,
        name: &std::ffi::CStr,
        parse: impl FnOnce(&[u8]) -> Option<R>,
    ) -> Result<R, Errno> {
        let file = openat(&self.dir, name, FILE, Mode::empty())?;
        let mut buffer = [0; BYTES];
        let length = read(&file, &mut buffer[..])?;
        parse(buffer.get(..length).unwrap_or_default()).ok_or(Errno::INVAL)
    }
}

/// How long and how often a thread has run so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Runs {
    /// Time on a processor, in nanoseconds, brought up to date when the thread leaves it and at every tick.
    pub ran_ns: u64,
    /// Times it was put on a processor, counted as it is put there.
    pub stints: u64,
}

/// Counters held open in all, at most: never more than a quarter of the descriptors this process may have. The rest are for connections.
const RUN_COUNTERS_MAX: u64 = 65_536;
static RUN_COUNTERS: AtomicU64 = AtomicU64::new(0);

/// An open `schedstat` of one thread (`Documentation/scheduler/sched-stats.rst`).
#[derive(Debug)]
pub(super) struct RunCounter {
    file: OwnedFd,
    _place: Place,
}

/// One of the places for open counters, given back when dropped.
#[derive(Debug)]
struct Place;

impl Place {
    fn take() -> Result<Self, Errno> {
        static MAX: LazyLock<u64> = LazyLock::new(|| {
            let ours = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
            RUN_COUNTERS_MAX.min(ours / 4)
        });
        let taken = |held: u64| (held < *MAX).then_some(held + 1);
        RUN_COUNTERS.fetch_update(Relaxed, Relaxed, taken).map(|_| Self).map_err(|_| Errno::MFILE)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        RUN_COUNTERS.fetch_sub(1, Relaxed);
    }
}

impl RunCounter {
    /// None if the thread is gone, or this kernel keeps no count (CONFIG_SCHED_INFO).
    pub(super) fn read(&self) -> Option<Runs> {
        let mut buffer = [0; SCHEDSTAT_BYTES];
        let length = pread(&self.file, &mut buffer[..], 0).ok()?;
        let mut numbers = std::str::from_utf8(buffer.get(..length)?).ok()?.split_ascii_whitespace();
        let ran_ns = numbers.next()?.parse().ok()?;
        let stints = numbers.nth(1)?.parse().ok()?;
        (stints > 0).then_some(Runs { ran_ns, stints })
    }
}

/// Metadata of an open file.
pub(super) fn metadata(file: impl AsFd) -> Result<Stat, Errno> {
    fstat(file)
}

fn each_number(dir: &OwnedFd, mut each: impl FnMut(u32)) -> Result<(), Errno> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); ENTRIES_BYTES];
    let mut entries = RawDir::new(dir, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if let Some(number) = entry.file_name().to_str().ok().and_then(|name| name.parse().ok()) {
            each(number);
        }
    }
    Ok(())
}

/// The number of a link such as `socket:[80412]`.
fn bracketed(dir: &OwnedFd, name: &str, prefix: &[u8]) -> Result<Option<u64>, Errno> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); SHORT_LINK_BYTES];
    let (link, _) = readlinkat_raw(dir, name, &mut buffer[..])?;
    let digits = link.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(b"]"));
    Ok(digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok()))
}

/// A short path, built without allocation.
#[derive(Debug)]
struct ShortPath {
    bytes: [u8; 40],
    length: usize,
}

impl ShortPath {
    fn as_str(&self) -> &str {
        self.bytes.get(..self.length).and_then(|bytes| std::str::from_utf8(bytes).ok()).unwrap_or_default()
    }
}

impl std::ops::Deref for ShortPath {
    type Target = str;
    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl std::fmt::Write for ShortPath {
    fn write_str(&mut self, part: &str) -> std::fmt::Result {
        let end = self.length + part.len();
        self.bytes.get_mut(self.length..end).ok_or(std::fmt::Error)?.copy_from_slice(part.as_bytes());
        self.length = end;
        Ok(())
    }
}

/// `fd/17`, `task/4242/schedstat`.
fn number(before: &str, number: u32, after: &str) -> ShortPath {
    let mut path = ShortPath { bytes: [0; 40], length: 0 };
    // 40 bytes hold the longest of these, "task/4294967295/schedstat".
    let written = write!(path, "{before}{number}{after}");
    debug_assert!(written.is_ok());
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_found_among_our_own_descriptors() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&listener) as u32;
        let us = ProcRoot::open(Path::new("/proc")).unwrap().process(std::process::id()).unwrap();
        let inode = metadata(&listener).unwrap().st_ino;
        assert_eq!(us.socket_at(fd), Some(inode));
        let (mut sockets, mut budget) = (Vec::new(), 1_000);
        us.sockets(&mut budget, &mut sockets).unwrap();
        assert!(sockets.contains(&(inode, fd)));
        assert!(budget < 1_000);
        drop(listener);
        assert_ne!(us.socket_at(fd), Some(inode));
    }

    #[test]
    fn more_descriptors_than_the_budget_is_an_error_not_a_shorter_list() {
        let us = ProcRoot::open(Path::new("/proc")).unwrap().process(std::process::id()).unwrap();
        assert_eq!(us.sockets(&mut 1, &mut Vec::new()), Err(Errno::MFILE));
    }

    #[test]
    fn the_directory_of_a_process_that_is_gone_reads_nothing() {
        let mut child = std::process::Command::new("/proc/self/exe")
            .arg("--list")
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let dir = ProcRoot::open(Path::new("/proc")).unwrap().process(child.id()).unwrap();
        child.wait().unwrap();
        assert!(dir.exe().is_err());
        assert!(dir.stat(|bytes| super::super::stat::parse(bytes).map(|_| ())).is_err());
    }

    #[test]
    fn our_own_facts_are_read() {
        let us = ProcRoot::open(Path::new("/proc")).unwrap().process(std::process::id()).unwrap();
        assert_eq!(us.exe().unwrap(), std::env::current_exe().unwrap());
        assert!(us.exe_is(&std::env::current_exe().unwrap()));
        assert_eq!(us.uid().unwrap(), nix::unistd::Uid::effective().as_raw());
        assert!(us.run_counter(std::process::id()).unwrap().read().unwrap().stints > 0);
    }
}
