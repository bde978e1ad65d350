//! HTTP/2 inside TLS: one connection of the client, one of the origin, and every stream judged by itself.
//!
//! It is spoken where both sides do (`origin.rs`: what the origin chose is what the client is offered), by the `h2`
//! library over the worker's own TLS (`wire.rs`). Client and origin are bound to each other for as long as either
//! lives: when the origin says that it takes no more, so is the client told, and goes on over another tunnel.
//!
//! The life of a stream: the library hands over its head; `stream.rs` writes that down in the words of HTTP/1.1
//! (`http/two.rs`) and has it judged, limited and reported by the code that serves HTTP/1.1; what is allowed goes to the
//! origin as a stream of its own, `carry.rs` moves data and trailers both ways, each no faster than it is taken. All
//! streams, and both connections, are one task: when the tunnel ends, so does everything in it.
//!
//! What the library sees to: HPACK and its bounds, CONTINUATION floods, frames and states that are not allowed, malformed
//! heads (RFC 9113 section 8.1.1), content lengths that are not kept, floods of resets and of empty or tiny DATA frames, and
//! flow control. Such a stream is reset, such a connection ended with `GOAWAY`. Pings and settings are answered one at a
//! time, so a client that does not read the answers is not read either.

mod carry;
mod origin;
mod stream;
mod wire;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use h2::client::SendRequest;
use h2::{Reason, client, server};

pub(crate) use origin::Without;

use super::session::{LINGER, Next, Session};
use super::socket::Socket;
use super::tls::Tls;
use super::upstream::Upstream;
use super::watchdog::{Aim, Cause};
use super::who::Caller;
use crate::destination::Destination;
use crate::http::two;
use stream::Served;
use wire::Wire;

/// Streams of one client at a time; what RFC 9113 section 6.5.2 recommends as the least.
const STREAMS_MAX: u32 = 100;
/// Octets of one stream that may be on their way to us: what a reader that has stopped can make us hold of it, besides
/// [`SEND_OCTETS`].
const STREAM_WINDOW_OCTETS: u32 = 256 << 10;
/// The same of all streams of a connection together.
const CONNECTION_WINDOW_OCTETS: u32 = 1 << 20;
/// Octets of one stream that wait to be sent. With the windows: at most 1 MiB + 100 × 64 KiB in each direction.
const SEND_OCTETS: usize = 64 << 10;
/// Resets of one client that are remembered for what may still be on its way.
const RESETS_REMEMBERED: usize = 32;
/// Streams that the library has not handed over yet and that were reset meanwhile: more is a flood.
const RESETS_PENDING_MAX: usize = 20;
/// Streams that a client has taken back before they were answered, from which on it is looked at how many that are of
/// all: more than half is a flood (rapid reset, CVE-2023-44487), whose cost would be the origin's.
const TAKEN_BACK_MAX: u32 = 100;

/// Both connections, and what their streams share.
struct Joined<'a> {
    tunnel: &'a Session<Socket>,
    destination: &'a Destination,
    /// The origin's.
    address: SocketAddr,
    origin: SendRequest<Bytes>,
    caller: RefCell<Option<Caller>>,
    /// The policy's version that the last stream was judged under.
    version: Cell<u64>,
    /// No new stream is passed on.
    draining: Cell<bool>,
}

/// How the client's connection ended.
enum Ended {
    /// As connections do.
    Closed,
    /// By us, because of what the client sent.
    Refused { reason: &'static str, detail: String },
}

type ClientSide<'a> = server::Connection<Wire<'a, &'a Socket>, Bytes>;
type OriginSide = client::Connection<Wire<'static, Socket>, Bytes>;

impl Session<Socket> {
    /// Serves a client that has chosen HTTP/2. Hands back who it is.
    pub(super) async fn serve_h2<'a>(
        &'a self,
        client: &Rc<Tls<&'a Socket>>,
        caller: Option<Caller>,
        destination: &'a Destination,
        origin: Upstream<Tls<Socket>>,
    ) -> (Next, Option<Caller>) {
        let Upstream { side, address, .. } = origin;
        self.watch.set_upstream(Some(&side));
        self.watch.arm(self.core.limits.head_read, Aim::Both);
        let both = self.agree(client, side).await;
        let Ok((client, sender, mut origin)) = both else {
            self.watch.set_upstream(None);
            return (Next::Close, caller);
        };
        let joined = Joined {
            tunnel: self,
            destination,
            address,
            origin: sender,
            caller: RefCell::new(caller),
            version: Cell::new(0),
            draining: Cell::new(false),
        };
        let (ended, origin_open) = joined.serve(client, &mut origin).await;
        let Joined { origin: sender, caller, .. } = joined;
        drop(sender);
        if origin_open {
            // Nobody is left to ask it for anything: it says so to the origin.
            let _ = monoio::time::timeout(LINGER, origin).await;
        }
        self.watch.set_upstream(None);
        let next = match ended {
            _ if self.watch.cause() == Some(Cause::PolicyChanged) => {
                self.tell_ended(destination);
                Next::Close
            }
            Ended::Refused { reason, detail } if self.watch.cause().is_none() => {
                self.tell_ended_for(destination, reason, Some(&detail));
                Next::Linger
            }
            _ => Next::Close,
        };
        (next, caller.into_inner())
    }

