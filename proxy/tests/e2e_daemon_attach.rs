//! Namespaces that something else made, in the daemon's custody: fenced inside and on the host's side of their link.

mod e2e;

use std::process::{Command, Stdio};

use e2e::{
    BODY, Container, Daemon, HttpOrigin, STATE_DIR, Scene, Secure, alone_with_the_host_fence, eventually,
    python,
};

#[test]
fn a_foreign_namespace_has_the_proxy_and_nothing_else_until_it_is_given_back() {
    let scene = Scene::new();
    let origin = HttpOrigin::start();
    let container = Container::start();
    assert!(container.reaches_the_host(), "the stand-in is broken");
    let daemon = Daemon::start(&scene, "");
    let policy = format!(
        "version: 1\nnetwork_policies:\n  it:\n    endpoints: [{{ host: origin.test, port: {} }}]\n",
        origin.port()
    );
    let policy = scene.file("p.yaml", &policy);
    let said = daemon.ask(&[
        "sandbox",
        "attach",
        "box",
        "--pid",
        &container.pid(),
        "--policy",
        policy.to_str().unwrap(),
    ]);
    assert!(said.ended_with(0).stdout.contains("attached to the network of process"));

    let allowed = container.through_the_proxy(&format!("http://origin.test:{}/", origin.port()));
    assert_eq!(allowed.1, format!("{BODY}200"));
    let denied = container.through_the_proxy("http://other.test:1/");
    assert!(denied.1.ends_with("403"), "{}", denied.1);
    assert!(!container.reaches_the_host(), "it is not fenced");
    eventually("its attempt is told", || !daemon.events_of("bypass.detected", "box").is_empty());
    let request = &daemon.events_of("request.allowed", "box")[0];
    assert_eq!(request["process"]["comm"], "curl", "{request}");
    let shown = daemon.ask_json(&["sandbox", "show", "box"]);
    assert_eq!((&shown["kind"], &shown["fence"]["state"]), (&"attached".into(), &"up".into()));
    assert_eq!(shown["attached_to"]["pid"], container.process.id());
    let again = daemon.ask(&["sandbox", "attach", "other", "--pid", &container.pid()]).ended_with(64);
    assert!(again.stderr.contains("sandbox box's already"), "{}", again.stderr);
    let exec = daemon.ask(&["sandbox", "exec", "box", "--", "true"]).ended_with(64);
    assert!(exec.stderr.contains("its own runtime"), "{}", exec.stderr);

    daemon.ask(&["sandbox", "rm", "box"]).ended_with(0);
    assert!(container.reaches_the_host(), "it was not given back");
    assert_eq!(scene.remains(), Vec::<String>::new());
}

