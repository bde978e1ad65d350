//! The few system calls neither libc nor nix wraps, each as a safe function of this crate.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The kernel's Landlock ABI, 0 when Landlock is absent or disabled.
pub(crate) fn landlock_abi() -> u32 {
    const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
    // SAFETY: with this flag the kernel reads no memory and returns a number.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0usize,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(version).unwrap_or(0)
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for the caller; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `PIDFD_THREAD` (Linux 6.9): the pidfd names a thread, not its process.
pub(crate) const PIDFD_THREAD: u32 = libc::O_EXCL as u32;

/// A pidfd of a process, or with [`PIDFD_THREAD`] of a thread. Close-on-exec by itself.
pub(crate) fn pidfd_open(id: u32, flags: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, id as libc::pid_t, flags) })
}

/// A duplicate of descriptor `fd` of the process behind `pidfd`; needs ptrace rights over it.
pub(crate) fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only; the borrow keeps the pidfd open.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0u32) })
}

/// Sends a signal to exactly the process behind `pidfd`: a reused pid is never hit.
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32, flags: u32) -> io::Result<()> {
    // SAFETY: a null siginfo is allowed; the rest are numbers.
    let done = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            flags,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A close-on-exec duplicate numbered above the standard descriptors.
pub(crate) fn duplicate_above_stdio(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const FIRST_AFTER_STDIO: i32 = 3;
    // SAFETY: takes numbers only.
    owned(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, FIRST_AFTER_STDIO) }.into())
}

/// The thread group of the thread or process behind `pidfd` (`PIDFD_GET_INFO`, Linux 6.13).
pub(crate) fn pidfd_pid(pidfd: BorrowedFd<'_>) -> io::Result<u32> {
    /// `struct pidfd_info` of `linux/pidfd.h`, first version.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroup: u64,
        pid: u32,
        tgid: u32,
        ppid: u32,
        ids: [u32; 8],
        exit_code: i32,
    }
    const PIDFD_INFO_PID: u64 = 1;
    const PIDFD_GET_INFO: libc::Ioctl = libc::_IOWR::<Info>(0xff, 11);
    let mut info = Info { mask: PIDFD_INFO_PID, ..Info::default() };
    // SAFETY: the kernel reads and writes one structure of the size coded in the request.
    let done = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
    if done == 0 { Ok(info.tgid) } else { Err(io::Error::last_os_error()) }
}

/// An `int` socket option.
pub(crate) fn int_option(socket: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    let (mut value, mut length) = (0i32, size_of::<i32>() as libc::socklen_t);
    // SAFETY: the kernel writes at most `length` bytes into `value`.
    let done = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length)
    };
    if done == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// The first byte of a socket option.
pub(crate) fn byte_option(socket: BorrowedFd<'_>, level: i32, name: i32) -> Option<u8> {
    let (mut value, mut length) = (0u8, size_of::<u8>() as libc::socklen_t);
    // SAFETY: as above.
    let done = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length)
    };
    (done == 0).then_some(value)
}

/// Whether the kernel's seccomp knows an action (`SECCOMP_GET_ACTION_AVAIL`).
pub(crate) fn seccomp_action_available(action: u32) -> io::Result<()> {
    // SAFETY: the kernel reads one integer.
    let done =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Major and minor version of the running kernel.
pub(crate) fn kernel_release() -> Option<(u32, u32)> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut numbers = release.split(|other: char| !other.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}
