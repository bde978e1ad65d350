//! What clients do inside TLS, and what it costs the proxy.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde::Serialize;

use super::authority::{self, ORIGIN, ZONE};
use super::client::{Client, Way};
use super::origin::{SMALL_BYTES, Secure};
use crate::contender::{Contender, Profile};
use crate::origin::Ports;
use crate::reference::Reference;
use crate::workload::Conditions;

/// Clients at a time that shake hands.
const SHAKERS: usize = 8;
/// Standing connections that ask.
const ASKERS: usize = 16;
/// Volume of one direction of bulk, octets.
const BULK_BYTES: u64 = 1 << 30;
/// What each connection moves before that, for windows to grow.
const WARM_UP_BYTES: u64 = 64 << 20;
/// Connections that move bulk.
const MOVERS: u64 = 2;

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Work {
    /// A new connection: two full handshakes, a GET, close on both sides.
    Full,
    /// The same, both sides resuming.
    Resumed,
    /// The client resumes; the connection to the origin is whatever the proxy kept.
    Returning,
    /// GETs of 1 KiB over standing connections.
    Get,
    /// Volume to the client.
    Down,
    /// Volume to the origin.
    Up,
}

impl Work {
    fn is_bulk(self) -> bool {
        matches!(self, Self::Down | Self::Up)
    }

    /// The unit of its figure.
    pub(super) fn unit(self) -> &'static str {
        if self.is_bulk() { "s/GB" } else { "us" }
    }
}

/// What one run has shown.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Run {
    /// The proxy.
    pub(super) subject: String,
    /// What was done.
    pub(super) work: Work,
    /// CPU of the proxy's process: µs an operation, or s a GB.
    pub(super) cpu: f64,
    /// Operations a second, or GB.
    pub(super) rate: f64,
    /// Share of the wall clock that others used the proxy's cores.
    pub(super) foreign_share: f64,
}

/// How a client gets through `contender`.
pub(super) fn way(
    contender: &Contender,
    profile: Profile,
    root: &Path,
    origin: Secure,
    work: Work,
) -> Result<Way> {
    let folder = contender.folder().context("the proxy must be one that was started here")?;
    let roots = match profile {
        Profile::Sluice => folder.join("ca/bench/ca.pem"),
        Profile::Mitmproxy => folder.join("mitmproxy-ca-cert.pem"),
        _ => root.to_owned(),
    };
    let port = if work == Work::Full { origin.fresh } else { origin.resuming };
    let (target, name) = match profile {
        Profile::Envoy if work == Work::Full => (None, format!("fresh.{ZONE}")),
        Profile::Envoy => (None, format!("resuming.{ZONE}")),
        Profile::Reference(Reference::TlsRelay) | Profile::Mitmproxy => {
            (Some(Ports::authority(port)), ORIGIN.into())
        }
        _ => (Some(format!("{ORIGIN}:{port}")), ORIGIN.into()),
    };
    let manners = authority::client(&roots, work != Work::Full)?;
    Ok(Way { proxy: contender.address, target, name, manners })
}

/// Does it once.
pub(super) fn run(contender: &Contender, way: &Way, work: Work, conditions: &Conditions) -> Result<Run> {
    if work.is_bulk() { bulk(contender, way, work) } else { operations(contender, way, work, conditions) }
}

