//! Whatever tries to go around the proxy is refused at once and named.
//!
//! The first of the four field reports (FACTS.md): direct connects that bypass the proxy were invisible.

mod e2e;

use std::time::Duration;

use e2e::*;

/// What a refusal may take, seen from inside the program. A dropped packet would take seconds.
const AT_ONCE: Duration = Duration::from_secs(1);

#[test]
fn nodes_fetch_goes_direct_and_is_refused_named_and_told_what_to_change() {
    let scene = Scene::new();
    let code = "const begun = process.hrtime.bigint();\n\
        fetch('http://192.0.2.1/').catch(error => {\n\
          const took = Number(process.hrtime.bigint() - begun) / 1e6;\n\
          console.log(JSON.stringify({ code: error.cause.code, took, pid: process.pid }));\n\
        });";
    // A Node that obeys the proxy variables must still be seen going direct.
    let exec = scene.exec().policy("open");
    let outcome = exec.run(&["env", "-u", "NODE_USE_ENV_PROXY", node(), "-e", code]).ended_with(0);
    let said: serde_json::Value = serde_json::from_slice(&outcome.stdout).expect("JSON");
    assert_eq!(said["code"], "ECONNREFUSED");
    let took = Duration::from_secs_f64(said["took"].as_f64().expect("a time") / 1e3);
    assert!(took < AT_ONCE, "{took:?}");

    let event = outcome.the("bypass.detected");
    assert_eq!(event["process"]["exe"], node());
    assert!(node().ends_with("/node"));
    assert!(event["process"]["pid"].as_u64().is_some_and(|pid| pid > 1), "{event}");
    assert_eq!(event["identity"], "witness");
    assert_eq!(event["reason"], "direct_tcp");
    assert_eq!(event["dst_ip"], PUBLIC_ADDRESS);
    assert_eq!(event["dst_port"], 80);
    assert_eq!(event["uid"], 0);
    assert!(event["hint"].as_str().is_some_and(|hint| hint.contains("NODE_USE_ENV_PROXY=1")), "{event}");
    assert!(outcome.stderr.contains("BYPASS_DETECT rejected direct tcp 192.0.2.1:80"), "{outcome}");
    assert!(outcome.stderr.contains("0 allowed, 0 denied, 1 bypass attempt refused"), "{outcome}");
}

#[test]
fn nodes_fetch_of_a_name_fails_at_the_lookup_and_is_told_what_to_change_in_node() {
    let scene = Scene::new();
    let code = "fetch('http://origin.example/').catch(error => console.log(error.cause.code));";
    let exec = scene.exec().policy("open");
    let outcome = exec.run(&["env", "-u", "NODE_USE_ENV_PROXY", node(), "-e", code]).ended_with(0);
    let events = outcome.events_of("bypass.detected");
    // The scene's resolver is on loopback, where a lookup would fail unseen; the sandbox is shown another.
    assert!(!events.is_empty(), "{outcome}");
    for event in events {
        assert_eq!(event["reason"], "direct_dns", "{event}");
        assert_eq!(event["process"]["exe"], node(), "{event}");
        assert!(event["hint"].as_str().is_some_and(|hint| hint.contains("NODE_USE_ENV_PROXY=1")), "{event}");
    }
}

#[test]
fn curl_told_not_to_use_the_proxy_is_named() {
    let scene = Scene::new();
    let outcome =
        scene.exec().policy("open").run(&["curl", "-sS", "--noproxy", "*", "http://192.0.2.1:8080/"]);
    let outcome = outcome.ended_with(7);
    let event = outcome.the("bypass.detected");
    assert_eq!(event["process"]["exe"], program("curl"));
    assert_eq!(event["dst_port"], 8080);
    assert!(event["hint"].as_str().is_some_and(|hint| hint.contains("--noproxy")), "{event}");
}

