//! `sluice exec` is transparent: exit code, signals, standard streams, directory, environment and terminal are the
//! workload's own.

mod e2e;

use e2e::*;
use nix::sys::signal::Signal;

#[test]
fn the_exit_code_is_the_workloads() {
    let scene = Scene::new();
    for code in [0, 1, 5, 64, 255] {
        scene.exec().run(&["sh", "-c", &format!("exit {code}")]).ended_with(code);
    }
}

#[test]
fn a_workload_ended_by_a_signal_gives_128_and_its_number() {
    let scene = Scene::new();
    for (name, code) in [("TERM", 143), ("KILL", 137), ("SEGV", 139)] {
        scene.exec().run(&["sh", "-c", &format!("kill -{name} $$")]).ended_with(code);
    }
}

#[test]
fn a_program_that_does_not_exist_gives_127_and_leaves_nothing() {
    let scene = Scene::new();
    for name in ["no-such-program", "/no/such/program", "./no-such-program"] {
        let outcome = scene.exec().run(&[name]).ended_with(127);
        assert!(outcome.stderr.contains(&format!("sluice: {name}: not found")), "{outcome}");
        assert!(outcome.stdout.is_empty(), "{outcome}");
    }
    assert_eq!(scene.remains(), Vec::<String>::new());
}

#[test]
fn a_program_that_cannot_be_executed_gives_126_and_leaves_nothing() {
    let scene = Scene::new();
    let file = scene.file("not-a-program", "just text\n").display().to_string();
    let outcome = scene.exec().run(&[file.as_str()]).ended_with(126);
    assert!(outcome.stderr.contains("cannot be executed (Permission denied"), "{outcome}");
    scene.exec().run(&["/"]).ended_with(126);
    assert_eq!(scene.remains(), Vec::<String>::new());
}

#[test]
fn standard_streams_are_the_workloads_alone() {
    let scene = Scene::new();
    let octets: Vec<u8> = (0..=u8::MAX).cycle().take(300_000).collect();
    let outcome = scene.exec().stdin(octets.clone()).run(&["cat"]).ended_with(0);
    assert!(outcome.stdout == octets, "stdin comes out of stdout octet for octet");
    let outcome =
        scene.exec().option("--no-summary").run(&["sh", "-c", "echo out; echo err >&2"]).ended_with(0);
    assert_eq!((outcome.text().as_str(), outcome.stderr.as_str()), ("out\n", "err\n"));
}

#[test]
fn a_closed_stdin_is_an_end_of_file() {
    let scene = Scene::new();
    let outcome = scene.exec().stdin("").run(&["sh", "-c", "cat; echo done"]).ended_with(0);
    assert_eq!(outcome.text(), "done\n");
}

#[test]
fn directory_arguments_and_environment_reach_the_workload() {
    let scene = Scene::new();
    let script =
        r#"pwd; printf '%s|' "$0" "$@"; echo; echo "$SEEN $SLUICE_SANDBOX"; env | grep -i _proxy | sort"#;
    let outcome = scene.exec().env("SEEN", "as set").run(&["sh", "-c", script, "", "two words", "*", "--"]);
    let text = outcome.ended_with(0).text();
    let mut lines = text.lines();
    assert_eq!(lines.next(), scene.dir().to_str());
    assert_eq!(lines.next(), Some("|two words|*|--|"));
    assert_eq!(lines.next(), Some(format!("as set {}", scene.name()).as_str()));
    let variables: Vec<&str> = lines.collect();
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        assert!(
            variables.contains(&format!("{name}=http://10.200.0.1:3128").as_str()),
            "{name} in {variables:?}"
        );
    }
    for name in ["NO_PROXY", "no_proxy"] {
        assert!(
            variables.contains(&format!("{name}=localhost,127.0.0.1,::1").as_str()),
            "{name} in {variables:?}"
        );
    }
    assert!(variables.contains(&"NODE_USE_ENV_PROXY=1"), "{variables:?}");
}

#[test]
fn signals_to_sluice_reach_the_workload() {
    let scene = Scene::new();
    for (signal, name) in [(Signal::SIGTERM, "TERM"), (Signal::SIGINT, "INT"), (Signal::SIGHUP, "HUP")] {
        let script =
            format!("trap 'echo got {name}; exit 7' {name}; echo ready; while :; do read -r line; done");
        let running = scene.exec().start(&["bash", "-c", &script]);
        running.hear("ready");
        running.signal(signal);
        let outcome = running.finish().ended_with(7);
        assert!(outcome.text().contains(&format!("got {name}")), "{outcome}");
    }
    assert_eq!(scene.remains(), Vec::<String>::new());
}

#[test]
fn the_terminal_is_the_workloads() {
    let scene = Scene::new();
    let script = "test -t 0 && test -t 1 && test -t 2 && stty size";
    let line = scene.exec().option("--no-summary").command_line(&["sh", "-c", script]);
    let outcome = on_terminal(&scene, &line, "", "");
    assert_eq!(outcome.code, 0, "{outcome}");
    assert_eq!(outcome.text().trim(), "24 80");
}

#[test]
fn control_c_typed_at_the_terminal_ends_the_workload_and_everything_is_tidied() {
    let scene = Scene::new();
    let script = "sleep 1000 & echo ready; wait";
    let line = scene.exec().command_line(&["bash", "-c", script]);
    let outcome = on_terminal(&scene, &line, "ready", "\u{3}");
    assert_eq!(outcome.code, 130, "{outcome}");
    assert!(outcome.text().contains("0 allowed, 0 denied, 0 bypass attempts"), "{outcome}");
    assert_eq!(scene.remains(), Vec::<String>::new());
    assert_eq!(processes_of(scene.name()), Vec::<u32>::new());
}

/// Runs a command line on a terminal of 80 columns; types `keys` once `mark` has appeared. The exit code and all that
/// appeared on the terminal come back.
fn on_terminal(scene: &Scene, line: &[String], mark: &str, keys: &str) -> Outcome {
    const TERMINAL: &str = include_str!("e2e/programs/terminal.py");
    let mut whole = vec![python(), "-c", TERMINAL, mark, keys];
    whole.extend(line.iter().map(String::as_str));
    run(scene, &whole)
}
