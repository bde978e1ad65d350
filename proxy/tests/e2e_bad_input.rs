//! Bad input stops a start, with everything that is wrong said at once, and with the right exit code.

mod e2e;

use e2e::*;

/// Every line has at least one error.
const BAD_POLICY: &str = "version: 1
network_polices: {}
network_policies:
  a:
    endpoints:
      - host: x.test
        port: 70000
      - host: y.test
        port: 443
        allowed_ips: [10.0.0.0/33]
    endpoints: []
";

/// The places in [`BAD_POLICY`] that must be named.
const PLACES: [(&str, &str); 4] =
    [("2:1", "network_polices"), ("7:15", "70000"), ("10:23", "10.0.0.0/33"), ("11:5", "endpoints")];

/// Runs `sluice` in a scene.
fn sluice_says(scene: &Scene, args: &[&str]) -> Outcome {
    let binary = sluice().display().to_string();
    let line: Vec<&str> = std::iter::once(binary.as_str()).chain(args.iter().copied()).collect();
    run(scene, &line)
}

#[track_caller]
fn assert_places(outcome: &Outcome, file: &str, places: &[(&str, &str)]) {
    for (place, word) in places {
        let start = format!("{file}:{place}: error: ");
        let line = outcome.stderr.lines().find(|line| line.starts_with(&start));
        let line = line.unwrap_or_else(|| panic!("nothing said of {place}\n{outcome}"));
        assert!(line.contains(word), "{line}");
    }
    let errors = outcome.stderr.lines().filter(|line| line.contains(": error: ")).count();
    assert_eq!(errors, places.len(), "{outcome}");
}

#[test]
fn a_bad_policy_stops_exec_with_every_error_and_its_place() {
    let scene = Scene::new();
    let outcome = scene.exec().policy(BAD_POLICY).run(&["echo", "ran"]).ended_with(78);
    let file = scene.dir().join("policy.yaml").display().to_string();
    assert_places(&outcome, &file, &PLACES);
    assert!(outcome.stderr.contains("did you mean \"network_policies\"?"), "{outcome}");
    assert!(outcome.stdout.is_empty(), "it did not run: {outcome}");
    assert_eq!(scene.remains(), Vec::<String>::new());
}

#[test]
fn check_and_explain_say_the_same_of_a_bad_policy() {
    let scene = Scene::new();
    let file = scene.file("bad.yaml", BAD_POLICY).display().to_string();
    assert_places(&sluice_says(&scene, &["check", &file]).ended_with(78), &file, &PLACES);
    let explain = ["explain", "--policy", &file, "CONNECT", "x.test:443"];
    assert_places(&sluice_says(&scene, &explain).ended_with(78), &file, &PLACES);
}

#[test]
fn a_file_that_is_missing_or_no_yaml_is_named() {
    let scene = Scene::new();
    let missing = scene.dir().join("missing.yaml").display().to_string();
    for args in [&["check", &missing][..], &["exec", "--policy", &missing, "--", "true"]] {
        let outcome = sluice_says(&scene, args).ended_with(78);
        assert!(outcome.stderr.contains(&format!("{missing}: error: ")), "{outcome}");
        assert!(outcome.stderr.contains("No such file"), "{outcome}");
    }
    let torn = scene.file("torn.yaml", "version: 1\nnetwork_policies: [\n").display().to_string();
    let outcome = sluice_says(&scene, &["check", &torn]).ended_with(78);
    assert!(outcome.stderr.starts_with(&format!("{torn}:")), "{outcome}");
}

#[test]
fn check_tells_policies_from_configurations_and_says_what_it_found() {
    let scene = Scene::new();
    let policy = scene.file(
        "policy.yaml",
        "version: 1\nnetwork_policies:\n  a:\n    endpoints: [{ host: x.test, ports: [80, 443] }]\n",
    );
    let policy = policy.display().to_string();
    let outcome = sluice_says(&scene, &["check", &policy]).ended_with(0);
    assert_eq!(outcome.text(), format!("{policy}: a policy: 1 rule, 1 endpoint, for any program\n"));

    let text =
        "listen: 127.0.0.1:3128\nsandboxes:\n  - { name: a, source: 127.0.0.1/32, policy: policy.yaml }\n";
    let config = scene.file("config.yaml", text).display().to_string();
    let outcome = sluice_says(&scene, &["check", &config]).ended_with(0);
    assert!(outcome.text().starts_with(&format!("{config}: a configuration: 1 sandbox, ")), "{outcome}");
}

