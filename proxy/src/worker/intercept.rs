//! Looking inside TLS: a tunnel whose requests are judged turns out to be TLS, so it ends here and begins anew.
//!
//! The client is shown a leaf of the sandbox' own authority; the requests in it are served by the engine that serves
//! plaintext, over TLS connections to the origin that are verified, resumed and kept. Nothing is said to the origin
//! before a request has been allowed.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig};

use super::Core;
use super::buffers::Buffer;
use super::leaves::Reservation;
use super::refusal::Refusal;
use super::report::Granted;
use super::screen::{ALERT, judge};
use super::session::{LINGER, Leg, Next, Session, linger};
use super::socket::{Side, Socket};
use super::tls::{HandshakeError, Tls};
use super::upstream::{Upstream, Upstreams};
use super::watchdog::{Aim, Cause};
use crate::destination::{Destination, Host};
use crate::http::head::Method;
use crate::http::reject::Reject;
use crate::http::target::Scheme;
use crate::policy::Permit;
use crate::tls::client_hello::{ClientHello, Hello, HelloReader, Sni};
use crate::tls::{Interception, Problem, Records, problem};

/// A client that closes so soon behind the handshake, without a word, may have looked at the certificate and left.
const LEFT_AT_ONCE: Duration = Duration::from_secs(2);

/// What a client of a tunnel that is to be looked into speaks.
pub(super) enum Opening {
    /// It has closed, or was told to.
    Nothing,
    /// No TLS.
    Plain(Option<Buffer>),
    /// TLS, or something that begins like it.
    Tls(Hello, Buffer),
}

impl Session<Socket> {
    /// Reads on behind `inbox` until it is clear what the client speaks.
    pub(super) async fn opening(&self, inbox: Buffer) -> Opening {
        let mut reader = HelloReader::default();
        let mut inbox = Some(inbox);
        let mut begun = false;
        loop {
            match inbox.take().filter(|inbox| !inbox.is_empty()) {
                Some(octets) => {
                    match reader.read(&octets) {
                        Hello::Incomplete => {}
                        Hello::NotTls => return Opening::Plain(Some(octets)),
                        hello => return Opening::Tls(hello, octets),
                    }
                    if !std::mem::replace(&mut begun, true) {
                        self.watch.arm(self.core.limits.head_read, Aim::ClientRead);
                    }
                    inbox = Some(octets);
                }
                None => self.watch.arm(self.core.limits.idle_keepalive, Aim::Both),
            }
            if self.client.readable().await.is_err() {
                return Opening::Nothing;
            }
            let mut scratch = self.core.means.scratch.borrow_mut();
            match self.client.try_read(&mut scratch) {
                Ok(None) => {}
                Ok(Some(0)) | Err(_) => return Opening::Nothing,
                Ok(Some(count)) => inbox
                    .get_or_insert_with(|| self.core.means.buffers.take())
                    .extend_from_slice(scratch.get(..count).unwrap_or_default()),
            }
        }
    }

