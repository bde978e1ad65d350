//! The kernel's log, of which other tests and programs use their part.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;

use super::eventually;

/// Waits for `count` lines that begin with `prefix`, and returns those seen by then.
pub(crate) fn lines_with(kmsg: &mut File, prefix: &str, count: usize) -> Vec<String> {
    let mut lines = Vec::new();
    eventually("the lines are in the kernel log", || {
        while let Some(record) = next_record(kmsg) {
            // `<level and facility>,<number>,<time>,<flags>;<text>`
            lines.extend(record.split_once(';').map(|(_, text)| text.to_owned()));
        }
        lines.retain(|line| line.starts_with(prefix));
        lines.len() >= count
    });
    lines
}

/// /dev/kmsg, at what comes next.
pub(crate) fn open_kmsg_at_its_end() -> File {
    let mut kmsg = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")
        .expect("open /dev/kmsg (needs root or CAP_SYSLOG)");
    kmsg.seek(SeekFrom::End(0)).expect("seek");
    kmsg
}

/// The next record, if there is one. A reader that was overtaken gets EPIPE once and goes on.
fn next_record(kmsg: &mut File) -> Option<String> {
    let mut record = [0; 8192];
    loop {
        match kmsg.read(&mut record) {
            Ok(length) => return Some(String::from_utf8_lossy(&record[..length]).into_owned()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return None,
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(error) => panic!("/dev/kmsg: {error}"),
        }
    }
}
