//! Every bound of the data path that an operator can set: name, unit, default and reason in one place.
//!
//! Bounds of the file formats are beside their parsers; those nobody should change are constants where they act.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Time-outs and sizes of the data path; the `timeouts` and `limits` blocks of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From the first byte of a request's head to its last: a slow-loris holds a connection no longer than this.
    pub head_read: Duration,
    /// One attempt to reach an address, TCP handshake included; the next address is tried afterwards.
    pub dial: Duration,
    /// From the end of a request to the first byte of its answer. Long-polling answers late: minutes, not seconds.
    pub first_byte: Duration,
    /// A client connection between two requests, and an idle upstream connection in the pool.
    pub idle_keepalive: Duration,
    /// A tunnel in which no byte moves either way. Chats and language servers sit idle for long.
    pub idle_tunnel: Duration,
    /// After one side has closed, how long the other direction may stay silent.
    pub half_closed_linger: Duration,
    /// A connection, whatever it does; zero means no bound.
    pub lifetime: Duration,
    /// Octets of a request's or an answer's head, start line included. RFC 9112 asks for 8,000 in the request line.
    pub head_bytes: usize,
    /// Header fields of a head.
    pub head_count: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_read: Duration::from_secs(15),
            dial: Duration::from_secs(10),
            first_byte: Duration::from_secs(300),
            idle_keepalive: Duration::from_secs(60),
            idle_tunnel: Duration::from_secs(3_600),
            half_closed_linger: Duration::from_secs(60),
            lifetime: Duration::ZERO,
            head_bytes: 32 * 1024,
            head_count: 128,
        }
    }
}

impl Limits {
    /// The shortest of all time-outs: whoever keeps them must look more often than that.
    pub fn shortest_timeout(&self) -> Duration {
        let lifetime = if self.lifetime.is_zero() { Duration::MAX } else { self.lifetime };
        let all = [
            self.head_read,
            self.first_byte,
            self.idle_keepalive,
            self.idle_tunnel,
            self.half_closed_linger,
            lifetime,
        ];
        all.into_iter().min().unwrap_or(lifetime)
    }
}

/// What one sandbox may use at a time. Zero means no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SandboxLimits {
    /// Open client connections. One tenant's flood must not exhaust the host's descriptors.
    pub connections: u32,
    /// Requests (CONNECT or forward) accepted per second.
    pub requests_per_s: u32,
    /// Octets relayed per second, both directions together.
    pub bytes_per_s: u64,
}

impl Default for SandboxLimits {
    fn default() -> Self {
        Self { connections: 4_096, requests_per_s: 0, bytes_per_s: 0 }
    }
}
