//! Commands in the daemon's sandboxes: launched by the command line, witnessed by it, named by the daemon.

mod e2e;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use e2e::{BODY, Daemon, HttpOrigin, PATIENCE, PUBLIC_ADDRESS, STATE_DIR, Scene, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A policy that allows one host and port to curl alone.
fn for_curl(host: &str, port: u16) -> String {
    format!(
        "version: 1\nnetwork_policies:\n  it:\n    endpoints: [{{ host: {host}, port: {port} }}]\n    \
         binaries: [{{ path: /usr/bin/curl }}]\n"
    )
}

fn exec<'a>(sandbox: &'a str, command: &[&'a str]) -> Vec<&'a str> {
    [&["sandbox", "exec", sandbox, "--"][..], command].concat()
}

#[test]
fn a_command_runs_confined_in_the_daemons_sandbox_and_its_attempts_are_named() {
    let scene = Scene::new();
    let origin = HttpOrigin::start();
    let policy = scene.file("p.yaml", &for_curl("origin.test", origin.port()));
    let daemon = Daemon::start(&scene, "");
    daemon.ask(&["sandbox", "create", "a", "--policy", policy.to_str().unwrap()]).ended_with(0);

    let url = format!("http://origin.test:{}/", origin.port());
    let said = daemon.ask(&exec("a", &["curl", "-sS", "-m", "20", &url])).ended_with(0);
    assert_eq!(said.stdout, BODY);
    let direct = format!("http://{PUBLIC_ADDRESS}/");
    daemon.ask(&exec("a", &["curl", "-sS", "-m", "20", "--noproxy", "*", &direct])).ended_with(7);
    eventually("the attempt is told", || !daemon.events_of("bypass.detected", "a").is_empty());
    let event = &daemon.events_of("bypass.detected", "a")[0];
    assert_eq!(
        (&event["identity"], &event["process"]["exe"]),
        (&"witness".into(), &"/usr/bin/curl".into()),
        "{event}"
    );
    let allowed = &daemon.events_of("request.allowed", "a")[0];
    assert_eq!(allowed["identity"], "witness", "{allowed}");

    // The command's own code, its user, its confinement.
    daemon.ask(&exec("a", &["sh", "-c", "exit 42"])).ended_with(42);
    daemon.ask(&exec("a", &["/no/such/program"])).ended_with(127);
    let said = daemon.ask(&[
        "sandbox",
        "exec",
        "a",
        "--user",
        "nobody",
        "--",
        "sh",
        "-c",
        "id -u; grep -c . /proc/net/dev; grep Seccomp: /proc/self/status; ls /run/sluice",
    ]);
    assert_eq!(said.stdout.lines().next(), Some("65534"), "{}", said.stderr);
    assert!(said.stdout.contains("Seccomp:\t2"), "{}", said.stdout);
    assert!(!said.stdout.contains("admin.sock"), "the workload sees the daemon's socket\n{}", said.stdout);
    for (args, code) in [(exec("nobody", &["true"]), 64), (exec("a", &[]), 64)] {
        daemon.ask(&args).ended_with(code);
    }
}

#[test]
fn a_daemon_that_restarts_stalls_no_command_and_names_it_again() {
    let scene = Scene::new();
    let mut daemon = Daemon::start(&scene, "");
    daemon.ask(&["sandbox", "create", "a"]).ended_with(0);
    let attempt = format!(
        "while read line; do curl -sS -m 20 --noproxy '*' http://{PUBLIC_ADDRESS}/ 2>/dev/null; echo $line $?; done"
    );
    let mut command = daemon.begin(&exec("a", &["sh", "-c", &attempt]));
    let mut to = command.stdin.take().expect("stdin");
    let mut from = BufReader::new(command.stdout.take().expect("stdout"));
    let mut once = |word: &str| {
        writeln!(to, "{word}").expect("write");
        let mut line = String::new();
        from.read_line(&mut line).expect("read");
        line
    };
    assert_eq!(once("one"), "one 7\n");
    let shown = daemon.ask_json(&["sandbox", "show", "a"]);
    assert_eq!(shown["launches"].as_array().map(Vec::len), Some(1), "{shown}");
    let text = daemon.ask(&["sandbox", "show", "a"]).stdout;
    assert!(text.contains("system calls") && text.contains("privileges"), "{text}");

    daemon.end(Signal::SIGKILL);
    assert_eq!(once("two"), "two 7\n", "no daemon is needed to be refused");
    daemon.restart();
    eventually("the launch is known again", || {
        let shown = daemon.ask_json(&["sandbox", "show", "a"]);
        shown["launches"].as_array().is_some_and(|all| all.len() == 1)
    });
    let before = daemon.events_of("bypass.detected", "a").len();
    assert_eq!(once("three"), "three 7\n");
    eventually("it is told again", || daemon.events_of("bypass.detected", "a").len() > before);
    let events = daemon.events_of("bypass.detected", "a");
    assert!(events.iter().all(|event| event["identity"] == "witness"), "{events:#?}");
    drop(to);
    assert!(command.wait().expect("wait").success());
    eventually("the launch is forgotten", || {
        daemon.ask_json(&["sandbox", "show", "a"])["launches"].as_array().is_some_and(Vec::is_empty)
    });
}

#[test]
fn a_command_ends_with_its_launcher_and_a_launcher_with_the_sandbox() {
    let scene = Scene::new();
    let daemon = Daemon::start(&scene, "");
    daemon.ask(&["sandbox", "create", "a"]).ended_with(0);
    let inside = |count: usize| {
        let shown = daemon.ask_json(&["sandbox", "show", "a"]);
        shown["processes"].as_array().map(Vec::len) == Some(count)
    };
    let mut command = daemon.begin(&exec("a", &["sleep", "1000"]));
    eventually("it runs", || !inside(0));
    command.kill().expect("kill");
    command.wait().expect("wait");
    eventually("it is gone", || inside(0));

    let mut command = daemon.begin(&exec("a", &["sleep", "1000"]));
    eventually("it runs", || !inside(0));
    daemon.ask(&["sandbox", "rm", "a"]).ended_with(0);
    assert_eq!(command.wait().expect("wait").code(), Some(137));
    assert_eq!(scene.remains(), Vec::<String>::new());
}

#[test]
fn events_are_followed_filtered_and_looked_back_at() {
    let scene = Scene::new();
    let daemon = Daemon::start(&scene, "");
    for name in ["a", "b"] {
        daemon.ask(&["sandbox", "create", name]).ended_with(0);
    }
    let mut follower = daemon.begin(&["events", "--follow", "--sandbox", "a", "--event", "bypass.detected"]);
    let (lines, told) = std::sync::mpsc::channel();
    let from = BufReader::new(follower.stdout.take().expect("stdout"));
    std::thread::spawn(move || from.lines().map_while(Result::ok).for_each(|line| drop(lines.send(line))));
    let direct = format!("http://{PUBLIC_ADDRESS}/");
    for name in ["b", "a"] {
        daemon.ask(&exec(name, &["curl", "-m", "20", "--noproxy", "*", &direct])).ended_with(7);
    }
    let line = told.recv_timeout(e2e::PATIENCE).expect("an event");
    let event: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!((&event["event"], &event["sandbox"]), (&"bypass.detected".into(), &"a".into()));
    assert!(told.try_recv().is_err(), "more than was asked for");
    kill(Pid::from_raw(follower.id().cast_signed()), Signal::SIGINT).expect("interrupt");
    follower.wait().expect("wait");

    let recent = daemon.ask(&["events", "--event", "bypass.detected"]).ended_with(0).stdout;
    assert_eq!(recent.lines().count(), 2, "{recent}");
    let all = daemon.ask(&["events", "--sandbox", "b"]).ended_with(0).stdout;
    assert!(all.starts_with("{\"time\":") && all.contains("sandbox.started"), "{all}");
    let wrong = daemon.ask(&["events", "--event", "bypass.detcted"]).ended_with(64);
    assert!(wrong.stderr.contains("no kind \"bypass.detcted\"") && wrong.stderr.contains("bypass.detected"));
}

#[test]
fn who_follows_events_ends_with_its_reader() {
    let scene = Scene::new();
    let daemon = Daemon::start(&scene, "");
    daemon.ask(&["sandbox", "create", "a"]).ended_with(0);
    let mut follower = daemon.begin(&["events", "--follow"]);
    let mut reader = BufReader::new(follower.stdout.take().expect("stdout"));
    let mut line = String::new();
    reader.read_line(&mut line).expect("an event");
    assert!(line.contains("sandbox.started"), "{line}");
    // As `| head -1` does. No other event comes.
    drop(reader);
    let output = follower.wait_with_output().expect("wait");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

#[test]
fn followers_that_left_take_nobodys_place() {
    let scene = Scene::new();
    let daemon = Daemon::start(&scene, "");
    let socket = format!("{STATE_DIR}/admin.sock");
    let follow = || {
        let mut stream = scene.inside(|| UnixStream::connect(&socket)).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        // Of a sandbox in which nothing ever happens.
        let ask = b"GET /v1/events?follow=true&sandbox=nobody HTTP/1.1\r\nHost: x\r\n\r\n";
        stream.write_all(ask).expect("ask");
        let mut head = [0; 12];
        stream.read_exact(&mut head).expect("a status");
        String::from_utf8_lossy(&head).ends_with("200").then_some(stream)
    };
    let all: Vec<_> = std::iter::from_fn(follow).take(100).collect();
    assert_eq!(all.len(), 64);
    drop(all);
    eventually("their places are free", || follow().is_some());
    drop(daemon);
}

#[test]
fn a_follower_is_told_when_the_daemon_ends() {
    let scene = Scene::new();
    let mut daemon = Daemon::start(&scene, "");
    let mut follower = daemon.begin(&["events", "--follow"]);
    daemon.ask(&["sandbox", "create", "a"]).ended_with(0);
    let mut first = [0; 1];
    follower.stdout.as_mut().expect("stdout").read_exact(&mut first).expect("an event");
    daemon.end(Signal::SIGTERM);
    assert_ne!(follower.wait().expect("wait").code(), Some(0));
}

#[test]
fn what_is_suggested_for_the_denials_loads_and_allows_them() {
    let scene = Scene::new();
    let origin = HttpOrigin::start();
    let daemon = Daemon::start(&scene, "");
    daemon.ask(&["sandbox", "create", "a"]).ended_with(0);
    assert!(daemon.ask(&["denials"]).ended_with(0).stdout.contains("nothing was refused"));
    let url = format!("http://origin.test:{}/x", origin.port());
    for _ in 0..3 {
        daemon.ask(&exec("a", &["curl", "-sS", "-m", "20", "-w", "%{http_code}", &url])).ended_with(0);
    }
    daemon
        .ask(&exec("a", &["curl", "-m", "20", "--noproxy", "*", &format!("http://{PUBLIC_ADDRESS}/")]))
        .ended_with(7);
    eventually("both are told", || {
        daemon.ask_json(&["denials"])["denials"].as_array().is_some_and(|all| all.len() == 2)
    });
    let found = daemon.ask_json(&["denials", "--sandbox", "a"]);
    assert_eq!(
        (&found["denials"][0]["count"], &found["denials"][0]["stage"]),
        (&3.into(), &"denied".into()),
        "{found}"
    );
    assert_eq!(found["denials"][1]["stage"], "bypassed");
    let table = daemon.ask(&["denials"]).ended_with(0).stdout;
    assert!(
        table.contains("BYPASS") && table.contains("/usr/bin/curl") && table.contains("hint: "),
        "{table}"
    );

    let suggested = daemon.ask(&["denials", "--sandbox", "a", "--suggest"]).ended_with(0).stdout;
    let file = scene.file("suggested.yaml", &suggested);
    daemon.ask(&["check", file.to_str().unwrap()]).ended_with(0);
    daemon.ask(&["policy", "set", "a", file.to_str().unwrap()]).ended_with(0);
    let said = daemon.ask(&exec("a", &["curl", "-sS", "-m", "20", &url])).ended_with(0);
    assert_eq!(said.stdout, BODY, "{suggested}");
    // Not wider: another path, another program.
    let other = url.replace("/x", "/y");
    let said =
        daemon.ask(&exec("a", &["curl", "-sS", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}", &other]));
    assert_eq!(said.stdout, "403", "{suggested}");
    daemon.ask(&["denials", "--sandbox", "b"]).ended_with(64);
}