    /// Both sides' prefaces.
    async fn agree<'a>(
        &self,
        client: &Rc<Tls<&'a Socket>>,
        origin: Tls<Socket>,
    ) -> Result<(ClientSide<'a>, SendRequest<Bytes>, OriginSide), h2::Error> {
        let list_octets = two::header_list_octets(&self.core.head_limits());
        let mut asking = client::Builder::new();
        asking
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW_OCTETS)
            .initial_connection_window_size(CONNECTION_WINDOW_OCTETS)
            .max_header_list_size(list_octets)
            .max_concurrent_reset_streams(RESETS_REMEMBERED)
            .max_send_buffer_size(SEND_OCTETS);
        let mut serving = server::Builder::new();
        serving
            .initial_window_size(STREAM_WINDOW_OCTETS)
            .initial_connection_window_size(CONNECTION_WINDOW_OCTETS)
            .max_header_list_size(list_octets)
            .max_concurrent_streams(STREAMS_MAX)
            .max_concurrent_reset_streams(RESETS_REMEMBERED)
            .max_pending_accept_reset_streams(RESETS_PENDING_MAX)
            .max_send_buffer_size(SEND_OCTETS);
        let (sender, origin) = asking.handshake(Wire::new(Rc::new(origin))).await?;
        let client = serving.handshake(Wire::new(Rc::clone(client))).await?;
        Ok((client, sender, origin))
    }
}

impl Joined<'_> {
    /// Serves streams until the client's connection is done with. Says whether the origin's still stands.
    async fn serve(&self, mut client: ClientSide<'_>, origin: &mut OriginSide) -> (Ended, bool) {
        let mut sender = self.origin.clone();
        let mut origin_open = true;
        let mut streams = FuturesUnordered::new();
        let mut idle = false;
        let (mut begun, mut taken_back) = (0_u32, 0_u32);
        let mut flooded = None;
        let ended = poll_fn(|cx| {
            loop {
                origin_open = origin_open && Pin::new(&mut *origin).poll(cx).is_pending();
                if !(self.draining.get() || origin_open && takes_more(&mut sender, cx)) {
                    self.draining.set(true);
                    client.graceful_shutdown();
                }
                let mut moved = false;
                loop {
                    match client.poll_accept(cx) {
                        Poll::Ready(Some(Ok((request, respond)))) => {
                            streams.push(self.serve_stream(request, respond));
                            begun = begun.saturating_add(1);
                            moved = true;
                        }
                        Poll::Ready(Some(Err(error))) => {
                            return Poll::Ready(flooded.take().unwrap_or_else(|| ended(&error)));
                        }
                        Poll::Ready(None) => return Poll::Ready(flooded.take().unwrap_or(Ended::Closed)),
                        Poll::Pending => break,
                    }
                }
                while let Poll::Ready(Some(served)) = streams.poll_next_unpin(cx) {
                    taken_back = taken_back.saturating_add(u32::from(served == Served::TakenBack));
                    moved = true;
                }
                if taken_back > TAKEN_BACK_MAX && taken_back > begun / 2 && flooded.is_none() {
                    let detail = format!("the client took back {taken_back} of {begun} requests unanswered");
                    flooded = Some(Ended::Refused { reason: "http2_flood", detail });
                    client.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                }
                if idle != streams.is_empty() {
                    idle = streams.is_empty();
                    self.rest(idle);
                }
                if !moved {
                    return Poll::Pending;
                }
            }
        });
        let ended = ended.await;
        (ended, origin_open)
    }

    /// The connection has no stream any more, or has one again.
    fn rest(&self, idle: bool) {
        let Session { core, sandbox, watch, .. } = self.tunnel;
        if idle {
            // As long as requests were under way each stood for itself.
            watch.standing.inspected(self.version.get(), self.destination, self.address);
            watch.arm(core.limits.idle_keepalive, Aim::Both);
            core.may_stay_open(sandbox, watch);
        } else {
            watch.standing.answered();
            watch.arm(Duration::ZERO, Aim::Both);
        }
    }
}

/// Whether the origin's connection takes another stream: not behind its `GOAWAY`.
fn takes_more(sender: &mut SendRequest<Bytes>, cx: &mut Context<'_>) -> bool {
    !matches!(sender.poll_ready(cx), Poll::Ready(Err(_)))
}

/// An end that the client's own sockets did not bring is told.
fn ended(error: &h2::Error) -> Ended {
    if error.is_library() {
        let reason = match error.reason() {
            Some(Reason::ENHANCE_YOUR_CALM) => "http2_flood",
            _ => "http2_malformed",
        };
        return Ended::Refused { reason, detail: error.to_string() };
    }
    Ended::Closed
}
