//! What one thread may still do as itself.
//!
//! Unsafe for system calls the C library would spread over all threads of the process: made directly,
//! they change the calling thread alone.
#![allow(unsafe_code)]

use crate::privileges::Kept;
use seccompiler::sock_filter;
use std::io;

/// The user `nobody`, and the group that goes with it on most systems.
const NOBODY: libc::uid_t = 65_534;

fn done(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn prctl(option: libc::c_int, value: u64) -> io::Result<()> {
    // SAFETY: the options used here take numbers.
    done(unsafe { libc::prctl(option, value, 0u64, 0u64, 0u64) }.into())
}

pub(super) fn no_new_privileges() -> io::Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
}

/// Files are opened as nobody from now on. The kernel takes the capabilities about files out of the
/// effective set; [`keep`] puts back those that stay.
pub(super) fn files_as_nobody() -> io::Result<()> {
    // SAFETY: numbers only. Both calls give the former id and no error; -1 changes nothing and tells.
    unsafe {
        libc::syscall(libc::SYS_setfsgid, NOBODY);
        libc::syscall(libc::SYS_setfsuid, NOBODY);
        let ids = (libc::syscall(libc::SYS_setfsgid, -1i32), libc::syscall(libc::SYS_setfsuid, -1i32));
        if ids != (NOBODY.into(), NOBODY.into()) {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
    }
    Ok(())
}

/// Cuts every set of the calling thread to these capabilities; what is not held is not gained.
pub(super) fn keep(kept: &[Kept]) -> io::Result<()> {
    const LAST_POSSIBLE: u32 = 63;
    const VERSION_3: u32 = 0x2008_0522;
    let wanted = kept.iter().fold(0u64, |set, kept| set | 1 << kept.number);
    prctl_ambient_clear()?;
    for capability in 0..=LAST_POSSIBLE {
        if wanted & (1 << capability) == 0 {
            match prctl(libc::PR_CAPBSET_DROP, capability.into()) {
                // Above the last capability of this kernel.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
                // Without SETPCAP, as in a unit that does not grant it: the sets below still shrink, and
                // no_new_privs keeps execve from giving anything back.
                Err(error) if error.raw_os_error() == Some(libc::EPERM) => break,
                other => other?,
            }
        }
    }
    // `struct __user_cap_header_struct` and two `__user_cap_data_struct` of `linux/capability.h`.
    let header = [VERSION_3, 0];
    let mut words = [[0u32; 3]; 2];
    // SAFETY: version 3 reads the header and writes two structures of three words.
    done(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), words.as_mut_ptr()) })?;
    for (word, wanted) in words.iter_mut().zip([wanted as u32, (wanted >> 32) as u32]) {
        let [_, permitted, _] = *word;
        *word = [permitted & wanted, permitted & wanted, 0];
    }
    // SAFETY: as above, read.
    done(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), words.as_ptr()) })
}

fn prctl_ambient_clear() -> io::Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64)
}

/// Installs programs on the calling thread.
pub(super) fn install(programs: &[Vec<sock_filter>]) -> io::Result<()> {
    for program in programs {
        let program = libc::sock_fprog {
            len: program.len() as u16,
            filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
        };
        // SAFETY: the kernel copies `len` instructions of the same layout from a slice that outlives the call.
        done(unsafe {
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0u64, &raw const program)
        })?;
    }
    Ok(())
}
