//! Nothing is left: no process, mount, directory, rule or setting, however a run ends; and what a killed run left is
//! removed by the next, and only that.

mod e2e;

use std::fs;
use std::path::Path;
use std::process::Command;

use e2e::*;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;

/// Fails unless a sandbox has left nothing on this host.
#[track_caller]
fn assert_tidy(scene: &Scene, name: &str) {
    assert_eq!(scene.remains(), Vec::<String>::new());
    assert_eq!(processes_of(name), Vec::<u32>::new());
    assert!(!host_rules().contains(name), "rules of {name} on the host:\n{}", host_rules());
}

/// The rules of the host's own network.
fn host_rules() -> String {
    let output = Command::new("nft").args(["list", "ruleset"]).output().expect("run nft");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn while_a_sandbox_lives_it_is_there_and_afterwards_nothing_is() {
    let scene = Scene::new();
    let mut running = scene.exec().start(&["sh", "-c", "echo ready; read line"]);
    running.hear("ready");
    let directory = format!("{STATE_DIR}/sandboxes/{}", scene.name());
    let there = scene.remains();
    assert!(there.contains(&directory), "{there:?}");
    assert!(there.iter().any(|line| line.contains(&format!("{directory}/netns"))), "{there:?}");
    assert!(!processes_of(scene.name()).is_empty());
    running.say("go on");
    running.finish().ended_with(0);
    assert_tidy(&scene, scene.name());
}

#[test]
fn daemons_of_the_workload_end_with_it() {
    let scene = Scene::new();
    // In sessions of their own, with the output closed, ignoring what can be ignored.
    let script =
        "for n in 1 2 3; do setsid sh -c 'trap \"\" HUP TERM INT; sleep 1000' <&- >&- 2>&- & done; exit 4";
    scene.exec().run(&["sh", "-c", script]).ended_with(4);
    assert_tidy(&scene, scene.name());
}

#[test]
fn every_signal_that_ends_sluice_tidies_up() {
    let scene = Scene::new();
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        let running = scene.exec().start(&["sh", "-c", "sleep 1000 & echo ready; exec sleep 1000"]);
        running.hear("ready");
        running.signal(signal);
        let outcome = running.finish().ended_with(code);
        assert!(outcome.stderr.contains("0 allowed, 0 denied, 0 bypass attempts"), "{outcome}");
        assert_eq!(outcome.events_of("sandbox.stopped").len(), 1, "{outcome}");
        assert_tidy(&scene, scene.name());
    }
}

#[test]
fn a_workload_that_ignores_the_first_signal_is_killed_by_the_second() {
    let scene = Scene::new();
    let script = "trap 'echo ignored' TERM; echo ready; while :; do sleep 1000 & wait; done";
    let running = scene.exec().start(&["bash", "-c", script]);
    running.hear("ready");
    running.signal(Signal::SIGTERM);
    running.hear("ignored");
    running.signal(Signal::SIGTERM);
    running.finish().ended_with(137);
    assert_tidy(&scene, scene.name());
}

#[test]
fn a_bad_start_leaves_nothing() {
    let scene = Scene::new();
    scene
        .exec()
        .option("--events")
        .option("/no/such/dir/events")
        .without_events_file()
        .run(&["true"])
        .ended_with(70);
    scene.exec().option("--user").option("no-such-user").run(&["true"]).ended_with(64);
    assert_tidy(&scene, scene.name());
}

#[test]
fn a_name_in_use_is_refused_and_its_owner_is_left_alone() {
    let scene = Scene::new();
    let mut owner =
        scene.exec().start(&["sh", "-c", "echo ready; read line; curl -s http://denied.test/ -o /dev/null"]);
    owner.hear("ready");
    let second = scene.exec().without_events_file().run(&["true"]).ended_with(70);
    assert!(
        second.stderr.contains(scene.name()) && second.stderr.contains(&owner.pid().to_string()),
        "{second}"
    );
    owner.say("go on");
    assert_eq!(owner.finish().ended_with(0).events_of("request.denied").len(), 1);
    assert_tidy(&scene, scene.name());
}

/// Kills Sluice as nothing can be handled, and waits until it is gone.
fn kill_nine(running: Running) {
    running.signal(Signal::SIGKILL);
    running.finish().ended_with(137);
}

#[test]
fn when_sluice_is_killed_the_workload_dies_with_it() {
    let scene = Scene::new();
    let running =
        scene.exec().start(&["sh", "-c", "setsid sleep 1000 & sleep 1000 & echo ready; exec sleep 1000"]);
    running.hear("ready");
    // One that is just executing its program shows nothing to be known by.
    eventually("all three run", || processes_of(scene.name()).len() >= 3);
    kill_nine(running);
    eventually("the workload dies", || processes_of(scene.name()).is_empty());
}

