//! The fence on the host's side of a sandbox's links.
//!
//! A made sandbox has no link. An attached one (a container with a veth) or an external one (a microVM's tap) has, and
//! a workload that is root inside may flush the inner fence, add addresses, routes, tunnels or bridges. All of that
//! has to pass its link, and there, before the host's bridge, routing, connection tracking or any other rule sees
//! the packet, this fence drops what is not the one thing admitted: TCP from the pinned source to the proxy.
//!
//! ```text
//! from_<sandbox>_<n>   every packet that arrives by that link: jump admit; say where the pinned source is → accept;
//!                      jump chatter; count; log, as far as the limit goes; drop
//! admit                (link, source, destination, port) in a set → accept; ARP and neighbour solicitation of a
//!                      pinned source → accept
//! chatter              what the guest's kernel sends by itself → count apart, drop
//! ```
//!
//! The kernel finds a link's chain by the link and looks tuples up by hash, so the cost of a packet does not depend
//! on how many sandboxes there are. If a daemon dies, the fence stays.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use nftables::expr::{Expression, MetaKey};
use nftables::schema::SetType;
use nftables::types::NfFamily;

use super::inner::neighbour_chatter;
use super::rules::{
    FenceTable, LogLimit, TableBuilder, accept, address_is, advertised_is, arrival_link, count, drop,
    field_is, jump, log, meta_is, payload, protocol_is, removal, text, tuple_is_in,
};
use super::{HostCounterReader, LogPrefix, Traffic, nft};
use crate::{Error, LogToken, SandboxName};

pub(super) const TABLE: &str = "sluice_host";

/// Made and removed in one transaction.
const TRIAL_TABLE: &str = "sluice_host_trial";

/// Before everything else at the ingress hook.
const PRIORITY: i32 = -500;

/// The name of a link on the host: 1 to 15 printable ASCII characters without `/`, space or quotes (IFNAMSIZ less
/// its NUL).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkName(String);

impl FromStr for LinkName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        // A trailing `*` is a wildcard to nft; the kernel itself forbids `/`, `:` and blanks.
        let allowed =
            |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'"' | b'\\' | b'*');
        let well_formed = (1..=15).contains(&name.len()) && name.bytes().all(allowed) && name != "lo";
        if well_formed { Ok(Self(name.to_owned())) } else { Err(Error::LinkName(name.to_owned())) }
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

/// What may come out of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admit {
    /// Nothing: the proxy listens inside (attached sandboxes).
    Nothing,
    /// TCP from this source to the proxy's listener on the host, and what it takes to find the host on the link
    /// (external sandboxes). Both addresses are of one family.
    Proxy {
        /// The sandbox's only address.
        source: IpAddr,
        /// Where the proxy listens on the host.
        listen: SocketAddr,
    },
}

/// A link, whose it is, and what may come out of it.
#[derive(Clone, Debug)]
pub struct GuardedLink {
    /// The sandbox.
    pub name: SandboxName,
    /// The secret in its log lines.
    pub token: LogToken,
    /// The host's end of the link.
    pub link: LinkName,
    /// What may come out.
    pub admit: Admit,
}

/// The host fence as a value: all guarded links of the host.
#[derive(Clone, Debug, Default)]
pub struct HostFence {
    /// The links; each at most once.
    pub links: Vec<GuardedLink>,
    /// How many lines each link may write.
    pub limit: LogLimit,
}

impl HostFence {
    /// Makes the kernel's host fence exactly this one, in one transaction in the calling thread's namespace, and
    /// reads it back. Loading the same twice is fine. The counts of sandboxes that stay go on; a packet that is dropped
    /// in the very moment between may be missing from them.
    pub fn load(&self) -> Result<(), Error> {
        let table = self.table(TABLE, &HostCounterReader::open()?.read()?);
        nft::load_into_own(&table, &table.replace())
    }

    /// Removes the host fence; none there is fine.
    pub fn remove() -> Result<(), Error> {
        nft::run_transaction(&removal(NfFamily::NetDev, TABLE), "remove the host fence")
    }

    /// Reads the host fence back from the kernel; an error if it is not this one.
    pub fn check(&self) -> Result<(), Error> {
        nft::check_own(&self.table(TABLE, &HashMap::new()))
    }

    /// Whether the kernel would take this fence, which is not loaded: of several links one may be of a kind that has no
    /// ingress hook.
    pub fn try_out(&self) -> Result<(), Error> {
        let table = self.table(TRIAL_TABLE, &HashMap::new());
        nft::run_transaction(&table.come_and_go(), "try the host fence out")
    }

