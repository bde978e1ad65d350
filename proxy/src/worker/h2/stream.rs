//! One stream: judged, passed on and answered.

use std::cell::Cell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};

use bytes::Bytes;
use futures_util::FutureExt as _;
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderName, HeaderValue, Request, Response};

use super::Joined;
use super::carry::{Cut, Passage};
use crate::destination::Destination;
use crate::http::fault::Fault;
use crate::http::head::{RequestHead, RequestReader, Version};
use crate::http::reject::Reject;
use crate::http::target::Scheme;
use crate::http::two::{self, Onward};
use crate::worker::forward::Route;
use crate::worker::refusal::{Refusal, now};
use crate::worker::report::Granted;
use crate::worker::session::Session;
use crate::worker::watchdog::{Aim, Cause};

/// What became of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// It has got its answer, or could not.
    Done,
    /// The client took it back before it was answered.
    TakenBack,
}

/// How a stream ends that does not end well.
enum End {
    /// Before anything was answered: it gets this refusal.
    Refused(Refusal),
    /// It was not passed on and may be tried again elsewhere.
    Untouched,
    /// It is reset.
    Reset(Reason),
    /// The client has taken it back.
    TakenBack,
}

impl<R: Into<Refusal>> From<R> for End {
    fn from(refusal: R) -> Self {
        Self::Refused(refusal.into())
    }
}

/// A request as it was read.
struct Asked {
    head: RequestHead,
    text: Vec<u8>,
    /// Fields that must never get into a compression table (RFC 7541 section 7.1.3).
    secret: Vec<HeaderName>,
}

impl Joined<'_> {
    /// Serves one stream to its end.
    pub(super) async fn serve_stream(
        &self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> Served {
        let mut session = self.session();
        let ends = request.body().is_end_stream();
        let (parts, body) = request.into_parts();
        let mut text = Vec::with_capacity(512);
        let fits = two::write_request(&mut text, &parts, ends);
        let is_secret =
            |(name, value): (&HeaderName, &HeaderValue)| value.is_sensitive().then(|| name.clone());
        let secret = parts.headers.iter().filter_map(is_secret).collect();
        drop(parts);
        let asked = self.read(&text).map(|head| Asked { head, text, secret });
        let (outcome, asked) = match asked {
            Err(fault) => (Err(fault.into()), None),
            Ok(asked) => {
                let outcome = match fits {
                    Err(fault) => Err(fault.into()),
                    Ok(()) => self.pass_on(&mut session, &asked, body, &mut respond).await,
                };
                (outcome, Some(asked))
            }
        };
        match outcome {
            Ok(()) => {}
            Err(End::TakenBack) => return Served::TakenBack,
            Err(End::Reset(reason)) => respond.send_reset(reason),
            Err(End::Untouched) => {
                respond.send_reset(Reason::REFUSED_STREAM);
                let request = asked.as_ref().map(|asked| (&asked.head, asked.text.as_slice()));
                let refusal = Refusal::from(Reject::OriginClosed);
                let method = request.map(|(head, _)| head.method);
                session.tell_refused(Some(self.destination), method, request, &refusal, None);
            }
            Err(End::Refused(refusal)) => self.answer(&session, asked.as_ref(), &refusal, &mut respond),
        }
        Served::Done
    }

    /// What a stream is served with: its own watch, and what is known of the client.
    fn session(&self) -> Session<()> {
        let tunnel = self.tunnel;
        let session = Session {
            core: Rc::clone(&tunnel.core),
            sandbox: Arc::clone(&tunnel.sandbox),
            client: (),
            peer: tunnel.peer,
            local: tunnel.local,
            watch: tunnel.core.watchdog.watch_shared(&tunnel.watch),
            caller: self.caller.borrow().clone(),
            destination: None,
        };
        session.stand_for_caller();
        session
    }

    /// By the reader that reads HTTP/1.1.
    fn read(&self, text: &[u8]) -> Result<RequestHead, Fault> {
        let read = RequestReader::new(self.tunnel.core.head_limits()).read(text)?;
        let mut head = read.ok_or(Fault::Http2)?;
        head.version = Version::Http2;
        Ok(head)
    }

    /// Judges a request, sends it to the origin and passes on what comes of it.
    async fn pass_on(
        &self,
        session: &mut Session<()>,
        asked: &Asked,
        mut body: RecvStream,
        respond: &mut SendResponse<Bytes>,
    ) -> Result<(), End> {
        let (mut version, mut policy);
        loop {
            version = session.sandbox.policy_version();
            policy = session.sandbox.policy_now();
            session.identify(&policy).await;
            if version == session.sandbox.policy_version() {
                break;
            }
        }
        session.within_rate()?;
        let route = (Route::Tunnel, Scheme::Https);
        let judged = session.judge((&asked.head, &asked.text), self.destination, &policy, route);
        let (permit, request, out) = judged?;
        let granted = Granted::of(&permit);
        if let Err(refusal) = session.core.recheck(self.address, &permit) {
            // Another address may do, but only over another connection.
            self.draining.set(true);
            return Err(refusal.into());
        }
        drop(permit);
        if self.version.replace(version) != version {
            self.caller.borrow_mut().clone_from(&session.caller);
        }
        let rewritten = RequestReader::new(session.core.head_limits()).read(&out).ok().flatten();
        let mut onward = rewritten.and_then(|head| two::read_request(&head, &out)).ok_or(Reject::Internal)?;
        for (name, value) in onward.headers_mut() {
            value.set_sensitive(asked.secret.contains(name));
        }
        drop(out);
        if self.draining.get() {
            return Err(End::Untouched);
        }
        let ends = body.is_end_stream();
        // What is over the origin's own number of streams waits in the library for its turn.
        let sent = self.origin.clone().send_request(onward, ends);
        let (response, mut upload) = sent.map_err(|_| End::Untouched)?;
        session.watch.standing.request(version, self.destination, self.address, &request);
        let exchange = Exchange {
            session,
            destination: self.destination,
            address: self.address,
            granted,
            asked,
            uploaded: Cell::new(ends),
            begun: Cell::new(false),
            hungry: Cell::new(false),
        };
        let outcome = exchange.run(&mut body, &mut upload, response, respond).await;
        match outcome {
            // Whoever has begun to read and stops is no trouble.
            Err(End::TakenBack) if exchange.begun.get() => Ok(()),
            outcome @ (Ok(()) | Err(End::Refused(_))) => outcome,
            outcome => {
                if !exchange.begun.get() {
                    // Nobody was answered, but the origin may have heard it all.
                    exchange.tell(None);
                }
                outcome
            }
        }
    }

    /// Answers with a refusal.
    fn answer(
        &self,
        session: &Session<()>,
        asked: Option<&Asked>,
        refusal: &Refusal,
        respond: &mut SendResponse<Bytes>,
    ) {
        let request = asked.map(|asked| (&asked.head, asked.text.as_slice()));
        let method = request.map(|(head, _)| head.method);
        let mut out = session.core.means.buffers.take();
        session.write_refusal(&mut out, Some(self.destination), method, request, refusal);
        let Some((response, body_at)) = two::read_response(&out, &session.core.head_limits()) else {
            return respond.send_reset(Reason::INTERNAL_ERROR);
        };
        let body = Bytes::copy_from_slice(out.get(body_at..).unwrap_or_default());
        let ends = body.is_empty();
        // Where it cannot be sent the client is gone.
        if let Ok(mut stream) = respond.send_response(response, ends)
            && !ends
        {
            let _ = stream.send_data(body, true);
        }
    }
}

