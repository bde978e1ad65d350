//! Asks the kernel which socket has a four-tuple: one netlink socket in the sandbox's namespace, kept open.
//!
//! A netlink socket stays in the namespace it was made in, so it is made by a thread that enters the namespace and ends.
//! A lookup is one send and one receive; the kernel answers within the send, so the receive never waits.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, connect, recv, send, socket,
};

use super::Protocol;
pub use super::diag_message::Found;
use super::diag_message::{Reply, lookup, parse, probe};
use super::table::Tuple;

/// Room for one reply with the attributes that Linux adds unasked (today 72 + about 60 bytes).
const REPLY_BYTES: usize = 1024;
/// Answers to requests that were given up on are skipped, so many at most.
const STALE_REPLIES_MAX: usize = 8;

/// Why the kernel could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum DiagError {
    /// A security module or seccomp filter forbids it.
    #[error(
        "asking the kernel for sockets (NETLINK_SOCK_DIAG) is not permitted: {0}; allow the daemon netlink sockets"
    )]
    NotPermitted(Errno),
    /// No tcp_diag in this kernel.
    #[error(
        "this kernel cannot be asked for sockets ({0}): load the modules inet_diag and tcp_diag (CONFIG_INET_DIAG)"
    )]
    Missing(Errno),
    /// The namespace could not be entered.
    #[error("cannot enter the sandbox's network namespace: {0}; the daemon needs CAP_SYS_ADMIN")]
    Enter(Errno),
    /// No thread to enter it with.
    #[error("cannot start the thread that enters the sandbox's network namespace: {0}")]
    Thread(#[from] io::Error),
    /// Anything else.
    #[error("asking the kernel for a socket failed: {0}")]
    Failed(#[from] Errno),
    /// The kernel answered something else, or nothing.
    #[error("the kernel's answer about a socket could not be understood")]
    Garbled,
}

/// An open line to the kernel's socket tables in one network namespace.
#[derive(Debug)]
pub struct DiagSocket {
    socket: OwnedFd,
    sequence: u32,
}

impl DiagSocket {
    /// Opens a line in `netns`, or in the caller's own namespace.
    pub fn open(netns: Option<BorrowedFd<'_>>) -> Result<Self, DiagError> {
        let Some(netns) = netns else { return Self::open_here() };
        std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("identity-setns".to_owned())
                .spawn_scoped(scope, || {
                    setns(netns, CloneFlags::CLONE_NEWNET).map_err(DiagError::Enter)?;
                    Self::open_here()
                })?
                .join()
                .map_err(|_| DiagError::Garbled)?
        })
    }

    fn open_here() -> Result<Self, DiagError> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkSockDiag)
            .map_err(DiagError::from_opening)?;
        connect(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(DiagError::from_opening)?;
        let mut line = Self { socket, sequence: 0 };
        match line.ask(probe)? {
            Reply::Done => Ok(line),
            Reply::Error(errno) => Err(DiagError::from_opening(Errno::from_raw(errno))),
            Reply::Socket { .. } | Reply::Other => Err(DiagError::Garbled),
        }
    }

    /// The socket whose own end and peer are `tuple`; none if there is no such socket.
    pub fn lookup(&mut self, protocol: Protocol, tuple: &Tuple) -> Result<Option<Found>, DiagError> {
        match self.ask(|sequence| lookup(protocol, tuple, sequence))? {
            Reply::Socket { tuple: ends, found } => Ok(is_sought(protocol, tuple, &ends).then_some(found)),
            Reply::Error(nix::libc::ENOENT) => Ok(None),
            Reply::Error(errno @ (nix::libc::EPERM | nix::libc::EACCES)) => {
                Err(DiagError::NotPermitted(Errno::from_raw(errno)))
            }
            Reply::Error(errno) => Err(DiagError::Failed(Errno::from_raw(errno))),
            Reply::Done | Reply::Other => Err(DiagError::Garbled),
        }
    }

    fn ask<R: AsRef<[u8]>>(&mut self, request: impl FnOnce(u32) -> R) -> Result<Reply, DiagError> {
        self.sequence = self.sequence.wrapping_add(1);
        let socket = self.socket.as_fd().as_raw_fd();
        send(socket, request(self.sequence).as_ref(), MsgFlags::empty()).map_err(DiagError::from_asking)?;
        let mut reply = [0; REPLY_BYTES];
        for _ in 0..=STALE_REPLIES_MAX {
            let length = recv(socket, &mut reply, MsgFlags::MSG_DONTWAIT).map_err(DiagError::from_asking)?;
            match parse(reply.get(..length).unwrap_or_default(), self.sequence) {
                Reply::Other => {}
                answer => return Ok(answer),
            }
        }
        Err(DiagError::Garbled)
    }
}

impl DiagError {
    fn from_opening(errno: Errno) -> Self {
        match errno {
            Errno::EPERM | Errno::EACCES => Self::NotPermitted(errno),
            Errno::ENOENT | Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT => Self::Missing(errno),
            errno => Self::Failed(errno),
        }
    }

    fn from_asking(errno: Errno) -> Self {
        match errno {
            Errno::EPERM | Errno::EACCES => Self::NotPermitted(errno),
            errno => Self::Failed(errno),
        }
    }
}

/// The kernel may answer with another socket: a listener on the client's port, or a UDP socket without a peer. The
/// first is not the one; the second is, if it has the port.
fn is_sought(protocol: Protocol, sought: &Tuple, ends: &Tuple) -> bool {
    match protocol {
        Protocol::Tcp => sought == ends,
        Protocol::Udp => {
            let unconnected = ends.remote().0.is_unspecified() && ends.remote().1 == 0;
            sought.local().1 == ends.local().1 && (unconnected || sought.remote() == ends.remote())
        }
    }
}
