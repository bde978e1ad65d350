//! The inner fence: whatever does not stay inside is refused at once, counted exactly and logged.

mod scene;

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use scene::kmsg::{lines_with, open_kmsg_at_its_end};
use scene::{Scene, at_once};
use sluice_netns::{LogLimit, Sandbox, inside};
use socket2::{Domain, Protocol, Socket, Type};

/// Addresses for documentation (RFC 5737, RFC 3849): nobody's, and reached by nobody.
const TCP_FAR: [&str; 2] = ["192.0.2.1:80", "[2001:db8::1]:80"];
const UDP_FAR: [(&str, &str); 2] = [("0.0.0.0:0", "192.0.2.1:53"), ("[::]:0", "[2001:db8::1]:53")];

fn far(address: &str) -> SocketAddr {
    address.parse().expect("address")
}

/// Sends `message` to `address` from a socket of the given kind, inside.
fn send(kind: Type, protocol: i32, address: &str, message: &[u8]) -> io::Result<usize> {
    let address = far(address);
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::from(protocol)))?;
    socket.set_write_timeout(Some(Duration::from_secs(5)))?;
    socket.send_to(message, &address.into())
}

#[test]
fn tcp_is_refused_at_once() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("tcp");
    inside(sandbox.netns(), || {
        for address in TCP_FAR {
            let error = at_once(|| TcpStream::connect(address)).expect_err(address);
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{address}: {error}");
        }
    })
    .expect("enter");
    let counters = sandbox.counters().expect("counters");
    assert_eq!((counters.tcp.packets, counters.refused_packets()), (2, 2));
    assert!(counters.tcp.bytes >= 2 * 40, "{counters:?}");
}

#[test]
fn tcp_from_a_loopback_source_is_refused_at_once() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("bound");
    let error = inside(sandbox.netns(), || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
        socket.bind(&far("127.0.0.1:0").into()).expect("bind");
        at_once(|| socket.connect_timeout(&far("192.0.2.1:80").into(), Duration::from_secs(5)))
            .expect_err("refused")
    })
    .expect("enter");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
}

#[test]
fn udp_is_refused_at_once() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("udp");
    inside(sandbox.netns(), || {
        for (own, address) in UDP_FAR {
            let socket = UdpSocket::bind(own).expect(own);
            let error = at_once(|| socket.send_to(b"?", address)).expect_err(address);
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{address}: {error}");
            let connected = UdpSocket::bind(own).expect(own);
            connected.connect(address).expect(address);
            at_once(|| connected.send(b"?")).expect_err(address);
        }
    })
    .expect("enter");
    let counters = sandbox.counters().expect("counters");
    assert_eq!((counters.udp.packets, counters.refused_packets()), (4, 4));
}

#[test]
fn multicast_and_broadcast_are_attempts_like_any_other() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("many");
    inside(sandbox.netns(), || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("bind");
        socket.set_broadcast(true).expect("broadcast");
        for address in ["224.0.0.251:5353", "239.255.255.250:1900", "255.255.255.255:67"] {
            at_once(|| socket.send_to(b"?", address)).expect_err(address);
        }
        at_once(|| UdpSocket::bind("[::]:0").expect("bind").send_to(b"?", "[ff02::fb%1]:5353").map(drop))
            .expect_err("ff02::fb");
    })
    .expect("enter");
    let counters = sandbox.counters().expect("counters");
    assert_eq!((counters.udp.packets, counters.kernel_noise.packets), (4, 0));
}

#[test]
fn ping_without_privileges_and_icmp_by_raw_socket_are_refused_at_once() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("icmp");
    let echo = |kind: u8| [kind, 0, 0, 0, 0, 7, 0, 1];
    let (v4, v6) = ("192.0.2.1:0", "[2001:db8::1]:0");
    inside(sandbox.netns(), || {
        for (kind, protocol, address, request) in [
            (Type::DGRAM, libc::IPPROTO_ICMP, v4, 8),
            (Type::RAW, libc::IPPROTO_ICMP, v4, 8),
            (Type::RAW, libc::IPPROTO_ICMPV6, v6, 128),
        ] {
            let error = at_once(|| send(kind, protocol, address, &echo(request))).expect_err(address);
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{kind:?} {address}: {error}");
        }
        // For this one kind of socket the kernel forgets that the packet was dropped in send(2) (ping_v6_sendmsg),
        // so the ICMP answer tells it.
        let ping6 = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::ICMPV6)).expect("socket");
        ping6.connect(&far(v6).into()).expect("connect");
        ping6.send(&echo(128)).expect("send");
        let error = ping6.take_error().expect("SO_ERROR").expect("refused at once");
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    })
    .expect("enter");
    let counters = sandbox.counters().expect("counters");
    assert_eq!((counters.icmp.packets, counters.refused_packets()), (4, 4));
}