/// Runs Python inside and gives the attempts that were seen, in order of their text:
/// `tcp 192.0.2.1 443 direct_tcp witness`.
fn attempts(code: &str) -> (Outcome, Vec<String>) {
    let scene = Scene::new();
    let preamble = "import errno, socket, sys, time\n\
        def attempt(family, kind, act):\n\
        \x20   begun = time.monotonic()\n\
        \x20   try:\n\
        \x20       with socket.socket(family, kind) as s: act(s)\n\
        \x20       print('passed')\n\
        \x20   except OSError as error:\n\
        \x20       at_once = time.monotonic() - begun < 1\n\
        \x20       print(errno.errorcode[error.errno] if at_once else 'slow')\n";
    let outcome =
        scene.exec().policy("open").run(&[python(), "-c", &format!("{preamble}{code}")]).ended_with(0);
    let word = |event: &Happening, name: &str| match &event[name] {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let words = |event| ["proto", "dst_ip", "dst_port", "reason", "identity"].map(|name| word(event, name));
    let mut seen: Vec<String> =
        outcome.events_of("bypass.detected").into_iter().map(|event| words(event).join(" ")).collect();
    seen.sort();
    (outcome, seen)
}

#[test]
fn tcp_is_refused_and_named_over_both_families() {
    let (outcome, seen) = attempts(
        "attempt(socket.AF_INET, socket.SOCK_STREAM, lambda s: s.connect(('192.0.2.1', 443)))\n\
         attempt(socket.AF_INET6, socket.SOCK_STREAM, lambda s: s.connect(('2001:db8::1', 443)))\n",
    );
    assert_eq!(outcome.text(), "ECONNREFUSED\nECONNREFUSED\n", "{outcome}");
    let wanted = ["tcp 192.0.2.1 443 direct_tcp witness", "tcp 2001:db8::1 443 direct_tcp witness"];
    assert_eq!(seen, wanted, "{outcome}");
    assert!(outcome.events_of("bypass.detected").iter().all(|event| event["process"]["exe"] == python()));
}

#[test]
fn udp_is_refused_and_named_over_both_families() {
    let (outcome, seen) = attempts(
        "attempt(socket.AF_INET, socket.SOCK_DGRAM, lambda s: s.sendto(b'x', ('192.0.2.1', 4433)))\n\
         attempt(socket.AF_INET6, socket.SOCK_DGRAM, lambda s: s.sendto(b'x', ('2001:db8::1', 4433)))\n\
         attempt(socket.AF_INET, socket.SOCK_DGRAM, lambda s: (s.connect(('192.0.2.2', 53)), s.send(b'x')))\n",
    );
    assert_eq!(outcome.text(), "EPERM\nEPERM\nEPERM\n", "{outcome}");
    let wanted = [
        "udp 192.0.2.1 4433 direct_udp witness",
        "udp 192.0.2.2 53 direct_dns witness",
        "udp 2001:db8::1 4433 direct_udp witness",
    ];
    assert_eq!(seen, wanted, "{outcome}");
}

#[test]
fn the_metadata_service_is_out_of_reach_and_the_hint_says_what_it_is() {
    let (outcome, _) = attempts(
        "attempt(socket.AF_INET, socket.SOCK_STREAM, lambda s: s.connect(('169.254.169.254', 80)))\n",
    );
    assert_eq!(outcome.text(), "ECONNREFUSED\n");
    let event = outcome.the("bypass.detected");
    assert!(event["hint"].as_str().is_some_and(|hint| hint.contains("metadata")), "{event}");
}

#[test]
fn icmp_is_refused_and_named_over_both_families() {
    let (outcome, seen) = attempts(
        "for family, kind, to, echo in (\n\
        \x20       (socket.AF_INET, socket.IPPROTO_ICMP, '192.0.2.1', b'\\x08'),\n\
        \x20       (socket.AF_INET6, socket.IPPROTO_ICMPV6, '2001:db8::1', b'\\x80')):\n\
        \x20   s = socket.socket(family, socket.SOCK_DGRAM, kind)\n\
        \x20   try: s.sendto(echo + b'\\0' * 7, (to, 0))\n\
        \x20   except OSError as error: print(errno.errorcode[error.errno])\n",
    );
    // An ICMPv6 ping socket does not tell its sender that the packet was refused.
    assert!(["EPERM\n", "EPERM\nEPERM\n"].contains(&&*outcome.text()), "{outcome}");
    let wanted = ["icmp 192.0.2.1 null direct_icmp witness", "icmpv6 2001:db8::1 null direct_icmp witness"];
    assert_eq!(seen, wanted, "{outcome}");
    assert!(outcome.events_of("bypass.detected").iter().all(|event| event["process"]["exe"] == python()));
}

#[test]
fn ping_is_refused_and_named() {
    let scene = Scene::new();
    // Its file asks for a capability that no sandbox grants (in a container's image it may have lost it): ping then takes a
    // ping socket.
    let folder = tempfile::tempdir().expect("a folder");
    let ping = folder.path().join("ping");
    // By another process: a descriptor of ours that writes to it could be inherited by what another test starts (ETXTBSY).
    let copied = std::process::Command::new("cp").arg(program("ping")).arg(&ping).status().expect("cp");
    assert!(copied.success(), "a copy of ping");
    let given =
        std::process::Command::new("setcap").arg("cap_net_raw=ep").arg(&ping).status().expect("setcap");
    assert!(given.success(), "setcap");
    let ping = ping.to_str().expect("UTF-8");
    let outcome = scene.exec().policy("open").run(&[ping, "-c", "3", "-i", "0.2", "-w", "3", "192.0.2.1"]);
    // No answer: its own code for that, and not that it could not be executed.
    let outcome = outcome.ended_with(1);
    let events = outcome.events_of("bypass.detected");
    assert!(!events.is_empty(), "{outcome}");
    for event in events {
        assert_eq!(
            (&event["reason"], &event["identity"]),
            (&"direct_icmp".into(), &"witness".into()),
            "{outcome}"
        );
        assert_eq!(event["process"]["comm"], "ping", "{event}");
        assert!(event["hint"].as_str().is_some_and(|hint| hint.contains("ping")), "{event}");
    }
}

#[test]
fn sockets_that_could_forge_packets_cannot_be_made() {
    let scene = Scene::new();
    let code = "import errno, socket\n\
        for family, kind, protocol in (\n\
            (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),\n\
            (socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW),\n\
            (socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW),\n\
            (socket.AF_PACKET, socket.SOCK_RAW, 3),\n\
            (socket.AF_PACKET, socket.SOCK_DGRAM, 3),\n\
            (40, socket.SOCK_STREAM, 0)):\n\
        \x20   try: socket.socket(family, kind, protocol); print('made', family, kind)\n\
        \x20   except OSError as error: print(errno.errorcode[error.errno])";
    let outcome = scene.exec().policy("open").run(&[python(), "-c", code]).ended_with(0);
    assert_eq!(outcome.text(), "EPERM\nEPERM\nEPERM\nEAFNOSUPPORT\nEAFNOSUPPORT\nEAFNOSUPPORT\n");
}

#[test]
fn a_name_lookup_of_the_c_library_is_refused_at_once_and_named() {
    let scene = Scene::new();
    scene.name_server("192.0.2.53");
    let begun = std::time::Instant::now();
    // `resolv.conf` asks for one attempt with a time-out of a second for each family.
    let outcome = scene.exec().policy("open").run(&["getent", "ahosts", "example.com"]).ended_with(2);
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    let events = outcome.events_of("bypass.detected");
    assert!(!events.is_empty(), "{outcome}");
    for event in events {
        assert_eq!(event["reason"], "direct_dns", "{event}");
        assert_eq!((&event["dst_ip"], &event["dst_port"]), (&"192.0.2.53".into(), &53.into()), "{event}");
        assert_eq!(event["process"]["exe"], program("getent"), "{event}");
    }
}

#[test]
fn a_process_that_ends_the_moment_its_connect_fails_is_still_named() {
    let scene = Scene::new();
    let script =
        "for port in 1 2 3 4 5; do bash -c \"exec 3<>/dev/tcp/192.0.2.1/$port\" 2>/dev/null; done; true";
    let outcome = scene.exec().policy("open").run(&["bash", "-c", script]).ended_with(0);
    let events = outcome.events_of("bypass.detected");
    assert_eq!(outcome.attempts("bypass.detected"), 5, "{outcome}");
    for event in events {
        assert_eq!(event["identity"], "witness", "{event}");
        assert_eq!(event["process"]["exe"], program("bash"), "{event}");
    }
}

#[test]
fn fifty_processes_at_once_are_all_counted_and_all_named() {
    let scene = Scene::new();
    // All wait for one file to be there, then connect to one destination.
    let code = "import os, socket, sys\n\
        ready, go = os.pipe(), os.pipe()\n\
        pids = []\n\
        for _ in range(50):\n\
        \x20   pid = os.fork()\n\
        \x20   if pid == 0:\n\
        \x20       os.close(go[1]); os.write(ready[1], b'.'); os.read(go[0], 1)\n\
        \x20       try: socket.create_connection(('192.0.2.1', 443), 10)\n\
        \x20       except ConnectionRefusedError: os._exit(0)\n\
        \x20       os._exit(1)\n\
        \x20   pids.append(pid)\n\
        heard = 0\n\
        while heard < 50: heard += len(os.read(ready[0], 50))\n\
        os.close(go[0]); os.close(go[1])\n\
        sys.exit(sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids))";
    let outcome = scene.exec().policy("open").run(&[python(), "-c", code]).ended_with(0);
    assert_eq!(outcome.attempts("bypass.detected"), 50, "{outcome}");
    let events = outcome.events_of("bypass.detected");
    assert!(events.iter().all(|event| event["process"]["exe"] == python()), "{outcome}");
    assert!(events.iter().all(|event| event["identity"] == "witness"), "{outcome}");
    let mut pids: Vec<u64> = events.iter().filter_map(|event| event["process"]["pid"].as_u64()).collect();
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), 50, "each under its own pid: {outcome}");
    assert!(outcome.stderr.contains("50 bypass attempts refused"), "{outcome}");
}

