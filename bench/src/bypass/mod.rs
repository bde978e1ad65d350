//! `bench bypass`: what attempts to go around the proxy cost, and how soon they are told.
//!
//! Everything goes through the real `sluice exec` (`running.rs`). Its workload is this very program in one of its parts
//! (`part.rs`): the *flood*
//! connects directly from two threads as fast as it can, and says how often; the *probe* does so now and then, each time
//! to another port, and says when each connect failed. The events file is watched meanwhile: when the line with a
//! probe's port is there, the attempt is visible. What the bypass core costs is its thread's time by the kernel's own
//! account (schedstat). What the fence costs those who use the proxy is `fence.rs`.

mod fence;
mod part;
mod running;

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::cli::Keeping;
use crate::report;
use crate::statistics::Latency;
use fence::{Beside, Paid};
pub(crate) use part::Part;
use running::Running;

/// How long, and how often.
#[derive(Debug, Args)]
pub(crate) struct Bypass {
    /// Seconds of every part
    #[arg(id = "part_seconds", long = "part-seconds", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=30))]
    seconds: u64,
    /// Rounds with and without the fence, of half a second for each work
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(2..100))]
    rounds: u32,
    /// Read netlink messages instead of the kernel log
    #[arg(long)]
    nflog: bool,
    /// Where the JSON goes.
    #[command(flatten)]
    pub(crate) keeping: Keeping,
}

