//! What one sandbox needs to be looked into: its authority, one configuration for each direction, its budget.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, ClientConfig, ServerConfig, SupportedProtocolVersion};

use super::asked::Nothing;
use super::authority::{Authority, AuthorityError};
use super::lending::Borrower;
use super::names::Names;
use super::roots::Roots;
use crate::pace::Pace;

/// Leaves one sandbox may have signed a second, and at once after silence: enough for a browser's page, and no more
/// than one or two hundredths of a core.
pub const LEAVES_PER_S: u64 = 100;
/// Origins whose sessions a sandbox can resume.
const SESSIONS_MAX: usize = 256;
/// The protocols that are understood inside (ALPN).
const HTTP_11: &[u8] = b"http/1.1";
const HTTP_2: &[u8] = b"h2";

/// The oldest TLS version spoken, on both sides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Oldest {
    /// TLS 1.2.
    #[default]
    Tls12,
    /// TLS 1.3.
    Tls13,
}

impl Oldest {
    /// `1.2` or `1.3`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "1.2" => Some(Self::Tls12),
            "1.3" => Some(Self::Tls13),
            _ => None,
        }
    }

    fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        match self {
            Self::Tls12 => &BOTH,
            Self::Tls13 => BOTH.get(..1).unwrap_or_default(),
        }
    }
}

/// `ring`, with AES-128 before the other suites: with SHA-256 a handshake's keys cost a good deal less than with SHA-384,
/// and what is sealed less than with AES-256 (docs/bench.md).
fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| {
        !matches!(
            suite.suite(),
            CipherSuite::TLS13_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
                | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
        )
    });
    provider
}

/// Whom an appliance trusts and what it speaks; shared by all its sandboxes.
pub struct Trust {
    provider: Arc<CryptoProvider>,
    verifier: Arc<dyn ServerCertVerifier>,
    roots: Roots,
    oldest: Oldest,
    http2: bool,
}

impl Trust {
    /// Trusts `roots`.
    pub fn new(roots: Roots, oldest: Oldest) -> Result<Self, AuthorityError> {
        let provider = Arc::new(provider());
        let verifier = roots.verifier(Arc::clone(&provider)).map_err(AuthorityError::of)?;
        Ok(Self { provider, verifier, roots, oldest, http2: true })
    }

    /// Trusts nobody, for an appliance that looks into nothing.
    pub fn nobody() -> Self {
        let roots = Roots::default();
        let provider = Arc::new(provider());
        let verifier = Roots::nobody(Arc::clone(&provider));
        Self { provider, verifier, roots, oldest: Oldest::default(), http2: true }
    }

    /// Whether HTTP/2 may be spoken inside; it may unless this says otherwise.
    #[must_use]
    pub fn with_http2(self, http2: bool) -> Self {
        Self { http2, ..self }
    }

    /// The authorities.
    pub fn roots(&self) -> &Roots {
        &self.roots
    }
}

/// One configuration with HTTP/1.1 alone and one with HTTP/2 before it; tickets and sessions are the same.
struct Both<T> {
    only_http1: Arc<T>,
    with_http2: Arc<T>,
}

impl<T> Both<T> {
    fn get(&self, http2: bool) -> &Arc<T> {
        if http2 { &self.with_http2 } else { &self.only_http1 }
    }
}

/// The interception of one sandbox.
pub struct Interception {
    /// Differs from every other of this process.
    id: u64,
    authority: Authority,
    server: Both<ServerConfig>,
    client: Both<ClientConfig>,
    http2: bool,
    budget: Option<Pace>,
}

impl Interception {
    /// For the sandbox `name`; an authority for `names` alone, if they are given.
    pub fn new(
        trust: &Trust,
        name: &str,
        names: Option<&Names>,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let versions = trust.oldest.versions();
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&trust.provider))
            .with_protocol_versions(versions)
            .map_err(AuthorityError::of)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Borrower));
        server.alpn_protocols = vec![HTTP_11.to_vec()];
        server.ignore_client_order = true; // nearly all ask for AES-256 first
        server.ticketer = ring::Ticketer::new().map_err(AuthorityError::of)?;
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&trust.provider))
            .with_protocol_versions(versions)
            .map_err(AuthorityError::of)?
            .dangerous()
            // Not dangerous: webpki over the platform's authorities; the method is the one that takes a verifier.
            .with_custom_certificate_verifier(Arc::clone(&trust.verifier))
            .with_client_cert_resolver(Arc::new(Nothing));
        client.alpn_protocols = vec![HTTP_11.to_vec()];
        client.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
        let both = || vec![HTTP_2.to_vec(), HTTP_11.to_vec()];
        let (mut server_with_http2, mut client_with_http2) = (server.clone(), client.clone());
        server_with_http2.alpn_protocols = both();
        client_with_http2.alpn_protocols = both();
        Ok(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            authority: Authority::new(name, names, now)?,
            server: Both { with_http2: Arc::new(server_with_http2), only_http1: Arc::new(server) },
            client: Both { with_http2: Arc::new(client_with_http2), only_http1: Arc::new(client) },
            http2: trust.http2,
            budget: Pace::new(LEAVES_PER_S),
        })
    }

    /// Differs from that of every other interception of this process.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Who signs its leaves.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// How its clients are talked to; `http2`: they may choose it.
    pub fn server(&self, http2: bool) -> &Arc<ServerConfig> {
        self.server.get(http2)
    }

    /// How its origins are talked to; `http2`: they may choose it.
    pub fn client(&self, http2: bool) -> &Arc<ClientConfig> {
        self.client.get(http2)
    }

    /// Whether HTTP/2 is spoken where client and origin both do.
    pub fn speaks_http2(&self) -> bool {
        self.http2
    }

    /// Sets the price of one leaf aside at `now`, if the budget has it.
    pub fn may_sign(&self, now: Duration) -> bool {
        self.budget.as_ref().is_none_or(|budget| budget.try_take(now))
    }

    /// The leaf was not needed after all.
    pub fn give_back(&self) {
        if let Some(budget) = &self.budget {
            budget.give_back();
        }
    }
}
