//! Who trusts whom in the bench: one root, one certificate for the origin and for proxies with a static one.
//!
//! Everybody speaks as Sluice does: `ring`, ECDSA P-256, TLS 1.3 with AES-128-GCM before the other suites, HTTP/1.1.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::{Ticketer, default_provider};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::version::TLS13;
use rustls::{CipherSuite, ClientConfig, RootCertStore, ServerConfig};

/// Every origin of the bench is below this name, which resolves to loopback without being asked of any server
/// (RFC 6761 section 6.3).
pub(crate) const ZONE: &str = "bench.localhost";
/// The origin that requests go to.
pub(crate) const ORIGIN: &str = "origin.bench.localhost";
/// The one protocol spoken inside.
const HTTP_11: &[u8] = b"http/1.1";

/// The root, a certificate below it for all of [`ZONE`], and its key: files in one folder.
#[derive(Debug, Clone)]
pub(crate) struct Authority {
    folder: PathBuf,
}

impl Authority {
    /// Makes them in `folder`.
    pub(crate) fn make(folder: &Path) -> Result<Self> {
        let made = Self::in_folder(folder);
        let key = KeyPair::generate().context("a key")?;
        let mut root = CertificateParams::default();
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.distinguished_name.push(DnType::CommonName, "sluice-bench root");
        fs::write(made.root(), root.self_signed(&key).context("a root")?.pem())?;
        let issuer = Issuer::new(root, key);
        let key = KeyPair::generate().context("a key")?;
        let leaf = CertificateParams::new([format!("*.{ZONE}")]).context("a name")?;
        fs::write(made.leaf(), leaf.signed_by(&key, &issuer).context("a certificate")?.pem())?;
        fs::write(made.key(), key.serialize_pem())?;
        Ok(made)
    }

    /// Those that were made there.
    pub(crate) fn in_folder(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// The folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The root's certificate, PEM.
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.join("root.pem")
    }

    /// The certificate for [`ZONE`], PEM.
    pub(crate) fn leaf(&self) -> PathBuf {
        self.folder.join("leaf.pem")
    }

    /// Its key, PEM.
    pub(crate) fn key(&self) -> PathBuf {
        self.folder.join("leaf.key")
    }

    /// A server with that certificate, which lets its clients resume or does not.
    pub(crate) fn server(&self, resumes: bool) -> Result<Arc<ServerConfig>> {
        let chain = CertificateDer::pem_file_iter(self.leaf()).and_then(Iterator::collect);
        let key = PrivateKeyDer::from_pem_file(self.key()).context("the key")?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_single_cert(chain.context("the certificate")?, key)?;
        config.alpn_protocols = vec![HTTP_11.to_vec()];
        if resumes {
            config.ticketer = Ticketer::new()?;
        } else {
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(Arc::new(config))
    }
}

/// `ring`, with the suites in the order of Sluice's.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

/// A client that trusts what is in the file `roots`, and resumes sessions or does not.
pub(crate) fn client(roots: &Path, resumes: bool) -> Result<Arc<ClientConfig>> {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(roots).with_context(|| roots.display().to_string())? {
        store.add(root?)?;
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = vec![HTTP_11.to_vec()];
    config.resumption = if resumes { Resumption::default() } else { Resumption::disabled() };
    Ok(Arc::new(config))
}