fn operations(contender: &Contender, way: &Way, work: Work, conditions: &Conditions) -> Result<Run> {
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let clients = if work == Work::Get { ASKERS } else { SHAKERS };
    let (spent, count) = thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|_| {
                let mut way = way.clone();
                // Tickets are used once: each client has its own.
                way.manners = Arc::new((*way.manners).clone());
                if work != Work::Full {
                    let own = Arc::make_mut(&mut way.manners);
                    own.resumption = rustls::client::Resumption::in_memory_sessions(8);
                }
                let (done, stop) = (&done, &stop);
                scope.spawn(move || {
                    let ended = repeat(&way, work, done, stop);
                    if ended.is_err() {
                        stop.store(true, Relaxed);
                    }
                    ended
                })
            })
            .collect();
        let wait = |seconds: f64| {
            let until = Instant::now() + Duration::from_secs_f64(seconds);
            while Instant::now() < until && !stop.load(Relaxed) {
                thread::sleep(until.saturating_duration_since(Instant::now()).min(Duration::from_millis(50)));
            }
        };
        wait(conditions.warm_up);
        let (first, before) = (done.load(Relaxed), contender.meter.read()?);
        wait(conditions.seconds);
        let (last, after) = (done.load(Relaxed), contender.meter.read()?);
        stop.store(true, Relaxed);
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        anyhow::Ok((after.since(&before), last - first))
    })?;
    ensure!(count > 0, "no operation was completed");
    let (cpu, rate) =
        (spent.cpu.as_secs_f64() * 1e6 / count as f64, count as f64 / spent.elapsed.as_secs_f64());
    Ok(Run { subject: contender.name.clone(), work, cpu, rate, foreign_share: spent.foreign_share() })
}

fn repeat(way: &Way, work: Work, done: &AtomicU64, stop: &AtomicBool) -> Result<()> {
    let mut standing: Option<Client> = None;
    let mut first = true;
    while !stop.load(Relaxed) {
        match work {
            Work::Full | Work::Resumed | Work::Returning => {
                let mut client = way.enter()?;
                let expected = work != Work::Full && !first;
                ensure!(client.is_resumed() == expected, "resumed: {}", client.is_resumed());
                client.get(if work == Work::Returning { "1024" } else { "close" }, SMALL_BYTES)?;
            }
            _ => {
                if standing.is_none() {
                    standing = Some(way.enter()?);
                }
                if let Some(client) = &mut standing {
                    client.get("1024", SMALL_BYTES)?;
                }
            }
        }
        first = false;
        done.fetch_add(1, Relaxed);
    }
    Ok(())
}

fn bulk(contender: &Contender, way: &Way, work: Work) -> Result<Run> {
    let each = BULK_BYTES / MOVERS;
    let mut clients = (0..MOVERS).map(|_| way.enter()).collect::<Result<Vec<Client>>>()?;
    let all = |clients: &mut [Client], octets: u64| {
        thread::scope(|scope| {
            let moving = |client: &mut Client| match work {
                Work::Down => client.get(&octets.to_string(), octets),
                _ => client.put(octets),
            };
            let threads: Vec<_> =
                clients.iter_mut().map(|client| scope.spawn(move || moving(client))).collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().map_err(|_| anyhow!("a client panicked"))?)
        })
    };
    all(&mut clients, WARM_UP_BYTES)?;
    let before = contender.meter.read()?;
    all(&mut clients, each)?;
    let spent = contender.meter.read()?.since(&before);
    let gigabytes = (each * MOVERS) as f64 / 1e9;
    Ok(Run {
        subject: contender.name.clone(),
        work,
        cpu: spent.cpu.as_secs_f64() / gigabytes,
        rate: gigabytes / spent.elapsed.as_secs_f64(),
        foreign_share: spent.foreign_share(),
    })
}

/// Wall clock of CONNECT and handshake, ms: for `count` names that nobody has asked for, and for one that is known.
pub(super) fn first_sights(way: &Way, round: u32, count: u32) -> Result<(Vec<f64>, Vec<f64>)> {
    /// Between two new names: half of what a sandbox may have signed.
    const PAUSE: Duration = Duration::from_millis(20);
    let port =
        way.target.as_deref().and_then(|target| target.rsplit(':').next()).context("a port")?.to_owned();
    let look = |name: String| {
        let way = Way { target: Some(format!("{name}:{port}")), name, ..way.clone() };
        let began = Instant::now();
        let mut client = way.enter()?;
        let took = began.elapsed().as_secs_f64() * 1e3;
        client.get("close", SMALL_BYTES)?;
        thread::sleep(PAUSE);
        anyhow::Ok(took)
    };
    let new = (0..count).map(|number| look(format!("n{number}-{round}.{ZONE}"))).collect::<Result<_>>()?;
    let known = (0..count).map(|_| look(ORIGIN.to_owned())).collect::<Result<_>>()?;
    Ok((new, known))
}
