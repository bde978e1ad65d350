//! What the kernel says a process has cost: CPU in nanoseconds, memory in bytes, descriptors.
//!
//! CPU comes from the process's own CPU clock (`clock_getcpuclockid`): the sum of `sum_exec_runtime` over all its
//! threads, those that ended and io_uring's own workers included, to the nanosecond. `/proc/<pid>/stat` counts the
//! same time in ticks of 10 ms. Work that the kernel does for a socket inside a system call (on loopback also the
//! receiving side of the peer, which runs in the sender's context) is charged to the caller.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use serde::Serialize;

/// `USER_HZ`: what `/proc/stat` counts in, on every Linux architecture that matters here.
const TICK: Duration = Duration::from_millis(10);

/// Reads the accounts of the process under test and of the cores it is pinned to.
#[derive(Debug, Clone)]
pub(crate) struct Meter {
    pid: u32,
    cores: Vec<usize>,
}

/// The accounts at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    /// When it was taken.
    pub(crate) at: Instant,
    /// CPU time of the process and its descendants since they started.
    pub(crate) cpu: Duration,
    /// Busy time of the proxy's cores since boot, whoever used them.
    cores_busy: Duration,
}

/// The difference of two readings.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spent {
    /// Wall clock.
    pub(crate) elapsed: Duration,
    /// CPU time of the process under test.
    pub(crate) cpu: Duration,
    /// CPU time that anybody else used on the proxy's cores: the noise of the figure.
    pub(crate) foreign: Duration,
}

/// Memory of a process, from `/proc/<pid>/smaps_rollup`; what its sockets and pipes hold in the kernel is not in it.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Memory {
    /// Resident set, KiB.
    pub(crate) rss_kib: u64,
    /// Proportional set size, KiB: shared pages count by their share.
    pub(crate) pss_kib: u64,
}

impl Meter {
    /// A meter for the process `pid` that is pinned to `cores`.
    pub(crate) fn new(pid: u32, cores: &[usize]) -> Self {
        Self { pid, cores: cores.to_vec() }
    }

    /// Reads the clocks. Fails when the process is gone.
    pub(crate) fn read(&self) -> Result<Reading> {
        let mut cpu = Duration::ZERO;
        for pid in family(self.pid) {
            match process_cpu(pid) {
                Ok(time) => cpu += time,
                Err(error) if pid == self.pid => {
                    return Err(error)
                        .with_context(|| format!("the proxy (pid {pid}) is gone: read its log"));
                }
                Err(_) => {} // a descendant that ended between listing and reading
            }
        }
        let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
        Ok(Reading { at: Instant::now(), cpu, cores_busy: busy(&stat, &self.cores) })
    }

    /// Memory of the process and its descendants.
    pub(crate) fn memory(&self) -> Result<Memory> {
        let mut sum = Memory::default();
        for pid in family(self.pid) {
            let path = format!("/proc/{pid}/smaps_rollup");
            let text = fs::read_to_string(&path).with_context(|| path.clone())?;
            let one = parse_rollup(&text).with_context(|| format!("{path} has no Rss and Pss lines"))?;
            sum.rss_kib += one.rss_kib;
            sum.pss_kib += one.pss_kib;
        }
        Ok(sum)
    }

    /// Open descriptors of the process and its descendants (sockets, pipes).
    pub(crate) fn descriptors(&self) -> Result<u64> {
        let mut sum = 0;
        for pid in family(self.pid) {
            let path = format!("/proc/{pid}/fd");
            sum += fs::read_dir(&path).with_context(|| path.clone())?.count() as u64;
        }
        Ok(sum)
    }
}

impl Reading {
    /// What was spent since `earlier`.
    pub(crate) fn since(&self, earlier: &Reading) -> Spent {
        let cpu = self.cpu.saturating_sub(earlier.cpu);
        let busy = self.cores_busy.saturating_sub(earlier.cores_busy);
        Spent {
            elapsed: self.at.saturating_duration_since(earlier.at),
            cpu,
            foreign: busy.saturating_sub(cpu),
        }
    }
}

impl Spent {
    /// Share of the wall clock that others held the proxy's cores, 0 to 1 (ticks of 10 ms: an estimate).
    pub(crate) fn foreign_share(&self) -> f64 {
        if self.elapsed.is_zero() { 0.0 } else { self.foreign.as_secs_f64() / self.elapsed.as_secs_f64() }
    }
}

/// CPU time of all threads of a process, ended ones included.
fn process_cpu(pid: u32) -> nix::Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid as i32))?;
    Ok(clock_gettime(clock)?.into())
}

/// The process and all its living descendants.
fn family(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        next += 1;
        let Ok(tasks) = fs::read_dir(format!("/proc/{parent}/task")) else { continue };
        for task in tasks.flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|word| word.parse::<u32>().ok()));
        }
    }
    found
}

/// Busy time of `cores` in the text of `/proc/stat`: user, nice, system, irq and softirq.
fn busy(stat: &str, cores: &[usize]) -> Duration {
    let mut ticks = 0;
    for line in stat.lines() {
        let mut words = line.split_whitespace();
        let core =
            words.next().and_then(|name| name.strip_prefix("cpu")).and_then(|n| n.parse::<usize>().ok());
        if core.is_some_and(|core| cores.contains(&core)) {
            let columns: Vec<u32> = words.filter_map(|word| word.parse().ok()).collect();
            ticks += [0, 1, 2, 5, 6].iter().filter_map(|&i| columns.get(i)).sum::<u32>();
        }
    }
    TICK * ticks
}

/// The Rss and Pss lines of `smaps_rollup`.
fn parse_rollup(text: &str) -> Option<Memory> {
    let field = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse::<u64>().ok())
    };
    Some(Memory { rss_kib: field("Rss:")?, pss_kib: field("Pss:")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_time_counts_only_the_named_cores_and_neither_idle_nor_iowait() {
        let stat =
            "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 1 2 3 1000 1000 4 5 77 0 0\ncpu1 10 0 0 0 0 0 0 0 0 0\nintr 5\n";
        assert_eq!(busy(stat, &[0]), Duration::from_millis(150));
        assert_eq!(busy(stat, &[0, 1]), Duration::from_millis(250));
        assert_eq!(busy(stat, &[7]), Duration::ZERO);
    }

    #[test]
    fn rollup_is_read_by_whole_field_names() {
        let text = "55d0-7ffc ---p 00000000 00:00 0 [rollup]\nRss:     2048 kB\nPss:      777 kB\nPss_Dirty:  5 kB\n";
        let memory = parse_rollup(text).unwrap();
        assert_eq!((memory.rss_kib, memory.pss_kib), (2048, 777));
        assert!(parse_rollup("Rss: 1 kB\n").is_none());
    }

    #[test]
    fn the_process_clock_counts_threads_that_have_ended() {
        let meter = Meter::new(std::process::id(), &[0]);
        let before = meter.read().unwrap();
        std::thread::spawn(|| {
            let end = Instant::now() + Duration::from_millis(40);
            let mut x = 0_u64;
            while Instant::now() < end {
                x = std::hint::black_box(x.wrapping_mul(31).wrapping_add(7));
            }
        })
        .join()
        .unwrap();
        let spent = meter.read().unwrap().since(&before);
        assert!(spent.cpu > Duration::from_millis(1), "an ended thread's time was lost: {:?}", spent.cpu);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let meter = Meter::new(child.id(), &[0]);
        child.wait().unwrap();
        assert!(meter.read().is_err());
    }
}
