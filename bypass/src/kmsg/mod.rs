//! `/dev/kmsg`: the kernel's log, one record a read (Documentation/ABI/testing/dev-kmsg).
//!
//! [`record`] splits a record into head and text, [`text`] reads the netfilter line in it, [`reader`] owns the
//! open device.

pub mod reader;
pub mod record;
pub mod text;

pub use reader::{Reader, Start};
pub use record::Record;
pub use text::parse_text;

use crate::attempt::Line;

/// Reads one whole record, head and text. `None` when even the head is unreadable, which no kernel prints.
pub fn parse(bytes: &[u8]) -> Option<(Record<'_>, Line<'_>)> {
    let record = Record::parse(bytes)?;
    let line = parse_text(&record);
    Some((record, line))
}
