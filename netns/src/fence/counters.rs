//! What a fence refused, in exact numbers.

use std::os::fd::BorrowedFd;

use nftables::types::NfFamily;
use serde_json::Value;

use super::{inner, nft};
use crate::{Error, enter};

/// Packets and bytes, IPv4 and IPv6 together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets: for TCP one per connection attempt, as the reset ends it.
    pub packets: u64,
    /// Bytes including IP headers.
    pub bytes: u64,
}

/// What the inner fence of one sandbox refused since it was loaded. Exact also where log lines were left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// TCP.
    pub tcp: Traffic,
    /// UDP.
    pub udp: Traffic,
    /// ICMP and ICMPv6.
    pub icmp: Traffic,
    /// Every other protocol.
    pub other: Traffic,
    /// The kernel's own neighbour discovery and multicast membership: dropped, never logged, nobody's attempt.
    pub kernel_noise: Traffic,
    /// Refused packets of all protocols that were written to the kernel log.
    pub logged: Traffic,
}

impl Counters {
    /// Refused packets of all protocols.
    pub fn refused_packets(&self) -> u64 {
        [self.tcp, self.udp, self.icmp, self.other]
            .iter()
            .fold(0, |sum, traffic| sum.saturating_add(traffic.packets))
    }

    /// The counter a rule names, if it is one of ours.
    fn by_name(&mut self, name: &str) -> Option<&mut Traffic> {
        match name {
            "refused_tcp" => Some(&mut self.tcp),
            "refused_udp" => Some(&mut self.udp),
            "refused_icmp" => Some(&mut self.icmp),
            "refused_other" => Some(&mut self.other),
            "kernel_noise" => Some(&mut self.kernel_noise),
            "logged" => Some(&mut self.logged),
            _ => None,
        }
    }
}

/// Reads the counters of the inner fence in `netns`.
pub(crate) fn read(netns: BorrowedFd<'_>) -> Result<Counters, Error> {
    let objects = enter::inside(netns, || nft::list_table(NfFamily::INet, inner::TABLE))??;
    Ok(sum(&objects))
}

fn sum(objects: &[Value]) -> Counters {
    let mut counters = Counters::default();
    for counter in objects.iter().filter_map(|object| object.get("counter")) {
        let name = counter.get("name").and_then(Value::as_str).unwrap_or_default();
        if let Some(traffic) = counters.by_name(name) {
            traffic.packets = counter.get("packets").and_then(Value::as_u64).unwrap_or_default();
            traffic.bytes = counter.get("bytes").and_then(Value::as_u64).unwrap_or_default();
        }
    }
    counters
}
