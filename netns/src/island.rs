//! A namespace that stands for the rest of the world: addresses of its own and no way anywhere.

use std::net::IpAddr;
use std::os::fd::OwnedFd;

use crate::{Error, enter, links, namespace};

/// Makes a namespace with `addresses` on its `lo`, without a fence, a name or a trace on disk: it ends with the last
/// descriptor and process in it. For a demonstration's or a test's own "internet".
pub fn island(addresses: &[IpAddr]) -> Result<OwnedFd, Error> {
    enter::on_own_thread(|| {
        let netns = namespace::make()?;
        links::set_up_island(addresses)?;
        Ok(netns)
    })
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;
    use crate::inside;

    #[test]
    fn an_island_reaches_itself_and_nothing_else() {
        let address: IpAddr = "203.0.113.1".parse().expect("an address");
        let netns = island(&[address]).expect("an island");
        let reached = inside(netns.as_fd(), || -> io::Result<()> {
            let listener = TcpListener::bind((address, 0))?;
            TcpStream::connect(listener.local_addr()?).map(drop)
        });
        reached.expect("enter").expect("connect");
        let elsewhere = SocketAddr::from(([192, 0, 2, 1], 80));
        let refused = inside(netns.as_fd(), || TcpStream::connect(elsewhere).map(drop)).expect("enter");
        assert_eq!(refused.expect_err("no route").kind(), io::ErrorKind::NetworkUnreachable);
    }
}
