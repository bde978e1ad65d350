//! One request and its answer over one upstream connection.

use std::cell::Cell;
use std::io;
use std::pin::pin;
use std::time::Instant;

use super::body::{Body, BodyError, Passage, discard};
use super::buffers::Buffer;
use super::refusal::{Refusal, now};
use super::relay::{BULK_OCTETS, Flow, SCRATCH_OCTETS};
use super::report::Granted;
use super::session::{Leg, Next, Received, Session};
use super::socket::Side;
use super::upstream::Upstream;
use super::watchdog::{Aim, Cause, Heed};
use crate::destination::Destination;
use crate::http::chunked::Keep;
use crate::http::framing::Framing;
use crate::http::head::{Nominated, RequestHead, Upgrade, Version};
use crate::http::reject::Reject;
use crate::http::response::{ResponseHead, ResponseReader};
use crate::http::rewrite::{self, Downstream, towards_client};
use crate::tls::{Problem, problem};

/// Octets that are read of a long response with its head; the rest of it can be spliced.
const HEAD_OCTETS: usize = 4 << 10;

/// Why an exchange broke off.
pub(super) enum Broken {
    /// The origin closed without a word: a connection that was kept may have ended before the request came. The client
    /// gets this refusal, unless the request can be sent again.
    Silent(Refusal),
    /// Before the client saw a final answer: it gets this refusal.
    Unanswered(Refusal),
    /// Later, or the client itself is gone: nothing can be said any more.
    Late,
}

/// How the answer ended.
enum Answered {
    /// Whole; the origin's connection may serve another request, and the client's too as far as the answer goes.
    Whole { reusable: bool, client_open: bool },
    /// 101: raw bytes from here on.
    Switched,
}

/// A request on its way, with the connection it goes over.
pub(super) struct Exchange<'s, C: Leg> {
    session: &'s Session<C>,
    destination: &'s Destination,
    granted: Granted,
    upstream: Upstream<C::Origin>,
    up: Flow<'s>,
    down: Flow<'s>,
    /// Whether its event has been written.
    told: Cell<bool>,
}

impl<'s, C: Leg> Exchange<'s, C> {
    pub(super) fn new(
        session: &'s Session<C>,
        destination: &'s Destination,
        granted: Granted,
        upstream: Upstream<C::Origin>,
    ) -> Self {
        let (up, down) = session.flows();
        Self { session, destination, granted, upstream, up, down, told: Cell::new(false) }
    }

    /// Sends the request whose rewritten head is `out`, and passes the answer on. `received` holds what was read behind
    /// the request afterwards; it is as it was when nothing was answered.
    pub(super) async fn run(self, received: &mut Received, mut out: Buffer) -> Result<Next, Broken> {
        let head = received.head;
        let keep = || Nominated::of(head.connection, head.fields(&received.inbox));
        let mut upload = Body::new(head.framing, Keep::Chunks, keep);
        // What of the body came with the head goes out with it. The head stays in place for refusals and events.
        let mut behind = self.session.core.means.buffers.take();
        behind.extend_from_slice(received.inbox.get(head.len..).unwrap_or_default());
        let early = upload.take_buffered(&mut behind, &mut out);
        let early = early.map_err(|fault| Broken::Unanswered(fault.into()))?;
        self.session.watch.set_upstream(Some(&self.upstream.side));
        self.session.watch.arm(self.session.core.limits.first_byte, Aim::Upstream);
        // An origin that answers and closes without listening is heard all the same.
        let sent = self.upstream.side.write_all(&out).await.is_ok();
        self.up.add_copied(early);
        out.clear();
        let mut answer =
            Answer { exchange: &self, head: &head, request: &received.inbox, inbox: out, heard: false };
        let progress = Progress::new(upload.has_ended(), !behind.is_empty());
        let answered = if upload.has_ended() || !sent {
            self.heed_client();
            answer.pass_on(&progress).await
        } else {
            self.both_ways(&mut answer, &mut behind, &mut upload, &progress).await
        };
        if matches!(answered, Err(Broken::Late)) && !self.told.get() {
            // Nobody was answered, but the origin may have heard it all.
            answer.tell(None);
        }
        let Answer { inbox, .. } = answer;
        self.session.watch.set_upstream(None);
        self.session.watch.heed(Heed::Nothing);
        let client = &self.session.client;
        let next = match answered? {
            Answered::Switched => return Ok(self.switched(received.at, behind, inbox).await),
            Answered::Whole { reusable, client_open } => {
                let whole = upload.has_ended();
                if reusable && whole && inbox.is_empty() {
                    let Self { session, destination, upstream, .. } = self;
                    C::upstreams(&session.core).keep(&session.sandbox, destination, upstream);
                }
                match (client_open, whole) {
                    // What was sent on the chance of a switch is no request (RFC 9931).
                    (true, true) if head.upgrade == Upgrade::None || behind.is_empty() => Next::Request,
                    (false, true) if behind.is_empty() && !client.has_news() => Next::Close,
                    // What else it sends is nobody's, but closing over it would take the answer back.
                    _ => Next::Linger,
                }
            }
        };
        received.inbox.clear();
        received.inbox.extend_from_slice(&behind);
        Ok(next)
    }

