//! Reading a ClientHello (RFC 8446 section 4.1.2) as it passes, however it is cut into segments and records.
//!
//! [`HelloReader`] is fed the same growing buffer of what the client sent first. It copies nothing but the server name,
//! looks at each record once, and takes at most [`HELLO_OCTETS_MAX`] octets to make up its mind.

use crate::destination::{Host, HostRef};

/// What a client may send before its hello is complete, in octets. Hellos have some 500 to 2000, with post-quantum
/// key shares and session tickets a few thousand.
pub const HELLO_OCTETS_MAX: usize = 16 * 1024;

/// Records over which a hello may be spread. One is usual, some clients use two or three.
pub const HELLO_RECORDS_MAX: u8 = 16;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const RECORD_HEADER_OCTETS: usize = 5;
const MESSAGE_HEADER_OCTETS: usize = 4;

const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;
const EXTENSION_ECH: u16 = 0xfe0d;

/// What the first octets from a client are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hello {
    /// So far the start of a hello.
    Incomplete,
    /// Something else than TLS.
    NotTls,
    /// TLS in name only, or a hello out of bounds.
    Malformed,
    /// A hello.
    Read(ClientHello),
}

/// What a hello says about where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The server name.
    pub sni: Sni,
    /// Whether it holds an `encrypted_client_hello` extension. Browsers send a meaningless one to everybody (GREASE), so
    /// this alone says little; together with a name that is not the expected one it says that the true one is hidden.
    pub ech: bool,
    /// Whether HTTP/2 is among the protocols offered.
    pub offers_h2: bool,
}

/// The `server_name` extension (RFC 6066 section 3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sni {
    /// There is none.
    Absent,
    /// A name.
    Name(Host),
    /// No host name: an address, an empty list, a name that is none.
    Invalid,
}

/// How the name in a hello compares with the host that was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SniMatch {
    /// The same, or no name where the host is an address, which TLS cannot name.
    Same,
    /// No name.
    Missing,
    /// Another name.
    Other,
    /// Another name in the clear, and the true one encrypted.
    Encrypted,
}

impl ClientHello {
    /// Compares with the host of the CONNECT that opened the tunnel.
    pub fn compare(&self, host: &Host) -> SniMatch {
        match (&self.sni, host) {
            (Sni::Name(name), _) if name == host => SniMatch::Same,
            (Sni::Absent, Host::Ip(_)) => SniMatch::Same,
            (_, _) if self.ech => SniMatch::Encrypted,
            (Sni::Absent, Host::Name(_)) => SniMatch::Missing,
            (Sni::Name(_) | Sni::Invalid, _) => SniMatch::Other,
        }
    }
}

/// Reads one hello. See the module.
#[derive(Clone, Debug, Default)]
pub struct HelloReader {
    /// Where the first record that is not yet complete starts.
    record: usize,
    records: u8,
    /// Octets of handshake message in the complete records.
    message_octets: usize,
}

impl HelloReader {
    /// Reads on in `buf`, which starts at the first octet the client sent and holds at least what it held at the call
    /// before.
    pub fn read(&mut self, buf: &[u8]) -> Hello {
        if let Some(verdict) = first_octets(buf) {
            return verdict;
        }
        while let Some(record) = buf.get(self.record..).filter(|record| !record.is_empty()) {
            match Record::parse(record) {
                Record::Bad => return Hello::Malformed,
                Record::Partial => break,
                Record::Whole { payload_octets } => {
                    self.records = self.records.saturating_add(1);
                    self.message_octets = self.message_octets.saturating_add(payload_octets);
                    self.record =
                        self.record.saturating_add(RECORD_HEADER_OCTETS).saturating_add(payload_octets);
                    if let Some(verdict) = self.verdict(buf) {
                        return verdict;
                    }
                }
            }
        }
        if buf.len() > HELLO_OCTETS_MAX { Hello::Malformed } else { Hello::Incomplete }
    }

