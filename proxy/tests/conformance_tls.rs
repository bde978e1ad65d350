//! TLS in a tunnel whose requests are judged: looked into, verified towards the origin, and refused in words.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

mod conformance;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use conformance::hello::client_hello;
use conformance::inside::{self as tls, BOTH, Inside, ONLY_12, Root};
use conformance::{OK, Origin, Proxy, Setup, pattern};
use rustls::ClientConfig;

/// Resolves to loopback without being asked of any server (RFC 6761 section 6.3).
const HOST: &str = "api.localhost";
/// Every request passes, and is judged for that.
const ANY: &str = "protocol: http, rules: [{allow: {method: \"*\", path: \"/**\"}}]";
const GET: &str = "GET /a?b HTTP/1.1\r\nHost: api.localhost:PORT\r\n\r\n";

/// A daemon that judges requests to an origin with a good certificate.
struct Scene {
    root: Root,
    origin: Origin,
    proxy: Proxy,
}

impl Scene {
    fn new() -> Self {
        Self::with("protocol: rest, access: read-only", "")
    }

    fn with(endpoint: &str, tls: &str) -> Self {
        let (root, origin) = (Root::new(), Origin::new());
        let endpoint = format!("host: {HOST}, port: {}, {endpoint}", origin.port());
        let tls = format!("{}, {tls}", root.entry());
        let proxy = Setup::default().endpoints(&[endpoint]).tls(&tls).start();
        Self { root, origin, proxy }
    }

    fn authority(&self) -> String {
        format!("{HOST}:{}", self.origin.port())
    }

    fn get(&self) -> String {
        GET.replace("PORT", &self.origin.port().to_string())
    }

    /// A client's manners: it trusts the sandbox' authority.
    fn manners(&self) -> Arc<ClientConfig> {
        Arc::new(tls::client(&self.proxy.authority(), BOTH))
    }

    fn enter(&self) -> Inside {
        tls::enter(&self.proxy, self.authority(), HOST, &self.manners()).unwrap()
    }

    fn server(&self) -> Arc<rustls::ServerConfig> {
        tls::server(&self.root.issue(&[HOST]), BOTH)
    }
}

#[test]
fn an_allowed_request_reaches_the_origin_and_a_forbidden_one_is_refused_in_words() {
    let scene = Scene::new();
    let mut client = scene.enter().peer;
    client.send(scene.get());
    let mut upstream = tls::accept(&scene.origin, &scene.server()).unwrap();
    assert_eq!(upstream.sni.as_deref(), Some(HOST));
    let head = upstream.peer.head();
    assert_eq!(head.start(), "GET /a?b HTTP/1.1");
    assert_eq!(head.field("host"), Some(&*scene.authority()));
    assert!(head.field("via").is_some());
    upstream.peer.send(OK);
    assert_eq!(client.message().1, "ok");
    client.send(scene.get().replace("GET", "POST").replace("\r\n\r\n", "\r\nContent-Length: 0\r\n\r\n"));
    assert_eq!(client.refusal(), (403, "method_not_allowed".into()));
    // The connection goes on: a refusal without a body is an answer like any other.
    client.send(scene.get());
    assert_eq!(upstream.peer.head().start(), "GET /a?b HTTP/1.1");
    upstream.peer.send(OK);
    assert_eq!(client.message().0.status(), 200);
    let event = scene.proxy.event_about("request.denied", scene.origin.port());
    assert_eq!((&event["method"], &event["path"]), (&"POST".into(), &"/a".into()));
}

