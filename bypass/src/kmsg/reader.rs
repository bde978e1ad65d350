//! The open device: one record a read, never waiting.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::libc;

/// Path of the device.
pub const DEVICE: &str = "/dev/kmsg";

/// Where a [`Reader`] begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Behind all records there are: what was logged before belongs to an earlier run.
    End,
    /// At the oldest record that the ring still holds. With [`crate::loss::Sequence::after`] a restarted daemon
    /// goes on behind the last record of its predecessor.
    Oldest,
}

/// `/dev/kmsg`, opened with O_NONBLOCK: a blocking reader under io_uring is woken so late that it loses 94 % of
/// a flood, a non-blocking one loses nothing.
#[derive(Debug)]
pub struct Reader {
    device: File,
}

/// What one read gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A record of so many bytes.
    Record(usize),
    /// The ring overtook the reader. The next read gives the oldest record left; its number tells the loss.
    Overrun,
    /// Everything logged so far has been read.
    Empty,
}

impl Reader {
    /// Opens the device. Errors: no CAP_SYSLOG where `kernel.dmesg_restrict` is 1 (EPERM), no device (ENOENT).
    pub fn open(start: Start) -> io::Result<Self> {
        let mut device = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(DEVICE)?;
        device.seek(match start {
            Start::End => SeekFrom::End(0),
            Start::Oldest => SeekFrom::Start(0),
        })?;
        Ok(Self { device })
    }

    /// Reads the next record into `buffer`, which should have [`crate::limits::KMSG_RECORD_BYTES`].
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Outcome> {
        loop {
            return match (&self.device).read(buffer) {
                Ok(bytes) => Ok(Outcome::Record(bytes)),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => Ok(Outcome::Empty),
                    Some(libc::EPIPE) => Ok(Outcome::Overrun),
                    Some(libc::EINTR) => continue,
                    _ => Err(error),
                },
            };
        }
    }
}

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

impl AsRawFd for Reader {
    fn as_raw_fd(&self) -> RawFd {
        self.device.as_raw_fd()
    }
}
