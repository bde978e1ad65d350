//! The daemon's sandboxes, from the command line: made, listed, shown, changed, removed, and kept over its end.

mod e2e;

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use e2e::{BODY, Daemon, HttpOrigin, PUBLIC_ADDRESS, STATE_DIR, Scene, eventually, sluice};
use nix::sys::signal::Signal;

#[test]
fn a_sandbox_is_made_served_shown_and_removed() {
    let scene = Scene::new();
    let origin = HttpOrigin::start();
    let daemon = Daemon::start(&scene, "");
    assert!(daemon.ask(&["sandbox", "ls"]).stdout.contains("no sandboxes"));

    let said = daemon.ask(&["sandbox", "create", "agent-1", "--policy", "open", "--connections", "7"]);
    assert!(said.ended_with(0).stdout.contains("http://10.200.0.1:3128"));
    let url = format!("http://origin.test:{}/", origin.port());
    assert_eq!(daemon.curl("agent-1", &url).stdout, format!("{BODY}200"));
    let direct = daemon.within("agent-1", &["curl", "-sS", "-m", "20", &format!("http://{PUBLIC_ADDRESS}/")]);
    assert_eq!(direct.code, 7, "{}", direct.stderr);

    let list = daemon.ask_json(&["sandbox", "ls"]);
    let one = &list["sandboxes"][0];
    assert_eq!(
        (&one["name"], &one["kind"], &one["policy"]),
        (&"agent-1".into(), &"made".into(), &"open".into())
    );
    assert_eq!((&one["counts"]["allowed"], &one["counts"]["bypassed"]), (&1.into(), &1.into()), "{one}");
    let table = daemon.ask(&["sandbox", "ls"]).ended_with(0).stdout;
    assert!(
        table.lines().nth(1).is_some_and(|line| line.contains("agent-1") && line.contains("made")),
        "{table}"
    );

    let shown = daemon.ask_json(&["sandbox", "show", "agent-1"]);
    assert_eq!((&shown["fence"]["state"], &shown["fence"]["counters"]["tcp"]), (&"up".into(), &1.into()));
    assert_eq!(shown["limits"]["connections"], 7);
    assert_eq!(shown["origin"], "api");
    let text = daemon.ask(&["sandbox", "show", "agent-1"]).ended_with(0).stdout;
    for word in ["fence inside", "read back just now", "identity", "confinement", "processes"] {
        assert!(text.contains(word), "no {word}\n{text}");
    }
    eventually("the bypass is told", || !daemon.events_of("bypass.detected", "agent-1").is_empty());

    daemon.ask(&["sandbox", "rm", "agent-1"]).ended_with(0);
    assert_eq!(daemon.events_of("sandbox.started", "agent-1").len(), 1);
    eventually("its end is told", || daemon.events_of("sandbox.stopped", "agent-1").len() == 1);
    assert_eq!(scene.remains(), Vec::<String>::new());
}

#[test]
fn removing_a_sandbox_ends_what_runs_in_it() {
    let scene = Scene::new();
    let daemon = Daemon::start(&scene, "");
    daemon.ask(&["sandbox", "create", "a"]).ended_with(0);
    let mut inside = daemon.within_command("a", &["sleep", "1000"]).spawn().expect("start");
    eventually("it is inside", || {
        let shown = daemon.ask_json(&["sandbox", "show", "a"]);
        shown["processes"].as_array().is_some_and(|all| all.len() == 1)
    });
    daemon.ask(&["sandbox", "rm", "a"]).ended_with(0);
    assert!(!inside.wait().expect("wait").success());
    assert_eq!(scene.remains(), Vec::<String>::new());
}

#[test]
fn a_killed_daemon_leaves_its_sandboxes_fenced_and_the_next_one_serves_them() {
    let scene = Scene::new();
    let origin = HttpOrigin::start();
    let policy = scene.file("p.yaml", &allowing("origin.test", origin.port()));
    let mut daemon = Daemon::start(&scene, "sandboxes:\n  - { name: fixed, policy: open }\n");
    daemon.ask(&["sandbox", "create", "a", "--policy", policy.to_str().unwrap()]).ended_with(0);
    let mut inside = daemon.within_command("a", &["sleep", "1000"]).spawn().expect("start");
    let before = daemon.ask_json(&["sandbox", "show", "a"]);
    let url = format!("http://origin.test:{}/", origin.port());
    // What the policy said when it was set is what counts, not what its file says now.
    std::fs::write(&policy, "version: 1\n").unwrap();

    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let code = daemon.end(signal);
        assert_eq!(code, if signal == Signal::SIGKILL { 137 } else { 0 });
        let away = daemon.ask(&["sandbox", "ls"]).ended_with(69);
        assert!(away.stderr.contains("sluice serve --config"), "{}", away.stderr);
        for sandbox in ["a", "fixed"] {
            let direct =
                daemon.within(sandbox, &["curl", "-sS", "-m", "20", &format!("http://{PUBLIC_ADDRESS}/")]);
            assert_eq!(direct.code, 7, "{sandbox} is open: {}", direct.stderr);
        }
        daemon.restart();
        assert_eq!(daemon.curl("a", &url).stdout, format!("{BODY}200"));
        assert_eq!(daemon.curl("fixed", &url).stdout, format!("{BODY}200"));
    }
    let after = daemon.ask_json(&["sandbox", "show", "a"]);
    for same in ["namespace", "since", "policy", "limits"] {
        assert_eq!(before[same], after[same], "{same}");
    }
    assert_eq!(after["fence"]["counters"]["tcp"], 2, "counts went on while nobody served");
    assert!(inside.try_wait().expect("wait").is_none(), "what ran inside was ended");
    inside.kill().unwrap();
    inside.wait().unwrap();
}

