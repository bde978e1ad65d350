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

use super::procfs::ProcRoot;

/// Nested cgroups that are read, at most; a workload with a delegated cgroup could make any number.
const CGROUPS_MAX: usize = 1024;
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

impl Members {
    /// Puts the pids that may be the sandbox's into `pids`, the most recently started first as a rule.
    pub(super) fn list(&self, proc: &ProcRoot, pids: &mut Vec<u32>) -> io::Result<()> {
        pids.clear();
        match self {
            Self::Namespace => proc.pids(pids)?,
            Self::Cgroup(path) => read_cgroup(path, CGROUP_DEPTH_MAX, &mut CGROUPS_MAX.clone(), pids)?,
        }
        pids.sort_unstable_by(|a, b| b.cmp(a));
        pids.dedup();
        Ok(())
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
        let mut pids = Vec::new();
        let proc = ProcRoot::open(Path::new("/proc")).unwrap();
        Members::Cgroup(root.path().to_owned()).list(&proc, &mut pids).unwrap();
        assert_eq!(pids, [200, 30, 1]);
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
        assert!(Members::Cgroup(root.path().to_owned()).list(&proc, &mut Vec::new()).is_err());
    }
}
