//! Real clients, through the proxy: what they ask for arrives, and what they are told is true.

mod e2e;

use e2e::*;
use serde_json::json;

#[test]
fn curl_gets_a_page_and_the_origin_sees_an_ordinary_request() {
    let (scene, origin) = (Scene::new(), HttpOrigin::start());
    let url = origin.url("origin.test", "/a/page?secret=1");
    let outcome = scene.exec().open().run(&["curl", "-sS", &url]).ended_with(0);
    assert_eq!(outcome.text(), BODY);
    let received = origin.received();
    assert!(received.starts_with("GET /a/page?secret=1 HTTP/1.1\r\n"), "{received}");
    assert!(received.contains(&format!("\r\nHost: {}\r\n", origin.at("origin.test"))), "{received}");
    assert!(!received.to_lowercase().contains("proxy-connection"), "{received}");

    let event = outcome.the("request.allowed");
    assert_eq!(event["method"], "GET");
    assert_eq!(event["path"], "/a/page", "the query may hold secrets");
    assert_eq!(event["status"], 200);
    assert_eq!(event["dst_host"], "origin.test");
    assert_eq!(event["dst_ip"], "127.0.0.1");
    assert_eq!(event["dst_port"], origin.port());
    assert_eq!(event["process"]["exe"], program("curl"));
    assert_eq!(event["identity"], "witness");
    assert!(outcome.stderr.contains("1 allowed, 0 denied, 0 bypass attempts"), "{outcome}");
}

#[test]
fn curl_tunnels_with_connect_and_the_tunnel_is_accounted_for() {
    let (scene, origin) = (Scene::new(), HttpOrigin::start());
    let url = origin.url("origin.test", "/inside");
    let outcome = scene.exec().open().run(&["curl", "-sSp", &url]).ended_with(0);
    assert_eq!(outcome.text(), BODY);
    assert!(origin.received().starts_with("GET /inside HTTP/1.1\r\n"));

    assert_eq!(outcome.the("connect.allowed")["dst_host"], "origin.test");
    let closed = outcome.the("tunnel.closed");
    assert_eq!(closed["bytes_up"], origin.received().len());
    assert!(closed["bytes_down"].as_u64() > Some(BODY.len() as u64), "{closed}");
    assert_eq!(closed["reason"], "eof");
}

#[test]
fn curl_reuses_its_connection_to_the_proxy() {
    let (scene, origin) = (Scene::new(), HttpOrigin::start());
    let (first, second) = (origin.url("origin.test", "/1"), origin.url("origin.test", "/2"));
    let report = "%{num_connects}\n";
    let outcome = scene.exec().open().run(&[
        "curl",
        "-sS",
        "-o",
        "/dev/null",
        "-o",
        "/dev/null",
        "-w",
        report,
        &first,
        &second,
    ]);
    assert_eq!(outcome.ended_with(0).text(), "1\n0\n");
}

#[test]
fn curl_uploads_what_the_origin_then_has() {
    let (scene, origin) = (Scene::new(), HttpOrigin::start());
    let body = "0123456789abcdef".repeat(16_384);
    let file = scene.file("body", &body).display().to_string();
    let url = origin.url("origin.test", "/upload");
    // -T sends Expect: 100-continue and waits for the answer.
    let outcome = scene.exec().open().run(&["curl", "-sS", "-T", &file, &url]).ended_with(0);
    assert_eq!(outcome.text(), BODY);
    assert!(origin.received().starts_with("PUT /upload HTTP/1.1\r\n"));
    assert!(origin.received().ends_with(&body), "the body arrives whole");
}

#[test]
fn pythons_urllib_follows_the_environment() {
    let (scene, origin) = (Scene::new(), HttpOrigin::start());
    let code = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode())";
    let url = origin.url("origin.test", "/urllib");
    let outcome = scene.exec().open().run(&[python(), "-c", code, &url]).ended_with(0);
    assert_eq!(outcome.text().trim(), BODY);
    assert!(origin.received().starts_with("GET /urllib HTTP/1.1\r\n"));
    assert_eq!(outcome.the("request.allowed")["process"]["exe"], python());
}

#[test]
fn pythons_http_client_tunnels_in_http_1_0_without_a_host_field() {
    let (scene, origin) = (Scene::new(), HttpOrigin::start());
    let code = "import http.client, os, sys\n\
        proxy = http.client.HTTPConnection(os.environ['http_proxy'].removeprefix('http://'))\n\
        proxy.set_tunnel('origin.test', int(sys.argv[1]))\n\
        proxy.request('GET', '/tunnelled')\n\
        print(proxy.getresponse().read().decode())";
    let port = origin.port().to_string();
    let outcome = scene.exec().open().run(&[python(), "-c", code, &port]).ended_with(0);
    assert_eq!(outcome.text().trim(), BODY);
    assert_eq!(outcome.the("connect.allowed")["process"]["exe"], python());
}

#[test]
fn nodes_http_get_works_when_told_of_the_proxy() {
    let (scene, origin) = (Scene::new(), HttpOrigin::start());
    let code = "const proxy = new URL(process.env.http_proxy);\n\
        require('http').get({ host: proxy.hostname, port: proxy.port, path: process.argv[1] },\n\
          answer => answer.on('data', data => process.stdout.write(data)));";
    let url = origin.url("origin.test", "/node");
    let outcome = scene.exec().open().run(&[node(), "-e", code, &url]).ended_with(0);
    assert_eq!(outcome.text(), BODY);
    assert_eq!(outcome.the("request.allowed")["process"]["exe"], node());
}

