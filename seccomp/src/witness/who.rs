//! Who a caller is: its process's identity, from `/proc`, cached.
//!
//! A cache entry holds a descriptor of `/proc/<pid>/exe` itself. It belongs to that process for ever
//! (reads fail once it is gone, whoever has the pid then), and reading it gives the program executed
//! now, so neither a reused pid nor an execve is ever answered from the cache.

use super::notes::{Process, ProxyVariable};
use crate::limits::{ANCESTORS_MAX, ARGS_BYTES_MAX, ARGS_MAX, ENVIRONMENT_BYTES_MAX, PROCESSES_CACHED_MAX};
use nix::fcntl::{OFlag, open, readlinkat};
use nix::sys::stat::Mode;
use nix::time::{ClockId, clock_gettime};
use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

/// The processes of one workload that have connected lately.
#[derive(Debug)]
pub(super) struct Processes {
    known: HashMap<u32, Known>,
    /// The workload's first process: the last ancestor worth naming.
    workload: u32,
    /// Its parent: the launcher, or the sandbox's init, to which orphans are given.
    above: Option<u32>,
}

/// How much is to be known of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// Who it is.
    Process,
    /// Also its command line and whether it was started with a proxy variable: what a hint is made of.
    HowStarted,
}

#[derive(Debug)]
struct Known {
    exe_link: OwnedFd,
    process: Arc<Process>,
    /// Whether its command line and environment were looked at.
    started_read: bool,
}

impl Processes {
    pub(super) fn new(workload: u32) -> Self {
        Self { known: HashMap::new(), workload, above: read_stat(workload).map(|stat| stat.parent) }
    }

    /// The process `pid`, of which `tid` is a thread.
    pub(super) fn of_thread(&mut self, tid: u32, pid: u32, want: Want) -> Option<Arc<Process>> {
        if let Some(known) = self.known.get_mut(&pid)
            && read_exe(&known.exe_link).is_some_and(|exe| *exe == *known.process.exe)
        {
            if want == Want::HowStarted && !known.started_read {
                known.started_read = true;
                known.process = Arc::new(started((*known.process).clone()));
            }
            return Some(Arc::clone(&known.process));
        }
        if self.known.len() >= PROCESSES_CACHED_MAX {
            self.known.clear();
        }
        let known = self.look(tid, pid, want)?;
        let process = Arc::clone(&known.process);
        self.known.insert(pid, known);
        Some(process)
    }

    fn look(&self, tid: u32, pid: u32, want: Want) -> Option<Known> {
        let path = format!("/proc/{pid}/exe");
        let exe_link =
            open(path.as_str(), OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
        let stat = read_stat(pid)?;
        let process = Process {
            pid,
            start_time: stat.start_time,
            exe: read_exe(&exe_link)?,
            comm: stat.comm,
            uid: real_uid(tid)?,
            ancestors: self.ancestors(pid, stat.parent),
            args: Arc::new([]),
            proxy_variable: None,
        };
        let started_read = want == Want::HowStarted;
        let process = if started_read { started(process) } else { process };
        Some(Known { exe_link, process: Arc::new(process), started_read })
    }

    fn ancestors(&self, pid: u32, parent: u32) -> Arc<[Arc<Path>]> {
        let mut programs = Vec::new();
        let mut next = (pid != self.workload).then_some(parent);
        while let Some(pid) = next {
            if pid <= 1
                || Some(pid) == self.above
                || pid == std::process::id()
                || programs.len() >= ANCESTORS_MAX
            {
                break;
            }
            let (Ok(exe), Some(stat)) = (fs::read_link(format!("/proc/{pid}/exe")), read_stat(pid)) else {
                break;
            };
            programs.push(Arc::from(exe));
            next = (pid != self.workload).then_some(stat.parent);
        }
        programs.into()
    }
}

fn read_exe(link: &OwnedFd) -> Option<Arc<Path>> {
    readlinkat(link, c"").ok().map(|target| Arc::from(Path::new(&target)))
}

/// How a process was started: what a hint is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HowStarted {
    /// Its command line, at most [`ARGS_MAX`] words; empty if it could not be read.
    pub args: Arc<[Box<str>]>,
    /// Whether it was started with a proxy variable, if its environment could be read.
    pub proxy_variable: Option<ProxyVariable>,
}

/// How the process that is `pid` now was started. It may have changed either since, which is for itself to know.
pub fn how_started(pid: u32) -> HowStarted {
    let line = read_up_to(&format!("/proc/{pid}/cmdline"), ARGS_BYTES_MAX).unwrap_or_default();
    let environment = read_up_to(&format!("/proc/{pid}/environ"), ENVIRONMENT_BYTES_MAX);
    let proxy_variable = environment.and_then(|bytes| match has_proxy_variable(&bytes) {
        true => Some(ProxyVariable::Present),
        // It may have one behind the cut.
        false if bytes.len() >= ENVIRONMENT_BYTES_MAX => None,
        false => Some(ProxyVariable::Absent),
    });
    HowStarted { args: words(&line), proxy_variable }
}

