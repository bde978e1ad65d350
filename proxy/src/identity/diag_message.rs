//! The sock_diag request for one socket by its four-tuple, and its reply, as bytes. Pure.
//!
//! Layouts are those of `linux/netlink.h`, `linux/sock_diag.h` and `linux/inet_diag.h`: a 16-byte header, then
//! `inet_diag_req_v2` (56 bytes) or `inet_diag_msg` (72 bytes). Numbers are in the machine's order, ports and addresses
//! in the network's. This is a lookup in the kernel's hash table (no `NLM_F_DUMP`): its cost does not depend on how many
//! sockets there are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Protocol;
use super::table::Tuple;

/// `SOCK_DIAG_BY_FAMILY`
const BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST`
const REQUEST: u16 = 1;
/// `NLM_F_DUMP`
const DUMP: u16 = 0x300;
/// `NLMSG_ERROR`
const ERROR: u16 = 2;
/// `NLMSG_DONE`
const DONE: u16 = 3;

const HEADER_BYTES: usize = 16;
const REQUEST_BYTES: usize = HEADER_BYTES + 56;
const ADDRESS_BYTES: usize = 16;

/// Where the fields of `inet_diag_msg` begin, counted from the start of the message.
mod reply {
    use super::HEADER_BYTES;
    pub(super) const FAMILY: usize = HEADER_BYTES;
    pub(super) const STATE: usize = HEADER_BYTES + 1;
    pub(super) const SOURCE_PORT: usize = HEADER_BYTES + 4;
    pub(super) const TARGET_PORT: usize = HEADER_BYTES + 6;
    pub(super) const SOURCE: usize = HEADER_BYTES + 8;
    pub(super) const TARGET: usize = HEADER_BYTES + 24;
    pub(super) const COOKIE: usize = HEADER_BYTES + 44;
    pub(super) const UID: usize = HEADER_BYTES + 64;
    pub(super) const INODE: usize = HEADER_BYTES + 68;
}

/// A socket the kernel found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The socket's inode; 0 if no process holds it any more (time-wait, orphan).
    pub inode: u64,
    /// The uid that made it.
    pub uid: u32,
    /// TCP state (`linux/tcp_states.h`).
    pub state: u8,
    /// The kernel's never reused name of the socket (`SO_COOKIE`).
    pub cookie: u64,
}

/// A message from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    /// A socket: its ends as the kernel has them, and what it is.
    Socket { tuple: Tuple, found: Found },
    /// The request failed with this errno; 0 is an acknowledgement.
    Error(i32),
    /// The end of a dump.
    Done,
    /// Something this module did not ask for, or an answer to another request.
    Other,
}

/// Asks for the one socket whose ends are `tuple`.
pub(super) fn lookup(protocol: Protocol, tuple: &Tuple, sequence: u32) -> [u8; REQUEST_BYTES] {
    // udp_dump_one() takes the ends the other way round ("swapped for historical reasons", net/ipv4/udp_diag.c).
    let (source, target) = match protocol {
        Protocol::Tcp => (tuple.local(), tuple.remote()),
        Protocol::Udp => (tuple.remote(), tuple.local()),
    };
    let family = family_of(source.0, target.0);
    let mut request = Writer::new(REQUEST, sequence, family, protocol);
    request.put(&u32::MAX.to_ne_bytes()); // every state
    request.put(&source.1.to_be_bytes());
    request.put(&target.1.to_be_bytes());
    request.put(&address_bytes(source.0, family));
    request.put(&address_bytes(target.0, family));
    request.put(&0_u32.to_ne_bytes()); // any interface
    request.put(&[0xFF; 8]); // INET_DIAG_NOCOOKIE
    request.bytes
}

/// Asks for a list of sockets in no state at all: answered with [`Reply::Done`] wherever lookups would be answered, and
/// the only way to tell "no such socket" from "this kernel has no tcp_diag", which are both ENOENT.
pub(super) fn probe(sequence: u32) -> [u8; REQUEST_BYTES] {
    Writer::new(REQUEST | DUMP, sequence, nix::libc::AF_INET as u8, Protocol::Tcp).bytes
}

/// Reads the first message of `bytes`, if it answers request number `sequence`.
pub(super) fn parse(bytes: &[u8], sequence: u32) -> Reply {
    read(bytes, sequence).unwrap_or(Reply::Other)
}

fn read(bytes: &[u8], sequence: u32) -> Option<Reply> {
    let length = u32::from_ne_bytes(array(bytes, 0)?) as usize;
    let message = bytes.get(..length)?;
    if u32::from_ne_bytes(array(message, 8)?) != sequence {
        return None;
    }
    match u16::from_ne_bytes(array(message, 4)?) {
        BY_FAMILY => socket(message),
        ERROR => Some(Reply::Error(i32::from_ne_bytes(array(message, HEADER_BYTES)?).checked_neg()?)),
        // The end of a dump carries its result.
        DONE => match i32::from_ne_bytes(array(message, HEADER_BYTES)?) {
            0.. => Some(Reply::Done),
            errno => Some(Reply::Error(errno.checked_neg()?)),
        },
        _ => None,
    }
}

fn socket(message: &[u8]) -> Option<Reply> {
    let [family] = array(message, reply::FAMILY)?;
    let [state] = array(message, reply::STATE)?;
    let local = (address(message, reply::SOURCE, family)?, port(message, reply::SOURCE_PORT)?);
    let remote = (address(message, reply::TARGET, family)?, port(message, reply::TARGET_PORT)?);
    let cookie_low = u32::from_ne_bytes(array(message, reply::COOKIE)?);
    let cookie_high = u32::from_ne_bytes(array(message, reply::COOKIE + 4)?);
    let found = Found {
        inode: u64::from(u32::from_ne_bytes(array(message, reply::INODE)?)),
        uid: u32::from_ne_bytes(array(message, reply::UID)?),
        state,
        cookie: u64::from(cookie_high) << 32 | u64::from(cookie_low),
    };
    Some(Reply::Socket { tuple: Tuple::new(local.into(), remote.into()), found })
}

fn port(message: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(array(message, at)?))
}

fn address(message: &[u8], at: usize, family: u8) -> Option<IpAddr> {
    match i32::from(family) {
        nix::libc::AF_INET => Some(IpAddr::V4(Ipv4Addr::from(array::<4>(message, at)?))),
        nix::libc::AF_INET6 => Some(IpAddr::V6(Ipv6Addr::from(array::<16>(message, at)?))),
        _ => None,
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// Canonical addresses: v4 is asked for as v4, which also finds dual-stack sockets that are connected to it.
fn family_of(source: IpAddr, target: IpAddr) -> u8 {
    let family = if source.is_ipv4() && target.is_ipv4() { nix::libc::AF_INET } else { nix::libc::AF_INET6 };
    family as u8
}

fn address_bytes(address: IpAddr, family: u8) -> [u8; ADDRESS_BYTES] {
    match address {
        IpAddr::V4(address) if i32::from(family) == nix::libc::AF_INET => {
            let [a, b, c, d] = address.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// Fills a request from front to back.
struct Writer {
    bytes: [u8; REQUEST_BYTES],
    at: usize,
}

impl Writer {
    fn new(flags: u16, sequence: u32, family: u8, protocol: Protocol) -> Self {
        let mut writer = Self { bytes: [0; REQUEST_BYTES], at: 0 };
        writer.put(&(REQUEST_BYTES as u32).to_ne_bytes());
        writer.put(&BY_FAMILY.to_ne_bytes());
        writer.put(&flags.to_ne_bytes());
        writer.put(&sequence.to_ne_bytes());
        writer.put(&0_u32.to_ne_bytes()); // port id: the kernel knows
        let protocol = match protocol {
            Protocol::Tcp => nix::libc::IPPROTO_TCP,
            Protocol::Udp => nix::libc::IPPROTO_UDP,
        };
        writer.put(&[family, protocol as u8, 0, 0]); // no extensions
        writer
    }

    fn put(&mut self, field: &[u8]) {
        let end = self.at + field.len();
        if let Some(place) = self.bytes.get_mut(self.at..end) {
            place.copy_from_slice(field);
        }
        self.at = end;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tuple(local: &str, remote: &str) -> Tuple {
        Tuple::new(local.parse().unwrap(), remote.parse().unwrap())
    }

    #[test]
    fn a_v4_request_has_the_layout_of_inet_diag_h() {
        let bytes = lookup(Protocol::Tcp, &tuple("10.200.0.1:51234", "10.200.0.2:3128"), 7);
        assert_eq!(bytes.len(), 72);
        assert_eq!(bytes[..4], 72_u32.to_ne_bytes());
        assert_eq!(bytes[4..8], [20_u16.to_ne_bytes(), 1_u16.to_ne_bytes()].concat());
        assert_eq!(bytes[8..12], 7_u32.to_ne_bytes());
        assert_eq!(bytes[16..20], [2, 6, 0, 0]);
        assert_eq!(bytes[20..24], [0xFF; 4]);
        assert_eq!(bytes[24..28], [0xC8, 0x22, 0x0C, 0x38]);
        assert_eq!(bytes[28..32], [10, 200, 0, 1]);
        assert_eq!(bytes[44..48], [10, 200, 0, 2]);
        assert_eq!(bytes[64..72], [0xFF; 8]);
    }

    #[test]
    fn v4_mapped_ends_are_asked_for_as_v4() {
        let mapped = tuple("[::ffff:10.0.0.1]:1", "[::ffff:10.0.0.2]:2");
        assert_eq!(
            lookup(Protocol::Tcp, &mapped, 1),
            lookup(Protocol::Tcp, &tuple("10.0.0.1:1", "10.0.0.2:2"), 1)
        );
    }

    #[test]
    fn udp_ends_are_swapped() {
        let bytes = lookup(Protocol::Udp, &tuple("10.0.0.1:1", "10.0.0.2:2"), 1);
        assert_eq!(bytes[17], 17);
        assert_eq!(bytes[24..28], [0, 2, 0, 1]);
        assert_eq!(bytes[28..32], [10, 0, 0, 2]);
    }

    /// A reply of a live kernel for a dual-stack socket, its attributes cut off.
    fn socket_reply(sequence: u32) -> Vec<u8> {
        let mut bytes = vec![0; 88];
        bytes[..4].copy_from_slice(&88_u32.to_ne_bytes());
        bytes[4..6].copy_from_slice(&20_u16.to_ne_bytes());
        bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        bytes[16] = 10; // AF_INET6
        bytes[17] = 1;
        bytes[20..24].copy_from_slice(&[0xC8, 0x22, 0x0C, 0x38]);
        bytes[24..40].copy_from_slice(&Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().octets());
        bytes[40..56].copy_from_slice(&Ipv4Addr::new(10, 0, 0, 2).to_ipv6_mapped().octets());
        bytes[60..64].copy_from_slice(&5_u32.to_ne_bytes());
        bytes[80..84].copy_from_slice(&1000_u32.to_ne_bytes());
        bytes[84..88].copy_from_slice(&80_412_u32.to_ne_bytes());
        bytes
    }

    #[test]
    fn a_reply_is_read_in_canonical_form() {
        let Reply::Socket { tuple: ends, found } = parse(&socket_reply(9), 9) else { panic!("not a socket") };
        assert_eq!(ends, tuple("10.0.0.1:51234", "10.0.0.2:3128"));
        assert_eq!(found, Found { inode: 80_412, uid: 1000, state: 1, cookie: 5 });
    }

    #[test]
    fn an_answer_to_another_request_is_not_ours() {
        assert_eq!(parse(&socket_reply(8), 9), Reply::Other);
    }

    #[test]
    fn errors_and_ends_are_told_apart() {
        let message = |kind: u16, code: i32| {
            let mut bytes = vec![0; 36];
            bytes[..4].copy_from_slice(&36_u32.to_ne_bytes());
            bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            bytes[8..12].copy_from_slice(&9_u32.to_ne_bytes());
            bytes[16..20].copy_from_slice(&code.to_ne_bytes());
            parse(&bytes, 9)
        };
        assert_eq!(message(ERROR, -nix::libc::ENOENT), Reply::Error(nix::libc::ENOENT));
        assert_eq!(message(DONE, 0), Reply::Done);
        assert_eq!(message(DONE, -nix::libc::ENOENT), Reply::Error(nix::libc::ENOENT));
        assert_eq!(message(77, 0), Reply::Other);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&bytes, 9);
        }

        #[test]
        fn no_part_of_a_reply_panics(cut in 0_usize..=88, length: u32) {
            let mut bytes = socket_reply(9);
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            parse(&bytes[..cut], 9);
        }
    }
}
