//! Matches the rows of `/proc/net/tcp` and `/proc/net/tcp6` against the connections that are sought. Pure.
//!
//! A row names the socket's own end first: for a client of the proxy that is the client, then the proxy. Addresses are
//! hexadecimal words in the machine's byte order (`Documentation/networking/proc_net_tcp.rst`), and a client on a
//! dual-stack socket is in the v6 table as `::ffff:a.b.c.d`; both sides are compared in canonical form.
//!
//! The bytes come in pieces of any size and are read once for all connections sought, row by row, without allocation.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest row that is read, in bytes. Today's longest (v6, every field at its widest) has 183; what is longer is
/// not a row, and is skipped.
pub const ROW_BYTES_MAX: usize = 512;

/// `TCP_LISTEN`: the one state that has no peer.
const LISTEN: u8 = 0x0A;
/// `TCP_BOUND_INACTIVE`: the highest state Linux has given a number to.
const STATE_MAX: u8 = 0x0D;

/// Both ends of a connection, seen from the socket that is sought. Addresses are canonical: never v4-mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tuple {
    local: (IpAddr, u16),
    remote: (IpAddr, u16),
}

impl Tuple {
    /// The tuple of a socket with these ends, in whatever form the addresses come.
    pub fn new(local: SocketAddr, remote: SocketAddr) -> Self {
        Self {
            local: (local.ip().to_canonical(), local.port()),
            remote: (remote.ip().to_canonical(), remote.port()),
        }
    }

    /// The socket's own address and port.
    pub const fn local(&self) -> (IpAddr, u16) {
        self.local
    }

    /// The peer's address and port.
    pub const fn remote(&self) -> (IpAddr, u16) {
        self.remote
    }
}

/// What the tables say about one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sighting {
    /// No row has it.
    #[default]
    Unseen,
    /// A row has it, but without an inode: the socket no longer (or not yet) belongs to a process.
    Orphan,
    /// A row has it.
    Socket {
        /// The socket's inode, not zero.
        inode: u64,
        /// The uid that made it.
        uid: u32,
    },
}

/// One row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Whose connection.
    pub tuple: Tuple,
    /// TCP state, 1 (`TCP_ESTABLISHED`) to 13.
    pub state: u8,
    /// The uid that made the socket; 0 where there is no inode.
    pub uid: u32,
    /// The socket's inode, 0 if it belongs to no process.
    pub inode: u64,
}

/// One reading of the tables for all connections that are sought.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Sorted by tuple, each once.
    sought: Vec<(Tuple, Sighting)>,
    /// The beginning of a row whose end has not come yet.
    carry: Vec<u8>,
    /// The carry has overflowed: everything up to the next newline is skipped.
    overlong: bool,
    rows: u32,
    malformed: u32,
}

impl Reading {
    /// A reading for these connections.
    pub fn new(sought: impl IntoIterator<Item = Tuple>) -> Self {
        let mut sought: Vec<_> = sought.into_iter().map(|tuple| (tuple, Sighting::Unseen)).collect();
        sought.sort_unstable_by_key(|(tuple, _)| *tuple);
        sought.dedup_by_key(|(tuple, _)| *tuple);
        Self { sought, carry: Vec::with_capacity(ROW_BYTES_MAX), overlong: false, rows: 0, malformed: 0 }
    }

