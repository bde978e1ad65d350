//! Giving a socket its name: the local port it will connect from.
//!
//! The caller's socket is duplicated into this process. If it is unbound it is bound to the
//! unspecified address and port 0: the kernel picks a free port, as it would do inside connect, and
//! keeps it only as long as it would keep that one (port 0 sets no lock on the port, so it is released
//! when the connect fails). The bind fails with EINVAL on a socket that already has a port.
//!
//! One difference remains: a port bound first cannot be shared with a connection to another
//! destination, so a namespace has 28,000 of them at a time. When they run out the note goes without.

use super::attempt::Attempt;
use super::notes::{Call, Proto};
use crate::limits::{PORTS_EXHAUSTED_PAUSE_MS, THREADS_CACHED_MAX};
use crate::syscalls::{self, PIDFD_THREAD};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockaddrIn, SockaddrIn6, SockaddrLike, SockaddrStorage, bind, getsockname,
};
use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// What is known of the socket behind an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// Its transport and local port.
    Named(Proto, u16),
    /// Its transport, perhaps guessed; the port could not be had.
    Unnamed(Proto),
    /// Nothing will leave: no such descriptor, no internet socket, or already connected.
    NoAttempt,
}

/// The threads that connect, each by a pidfd that cannot come to mean another.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    threads: HashMap<u32, Thread>,
    ports_exhausted: Option<Instant>,
}

#[derive(Debug)]
struct Thread {
    pidfd: OwnedFd,
    pid: u32,
}

impl Sockets {
    /// Names the caller's socket, binding it if it has no port.
    pub(super) fn name(&mut self, attempt: &Attempt) -> Naming {
        let socket = match self.duplicate(attempt.tid, attempt.fd) {
            Ok(socket) => socket,
            Err(Errno::EBADF) => return Naming::NoAttempt,
            Err(_) => return Naming::Unnamed(guess(attempt)),
        };
        let Some(proto) = transport(&socket) else { return Naming::NoAttempt };
        if proto == Proto::Tcp && attempt.call != Call::Connect && !attempt.fast_open {
            // A connected TCP socket ignores the address.
            return Naming::NoAttempt;
        }
        let Some((family, port)) = local_port(&socket) else { return Naming::NoAttempt };
        if proto == Proto::Tcp && port != 0 && is_under_way(&socket) {
            return Naming::NoAttempt;
        }
        match self.bind_any(&socket, family) {
            // Freshly bound.
            Ok(()) => match local_port(&socket) {
                Some((_, port)) if port != 0 => Naming::Named(proto, port),
                _ => Naming::Unnamed(proto),
            },
            // It has a port already.
            Err(Errno::EINVAL) if port != 0 => Naming::Named(proto, port),
            Err(_) => Naming::Unnamed(proto),
        }
    }

    /// The process (thread group) of a thread that has just been named.
    pub(super) fn pid_of(&mut self, tid: u32) -> Option<u32> {
        self.thread(tid).ok().map(|thread| thread.pid)
    }

    fn duplicate(&mut self, tid: u32, fd: i32) -> Result<OwnedFd, Errno> {
        let taken = syscalls::pidfd_getfd(self.thread(tid)?.pidfd.as_fd(), fd);
        let taken = match taken {
            // The id was reused since: that pidfd names a thread that is gone.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                self.threads.remove(&tid);
                syscalls::pidfd_getfd(self.thread(tid)?.pidfd.as_fd(), fd)
            }
            other => other,
        };
        taken.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
    }

    fn thread(&mut self, tid: u32) -> Result<&Thread, Errno> {
        if !self.threads.contains_key(&tid) {
            if self.threads.len() >= THREADS_CACHED_MAX {
                self.threads.clear();
            }
            let thread = Thread::open(tid)?;
            self.threads.insert(tid, thread);
        }
        self.threads.get(&tid).ok_or(Errno::ESRCH)
    }

    fn bind_any(&mut self, socket: &OwnedFd, family: AddressFamily) -> Result<(), Errno> {
        let pause = Duration::from_millis(PORTS_EXHAUSTED_PAUSE_MS);
        if self.ports_exhausted.is_some_and(|since| since.elapsed() < pause) {
            // EINVAL would say "already bound": ask for that without a search for a port.
            return if is_bound(socket) { Err(Errno::EINVAL) } else { Err(Errno::EADDRINUSE) };
        }
        let bound = match family {
            AddressFamily::Inet => {
                bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0)))
            }
            _ => bind(
                socket.as_raw_fd(),
                &SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0)),
            ),
        };
        self.ports_exhausted = (bound == Err(Errno::EADDRINUSE)).then(Instant::now);
        bound
    }
}

