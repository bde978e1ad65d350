//! The certificate authority of one sandbox and the leaves it signs.
//!
//! The key is made here and never leaves memory: nothing writes it, nothing prints it, and it dies with the sandbox. The
//! certificate may sign leaves but no further authority (path length 0), for servers alone, for a short time, and, where
//! the names that will be asked for are known, for those alone.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::crypto::ring::sign::any_ecdsa_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SigningKey};
use thiserror::Error;

use super::names::Names;
use crate::destination::Host;

/// How long a sandbox' authority is trusted. The sandbox may not outlive it.
pub const AUTHORITY_LIFE: Duration = Duration::from_secs(90 * DAY_S);
/// How long a leaf is valid.
pub const LEAF_LIFE: Duration = Duration::from_secs(7 * DAY_S);
/// A leaf this close to its end is not handed out any more.
const LEAF_MARGIN: Duration = Duration::from_secs(DAY_S);
/// Certificates are valid from a little before they are made: clocks inside a sandbox may differ.
const BACKDATED: Duration = Duration::from_secs(3_600);
const DAY_S: u64 = 24 * 3_600;
/// The longest common name a certificate may have (RFC 5280, ub-common-name).
const COMMON_NAME_CHARS_MAX: usize = 64;

/// Why a certificate could not be made.
#[derive(Debug, Clone, Error)]
#[error("a certificate could not be made: {0}")]
pub struct AuthorityError(Arc<str>);

impl AuthorityError {
    pub(super) fn of(error: impl std::fmt::Display) -> Self {
        Self(error.to_string().into())
    }
}

/// A certificate authority in memory.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
    /// One key for all leaves: what a leaf costs is one signature.
    leaf_key: KeyPair,
    leaf_signer: Arc<dyn SigningKey>,
    until: SystemTime,
}

/// A certificate for one host, with the key to use it.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// As rustls takes it.
    pub certified: Arc<CertifiedKey>,
    /// Until when it may be handed out.
    pub good_until: SystemTime,
}

impl Authority {
    /// Makes the authority of the sandbox `name`; for `names` alone, if they are given.
    pub fn new(name: &str, names: Option<&Names>, now: SystemTime) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(AuthorityError::of)?;
        let leaf_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(AuthorityError::of)?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
        let leaf_signer = any_ecdsa_type(&der).map_err(AuthorityError::of)?;
        let until = now + AUTHORITY_LIFE;
        let mut params = CertificateParams::default();
        params.not_before = (now - BACKDATED).into();
        params.not_after = until.into();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.name_constraints = names.map(constraints);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Sluice");
        let common: String =
            format!("Sluice CA of sandbox {name}").chars().take(COMMON_NAME_CHARS_MAX).collect();
        params.distinguished_name.push(DnType::CommonName, common);
        let certificate = params.self_signed(&key).map_err(AuthorityError::of)?;
        Ok(Self {
            pem: certificate.pem(),
            certificate: certificate.der().clone(),
            issuer: Issuer::new(params, key),
            leaf_key,
            leaf_signer,
            until,
        })
    }

    /// The certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The same as text.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// SHA-256 of the certificate, as tools write it: `AB:CD:…`.
    pub fn fingerprint(&self) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.certificate);
        let octets: Vec<String> = digest.as_ref().iter().map(|octet| format!("{octet:02X}")).collect();
        octets.join(":")
    }

    /// Until when it is valid.
    pub fn until(&self) -> SystemTime {
        self.until
    }

    /// Signs a leaf for `host`.
    pub fn sign(&self, host: &Host, now: SystemTime) -> Result<Leaf, AuthorityError> {
        let until = (now + LEAF_LIFE).min(self.until);
        let mut params = CertificateParams::default();
        params.not_before = (now - BACKDATED).into();
        params.not_after = until.into();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Sluice");
        params.subject_alt_names = vec![match host {
            Host::Ip(ip) => SanType::IpAddress(*ip),
            Host::Name(name) => SanType::DnsName(name.to_string().try_into().map_err(AuthorityError::of)?),
        }];
        if let Some(name) = host.name().filter(|name| name.len() <= COMMON_NAME_CHARS_MAX) {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&self.leaf_key, &self.issuer).map_err(AuthorityError::of)?;
        let certified = CertifiedKey::new(vec![certificate.der().clone()], Arc::clone(&self.leaf_signer));
        Ok(Leaf { certified: Arc::new(certified), good_until: until - LEAF_MARGIN })
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// A kind of name that is not permitted at all is excluded as a whole: what a constraint does not mention, it allows
/// (RFC 5280 section 4.2.1.10).
fn constraints(names: &Names) -> NameConstraints {
    let dns = names.dns.iter().map(|name| GeneralSubtree::DnsName(name.clone()));
    let ips = names.ips.iter().map(|net| {
        GeneralSubtree::IpAddress(match net {
            IpNet::V4(net) => CidrSubnet::V4(net.network().octets(), net.netmask().octets()),
            IpNet::V6(net) => CidrSubnet::V6(net.network().octets(), net.netmask().octets()),
        })
    });
    let mut permitted: Vec<_> = dns.chain(ips).collect();
    if names.dns.is_empty() {
        // No real name is below it (RFC 6761).
        permitted.push(GeneralSubtree::DnsName("invalid".into()));
    }
    let mut excluded = Vec::new();
    let holds_v4 = names.ips.iter().any(|net| matches!(net, IpNet::V4(_)));
    let holds_v6 = names.ips.iter().any(|net| matches!(net, IpNet::V6(_)));
    if !holds_v4 {
        excluded.push(GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(IpAddr::from([0; 4]), 0)));
    }
    if !holds_v6 {
        excluded.push(GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(IpAddr::from([0; 16]), 0)));
    }
    NameConstraints { permitted_subtrees: permitted, excluded_subtrees: excluded }
}

#[cfg(test)]
#[path = "authority_tests.rs"]
mod tests;
