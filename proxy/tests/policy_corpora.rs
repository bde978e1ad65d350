//! Replays the fuzz corpora of policies and configurations, on the stable compiler and without libFuzzer.

#![allow(clippy::unwrap_used, reason = "a test fails where it must")]

#[path = "entry_points/policy.rs"]
mod policy;
mod policy_naive;

use std::fs;
use std::path::Path;

fn replay(target: &str, check: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut replayed = 0;
    for entry in fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{}: {error}", corpus.display())) {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        check(&fs::read(&path).unwrap());
        replayed += 1;
    }
    assert!(replayed > 0, "{} is empty", corpus.display());
}

#[test]
fn policies() {
    replay("policy", policy::policy);
}

#[test]
fn configurations() {
    replay("config", policy::config);
}
