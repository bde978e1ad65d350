//! Sockets with the flags that save system calls: non-blocking from the start, TCP_NODELAY inherited.
#![allow(unsafe_code)] // accept4 with SOCK_NONBLOCK, which std and socket2 do not offer

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd};

use nix::sys::socket::{MsgFlags, recv};
use socket2::{Domain, Protocol, Socket, Type};

/// Connections that may wait for accept: more than any workload opens at once.
const BACKLOG: i32 = 4096;

/// A non-blocking listener; the sockets it accepts have TCP_NODELAY, because Linux lets them inherit it.
pub(crate) fn listen(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts one connection, non-blocking, in one system call. `None` when nobody waits.
pub(crate) fn accept(listener: &TcpListener) -> io::Result<Option<TcpStream>> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: the peer's address is not asked for (null pointers), the listener is open.
    let fd =
        unsafe { libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags) };
    if fd >= 0 {
        // SAFETY: accept4 has just made this descriptor and nobody else owns it.
        return Ok(Some(unsafe { TcpStream::from_raw_fd(fd) }));
    }
    let error = io::Error::last_os_error();
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => Ok(None),
        _ => Err(error),
    }
}

/// A non-blocking socket whose connection has begun; writable once it stands.
pub(crate) fn begin_connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket.into()),
    }
}

/// Takes up to `most` bytes off a stream without copying them out (TCP's MSG_TRUNC discards). 0 at its end.
pub(crate) fn discard(stream: &TcpStream, scratch: &mut [u8]) -> io::Result<usize> {
    Ok(recv(stream.as_raw_fd(), scratch, MsgFlags::MSG_TRUNC)?)
}