#[test]
fn connections_to_the_origin_outlive_the_clients_and_both_ends_resume() {
    let scene = Scene::new();
    let manners = scene.manners();
    let server = scene.server();
    let enter = || tls::enter(&scene.proxy, scene.authority(), HOST, &manners).unwrap();
    let mut first = enter();
    assert!(!first.resumed);
    first.peer.send(scene.get());
    let mut upstream = tls::accept(&scene.origin, &server).unwrap();
    upstream.peer.head();
    upstream.peer.send(OK);
    first.peer.message();
    first.peer.finish();
    first.peer.hears_end();
    let mut second = enter();
    assert!(second.resumed, "towards the client");
    second.peer.send(scene.get());
    upstream.peer.head();
    upstream.peer.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
    second.peer.message();
    second.peer.send(scene.get());
    let mut again = tls::accept(&scene.origin, &server).unwrap();
    assert!(again.resumed, "towards the origin");
    again.peer.head();
    again.peer.send(OK);
    assert_eq!(second.peer.message().0.status(), 200);
}

#[test]
fn a_name_other_than_the_judged_one_is_refused_before_anything_is_said() {
    let scene = Scene::new();
    for (hello, reason) in [
        (client_hello(Some("evil.example"), false), "sni_mismatch"),
        (client_hello(Some("192.0.2.1"), false), "sni_mismatch"),
        (client_hello(None, false), "sni_missing"),
        (client_hello(Some("cover.example"), true), "sni_encrypted"),
    ] {
        let mut client = scene.proxy.tunnel(scene.authority());
        client.send(&hello);
        client.hears([21, 3, 3, 0, 2, 2, 49]);
        client.hears_end();
        scene.proxy.event(|event| event["event"] == "connect.denied" && event["reason"] == reason);
    }
}

#[test]
fn a_name_is_the_same_in_upper_case_with_a_dot_or_with_grease() {
    let scene = Scene::new();
    for hello in [
        client_hello(Some("API.LocalHost"), false),
        client_hello(Some("api.localhost."), false),
        client_hello(Some(HOST), true),
    ] {
        let mut client = scene.proxy.tunnel(scene.authority());
        client.send(&hello);
        // These hellos offer no key exchange: rustls answers with a fatal alert of its own, which is not access_denied.
        let answer = client.bytes(7);
        assert_eq!((answer[0], answer[6] != 49), (21, true), "{answer:?}");
    }
}

#[test]
fn a_client_without_a_name_is_served_where_the_policy_ignores_names() {
    let scene = Scene::with(&format!("{ANY}, sni: ignore"), "");
    let mut manners = tls::client(&scene.proxy.authority(), BOTH);
    manners.enable_sni = false;
    let mut inside = tls::enter(&scene.proxy, scene.authority(), HOST, &Arc::new(manners)).unwrap();
    inside.peer.send(scene.get());
    let mut upstream = tls::accept(&scene.origin, &scene.server()).unwrap();
    upstream.peer.head();
    upstream.peer.send(OK);
    assert_eq!(inside.peer.message().0.status(), 200);
}

#[test]
fn an_address_has_a_certificate_too() {
    let (root, origin) = (Root::new(), Origin::new());
    let endpoint = format!("host: 127.0.0.1, port: {}, {ANY}", origin.port());
    let proxy = Setup::default().endpoints(&[endpoint]).tls(&root.entry()).start();
    let manners = Arc::new(tls::client(&proxy.authority(), BOTH));
    let at = origin.address();
    let mut inside = tls::enter(&proxy, at, "127.0.0.1", &manners).unwrap();
    inside.peer.send(format!("GET / HTTP/1.1\r\nHost: {at}\r\n\r\n"));
    let mut upstream = tls::accept(&origin, &tls::server(&root.issue(&["127.0.0.1"]), BOTH)).unwrap();
    assert_eq!(upstream.sni, None);
    upstream.peer.head();
    upstream.peer.send(OK);
    assert_eq!(inside.peer.message().0.status(), 200);
}

