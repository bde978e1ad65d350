//! However many attempts there are, and however few of them the kernel may log: the events add up to what was refused,
//! and every one is named.

mod e2e;

use e2e::*;

/// Runs Python in a sandbox whose fence logs at most 200 lines a second (400 at once) and protocol. The code says on its
/// last line how often it tried.
fn flood(code: &str) -> (Outcome, u64) {
    let scene = Scene::new();
    let preamble = "import os, socket, sys\n\
        def tcp(address, family=socket.AF_INET):\n\
        \x20   with socket.socket(family) as s: s.connect_ex(address)\n\
        def children(number, work):\n\
        \x20   pids = []\n\
        \x20   for n in range(number):\n\
        \x20       pid = os.fork()\n\
        \x20       if pid == 0: work(n); os._exit(0)\n\
        \x20       pids.append(pid)\n\
        \x20   for pid in pids: os.waitpid(pid, 0)\n";
    let outcome =
        scene.exec().policy("open").run(&[python(), "-c", &format!("{preamble}{code}")]).ended_with(0);
    let tried = outcome.text().trim().parse().expect("a number");
    (outcome, tried)
}

/// All attempts are told, and told of a process that is known.
fn assert_all_named(outcome: &Outcome, tried: u64) {
    assert_eq!(outcome.attempts("bypass.detected"), tried, "{}", outcome.stderr);
    for event in outcome.events_of("bypass.detected") {
        assert_eq!(event["identity"], "witness", "{event}");
        assert!(event["process"]["exe"] == python(), "{event}");
    }
    assert!(outcome.stderr.contains(&format!("{tried} bypass attempts refused")), "{}", outcome.stderr);
}

#[test]
fn tcp_attempts_of_several_processes_beyond_the_log_limit_are_all_told_and_named() {
    let (outcome, tried) = flood(
        "def work(n):\n\
        \x20   for _ in range(1500): tcp(('192.0.2.1', 80)); tcp(('2001:db8::1', 443), socket.AF_INET6)\n\
         children(4, work)\n\
         print(12000)",
    );
    assert_all_named(&outcome, tried);
    let events = outcome.events_of("bypass.detected");
    let mut of: std::collections::HashMap<u64, u64> = std::collections::HashMap::new();
    for event in events {
        *of.entry(event["process"]["pid"].as_u64().expect("a pid")).or_default() +=
            event["count"].as_u64().expect("a count");
    }
    assert_eq!(of.into_values().collect::<Vec<_>>(), [3000; 4], "each process by its own number");
}

#[test]
fn udp_datagrams_beyond_the_log_limit_are_all_told_and_named() {
    let (outcome, tried) = flood(
        "with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:\n\
        \x20   for _ in range(3000):\n\
        \x20       try: s.sendto(b'x', ('192.0.2.1', 4433))\n\
        \x20       except PermissionError: pass\n\
         with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:\n\
        \x20   s.connect(('192.0.2.1', 53))\n\
        \x20   for _ in range(3000):\n\
        \x20       try: s.send(b'x')\n\
        \x20       except PermissionError: pass\n\
         print(6000)",
    );
    assert_eq!(outcome.attempts("bypass.detected"), tried, "{}", outcome.stderr);
    let events = outcome.events_of("bypass.detected");
    assert!(events.iter().all(|event| event["process"]["exe"] == python()), "{}", outcome.stderr);
}

#[test]
fn datagrams_of_a_call_that_nobody_notes_are_told_and_named_by_their_socket() {
    let (outcome, tried) = flood(
        "import time\n\
         s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n\
         for _ in range(3000):\n\
        \x20   try: s.sendmsg([b'x'], [], 0, ('2001:db8::1', 4433))\n\
        \x20   except PermissionError: pass\n\
         time.sleep(1)\n\
         print(3000)",
    );
    assert_eq!(outcome.attempts("bypass.detected"), tried, "{}", outcome.stderr);
    for event in outcome.events_of("bypass.detected") {
        assert_eq!(event["identity"], "diag", "{event}");
        assert_eq!(event["process"]["exe"], python(), "{event}");
    }
}

#[test]
fn pings_beyond_the_log_limit_are_all_told_and_named() {
    let (outcome, tried) = flood(
        "with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as s:\n\
        \x20   for _ in range(2000):\n\
        \x20       try: s.sendto(b'\\x08' + b'\\0' * 7, ('192.0.2.1', 0))\n\
        \x20       except PermissionError: pass\n\
         print(2000)",
    );
    assert_all_named(&outcome, tried);
}

#[test]
fn a_port_scan_is_told_in_few_events_and_all_of_it_is_named() {
    let (outcome, tried) = flood("for port in range(1, 5001): tcp(('192.0.2.1', port))\nprint(5000)");
    assert_all_named(&outcome, tried);
    assert!(outcome.events_of("bypass.detected").len() < 1_200);
}

#[test]
fn calls_to_the_proxy_amid_a_flood_are_nobodys_attempts() {
    let (outcome, tried) = flood(
        "import threading\n\
         done = []\n\
         def talk():\n\
        \x20   while not done: tcp(('10.200.0.1', 3128)); tcp(('10.200.0.1', 9)); tcp(('127.0.0.1', 9))\n\
         thread = threading.Thread(target=talk); thread.start()\n\
         for _ in range(4000): tcp(('192.0.2.1', 80))\n\
         done.append(1); thread.join()\n\
         print(4000)",
    );
    assert_all_named(&outcome, tried);
    assert!(outcome.events_of("bypass.detected").iter().all(|event| event["dst_ip"] == "192.0.2.1"));
}

#[test]
fn netlink_messages_instead_of_the_kernel_log_tell_the_same() {
    let scene = Scene::new();
    let code = "import socket\n\
        def attempt(family, kind, act):\n\
        \x20   with socket.socket(family, kind) as s:\n\
        \x20       try: act(s)\n\
        \x20       except OSError: pass\n\
        for _ in range(1000): attempt(socket.AF_INET, socket.SOCK_STREAM, lambda s: s.connect(('192.0.2.1', 443)))\n\
        attempt(socket.AF_INET6, socket.SOCK_STREAM, lambda s: s.connect(('2001:db8::1', 443)))\n\
        attempt(socket.AF_INET, socket.SOCK_DGRAM, lambda s: s.sendto(b'x', ('192.0.2.1', 53)))";
    let outcome = scene
        .exec()
        .policy("open")
        .option("--bypass-source=nflog")
        .run(&[python(), "-c", code])
        .ended_with(0);
    assert_eq!(outcome.attempts("bypass.detected"), 1002, "{}", outcome.stderr);
    let events = outcome.events_of("bypass.detected");
    assert!(events.iter().all(|event| event["identity"] == "witness" && event["process"]["exe"] == python()));
    let mut kinds: Vec<String> =
        events.iter().map(|event| format!("{} {}", event["proto"], event["reason"])).collect();
    kinds.sort();
    kinds.dedup();
    assert_eq!(kinds, [r#""tcp" "direct_tcp""#, r#""udp" "direct_dns""#]);
}
