//! Which processes belong to a sandbox: the only ones whose descriptors are worth reading.
//!
//! A workload can leave its network namespace for a fresh one (an unprivileged `unshare -Un`) and take a socket of the
//! sandbox along, so a process in a namespace nobody knows counts as the sandbox's. It can not enter one that exists:
//! those in [`Elsewhere`] are safe to leave out. A cgroup can not be left at all, and lists its processes in one
//! reading: where the sandbox has one, it is the better roster.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::RwLock;
use std::time::{Duration, Instant};

use super::procfs::ProcRoot;

/// Nested cgroups that are read, at most; a workload with a delegated cgroup could make any number.
const CGROUPS_MAX: usize = 1024;
/// How long a list is good while the last pid stays the same. Pids start over after `pid_max`, 32,768 at the least: to make
/// as many and land on the same takes longer.
const ROSTER_AGE_MAX: Duration = Duration::from_millis(100);
/// How deep cgroups may nest.
const CGROUP_DEPTH_MAX: usize = 16;

/// Where the processes of a sandbox are listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Members {
    /// The processes in the sandbox's network namespace, and in namespaces nobody knows.
    Namespace,
    /// The processes in this cgroup (a directory of a cgroup file system) and below it.
    Cgroup(PathBuf),
}

/// The network namespaces that are known to be somebody else's: the host's, and those of other sandboxes.
#[derive(Debug, Default)]
pub struct Elsewhere {
    namespaces: RwLock<HashSet<u64>>,
}

impl Elsewhere {
    /// Knows the namespace this process is in.
    pub fn with_host() -> io::Result<Self> {
        let elsewhere = Self::default();
        elsewhere.add(fs::metadata("/proc/self/ns/net")?.ino());
        Ok(elsewhere)
    }

    /// Adds a sandbox's namespace, by the inode of its `ns/net`.
    pub fn add(&self, netns: u64) {
        self.namespaces.write().unwrap_or_else(std::sync::PoisonError::into_inner).insert(netns);
    }

    /// Forgets a namespace that is gone: its inode may be given to another.
    pub fn remove(&self, netns: u64) {
        self.namespaces.write().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&netns);
    }

    pub(super) fn contains(&self, netns: u64) -> bool {
        self.namespaces.read().unwrap_or_else(std::sync::PoisonError::into_inner).contains(&netns)
    }
}

/// The list of a sandbox's possible processes, and when it was made.
#[derive(Debug)]
pub(super) struct Roster {
    members: Members,
    pids: Vec<u32>,
    /// The last pid given before the list was made, and when.
    made: Option<(u32, Instant)>,
}

impl Roster {
    pub(super) const fn new(members: Members) -> Self {
        Self { members, pids: Vec::new(), made: None }
    }

    pub(super) const fn members(&self) -> &Members {
        &self.members
    }

    /// The pids that may be the sandbox's, the most recently started first as a rule.
    pub(super) fn list(&mut self, proc: &ProcRoot) -> io::Result<&[u32]> {
        let now = Instant::now();
        let last = proc.last_pid();
        if !self.is_current(last, now) {
            self.made = None;
            self.pids.clear();
            match &self.members {
                Members::Namespace => proc.pids(&mut self.pids)?,
                Members::Cgroup(path) => {
                    read_cgroup(path, CGROUP_DEPTH_MAX, &mut CGROUPS_MAX.clone(), &mut self.pids)?;
                }
            }
            self.pids.sort_unstable_by(|a, b| b.cmp(a));
            self.pids.dedup();
            self.made = last.map(|last| (last, now));
        }
        Ok(&self.pids)
    }

    /// A process can be moved into a cgroup without being made.
    fn is_current(&self, last: Option<u32>, now: Instant) -> bool {
        self.members == Members::Namespace
            && self.made.is_some_and(|(made, at)| {
                Some(made) == last && now.saturating_duration_since(at) < ROSTER_AGE_MAX
            })
    }
}

fn read_cgroup(path: &Path, depth: usize, left: &mut usize, pids: &mut Vec<u32>) -> io::Result<()> {
    *left =
        left.checked_sub(1).ok_or_else(|| io::Error::other("more cgroups in the sandbox than are read"))?;
    let depth = depth.checked_sub(1).ok_or_else(|| io::Error::other("cgroups nested deeper than is read"))?;
    let listed = fs::read_to_string(path.join("cgroup.procs"))?;
    pids.extend(listed.lines().filter_map(|pid| pid.parse::<u32>().ok()));
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            match read_cgroup(&entry.path(), depth, left, pids) {
                // Removed while we looked: it had no processes left.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                outcome => outcome?,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_lists_the_processes_below_it_too() {
        let root = tempfile::tempdir().unwrap();
        let nested = root.path().join("a/b");
        fs::create_dir_all(&nested).unwrap();
        fs::write(root.path().join("cgroup.procs"), "1\n30\n").unwrap();
        fs::write(root.path().join("a/cgroup.procs"), "").unwrap();
        fs::write(nested.join("cgroup.procs"), "200\n30\n").unwrap();
        let proc = ProcRoot::open(Path::new("/proc")).unwrap();
        let mut roster = Roster::new(Members::Cgroup(root.path().to_owned()));
        assert_eq!(roster.list(&proc).unwrap(), [200, 30, 1]);
        fs::write(root.path().join("a/cgroup.procs"), "7\n").unwrap();
        assert_eq!(roster.list(&proc).unwrap(), [200, 30, 7, 1], "moved in, not made");
    }

    #[test]
    fn cgroups_without_end_are_an_error_not_a_shorter_list() {
        let root = tempfile::tempdir().unwrap();
        let mut path = root.path().to_owned();
        for _ in 0..=CGROUP_DEPTH_MAX {
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("cgroup.procs"), "").unwrap();
            path.push("c");
        }
        let proc = ProcRoot::open(Path::new("/proc")).unwrap();
        assert!(Roster::new(Members::Cgroup(root.path().to_owned())).list(&proc).is_err());
    }

    #[test]
    fn a_process_made_since_the_last_list_is_on_the_next() {
        let proc = ProcRoot::open(Path::new("/proc")).unwrap();
        let mut roster = Roster::new(Members::Namespace);
        for _ in 0..20 {
            roster.list(&proc).unwrap();
            let mut child = std::process::Command::new("/bin/sh").arg("-c").arg("read line").spawn().unwrap();
            let listed = roster.list(&proc).unwrap().contains(&child.id());
            child.kill().unwrap();
            child.wait().unwrap();
            assert!(listed);
        }
    }
}
