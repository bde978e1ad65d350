//! Origins whose TLS is not to be had: what a client inside is told about them, and what is never said to them.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

mod conformance;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use conformance::inside::{self as tls, BOTH, Identity, Inside, ONLY_12, Root};
use conformance::{OK, Origin, Proxy, Setup};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, SupportedProtocolVersion};

const HOST: &str = "api.localhost";

/// A daemon that judges requests to an origin, and trusts what `root` has issued.
struct Scene {
    root: Root,
    origin: Origin,
    proxy: Proxy,
}

impl Scene {
    fn new() -> Self {
        let (root, origin) = (Root::new(), Origin::new());
        let endpoint = format!("host: {HOST}, port: {}, protocol: rest, access: read-only", origin.port());
        let proxy = Setup::default().endpoints(&[endpoint]).tls(&root.entry()).start();
        Self { root, origin, proxy }
    }

    /// A client inside that has asked for something.
    fn asking(&self) -> Inside {
        let authority = format!("{HOST}:{}", self.origin.port());
        let manners = Arc::new(tls::client(&self.proxy.authority(), BOTH));
        let mut inside = tls::enter(&self.proxy, &authority, HOST, &manners).unwrap();
        inside.peer.send(format!("GET / HTTP/1.1\r\nHost: {authority}\r\n\r\n"));
        inside
    }

    /// The answer must be a 502 for this reason, whose hint says so much; an event tells it too.
    #[track_caller]
    fn is_told(&self, mut client: Inside, reason: &str, words: &str) {
        let (head, body) = client.peer.message();
        assert_eq!(head.status(), 502, "{body}");
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((&body["error"], &body["reason"]), (&"tls_failed".into(), &reason.into()), "{body}");
        assert!(body["hint"].as_str().unwrap().contains(words), "{body}");
        let event = self.proxy.event(|event| event["reason"] == reason);
        assert_eq!((&event["event"], &event["status"]), (&"request.denied".into(), &502.into()));
    }

    /// An origin that shows this certificate is refused.
    #[track_caller]
    fn is_refused(&self, identity: &Identity, reason: &str, words: &str) {
        let client = self.asking();
        assert!(tls::accept(&self.origin, &tls::server(identity, BOTH)).is_err(), "{reason}");
        self.is_told(client, reason, words);
    }
}

#[test]
fn a_certificate_before_its_time_is_told_with_the_date() {
    let scene = Scene::new();
    let tomorrow = SystemTime::now() + Duration::from_secs(90_000);
    let early = scene.root.issue_with(&[HOST], |params| {
        params.not_before = tomorrow.into();
        params.not_after = (tomorrow + Duration::from_secs(90_000)).into();
    });
    scene.is_refused(&early, "certificate_not_yet_valid", "in 1 day");
}

#[test]
fn a_chain_that_does_not_reach_a_trusted_authority_is_refused() {
    let scene = Scene::new();
    // The authority between is trusted by the root, but the origin does not show it.
    scene.is_refused(&scene.root.below().issue(&[HOST]), "certificate_unknown_issuer", "not trusted here");
}

#[test]
fn a_certificate_that_another_leaf_has_issued_is_refused() {
    let scene = Scene::new();
    let (leaf, key) = scene.root.issue_by_leaf(&[HOST]);
    let client = scene.asking();
    let config = tls::server_of(leaf, key, BOTH);
    assert!(tls::accept(&scene.origin, &Arc::new(config)).is_err());
    scene.is_told(client, "certificate_invalid", "not acceptable");
}

/// A server that takes nobody without a certificate of `root`'s.
fn demanding(root: &Root, versions: &[&'static SupportedProtocolVersion]) -> Arc<ServerConfig> {
    let mut trusted = RootCertStore::empty();
    trusted.add(root.certificate()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(trusted.into(), Arc::clone(&provider));
    let (certificate, key) = root.issue(&[HOST]);
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap());
    Arc::new(config.with_single_cert(vec![certificate], key).unwrap())
}

/// With TLS 1.3 the origin says so behind the handshake, with TLS 1.2 it speaks of a handshake that failed.
#[test]
fn an_origin_that_wants_a_client_certificate_is_told_as_that_with_the_remedy() {
    for versions in [BOTH, ONLY_12] {
        let scene = Scene::new();
        let client = scene.asking();
        assert!(tls::accept(&scene.origin, &demanding(&scene.root, versions)).is_err());
        scene.is_told(client, "client_certificate_required", "tls: skip");
    }
}

#[test]
fn an_origin_that_speaks_another_protocol_is_told_as_that() {
    let scene = Scene::new();
    let client = scene.asking();
    let mut config = (*tls::server(&scene.root.issue(&[HOST]), BOTH)).clone();
    config.alpn_protocols = vec![b"smtp".to_vec()];
    assert!(tls::accept(&scene.origin, &Arc::new(config)).is_err());
    scene.is_told(client, "tls_no_http11", "tls: skip");
}

/// 0-RTT would be a request that can be played again: neither side is offered it.
#[test]
fn early_data_is_neither_sent_nor_taken() {
    let scene = Scene::new();
    let mut config = (*tls::server(&scene.root.issue(&[HOST]), BOTH)).clone();
    config.max_early_data_size = 16_384;
    config.ticketer = rustls::crypto::ring::Ticketer::new().unwrap();
    let config = Arc::new(config);
    let authority = format!("{HOST}:{}", scene.origin.port());
    let mut manners = tls::client(&scene.proxy.authority(), BOTH);
    manners.enable_early_data = true;
    let manners = Arc::new(manners);
    for resumed in [false, true] {
        let mut inside = tls::enter(&scene.proxy, &authority, HOST, &manners).unwrap();
        assert_eq!((inside.resumed, inside.early), (resumed, false), "towards the client");
        inside.peer.send(format!("GET / HTTP/1.1\r\nHost: {authority}\r\n\r\n"));
        let mut upstream = tls::accept(&scene.origin, &config).unwrap();
        assert_eq!((upstream.resumed, upstream.early), (resumed, false), "towards the origin");
        upstream.peer.head();
        upstream.peer.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
        assert_eq!(inside.peer.message().1, "ok");
    }
}

#[test]
fn events_reach_the_client_one_by_one() {
    let scene = Scene::new();
    let mut client = scene.asking();
    let mut upstream = tls::accept(&scene.origin, &tls::server(&scene.root.issue(&[HOST]), BOTH)).unwrap();
    upstream.peer.head();
    upstream.peer.send(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n",
    );
    assert_eq!(client.peer.head().status(), 200);
    client.peer.hears("9\r\ndata: 1\n\n\r\n");
    // The next one is sent when the first has been heard.
    upstream.peer.send("9\r\ndata: 2\n\n\r\n");
    client.peer.hears("9\r\ndata: 2\n\n\r\n");
    upstream.peer.send("0\r\n\r\n");
    client.peer.hears("0\r\n\r\n");
    // The same connection serves on.
    client.peer.send(format!("GET / HTTP/1.1\r\nHost: {HOST}:{}\r\n\r\n", scene.origin.port()));
    upstream.peer.head();
    upstream.peer.send(OK);
    assert_eq!(client.peer.message().0.status(), 200);
}
