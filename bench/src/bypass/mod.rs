//! `bench bypass`: what attempts to go around the proxy cost, and how soon they are told.
//!
//! Everything goes through the real `sluice exec`. Its workload is this very program in one of two parts: the *flood*
//! connects directly from two threads as fast as it can, and says how often; the *probe* does so now and then, each time
//! to another port, and says when each connect failed. The events file is watched meanwhile: when the line with a
//! probe's port is there, the attempt is visible. What the bypass core costs is its thread's time by the kernel's own
//! account (schedstat).

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write, stdout};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::statistics::{Latency, latencies};

/// Where the attempts go: a documentation address, which no sandbox reaches.
const DESTINATION: [u8; 4] = [192, 0, 2, 1];
/// Ports of probes; the flood has one below.
const PROBE_PORTS: std::ops::Range<u16> = 20_000..60_000;
const FLOOD_PORT: u16 = 80;
const PROBE_PAUSE: Duration = Duration::from_millis(20);
/// How often the events file is looked at.
const LOOK: Duration = Duration::from_micros(100);
/// How long the daemon may take to tell the last of it.
const TELLING: Duration = Duration::from_secs(20);

/// How long, and of which program.
#[derive(Debug, Args)]
pub(crate) struct Bypass {
    /// Seconds of every part
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Read netlink messages instead of the kernel log
    #[arg(long)]
    nflog: bool,
}

/// The parts of the workload, run inside a sandbox.
#[derive(Debug, Subcommand)]
pub(crate) enum Part {
    /// Connect directly as fast as two threads can
    Flood {
        /// How long
        seconds: u64,
    },
    /// Connect directly now and then
    Probe {
        /// How long
        seconds: u64,
    },
}

/// What was seen.
#[derive(Debug, Serialize)]
pub(crate) struct Seen {
    /// The probe alone on the machine.
    pub(crate) idle: Probed,
    /// The flood: with the log limit off.
    pub(crate) unlimited: Flooded,
    /// The flood: with the log limit as it is.
    pub(crate) limited: Flooded,
    /// The probe in another sandbox beside a flood under the limit.
    pub(crate) beside: Probed,
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

impl Seen {
    /// Attempts that were not told or not attributed.
    pub(crate) fn errors(&self) -> u64 {
        let flooded =
            |seen: &Flooded| seen.attempts.abs_diff(seen.told) + seen.told.abs_diff(seen.attributed);
        let probed = |seen: &Probed| seen.attempts.abs_diff(seen.told) as u64;
        flooded(&self.unlimited) + flooded(&self.limited) + probed(&self.idle) + probed(&self.beside)
    }
}

impl Bypass {
    pub(crate) fn run(&self, sluice: &Path) -> Result<Seen> {
        let folder = tempfile::tempdir()?;
        let run = |name: &str, part: &str, options: &[&str]| {
            Running::start(self, sluice, &folder.path().join(name), part, options)
        };
        let idle = run("idle", "probe", &[])?.probed()?;
        let unlimited = run("unlimited", "flood", &["--log-limit=0"])?.flooded(self.seconds)?;
        let limited = run("limited", "flood", &[])?.flooded(self.seconds)?;
        let flood = run("flood", "flood", &[])?;
        let beside = run("beside", "probe", &[])?.probed()?;
        flood.flooded(self.seconds)?;
        Ok(Seen { idle, unlimited, limited, beside })
    }
}

/// A sandbox with a part in it.
struct Running {
    exec: Child,
    events: PathBuf,
}

impl Running {
    fn start(bypass: &Bypass, sluice: &Path, events: &Path, part: &str, options: &[&str]) -> Result<Self> {
        let source = if bypass.nflog { "nflog" } else { "kmsg" };
        let own = std::env::current_exe()?;
        let exec = Command::new(sluice)
            .args(["exec", "--policy=open", "--no-summary", &format!("--bypass-source={source}")])
            .args(options)
            .arg("--events")
            .arg(events)
            .arg("--")
            .arg(own)
            .args(["bypass-part", part, &bypass.seconds.to_string()])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", sluice.display()))?;
        Ok(Self { exec, events: events.to_owned() })
    }

    /// Watches the events until the part has ended; gives when each destination port was first seen, in ns of
    /// CLOCK_MONOTONIC, and the time of the bypass core's thread.
    fn watch(&mut self) -> Result<(HashMap<u16, u64>, u64)> {
        let (mut seen, mut core_ns) = (HashMap::new(), 0);
        let (mut file, mut rest) = (None, Vec::new());
        let begun = Instant::now();
        let thread = self.core_thread();
        let mut looked = Instant::now();
        loop {
            let ended = self.exec.try_wait()?.is_some();
            if file.is_none() {
                file = File::open(&self.events).ok();
            }
            if let Some(file) = &mut file {
                file.read_to_end(&mut rest)?;
            }
            let now_ns = now_ns();
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                let event: serde_json::Value = serde_json::from_slice(&line)?;
                if let Some(port) = event["dst_port"].as_u64().and_then(|port| u16::try_from(port).ok()) {
                    seen.entry(port).or_insert(now_ns);
                }
            }
            if looked.elapsed() > Duration::from_millis(20) {
                core_ns = thread.as_deref().and_then(run_ns).unwrap_or(core_ns);
                looked = Instant::now();
            }
            if ended {
                return Ok((seen, core_ns));
            }
            ensure!(begun.elapsed() < TELLING * 3, "the sandbox does not end");
            thread::sleep(LOOK);
        }
    }