/// What was seen.
#[derive(Debug, Serialize)]
pub(crate) struct Seen {
    /// The probe alone on the machine.
    idle: Probed,
    /// A flood with the log limit off.
    unlimited: Flooded,
    /// A flood with the log limit as it is.
    limited: Flooded,
    /// The probe in another sandbox beside the first kind of flood.
    beside_unlimited: Probed,
    /// The same beside the second.
    beside_limited: Probed,
    /// What the fence costs traffic that uses the proxy.
    fence: Paid,
    /// The promises.
    promises: Vec<Promise>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Probed {
    attempts: usize,
    told: usize,
    /// How long the refused connect took.
    connect: Option<Latency>,
    /// From there until its event could be read.
    visible: Option<Latency>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Flooded {
    attempts: u64,
    attempts_per_s: f64,
    /// Sum of the events' counts.
    told: u64,
    /// The same of those with a process.
    attributed: u64,
    /// Log records lost.
    lost: u64,
    /// Time of the bypass core's thread.
    core_us_per_attempt: f64,
}

/// One promise, and what was seen of it.
#[derive(Debug, Serialize)]
pub(crate) struct Promise {
    title: &'static str,
    bound: String,
    seen: f64,
    unit: &'static str,
    met: bool,
}

impl Promise {
    fn at_most(title: &'static str, limit: f64, seen: Option<f64>, unit: &'static str) -> Self {
        let seen = seen.unwrap_or(f64::INFINITY);
        Self { title, bound: format!("≤ {limit} {unit}"), seen, unit, met: seen <= limit }
    }

    fn at_least(title: &'static str, limit: f64, seen: f64, unit: &'static str) -> Self {
        Self { title, bound: format!("≥ {limit} {unit}"), seen, unit, met: seen >= limit }
    }
}

/// The option of a sandbox whose fence may log all it refuses.
const OFF: Option<&str> = Some("--log-limit=0");

impl Bypass {
    pub(crate) fn run(&self, sluice: &Path) -> Result<Seen> {
        let folder = tempfile::tempdir()?;
        let source = format!("--bypass-source={}", if self.nflog { "nflog" } else { "kmsg" });
        let run = |name: &str, part: &str, seconds: u64, limit: Option<&str>| {
            let mut options = vec![source.as_str()];
            options.extend(limit);
            let part = [part, &seconds.to_string()];
            Running::start(sluice, &folder.path().join(name), &part, &options)
        };
        let seconds = self.seconds;
        let beside = |name: &str, limit: Option<&str>| {
            // Begins before the probe and ends after it.
            let flood = run(&format!("flood-{name}"), "flood", seconds + 2, limit)?;
            thread::sleep(Duration::from_secs(1));
            let probed = run(&format!("beside-{name}"), "probe", seconds, None)?.probed()?;
            flood.flooded(seconds + 2)?;
            anyhow::Ok(probed)
        };
        let mut seen = Seen {
            idle: run("idle", "probe", seconds, None)?.probed()?,
            unlimited: run("unlimited", "flood", seconds, OFF)?.flooded(seconds)?,
            limited: run("limited", "flood", seconds, None)?.flooded(seconds)?,
            beside_unlimited: beside("unlimited", OFF)?,
            beside_limited: beside("limited", None)?,
            fence: fence::measure(sluice, folder.path(), self.rounds, 0.5)?,
            promises: Vec::new(),
        };
        seen.promises = seen.judge();
        Ok(seen)
    }
}

impl Seen {
    /// Attempts that were not told or not attributed.
    pub(crate) fn errors(&self) -> u64 {
        let flooded =
            |seen: &Flooded| seen.attempts.abs_diff(seen.told) + seen.told.abs_diff(seen.attributed);
        let probed = |seen: &Probed| seen.attempts.abs_diff(seen.told) as u64;
        [&self.unlimited, &self.limited].map(flooded).iter().sum::<u64>()
            + [&self.idle, &self.beside_unlimited, &self.beside_limited].map(probed).iter().sum::<u64>()
    }

    /// The promises of cost, in their order.
    fn judge(&self) -> Vec<Promise> {
        let p99 = |seen: &Option<Latency>| seen.as_ref().map(|seen| seen.p99_us / 1e3);
        let most = |seen: &Option<Latency>| seen.as_ref().map(|seen| seen.max_us / 1e3);
        let share = |seen: &Flooded| 100.0 * seen.attributed as f64 / seen.attempts.max(1) as f64;
        vec![
            Promise::at_least(
                "flood, log limit off: attempts",
                25_000.0,
                self.unlimited.attempts_per_s,
                "a second",
            ),
            Promise::at_most("… log records lost", 0.0, Some(self.unlimited.lost as f64), "records"),
            Promise::at_least("… attributed to a process", 100.0, share(&self.unlimited), "%"),
            Promise::at_most(
                "… CPU of the bypass core each",
                6.0,
                Some(self.unlimited.core_us_per_attempt),
                "µs",
            ),
            Promise::at_most(
                "… event of another sandbox, p99",
                5.0,
                p99(&self.beside_unlimited.visible),
                "ms",
            ),
            Promise::at_most("… the slowest", 5.0, most(&self.beside_unlimited.visible), "ms"),
            Promise::at_least("flood, log limit on: attributed", 100.0, share(&self.limited), "%"),
            Promise::at_most(
                "… CPU of the bypass core each",
                6.0,
                Some(self.limited.core_us_per_attempt),
                "µs",
            ),
            Promise::at_most("… event of another sandbox, p99", 5.0, p99(&self.beside_limited.visible), "ms"),
            Promise::at_most("… the slowest", 5.0, most(&self.beside_limited.visible), "ms"),
            Promise::at_most("idle host: event visible, p99", 1.0, p99(&self.idle.visible), "ms"),
            Promise::at_most("… the refused connect, p99", 1.0, p99(&self.idle.connect), "ms"),
            Promise::at_most("… the slowest", 1.0, most(&self.idle.connect), "ms"),
            // "Nothing measurable": within what the same work differs by from one run to the next.
            Promise::at_most(
                "CONNECT, with the fence over without",
                1.03,
                Some(self.fence.connect.ratio.of_medians),
                "",
            ),
            Promise::at_most(
                "ping-pong, with the fence over without",
                1.03,
                Some(self.fence.ping_pong.ratio.of_medians),
                "",
            ),
        ]
    }
}

/// The tables of what was seen.
pub(crate) fn table(seen: &Seen) -> String {
    let mut verdicts = report::table(&["promise", "target", "seen", ""]);
    for promise in &seen.promises {
        verdicts.add_row([
            promise.title.to_owned(),
            promise.bound.clone(),
            format!("{:.2} {}", promise.seen, promise.unit),
            if promise.met { "met" } else { "MISSED" }.to_owned(),
        ]);
    }
    let met = seen.promises.iter().filter(|promise| promise.met).count();
    let flood = |name: &str, seen: &Flooded| {
        format!(
            "{name}: {} attempts ({:.0}/s), {} told, {} attributed, {} log records lost, {:.2} µs of the bypass core each\n",
            seen.attempts,
            seen.attempts_per_s,
            seen.told,
            seen.attributed,
            seen.lost,
            seen.core_us_per_attempt
        )
    };
    let probe = |name: &str, seen: &Probed| {
        let of = |latency: &Option<Latency>| {
            latency.as_ref().map_or_else(String::new, |latency| {
                let Latency { p50_us, p99_us, max_us, .. } = latency;
                format!("p50 {p50_us:.0} µs, p99 {p99_us:.0} µs, most {max_us:.0} µs")
            })
        };
        let (connect, visible) = (of(&seen.connect), of(&seen.visible));
        format!(
            "{name}: {} of {} told; the refused connect {connect}; its event visible after {visible}\n",
            seen.told, seen.attempts
        )
    };
    let beside = |name: &str, seen: &Beside| {
        let Beside { with_us, without_us, ratio } = seen;
        format!(
            "{name}, CPU of client and proxy: {:.1} µs with the fence, {:.1} without; {:.3} (rounds {:.2} … {:.2})\n",
            with_us.median, without_us.median, ratio.of_medians, ratio.per_round.min, ratio.per_round.max
        )
    };
    [
        format!("{verdicts}\n{met} of {} met\n\n", seen.promises.len()),
        probe("idle host", &seen.idle),
        flood("flood, log limit off", &seen.unlimited),
        flood("flood, log limit on", &seen.limited),
        probe("another sandbox beside a flood, log limit off", &seen.beside_unlimited),
        probe("another sandbox beside a flood, log limit on", &seen.beside_limited),
        beside("CONNECT + 1 byte + close", &seen.fence.connect),
        beside("ping-pong of 64 B", &seen.fence.ping_pong),
    ]
    .concat()
}

fn now_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}