#[test]
fn other_protocols_are_refused_and_counted() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("other");
    inside(sandbox.netns(), || {
        for address in ["192.0.2.1:0", "[2001:db8::1]:0"] {
            // 47 is GRE: a tunnel would be a way out.
            let error = at_once(|| send(Type::RAW, 47, address, &[0; 8])).expect_err(address);
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{address}: {error}");
        }
    })
    .expect("enter");
    let counters = sandbox.counters().expect("counters");
    assert_eq!((counters.other.packets, counters.refused_packets()), (2, 2));
}

#[test]
fn a_process_cannot_pass_its_packets_off_as_the_kernels_chatter() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("chatter");
    let router_solicitation = [133, 0, 0, 0, 0, 0, 0, 0];
    inside(sandbox.netns(), || {
        at_once(|| send(Type::RAW, libc::IPPROTO_ICMPV6, "[ff02::2%1]:0", &router_solicitation))
            .expect_err("router solicitation");
        at_once(|| send(Type::RAW, libc::IPPROTO_IGMP, "224.0.0.22:0", &[0x22, 0, 0, 0, 0, 0, 0, 0]))
            .expect_err("membership report");
    })
    .expect("enter");
    let counters = sandbox.counters().expect("counters");
    assert_eq!(
        (counters.icmp.packets, counters.other.packets, counters.kernel_noise.packets),
        (1, 1, 0),
        "{counters:?}"
    );
}

#[test]
fn counters_are_exact_where_log_lines_are_left_out() {
    let scene = Scene::new();
    let mut spec = scene.spec("flood");
    spec.log_limit = LogLimit { per_second: 1, burst: 3, ..LogLimit::default() };
    let sandbox = Sandbox::create(&spec).expect("create");
    inside(sandbox.netns(), || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("bind");
        for _ in 0..500 {
            socket.send_to(b"?", "192.0.2.1:9").expect_err("refused");
        }
        // The limit is each protocol's own: UDP's flood leaves TCP its lines.
        TcpStream::connect("192.0.2.1:9").expect_err("refused");
    })
    .expect("enter");
    let counters = sandbox.counters().expect("counters");
    assert_eq!((counters.udp.packets, counters.tcp.packets), (500, 1));
    assert!((2..100).contains(&counters.logged.packets), "{counters:?}");
}

#[test]
fn without_a_limit_every_refusal_is_logged() {
    let scene = Scene::new();
    let mut spec = scene.spec("unlimited");
    spec.log_limit = LogLimit::OFF;
    let sandbox = Sandbox::create(&spec).expect("create");
    inside(sandbox.netns(), || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("bind");
        for _ in 0..50 {
            socket.send_to(b"?", "192.0.2.1:9").expect_err("refused");
        }
    })
    .expect("enter");
    let counters = sandbox.counters().expect("counters");
    assert_eq!((counters.udp.packets, counters.logged.packets), (50, 50));
}

#[test]
fn refusals_appear_in_the_kernel_log_under_the_sandboxs_prefix() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("logged");
    let mut kmsg = open_kmsg_at_its_end();
    inside(sandbox.netns(), || {
        for address in TCP_FAR {
            TcpStream::connect(address).expect_err(address);
        }
        for (own, address) in UDP_FAR {
            UdpSocket::bind(own).expect(own).send_to(b"?", address).expect_err(address);
        }
    })
    .expect("enter");
    let prefix = sandbox.log_prefix();
    assert_eq!(prefix.as_str(), format!("sluice[logged:{}] ", sandbox.log_token()));
    let lines = lines_with(&mut kmsg, prefix.as_str(), 4);
    for expected in [
        "DST=192.0.2.1 .*PROTO=TCP .*DPT=80 .*UID=0",
        "DST=2001:0db8:0000:0000:0000:0000:0000:0001 .*PROTO=TCP .*DPT=80 .*UID=0",
        "DST=192.0.2.1 .*PROTO=UDP .*DPT=53 .*UID=0",
        "DST=2001:0db8:0000:0000:0000:0000:0000:0001 .*PROTO=UDP .*DPT=53 .*UID=0",
    ] {
        assert!(
            lines.iter().any(|line| expected.split(".*").all(|part| line.contains(part))),
            "no line with {expected} in {lines:#?}"
        );
    }
}

