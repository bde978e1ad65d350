//! What confinement costs on this machine: start-up, one filtered call, one witnessed connect, each held
//! against its target.
//!
//! Run as root: `cargo run --release -p sluice-seccomp --example cost`.
#![allow(clippy::unwrap_used, reason = "a measurement that fails has nothing to show")]

use sluice_seccomp::{Launch, Namespaces, Stdio, Witness, launch, note_ring};
use std::fs::File;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

const ROUNDS: u32 = 5;

fn main() {
    if let Some(task) = std::env::args().nth(1) {
        let time = match task.as_str() {
            "socket" => each(200_000, socket),
            "getppid" => each(2_000_000, || assert!(nix::unistd::getppid().as_raw() >= 0)),
            "ioctl" => each(500_000, ioctl),
            "connect" => each(20_000, connect),
            other => panic!("no task {other}"),
        };
        println!("{}", time.as_nanos());
        return;
    }
    enter_namespace();
    println!("start-up of /bin/true");
    let plain =
        least(|| each(50, || assert!(std::process::Command::new("/bin/true").status().unwrap().success())));
    println!("  fork and exec          {plain:>9.1?}");
    for (name, namespaces) in [
        ("confined", Namespaces { pids: false, private_tmp: false }),
        ("… with pid namespace", Namespaces::default()),
        ("… and private /tmp", Namespaces { pids: true, private_tmp: true }),
    ] {
        let time = least(|| {
            each(50, || {
                let mut wanted = Launch::new("/bin/true");
                wanted.namespaces = namespaces;
                wanted.witness = true;
                launch(&wanted).unwrap().wait().unwrap();
            })
        });
        println!("  {name:<22} {time:>9.1?}  {}", verdict(time, plain, START_UP_MAX));
    }
    println!("one call                    free   filtered   filtered and witnessed");
    for task in ["getppid", "ioctl", "socket", "connect"] {
        let free = least(|| {
            let output =
                std::process::Command::new(std::env::current_exe().unwrap()).arg(task).output().unwrap();
            parse(&output.stdout)
        });
        let (filtered, witnessed) = (least(|| confined(task, false)), least(|| confined(task, true)));
        // `socket` is four calls: socket, bind, close, and setting close-on-exec.
        let verdict = match task {
            "connect" => verdict(witnessed, filtered, WITNESS_MAX),
            _ => verdict(filtered, free, FILTER_MAX * if task == "socket" { 4 } else { 1 }),
        };
        println!("  {task:<20} {free:>10.1?} {filtered:>10.1?} {witnessed:>10.1?}  {verdict}");
    }
}

/// What a measure may add.
const START_UP_MAX: Duration = Duration::from_millis(15);
const FILTER_MAX: Duration = Duration::from_nanos(100);
const WITNESS_MAX: Duration = Duration::from_micros(20);

fn verdict(with: Duration, without: Duration, allowed: Duration) -> String {
    let added = with.saturating_sub(without);
    let word = if added <= allowed { "met" } else { "MISSED" };
    format!("adds {added:.1?}, target {allowed:?}: {word}")
}

fn each(count: u32, mut call: impl FnMut()) -> Duration {
    let start = Instant::now();
    for _ in 0..count {
        call();
    }
    start.elapsed() / count
}

/// The least of several rounds: what it costs when nobody else is in the way.
fn least(mut measure: impl FnMut() -> Duration) -> Duration {
    (0..ROUNDS).map(|_| measure()).min().unwrap()
}

/// Makes a socket and closes it: `socket` has the most argument tests of all calls.
fn socket() {
    drop(std::net::UdpSocket::bind("127.0.0.1:0"));
}

/// A call whose number and arguments every program looks at: `TCGETS` of what is no terminal.
fn ioctl() {
    static PIPE: std::sync::OnceLock<(std::os::fd::OwnedFd, std::os::fd::OwnedFd)> =
        std::sync::OnceLock::new();
    let (reading, _) = PIPE.get_or_init(|| nix::unistd::pipe().unwrap());
    assert!(nix::sys::termios::tcgetattr(reading).is_err());
}

/// Refused at once: nothing listens there.
fn connect() {
    drop(std::net::TcpStream::connect("10.200.0.1:9"));
}

fn enter_namespace() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    for line in ["link set lo up", "address add 10.200.0.1/32 dev lo"] {
        assert!(std::process::Command::new("ip").args(line.split(' ')).status().unwrap().success());
    }
}

fn confined(task: &str, witnessed: bool) -> Duration {
    let output = tempfile::NamedTempFile::new().unwrap();
    let file = File::create(output.path()).unwrap();
    let mut wanted = Launch::new(std::env::current_exe().unwrap());
    wanted.args = vec![task.into()];
    wanted.witness = witnessed;
    wanted.stdio = Stdio { stdout: Some(file.as_fd()), ..Stdio::default() };
    let mut child = launch(&wanted).unwrap();
    let served = child.take_witness().map(|listener| {
        let witness = Witness::new(listener, child.pid(), note_ring().unwrap().0, vec![]);
        std::thread::spawn(move || witness.run(None).unwrap())
    });
    child.wait().unwrap();
    if let Some(served) = served {
        let served = served.join().unwrap();
        assert_eq!(served.unnamed, 0);
    }
    parse(&std::fs::read(output.path()).unwrap())
}

fn parse(nanoseconds: &[u8]) -> Duration {
    Duration::from_nanos(String::from_utf8_lossy(nanoseconds).trim().parse().unwrap())
}
