//! The monitor against the real kernel: refused packets in real namespaces, read from the real log.
//!
//! Other tests and other processes log at the same time; every test counts only lines with its own tag.

mod namespace;

use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use namespace::{Log, Namespace};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, getsockname, sendto,
    socket as socket_of,
};
use sluice_bypass::monitor::Resume;
use sluice_bypass::probe::{Usable, probes, usable};
use sluice_bypass::{Attempt, Loss, Malformed, Moment, Monitor, Settings, Sink};

const PATIENCE: Duration = Duration::from_secs(20);

/// Keeps what concerns one namespace.
struct Keep {
    name: String,
    token: u64,
    seen: Vec<Seen>,
    lost: u64,
    forged: u64,
    malformed: Vec<Malformed>,
    /// Waited for at the first attempt, to let the log overtake the monitor.
    hold: Option<mpsc::Receiver<()>>,
}

#[derive(Debug, Clone, PartialEq)]
struct Seen {
    seq: u64,
    what: String,
    uid: Option<u32>,
    when: Moment,
}

impl Keep {
    fn of(namespace: &Namespace) -> Self {
        Self {
            name: namespace.name.clone(),
            token: namespace.token,
            seen: Vec::new(),
            lost: 0,
            forged: 0,
            malformed: Vec::new(),
            hold: None,
        }
    }

    fn what(&self) -> Vec<&str> {
        self.seen.iter().map(|seen| seen.what.as_str()).collect()
    }
}

impl Sink for Keep {
    fn attempt(&mut self, attempt: &Attempt<'_>, when: Moment) {
        if attempt.tag.name != self.name {
            return;
        }
        assert_eq!(attempt.tag.token, self.token);
        if let Some(hold) = self.hold.take() {
            let _ = hold.recv_timeout(PATIENCE);
        }
        let what = match (attempt.dst_port, attempt.icmp) {
            (Some(port), _) => format!("{} {} {port}", attempt.proto, attempt.dst),
            (None, Some(icmp)) => format!("{} {} type {}", attempt.proto, attempt.dst, icmp.kind),
            (None, None) => format!("{} {}", attempt.proto, attempt.dst),
        };
        self.seen.push(Seen { seq: attempt.seq, what, uid: attempt.uid, when });
    }

    fn lost(&mut self, loss: Loss) {
        self.lost += loss.records;
    }

    fn forged(&mut self) {
        self.forged += 1;
    }

    fn malformed(&mut self, why: Malformed) {
        self.malformed.push(why);
    }
}

fn start(namespace: &Namespace) -> Monitor<Keep> {
    Monitor::start(Settings::default(), Keep::of(namespace)).expect("the monitor needs root and io_uring")
}

fn drain_and_stop(monitor: Monitor<Keep>) -> Keep {
    monitor.handle().drain(PATIENCE).expect("everything is read in time");
    monitor.stop().expect("the monitor ran to its end")
}

#[test]
fn every_kind_of_attempt_is_delivered_in_order() {
    let namespace = Namespace::fenced(&Log::Kmsg);
    let monitor = start(&namespace);
    namespace.connect("1.2.3.4:80");
    namespace.connect("[2001:db8::1]:443");
    namespace.send("8.8.8.8:53", 1);
    namespace.send("[2001:db8::2]:53", 1);
    let keep = drain_and_stop(monitor);
    assert_eq!(
        keep.what(),
        ["tcp 1.2.3.4 80", "tcp 2001:db8::1 443", "udp 8.8.8.8 53", "udp 2001:db8::2 53"]
    );
    assert_eq!(keep.malformed, []);
    for seen in &keep.seen {
        assert_eq!(seen.uid, Some(0));
        assert!(seen.when.logged_us <= seen.when.read_us);
    }
}

#[test]
fn a_line_that_user_space_forged_is_ignored_and_counted() {
    let namespace = Namespace::fenced(&Log::Kmsg);
    let monitor = start(&namespace);
    let forged = format!(
        "<4>{}IN= OUT=lo SRC=10.200.0.1 DST=6.6.6.6 LEN=60 PROTO=TCP SPT=1 DPT=2 UID=0 GID=0\n",
        namespace.prefix()
    );
    let mut kmsg = OpenOptions::new().write(true).open("/dev/kmsg").unwrap();
    kmsg.write_all(forged.as_bytes()).unwrap();
    namespace.connect("1.2.3.4:80");
    let keep = drain_and_stop(monitor);
    assert_eq!(keep.what(), ["tcp 1.2.3.4 80"]);
    assert!(keep.forged >= 1);
}

