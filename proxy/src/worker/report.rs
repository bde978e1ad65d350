//! What a session reports: one event per decision, one at the end of a tunnel.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::Core;
use super::intercept::BrokenOff;
use super::refusal::Refusal;
use super::relay::Flow;
use super::session::Session;
use super::socket::Side;
use super::upstream::Upstream;
use super::watchdog::Cause;
use crate::destination::{Destination, Host};
use crate::event::journal::Urgency;
use crate::event::{Action, Event, Kind, Via};
use crate::http::head::{Method, RequestHead};
use crate::http::reject::Blame;
use crate::measures::Counted;
use crate::policy::{Endpoint, Permit, Sni};

/// What of a permit is left to tell when it has been spent on a dial.
pub(super) struct Granted {
    endpoint: Option<Arc<Endpoint>>,
    /// Why it would have been refused, if only an audit let it pass.
    audited: Option<&'static str>,
    sni: Sni,
}

impl Granted {
    pub(super) fn of(permit: &Permit<'_>) -> Self {
        Self {
            endpoint: permit.endpoint().cloned(),
            audited: permit.audited().map(|deny| deny.reason.as_str()),
            sni: permit.sni(),
        }
    }

    /// Whether TLS in the tunnel must name its host.
    pub(super) fn verifies_sni(&self) -> bool {
        self.sni == Sni::Verify
    }

    fn rule(&self) -> Option<&str> {
        self.endpoint.as_ref().map(|endpoint| &*endpoint.rule.name)
    }

    fn action(&self) -> Action {
        if self.audited.is_some() { Action::Audited } else { Action::Allowed }
    }
}

impl Core {
    /// Somebody who belongs to no sandbox was turned away.
    pub(super) fn tell_unknown_source(&self, peer: SocketAddr) {
        crate::measures::unknown_source();
        let detail = format!("no sandbox has the source address {}", peer.ip());
        let mut event = Event::now(Kind::ConnectDenied);
        event.via = Some(Via::Proxy);
        event.action = Some(Action::Denied);
        event.proto = Some("tcp");
        event.reason = Some("unknown_source");
        event.src_port = Some(peer.port());
        event.status = Some(403);
        event.detail = Some(&detail);
        event.hint = Some("add a sandbox with this source to the configuration, or keep the client away");
        self.reporter.report(&event, Urgency::Now);
    }
}

impl<C> Session<C> {
    /// A CONNECT was granted and dialled.
    pub(super) fn tell_connect(&self, destination: &Destination, address: SocketAddr, granted: &Granted) {
        self.sandbox.measures().connects_allowed.increment(1);
        let host = text_of(&destination.host);
        let mut event = self.event(Kind::ConnectAllowed, destination, &host);
        event.dst_ip = Some(address.ip());
        event.action = Some(granted.action());
        event.rule = granted.rule();
        event.reason = granted.audited.or(Some("policy"));
        self.sandbox.reporter().report(&event, Urgency::Lazy);
    }

    /// A client broke off the TLS that was to be looked into.
    pub(super) fn tell_broken_off(&self, destination: &Destination, granted: &Granted, how: &BrokenOff) {
        let host = text_of(&destination.host);
        let exe = self.caller.as_ref().and_then(super::who::Caller::exe).unwrap_or("the program");
        let hint = how.certificate.then(|| {
            format!(
                "{exe} did not accept the certificate of this sandbox' own authority: it does not read the usual trust \
                 variables (SSL_CERT_FILE and others), or it pins the certificate of {host}; for a program that pins, \
                 the operator can give {destination} an endpoint with tls: skip and without protocol, access and rules"
            )
        });
        let mut event = self.event(Kind::TlsFailed, destination, &host);
        event.action = Some(Action::Denied);
        event.rule = granted.rule();
        event.reason = Some(how.reason);
        event.detail = Some(&how.detail);
        event.hint = hint.as_deref();
        self.sandbox.reporter().report(&event, Urgency::Now);
    }

    /// A request was granted and answered with `status`; none when the connection ended before.
    pub(super) fn tell_request(
        &self,
        destination: &Destination,
        address: SocketAddr,
        granted: &Granted,
        request: (&RequestHead, &[u8]),
        status: Option<u16>,
    ) {
        self.sandbox.measures().requests_allowed.increment(1);
        let host = text_of(&destination.host);
        let mut event = self.event(Kind::RequestAllowed, destination, &host);
        event.dst_ip = Some(address.ip());
        event.action = Some(granted.action());
        event.rule = granted.rule();
        event.reason = granted.audited.or(Some("policy"));
        event.method = std::str::from_utf8(request.0.method_name(request.1)).ok();
        event.path = path_of(request);
        event.status = status;
        event.detail = status.is_none().then_some("the connection ended before the answer");
        self.sandbox.reporter().report(&event, Urgency::Lazy);
    }

