//! The headers of a raw IP packet, as far as they say who wanted what from whom.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::attempt::{Icmp, Malformed, Proto, TcpFlags};

/// IPv6 extension headers that are followed before giving up. RFC 8200 names seven kinds, each at most once
/// (destination options twice).
const EXTENSIONS_MAX: usize = 8;

/// What a packet's headers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Transport protocol; [`Proto::Unknown`] when the chain of extension headers is cut short.
    pub proto: Proto,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source and destination port of TCP, UDP, UDP-Lite, SCTP and DCCP.
    pub ports: Option<(u16, u16)>,
    /// Type and code of ICMP and ICMPv6.
    pub icmp: Option<Icmp>,
    /// TCP flags; none set if they are cut off.
    pub tcp: TcpFlags,
    /// Length of the whole packet by its header.
    pub bytes: u32,
    /// A fragment behind the first.
    pub later_fragment: bool,
}

impl Packet {
    /// Reads an IPv4 or IPv6 packet, of which the tail may be cut off.
    pub fn parse(packet: &[u8]) -> Result<Self, Malformed> {
        match packet.first().map(|byte| byte >> 4) {
            Some(4) => Self::v4(packet),
            Some(6) => Self::v6(packet),
            Some(_) => Err(Malformed::Version),
            None => Err(Malformed::Truncated),
        }
    }

    fn v4(packet: &[u8]) -> Result<Self, Malformed> {
        let header: &[u8; 20] = packet.first_chunk().ok_or(Malformed::Truncated)?;
        let [first, _, len_0, len_1, _, _, frag_0, frag_1, _, protocol, _, _, addresses @ ..] = header;
        let [s0, s1, s2, s3, d0, d1, d2, d3] = *addresses;
        let mut parsed = Self {
            proto: Proto::from_number(*protocol),
            src: Ipv4Addr::new(s0, s1, s2, s3).into(),
            dst: Ipv4Addr::new(d0, d1, d2, d3).into(),
            ports: None,
            icmp: None,
            tcp: TcpFlags::default(),
            bytes: u32::from(u16::from_be_bytes([*len_0, *len_1])),
            later_fragment: u16::from_be_bytes([*frag_0, *frag_1]) & 0x1fff != 0,
        };
        let header_bytes = usize::from(first & 0x0f) * 4;
        if header_bytes < 20 {
            return Err(Malformed::Truncated);
        }
        parsed.transport(packet.get(header_bytes..).unwrap_or_default());
        Ok(parsed)
    }

    fn v6(packet: &[u8]) -> Result<Self, Malformed> {
        let (header, rest) = packet.split_first_chunk::<40>().ok_or(Malformed::Truncated)?;
        let [_, _, _, _, len_0, len_1, next, _, addresses @ ..] = header;
        let (src, dst) = addresses.split_first_chunk::<16>().ok_or(Malformed::Truncated)?;
        let dst: [u8; 16] = dst.try_into().map_err(|_| Malformed::Truncated)?;
        let mut parsed = Self {
            proto: Proto::Unknown,
            src: Ipv6Addr::from(*src).into(),
            dst: Ipv6Addr::from(dst).into(),
            ports: None,
            icmp: None,
            tcp: TcpFlags::default(),
            bytes: 40 + u32::from(u16::from_be_bytes([*len_0, *len_1])),
            later_fragment: false,
        };
        if let Some((protocol, body)) = parsed.extensions(*next, rest) {
            parsed.proto = Proto::from_number(protocol);
            parsed.transport(body);
        }
        Ok(parsed)
    }

    /// Follows the extension headers to the transport protocol and its header; `None` if they are cut short.
    fn extensions<'a>(&mut self, next: u8, rest: &'a [u8]) -> Option<(u8, &'a [u8])> {
        const HOP_BY_HOP: u8 = 0;
        const ROUTING: u8 = 43;
        const FRAGMENT: u8 = 44;
        const AUTHENTICATION: u8 = 51;
        const DESTINATION: u8 = 60;
        let (mut next, mut rest) = (next, rest);
        for _ in 0..EXTENSIONS_MAX {
            let header_bytes = match (next, rest) {
                (HOP_BY_HOP | ROUTING | DESTINATION, [_, eights, ..]) => (usize::from(*eights) + 1) * 8,
                (AUTHENTICATION, [_, fours, ..]) => (usize::from(*fours) + 2) * 4,
                (FRAGMENT, [_, _, offset_0, offset_1, ..]) => {
                    self.later_fragment = u16::from_be_bytes([*offset_0, *offset_1]) & 0xfff8 != 0;
                    8
                }
                (HOP_BY_HOP | ROUTING | DESTINATION | AUTHENTICATION | FRAGMENT, _) => return None,
                _ => return Some((next, rest)),
            };
            next = *rest.first()?;
            rest = rest.get(header_bytes..).unwrap_or_default();
            if self.later_fragment {
                return Some((next, &[]));
            }
        }
        None
    }

    fn transport(&mut self, header: &[u8]) {
        if self.later_fragment {
            return;
        }
        match (self.proto, header) {
            // TCP, UDP, DCCP, SCTP, UDP-Lite begin with the two ports.
            (Proto::Tcp | Proto::Udp | Proto::Other(33 | 132 | 136), [s0, s1, d0, d1, rest @ ..]) => {
                self.ports = Some((u16::from_be_bytes([*s0, *s1]), u16::from_be_bytes([*d0, *d1])));
                if let (Proto::Tcp, Some(flags)) = (self.proto, rest.get(9)) {
                    self.tcp = TcpFlags(*flags);
                }
            }
            (Proto::Icmp | Proto::Icmpv6, [kind, code, rest @ ..]) => {
                let echo = matches!((self.proto, kind), (Proto::Icmp, 0 | 8) | (Proto::Icmpv6, 128 | 129));
                // Behind the checksum.
                let id = rest.get(2..4).and_then(|bytes| bytes.try_into().ok()).map(u16::from_be_bytes);
                self.icmp = Some(Icmp { kind: *kind, code: *code, id: id.filter(|_| echo) });
            }
            _ => {}
        }
    }
}