/// What runs in it was started by somebody else: it trusts the files that `attach` names, mounted into it.
#[test]
fn an_attached_namespace_is_looked_into_by_the_files_that_attach_names() {
    let scene = Scene::new();
    let origin = Secure::start(&scene);
    let container = Container::start();
    let daemon = Daemon::start(&scene, &origin.trusted());
    let policy = scene.file("p.yaml", &origin.policy("protocol: rest, access: read-only"));
    let attach =
        ["sandbox", "attach", "box", "--pid", &container.pid(), "--policy", policy.to_str().unwrap()];
    let said = daemon.ask(&attach).ended_with(0);
    let tls = daemon.ask_json(&["sandbox", "show", "box"])["tls"].clone();
    let bundle = tls["bundle"].as_str().unwrap();
    assert!(said.stdout.contains(bundle), "{}", said.stdout);
    let (pid, url) = (container.pid(), origin.url("/hello"));
    let curl = |variables: &[(&str, &str)], more: &[&str]| {
        let mut curl = Command::new("nsenter");
        curl.args(["-n", "-t", &pid, "curl", "-sS", "-m", "20", "-x", "http://10.200.0.1:3128", &url])
            .args(more);
        curl.envs(variables.iter().copied()).stdin(Stdio::null());
        let output = scene.inside(|| curl.output()).expect("nsenter");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let trusting = [("CURL_CA_BUNDLE", bundle)];
    assert_eq!(curl(&trusting, &[]), (Some(0), "hello from inside\n".to_owned()));
    let refused = curl(&trusting, &["-d", "x=1"]);
    assert!(refused.1.contains(r#""reason":"method_not_allowed""#), "{refused:?}");
    // Without them it refuses the certificate, and that is told.
    assert_eq!(curl(&[], &[]).0, Some(60));
    eventually("it is told", || !daemon.events_of("tls.failed", "box").is_empty());
    daemon.ask(&["sandbox", "rm", "box"]).ended_with(0);
    assert!(scene.inside(|| std::fs::metadata(bundle)).is_err(), "the files outlive the sandbox");
}

/// A daemon that is attached to the container as `box`, its link fenced.
fn attached<'a>(scene: &'a Scene, container: &Container) -> Daemon<'a> {
    // Also makes the two ends know each other: what asks for an address is no violation, and takes seconds once it has failed.
    assert!(container.reaches_the_host(), "the stand-in is broken");
    let daemon = Daemon::start(scene, "");
    let attach = ["sandbox", "attach", "box", "--pid", &container.pid(), "--link", &container.link];
    daemon.ask(&attach).ended_with(0);
    daemon
}

#[test]
fn root_inside_that_flushes_the_rules_still_meets_the_fence_on_the_host() {
    let _alone = alone_with_the_host_fence();
    let scene = Scene::new();
    let container = Container::start();
    let daemon = attached(&scene, &container);
    assert!(!container.reaches_the_host());
    let dropped =
        || daemon.ask_json(&["sandbox", "show", "box"])["host_fence"]["dropped"].as_u64().unwrap_or(0);
    assert_eq!(dropped(), 0, "the fence inside let something out");
    // Again and again: the fence inside may be put back before the next attempt.
    eventually("the host fence counts", || {
        assert_eq!(container.inside(&["nft", "flush", "ruleset"]).0, 0);
        assert!(!container.reaches_the_host(), "a flushed fence is a way out");
        dropped() > 0
    });
    eventually("the fence inside is put back and said", || {
        let told = daemon.events_of("fence.violation", "box");
        told.iter().any(|event| event["reason"] == "fence_changed")
    });
    eventually("it stands again", || daemon.ask_json(&["sandbox", "show", "box"])["fence"]["state"] == "up");
    daemon.ask(&["sandbox", "rm", "box"]).ended_with(0);
    assert!(container.reaches_the_host(), "the host fence was left behind");
}

#[test]
fn a_namespace_that_ends_is_noticed() {
    let scene = Scene::new();
    let mut container = Container::start();
    let daemon = Daemon::start(&scene, "");
    daemon.ask(&["sandbox", "attach", "box", "--pid", &container.pid()]).ended_with(0);
    container.process.kill().expect("kill");
    container.process.wait().expect("wait");
    let said = daemon.ask(&["sandbox", "gc"]).ended_with(0);
    assert!(said.stdout.contains("box") || said.stdout.contains("nothing is dead"), "{}", said.stdout);
    eventually("it is told", || !daemon.events_of("sandbox.stopped", "box").is_empty());
    assert_eq!(daemon.events_of("sandbox.stopped", "box")[0]["detail"], "its namespace ended");
    assert_eq!(scene.remains(), Vec::<String>::new());
}

#[test]
fn a_namespace_of_the_configuration_is_waited_for_again_and_again() {
    let scene = Scene::new();
    let mut container = Container::start();
    let path = scene.dir().join("netns");
    let more = format!("sandboxes:\n  - {{ name: box, netns: {}, policy: open }}\n", path.display());
    let mut daemon = Daemon::start(&scene, &more);
    let list = daemon.ask_json(&["sandbox", "ls"]);
    assert_eq!(list["waiting"][0]["name"], "box", "{list}");
    assert!(container.reaches_the_host());
    std::os::unix::fs::symlink(format!("/proc/{}/ns/net", container.pid()), &path).expect("link");
    eventually("it is attached", || daemon.ask_json(&["sandbox", "ls"])["sandboxes"][0]["name"] == "box");
    assert!(!container.reaches_the_host());
    // A killed daemon leaves it fenced, and the next one takes it over.
    daemon.end(nix::sys::signal::Signal::SIGKILL);
    assert!(!container.reaches_the_host());
    daemon.restart();
    assert_eq!(daemon.ask_json(&["sandbox", "ls"])["sandboxes"][0]["kind"], "attached");
    // A container that is started anew has another namespace under the same path.
    let next = Container::start();
    std::fs::remove_file(&path).expect("unlink");
    container.end();
    eventually("its end is told", || daemon.events_of("sandbox.stopped", "box").len() == 1);
    assert_eq!(daemon.ask_json(&["sandbox", "ls"])["waiting"][0]["name"], "box");
    std::os::unix::fs::symlink(format!("/proc/{}/ns/net", next.pid()), &path).expect("link");
    eventually("it is attached again", || {
        daemon.ask_json(&["sandbox", "ls"])["sandboxes"][0]["name"] == "box"
    });
    assert!(!next.reaches_the_host());
    daemon.ask(&["sandbox", "rm", "box"]).ended_with(0);
    assert!(next.reaches_the_host());
}

#[test]
fn links_stay_fenced_while_daemons_change() {
    let _alone = alone_with_the_host_fence();
    let scene = Scene::new();
    let containers = [Container::start(), Container::start()];
    assert!(containers.iter().all(Container::reaches_the_host), "the stand-ins are broken");
    let mut daemon = Daemon::start(&scene, "");
    let missing = ["sandbox", "attach", "x", "--pid", &containers[0].pid(), "--link", "sl-none"];
    assert!(daemon.ask(&missing).ended_with(64).stderr.contains("there is no link sl-none"));
    assert!(containers[0].reaches_the_host(), "a refused attachment left a fence");
    for (number, container) in containers.iter().enumerate() {
        let name = format!("box-{number}");
        let attach = ["sandbox", "attach", &name, "--pid", &container.pid(), "--link", &container.link];
        daemon.ask(&attach).ended_with(0);
    }
    let flushed = |container: &Container| {
        assert_eq!(container.inside(&["nft", "flush", "ruleset"]).0, 0);
        assert!(!container.reaches_the_host(), "a flushed fence is a way out");
    };
    daemon.end(nix::sys::signal::Signal::SIGKILL);
    containers.iter().for_each(flushed);
    daemon.restart();
    containers.iter().for_each(flushed);
    for name in ["box-0", "box-1"] {
        let shown = daemon.ask_json(&["sandbox", "show", name]);
        assert_eq!(shown["host_fence"]["state"], "up", "{shown}");
        assert!(shown["host_fence"]["dropped"].is_u64(), "its link has no chain: {shown}");
        daemon.ask(&["sandbox", "rm", name]).ended_with(0);
    }
    assert!(containers.iter().all(Container::reaches_the_host), "the host fence was left behind");
}

#[test]
fn a_host_fence_that_somebody_took_away_comes_back_and_is_told() {
    let _alone = alone_with_the_host_fence();
    let scene = Scene::new();
    let container = Container::start();
    let daemon = attached(&scene, &container);
    let state = || daemon.ask_json(&["sandbox", "show", "box"])["host_fence"].clone();
    assert_eq!(state()["state"], "up");
    let told = |count: usize| {
        let told = daemon.events_of("fence.violation", "box");
        told.iter().filter(|event| event["reason"] == "fence_changed").count() >= count
    };
    // As a firewall does that is loaded anew.
    run_here(&["nft", "delete", "table", "netdev", "sluice_host"]);
    eventually("it is told that it was away", || told(1));
    eventually("it is back", || state()["state"] == "up");
    // As only somebody does who knows it.
    run_here(&["nft", "insert", "rule", "netdev", "sluice_host", "admit", "accept"]);
    eventually("it is told that it was changed", || told(2));
    eventually("it is back", || state()["state"] == "up");
    assert_eq!(container.inside(&["nft", "flush", "ruleset"]).0, 0);
    assert!(!container.reaches_the_host());
    daemon.ask(&["sandbox", "rm", "box"]).ended_with(0);
    assert!(container.reaches_the_host(), "the host fence was left behind");
}

#[test]
fn a_kept_sandbox_that_cannot_be_served_keeps_its_link_fenced() {
    let _alone = alone_with_the_host_fence();
    let scene = Scene::new();
    let containers = [Container::start(), Container::start()];
    assert!(containers.iter().all(Container::reaches_the_host), "the stand-ins are broken");
    let mut daemon = Daemon::start(&scene, "");
    for (name, container) in ["spoilt", "busy"].iter().zip(&containers) {
        let attach = ["sandbox", "attach", name, "--pid", &container.pid(), "--link", &container.link];
        daemon.ask(&attach).ended_with(0);
    }
    daemon.end(nix::sys::signal::Signal::SIGKILL);
    // One's note has a policy that this daemon does not understand, the other's port is taken.
    let note = format!("{STATE_DIR}/sandboxes/spoilt/served.json");
    scene.inside(|| {
        let text = std::fs::read_to_string(&note).expect("read").replace("\"deny\"", "{\"new\":1}");
        std::fs::write(&note, text).expect("write");
    });
    let server = "import socket, sys; s = socket.create_server(('10.200.0.1', 3128)); sys.stdin.read()";
    let mut taken = std::process::Command::new("nsenter");
    taken.args(["-n", "-t", &containers[1].pid()]).arg(python()).args(["-c", server]);
    let mut taken = taken.stdin(std::process::Stdio::piped()).spawn().expect("nsenter");
    eventually("the port is taken", || containers[1].inside(&["ss", "-ltn"]).1.contains("10.200.0.1:3128"));

    daemon.restart();
    let list = daemon.ask_json(&["sandbox", "ls"]);
    assert_eq!(list["sandboxes"], serde_json::json!([]), "{list}");
    assert_eq!(list["waiting"][0]["name"], "busy", "{list}");
    for container in &containers {
        assert_eq!(container.inside(&["nft", "flush", "ruleset"]).0, 0);
        assert!(!container.reaches_the_host(), "its link is open");
    }
    drop(taken.stdin.take());
    taken.wait().expect("wait");
    eventually("it is served", || daemon.ask_json(&["sandbox", "ls"])["sandboxes"][0]["name"] == "busy");
    assert_eq!(daemon.ask_json(&["sandbox", "show", "busy"])["host_fence"]["state"], "up");
    for (name, container) in ["spoilt", "busy"].iter().zip(&containers) {
        assert!(!container.reaches_the_host());
        daemon.ask(&["sandbox", "rm", name]).ended_with(0);
        assert!(container.reaches_the_host(), "{name} was not given back");
    }
    assert_eq!(scene.remains(), Vec::<String>::new());
}

fn run_here(command: &[&str]) {
    let status = std::process::Command::new(command[0]).args(&command[1..]).status().expect("run");
    assert!(status.success(), "{command:?}");
}