impl Thread {
    fn open(tid: u32) -> Result<Self, Errno> {
        let raw = |error: std::io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(0));
        match syscalls::pidfd_open(tid, PIDFD_THREAD) {
            Ok(pidfd) => {
                let pid = match syscalls::pidfd_pid(pidfd.as_fd()) {
                    Ok(pid) => pid,
                    // Linux before 6.13.
                    Err(_) => super::who::process_of_thread(tid).ok_or(Errno::ESRCH)?,
                };
                Ok(Self { pidfd, pid })
            }
            // Linux before 6.9 names processes only; threads share descriptors, all but always.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let pid = super::who::process_of_thread(tid).ok_or(Errno::ESRCH)?;
                Ok(Self { pidfd: syscalls::pidfd_open(pid, 0).map_err(raw)?, pid })
            }
            Err(error) => Err(raw(error)),
        }
    }
}

/// Without the socket: connect is mostly TCP, sendto with an address mostly UDP.
fn guess(attempt: &Attempt) -> Proto {
    if attempt.call == Call::SendTo && !attempt.fast_open { Proto::Udp } else { Proto::Tcp }
}

fn transport(socket: &OwnedFd) -> Option<Proto> {
    match syscalls::int_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_PROTOCOL).ok()? {
        libc::IPPROTO_TCP | libc::IPPROTO_MPTCP => Some(Proto::Tcp),
        libc::IPPROTO_UDP | libc::IPPROTO_UDPLITE => Some(Proto::Udp),
        libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6 if is_ping(socket) => Some(Proto::Icmp),
        _ => None,
    }
}

/// A ping socket, whose port is the identifier of its echo requests. A raw one has none.
fn is_ping(socket: &OwnedFd) -> bool {
    syscalls::int_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_TYPE).ok() == Some(libc::SOCK_DGRAM)
}

/// The TCP socket is connected or connecting, or an earlier connect has failed and not said so yet. A
/// call on it starts nothing: it asks how the one before went, as after EINPROGRESS, or is that one
/// restarted after a signal.
fn is_under_way(socket: &OwnedFd) -> bool {
    const TCP_CLOSE: u8 = 7;
    // `TCP_INFO` begins with the state. When it cannot be told, a note too many does less harm than one
    // too few.
    let state = syscalls::byte_option(socket.as_fd(), libc::IPPROTO_TCP, libc::TCP_INFO);
    let mut watched = [PollFd::new(socket.as_fd(), PollFlags::empty())];
    // Asking for SO_ERROR would take the error away; poll only looks.
    let looked = poll(&mut watched, PollTimeout::ZERO).is_ok();
    let failed = watched.iter().filter_map(PollFd::revents).any(|events| events.contains(PollFlags::POLLERR));
    state.is_some_and(|state| state != TCP_CLOSE) || (looked && failed)
}

/// Family and local port; 0 when there is none. After a failed connect it may be a stale number.
fn local_port(socket: &OwnedFd) -> Option<(AddressFamily, u16)> {
    let name = getsockname::<SockaddrStorage>(socket.as_raw_fd()).ok()?;
    let port =
        name.as_sockaddr_in().map(SockaddrIn::port).or(name.as_sockaddr_in6().map(SockaddrIn6::port))?;
    Some((name.family()?, port))
}

fn is_bound(socket: &OwnedFd) -> bool {
    local_port(socket).is_some_and(|(_, port)| port != 0)
}