/// A request on its way, with its answer.
struct Exchange<'s> {
    session: &'s Session<()>,
    destination: &'s Destination,
    address: SocketAddr,
    granted: Granted,
    asked: &'s Asked,
    /// The request has been sent to its end.
    uploaded: Cell<bool>,
    /// The client has been told the status.
    begun: Cell<bool>,
    /// It is the client's data that is waited for.
    hungry: Cell<bool>,
}

/// A head from the origin.
enum Head {
    Interim(Response<()>),
    Final(Response<RecvStream>),
}

impl Exchange<'_> {
    /// Both bodies at once; whatever tells the stream to end, ends it.
    async fn run(
        &self,
        body: &mut RecvStream,
        upload: &mut SendStream<Bytes>,
        response: ResponseFuture,
        respond: &mut SendResponse<Bytes>,
    ) -> Result<(), End> {
        let both = async {
            let mut up = pin!(self.upload(body, upload));
            let mut down = pin!(self.download(response, respond));
            monoio::select! {
                uploaded = &mut up => uploaded?,
                answered = &mut down => return answered,
            }
            down.await
        };
        monoio::select! {
            cause = self.session.watch.stopped() => Err(self.stopped(cause)),
            outcome = both => outcome,
        }
    }

    async fn upload(&self, body: &mut RecvStream, upload: &mut SendStream<Bytes>) -> Result<(), End> {
        if !self.uploaded.get() {
            let (up, _) = self.session.flows();
            match self.passage(&up).carry(body, upload).await {
                Ok(()) => self.uploaded.set(true),
                // The origin no longer listens; it may say why.
                Err(Cut::Receiver) => {}
                Err(Cut::Fault(fault)) => return Err(self.broken(Reject::Request(fault).into())),
                // Taken back, or not what its head said; then the library has reset it.
                Err(Cut::Sender(_)) => return Err(End::TakenBack),
            }
        }
        if !self.begun.get() {
            self.session.watch.arm(self.session.core.limits.first_byte, Aim::Both);
        }
        Ok(())
    }

    async fn download(
        &self,
        mut response: ResponseFuture,
        respond: &mut SendResponse<Bytes>,
    ) -> Result<(), End> {
        let core = &self.session.core;
        let onward = || Onward { via: &core.pseudonym, date: now(), limits: core.head_limits() };
        let response = loop {
            match next_head(&mut response, respond).await? {
                Head::Final(response) => break response,
                Head::Interim(interim) => {
                    let (mut parts, ()) = interim.into_parts();
                    two::pass_response(&mut parts, &onward()).map_err(Reject::Response)?;
                    // A client that does not hear it waits for the final one.
                    let _ = respond.send_informational(Response::from_parts(parts, ()));
                }
            }
        };
        let (mut parts, mut body) = response.into_parts();
        two::pass_response(&mut parts, &onward()).map_err(Reject::Response)?;
        self.begun.set(true);
        self.tell(Some(parts.status.as_u16()));
        let ends = body.is_end_stream();
        let sent = respond.send_response(Response::from_parts(parts, ()), ends);
        let mut stream = sent.map_err(|_| End::TakenBack)?;
        if ends {
            return Ok(());
        }
        let (_, down) = self.session.flows();
        match self.passage(&down).carry(&mut body, &mut stream).await {
            Ok(()) => Ok(()),
            Err(Cut::Receiver) => Err(End::TakenBack),
            Err(Cut::Sender(error)) => Err(End::Reset(reset_of(&error))),
            Err(Cut::Fault(_)) => Err(End::Reset(Reason::PROTOCOL_ERROR)),
        }
    }

    fn passage<'a>(&'a self, flow: &'a crate::worker::relay::Flow<'a>) -> Passage<'a> {
        Passage {
            flow,
            watch: &self.session.watch,
            patience: self.session.core.limits.idle_tunnel,
            hungry: &self.hungry,
        }
    }

    /// Refused if the client has heard nothing yet, else cut.
    fn broken(&self, refusal: Refusal) -> End {
        if self.begun.get() { End::Reset(Reason::CANCEL) } else { End::Refused(refusal) }
    }

    /// The watch has ended it.
    fn stopped(&self, cause: Cause) -> End {
        let reject = match cause {
            Cause::Expired if !self.uploaded.get() && self.hungry.get() => Reject::BodyTimeout,
            Cause::Expired => Reject::OriginTimeout,
            Cause::PolicyChanged => Reject::Denied(Cause::PolicyChanged.reason()),
            Cause::TooOld | Cause::Stopping | Cause::ClientGone => return End::Reset(Reason::CANCEL),
        };
        let mut refusal = Refusal::from(reject);
        refusal.detail = self.session.watch.standing.verdict();
        self.broken(refusal)
    }

    /// `status`: of the answer, where there was one.
    fn tell(&self, status: Option<u16>) {
        let Asked { head, text, .. } = self.asked;
        self.session.tell_request(self.destination, self.address, &self.granted, (head, text), status);
    }
}

