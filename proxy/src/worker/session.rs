//! One client connection: heads in, decisions, answers; tunnels and bodies are handed to those who move bytes.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::buffers::Buffer;
use super::forward::Route;
use super::refusal::{Refusal, turn_away};
use super::relay::since_start;
use super::socket::{Side, Socket};
use super::upstream::{Upstream, Upstreams};
use super::watchdog::{Aim, Cause, Watch};
use super::who::Caller;
use super::{Behind, Core};
use crate::destination::Destination;
use crate::http::fault::Fault;
use crate::http::head::{Method, RequestHead, RequestReader};
use crate::http::reject::Reject;
use crate::http::target::{self, Scheme, Target};
use crate::measures::Counted;
use crate::policy::{Asker, Permit};
use crate::sandbox::Sandbox;

/// How long a connection that was answered with a refusal is read on, so that the answer is not lost in a reset.
pub(super) const LINGER: Duration = Duration::from_secs(1);
/// Octets read and dropped meanwhile.
const LINGER_OCTETS_MAX: usize = 256 << 10;

/// What the parts of a session share.
pub(super) struct Session<C> {
    pub(super) core: Rc<Core>,
    pub(super) sandbox: Arc<Sandbox>,
    pub(super) client: C,
    pub(super) peer: SocketAddr,
    pub(super) local: SocketAddr,
    pub(super) watch: Rc<Watch>,
    pub(super) caller: Option<Caller>,
    /// The last destination, so that the next request to it allocates nothing.
    pub(super) destination: Option<Destination>,
}

/// A client's side whose requests are served: how its origins are reached, and over what.
///
/// One engine serves all kinds; a kind says only where its upstream connections come from.
pub(super) trait Leg: Side + Sized {
    /// The side of the origin.
    type Origin: Side;
    /// What a request inside a tunnel of this kind means by its default port.
    const SCHEME: Scheme;

    /// The connections kept for the next request.
    fn upstreams(core: &Core) -> &Upstreams<Self::Origin>;
    /// A new connection to what the permit permits.
    async fn reach(session: &Session<Self>, permit: Permit<'_>) -> Result<Upstream<Self::Origin>, Refusal>;
}

impl Leg for Socket {
    type Origin = Self;
    const SCHEME: Scheme = Scheme::Http;

    fn upstreams(core: &Core) -> &Upstreams<Self> {
        &core.upstreams
    }

    async fn reach(session: &Session<Self>, permit: Permit<'_>) -> Result<Upstream<Self>, Refusal> {
        session.core.dial(permit).await
    }
}

/// What becomes of a connection after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Another request may follow.
    Request,
    /// It ends.
    Close,
    /// It ends, but the client may still be sending: its answer must not be lost.
    Linger,
}

/// A request's head, still in the buffer it was read into.
pub(super) struct Received {
    pub(super) head: RequestHead,
    pub(super) inbox: Buffer,
    pub(super) at: Instant,
}

/// Serves one connection to its end.
///
/// `local` is its own address, where that is known without asking.
pub(super) async fn run(
    core: Rc<Core>,
    behind: Behind,
    client: Socket,
    (peer, local): (SocketAddr, Option<SocketAddr>),
) {
    let sandbox = match &behind {
        Behind::Sandbox(sandbox) => Some(Arc::clone(sandbox)),
        Behind::Sources(sources) => sources.find(peer.ip()),
    };
    let Some(sandbox) = sandbox else {
        core.tell_unknown_source(peer);
        return turn_away(&core, &client, Reject::Denied("unknown_source")).await;
    };
    let Some(admitted) = sandbox.admit() else {
        sandbox.measures().denied(Counted::Connection, Reject::TooManyConnections.label());
        return turn_away(&core, &client, Reject::TooManyConnections).await;
    };
    let Some(local) = local.or_else(|| client.local().ok()) else { return };
    let watch = core.watchdog.watch(&client, Arc::as_ptr(&sandbox), core.limits.lifetime);
    let sandbox = Arc::clone(admitted.sandbox());
    let mut session = Session { core, sandbox, client, peer, local, watch, caller: None, destination: None };
    session.serve().await;
}

impl Session<Socket> {
    async fn serve(&mut self) {
        let mut reader = RequestReader::new(self.core.head_limits());
        // Whoever connects asks at once: most often the request is there before the connection is taken.
        let next = match self.read_head(&mut reader, &mut None, true).await {
            Ok(Some(mut received)) => loop {
                if received.head.method == Method::Connect {
                    break self.connect_to_target(received).await;
                }
                // A tunnel is not to pay, for as long as it stands, for the room that requests need.
                match Box::pin(self.requests(received, &mut reader)).await {
                    Ok(connect) => received = connect,
                    Err(next) => break next,
                }
            },
            Ok(None) => Next::Close,
            Err(refusal) => self.refuse_request(None, None, refusal).await,
        };
        if next == Next::Linger {
            linger(&self.core, &self.client, &self.watch).await;
        }
    }

