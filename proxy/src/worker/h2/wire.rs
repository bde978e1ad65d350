//! A TLS connection of this worker as the HTTP/2 library wants it: polled, instead of waited for.
//!
//! The library knows no runtime but only the traits of tokio's streams; no reactor of tokio's is behind them. A wait is
//! the same future that the rest of the worker awaits, kept in a box until it is over.

use std::borrow::Borrow;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::worker::socket::{Side as _, Socket};
use crate::worker::tls::Tls;

/// Reads, and writes, that succeed in a row before others get their turn: the library goes on for as long as there is
/// something, and a peer that never stops must not hold the core.
const TURN: u8 = 32;

type Wait<'a> = Pin<Box<dyn Future<Output = io::Result<()>> + 'a>>;

/// See the module.
pub(super) struct Wire<'a, S> {
    tls: Rc<Tls<S>>,
    readable: Option<Wait<'a>>,
    writable: Option<Wait<'a>>,
    reads: u8,
    writes: u8,
}

impl<'a, S: Borrow<Socket> + 'a> Wire<'a, S> {
    pub(super) fn new(tls: Rc<Tls<S>>) -> Self {
        Self { tls, readable: None, writable: None, reads: 0, writes: 0 }
    }

    fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let tls = &self.tls;
        let wait = self.readable.get_or_insert_with(|| {
            let tls = Rc::clone(tls);
            Box::pin(async move { tls.readable().await })
        });
        let outcome = ready!(wait.as_mut().poll(cx));
        self.readable = None;
        Poll::Ready(outcome)
    }

    /// Also sees off what has been sealed.
    fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let tls = &self.tls;
        let wait = self.writable.get_or_insert_with(|| {
            let tls = Rc::clone(tls);
            Box::pin(async move { tls.flush().await })
        });
        let outcome = ready!(wait.as_mut().poll(cx));
        self.writable = None;
        Poll::Ready(outcome)
    }

    fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        write: impl Fn(&Tls<S>) -> io::Result<Option<usize>>,
    ) -> Poll<io::Result<usize>> {
        ready!(poll_turn(&mut self.writes, cx));
        loop {
            if let Some(count) = write(&self.tls)? {
                return Poll::Ready(Ok(count));
            }
            self.writes = 0;
            ready!(self.poll_writable(cx))?;
        }
    }
}

/// Counts one more in a row; at the bound it is somebody else's turn first.
fn poll_turn(taken: &mut u8, cx: &Context<'_>) -> Poll<()> {
    if *taken == TURN {
        *taken = 0;
        cx.waker().wake_by_ref();
        return Poll::Pending;
    }
    *taken += 1;
    Poll::Ready(())
}

impl<'a, S: Borrow<Socket> + 'a> AsyncRead for Wire<'a, S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(poll_turn(&mut this.reads, cx));
        loop {
            if let Some(count) = this.tls.try_read(into.initialize_unfilled())? {
                into.advance(count);
                return Poll::Ready(Ok(()));
            }
            this.reads = 0;
            ready!(this.poll_readable(cx))?;
        }
    }
}

impl<'a, S: Borrow<Socket> + 'a> AsyncWrite for Wire<'a, S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_with(cx, |tls| tls.try_write(from))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_with(cx, |tls| tls.try_write_pieces(from))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.tls.is_flushed() { Poll::Ready(Ok(())) } else { this.poll_writable(cx) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(Pin::new(&mut *this).poll_flush(cx))?;
        Poll::Ready(this.tls.shutdown_write())
    }
}