    /// The rest of the request's body goes up while the answer, should it come early, comes down.
    async fn both_ways(
        &self,
        answer: &mut Answer<'_, '_, C>,
        behind: &mut Buffer,
        upload: &mut Body,
        progress: &Progress,
    ) -> Result<Answered, Broken> {
        // Whichever side it is that an upload waits for, the client can still be told.
        let passage = self.passage(&self.up, (Aim::ClientRead, Aim::Upstream));
        if answer.head.expect_continue && behind.is_empty() {
            // The client waits for the origin's word before it sends its body.
            passage.first_wait.set(Some((self.session.core.limits.first_byte, Aim::Upstream)));
        }
        let mut up = pin!(passage.carry(&self.session.client, &self.upstream.side, behind, upload));
        let mut down = pin!(answer.pass_on(progress));
        monoio::select! {
            uploaded = &mut up => match uploaded {
                Ok(()) => {
                    progress.uploaded.set(true);
                    self.heed_client();
                    if !progress.begun.get() {
                        self.session.watch.arm(self.session.core.limits.first_byte, Aim::Upstream);
                    }
                }
                Err(BodyError::Fault(fault)) if !progress.begun.get() => {
                    return Err(Broken::Unanswered(fault.into()));
                }
                Err(BodyError::Cut) if self.session.watch.cause().is_some() && !progress.begun.get() => {
                    return Err(match self.session.watch.cause() {
                        Some(Cause::PolicyChanged) => self.unanswered(None, true),
                        _ => Broken::Unanswered(Reject::BodyTimeout.into()),
                    });
                }
                Err(BodyError::Fault(_) | BodyError::Cut) => {
                    // What the client has of the answer must not look whole.
                    self.session.client.reset_on_close();
                    return Err(Broken::Late);
                }
                // The origin no longer listens; it may have said why.
                Err(BodyError::Unwanted) => {}
            },
            answered = &mut down => return answered,
        }
        down.await
    }

    /// After 101: the two sockets are a tunnel, what was read of either behind its head included.
    async fn switched(self, began: Instant, from_client: Buffer, from_origin: Buffer) -> Next {
        let early = (Some(from_client), Some(from_origin));
        self.session.watch.standing.switched();
        let outcome = self.session.relay(early, &self.upstream, (&self.up, &self.down), None).await;
        let flows = (&self.up, &self.down);
        self.session.tell_closed(
            self.destination,
            &self.upstream,
            &self.granted,
            flows,
            began,
            outcome.as_ref().err(),
        );
        Next::Close
    }

