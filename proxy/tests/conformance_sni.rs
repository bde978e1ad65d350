//! `sni: verify`: the TLS in a raw tunnel must name the host of its CONNECT, and is not touched otherwise.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

mod conformance;

use conformance::hello::{client_hello, record};
use conformance::{Origin, Peer, Proxy, Setup};

/// Resolves to loopback without being asked of any server (RFC 6761 section 6.3).
const HOST: &str = "api.localhost";
/// A fatal alert, access_denied.
const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 49];

/// A daemon that verifies names in tunnels to `origin`, with an open tunnel and its two ends.
fn tunnel(origin: &Origin) -> (Proxy, Peer, Peer) {
    let endpoint = format!("host: {HOST}, port: {}, sni: verify", origin.port());
    let proxy = Setup::default().endpoints(&[endpoint]).start();
    let client = proxy.tunnel(format_args!("{HOST}:{}", origin.port()));
    let upstream = origin.accept();
    (proxy, client, upstream)
}

#[test]
fn a_hello_that_names_the_host_passes_untouched() {
    let origin = Origin::new();
    let (_proxy, mut client, mut upstream) = tunnel(&origin);
    let hello = client_hello(Some(HOST), false);
    client.send(&hello);
    upstream.hears(&hello);
    upstream.send("server hello");
    client.hears("server hello");
    client.send("\x17\x03\x03 application data");
    upstream.hears("\x17\x03\x03 application data");
}

#[test]
fn a_hello_may_come_byte_by_byte() {
    let origin = Origin::new();
    let (_proxy, mut client, mut upstream) = tunnel(&origin);
    let hello = client_hello(Some(HOST), false);
    for octet in &hello {
        client.send([*octet]);
    }
    upstream.hears(&hello);
}

#[test]
fn a_hello_may_be_cut_into_records_and_come_with_the_connect() {
    let origin = Origin::new();
    let whole = client_hello(Some(HOST), false);
    let cut: Vec<u8> = whole[5..].chunks(20).flat_map(|part| record(22, part)).collect();
    // 16 records are the most a hello may have.
    assert!(whole.len() < 16 * 20);
    let endpoint = format!("host: {HOST}, port: {}, sni: verify", origin.port());
    let proxy = Setup::default().endpoints(&[endpoint]).start();
    let mut octets =
        format!("CONNECT {HOST}:{} HTTP/1.1\r\nHost: {HOST}\r\n\r\n", origin.port()).into_bytes();
    octets.extend_from_slice(&cut);
    let mut client = proxy.ask(octets);
    assert_eq!(client.head().status(), 200);
    origin.accept().hears(&cut);
}

/// GREASE: browsers send a meaningless `encrypted_client_hello` to everybody.
#[test]
fn a_hello_with_ech_that_names_the_host_passes() {
    let origin = Origin::new();
    let (_proxy, mut client, mut upstream) = tunnel(&origin);
    let hello = client_hello(Some(HOST), true);
    client.send(&hello);
    upstream.hears(&hello);
}

/// Each is told apart in the event, the client gets an alert, and the origin not one byte.
#[test]
fn another_name_no_name_and_a_hidden_name_end_the_tunnel() {
    let malformed = record(22, &[1, 0, 0, 4, 3, 3, 0, 0]);
    let rows = [
        (client_hello(Some("other.localhost"), false), "sni_mismatch"),
        (client_hello(Some("localhost"), false), "sni_mismatch"),
        (client_hello(None, false), "sni_missing"),
        (client_hello(Some("public.example"), true), "sni_encrypted"),
        (client_hello(None, true), "sni_encrypted"),
        (malformed, "sni_missing"),
    ];
    for (hello, reason) in rows {
        let origin = Origin::new();
        let (proxy, mut client, mut upstream) = tunnel(&origin);
        client.send(&hello);
        let end = client.end();
        assert_eq!((&*end.rest, end.reset), (&ALERT[..], false), "{reason}");
        assert_eq!(upstream.end().rest, b"", "{reason}");
        let event = proxy.event_about("connect.denied", origin.port());
        assert_eq!((&event["reason"], &event["dst_host"]), (&reason.into(), &HOST.into()));
    }
}

#[test]
fn a_wrong_name_is_found_byte_by_byte_too() {
    let origin = Origin::new();
    let (proxy, mut client, mut upstream) = tunnel(&origin);
    for octet in client_hello(Some("other.localhost"), false) {
        client.send([octet]);
    }
    assert_eq!(client.end().rest, ALERT);
    assert_eq!(upstream.end().rest, b"");
    assert_eq!(proxy.event_about("connect.denied", origin.port())["reason"], "sni_mismatch");
}

