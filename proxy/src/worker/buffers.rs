//! Buffers that connections borrow while they have bytes to keep, and return when they are idle.

use std::cell::RefCell;
use std::rc::Rc;

/// Octets a buffer starts with; heads are smaller, bodies pass through in pieces of this size.
pub(crate) const BUFFER_OCTETS: usize = 64 << 10;
/// Idle buffers kept per worker: 16 MiB as they are made, 64 MiB had each grown to what is kept.
const IDLE_MAX: usize = 256;

/// The buffers of one worker.
#[derive(Clone, Default)]
pub(crate) struct Buffers(Rc<RefCell<Vec<Vec<u8>>>>);

/// A buffer that goes back when it is dropped; empty when taken.
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    home: Buffers,
}

impl Buffers {
    /// An empty buffer with room for [`BUFFER_OCTETS`].
    pub(crate) fn take(&self) -> Buffer {
        let bytes = self.0.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(BUFFER_OCTETS));
        Buffer { bytes, home: self.clone() }
    }
}

impl std::ops::Deref for Buffer {
    type Target = Vec<u8>;
    fn deref(&self) -> &Vec<u8> {
        &self.bytes
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut idle = self.home.0.borrow_mut();
        if idle.len() < IDLE_MAX && self.bytes.capacity() <= 4 * BUFFER_OCTETS {
            let mut bytes = std::mem::take(&mut self.bytes);
            bytes.clear();
            idle.push(bytes);
        }
    }
}
