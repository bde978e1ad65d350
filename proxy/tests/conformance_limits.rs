//! Limits and time-outs: what a client is told, that the daemon goes on, and that nobody can make it hold memory.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

mod conformance;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use conformance::{OK, Origin, Peer, Proxy, Setup};
use socket2::SockRef;

fn get(origin: &Origin, path: &str, fields: &str) -> String {
    let at = origin.address();
    format!("GET http://{at}{path} HTTP/1.1\r\nHost: {at}\r\n{fields}\r\n")
}

/// A request is served.
#[track_caller]
fn serves(proxy: &Proxy, origin: &Origin) {
    let mut client = proxy.ask(get(origin, "/", "Connection: close\r\n"));
    let mut upstream = origin.accept();
    upstream.head();
    upstream.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
    assert_eq!(client.message().1, "ok");
}

/// So many field lines with values of so many octets.
fn fields(count: usize, octets: usize) -> String {
    let value = "y".repeat(octets);
    (0..count).map(|n| format!("X-{n}: {value}\r\n")).collect::<Vec<_>>().concat()
}

#[test]
fn a_head_that_is_too_large_is_431() {
    let origin = Origin::new();
    let rows = [
        (format!("X: {}\r\n", "y".repeat(40_000)), "head_too_large"),
        (fields(40, 1_000), "head_too_large"),
        (fields(200, 1), "too_many_fields"),
    ];
    for (fields, reason) in rows {
        let mut client = Proxy::shared().ask(get(&origin, "/", &fields));
        assert_eq!(client.refusal(), (431, reason.into()));
        client.hears_end();
    }
    origin.is_untouched();
}

#[test]
fn a_request_line_of_8000_octets_passes_and_one_of_20000_is_414() {
    let origin = Origin::new();
    let mut client = Proxy::shared().ask(get(&origin, &format!("/{}", "x".repeat(8_000)), ""));
    let mut upstream = origin.accept();
    assert_eq!(upstream.head().start().len(), "GET / HTTP/1.1".len() + 8_000);
    upstream.send(OK);
    assert_eq!(client.message().1, "ok");
    let mut client = Proxy::shared().ask(get(&origin, &format!("/{}", "x".repeat(20_000)), ""));
    assert_eq!(client.refusal(), (414, "line_too_long".into()));
    client.hears_end();
    // Without an end in sight, too.
    let mut client = Proxy::shared().ask(format!("GET http://{}/{}", origin.address(), "x".repeat(20_000)));
    assert_eq!(client.refusal(), (414, "line_too_long".into()));
    origin.is_untouched();
}

/// A byte now and then keeps nothing open beyond the time a head may take.
#[test]
fn a_head_that_comes_too_slowly_is_408() {
    let proxy = Setup::default().timeouts("head_read: 1s").start();
    let mut client = proxy.ask("GET http://a.example/ HTTP/1.1\r\nX: ");
    let began = Instant::now();
    client.stream().set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    while client.stream().peek(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
        assert!(began.elapsed() < conformance::DEADLINE, "a slow head is not ended");
        client.try_send("x");
    }
    assert_eq!(client.refusal(), (408, "head_timeout".into()));
    client.end();
}

#[test]
fn a_connection_without_a_request_is_closed_without_a_word() {
    let proxy = Setup::default().timeouts("idle_keepalive: 1s").start();
    let origin = Origin::new();
    proxy.connect().hears_end();
    let mut client = proxy.ask(get(&origin, "/", ""));
    let mut upstream = origin.accept();
    upstream.head();
    upstream.send(OK);
    client.message();
    client.hears_end();
    // The upstream connection is not kept for longer either.
    upstream.hears_end();
}

#[test]
fn an_origin_that_does_not_answer_is_504_and_the_connection_ends() {
    let proxy = Setup::default().timeouts("first_byte: 1s").start();
    let origin = Origin::new();
    let mut client = proxy.ask(get(&origin, "/", ""));
    let mut upstream = origin.accept();
    upstream.head();
    let (head, body) = client.message();
    assert_eq!((head.status(), head.field("connection")), (504, Some("close")));
    assert!(body.contains("origin_timeout"), "{body}");
    client.hears_end();
    upstream.hears_end();
    origin.is_untouched();
}

