//! CONNECT: decide, dial, answer, and raw bytes from then on; or requests, where the policy wants to judge them.

use std::io;
use std::time::Duration;

use super::body::discard;
use super::buffers::Buffer;
use super::intercept::Opening;
use super::leaves::Reservation;
use super::refusal::Refusal;
use super::relay::{Flow, Patience, Vigil, pump};
use super::report::Granted;
use super::screen::{ALERT, Screen};
use super::session::{Next, Received, Session};
use super::socket::{Side, Socket};
use super::upstream::{Upstream, Upstreams};
use super::watchdog::{Aim, Cause};
use crate::destination::Destination;
use crate::http::head::Method;
use crate::http::reject::Reject;
use crate::policy::{self, Ask, Protocol};

/// The answer to a CONNECT that was granted: no field frames a body it does not have (RFC 9110 section 9.3.6).
const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// What becomes of a tunnel that was granted.
enum Way {
    /// Bytes that nobody looks at.
    Raw(Upstream<Socket>),
    /// Requests.
    Judged(Judged),
}

/// A tunnel whose requests are judged.
struct Judged {
    /// What was dialled, unless a connection was there already.
    upstream: Option<Upstream<Socket>>,
    /// The price of a certificate, in a sandbox whose TLS can be looked into.
    reservation: Option<Reservation>,
}

impl Session<Socket> {
    /// Serves a CONNECT. A refused one ends the connection (RFC 9931).
    pub(super) async fn connect(&mut self, mut received: Received, destination: Destination) -> Next {
        let (way, granted) = match self.open(&received, &destination).await {
            Ok(opened) => opened,
            Err(refusal) => return self.refuse_tunnel(&destination, refusal).await,
        };
        if self.client.write_all(ESTABLISHED).await.is_err() {
            return Next::Close;
        }
        discard(&mut received.inbox, 0..received.head.len);
        match way {
            Way::Raw(upstream) => self.tunnel(received, &destination, upstream, &granted).await,
            // A raw tunnel is not to pay for the room these need.
            Way::Judged(way) => Box::pin(self.look_inside(received, &destination, way, &granted)).await,
        }
    }

    /// Requests that are judged, in plaintext or inside TLS: the client's first octets tell.
    async fn look_inside(
        &mut self,
        received: Received,
        destination: &Destination,
        way: Judged,
        granted: &Granted,
    ) -> Next {
        let Judged { upstream, reservation } = way;
        let kept = |pool: &Upstreams<Socket>, upstream: Option<Upstream<Socket>>| {
            if let Some(upstream) = upstream {
                pool.keep(&self.sandbox, destination, upstream);
            }
        };
        let Some((interception, reservation)) = self.sandbox.interception().cloned().zip(reservation) else {
            kept(&self.core.upstreams, upstream);
            return self.serve_tunnel(Some(received.inbox), destination).await;
        };
        match self.opening(received.inbox).await {
            Opening::Nothing => {
                if self.watch.cause() == Some(Cause::PolicyChanged) {
                    self.tell_ended(destination);
                }
                Next::Close
            }
            Opening::Plain(inbox) => {
                drop(reservation);
                kept(&self.core.upstreams, upstream);
                self.serve_tunnel(inbox, destination).await
            }
            Opening::Tls(hello, early) => {
                kept(&self.core.dialled, upstream);
                let opening = (hello, early);
                let inside = self.intercept(&interception, destination, granted, opening, reservation);
                Box::pin(inside).await
            }
        }
    }

    /// Decides and dials.
    async fn open(
        &mut self,
        received: &Received,
        destination: &Destination,
    ) -> Result<(Way, Granted), Refusal> {
        let mut version = self.sandbox.policy_version();
        let policy = self.sandbox.policy_now();
        self.identify(&policy).await;
        self.within_rate()?;
        if self.core.pseudonym.is_in(received.head.fields(&received.inbox)) {
            return Err(Reject::Loop.into());
        }
        let ask = Ask { destination, asker: self.asker(), kind: policy::Kind::Connect };
        let permit = self.core.decide(&policy, &ask)?;
        let (mut granted, mut protocol) = (Granted::of(&permit), permit.protocol());
        self.watch.arm(Duration::ZERO, Aim::Both);
        let mut reservation = self.reserve(protocol, destination)?;
        // An origin that is connected to already need not be dialled to see whether it can be.
        let kept = match protocol {
            Protocol::Http => self.core.reuse(&self.core.tls_upstreams, &self.sandbox, &permit),
            Protocol::Raw => None,
        };
        let (mut upstream, mut address) = if let Some(kept) = kept {
            let address = kept.address;
            self.core.tls_upstreams.keep(&self.sandbox, destination, kept);
            (None, address)
        } else {
            let dialled = self.core.dial(permit).await?;
            let address = dialled.address;
            (Some(dialled), address)
        };
        // A policy that came while the name was looked up and dialled has its say before anything flows.
        while version != self.sandbox.policy_version() {
            version = self.sandbox.policy_version();
            let policy = self.sandbox.policy_now();
            self.identify(&policy).await;
            let ask = Ask { destination, asker: self.asker(), kind: policy::Kind::Connect };
            let permit = self.core.decide(&policy, &ask)?;
            self.core.recheck(address, &permit)?;
            (granted, protocol) = (Granted::of(&permit), permit.protocol());
            if protocol == Protocol::Raw && upstream.is_none() {
                let dialled = self.core.dial(permit).await?;
                address = dialled.address;
                upstream = Some(dialled);
            }
        }
        let way = match (protocol, upstream) {
            (Protocol::Raw, Some(upstream)) => {
                self.watch.standing.tunnel(version, destination, address, granted.verifies_sni());
                Way::Raw(upstream)
            }
            (_, upstream) => {
                self.watch.standing.inspected(version, destination, address);
                if reservation.is_none() {
                    reservation = self.reserve(protocol, destination)?;
                }
                Way::Judged(Judged { upstream, reservation })
            }
        };
        self.tell_connect(destination, address, &granted);
        self.core.measures.connect_duration.record(received.at.elapsed().as_secs_f64());
        Ok((way, granted))
    }