    /// The folder of the bypass core's thread under `/proc`.
    fn core_thread(&self) -> Option<PathBuf> {
        let tasks = PathBuf::from(format!("/proc/{}/task", self.exec.id()));
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) {
            let entries = fs::read_dir(&tasks).ok()?;
            let named = |path: &PathBuf| {
                fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == "sluice-bypass")
            };
            if let Some(found) = entries.filter_map(|entry| Some(entry.ok()?.path())).find(named) {
                return Some(found);
            }
            thread::sleep(LOOK);
        }
        None
    }

    fn said(&mut self) -> Result<String> {
        let mut said = String::new();
        self.exec.stdout.take().context("no output")?.read_to_string(&mut said)?;
        Ok(said)
    }

    fn probed(mut self) -> Result<Probed> {
        let (seen, _) = self.watch()?;
        let (mut connect, mut visible) = (latencies(), latencies());
        let (mut attempts, mut told) = (0, 0);
        for line in self.said()?.lines() {
            let numbers: Vec<u64> = line.split(' ').filter_map(|number| number.parse().ok()).collect();
            let [port, begun_ns, failed_ns] = *numbers.as_slice() else { continue };
            attempts += 1;
            connect.record(failed_ns.saturating_sub(begun_ns))?;
            if let Some(seen_ns) = u16::try_from(port).ok().and_then(|port| seen.get(&port)) {
                told += 1;
                visible.record(seen_ns.saturating_sub(failed_ns))?;
            }
        }
        ensure!(attempts > 0, "the probe said nothing: run as root, see `sluice doctor`");
        Ok(Probed { attempts, told, connect: Latency::of(&connect), visible: Latency::of(&visible) })
    }

    fn flooded(mut self, seconds: u64) -> Result<Flooded> {
        let (_, core_ns) = self.watch()?;
        let said = self.said()?;
        let attempts: u64 =
            said.trim().parse().context("the flood said nothing: run as root, see `sluice doctor`")?;
        let (mut told, mut attributed, mut lost) = (0, 0, 0);
        for line in fs::read_to_string(&self.events)?.lines() {
            let event: serde_json::Value = serde_json::from_str(line)?;
            let count = event["count"].as_u64().unwrap_or(0);
            match event["event"].as_str() {
                Some("bypass.detected") => {
                    told += count;
                    attributed += if event["process"].is_object() { count } else { 0 };
                }
                Some("monitor.lost") => lost += count,
                _ => {}
            }
        }
        let core_us_per_attempt = core_ns as f64 / 1e3 / attempts.max(1) as f64;
        let attempts_per_s = attempts as f64 / seconds.max(1) as f64;
        Ok(Flooded { attempts, attempts_per_s, told, attributed, lost, core_us_per_attempt })
    }
}

impl Part {
    /// Plays the part, inside a sandbox.
    pub(crate) fn play(&self) -> Result<()> {
        match *self {
            Self::Flood { seconds } => {
                let flood = move || {
                    let (begun, address) = (Instant::now(), SocketAddr::from((DESTINATION, FLOOD_PORT)));
                    let mut attempts = 0_u64;
                    while begun.elapsed() < Duration::from_secs(seconds) {
                        attempts += u64::from(TcpStream::connect(address).is_err());
                    }
                    attempts
                };
                let threads: Vec<_> = (0..2).map(|_| thread::spawn(flood)).collect();
                let attempts: u64 = threads.into_iter().filter_map(|thread| thread.join().ok()).sum();
                println!("{attempts}");
            }
            Self::Probe { seconds } => {
                let begun = Instant::now();
                for port in PROBE_PORTS.take_while(|_| begun.elapsed() < Duration::from_secs(seconds)) {
                    let begun_ns = now_ns();
                    let refused = TcpStream::connect(SocketAddr::from((DESTINATION, port))).is_err();
                    let failed_ns = now_ns();
                    ensure!(refused, "a direct connect went through");
                    writeln!(stdout(), "{port} {begun_ns} {failed_ns}")?;
                    thread::sleep(PROBE_PAUSE);
                }
            }
        }
        Ok(())
    }
}

/// The table of what was seen.
pub(crate) fn table(seen: &Seen) -> String {
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
                format!(
                    "p50 {:.0} µs, p99 {:.0} µs, most {:.0} µs",
                    latency.p50_us, latency.p99_us, latency.max_us
                )
            })
        };
        let (connect, visible) = (of(&seen.connect), of(&seen.visible));
        format!(
            "{name}: {} of {} told; the refused connect {connect}; its event visible after {visible}\n",
            seen.told, seen.attempts
        )
    };
    [
        probe("idle host", &seen.idle),
        flood("flood, log limit off", &seen.unlimited),
        flood("flood, log limit on", &seen.limited),
        probe("another sandbox beside the flood", &seen.beside),
    ]
    .concat()
}

/// Nanoseconds a thread has run.
fn run_ns(thread: &Path) -> Option<u64> {
    fs::read_to_string(thread.join("schedstat")).ok()?.split(' ').next()?.parse().ok()
}

fn now_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}
