//! What the configuration loader refuses, in which words, at which place; in all the files it touches, at once.

#![allow(clippy::unwrap_used, reason = "a test fails where it must")]

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use sluice::config::{Config, Core, EventSink, IdentityMode, Workers, is_name, load, parse};
use sluice::diagnostic::{Diagnostics, Severity};
use sluice::policy::Source;

/// Parses `text` as `etc/sluice.yaml`, with these other files around.
fn config(text: &str, files: &[(&str, &str)]) -> (Option<Config>, Vec<String>) {
    let files: HashMap<_, _> = files.iter().copied().collect();
    let read = |path: &Path| {
        let text = files.get(path.to_str().unwrap());
        text.map(ToString::to_string).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    };
    let mut out = Diagnostics::default();
    let config = parse(text, &"etc/sluice.yaml".into(), &read, &mut out);
    (config, out.of(Severity::Error).iter().map(ToString::to_string).collect())
}

#[test]
fn the_contracts_example_is_read_as_written() {
    let text = "\
proxy_address: 10.200.0.1:3128
listen: 127.0.0.1:3128
workers: 3
bypass_core: 1
admin_socket: /run/sluice/admin.sock
metrics: 127.0.0.1:9464
events: /var/log/sluice/events.ndjson
state_dir: /run/sluice
permit_special_addresses: [127.0.0.0/8]
refusal_hint: write to egress@corp.example
timeouts: {dial: 500ms, idle_tunnel: 2h}
limits: {head_bytes: 65536}
sandboxes:
  - name: bench
    source: 127.0.0.1/32
    identity: process
    policy: bench.yaml
    limits: {connections: 4096, requests_per_s: 0, bytes_per_s: 0}
";
    let policy = "version: 1\nnetwork_policies: {r: {endpoints: [{host: a.b, port: 1}]}}\n";
    let (config, errors) = config(text, &[("etc/bench.yaml", policy)]);
    assert_eq!(errors, [""; 0]);
    let config = config.unwrap();
    assert_eq!(config.workers, Workers::Count(3));
    assert_eq!(config.bypass_core, Core::Pinned(1));
    assert_eq!(config.events, EventSink::File("/var/log/sluice/events.ndjson".into()));
    assert_eq!(config.limits.dial, Duration::from_millis(500));
    assert_eq!(config.limits.head_bytes, 65_536);
    assert_eq!(config.refusal_hint.as_deref(), Some("write to egress@corp.example"));
    let [sandbox] = &*config.sandboxes else { panic!() };
    assert_eq!((&*sandbox.name, sandbox.identity), ("bench", IdentityMode::Process));
    let source = "127.0.0.1/32".parse().unwrap();
    assert_eq!(sandbox.shape, sluice::config::Shape::External { source, link: None });
    assert_eq!(sandbox.policy_source, Source::File("etc/bench.yaml".into()));
    assert_eq!((sandbox.place.line, sandbox.place.column), (14, 5));
    assert_eq!(sandbox.policy.rules.len(), 1);
}

#[test]
fn an_empty_mapping_is_the_defaults() {
    let (config, errors) = config("{}\n", &[]);
    assert_eq!((config, errors), (Some(Config::default()), vec![]));
}

