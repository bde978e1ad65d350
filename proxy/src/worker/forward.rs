//! Requests: the forward proxy and the inspected tunnel, which are one engine.
//!
//! A request goes to its origin in origin-form with our `Via`; bodies stream both ways at once; interim answers are passed
//! on and never taken for the final one; after 101 the two sockets are a tunnel. What was read behind a body is the next
//! request and is judged on its own.

use super::body::discard;
use super::buffers::Buffer;
use super::exchange::{Broken, Exchange};
use super::refusal::Refusal;
use super::report::Granted;
use super::session::{Leg, Next, Received, Session};
use super::watchdog::Cause;
use crate::destination::Destination;
use crate::http::fault::Fault;
use crate::http::head::{RequestHead, RequestReader};
use crate::http::reject::Reject;
use crate::http::rewrite;
use crate::http::target::{self, Path, Scheme, Target};
use crate::policy::{self, Ask, Permit, Policy, Request};

/// Where the requests of a connection go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// Wherever each one says.
    Anywhere,
    /// To the tunnel's destination.
    Tunnel,
}

impl<C: Leg> Session<C> {
    /// Serves the requests inside a tunnel whose policy judges them; `inbox` is what was read of the first.
    pub(super) async fn serve_tunnel(
        &mut self,
        mut inbox: Option<Buffer>,
        destination: &Destination,
    ) -> Next {
        let mut reader = RequestReader::new(self.core.head_limits());
        loop {
            if !self.core.may_stay_open(&self.sandbox, &self.watch) {
                self.tell_ended(destination);
                return Next::Close;
            }
            let received = match self.read_head(&mut reader, &mut inbox, false).await {
                Ok(Some(received)) => received,
                Ok(None) => {
                    if self.watch.cause() == Some(Cause::PolicyChanged) {
                        self.tell_ended(destination);
                    }
                    return Next::Close;
                }
                Err(refusal) => {
                    let refusal = match refusal.reject {
                        Reject::Request(fault) if !reader.has_line() => Reject::in_tunnel(fault).into(),
                        _ => refusal,
                    };
                    self.refuse_request(Some(destination), None, refusal).await;
                    return Next::Linger;
                }
            };
            let (next, rest) = self.serve_request(received, destination, Route::Tunnel).await;
            if next != Next::Request {
                return next;
            }
            inbox = rest;
        }
    }

    /// Decides on one request and carries it out. The buffer that comes back holds what was read behind it.
    pub(super) async fn serve_request(
        &mut self,
        mut received: Received,
        destination: &Destination,
        route: Route,
    ) -> (Next, Option<Buffer>) {
        match self.try_request(&mut received, destination, route).await {
            Ok(next) => (next, Some(received.inbox).filter(|_| next == Next::Request)),
            Err(refusal) => {
                let request = Some((&received.head, received.inbox.as_slice()));
                let next = self.refuse_request(Some(destination), request, refusal).await;
                if next == Next::Request {
                    discard(&mut received.inbox, 0..received.head.len);
                }
                (next, Some(received.inbox).filter(|_| next == Next::Request))
            }
        }
    }

    async fn try_request(
        &mut self,
        received: &mut Received,
        destination: &Destination,
        route: Route,
    ) -> Result<Next, Refusal> {
        let mut version = self.sandbox.policy_version();
        let mut policy = self.sandbox.policy_now();
        self.identify(&policy).await;
        self.within_rate()?;
        let may_repeat = received.head.method.is_idempotent() && received.head.framing.is_empty();
        let mut fresh = false;
        loop {
            let (permit, asked, head) =
                self.judge((&received.head, &received.inbox), destination, &policy, (route, C::SCHEME))?;
            let granted = Granted::of(&permit);
            let kept =
                if fresh { None } else { self.core.reuse(C::upstreams(&self.core), &self.sandbox, &permit) };
            let reused = kept.is_some();
            let upstream = match kept {
                Some(upstream) => {
                    drop(permit);
                    self.core.measures.upstream_reused.increment(1);
                    upstream
                }
                None => C::reach(self, permit).await?,
            };
            if version != self.sandbox.policy_version() {
                // A policy that came while the origin was dialled has its say before the request goes out.
                C::upstreams(&self.core).keep(&self.sandbox, destination, upstream);
                version = self.sandbox.policy_version();
                policy = self.sandbox.policy_now();
                self.identify(&policy).await;
                continue;
            }
            self.watch.standing.request(version, destination, upstream.address, &asked);
            let exchange = Exchange::new(self, destination, granted, upstream);
            let outcome = exchange.run(received, head).await;
            self.watch.standing.answered();
            match outcome {
                Ok(next) => return Ok(next),
                // The origin had closed the connection we kept: nothing was answered, so asking anew is safe.
                Err(Broken::Silent(_)) if reused && may_repeat => fresh = true,
                Err(Broken::Silent(refusal) | Broken::Unanswered(refusal)) => return Err(refusal),
                Err(Broken::Late) => return Ok(Next::Close),
            }
        }
    }
}

impl<C> Session<C> {
    /// The decision, what was asked, and the head the origin gets.
    pub(super) fn judge<'a>(
        &'a self,
        (head, octets): (&'a RequestHead, &'a [u8]),
        destination: &'a Destination,
        policy: &'a Policy,
        (route, scheme): (Route, Scheme),
    ) -> Result<(Permit<'a>, Request<'a>, Buffer), Refusal> {
        let path = match route {
            Route::Tunnel => target::in_tunnel(head, octets, destination, scheme)?,
            Route::Anywhere => match target::on_proxy(head, octets)? {
                Target::Forward(_, path) => path,
                Target::Tunnel(_) => return Err(Fault::NestedConnect.into()),
            },
        };
        let request = Request { method: head.method_name(octets), path: path.path, query: path.query };
        let ask = Ask { destination, asker: self.asker(), kind: policy::Kind::Request(request) };
        let permit = self.core.decide(policy, &ask)?;
        let mut out = self.core.means.buffers.take();
        let how = rewrite::Upstream {
            destination,
            default_port: scheme.default_port(),
            path: Path { path: permit.rewritten_path().unwrap_or(path.path), query: path.query },
            via: Some(&self.core.pseudonym),
            upgrade: true,
            close: false,
        };
        rewrite::request(&mut out, head, octets, &how).map_err(Reject::from)?;
        Ok((permit, request, out))
    }
}
