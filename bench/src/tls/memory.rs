//! The yardstick of handshakes: one rustls server's and one rustls client's, from memory to memory, on the proxy's core.
//!
//! The load's core does the same meanwhile: in a run over a proxy it is as busy, and the two cores of a small machine may
//! be two threads of one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::time::{ClockId, clock_gettime};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConfig, ServerConnection};

use super::authority::{Authority, ORIGIN, client};
use crate::pinning;

/// CPU of one pair of handshakes, µs, full or resumed, measured for so long on the first of `cores` while the second is
/// busy.
pub(super) fn cpu_us(
    authority: &Authority,
    resumed: bool,
    [own, neighbours]: [&[usize]; 2],
    time: Duration,
) -> Result<f64> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| pinning::pin(neighbours).and_then(|()| Pair::new(authority, resumed)?.repeat(&over)));
        let measured = scope.spawn(|| {
            pinning::pin(own)?;
            let mut pair = Pair::new(authority, resumed)?;
            let (mut count, began, before) = (0_u32, Instant::now(), own_cpu()?);
            while began.elapsed() < time {
                pair.shake()?;
                count += 1;
            }
            Ok(own_cpu()?.saturating_sub(before).as_secs_f64() * 1e6 / f64::from(count))
        });
        let measured = measured.join().map_err(|_| anyhow!("a thread panicked"));
        over.store(true, Relaxed);
        measured?
    })
}

/// Both ends, and what their handshakes must be.
struct Pair {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    expected: HandshakeKind,
}

impl Pair {
    fn new(authority: &Authority, resumed: bool) -> Result<Self> {
        // A ticket is sealed and read either way, as in a proxy that lets its clients resume.
        let (client, server) = (client(&authority.root(), resumed)?, authority.server(true)?);
        shake(&client, &server)?;
        let expected = if resumed { HandshakeKind::Resumed } else { HandshakeKind::Full };
        Ok(Self { client, server, expected })
    }

    fn shake(&mut self) -> Result<()> {
        let kind = shake(&self.client, &self.server)?;
        ensure!(kind == Some(self.expected), "the handshake was {kind:?} and not {:?}", self.expected);
        Ok(())
    }

    fn repeat(&mut self, over: &AtomicBool) -> Result<()> {
        while !over.load(Relaxed) {
            self.shake()?;
        }
        Ok(())
    }
}

fn own_cpu() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("the thread's CPU clock")?.into())
}

/// One pair, to the last octet either has to say.
fn shake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Result<Option<HandshakeKind>> {
    let mut client = ClientConnection::new(Arc::clone(client), ORIGIN.try_into()?)?;
    let mut server = ServerConnection::new(Arc::clone(server))?;
    let mut octets = Vec::with_capacity(4096);
    while client.wants_write() || server.wants_write() || client.is_handshaking() || server.is_handshaking() {
        octets.clear();
        client.write_tls(&mut octets)?;
        let mut rest = octets.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest)?;
            server.process_new_packets()?;
        }
        octets.clear();
        server.write_tls(&mut octets)?;
        let mut rest = octets.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest)?;
            client.process_new_packets()?;
        }
    }
    Ok(server.handshake_kind())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_handshake_cost_something_and_are_what_they_are_called() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::make(folder.path()).unwrap();
        let time = Duration::from_millis(20);
        for resumed in [false, true] {
            assert!(cpu_us(&authority, resumed, [&[0], &[0]], time).unwrap() > 1.0);
        }
    }
}
