//! The fence inside a sandbox's namespace.
//!
//! ```text
//! output   to the proxy → accept, to any local address → accept, everything else → refuse
//! forward  → refuse (a sandbox is no router; with forwarding off nothing ever comes here)
//! input    from lo → accept, everything else → drop (a made sandbox has only lo)
//! refuse   where there are links: the kernel's own chatter → count, drop; the rest by protocol
//! refuse_{tcp,udp,icmp,other}   count; log, as far as the limit goes; reject
//! ```
//!
//! Destinations decide, not links: with the default route on `lo`, everything leaves by `lo`. Local destinations
//! also cover the answers of servers inside, so no state is needed.

use std::net::IpAddr;

use nftables::expr::MetaKey;
use nftables::stmt::Statement;
use nftables::types::{NfFamily, NfHook};

use super::rules::{
    FenceTable, LogLimit, TableBuilder, accept, any_of, count, drop, field_is, goto, log, meta_is,
    protocol_is, reject_as_prohibited, reject_with_reset, removal, sent_by_a_process, text, to_local_address,
};
use super::{LogPrefix, nft};
use crate::Error;

pub(super) const TABLE: &str = "sluice";

/// What nft calls `filter`: after DNAT (-100), so the destination judged is the one the packet goes to.
const PRIORITY: i32 = 0;

/// The protocols that are told apart, in the order of their rules: chain, counter of refusals, reaction.
const PROTOCOLS: [(&str, &str, &str); 4] = [
    ("tcp", "refuse_tcp", "refused_tcp"),
    ("udp", "refuse_udp", "refused_udp"),
    ("icmp", "refuse_icmp", "refused_icmp"),
    ("other", "refuse_other", "refused_other"),
];

/// The inner fence as a value.
#[derive(Debug)]
pub struct InnerFence {
    /// The proxy's address inside, whatever the port: nothing else listens there.
    pub proxy: IpAddr,
    /// How its log lines begin.
    pub prefix: LogPrefix,
    /// How many lines it may write.
    pub limit: LogLimit,
    /// Whether the namespace has links besides `lo`, on which the kernel itself sends (neighbour discovery,
    /// multicast membership). On `lo` it never does, so whatever looks like it is a process's attempt.
    pub has_links: bool,
}

impl InnerFence {
    /// Loads the fence into the calling thread's namespace, which has none, and reads it back.
    pub(crate) fn load_into_own(&self) -> Result<(), Error> {
        let table = self.table();
        nft::load_into_own(&table, &table.create())
    }

    /// Loads the fence into the calling thread's namespace in place of one that may be there, without a moment
    /// in between, and reads it back.
    pub(crate) fn replace_in_own(&self) -> Result<(), Error> {
        let table = self.table();
        nft::load_into_own(&table, &table.replace())
    }

    /// Reads the fence of the calling thread's namespace back; an error if it is not this one.
    pub(crate) fn check_own(&self) -> Result<(), Error> {
        nft::check_own(&self.table())
    }

    fn table(&self) -> FenceTable {
        let mut table = TableBuilder::new(NfFamily::INet, TABLE);
        for (_, _, counter) in PROTOCOLS {
            table.counter(counter);
        }
        table.counter("kernel_noise");
        table.counter("logged");
        for (_, chain, _) in PROTOCOLS {
            table.plain_chain(chain);
        }
        table.plain_chain("refuse");
        table.base_chain("output", NfHook::Output, PRIORITY);
        table.base_chain("forward", NfHook::Forward, PRIORITY);
        table.base_chain("input", NfHook::Input, PRIORITY);

        self.add_hooks(&mut table);
        if self.has_links {
            add_kernel_chatter(&mut table);
        }
        add_sorting(&mut table);
        for (protocol, chain, counter) in PROTOCOLS {
            table.rule(chain, "count exactly", [count(counter)]);
            let logged = [count("logged"), log(&self.prefix, self.limit.into)];
            table.rule(chain, "log within the limit", self.limit.statement().into_iter().chain(logged));
            table.rule(chain, "refuse at once", refuse(protocol));
        }
        table.finish()
    }

    fn add_hooks(&self, table: &mut TableBuilder) {
        let family = if self.proxy.is_ipv4() { "ip" } else { "ip6" };
        let to_proxy = field_is(family, "daddr", text(self.proxy.to_string()));
        // Most packets by far, so first. By lo: should the address be lost, it must not lead elsewhere.
        table.rule("output", "to and from the proxy", [meta_is(MetaKey::Oif, "lo"), to_proxy, accept()]);
        table.rule("output", "to and from servers inside", [to_local_address(), accept()]);
        table.rule("output", "everything else", [goto("refuse")]);
        table.rule("forward", "a sandbox is no router", [goto("refuse")]);
        table.rule("input", "what was sent inside", [meta_is(MetaKey::Iif, "lo"), accept()]);
    }
}

/// How a protocol is told that it may not: TCP by a reset, so that connect(2) fails with ECONNREFUSED; others by an
/// ICMP message and, as the packet is dropped in the sender's own call, by EPERM.
fn refuse(protocol: &'static str) -> Vec<Statement<'static>> {
    match protocol {
        // nft wants the protocol said where a reset is sent, and would add it itself.
        "tcp" => vec![protocol_is("tcp"), reject_with_reset()],
        _ => vec![reject_as_prohibited()],
    }
}

/// Sets aside what the kernel sends by itself: dropped and counted, but nobody's attempt and never logged.
fn add_kernel_chatter(table: &mut TableBuilder) {
    // What a process sends is an attempt, even if it looks like chatter. (Asking for the owner makes nft look up
    // user names, which takes it milliseconds; another reason to do without where there is only lo.)
    let igmp = || protocol_is("igmp");
    table.rule(
        "refuse",
        "chatter of a process is none",
        [neighbour_chatter(), sent_by_a_process(), goto("refuse_icmp")],
    );
    table.rule("refuse", "the kernel's IPv6 chatter", [neighbour_chatter(), count("kernel_noise"), drop()]);
    table.rule(
        "refuse",
        "reports of a process are none",
        [igmp(), sent_by_a_process(), goto("refuse_other")],
    );
    table.rule("refuse", "the kernel's membership reports", [igmp(), count("kernel_noise"), drop()]);
}

/// Sorts what is refused by protocol.
fn add_sorting(table: &mut TableBuilder) {
    table.rule("refuse", "tcp", [protocol_is("tcp"), goto("refuse_tcp")]);
    table.rule("refuse", "udp", [protocol_is("udp"), goto("refuse_udp")]);
    table.rule("refuse", "icmp", [protocol_is("icmp"), goto("refuse_icmp")]);
    table.rule("refuse", "icmpv6", [protocol_is("ipv6-icmp"), goto("refuse_icmp")]);
    table.rule("refuse", "other protocols", [goto("refuse_other")]);
}

/// Neighbour and router discovery and multicast membership of IPv6, which the kernel sends by itself on any link.
pub(super) fn neighbour_chatter() -> Statement<'static> {
    let types = [
        "mld-listener-report",
        "mld-listener-done",
        "nd-router-solicit",
        "nd-neighbor-solicit",
        "nd-neighbor-advert",
        "mld2-listener-report",
    ];
    field_is("icmpv6", "type", any_of(types))
}

/// Removes the inner fence from the calling thread's namespace; none there is fine.
pub(crate) fn remove_from_own() -> Result<(), Error> {
    nft::run_transaction(&removal(NfFamily::INet, TABLE), "remove the inner fence")
}
