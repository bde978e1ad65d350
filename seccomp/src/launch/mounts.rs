//! The workload's own view of the file tree: set-id bits without effect, a fresh `/proc`, the kernel's knobs read-only, sockets that
//! would hand root the host hidden, files replaced, `/tmp` private.
//!
//! [`Mounts`] is worked out before the clone; [`apply`] runs in the child and, like all there, only
//! makes system calls.
#![allow(unsafe_code)]

use super::child::{Done, check};
use super::{LaunchError, Namespaces};
use libc::c_ulong;
use std::ffi::{CStr, CString};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::null;

/// A file whose contents this workload sees replaced, read-only: `/etc/resolv.conf`, a CA bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplacedFile {
    /// An existing file; a symbolic link is followed.
    pub path: PathBuf,
    /// What the workload reads there.
    pub contents: Vec<u8>,
}

/// What the mount step does.
#[derive(Debug)]
pub(super) struct Mounts {
    private_tmp: bool,
    replaced: Vec<Replaced>,
    /// Paths under `/proc` made read-only in place; those this kernel has.
    proc_read_only: Vec<CString>,
    /// Mount points made read-only with all mounts beneath.
    trees_read_only: Vec<CString>,
    /// Files covered by `/dev/null`.
    hidden_files: Vec<CString>,
    /// Directories covered by an empty one.
    hidden_directories: Vec<CString>,
}

#[derive(Debug)]
struct Replaced {
    staged: CString,
    target: CString,
    contents: Vec<u8>,
}

/// The kernel's knobs under `/proc`: a root user writes many of them without any capability.
const PROC_READ_ONLY: &[&str] =
    &["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/acpi", "/proc/scsi"];
/// Trees of kernel objects with writable knobs (uevent helpers, module parameters, cgroups).
const TREES_READ_ONLY: &[&str] = &["/sys"];
/// Hidden from every workload: the kernel's log, which shows other sandboxes' traffic and takes lines
/// from root; and the sockets by which root asks a service to run anything on the host.
const HIDDEN: &[&str] = &[
    "/dev/kmsg",
    "/run/systemd/private",
    "/run/dbus",
    "/run/docker.sock",
    "/run/containerd",
    "/run/podman",
    "/run/crio",
];
/// Where replaced files are laid out before `/proc` covers it.
const STAGE: &CStr = c"/proc";

impl Mounts {
    pub(super) fn prepare(
        namespaces: Namespaces,
        hidden: &[PathBuf],
        replaced: &[ReplacedFile],
    ) -> Result<Option<Self>, LaunchError> {
        if !namespaces.pids {
            if namespaces.private_tmp || !hidden.is_empty() || !replaced.is_empty() {
                let wanted =
                    "a private /tmp, hidden paths and replaced files need namespaces.pids; turn it on";
                return Err(LaunchError::Invalid(wanted.into()));
            }
            return Ok(None);
        }
        let existing = |paths: &[&str]| paths.iter().filter_map(|path| resolve(Path::new(path))).collect();
        let hidden = HIDDEN.iter().map(Path::new).chain(hidden.iter().map(PathBuf::as_path));
        let (directories, files): (Vec<_>, Vec<_>) =
            hidden.filter_map(|path| path.canonicalize().ok()).partition(|path| path.is_dir());
        let c_strings = |paths: Vec<PathBuf>| paths.iter().filter_map(|path| c_string(path)).collect();
        Ok(Some(Self {
            private_tmp: namespaces.private_tmp,
            replaced: replaced.iter().zip(0..).map(stage).collect::<Result<_, _>>()?,
            proc_read_only: existing(PROC_READ_ONLY),
            trees_read_only: existing(TREES_READ_ONLY),
            hidden_files: c_strings(files),
            hidden_directories: c_strings(directories),
        }))
    }
}

fn resolve(path: &Path) -> Option<CString> {
    c_string(&path.canonicalize().ok()?)
}

fn c_string(path: &Path) -> Option<CString> {
    CString::new(path.as_os_str().as_bytes()).ok()
}

fn stage((file, number): (&ReplacedFile, u32)) -> Result<Replaced, LaunchError> {
    let missing =
        || LaunchError::Invalid(format!("{} cannot be replaced: there is no such file", file.path.display()));
    Ok(Replaced {
        staged: CString::new(format!("/proc/{number}")).map_err(|_| missing())?,
        target: resolve(&file.path).ok_or_else(missing)?,
        contents: file.contents.clone(),
    })
}

const NOTHING_RUNS: c_ulong = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;

