//! Who is trusted: towards origins the platform's authorities and the operator's own; inside a sandbox these and the
//! sandbox' authority.
//!
//! [`Roots`] is read once, at the start. [`bundle`] is what a workload is given to read.

use std::collections::HashSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};
use thiserror::Error;

use super::verified::{Shown, Verified};

/// Octets a file of authorities may have. The platform's have some 220,000.
const FILE_OCTETS_MAX: u64 = 16 << 20;

/// Why the operator's authorities cannot be used.
#[derive(Debug, Error)]
pub enum RootsError {
    /// The file.
    #[error("cannot read the certificate authorities in {path}: {source}")]
    Unreadable {
        /// As given.
        path: PathBuf,
        /// The kernel's reason.
        source: std::io::Error,
    },
    /// What is in it.
    #[error(
        "{path} holds {problem}; it must hold one or more certificates in PEM (-----BEGIN CERTIFICATE-----)"
    )]
    Bad {
        /// As given.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// The trusted authorities.
#[derive(Clone, Debug, Default)]
pub struct Roots {
    /// The platform's first.
    certificates: Vec<CertificateDer<'static>>,
    /// How many of them are the platform's.
    platform: usize,
}

impl Roots {
    /// The platform's authorities and those in `files`. What the platform has but cannot be read is said in the log;
    /// what the operator gave must be right.
    pub fn load(files: &[PathBuf]) -> Result<Self, RootsError> {
        let mut roots = Self::platform();
        for file in files {
            roots.add(read(file)?);
        }
        Ok(roots)
    }

    /// The platform's alone.
    pub fn platform() -> Self {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "some of the platform's certificate authorities cannot be read");
        }
        if found.certs.is_empty() {
            tracing::warn!(
                "the platform has no certificate authorities (package ca-certificates): \
                 no origin's certificate can be verified but those of tls.upstream_ca"
            );
        }
        let mut roots = Self::default();
        roots.add(found.certs);
        roots.platform = roots.certificates.len();
        roots
    }

    fn add(&mut self, certificates: Vec<CertificateDer<'static>>) {
        let mut known: HashSet<_> = self.certificates.iter().cloned().collect();
        self.certificates.extend(certificates.into_iter().filter(|new| known.insert(new.clone())));
    }

    /// The platform's certificates: what programs trust that are told nothing else.
    pub fn of_platform(&self) -> &[CertificateDer<'static>] {
        self.certificates.get(..self.platform).unwrap_or_default()
    }

    /// The certificates, without duplicates.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// A verifier that trusts nobody.
    pub(super) fn nobody(provider: Arc<CryptoProvider>) -> Arc<dyn ServerCertVerifier> {
        Arc::new(NobodyTrusted(provider))
    }

    /// A verifier that trusts them.
    pub fn verifier(&self, provider: Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>, Error> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(self.certificates.iter().cloned());
        if store.is_empty() {
            return Ok(Self::nobody(provider));
        }
        let inner = WebPkiServerVerifier::builder_with_provider(store.into(), provider)
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        Ok(Arc::new(Verifier { webpki: inner, verified: Verified::default() }))
    }
}

/// Reads authorities from a file; every block in it must be a certificate that can be an authority.
pub fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>, RootsError> {
    let unreadable = |source| RootsError::Unreadable { path: path.to_owned(), source };
    let mut text = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(FILE_OCTETS_MAX + 1).read_to_end(&mut text).map_err(unreadable)?;
    parse(path, &text)
}

