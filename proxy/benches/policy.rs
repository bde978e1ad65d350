//! What a policy costs: one decision, its allocations, and compiling it, with 10 and with 10,000 endpoints of 50 binaries
//! each. `make bench` runs it; `-- --strict` exits with 2 when a target is missed.

#![allow(clippy::unwrap_used, reason = "a bench fails where it must")]

#[path = "../tests/policy_sized/mod.rs"]
mod policy_sized;

use std::hint::black_box;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use policy_sized::{allocations, asker, destinations, load, questions, quickest, text};
use sluice::policy::{Ask, Asker, Policy, decide};

const DECISION_MAX: Duration = Duration::from_nanos(300);
const RATIO_MAX: f64 = 1.2;
const COMPILE_MAX: Duration = Duration::from_millis(200);

/// A target, and whether it was met.
struct Judged {
    all: bool,
}

impl Judged {
    fn say(&mut self, met: bool) -> &'static str {
        self.all &= met;
        if met { "met" } else { "MISSED" }
    }
}

fn main() -> ExitCode {
    let mut judged = Judged { all: true };
    println!("policy: 10,000 endpoints x 50 binaries\n");
    // As many lists as in the small policy, and one for each of the 1,000 rules.
    for lists in [10, 1_000] {
        decisions(lists, &mut judged);
        compile(lists, &mut judged);
    }
    let strict = std::env::args().any(|argument| argument == "--strict");
    ExitCode::from(if strict && !judged.all { 2 } else { 0 })
}

fn decisions(lists: usize, judged: &mut Judged) {
    let small = Policy::compile(&load(&text(10, lists)));
    let large = Policy::compile(&load(&text(10_000, lists)));
    let (of_small, of_large) = (asker(&small), asker(&large));
    let destinations = destinations();
    println!("{lists} lists of binaries{:14}10      10,000    ratio  allocations", "");
    for (what, destination, kind) in questions(&destinations) {
        // In turns, so that a machine that slows down slows both.
        let mut quickest_of = [Duration::MAX; 2];
        for _ in 0..5 {
            for (quickest_of, (policy, set)) in
                quickest_of.iter_mut().zip([(&small, &of_small), (&large, &of_large)])
            {
                *quickest_of = (*quickest_of).min(quickest(policy, set, destination, kind));
            }
        }
        let [ten, many] = quickest_of;
        let ratio = many.as_secs_f64() / ten.as_secs_f64();
        let ask = Ask { destination, asker: Asker::Known(&of_large), kind };
        let before = allocations();
        drop(black_box(decide(&large, &ask)));
        let used = allocations() - before;
        let met = judged.say(many <= DECISION_MAX && ratio <= RATIO_MAX && used == 0);
        println!(
            "  {what:28}{:>6} ns {:>7} ns {ratio:>6.2} x {used:>8}   {met}",
            ten.as_nanos(),
            many.as_nanos()
        );
    }
}

fn compile(lists: usize, judged: &mut Judged) {
    let text = text(10_000, lists);
    let start = Instant::now();
    let file = load(&text);
    let read = start.elapsed();
    let once = || {
        let start = Instant::now();
        black_box(Policy::compile(&file));
        start.elapsed()
    };
    let compiled = (0..7).map(|_| once()).min().unwrap_or_default();
    let met = judged.say(compiled <= COMPILE_MAX);
    println!("  compiled in {:.1} ms   {met}", compiled.as_secs_f64() * 1e3);
    println!("  ({} KiB of YAML read in {:.1} ms before)\n", text.len() / 1024, read.as_secs_f64() * 1e3);
}
