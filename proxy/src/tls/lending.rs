//! How one server configuration serves every name of a sandbox: the leaf a connection needs is lent to rustls for the
//! moment in which it asks.
//!
//! rustls asks for a certificate while it processes a ClientHello (twice, if it asks for another key share), always
//! inside the call that hands it the octets. So the leaf is put where the resolver looks, for that call alone: nothing is
//! shared between threads, and no name is looked up twice.

use std::cell::RefCell;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

thread_local! {
    static LENT: RefCell<Option<Arc<CertifiedKey>>> = const { RefCell::new(None) };
}

/// Runs `call` with `leaf` lent to every [`Borrower`] of this thread.
pub(super) fn lend<T>(leaf: Option<&Arc<CertifiedKey>>, call: impl FnOnce() -> T) -> T {
    /// Takes the leaf back, whatever happens in the call.
    struct Loan;
    impl Drop for Loan {
        fn drop(&mut self) {
            LENT.set(None);
        }
    }
    LENT.set(leaf.cloned());
    let _loan = Loan;
    call()
}

/// Answers with the leaf that is lent.
#[derive(Debug)]
pub(super) struct Borrower;

impl ResolvesServerCert for Borrower {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        LENT.with_borrow(Option::clone)
    }
}