    /// A tunnel has ended.
    pub(super) fn tell_closed(
        &self,
        destination: &Destination,
        upstream: &Upstream<impl Side>,
        granted: &Granted,
        (up, down): (&Flow<'_>, &Flow<'_>),
        began: Instant,
        failure: Option<&io::Error>,
    ) {
        let host = text_of(&destination.host);
        let detail = self.watch.standing.verdict().or(failure.map(ToString::to_string));
        let mut event = self.event(Kind::TunnelClosed, destination, &host);
        event.dst_ip = Some(upstream.address.ip());
        event.rule = granted.rule();
        event.reason = Some(match (self.watch.cause(), failure.map(io::Error::kind)) {
            (Some(cause), _) => cause.reason(),
            (None, None) => "eof",
            (None, Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)) => "reset",
            (None, Some(_)) => "error",
        });
        event.detail = detail.as_deref();
        event.bytes_up = Some(up.octets());
        event.bytes_down = Some(down.octets());
        event.duration_ms = Some(u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX));
        self.sandbox.reporter().report(&event, Urgency::Lazy);
    }

    /// A tunnel whose requests were judged has been ended by a new policy.
    pub(super) fn tell_ended(&self, destination: &Destination) {
        let detail = self.watch.standing.verdict();
        self.tell_ended_for(destination, Cause::PolicyChanged.reason(), detail.as_deref());
    }

    /// A tunnel whose requests were judged has been ended by us, for a reason that no refused request tells.
    pub(super) fn tell_ended_for(
        &self,
        destination: &Destination,
        reason: &'static str,
        detail: Option<&str>,
    ) {
        let host = text_of(&destination.host);
        let mut event = self.event(Kind::TunnelClosed, destination, &host);
        event.reason = Some(reason);
        event.detail = detail;
        self.sandbox.reporter().report(&event, Urgency::Lazy);
    }

    /// A CONNECT, a request or a head was refused.
    pub(super) fn tell_refused(
        &self,
        destination: Option<&Destination>,
        method: Option<Method>,
        request: Option<(&RequestHead, &[u8])>,
        refusal: &Refusal,
        hint: Option<&str>,
    ) {
        let reason = refusal.reject.label();
        let tunnel = method == Some(Method::Connect);
        let (kind, counted) = if tunnel {
            (Kind::ConnectDenied, Counted::Connection)
        } else {
            (Kind::RequestDenied, Counted::Request)
        };
        self.sandbox.measures().denied(counted, reason);
        let host = destination.map(|destination| text_of(&destination.host));
        let mut event = match (destination, &host) {
            (Some(destination), Some(host)) => self.event(kind, destination, host),
            _ => self.event_of_client(kind),
        };
        let policy = refusal.reject.blame() == Blame::Policy;
        let trail = policy.then(|| match &self.caller {
            Some(caller) => caller.trail(),
            None if self.sandbox.resolver().is_none() => "not sought (identity: off)".to_owned(),
            None => "not sought: refused before".to_owned(),
        });
        let misses = refusal.deny.as_ref().map(|deny| deny.near_misses().collect::<Vec<_>>().join("; "));
        event.action = Some(Action::Denied);
        event.reason = Some(reason);
        event.status = Some(refusal.reject.status());
        event.method = request.and_then(|(head, octets)| std::str::from_utf8(head.method_name(octets)).ok());
        event.path = request.and_then(path_of);
        event.rule = refusal
            .deny
            .as_ref()
            .and_then(|deny| deny.endpoint.as_ref())
            .map(|endpoint| &*endpoint.rule.name);
        event.detail = refusal.detail.as_deref().or(misses.as_deref()).filter(|text| !text.is_empty());
        event.hint = hint;
        event.identity_trail = trail.as_deref();
        self.sandbox.reporter().report(&event, Urgency::Now);
    }

    fn event<'a>(&'a self, kind: Kind, destination: &Destination, host: &'a str) -> Event<'a> {
        let mut event = self.event_of_client(kind);
        event.dst_host = Some(host);
        event.dst_port = Some(destination.port);
        event
    }

    fn event_of_client(&self, kind: Kind) -> Event<'_> {
        let mut event = Event::now(kind);
        event.sandbox = Some(self.sandbox.name());
        event.via = Some(Via::Proxy);
        event.proto = Some("tcp");
        event.src_port = Some(self.peer.port());
        if let Some(caller) = &self.caller {
            event.process = caller.view();
            event.uid = caller.uid();
            event.identity = Some(caller.source());
        }
        event
    }
}

/// The text of a host for an event: a name is borrowed, an address written in place.
enum HostText<'a> {
    Name(&'a str),
    Address { octets: [u8; ADDRESS_OCTETS], length: usize },
}

/// The longest an address gets: IPv6 with an IPv4 tail.
const ADDRESS_OCTETS: usize = 45;

impl std::ops::Deref for HostText<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Name(name) => name,
            Self::Address { octets, length } => {
                octets.get(..*length).and_then(|octets| std::str::from_utf8(octets).ok()).unwrap_or_default()
            }
        }
    }
}

impl std::fmt::Display for HostText<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self)
    }
}

fn text_of(host: &Host) -> HostText<'_> {
    match host {
        Host::Name(name) => HostText::Name(name),
        Host::Ip(ip) => {
            let mut octets = [0; ADDRESS_OCTETS];
            let mut left = octets.as_mut_slice();
            let _ = write!(left, "{ip}");
            let length = ADDRESS_OCTETS - left.len();
            HostText::Address { octets, length }
        }
    }
}

/// The path of a request target, without the query, which may hold secrets.
fn path_of<'a>((head, octets): (&RequestHead, &'a [u8])) -> Option<&'a str> {
    std::str::from_utf8(head.target(octets)).ok().map(path_in)
}

fn path_in(target: &str) -> &str {
    let target = target.split_once('?').map_or(target, |(path, _)| path);
    if target.starts_with('/') {
        return target;
    }
    match target.split_once("://") {
        Some((_, rest)) => rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/"),
        None => target,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_shown_whole_and_without_its_query() {
        for (target, path) in [
            ("http://a.example/b?secret", "/b"),
            ("http://a.example", "/"),
            ("http://a.example?x=/y", "/"),
            ("/admin/x://y/harmless", "/admin/x://y/harmless"),
            ("/a?b=http://c/d", "/a"),
            ("*", "*"),
        ] {
            assert_eq!(path_in(target), path, "{target}");
        }
    }
}