/// The same from the text of the file `path`.
pub fn parse(path: &Path, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, RootsError> {
    let bad = |problem: String| RootsError::Bad { path: path.to_owned(), problem };
    if text.len() as u64 > FILE_OCTETS_MAX {
        return Err(bad(format!("more than the {FILE_OCTETS_MAX} octets that are read")));
    }
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(|error| bad(format!("no valid PEM ({error})")))?;
    if certificates.is_empty() {
        return Err(bad("no certificate".into()));
    }
    let mut store = RootCertStore::empty();
    for (number, certificate) in certificates.iter().enumerate() {
        store.add(certificate.clone()).map_err(|error| {
            bad(format!("a certificate (number {}) that cannot be used: {error}", number + 1))
        })?;
    }
    Ok(certificates)
}

/// A file of authorities as programs read it: PEM, one after the other.
pub fn bundle<'a>(certificates: impl IntoIterator<Item = &'a CertificateDer<'static>>) -> String {
    let mut text = String::new();
    for certificate in certificates {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        for line in base64(certificate).as_bytes().chunks(64) {
            text.extend(line.iter().map(|&octet| char::from(octet)));
            text.push('\n');
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

fn base64(octets: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(octets.len().div_ceil(3) * 4);
    for chunk in octets.chunks(3) {
        let [a, b, c] = [0, 1, 2].map(|index| u32::from(chunk.get(index).copied().unwrap_or(0)));
        let bits = a << 16 | b << 8 | c;
        for place in 0..4 {
            let sextet = (bits >> (18 - 6 * place)) & 63;
            let letter = ALPHABET.get(sextet as usize).copied().unwrap_or(b'=');
            text.push(if place <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

/// The certificate is signed by its own key and by nobody we trust.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("self-signed")]
pub struct SelfSigned;

/// webpki's verdict, with self-signed certificates told apart: for whoever runs the origin that is another mistake than
/// a missing intermediate.
#[derive(Debug)]
struct Verifier {
    webpki: Arc<WebPkiServerVerifier>,
    verified: Verified,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let shown = Shown { end_entity, intermediates, name: server_name };
        let verdict = self.verified.or_verify(&shown, now, |moment| {
            let verified =
                self.webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, moment);
            verified.map(drop)
        });
        match verdict {
            Err(Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::Other(_)))
                if is_self_signed(end_entity) =>
            {
                Err(CertificateError::Other(OtherError(Arc::new(SelfSigned))).into())
            }
            verdict => verdict.map(|()| ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.webpki.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// Where there is no authority at all, no certificate is good.
#[derive(Debug)]
struct NobodyTrusted(Arc<CryptoProvider>);

impl ServerCertVerifier for NobodyTrusted {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Err(CertificateError::UnknownIssuer.into())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(CertificateError::UnknownIssuer.into())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(CertificateError::UnknownIssuer.into())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Whether issuer and subject are the same (RFC 5280 section 4.1): what cannot be read is not.
fn is_self_signed(certificate: &[u8]) -> bool {
    let names = || {
        let tbs = Der(certificate).enter(SEQUENCE)?.enter(SEQUENCE)?;
        // The version is explicit in all but the oldest certificates.
        let rest = tbs.skip(EXPLICIT_0).unwrap_or(tbs);
        // Serial number, algorithm; issuer; validity; subject.
        let (_, rest) = rest.element()?;
        let (_, rest) = rest.element()?;
        let (issuer, rest) = rest.element()?;
        let (_, rest) = rest.element()?;
        let (subject, _) = rest.element()?;
        Some((issuer, subject))
    };
    names().is_some_and(|(issuer, subject)| issuer == subject)
}

const SEQUENCE: u8 = 0x30;
const EXPLICIT_0: u8 = 0xa0;

/// A cursor over DER.
#[derive(Clone, Copy)]
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next element, header included, and what follows it.
    fn element(self) -> Option<(&'a [u8], Self)> {
        let (header, content) = self.header()?;
        let (element, rest) = self.0.split_at_checked(header.checked_add(content)?)?;
        Some((element, Self(rest)))
    }

    fn enter(self, tag: u8) -> Option<Self> {
        let (header, content) = self.header()?;
        (self.0.first() == Some(&tag)).then_some(())?;
        self.0.get(header..header.checked_add(content)?).map(Self)
    }

    fn skip(self, tag: u8) -> Option<Self> {
        (self.0.first() == Some(&tag)).then(|| self.element().map(|(_, rest)| rest)).flatten()
    }

    /// Octets of the next element's header and of its content.
    fn header(self) -> Option<(usize, usize)> {
        let short = *self.0.get(1)?;
        if short < 0x80 {
            return Some((2, usize::from(short)));
        }
        let count = usize::from(short & 0x7f);
        if count == 0 || count > 4 {
            return None;
        }
        let octets = self.0.get(2..count.checked_add(2)?)?;
        let content = octets.iter().fold(0_usize, |sum, &octet| sum << 8 | usize::from(octet));
        Some((count.checked_add(2)?, content))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    use crate::destination::Host;
    use crate::tls::authority::Authority;

    fn authority() -> Authority {
        Authority::new("a", None, SystemTime::now()).unwrap()
    }

    #[test]
    fn a_bundle_is_read_back_as_it_was() {
        let certificates = [authority().certificate().clone(), authority().certificate().clone()];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bundle.pem");
        std::fs::write(&path, bundle(&certificates)).unwrap();
        assert_eq!(read(&path).unwrap(), certificates);
        assert_eq!(bundle([&certificates[0]]), authority_text(&certificates[0]));
    }

    /// As another implementation writes it.
    fn authority_text(certificate: &CertificateDer<'_>) -> String {
        let own = authority();
        let text = own.pem().replace("\r\n", "\n");
        assert_eq!(bundle([own.certificate()]), text);
        bundle([&certificate.clone().into_owned()])
    }

    #[test]
    fn what_is_no_certificate_is_refused_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pem");
        for (text, said) in [
            ("", "no certificate"),
            ("-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n", "no valid PEM"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "number 1"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains(said) && error.contains("x.pem"), "{error}");
        }
        assert!(matches!(read(&dir.path().join("none")), Err(RootsError::Unreadable { .. })));
    }

    #[test]
    fn an_authority_is_self_signed_and_its_leaf_is_not() {
        let authority = authority();
        let leaf = authority.sign(&Host::parse(b"a.example").unwrap(), SystemTime::now()).unwrap();
        assert!(is_self_signed(authority.certificate()));
        assert!(!is_self_signed(&leaf.certified.cert[0]));
        for cut in 0..authority.certificate().len().min(200) {
            is_self_signed(&authority.certificate()[..cut]);
        }
    }
}
