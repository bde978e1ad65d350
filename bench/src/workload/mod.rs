//! The workloads: what is asked of a proxy, how often, and which figure comes of it.
//!
//! The life of a run: [`Workload::run`] opens what must stand before, hands sessions to `load::driver`, and turns what
//! it measured into an [`Outcome`]. `requests` holds the workloads of small operations, `bulk`, `idle` and `mixed` the others.

mod bulk;
mod idle;
mod mixed;
mod requests;

use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::contender::Contender;
use crate::load::driver::{Plan, Until};
use crate::load::pace::Pace;
use crate::load::volume::Direction;
use crate::origin::Ports;
use crate::outcome::Outcome;
use crate::pinning;
use crate::progress::Progress;

/// Sockets of a proxy for each tunnel.
const SOCKETS_PER_TUNNEL: u64 = 2;
/// The same with a pipe of two ends for each direction.
const DESCRIPTORS_PER_TUNNEL_MAX: u64 = 6;
/// Descriptors that a process has besides its tunnels.
const DESCRIPTORS_BESIDE: u64 = 256;

/// What is asked of a proxy.
#[derive(Debug, Clone, clap::Subcommand, Serialize)]
#[serde(tag = "name", rename_all = "lowercase")]
pub(crate) enum Workload {
    /// CONNECT, one byte to the origin and back, close
    Connect {
        /// Clients at a time
        #[arg(long, default_value_t = 32)]
        clients: usize,
    },
    /// Small messages to and fro over standing tunnels
    Pingpong {
        /// Tunnels
        #[arg(long, default_value_t = 64)]
        tunnels: usize,
        /// Bytes of a message
        #[arg(long, default_value_t = 64)]
        bytes: usize,
    },
    /// Volume through standing tunnels; the warm-up transfer is compared byte by byte
    Bulk {
        /// Tunnels
        #[arg(long, default_value_t = 4)]
        tunnels: usize,
        /// Which way
        #[arg(long, value_enum, default_value_t = Direction::Down)]
        direction: Direction,
        /// Volume over all tunnels, GB (10⁹ bytes)
        #[arg(long, default_value_t = 4.0)]
        gb: f64,
    },
    /// Forward GETs
    Http {
        /// Connections
        #[arg(long, default_value_t = 64)]
        connections: usize,
        /// Bytes of a body
        #[arg(long, default_value_t = 1024)]
        body: u64,
        /// A new client connection for each request
        #[arg(long)]
        new_connection: bool,
    },
    /// WebSocket frames, echoed
    Ws {
        /// WebSockets
        #[arg(long, default_value_t = 64)]
        tunnels: usize,
        /// Bytes of payload in a frame
        #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u8).range(..126))]
        payload: u8,
        /// Upgrade inside a CONNECT tunnel instead of through a forward request
        #[arg(long)]
        in_tunnel: bool,
    },
    /// Memory of the proxy for each idle tunnel
    Idle {
        /// Tunnels
        #[arg(long, default_value_t = 10_000)]
        tunnels: usize,
    },
    /// Ping-pong latency with and without bulk beside it
    Mixed {
        /// Ping-pong tunnels
        #[arg(long, default_value_t = 64)]
        tunnels: usize,
        /// Bulk tunnels
        #[arg(long, default_value_t = 8)]
        bulk: usize,
        /// Which way the bulk goes
        #[arg(long, value_enum, default_value_t = Direction::Down)]
        direction: Direction,
    },
    /// Requests that policy refuses
    Deny {
        /// Clients at a time
        #[arg(long, default_value_t = 32)]
        clients: usize,
        /// Refused GETs over kept connections instead of refused CONNECTs
        #[arg(long)]
        get: bool,
    },
}

/// How long and how fast, and where.
#[derive(Debug, Clone, clap::Args, Serialize)]
pub(crate) struct Conditions {
    /// Measured time of a run, s
    #[arg(long, global = true, default_value_t = 3.0)]
    pub(crate) seconds: f64,
    /// Unmeasured time before it, s
    #[arg(long, global = true, default_value_t = 1.0)]
    pub(crate) warm_up: f64,
    /// Exactly so many operations, all measured, instead of a time
    #[arg(long, global = true)]
    pub(crate) operations: Option<u64>,
    /// Open loop: so many operations a second; latency counts from the scheduled moment [default: closed loop]
    #[arg(long, global = true)]
    pub(crate) rate: Option<f64>,
    /// Cores of the proxy
    #[arg(long, global = true, value_delimiter = ',', default_value = "0")]
    pub(crate) proxy_cores: Vec<usize>,
    /// Cores of the load and the origin, one thread of each kind on each
    #[arg(long, global = true, value_delimiter = ',', default_values_t = default_load_cores())]
    pub(crate) load_cores: Vec<usize>,
    /// Nice value of load, origin and proxies: -20 keeps busy neighbours off their cores [default: unchanged]
    #[arg(long, global = true, allow_hyphen_values = true, value_parser = clap::value_parser!(i32).range(-20..20))]
    pub(crate) nice: Option<i32>,
}

