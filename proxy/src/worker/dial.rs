//! From a permit to a connection: resolve, hold every address against the guard and the policy, connect to one that
//! passed both (decision 9).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::Core;
use super::race::{interleave, race};
use super::refusal::Refusal;
use super::socket::{Side, Socket};
use super::upstream::{Upstream, Upstreams};
use crate::address::Refused;
use crate::destination::Host;
use crate::policy::{AddressRule, Permit};
use crate::sandbox::Sandbox;

impl Core {
    /// Dials what the permit permits. Taking the permit by value is what makes a dial without one impossible.
    pub(super) async fn dial(&self, permit: Permit<'_>) -> Result<Upstream<Socket>, Refusal> {
        let destination = permit.destination();
        let rule = permit.address_rule();
        let addresses = match &destination.host {
            Host::Ip(ip) => self.checked(&[*ip], destination.port, &rule)?,
            Host::Name(name) => {
                let found = self.names.lookup(name, &self.measures).await?;
                self.checked(&found, destination.port, &rule)?
            }
        };
        let dialled = race(&addresses, |address| self.attempt(address), monoio::time::sleep).await;
        self.measures.upstream_dialled.increment(1);
        let (side, address) = dialled.map_err(|error| Refusal::dial(&error))?;
        Ok(Upstream::new(side, address))
    }

    /// A connection kept from an earlier request that this permit could have made. It was dialled under another one,
    /// maybe of another rule or policy, so its address is held against this one.
    pub(super) fn reuse<O: Side>(
        &self,
        kept: &Upstreams<O>,
        sandbox: &Arc<Sandbox>,
        permit: &Permit<'_>,
    ) -> Option<Upstream<O>> {
        let upstream = kept.take(sandbox, permit.destination())?;
        self.recheck(upstream.address, permit).is_ok().then_some(upstream)
    }

    /// Holds the address of a connection that was dialled under another policy against this one.
    pub(super) fn recheck(&self, address: SocketAddr, permit: &Permit<'_>) -> Result<(), Refusal> {
        let (ip, port) = (address.ip(), address.port());
        self.guard.load().check(ip, port, |ip, reach| permit.admits(ip, reach))?;
        Ok(())
    }

    /// The addresses in the order of dialling, if all of them may be dialled. One that may not condemns the answer: a
    /// name that leads to the outside and to the inside is how rebinding works.
    fn checked(&self, found: &[IpAddr], port: u16, rule: &AddressRule) -> Result<Vec<SocketAddr>, Refusal> {
        let guard = self.guard.load();
        let check = |ip: &IpAddr| guard.check(*ip, port, |ip, reach| rule.admits(ip, reach));
        // Also those beyond the number that is tried.
        let passed = found.iter().map(|ip| Ok(check(ip)?.address()));
        passed.collect::<Result<Vec<_>, Refused>>().map(interleave).map_err(Refusal::from)
    }

    async fn attempt(&self, address: SocketAddr) -> io::Result<Socket> {
        let within = self.limits.dial;
        match monoio::time::timeout(within, Socket::dial(address)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}
