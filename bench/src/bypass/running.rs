//! A `sluice exec` with a part in it, and what its events file and its bypass core show meanwhile.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Flooded, Probed, now_ns};
use crate::statistics::{Latency, latencies};

/// How often the events file is looked at.
const LOOK: Duration = Duration::from_micros(100);
/// What its end may take before it is killed.
const END_MAX: Duration = Duration::from_secs(5);
/// What a run may take, its last events included.
const RUN_MAX: Duration = Duration::from_secs(120);

/// A sandbox with a part in it.
pub(super) struct Running {
    pub(super) exec: Child,
    events: PathBuf,
}

impl Running {
    /// Starts `part` in a sandbox of its own, run with these options.
    pub(super) fn start(sluice: &Path, events: &Path, part: &[&str], options: &[&str]) -> Result<Self> {
        let own = std::env::current_exe()?;
        let exec = Command::new(sluice)
            .args(["exec", "--policy=open", "--no-summary"])
            .args(options)
            .arg("--events")
            .arg(events)
            .arg("--")
            .arg(own)
            .arg("bypass-part")
            .args(part)
            .stdin(Stdio::piped())
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
            ensure!(begun.elapsed() < RUN_MAX, "the sandbox does not end");
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

    /// Its end, as a probe.
    pub(super) fn probed(mut self) -> Result<Probed> {
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

    /// Its end, as a flood.
    pub(super) fn flooded(mut self, seconds: u64) -> Result<Flooded> {
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

/// Nanoseconds a thread has run.
fn run_ns(thread: &Path) -> Option<u64> {
    fs::read_to_string(thread.join("schedstat")).ok()?.split(' ').next()?.parse().ok()
}

impl Drop for Running {
    /// Asked to end, it takes its sandbox away.
    fn drop(&mut self) {
        let asked = i32::try_from(self.exec.id()).map(|pid| kill(Pid::from_raw(pid), Signal::SIGTERM));
        let begun = Instant::now();
        while matches!(asked, Ok(Ok(())))
            && matches!(self.exec.try_wait(), Ok(None))
            && begun.elapsed() < END_MAX
        {
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.exec.kill();
        let _ = self.exec.wait();
    }
}
