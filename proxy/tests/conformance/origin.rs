//! What the proxy dials.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd as _;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Socket, Type};

use super::{DEADLINE, Peer};

/// A listener whose connections a test accepts one by one.
pub(crate) struct Origin {
    listener: TcpListener,
}

impl Origin {
    pub(crate) fn new() -> Self {
        Self::at(Ipv4Addr::LOCALHOST.into())
    }

    pub(crate) fn at(ip: IpAddr) -> Self {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self { listener }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    pub(crate) fn port(&self) -> u16 {
        self.address().port()
    }

    /// Waits for the next connection.
    pub(crate) fn accept(&self) -> Peer {
        let timeout = PollTimeout::try_from(DEADLINE).unwrap();
        let mut fds = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, timeout), Ok(1), "the proxy does not dial the origin");
        let (stream, _) = self.listener.accept().unwrap();
        stream.set_nonblocking(false).unwrap();
        Peer::new(stream)
    }

    /// Nobody has connected since the last [`Origin::accept`]. Only asked when the client has its answer.
    #[track_caller]
    pub(crate) fn is_untouched(&self) {
        match self.listener.accept() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
            Ok((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                let end = Peer::new(stream).end();
                panic!("the origin was dialled and heard {:?}", end.rest.escape_ascii().to_string());
            }
        }
    }
}

/// A port that refuses connections for as long as this lives: bound, not listening.
pub(crate) struct Refusing(Socket);

impl Refusing {
    pub(crate) fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
        Self(socket)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap().as_socket().unwrap()
    }
}
