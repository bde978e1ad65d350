//! The decision: a pure function from a policy and a question to a [`Permit`] or a [`Deny`].
//!
//! Nothing on the way to a plain permit allocates: endpoints are collected in short lists on the stack, and a path is
//! rewritten only when the client's spelling was not canonical.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use smallvec::SmallVec;

use super::binaries::BinarySet;
use super::compile::{EndpointId, Policy, Row};
use super::deny::{Deny, Reason};
use super::host::HostPattern;
use super::model::{Endpoint, Enforcement, RequestPolicy, Sni};
use super::requests::{self, Refusal};
use crate::address::Reach;
use crate::destination::{Destination, Host};

/// The endpoints that speak for a question; more than eight spill to the heap.
pub(super) type Ids = SmallVec<[EndpointId; 8]>;

/// A question.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Where to.
    pub destination: &'a Destination,
    /// Who.
    pub asker: Asker<'a>,
    /// What.
    pub kind: Kind<'a>,
}

/// Who asks, as far as identity could tell.
#[derive(Clone, Copy, Debug)]
pub enum Asker<'a> {
    /// One program. A set that the policy does not [understand](Policy::understands) counts as unknown.
    Known(&'a BinarySet),
    /// Nobody knows, or identity is off.
    Unknown,
    /// Several processes with different programs hold the socket.
    Ambiguous,
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub enum Kind<'a> {
    /// A tunnel.
    Connect,
    /// A request: a forward request, or one inside an inspected tunnel.
    Request(Request<'a>),
}

/// The parts of a request that rules look at, as the client sent them.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// A token; case counts.
    pub method: &'a [u8],
    /// The path in origin form, without the query; `*` for OPTIONS.
    pub path: &'a [u8],
    /// What follows the first `?`.
    pub query: Option<&'a [u8]>,
}

/// The right to dial one destination, and for a request to send it. Only [`decide`] makes one.
#[derive(Debug)]
pub struct Permit<'a> {
    policy: &'a Policy,
    destination: &'a Destination,
    /// The endpoints that allowed; in the order of the file, never empty.
    granted: Ids,
    protocol: Protocol,
    path: Cow<'a, [u8]>,
    audited: Option<Box<Deny>>,
}

/// What travels in the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Bytes that nobody looks at (but for the name in a ClientHello).
    Raw,
    /// HTTP, and each request is to be asked about.
    Http,
}

/// Which addresses a permitted name may resolve to. Owned, so that it can travel to a resolver.
#[derive(Clone, Debug)]
pub struct AddressRule {
    alternatives: SmallVec<[Addresses; 2]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Addresses {
    /// A wildcard: public ones.
    Public,
    /// A host declared by its exact name or address: private ones too.
    Declared,
    /// `allowed_ips`: these, public or private.
    Listed(Arc<[IpNet]>),
}

/// Decides. Constant in the size of the policy; no allocation unless the answer is no, audited, or a path rewritten.
pub fn decide<'a>(policy: &'a Policy, ask: &Ask<'a>) -> Result<Permit<'a>, Box<Deny>> {
    let (matched, reason) = match connection(policy, ask) {
        Matched::Allowed(ids) => (ids, None),
        Matched::Audited(ids, reason) => (ids, Some(reason)),
        Matched::Refused(reason) => return Err(Box::new(Deny::connection(policy, ask, reason))),
    };
    let audited = reason.map(|reason| Box::new(Deny::connection(policy, ask, reason)));
    let has_say = |requests: &RequestPolicy| match ask.kind {
        Kind::Connect => requests.judges_tunnels(),
        Kind::Request(_) => true,
    };
    let judged = matched.iter().any(|&id| requests::of(policy, id).is_some_and(has_say));
    let protocol = if judged { Protocol::Http } else { Protocol::Raw };
    let permit = |granted, path, audited| Permit {
        policy,
        destination: ask.destination,
        granted,
        protocol,
        path,
        audited,
    };
    let request = match ask.kind {
        Kind::Connect => return Ok(permit(matched, Cow::Borrowed(b"".as_slice()), audited)),
        Kind::Request(request) if !judged => {
            return Ok(permit(matched, Cow::Borrowed(request.path), audited));
        }
        Kind::Request(request) => request,
    };
    let deny = |refusal: Refusal| Box::new(Deny::request(policy, ask, &request, refusal));
    let verdict = requests::judge(policy, &matched, &request).map_err(deny)?;
    let audited = audited.or_else(|| verdict.audited.map(deny));
    Ok(permit(verdict.granted, verdict.path, audited))
}

/// How a connection stands, requests aside.
enum Matched {
    Allowed(Ids),
    /// Only the binary does not fit, and these endpoints merely report that.
    Audited(Ids, Reason),
    Refused(Reason),
}

fn connection(policy: &Policy, ask: &Ask<'_>) -> Matched {
    let known = match ask.asker {
        Asker::Known(set) if policy.understands(set) => Some(set),
        _ => None,
    };
    let mut allowed = Ids::new();
    let mut audited = Ids::new();
    let (mut wrong_address, mut wrong_binary) = (false, false);
    let host = &ask.destination.host;
    policy.matching(host, ask.destination.port, |id, row| {
        if !literal_fits(&row.endpoint, host) {
            wrong_address = true;
        } else if binary_fits(row, known) {
            allowed.push(id);
        } else {
            wrong_binary = true;
            if row.endpoint.enforcement == Enforcement::Audit {
                audited.push(id);
            }
        }
    });
    let reason = match ask.asker {
        _ if !wrong_binary && wrong_address => Reason::AddressNotAllowed,
        _ if !wrong_binary => Reason::HostNotAllowed,
        Asker::Known(_) if known.is_some() => Reason::BinaryNotAllowed,
        Asker::Ambiguous => Reason::IdentityAmbiguous,
        _ => Reason::IdentityUnknown,
    };
    if !allowed.is_empty() {
        allowed.sort_unstable();
        return Matched::Allowed(allowed);
    }
    if !audited.is_empty() {
        audited.sort_unstable();
        return Matched::Audited(audited, reason);
    }
    Matched::Refused(match reason {
        Reason::HostNotAllowed => Reason::host_or_port(policy, host),
        reason => reason,
    })
}

/// An address asked for by itself needs no DNS to be held against `allowed_ips`.
pub(super) fn literal_fits(endpoint: &Endpoint, host: &Host) -> bool {
    match host {
        Host::Ip(ip) if !endpoint.allowed_ips.is_empty() => holds(&endpoint.allowed_ips, *ip),
        _ => true,
    }
}

fn binary_fits(row: &Row, known: Option<&BinarySet>) -> bool {
    match row.list {
        None => true,
        Some(list) => known.is_some_and(|set| set.holds(list)),
    }
}

fn holds(nets: &[IpNet], ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    nets.iter().any(|net| net.contains(&ip))
}

impl<'a> Permit<'a> {
    /// What may be dialled.
    pub fn destination(&self) -> &'a Destination {
        self.destination
    }

