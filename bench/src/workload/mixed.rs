//! Fairness: what bulk beside them does to the latencies of ping-pong tunnels.
//!
//! The ping-pong clients and the echo origin run before all others on the load's core, so that it is the proxy's
//! queueing that is measured and not the load's. The bulk's throughput is reported: a proxy that starves it would shine.

use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow};

use super::bulk::volumes;
use super::requests::exchanges;
use super::{Scene, Workload};
use crate::load::driver::{self, Plan, Until};
use crate::load::pace::Pace;
use crate::load::volume::Direction;
use crate::outcome::{Figure, Outcome};
use crate::pinning::{self, Precedence};
use crate::progress::Progress;
use crate::statistics::Latency;

/// Bytes of a ping-pong message.
const MESSAGE_BYTES: usize = 64;
/// One bulk transfer; they follow one another until time is up.
const TRANSFER_BYTES: u64 = 256 << 20;
/// How long bulk goes on after the ping-pong is measured.
const OVERLAP: Duration = Duration::from_millis(200);

/// Ping-pong alone, then beside bulk.
pub(super) fn run(
    workload: &Workload,
    scene: &Scene<'_>,
    tunnels: usize,
    bulk: usize,
    direction: Direction,
) -> Result<Outcome> {
    let mut plan = scene.conditions.plan();
    plan.first = true;
    let meter = &scene.contender.meter;
    pinning::take_precedence(Precedence::Conductor)?;
    let mut messengers = exchanges(scene, tunnels, MESSAGE_BYTES)?;
    let alone = driver::run(&mut messengers, &plan, meter, scene.progress)?;
    drop(messengers); // answers may be under way in them

    let mut messengers = exchanges(scene, tunnels, MESSAGE_BYTES)?;
    let mut volumes = volumes(scene, bulk, direction, TRANSFER_BYTES)?;
    for volume in &mut volumes {
        volume.set(TRANSFER_BYTES, false);
    }
    let beside_plan =
        Plan { until: lasting(&plan), pace: Pace::Closed, first: false, cores: plan.cores.clone() };
    let (beside, moved) = thread::scope(|scope| {
        let bulk = scope.spawn(|| driver::run(&mut volumes, &beside_plan, meter, &Progress::silent()));
        let beside = driver::run(&mut messengers, &plan, meter, scene.progress);
        (beside, bulk.join())
    });
    pinning::take_precedence(Precedence::Ordinary)?;
    let (beside, moved) = (beside?, moved.map_err(|_| anyhow!("the bulk load panicked"))??);

    let mut outcome = Outcome::new(&scene.contender.name, workload, &beside);
    outcome.fail(&alone.failures);
    outcome.fail(&moved.failures);
    let none = || anyhow!("no ping-pong operation was measured");
    let before = Latency::of(&alone.latency).ok_or_else(none)?;
    let during = Latency::of(&beside.latency).ok_or_else(none)?;
    let throughput = moved.bytes as f64 / 1e9 / moved.spent.elapsed.as_secs_f64();
    outcome.figures = vec![
        Figure::new("p999_ratio", during.p999_us / before.p999_us, "x"),
        Figure::new("p999_alone", before.p999_us, "us"),
        Figure::new("p999_beside", during.p999_us, "us"),
        Figure::new("p50_ratio", during.p50_us / before.p50_us, "x"),
        Figure::new("rate_alone", alone.operations as f64 / alone.spent.elapsed.as_secs_f64(), "op/s"),
        Figure::new("rate_beside", beside.operations as f64 / beside.spent.elapsed.as_secs_f64(), "op/s"),
        Figure::new("bulk_beside", throughput, "GB/s"),
    ];
    Ok(outcome)
}

/// As long as `plan` and a little longer.
fn lasting(plan: &Plan) -> Until {
    match plan.until {
        Until::Time { warm_up, measured } => Until::Time { warm_up, measured: measured + OVERLAP },
        Until::Operations(_) => Until::Time { warm_up: Duration::ZERO, measured: OVERLAP },
    }
}
