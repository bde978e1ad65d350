//! What a fence refused, in exact numbers.

use std::collections::HashMap;

use super::scrape::Family;
use super::{CounterSocket, host, inner};
use crate::Error;

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

/// Reads the counters of the inner fence through `socket`; `None` when the fence is gone.
pub(crate) fn read(socket: &CounterSocket) -> Result<Option<Counters>, Error> {
    let found = socket
        .read(Family::Inet, inner::TABLE)
        .map_err(Error::io("read the counters of", "the fence in a namespace"))?;
    let mut counters = Counters::default();
    for (name, traffic) in &found {
        if let Some(counter) = counters.by_name(name) {
            *counter = *traffic;
        }
    }
    Ok((!found.is_empty()).then_some(counters))
}

/// Reads what the inner fence of one sandbox has counted, on whichever thread it is.
#[derive(Debug)]
pub struct CounterReader(CounterSocket);

impl CounterReader {
    pub(crate) const fn new(socket: CounterSocket) -> Self {
        Self(socket)
    }

    /// The counts, in some ten microseconds; `None` when the fence is not there.
    pub fn read(&self) -> Result<Option<Counters>, Error> {
        read(&self.0)
    }
}

/// Reads what the host's fence has dropped, on whichever thread it is.
#[derive(Debug)]
pub struct HostCounterReader(CounterSocket);

impl HostCounterReader {
    /// Opens it in the calling thread's namespace, the host's.
    pub fn open() -> Result<Self, Error> {
        let failed = Error::io("open a netlink socket in", "/proc/thread-self/ns/net");
        CounterSocket::open_in_own().map(Self).map_err(failed)
    }

    /// What the links of each sandbox dropped, by its name. None, when there is no host fence.
    pub fn read(&self) -> Result<HashMap<String, Traffic>, Error> {
        let found = self.0.read(Family::NetDev, host::TABLE);
        let found = found.map_err(Error::io("read the counters of", "the host fence"))?;
        Ok(found
            .into_iter()
            .filter_map(|(name, traffic)| Some((name.strip_prefix("dropped_")?.to_owned(), traffic)))
            .collect())
    }
}
