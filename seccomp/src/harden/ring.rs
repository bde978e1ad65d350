//! Which operations a thread's io_uring may carry.
//!
//! No seccomp filter sees what is asked of a ring: without this, a thread that may not open a file could
//! have its ring open it. A ring made disabled (`IORING_SETUP_R_DISABLED`) takes one list of operations,
//! is switched on, and keeps the list for good.
#![allow(unsafe_code)]

use super::{HardenError, Mode, Role, mode};
use std::io;
use std::os::fd::RawFd;

/// What connections are made of (`linux/io_uring.h`): nothing that opens, renames, removes or runs.
const OPERATIONS: &[(u8, &str)] = &[
    (0, "NOP"),
    (1, "READV"),
    (2, "WRITEV"),
    (6, "POLL_ADD"),
    (7, "POLL_REMOVE"),
    (9, "SENDMSG"),
    (10, "RECVMSG"),
    (11, "TIMEOUT"),
    (12, "TIMEOUT_REMOVE"),
    (13, "ACCEPT"),
    (14, "ASYNC_CANCEL"),
    (15, "LINK_TIMEOUT"),
    (16, "CONNECT"),
    (19, "CLOSE"),
    (22, "READ"),
    (23, "WRITE"),
    (26, "SEND"),
    (27, "RECV"),
    (34, "SHUTDOWN"),
];

/// `struct io_uring_restriction`.
#[repr(C)]
struct Restriction {
    kind: u16,
    value: u8,
    reserved: [u8; 13],
}

/// Limits and switches on every ring of this process that was made disabled: the calling thread's, as
/// threads make theirs one after the other. A no-op where Sluice does not confine itself, as rings are
/// then made enabled.
pub fn limit_rings(role: Role) -> Result<(), HardenError> {
    if mode() == Mode::Off {
        return Ok(());
    }
    let failed = |reason| HardenError { who: role.name(), step: "the operations of its ring", reason };
    let mut limited = 0;
    for ring in rings().map_err(failed)? {
        limited += u32::from(limit(ring).map_err(failed)?);
    }
    if limited == 0 {
        return Err(failed(io::Error::other("it has no disabled ring")));
    }
    Ok(())
}

/// Descriptors of this process that are rings.
fn rings() -> io::Result<Vec<RawFd>> {
    let is_ring = |entry: &std::fs::DirEntry| {
        std::fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == "anon_inode:[io_uring]")
    };
    let entries = std::fs::read_dir("/proc/self/fd")?.filter_map(Result::ok).filter(is_ring);
    Ok(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

/// True when it was disabled and is now limited; another thread's is left alone.
fn limit(ring: RawFd) -> io::Result<bool> {
    const REGISTER_RESTRICTIONS: u32 = 11;
    const REGISTER_ENABLE_RINGS: u32 = 12;
    const SQE_OP: u16 = 1;
    const SQE_FLAGS_ALLOWED: u16 = 2;
    // All flags a request can carry, but registered files (bit 0) and buffers (bit 5): nothing is registered.
    const FLAGS: u8 = 0b0101_1110;
    let entry = |kind, value| Restriction { kind, value, reserved: [0; 13] };
    let mut list: Vec<_> = OPERATIONS.iter().map(|(operation, _)| entry(SQE_OP, *operation)).collect();
    list.push(entry(SQE_FLAGS_ALLOWED, FLAGS));
    let register = |call: u32, list: *const Restriction, count: usize| {
        // SAFETY: the kernel reads `count` structures; null with none.
        let done = unsafe { libc::syscall(libc::SYS_io_uring_register, ring, call, list, count) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    match register(REGISTER_RESTRICTIONS, list.as_ptr(), list.len()) {
        // Switched on already, or another thread's alone.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EBADFD | libc::EEXIST | libc::EACCES)) => {
            return Ok(false);
        }
        other => other?,
    }
    register(REGISTER_ENABLE_RINGS, std::ptr::null(), 0)?;
    Ok(true)
}
