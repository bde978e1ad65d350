//! What the monitor costs and how late it is, on this machine: `cargo run --release -p sluice-bypass --example measure`.
//!
//! Makes a fenced namespace, floods it, then connects one by one on an otherwise idle monitor. Needs root.

#[path = "../tests/namespace/mod.rs"]
mod namespace;

use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use namespace::{Log, Namespace};
use nix::time::{ClockId, clock_gettime};
use sluice_bypass::{Attempt, Loss, Moment, Monitor, Settings, Sink, nflog};

const FLOOD: usize = 100_000;
const SINGLES: usize = 300;

#[derive(Default)]
struct Meter {
    name: String,
    attempts: u64,
    lost: u64,
    read_us: Vec<u64>,
    cpu: Duration,
}

impl Sink for Meter {
    fn attempt(&mut self, attempt: &Attempt<'_>, when: Moment) {
        if attempt.tag.name == self.name {
            self.attempts += 1;
            self.read_us.push(when.read_us);
        }
    }

    fn lost(&mut self, loss: Loss) {
        self.lost += loss.records;
    }

    fn idle(&mut self, _now_us: u64) {
        self.cpu = clock(ClockId::CLOCK_THREAD_CPUTIME_ID);
    }
}

fn main() {
    for source in [Log::Kmsg, Log::Nflog(3)] {
        let label = if matches!(source, Log::Kmsg) { "kmsg" } else { "nflog" };
        let namespace = Namespace::fenced(&source);
        flood(label, &namespace, &source, "udp", |count| {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
            for _ in 0..count {
                let _refused = socket.send_to(b"x", (Ipv4Addr::new(9, 9, 9, 9), 9));
            }
        });
        flood(label, &namespace, &source, "tcp", |count| {
            for _ in 0..count / 4 {
                let _refused = TcpStream::connect((Ipv4Addr::new(9, 9, 9, 9), 80));
            }
        });
        for nudge in [false, true] {
            singles(label, &namespace, &source, nudge);
        }
    }
}

fn start(namespace: &Namespace, source: &Log) -> Monitor<Meter> {
    let core = std::env::var("CORE").ok().and_then(|core| core.parse().ok());
    let mut settings = Settings { core, ..Settings::default() };
    if let Log::Nflog(_) = source {
        settings.kmsg = None;
    }
    let meter = Meter { name: namespace.name.clone(), ..Meter::default() };
    let monitor = Monitor::start(settings, meter).expect("monitor");
    if let Log::Nflog(group) = *source {
        let socket = namespace.enter(move || nflog::Socket::open(group)).expect("nflog");
        monitor.handle().watch(socket).expect("watch");
    }
    monitor
}

fn flood(label: &str, namespace: &Namespace, source: &Log, proto: &str, send: fn(usize)) {
    let monitor = start(namespace, source);
    let began = Instant::now();
    namespace.enter(move || send(FLOOD));
    let took = began.elapsed();
    monitor.handle().drain(Duration::from_secs(10)).expect("drain");
    let meter = monitor.stop().expect("stop");
    let attempts = meter.attempts;
    println!(
        "{label} {proto} flood: {attempts} read, {} lost, {:.0}/s, {:.2} µs CPU each",
        meter.lost,
        (attempts + meter.lost) as f64 / took.as_secs_f64(),
        meter.cpu.as_secs_f64() * 1e6 / attempts.max(1) as f64,
    );
}

/// From the moment connect(2) failed to the moment the record was read.
fn singles(label: &str, namespace: &Namespace, source: &Log, nudge: bool) {
    let monitor = start(namespace, source);
    let handle = monitor.handle();
    let failed_us: Vec<u64> = namespace.enter(move || {
        let to = SocketAddr::from((Ipv4Addr::new(9, 9, 9, 9), 80));
        (0..SINGLES)
            .map(|at| {
                // Out of step with the timer tick.
                std::thread::sleep(Duration::from_micros(20_000 + at as u64 * 137 % 4000));
                if nudge {
                    handle.nudge().expect("running");
                }
                let _refused = TcpStream::connect(to);
                clock(ClockId::CLOCK_MONOTONIC).as_micros() as u64
            })
            .collect()
    });
    monitor.handle().drain(Duration::from_secs(10)).expect("drain");
    let meter = monitor.stop().expect("stop");
    let mut late: Vec<i64> =
        meter.read_us.iter().zip(&failed_us).map(|(read, failed)| *read as i64 - *failed as i64).collect();
    late.sort_unstable();
    let at = |share: f64| late[((late.len() - 1) as f64 * share) as usize];
    println!(
        "{label} one at a time{}: {} read, delay p50 {} µs, p99 {} µs, max {} µs; CPU {:.1} ms/s",
        if nudge { ", nudged" } else { "" },
        late.len(),
        at(0.5),
        at(0.99),
        at(1.0),
        meter.cpu.as_secs_f64() * 1000.0 / (SINGLES as f64 * 0.022),
    );
}

fn clock(id: ClockId) -> Duration {
    Duration::from(clock_gettime(id).expect("the clock exists"))
}
