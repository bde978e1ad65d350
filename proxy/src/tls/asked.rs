//! Whether an origin has asked for a certificate of the client's. There is none to give, and what an origin then says
//! differs: TLS 1.3 has an alert for it, after the handshake; TLS 1.2 speaks of a handshake that failed.
//!
//! rustls asks its resolver while it processes what the origin sent, always inside the call that hands it the octets: the
//! answer is noted for that call's thread alone.

use std::cell::Cell;
use std::sync::Arc;

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;

thread_local! {
    static ASKED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `call` and says whether a [`Nothing`] of this thread was asked in it.
pub(super) fn noting<T>(call: impl FnOnce() -> T) -> (T, bool) {
    ASKED.set(false);
    let done = call();
    (done, ASKED.take())
}

/// Has no certificate, and notes that one was wanted.
#[derive(Debug)]
pub(super) struct Nothing;

impl ResolvesClientCert for Nothing {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        ASKED.set(true);
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}
