//! The bulk port: orders to send or take so many bytes of a known pattern.
//!
//! An order is nine bytes: a letter and a big-endian count. The origin answers `D` with the pattern, `U` (take and
//! discard) and `V` (take and compare) with one byte when all has come. Orders follow one another on a connection.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::OnceLock;

use super::service::{Next, Service};
use crate::poll::Interest;
use crate::socket;

/// The pattern repeats after so many bytes: a prime, so that no buffer size hides a shift.
pub(crate) const PATTERN_PERIOD: u64 = 251;
/// What the origin answers when all bytes of an upload came, unchanged if it compared them.
pub(crate) const RECEIPT: u8 = b'K';
/// What it answers when they were changed.
const COMPLAINT: u8 = b'X';

/// Length of the ready-made pattern: what one write offers the kernel.
const PATTERN_BYTES: usize = 251 * 1024;
/// Bytes of an order.
const ORDER_BYTES: usize = 9;
/// System calls in one turn, so that tunnels share the thread.
const CALLS_PER_TURN: usize = 4;

/// What a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Send so many bytes.
    Send(u64),
    /// Take so many bytes, compare them or not, and answer.
    Take {
        /// How many.
        bytes: u64,
        /// Whether to compare them.
        verify: bool,
    },
}

impl Order {
    /// The nine bytes.
    pub(crate) fn encode(self) -> [u8; ORDER_BYTES] {
        let (letter, count) = match self {
            Self::Send(bytes) => (b'D', bytes),
            Self::Take { bytes, verify: false } => (b'U', bytes),
            Self::Take { bytes, verify: true } => (b'V', bytes),
        };
        let mut bytes = [letter; ORDER_BYTES];
        bytes[1..].copy_from_slice(&count.to_be_bytes());
        bytes
    }

    fn decode(bytes: [u8; ORDER_BYTES]) -> Option<Self> {
        let [letter, count @ ..] = bytes;
        let bytes = u64::from_be_bytes(count);
        match letter {
            b'D' => Some(Self::Send(bytes)),
            b'U' => Some(Self::Take { bytes, verify: false }),
            b'V' => Some(Self::Take { bytes, verify: true }),
            _ => None,
        }
    }
}

/// The pattern, long enough for one write from any place within its period.
pub(crate) fn pattern() -> &'static [u8] {
    static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
    PATTERN.get_or_init(|| (0..PATTERN_BYTES).map(|i| (i as u64 % PATTERN_PERIOD) as u8).collect())
}

/// Whether `bytes` are the pattern from `place` on.
pub(crate) fn is_pattern(bytes: &[u8], place: u64) -> bool {
    let mut place = (place % PATTERN_PERIOD) as usize;
    bytes.chunks(PATTERN_BYTES / 2).all(|chunk| {
        let same = pattern().get(place..place + chunk.len()) == Some(chunk);
        place = (place + chunk.len()) % PATTERN_PERIOD as usize;
        same
    })
}

/// One connection of the bulk port.
#[derive(Debug, Default)]
pub(crate) struct Bulk {
    gathered: Vec<u8>,
    order: Option<Order>,
    done: u64,
    changed: bool,
}

impl Bulk {
    fn gather(&mut self, mut stream: &TcpStream) -> io::Result<bool> {
        let mut piece = [0; ORDER_BYTES];
        let missing = ORDER_BYTES - self.gathered.len();
        let count = stream.read(piece.get_mut(..missing).unwrap_or_default())?;
        if count == 0 {
            return Ok(false);
        }
        self.gathered.extend_from_slice(piece.get(..count).unwrap_or_default());
        if let Ok(order) = <[u8; ORDER_BYTES]>::try_from(self.gathered.as_slice()) {
            self.order = Some(Order::decode(order).ok_or(io::ErrorKind::InvalidData)?);
            self.gathered.clear();
            (self.done, self.changed) = (0, false);
        }
        Ok(true)
    }

    fn send(&mut self, mut stream: &TcpStream, bytes: u64) -> io::Result<()> {
        let from = pattern().get((self.done % PATTERN_PERIOD) as usize..).unwrap_or_default();
        let most = from.len().min(usize::try_from(bytes - self.done).unwrap_or(usize::MAX));
        self.done += stream.write(from.get(..most).unwrap_or_default())? as u64;
        if self.done == bytes {
            self.order = None;
        }
        Ok(())
    }

    fn take(
        &mut self,
        mut stream: &TcpStream,
        bytes: u64,
        verify: bool,
        scratch: &mut [u8],
    ) -> io::Result<bool> {
        let most = scratch.len().min(usize::try_from(bytes - self.done).unwrap_or(usize::MAX));
        let room = scratch.get_mut(..most).unwrap_or_default();
        let count = if verify { stream.read(room)? } else { socket::discard(stream, room)? };
        if count == 0 {
            return Ok(false);
        }
        self.changed |= verify && !is_pattern(room.get(..count).unwrap_or_default(), self.done);
        self.done += count as u64;
        if self.done == bytes {
            stream.write_all(&[if self.changed { COMPLAINT } else { RECEIPT }])?;
            self.order = None;
        }
        Ok(true)
    }
}

impl Service for Bulk {
    fn ready(&mut self, stream: &TcpStream, scratch: &mut [u8]) -> io::Result<Next> {
        for _ in 0..CALLS_PER_TURN {
            let stays = match self.order {
                None => self.gather(stream)?,
                Some(Order::Send(bytes)) => self.send(stream, bytes).map(|()| true)?,
                Some(Order::Take { bytes, verify }) => self.take(stream, bytes, verify, scratch)?,
            };
            if !stays {
                return Ok(Next::Close);
            }
        }
        Ok(self.wait())
    }

    fn wait(&self) -> Next {
        Next::Wait(if matches!(self.order, Some(Order::Send(_))) {
            Interest::EPOLLOUT
        } else {
            Interest::EPOLLIN
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_survive_the_wire() {
        for order in [Order::Send(7), Order::Take { bytes: u64::MAX, verify: true }] {
            assert_eq!(Order::decode(order.encode()), Some(order));
        }
        assert_eq!(Order::decode([b'?', 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }

    #[test]
    fn a_shift_or_a_changed_byte_is_seen() {
        let mut bytes = pattern()[100..200_000].to_vec();
        assert!(is_pattern(&bytes, 100));
        assert!(is_pattern(&bytes, 100 + 5 * PATTERN_PERIOD));
        assert!(!is_pattern(&bytes, 101));
        bytes[150_000] ^= 1;
        assert!(!is_pattern(&bytes, 100));
    }
}