    fn passage<'a>(&'a self, flow: &'a Flow<'s>, aims: (Aim, Aim)) -> Passage<'a> {
        Passage {
            means: &self.session.core.means,
            flow,
            watch: &self.session.watch,
            patience: self.session.core.limits.idle_tunnel,
            aims,
            first_wait: Cell::new(None),
            ahead: Cell::new(false),
        }
    }

    /// The client has said all it has to say and is no longer read; it may be gone before it is answered.
    fn heed_client(&self) {
        self.session.watch.heed(Heed::End(self.session.core.limits.half_closed_linger));
    }

    /// Nothing came of it: the origin closed or failed, or took too long. `heard`: it had begun to answer.
    fn unanswered(&self, error: Option<io::Error>, heard: bool) -> Broken {
        let alert = error.as_ref().and_then(|error| error.get_ref()?.downcast_ref::<rustls::Error>());
        if let (None, false, Some(alert)) = (self.session.watch.cause(), heard, alert) {
            // With TLS 1.3 it may be told only now that the handshake was not to the origin's liking.
            let mut refusal = Refusal::from(Reject::OriginTls(Problem::of(alert)));
            refusal.detail = Some(problem::words(alert));
            return Broken::Unanswered(refusal);
        }
        let reject = match self.session.watch.cause() {
            Some(Cause::Expired) => Reject::OriginTimeout,
            Some(Cause::PolicyChanged) => Reject::Denied(Cause::PolicyChanged.reason()),
            Some(_) => return Broken::Late,
            None => Reject::OriginClosed,
        };
        let mut refusal = Refusal::from(reject);
        refusal.detail = self.session.watch.standing.verdict().or(error.map(|error| error.to_string()));
        if heard || reject != Reject::OriginClosed {
            Broken::Unanswered(refusal)
        } else {
            Broken::Silent(refusal)
        }
    }
}

/// How far an exchange has come, for the two halves that run at once.
struct Progress {
    /// The client has seen a byte of the final answer.
    begun: Cell<bool>,
    /// The request has been sent to its end.
    uploaded: Cell<bool>,
    /// Something came behind the request before it was answered.
    more: bool,
}

impl Progress {
    fn new(uploaded: bool, more: bool) -> Self {
        Self { begun: Cell::new(false), uploaded: Cell::new(uploaded), more }
    }
}

/// The origin's answer on its way to the client.
struct Answer<'e, 's, C: Leg> {
    exchange: &'e Exchange<'s, C>,
    head: &'e RequestHead,
    /// The octets of the request's head.
    request: &'e [u8],
    /// What was read of the origin and not yet used.
    inbox: Buffer,
    /// The origin has said something.
    heard: bool,
}

impl<C: Leg> Answer<'_, '_, C> {
    /// Interim answers, then the final one to its end.
    async fn pass_on(&mut self, progress: &Progress) -> Result<Answered, Broken> {
        let mut reader = ResponseReader::new(self.exchange.session.core.head_limits());
        loop {
            let response = self.read_head(&mut reader).await?;
            if response.status == 101 {
                return self.switch(&response, progress).await;
            }
            if !response.is_interim() {
                return self.finish(&response, progress).await;
            }
            // RFC 9110 section 15.2: not to a client that cannot know it.
            if self.head.version == Version::Http11 {
                self.write_head(&response, Framing::None, false, None).await?;
            }
            discard(&mut self.inbox, 0..response.len);
            // The origin is at work, or waits for the body.
            let Session { core, watch, .. } = self.exchange.session;
            if progress.uploaded.get() {
                watch.arm(core.limits.first_byte, Aim::Upstream);
            } else {
                watch.arm(core.limits.idle_tunnel, Aim::ClientRead);
            }
        }
    }

    async fn read_head(&mut self, reader: &mut ResponseReader) -> Result<ResponseHead, Broken> {
        let Exchange { session, upstream, .. } = self.exchange;
        loop {
            if !self.inbox.is_empty() {
                let read = reader.read(&self.inbox);
                if let Some(head) =
                    read.map_err(|fault| Broken::Unanswered(Reject::Response(fault).into()))?
                {
                    return Ok(head);
                }
            }
            if let Err(error) = upstream.side.readable().await {
                return Err(self.exchange.unanswered(Some(error), self.heard));
            }
            let mut scratch = session.core.means.scratch.borrow_mut();
            let most = if upstream.bulky.get() { HEAD_OCTETS } else { SCRATCH_OCTETS };
            let most = most.min(scratch.len());
            match upstream.side.try_read(scratch.get_mut(..most).unwrap_or_default()) {
                Ok(Some(0)) => return Err(self.exchange.unanswered(None, self.heard)),
                Ok(Some(count)) => {
                    self.heard = true;
                    self.inbox.extend_from_slice(scratch.get(..count).unwrap_or_default());
                }
                Ok(None) => {}
                Err(error) => return Err(self.exchange.unanswered(Some(error), self.heard)),
            }
        }
    }