#[test]
fn a_hundred_attempts_of_one_process_fold_into_few_events_that_add_up() {
    let scene = Scene::new();
    let code = "import socket\n\
        for _ in range(100):\n\
        \x20   try: socket.create_connection(('192.0.2.1', 443), 10)\n\
        \x20   except ConnectionRefusedError: pass";
    let outcome = scene.exec().policy("open").run(&[python(), "-c", code]).ended_with(0);
    assert_eq!(outcome.attempts("bypass.detected"), 100, "{outcome}");
    assert!(outcome.events_of("bypass.detected").len() <= 20, "{outcome}");
    assert!(outcome.stderr.contains("100 bypass attempts refused"), "{outcome}");
}

#[test]
fn servers_of_the_workloads_own_are_reached_without_the_proxy_and_without_an_event() {
    let scene = Scene::new();
    let code = "import socket\n\
        for family, ip in ((socket.AF_INET, '127.0.0.1'), (socket.AF_INET, '127.9.9.9'), (socket.AF_INET6, '::1')):\n\
        \x20   server = socket.create_server((ip, 0), family=family)\n\
        \x20   client = socket.create_connection(server.getsockname()[:2], 10)\n\
        \x20   server.accept()[0].sendall(b'hi')\n\
        \x20   print(client.recv(2))";
    let outcome = scene.exec().run(&[python(), "-c", code]).ended_with(0);
    assert_eq!(outcome.text(), "b'hi'\n".repeat(3));
    assert!(outcome.events_of("bypass.detected").is_empty(), "{outcome}");
}
