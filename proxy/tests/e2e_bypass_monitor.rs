//! The monitor against what happens to the kernel's log: it is overrun, cleared, lied to and restarted from. No attempt is
//! told twice, and none is missed that was made while a daemon ran.

mod e2e;

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::Command;

use e2e::*;
use nix::libc;
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

/// A direct connect that must be refused at once, by whoever may enter the sandbox's namespace.
fn connect(daemon: &Daemon<'_>, sandbox: &str, port: u16) {
    let code = format!("exec 3<>/dev/tcp/{PUBLIC_ADDRESS}/{port}");
    let said = daemon.within(sandbox, &["timeout", "10", "bash", "-c", &code]);
    assert!(said.stderr.contains("Connection refused"), "{port}: {} {}", said.code, said.stderr);
}

/// How many attempts were told, by port.
fn told(events: &[Value]) -> BTreeMap<u64, u64> {
    let mut told = BTreeMap::new();
    for event in events {
        *told.entry(event["dst_port"].as_u64().unwrap_or(0)).or_default() +=
            event["count"].as_u64().unwrap_or(1);
    }
    told
}

/// The number of each record that is in the log, and its text.
fn log() -> Vec<(u64, String)> {
    let mut kmsg = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")
        .expect("open /dev/kmsg (needs root)");
    let (mut records, mut octets) = (Vec::new(), [0; 8192]);
    loop {
        match kmsg.read(&mut octets) {
            Ok(length) => {
                let record = String::from_utf8_lossy(&octets[..length]).into_owned();
                let (head, text) = record.split_once(';').expect("a record");
                let number = head.split(',').nth(1).and_then(|number| number.parse().ok());
                records.push((number.expect("a number"), text.to_owned()));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return records,
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(error) => panic!("/dev/kmsg: {error}"),
        }
    }
}

/// Writes as user space may: the kernel takes few lines of one descriptor at a time.
fn write_to_log(line: &str) {
    let mut kmsg = File::options().write(true).open("/dev/kmsg").expect("open /dev/kmsg");
    kmsg.write_all(line.as_bytes()).expect("write");
}

/// The size of the kernel's log.
fn log_octets() -> usize {
    const SYSLOG_ACTION_SIZE_BUFFER: libc::c_int = 10;
    // SAFETY: this action takes no memory.
    #[allow(unsafe_code, reason = "there is no other way to ask")]
    let size = unsafe { libc::klogctl(SYSLOG_ACTION_SIZE_BUFFER, std::ptr::null_mut(), 0) };
    usize::try_from(size).expect("a size")
}

#[test]
fn what_the_log_overwrote_is_said_with_its_number_and_still_told_and_named() {
    let _alone = alone_with_the_kernel_log();
    let scene = Scene::new();
    let daemon = Daemon::start(&scene, "");
    daemon.ask(&["sandbox", "create", "a"]).ended_with(0);
    // A launched workload: its witness notes what no line tells.
    let code = format!(
        "import socket, sys\n\
         for line in sys.stdin:\n\
         \x20   for port in range(int(line), int(line) + 40):\n\
         \x20       with socket.socket() as s: s.connect_ex(('{PUBLIC_ADDRESS}', port))\n\
         \x20   print('done', flush=True)"
    );
    let mut command = daemon.begin(&["sandbox", "exec", "a", "--", python(), "-c", &code]);
    let mut to = command.stdin.take().expect("stdin");
    let mut from = std::io::BufReader::new(command.stdout.take().expect("stdout"));
    let mut round = |first: u16| {
        writeln!(to, "{first}").expect("write");
        let mut line = String::new();
        std::io::BufRead::read_line(&mut from, &mut line).expect("read");
        assert_eq!(line, "done\n");
    };
    let attempts = || daemon.events_of("bypass.detected", "a");
    let all_told = |ports: u64| told(&attempts()).values().sum::<u64>() >= ports;

    round(1_000);
    eventually("the first are told", || all_told(40));
    // Each of these was read by then; what is in the log when the daemon has stopped may or may not have been.
    let ours = |(number, text): (u64, String)| text.starts_with("sluice[a:").then_some(number);
    let surely_read = log().into_iter().filter_map(ours).next_back().expect("our lines");
    kill(daemon.pid(), Signal::SIGSTOP).expect("stop");
    let may_be_read = log().last().expect("records").0;
    round(2_000);
    let line = format!("<7>sluice test: {}\n", "filling the log. ".repeat(50));
    for _ in 0..log_octets() / line.len() * 2 {
        write_to_log(&line);
    }
    let oldest = log().first().expect("records").0;
    assert!(oldest > may_be_read + 40, "the log is not full");
    kill(daemon.pid(), Signal::SIGCONT).expect("continue");

    let lost =
        || daemon.events().into_iter().filter(|event| event["event"] == "monitor.lost").collect::<Vec<_>>();
    eventually("the loss is said", || !lost().is_empty());
    let oldest_now = log().first().expect("records").0;
    let lost = lost();
    assert_eq!((lost.len(), &lost[0]["reason"]), (1, &"kmsg_overrun".into()), "{lost:?}");
    let count = lost[0]["count"].as_u64().expect("a count");
    let (least, most) = (oldest - may_be_read - 1, oldest_now - surely_read - 1);
    assert!((least..=most).contains(&count), "{count} is not within {least} and {most}");

    // Their lines are gone; the counters and the witness's notes are not.
    eventually("the second are told", || all_told(80));
    round(3_000);
    eventually("events go on", || all_told(120));
    let events = attempts();
    let told = told(&events);
    let wanted =
        [1_000..1_040, 2_000..2_040, 3_000..3_040].into_iter().flatten().map(|port| (port, 1)).collect();
    assert_eq!(told, wanted);
    for event in events {
        assert_eq!(
            (&event["identity"], &event["process"]["exe"]),
            (&"witness".into(), &python().into()),
            "{event}"
        );
    }
    drop(to);
    assert!(command.wait().expect("wait").success());
}

#[test]
fn clearing_the_log_loses_nothing_and_tells_nothing_twice() {
    let _alone = alone_with_the_kernel_log();
    let scene = Scene::new();
    let daemon = Daemon::start(&scene, "");
    daemon.ask(&["sandbox", "create", "a"]).ended_with(0);
    for (number, clear) in (0..).zip(["-C", "-c", "-C", "-c"]) {
        connect(&daemon, "a", 1_000 + 2 * number);
        let cleared = Command::new("dmesg").arg(clear).output().expect("dmesg");
        assert!(cleared.status.success(), "dmesg {clear}");
        connect(&daemon, "a", 1_001 + 2 * number);
    }
    let events = || daemon.events_of("bypass.detected", "a");
    eventually("all are told", || events().len() >= 8);
    // Whatever would tell them again would have done so with this one.
    connect(&daemon, "a", 9_999);
    eventually("the last is told", || told(&events()).contains_key(&9_999));
    let wanted = (1_000..1_008).chain([9_999]).map(|port| (port, 1)).collect();
    assert_eq!(told(&events()), wanted);
    assert!(daemon.events().iter().all(|event| event["event"] != "monitor.lost"));
}

#[test]
fn a_daemon_that_was_killed_leaves_the_fence_and_the_next_tells_only_what_is_new() {
    let _alone = alone_with_the_kernel_log();
    let scene = Scene::new();
    let mut daemon = Daemon::start(&scene, "");
    daemon.ask(&["sandbox", "create", "a"]).ended_with(0);
    connect(&daemon, "a", 1_001);
    let events = |daemon: &Daemon<'_>| told(&daemon.events_of("bypass.detected", "a"));
    eventually("the first is told", || !events(&daemon).is_empty());
    daemon.end(Signal::SIGKILL);
    for port in [1_002, 1_003] {
        connect(&daemon, "a", port);
    }
    daemon.restart();
    for port in [1_004, 1_005] {
        connect(&daemon, "a", port);
    }
    eventually("events go on", || events(&daemon).contains_key(&1_005));
    let wanted = [1_001, 1_004, 1_005].map(|port| (port, 1)).into();
    assert_eq!(events(&daemon), wanted, "lines from between daemons are nobody's to tell");
}

#[test]
fn a_line_that_a_program_wrote_into_the_log_is_ignored_and_counted_though_it_knows_the_secret() {
    let _alone = alone_with_the_kernel_log();
    let scene = Scene::new();
    let metrics =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a free port");
    let daemon = Daemon::start(&scene, &format!("metrics: {metrics}\n"));
    daemon.ask(&["sandbox", "create", "a"]).ended_with(0);
    connect(&daemon, "a", 1_001);
    eventually("an attempt is told", || !daemon.events_of("bypass.detected", "a").is_empty());
    // A line of the kernel's own, word for word, but for its destination: with and without the right secret.
    let (_, line) = log().into_iter().rfind(|(_, text)| text.starts_with("sluice[a:")).expect("our line");
    let forged = line.trim_end().replace(&format!("DST={PUBLIC_ADDRESS}"), "DST=6.6.6.6");
    assert_ne!(forged, line.trim_end());
    let (tag, rest) = forged.split_once(']').expect("a tag");
    let wrong = format!("{}0]{rest}", &tag[..tag.len() - 1]);
    let counted = || -> u64 {
        let page =
            Command::new("curl").args(["-sS", &format!("http://{metrics}/metrics")]).output().expect("curl");
        let page = String::from_utf8_lossy(&page.stdout).into_owned();
        let line = page.lines().find_map(|line| line.strip_prefix("sluice_kmsg_forged_total "));
        line.map_or(0, |count| count.parse().expect("a count"))
    };
    let before = counted();
    for text in [&forged, &wrong] {
        write_to_log(&format!("<4>{text}\n"));
        write_to_log(&format!("{text}\n"));
        // Facility 0 cannot be chosen: the kernel makes it 1.
        write_to_log(&format!("<0>{text}\n"));
    }
    eventually("they are counted", || counted() >= before + 6);
    connect(&daemon, "a", 1_002);
    eventually("events go on", || told(&daemon.events_of("bypass.detected", "a")).contains_key(&1_002));
    let events = daemon.events_of("bypass.detected", "a");
    assert!(events.iter().all(|event| event["dst_ip"] == PUBLIC_ADDRESS), "{events:?}");
    assert_eq!(told(&events), [(1_001, 1), (1_002, 1)].into());
}

#[test]
fn attempts_in_an_attached_namespace_are_named_by_what_the_kernel_still_knows() {
    let _alone = alone_with_the_kernel_log();
    let scene = Scene::new();
    let container = Container::start();
    let daemon = Daemon::start(&scene, "");
    daemon.ask(&["sandbox", "attach", "box", "--pid", &container.pid()]).ended_with(0);
    // A datagram's socket outlives its refusal; what is asked of it, too. A refused connect's is gone at once: the kernel's
    // trace of connects has its process. A ping has neither, and its user's processes are named.
    let code = format!(
        "import socket, sys, time\n\
         udp = socket.socket(type=socket.SOCK_DGRAM)\n\
         connected = socket.socket(type=socket.SOCK_DGRAM)\n\
         icmp = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)\n\
         for act in (lambda: udp.sendto(b'x', ('{PUBLIC_ADDRESS}', 5001)),\n\
         \x20   lambda: udp.sendmsg([b'x'], [], 0, ('{PUBLIC_ADDRESS}', 5002)),\n\
         \x20   lambda: (connected.connect(('{PUBLIC_ADDRESS}', 5003)), connected.send(b'x')),\n\
         \x20   lambda: socket.create_connection(('{PUBLIC_ADDRESS}', 5004), 10),\n\
         \x20   lambda: icmp.sendto(b'\\x08' + bytes(7), ('{PUBLIC_ADDRESS}', 0))):\n\
         \x20   try: act()\n\
         \x20   except OSError: pass\n\
         print('done', flush=True)\n\
         time.sleep(1000)"
    );
    let mut enter = Command::new("nsenter");
    enter
        .args(["-n", "-t", &container.pid(), "--", python(), "-c", &code])
        .stdout(std::process::Stdio::piped());
    let mut workload = enter.spawn().expect("nsenter");
    let mut done = [0; 5];
    workload.stdout.as_mut().expect("stdout").read_exact(&mut done).expect("it acts");
    let events = || daemon.events_of("bypass.detected", "box");
    eventually("all are told", || {
        events().iter().filter_map(|event| event["count"].as_u64()).sum::<u64>() >= 5
    });
    workload.kill().expect("kill");
    workload.wait().expect("wait");

    let pid = u64::from(workload.id());
    let by_port = |port: Option<u16>| {
        let of_port = |event: &&Value| event["dst_port"].as_u64() == port.map(u64::from);
        let events = events();
        events.iter().find(of_port).cloned().unwrap_or_else(|| panic!("no event of {port:?} in {events:#?}"))
    };
    for port in [5_001, 5_002, 5_003] {
        let event = by_port(Some(port));
        assert!(["trace", "diag"].contains(&event["identity"].as_str().unwrap_or_default()), "{event}");
        assert_eq!(
            (&event["process"]["pid"], &event["process"]["exe"]),
            (&pid.into(), &python().into()),
            "{event}"
        );
    }
    let connect = by_port(Some(5_004));
    match connect["identity"].as_str() {
        Some("trace") => assert_eq!(connect["process"]["pid"], pid, "{connect}"),
        // A kernel whose connects cannot be traced.
        _ => assert_candidate(&connect, pid),
    }
    assert_candidate(&by_port(None), pid);
}

/// One of several processes it may have been, and said to be no more than that.
fn assert_candidate(event: &Value, pid: u64) {
    assert_eq!(event["identity"], "candidates", "{event}");
    assert!(event["process"].is_null(), "{event}");
    let candidates = event["candidates"].as_array().expect("candidates");
    assert!(candidates.iter().any(|one| one["pid"] == pid && one["exe"] == python()), "{event}");
}

#[test]
fn logging_from_namespaces_that_was_off_before_the_start_is_switched_on() {
    const SETTING: &str = "/proc/sys/net/netfilter/nf_log_all_netns";
    // While it is off no sandbox of the host has lines.
    let _alone = alone_with_the_kernel_log();
    let scene = Scene::new();
    let before = std::fs::read_to_string(SETTING).expect("read");
    std::fs::write(SETTING, "0").expect("write");
    let direct = format!("http://{PUBLIC_ADDRESS}/");
    let outcome = scene.exec().policy("open").run(&["curl", "-sS", "--noproxy", "*", &direct]);
    std::fs::write(SETTING, before.trim()).expect("restore");
    let outcome = outcome.ended_with(7);
    assert_eq!(outcome.attempts("bypass.detected"), 1, "{outcome}");
    assert_eq!(outcome.the("bypass.detected")["identity"], "witness");
}