    /// Takes the next bytes of a table.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            self.end_line(line);
            bytes = rest;
        }
        self.keep(bytes);
    }

    /// The table ends here: a last row without a newline counts, and the next bytes are another table's.
    pub fn end_of_table(&mut self) {
        if self.overlong || !self.carry.is_empty() {
            self.end_line(&[]);
        }
    }

    /// The rest of the table is not read: what is left of a row is dropped.
    pub fn leave_table(&mut self) {
        self.carry.clear();
        self.overlong = false;
    }

    /// What was seen of this connection so far.
    pub fn sighting(&self, tuple: &Tuple) -> Sighting {
        match self.sought.binary_search_by_key(tuple, |(sought, _)| *sought) {
            Ok(at) => self.sought.get(at).map(|(_, sighting)| *sighting).unwrap_or_default(),
            Err(_) => Sighting::Unseen,
        }
    }

    /// Whether every connection sought has been seen with its inode: no need to read on.
    pub fn is_complete(&self) -> bool {
        self.sought.iter().all(|(_, sighting)| matches!(sighting, Sighting::Socket { .. }))
    }

    /// Rows understood so far.
    pub const fn rows(&self) -> u32 {
        self.rows
    }

    /// Lines that are neither a row nor the heading.
    pub const fn malformed(&self) -> u32 {
        self.malformed
    }

    fn end_line(&mut self, line: &[u8]) {
        if self.overlong {
            self.overlong = false;
            self.malformed = self.malformed.saturating_add(1);
        } else if self.carry.is_empty() {
            self.line(line);
        } else {
            self.keep(line);
            let carry = std::mem::take(&mut self.carry);
            if std::mem::take(&mut self.overlong) {
                self.malformed = self.malformed.saturating_add(1);
            } else {
                self.line(&carry);
            }
            self.carry = carry;
        }
        self.carry.clear();
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.carry.len() + bytes.len() > ROW_BYTES_MAX {
            self.overlong = true;
            self.carry.clear();
        } else if !self.overlong {
            self.carry.extend_from_slice(bytes);
        }
    }

    fn line(&mut self, line: &[u8]) {
        let line = if line.len() > ROW_BYTES_MAX { Line::Malformed } else { parse(line) };
        match line {
            Line::Row(row) => {
                self.rows = self.rows.saturating_add(1);
                self.note(&row);
            }
            Line::Heading => {}
            Line::Malformed => self.malformed = self.malformed.saturating_add(1),
        }
    }

    fn note(&mut self, row: &Row) {
        if row.state == LISTEN {
            return;
        }
        let Ok(at) = self.sought.binary_search_by_key(&row.tuple, |(tuple, _)| *tuple) else { return };
        let Some((_, sighting)) = self.sought.get_mut(at) else { return };
        if row.inode != 0 {
            *sighting = Sighting::Socket { inode: row.inode, uid: row.uid };
        } else if *sighting == Sighting::Unseen {
            *sighting = Sighting::Orphan;
        }
    }
}

/// A line of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    /// The first line, with the names of the columns.
    Heading,
    /// A socket.
    Row(Row),
    /// Neither; also an empty line.
    Malformed,
}

/// Reads one line, without its newline.
pub fn parse(line: &[u8]) -> Line {
    match fields(line).next() {
        Some(b"sl") => Line::Heading,
        Some(_) => row(line).map_or(Line::Malformed, Line::Row),
        None => Line::Malformed,
    }
}

/// `sl: local remote state tx:rx tr:when retransmits uid timeout inode …`
fn row(line: &[u8]) -> Option<Row> {
    let mut fields = fields(line);
    fields.next()?.strip_suffix(b":")?;
    let local = endpoint(fields.next()?)?;
    let remote = endpoint(fields.next()?)?;
    let state = u8::try_from(hexadecimal(fields.next()?, 2)?).ok()?;
    let uid = u32::try_from(decimal(fields.nth(3)?)?).ok()?;
    let inode = decimal(fields.nth(1)?)?;
    (1..=STATE_MAX).contains(&state).then_some(Row { tuple: Tuple { local, remote }, state, uid, inode })
}

fn fields(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(|&byte| byte == b' ').filter(|field| !field.is_empty())
}

/// `0100007F:1F90`, or 32 digits of address for v6.
fn endpoint(field: &[u8]) -> Option<(IpAddr, u16)> {
    let colon = field.len().checked_sub(5)?;
    let (address, port) = field.split_at_checked(colon)?;
    let port = u16::try_from(hexadecimal(port.strip_prefix(b":")?, 4)?).ok()?;
    let address = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(address)?)),
        32 => {
            let mut octets = [0; 16];
            for (octets, digits) in octets.chunks_exact_mut(4).zip(address.chunks_exact(8)) {
                octets.copy_from_slice(&word(digits)?);
            }
            IpAddr::V6(Ipv6Addr::from(octets)).to_canonical()
        }
        _ => return None,
    };
    Some((address, port))
}

/// The octets of a 32-bit word that the kernel has in network order, but prints as a number of this machine's.
fn word(digits: &[u8]) -> Option<[u8; 4]> {
    Some(u32::try_from(hexadecimal(digits, 8)?).ok()?.to_ne_bytes())
}

fn hexadecimal(digits: &[u8], width: usize) -> Option<u64> {
    if digits.len() != width {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, &digit| {
        let digit = char::from(digit).to_digit(16)?;
        Some(value << 4 | u64::from(digit))
    })
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, &digit| {
        let digit = char::from(digit).to_digit(10)?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

#[cfg(test)]
mod tests;