    fn table(&self, name: &'static str, counted: &HashMap<String, Traffic>) -> FenceTable {
        let mut table = TableBuilder::new(NfFamily::NetDev, name);
        self.add_sets(&mut table);
        table.counter("kernel_noise");
        table.plain_chain("admit");
        add_admission(&mut table);
        table.plain_chain("chatter");
        add_chatter(&mut table);

        let names: std::collections::BTreeSet<&SandboxName> =
            self.links.iter().map(|link| &link.name).collect();
        for name in names {
            let before = counted.get(name.as_str()).copied().unwrap_or_default();
            table.counter_from(format!("dropped_{name}"), before);
        }
        for (number, guarded) in self.links.iter().enumerate() {
            let chain = format!("from_{}_{number}", guarded.name);
            let line = log(&LogPrefix::host(&guarded.name, guarded.token), self.limit.into);
            table.ingress_chain(chain.clone(), guarded.link.0.clone(), PRIORITY);
            table.rule(chain.clone(), "the one thing admitted", [jump("admit")]);
            if let Admit::Proxy { source: IpAddr::V6(source), listen: SocketAddr::V6(_) } = guarded.admit {
                let advertisement = field_is("icmpv6", "type", text("nd-neighbor-advert"));
                let of_itself = [address_is("saddr", source), advertisement, advertised_is(source), accept()];
                table.rule(chain.clone(), "being found by the host", of_itself);
            }
            table.rule(chain.clone(), "what is nobody's violation", [jump("chatter")]);
            table.rule(chain.clone(), "count exactly", [count(format!("dropped_{}", guarded.name))]);
            table.rule(
                chain.clone(),
                "log within the limit",
                self.limit.statement().into_iter().chain([line]),
            );
            table.rule(chain, "drop", [drop()]);
        }
        table.finish()
    }

    fn add_sets(&self, table: &mut TableBuilder) {
        const FLOW4: &[SetType] =
            &[SetType::Ifname, SetType::Ipv4Addr, SetType::Ipv4Addr, SetType::InetService];
        const FLOW6: &[SetType] =
            &[SetType::Ifname, SetType::Ipv6Addr, SetType::Ipv6Addr, SetType::InetService];
        const SOURCE4: &[SetType] = &[SetType::Ifname, SetType::Ipv4Addr];
        const SOURCE6: &[SetType] = &[SetType::Ifname, SetType::Ipv6Addr];
        table.set(
            "flow4",
            FLOW4,
            self.admitted(true).map(|(link, source, listen)| flow(link, source, listen)),
        );
        table.set(
            "flow6",
            FLOW6,
            self.admitted(false).map(|(link, source, listen)| flow(link, source, listen)),
        );
        table.set("source4", SOURCE4, self.admitted(true).map(|(link, source, _)| pinned(link, source)));
        table.set("source6", SOURCE6, self.admitted(false).map(|(link, source, _)| pinned(link, source)));
    }

    /// The links that admit the proxy, of one family. A source and a listener of different families admit nothing.
    fn admitted(&self, ipv4: bool) -> impl Iterator<Item = (&LinkName, IpAddr, SocketAddr)> {
        self.links.iter().filter_map(move |guarded| match guarded.admit {
            Admit::Proxy { source, listen } if source.is_ipv4() == ipv4 && listen.is_ipv4() == ipv4 => {
                Some((&guarded.link, source, listen))
            }
            _ => None,
        })
    }
}

fn add_admission(table: &mut TableBuilder) {
    for (family, flows) in [("ip", "@flow4"), ("ip6", "@flow6")] {
        let fields =
            [arrival_link(), payload(family, "saddr"), payload(family, "daddr"), payload("tcp", "dport")];
        table.rule("admit", "to the proxy", [tuple_is_in(fields, flows), accept()]);
    }
    let arp_source = [arrival_link(), payload("arp", "saddr ip")];
    table.rule("admit", "finding the host", [tuple_is_in(arp_source, "@source4"), accept()]);
    // An advertisement may speak of any address, whatever its source: it is judged in the link's own chain.
    let solicitation = field_is("icmpv6", "type", text("nd-neighbor-solicit"));
    let source = [arrival_link(), payload("ip6", "saddr")];
    table.rule("admit", "finding the host", [tuple_is_in(source, "@source6"), solicitation, accept()]);
}

/// What the kernel behind any link sends by itself: dropped as well, but nobody's violation and never logged. Here,
/// unlike inside, nothing tells whether a process forged it.
fn add_chatter(table: &mut TableBuilder) {
    for chatter in [neighbour_chatter(), protocol_is("igmp"), meta_is(MetaKey::Protocol, "arp")] {
        table.rule("chatter", "chatter of a kernel", [chatter, count("kernel_noise"), drop()]);
    }
}

fn flow(link: &LinkName, source: IpAddr, listen: SocketAddr) -> Vec<Expression<'static>> {
    let mut tuple = pinned(link, source);
    tuple.extend([text(listen.ip().to_string()), Expression::Number(listen.port().into())]);
    tuple
}

fn pinned(link: &LinkName, source: IpAddr) -> Vec<Expression<'static>> {
    vec![text(link.0.clone()), text(source.to_string())]
}

#[cfg(test)]
mod tests {
    use super::LinkName;

    #[test]
    fn only_what_can_name_one_link_is_taken() {
        for good in ["eth0", "veth12ab34cd", "tap-vm_7", "a", "br0.100"] {
            assert!(good.parse::<LinkName>().is_ok(), "{good:?} was refused");
        }
        for bad in ["", "lo", "veth*", "a/b", "a b", "a\"b", "abcdefghijklmnop", "é"] {
            assert!(bad.parse::<LinkName>().is_err(), "{bad:?} was taken");
        }
    }
}
