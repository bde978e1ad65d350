//! What a tunnel costs while nothing happens: memory and descriptors of the proxy, and CPU if it cannot sit still.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Scene, Workload};
use crate::load::driver::Measured;
use crate::load::tunnel;
use crate::origin::Ports;
use crate::outcome::{Figure, Outcome};
use crate::statistics::latencies;

/// Tunnels opened and closed before the first look, so that start-up memory is not blamed on tunnels.
const REHEARSAL: usize = 64;
/// How long the tunnels are left alone before memory is read.
const REST: Duration = Duration::from_secs(1);

/// Opens `tunnels`, says a byte through each, leaves them alone, and reads the accounts.
pub(super) fn run(workload: &Workload, scene: &Scene<'_>, tunnels: usize) -> Result<Outcome> {
    let meter = &scene.contender.meter;
    for mut stream in open(scene, REHEARSAL.min(tunnels))? {
        greet(&mut stream)?;
    }
    let (memory_before, descriptors_before) = settled(scene)?;

    let mut latency = latencies();
    let mut standing = Vec::with_capacity(tunnels);
    let start = meter.read()?;
    for opened in 0..tunnels {
        let began = Instant::now();
        let mut stream = open(scene, 1)?.pop().context("no tunnel")?;
        greet(&mut stream)?;
        latency.saturating_record(began.elapsed().as_nanos() as u64);
        standing.push(stream);
        if opened % 256 == 0 {
            scene.progress.show(&format!("{opened} of {tunnels} tunnels"));
        }
    }
    let opened = meter.read()?;

    std::thread::sleep(REST);
    let rested = meter.read()?.since(&opened);
    let (memory, descriptors) = (meter.memory()?, meter.descriptors()?);
    for stream in &mut standing {
        greet(stream).context("a tunnel did not survive being idle")?;
    }

    let failures = BTreeMap::new();
    let measured = Measured {
        operations: tunnels as u64,
        bytes: tunnels as u64,
        failures,
        latency,
        spent: opened.since(&start),
    };
    let mut outcome = Outcome::new(&scene.contender.name, workload, &measured);
    let each = |after: u64, before: u64| (after as f64 - before as f64) / tunnels as f64;
    outcome.figures = vec![
        Figure::new("pss_per_tunnel", each(memory.pss_kib, memory_before.pss_kib), "KiB"),
        Figure::new("rss_per_tunnel", each(memory.rss_kib, memory_before.rss_kib), "KiB"),
        Figure::new("descriptors_per_tunnel", each(descriptors, descriptors_before), ""),
        Figure::new("pss_without", memory_before.pss_kib as f64, "KiB"),
        Figure::new("cpu_while_idle", rested.cpu.as_secs_f64() * 1e3 / rested.elapsed.as_secs_f64(), "ms/s"),
    ];
    Ok(outcome)
}

/// Memory and descriptors once those of the rehearsal are closed.
fn settled(scene: &Scene<'_>) -> Result<(crate::accounting::Memory, u64)> {
    let meter = &scene.contender.meter;
    let deadline = Instant::now() + REST;
    let mut least = meter.descriptors()?;
    while Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
        least = least.min(meter.descriptors()?);
    }
    Ok((meter.memory()?, least))
}

fn open(scene: &Scene<'_>, count: usize) -> Result<Vec<TcpStream>> {
    let target = Ports::authority(scene.ports.echo);
    (0..count).map(|_| tunnel::open(scene.contender.address, &target).context("opening a tunnel")).collect()
}

/// A byte there and back.
fn greet(stream: &mut TcpStream) -> Result<()> {
    let mut echo = [0];
    stream.write_all(b"!")?;
    stream.read_exact(&mut echo)?;
    ensure!(echo == *b"!", "the echo of a byte is another byte");
    Ok(())
}
