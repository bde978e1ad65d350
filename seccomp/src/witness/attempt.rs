//! What a noted call wants to reach, read from its arguments and the caller's memory.

use super::listener::Notification;
use super::notes::{Call, canonical};
use crate::limits::SOCKADDR_BYTES_MAX;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use std::io::IoSliceMut;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

/// One call towards an internet address.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    pub(super) tid: u32,
    /// The socket, as a descriptor of the caller.
    pub(super) fd: i32,
    pub(super) call: Call,
    /// `MSG_FASTOPEN` was given: this call connects.
    pub(super) fast_open: bool,
    /// IPv4 when v4-mapped.
    pub(super) dst: SocketAddr,
}

/// Bytes of `struct msghdr` up to and with the length of the name.
const MSGHDR_NAME_BYTES: usize = 12;

impl Attempt {
    /// `None` for other families, unreadable addresses and calls that are no attempt.
    pub(super) fn read(call: &Notification) -> Option<Self> {
        let [fd, a1, a2, a3, a4, a5] = call.args;
        let tid = call.tid;
        let flags = |value: u64| value as i32 & libc::MSG_FASTOPEN != 0;
        let (kind, fast_open, address, length) = match call.syscall {
            libc::SYS_connect => (Call::Connect, false, a1, a2),
            libc::SYS_sendto => (Call::SendTo, flags(a3), a4, a5),
            // `struct mmsghdr` begins with a `struct msghdr`; the first message is the one that connects.
            libc::SYS_sendmsg | libc::SYS_sendmmsg => {
                let (name, length) = message_name(tid, a1)?;
                let kind = if call.syscall == libc::SYS_sendmsg { Call::SendMsg } else { Call::SendMmsg };
                (kind, true, name, length)
            }
            _ => return None,
        };
        let mut buffer = [0u8; SOCKADDR_BYTES_MAX];
        let wanted = usize::try_from(length).ok()?.min(SOCKADDR_BYTES_MAX);
        let got = read_memory(tid, address, buffer.get_mut(..wanted)?)?;
        let dst = canonical(parse_sockaddr(buffer.get(..got)?)?);
        Some(Self { tid, fd: fd as i32, call: kind, fast_open, dst })
    }
}

/// `msg_name` and `msg_namelen` of a `struct msghdr` in the caller.
fn message_name(tid: u32, address: u64) -> Option<(u64, u64)> {
    let mut header = [0u8; MSGHDR_NAME_BYTES];
    if read_memory(tid, address, &mut header)? < MSGHDR_NAME_BYTES {
        return None;
    }
    let (name, length) = header.split_first_chunk::<8>()?;
    let length = u32::from_ne_bytes(length.try_into().ok()?);
    Some((u64::from_ne_bytes(*name), length.into()))
}

/// Bytes read from the caller's memory, fewer when a page is missing.
fn read_memory(tid: u32, address: u64, into: &mut [u8]) -> Option<usize> {
    let len = into.len();
    let base = usize::try_from(address).ok()?;
    let pid = Pid::from_raw(i32::try_from(tid).ok()?);
    process_vm_readv(pid, &mut [IoSliceMut::new(into)], &[RemoteIoVec { base, len }]).ok()
}

/// A `struct sockaddr_in` or `sockaddr_in6`. The kernel takes longer ones and refuses shorter ones.
fn parse_sockaddr(bytes: &[u8]) -> Option<SocketAddr> {
    const SOCKADDR_IN_BYTES: usize = 16;
    // Older programs leave the scope away.
    const SOCKADDR_IN6_BYTES_MIN: usize = 24;
    let (family, rest) = bytes.split_first_chunk::<2>()?;
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let port = u16::from_be_bytes(*port);
    match i32::from(u16::from_ne_bytes(*family)) {
        libc::AF_INET if bytes.len() >= SOCKADDR_IN_BYTES => {
            Some(SocketAddr::new(Ipv4Addr::from(*rest.first_chunk::<4>()?).into(), port))
        }
        libc::AF_INET6 if bytes.len() >= SOCKADDR_IN6_BYTES_MIN => {
            let address = rest.get(4..20)?.first_chunk::<16>()?;
            Some(SocketAddr::new(Ipv6Addr::from(*address).into(), port))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sockaddr_in6(address: &str, port: u16) -> Vec<u8> {
        let mut bytes = (libc::AF_INET6 as u16).to_ne_bytes().to_vec();
        bytes.extend(port.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(address.parse::<Ipv6Addr>().unwrap().octets());
        bytes.extend([0; 4]);
        bytes
    }

    #[test]
    fn ipv4_is_read() {
        let mut bytes = (libc::AF_INET as u16).to_ne_bytes().to_vec();
        bytes.extend([0x1f, 0x90, 10, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(parse_sockaddr(&bytes), Some("10.1.2.3:8080".parse().unwrap()));
        assert_eq!(parse_sockaddr(&bytes[..15]), None);
    }

    #[test]
    fn ipv6_is_read_and_mapped_ipv4_comes_out_plain() {
        let plain = parse_sockaddr(&sockaddr_in6("2001:db8::1", 443)).unwrap();
        assert_eq!(plain, "[2001:db8::1]:443".parse().unwrap());
        let mapped = parse_sockaddr(&sockaddr_in6("::ffff:9.8.7.6", 443)).unwrap();
        assert_eq!(canonical(mapped), "9.8.7.6:443".parse().unwrap());
    }

    #[test]
    fn other_families_and_short_addresses_are_no_attempt() {
        assert_eq!(parse_sockaddr(&[]), None);
        assert_eq!(parse_sockaddr(&(libc::AF_UNIX as u16).to_ne_bytes()), None);
        assert_eq!(parse_sockaddr(&[0; 28]), None);
        for length in 0..24 {
            assert_eq!(parse_sockaddr(&sockaddr_in6("::1", 1)[..length]), None);
        }
    }
}
