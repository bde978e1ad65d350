//! One refused packet, as its log line or its NFLOG message describes it.

use std::fmt;
use std::net::IpAddr;

use crate::tag::Tag;

/// A packet that went around the proxy and was refused by a fence.
///
/// Fields are absent when the kernel did not print them: a fragment behind the first has no ports, a packet
/// without a socket of a process (a forwarded one, or the kernel's own) has no uid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt<'a> {
    /// Which fence saw it. The owner must compare the token with the one it gave that sandbox.
    pub tag: Tag<'a>,
    /// The record's number in its source (kmsg: the kernel's; NFLOG: per group).
    pub seq: u64,
    /// Time in µs on the kernel's log clock (kmsg): it starts at boot as CLOCK_MONOTONIC does, but drifts from
    /// it by up to milliseconds. NFLOG: CLOCK_MONOTONIC when the message was read.
    pub time_us: u64,
    /// Interface the packet came in by; none for one that a local process sent.
    pub in_interface: Interface<'a>,
    /// Interface it would have left by.
    pub out_interface: Interface<'a>,
    /// Transport protocol.
    pub proto: Proto,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source port, for protocols that have one.
    pub src_port: Option<u16>,
    /// Destination port, for protocols that have one.
    pub dst_port: Option<u16>,
    /// File-system uid of the sending socket's opener, in the initial user namespace.
    pub uid: Option<u32>,
    /// File-system gid of the same.
    pub gid: Option<u32>,
    /// ICMP and ICMPv6 type and code.
    pub icmp: Option<Icmp>,
    /// TCP flags.
    pub tcp: TcpFlags,
    /// Length of the whole IP packet in bytes.
    pub packet_bytes: Option<u32>,
    /// Netfilter mark; absent means 0.
    pub mark: Option<u32>,
    /// A fragment behind the first one: it has no transport header.
    pub later_fragment: bool,
}

impl Attempt<'_> {
    /// No process asked for this packet: the namespace's own kernel sent it, as an ICMP error or answer, a reset,
    /// or the housekeeping of a link (neighbour discovery, multicast membership). Namespaces with a link of
    /// their own log such lines now and then; they are no bypass. Right only where the fence logs uids (`log flags
    /// skuid` or `all`; NFLOG always does).
    pub fn by_kernel(&self) -> bool {
        let local = self.in_interface == Interface::None && self.uid.is_none();
        local
            && match self.proto {
                Proto::Icmp => self.icmp.is_some_and(|icmp| icmp.kind != Icmp::ECHO_REQUEST),
                Proto::Icmpv6 => self.icmp.is_some_and(|icmp| icmp.kind != Icmp::ECHO_REQUEST_V6),
                Proto::Tcp => self.tcp.0 & TcpFlags::RST != 0,
                Proto::Other(igmp) => igmp == 2,
                Proto::Udp | Proto::Unknown => false,
            }
    }
}

/// A network interface, as far as the source names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Interface<'a> {
    /// None.
    #[default]
    None,
    /// Its name as kmsg prints it: bytes outside printable ASCII are escaped as `\x..`.
    Name(&'a str),
    /// Its index in the fence's namespace (NFLOG).
    Index(u32),
}

/// Transport protocol of an [`Attempt`]. `Display` gives the lower-case name that events carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Proto {
    /// 6
    Tcp,
    /// 17
    Udp,
    /// 1
    Icmp,
    /// 58
    Icmpv6,
    /// Another, by its IANA number.
    Other(u8),
    /// The kernel's line ended before it named one (a chain of IPv6 extension headers cut short).
    Unknown,
}

impl Proto {
    /// The protocol with an IANA number.
    pub fn from_number(number: u8) -> Self {
        match number {
            6 => Self::Tcp,
            17 => Self::Udp,
            1 => Self::Icmp,
            58 => Self::Icmpv6,
            other => Self::Other(other),
        }
    }

