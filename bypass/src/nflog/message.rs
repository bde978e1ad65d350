//! An NFLOG netlink message: `nlmsghdr`, `nfgenmsg`, attributes (linux/netfilter/nfnetlink_log.h).
//!
//! The netlink header is in host byte order, everything in the attributes in network byte order.

use crate::attempt::{Attempt, Interface, Line, Malformed};
use crate::nflog::packet::Packet;
use crate::tag::{self, Tag};

/// `NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_PACKET`
const MESSAGE_PACKET: u16 = 4 << 8;
/// `struct nlmsghdr`
const NETLINK_HEADER_BYTES: usize = 16;
/// `struct nfgenmsg`
const NETFILTER_HEADER_BYTES: usize = 4;

const NFULA_MARK: u16 = 2;
const NFULA_IFINDEX_INDEV: u16 = 4;
const NFULA_IFINDEX_OUTDEV: u16 = 5;
const NFULA_PAYLOAD: u16 = 9;
const NFULA_PREFIX: u16 = 10;
const NFULA_UID: u16 = 11;
const NFULA_SEQ: u16 = 12;
const NFULA_GID: u16 = 14;

/// The netlink messages in one datagram, headers included. A cut or impossible length ends the iteration.
pub fn messages(datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let bytes = u32::from_ne_bytes(*rest.first_chunk()?) as usize;
        if bytes < NETLINK_HEADER_BYTES {
            return None;
        }
        let (message, _) = rest.split_at_checked(bytes)?;
        rest = rest.get(aligned(bytes)..).unwrap_or_default();
        Some(message)
    })
}

/// Reads one netlink message. Also gives its number in the group (`NFULA_SEQ`), by which losses are seen.
///
/// `now_us` becomes the attempt's time: the kernel stamps only packets that came in by a device.
pub fn parse(message: &[u8], now_us: u64) -> (Option<u32>, Line<'_>) {
    let kind = message.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let attributes = message.get(NETLINK_HEADER_BYTES + NETFILTER_HEADER_BYTES..);
    let (Some(MESSAGE_PACKET), Some(attributes)) = (kind, attributes) else {
        return (None, Line::Foreign);
    };
    match Fields::read(attributes) {
        Ok(fields) => (fields.seq, fields.into_line(now_us)),
        Err(why) => (None, Line::Malformed(why)),
    }
}

/// The attributes we use.
#[derive(Default)]
struct Fields<'a> {
    mark: Option<u32>,
    in_interface: Interface<'a>,
    out_interface: Interface<'a>,
    payload: &'a [u8],
    prefix: &'a [u8],
    uid: Option<u32>,
    gid: Option<u32>,
    seq: Option<u32>,
}

impl<'a> Fields<'a> {
    fn read(mut rest: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Self::default();
        while let Some((header, _)) = rest.split_first_chunk::<4>() {
            let [length_0, length_1, kind_0, kind_1] = *header;
            let bytes = usize::from(u16::from_ne_bytes([length_0, length_1]));
            let value = rest.get(4..bytes).ok_or(Malformed::Truncated)?;
            // The two highest bits say "nested" and "network byte order".
            match u16::from_ne_bytes([kind_0, kind_1]) & 0x3fff {
                NFULA_MARK => fields.mark = Some(word(value)?),
                NFULA_IFINDEX_INDEV => fields.in_interface = Interface::Index(word(value)?),
                NFULA_IFINDEX_OUTDEV => fields.out_interface = Interface::Index(word(value)?),
                NFULA_PAYLOAD => fields.payload = value,
                NFULA_PREFIX => fields.prefix = value.strip_suffix(b"\0").unwrap_or(value),
                NFULA_UID => fields.uid = Some(word(value)?),
                NFULA_SEQ => fields.seq = Some(word(value)?),
                NFULA_GID => fields.gid = Some(word(value)?),
                _ => {}
            }
            rest = rest.get(aligned(bytes)..).unwrap_or_default();
        }
        Ok(fields)
    }

    fn into_line(self, now_us: u64) -> Line<'a> {
        if !tag::is_opened(self.prefix) {
            return Line::Foreign;
        }
        let Some((tag, [])) = Tag::strip(self.prefix) else {
            return Line::Malformed(Malformed::Tag);
        };
        let packet = match Packet::parse(self.payload) {
            Ok(packet) => packet,
            Err(why) => return Line::Malformed(why),
        };
        Line::Attempt(Attempt {
            tag,
            seq: u64::from(self.seq.unwrap_or_default()),
            time_us: now_us,
            in_interface: self.in_interface,
            out_interface: self.out_interface,
            proto: packet.proto,
            src: packet.src,
            dst: packet.dst,
            src_port: packet.ports.map(|(src, _)| src),
            dst_port: packet.ports.map(|(_, dst)| dst),
            uid: self.uid,
            gid: self.gid,
            icmp: packet.icmp,
            tcp: packet.tcp,
            packet_bytes: Some(packet.bytes),
            mark: self.mark.filter(|&mark| mark != 0),
            later_fragment: packet.later_fragment,
        })
    }
}

fn word(value: &[u8]) -> Result<u32, Malformed> {
    value.try_into().map(u32::from_be_bytes).map_err(|_| Malformed::Truncated)
}

/// Netlink aligns messages and attributes to 4 bytes.
fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(4)
}
