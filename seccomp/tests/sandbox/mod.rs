//! What the tests share: a network namespace of their own and a launch whose output is read.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "scaffolding of tests: a failure is the test's")]

use sluice_seccomp::{Child, ExitStatus, Launch, Stdio};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

/// How long anything may take before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A namespace with `lo` and the addresses 10.200.0.1 and fd00::1 on it, where everything else is refused with a
/// reset (TCP) or unreachable (the rest), as in a sandbox.
pub(crate) struct Network {
    pub(crate) fd: OwnedFd,
}

impl Network {
    pub(crate) fn new() -> Self {
        // A thread of its own enters the namespace; the tools it starts are born there.
        let made = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
                .expect("unshare: the tests run as root");
            for command in [
                "ip link set lo up",
                "ip address add 10.200.0.1/32 dev lo",
                "ip address add fd00::1/128 dev lo nodad",
                "ip route add default dev lo",
                "ip -6 route add default dev lo",
            ] {
                tool(command);
            }
            // As the namespaces of real sandboxes have it: anybody may ping.
            std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
            let rules = "table inet test { chain out { type filter hook output priority 0; policy accept; \
                ip daddr { 127.0.0.0/8, 10.200.0.1 } accept; ip6 daddr { ::1, fd00::1 } accept; \
                meta l4proto tcp reject with tcp reset; reject; }; }";
            let rules_file = scratch(rules);
            tool(&format!("nft -f {}", rules_file.path().display()));
            OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap())
        });
        Self { fd: made.join().unwrap() }
    }

    /// Runs `work` on a thread inside the namespace.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let entered = scope.spawn(|| {
                nix::sched::setns(&self.fd, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            entered.join().unwrap()
        })
    }
}

fn tool(line: &str) {
    let mut words = line.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output();
    let output =
        output.unwrap_or_else(|error| panic!("{line}: {error}; the tests need iproute2 and nftables"));
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) fn scratch(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

/// A launch of `program args…` in the tests' environment.
pub(crate) fn command(words: &[&str]) -> Launch<'static> {
    let (program, args) = words.split_first().unwrap();
    let mut launch = Launch::new(program);
    launch.args = args.iter().map(Into::into).collect();
    launch
}

/// What a workload left.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// Its standard output, having ended with 0.
    pub(crate) fn text(self) -> String {
        assert_eq!(self.status, ExitStatus::Exited(0), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self.stdout
    }
}

/// Runs a launch to its end with empty input.
pub(crate) fn run(launch: &Launch<'_>) -> Outcome {
    run_with(launch, |_| ())
}

/// As [`run`], with `meanwhile` done to the running child.
pub(crate) fn run_with(launch: &Launch<'_>, meanwhile: impl FnOnce(&mut Child)) -> Outcome {
    let (mut stdout, mut stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let input = File::open("/dev/null").unwrap();
    let stdio =
        Stdio { stdin: Some(input.as_fd()), stdout: Some(stdout.as_fd()), stderr: Some(stderr.as_fd()) };
    let launch = Launch {
        program: launch.program.clone(),
        args: launch.args.clone(),
        env: launch.env.clone(),
        cwd: launch.cwd.clone(),
        user: launch.user.clone(),
        landlock: launch.landlock.clone(),
        hidden: launch.hidden.clone(),
        replaced: launch.replaced.clone(),
        stdio,
        ..*launch
    };
    let mut child = sluice_seccomp::launch(&launch).unwrap_or_else(|error| panic!("{error}"));
    meanwhile(&mut child);
    let status = child.wait().unwrap();
    Outcome { status, stdout: read(&mut stdout), stderr: read(&mut stderr) }
}

fn read(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits until `done`, with a deadline.
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::yield_now();
    }
}
