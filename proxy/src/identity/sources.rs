//! The tables of `/proc/<pid>/net` and `/proc/net`, read for the [`Reading`] that matches them.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;

use super::table::Reading;

/// Read at once. The kernel hands out a page's worth of whole rows at a time, whatever the buffer.
const CHUNK_BYTES: usize = 16 * 1024;

/// Where the tables come from: the kernel, or a test's fixture.
pub trait Tables: Send + Sync {
    /// Feeds the tcp and tcp6 tables of the namespace that `pid` is in.
    fn of_process(&self, pid: u32, reading: &mut Reading) -> io::Result<()>;
    /// Feeds the tables the daemon sees as its own.
    fn global(&self, reading: &mut Reading) -> io::Result<()>;
}

/// The tables under a proc file system.
#[derive(Debug, Clone)]
pub struct ProcTables {
    root: PathBuf,
}

impl ProcTables {
    /// The tables below this directory: `/proc`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// A kernel without v6 has no tcp6. A connection may be in either: v4 ones of dual-stack sockets are in tcp6.
    fn feed(&self, net: &str, reading: &mut Reading) -> io::Result<()> {
        for (table, required) in [("tcp", true), ("tcp6", false)] {
            match File::open(self.root.join(net).join(table)) {
                Ok(file) => feed_file(file, reading)?,
                Err(error) if !required && error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            if reading.is_complete() {
                break;
            }
        }
        Ok(())
    }
}

impl Tables for ProcTables {
    fn of_process(&self, pid: u32, reading: &mut Reading) -> io::Result<()> {
        self.feed(&format!("{pid}/net"), reading)
    }

    fn global(&self, reading: &mut Reading) -> io::Result<()> {
        self.feed("net", reading)
    }
}

fn feed_file(mut file: File, reading: &mut Reading) -> io::Result<()> {
    let mut chunk = [0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => {
                reading.end_of_table();
                return Ok(());
            }
            Ok(length) => reading.feed(chunk.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if reading.is_complete() {
            reading.leave_table();
            return Ok(());
        }
    }
}