#[test]
fn lines_from_before_the_start_are_not_delivered() {
    let namespace = Namespace::fenced(&Log::Kmsg);
    namespace.connect("1.2.3.4:1");
    let monitor = start(&namespace);
    namespace.connect("1.2.3.4:2");
    let keep = drain_and_stop(monitor);
    assert_eq!(keep.what(), ["tcp 1.2.3.4 2"]);
}

#[test]
fn a_restarted_monitor_goes_on_where_the_first_ended() {
    let namespace = Namespace::fenced(&Log::Kmsg);
    let first = start(&namespace);
    namespace.connect("1.2.3.4:1");
    first.handle().drain(PATIENCE).unwrap();
    let last_seq = first.totals().last_seq;
    assert_eq!(first.stop().unwrap().what(), ["tcp 1.2.3.4 1"]);
    namespace.connect("1.2.3.4:2");
    let settings = Settings { kmsg: Some(Resume::After(last_seq)), ..Settings::default() };
    let second = Monitor::start(settings, Keep::of(&namespace)).unwrap();
    namespace.connect("1.2.3.4:3");
    let keep = drain_and_stop(second);
    assert_eq!(keep.what(), ["tcp 1.2.3.4 2", "tcp 1.2.3.4 3"]);
}

#[test]
fn a_flood_of_20_000_lines_is_read_without_loss() {
    const LINES: usize = 20_000;
    let namespace = Namespace::fenced(&Log::Kmsg);
    // 40,000 a second: more than the promise, less than this build's monitor can read. The log's ring holds some 10 ms
    // of such a flood. Where other processes keep the machine's cores from the
    // monitor for that long, lines are lost by rights: then what was read and lost must add up, and one of
    // several floods must get through whole.
    let whole = (0..5).any(|_| {
        let monitor = start(&namespace);
        namespace.send_every(Duration::from_micros(25), "8.8.8.8:9", LINES);
        let keep = drain_and_stop(monitor);
        assert!(keep.seen.len() as u64 + keep.lost >= LINES as u64, "{} + {}", keep.seen.len(), keep.lost);
        assert!(keep.seen.is_sorted_by(|a, b| a.seq < b.seq), "delivered in order, each once");
        keep.lost == 0 && keep.seen.len() == LINES
    });
    assert!(whole, "none of five floods was read without loss");
}

#[test]
fn a_monitor_that_falls_behind_says_how_much_it_lost() {
    const LINES: usize = 5_000;
    let namespace = Namespace::fenced(&Log::Kmsg);
    let (release, hold) = mpsc::channel();
    let mut keep = Keep::of(&namespace);
    keep.hold = Some(hold);
    let monitor = Monitor::start(Settings::default(), keep).unwrap();
    namespace.send("8.8.8.8:9", LINES);
    release.send(()).unwrap();
    monitor.handle().drain(PATIENCE).unwrap();
    let totals = monitor.totals();
    let keep = monitor.stop().unwrap();
    assert!(keep.seen.len() < LINES, "the ring cannot hold {LINES} lines");
    assert!(keep.seen.len() as u64 + keep.lost >= LINES as u64);
    assert!(totals.overruns >= 1);
    assert_eq!(totals.lost, keep.lost);
}

