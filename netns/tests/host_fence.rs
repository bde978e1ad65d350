//! The fence on the host's side: a workload that is root in its namespace, with nothing of ours inside, still gets
//! only what its link admits.

mod scene;

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use scene::Scene;
use scene::bare::{Bare, run, within};
use scene::host::{Host, guarded, proxy_for};
use scene::kmsg::{lines_with, open_kmsg_at_its_end};
use sluice_netns::{Admit, Error, GuardedLink, HostCounterReader, HostFence, HostFenceOwner, LogLimit};

/// How long to wait for an answer that must not come. The ones that must take well below a millisecond.
const SILENCE: Duration = Duration::from_millis(300);

/// The first packets on a new link may have to be sent again.
fn reaches(guest: &Bare, address: &str) -> bool {
    let address = address.parse().expect("address");
    within(guest, || TcpStream::connect_timeout(&address, scene::PATIENCE).is_ok())
}

fn connects(guest: &Bare, address: &str) -> bool {
    let address = address.parse().expect("address");
    within(guest, || TcpStream::connect_timeout(&address, SILENCE).is_ok())
}

#[test]
fn an_external_sandbox_reaches_the_proxy_and_nothing_else() {
    let (scene, host) = (Scene::new(), Host::start());
    let _servers =
        ["10.9.0.1:3128", "10.9.0.1:22", "[fd09::1]:3128", "10.9.1.1:3128"].map(|at| host.listen(at));
    let neighbour = within(host.guest(1), || TcpListener::bind("10.9.1.2:80")).expect("bind");
    assert!(reaches(host.guest(0), "10.9.0.1:22"), "the stand-in is broken");
    assert!(reaches(host.guest(0), "10.9.1.2:80"), "the stand-in does not forward");

    host.load(&[guarded(&scene, 0, proxy_for("10.9.0.2", "10.9.0.1:3128"))]);
    // Again without what the host has learnt of the guest: ARP has to pass as well.
    run(&host.host, &["ip", "neigh", "flush", "all"]);
    run(host.guest(0), &["ip", "neigh", "flush", "all"]);
    assert!(reaches(host.guest(0), "10.9.0.1:3128"), "the proxy");
    assert_eq!(host.violations("guest-0").packets, 0);
    for (what, address) in [
        ("another port of the host", "10.9.0.1:22"),
        ("another address of the host", "10.9.1.1:3128"),
        ("another family", "[fd09::1]:3128"),
        ("another sandbox", "10.9.1.2:80"),
    ] {
        assert!(!connects(host.guest(0), address), "{what}");
    }
    within(host.guest(0), || UdpSocket::bind("0.0.0.0:0").expect("bind").send_to(b"?", "10.9.0.1:53"))
        .expect("sent");
    let dropped = host.violations("guest-0");
    assert!(dropped.packets >= 4 && dropped.bytes > dropped.packets * 28, "{dropped:?}");
    drop(neighbour);
}

#[test]
fn ipv6_is_pinned_as_ipv4_is() {
    let (scene, host) = (Scene::new(), Host::start());
    let _servers = ["[fd09::1]:3128", "[fd09::1]:22", "10.9.0.1:3128"].map(|at| host.listen(at));
    host.load(&[guarded(&scene, 0, proxy_for("fd09::2", "[fd09::1]:3128"))]);
    assert!(reaches(host.guest(0), "[fd09::1]:3128"), "the proxy");
    assert!(!connects(host.guest(0), "[fd09::1]:22"), "another port");
    assert!(!connects(host.guest(0), "10.9.0.1:3128"), "another family");
}

#[test]
fn another_source_address_gains_nothing() {
    let (scene, host) = (Scene::new(), Host::start());
    let _server = host.listen("10.9.0.1:3128");
    host.load(&[guarded(&scene, 0, proxy_for("10.9.0.2", "10.9.0.1:3128"))]);
    // The workload is root: it takes another address, then that of its neighbour.
    for address in ["10.9.0.77", "10.9.1.2"] {
        run(host.guest(0), &["ip", "addr", "flush", "dev", "eth0"]);
        run(host.guest(0), &["ip", "addr", "add", &format!("{address}/16"), "dev", "eth0"]);
        assert!(!connects(host.guest(0), "10.9.0.1:3128"), "as {address}");
    }
}

