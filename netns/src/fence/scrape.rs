//! Reading a fence's counters straight from the kernel, over a socket that stays inside the namespace.
//!
//! Starting `nft` takes milliseconds and entering the namespace a thread; a daemon with a thousand sandboxes reads
//! them all for every scrape. A netlink socket belongs to the namespace it was made in, so one kept from the beginning
//! answers from there in some ten microseconds, whichever thread asks.
//!
//! Messages as in `linux/netlink.h`, `linux/netfilter/nfnetlink.h` and `linux/netfilter/nf_tables.h`: a dump of the
//! objects of one table (`NFT_MSG_GETOBJ`), answered by one `NFT_MSG_NEWOBJ` a counter.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
};
use nix::sys::time::TimeVal;

use super::Traffic;

const NFT_SUBSYSTEM: u16 = 10;
const NEW_OBJECT: u16 = NFT_SUBSYSTEM * 256 + 18;
const GET_OBJECT: u16 = NFT_SUBSYSTEM * 256 + 19;
const OBJECT_TABLE: u16 = 1;
const OBJECT_NAME: u16 = 2;
const OBJECT_TYPE: u16 = 3;
const OBJECT_DATA: u16 = 4;
const COUNTER_BYTES: u16 = 1;
const COUNTER_PACKETS: u16 = 2;
const COUNTER: u32 = 1;
/// Bits of an attribute's type that are flags (nested, network byte order).
const TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 16;
/// The kernel answers at once; a second means it never will.
const ANSWER_SECONDS_MAX: i64 = 1;
/// Messages of a dump come in buffers of this size at most.
const BUFFER: usize = 32 * 1024;

/// The family of a table, by the kernel's number.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Family {
    /// `NFPROTO_INET`
    Inet = 1,
    /// `NFPROTO_NETDEV`
    NetDev = 5,
}

/// A netlink socket inside a namespace.
#[derive(Debug)]
pub(crate) struct CounterSocket(OwnedFd);

impl CounterSocket {
    /// Opens it in the calling thread's namespace.
    pub(crate) fn open_in_own() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
        setsockopt(&fd, ReceiveTimeout, &TimeVal::new(ANSWER_SECONDS_MAX, 0))?;
        Ok(Self(fd))
    }

    /// The counters of a table: name and traffic. None if there is no such table.
    pub(crate) fn read(&self, family: Family, table: &str) -> io::Result<Vec<(String, Traffic)>> {
        let fd = self.0.as_raw_fd();
        send(fd, &question(family, table), MsgFlags::empty())?;
        let mut counters = Vec::new();
        let mut buffer = vec![0; BUFFER];
        loop {
            let length = recv(fd, &mut buffer, MsgFlags::empty())?;
            if take_answers(buffer.get(..length).unwrap_or_default(), &mut counters)? {
                return Ok(counters);
            }
        }
    }
}

fn question(family: Family, table: &str) -> Vec<u8> {
    let mut body = vec![family as u8, 0, 0, 0];
    let mut name = table.as_bytes().to_vec();
    name.push(0);
    put_attribute(&mut body, OBJECT_TABLE, &name);
    put_attribute(&mut body, OBJECT_TYPE, &COUNTER.to_be_bytes());
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
    message.extend(GET_OBJECT.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]); // sequence and port: one question at a time, and the kernel fills in the port
    message.extend(body);
    message
}

fn put_attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    to.extend(((4 + value.len()) as u16).to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

/// Takes the messages of one buffer; true when the last of them ends the dump.
fn take_answers(mut octets: &[u8], counters: &mut Vec<(String, Traffic)>) -> io::Result<bool> {
    while let Some((head, rest)) = octets.split_first_chunk::<HEADER>() {
        let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let kind = u16::from_ne_bytes([head[4], head[5]]);
        let Some(body) = length.checked_sub(HEADER).and_then(|length| rest.get(..length)) else {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        };
        match i32::from(kind) {
            libc::NLMSG_DONE => return Ok(true),
            libc::NLMSG_ERROR => {
                let code = body.first_chunk::<4>().map_or(0, |code| i32::from_ne_bytes(*code));
                return if code == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(-code)) };
            }
            _ if kind == NEW_OBJECT => counters.extend(body.get(4..).and_then(counter)),
            _ => {}
        }
        octets = octets.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn counter(object: &[u8]) -> Option<(String, Traffic)> {
    let of = |kind| attributes(object).find(|(own, _)| *own == kind).map(|(_, value)| value);
    let name = of(OBJECT_NAME)?.strip_suffix(&[0])?;
    let data = of(OBJECT_DATA)?;
    let number = |kind| {
        let (_, value) = attributes(data).find(|(own, _)| *own == kind)?;
        Some(u64::from_be_bytes(*value.first_chunk()?))
    };
    let traffic = Traffic { packets: number(COUNTER_PACKETS)?, bytes: number(COUNTER_BYTES)? };
    Some((String::from_utf8(name.to_vec()).ok()?, traffic))
}

/// Type and value of each attribute, as far as they are whole.
fn attributes(mut octets: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (head, _) = octets.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & TYPE_MASK;
        let value = octets.get(4..length)?;
        octets = octets.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut message = ((HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(body);
        message
    }

    fn object(name: &str, packets: u64) -> Vec<u8> {
        let mut data = Vec::new();
        put_attribute(&mut data, COUNTER_BYTES, &(packets * 60).to_be_bytes());
        put_attribute(&mut data, COUNTER_PACKETS, &packets.to_be_bytes());
        let mut body = vec![Family::Inet as u8, 0, 0, 0];
        put_attribute(&mut body, OBJECT_NAME, format!("{name}\0").as_bytes());
        put_attribute(&mut body, OBJECT_DATA | 0x8000, &data);
        message(NEW_OBJECT, &body)
    }

    #[test]
    fn counters_of_a_dump_are_read_to_its_end() {
        let mut found = Vec::new();
        let first = [object("refused_tcp", 7), object("logged", 1 << 40)].concat();
        assert!(!take_answers(&first, &mut found).unwrap());
        assert!(take_answers(&message(libc::NLMSG_DONE as u16, &[0; 4]), &mut found).unwrap());
        assert_eq!(found[0], ("refused_tcp".to_owned(), Traffic { packets: 7, bytes: 420 }));
        assert_eq!(found[1].1.packets, 1 << 40);
    }

    #[test]
    fn a_cut_or_wrong_answer_is_an_error_or_nothing_and_never_a_panic() {
        let whole = object("refused_tcp", 7);
        for length in 0..whole.len() {
            let mut found = Vec::new();
            let _ = take_answers(&whole[..length], &mut found);
            assert!(found.is_empty());
        }
        let refused = message(libc::NLMSG_ERROR as u16, &(-libc::EPERM).to_ne_bytes());
        assert_eq!(take_answers(&refused, &mut Vec::new()).unwrap_err().raw_os_error(), Some(libc::EPERM));
    }
}
