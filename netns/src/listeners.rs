//! The proxy's listening sockets, made inside a sandbox and used outside.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::BorrowedFd;

use socket2::{Domain, Protocol, Socket, Type};

use crate::{Error, SandboxName, enter, limits};

/// Makes `count` sockets that listen on `address` inside `netns`, sharing the address (SO_REUSEPORT): the kernel
/// spreads connections over them. Non-blocking and close-on-exec.
pub(crate) fn listen_inside(
    netns: BorrowedFd<'_>,
    name: &SandboxName,
    address: SocketAddr,
    count: usize,
) -> Result<Vec<TcpListener>, Error> {
    if !(1..=limits::LISTENERS_MAX).contains(&count) {
        return Err(Error::ListenerCount(count));
    }
    enter::inside(netns, || (0..count).map(|_| listen(address)).collect::<io::Result<Vec<_>>>())?
        .map_err(|source| Error::Listen { name: name.clone(), address, source })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    // socket2 makes sockets close-on-exec.
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restarted daemon must get the address although connections of its predecessor linger.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    // Accepted sockets inherit it, those that wait in the backlog from the first moment too.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(limits::LISTEN_BACKLOG)?;
    Ok(socket.into())
}