    /// Whether the complete records are enough to tell.
    fn verdict(&self, buf: &[u8]) -> Option<Hello> {
        if self.record > HELLO_OCTETS_MAX || self.records > HELLO_RECORDS_MAX {
            return Some(Hello::Malformed);
        }
        if self.message_octets < MESSAGE_HEADER_OCTETS {
            return None;
        }
        let mut message = Message::new(buf.get(..self.record).unwrap_or_default());
        let (kind, octets) = (message.u8()?, message.u24()?);
        if kind != CLIENT_HELLO || octets > HELLO_OCTETS_MAX {
            return Some(Hello::Malformed);
        }
        let needed = octets.saturating_add(MESSAGE_HEADER_OCTETS);
        if self.message_octets < needed {
            return None;
        }
        message.left = octets;
        Some(parse_hello(&mut message).map_or(Hello::Malformed, Hello::Read))
    }
}

/// What is already certain: octets that start no handshake record, or one with another message in it. What some server
/// would take for the start of TLS is never [`Hello::NotTls`].
fn first_octets(buf: &[u8]) -> Option<Hello> {
    match buf {
        [] | [HANDSHAKE] | [HANDSHAKE, 3] => None,
        // The minor version says nothing: servers must not look at it (RFC 8446 section 5.1).
        [HANDSHAKE, 3, ..] => match buf.get(RECORD_HEADER_OCTETS) {
            None | Some(&CLIENT_HELLO) => None,
            Some(_) => Some(Hello::Malformed),
        },
        // Change cipher spec, alert, data, heartbeat: no hello starts so, but a server may skip a warning and go on.
        [20..=24] => Some(Hello::Incomplete),
        [20..=24, 3, ..] => Some(Hello::Malformed),
        // The hello of SSLv2, in which newer versions could be offered (RFC 5246 appendix E.2): it names no server.
        [0x80..=0xff, rest @ ..] => match rest {
            [] | [_] | [_, CLIENT_HELLO] => Some(Hello::Incomplete),
            [_, CLIENT_HELLO, 3, ..] => Some(Hello::Malformed),
            _ => Some(Hello::NotTls),
        },
        _ => Some(Hello::NotTls),
    }
}

enum Record {
    Whole { payload_octets: usize },
    Partial,
    Bad,
}

impl Record {
    /// The record at the start of these octets: a handshake one of 1 to 2^14 octets.
    fn parse(octets: &[u8]) -> Self {
        if !matches!(octets, [HANDSHAKE] | [HANDSHAKE, 3, ..]) {
            return Self::Bad;
        }
        let Some((&[_, _, _, high, low], payload)) = octets.split_first_chunk::<RECORD_HEADER_OCTETS>()
        else {
            return Self::Partial;
        };
        let payload_octets = usize::from(u16::from_be_bytes([high, low]));
        if payload_octets == 0 || payload_octets > 1 << 14 {
            return Self::Bad;
        }
        if payload.len() < payload_octets { Self::Partial } else { Self::Whole { payload_octets } }
    }
}

/// The handshake message inside whole records: a cursor that steps over their headers.
struct Message<'b> {
    /// Of the current record.
    payload: &'b [u8],
    /// The records behind it.
    records: &'b [u8],
    /// Octets that may still be read.
    left: usize,
}

impl<'b> Message<'b> {
    fn new(records: &'b [u8]) -> Self {
        Self { payload: &[], records, left: usize::MAX }
    }

    fn u8(&mut self) -> Option<u8> {
        self.left = self.left.checked_sub(1)?;
        loop {
            if let Some((&first, rest)) = self.payload.split_first() {
                self.payload = rest;
                return Some(first);
            }
            self.next_record()?;
        }
    }