#[test]
fn check_finds_everything_wrong_with_a_configuration() {
    let scene = Scene::new();
    let text = "listen: 127.0.0.1:3128
wokers: 2
permit_special_addresses: [127.0.0.0/40]
sandboxes:
  - { name: a, source: 127.0.0.1/32, policy: open }
  - { name: a, source: 127.0.0.2/32, policy: nowhere.yaml }
";
    let file = scene.file("config.yaml", text).display().to_string();
    let outcome = sluice_says(&scene, &["check", &file]).ended_with(78);
    for (line, word) in [("2:", "workers"), ("3:", "127.0.0.0/40"), ("6:", "\"a\""), ("6:", "nowhere.yaml")] {
        let start = format!("{file}:{line}");
        let said = outcome.stderr.lines().any(|said| said.starts_with(&start) && said.contains(word));
        assert!(said, "nothing said of line {line} {word}\n{outcome}");
    }
}

#[test]
fn wrong_usage_gives_64_and_says_how_it_is_right() {
    let scene = Scene::new();
    for args in [
        &["exec"][..],
        &["exec", "--bogus", "--", "true"],
        &["exec", "--name", "no/slash", "--", "true"],
        &["exec", "--permit-special", "127.0.0.0/40", "--", "true"],
        &["exec", "--user", "no-such-user", "--", "true"],
        &["exec", "--user", "nobody:no-such-group", "--", "true"],
        &["explain", "--policy", "open", "CONNECT", "no-port.test"],
        &["explain", "--policy", "open", "GET", "no-scheme.test"],
        &["frobnicate"],
        &[],
    ] {
        let outcome = sluice_says(&scene, args);
        assert_eq!(outcome.code, 64, "{args:?}\n{outcome}");
        assert!(!outcome.stderr.is_empty(), "{args:?}\n{outcome}");
    }
    assert_eq!(scene.remains(), Vec::<String>::new());
}

