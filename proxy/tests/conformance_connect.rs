//! CONNECT, byte by byte: what a tunnel promises from its request to its last byte (RFC 9110 section 9.3.6, RFC 9931).

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

mod conformance;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};

use conformance::{OK, Origin, Peer, Proxy, Refusing, Setup, pattern};
use socket2::{Domain, SockRef, Socket, Type};

/// A tunnel: its two ends.
fn tunnel(proxy: &Proxy, origin: &Origin) -> (Peer, Peer) {
    let client = proxy.tunnel(origin.address());
    (client, origin.accept())
}

#[test]
fn the_answer_has_no_field_that_frames_a_body() {
    let origin = Origin::new();
    let at = origin.address();
    let mut client = Proxy::shared().ask(format!("CONNECT {at} HTTP/1.1\r\nHost: {at}\r\n\r\n"));
    client.hears("HTTP/1.1 200 Connection established\r\n\r\n");
}

#[test]
fn bytes_behind_the_head_are_the_first_of_the_tunnel() {
    let origin = Origin::new();
    let at = origin.address();
    let mut client = Proxy::shared().ask(format!("CONNECT {at} HTTP/1.1\r\nHost: {at}\r\n\r\nearly bytes"));
    let mut upstream = origin.accept();
    assert_eq!(client.head().status(), 200);
    upstream.hears("early bytes");
    client.send(", later bytes");
    upstream.hears(", later bytes");
    upstream.send("answer");
    client.hears("answer");
}

/// A head of one segment per byte, and the first bytes of the tunnel with its last.
#[test]
fn a_head_may_come_byte_by_byte() {
    let origin = Origin::new();
    let head = format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r", origin.address());
    let mut client = Proxy::shared().connect();
    for octet in head.as_bytes() {
        client.send([*octet]);
    }
    client.send("\nfirst");
    let mut upstream = origin.accept();
    assert_eq!(client.head().status(), 200);
    upstream.hears("first");
}

/// SMTP, MySQL and SSH wait for the server: a proxy that peeks at the client first hangs.
#[test]
fn a_server_that_speaks_first_is_heard_at_once() {
    let origin = Origin::new();
    let (mut client, mut upstream) = tunnel(Proxy::shared(), &origin);
    upstream.send("220 mail.example ESMTP\r\n");
    client.hears("220 mail.example ESMTP\r\n");
    client.send("EHLO client\r\n");
    upstream.hears("EHLO client\r\n");
}

/// `CONNECT host:port HTTP/1.0` without Host is what Python requests and pip send.
#[test]
fn http_1_0_without_host_opens_a_tunnel() {
    let origin = Origin::new();
    let mut client = Proxy::shared().ask(format!("CONNECT {} HTTP/1.0\r\n\r\n", origin.address()));
    let mut upstream = origin.accept();
    assert_eq!(client.head().status(), 200);
    client.send("ping");
    upstream.hears("ping");
}

