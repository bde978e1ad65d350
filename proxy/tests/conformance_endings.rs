//! Who goes away when: a client that is gone while nobody reads it is noticed, one that has only said its last is still
//! answered, and bytes sent on the chance of a switch of protocols are nobody's request.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

mod conformance;

use std::io::{ErrorKind, Write as _};
use std::time::Duration;

use conformance::{OK, Origin, Peer, Proxy, Setup};

fn get(origin: &Origin, path: &str, fields: &str) -> String {
    let at = origin.address();
    format!("GET http://{at}{path} HTTP/1.1\r\nHost: {at}\r\n{fields}\r\n")
}

/// A client and an origin with a request between them that is still to be answered.
fn asked(proxy: &Proxy, path: &str, fields: &str) -> (Origin, Peer, Peer) {
    let origin = Origin::new();
    let client = proxy.ask(get(&origin, path, fields));
    let mut upstream = origin.accept();
    upstream.head();
    (origin, client, upstream)
}

/// With time-outs at their defaults, of which the shortest that could hide the failure is a minute. Also when the client
/// had pipelined more than anybody reads.
#[test]
fn a_client_that_resets_while_its_origin_is_silent_is_noticed() {
    for more in ["", "GET http://pipelined.example/ HTTP/1.1\r\nHost: a\r\n\r\n"] {
        let (origin, mut client, mut upstream) = asked(Proxy::shared(), "/slow", "");
        client.send(more);
        client.reset();
        assert_eq!(upstream.end().rest, b"");
        // What the origin may have heard is told, though nobody was answered.
        let event = Proxy::shared().event_about("request.allowed", origin.port());
        assert_eq!((&event["path"], event.get("status")), (&"/slow".into(), None), "{event}");
        origin.is_untouched();
    }
}

#[test]
fn a_client_that_resets_in_a_silent_answer_is_noticed() {
    for head in
        ["Content-Type: text/event-stream\r\n", "Transfer-Encoding: chunked\r\n", "Content-Length: 9\r\n"]
    {
        let (_origin, mut client, mut upstream) = asked(Proxy::shared(), "/events", "");
        upstream.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n"));
        client.head();
        client.reset();
        assert_eq!(upstream.end().rest, b"", "{head}");
    }
}

/// Fills the way to the origin, which does not read.
fn stall(client: &Peer) {
    let mut stream = client.stream();
    stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let chunk = vec![b'x'; 64 << 10];
    loop {
        match stream.write(&chunk) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("{error}"),
        }
    }
}

/// The proxy waits for room at the origin and does not read the client: its reset is noticed all the same, and passed on.
#[test]
fn a_client_that_resets_while_its_origin_does_not_read_is_noticed() {
    let origin = Origin::new();
    let at = origin.address();
    let put = format!("PUT http://{at}/ HTTP/1.1\r\nHost: {at}\r\nContent-Length: {}\r\n\r\n", 1_u64 << 40);
    let connect = format!("CONNECT {at} HTTP/1.1\r\nHost: {at}\r\n\r\n");
    for (head, closes) in [(put, false), (connect, true)] {
        let mut client = Proxy::shared().ask(head);
        let mut upstream = origin.accept();
        if closes {
            assert_eq!(client.head().status(), 200);
        } else {
            upstream.head();
        }
        stall(&client);
        client.reset();
        if closes {
            // Before the origin has read a byte.
            let event = Proxy::shared().event_about("tunnel.closed", origin.port());
            assert_eq!(event["reason"], "reset");
        } else {
            Proxy::shared().event_about("request.allowed", origin.port());
        }
        drop(upstream);
    }
}

/// `nc -N` and scripts close their half behind the request and wait.
#[test]
fn a_client_that_has_said_its_last_is_answered() {
    let (_origin, mut client, mut upstream) = asked(Proxy::shared(), "/", "");
    client.finish();
    upstream.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n");
    client.head();
    client.hears("2\r\nok\r\n");
    upstream.send("0\r\n\r\n");
    client.hears("0\r\n\r\n");
    client.hears_end();
}

/// Whether it is still there to be answered nobody can know: silence then lasts no longer than with a half-closed tunnel.
#[test]
fn a_client_that_has_said_its_last_is_waited_for_no_longer_than_a_half_closed_tunnel() {
    let proxy = Setup::default().timeouts("half_closed_linger: 1s").start();
    let (_origin, mut client, mut upstream) = asked(&proxy, "/", "");
    client.finish();
    assert_eq!(upstream.end().rest, b"");
    assert_eq!(client.refusal(), (504, "origin_timeout".into()));
    client.hears_end();
}

/// RFC 9931: the offer to switch is not taken, so what was sent on the chance that it would be is dropped, and never
/// becomes a request.
#[test]
fn bytes_behind_an_offer_that_is_not_taken_are_no_request() {
    let offer = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    for together in [true, false] {
        let origin = Origin::new();
        let smuggled = get(&origin, "/smuggled", "");
        let mut client = Proxy::shared().connect();
        if together {
            client.send(get(&origin, "/chat", offer) + &smuggled);
        } else {
            client.send(get(&origin, "/chat", offer));
        }
        let mut upstream = origin.accept();
        assert_eq!(upstream.head().field("upgrade"), Some("websocket"));
        if !together {
            client.send(&smuggled);
        }
        upstream.send(OK);
        let (head, body) = client.message();
        assert_eq!((head.status(), head.field("connection"), &*body), (200, Some("close"), "ok"));
        client.hears_end();
        // Whatever was to be sent has been when another client's request arrives.
        let _next = Proxy::shared().ask(get(&origin, "/next", ""));
        assert_eq!(upstream.head().start(), "GET /next HTTP/1.1");
        origin.is_untouched();
    }
}
