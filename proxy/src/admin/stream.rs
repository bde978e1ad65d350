//! Answers that last: events as they come, and a launcher's workload for as long as it runs.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::channel::Channel;
use hyper::body::{Body as HttpBody, Frame};
use serde::Deserialize;

use super::routes::Api;
use crate::daemon::{Attended, Refusal};
use crate::event::feed::{FOLLOWERS_MAX, Filter, Following};

/// Octets of one piece, about: what a slow reader makes wait in memory beyond the feed's own bound.
const PIECE_OCTETS: usize = 64 * 1024;

/// Which events are wanted.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    sandbox: Option<String>,
    event: Option<String>,
    /// Whether those that come are wanted after those that were.
    #[serde(default)]
    follow: bool,
}

pub(super) async fn events(
    State(api): State<Api>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Response {
    let Query(wanted) = match wanted {
        Ok(wanted) => wanted,
        Err(rejection) => return Refusal::Invalid(rejection.body_text()).into_response(),
    };
    let kind = match wanted.event.as_deref().map(str::parse).transpose() {
        Ok(kind) => kind,
        Err(why) => return Refusal::Invalid(format!("event: {why}")).into_response(),
    };
    let feed = api.daemon.upgrade().and_then(|daemon| daemon.appliance().reporter().feed().cloned());
    let Some(feed) = feed else {
        return Refusal::Unavailable("the daemon is stopping".into()).into_response();
    };
    let filter = Filter { sandbox: wanted.sandbox, kind };
    // What is looked back at is read through: not on this thread, on which names are resolved.
    let looked = tokio::task::spawn_blocking(move || {
        let (recent, following) = if wanted.follow {
            feed.follow(&filter).map(|(recent, following)| (recent, Some(following)))?
        } else {
            (feed.recent(&filter), None)
        };
        Some(Lines { ready: pieces(&recent), following })
    });
    match looked.await {
        Ok(Some(lines)) => {
            ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::new(lines)).into_response()
        }
        Ok(None) => {
            Refusal::Unavailable(format!("{FOLLOWERS_MAX} follow the events already")).into_response()
        }
        Err(_) => Refusal::Failed("the call ended early; see the daemon's log".into()).into_response(),
    }
}

/// An answer of lines. It ends with its connection, and with it what follows: a reader that left takes no other's place.
struct Lines {
    ready: VecDeque<Bytes>,
    following: Option<Following>,
}

impl HttpBody for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let lines = self.get_mut();
        loop {
            if let Some(piece) = lines.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            let Some(following) = &mut lines.following else { return Poll::Ready(None) };
            let next = ready!(following.poll_next(context));
            if next.is_empty() {
                lines.following = None;
            }
            lines.ready = pieces(&next);
        }
    }
}

/// Lines joined to pieces of about [`PIECE_OCTETS`].
fn pieces(lines: &[Arc<str>]) -> VecDeque<Bytes> {
    let mut pieces = VecDeque::new();
    let mut piece = Vec::new();
    for line in lines {
        piece.extend_from_slice(line.as_bytes());
        if piece.len() >= PIECE_OCTETS {
            pieces.push_back(Bytes::from(std::mem::take(&mut piece)));
        }
    }
    if !piece.is_empty() {
        pieces.push_back(piece.into());
    }
    pieces
}

/// An answer without a body that ends when the launcher does. Should it end before, the daemon has, and the launcher
/// tells the next one.
pub(super) fn until_it_ends(attended: Attended, alert: Option<impl Fn() + Send + 'static>) -> Response {
    let (mut sender, body) = Channel::<Bytes, std::io::Error>::new(1);
    tokio::spawn(async move {
        // So that the launcher knows at once that it is attended to.
        if sender.send_data(Bytes::from_static(b"{}\n")).await.is_err() {
            return;
        }
        let alert = move || {
            if let Some(alert) = &alert {
                alert();
            }
        };
        attended.until_it_ends(alert).await;
        drop(sender);
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::new(body)).into_response()
}
