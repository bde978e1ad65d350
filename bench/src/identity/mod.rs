//! `sluice-bench identity`: what it costs to know which program asks, in a crowd, beside the naive way.
//!
//! Owns a crowd of processes with descriptors and connections, clients that are a new process each time, and the
//! yardstick: a full scan of both tables and of every descriptor. Never a line of the product: the proxy is `sluice
//! serve`, once with a policy that names the client's program and once with `identity: off`, and what identity costs is
//! the difference of the CPU the kernel charges for a CONNECT.
//!
//! The life of a run: `crowd` fills the namespace; for each round both proxies are started anew, one after the other,
//! and asked by one process (warm) and by new processes (cold); `naive` scans for one of the crowd's connections.

mod crowd;
mod naive;

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::contender::{Contender, Profile, Programs};
use crate::load::tunnel;
use crate::origin::Ports;
use crate::stage::Stage;
use crate::statistics::Spread;
use crate::workload::{Conditions, Workload};
use crowd::Crowd;
pub(crate) use crowd::play as play_crowd;

/// At most so much CPU for a client that was seen before, µs.
const WARM_TARGET_US: f64 = 10.0;
/// At most so much CPU for a client that was not, µs.
const COLD_TARGET_US: f64 = 300.0;
/// Clients at a time in the warm part.
const WARM_CLIENTS: usize = 8;
/// Scans of the yardstick.
const NAIVE_SCANS: usize = 5;

/// How large the crowd is.
#[derive(Debug, Clone, Copy, clap::Args, Serialize)]
pub(crate) struct Size {
    /// Processes in the sandbox
    #[arg(long, default_value_t = 500)]
    processes: usize,
    /// Open descriptors of each
    #[arg(long, default_value_t = 40)]
    descriptors: usize,
    /// Connections in the sandbox, all processes together
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// New processes that ask once each, in every round
    #[arg(long, default_value_t = 100)]
    cold: usize,
    /// Rounds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..100))]
    rounds: u32,
}

/// What identity costs, CPU-µs for a connection.
#[derive(Debug, Serialize)]
pub(crate) struct Cost {
    size: Size,
    /// Connections of one process: with identity, without it.
    warm: [Spread; 2],
    /// A new process for each connection: with identity, without it.
    cold: [Spread; 2],
    /// One full scan.
    naive: Spread,
    /// What a warm lookup adds.
    warm_added_us: f64,
    /// What a cold one adds.
    cold_added_us: f64,
    /// A full scan divided by what a cold lookup adds.
    naive_to_cold: Option<f64>,
}

/// Measures. Nothing else should run on the machine.
pub(crate) fn run(size: Size, conditions: &Conditions, programs: &Programs) -> Result<Cost> {
    let warm = Workload::Connect { clients: WARM_CLIENTS }.fitted()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port for the crowd")?;
    let crowd = Crowd::gather(&listener, size.processes, size.descriptors, size.connections)?;
    let mut naive = Vec::new();
    for _ in 0..NAIVE_SCANS {
        naive.push(naive::cpu_us(&crowd.connection())?);
    }
    let (mut warm_us, mut cold_us) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for round in 0..size.rounds {
        for (side, blind) in [false, true].into_iter().enumerate() {
            let stage = Stage::set(&warm, conditions, &programs.clone().blind(blind))?;
            let contender = stage.start(Profile::Sluice)?;
            let heading = format!("round {} identity {}", round + 1, if blind { "off" } else { "on" });
            let outcome = stage.run(&warm, conditions, &contender, &heading)?;
            ensure!(outcome.errors == 0, "{} operations failed: {:?}", outcome.errors, outcome.failures);
            warm_us[side].push(outcome.cpu_seconds * 1e6 / outcome.operations as f64);
            cold_us[side].push(cold(&contender, stage.ports(), size.cold)?);
        }
    }
    drop(crowd);
    let spread = |values: &[f64]| Spread::of(values).context("nothing was measured");
    let both = |[on, off]: [Vec<f64>; 2]| anyhow::Ok([spread(&on)?, spread(&off)?]);
    let (warm, cold, naive) = (both(warm_us)?, both(cold_us)?, spread(&naive)?);
    let added = |[on, off]: &[Spread; 2]| on.median - off.median;
    let (warm_added_us, cold_added_us) = (added(&warm), added(&cold));
    let naive_to_cold = (cold_added_us > 0.0).then(|| naive.median / cold_added_us);
    Ok(Cost { size, warm, cold, naive, warm_added_us, cold_added_us, naive_to_cold })
}

/// CPU of the proxy for a CONNECT by a process that never asked before, µs.
fn cold(contender: &Contender, ports: Ports, times: usize) -> Result<f64> {
    let target = Ports::authority(ports.echo);
    let before = contender.meter.read()?;
    for _ in 0..times {
        crowd::visit_by_a_new_process(contender.address, &target)?;
    }
    let spent = contender.meter.read()?.since(&before);
    Ok(spent.cpu.as_secs_f64() * 1e6 / times as f64)
}

/// The part of a new process: CONNECT, one byte to the origin and back.
pub(crate) fn play_visitor(proxy: SocketAddr, target: &str) -> Result<()> {
    let mut stream = tunnel::open(proxy, target).map_err(|failure| anyhow::anyhow!("{failure:?}"))?;
    stream.write_all(b"x")?;
    std::io::Read::read_exact(&mut stream, &mut [0]).context("the origin did not answer")
}

impl Cost {
    /// The figures in words.
    pub(crate) fn table(&self) -> String {
        let Size { processes, descriptors, connections, .. } = self.size;
        let verdict = |seen: f64, target: f64| if seen <= target { "met" } else { "missed" };
        let ratio = self.naive_to_cold.map_or_else(|| "-".into(), |ratio| format!("{ratio:.0}"));
        format!(
            "identity among {processes} processes x {descriptors} descriptors, {connections} connections; CPU-µs a \
             connection, median (least to most)\n\
             {:34}{}\n{:34}{}\n{:34}{}\n{:34}{}\n{:34}{}\n\
             warm adds {:.1} µs (target {WARM_TARGET_US:.0}: {}), cold adds {:.1} µs (target {COLD_TARGET_US:.0}: \
             {}), a full scan costs {ratio} times as much as a cold lookup\n",
            "CONNECT, known process, identity on",
            figures(&self.warm[0]),
            "CONNECT, known process, off",
            figures(&self.warm[1]),
            "CONNECT, new process, identity on",
            figures(&self.cold[0]),
            "CONNECT, new process, off",
            figures(&self.cold[1]),
            "naive full scan",
            figures(&self.naive),
            self.warm_added_us,
            verdict(self.warm_added_us, WARM_TARGET_US),
            self.cold_added_us,
            verdict(self.cold_added_us, COLD_TARGET_US),
        )
    }
}

fn figures(spread: &Spread) -> String {
    format!(" {:10.1} ({:.1} to {:.1})", spread.median, spread.min, spread.max)
}