    /// The IANA number; `None` for [`Proto::Unknown`].
    pub fn number(self) -> Option<u8> {
        match self {
            Self::Tcp => Some(6),
            Self::Udp => Some(17),
            Self::Icmp => Some(1),
            Self::Icmpv6 => Some(58),
            Self::Other(number) => Some(number),
            Self::Unknown => None,
        }
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("tcp"),
            Self::Udp => f.write_str("udp"),
            Self::Icmp => f.write_str("icmp"),
            Self::Icmpv6 => f.write_str("icmpv6"),
            Self::Other(50) => f.write_str("esp"),
            Self::Other(51) => f.write_str("ah"),
            Self::Other(132) => f.write_str("sctp"),
            Self::Other(136) => f.write_str("udplite"),
            Self::Other(number) => write!(f, "ip-{number}"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// Type and code of an ICMP or ICMPv6 message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Icmp {
    /// Type; the numbers of ICMP and ICMPv6 differ.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Identifier of an echo request or answer: of a ping socket, its port.
    pub id: Option<u16>,
}

impl Icmp {
    /// What `ping` sends over IPv4.
    pub const ECHO_REQUEST: u8 = 8;
    /// What `ping` sends over IPv6.
    pub const ECHO_REQUEST_V6: u8 = 128;
}

/// TCP flags in the order of the header's low byte: FIN is bit 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// Acknowledgement.
    pub const ACK: u8 = 0x10;
    /// Urgent.
    pub const URG: u8 = 0x20;
    /// ECN echo.
    pub const ECE: u8 = 0x40;
    /// Congestion window reduced.
    pub const CWR: u8 = 0x80;

    /// SYN without ACK, RST or FIN: a process asks for a connection. Anything else is a packet of a connection
    /// that was never allowed, or crafted by hand.
    pub fn opens_connection(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST | Self::FIN) == Self::SYN
    }
}

/// What one record of the source turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line<'a> {
    /// A refused packet.
    Attempt(Attempt<'a>),
    /// Somebody else's line.
    Foreign,
    /// It begins as our lines do, but user space wrote it: the kernel's own lines have facility 0, and user
    /// space cannot give its lines that one.
    Forged,
    /// The kernel printed it with our tag, yet it cannot be read.
    Malformed(Malformed),
}

/// Why a line of ours could not be read. One of these is a bug here or a new kernel's form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The text begins as a tag does, but is none.
    #[error("the line's tag is not sluice[<name>:<16 hex digits>]")]
    Tag,
    /// No source or no destination address.
    #[error("the line has no readable SRC= and DST= address")]
    Address,
    /// SRC and DST are of different families.
    #[error("the line's SRC= and DST= are of different address families")]
    Family,
    /// A number that does not fit its field.
    #[error("the line has a number out of its field's range")]
    Number,
    /// An NFLOG attribute or the packet in it is cut short or of the wrong size.
    #[error("the message is cut short")]
    Truncated,
    /// The packet in an NFLOG message is neither IPv4 nor IPv6.
    #[error("the packet is neither IPv4 nor IPv6")]
    Version,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocol_numbers_go_both_ways() {
        for number in 0..=255_u8 {
            assert_eq!(Proto::from_number(number).number(), Some(number));
        }
        assert_eq!(Proto::from_number(132).to_string(), "sctp");
        assert_eq!(Proto::from_number(47).to_string(), "ip-47");
    }

    #[test]
    fn only_a_bare_syn_opens_a_connection() {
        assert!(TcpFlags(TcpFlags::SYN).opens_connection());
        assert!(TcpFlags(TcpFlags::SYN | TcpFlags::ECE | TcpFlags::CWR).opens_connection());
        for flags in [0, TcpFlags::ACK, TcpFlags::SYN | TcpFlags::ACK, TcpFlags::RST, TcpFlags::FIN] {
            assert!(!TcpFlags(flags).opens_connection(), "{flags:#x}");
        }
    }
}