#[test]
fn a_monitor_stops_promptly_while_nothing_happens() {
    let namespace = Namespace::fenced(&Log::Kmsg);
    // No tick of its own wakes this monitor.
    let settings = Settings { tick: Duration::from_secs(3600), ..Settings::default() };
    let monitor = Monitor::start(settings, Keep::of(&namespace)).unwrap();
    let began = Instant::now();
    monitor.stop().unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[test]
fn a_nudged_or_a_polling_monitor_delivers_while_its_tick_is_far_off() {
    let namespace = Namespace::fenced(&Log::Kmsg);
    let tick = Duration::from_secs(3600);
    for poll in [None, Some(Duration::from_micros(500))] {
        let settings = Settings { tick, poll, ..Settings::default() };
        let monitor = Monitor::start(settings, Keep::of(&namespace)).unwrap();
        let handle = monitor.handle();
        let began = Instant::now();
        for port in 1..=20 {
            if poll.is_none() {
                handle.nudge().unwrap();
            }
            namespace.connect(&format!("1.2.3.4:{port}"));
            while handle.totals().attempts < port {
                assert!(began.elapsed() < PATIENCE, "attempt {port} was not seen");
                std::thread::yield_now();
            }
        }
        assert_eq!(drain_and_stop(monitor).seen.len(), 20);
    }
}

#[test]
fn the_owner_reaches_its_sink_on_the_monitors_thread() {
    let namespace = Namespace::fenced(&Log::Kmsg);
    let monitor = start(&namespace);
    let (answer, question) = mpsc::channel();
    monitor.handle().with(move |keep| answer.send(keep.name.clone()).unwrap()).unwrap();
    assert_eq!(question.recv_timeout(PATIENCE).unwrap(), namespace.name);
}

#[test]
fn a_core_that_does_not_exist_is_refused_with_its_number() {
    let namespace = Namespace::fenced(&Log::Kmsg);
    let settings = Settings { core: Some(1000), ..Settings::default() };
    let error = Monitor::start(settings, Keep::of(&namespace)).err().unwrap().to_string();
    assert!(error.contains("1000"), "{error}");
}

#[test]
fn nflog_delivers_the_same_attempts() {
    let namespace = Namespace::fenced(&Log::Nflog(7));
    let settings = Settings { kmsg: None, ..Settings::default() };
    let monitor = Monitor::start(settings, Keep::of(&namespace)).unwrap();
    let socket = namespace.enter(|| sluice_bypass::nflog::Socket::open(7)).unwrap();
    let id = monitor.handle().watch(socket).unwrap();
    namespace.connect("1.2.3.4:80");
    namespace.connect("[2001:db8::1]:443");
    namespace.send("8.8.8.8:53", 1);
    namespace.send("[2001:db8::2]:53", 1);
    monitor.handle().drain(PATIENCE).unwrap();
    monitor.handle().unwatch(id).unwrap();
    let keep = drain_and_stop(monitor);
    assert_eq!(
        keep.what(),
        ["tcp 1.2.3.4 80", "tcp 2001:db8::1 443", "udp 8.8.8.8 53", "udp 2001:db8::2 53"]
    );
    assert!(keep.seen.iter().all(|seen| seen.uid == Some(0)));
    assert_eq!((keep.lost, keep.forged, keep.malformed.len()), (0, 0, 0));
}

#[test]
fn a_netlink_message_that_does_not_come_from_the_kernel_is_ignored_and_counted() {
    let namespace = Namespace::fenced(&Log::Nflog(7));
    let settings = Settings { kmsg: None, ..Settings::default() };
    let monitor = Monitor::start(settings, Keep::of(&namespace)).unwrap();
    let socket = namespace.enter(|| sluice_bypass::nflog::Socket::open(7)).unwrap();
    let port = getsockname::<NetlinkAddr>(socket.as_raw_fd()).unwrap().pid();
    monitor.handle().watch(socket).unwrap();
    namespace.enter(move || {
        let flags = SockFlag::SOCK_CLOEXEC;
        let root =
            socket_of(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter).unwrap();
        sendto(root.as_raw_fd(), &[0; 64], &NetlinkAddr::new(port, 0), MsgFlags::empty()).unwrap();
    });
    let keep = drain_and_stop(monitor);
    assert_eq!((keep.forged, keep.seen.len()), (1, 0));
}

#[test]
fn a_group_that_is_taken_is_refused() {
    let namespace = Namespace::fenced(&Log::Nflog(7));
    let _holder = namespace.enter(|| sluice_bypass::nflog::Socket::open(7)).unwrap();
    let error = namespace.enter(|| sluice_bypass::nflog::Socket::open(7)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
}

#[test]
fn this_host_passes_every_probe() {
    let _sets_nf_log_all_netns = Namespace::fenced(&Log::Kmsg);
    for probe in probes() {
        assert!(probe.ok, "{probe:?}");
        assert!(probe.remedy.is_empty() && !probe.detail.is_empty(), "{probe:?}");
    }
    assert_eq!(usable(&probes()), Usable::Kmsg);
}