    /// Serves a tunnel that holds TLS, its requests being judged. `opening` is what the client has said so far.
    pub(super) async fn intercept(
        &mut self,
        interception: &Arc<Interception>,
        destination: &Destination,
        granted: &Granted,
        opening: (Hello, Buffer),
        reservation: Reservation,
    ) -> Next {
        let (hello, early) = opening;
        let host = match name_to_show(&hello, &destination.host, granted.verifies_sni()) {
            Ok(host) => host,
            Err(reject) => return self.refuse_hello(destination, reject),
        };
        let leaf = self.core.leaves.get(interception, host, reservation, &self.core.measures).await;
        // What is spoken with the client is what the origin speaks.
        let offers_h2 = matches!(&hello, Hello::Read(ClientHello { offers_h2: true, .. }));
        let (mirrored, unreached) = match offers_h2.then(|| Box::pin(self.mirror(interception, destination)))
        {
            Some(mirror) => {
                mirror.await.map_or_else(|refusal| (None, Some(refusal)), |origin| (origin, None))
            }
            None => (None, None),
        };
        let records = leaf.and_then(|leaf| {
            let config = interception.server(mirrored.is_some());
            Records::server(Arc::clone(config), leaf).map_err(|_| Reject::Internal)
        });
        let client = match records {
            Ok(records) => Tls::new(&self.client, records, self.core.means.sealed.clone()),
            Err(reject) => return self.refuse_hello(destination, reject),
        };
        self.watch.arm(self.core.limits.head_read, Aim::ClientRead);
        if let Err(error) = client.shake_hands(&early).await {
            self.core.measures.tls_clients.failed();
            match unreached.filter(|_| speaks_only_h2(&error)) {
                // It was offered HTTP/1.1 for this alone, and has no other way to learn of it.
                Some(refusal) => self.tell_refused_tunnel(destination, &refusal),
                None => self.tell_broken_off(destination, granted, &broken_off(&error, self.watch.cause())),
            }
            // An alert of ours must not be lost in a reset.
            return if matches!(error, HandshakeError::Tls(_)) { Next::Linger } else { Next::Close };
        }
        drop(early);
        self.core.measures.tls_clients.done(client.is_resumed());
        let since = Instant::now();
        let caller = self.caller.take();
        let (quiet, caller) = if let Some(origin) = mirrored.filter(|_| client.speaks_h2()) {
            let client = Rc::new(client);
            let (next, caller) = Box::pin(self.serve_h2(&client, caller, destination, origin)).await;
            (self.part(&client, next).await, caller)
        } else {
            let mut inside = Session {
                core: self.core.clone(),
                sandbox: Arc::clone(&self.sandbox),
                client,
                peer: self.peer,
                local: self.local,
                watch: self.watch.clone(),
                caller,
                destination: None,
            };
            let next = inside.serve_tunnel(None, destination).await;
            (self.part(&inside.client, next).await, inside.caller.take())
        };
        self.caller = caller;
        if quiet && since.elapsed() < LEFT_AT_ONCE && self.watch.cause().is_none() {
            self.tell_broken_off(destination, granted, &BrokenOff::left());
        }
        Next::Close
    }

    /// Ends the client's TLS. Says whether nothing has ever come out of it, although a certificate was shown.
    async fn part(&self, client: &Tls<&Socket>, next: Next) -> bool {
        self.watch.arm(LINGER, Aim::Both);
        client.say_last().await;
        if next == Next::Linger {
            linger(&self.core, client, &self.watch).await;
        } else {
            let _ = client.shutdown_write();
        }
        !client.has_heard() && !client.is_resumed()
    }

    /// Refuses the TLS of a tunnel before it has begun.
    fn refuse_hello(&self, destination: &Destination, reject: Reject) -> Next {
        self.tell_refused_tunnel(destination, &Refusal::from(reject));
        let _ = self.client.try_write(&ALERT);
        Next::Linger
    }

    fn tell_refused_tunnel(&self, destination: &Destination, refusal: &Refusal) {
        let hint = refusal.hint(self, Some(destination));
        self.tell_refused(Some(destination), Some(Method::Connect), None, refusal, hint.as_deref());
    }
}

/// The name the client's certificate must have: the host that was judged, unless the policy does not care what TLS says.
fn name_to_show<'a>(hello: &'a Hello, host: &'a Host, verify: bool) -> Result<&'a Host, Reject> {
    if verify {
        return judge(hello, host).map(|()| host);
    }
    match hello {
        Hello::Read(ClientHello { sni: Sni::Name(name), .. }) => Ok(name),
        _ => Ok(host),
    }
}

/// How a client broke off.
pub(super) struct BrokenOff {
    /// The stable word.
    pub(super) reason: &'static str,
    /// What was seen.
    pub(super) detail: String,
    /// Whether it was the certificate that it did not like, as far as one can tell.
    pub(super) certificate: bool,
}

impl BrokenOff {
    fn left() -> Self {
        let detail = "the client closed at once behind the handshake, without a request".into();
        Self { reason: "client_left", detail, certificate: true }
    }
}

/// Whether the client would not have HTTP/1.1.
fn speaks_only_h2(error: &HandshakeError) -> bool {
    matches!(error, HandshakeError::Tls(rustls::Error::NoApplicationProtocol))
}

