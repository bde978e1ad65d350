//! Namespaces that were there before: fenced, worked in and given back as they were.

mod scene;

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;

use scene::bare::{Bare, run, within};
use scene::{PATIENCE, Scene, at_once, eventually};
use sluice_netns::{Error, Outcome, Sandbox, Target, sweep};

/// A stand-in for a container: a process in a namespace of its own, with a link to a second namespace that answers
/// as "the world" on 10.99.0.1.
struct Container {
    process: Bare,
    _world: Bare,
    server: TcpListener,
}

impl Container {
    fn start() -> Self {
        let (process, world) = (Bare::start(), Bare::start());
        run(&process, &["ip", "link", "set", "lo", "up"]);
        let peer = world.id().to_string();
        run(&process, &["ip", "link", "add", "eth0", "type", "veth", "peer", "name", "w0", "netns", &peer]);
        for (of, link, address) in [(&process, "eth0", "10.99.0.2/24"), (&world, "w0", "10.99.0.1/24")] {
            run(of, &["ip", "addr", "add", address, "dev", link]);
            run(of, &["ip", "link", "set", link, "up"]);
        }
        run(&process, &["ip", "route", "add", "default", "via", "10.99.0.1"]);
        let server = within(&world, || TcpListener::bind("10.99.0.1:80").expect("listen"));
        let container = Self { process, _world: world, server };
        // The link makes its IPv6 address when it has come up.
        eventually("the link is up", || container.configuration().matches("fe80::").count() == 2);
        container
    }

    fn target(&self) -> Target {
        Target::Pid(self.process.id())
    }

    /// Addresses, routes and rules, as an operator sees them.
    fn configuration(&self) -> String {
        [&["ip", "-br", "addr"][..], &["ip", "route"], &["ip", "-6", "route"], &["nft", "list", "ruleset"]]
            .map(|command| run(&self.process, command))
            .concat()
    }

    /// Not asked to be at once: the first packets on a new link may have to be sent again.
    fn reaches_the_world(&self) -> bool {
        let world = self.server.local_addr().expect("address");
        within(&self.process, || TcpStream::connect_timeout(&world, PATIENCE).is_ok())
    }
}

fn attach(scene: &Scene, name: &str, target: &Target) -> Sandbox {
    Sandbox::attach(&scene.spec(name), target).expect("attach")
}

#[test]
fn an_attached_container_has_the_proxy_and_nothing_else() {
    let scene = Scene::new();
    let container = Container::start();
    assert!(container.reaches_the_world(), "the stand-in is broken");
    let sandbox = attach(&scene, "box", &container.target());

    within(&container.process, || {
        let error = at_once(|| TcpStream::connect("10.99.0.1:80")).expect_err("fenced");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    });
    let listener = sandbox.listeners(1).expect("listeners").pop().expect("one");
    within(&container.process, || TcpStream::connect("10.200.0.1:3128").map(drop)).expect("the proxy");
    listener.accept().expect("accept");
    assert_eq!(sandbox.counters().expect("counters").tcp.packets, 1);
    sandbox.destroy().expect("destroy");
}

#[test]
fn servers_of_a_container_on_its_own_address_still_work_inside() {
    let scene = Scene::new();
    let container = Container::start();
    let sandbox = attach(&scene, "own", &container.target());
    within(&container.process, || {
        let server = TcpListener::bind("10.99.0.2:8080").expect("bind");
        TcpStream::connect(server.local_addr().expect("address")).expect("connect to itself");
    });
    sandbox.destroy().expect("destroy");
}

#[test]
fn a_container_is_given_back_as_it_was() {
    let scene = Scene::new();
    let container = Container::start();
    let before = container.configuration();
    let sandbox = attach(&scene, "back", &container.target());
    assert_ne!(container.configuration(), before);
    assert_eq!(sandbox.processes().expect("processes"), [container.process.id()]);
    sandbox.destroy().expect("destroy");
    assert_eq!(container.configuration(), before);
    assert!(container.reaches_the_world());
    scene.assert_nothing_left();
}