/// The next head of the origin's answer, unless the client takes its request back before.
async fn next_head(response: &mut ResponseFuture, respond: &mut SendResponse<Bytes>) -> Result<Head, End> {
    poll_fn(|cx| {
        if respond.poll_reset(cx).is_ready() {
            return Poll::Ready(Err(End::TakenBack));
        }
        if let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
            return Poll::Ready(Ok(Head::Interim(interim)));
        }
        Poll::Ready(ready!(response.poll_unpin(cx)).map(Head::Final).map_err(|error| unanswered(&error)))
    })
    .await
}

/// What a stream of the origin that failed before its answer means for the client's.
fn unanswered(error: &h2::Error) -> End {
    if error.is_remote() {
        // Behind a GOAWAY: it was never looked at (RFC 9113 section 6.8).
        return if error.is_go_away() {
            End::Reset(Reason::REFUSED_STREAM)
        } else {
            End::Reset(reset_of(error))
        };
    }
    let reject = if error.is_library() { Reject::Response(Fault::Http2) } else { Reject::OriginClosed };
    End::Refused(Refusal { reject, deny: None, detail: Some(error.to_string()) })
}

/// With what the client's stream is reset when the origin's fails midway.
fn reset_of(error: &h2::Error) -> Reason {
    let reason = error.reason().filter(|reason| error.is_remote() && *reason != Reason::NO_ERROR);
    reason.unwrap_or(Reason::INTERNAL_ERROR)
}
