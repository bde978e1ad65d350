//! From a policy as written to tables that answer in constant time.
//!
//! A destination is looked up in three places: an exact name or address in a hash table, a name in a trie over its
//! labels from the right, and the endpoints that name no host. Each place holds `(port, endpoint)` sorted by port.
//! The cost of a decision grows with the labels of the name and with the endpoints that match this very host and
//! port, not with the size of the policy.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::binaries::{BinaryFacts, BinarySet, Table};
use super::decide::{admits, literal_fits};
use super::host::HostPattern;
use super::model::{Binaries, BinaryPattern, Endpoint, PolicyFile, Ports, RequestPolicy};
use super::trie::{Slots, Trie};
use crate::address::Reach;
use crate::destination::{Destination, Host};

/// A compiled policy: immutable, shared by all workers.
#[derive(Debug)]
pub struct Policy {
    source: Arc<str>,
    names: HashMap<Box<str>, Slots>,
    addresses: HashMap<IpAddr, Slots>,
    wildcards: Trie,
    hostless: Slots,
    /// Endpoints for every host and port.
    everywhere: Vec<EndpointId>,
    rows: Vec<Row>,
    binaries: Table,
}

/// An endpoint's number, in the order of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct EndpointId(u32);

/// What a decision needs of an endpoint first.
#[derive(Debug)]
pub(super) struct Row {
    /// The list of binaries, or none for any program.
    pub(super) list: Option<u32>,
    pub(super) endpoint: Arc<Endpoint>,
}

impl Policy {
    /// Compiles a file's rules. Paths of binaries are taken as they are.
    pub fn compile(file: &PolicyFile) -> Self {
        Self::compile_with(file, &|_| None)
    }

    /// The same, where `links` tells what a binary's path resolves to in the sandbox's view (symlinks): the entry
    /// then stands for both.
    pub fn compile_with(file: &PolicyFile, links: &dyn Fn(&str) -> Option<String>) -> Self {
        let mut lists: Vec<&[BinaryPattern]> = Vec::new();
        let mut numbers: HashMap<&[BinaryPattern], u32> = HashMap::new();
        let mut policy = Self::empty(&file.source);
        for rule in &file.rules {
            let list = match &rule.head.binaries {
                Binaries::Any => None,
                Binaries::Listed(list) => Some(*numbers.entry(list).or_insert_with(|| {
                    lists.push(list);
                    lists.len() as u32 - 1
                })),
            };
            for endpoint in &rule.endpoints {
                policy.add(list, endpoint);
            }
        }
        policy.binaries = Table::new(&lists, links);
        policy.sort();
        policy
    }

    fn empty(source: &Arc<str>) -> Self {
        Self {
            source: Arc::clone(source),
            names: HashMap::new(),
            addresses: HashMap::new(),
            wildcards: Trie::default(),
            hostless: Slots::default(),
            everywhere: Vec::new(),
            rows: Vec::new(),
            binaries: Table::default(),
        }
    }

    fn add(&mut self, list: Option<u32>, endpoint: &Arc<Endpoint>) {
        let id = EndpointId(self.rows.len() as u32);
        self.rows.push(Row { list, endpoint: Arc::clone(endpoint) });
        let Ports::Listed(ports) = &endpoint.ports else { return self.everywhere.push(id) };
        let slots = match &endpoint.host {
            HostPattern::Exact(Host::Name(name)) => self.names.entry(name.clone()).or_default(),
            HostPattern::Exact(Host::Ip(ip)) => self.addresses.entry(*ip).or_default(),
            HostPattern::Wildcard(wildcard) => self.wildcards.slots(wildcard),
            HostPattern::Any => &mut self.hostless,
        };
        slots.add(ports, id);
    }

    fn sort(&mut self) {
        self.names.values_mut().chain(self.addresses.values_mut()).for_each(Slots::sort);
        self.wildcards.sort();
        self.hostless.sort();
    }

    /// The file it was made from, or `open` or `deny`.
    pub fn source(&self) -> &Arc<str> {
        &self.source
    }

    /// Number of endpoints.
    pub fn endpoints(&self) -> usize {
        self.rows.len()
    }

    /// The hosts that are named exactly, in no order.
    pub fn exact_hosts(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(|name| &**name)
    }

    /// The endpoints whose tunnels are looked into, in the order of the file.
    pub fn judged(&self) -> impl Iterator<Item = &Endpoint> {
        self.rows
            .iter()
            .map(|row| &*row.endpoint)
            .filter(|endpoint| endpoint.requests.as_ref().is_some_and(RequestPolicy::judges_tunnels))
    }

    /// Whether a rule names binaries: then a sandbox whose processes cannot be known must not use this policy.
    pub fn names_binaries(&self) -> bool {
        self.rows.iter().any(|row| row.list.is_some())
    }

    /// Whether an entry of `binaries` pins a hash: then the SHA-256 of programs is wanted.
    pub fn pins_hashes(&self) -> bool {
        self.binaries.pins_hashes()
    }

    /// The rules a process comes under; to be kept with the process.
    pub fn classify(&self, facts: &BinaryFacts<'_>) -> BinarySet {
        self.binaries.classify(facts)
    }

    /// Whether a set was made by this policy, or by one with the same lists of binaries.
    pub fn understands(&self, set: &BinarySet) -> bool {
        set.is_of(&self.binaries)
    }

    /// Whether any program may go to the destination at this address: what is left to ask of a connection that nobody
    /// uses.
    pub fn leads_to(&self, destination: &Destination, ip: IpAddr, reach: Reach) -> bool {
        let mut leads = false;
        self.matching(&destination.host, destination.port, |_, row| {
            leads |= literal_fits(&row.endpoint, &destination.host) && admits(&row.endpoint, ip, reach);
        });
        leads
    }

    pub(super) fn row(&self, id: EndpointId) -> Option<&Row> {
        self.rows.get(id.0 as usize)
    }

    /// Visits the endpoints for a host and port.
    pub(super) fn matching(&self, host: &Host, port: u16, mut visit: impl FnMut(EndpointId, &Row)) {
        let mut visit_id = |id: EndpointId| {
            if let Some(row) = self.row(id) {
                visit(id, row);
            }
        };
        self.places(host, &mut |slots| slots.at(port).iter().for_each(|&(_, id)| visit_id(id)));
        self.everywhere.iter().copied().for_each(visit_id);
    }

    /// Visits the endpoints for a host that name a host, whatever the port.
    pub(super) fn naming(&self, host: &Host, mut visit: impl FnMut(&Row)) {
        self.places(host, &mut |slots| {
            for &(_, id) in slots.all() {
                if let Some(row) = self.row(id).filter(|row| row.endpoint.host != HostPattern::Any) {
                    visit(row);
                }
            }
        });
    }

    fn places<'p>(&'p self, host: &Host, visit: &mut impl FnMut(&'p Slots)) {
        match host {
            Host::Name(name) => {
                self.names.get(name).into_iter().for_each(&mut *visit);
                self.wildcards.walk(name, visit);
            }
            Host::Ip(ip) => self.addresses.get(&ip.to_canonical()).into_iter().for_each(&mut *visit),
        }
        visit(&self.hostless);
    }
}
