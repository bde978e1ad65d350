//! Policies of any size, and what one decision by them costs; for the test and for the bench.

#![allow(clippy::unwrap_used, reason = "a test fails where it must")]
#![allow(clippy::format_push_string, reason = "the text of a policy is written once")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use sluice::destination::{Destination, Host};
use sluice::diagnostic::Diagnostics;
use sluice::policy::{
    Ask, Asker, BinaryFacts, BinarySet, Kind, Policy, PolicyFile, Program, Request, decide, parse,
};

/// Counts this thread's allocations.
pub(crate) struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

#[allow(unsafe_code)]
// SAFETY: every call is handed to the system allocator unchanged; the counter is a plain thread-local cell without a
// destructor, which allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of this thread so far.
pub(crate) fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

const BINARIES: usize = 50;

/// A policy of `count` endpoints in rules of ten, of every kind, each rule for fifty binaries; ten different lists of
/// them in all, or one for each rule.
pub(crate) fn text(count: usize, lists: usize) -> String {
    let mut text = String::from("version: 1\nnetwork_policies:\n");
    for rule in 0..count.div_ceil(10) {
        text.push_str(&format!("  rule{rule}:\n    binaries:\n"));
        for binary in 0..BINARIES {
            text.push_str(&format!("      - path: /opt/{}/bin/tool{binary}\n", rule % lists));
        }
        text.push_str("    endpoints:\n");
        for n in (rule * 10)..(rule * 10 + 10).min(count) {
            let line = match n % 10 {
                0 => format!("host: '*.w{n}.example.com', port: 443"),
                1 => format!("host: '**.d{n}.example.com', ports: [443, 8443]"),
                2 => format!(
                    "host: api{n}.example.com, port: 80, protocol: http, rules: [{{allow: {{method: GET, path: '/repos/*/issues/**'}}}}]"
                ),
                _ => format!("host: host{n}.example.com, port: 443"),
            };
            text.push_str(&format!("      - {{{line}}}\n"));
        }
    }
    text
}

pub(crate) fn load(text: &str) -> PolicyFile {
    let mut out = Diagnostics::default();
    let file = parse(text, &"p.yaml".into(), &mut out);
    assert!(!out.has_errors(), "{out}");
    file.unwrap()
}

fn to(host: &str, port: u16) -> Destination {
    Destination { host: Host::parse(host.as_bytes()).unwrap(), port }
}

/// One question of each kind about rule 0, which every size of policy has.
pub(crate) fn questions(destinations: &[Destination; 4]) -> [(&'static str, &Destination, Kind<'static>); 4] {
    let request =
        Request { method: b"GET", path: b"/repos/sluice/issues/12/comments", query: Some(b"page=2") };
    [
        ("exact host", &destinations[0], Kind::Connect),
        ("wildcard", &destinations[1], Kind::Connect),
        ("deep wildcard", &destinations[2], Kind::Connect),
        ("judged request", &destinations[3], Kind::Request(request)),
    ]
}

pub(crate) fn destinations() -> [Destination; 4] {
    [
        to("host3.example.com", 443),
        to("a.w0.example.com", 443),
        to("a.b.c.d1.example.com", 8443),
        to("api2.example.com", 80),
    ]
}

pub(crate) fn asker(policy: &Policy) -> BinarySet {
    let exe = Program { path: Path::new("/opt/0/bin/tool49"), sha256: None };
    policy.classify(&BinaryFacts { exe, ancestors: &[exe; 4] })
}

/// The quickest of many batches: what the code costs when nobody else has the core.
pub(crate) fn quickest(
    policy: &Policy,
    set: &BinarySet,
    destination: &Destination,
    kind: Kind<'_>,
) -> Duration {
    const BATCH: u32 = 500;
    let ask = Ask { destination, asker: Asker::Known(set), kind };
    let batch = || {
        let start = Instant::now();
        for _ in 0..BATCH {
            assert!(black_box(decide(black_box(policy), black_box(&ask))).is_ok());
        }
        start.elapsed() / BATCH
    };
    (0..50).map(|_| batch()).min().unwrap_or_default()
}