#[test]
fn what_is_not_tls_passes() {
    let origin = Origin::new();
    let (_proxy, mut client, mut upstream) = tunnel(&origin);
    client.send("SSH-2.0-OpenSSH_9.2\r\n");
    upstream.hears("SSH-2.0-OpenSSH_9.2\r\n");
    upstream.send("SSH-2.0-server\r\n");
    client.hears("SSH-2.0-server\r\n");
}

/// The server's first bytes are never waited for, and what the client says after them is held to its name all the same.
#[test]
fn a_server_may_speak_before_the_hello() {
    let origin = Origin::new();
    let (_proxy, mut client, mut upstream) = tunnel(&origin);
    upstream.send("220 ready\r\n");
    client.hears("220 ready\r\n");
    let hello = client_hello(Some(HOST), false);
    client.send(&hello);
    upstream.hears(&hello);

    let other = Origin::new();
    let (_proxy, mut client, mut upstream) = tunnel(&other);
    upstream.send("220 ready\r\n");
    client.hears("220 ready\r\n");
    client.send(client_hello(Some("other.localhost"), false));
    assert_eq!(client.end().rest, ALERT);
    assert_eq!(upstream.end().rest, b"");
}

/// Half a hello opens nothing: it is not passed on, and a client that closes behind it closes the tunnel.
#[test]
fn half_a_hello_is_held_back() {
    let origin = Origin::new();
    let (_proxy, mut client, mut upstream) = tunnel(&origin);
    let hello = client_hello(Some("other.localhost"), false);
    client.send(&hello[..hello.len() / 2]);
    upstream.send("anything");
    client.hears("anything");
    client.send(&hello[hello.len() / 2..]);
    assert_eq!(client.end().rest, ALERT);
    assert_eq!(upstream.end().rest, b"");
}

/// A hello that is cut short opens nothing: none of it reaches the origin, and the event says that no name was seen.
#[test]
fn a_hello_that_ends_before_it_is_whole_is_refused() {
    let origin = Origin::new();
    let (proxy, mut client, mut upstream) = tunnel(&origin);
    let hello = client_hello(Some(HOST), false);
    client.send(&hello[..hello.len() - 1]);
    client.finish();
    assert_eq!(client.end().rest, ALERT);
    assert_eq!(upstream.end().rest, b"");
    assert_eq!(proxy.event_about("connect.denied", origin.port())["reason"], "sni_missing");
}

/// A client that closes without a word has hidden nothing.
#[test]
fn a_client_that_says_nothing_at_all_is_no_offence() {
    let origin = Origin::new();
    let (proxy, mut client, mut upstream) = tunnel(&origin);
    client.finish();
    upstream.hears_end();
    upstream.send("last words");
    drop(upstream);
    client.hears("last words");
    client.hears_end();
    assert_eq!(proxy.event_about("tunnel.closed", origin.port())["reason"], "eof");
}

/// What a lenient server takes for TLS is TLS: any minor version, a warning before the hello, the hello of SSLv2.
#[test]
fn tls_in_disguise_is_held_against_the_name() {
    let mut odd_version = client_hello(Some("other.localhost"), false);
    odd_version[2] = 9;
    let warning_first = [record(21, &[1, 90]), client_hello(Some("other.localhost"), false)].concat();
    let ssl2 =
        b"\x80\x1f\x01\x03\x01\x00\x06\x00\x00\x00\x10\x00\x00\x2f\x00\x00\x350123456789abcdef".to_vec();
    for (hello, reason) in
        [(odd_version, "sni_mismatch"), (warning_first, "sni_missing"), (ssl2, "sni_missing")]
    {
        let origin = Origin::new();
        let (proxy, mut client, mut upstream) = tunnel(&origin);
        client.send(&hello);
        assert_eq!(client.end().rest, ALERT);
        assert_eq!(upstream.end().rest, b"");
        assert_eq!(proxy.event_about("connect.denied", origin.port())["reason"], reason);
    }
    let origin = Origin::new();
    let (_proxy, mut client, mut upstream) = tunnel(&origin);
    let mut odd_version = client_hello(Some(HOST), false);
    odd_version[2] = 9;
    client.send(&odd_version);
    upstream.hears(&odd_version);
}

#[test]
fn with_sni_ignore_any_name_passes() {
    let origin = Origin::new();
    let endpoint = format!("host: {HOST}, port: {}, sni: ignore", origin.port());
    let proxy = Setup::default().endpoints(&[endpoint]).start();
    let mut client = proxy.tunnel(format_args!("{HOST}:{}", origin.port()));
    let hello = client_hello(Some("other.localhost"), false);
    client.send(&hello);
    origin.accept().hears(&hello);
}
