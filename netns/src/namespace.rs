//! A network namespace as a thing: making one, telling it from all others, keeping it by a path.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use serde::{Deserialize, Serialize};

use crate::{Error, enter, kernel};

/// The namespace of the calling thread. `/proc/self` would be the main thread's.
const OWN: &str = "/proc/thread-self/ns/net";

/// Which namespace: the device and inode of its file, as in `/proc/<pid>/ns/net`.
///
/// Unique while the namespace exists; the kernel may give the inode to another one afterwards. A sandbox's mount
/// keeps its namespace in existence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NamespaceId {
    /// Device of the kernel's namespace file system.
    pub device: u64,
    /// Inode: the number in `net:[4026531840]`.
    pub inode: u64,
}

impl NamespaceId {
    /// Of the namespace a path leads to (`/proc/<pid>/ns/net`, `/run/netns/x`, …).
    pub fn of_path(path: impl AsRef<Path>) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        Ok(Self { device: metadata.dev(), inode: metadata.ino() })
    }

    /// All network namespaces in which the main thread of some process is.
    pub fn all_inhabited() -> io::Result<HashSet<Self>> {
        let pids = std::fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let pids = pids.filter(|name| name.bytes().all(|digit| digit.is_ascii_digit()));
        // A process that is gone or a zombie has no namespace to look at.
        Ok(pids.filter_map(|pid| Self::of_path(format!("/proc/{pid}/ns/net")).ok()).collect())
    }

    /// Of an open namespace.
    pub(crate) fn of_fd(netns: BorrowedFd<'_>) -> Result<Self, Error> {
        let stat = nix::sys::stat::fstat(netns).map_err(Error::io("stat", "the namespace"))?;
        Ok(Self { device: stat.st_dev, inode: stat.st_ino })
    }
}

/// Of the calling thread's namespace.
pub(crate) fn own_id() -> Result<NamespaceId, Error> {
    NamespaceId::of_path(OWN).map_err(Error::io("stat", OWN))
}

/// Moves the calling thread into a new, empty namespace and returns a handle on it.
/// Only for threads of [`enter::on_own_thread`].
pub(crate) fn make() -> Result<OwnedFd, Error> {
    unshare(CloneFlags::CLONE_NEWNET).map_err(Error::io("make a network namespace through", OWN))?;
    File::open(OWN).map(OwnedFd::from).map_err(Error::io("open", OWN))
}

/// Opens the namespace at `path`. Anything that is not a namespace file is an error: a mount that has gone leaves
/// an ordinary file behind, and entering it would fail in less clear words.
pub(crate) fn open(path: &Path) -> Result<Option<OwnedFd>, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("open", path)(error)),
    };
    let kind = fstatfs(&file).map_err(Error::io("look at the file system of", path))?.filesystem_type();
    Ok((kind == NSFS_MAGIC).then(|| file.into()))
}

/// Keeps the calling thread's namespace in existence at `path`, which is created.
pub(crate) fn pin_own(path: &Path) -> Result<(), Error> {
    File::create(path).map_err(Error::io("create", path))?;
    mount(Some(OWN), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(Error::io("mount the namespace on", path))
}

/// Undoes [`pin_own`]: unmounts as often as something is mounted there, and removes the file.
pub(crate) fn unpin(path: &Path) -> Result<(), Error> {
    loop {
        // Lazily: somebody may be looking at the file, and that must not keep the namespace.
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(nix::Error::EINVAL | nix::Error::ENOENT) => break, // not, or no longer, a mount
            Err(error) => return Err(Error::io("unmount", path)(error)),
        }
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// The cookie of a namespace: unique since boot, never used again, so it proves identity where an inode may not.
pub(crate) fn cookie(netns: BorrowedFd<'_>) -> Result<u64, Error> {
    enter::inside(netns, own_cookie)?
}

/// The cookie of the calling thread's namespace.
pub(crate) fn own_cookie() -> Result<u64, Error> {
    let socket = UdpSocket::bind("0.0.0.0:0").map_err(Error::io("make a socket in", OWN))?;
    kernel::netns_cookie(socket.as_fd()).map_err(Error::io("read the cookie of", OWN))
}
