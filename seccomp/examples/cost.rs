//! What confinement costs on this machine: start-up, one filtered call, one witnessed connect, each held
//! against its target.
//!
//! Run as root: `cargo run --release -p sluice-seccomp --example cost`.
#![allow(clippy::unwrap_used, reason = "a measurement that fails has nothing to show")]

use sluice_seccomp::{Launch, Namespaces, Stdio, Witness, harden, launch, note_ring};
use std::fs::File;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

const ROUNDS: u32 = 10;

fn main() {
    if let Some(task) = std::env::args().nth(1) {
        if std::env::args().nth(2).is_some() {
            harden::process(harden::Mode::Enforce).unwrap();
            harden::enter(harden::Role::Worker, &[]).unwrap();
        }
        let time = match task.as_str() {
            "socket" => each(500_000, socket),
            "getppid" => each(2_000_000, || assert!(nix::unistd::getppid().as_raw() >= 0)),
            "ioctl" => each(500_000, ioctl),
            "getpid" => each(2_000_000, || assert!(nix::unistd::getpid().as_raw() > 0)),
            "fcntl" => each(2_000_000, || {
                nix::fcntl::fcntl(std::io::stdin(), nix::fcntl::F_GETFD).unwrap();
            }),
            "connect" => each(20_000, connect),
            other => panic!("no task {other}"),
        };
        println!("{}", time.as_nanos());
        return;
    }
    enter_namespace();
    start_up();
    calls();
    workers_calls();
}

/// Fork and exec of `/bin/true`, plain and confined.
fn start_up() {
    let confined = |namespaces| {
        each(50, || {
            let mut wanted = Launch::new("/bin/true");
            wanted.namespaces = namespaces;
            wanted.witness = true;
            // Whence it is started may be below /tmp.
            wanted.cwd = Some("/".into());
            launch(&wanted).unwrap().wait().unwrap();
        })
    };
    let bare = Namespaces { pids: false, private_tmp: false };
    let private_tmp = Namespaces { pids: true, private_tmp: true };
    let plain = || each(50, || assert!(std::process::Command::new("/bin/true").status().unwrap().success()));
    let [plain, rest @ ..] =
        interleaved([&plain, &|| confined(bare), &|| confined(Namespaces::default()), &|| {
            confined(private_tmp)
        }]);
    println!("start-up of /bin/true");
    println!("  fork and exec          {plain:>9.1?}");
    for (name, time) in ["confined", "… with pid namespace", "… and private /tmp"].into_iter().zip(rest) {
        println!("  {name:<22} {time:>9.1?}  {}", verdict(time, plain, START_UP_MAX));
    }
}

/// Single calls: free, under the workload's filter, and under filter and witness.
fn calls() {
    println!("one call                    free   filtered   filtered and witnessed");
    for task in ["getppid", "ioctl", "socket", "connect"] {
        let [free, filtered, witnessed] =
            interleaved([&|| unconfined(&[task]), &|| confined(task, false), &|| confined(task, true)]);
        let verdict = match task {
            "connect" => verdict(witnessed, filtered, WITNESS_MAX),
            _ => verdict(witnessed, free, FILTER_MAX),
        };
        println!("  {task:<20} {free:>10.1?} {filtered:>10.1?} {witnessed:>10.1?}  {verdict}");
    }
}

/// The same under a worker's own allow-list: a call without conditions, and one with the most.
fn workers_calls() {
    println!("one call of a worker        free   confined");
    for task in ["getpid", "fcntl"] {
        let [free, held] = interleaved([&|| unconfined(&[task]), &|| unconfined(&[task, "as-worker"])]);
        println!("  {task:<20} {free:>10.1?} {held:>10.1?}  {}", verdict(held, free, FILTER_MAX));
    }
}

fn unconfined(task: &[&str]) -> Duration {
    let this = std::env::current_exe().unwrap();
    parse(&std::process::Command::new(this).args(task).output().unwrap().stdout)
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

/// The least of several rounds for each, one after the other in each round: what it costs when nobody else is in the
/// way, with what drifts falling on all alike.
fn interleaved<const N: usize>(measures: [&dyn Fn() -> Duration; N]) -> [Duration; N] {
    let mut least = [Duration::MAX; N];
    for _ in 0..ROUNDS {
        for (least, measure) in least.iter_mut().zip(measures) {
            *least = measure().min(*least);
        }
    }
    least
}

/// `socket` has the most conditions of all calls, and this one passes them all; the kernel itself refuses it at once for a
/// flag that there is not, so that the filter is all there is to see.
fn socket() {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
    let flag = SockFlag::from_bits_retain(0x100);
    let refused = socket(AddressFamily::Inet6, SockType::Datagram, flag, SockProtocol::Udp);
    assert_eq!(refused.unwrap_err(), nix::errno::Errno::EINVAL);
}

/// A call that only some programs know: `TCGETS` of what is no terminal.
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
