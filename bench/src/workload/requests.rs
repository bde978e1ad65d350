//! Workloads of many small operations: CPU per operation, rate, latency.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};

use super::{Scene, Workload};
use crate::contender::DENIED_HOST;
use crate::load::driver::{self, Plan};
use crate::load::exchange::{Exchange, Messages};
use crate::load::fetch::{Fetch, Request};
use crate::load::session::Session;
use crate::load::tunnel;
use crate::load::visit::Visit;
use crate::origin::Ports;
use crate::outcome::Outcome;

/// CONNECT, a byte, close.
pub(super) fn connect(workload: &Workload, scene: &Scene<'_>, clients: usize) -> Result<Outcome> {
    let head: Arc<str> = tunnel::connect_head(&Ports::authority(scene.ports.echo)).into();
    let mut sessions: Vec<Visit> =
        (0..clients).map(|_| Visit::new(scene.contender.address, head.clone())).collect();
    measure(workload, scene, &mut sessions)
}

/// Messages over CONNECT tunnels.
pub(super) fn pingpong(
    workload: &Workload,
    scene: &Scene<'_>,
    tunnels: usize,
    bytes: usize,
) -> Result<Outcome> {
    let mut sessions = exchanges(scene, tunnels, bytes)?;
    measure(workload, scene, &mut sessions)
}

/// Tunnels to the echo port.
pub(super) fn exchanges(scene: &Scene<'_>, tunnels: usize, bytes: usize) -> Result<Vec<Exchange>> {
    let messages = Arc::new(Messages::echo(bytes));
    let target = Ports::authority(scene.ports.echo);
    (0..tunnels)
        .map(|_| {
            let stream = tunnel::open(scene.contender.address, &target).context("opening a tunnel")?;
            Ok(Exchange::over(stream, messages.clone())?)
        })
        .collect()
}

/// Forward GETs.
pub(super) fn http(
    workload: &Workload,
    scene: &Scene<'_>,
    connections: usize,
    body: u64,
    new_connection: bool,
) -> Result<Outcome> {
    let authority = Ports::authority(scene.ports.http);
    let head = get(&authority, &body.to_string());
    let request = Arc::new(Request { head, status: 200, body: Some(body), new_connection });
    fetch(workload, scene, connections, &request)
}

/// Frames over WebSockets.
pub(super) fn websocket(
    workload: &Workload,
    scene: &Scene<'_>,
    tunnels: usize,
    payload: u8,
    in_tunnel: bool,
) -> Result<Outcome> {
    let messages = Arc::new(Messages::frames(payload));
    let host = Ports::authority(scene.ports.http);
    let sessions: Result<Vec<Exchange>> = (0..tunnels)
        .map(|_| {
            let stream = tunnel::open_websocket(scene.contender.address, &host, in_tunnel)
                .context("opening a WebSocket")?;
            Ok(Exchange::over(stream, messages.clone())?)
        })
        .collect();
    measure(workload, scene, &mut sessions?)
}

/// Requests that must be refused with the contender's own status.
pub(super) fn deny(workload: &Workload, scene: &Scene<'_>, clients: usize, by_get: bool) -> Result<Outcome> {
    let Some(status) = scene.contender.refusal else {
        bail!("{} has no policy and refuses nothing", scene.contender.name);
    };
    let head =
        if by_get { get(DENIED_HOST, "") } else { tunnel::connect_head(&format!("{DENIED_HOST}:443")) };
    let request = Arc::new(Request { head, status, body: None, new_connection: !by_get });
    fetch(workload, scene, clients, &request)
}

fn get(authority: &str, path: &str) -> String {
    format!(
        "GET http://{authority}/{path} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: sluice-bench\r\nAccept: */*\r\n\r\n"
    )
}

fn fetch(workload: &Workload, scene: &Scene<'_>, clients: usize, request: &Arc<Request>) -> Result<Outcome> {
    let mut sessions: Vec<Fetch> =
        (0..clients).map(|_| Fetch::new(scene.contender.address, request.clone())).collect();
    measure(workload, scene, &mut sessions)
}

fn measure<S: Session>(workload: &Workload, scene: &Scene<'_>, sessions: &mut [S]) -> Result<Outcome> {
    let plan: Plan = scene.conditions.plan();
    let measured = driver::run(sessions, &plan, &scene.contender.meter, scene.progress)?;
    ensure!(measured.operations > 0, "no operation was completed; failures: {:?}", measured.failures);
    Ok(Outcome::new(&scene.contender.name, workload, &measured).per_operation())
}
