//! Answers that last: events as they come, and a launcher's workload for as long as it runs.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::channel::Channel;
use serde::Deserialize;

use super::routes::Api;
use crate::daemon::{Attended, Refusal};
use crate::event::feed::{FOLLOWERS_MAX, Filter};

/// Pieces of an answer that may wait for its reader.
const PIECES_WAITING: usize = 4;
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
    let (mut sender, body) = Channel::<Bytes, std::io::Error>::new(PIECES_WAITING);
    if wanted.follow {
        let Some((recent, mut following)) = feed.follow(&filter) else {
            let message = format!("{FOLLOWERS_MAX} follow the events already");
            return Refusal::Unavailable(message).into_response();
        };
        drop(feed);
        tokio::spawn(async move {
            let mut lines = recent;
            loop {
                for piece in pieces(&lines) {
                    if sender.send_data(piece).await.is_err() {
                        return;
                    }
                }
                lines = following.next().await;
                if lines.is_empty() {
                    return;
                }
            }
        });
    } else {
        let lines = feed.recent(&filter);
        tokio::spawn(async move {
            for piece in pieces(&lines) {
                if sender.send_data(piece).await.is_err() {
                    return;
                }
            }
        });
    }
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::new(body)).into_response()
}

/// Lines joined to pieces of about [`PIECE_OCTETS`].
fn pieces(lines: &[Arc<str>]) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    let mut piece = Vec::new();
    for line in lines {
        piece.extend_from_slice(line.as_bytes());
        if piece.len() >= PIECE_OCTETS {
            pieces.push(Bytes::from(std::mem::take(&mut piece)));
        }
    }
    if !piece.is_empty() {
        pieces.push(piece.into());
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