/// A client that waits for `100 Continue` has sent its request as far as it can: an origin that says nothing is late.
#[test]
fn an_origin_that_leaves_an_expectation_unanswered_is_504() {
    let proxy = Setup::default().timeouts("first_byte: 1s").start();
    let origin = Origin::new();
    let at = origin.address();
    let mut client = proxy.ask(format!(
        "PUT http://{at}/ HTTP/1.1\r\nHost: {at}\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    ));
    let mut upstream = origin.accept();
    upstream.head();
    assert_eq!(client.refusal(), (504, "origin_timeout".into()));
    client.hears_end();
    assert_eq!(upstream.end().rest, b"");
}

/// Short time-outs are kept as well as long ones: never early, and not much late.
#[test]
fn a_time_out_below_a_second_is_kept() {
    let proxy = Setup::default().timeouts("idle_tunnel: 200ms").start();
    let origin = Origin::new();
    for _ in 0..10 {
        let mut client = proxy.tunnel(origin.address());
        let began = Instant::now();
        let _upstream = origin.accept();
        client.hears_end();
        let lasted = began.elapsed();
        // The last 10 ms may have passed before the client had its answer.
        assert!(lasted >= Duration::from_millis(190), "closed after {lasted:?}");
    }
}

/// The time for the first byte begins when the request has been sent: a long upload is no slow answer.
#[test]
fn a_slow_upload_is_not_a_slow_answer() {
    let proxy = Setup::default().timeouts("first_byte: 1s, head_read: 1s").start();
    let origin = Origin::new();
    let at = origin.address();
    let mut client =
        proxy.ask(format!("PUT http://{at}/ HTTP/1.1\r\nHost: {at}\r\nContent-Length: 6\r\n\r\n"));
    let mut upstream = origin.accept();
    upstream.head();
    for part in ["one", "two"] {
        // Another connection's time-out says that more than the time has passed.
        assert_eq!(proxy.ask("GET /").refusal().0, 408);
        client.send(part);
        upstream.hears(part);
    }
    upstream.send(OK);
    assert_eq!(client.message().1, "ok");
}

#[test]
fn more_connections_than_the_sandbox_may_have_are_429_with_retry_after() {
    let proxy = Setup::default().sandbox_limits("connections: 2").start();
    let origin = Origin::new();
    let places = [proxy.tunnel(origin.address()), proxy.tunnel(origin.address())];
    // The request is there before the refusal: closing with it unread must not take the refusal away.
    for _ in 0..20 {
        let mut third = proxy.ask(get(&origin, "/", ""));
        let (head, body) = third.message();
        assert_eq!((head.status(), head.field("retry-after")), (429, Some("1")));
        assert!(body.contains("too_many_connections"), "{body}");
        third.hears_end();
    }
    drop([origin.accept(), origin.accept()]);
    drop(places);
    assert!(served_in_time(&proxy, &origin), "the places of closed connections are not given back");
}

/// So many and no more; the connection goes on, and a moment later requests are served again.
#[test]
fn requests_beyond_the_rate_are_429_with_retry_after() {
    let proxy = Setup::default().sandbox_limits("requests_per_s: 5").start();
    let origin = Origin::new();
    let began = Instant::now();
    let mut client = proxy.connect();
    let mut answer = || {
        client.send(answered_here(&origin));
        let head = client.head();
        if head.status() == 429 {
            client.bytes(head.field("content-length").unwrap().parse().unwrap());
        }
        (head.status(), head.field("retry-after").map(str::to_owned))
    };
    let mut served = 0_u32;
    while answer() != (429, Some("1".into())) {
        served += 1;
        assert!(served < 1_000, "no rate is kept");
    }
    // A burst of one second, and what has come due since.
    let most = 6 + u32::try_from(began.elapsed().as_secs() + 1).unwrap() * 5;
    assert!((5..=most).contains(&served), "{served} in {:?}", began.elapsed());
    while answer().0 != 204 {
        assert!(began.elapsed() < conformance::DEADLINE, "the rate does not recover");
    }
    // A CONNECT counts like any request. A refused one closes.
    loop {
        let mut client = proxy.ask(format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n\r\n", origin.address()));
        let head = client.head();
        if head.status() == 429 {
            assert_eq!((head.field("retry-after"), head.field("connection")), (Some("1"), Some("close")));
            break;
        }
        assert!(began.elapsed() < conformance::DEADLINE, "CONNECTs are not counted");
    }
}

/// Both directions share one rate, whatever moves the bytes: tunnels and bodies, copied and spliced.
#[test]
fn bytes_beyond_the_rate_wait() {
    const RATE: usize = 1 << 20;
    let proxy = Setup::default().sandbox_limits(&format!("bytes_per_s: {RATE}")).start();
    let origin = Origin::new();
    let at = origin.address();
    let began = Instant::now();
    let tunnel = proxy.tunnel(at);
    let mut upstream = origin.accept();
    send_meanwhile(tunnel.stream(), RATE, || drop(upstream.bytes(RATE)));
    let client =
        proxy.ask(format!("PUT http://{at}/ HTTP/1.1\r\nHost: {at}\r\nContent-Length: {RATE}\r\n\r\n"));
    let mut upstream = origin.accept();
    upstream.head();
    send_meanwhile(client.stream(), RATE, || drop(upstream.bytes(RATE)));
    let mut client = client;
    upstream.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {RATE}\r\n\r\n"));
    client.head();
    send_meanwhile(upstream.stream(), RATE, || drop(client.bytes(RATE)));
    // Three seconds' worth, of which one is the burst, and the last read is not waited for.
    assert!(began.elapsed() >= Duration::from_millis(1_400), "{:?}", began.elapsed());
}

fn send_meanwhile(mut from: &TcpStream, octets: usize, meanwhile: impl FnOnce()) {
    std::thread::scope(|scope| {
        scope.spawn(move || from.write_all(&vec![b'x'; octets]).unwrap());
        meanwhile();
    });
}

/// What waits for its rate is not idle.
#[test]
fn a_wait_for_the_rate_is_no_silence() {
    let proxy = Setup::default().timeouts("idle_tunnel: 1s").sandbox_limits("bytes_per_s: 20000").start();
    let origin = Origin::new();
    let client = proxy.tunnel(origin.address());
    let mut upstream = origin.accept();
    // One read of 64 KiB owes more than two seconds.
    send_meanwhile(client.stream(), 80_000, || drop(upstream.bytes(80_000)));
}

/// Heads that never end: each holds what it has sent and what a connection costs, not a buffer's worth.
#[test]
fn many_slow_heads_hold_bounded_memory() {
    const HEADS: usize = 400;
    let proxy = Setup::default().start();
    let origin = Origin::new();
    serves(&proxy, &origin);
    let before = proxy.resident();
    let half = format!("GET http://a.example/ HTTP/1.1\r\nX: {}", "x".repeat(4_000));
    let slow: Vec<Peer> = (0..HEADS).map(|_| proxy.ask(&half)).collect();
    // The worker has read the others when it answers this one.
    serves(&proxy, &origin);
    let each = proxy.resident().saturating_sub(before) / HEADS as u64;
    assert!(each < 32 << 10, "{each} octets for a head of {}", half.len());
    drop(slow);
}

/// A request that the daemon answers itself.
fn answered_here(origin: &Origin) -> String {
    format!("OPTIONS http://{}/ HTTP/1.1\r\nHost: x\r\nMax-Forwards: 0\r\n\r\n", origin.address())
}

/// Asks until the answer is no refusal.
fn served_in_time(proxy: &Proxy, origin: &Origin) -> bool {
    let began = Instant::now();
    while began.elapsed() < conformance::DEADLINE {
        if proxy.ask(answered_here(origin)).head().status() == 204 {
            return true;
        }
    }
    false
}

/// No descriptor is left for a while: what is connected goes on, accepting resumes when there is one again.
#[test]
fn running_out_of_descriptors_is_survived() {
    let proxy = Setup::default().run_by(&["prlimit", "--nofile=96", "--"]).start();
    let origin = Origin::new();
    let mut tunnel = proxy.tunnel(origin.address());
    let mut upstream = origin.accept();
    let began = Instant::now();
    let mut flood: Vec<TcpStream> = Vec::new();
    while proxy.descriptors() < 96 {
        assert!(began.elapsed() < conformance::DEADLINE, "the flood does not fill the table");
        flood.extend((0..8).map(|_| TcpStream::connect(proxy.address()).unwrap()));
    }
    // Waits in the backlog; its answer takes no dial.
    let mut waiting = proxy.ask(answered_here(&origin));
    tunnel.send("still here");
    upstream.hears("still here");
    drop(flood);
    assert_eq!(waiting.head().status(), 204);
    // By then the flood's last are gone as well, or nearly.
    assert!(served_in_time(&proxy, &origin), "accepting does not resume");
    serves(&proxy, &origin);
}

/// A client whose request is taken, but for whose dial there is no descriptor.
#[test]
fn a_dial_without_a_descriptor_is_503_with_retry_after() {
    let proxy = Setup::default().run_by(&["prlimit", "--nofile=96", "--"]).start();
    let origin = Origin::new();
    let mut first = proxy.ask("GET ");
    let began = Instant::now();
    let mut flood: Vec<TcpStream> = Vec::new();
    while proxy.descriptors() < 96 {
        assert!(began.elapsed() < conformance::DEADLINE, "the flood does not fill the table");
        flood.extend((0..8).map(|_| TcpStream::connect(proxy.address()).unwrap()));
    }
    first.send(format!("http://{}/ HTTP/1.1\r\nHost: x\r\n\r\n", origin.address()));
    let (head, _) = first.message();
    assert_eq!((head.status(), head.field("retry-after")), (503, Some("5")));
    drop(flood);
}

/// Sends until the other side takes no more, or hardly: a probe of a closed window lets a little through now and then.
/// How much it took.
fn fill(peer: &Peer, most: usize) -> usize {
    const PATIENCE: Duration = Duration::from_millis(300);
    let mut stream = peer.stream();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let chunk = vec![b'x'; 64 << 10];
    let mut sent = 0;
    while sent < most {
        let began = Instant::now();
        match stream.write(&chunk) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
        if began.elapsed() > PATIENCE / 3 {
            break;
        }
    }
    sent
}

/// What is not taken at one end is not read at the other: only the kernel's socket buffers fill.
#[test]
fn a_slow_reader_holds_bounded_memory() {
    const OCTETS: usize = 1 << 30;
    let proxy = Setup::default().start();
    let origin = Origin::new();
    let at = origin.address();
    serves(&proxy, &origin);
    let before = proxy.resident();
    let mut all = Vec::new();
    for _ in 0..8 {
        let client =
            proxy.ask(format!("PUT http://{at}/ HTTP/1.1\r\nHost: {at}\r\nContent-Length: {OCTETS}\r\n\r\n"));
        let upstream = origin.accept();
        SockRef::from(upstream.stream()).set_recv_buffer_size(16 << 10).unwrap();
        let sent = fill(&client, OCTETS);
        assert!(sent < OCTETS / 8, "the proxy took {sent} octets nobody reads");
        all.push((client, upstream));
        let client = proxy.tunnel(at);
        let upstream = origin.accept();
        let sent = fill(&upstream, OCTETS);
        assert!(sent < OCTETS / 8, "the tunnel took {sent} octets nobody reads");
        all.push((client, upstream));
    }
    let growth = proxy.resident().saturating_sub(before);
    assert!(growth < 2 << 20, "{growth} octets for 4 stalled transfers");
}

/// An upload of any length is passed on as it comes, and an answer too: the daemon grows by buffers, not by bodies.
#[test]
fn huge_bodies_hold_bounded_memory() {
    const OCTETS: usize = 192 << 20;
    let proxy = Setup::default().start();
    let origin = Origin::new();
    let at = origin.address();
    serves(&proxy, &origin);
    let before = proxy.resident();
    for chunked in [false, true] {
        let (framing, start) = if chunked {
            ("Transfer-Encoding: chunked".to_owned(), format!("{OCTETS:x}\r\n"))
        } else {
            (format!("Content-Length: {OCTETS}"), String::new())
        };
        let mut client = proxy.ask(format!("PUT http://{at}/ HTTP/1.1\r\nHost: {at}\r\n{framing}\r\n\r\n"));
        let mut upstream = origin.accept();
        upstream.head();
        client.send(&start);
        upstream.hears(&start);
        pour(client.stream(), upstream.stream(), OCTETS);
        upstream.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n\r\n{start}"));
        client.head();
        client.hears(&start);
        pour(upstream.stream(), client.stream(), OCTETS);
    }
    let growth = proxy.resident().saturating_sub(before);
    assert!(growth < 4 << 20, "{growth} octets for bodies of {OCTETS}");
}

/// Sends so many octets and takes them at the other end, a piece at a time.
fn pour(from: &TcpStream, mut to: &TcpStream, octets: usize) {
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut from = from;
            let piece = vec![b'x'; 1 << 20];
            (0..octets / piece.len()).for_each(|_| from.write_all(&piece).unwrap());
        });
        let mut piece = vec![0; 1 << 20];
        (0..octets / piece.len()).for_each(|_| to.read_exact(&mut piece).unwrap());
    });
}