#[test]
fn attempts_in_a_container_without_a_network_are_seen_too() {
    let scene = Scene::new();
    let container = Bare::start();
    run(&container, &["ip", "link", "set", "lo", "up"]);
    let before = run(&container, &["ip", "route", "show", "table", "all"]);
    let sandbox = attach(&scene, "offline", &Target::Pid(container.id()));
    within(&container, || {
        for address in ["192.0.2.1:80", "[2001:db8::1]:80"] {
            let error = at_once(|| TcpStream::connect(address)).expect_err(address);
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{address}: {error}");
        }
    });
    assert_eq!(sandbox.counters().expect("counters").tcp.packets, 2);
    sandbox.destroy().expect("destroy");
    assert_eq!(run(&container, &["ip", "route", "show", "table", "all"]), before);
}

#[test]
fn an_owners_death_leaves_a_container_fenced_until_it_is_attached_again() {
    let scene = Scene::new();
    let container = Container::start();
    let before = container.configuration();
    drop(attach(&scene, "again", &container.target()));
    assert!(!container.reaches_the_world(), "the owner's death opened the fence");

    let swept = sweep(scene.state_dir()).expect("sweep");
    let first = swept.first().expect("one");
    assert_eq!(*first.outcome.as_ref().expect("swept"), Outcome::KeptFenced);
    assert!(!container.reaches_the_world(), "the sweep opened the fence");

    let sandbox = attach(&scene, "again", &container.target());
    assert!(!container.reaches_the_world());
    sandbox.listeners(1).expect("listeners");
    sandbox.destroy().expect("destroy");
    assert_eq!(container.configuration(), before, "the second owner did not know what the first had added");
    scene.assert_nothing_left();
}

#[test]
fn a_container_that_ended_is_swept() {
    let scene = Scene::new();
    let container = Container::start();
    drop(attach(&scene, "ended", &container.target()));
    drop(container);
    let swept = sweep(scene.state_dir()).expect("sweep");
    assert_eq!(*swept.first().expect("one").outcome.as_ref().expect("swept"), Outcome::Removed { killed: 0 });
    scene.assert_nothing_left();
}

#[test]
fn the_kernels_chatter_on_a_link_is_nobodys_attempt() {
    let scene = Scene::new();
    let container = Container::start();
    let sandbox = attach(&scene, "chatter", &container.target());
    // A link that comes up announces itself with membership reports and router solicitations.
    run(&container.process, &["ip", "link", "set", "eth0", "down"]);
    run(&container.process, &["ip", "link", "set", "eth0", "up"]);
    eventually("the kernel sent something", || {
        sandbox.counters().expect("counters").kernel_noise.packets > 0
    });
    let counters = sandbox.counters().expect("counters");
    assert_eq!((counters.refused_packets(), counters.logged.packets), (0, 0), "{counters:?}");
    sandbox.destroy().expect("destroy");
}

#[test]
fn the_hosts_namespace_is_never_fenced() {
    let scene = Scene::new();
    for target in [Target::Pid(std::process::id()), Target::Path(PathBuf::from("/proc/self/ns/net"))] {
        let error = Sandbox::attach(&scene.spec("host"), &target).expect_err("the host");
        assert!(matches!(error, Error::HostNamespace(_)), "{error}");
    }
    scene.assert_nothing_left();
}

#[test]
fn what_is_no_network_namespace_is_refused_by_name() {
    let scene = Scene::new();
    let file = scene.state_dir().join("lock");
    std::fs::write(&file, b"").expect("write");
    for target in [Target::Pid(u32::MAX), Target::Path(file)] {
        let error = Sandbox::attach(&scene.spec("none"), &target).expect_err("no namespace");
        assert!(matches!(error, Error::NotANamespace(_)), "{error}");
        assert!(error.to_string().contains(&target.to_string()), "{error}");
    }
    let error =
        Sandbox::attach(&scene.spec("mnt"), &Target::Path("/proc/self/ns/mnt".into())).expect_err("not net");
    assert!(error.to_string().contains("enter the namespace"), "{error}");
}

#[test]
fn one_namespace_is_one_sandboxs() {
    let scene = Scene::new();
    let container = Container::start();
    let sandbox = attach(&scene, "first", &container.target());
    let error = Sandbox::attach(&scene.spec("second"), &container.target()).expect_err("taken");
    assert_eq!(error.to_string(), "that namespace is sandbox first's already");
    let made = scene.sandbox("made");
    let error =
        Sandbox::attach(&scene.spec("third"), &Target::Path(made.netns_path().into())).expect_err("taken");
    assert_eq!(error.to_string(), "that namespace is sandbox made's already");
    sandbox.destroy().expect("destroy");
    made.destroy().expect("destroy");
    scene.assert_nothing_left();
}
