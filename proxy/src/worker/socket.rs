//! A TCP socket driven by readiness: wait on the ring, then read or write with a plain non-blocking call.
//!
//! Measured (docs/decisions/0002): waiting with a poll and reading into a shared scratch costs what io_uring
//! receive costs in ping-pong, and lets an idle connection hold no buffer at all.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use monoio::net::TcpStream;
use nix::errno::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::{Domain, Protocol, SockAddr, SockRef, Type};

/// One side of a session: a byte stream driven by readiness. TLS is one more side, not a second engine (decision 11).
pub(crate) trait Side: AsRawFd {
    /// Waits until a read has something to say: bytes, end or error.
    async fn readable(&self) -> io::Result<()>;
    /// Waits until a write can take bytes or fails.
    async fn writable(&self) -> io::Result<()>;
    /// Reads what is there: `None` when nothing is, `Some(0)` at the end.
    fn try_read(&self, into: &mut [u8]) -> io::Result<Option<usize>>;
    /// Writes what fits: `None` when nothing does.
    fn try_write(&self, from: &[u8]) -> io::Result<Option<usize>>;
    /// Says that nothing more will be written.
    fn shutdown_write(&self) -> io::Result<()>;
    /// The descriptor, when its bytes are the session's bytes and may be spliced.
    fn raw(&self) -> Option<BorrowedFd<'_>>;
    /// Whether a read would find something at once: bytes, the end or an error. What it finds may be lost to it.
    fn has_news(&self) -> bool;
    /// Makes the close that follows a reset: the peer learns that the bytes did not all arrive.
    fn reset_on_close(&self);

    /// The same, on the promise that more follows at once: it may be held back until then, or until [`Side::push`].
    fn try_write_ahead(&self, from: &[u8]) -> io::Result<Option<usize>> {
        self.try_write(from)
    }
    /// Lets go of what was held back.
    fn push(&self) {}

    /// Whether everything written has left this process.
    fn is_flushed(&self) -> bool {
        true
    }

    /// Sends on what this side has taken and not sent yet.
    async fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// Writes everything.
    async fn write_all(&self, mut from: &[u8]) -> io::Result<()> {
        while !from.is_empty() {
            match self.try_write(from)? {
                Some(count) => from = from.get(count..).unwrap_or_default(),
                None => self.writable().await?,
            }
        }
        self.flush().await
    }
}

/// A connected, non-blocking TCP socket on this worker's ring.
pub(crate) struct Socket {
    stream: TcpStream,
    fd: RawFd,
}

impl Socket {
    /// Takes over a connected socket that is non-blocking already.
    pub(crate) fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let raw = fd.as_raw_fd();
        let stream = TcpStream::from_std(std::net::TcpStream::from(fd))?;
        Ok(Self { stream, fd: raw })
    }

    /// Dials `address`; the caller bounds the time by dropping the future.
    pub(crate) async fn dial(address: SocketAddr) -> io::Result<Self> {
        let kind = Type::STREAM.nonblocking().cloexec();
        let fresh = socket2::Socket::new_raw(Domain::for_address(address), kind, Some(Protocol::TCP))?;
        fresh.set_tcp_nodelay(true)?;
        let pending = match fresh.connect(&address.into()) {
            Ok(()) => false,
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => true,
            Err(error) => return Err(error),
        };
        let socket = Self::adopt(fresh.into())?;
        if pending {
            socket.writable().await?;
            if let Some(error) = SockRef::from(&socket).take_error()? {
                return Err(error);
            }
        }
        Ok(socket)
    }

    fn send(&self, from: &[u8], flags: SendFlags) -> io::Result<Option<usize>> {
        loop {
            match send(self, from, flags | SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => return Ok(Some(count)),
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// This side's own address.
    pub(crate) fn local(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }
}

impl Side for Socket {
    async fn readable(&self) -> io::Result<()> {
        self.stream.readable(false).await
    }

    async fn writable(&self) -> io::Result<()> {
        self.stream.writable(false).await
    }

    fn try_read(&self, into: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match recv(self, &mut *into, RecvFlags::DONTWAIT) {
                Ok((count, _)) => return Ok(Some(count)),
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn try_write(&self, from: &[u8]) -> io::Result<Option<usize>> {
        self.send(from, SendFlags::empty())
    }

    fn try_write_ahead(&self, from: &[u8]) -> io::Result<Option<usize>> {
        self.send(from, SendFlags::MORE)
    }

    fn push(&self) {
        // Setting it anew sends what waits (tcp(7)).
        let _ = SockRef::from(self).set_tcp_nodelay(true);
    }

    fn shutdown_write(&self) -> io::Result<()> {
        SockRef::from(self).shutdown(Shutdown::Write)
    }

    fn raw(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }

    fn has_news(&self) -> bool {
        let mut one = [0; 1];
        !matches!(recv(self, &mut one, RecvFlags::PEEK | RecvFlags::DONTWAIT), Err(rustix::io::Errno::AGAIN))
    }

    fn reset_on_close(&self) {
        let _ = SockRef::from(self).set_linger(Some(Duration::ZERO));
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd
    }
}

impl AsFd for Socket {
    #[allow(unsafe_code)]
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `stream` owns the descriptor and lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }
}

/// Has TCP ask a silent peer whether it is still there, after `idle`.
#[allow(unsafe_code)]
pub(crate) fn keep_alive(fd: RawFd, idle: Duration) {
    // SAFETY: borrowed for these calls only; on a descriptor that is closed or is no socket they fail, which is no harm.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    let keepalive = socket2::TcpKeepalive::new().with_time(idle).with_interval(idle / 4);
    let _ = SockRef::from(&socket).set_tcp_keepalive(&keepalive);
}

/// Accepts one connection without waiting: `None` when there is none. One call makes it non-blocking and tells the peer.
#[allow(unsafe_code)]
pub(crate) fn try_accept(listener: &impl AsRawFd) -> io::Result<Option<(OwnedFd, SocketAddr)>> {
    // SAFETY: `accept4` fills `storage` up to `length` octets and returns a descriptor nobody else owns.
    let accepted = unsafe {
        SockAddr::try_init(|storage, length| {
            let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            let fd = Errno::result(libc::accept4(listener.as_raw_fd(), storage.cast(), length, flags))?;
            Ok(OwnedFd::from_raw_fd(fd))
        })
    };
    match accepted {
        Ok((fd, address)) => {
            let peer = address.as_socket().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
            Ok(Some((fd, peer)))
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Sees what has happened at these sockets, without waiting. Where the call fails nothing has.
#[allow(unsafe_code)]
pub(crate) fn poll_now(sockets: &mut [libc::pollfd]) {
    let Ok(count) = libc::nfds_t::try_from(sockets.len()) else { return };
    if count == 0 {
        return;
    }
    // SAFETY: `poll` reads and writes `count` entries, which is what the slice has. A descriptor that is closed, or
    // another's by now, is only looked at.
    unsafe { libc::poll(sockets.as_mut_ptr(), count, 0) };
}