#[test]
fn a_bad_certificate_of_the_origin_is_told_the_client_in_words() {
    let scene = Scene::new();
    let yesterday = SystemTime::now() - Duration::from_secs(90_000);
    for (identity, reason, words) in [
        (scene.root.issue(&["other.example"]), "certificate_wrong_name", "but for other.example"),
        (scene.root.issue_until(&[HOST], yesterday), "certificate_expired", "1 day ago"),
        (tls::self_signed(HOST), "certificate_self_signed", "--upstream-ca"),
        (Root::new().issue(&[HOST]), "certificate_unknown_issuer", "not trusted here"),
    ] {
        let mut client = scene.enter().peer;
        client.send(scene.get());
        assert!(tls::accept(&scene.origin, &tls::server(&identity, BOTH)).is_err(), "{reason}");
        let (head, body) = client.message();
        assert_eq!(head.status(), 502);
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!((&body["error"], &body["reason"]), (&"tls_failed".into(), &reason.into()));
        assert!(body["hint"].as_str().unwrap().contains(words), "{body}");
        let event = scene.proxy.event(|event| event["reason"] == reason);
        assert_eq!((&event["event"], &event["status"]), (&"request.denied".into(), &502.into()));
        assert!(event["detail"].is_string(), "{event}");
    }
}

#[test]
fn an_origin_that_speaks_no_tls_or_breaks_off_is_a_502() {
    let scene = Scene::new();
    let mut client = scene.enter().peer;
    client.send(scene.get());
    let mut upstream = scene.origin.accept_speaking();
    upstream.send("HTTP/1.1 400 Bad Request\r\n\r\n");
    assert_eq!(client.refusal(), (502, "tls_malformed".into()));
    drop(upstream);
    client.send(scene.get());
    scene.origin.accept_speaking().reset();
    assert_eq!(client.refusal(), (502, "tls_closed".into()));
}

#[test]
fn a_client_that_trusts_somebody_else_is_named_and_told_the_remedy() {
    let scene = Scene::new();
    let pinned = Arc::new(tls::client(&scene.root.path(), BOTH));
    assert!(tls::enter(&scene.proxy, scene.authority(), HOST, &pinned).is_err());
    let event = scene.proxy.event_about("tls.failed", scene.origin.port());
    assert_eq!(event["reason"], "client_refused_certificate");
    assert!(event["hint"].as_str().unwrap().contains("tls: skip"), "{event}");
    // One that says nothing and leaves has pinned something, too.
    drop(scene.enter());
    let event = scene.proxy.event(|event| event["reason"] == "client_left");
    assert!(event["hint"].as_str().unwrap().contains("tls: skip"), "{event}");
}

#[test]
fn a_client_that_offers_http2_alone_is_refused_with_an_event() {
    let scene = Scene::new();
    let mut manners = tls::client(&scene.proxy.authority(), BOTH);
    manners.alpn_protocols = vec![b"h2".to_vec()];
    let serving = tls::server(&scene.root.issue(&[HOST]), BOTH);
    let refused = std::thread::scope(|scope| {
        scope.spawn(|| tls::accept(&scene.origin, &serving));
        tls::enter(&scene.proxy, scene.authority(), HOST, &Arc::new(manners)).err().unwrap()
    });
    assert!(refused.to_string().contains("NoApplicationProtocol"), "{refused}");
    assert_eq!(scene.proxy.event_about("tls.failed", scene.origin.port())["reason"], "tls_no_http11");
}

#[test]
fn the_oldest_version_is_held_on_both_sides() {
    let scene = Scene::with(ANY, "min_version: 1.3");
    let old = Arc::new(tls::client(&scene.proxy.authority(), ONLY_12));
    assert!(tls::enter(&scene.proxy, scene.authority(), HOST, &old).is_err());
    assert_eq!(scene.proxy.event_about("tls.failed", scene.origin.port())["reason"], "tls_incompatible");
    let mut client = scene.enter().peer;
    client.send(scene.get());
    assert!(tls::accept(&scene.origin, &tls::server(&scene.root.issue(&[HOST]), ONLY_12)).is_err());
    assert_eq!(client.refusal(), (502, "tls_incompatible".into()));
}

