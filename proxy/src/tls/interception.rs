//! What one sandbox needs to be looked into: its authority, one configuration for each direction, its budget.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustls::client::Resumption;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ServerConfig, SupportedProtocolVersion};

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
/// The one protocol that is understood inside.
const HTTP_11: &[u8] = b"http/1.1";

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

/// Whom an appliance trusts and what it speaks; shared by all its sandboxes.
pub struct Trust {
    provider: Arc<CryptoProvider>,
    verifier: Arc<dyn ServerCertVerifier>,
    roots: Roots,
    oldest: Oldest,
}

impl Trust {
    /// Trusts `roots`.
    pub fn new(roots: Roots, oldest: Oldest) -> Result<Self, AuthorityError> {
        let provider = Arc::new(ring::default_provider());
        let verifier = roots.verifier(Arc::clone(&provider)).map_err(AuthorityError::of)?;
        Ok(Self { provider, verifier, roots, oldest })
    }

    /// Trusts nobody, for an appliance that looks into nothing.
    pub fn nobody() -> Self {
        let roots = Roots::default();
        let provider = Arc::new(ring::default_provider());
        let verifier = Roots::nobody(Arc::clone(&provider));
        Self { provider, verifier, roots, oldest: Oldest::default() }
    }

    /// The authorities.
    pub fn roots(&self) -> &Roots {
        &self.roots
    }
}

/// The interception of one sandbox.
pub struct Interception {
    /// Differs from every other of this process.
    id: u64,
    authority: Authority,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
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
        server.ticketer = ring::Ticketer::new().map_err(AuthorityError::of)?;
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&trust.provider))
            .with_protocol_versions(versions)
            .map_err(AuthorityError::of)?
            .dangerous()
            // Not dangerous: webpki over the platform's authorities; the method is the one that takes a verifier.
            .with_custom_certificate_verifier(Arc::clone(&trust.verifier))
            .with_no_client_auth();
        client.alpn_protocols = vec![HTTP_11.to_vec()];
        client.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
        Ok(Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            authority: Authority::new(name, names, now)?,
            server: Arc::new(server),
            client: Arc::new(client),
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

    /// How its clients are talked to.
    pub fn server(&self) -> &Arc<ServerConfig> {
        &self.server
    }

    /// How its origins are talked to.
    pub fn client(&self) -> &Arc<ClientConfig> {
        &self.client
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
