//! The netfilter log line, as net/netfilter/nf_log_syslog.c prints it (Linux 5.13 to 6.18).
//!
//! ```text
//! <tag>IN= OUT=lo [PHYSIN=…] [MAC=…] SRC=… DST=… LEN=…
//!   v4: TOS= PREC= TTL= ID= [CE] [DF] [MF] [FRAG:n] [OPT (hex)]
//!   v6: TC= HOPLIMIT= FLOWLBL= [OPT ( FRAG:n ID:hex )]…
//!   PROTO=TCP SPT= DPT= SEQ= ACK= WINDOW= RES= [SYN …] URGP= [OPT (hex)]
//!        |UDP SPT= DPT= LEN= |ICMP TYPE= CODE= [ID= SEQ=] [\[inner packet] ] [MTU=] |AH SPI= |ESP SPI= |number
//!   [UID= GID=] [MARK=0x…]
//! ```
//!
//! Any tail may be missing: `INCOMPLETE [n bytes]` and `TRUNCATED` end a line early, and so does the kernel's
//! line buffer. Words that are not known are passed over, so that a new kernel's additions do no harm.

use std::net::IpAddr;
use std::str::FromStr;

use super::record::Record;
use crate::attempt::{Attempt, Icmp, Interface, Line, Malformed, Proto, TcpFlags};
use crate::tag::{self, Tag};

/// Reads the text of one record.
pub fn parse_text<'a>(record: &Record<'a>) -> Line<'a> {
    if !tag::is_opened(record.text) {
        return Line::Foreign;
    }
    if record.facility != 0 {
        return Line::Forged;
    }
    let Some((tag, fields)) = Tag::strip(record.text) else {
        return Line::Malformed(Malformed::Tag);
    };
    match Fields::read(fields).and_then(|fields| fields.into_attempt(tag, record)) {
        Ok(attempt) => Line::Attempt(attempt),
        Err(why) => Line::Malformed(why),
    }
}

/// What the words of a line said so far.
#[derive(Default)]
struct Fields<'a> {
    in_interface: Interface<'a>,
    out_interface: Interface<'a>,
    src: Option<IpAddr>,
    dst: Option<IpAddr>,
    proto: Option<Proto>,
    /// AH or ESP among IPv6 extension headers: the protocol, if the line breaks off behind it.
    extension: Option<Proto>,
    src_port: Option<u16>,
    dst_port: Option<u16>,
    uid: Option<u32>,
    gid: Option<u32>,
    icmp_type: Option<u8>,
    icmp_code: Option<u8>,
    icmp_id: Option<u16>,
    tcp: u8,
    packet_bytes: Option<u32>,
    mark: Option<u32>,
    fragment_offset: u32,
}

impl<'a> Fields<'a> {
    fn read(text: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Self::default();
        // Square brackets hold the packet that an ICMP error quotes (it must not be taken for the refused one)
        // and byte counts.
        let mut depth = 0_u32;
        for word in text.split(|&byte| byte == b' ') {
            // A device's name is its owner's choice: no bracket in it may count.
            if fields.device(word) {
                continue;
            }
            depth += u32::from(word.first() == Some(&b'['));
            if depth == 0 {
                fields.word(word)?;
            }
            depth = depth.saturating_sub(u32::from(word.last() == Some(&b']')));
        }
        Ok(fields)
    }

    /// Takes the words that hold a device's name; says whether `word` was one.
    fn device(&mut self, word: &'a [u8]) -> bool {
        if let Some(name) = word.strip_prefix(b"IN=") {
            self.in_interface = interface(name);
        } else if let Some(name) = word.strip_prefix(b"OUT=") {
            self.out_interface = interface(name);
        } else {
            return word.starts_with(b"PHYSIN=") || word.starts_with(b"PHYSOUT=");
        }
        true
    }

