//! Names and addresses: who is asked for them, which are tried, and that a name the policy denies is never asked for.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

mod conformance;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use conformance::{OK, Origin, Proxy, Setup};
use tempfile::TempDir;

/// A name server at an address of its own, which a daemon is made to use by its own view of /etc.
struct NameServer {
    socket: UdpSocket,
    dir: TempDir,
}

impl NameServer {
    /// `hosts`: what the daemon finds in /etc/hosts.
    fn new(hosts: &str) -> Self {
        let ip = own_address();
        let socket = UdpSocket::bind((ip, 53)).expect("port 53 of an own loopback address needs root");
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("hosts"), hosts).unwrap();
        std::fs::write(dir.path().join("resolv.conf"), format!("nameserver {ip}\n")).unwrap();
        Self { socket, dir }
    }

    /// A daemon that sees these two files.
    fn setup(&self) -> Setup {
        let dir = self.dir.path().display();
        let script = format!(
            "mount --bind {dir}/hosts /etc/hosts && mount --bind {dir}/resolv.conf \"$(readlink -f /etc/resolv.conf)\" && exec \"$@\""
        );
        Setup::default().run_by(&["unshare", "--mount", "--", "sh", "-c", &script, "sh"])
    }

    /// The next query: its octets, the name it asks for, and who asked.
    fn query(&self) -> (Vec<u8>, String, SocketAddr) {
        self.socket.set_read_timeout(Some(conformance::DEADLINE)).unwrap();
        let mut octets = vec![0; 512];
        let (count, from) = self.socket.recv_from(&mut octets).expect("a query");
        octets.truncate(count);
        let mut name = String::new();
        let mut rest = &octets[12..];
        while rest[0] != 0 {
            let (label, behind) = rest[1..].split_at(rest[0].into());
            name.push_str(std::str::from_utf8(label).unwrap());
            name.push('.');
            rest = behind;
        }
        (octets, name, from)
    }

    /// Answers a query: an address for an A question, nothing for others; NXDOMAIN without an address.
    fn answer(&self, query: &(Vec<u8>, String, SocketAddr), ip: Option<Ipv4Addr>) {
        self.answer_for(60, query, ip);
    }

    /// The same, to be believed for so many seconds.
    fn answer_for(&self, ttl: u8, (query, _, from): &(Vec<u8>, String, SocketAddr), ip: Option<Ipv4Addr>) {
        // Without the client's OPT record: the question ends behind its type and class.
        let end = 12 + query[12..].iter().position(|&octet| octet == 0).unwrap() + 5;
        let wants_a = query[end - 4..end - 2] == [0, 1];
        let given = ip.filter(|_| wants_a);
        let code = if ip.is_none() { 3 } else { 0 };
        let mut reply = query[..end].to_vec();
        reply[2..12].copy_from_slice(&[0x81, 0x80 | code, 0, 1, 0, u8::from(given.is_some()), 0, 0, 0, 0]);
        if let Some(ip) = given {
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, ttl, 0, 4]);
            reply.extend(ip.octets());
        }
        self.socket.send_to(&reply, from).unwrap();
    }

    /// Nobody has asked since.
    #[track_caller]
    fn is_unasked(&self) {
        self.socket.set_nonblocking(true).unwrap();
        let asked = self.socket.recv_from(&mut [0; 512]);
        assert_eq!(asked.map_err(|error| error.kind()), Err(ErrorKind::WouldBlock));
    }
}

/// A loopback address that nobody else uses.
fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let id = std::process::id().to_be_bytes();
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(count < 16, "more addresses than there is room for");
    // 19 bits of the process, 4 of the count, in the upper half of 127.0.0.0/8.
    let process = u32::from_be_bytes(id) & 0x0007_ffff;
    Ipv4Addr::from(0x7f80_0000 | process << 4 | u32::from(count))
}

fn get(host: &str, origin: &Origin) -> String {
    format!("GET http://{host}:{}/ HTTP/1.1\r\nHost: {host}\r\n\r\n", origin.port())
}

/// Asks for `host` and answers at `origin`.
#[track_caller]
fn is_reached(proxy: &Proxy, host: &str, origin: &Origin) {
    let mut client = proxy.ask(get(host, origin));
    let mut upstream = origin.accept();
    assert_eq!(upstream.head().field("host"), Some(format!("{host}:{}", origin.port()).as_str()));
    upstream.send(OK);
    assert_eq!(client.message().1, "ok");
}

