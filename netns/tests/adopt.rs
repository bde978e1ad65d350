//! Kept sandboxes: whoever owned one is gone, and a successor takes it over as it is.

mod scene;

use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::fd::AsFd as _;

use scene::bare::{Bare, run, within};
use scene::{Scene, at_once};
use sluice_netns::{Error, Kind, Sandbox, Spec, Target, discard, inside, kept, sweep};

fn spec(scene: &Scene, name: &str) -> Spec {
    Spec { kept: true, ..scene.spec(name) }
}

fn adopt(scene: &Scene, name: &str) -> (Sandbox, Option<String>) {
    Sandbox::adopt(&spec(scene, name)).expect("adopt").expect("it was kept")
}

#[test]
fn a_kept_sandbox_is_taken_over_with_its_namespace_its_secret_and_its_counts() {
    let scene = Scene::new();
    let first = Sandbox::create(&spec(&scene, "a")).expect("create");
    let (id, token) = (first.id(), first.log_token());
    inside(first.netns(), || TcpStream::connect("192.0.2.1:80").expect_err("fenced")).expect("enter");
    first.release().expect("release");
    assert_eq!(kept(scene.state_dir()).expect("kept"), ["a".parse().expect("name")]);

    let (second, difference) = adopt(&scene, "a");
    assert_eq!((second.id(), second.log_token(), second.kind()), (id, token, Kind::Made));
    assert_eq!(difference, None);
    assert_eq!(second.counters().expect("counters").tcp.packets, 1);
    second.check_fence().expect("the fence");
    let listener = second.listeners(1).expect("listeners").pop().expect("one");
    inside(second.netns(), || TcpStream::connect("10.200.0.1:3128").expect("the proxy")).expect("enter");
    drop(listener);
    second.destroy().expect("destroy");
    scene.assert_nothing_left();
}

#[test]
fn a_kept_sandbox_that_its_owner_drops_stays_with_what_runs_in_it() {
    let scene = Scene::new();
    let first = Sandbox::create(&spec(&scene, "a")).expect("create");
    let start = || std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
    let mut workload = inside(first.netns(), start).expect("enter");
    let id = first.id();
    // Whoever fails half-way drops what it has.
    drop(first);
    assert!(workload.try_wait().expect("wait").is_none(), "what ran inside was ended");
    let (second, difference) = adopt(&scene, "a");
    assert_eq!((second.id(), difference), (id, None));
    second.destroy().expect("destroy");
    assert!(!workload.wait().expect("wait").success());
    scene.assert_nothing_left();
}

#[test]
fn a_fence_that_was_tampered_with_is_replaced_and_said() {
    let scene = Scene::new();
    let first = Sandbox::create(&spec(&scene, "a")).expect("create");
    let netns = first.netns().try_clone_to_owned().expect("clone");
    first.release().expect("release");
    let nft = |arguments: &[&str]| {
        let status = inside(netns.as_fd(), || std::process::Command::new("nft").args(arguments).status());
        assert!(status.expect("enter").expect("nft").success());
    };
    nft(&["flush", "chain", "inet", "sluice", "output"]);
    let (second, difference) = adopt(&scene, "a");
    assert!(difference.is_some_and(|text| text.contains("not the one loaded")));
    second.check_fence().expect("repaired");

    nft(&["delete", "table", "inet", "sluice"]);
    second.check_fence().expect_err("gone");
    assert_eq!(second.read_counters().expect("read"), None);
    second.repair_fence().expect("repair");
    second.check_fence().expect("repaired");
    nft(&["delete", "table", "inet", "sluice"]);
    second.release().expect("release");
    let (third, difference) = adopt(&scene, "a");
    assert!(difference.is_some(), "a table that is gone is a difference");
    let error = inside(third.netns(), || at_once(|| TcpStream::connect("192.0.2.1:80")));
    assert_eq!(error.expect("enter").expect_err("fenced").kind(), ErrorKind::ConnectionRefused);
    third.destroy().expect("destroy");
}

#[test]
fn no_sweep_and_no_namesake_ends_a_kept_sandbox() {
    let scene = Scene::new();
    Sandbox::create(&spec(&scene, "a")).expect("create").release().expect("release");
    assert!(sweep(scene.state_dir()).expect("sweep").is_empty());
    let error = Sandbox::create(&scene.spec("a")).expect_err("kept");
    assert!(matches!(error, Error::Kept(_)), "{error}");
    let error = Sandbox::create(&spec(&scene, "a")).expect_err("kept");
    assert!(matches!(error, Error::Kept(_)), "{error}");
    let name = "a".parse().expect("name");
    discard(scene.state_dir(), &name).expect("discard").expect("was there").outcome.expect("removed");
    assert!(discard(scene.state_dir(), &name).expect("discard").is_none());
    scene.assert_nothing_left();
}

#[test]
fn what_was_not_kept_is_not_adopted() {
    let scene = Scene::new();
    assert!(Sandbox::adopt(&spec(&scene, "a")).expect("no state at all").is_none());
    Sandbox::create(&scene.spec("a")).expect("create").release().expect("release");
    assert!(Sandbox::adopt(&spec(&scene, "a")).expect("adopt").is_none());
    let living = Sandbox::create(&spec(&scene, "b")).expect("create");
    let error = Sandbox::adopt(&spec(&scene, "b")).expect_err("it has an owner");
    assert!(matches!(error, Error::Exists { .. }), "{error}");
    assert!(kept(scene.state_dir()).expect("kept").is_empty());
    living.destroy().expect("destroy");
    assert_eq!(sweep(scene.state_dir()).expect("sweep").len(), 1);
    scene.assert_nothing_left();
}

#[test]
fn an_attached_namespace_is_given_back_as_it_was_by_the_successor() {
    let scene = Scene::new();
    let container = Bare::start();
    run(&container, &["ip", "link", "set", "lo", "up"]);
    let looks = || {
        let routes = run(&container, &["ip", "route", "show", "table", "all"]);
        routes + &run(&container, &["nft", "list", "ruleset"])
    };
    let before = looks();
    let first = Sandbox::attach(&spec(&scene, "box"), &Target::Pid(container.id())).expect("attach");
    first.release().expect("release");
    assert_ne!(looks(), before);
    let (second, difference) = adopt(&scene, "box");
    assert_eq!((second.kind(), difference), (Kind::Attached, None));
    within(&container, || TcpStream::connect("192.0.2.1:80").expect_err("fenced"));
    second.destroy().expect("destroy");
    assert_eq!(looks(), before);
    scene.assert_nothing_left();
}
