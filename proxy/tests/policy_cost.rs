//! What a decision costs: no allocation on the way to a plain permit, and the same time whatever the size of the
//! policy. Absolute figures are asserted in release builds only; `make bench` prints them (`benches/policy.rs`).

#![allow(clippy::unwrap_used, reason = "a test fails where it must")]

mod policy_sized;

use std::hint::black_box;
use std::time::{Duration, Instant};

use policy_sized::{allocations, asker, destinations, load, questions, quickest, text};
use sluice::policy::{Ask, Asker, Policy, decide};

#[test]
fn a_plain_permit_allocates_nothing() {
    let policy = Policy::compile(&load(&text(10_000, 10)));
    let set = asker(&policy);
    let destinations = destinations();
    for (what, destination, kind) in questions(&destinations) {
        let ask = Ask { destination, asker: Asker::Known(&set), kind };
        let before = allocations();
        let permit = decide(&policy, &ask);
        let admits = permit
            .as_ref()
            .is_ok_and(|permit| permit.admits("192.0.2.1".parse().unwrap(), sluice::address::Reach::Public));
        let used = allocations() - before;
        assert!(permit.is_ok() && admits, "{what}");
        drop(permit);
        assert_eq!(used, 0, "{what}");
    }
}

#[test]
fn a_decision_costs_the_same_whatever_the_size_of_the_policy() {
    let small = Policy::compile(&load(&text(10, 10)));
    let large = Policy::compile(&load(&text(10_000, 10)));
    let (of_small, of_large) = (asker(&small), asker(&large));
    let destinations = destinations();
    for (what, destination, kind) in questions(&destinations) {
        let ten = quickest(&small, &of_small, destination, kind);
        let many = quickest(&large, &of_large, destination, kind);
        let ratio = many.as_secs_f64() / ten.as_secs_f64();
        println!(
            "{what}: {} ns with 10 endpoints, {} ns with 10,000, {ratio:.2} x",
            ten.as_nanos(),
            many.as_nanos()
        );
        // The aim is 1.2 on a quiet machine; a linear search would be hundreds.
        assert!(ratio < 2.0, "{what}: {ratio:.2} x");
        #[cfg(not(debug_assertions))]
        assert!(many < Duration::from_nanos(300), "{what}: {many:?}");
    }
}

#[test]
fn ten_thousand_endpoints_compile_in_no_time() {
    let text = text(10_000, 10);
    let start = Instant::now();
    let file = load(&text);
    let loaded = start.elapsed();
    let compile = || {
        let start = Instant::now();
        black_box(Policy::compile(&file));
        start.elapsed()
    };
    let compiled = (0..5).map(|_| compile()).min().unwrap_or_default();
    println!("{} KiB of YAML: read in {loaded:?}, compiled in {compiled:?}", text.len() / 1024);
    #[cfg(not(debug_assertions))]
    assert!(compiled + loaded < Duration::from_millis(200), "{loaded:?} + {compiled:?}");
    assert!(compiled < Duration::from_secs(2), "{compiled:?}");
}