#[test]
fn no_exec_ends_a_sandbox_that_waits_for_its_daemon() {
    let scene = Scene::new();
    let mut daemon = Daemon::start(&scene, "");
    daemon.ask(&["sandbox", "create", "a"]).ended_with(0);
    daemon.end(Signal::SIGKILL);
    scene.exec().run(&["true"]).ended_with(0);
    let namesake = scene.exec().named("a").run(&["true"]);
    assert!(namesake.stderr.contains("is kept"), "{namesake}");
    daemon.restart();
    assert_eq!(daemon.ask_json(&["sandbox", "ls"])["sandboxes"][0]["name"], "a");
}

#[test]
fn a_sandbox_that_left_the_configuration_goes_and_a_new_one_comes() {
    let scene = Scene::new();
    let mut daemon = Daemon::start(&scene, "sandboxes:\n  - { name: old, policy: deny }\n");
    daemon.configure("sandboxes:\n  - { name: new, policy: deny }\n");
    nix::sys::signal::kill(daemon.pid(), Signal::SIGHUP).expect("reload");
    eventually("the reload", || {
        let list = daemon.ask_json(&["sandbox", "ls"]);
        list["sandboxes"].as_array().is_some_and(|all| all.len() == 1 && all[0]["name"] == "new")
    });
    daemon.configure("sandboxes: [{ name: new, policy: deny, polcy: deny }]\n");
    nix::sys::signal::kill(daemon.pid(), Signal::SIGHUP).expect("reload");
    eventually("a bad configuration is told", || !daemon.events_of("policy.rejected", "new").is_empty());
    assert_eq!(daemon.ask_json(&["sandbox", "ls"])["sandboxes"][0]["name"], "new");
    assert!(daemon.log().contains("did you mean \"policy\""), "{}", daemon.log());
}

#[test]
fn a_policy_that_is_set_holds_at_once_and_a_bad_one_changes_nothing() {
    let scene = Scene::new();
    let origin = HttpOrigin::start();
    let daemon = Daemon::start(&scene, "");
    daemon.ask(&["sandbox", "create", "a"]).ended_with(0);
    let url = format!("http://origin.test:{}/", origin.port());
    assert!(daemon.curl("a", &url).stdout.ends_with("403"));
    let policy = scene.file("p.yaml", &allowing("origin.test", origin.port()));
    daemon.ask(&["policy", "set", "a", policy.to_str().unwrap()]).ended_with(0);
    assert_eq!(daemon.curl("a", &url).stdout, format!("{BODY}200"));

    let bad = scene.file("bad.yaml", "version: 1\nnetwork_policies:\n  x:\n    endpoints: [{ hots: a }]\n");
    let said = daemon.ask(&["policy", "set", "a", bad.to_str().unwrap()]).ended_with(78);
    assert!(
        said.stderr.contains("bad.yaml:4:19: error: unknown key \"hots\"; did you mean \"host\"?"),
        "{}",
        said.stderr
    );
    assert_eq!(daemon.curl("a", &url).stdout, format!("{BODY}200"));
    // The API itself says the same.
    let body =
        serde_json::json!({"policy": {"file": "/x.yaml", "text": std::fs::read_to_string(&bad).unwrap()}});
    let answer = api(&scene, "PUT", "/v1/sandboxes/a/policy", &body.to_string());
    assert!(answer.starts_with("422"), "{answer}");
    assert!(answer.contains("\"line\":4") && answer.contains("\"column\":19"), "{answer}");
    eventually("the rejection is told", || daemon.events_of("policy.rejected", "a").len() == 1);
    assert_eq!(daemon.ask_json(&["sandbox", "show", "a"])["policy"], policy.to_str().unwrap());
}