/// A chunk of any size is passed on as it comes, not gathered.
#[test]
fn a_huge_chunk_is_streamed() {
    let proxy = Setup::default().start();
    let origin = Origin::new();
    let at = origin.address();
    let mut client = proxy
        .ask(format!("PUT http://{at}/ HTTP/1.1\r\nHost: {at}\r\nTransfer-Encoding: chunked\r\n\r\n7fffffffffffffff\r\nfirst"));
    let mut upstream = origin.accept();
    upstream.head();
    upstream.hears("7fffffffffffffff\r\nfirst");
    client.send("second");
    upstream.hears("second");
}

/// Pipelined requests wait in the kernel, not in the daemon, while one is being served.
#[test]
fn a_flood_of_pipelined_requests_holds_bounded_memory() {
    let proxy = Setup::default().start();
    let origin = Origin::new();
    serves(&proxy, &origin);
    let before = proxy.resident();
    let client = proxy.ask(get(&origin, "/slow", ""));
    let mut upstream = origin.accept();
    upstream.head();
    let sent = fill(&client, 256 << 20);
    assert!(sent < 128 << 20, "the proxy took {sent} octets nobody asked for");
    let growth = proxy.resident().saturating_sub(before);
    assert!(growth < 4 << 20, "{growth} octets for one client");
}

/// A body that stops arriving ends like a head that does: the client is told.
#[test]
fn an_upload_that_stalls_is_408() {
    let proxy = Setup::default().timeouts("idle_tunnel: 1s").start();
    let origin = Origin::new();
    let at = origin.address();
    let mut client =
        proxy.ask(format!("PUT http://{at}/ HTTP/1.1\r\nHost: {at}\r\nContent-Length: 10\r\n\r\nhalf"));
    let mut upstream = origin.accept();
    upstream.head();
    upstream.hears("half");
    assert_eq!(client.refusal(), (408, "body_timeout".into()));
    client.end();
    assert_eq!(upstream.end().rest, b"");
}

/// The origin takes no more of the body and says nothing.
#[test]
fn an_origin_that_stops_reading_is_504() {
    let proxy = Setup::default().timeouts("idle_tunnel: 1s").start();
    let origin = Origin::new();
    let at = origin.address();
    let mut client =
        proxy.ask(format!("PUT http://{at}/ HTTP/1.1\r\nHost: {at}\r\nContent-Length: {}\r\n\r\n", 1 << 30));
    let mut upstream = origin.accept();
    upstream.head();
    fill(&client, 1 << 30);
    assert_eq!(client.refusal(), (504, "origin_timeout".into()));
}