/// Everything a run needs.
pub(crate) struct Scene<'a> {
    /// The proxy.
    pub(crate) contender: &'a Contender,
    /// The origin's ports.
    pub(crate) ports: Ports,
    /// How long, how fast, where.
    pub(crate) conditions: &'a Conditions,
    /// The line that says what is going on.
    pub(crate) progress: &'a Progress,
}

impl Workload {
    /// Runs it once. Failures of single operations are in the outcome; an `Err` means that nothing could be measured.
    pub(crate) fn run(&self, scene: &Scene<'_>) -> Result<Outcome> {
        match *self {
            Self::Connect { clients } => requests::connect(self, scene, clients),
            Self::Pingpong { tunnels, bytes } => requests::pingpong(self, scene, tunnels, bytes),
            Self::Http { connections, body, new_connection } => {
                requests::http(self, scene, connections, body, new_connection)
            }
            Self::Ws { tunnels, payload, in_tunnel } => {
                requests::websocket(self, scene, tunnels, payload, in_tunnel)
            }
            Self::Deny { clients, get } => requests::deny(self, scene, clients, get),
            Self::Bulk { tunnels, direction, gb } => bulk::run(self, scene, tunnels, direction, gb),
            Self::Idle { tunnels } => idle::run(self, scene, tunnels),
            Self::Mixed { tunnels, bulk, direction } => mixed::run(self, scene, tunnels, bulk, direction),
        }
    }

    /// Its name.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "connect",
            Self::Pingpong { .. } => "pingpong",
            Self::Bulk { .. } => "bulk",
            Self::Http { .. } => "http",
            Self::Ws { .. } => "ws",
            Self::Idle { .. } => "idle",
            Self::Mixed { .. } => "mixed",
            Self::Deny { .. } => "deny",
        }
    }

    /// Whether the origin's latency threads and the clients' run before all others.
    pub(crate) const fn needs_priority(&self) -> bool {
        matches!(self, Self::Mixed { .. })
    }

    /// Whether each run needs a proxy that was just started: memory does not shrink again.
    pub(crate) const fn needs_fresh_proxy(&self) -> bool {
        matches!(self, Self::Idle { .. })
    }

    /// The same workload within this machine's limit of descriptors, which is raised as far as may be. Fewer idle
    /// tunnels do where there is no room for all, and that is said; any other workload is refused.
    pub(crate) fn fitted(&self) -> Result<Self> {
        let tunnels = self.tunnels();
        let limit = pinning::raise_descriptors(tunnels * DESCRIPTORS_PER_TUNNEL_MAX + DESCRIPTORS_BESIDE)?;
        let room = limit.saturating_sub(DESCRIPTORS_BESIDE) / SOCKETS_PER_TUNNEL;
        if tunnels <= room {
            return Ok(self.clone());
        }
        ensure!(
            matches!(self, Self::Idle { .. }) && room > 0,
            "{tunnels} tunnels need {} descriptors and the limit is {limit}: raise `ulimit -Hn`, or ask for fewer",
            tunnels * SOCKETS_PER_TUNNEL + DESCRIPTORS_BESIDE
        );
        eprintln!(
            "{room} idle tunnels instead of {tunnels}: the hard limit of descriptors is {limit} (`ulimit -Hn`)"
        );
        Ok(Self::Idle { tunnels: room as usize })
    }

    /// Tunnels or connections that stand at once.
    const fn tunnels(&self) -> u64 {
        let tunnels = match *self {
            Self::Idle { tunnels }
            | Self::Pingpong { tunnels, .. }
            | Self::Bulk { tunnels, .. }
            | Self::Ws { tunnels, .. } => tunnels,
            Self::Mixed { tunnels, bulk, .. } => tunnels + bulk,
            Self::Connect { clients } | Self::Deny { clients, .. } => clients,
            Self::Http { connections, .. } => connections,
        };
        tunnels as u64
    }
}

impl Conditions {
    /// The plan of a run.
    pub(crate) fn plan(&self) -> Plan {
        let until = self.operations.map_or_else(
            || Until::Time {
                warm_up: Duration::from_secs_f64(self.warm_up),
                measured: Duration::from_secs_f64(self.seconds),
            },
            Until::Operations,
        );
        let pace = self.rate.map_or(Pace::Closed, |per_second| Pace::Open { per_second });
        Plan { cores: self.load_cores.clone(), until, pace, first: false }
    }
}

/// The last core: the first is the proxy's.
fn default_load_cores() -> Vec<usize> {
    vec![pinning::cores_online().saturating_sub(1)]
}
