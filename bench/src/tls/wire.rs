//! A blocking socket below rustls that reads much at a time: rustls itself asks for 4 KiB, and the load must be cheaper
//! than the proxies it measures.

use std::io::{self, IoSlice, Read, Write};
use std::net::TcpStream;

/// Octets of a read: four records.
const READ_BYTES: usize = 68 * 1024;

/// The socket and what was read of it.
#[derive(Debug)]
pub(crate) struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
    filled: std::ops::Range<usize>,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: Vec::new(), filled: 0..0 }
    }
}

impl Read for Wire {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.filled.is_empty() {
            self.buffer.resize(READ_BYTES, 0);
            self.filled = 0..self.stream.read(&mut self.buffer)?;
        }
        let there = &self.buffer[self.filled.clone()];
        let count = there.len().min(into.len());
        into[..count].copy_from_slice(&there[..count]);
        self.filled.start += count;
        Ok(count)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.stream.write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