#[test]
fn the_next_start_removes_what_a_killed_one_left_and_only_that() {
    let scene = Scene::new();
    let (dead, living) = (format!("{}-dead", scene.name()), format!("{}-living", scene.name()));
    let mut alive = scene.exec().named(&living).start(&["sh", "-c", "echo ready; read line"]);
    alive.hear("ready");
    let victim = scene.exec().named(&dead).start(&["sh", "-c", "echo ready; exec sleep 1000"]);
    victim.hear("ready");
    let unrelated = Unrelated::make(&scene);
    kill_nine(victim);
    let left = scene.remains();
    assert!(left.iter().any(|line| line.contains(&dead)), "nothing to remove: {left:?}");

    let outcome = scene.exec().option("--log").option("info").run(&["true"]).ended_with(0);
    assert!(outcome.stderr.contains("swept the sandbox of a dead owner"), "{outcome}");
    assert!(outcome.stderr.contains(&dead), "{outcome}");
    let left = scene.remains();
    assert!(left.iter().all(|line| !line.contains(&dead)), "{left:?}");
    assert!(left.iter().any(|line| line.contains(&living)), "the living one is gone: {left:?}");
    assert!(unrelated.is_there(), "an unrelated namespace is gone");
    alive.say("go on");
    alive.finish().ended_with(0);
    assert_tidy(&scene, &living);
    assert_tidy(&scene, &dead);
}

#[test]
fn a_name_left_by_a_killed_run_can_be_used_at_once() {
    let scene = Scene::new();
    let victim = scene.exec().start(&["sh", "-c", "echo ready; exec sleep 1000"]);
    victim.hear("ready");
    kill_nine(victim);
    scene.exec().without_events_file().run(&["true"]).ended_with(0);
    assert_tidy(&scene, scene.name());
}

/// A namespace of `ip netns`, with a process in it.
struct Unrelated<'a> {
    scene: &'a Scene,
    name: String,
    process: std::process::Child,
}

impl<'a> Unrelated<'a> {
    fn make(scene: &'a Scene) -> Self {
        let name = format!("{}-unrelated", scene.name());
        let process = scene.inside(|| {
            let made = Command::new("ip").args(["netns", "add", &name]).status().expect("run ip");
            assert!(made.success(), "ip netns add");
            Command::new("ip")
                .args(["netns", "exec", &name, "sleep", "1000"])
                .spawn()
                .expect("run ip netns exec")
        });
        Self { scene, name, process }
    }

    fn is_there(&self) -> bool {
        let listed = self.scene.inside(|| Command::new("ip").args(["netns", "pids", &self.name]).output());
        let pids = String::from_utf8(listed.expect("run ip").stdout).expect("UTF-8");
        pids.lines().any(|pid| pid == self.process.id().to_string())
    }
}

impl Drop for Unrelated<'_> {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
        self.scene.inside(|| Command::new("ip").args(["netns", "del", &self.name]).status()).ok();
        fs::remove_file(Path::new("/run/netns").join(&self.name)).ok();
    }
}

#[test]
fn the_hosts_log_setting_is_switched_on_for_sandboxes_and_restored_by_the_last() {
    const SETTING: &str = "/proc/sys/net/netfilter/nf_log_all_netns";
    const REMEMBERED: &str = "/run/sluice.nf_log_all_netns";
    let scene = Scene::new();
    // The real setting is the whole host's and other tests need it: files stand in for it and for what is remembered.
    let setting = scene.file("setting", "0\n");
    let remembered = scene.file("remembered", "");
    if !Path::new(REMEMBERED).exists() {
        fs::write(REMEMBERED, "").expect("a file to put another over");
    }
    scene.inside(|| {
        for (file, over) in [(&setting, SETTING), (&remembered, REMEMBERED)] {
            mount(Some(file), over, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .expect("mount over the setting");
        }
    });
    let value = || fs::read_to_string(&setting).expect("read").trim().to_owned();
    let (first, second) = (format!("{}-1", scene.name()), format!("{}-2", scene.name()));
    let exec = scene.exec().named(&first).option("--log").option("info");
    let mut one = exec.start(&["sh", "-c", "echo ready; read line"]);
    one.hear("ready");
    assert_eq!(value(), "1");
    let two = scene.exec().named(&second).start(&["sh", "-c", "echo ready; exec sleep 1000"]);
    two.hear("ready");
    one.say("go on");
    let outcome = one.finish().ended_with(0);
    assert!(outcome.stderr.contains("nf_log_all_netns was 0, is 1"), "{outcome}");
    assert_eq!(value(), "1", "another sandbox still needs it");
    kill_nine(two);
    assert_eq!(value(), "1", "nobody was there to restore it");
    scene.exec().run(&["true"]).ended_with(0);
    assert_eq!(value(), "0");
}

#[test]
fn runs_that_overlap_disturb_each_other_neither_at_the_start_nor_at_the_end() {
    let scene = Scene::new();
    for round in 0..10 {
        let names = [0, 1].map(|which| format!("{}-{round}-{which}", scene.name()));
        let pair = names.each_ref().map(|name| scene.exec().named(name).start(&["true"]));
        for running in pair {
            running.finish().ended_with(0);
        }
        for name in &names {
            assert_tidy(&scene, name);
        }
    }
}

#[test]
fn a_workload_can_neither_see_nor_kill_what_confines_it() {
    let scene = Scene::new();
    // `kill -9 -1` reaches every process it may, which is those of its own pid namespace.
    let script = "ls /proc | grep -c '^[0-9]'; kill -9 -1; echo alive";
    let outcome = scene.exec().run(&["sh", "-c", script]).ended_with(0);
    let text = outcome.text();
    let (seen, rest) = text.split_once('\n').expect("two lines");
    assert!(seen.parse::<u32>().expect("a number") < 10, "sees {seen} processes");
    assert_eq!(rest, "alive\n");
    assert_tidy(&scene, scene.name());
}