#[test]
fn etc_hosts_answers_first_and_alone() {
    let server = NameServer::new("127.0.0.1 origin.test alias.test # here\n");
    let proxy = server.setup().start();
    let origin = Origin::new();
    is_reached(&proxy, "origin.test", &origin);
    is_reached(&proxy, "alias.test", &origin);
    server.is_unasked();
}

/// The first address refuses: the next one is tried, and the client never knows.
#[test]
fn the_next_address_is_tried_when_the_first_refuses() {
    let second = own_address();
    let server = NameServer::new(&format!("127.0.0.1 two.test\n{second} two.test\n"));
    let proxy = server.setup().start();
    let origin = Origin::at(second.into());
    let event_ip = {
        let mut client = proxy.tunnel(format_args!("two.test:{}", origin.port()));
        let mut upstream = origin.accept();
        client.send("ping");
        upstream.hears("ping");
        proxy.event_about("connect.allowed", origin.port())["dst_ip"].clone()
    };
    assert_eq!(event_ip, second.to_string());
}

/// The first address is silent: the second is tried a moment later, not after the first one's time (RFC 8305).
#[test]
fn the_next_address_is_tried_when_the_first_is_silent() {
    let second = own_address();
    let server = NameServer::new(&format!("127.0.0.1 slow.test\n{second} slow.test\n"));
    let proxy = server.setup().timeouts("dial: 15s").start();
    let origin = Origin::at(second.into());
    // The same port on the first address: a listener whose backlog is full answers no SYN.
    let deaf = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    deaf.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, origin.port())).into()).unwrap();
    deaf.listen(0).unwrap();
    let _filler = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, origin.port())).unwrap();
    let began = std::time::Instant::now();
    is_reached(&proxy, "slow.test", &origin);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn a_name_without_a_host_entry_is_asked_of_the_server_once() {
    let server = NameServer::new("");
    let proxy = server.setup().start();
    let origin = Origin::new();
    let mut client = proxy.ask(get("api.example", &origin));
    // A and AAAA, in either order.
    for _ in 0..2 {
        let query = server.query();
        assert_eq!(query.1, "api.example.");
        server.answer(&query, Some(Ipv4Addr::LOCALHOST));
    }
    let mut upstream = origin.accept();
    upstream.head();
    upstream.send("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
    assert_eq!(client.message().1, "ok");
    // Remembered: a new dial asks nobody.
    is_reached(&proxy, "api.example", &origin);
    server.is_unasked();
}

/// An answer is believed for as long as it says.
#[test]
fn a_name_is_asked_for_again_when_its_answer_has_expired() {
    let server = NameServer::new("");
    let proxy = server.setup().start();
    let origin = Origin::new();
    let questions = AtomicU8::new(0);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while questions.load(Ordering::Relaxed) < 4 {
                server.answer_for(1, &server.query(), Some(Ipv4Addr::LOCALHOST));
                questions.fetch_add(1, Ordering::Relaxed);
            }
            done.store(true, Ordering::Relaxed);
        });
        let began = std::time::Instant::now();
        while !done.load(Ordering::Relaxed) && began.elapsed() < conformance::DEADLINE {
            let mut client = proxy.tunnel(format_args!("short.example:{}", origin.port()));
            let mut upstream = origin.accept();
            client.send("x");
            upstream.hears("x");
        }
    });
    assert_eq!(questions.load(Ordering::Relaxed), 4);
}

/// Families take turns, IPv6 first; where the first has nobody the other is tried at once.
#[test]
fn both_families_are_tried() {
    let server = NameServer::new("127.0.0.1 both.test\n::1 both.test\n");
    let proxy = server.setup().start();
    for (ip, reached) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1")] {
        let origin = Origin::at(ip.parse().unwrap());
        let mut client = proxy.tunnel(format_args!("both.test:{}", origin.port()));
        let mut upstream = origin.accept();
        client.send("x");
        upstream.hears("x");
        assert_eq!(proxy.event_about("connect.allowed", origin.port())["dst_ip"], reached);
    }
}