/// `process` with how it was started.
fn started(process: Process) -> Process {
    let HowStarted { args, proxy_variable } = how_started(process.pid);
    Process { args, proxy_variable, ..process }
}

fn read_up_to(path: &str, bytes: usize) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    fs::File::open(path).ok()?.take(bytes as u64).read_to_end(&mut content).ok()?;
    Some(content)
}

/// The words of a `/proc/<pid>/cmdline`.
fn words(line: &[u8]) -> Arc<[Box<str>]> {
    let line = line.strip_suffix(b"\0").unwrap_or(line);
    let words = line.split(|byte| *byte == 0).take(ARGS_MAX);
    words.map(|word| String::from_utf8_lossy(word).into()).collect()
}

/// Whether a `/proc/<pid>/environ` sets a proxy.
fn has_proxy_variable(environment: &[u8]) -> bool {
    const NAMES: [&[u8]; 3] = [b"http_proxy", b"https_proxy", b"all_proxy"];
    environment.split(|byte| *byte == 0).any(|entry| {
        let equals = entry.iter().position(|byte| *byte == b'=').unwrap_or(entry.len());
        let (name, value) = entry.split_at(equals);
        value.len() > 1 && NAMES.iter().any(|known| name.eq_ignore_ascii_case(known))
    })
}

fn real_uid(tid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    field(&status, "Uid:")
}

/// The process a thread belongs to, for kernels whose pidfds do not tell.
pub(super) fn process_of_thread(tid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    field(&status, "Tgid:")
}

fn field(status: &str, name: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// CLOCK_MONOTONIC in nanoseconds.
pub(super) fn monotonic_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    comm: Box<str>,
    parent: u32,
    start_time: u64,
}

fn read_stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// `pid (comm) state ppid … start_time …` (proc_pid_stat(5)). The comm may hold anything, also `) R 1`.
fn parse_stat(line: &[u8]) -> Option<Stat> {
    /// Fields 4 and 22, counted from the state, field 3.
    const PARENT: usize = 1;
    const START_TIME: usize = 19;
    let open = line.iter().position(|byte| *byte == b'(')?;
    let close = line.iter().rposition(|byte| *byte == b')')?;
    let comm = String::from_utf8_lossy(line.get(open + 1..close)?).into();
    let rest = std::str::from_utf8(line.get(close + 1..)?).ok()?;
    let field = |index| rest.split_ascii_whitespace().nth(index);
    Some(Stat { comm, parent: field(PARENT)?.parse().ok()?, start_time: field(START_TIME)?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_past_a_hostile_comm() {
        let line =
            b"7 (a) R 1 (b)) S 5 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 98765 4096 1 18446744073709551615";
        let stat = parse_stat(line).unwrap();
        assert_eq!(stat, Stat { comm: "a) R 1 (b)".into(), parent: 5, start_time: 98765 });
    }

    #[test]
    fn a_short_stat_is_none() {
        for line in [&b""[..], b"7", b"7 (", b")(", b"7 (a", b"7 (a) S", b"7 (a) S x y"] {
            assert_eq!(parse_stat(line), None);
        }
    }

    #[test]
    fn this_process_is_found_and_then_remembered() {
        let pid = std::process::id();
        let mut processes = Processes::new(pid);
        let first = processes.of_thread(pid, pid, Want::Process).unwrap();
        assert_eq!(&*first.exe, std::env::current_exe().unwrap());
        assert_eq!((first.args.len(), first.proxy_variable), (0, None), "not asked for");
        assert!(Arc::ptr_eq(&first, &processes.of_thread(pid, pid, Want::Process).unwrap()));
        let started = processes.of_thread(pid, pid, Want::HowStarted).unwrap();
        assert_eq!(started.args.first().map(|arg| &**arg), std::env::args().next().as_deref());
        assert!(started.proxy_variable.is_some());
        assert!(Arc::ptr_eq(&started, &processes.of_thread(pid, pid, Want::Process).unwrap()));
    }

    #[test]
    fn only_a_proxy_variable_that_is_not_empty_counts() {
        for environment in [
            &b""[..],
            b"PATH=/bin\0http_proxy=\0",
            b"no_proxy=x\0",
            b"http_proxy",
            b"xhttp_proxy=y\0",
            b"\0=\0",
        ] {
            assert!(!has_proxy_variable(environment), "{}", String::from_utf8_lossy(environment));
        }
        for environment in [&b"A=b\0HTTPS_PROXY=http://p\0"[..], b"all_proxy=x", b"Http_Proxy=x\0B=c\0"] {
            assert!(has_proxy_variable(environment));
        }
    }

    #[test]
    fn a_command_line_is_split_at_its_nuls() {
        let words = words(b"curl\0--noproxy\0*\0\0url\0");
        assert_eq!(
            words.iter().map(|word| &**word).collect::<Vec<_>>(),
            ["curl", "--noproxy", "*", "", "url"]
        );
        assert_eq!(super::words(b"").len(), 1);
    }
}
