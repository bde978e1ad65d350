//! Moving the body of one message from stream to stream: its data, each piece when it comes, and its trailers.
//!
//! What came is given back to its sender's window when it has been taken by the receiver's stream, so a receiver that
//! does not read stops its sender and nobody else, as far as the windows of the connections go.

use std::cell::Cell;
use std::future::poll_fn;
use std::task::{Poll, ready};

use bytes::Bytes;
use h2::{RecvStream, SendStream};

use crate::http::fault::Fault;
use crate::http::two;
use crate::worker::relay::Flow;
use crate::worker::watchdog::{Aim, Watch};

/// Why a body did not arrive.
pub(super) enum Cut {
    /// The sender's stream failed.
    Sender(h2::Error),
    /// The receiver wants no more.
    Receiver,
    /// What came may not go on.
    Fault(Fault),
}

/// One direction.
pub(super) struct Passage<'a> {
    pub(super) flow: &'a Flow<'a>,
    pub(super) watch: &'a Watch,
    /// How long nothing may move.
    pub(super) patience: std::time::Duration,
    /// Whether it is the sender that is waited for.
    pub(super) hungry: &'a Cell<bool>,
}

impl Passage<'_> {
    /// Carries the body to its end.
    pub(super) async fn carry(&self, from: &mut RecvStream, to: &mut SendStream<Bytes>) -> Result<(), Cut> {
        loop {
            self.watch.arm(self.patience, Aim::Both);
            let Some(mut data) = self.next(from, to).await? else { break };
            let ends = from.is_end_stream();
            if data.is_empty() && ends {
                return end(to, None);
            }
            while !data.is_empty() {
                self.watch.arm(self.patience, Aim::Both);
                let room = room(to, data.len()).await?;
                let part = data.split_to(room.min(data.len()));
                let count = part.len();
                to.send_data(part, ends && data.is_empty()).map_err(|_| Cut::Receiver)?;
                self.flow.add_copied(count);
                from.flow_control().release_capacity(count).map_err(Cut::Sender)?;
                self.flow.keep_pace(self.watch).await;
            }
            if ends {
                return Ok(());
            }
        }
        let trailers = poll_fn(|cx| from.poll_trailers(cx)).await.map_err(Cut::Sender)?;
        end(to, trailers)
    }

    /// The next data; none when no more comes.
    async fn next(&self, from: &mut RecvStream, to: &mut SendStream<Bytes>) -> Result<Option<Bytes>, Cut> {
        self.hungry.set(true);
        let next = poll_fn(|cx| {
            if to.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(Cut::Receiver));
            }
            Poll::Ready(ready!(from.poll_data(cx)).transpose().map_err(Cut::Sender))
        });
        let next = next.await;
        self.hungry.set(false);
        next
    }
}

/// Waits until a part of so much may be sent; says how much.
async fn room(to: &mut SendStream<Bytes>, octets: usize) -> Result<usize, Cut> {
    to.reserve_capacity(octets);
    loop {
        // The library tells of changes only.
        let room = to.capacity();
        if room > 0 {
            return Ok(room);
        }
        match poll_fn(|cx| to.poll_capacity(cx)).await {
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return Err(Cut::Receiver),
        }
    }
}

fn end(to: &mut SendStream<Bytes>, trailers: Option<http::HeaderMap>) -> Result<(), Cut> {
    let sent = match trailers {
        Some(mut trailers) => {
            two::pass_trailers(&mut trailers).map_err(Cut::Fault)?;
            to.send_trailers(trailers)
        }
        None => to.send_data(Bytes::new(), true),
    };
    sent.map_err(|_| Cut::Receiver)
}
