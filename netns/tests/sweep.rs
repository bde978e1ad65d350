//! After an owner's violent death: the sweep removes what it left, and only that.

mod scene;

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use scene::{Scene, eventually};
use sluice_netns::{Outcome, Sandbox, inside, sweep};

/// Not a test: the body of the process that the tests kill. It makes a sandbox with a process in it, says so, and
/// waits until its input ends.
#[test]
#[ignore = "the tests of this file run it as a process of its own"]
fn owner() {
    let mut spec = sluice_netns::Spec::new(std::env::var("OWNER_NAME").expect("name").parse().expect("name"));
    spec.state_dir = std::env::var_os("OWNER_STATE_DIR").expect("state dir").into();
    let sandbox = Sandbox::create(&spec).expect("create");
    let workload = inside(sandbox.netns(), || {
        Command::new("sleep").arg("infinity").stdin(Stdio::null()).stdout(Stdio::null()).spawn()
    })
    .expect("enter")
    .expect("spawn");
    println!("READY {}", workload.id());
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    drop((workload, sandbox));
}

/// A process that owns sandbox `name`, and the pid of the workload in it.
fn start_owner(scene: &Scene, name: &str) -> (Child, u32) {
    let mut owner = Command::new(std::env::current_exe().expect("own path"))
        .args(["--exact", "owner", "--ignored", "--nocapture"])
        .env("OWNER_NAME", name)
        .env("OWNER_STATE_DIR", scene.state_dir())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start an owner");
    let output = BufReader::new(owner.stdout.take().expect("stdout"));
    let workload = output
        .lines()
        .find_map(|line| line.expect("line").split_once("READY ")?.1.trim().parse().ok())
        .expect("the owner made its sandbox");
    (owner, workload)
}

fn kill(owner: &mut Child) {
    owner.kill().expect("kill -9");
    owner.wait().expect("wait");
}

fn runs(pid: u32) -> bool {
    // A zombie that init has not reaped yet has no namespace any more.
    std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok()
}

#[test]
fn what_a_killed_owner_left_is_removed_and_nothing_else() {
    let scene = Scene::new();
    let mut bystander = Command::new("sleep").arg("infinity").stdout(Stdio::null()).spawn().expect("spawn");
    let living = scene.sandbox("living");
    let (mut dead, workload) = start_owner(&scene, "dead");
    let (mut other_living, other_workload) = start_owner(&scene, "other-living");
    let owner_pid = dead.id();

    assert!(sweep(scene.state_dir()).expect("sweep").is_empty(), "all owners live");
    kill(&mut dead);
    assert!(runs(workload), "the workload outlives its owner until it is swept");

    let swept = sweep(scene.state_dir()).expect("sweep");
    assert_eq!(swept.len(), 1, "{swept:?}");
    let first = swept.first().expect("one");
    assert_eq!((first.name.as_str(), first.owner), ("dead", Some(owner_pid)));
    assert_eq!(*first.outcome.as_ref().expect("removed"), Outcome::Removed { killed: 1 });

    eventually("the workload is gone", || !runs(workload));
    assert!(!scene.sandbox_dir("dead").exists());
    assert!(!scene.mounts().iter().any(|line| line.contains("/dead/")), "{:?}", scene.mounts());

    assert!(runs(other_workload), "a living owner's workload was killed");
    assert!(bystander.try_wait().expect("wait").is_none(), "a process of the host was killed");
    living.listeners(1).expect("the living sandbox still works");
    assert!(sweep(scene.state_dir()).expect("sweep").is_empty(), "swept twice");

    kill(&mut other_living);
    living.destroy().expect("destroy");
    assert_eq!(sweep(scene.state_dir()).expect("sweep").len(), 1);
    scene.assert_nothing_left();
    bystander.kill().expect("kill");
    bystander.wait().expect("wait");
}

#[test]
fn a_new_sandbox_takes_over_the_name_of_a_dead_one() {
    let scene = Scene::new();
    let (mut dead, workload) = start_owner(&scene, "heir");
    kill(&mut dead);
    let sandbox = scene.sandbox("heir");
    eventually("the workload is gone", || !runs(workload));
    assert_eq!(sandbox.processes().expect("processes"), Vec::<u32>::new());
    sandbox.destroy().expect("destroy");
    scene.assert_nothing_left();
}