#[test]
fn a_name_that_does_not_exist_is_502_and_says_so_and_is_remembered() {
    let server = NameServer::new("");
    let proxy = server.setup().start();
    let mut client = proxy.ask("CONNECT nowhere.example:443 HTTP/1.1\r\nHost: nowhere.example:443\r\n\r\n");
    for _ in 0..2 {
        let query = server.query();
        server.answer(&query, None);
    }
    assert_eq!(client.refusal(), (502, "name_not_found".into()));
    client.hears_end();
    let mut again = proxy.ask("CONNECT nowhere.example:443 HTTP/1.1\r\nHost: nowhere.example:443\r\n\r\n");
    assert_eq!(again.refusal(), (502, "name_not_found".into()));
    server.is_unasked();
}

/// Servers that fail or say nothing are told from names that do not exist.
#[test]
fn a_name_server_that_fails_is_502_and_one_that_is_silent_504() {
    let server = NameServer::new("");
    let proxy = server.setup().start();
    let connect = |name: &str| format!("CONNECT {name}:443 HTTP/1.1\r\nHost: {name}:443\r\n\r\n");
    let done = std::sync::atomic::AtomicBool::new(false);
    let began = std::time::Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) && began.elapsed() < conformance::DEADLINE {
                server.socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
                let mut octets = [0; 512];
                let Ok((count, from)) = server.socket.recv_from(&mut octets) else { continue };
                let query = &mut octets[..count];
                if query.windows(6).any(|six| six == b"failed") {
                    // SERVFAIL.
                    query[2..4].copy_from_slice(&[0x81, 0x82]);
                    server.socket.send_to(query, from).unwrap();
                }
            }
        });
        let mut client = proxy.ask(connect("failed.example"));
        assert_eq!(client.refusal(), (502, "name_failed".into()));
        client.hears_end();
        let mut client = proxy.ask(connect("silent.example"));
        assert_eq!(client.refusal(), (504, "name_timeout".into()));
        client.hears_end();
        done.store(true, Ordering::Relaxed);
    });
}

/// Decision 9: asking for a name is already telling somebody.
#[test]
fn a_name_the_policy_denies_is_never_asked_for() {
    let server = NameServer::new("");
    let proxy = server.setup().endpoints(&["host: allowed.example, port: 443".into()]).start();
    for request in [
        "CONNECT secret-data.evil.example:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET http://secret-data.evil.example/ HTTP/1.1\r\nHost: x\r\n\r\n",
        "CONNECT allowed.example:80 HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        assert_eq!(proxy.ask(request).refusal().0, 403);
    }
    server.is_unasked();
}

