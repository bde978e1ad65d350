//! Volume: CPU per GB. A fixed volume to its last byte, so that nothing in flight is counted or missed.

use anyhow::{Context, Result, ensure};

use super::{Scene, Workload};
use crate::load::driver::{self, Until};
use crate::load::pace::Pace;
use crate::load::tunnel;
use crate::load::volume::{Direction, Volume};
use crate::origin::Ports;
use crate::outcome::Outcome;

/// The warm-up transfer of each tunnel: enough for windows and buffers to grow; compared byte by byte.
const WARM_UP_BYTES: u64 = 32 << 20;

/// Moves `gb` over all tunnels together.
pub(super) fn run(
    workload: &Workload,
    scene: &Scene<'_>,
    tunnels: usize,
    direction: Direction,
    gb: f64,
) -> Result<Outcome> {
    let each = (gb * 1e9 / tunnels as f64) as u64;
    let mut sessions = volumes(scene, tunnels, direction, WARM_UP_BYTES.min(each))?;
    let mut plan = scene.conditions.plan();
    plan.pace = Pace::Closed;
    plan.until = Until::Operations(tunnels as u64);
    let warmed = driver::run(&mut sessions, &plan, &scene.contender.meter, scene.progress)?;
    for session in &mut sessions {
        session.set(each, false);
    }
    let measured = driver::run(&mut sessions, &plan, &scene.contender.meter, scene.progress)?;
    let whole = measured.bytes == each * tunnels as u64;
    ensure!(
        whole || !measured.failures.is_empty(),
        "{} bytes moved of {}",
        measured.bytes,
        each * tunnels as u64
    );
    let mut outcome = Outcome::new(&scene.contender.name, workload, &measured);
    outcome.fail(&warmed.failures);
    Ok(outcome.per_volume())
}

/// Tunnels to the bulk port; transfers of `bytes`, compared.
pub(super) fn volumes(
    scene: &Scene<'_>,
    tunnels: usize,
    direction: Direction,
    bytes: u64,
) -> Result<Vec<Volume>> {
    let target = Ports::authority(scene.ports.bulk);
    (0..tunnels)
        .map(|_| {
            let stream = tunnel::open(scene.contender.address, &target).context("opening a tunnel")?;
            Ok(Volume::over(stream, direction, bytes, true)?)
        })
        .collect()
}
