//! The workload inside the sandbox: this very program in one of its parts.

use std::io::{Read as _, Write as _, stdin, stdout};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Subcommand;
use nix::time::{ClockId, clock_gettime};

use super::now_ns;

/// Where the attempts go: a documentation address, which no sandbox reaches.
const DESTINATION: [u8; 4] = [192, 0, 2, 1];
/// Ports of probes; the flood has one below.
const PROBE_PORTS: std::ops::Range<u16> = 20_000..60_000;
const FLOOD_PORT: u16 = 80;
const PROBE_PAUSE: Duration = Duration::from_millis(10);
/// Connects of one round: those of all rounds leave ports behind, and the search for a free one must not be the figure.
const CONNECTS_MAX: u64 = 300;
/// The message of a ping-pong.
const BALL: usize = 64;

/// The parts of the workload, run inside a sandbox.
#[derive(Debug, Subcommand)]
pub(crate) enum Part {
    /// Connect directly as fast as two threads can
    Flood {
        /// How long
        #[arg(id = "part_seconds")]
        seconds: u64,
    },
    /// Connect directly now and then
    Probe {
        /// How long
        #[arg(id = "part_seconds")]
        seconds: u64,
    },
    /// Work through the proxy as told on standard input: `connect SECONDS` or `pingpong SECONDS`; says how often, and what CPU
    /// of its own that took, in ns
    Load {
        /// The proxy
        proxy: SocketAddr,
        /// An echo server
        origin: SocketAddr,
    },
}

impl Part {
    /// Plays the part, inside a sandbox.
    pub(crate) fn play(&self) -> Result<()> {
        match *self {
            Self::Flood { seconds } => {
                let flood = move || {
                    let (begun, address) = (Instant::now(), SocketAddr::from((DESTINATION, FLOOD_PORT)));
                    let mut attempts = 0_u64;
                    while begun.elapsed() < Duration::from_secs(seconds) {
                        attempts += u64::from(TcpStream::connect(address).is_err());
                    }
                    attempts
                };
                let threads: Vec<_> = (0..2).map(|_| thread::spawn(flood)).collect();
                let attempts: u64 = threads.into_iter().filter_map(|thread| thread.join().ok()).sum();
                println!("{attempts}");
            }
            Self::Probe { seconds } => {
                let begun = Instant::now();
                for port in PROBE_PORTS.take_while(|_| begun.elapsed() < Duration::from_secs(seconds)) {
                    let begun_ns = now_ns();
                    let refused = TcpStream::connect(SocketAddr::from((DESTINATION, port))).is_err();
                    let failed_ns = now_ns();
                    ensure!(refused, "a direct connect went through");
                    writeln!(stdout(), "{port} {begun_ns} {failed_ns}")?;
                    thread::sleep(PROBE_PAUSE);
                }
            }
            Self::Load { proxy, origin } => {
                for line in stdin().lines() {
                    let line = line?;
                    let (what, seconds) = line.split_once(' ').context("what, and how long")?;
                    let until = Duration::from_secs_f64(seconds.parse()?);
                    let cpu_ns = own_cpu_ns();
                    let done = match what {
                        "connect" => connects(proxy, origin, until)?,
                        _ => ping_pong(proxy, origin, until)?,
                    };
                    writeln!(stdout(), "{done} {}", own_cpu_ns() - cpu_ns)?;
                }
            }
        }
        Ok(())
    }
}

/// A tunnel to the origin, there and back once.
fn tunnel(proxy: SocketAddr, origin: SocketAddr) -> Result<TcpStream> {
    let mut tunnel = TcpStream::connect(proxy)?;
    tunnel.set_nodelay(true)?;
    write!(tunnel, "CONNECT {origin} HTTP/1.1\r\nHost: {origin}\r\n\r\n")?;
    let (mut head, mut length) = ([0; 1024], 0);
    while !head[..length].ends_with(b"\r\n\r\n") {
        let read = tunnel.read(&mut head[length..])?;
        ensure!(read > 0, "the proxy closed");
        length += read;
    }
    ensure!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head[..length]));
    Ok(tunnel)
}

fn there_and_back(tunnel: &mut TcpStream, ball: &mut [u8]) -> Result<()> {
    tunnel.write_all(ball)?;
    Ok(tunnel.read_exact(ball)?)
}

fn connects(proxy: SocketAddr, origin: SocketAddr, until: Duration) -> Result<u64> {
    let (begun, mut done) = (Instant::now(), 0);
    while begun.elapsed() < until && done < CONNECTS_MAX {
        there_and_back(&mut tunnel(proxy, origin)?, &mut [1])?;
        done += 1;
    }
    Ok(done)
}

fn ping_pong(proxy: SocketAddr, origin: SocketAddr, until: Duration) -> Result<u64> {
    let (mut tunnel, mut ball) = (tunnel(proxy, origin)?, [7; BALL]);
    let (begun, mut done) = (Instant::now(), 0);
    while begun.elapsed() < until {
        there_and_back(&mut tunnel, &mut ball)?;
        done += 1;
    }
    Ok(done)
}

fn own_cpu_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)
        .map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}