/// One address that may not be dialled condemns the answer: a name that leads outside and inside is how rebinding works.
#[test]
fn a_name_that_leads_to_a_forbidden_address_is_403() {
    // Also behind more good ones than are ever tried.
    let many: Vec<_> = (1..=20).map(|n| format!("127.0.0.{n} many.test\n")).collect();
    let many = many.concat();
    let server = NameServer::new(&format!(
        "169.254.169.254 imds.test\n127.0.0.1 both.test\n169.254.169.254 both.test\n{many}10.0.0.1 many.test\n"
    ));
    let proxy = server.setup().start();
    for host in ["imds.test", "both.test", "many.test"] {
        let mut client = proxy.ask(format!("CONNECT {host}:80 HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        let (status, reason) = client.refusal();
        assert_eq!(status, 403, "{host} {reason}");
        client.hears_end();
    }
}

/// A connection that is kept was dialled under one rule; another rule for the same host may not lead there.
#[test]
fn a_kept_connection_is_used_only_where_it_could_have_been_dialled() {
    let server = NameServer::new("127.0.0.1 shared.test\n");
    let origin = Origin::new();
    let rule = |path: &str, addresses: &str| {
        let rules = format!("protocol: http, rules: [{{allow: {{method: GET, path: {path}}}}}]");
        format!("host: shared.test, port: {}, path: {path}, {rules}{addresses}", origin.port())
    };
    let endpoints = [rule("/here", ""), rule("/there", ", allowed_ips: [192.0.2.7]")];
    let proxy = server.setup().endpoints(&endpoints).start();
    let request = |path: &str| {
        format!("GET http://shared.test:{}{path} HTTP/1.1\r\nHost: shared.test\r\n\r\n", origin.port())
    };
    let mut client = proxy.ask(request("/here"));
    let mut upstream = origin.accept();
    upstream.head();
    upstream.send(OK);
    assert_eq!(client.message().1, "ok");
    client.send(request("/there"));
    assert_eq!(client.refusal().0, 403);
}

/// Spellings that the C library takes for an address are refused before anybody is asked what they mean.
#[test]
fn odd_spellings_of_an_address_are_never_resolved() {
    let server = NameServer::new("127.0.0.1 127.1 0x7f.1 2130706433\n");
    let proxy = server.setup().start();
    for host in [
        "127.1",
        "127.0.1",
        "0x7f.1",
        "0x7f000001",
        "017700000001",
        "2130706433",
        "0177.0.0.1",
        "1.2.3.4.5",
        "a.0x1",
    ] {
        for request in [format!("CONNECT {host}:80"), format!("GET http://{host}/")] {
            let mut client = proxy.ask(format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n"));
            assert_eq!(client.refusal(), (400, "host_odd_ipv4".into()), "{request}");
            client.hears_end();
        }
    }
    server.is_unasked();
}

/// An address of this test's own on `lo`; it is gone when this is dropped.
struct OwnAddress(Ipv4Addr);

impl OwnAddress {
    /// The `number`th of this process, 0 or 1.
    fn new(number: u8) -> Self {
        let [.., middle, low] = std::process::id().to_be_bytes();
        // Of 198.18.0.0/15, which is for tests.
        let own = Self(Ipv4Addr::new(198, 18 + number, middle, low));
        assert!(own.ip("add"), "addresses need root and ip (iproute2)");
        own
    }

    fn ip(&self, verb: &str) -> bool {
        let words = ["address", verb, &format!("{}/32", self.0), "dev", "lo"];
        std::process::Command::new("ip").args(words).status().is_ok_and(|status| status.success())
    }
}

impl Drop for OwnAddress {
    fn drop(&mut self) {
        self.ip("del");
    }
}

/// Whatever the policy says, and in whatever disguise: behind it is the host.
#[test]
fn addresses_of_the_host_itself_are_403() {
    let own = OwnAddress::new(0);
    let [a, b, c, d] = own.0.octets();
    let [high, low] = [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
    let named = format!("host: {0}, port: 80, allowed_ips: [{0}]", own.0);
    let naming = Setup::default().endpoints(&[named]).start();
    let open = Setup::default().start();
    for (proxy, host) in [
        (&naming, own.0.to_string()),
        (&open, own.0.to_string()),
        (&open, format!("[::ffff:{high:x}:{low:x}]")),
        (&open, format!("[64:ff9b::{high:x}:{low:x}]")),
        (&open, format!("[2002:{high:x}:{low:x}::1]")),
    ] {
        let mut client = proxy.ask(format!("CONNECT {host}:80 HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(client.refusal(), (403, "address_own".into()), "{host}");
        client.hears_end();
    }
}

#[test]
fn an_address_that_the_host_gains_is_403_within_seconds() {
    let proxy = Setup::default().start();
    let own = OwnAddress::new(1);
    let began = Instant::now();
    loop {
        let head = format!("CONNECT {0}:80 HTTP/1.1\r\nHost: {0}\r\n\r\n", own.0);
        if proxy.ask(head).refusal() == (403, "address_own".into()) {
            return;
        }
        assert!(began.elapsed() < conformance::DEADLINE, "{} is still not the host's own", own.0);
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn forbidden_addresses_are_403_however_they_are_written() {
    for host in [
        "169.254.169.254",
        "[::ffff:169.254.169.254]",
        "[::169.254.169.254]",
        "[::ffff:0:a9fe:a9fe]",
        "[64:ff9b::a9fe:a9fe]",
        "[64:ff9b:1::a9fe:a9fe]",
        "[64:ff9b:1:a9fe:a9:fe00::]",
        "[2001:0:a9fe:a9fe::]",
        "[2001:0:808:808:0:0:5601:5601]",
        "100.100.100.200",
        "168.63.129.16",
        "192.168.1.1",
        "172.16.0.1",
        "192.0.2.1",
        "198.51.100.1",
        "203.0.113.1",
        "240.0.0.1",
        "[fd12::1]",
        "[ff02::1]",
        "[fec0::1]",
        "[2001:db8::1]",
        "[2002:a9fe:a9fe::]",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "0.0.0.0",
        "[::]",
        "224.0.0.1",
        "255.255.255.255",
        "10.0.0.1",
        "100.64.0.1",
    ] {
        let mut client = Proxy::shared().ask(format!("CONNECT {host}:80 HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        let (status, reason) = client.refusal();
        assert_eq!(status, 403, "{host} {reason}");
        client.hears_end();
    }
}
