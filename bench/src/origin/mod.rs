//! The origin: what the proxies are asked to reach. Its own process, so that it shares no descriptor table with the
//! clients whose sockets a proxy may look up.
//!
//! The life of a request: `serve` binds the ports and starts two threads a core, one for what latency is measured on
//! (echo, HTTP) and one for bulk; each runs `Server`, which hands ready sockets to the port's [`service::Service`].

pub(crate) mod bulk;
mod echo;
mod http;
mod server;
mod service;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::thread;

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

use crate::pinning::{self, Precedence};
use crate::socket;
use server::Server;

/// Where the origin listens, all on 127.0.0.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ports {
    /// Echoes.
    pub(crate) echo: u16,
    /// Sends and takes volumes.
    pub(crate) bulk: u16,
    /// Answers GETs and upgrades.
    pub(crate) http: u16,
}

impl Ports {
    /// `127.0.0.1:<port>`, as a client writes it.
    pub(crate) fn authority(port: u16) -> String {
        format!("127.0.0.1:{port}")
    }
}

/// Serves on free ports with threads on `cores`, printing the ports as one line of JSON. Ends only with its parent.
/// `first`: the threads of echo and HTTP run before all others, so that bulk beside them does not delay them here.
pub(crate) fn serve(cores: &[usize], first: bool) -> Result<()> {
    pinning::die_with_parent()?;
    let ports = Ports { echo: free_port()?, bulk: free_port()?, http: free_port()? };
    let mut threads = Vec::new();
    for &core in cores {
        let (echo, http, bulk) = (listen(ports.echo)?, listen(ports.http)?, listen(ports.bulk)?);
        threads.push(thread::spawn(move || {
            pinning::pin(&[core])?;
            if first {
                pinning::take_precedence(Precedence::Latency)?;
            }
            Server::new()?
                .with(echo, || Box::new(echo::Echo))
                .with(http, || Box::<http::Http>::default())
                .run()
        }));
        threads.push(thread::spawn(move || {
            pinning::pin(&[core])?;
            Server::new()?.with(bulk, || Box::<bulk::Bulk>::default()).run()
        }));
    }
    println!("{}", serde_json::to_string(&ports)?);
    std::io::stdout().flush()?;
    for thread in threads {
        thread.join().map_err(|_| anyhow!("an origin thread panicked"))??;
    }
    Ok(())
}

/// One of several listeners of a port: each thread has its own.
fn listen(port: u16) -> Result<TcpListener> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    socket::listen(address, true).with_context(|| format!("cannot listen on {address}"))
}

/// A port that nobody listens on at this moment.
pub(crate) fn free_port() -> Result<u16> {
    let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
    Ok(probe.local_addr()?.port())
}