    /// Sets the price of a certificate aside for a tunnel that may have to be looked into.
    fn reserve(&self, protocol: Protocol, destination: &Destination) -> Result<Option<Reservation>, Refusal> {
        match self.sandbox.interception() {
            Some(interception) if protocol == Protocol::Http => {
                Ok(Some(self.core.leaves.reserve(interception, &destination.host)?))
            }
            _ => Ok(None),
        }
    }

    /// Raw bytes both ways until both sides have ended or one has failed.
    async fn tunnel(
        &self,
        received: Received,
        destination: &Destination,
        upstream: Upstream<Socket>,
        granted: &Granted,
    ) -> Next {
        let (up, down) = self.flows();
        let screen = granted.verifies_sni().then(|| Screen::new(&destination.host));
        let early = (Some(received.inbox), None);
        let outcome = self.relay(early, &upstream, (&up, &down), screen.as_ref()).await;
        let refused = screen.as_ref().and_then(Screen::verdict);
        if let Some(reject) = refused {
            let refusal = Refusal::from(reject);
            self.tell_refused(
                Some(destination),
                Some(Method::Connect),
                None,
                &refusal,
                refusal.hint(self, Some(destination)).as_deref(),
            );
            let _ = self.client.try_write(&ALERT);
        }
        self.tell_closed(destination, &upstream, granted, (&up, &down), received.at, outcome.as_ref().err());
        if refused.is_some() { Next::Linger } else { Next::Close }
    }
}

impl<C: Side> Session<C> {
    /// The relay itself. `early` is what was read of the client and of the origin before: it goes first.
    pub(super) async fn relay(
        &self,
        early: (Option<Buffer>, Option<Buffer>),
        upstream: &Upstream<impl Side>,
        flows: (&Flow<'_>, &Flow<'_>),
        screen: Option<&Screen<'_>>,
    ) -> io::Result<()> {
        let limits = &self.core.limits;
        let patience = Patience { idle: limits.idle_tunnel, half_closed: limits.half_closed_linger };
        let vigil = Vigil::new(&self.watch, patience);
        self.watch.set_upstream(Some(&upstream.side));
        self.watch.is_tunnel();
        let (client, origin) = (&self.client, &upstream.side);
        let up = async {
            let early = early.0.filter(|early| !early.is_empty());
            let early = match screen {
                Some(screen) => self.screen(screen, early).await?,
                None => early,
            };
            self.direction(early, client, origin, flows.0, &vigil).await
        };
        let down = self.direction(early.1, origin, client, flows.1, &vigil);
        let outcome = monoio::try_join!(up, down);
        if outcome.is_err() {
            // Whoever still listens learns that the rest is missing.
            if screen.and_then(Screen::verdict).is_none() {
                self.client.reset_on_close();
            }
            upstream.side.reset_on_close();
        }
        self.watch.set_upstream(None);
        outcome.map(drop)
    }

    async fn direction(
        &self,
        early: Option<Buffer>,
        from: &impl Side,
        to: &impl Side,
        flow: &Flow<'_>,
        vigil: &Vigil<'_>,
    ) -> io::Result<()> {
        // A tunnel holds no buffer from here on.
        if let Some(early) = early {
            to.write_all(&early).await?;
            flow.add_copied(early.len());
        }
        pump(&self.core.means, from, to, flow, vigil).await
    }
}

impl<C> Session<C> {
    /// The two accounts of a relay: to the destination and to the client.
    pub(super) fn flows(&self) -> (Flow<'_>, Flow<'_>) {
        let measures = self.sandbox.measures();
        (
            Flow::new(&measures.up_copied, &measures.up_spliced, self.sandbox.bytes_pace()),
            Flow::new(&measures.down_copied, &measures.down_spliced, self.sandbox.bytes_pace()),
        )
    }
}
