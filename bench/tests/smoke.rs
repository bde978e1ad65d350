//! Every workload over the least proxy, for a fixed small number of operations: counts add up and nothing fails.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::process::{Command, Output};

use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sluice-bench")).args(arguments).output().unwrap()
}

/// Runs over `subject` and returns the outcome; fails the test unless the exit code is 0.
fn outcome(subject: &str, arguments: &[&str]) -> Value {
    let mut all = vec!["--json", "--subject", subject];
    all.extend(arguments);
    let output = bench(&all);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}{}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn figure(outcome: &Value, name: &str) -> f64 {
    let figures = outcome["figures"].as_array().unwrap();
    let found = figures.iter().find(|figure| figure["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {outcome}"))["value"].as_f64().unwrap()
}

/// A workload of requests: exactly the operations asked for, each with a latency, none failed.
fn assert_counts(subject: &str, arguments: &[&str]) {
    let mut all = vec!["--operations", "300"];
    all.extend(arguments);
    let outcome = outcome(subject, &all);
    assert_eq!(outcome["operations"], 300, "{arguments:?}");
    assert_eq!(outcome["latency"]["count"], 300, "{arguments:?}");
    assert_eq!(outcome["errors"], 0, "{arguments:?}");
    assert!(figure(&outcome, "cpu_per_op") > 0.0, "{arguments:?}");
}

#[test]
fn workloads_of_requests_complete_what_was_asked() {
    assert_counts("least", &["connect", "--clients", "8"]);
    assert_counts("least", &["pingpong", "--tunnels", "8"]);
    assert_counts("least", &["http", "--connections", "8"]);
    assert_counts("least", &["http", "--connections", "8", "--body", "65536"]);
    assert_counts("least", &["http", "--connections", "8", "--new-connection"]);
    assert_counts("least", &["ws", "--tunnels", "8"]);
    assert_counts("least", &["ws", "--tunnels", "8", "--in-tunnel"]);
}

#[test]
fn several_load_threads_share_the_work() {
    assert_counts("least", &["--load-cores", "0,0", "pingpong", "--tunnels", "8"]);
    assert_counts("least", &["--load-cores", "0,0,0,0", "connect", "--clients", "5"]);
}

#[test]
fn an_open_loop_completes_what_was_asked_too() {
    assert_counts("least", &["--rate", "3000", "pingpong", "--tunnels", "8"]);
    assert_counts("least", &["--rate", "1500", "connect", "--clients", "8"]);
}

#[test]
fn bulk_moves_every_byte_both_ways_over_every_reference() {
    for reference in [
        "least",
        "epoll-splice",
        "epoll-copy",
        "raw-uring",
        "monoio-copy",
        "monoio-copy-default",
        "tokio-uring-copy",
    ] {
        for direction in ["down", "up"] {
            let outcome =
                outcome(reference, &["bulk", "--gb", "0.03", "--tunnels", "3", "--direction", direction]);
            assert_eq!(outcome["bytes"], 30_000_000, "{reference} {direction}");
            assert_eq!(outcome["operations"], 3, "{reference} {direction}");
            assert_eq!(outcome["errors"], 0, "{reference} {direction}");
        }
    }
}

#[test]
fn every_reference_opens_and_closes_tunnels() {
    for reference in
        ["epoll-splice", "epoll-copy", "raw-uring", "monoio-copy", "monoio-copy-default", "tokio-uring-copy"]
    {
        assert_counts(reference, &["connect", "--clients", "8"]);
        assert_counts(reference, &["pingpong", "--tunnels", "8"]);
    }
}

#[test]
fn idle_counts_two_sockets_a_tunnel() {
    let outcome = outcome("least", &["idle", "--tunnels", "200"]);
    assert_eq!(outcome["operations"], 200);
    assert!((figure(&outcome, "descriptors_per_tunnel") - 2.0).abs() < 0.1, "{outcome}");
    assert!(figure(&outcome, "pss_per_tunnel") < 64.0, "{outcome}");
}

#[test]
fn mixed_sees_latencies_and_bulk() {
    let outcome = outcome(
        "raw-uring",
        &["--seconds", "0.3", "--warm-up", "0.1", "mixed", "--tunnels", "4", "--bulk", "2"],
    );
    assert_eq!(outcome["errors"], 0);
    assert!(figure(&outcome, "p999_ratio") > 0.0);
    assert!(figure(&outcome, "bulk_beside") > 0.0);
}

#[test]
fn a_comparison_has_a_ratio_for_each_yardstick_and_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let results = folder.path().to_str().unwrap();
    let output = bench(&[
        "--json",
        "--subject",
        "epoll-copy",
        "--operations",
        "200",
        "compare",
        "--against",
        "least,raw-uring",
        "--rounds",
        "2",
        "--results",
        results,
        "pingpong",
        "--tunnels",
        "4",
    ]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    let against: Vec<&str> =
        shown["ratios"].as_array().unwrap().iter().map(|ratio| ratio["against"].as_str().unwrap()).collect();
    assert_eq!(against, ["least", "raw-uring"]);
    assert!(shown["ratios"][0]["ratio"]["of_medians"].as_f64().unwrap() > 0.0);
    assert_eq!(shown["runs"][2]["outcomes"].as_array().unwrap().len(), 2);

    let kept = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let kept: Value = serde_json::from_slice(&std::fs::read(kept).unwrap()).unwrap();
    assert_eq!(kept, shown);
    assert!(kept["machine"]["kernel"].is_string());
}

#[test]
fn failed_operations_are_counted_and_make_the_exit_code_non_zero() {
    // A reference that forwards no GETs answers 400 to each.
    let output =
        bench(&["--json", "--subject", "epoll-copy", "--operations", "50", "http", "--connections", "2"]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("status 400 where 200 was expected"), "{said}");
}

#[test]
fn a_proxy_without_policy_is_not_asked_to_refuse() {
    let output = bench(&["--subject", "least", "--operations", "1", "deny"]);
    assert_eq!(output.status.code(), Some(70));
    assert!(String::from_utf8_lossy(&output.stderr).contains("least has no policy"));
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    assert_eq!(bench(&["--subject", "nobody", "pingpong"]).status.code(), Some(64));
    assert_eq!(bench(&["--help"]).status.code(), Some(0));
}