fn broken_off(error: &HandshakeError, cause: Option<Cause>) -> BrokenOff {
    let (reason, detail, certificate) = match (error, cause) {
        (_, Some(cause)) => (cause.reason(), "the TLS handshake did not come to its end".into(), false),
        (HandshakeError::Tls(rustls::Error::AlertReceived(alert)), _) if is_about_certificate(*alert) => {
            ("client_refused_certificate", format!("the client sent the alert {alert:?}"), true)
        }
        (HandshakeError::Tls(rustls::Error::NoApplicationProtocol), _) => {
            ("tls_no_http11", "the client offers no HTTP/1.1 (ALPN)".into(), false)
        }
        (HandshakeError::Tls(rustls::Error::PeerIncompatible(why)), _) => {
            ("tls_incompatible", format!("the client and the proxy have no TLS in common: {why:?}"), false)
        }
        (HandshakeError::Tls(error @ rustls::Error::AlertReceived(_)), _) => {
            ("client_refused", problem::words(error), false)
        }
        (HandshakeError::Tls(error), _) => ("tls_malformed", problem::words(error), false),
        (HandshakeError::Closed | HandshakeError::Socket(_), _) => {
            ("client_left", "the client closed when it had seen the certificate".into(), true)
        }
    };
    BrokenOff { reason, detail, certificate }
}

/// The alerts with which clients turn a certificate down (RFC 8446 section 6.2); which one it is differs from library to
/// library.
fn is_about_certificate(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError
            | AlertDescription::BadCertificateStatusResponse
            | AlertDescription::BadCertificateHashValue
    )
}

/// The inside of an intercepted tunnel: its origins are spoken to in TLS.
impl Leg for Tls<&Socket> {
    type Origin = Tls<Socket>;
    const SCHEME: Scheme = Scheme::Https;

    fn upstreams(core: &Core) -> &Upstreams<Self::Origin> {
        &core.tls_upstreams
    }

    async fn reach(session: &Session<Self>, permit: Permit<'_>) -> Result<Upstream<Self::Origin>, Refusal> {
        let Session { core, sandbox, .. } = session;
        let interception = sandbox.interception().ok_or(Reject::Internal)?;
        let name = server_name(&permit.destination().host).ok_or(Reject::Internal)?;
        // The connection that was dialled for the tunnel; it may have been closed while nobody spoke.
        if let Some(dialled) = core.reuse(&core.dialled, sandbox, &permit) {
            match session.secure(interception.client(false), name.clone(), dialled).await {
                Err(Refusal { reject: Reject::OriginTls(Problem::Closed), .. }) => {}
                secured => return secured,
            }
        }
        let dialled = core.dial(permit).await?;
        session.secure(interception.client(false), name, dialled).await
    }
}

impl<C> Session<C> {
    /// Shakes hands with an origin.
    pub(super) async fn secure(
        &self,
        config: &Arc<ClientConfig>,
        name: ServerName<'static>,
        dialled: Upstream<Socket>,
    ) -> Result<Upstream<Tls<Socket>>, Refusal> {
        let records = Records::client(Arc::clone(config), name).map_err(|_| Reject::Internal)?;
        let address = dialled.address;
        let side = Tls::new(dialled.side, records, self.core.means.sealed.clone());
        self.watch.set_upstream(Some(&side));
        self.watch.arm(Duration::ZERO, Aim::Upstream);
        let shaken = monoio::time::timeout(self.core.limits.dial, side.shake_hands(&[])).await;
        self.watch.set_upstream(None);
        let (found, detail) = match shaken {
            Ok(Ok(())) => {
                self.core.measures.tls_origins.done(side.is_resumed());
                return Ok(Upstream::new(side, address));
            }
            Ok(Err(HandshakeError::Tls(error))) => (Problem::of(&error), Some(problem::words(&error))),
            Ok(Err(HandshakeError::Closed)) => (Problem::Closed, None),
            Ok(Err(HandshakeError::Socket(error))) => (Problem::Closed, Some(error.to_string())),
            Err(_) => (Problem::Timeout, None),
        };
        self.core.measures.tls_origins.failed();
        let mut refusal = Refusal::from(Reject::OriginTls(found));
        refusal.detail = detail;
        Err(refusal)
    }
}

pub(super) fn server_name(host: &Host) -> Option<ServerName<'static>> {
    match host {
        Host::Name(name) => ServerName::try_from(name.to_string()).ok(),
        Host::Ip(ip) => Some(ServerName::from(*ip)),
    }
}