#[test]
fn links_and_tunnels_a_workload_makes_lead_nowhere() {
    let (scene, host) = (Scene::new(), Host::start());
    let _servers = ["0.0.0.0:22", "0.0.0.0:3128"].map(|at| host.listen(at));
    host.load(&[guarded(&scene, 0, proxy_for("10.9.0.2", "10.9.0.1:3128"))]);
    let guest = host.guest(0);
    // Another link layer address does not change who it is; another link on top does not change what passes below.
    run(guest, &["ip", "link", "set", "eth0", "address", "02:00:00:00:00:99"]);
    assert!(!connects(guest, "10.9.0.1:22"));
    run(guest, &["ip", "route", "add", "10.9.1.0/24", "via", "10.9.0.1", "onlink", "dev", "eth0"]);
    assert!(!connects(guest, "10.9.1.1:22"));
    run(guest, &["ip", "addr", "add", "169.254.1.1/16", "dev", "eth0"]);
    run(&host.host, &["ip", "addr", "add", "169.254.1.2/16", "dev", "tap0"]);
    assert!(!connects(guest, "169.254.1.2:22"));
}

#[test]
fn an_attached_sandboxs_link_admits_nothing() {
    let (scene, host) = (Scene::new(), Host::start());
    let _servers = ["10.9.0.1:3128", "[fd09::1]:3128"].map(|at| host.listen(at));
    assert!(reaches(host.guest(0), "10.9.0.1:3128"), "the stand-in is broken");
    host.load(&[guarded(&scene, 0, Admit::Nothing)]);
    for address in ["10.9.0.1:3128", "[fd09::1]:3128", "10.9.1.2:80"] {
        assert!(!connects(host.guest(0), address), "{address}");
    }
    assert!(host.violations("guest-0").packets > 0);
}

#[test]
fn violations_appear_in_the_kernel_log_under_the_sandboxs_prefix() {
    let (scene, host) = (Scene::new(), Host::start());
    // A living sandbox makes the kernel log from namespaces; our stand-in for the host is one.
    let _logging = scene.sandbox("logging");
    let _server = host.listen("10.9.0.1:22");
    assert!(reaches(host.guest(0), "10.9.0.1:22"), "the stand-in is broken");
    let guarded = guarded(&scene, 0, Admit::Nothing);
    host.load(std::slice::from_ref(&guarded));
    let mut kmsg = open_kmsg_at_its_end();
    assert!(!connects(host.guest(0), "10.9.0.1:22"));
    let prefix = format!("sluice-host[guest-0:{}] ", guarded.token);
    let lines = lines_with(&mut kmsg, &prefix, 1);
    let line = lines.first().expect("one");
    for part in ["IN=tap0 ", "SRC=10.9.0.2 ", "DST=10.9.0.1 ", "PROTO=TCP ", "DPT=22 "] {
        assert!(line.contains(part), "no {part} in {line}");
    }
}

#[test]
fn the_chatter_of_a_guests_kernel_is_no_violation() {
    let (scene, host) = (Scene::new(), Host::start());
    host.load(&[guarded(&scene, 0, Admit::Nothing)]);
    // A link that comes up announces itself with membership reports and router solicitations.
    run(host.guest(0), &["ip", "link", "set", "eth0", "down"]);
    run(host.guest(0), &["ip", "link", "set", "eth0", "up"]);
    scene::eventually("the guest's kernel sent something", || {
        let listed = run(&host.host, &["nft", "list", "counter", "netdev", "sluice_host", "kernel_noise"]);
        !listed.contains("packets 0 ")
    });
    assert_eq!(host.violations("guest-0").packets, 0);
}

#[test]
fn a_bridge_on_the_host_is_no_way_around() {
    let (scene, host) = (Scene::new(), Host::start());
    run(&host.host, &["ip", "link", "add", "br0", "type", "bridge"]);
    run(&host.host, &["ip", "link", "set", "br0", "up"]);
    for (number, tap) in ["tap0", "tap1"].into_iter().enumerate() {
        run(&host.host, &["ip", "link", "set", tap, "master", "br0"]);
        run(host.guest(number), &["ip", "addr", "add", &format!("10.8.0.{}/24", number + 1), "dev", "eth0"]);
    }
    let _server = within(host.guest(1), || TcpListener::bind("10.8.0.2:80")).expect("bind");
    let neighbour: SocketAddr = "10.8.0.2:80".parse().expect("address");
    within(host.guest(0), || TcpStream::connect_timeout(&neighbour, scene::PATIENCE))
        .expect("the stand-in bridges");
    host.load(&[guarded(&scene, 0, Admit::Nothing), guarded(&scene, 1, Admit::Nothing)]);
    assert!(!connects(host.guest(0), "10.8.0.2:80"), "through the bridge");
}

