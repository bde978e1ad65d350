//! A descriptor that the reactor watches. The one unsafe call of the crate is here.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::task::{Context, Poll};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Something that owns one descriptor for as long as it lives, and names no other.
///
/// Implemented in this module only for types that hold an `OwnedFd` or a `File` in a private field and never
/// replace it: [`Watched::new`] relies on that.
pub(super) trait OwnsFd: AsFd {}

impl OwnsFd for crate::kmsg::Reader {}
impl OwnsFd for crate::nflog::Socket {}
impl OwnsFd for nix::sys::timerfd::TimerFd {}

/// Watched for readability, edge-triggered.
pub(super) struct Watched<T: OwnsFd>(AsyncFd<Raw<T>>);

struct Raw<T>(T);

impl<T: OwnsFd> AsRawFd for Raw<T> {
    fn as_raw_fd(&self) -> RawFd {
        let fd: BorrowedFd<'_> = self.0.as_fd();
        fd.as_raw_fd()
    }
}

impl<T: OwnsFd> Watched<T> {
    /// Hands the descriptor to the reactor of the current runtime.
    pub(super) fn new(inner: T) -> io::Result<Self> {
        // SAFETY: `OwnsFd` types own one open descriptor and give the same one for their whole life; `Watched`
        // gives out only shared references, so the value inside cannot be replaced while it is registered.
        #[allow(unsafe_code)]
        let watched = unsafe { AsyncFd::register_with_interest(Raw(inner), Interest::READABLE) }?;
        Ok(Self(watched))
    }

    pub(super) fn get(&self) -> &T {
        &self.0.get_ref().0
    }

    /// Whether it has become readable since the last call. The readiness is taken back before the reading
    /// begins, so what arrives while we read wakes us again.
    pub(super) fn poll_woken(&self, context: &mut Context<'_>) -> io::Result<bool> {
        // Once more after taking readiness back, or no waker would be registered.
        let mut woken = false;
        while let Poll::Ready(guard) = self.0.poll_read_ready(context) {
            guard?.clear_ready();
            woken = true;
        }
        Ok(woken)
    }
}
