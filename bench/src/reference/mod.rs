//! Yardsticks: the smallest honest proxies of each design, to divide Sluice's cost by.
//!
//! Each is one thread that accepts, reads a CONNECT head, dials, answers 200 and relays until both sides are done. None
//! has a policy, identity, time-outs, limits or events. `least` forwards GETs as well. All pass half-closes on.
//!
//! The life of a tunnel: `request` reads the head; the engine named by [`Reference`] does everything else:
//! `epoll` (splice, copy, and `least`, which copies small reads and splices bulk), `ring` (raw io_uring), `monoio` and
//! `tokio_uring` (the same loop on two runtimes). `tls_relay` ends TLS on either side.

mod epoll;
mod monoio;
mod request;
mod ring;
mod tls_relay;
mod tokio_uring;

use std::net::SocketAddr;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result};

use crate::pinning;

/// Bytes of a copying relay's buffer: the size every engine of docs/decisions/0002 was measured with.
const BUFFER_BYTES: usize = 64 * 1024;

/// Which design.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reference {
    /// epoll; small reads are copied, bulk is spliced; forwards GETs too.
    Least,
    /// epoll and splice(2) through a 256 KiB pipe per direction.
    EpollSplice,
    /// epoll, recv and send.
    EpollCopy,
    /// io_uring recv and send on a hand-written ring.
    RawUring,
    /// monoio, read and write_all, ring flags as Sluice sets them.
    MonoioCopy,
    /// The same with monoio's default ring.
    MonoioCopyDefault,
    /// tokio-uring, read and write_all, default ring.
    TokioUringCopy,
    /// epoll; rustls ends on either side.
    TlsRelay,
}

impl Reference {
    /// All of them.
    pub(crate) const ALL: [Self; 8] = [
        Self::Least,
        Self::EpollSplice,
        Self::EpollCopy,
        Self::RawUring,
        Self::MonoioCopy,
        Self::MonoioCopyDefault,
        Self::TokioUringCopy,
        Self::TlsRelay,
    ];

    /// Its name on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Least => "least",
            Self::EpollSplice => "epoll-splice",
            Self::EpollCopy => "epoll-copy",
            Self::RawUring => "raw-uring",
            Self::MonoioCopy => "monoio-copy",
            Self::MonoioCopyDefault => "monoio-copy-default",
            Self::TokioUringCopy => "tokio-uring-copy",
            Self::TlsRelay => "tls-relay",
        }
    }

    /// Serves on `address` in this thread; returns only on an error. Ends with its parent. `tls`: the folder of the
    /// certificates, for the one that needs them.
    pub(crate) fn serve(self, address: SocketAddr, tls: Option<&Path>) -> Result<()> {
        pinning::die_with_parent()?;
        match self {
            Self::Least => epoll::serve(address, epoll::Engine::Adaptive),
            Self::EpollSplice => epoll::serve(address, epoll::Engine::Splice),
            Self::EpollCopy => epoll::serve(address, epoll::Engine::Copy),
            Self::RawUring => ring::serve(address),
            Self::MonoioCopy => monoio::serve(address, true),
            Self::MonoioCopyDefault => monoio::serve(address, false),
            Self::TokioUringCopy => tokio_uring::serve(address),
            Self::TlsRelay => tls_relay::serve(address, tls.context("it needs the certificates of --tls")?),
        }
    }
}

impl FromStr for Reference {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|reference| reference.name() == name)
            .ok_or_else(|| Self::ALL.map(Self::name).join(", "))
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
