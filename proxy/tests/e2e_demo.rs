//! The tour runs on any machine, shows what it promises, and leaves nothing.

mod e2e;

use std::time::{Duration, Instant};

use e2e::*;

#[test]
fn the_tour_shows_every_kind_of_answer_in_under_ten_seconds_and_leaves_nothing() {
    let scene = Scene::new();
    scene.name_server("192.0.2.53");
    let begun = Instant::now();
    let outcome = run(&scene, &[&sluice().display().to_string(), "demo"]).ended_with(0);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let text = outcome.text();
    for shown in [
        "101 Switching Protocols",
        "403 Denied by policy: host not allowed",
        "Failed to connect to 203.0.113.10",
        "10.200.0.1",
        "host_not_allowed",
        "direct_tcp",
        "direct_dns",
    ] {
        assert!(text.contains(shown), "nothing of {shown:?}\n{outcome}");
    }
    let counted = text.lines().find(|line| line.contains(" allowed, ")).expect("a summary");
    assert!(counted.contains("3 allowed, 1 denied, "), "{counted}");
    assert_contract(
        &text
            .lines()
            .filter(|line| line.trim_start().starts_with('{'))
            .fold(String::new(), |lines, line| lines + line.trim() + "\n"),
    );
    assert_eq!(outcome.stderr, "", "the tour tells refusals itself");
    assert_eq!(scene.remains(), Vec::<String>::new());
}

#[test]
fn a_reader_who_leaves_the_tour_does_not_break_it() {
    let scene = Scene::new();
    scene.name_server("192.0.2.53");
    let piped = format!("set -o pipefail; {} demo | head -n 1", sluice().display());
    let outcome = run(&scene, &["bash", "-c", &piped]).ended_with(0);
    assert_eq!(outcome.text().lines().count(), 1, "{outcome}");
    assert_eq!(scene.remains(), Vec::<String>::new());
}