    fn word(&mut self, word: &[u8]) -> Result<(), Malformed> {
        let Some(equals) = word.iter().position(|&byte| byte == b'=') else {
            return self.bare(word);
        };
        let (key, value) = word.split_at(equals);
        let value = value.get(1..).unwrap_or_default();
        match key {
            b"SRC" => self.src = Some(address(value)?),
            b"DST" => self.dst = Some(address(value)?),
            // The packet's LEN stands before PROTO=, UDP's own behind it.
            b"LEN" if self.packet_bytes.is_none() => self.packet_bytes = Some(number(value)?),
            b"PROTO" => self.proto = Some(protocol(value)?),
            b"SPT" => self.src_port = Some(number(value)?),
            b"DPT" => self.dst_port = Some(number(value)?),
            b"TYPE" => self.icmp_type = Some(number(value)?),
            b"CODE" => self.icmp_code = Some(number(value)?),
            // An IPv4 packet's own ID stands before TYPE=.
            b"ID" if self.icmp_code.is_some() => self.icmp_id = Some(number(value)?),
            b"UID" => self.uid = Some(number(value)?),
            b"GID" => self.gid = Some(number(value)?),
            b"MARK" => self.mark = Some(hexadecimal(value)?),
            _ => {}
        }
        Ok(())
    }

    /// Words without a value: TCP flags, IPv6 extension headers, the fragment offset.
    fn bare(&mut self, word: &[u8]) -> Result<(), Malformed> {
        match word {
            b"FIN" => self.tcp |= TcpFlags::FIN,
            b"SYN" => self.tcp |= TcpFlags::SYN,
            b"RST" => self.tcp |= TcpFlags::RST,
            b"PSH" => self.tcp |= TcpFlags::PSH,
            b"ACK" => self.tcp |= TcpFlags::ACK,
            b"URG" => self.tcp |= TcpFlags::URG,
            b"ECE" => self.tcp |= TcpFlags::ECE,
            b"CWR" => self.tcp |= TcpFlags::CWR,
            b"AH" => self.extension = Some(Proto::Other(51)),
            b"ESP" => self.extension = Some(Proto::Other(50)),
            _ => {
                if let Some(offset) = word.strip_prefix(b"FRAG:").filter(|offset| *offset != b"TRUNCATED") {
                    self.fragment_offset = number(offset)?;
                }
            }
        }
        Ok(())
    }

    fn into_attempt(self, tag: Tag<'a>, record: &Record<'a>) -> Result<Attempt<'a>, Malformed> {
        let (Some(src), Some(dst)) = (self.src, self.dst) else {
            return Err(Malformed::Address);
        };
        if src.is_ipv4() != dst.is_ipv4() {
            return Err(Malformed::Family);
        }
        Ok(Attempt {
            tag,
            seq: record.seq,
            time_us: record.time_us,
            in_interface: self.in_interface,
            out_interface: self.out_interface,
            proto: self.proto.or(self.extension).unwrap_or(Proto::Unknown),
            src,
            dst,
            src_port: self.src_port,
            dst_port: self.dst_port,
            uid: self.uid,
            gid: self.gid,
            icmp: self.icmp_type.zip(self.icmp_code).map(|(kind, code)| Icmp {
                kind,
                code,
                id: self.icmp_id,
            }),
            tcp: TcpFlags(self.tcp),
            packet_bytes: self.packet_bytes,
            mark: self.mark,
            later_fragment: self.fragment_offset != 0,
        })
    }
}

fn interface(name: &[u8]) -> Interface<'_> {
    match std::str::from_utf8(name) {
        Ok(name) if !name.is_empty() => Interface::Name(name),
        _ => Interface::None,
    }
}

fn address(value: &[u8]) -> Result<IpAddr, Malformed> {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or(Malformed::Address)
}

fn number<T: FromStr>(value: &[u8]) -> Result<T, Malformed> {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or(Malformed::Number)
}

fn hexadecimal(value: &[u8]) -> Result<u32, Malformed> {
    value
        .strip_prefix(b"0x")
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .and_then(|digits| u32::from_str_radix(digits, 16).ok())
        .ok_or(Malformed::Number)
}

/// The kernel names six protocols and prints the number of all others (SCTP too).
fn protocol(value: &[u8]) -> Result<Proto, Malformed> {
    Ok(match value {
        b"TCP" => Proto::Tcp,
        b"UDP" => Proto::Udp,
        b"ICMP" => Proto::Icmp,
        b"ICMPv6" => Proto::Icmpv6,
        b"UDPLITE" => Proto::Other(136),
        b"SCTP" => Proto::Other(132),
        b"AH" => Proto::Other(51),
        b"ESP" => Proto::Other(50),
        digits => Proto::from_number(number(digits)?),
    })
}