#[test]
fn tls_1_2_is_spoken_on_both_sides() {
    let scene = Scene::new();
    let old = Arc::new(tls::client(&scene.proxy.authority(), ONLY_12));
    let mut inside = tls::enter(&scene.proxy, scene.authority(), HOST, &old).unwrap();
    inside.peer.send(scene.get());
    let server = tls::server(&scene.root.issue(&[HOST]), ONLY_12);
    let mut upstream = tls::accept(&scene.origin, &server).unwrap();
    upstream.peer.head();
    upstream.peer.send(OK);
    assert_eq!(inside.peer.message().1, "ok");
}

#[test]
fn after_a_101_bytes_are_passed_on_as_they_are() {
    let scene = Scene::new();
    let mut client = scene.enter().peer;
    let get = scene.get();
    client.send(get.replace("\r\n\r\n", "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"));
    let mut upstream = tls::accept(&scene.origin, &scene.server()).unwrap().peer;
    upstream.head();
    upstream.send(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x02hi",
    );
    assert_eq!(client.head().status(), 101);
    client.hears(b"\x81\x02hi");
    client.send(b"\x81\x02yo");
    upstream.hears(b"\x81\x02yo");
    let bulk = pattern(300_000);
    client.send(&bulk);
    assert!(upstream.bytes(bulk.len()) == bulk);
    upstream.send(&bulk);
    assert!(client.bytes(bulk.len()) == bulk);
    client.finish();
    upstream.hears_end();
    upstream.finish();
    client.hears_end();
}

#[test]
fn large_bodies_pass_both_ways() {
    let scene = Scene::with(ANY, "");
    let mut client = scene.enter().peer;
    let bulk = pattern(1 << 20);
    let head =
        format!("PUT /x HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n", scene.authority(), bulk.len());
    let (mut sender, sent) = (client.stream().try_clone().unwrap(), bulk.clone());
    let sending = std::thread::spawn(move || {
        use std::io::Write as _;
        sender.write_all(head.as_bytes()).unwrap();
        sender.write_all(&sent).unwrap();
    });
    let mut upstream = tls::accept(&scene.origin, &scene.server()).unwrap().peer;
    upstream.head();
    assert!(upstream.bytes(bulk.len()) == bulk);
    sending.join().unwrap();
    let answer = std::thread::spawn(move || {
        upstream.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", bulk.len()));
        upstream.send(&bulk);
        (upstream, bulk)
    });
    assert_eq!(client.head().status(), 200);
    assert!(client.bytes(1 << 20) == pattern(1 << 20));
    drop(answer.join());
}

#[test]
fn an_answer_that_is_cut_does_not_end_like_a_whole_one() {
    let scene = Scene::new();
    // By its length, and up to the close.
    for head in ["HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"] {
        let mut client = scene.enter().peer;
        client.send(scene.get());
        let mut upstream = tls::accept(&scene.origin, &scene.server()).unwrap().peer;
        upstream.head();
        upstream.send(head);
        upstream.send("half");
        assert_eq!(client.head().status(), 200);
        client.hears("half");
        upstream.reset();
        client.hears_reset();
    }
}

#[test]
fn an_answer_up_to_the_close_ends_with_the_last_word_of_tls() {
    let scene = Scene::new();
    let mut client = scene.enter().peer;
    client.send(scene.get());
    let mut upstream = tls::accept(&scene.origin, &scene.server()).unwrap().peer;
    upstream.head();
    upstream.send("HTTP/1.1 200 OK\r\n\r\nall of it");
    upstream.finish();
    client.head();
    client.hears("all of it");
    client.hears_end();
}