#[test]
fn loading_is_repeatable_and_removing_is_complete() {
    let (scene, host) = (Scene::new(), Host::start());
    let _server = host.listen("10.9.0.1:22");
    let links =
        [guarded(&scene, 0, proxy_for("10.9.0.2", "10.9.0.1:3128")), guarded(&scene, 1, Admit::Nothing)];
    host.load(&links);
    // Stateless: without the counts, which go on.
    let rules = || run(&host.host, &["nft", "--stateless", "list", "ruleset"]);
    let once = rules();
    host.load(&links);
    assert_eq!(rules(), once);
    host.load(&links[1..]);
    assert!(reaches(host.guest(0), "10.9.0.1:22"), "a link no longer guarded");
    within(&host.host, HostFence::remove).expect("remove");
    within(&host.host, HostFence::remove).expect("remove what is not there");
    assert_eq!(rules(), "");
}

#[test]
fn a_link_that_is_gone_takes_nobodys_fence_with_it() {
    let (scene, host) = (Scene::new(), Host::start());
    let _server = host.listen("10.9.1.1:22");
    host.load(&[guarded(&scene, 0, Admit::Nothing), guarded(&scene, 1, Admit::Nothing)]);
    run(&host.host, &["ip", "link", "del", "tap0"]);
    assert!(!connects(host.guest(1), "10.9.1.1:22"));
}

#[test]
fn many_links_are_one_transaction() {
    let (scene, host) = (Scene::new(), Host::start());
    let template = guarded(&scene, 0, Admit::Nothing);
    let links: Vec<GuardedLink> = (0..40)
        .map(|number| {
            let link = format!("many{number}");
            run(
                &host.host,
                &["ip", "link", "add", &link, "type", "veth", "peer", "name", &format!("peer{number}")],
            );
            GuardedLink {
                name: format!("s-{number}").parse().expect("name"),
                link: link.parse().expect("link"),
                admit: proxy_for(&format!("10.7.{number}.2"), "10.9.0.1:3128"),
                ..template.clone()
            }
        })
        .collect();
    host.load(&links);
    assert_eq!(within(&host.host, || HostCounterReader::open()?.read()).expect("violations").len(), 40);
}

#[test]
fn counts_go_on_when_the_fence_is_loaded_again_with_another_link() {
    let scene = Scene::new();
    let host = Host::start();
    let first = guarded(&scene, 0, proxy_for("10.9.0.2", "10.9.0.1:3128"));
    host.load(std::slice::from_ref(&first));
    let _ =
        within(host.guest(0), || UdpSocket::bind("0.0.0.0:0").and_then(|s| s.send_to(b"x", "192.0.2.1:53")));
    scene::eventually("the packet is counted", || host.violations("guest-0").packets >= 1);
    let before = host.violations("guest-0").packets;
    host.load(&[first.clone(), guarded(&scene, 1, Admit::Nothing)]);
    assert!(host.violations("guest-0").packets >= before, "a new neighbour takes nothing away");
    assert_eq!(host.violations("guest-1").packets, 0);
    host.load(&[first]);
    assert!(host.violations("guest-0").packets >= before);
}

#[test]
fn whatever_was_changed_is_seen_when_the_host_fence_is_read_back() {
    let (scene, host) = (Scene::new(), Host::start());
    let links =
        vec![guarded(&scene, 0, proxy_for("10.9.0.2", "10.9.0.1:3128")), guarded(&scene, 1, Admit::Nothing)];
    let fence = HostFence { links, limit: LogLimit::default() };
    let check = || within(&host.host, || fence.check());
    within(&host.host, || fence.try_out()).expect("it can be loaded");
    check().expect_err("to try it out does not load it");
    for change in [
        &["delete", "table", "netdev", "sluice_host"][..],
        &["flush", "ruleset"],
        &["add", "table", "netdev", "sluice_host", "{ flags dormant ; }"],
        &["add", "element", "netdev", "sluice_host", "flow4", "{ tap0 . 10.9.0.2 . 10.9.0.1 . 22 }"],
        &["flush", "set", "netdev", "sluice_host", "flow4"],
        &["insert", "rule", "netdev", "sluice_host", "admit", "accept"],
    ] {
        within(&host.host, || fence.load()).expect("load");
        check().expect("as it was loaded");
        run(&host.host, &[&["nft"], change].concat());
        let error = check().expect_err(&format!("{change:?}"));
        assert!(!error.to_string().is_empty());
    }
}

#[test]
fn the_host_fence_has_one_owner_in_each_network_namespace() {
    let (host, other) = (Host::start(), Host::start());
    let owner = within(&host.host, HostFenceOwner::claim).expect("nobody has it");
    let second = within(&host.host, HostFenceOwner::claim).expect_err("it is taken");
    assert!(matches!(second, Error::HostFenceOwned(_)), "{second}");
    assert!(second.to_string().contains("/run/sluice.host_fence."), "{second}");
    within(&other.host, HostFenceOwner::claim).expect("another namespace has a fence of its own");
    drop(owner);
    within(&host.host, HostFenceOwner::claim).expect("it is free again");
}
