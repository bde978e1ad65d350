//! The mount under which namespaces are pinned.
//!
//! A namespace lives as long as any mount of it does, and every new mount namespace (a container, a systemd unit
//! with PrivateTmp) starts with copies of all mounts. Were these copies private, unmounting ours would leave theirs
//! and the namespace would stay for as long as that container. So the directory is a mount of its own in a peer
//! group of its own: copies made from now on follow our unmounting, and nothing of it reaches the mounts above.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::Error;

/// Makes `dir` a shared mount of its own, unless it is one.
pub(super) fn isolate(dir: &Path) -> Result<(), Error> {
    if is_mount(dir)? {
        return Ok(());
    }
    let change = |source: Option<&Path>, flags| {
        mount(source, dir, None::<&str>, flags, None::<&str>).map_err(Error::io("mount", dir))
    };
    change(Some(dir), MsFlags::MS_BIND)?;
    // First private, to leave the peer group of the file system it lies on; then shared, as the first of a new one.
    change(None, MsFlags::MS_PRIVATE)?;
    change(None, MsFlags::MS_SHARED)
}

/// Undoes [`isolate`].
pub(super) fn undo_isolation(dir: &Path) -> Result<(), Error> {
    if is_mount(dir)? {
        umount2(dir, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).map_err(Error::io("unmount", dir))?;
    }
    Ok(())
}

/// Whether `dir` is where a mount begins: it and its parent are on different mounts.
fn is_mount(dir: &Path) -> Result<bool, Error> {
    let parent = dir.parent().unwrap_or(dir);
    Ok(mount_id(dir)? != mount_id(parent)?)
}

/// The `mnt_id` of proc_pid_fdinfo(5).
fn mount_id(path: &Path) -> Result<u64, Error> {
    let file: File = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(path)
        .map_err(Error::io("open", path))?;
    let info = format!("/proc/thread-self/fdinfo/{}", file.as_raw_fd());
    let text = fs::read_to_string(&info).map_err(Error::io("read", &info))?;
    text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok()).ok_or_else(|| {
        Error::io("find mnt_id in", &info)(std::io::Error::from(std::io::ErrorKind::InvalidData))
    })
}