#[test]
fn all_errors_of_all_files_come_at_once() {
    let text = "\
listen: 127.0.0.1
metricss: 127.0.0.1:9464
permit_special_addresses: [127.0.0.1/8, x]
timeouts: {dial: 10, head_read: \"0\"}
limits: {head_bytes: 10}
sandboxes:
  - name: a
    source: 10.0.0.1
    policy: bad.yaml
  - name: a
    source: 10.0.0.1/32
    policy: missing.yaml
  - name: -b
    source: 10.0.0.0/33
    identity: proces
    policy: bad.yaml
  - source: 10.0.0.3
    polcy: open
";
    let policy = "version: 1\nnetwork_policies:\n  r:\n    endpoints: [{hots: a.b, port: 1}]\n";
    let (_, errors) = config(text, &[("etc/bad.yaml", policy)]);
    assert_eq!(
        errors,
        [
            "etc/bad.yaml:4:18: error: unknown key \"hots\"; did you mean \"host\"?",
            "etc/sluice.yaml:1:9: error: expected an address and a port such as 127.0.0.1:3128, found \"127.0.0.1\"",
            "etc/sluice.yaml:2:1: error: unknown key \"metricss\"; did you mean \"metrics\"?",
            "etc/sluice.yaml:3:28: error: 127.0.0.1/8 has bits beyond its prefix; did you mean \"127.0.0.0/8\"?",
            "etc/sluice.yaml:3:41: error: expected an address or a CIDR block such as 10.0.0.0/8, found \"x\"",
            "etc/sluice.yaml:4:18: error: expected a duration such as 500ms, 30s, 5m, 2h or 1d, found \"10\"",
            "etc/sluice.yaml:4:33: error: head_read must be longer than nothing",
            "etc/sluice.yaml:5:22: error: expected a number from 8192 to 1048576, found \"10\"",
            "etc/sluice.yaml:10:11: error: duplicate sandbox \"a\", first on line 7",
            "etc/sluice.yaml:11:13: error: 10.0.0.1/32 is the source of the sandbox on line 8 already",
            "etc/sluice.yaml:12:13: error: cannot read the policy etc/missing.yaml: entity not found",
            "etc/sluice.yaml:13:11: error: \"-b\" cannot name a sandbox; use letters, digits, \".\", \"_\" and \"-\", \
             beginning with a letter or digit, 40 at most",
            "etc/sluice.yaml:14:13: error: expected an address or a CIDR block such as 10.0.0.0/8, found \"10.0.0.0/33\"",
            "etc/sluice.yaml:15:15: error: expected process or uid or off, found \"proces\"; did you mean \"process\"?",
            "etc/sluice.yaml:17:5: error: the key \"name\" is missing",
            "etc/sluice.yaml:18:5: error: unknown key \"polcy\"; did you mean \"policy\"?",
        ]
    );
}

#[test]
fn a_policy_that_names_binaries_needs_identity() {
    let policy =
        "version: 1\nnetwork_policies: {r: {endpoints: [{host: a.b, port: 1}], binaries: [{path: /x}]}}\n";
    for mode in ["off", "uid"] {
        let text = format!(
            "listen: 127.0.0.1:1\nsandboxes: [{{name: a, source: 10.0.0.1, identity: {mode}, policy: p.yaml}}]\n"
        );
        let (_, errors) = config(&text, &[("etc/p.yaml", policy)]);
        let column = text.lines().nth(1).unwrap().find("p.yaml").unwrap() + 1;
        assert_eq!(errors.len(), 1, "{errors:#?}");
        let start =
            format!("etc/sluice.yaml:2:{column}: error: the policy names binaries, which cannot be known");
        assert!(errors[0].starts_with(&start), "{start}: {}", errors[0]);
    }
    let text = "listen: 127.0.0.1:1\nsandboxes: [{name: a, source: 10.0.0.1, identity: off, policy: open}]\n";
    assert_eq!(config(text, &[]).1, [""; 0]);
}

#[test]
fn sandboxes_need_the_hosts_listener() {
    let (_, errors) = config("sandboxes: [{name: a, source: 10.0.0.1, policy: open}]\n", &[]);
    assert_eq!(errors.len(), 1);
    assert!(
        errors[0].contains("need the host's listener; write \"listen: 127.0.0.1:3128\""),
        "{}",
        errors[0]
    );
}

#[test]
fn addresses_and_cores_that_cannot_work_are_errors() {
    for (text, error) in [
        ("proxy_address: 127.0.0.1:3128", "cannot be the proxy's address"),
        ("proxy_address: 0.0.0.0:3128", "cannot be the proxy's address"),
        ("proxy_address: 10.200.0.1:0", "expected an address and a port"),
        ("{listen: 127.0.0.1:1, metrics: 127.0.0.1:1}", "is the proxy's listener already"),
        ("{workers: 2, cores: [1]}", "either workers or cores"),
        ("cores: [1, 1]", "core 1 is listed twice"),
        ("cores: []", "the list is empty"),
        ("workers: 0", "expected auto, or a number of workers from 1 to 1024"),
        ("bypass_core: last", "expected auto, or a core from 0 to 1023"),
        ("admin_socket: run/x", "is not absolute"),
        (
            "admin_socket: /run/admin.sock",
            "must lie in state_dir (/run/sluice), which is hidden from workloads",
        ),
        ("admin_socket: /run/sluice/../admin.sock", "must lie in state_dir"),
        ("admin_socket: /run/sluice", "must lie in state_dir"),
        (
            "{state_dir: /run/other, admin_socket: /run/sluice/admin.sock}",
            "write \"admin_socket: /run/other/admin.sock\"",
        ),
        ("refusal_hint: \"a\\nb\"", "expected one line of at most 200 characters"),
    ] {
        let (_, errors) = config(text, &[]);
        assert_eq!(errors.len(), 1, "{text}: {errors:#?}");
        assert!(errors[0].contains(error), "{text}: {}", errors[0]);
    }
}

#[test]
fn the_admin_socket_goes_with_the_state_directory() {
    for (text, socket) in [
        ("workers: 1", "/run/sluice/admin.sock"),
        ("state_dir: /run/other", "/run/other/admin.sock"),
        ("{state_dir: /run/other, admin_socket: /run/other/api/admin.sock}", "/run/other/api/admin.sock"),
    ] {
        let (config, errors) = config(text, &[]);
        assert!(errors.is_empty(), "{text}: {errors:#?}");
        assert_eq!(config.expect("a configuration").admin_socket, Path::new(socket), "{text}");
    }
}

#[test]
fn a_policy_file_is_read_once_however_many_sandboxes_name_it() {
    let reads = std::cell::Cell::new(0);
    let read = |_: &Path| {
        reads.set(reads.get() + 1);
        Ok("version: 1\n".to_owned())
    };
    let text = "listen: 127.0.0.1:1\nsandboxes:\n  - {name: a, source: 10.0.0.1, policy: p.yaml}\n  \
                - {name: b, source: 10.0.0.2, policy: p.yaml}\n";
    let mut out = Diagnostics::default();
    let config = parse(text, &"c.yaml".into(), &read, &mut out).unwrap();
    assert!(!out.has_errors(), "{out}");
    assert_eq!(reads.get(), 1);
    assert!(std::sync::Arc::ptr_eq(&config.sandboxes[0].policy, &config.sandboxes[1].policy));
}

#[test]
fn a_missing_or_binary_file_is_an_error_with_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.yaml");
    let errors = load(&missing).unwrap_err().to_string();
    assert!(
        errors.starts_with(&format!("{}: error: cannot read the configuration: ", missing.display())),
        "{errors}"
    );
    let binary = folder.path().join("binary.yaml");
    std::fs::write(&binary, [0xff, 0xfe, 0]).unwrap();
    let errors = load(&binary).unwrap_err().to_string();
    assert!(errors.contains("valid UTF-8"), "{errors}");
}

#[test]
fn names_of_sandboxes() {
    for good in ["a", "A9", "a.b_c-d", &"x".repeat(40)] {
        assert!(is_name(good), "{good}");
    }
    for bad in ["", "-a", ".a", "_a", "a b", "a/b", "é", "a\n", &"x".repeat(41)] {
        assert!(!is_name(bad), "{bad}");
    }
}