#[test]
fn half_made_directories_are_removed() {
    let scene = Scene::new();
    let keep = scene.sandbox("keep");
    for (name, files) in [("empty", &[][..]), ("locked", &["lock"]), ("unmounted", &["lock", "netns"])] {
        let dir = scene.sandbox_dir(name);
        std::fs::create_dir(&dir).expect("mkdir");
        for file in files {
            std::fs::write(dir.join(file), b"").expect("write");
        }
    }
    let torn = scene.sandbox_dir("torn");
    std::fs::create_dir(&torn).expect("mkdir");
    std::fs::write(torn.join("sandbox.json"), b"{\"pid\": 1, ").expect("write");

    let swept = sweep(scene.state_dir()).expect("sweep");
    let names: Vec<&str> = swept.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["empty", "locked", "torn", "unmounted"]);
    assert!(swept.iter().all(|one| one.outcome.is_ok()), "{swept:?}");
    keep.destroy().expect("destroy");
    scene.assert_nothing_left();
}

#[test]
fn a_namespace_without_a_record_of_being_ours_keeps_its_processes() {
    let scene = Scene::new();
    let keep = scene.sandbox("keep");
    // A directory of a dead owner in which somebody else's namespace is mounted, with no record that we made it.
    let dir = scene.sandbox_dir("foreign");
    std::fs::create_dir(&dir).expect("mkdir");
    let mut foreign = Command::new("unshare")
        .args(["--net", "sleep", "infinity"])
        .stdout(Stdio::null())
        .spawn()
        .expect("spawn");
    let own = std::fs::read_link("/proc/self/ns/net").expect("own namespace");
    let path = format!("/proc/{}/ns/net", foreign.id());
    eventually("unshare has run", || std::fs::read_link(&path).is_ok_and(|theirs| theirs != own));
    std::fs::write(dir.join("netns"), b"").expect("write");
    let mounted =
        Command::new("mount").args(["--bind", &path]).arg(dir.join("netns")).status().expect("mount");
    assert!(mounted.success());

    let swept = sweep(scene.state_dir()).expect("sweep");
    assert_eq!(swept.len(), 1);
    assert!(!dir.exists());
    assert!(foreign.try_wait().expect("wait").is_none(), "a foreign process was killed");
    foreign.kill().expect("kill");
    foreign.wait().expect("wait");
    keep.destroy().expect("destroy");
    scene.assert_nothing_left();
}

#[test]
fn a_namespace_whose_mount_is_gone_is_known_by_its_cookie() {
    let scene = Scene::new();
    let (mut dead, workload) = start_owner(&scene, "unmounted");
    kill(&mut dead);
    let netns = scene.sandbox_dir("unmounted").join("netns");
    assert!(Command::new("umount").arg(&netns).status().expect("umount").success());
    let swept = sweep(scene.state_dir()).expect("sweep");
    assert_eq!(
        *swept.first().expect("one").outcome.as_ref().expect("removed"),
        Outcome::Removed { killed: 1 }
    );
    eventually("the workload is gone", || !runs(workload));
    scene.assert_nothing_left();
}

#[test]
fn a_namespace_that_merely_has_the_inode_is_left_alone() {
    let scene = Scene::new();
    let (mut dead, workload) = start_owner(&scene, "recycled");
    kill(&mut dead);
    let dir = scene.sandbox_dir("recycled");
    assert!(Command::new("umount").arg(dir.join("netns")).status().expect("umount").success());
    // As if the kernel had given the inode to another namespace since: same inode, other cookie.
    let record = std::fs::read_to_string(dir.join("sandbox.json")).expect("record");
    let mut record: serde_json::Value = serde_json::from_str(&record).expect("JSON");
    record["namespace"]["cookie"] = 1.into();
    std::fs::write(dir.join("sandbox.json"), record.to_string()).expect("write");

    let swept = sweep(scene.state_dir()).expect("sweep");
    assert_eq!(
        *swept.first().expect("one").outcome.as_ref().expect("removed"),
        Outcome::Removed { killed: 0 }
    );
    assert!(runs(workload), "a process of another namespace was killed");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(workload.cast_signed()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .expect("kill");
    scene.assert_nothing_left();
}

#[test]
fn a_state_directory_that_never_was_has_nothing_to_sweep() {
    let scene = Scene::new();
    let nowhere = scene.state_dir().join("never");
    assert!(sweep(&nowhere).expect("sweep").is_empty());
    assert!(!nowhere.exists(), "sweeping made something");
}
