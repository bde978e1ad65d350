//! The memory a ring lives in: one memfd, mapped by its writer and by any number of readers.
//!
//! The one place of the witness with raw memory. What is in it is only ever touched as atomic words, so that a
//! reader can look while a writer, perhaps in another process and perhaps gone mad, writes.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// Seals without which a reader takes no descriptor: nobody can shrink what is mapped (reading behind the end would
/// be SIGBUS) and nobody can lift that.
const NEEDED: i32 = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

/// A mapping of whole words, which stays for the value's life.
#[derive(Debug)]
pub(super) struct Memory {
    base: NonNull<AtomicU64>,
    words: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is accessed as atomics only.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// New zeroed memory of `words` words, mapped for writing, and the descriptor by which others can read it. They
    /// cannot write: only mappings made before the seal may.
    pub(super) fn create(words: usize) -> io::Result<(Self, OwnedFd)> {
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        // SAFETY: takes a C string and flags.
        let fd = unsafe { libc::memfd_create(c"sluice-notes".as_ptr(), flags) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let bytes = i64::try_from(words * size_of::<u64>()).map_err(io::Error::other)?;
        // SAFETY: takes numbers only.
        checked(unsafe { libc::ftruncate(fd.as_raw_fd(), bytes) })?;
        let memory = Self::map(&fd, words, libc::PROT_READ | libc::PROT_WRITE)?;
        // Without Linux 5.1 whoever has the descriptor could write; readers stand that.
        let sealed = seal(&fd, NEEDED | libc::F_SEAL_FUTURE_WRITE);
        sealed.or_else(|_| seal(&fd, NEEDED))?;
        Ok((memory, fd))
    }

    /// The memory behind a descriptor that somebody else made, for reading; refused unless it has just this size and
    /// can never have another.
    pub(super) fn open(fd: BorrowedFd<'_>, words: usize) -> io::Result<Self> {
        let wrong = |what| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        // SAFETY: takes numbers only.
        let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
        if seals < 0 || seals & NEEDED != NEEDED {
            return wrong("the descriptor is no sealed memfd");
        }
        let bytes = nix::sys::stat::fstat(fd)?.st_size;
        if u64::try_from(bytes).ok() != Some((words * size_of::<u64>()) as u64) {
            return wrong(
                "the memory has not the size of a ring of notes; both ends must be the same version",
            );
        }
        Self::map(&fd, words, libc::PROT_READ)
    }

    fn map(fd: &impl AsRawFd, words: usize, protection: i32) -> io::Result<Self> {
        // SAFETY: a new mapping, placed by the kernel, of a file whose size cannot change once it is sealed (and which
        // nobody else has before).
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                words * size_of::<u64>(),
                protection,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { base, words })
    }

    /// All of it. Readers may only load, with `Relaxed` (their mapping is read-only).
    pub(super) fn words(&self) -> &[AtomicU64] {
        // SAFETY: `words` words are mapped, page-aligned, until drop, and only ever accessed as atomics.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.words) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: this very mapping; `words()` borrows from `self`, so no reference is left.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.words * size_of::<u64>()) };
    }
}

fn seal(fd: &OwnedFd, seals: i32) -> io::Result<()> {
    // SAFETY: takes numbers only.
    checked(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) })
}

fn checked(done: i32) -> io::Result<()> {
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