    /// 101, if the client asked for that protocol and has nothing more to say in this one: the rest of a body would be
    /// taken for the other's (RFC 9110 section 7.8).
    async fn switch(&mut self, response: &ResponseHead, progress: &Progress) -> Result<Answered, Broken> {
        if !progress.uploaded.get() || !response.accepts(&self.inbox, self.head, self.request) {
            return Err(Broken::Unanswered(Reject::UnaskedUpgrade.into()));
        }
        self.tell(Some(response.status));
        self.write_head(response, Framing::None, false, None).await?;
        discard(&mut self.inbox, 0..response.len);
        Ok(Answered::Switched)
    }

    /// The final answer. Its head goes out together with what of its body is there.
    async fn finish(&mut self, response: &ResponseHead, progress: &Progress) -> Result<Answered, Broken> {
        let exchange = self.exchange;
        let framing = response.framing(self.head.method);
        let onward = towards_client(framing, self.head.version);
        let keep = if onward == Framing::Chunked { Keep::Chunks } else { Keep::Data };
        let nominated = || Nominated::of(response.connection, response.fields(&self.inbox));
        let mut body = Body::new(framing, keep, nominated);
        let client_open = self.head.is_persistent()
            && onward != Framing::UntilClose
            && progress.uploaded.get()
            && !self.is_optimistic(progress);
        progress.begun.set(true);
        self.tell(Some(response.status));
        let early = self.write_head(response, onward, !client_open, Some(&mut body)).await;
        if let Ok(count) = &early {
            exchange.down.add_copied(*count);
        }
        early?;
        let (origin, client) = (&exchange.upstream.side, &exchange.session.client);
        exchange
            .upstream
            .bulky
            .set(matches!(framing, Framing::Length(octets) if octets >= BULK_OCTETS as u64));
        let passage = exchange.passage(&exchange.down, (Aim::Both, Aim::Both));
        passage.ahead.set(body.bulk().is_some());
        let carried = passage.carry(origin, client, &mut self.inbox, &mut body).await;
        if carried.is_err() {
            // A client that waits for the end by our close must not take a cut answer for a whole one.
            client.reset_on_close();
            return Err(Broken::Late);
        }
        let reusable = framing != Framing::UntilClose && response.is_persistent(self.head.method);
        Ok(Answered::Whole { reusable, client_open })
    }

    /// Writes a head to the client, and with it the part of `body` that is there. Says how much of the body that was.
    async fn write_head(
        &mut self,
        response: &ResponseHead,
        framing: Framing,
        close: bool,
        body: Option<&mut Body>,
    ) -> Result<usize, Broken> {
        let core = &self.exchange.session.core;
        let mut out = core.means.buffers.take();
        let how = Downstream { framing, close, via: Some(&core.pseudonym), date: now() };
        rewrite::response(&mut out, response, &self.inbox, &how);
        let mut early = Ok(0);
        let mut bulk = false;
        if let Some(body) = body {
            discard(&mut self.inbox, 0..response.len);
            early = body.take_buffered(&mut self.inbox, &mut out);
            bulk = body.bulk().is_some();
        }
        let client = &self.exchange.session.client;
        let mut rest = out.as_slice();
        if bulk {
            let written = client.try_write_ahead(rest).map_err(|_| Broken::Late)?.unwrap_or(0);
            rest = rest.get(written..).unwrap_or_default();
        }
        client.write_all(rest).await.map_err(|_| Broken::Late)?;
        early.map_err(|_| {
            client.reset_on_close();
            Broken::Late
        })
    }

    /// Whether the client has offered to switch and begun to speak the other protocol at once: those bytes must never be
    /// taken for a request (RFC 9931).
    fn is_optimistic(&self, progress: &Progress) -> bool {
        self.head.upgrade != Upgrade::None && (progress.more || self.exchange.session.client.has_news())
    }

    /// `status`: of the answer, where there was one.
    fn tell(&self, status: Option<u16>) {
        let Exchange { session, destination, upstream, granted, told, .. } = self.exchange;
        told.set(true);
        session.tell_request(destination, upstream.address, granted, (self.head, self.request), status);
    }
}