#[test]
fn wrong_input_gets_its_error_and_changes_nothing() {
    let scene = Scene::new();
    let daemon = Daemon::start(&scene, "");
    daemon.ask(&["sandbox", "create", "a"]).ended_with(0);
    let own_pid = std::process::id().to_string();
    for (args, code, says) in [
        (&["sandbox", "create", "a"][..], 64, "exists already"),
        (&["sandbox", "create", "a/b"], 64, "cannot name a sandbox"),
        (&["sandbox", "create", "b", "--policy", "/no/such/file"], 78, "cannot read the policy"),
        (&["sandbox", "create", "b", "--identity", "maybe"], 64, "process"),
        (&["sandbox", "attach", "b"], 64, "--pid"),
        (&["sandbox", "attach", "b", "--pid", &own_pid], 64, "host's own network namespace"),
        (&["sandbox", "attach", "b", "--pid", "4000000"], 64, "is not a network namespace"),
        (&["sandbox", "attach", "b", "--netns", "/etc/passwd"], 64, "is not a network namespace"),
        (&["sandbox", "show", "b"], 64, "there is no sandbox b"),
        (&["sandbox", "show", "../a"], 64, "there is no sandbox ../a"),
        (&["sandbox", "rm", "b"], 64, "there is no sandbox b"),
        (&["policy", "set", "b", "open"], 64, "there is no sandbox b"),
        (&["sandbox", "ls", "--socket", "/no/such.sock"], 69, "sluice serve --config"),
        (&["sandbox", "ls", "--config", "/no/such.yaml"], 78, "cannot read the configuration"),
    ] {
        let said = daemon.ask(args);
        assert_eq!(said.code, code, "{args:?}\n{}", said.stderr);
        assert!(said.stderr.contains(says), "{args:?}\n{}", said.stderr);
        assert!(said.stdout.is_empty(), "{args:?}\n{}", said.stdout);
    }
    for (method, path, body, status) in [
        ("POST", "/v1/sandboxes", "{", "400"),
        ("POST", "/v1/sandboxes", r#"{"name":"b","polcy":"open"}"#, "400"),
        ("POST", "/v1/sandboxes", r#"{"name":"b","link":"veth0"}"#, "400"),
        ("POST", "/v1/sandboxes", r#"{"name":"b","limits":{"conections":1}}"#, "400"),
        ("GET", "/v1/nothing", "", "404"),
        ("GET", "/v1/gc", "", "405"),
        ("DELETE", "/v1/sandboxes/b", "", "404"),
    ] {
        let answer = api(&scene, method, path, body);
        assert!(answer.starts_with(status), "{method} {path} {body}: {answer}");
        assert!(answer.contains("\"message\":\""), "{answer}");
    }
    assert_eq!(daemon.ask_json(&["sandbox", "ls"])["sandboxes"].as_array().map(Vec::len), Some(1));
}

#[test]
fn one_socket_is_one_daemons_and_only_its_users() {
    let scene = Scene::new();
    let mut daemon = Daemon::start(&scene, "");
    let mut second = Command::new(sluice());
    second.args(["serve", "--config"]).arg(daemon.config());
    let second = scene.inside(|| second.output()).expect("run sluice");
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(70), "{text}");
    assert!(text.contains("another daemon answers on /run/sluice/admin.sock"), "{text}");
    daemon.ask(&["sandbox", "ls"]).ended_with(0);

    let socket = format!("{STATE_DIR}/admin.sock");
    let mode = scene.inside(|| std::fs::metadata(&socket)).expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // Even where the file lets everybody in, the daemon does not.
    scene.inside(|| std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666))).unwrap();
    let nobody = [
        "setpriv",
        "--reuid=65534",
        "--clear-groups",
        "curl",
        "-sS",
        "--unix-socket",
        &socket,
        "http://x/v1/sandboxes",
    ];
    let mut nobody_asks = Command::new(nobody[0]);
    nobody_asks.args(&nobody[1..]);
    let answer = scene.inside(|| nobody_asks.output()).expect("curl");
    assert!(String::from_utf8_lossy(&answer.stdout).contains("forbidden"), "{answer:?}");

    daemon.end(Signal::SIGKILL);
    assert!(scene.inside(|| std::fs::metadata(&socket)).is_ok(), "a killed daemon leaves its socket");
    daemon.restart();
    daemon.end(Signal::SIGTERM);
    assert!(scene.inside(|| std::fs::metadata(&socket)).is_err(), "a stopped daemon removes its socket");
}

/// A policy that allows one host and port to everybody.
fn allowing(host: &str, port: u16) -> String {
    format!("version: 1\nnetwork_policies:\n  it:\n    endpoints: [{{ host: {host}, port: {port} }}]\n")
}

/// Status and body of a call of the API.
fn api(scene: &Scene, method: &str, path: &str, body: &str) -> String {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "-m", "20", "--unix-socket", "/run/sluice/admin.sock", "-X", method]);
    curl.args(["-H", "content-type: application/json", "-o", "-", "-w", "\n%{http_code}"]);
    if !body.is_empty() {
        curl.args(["-d", body]);
    }
    curl.arg(format!("http://sluice{path}"));
    let output = scene.inside(|| curl.output()).expect("curl");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or_default();
    format!("{status} {body}")
}