#[test]
fn a_refused_dial_is_502_and_says_so() {
    let closed = Refusing::new();
    let mut client =
        Proxy::shared().ask(format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", closed.address()));
    let (head, body) = client.message();
    assert_eq!(head.start(), "HTTP/1.1 502 the origin refused the connection");
    assert!(head.field("proxy-status").unwrap().contains("error=connection_refused"));
    assert!(body.contains("\"reason\":\"dial_refused\""), "{body}");
    client.hears_end();
    let event = Proxy::shared().event_about("connect.denied", closed.address().port());
    assert_eq!((&event["reason"], &event["status"]), (&"dial_refused".into(), &502.into()));
}

/// An address of this test's own on `lo` that the kernel has no way to; it has one again when this is dropped.
struct NoRoute(String);

impl NoRoute {
    fn new() -> Self {
        let [_, high, middle, low] = std::process::id().to_be_bytes();
        let route = Self(format!("127.{}.{middle}.{low}", 128 + high));
        assert!(route.ip("add"), "routes need root and ip (iproute2)");
        route
    }

    fn ip(&self, verb: &str) -> bool {
        let words = ["route", verb, "unreachable", &self.0, "table", "local"];
        std::process::Command::new("ip").args(words).status().is_ok_and(|status| status.success())
    }
}

impl Drop for NoRoute {
    fn drop(&mut self) {
        self.ip("del");
    }
}

#[test]
fn an_unreachable_origin_is_502_and_says_so() {
    let route = NoRoute::new();
    let mut client = Proxy::shared().ask(format!("CONNECT {0}:9 HTTP/1.1\r\nHost: {0}:9\r\n\r\n", route.0));
    assert_eq!(client.refusal(), (502, "dial_unreachable".into()));
    client.hears_end();
}

/// A listener whose backlog is full answers no SYN.
#[test]
fn an_origin_that_does_not_answer_the_dial_is_504() {
    let deaf = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    deaf.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    deaf.listen(0).unwrap();
    let at = deaf.local_addr().unwrap().as_socket().unwrap();
    let filler = TcpStream::connect(at).unwrap();
    let proxy = Setup::default().timeouts("dial: 1s").start();
    let mut client = proxy.ask(format!("CONNECT {at} HTTP/1.1\r\nHost: {at}\r\n\r\n"));
    assert_eq!(client.refusal(), (504, "dial_timeout".into()));
    client.hears_end();
    drop(filler);
}

#[test]
fn a_client_that_has_said_its_last_still_hears_the_answer() {
    let origin = Origin::new();
    let (mut client, mut upstream) = tunnel(Proxy::shared(), &origin);
    client.send("question");
    client.finish();
    upstream.hears("question");
    upstream.hears_end();
    upstream.send("a long answer");
    upstream.send(", in parts");
    drop(upstream);
    client.hears("a long answer, in parts");
    client.hears_end();
}

#[test]
fn an_origin_that_has_said_its_last_still_hears_the_client() {
    let origin = Origin::new();
    let (mut client, mut upstream) = tunnel(Proxy::shared(), &origin);
    upstream.send("greeting");
    upstream.finish();
    client.hears("greeting");
    client.hears_end();
    client.send("one");
    upstream.hears("one");
    client.send("two");
    upstream.hears("two");
    client.finish();
    upstream.hears_end();
}

#[test]
fn a_reset_by_the_client_is_passed_on_as_a_reset() {
    let origin = Origin::new();
    let (mut client, mut upstream) = tunnel(Proxy::shared(), &origin);
    client.send("x");
    upstream.hears("x");
    client.reset();
    upstream.hears_reset();
    let event = Proxy::shared().event_about("tunnel.closed", origin.port());
    assert_eq!(event["reason"], "reset");
}

#[test]
fn a_reset_by_the_origin_is_passed_on_as_a_reset() {
    let origin = Origin::new();
    let (mut client, mut upstream) = tunnel(Proxy::shared(), &origin);
    upstream.send("half of it");
    client.hears("half of it");
    upstream.reset();
    client.hears_reset();
}

#[test]
fn a_reset_after_a_half_close_is_passed_on_as_a_reset() {
    let origin = Origin::new();
    let (mut client, mut upstream) = tunnel(Proxy::shared(), &origin);
    client.finish();
    upstream.hears_end();
    upstream.send("some");
    client.hears("some");
    upstream.reset();
    client.hears_reset();
}

/// After 200 there is no HTTP any more: nothing is read, answered, added or dropped.
#[test]
fn bytes_that_look_like_http_pass_unchanged() {
    let origin = Origin::new();
    let (mut client, mut upstream) = tunnel(Proxy::shared(), &origin);
    let rows: [&[u8]; 6] = [
        b"GET http://elsewhere.example/ HTTP/1.1\r\nHost: a\r\nHost: b\r\nProxy-Authorization: x\r\n\r\n",
        b"CONNECT elsewhere.example:443 HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x00\x05hello",
        b"\0\r\n\xff\n\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ];
    for octets in rows {
        client.send(octets);
        upstream.hears(octets);
    }
    for octets in [&b"HTTP/1.1 100 Continue\r\n\r\n"[..], b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n", OK]
    {
        upstream.send(octets);
        client.hears(octets);
    }
}

#[test]
fn an_idle_tunnel_is_closed_after_its_time_and_not_before() {
    let proxy = Setup::default().timeouts("idle_tunnel: 2s").start();
    let origin = Origin::new();
    let (mut client, mut upstream) = tunnel(&proxy, &origin);
    let began = std::time::Instant::now();
    client.hears_end();
    upstream.hears_end();
    assert!(began.elapsed().as_millis() >= 1_500, "closed after {:?}", began.elapsed());
    assert_eq!(proxy.event_about("tunnel.closed", origin.port())["reason"], "timeout");
}

#[test]
fn a_half_closed_tunnel_is_closed_after_its_own_time() {
    let proxy = Setup::default().timeouts("idle_tunnel: 60s, half_closed_linger: 1s").start();
    let origin = Origin::new();
    let (mut client, mut upstream) = tunnel(&proxy, &origin);
    client.finish();
    upstream.hears_end();
    client.hears_end();
    assert_eq!(proxy.event_about("tunnel.closed", origin.port())["reason"], "timeout");
}

#[test]
fn a_tunnel_is_closed_at_the_end_of_its_lifetime_though_it_is_busy() {
    let proxy = Setup::default().timeouts("lifetime: 1s").start();
    let origin = Origin::new();
    let (mut client, mut upstream) = tunnel(&proxy, &origin);
    let mut rounds = 0_u32;
    while client.try_send("ping") {
        let end = upstream.stream().read(&mut [0; 4]).unwrap_or(0);
        if end == 0 || !upstream.try_send("pong") || client.stream().read(&mut [0; 4]).unwrap_or(0) == 0 {
            break;
        }
        rounds += 1;
    }
    assert!(rounds > 0);
    assert_eq!(proxy.event_about("tunnel.closed", origin.port())["reason"], "lifetime");
}

/// RFC 9931: what an optimistic client has sent behind a CONNECT that is refused is no request.
#[test]
fn a_refused_connect_closes_and_nothing_behind_it_is_processed() {
    let origin = Origin::new();
    let closed = Refusing::new();
    let mut client = Proxy::shared().ask(format!(
        "CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\nGET http://{1}/smuggled HTTP/1.1\r\nHost: {1}\r\n\r\n",
        closed.address(),
        origin.address()
    ));
    let (head, _) = client.message();
    assert_eq!((head.status(), head.field("connection")), (502, Some("close")));
    client.hears_end();
    origin.is_untouched();
}

#[test]
fn a_connect_the_policy_denies_is_403_with_the_reason_and_the_hint_and_closes() {
    let (allowed, other) = (Origin::new(), Origin::new());
    let proxy = Setup::default().endpoints(&[format!("host: 127.0.0.1, port: {}", allowed.port())]).start();
    let at = other.address();
    let mut client = proxy.ask(format!(
        "CONNECT {at} HTTP/1.1\r\nHost: {at}\r\n\r\nGET http://{at}/ HTTP/1.1\r\nHost: x\r\n\r\n"
    ));
    let (head, body) = client.message();
    assert_eq!(head.start(), "HTTP/1.1 403 Denied by policy: port not allowed");
    let json: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(json["error"], "policy_denied");
    assert_eq!((&json["sandbox"], &json["destination"]), (&"box".into(), &at.to_string().into()));
    assert!(json["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{body}");
    client.hears_end();
    other.is_untouched();
    let event = proxy.event_about("connect.denied", at.port());
    assert_eq!((&event["action"], &event["reason"]), (&"denied".into(), &"port_not_allowed".into()));
}

/// Both ways at once, through copying and splicing, with readers that take their time.
#[test]
fn bulk_both_ways_arrives_octet_for_octet() {
    const OCTETS: usize = 64 << 20;
    let origin = Origin::new();
    let (client, upstream) = tunnel(Proxy::shared(), &origin);
    let data = pattern(OCTETS);
    // Small buffers at one end keep the relay waiting for room.
    SockRef::from(client.stream()).set_recv_buffer_size(16 << 10).unwrap();
    SockRef::from(upstream.stream()).set_recv_buffer_size(16 << 10).unwrap();
    std::thread::scope(|scope| {
        for mut end in [client.stream(), upstream.stream()] {
            let data = &data;
            scope.spawn(move || {
                end.write_all(data).unwrap();
                end.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || {
                let mut chunk = vec![0; 48 << 10];
                let mut at = 0;
                loop {
                    let count = end.read(&mut chunk).unwrap();
                    if count == 0 {
                        break;
                    }
                    assert!(chunk[..count] == data[at..at + count], "other octets after {at}");
                    at += count;
                }
                assert_eq!(at, OCTETS);
            });
        }
    });
    let event = Proxy::shared().event_about("tunnel.closed", origin.port());
    assert_eq!((&event["bytes_up"], &event["bytes_down"]), (&OCTETS.into(), &OCTETS.into()));
    assert_eq!(event["reason"], "eof");
}

#[test]
fn ipv6_literals_are_dialled_and_named_in_brackets() {
    let origin = Origin::at("::1".parse().unwrap());
    let mut client = Proxy::shared().tunnel(origin.address());
    assert!(origin.address().to_string().starts_with("[::1]:"));
    let mut upstream = origin.accept();
    client.send("x");
    upstream.hears("x");
    let at = origin.address();
    let mut client = Proxy::shared().ask(format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\n\r\n"));
    let mut upstream = origin.accept();
    assert_eq!(upstream.head().field("host"), Some(at.to_string().as_str()));
    upstream.send(OK);
    assert_eq!(client.message().1, "ok");
}

/// What the origin sent before it closed arrives, though the client is still sending.
#[test]
fn what_was_sent_before_a_close_is_delivered() {
    const OCTETS: usize = 4 << 20;
    let origin = Origin::new();
    let (mut client, upstream) = tunnel(Proxy::shared(), &origin);
    let data = pattern(OCTETS);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut stream = upstream.stream();
            stream.write_all(&data).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        });
        assert!(client.bytes(OCTETS) == data);
        client.hears_end();
    });
}

/// Small writes are not held back for an acknowledgement, on either side (44 ms tails).
#[test]
fn nagle_is_off_on_every_connection() {
    let proxy = Setup::default().start();
    let origin = Origin::new();
    let tunnel = tunnel(&proxy, &origin);
    let at = origin.address();
    let _client = proxy.ask(format!("GET http://{at}/ HTTP/1.1\r\nHost: {at}\r\n\r\n"));
    let mut upstream = origin.accept();
    upstream.head();
    // Of every connected TCP socket of another process.
    let script = "import ctypes, os, socket, sys\n\
                  pid = int(sys.argv[1]); of = os.pidfd_open(pid); syscall = ctypes.CDLL(None).syscall\n\
                  for fd in os.listdir(f'/proc/{pid}/fd'):\n\
                  \x20   if not os.readlink(f'/proc/{pid}/fd/{fd}').startswith('socket:'): continue\n\
                  \x20   s = socket.socket(fileno=syscall(438, of, int(fd), 0))\n\
                  \x20   if s.family != socket.AF_INET: continue\n\
                  \x20   try: s.getpeername()\n\
                  \x20   except OSError: continue\n\
                  \x20   print(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))";
    let mut python = std::process::Command::new("python3");
    let output = python.args(["-c", script, &proxy.pid().to_string()]).output().expect("python3 is needed");
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "1\n".repeat(4),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    drop(tunnel);
}

/// A peer that vanished behind an idle tunnel is noticed: both sides ask.
#[test]
fn a_tunnel_has_tcp_keep_alive_on_both_sides() {
    let origin = Origin::new();
    let (client, upstream) = tunnel(Proxy::shared(), &origin);
    conformance::have_keep_alive([client.local(), upstream.local()]);
}