/// In the child, in a mount namespace of its own: no program of any mount brings privileges along.
///
/// It would not get them anyway: `no_new_privs` holds, and the bounding set is cut. But the kernel does not execute at all
/// a program whose file demands capabilities that the bounding set lacks (EPERM): Debian's `ping` asks for `CAP_NET_RAW`
/// and can do without it.
pub(super) fn ignore_set_id(mounts: Option<&Mounts>) -> Done {
    if mounts.is_none() {
        // The host's mounts are not ours to change.
        return Ok(());
    }
    set_attribute_of_tree(c"/", libc::MOUNT_ATTR_NOSUID)
}

/// In the child, in a mount namespace of its own.
pub(super) fn apply(mounts: Option<&Mounts>) -> Done {
    let Some(mounts) = mounts else { return Ok(()) };
    // Unmounts of the host still arrive; nothing goes back.
    mount(None, c"/", None, libc::MS_REC | libc::MS_SLAVE, None)?;
    replace_files(&mounts.replaced)?;
    mount(Some(c"proc"), c"/proc", Some(c"proc"), NOTHING_RUNS, None)?;
    for path in &mounts.proc_read_only {
        mount(Some(path), path, None, libc::MS_BIND, None)?;
        read_only(path)?;
    }
    for tree in &mounts.trees_read_only {
        set_attribute_of_tree(tree, libc::MOUNT_ATTR_RDONLY)?;
    }
    for path in &mounts.hidden_files {
        mount(Some(c"/dev/null"), path, None, libc::MS_BIND, None)?;
    }
    for path in &mounts.hidden_directories {
        mount(Some(c"tmpfs"), path, Some(c"tmpfs"), NOTHING_RUNS | libc::MS_RDONLY, Some(c"mode=755"))?;
    }
    if mounts.private_tmp {
        let flags = libc::MS_NOSUID | libc::MS_NODEV;
        mount(Some(c"tmpfs"), c"/tmp", Some(c"tmpfs"), flags, Some(c"mode=1777"))?;
    }
    Ok(())
}

/// The contents are laid into a memory file system, bound over their targets from there, and the file
/// system is taken away again: nothing of it has a path on the host.
fn replace_files(replaced: &[Replaced]) -> Done {
    if replaced.is_empty() {
        return Ok(());
    }
    mount(Some(c"tmpfs"), STAGE, Some(c"tmpfs"), NOTHING_RUNS, Some(c"mode=755"))?;
    for file in replaced {
        write_file(&file.staged, &file.contents)?;
        mount(Some(&file.staged), &file.target, None, libc::MS_BIND, None)?;
        read_only(&file.target)?;
    }
    // SAFETY: a C string.
    check(unsafe { libc::umount2(STAGE.as_ptr(), libc::MNT_DETACH) }.into()).map(drop)
}

fn write_file(path: &CStr, contents: &[u8]) -> Done {
    const READABLE_BY_ALL: libc::mode_t = 0o444;
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_CLOEXEC;
    // SAFETY: a C string.
    let fd = check(unsafe { libc::open(path.as_ptr(), flags, READABLE_BY_ALL) }.into())? as RawFd;
    let mut rest = contents;
    while !rest.is_empty() {
        // SAFETY: the pointer and the length describe one slice.
        let written = check(unsafe { libc::write(fd, rest.as_ptr().cast(), rest.len()) } as libc::c_long)?;
        rest = rest.get(written as usize..).unwrap_or_default();
    }
    // SAFETY: opened above. The mode is set again as the launcher's umask has cut it.
    unsafe {
        check(libc::fchmod(fd, READABLE_BY_ALL).into())?;
        check(libc::close(fd).into()).map(drop)
    }
}

fn mount(source: Option<&CStr>, at: &CStr, kind: Option<&CStr>, flags: c_ulong, data: Option<&CStr>) -> Done {
    let pointer = |text: Option<&CStr>| text.map_or(null(), CStr::as_ptr);
    // SAFETY: every pointer is null or a C string that outlives the call.
    let done =
        unsafe { libc::mount(pointer(source), at.as_ptr(), pointer(kind), flags, pointer(data).cast()) };
    check(done.into()).map(drop)
}

fn read_only(at: &CStr) -> Done {
    mount(None, at, None, libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY | NOTHING_RUNS, None)
}

fn set_attribute_of_tree(tree: &CStr, attribute: u64) -> Done {
    let attributes = libc::mount_attr { attr_set: attribute, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the structure and its size agree; the path is a C string.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            tree.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    check(done).map(drop)
}