#[test]
fn new_names_without_end_are_met_with_503() {
    let root = Root::new();
    let origin = Origin::new();
    let endpoint = format!("host: \"*.api.localhost\", port: {}, {ANY}", origin.port());
    let proxy = Setup::default().endpoints(&[endpoint]).tls(&root.entry()).start();
    origin.hold_all();
    let manners = Arc::new(tls::client(&proxy.authority(), BOTH));
    let mut refused = None;
    for number in 0..2_000 {
        let name = format!("n{number}.api.localhost");
        let authority = format!("{name}:{}", origin.port());
        let mut client = proxy.ask(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n"));
        let head = client.head();
        if head.status() == 503 {
            assert_eq!(head.field("retry-after"), Some("1"));
            refused = Some(number);
            break;
        }
        assert_eq!(head.status(), 200);
        drop(client);
        assert!(
            tls::enter(&proxy, &authority, &name, &manners).is_ok_and(|inside| inside.shown.is_some())
                || number >= 100
        );
    }
    assert!(refused.is_some_and(|number| number >= 50), "{refused:?}");
    // Names it knows are served on.
    let authority = format!("n1.api.localhost:{}", origin.port());
    tls::enter(&proxy, authority, "n1.api.localhost", &manners).unwrap();
    let event = proxy.event_about("connect.denied", origin.port());
    assert_eq!((&event["reason"], &event["status"]), (&"too_many_names".into(), &503.into()));
}

#[test]
fn what_is_skipped_or_raw_shows_the_origins_own_certificate() {
    for endpoint in ["tls: skip", "protocol: tcp", "access: full"] {
        let scene = Scene::with(endpoint, "");
        let identity = scene.root.issue(&[HOST]);
        let server = tls::server(&identity, BOTH);
        let own = Arc::new(tls::client(&scene.root.path(), BOTH));
        let Scene { origin, proxy, .. } = scene;
        let authority = format!("{HOST}:{}", origin.port());
        let accepting = tls::accepting(origin, &server);
        let mut inside = tls::enter(&proxy, authority, HOST, &own).unwrap();
        let mut upstream = accepting.join().unwrap().1.unwrap();
        assert_eq!(inside.shown.as_ref(), Some(&identity.0), "{endpoint}");
        inside.peer.send("anything at all");
        upstream.peer.hears("anything at all");
    }
}

#[test]
fn broken_records_end_their_connection_and_nothing_else() {
    let scene = Scene::new();
    let hello = client_hello(Some(HOST), false);
    let oversized = [&[22, 3, 3, 0x7f, 0xff][..], &[1; 100]].concat();
    let later = [&hello[..], &[23, 3, 3, 0, 5, 1, 2, 3, 4, 5]].concat();
    let half = hello[..hello.len() / 2].to_vec();
    for octets in [oversized, later, half] {
        let mut client = scene.proxy.tunnel(scene.authority());
        client.send(&octets);
        client.finish();
        client.end();
    }
    let mut client = scene.enter().peer;
    client.send("\x16\x03 not a request\r\n\r\n");
    assert_eq!(client.message().0.status(), 403);
    let mut client = scene.enter().peer;
    client.send(scene.get());
    let mut upstream = tls::accept(&scene.origin, &scene.server()).unwrap().peer;
    upstream.head();
    upstream.send(OK);
    assert_eq!(client.message().1, "ok");
}

#[test]
fn requests_inside_are_read_as_strictly_as_outside() {
    let scene = Scene::new();
    for request in [
        "GET / HTTP/1.1\r\nHost: HOST\r\nContent-Length: +5\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: HOST\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n".to_owned(),
        "GET / HTTP/1.1\r\nHost: other.example\r\n\r\n".to_owned(),
        "GET https://other.example/ HTTP/1.1\r\nHost: HOST\r\n\r\n".to_owned(),
    ] {
        let mut client = scene.enter().peer;
        client.send(request.replace("HOST", &scene.authority()));
        let (status, reason) = client.refusal();
        assert!((400..500).contains(&status), "{request}: {status} {reason}");
    }
}
