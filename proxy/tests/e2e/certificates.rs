//! The certificate of an origin in TLS, under a root of the test's own.

use std::fs;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// Writes `root.pem`, and `leaf.pem` and `leaf.key` for `origin.test`.
pub(crate) fn make_certificates(dir: &Path) {
    let write = |name: &str, text: String| fs::write(dir.join(name), text).expect("write a certificate");
    let key = KeyPair::generate().expect("a key");
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    root.distinguished_name.push(DnType::CommonName, "the root of a test");
    write("root.pem", root.self_signed(&key).expect("a root").pem());
    let issuer = Issuer::new(root, key);
    let key = KeyPair::generate().expect("a key");
    let leaf = CertificateParams::new(["origin.test".to_owned()]).expect("a name");
    write("leaf.pem", leaf.signed_by(&key, &issuer).expect("a certificate").pem());
    write("leaf.key", key.serialize_pem());
}