    async fn connect_to_target(&mut self, received: Received) -> Next {
        match target::on_proxy(&received.head, &received.inbox) {
            Ok(Target::Tunnel(authority)) => {
                let destination = authority.to_destination(0);
                self.connect(received, destination).await
            }
            Ok(Target::Forward(..)) => self.refuse_target(&received, Fault::Port).await,
            Err(fault) => self.refuse_target(&received, fault).await,
        }
    }

    /// Serves requests until the connection is done with, or a CONNECT comes, which is handed back.
    async fn requests(
        &mut self,
        mut received: Received,
        reader: &mut RequestReader,
    ) -> Result<Received, Next> {
        loop {
            if received.head.method == Method::Connect {
                return Ok(received);
            }
            let (next, mut inbox) = self.request(received).await;
            if next != Next::Request {
                return Err(next);
            }
            received = match self.read_head(reader, &mut inbox, false).await {
                Ok(Some(received)) => received,
                Ok(None) => return Err(Next::Close),
                Err(refusal) => return Err(self.refuse_request(None, None, refusal).await),
            };
        }
    }

    /// Serves one request. The buffer that comes back holds what was read behind it.
    async fn request(&mut self, received: Received) -> (Next, Option<Buffer>) {
        let destination = match target::on_proxy(&received.head, &received.inbox) {
            Ok(Target::Forward(authority, _)) => match self.destination.take() {
                Some(last) if authority.is(&last, target::HTTP_PORT) => last,
                _ => authority.to_destination(target::HTTP_PORT),
            },
            Ok(Target::Tunnel(_)) => {
                return (self.refuse_target(&received, Fault::NestedConnect).await, None);
            }
            Err(fault) => return (self.refuse_target(&received, fault).await, None),
        };
        let served = self.serve_request(received, &destination, Route::Anywhere).await;
        self.destination = Some(destination);
        served
    }

    /// Refuses what has a target that leads nowhere.
    async fn refuse_target(&self, received: &Received, fault: Fault) -> Next {
        let request = Some((&received.head, received.inbox.as_slice()));
        self.refuse_request(None, request, fault.into()).await;
        Next::Linger
    }
}

impl<C: Side> Session<C> {
    /// The next head; `None` when the client has nothing more to ask. An idle connection holds no buffer. `at_once`: it is
    /// read before it is waited for.
    pub(super) async fn read_head(
        &self,
        reader: &mut RequestReader,
        inbox: &mut Option<Buffer>,
        mut at_once: bool,
    ) -> Result<Option<Received>, Refusal> {
        let mut started = false;
        loop {
            if let Some(buffer) = inbox.take().filter(|buffer| !buffer.is_empty()) {
                if let Some(head) = reader.read(&buffer)? {
                    return Ok(Some(Received { head, inbox: buffer, at: Instant::now() }));
                }
                // What is there may be an empty line before a request that never comes.
                if reader.has_started() && !started {
                    started = true;
                    self.watch.arm(self.core.limits.head_read, Aim::ClientRead);
                }
                *inbox = Some(buffer);
            } else {
                self.watch.arm(self.core.limits.idle_keepalive, Aim::Both);
            }
            if !std::mem::take(&mut at_once) && self.client.readable().await.is_err() {
                return Ok(None);
            }
            let read = {
                let mut scratch = self.core.means.scratch.borrow_mut();
                match self.client.try_read(&mut scratch) {
                    Ok(None) => continue,
                    Ok(Some(count)) => {
                        let buffer = inbox.get_or_insert_with(|| self.core.means.buffers.take());
                        buffer.extend_from_slice(scratch.get(..count).unwrap_or_default());
                        count
                    }
                    Err(_) => return Ok(None),
                }
            };
            if read == 0 {
                return match self.watch.cause() {
                    Some(Cause::Expired) if started => Err(Reject::HeadTimeout.into()),
                    _ => Ok(None),
                };
            }
        }
    }
}

impl<C> Session<C> {
    /// Counts one request against the sandbox' rate.
    pub(super) fn within_rate(&self) -> Result<(), Refusal> {
        if self.sandbox.may_request(since_start) { Ok(()) } else { Err(Reject::TooManyRequests.into()) }
    }

    /// Who asks, as the policy wants to know it.
    pub(super) fn asker(&self) -> Asker<'_> {
        self.caller.as_ref().map_or(Asker::Unknown, Caller::asker)
    }
}

/// Ends a connection that was refused, reading on for a moment: closing with unread bytes would reset it, and the client
/// might never see why.
pub(super) async fn linger(core: &Core, client: &impl Side, watch: &Watch) {
    let _ = client.shutdown_write();
    watch.arm(LINGER, Aim::Both);
    let mut left = LINGER_OCTETS_MAX;
    while left > 0 {
        if client.readable().await.is_err() {
            return;
        }
        let mut scratch = core.means.scratch.borrow_mut();
        match client.try_read(&mut scratch) {
            Ok(Some(0)) | Err(_) => return,
            Ok(Some(count)) => left = left.saturating_sub(count),
            Ok(None) => {}
        }
    }
}
