//! Where the kernel describes its tracepoints: a mounted tracefs, or one that only this process sees.

use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::TraceError;
use super::format::{self, Layout};

/// Where distributions mount it; the second is the older place.
const MOUNTED: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
const ID: &str = "events/sock/inet_sock_set_state/id";
const FORMAT: &str = "events/sock/inet_sock_set_state/format";

/// The number and the layout of `sock:inet_sock_set_state`.
pub(super) fn tracepoint() -> Result<(u64, Layout), TraceError> {
    let mounted = MOUNTED.iter().find_map(|path| directory(path).ok().filter(|dir| read(dir, ID).is_ok()));
    let dir = mounted.map_or_else(unseen, Ok).map_err(TraceError::Tracefs)?;
    let id = read(&dir, ID).map_err(TraceError::Tracefs)?;
    let id = id.trim().parse().map_err(|_| TraceError::Unknown(format!("id {}", id.trim())))?;
    let format = read(&dir, FORMAT).map_err(TraceError::Tracefs)?;
    let layout = format::parse(&format).map_err(|field| TraceError::Unknown(format!("field {field}")))?;
    Ok((id, layout))
}

fn directory(path: &str) -> io::Result<OwnedFd> {
    Ok(openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// A tracefs that is mounted nowhere, and gone once its descriptor is closed.
fn unseen() -> io::Result<OwnedFd> {
    let fs = fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(fs.as_fd())?;
    Ok(fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

fn read(dir: impl AsFd, path: &str) -> io::Result<String> {
    let dir: BorrowedFd<'_> = dir.as_fd();
    let file = openat(dir, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = String::new();
    std::fs::File::from(file).read_to_string(&mut text)?;
    Ok(text)
}
