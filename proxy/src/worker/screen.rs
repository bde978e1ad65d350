//! The name in the TLS of a raw tunnel: it must be the host that was judged, or a policy by name is worth nothing (domain
//! fronting). Only what the client sends first is held back, and only until its ClientHello is whole; then the bytes go on
//! untouched. What the server says first is never waited for.

use std::cell::Cell;
use std::io;

use super::buffers::Buffer;
use super::session::Session;
use super::socket::Side;
use crate::destination::Host;
use crate::http::reject::Reject;
use crate::tls::client_hello::{Hello, HelloReader, SniMatch};

/// A fatal alert, access_denied (RFC 8446 section 6): what a TLS client can be told.
pub(super) const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];

/// What a tunnel's first bytes are held against.
pub(super) struct Screen<'a> {
    host: &'a Host,
    verdict: Cell<Option<Reject>>,
}

impl<'a> Screen<'a> {
    pub(super) fn new(host: &'a Host) -> Self {
        Self { host, verdict: Cell::new(None) }
    }

    /// Why the tunnel was ended, if it was.
    pub(super) fn verdict(&self) -> Option<Reject> {
        self.verdict.get()
    }

    fn refuse(&self, reject: Reject) -> io::Error {
        self.verdict.set(Some(reject));
        io::ErrorKind::PermissionDenied.into()
    }
}

/// What is wrong with a hello in a tunnel to `host`, or nothing.
pub(super) fn judge(hello: &Hello, host: &Host) -> Result<(), Reject> {
    match hello {
        Hello::Incomplete | Hello::NotTls => Ok(()),
        // What we cannot read the origin might.
        Hello::Malformed => Err(Reject::SniMissing),
        Hello::Read(hello) => match hello.compare(host) {
            SniMatch::Same => Ok(()),
            SniMatch::Missing => Err(Reject::SniMissing),
            SniMatch::Other => Err(Reject::SniMismatch),
            SniMatch::Encrypted => Err(Reject::SniEncrypted),
        },
    }
}

impl<C: Side> Session<C> {
    /// Reads on behind `early` until it is clear what the client speaks; returns all that was read, to be sent on. A client
    /// that says nothing holds no buffer.
    pub(super) async fn screen(
        &self,
        screen: &Screen<'_>,
        mut early: Option<Buffer>,
    ) -> io::Result<Option<Buffer>> {
        let mut reader = HelloReader::default();
        loop {
            if let Some(octets) = &early {
                let hello = reader.read(octets);
                if hello != Hello::Incomplete {
                    return judge(&hello, screen.host)
                        .map(|()| early)
                        .map_err(|reject| screen.refuse(reject));
                }
            }
            self.client.readable().await?;
            let mut scratch = self.core.means.scratch.borrow_mut();
            match self.client.try_read(&mut scratch)? {
                // Without a word; the rest of the tunnel finds the end by itself.
                Some(0) if early.is_none() => return Ok(None),
                // Cut within its hello. It opens nothing, and nobody knows for whom it is.
                Some(0) => return Err(screen.refuse(Reject::SniMissing)),
                Some(count) => early
                    .get_or_insert_with(|| self.core.means.buffers.take())
                    .extend_from_slice(scratch.get(..count).unwrap_or_default()),
                None => {}
            }
        }
    }
}