#[test]
fn with_the_rules_flushed_there_is_still_no_way_out() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("flushed");
    inside(sandbox.netns(), || {
        assert!(Command::new("nft").args(["flush", "ruleset"]).status().expect("nft").success());
        let links = std::fs::read_to_string("/proc/thread-self/net/dev").expect("links");
        let links: Vec<&str> = links.lines().skip(2).filter_map(|line| line.split(':').next()).collect();
        assert_eq!(links.iter().map(|link| link.trim()).collect::<Vec<_>>(), ["lo"]);
        for address in TCP_FAR {
            let error =
                TcpStream::connect_timeout(&far(address), Duration::from_millis(200)).expect_err(address);
            assert_ne!(error.kind(), ErrorKind::ConnectionRefused, "{address}: somebody answered");
        }
        for (own, address) in UDP_FAR {
            // Sent, and lost on lo: nobody answers.
            let socket = UdpSocket::bind(own).expect(own);
            socket.set_read_timeout(Some(Duration::from_millis(50))).expect("timeout");
            let _ = socket.send_to(b"?", address);
            assert!(socket.recv_from(&mut [0]).is_err(), "{address} answered");
        }
    })
    .expect("enter");
}

#[test]
fn the_hosts_own_servers_are_out_of_reach() {
    let scene = Scene::new();
    let host_server = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let sandbox = scene.sandbox("apart");
    let address = host_server.local_addr().expect("address");
    let error = inside(sandbox.netns(), || at_once(|| TcpStream::connect(address)))
        .expect("enter")
        .expect_err("another loopback");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    host_server.set_nonblocking(true).expect("nonblocking");
    assert!(host_server.accept().is_err(), "the host heard from the sandbox");
}

#[test]
fn no_connection_tracking_is_switched_on() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("stateless");
    let rules = inside(sandbox.netns(), || Command::new("nft").args(["list", "ruleset"]).output())
        .expect("enter")
        .expect("nft");
    let rules = String::from_utf8(rules.stdout).expect("UTF-8");
    assert!(rules.contains("table inet sluice"), "{rules}");
    assert!(!rules.split_whitespace().any(|word| word == "ct"), "{rules}");
}

#[test]
fn whatever_was_changed_is_seen_when_the_fence_is_read_back_and_put_right() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("changed");
    let nft = |arguments: &str| {
        let run = || Command::new("nft").args(arguments.split(' ')).output();
        let output = inside(sandbox.netns(), run).expect("enter").expect("nft");
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let handle = |comment: &str| {
        let listed = nft("-a list table inet sluice");
        let rule = listed.lines().find(|line| line.contains(comment)).expect(comment).to_owned();
        rule.rsplit(' ').next().expect("a handle").to_owned()
    };
    let proxy = "to and from the proxy";
    for (what, change) in [
        ("a table put to sleep", "add table inet sluice { flags dormant ; }".to_owned()),
        (
            "a rule for all addresses",
            format!(
                "replace rule inet sluice output handle {} oif lo ip daddr 0.0.0.0/0 accept comment \"{proxy}\"",
                handle(proxy)
            ),
        ),
    ] {
        sandbox.check_fence().expect("as it was loaded");
        nft(&change);
        sandbox.check_fence().expect_err(what);
        sandbox.repair_fence().expect("repair");
        sandbox.check_fence().expect("repaired");
    }
    for (what, from, to) in [
        ("another protocol", "meta l4proto tcp goto refuse_tcp", "meta l4proto sctp goto refuse_tcp"),
        ("another link", "oif \"lo\"", "oif != \"lo\""),
        ("another kind of address", "fib daddr type local", "fib daddr type unicast"),
        ("other refusals", "admin-prohibited", "host-unreachable"),
    ] {
        let before = nft("list table inet sluice");
        assert!(before.contains(from), "no {from} in\n{before}");
        let file = scene.state_dir().join("changed.nft");
        std::fs::write(&file, format!("flush table inet sluice\n{}", before.replace(from, to)))
            .expect("write");
        nft(&format!("-f {}", file.display()));
        sandbox.check_fence().expect_err(what);
        sandbox.repair_fence().expect("repair");
        sandbox.check_fence().expect("repaired");
        std::fs::remove_file(file).expect("remove");
    }
}