#[test]
fn a_server_that_speaks_first_is_heard_through_connect() {
    let (scene, server) = (Scene::new(), Service::speaks_first("220 ready\r\n"));
    let destination = server.at("origin.test");
    let conversation = vec![
        send(format!("CONNECT {destination} HTTP/1.1\r\nHost: {destination}\r\n\r\n")),
        until("220 ready\r\n"),
        send("QUIT\r\n"),
        until("QUIT\r\n"),
        Step::HalfClose,
        Step::ToEnd,
    ];
    let (heard, outcome) = talk(scene.exec().open(), &[conversation]);
    assert_eq!(heard, ["HTTP/1.1 200 Connection established\r\n\r\n220 ready\r\nQUIT\r\n"]);
    let closed = outcome.the("tunnel.closed");
    assert_eq!((&closed["bytes_up"], &closed["bytes_down"]), (&json!(6), &json!(17)));
}

#[test]
fn octets_behind_the_head_of_a_connect_reach_the_server() {
    let (scene, server) = (Scene::new(), Service::echo());
    let destination = server.at("origin.test");
    let conversation = vec![
        send(format!("CONNECT {destination} HTTP/1.1\r\nHost: {destination}\r\n\r\nearly bird")),
        Step::HalfClose,
        Step::ToEnd,
    ];
    let (heard, _) = talk(scene.exec().open(), &[conversation]);
    assert_eq!(heard, ["HTTP/1.1 200 Connection established\r\n\r\nearly bird"]);
}

#[test]
fn a_tunnel_carries_megabytes_both_ways_unchanged() {
    let (scene, server) = (Scene::new(), Service::echo());
    let code = "import hashlib, os, socket, sys, threading\n\
        host, port = os.environ['http_proxy'].removeprefix('http://').split(':')\n\
        s = socket.create_connection((host, int(port)), 20)\n\
        s.sendall(f'CONNECT {sys.argv[1]} HTTP/1.1\\r\\nHost: {sys.argv[1]}\\r\\n\\r\\n'.encode())\n\
        f = s.makefile('rb')\n\
        while f.readline().strip(): pass\n\
        sent = os.urandom(1 << 20) * 16\n\
        def send(): s.sendall(sent); s.shutdown(socket.SHUT_WR)\n\
        threading.Thread(target=send).start()\n\
        print(f.read() == sent)";
    let outcome = scene.exec().open().run(&[python(), "-c", code, &server.at("origin.test")]).ended_with(0);
    assert_eq!(outcome.text(), "True\n");
    let closed = outcome.the("tunnel.closed");
    assert_eq!((&closed["bytes_up"], &closed["bytes_down"]), (&json!(16 << 20), &json!(16 << 20)));
}

#[test]
fn after_101_both_sides_speak_freely() {
    let scene = Scene::new();
    let server = Service::start("127.0.0.1", |mut connection| {
        use std::io::{Read as _, Write as _};
        let mut octets = [0; 4096];
        let mut heard = Vec::new();
        while !heard.windows(4).any(|end| end == b"\r\n\r\n") {
            let Ok(read @ 1..) = connection.read(&mut octets) else { return };
            heard.extend_from_slice(&octets[..read]);
        }
        let answer =
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\nwelcome;";
        connection.write_all(answer).ok();
        let mut from = connection.try_clone().expect("clone");
        std::io::copy(&mut from, &mut connection).ok();
    });
    let url = format!("http://{}/chat", server.at("origin.test"));
    let conversation = vec![
        send(format!("GET {url} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n")),
        until("welcome;"),
        send(b"\x00GET / frame"),
        until("\0GET / frame"),
    ];
    let (heard, _) = talk(scene.exec().open(), &[conversation]);
    assert!(heard[0].starts_with("HTTP/1.1 101 "), "{heard:?}");
    assert!(heard[0].ends_with("\r\n\r\nwelcome;\0GET / frame"), "{heard:?}");
}

#[test]
fn addresses_on_loopback_serve_when_the_policy_and_the_operator_name_them() {
    let (scene, origin) = (Scene::new(), HttpOrigin::on("127.1.2.3"));
    let policy = format!(
        "version: 1\nnetwork_policies:\n  it:\n    endpoints:\n      - {{ host: 127.1.2.3, port: {} }}\n",
        origin.port()
    );
    let outcome =
        scene.exec().policy(&policy).permit_loopback().run(&["curl", "-sS", &origin.url("127.1.2.3", "/")]);
    assert_eq!(outcome.ended_with(0).text(), BODY);
}

#[test]
fn a_name_that_does_not_exist_and_a_port_nobody_listens_on_are_not_the_policys_no() {
    let scene = Scene::new();
    let dns = Dns::start(&[]);
    scene.name_server(&dns.address());
    // Nothing listens on port 1 of an address that only this test uses.
    scene.host("127.45.67.89", "closed.test");
    let script = "for url in http://missing.test/ http://closed.test:1/; do curl -sS -w '\\n%{http_code}\\n' $url; done";
    let outcome = scene.exec().open().run(&["sh", "-c", script]).ended_with(0);
    let said: Vec<String> =
        outcome.text().lines().map(str::to_owned).filter(|line| !line.is_empty()).collect();
    let [missing, first, closed, second] = &said[..] else { panic!("{outcome}") };
    assert_eq!((first.as_str(), second.as_str()), ("502", "502"));
    assert!(missing.contains(r#""reason":"name_not_found""#), "{missing}");
    assert!(closed.contains(r#""reason":"dial_refused""#), "{closed}");
    assert!(said.iter().all(|line| !line.contains("policy_denied")), "{outcome}");
}
