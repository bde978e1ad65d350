use std::time::SystemTime;

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{ServerName, UnixTime};

use super::*;

fn host(text: &str) -> Host {
    Host::parse(text.as_bytes()).unwrap()
}

/// Whether a client that trusts the authority takes the leaf for `name`.
fn accepts(authority: &Authority, leaf: &Leaf, name: &str, at: SystemTime) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate().clone()).unwrap();
    let verifier =
        WebPkiServerVerifier::builder_with_provider(roots.into(), default_provider().into()).build().unwrap();
    let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let name = ServerName::try_from(name).unwrap();
    let chain = &leaf.certified.cert;
    verifier.verify_server_cert(&chain[0], &[], &name, &[], UnixTime::since_unix_epoch(at)).is_ok()
}

#[test]
fn a_leaf_is_for_its_host_alone_and_for_a_while() {
    let now = SystemTime::now();
    let authority = Authority::new("a", None, now).unwrap();
    let leaf = authority.sign(&host("api.example.com"), now).unwrap();
    assert!(accepts(&authority, &leaf, "api.example.com", now));
    assert!(!accepts(&authority, &leaf, "example.com", now));
    assert!(!accepts(&authority, &leaf, "api.example.com", now + LEAF_LIFE + Duration::from_secs(1)));
    let ip = authority.sign(&host("192.0.2.7"), now).unwrap();
    assert!(accepts(&authority, &ip, "192.0.2.7", now));
    assert!(!accepts(&authority, &ip, "192.0.2.8", now));
    assert!(leaf.good_until < now + LEAF_LIFE);
}

#[test]
fn a_name_of_253_octets_gets_its_leaf() {
    let now = SystemTime::now();
    let name = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
    let authority = Authority::new("a", None, now).unwrap();
    let leaf = authority.sign(&host(&name), now).unwrap();
    assert!(accepts(&authority, &leaf, &name, now));
}

#[test]
fn authorities_do_not_vouch_for_each_others_leaves() {
    let now = SystemTime::now();
    let (one, other) = (Authority::new("a", None, now).unwrap(), Authority::new("a", None, now).unwrap());
    let leaf = one.sign(&host("api.example.com"), now).unwrap();
    assert!(!accepts(&other, &leaf, "api.example.com", now));
}

#[test]
fn a_constrained_authority_is_believed_for_its_names_alone() {
    let now = SystemTime::now();
    let names = Names { dns: vec!["example.com".into()], ips: vec!["192.0.2.0/24".parse().unwrap()] };
    let authority = Authority::new("a", Some(&names), now).unwrap();
    let taken = |name: &str| accepts(&authority, &authority.sign(&host(name), now).unwrap(), name, now);
    assert!(taken("example.com") && taken("a.b.example.com") && taken("192.0.2.9"));
    assert!(!taken("example.org") && !taken("notexample.com") && !taken("198.51.100.1"));
    let v6 = authority.sign(&host("[2001:db8::1]"), now).unwrap();
    assert!(!accepts(&authority, &v6, "2001:db8::1", now));
}

#[test]
fn a_constrained_authority_without_addresses_vouches_for_none() {
    let now = SystemTime::now();
    let authority =
        Authority::new("a", Some(&Names { dns: vec!["example.com".into()], ips: vec![] }), now).unwrap();
    let leaf = authority.sign(&host("192.0.2.9"), now).unwrap();
    assert!(!accepts(&authority, &leaf, "192.0.2.9", now));
}

#[test]
fn nothing_of_an_authority_is_shown() {
    let authority = Authority::new("a", None, SystemTime::now()).unwrap();
    assert_eq!(format!("{authority:?}"), "Authority { .. }");
}