    fn next_record(&mut self) -> Option<()> {
        let (&[_, _, _, high, low], rest) = self.records.split_first_chunk::<RECORD_HEADER_OCTETS>()?;
        (self.payload, self.records) = rest.split_at_checked(usize::from(u16::from_be_bytes([high, low])))?;
        Some(())
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes([self.u8()?, self.u8()?]))
    }

    fn u24(&mut self) -> Option<usize> {
        let [high, middle, low] = [self.u8()?, self.u8()?, self.u8()?];
        usize::try_from(u32::from_be_bytes([0, high, middle, low])).ok()
    }

    fn skip(&mut self, mut octets: usize) -> Option<()> {
        self.left = self.left.checked_sub(octets)?;
        loop {
            let here = octets.min(self.payload.len());
            self.payload = self.payload.get(here..)?;
            octets = octets.saturating_sub(here);
            if octets == 0 {
                return Some(());
            }
            self.next_record()?;
        }
    }

    /// Runs `read` on the next `octets` alone; what it leaves is skipped.
    fn within<T>(&mut self, octets: usize, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        let behind = self.left.checked_sub(octets)?;
        self.left = octets;
        let value = read(self)?;
        self.skip(self.left)?;
        self.left = behind;
        Some(value)
    }
}

fn parse_hello(message: &mut Message<'_>) -> Option<ClientHello> {
    let mut hello = ClientHello { sni: Sni::Absent, ech: false, offers_h2: false };
    message.skip(2 + 32)?;
    let session_id = message.u8()?;
    message.skip(usize::from(session_id))?;
    let cipher_suites = message.u16()?;
    message.skip(usize::from(cipher_suites))?;
    let compression_methods = message.u8()?;
    message.skip(usize::from(compression_methods))?;
    if session_id > 32 || cipher_suites == 0 || cipher_suites % 2 != 0 || compression_methods == 0 {
        return None;
    }
    if message.left == 0 {
        // TLS 1.2 and before may have no extensions at all.
        return Some(hello);
    }
    let extensions = usize::from(message.u16()?);
    if extensions != message.left {
        return None;
    }
    let mut names_seen = false;
    while message.left > 0 {
        let (kind, octets) = (message.u16()?, usize::from(message.u16()?));
        match kind {
            // Two of them could be two names to two readers.
            EXTENSION_SERVER_NAME if names_seen => return None,
            EXTENSION_SERVER_NAME => {
                names_seen = true;
                hello.sni = message.within(octets, parse_server_name)?;
            }
            EXTENSION_ALPN => hello.offers_h2 = message.within(octets, parse_alpn)?,
            EXTENSION_ECH => {
                hello.ech = true;
                message.skip(octets)?;
            }
            _ => message.skip(octets)?,
        }
    }
    Some(hello)
}

/// A list of exactly one entry of type `host_name`: no other type was ever defined, and none may repeat.
fn parse_server_name(message: &mut Message<'_>) -> Option<Sni> {
    if message.left == 0 {
        return Some(Sni::Invalid);
    }
    let list = usize::from(message.u16()?);
    if list != message.left {
        return None;
    }
    let (kind, octets) = (message.u8()?, usize::from(message.u16()?));
    if kind != 0 || octets != message.left {
        return Some(Sni::Invalid);
    }
    let mut name = [0_u8; 255];
    let Some(name) = name.get_mut(..octets) else { return Some(Sni::Invalid) };
    for octet in name.iter_mut() {
        *octet = message.u8()?;
    }
    Some(match HostRef::parse(name) {
        Ok(host @ HostRef::Name(_)) => Sni::Name(host.to_host()),
        Ok(HostRef::Ip(_)) | Err(_) => Sni::Invalid,
    })
}

/// Whether `h2` is in the list of protocol names.
fn parse_alpn(message: &mut Message<'_>) -> Option<bool> {
    let list = usize::from(message.u16()?);
    if list != message.left {
        return None;
    }
    let mut offers_h2 = false;
    while message.left > 0 {
        let octets = usize::from(message.u8()?);
        offers_h2 |=
            message.within(octets, |name| Some(octets == 2 && name.u16()? == u16::from_be_bytes(*b"h2")))?;
    }
    Some(offers_h2)
}

#[cfg(test)]
#[path = "client_hello_tests.rs"]
mod tests;
