//! The netlink socket that receives one group of one network namespace.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recvfrom, sendmsg,
    setsockopt, socket, sockopt,
};

use crate::limits::{NFLOG_COPY_BYTES, NFLOG_DATAGRAM_BYTES, NFLOG_SOCKET_BYTES};

/// A bound group. The kernel gives a group to one socket only, and the namespace is the one that the opening
/// thread was in.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

/// What one read gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A datagram of so many bytes; see [`super::messages`].
    Datagram(usize),
    /// Messages were dropped because the socket's buffer was full. The numbers tell how many.
    Overrun,
    /// A datagram that did not come from the kernel: root in the namespace may send to any netlink socket.
    Forged,
    /// Nothing left.
    Empty,
}

impl Socket {
    /// Binds `group` in the calling thread's network namespace and asks for the packets' headers, each at once.
    ///
    /// Errors: EPERM without CAP_NET_ADMIN there, and also when another socket holds the group; EOPNOTSUPP or
    /// EINVAL on a kernel without `nfnetlink_log`.
    pub fn open(group: u16) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        // Beyond net.core.rmem_max this needs CAP_NET_ADMIN in the initial namespace; less is no failure.
        if setsockopt(&fd, sockopt::RcvBufForce, &NFLOG_SOCKET_BYTES).is_err() {
            setsockopt(&fd, sockopt::RcvBuf, &NFLOG_SOCKET_BYTES)?;
        }
        let socket = Self { fd };
        socket.configure(group)?;
        Ok(socket)
    }

    /// Reads one datagram into `buffer`, which should have [`NFLOG_DATAGRAM_BYTES`].
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Outcome> {
        loop {
            return match recvfrom::<NetlinkAddr>(self.fd.as_raw_fd(), buffer) {
                Ok((_, Some(from))) if from.pid() != 0 => Ok(Outcome::Forged),
                Ok((bytes, _)) => Ok(Outcome::Datagram(bytes)),
                Err(Errno::EAGAIN) => Ok(Outcome::Empty),
                Err(Errno::ENOBUFS) => Ok(Outcome::Overrun),
                Err(Errno::EINTR) => continue,
                Err(errno) => Err(errno.into()),
            };
        }
    }

    fn configure(&self, group: u16) -> io::Result<()> {
        let message = config_message(group);
        sendmsg::<()>(self.fd.as_raw_fd(), &[IoSlice::new(&message)], &[], MsgFlags::empty(), None)?;
        let mut answer = vec![0; NFLOG_DATAGRAM_BYTES];
        // The kernel answers within the send; packets of the group may already stand behind the answer.
        let Outcome::Datagram(bytes) = self.read(&mut answer)? else {
            return Err(io::Error::other("the kernel did not acknowledge the NFLOG group"));
        };
        acknowledged(answer.get(..bytes).unwrap_or_default())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// One `NFULNL_MSG_CONFIG` that binds the group and sets it up.
fn config_message(group: u16) -> Vec<u8> {
    const MESSAGE_CONFIG: u16 = 4 << 8 | 1;
    const FLAGS_REQUEST_ACK: u16 = 1 | 4;
    const CFG_CMD: u16 = 1;
    const CFG_MODE: u16 = 2;
    const CFG_NLBUFSIZ: u16 = 3;
    const CFG_QTHRESH: u16 = 5;
    const CFG_FLAGS: u16 = 6;
    const CMD_BIND: u8 = 1;
    const COPY_PACKET: u8 = 2;
    const NUMBER_MESSAGES: u16 = 1;

    let mut body = vec![0, 0]; // nfgenmsg: any family, version 0
    body.extend(group.to_be_bytes());
    attribute(&mut body, CFG_CMD, &[CMD_BIND]);
    let [b0, b1, b2, b3] = NFLOG_COPY_BYTES.to_be_bytes();
    attribute(&mut body, CFG_MODE, &[b0, b1, b2, b3, COPY_PACKET, 0]);
    // The kernel allocates this much for every message, however short: keep it near a message's size.
    attribute(&mut body, CFG_NLBUFSIZ, &1024_u32.to_be_bytes());
    // Send every message at once instead of gathering them for up to a second.
    attribute(&mut body, CFG_QTHRESH, &1_u32.to_be_bytes());
    attribute(&mut body, CFG_FLAGS, &NUMBER_MESSAGES.to_be_bytes());

    let mut message = (16 + body.len() as u32).to_ne_bytes().to_vec();
    message.extend(MESSAGE_CONFIG.to_ne_bytes());
    message.extend(FLAGS_REQUEST_ACK.to_ne_bytes());
    message.extend([0; 8]); // sequence number and port: one request, one answer
    message.extend(body);
    message
}

fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend((4 + value.len() as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// Reads an `NLMSG_ERROR`, of which error 0 is the acknowledgement.
fn acknowledged(answer: &[u8]) -> io::Result<()> {
    const NLMSG_ERROR: [u8; 2] = 2_u16.to_ne_bytes();
    let error = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (answer.get(4..6), error) {
        (Some(kind), Some(0)) if kind == NLMSG_ERROR => Ok(()),
        (Some(kind), Some(error)) if kind == NLMSG_ERROR => {
            Err(io::Error::from_raw_os_error(error.saturating_neg()))
        }
        _ => Err(io::Error::other("the kernel's answer to the NFLOG group's set-up is no acknowledgement")),
    }
}
