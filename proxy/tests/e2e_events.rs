//! Events and summary: what a shipper reads, and what a person reads. (Every event of every end-to-end test is held
//! against the contract; here is the rest of it.)

mod e2e;

use e2e::*;

#[test]
fn a_run_begins_and_ends_with_its_sandbox() {
    let (scene, origin) = (Scene::new(), HttpOrigin::start());
    let outcome = scene.exec().open().run(&["curl", "-sS", &origin.url("origin.test", "/")]).ended_with(0);
    let kinds: Vec<&str> = outcome.events.iter().filter_map(|event| event["event"].as_str()).collect();
    assert_eq!(kinds, ["sandbox.started", "request.allowed", "sandbox.stopped"]);
    assert!(outcome.events.iter().all(|event| event["sandbox"] == scene.name()), "{outcome}");
    let times: Vec<&str> = outcome.events.iter().filter_map(|event| event["time"].as_str()).collect();
    assert!(times.is_sorted(), "{times:?}");
}

#[test]
fn events_on_stdout_are_lines_among_the_workloads_own() {
    let scene = Scene::new();
    let exec = scene.exec().without_events_file().option("--events").option("-");
    let outcome =
        exec.run(&["sh", "-c", "echo own line; curl -s http://denied.test/ -o /dev/null"]).ended_with(0);
    let (own, events): (Vec<String>, Vec<String>) =
        outcome.text().lines().map(str::to_owned).partition(|line| !line.starts_with('{'));
    assert_eq!(own, ["own line"]);
    let events = assert_contract(&format!("{}\n", events.join("\n")));
    assert_eq!(events.len(), 3, "{outcome}");
    assert_eq!(events[1]["event"], "request.denied");
}

#[test]
fn events_are_appended_to_a_file_that_is_there() {
    let scene = Scene::new();
    let path = scene.dir().join("events").display().to_string();
    for _ in 0..2 {
        scene.exec().without_events_file().option("--events").option(&path).run(&["true"]).ended_with(0);
    }
    let events = assert_contract(&std::fs::read_to_string(path).expect("read events"));
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["event"].as_str()).collect();
    assert_eq!(kinds, ["sandbox.started", "sandbox.stopped", "sandbox.started", "sandbox.stopped"]);
}

#[test]
fn events_that_cannot_be_written_stop_the_start() {
    let scene = Scene::new();
    let exec = scene.exec().without_events_file().option("--events").option("/no/such/directory/events");
    let outcome = exec.run(&["echo", "ran"]).ended_with(70);
    assert!(outcome.stdout.is_empty(), "it did not run: {outcome}");
    assert!(outcome.stderr.contains("/no/such/directory/events"), "{outcome}");
    assert!(outcome.stderr.contains("create its directory"), "the remedy: {outcome}");
}

#[test]
fn the_summary_counts_what_was_allowed_denied_and_bypassed() {
    let (scene, origin) = (Scene::new(), HttpOrigin::start());
    let policy = format!(
        "version: 1\nnetwork_policies:\n  origin:\n    endpoints:\n      - {{ host: origin.test, port: {} }}\n",
        origin.port()
    );
    let url = origin.url("origin.test", "/");
    let script = format!(
        "for n in 1 2 3; do curl -s {url}; done; curl -s http://denied.test/; curl -s http://denied.test/; \
         curl -s --noproxy '*' http://192.0.2.1/; true"
    );
    let outcome = scene.exec().policy(&policy).permit_loopback().run(&["sh", "-c", &script]).ended_with(0);
    let summary = outcome.stderr.split_once("sluice: ").expect("a summary").1;
    assert!(summary.starts_with("3 allowed, 2 denied, 1 bypass attempt refused\n"), "{outcome}");
    let rows: Vec<Vec<&str>> = summary.lines().map(|line| line.split_whitespace().collect()).collect();
    let row = |stage: &str| {
        let row = rows.iter().find(|row| row.first() == Some(&stage));
        row.unwrap_or_else(|| panic!("no row {stage}: {outcome}"))
    };
    let curl = program("curl");
    for (stage, how, destination, why, times) in [
        ("allowed", "GET", origin.at("origin.test"), "origin", "3"),
        ("denied", "GET", "denied.test:80".to_owned(), "host_not_allowed", "2"),
        ("BYPASS", "tcp", "192.0.2.1:80".to_owned(), "direct_tcp", "1"),
    ] {
        let row = row(stage);
        assert_eq!((row[1], row[2], row[3]), (how, destination.as_str(), curl.as_str()), "{outcome}");
        assert_eq!(row[row.len() - 2..], [why, times], "{outcome}");
    }
    assert_eq!(summary.matches("hint: ").count(), 2, "one a kind of refusal: {outcome}");
}

#[test]
fn without_a_summary_a_quiet_run_says_nothing() {
    let scene = Scene::new();
    let outcome = scene.exec().option("--no-summary").run(&["true"]).ended_with(0);
    assert_eq!((outcome.text().as_str(), outcome.stderr.as_str()), ("", ""));
}

#[test]
fn a_refusal_is_said_once_in_words_however_often_it_happens() {
    let scene = Scene::new();
    let script = "for n in 1 2 3 4 5; do curl -s http://denied.test/ -o /dev/null; done";
    let outcome = scene.exec().option("--no-summary").run(&["sh", "-c", script]).ended_with(0);
    assert_eq!(outcome.stderr.matches("denied via proxy GET denied.test:80").count(), 1, "{outcome}");
    assert_eq!(outcome.attempts("request.denied"), 5, "{outcome}");
    let line = outcome.stderr.lines().next().expect("a line");
    for part in ["WARN", "reason=host_not_allowed", &format!("process={}", program("curl")), "hint="] {
        assert!(line.contains(part), "{part} in {line}");
    }
}

#[test]
fn what_a_client_sends_cannot_act_on_the_operators_terminal() {
    let scene = Scene::new();
    let script = "cp \"$0\" \"$(printf './e\\033[31mvil')\" && ./e*vil -s http://denied.test/ -o /dev/null; \
        ./e*vil -s --noproxy '*' http://192.0.2.1/; true";
    let outcome = scene.exec().run(&["sh", "-c", script, &program("curl")]).ended_with(0);
    assert_eq!(outcome.events_of("request.denied").len(), 1, "{outcome}");
    assert_eq!(outcome.events_of("bypass.detected").len(), 1, "{outcome}");
    assert!(!outcome.stderr.contains('\u{1b}'), "{:?}", outcome.stderr);
    let exe = outcome.the("request.denied")["process"]["exe"].as_str().expect("a path").to_owned();
    assert!(exe.contains('\u{1b}'), "the event has it as it is, escaped by JSON: {exe:?}");
}