#[test]
fn help_and_version_are_no_errors() {
    let scene = Scene::new();
    let help = sluice_says(&scene, &["--help"]).ended_with(0);
    for command in ["exec", "serve", "check", "explain", "doctor", "demo"] {
        assert!(help.text().contains(&format!("\n  {command} ")), "{help}");
    }
    let version = sluice_says(&scene, &["--version"]).ended_with(0);
    assert_eq!(version.text(), format!("sluice {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn explain_gives_the_decision_the_rule_and_an_exit_code() {
    let scene = Scene::new();
    let text = "version: 1\nnetwork_policies:\n  only_curl:\n    endpoints: [{ host: x.test, port: 443 }]\n    \
        binaries: [{ path: /usr/bin/curl }]\n";
    let file = scene.file("policy.yaml", text).display().to_string();
    let ask = |rest: &[&str]| {
        let mut args = vec!["explain", "--policy", &file];
        args.extend(rest);
        sluice_says(&scene, &args)
    };
    let yes = ask(&["--binary", "/usr/bin/curl", "CONNECT", "x.test:443"]).ended_with(0);
    assert!(yes.text().starts_with("allowed\n"), "{yes}");
    assert!(yes.text().contains("only_curl") && yes.text().contains(&format!("{file}:4:")), "{yes}");
    let child = ["--binary", "/usr/bin/git", "--ancestor", "/usr/bin/curl", "CONNECT", "x.test:443"];
    ask(&child).ended_with(0);
    let no = ask(&["--binary", "/usr/bin/wget", "CONNECT", "x.test:443"]).ended_with(1);
    assert!(no.text().starts_with("denied (binary_not_allowed)\n"), "{no}");
    let unknown = ask(&["CONNECT", "x.test:443"]).ended_with(1);
    assert!(unknown.text().starts_with("denied (identity_unknown)\n"), "{unknown}");
    let port = ask(&["--binary", "/usr/bin/curl", "CONNECT", "x.test:80"]).ended_with(1);
    assert!(port.text().starts_with("denied (port_not_allowed)\n"), "{port}");
}

/// Runs `sluice` as a user that is not root.
fn as_nobody(scene: &Scene, args: &[&str]) -> Outcome {
    // Where the binary is built, not everybody may look.
    let copy = scene.dir().join("sluice").display().to_string();
    if !std::path::Path::new(&copy).exists() {
        // By another process: a descriptor of ours that writes to it could be inherited by what another test starts (ETXTBSY).
        let copied = std::process::Command::new("cp").arg(sluice()).arg(&copy).status();
        assert!(copied.expect("cp").success(), "copy the binary");
    }
    let drop = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", &copy];
    run(scene, &[&drop, args].concat())
}

#[test]
fn without_root_exec_names_the_capabilities_it_lacks() {
    let scene = Scene::new();
    let outcome = as_nobody(&scene, &["exec", "--", "echo", "ran"]).ended_with(69);
    assert!(outcome.stdout.is_empty(), "it did not run: {outcome}");
    for capability in ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"] {
        assert!(outcome.stderr.contains(capability), "{outcome}");
    }
    assert!(outcome.stderr.contains("run as root"), "the remedy: {outcome}");
    assert!(outcome.stderr.contains("sluice: this machine lacks: privileges"), "{outcome}");
}

#[test]
fn without_root_check_and_explain_work_and_doctor_says_what_is_missing() {
    let scene = Scene::new();
    let file = scene.file("policy.yaml", "version: 1\nnetwork_policies: {}\n").display().to_string();
    as_nobody(&scene, &["check", &file]).ended_with(0);
    as_nobody(&scene, &["explain", "--policy", "open", "CONNECT", "x.test:443"]).ended_with(0);
    let outcome = as_nobody(&scene, &["doctor"]).ended_with(69);
    assert!(outcome.text().contains("MISSING") && outcome.text().contains("CAP_SYS_ADMIN"), "{outcome}");
}

#[test]
fn without_the_capability_for_the_kernel_log_doctor_says_that_nflog_is_usable() {
    let scene = Scene::new();
    let says = |args: &[&str]| {
        run(
            &scene,
            &[&["setpriv", "--bounding-set", "-syslog", &sluice().display().to_string(), "doctor"], args]
                .concat(),
        )
    };
    let outcome = says(&[]).ended_with(69);
    assert!(
        outcome.text().contains("CAP_SYSLOG") && outcome.text().contains("bypass_source: nflog"),
        "{outcome}"
    );
    let json = says(&["--json"]).ended_with(69);
    let findings: Vec<serde_json::Value> = serde_json::from_slice(&json.stdout).expect("a list");
    let nflog =
        findings.iter().find(|finding| finding["name"] == "nflog").expect("it is looked at all the same");
    assert_eq!(nflog["ok"], true, "{nflog}");
    says(&["--bypass-source", "nflog"]).ended_with(0);
}

#[test]
fn doctor_finds_everything_on_a_machine_where_exec_works() {
    let scene = Scene::new();
    let outcome = sluice_says(&scene, &["doctor"]).ended_with(0);
    assert!(!outcome.text().contains("MISSING"), "{outcome}");
    let json = sluice_says(&scene, &["doctor", "--json"]).ended_with(0);
    let findings: Vec<serde_json::Value> = serde_json::from_slice(&json.stdout).expect("a list");
    let names: Vec<&str> = findings.iter().filter_map(|finding| finding["name"].as_str()).collect();
    for name in ["privileges", "io_uring", "nft", "kmsg", "kernel log from namespaces"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    let required = findings.iter().filter(|finding| finding["need"] == "required");
    assert!(required.clone().count() >= 5 && required.clone().all(|finding| finding["ok"] == true), "{json}");
}
