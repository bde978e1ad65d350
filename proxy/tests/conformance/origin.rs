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

    /// Waits for the next connection over which something is said. Others stay open and are not heard of again: what was
    /// dialled for a tunnel may never be used.
    pub(crate) fn accept_speaking(&self) -> Peer {
        let timeout = PollTimeout::try_from(DEADLINE).unwrap();
        let mut silent: Vec<std::net::TcpStream> = Vec::new();
        loop {
            let mut fds = vec![PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
            fds.extend(silent.iter().map(|stream| PollFd::new(stream.as_fd(), PollFlags::POLLIN)));
            assert!(
                poll(&mut fds, timeout).is_ok_and(|ready| ready > 0),
                "nobody says anything to the origin"
            );
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap()).collect();
            if let Some(at) = ready.iter().skip(1).position(|&ready| ready) {
                let stream = silent.remove(at);
                if stream.peek(&mut [0]).is_ok_and(|count| count > 0) {
                    silent.into_iter().for_each(std::mem::forget);
                    return Peer::new(stream);
                }
            }
            if ready[0] {
                let (stream, _) = self.listener.accept().unwrap();
                stream.set_nonblocking(false).unwrap();
                silent.push(stream);
            }
        }
    }

    /// Accepts and holds whatever comes, from now on.
    pub(crate) fn hold_all(&self) {
        let listener = self.listener.try_clone().unwrap();
        listener.set_nonblocking(false).unwrap();
        std::thread::spawn(move || {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept() {
                held.push(stream);
            }
        });
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
