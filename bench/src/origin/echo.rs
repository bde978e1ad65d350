//! The echo port: whatever comes goes back at once.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use super::service::{Next, Service};

/// Bytes read at a time: messages here are small.
const READ_BYTES: usize = 16 * 1024;

/// One connection of the echo port.
#[derive(Debug, Default)]
pub(crate) struct Echo;

impl Service for Echo {
    fn ready(&mut self, mut stream: &TcpStream, scratch: &mut [u8]) -> io::Result<Next> {
        let count = stream.read(scratch.get_mut(..READ_BYTES).unwrap_or_default())?;
        if count == 0 {
            return Ok(Next::Close);
        }
        stream.write_all(scratch.get(..count).unwrap_or_default())?;
        Ok(self.wait())
    }
}