    /// Whether requests inside are to be asked about.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The first endpoint, in the order of the file, that allowed this.
    pub fn endpoint(&self) -> Option<&'a Arc<Endpoint>> {
        self.endpoints().next()
    }

    /// The name of its rule.
    pub fn rule(&self) -> &'a str {
        self.endpoint().map_or("", |endpoint| &endpoint.rule.name)
    }

    /// The path to send: canonical where requests are judged, as it came where they are not. Empty for a tunnel.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// The path to send, if it is not the one that came.
    pub fn rewritten_path(&self) -> Option<&[u8]> {
        match &self.path {
            Cow::Owned(path) => Some(path),
            Cow::Borrowed(_) => None,
        }
    }

    /// Set when only `enforcement: audit` let this pass: the refusal it would have been.
    pub fn audited(&self) -> Option<&Deny> {
        self.audited.as_deref()
    }

    /// Whether a ClientHello must name the host: unless an endpoint that allowed says otherwise. An address literal
    /// has no name to verify.
    pub fn sni(&self) -> Sni {
        let ignored = self.endpoints().any(|endpoint| endpoint.sni == Sni::Ignore);
        if ignored || self.destination.host.name().is_none() { Sni::Ignore } else { Sni::Verify }
    }

    /// Whether the destination may be reached at an address that its name resolved to.
    pub fn admits(&self, ip: IpAddr, reach: Reach) -> bool {
        self.endpoints().any(|endpoint| admits(endpoint, ip, reach))
    }

    /// The same question to take along.
    pub fn address_rule(&self) -> AddressRule {
        let mut alternatives = SmallVec::new();
        for addresses in self.endpoints().map(|endpoint| Addresses::of(endpoint)) {
            if !alternatives.contains(&addresses) {
                alternatives.push(addresses);
            }
        }
        AddressRule { alternatives }
    }

    fn endpoints(&self) -> impl Iterator<Item = &'a Arc<Endpoint>> + '_ {
        self.granted.iter().filter_map(|&id| self.policy.row(id)).map(|row| &row.endpoint)
    }
}

impl AddressRule {
    /// Whether an address may be dialled.
    pub fn admits(&self, ip: IpAddr, reach: Reach) -> bool {
        self.alternatives.iter().any(|addresses| addresses.admits(ip, reach))
    }
}

/// Whether an endpoint lets an address be dialled that a host resolved to.
pub(super) fn admits(endpoint: &Endpoint, ip: IpAddr, reach: Reach) -> bool {
    Addresses::of(endpoint).admits(ip, reach)
}

impl Addresses {
    fn of(endpoint: &Endpoint) -> Self {
        match endpoint.host {
            _ if !endpoint.allowed_ips.is_empty() => Self::Listed(Arc::clone(&endpoint.allowed_ips)),
            HostPattern::Exact(_) => Self::Declared,
            HostPattern::Wildcard(_) | HostPattern::Any => Self::Public,
        }
    }

    fn admits(&self, ip: IpAddr, reach: Reach) -> bool {
        match self {
            Self::Public => reach == Reach::Public,
            Self::Declared => true,
            Self::Listed(nets) => holds(nets, ip),
        }
    }
}
