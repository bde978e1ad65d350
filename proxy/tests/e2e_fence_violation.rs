//! What the fence on the host's side of a link drops is told as `fence.violation`, packet for packet.

mod e2e;

use std::process::Command;

use e2e::{BODY, Container, Daemon, HttpOrigin, Scene, alone_with_the_host_fence, eventually};
use serde_json::Value;

/// What `show` says the fence dropped.
fn dropped(daemon: &Daemon<'_>, sandbox: &str) -> u64 {
    daemon.ask_json(&["sandbox", "show", sandbox])["host_fence"]["dropped"].as_u64().unwrap_or(0)
}

/// The violations on the host's side.
fn violations(daemon: &Daemon<'_>, sandbox: &str) -> Vec<Value> {
    let mut events = daemon.events_of("fence.violation", sandbox);
    events.retain(|event| event["reason"] == "host_fence");
    events
}

/// Waits until the events tell as many packets as the fence has counted, and gives them.
fn told_in_full(daemon: &Daemon<'_>, sandbox: &str) -> Vec<Value> {
    let sum = || violations(daemon, sandbox).iter().filter_map(|event| event["count"].as_u64()).sum::<u64>();
    eventually("the events add up to the counter", || {
        let counted = dropped(daemon, sandbox);
        counted > 0 && sum() == counted
    });
    violations(daemon, sandbox)
}

fn assert_violation(event: &Value, container: &Container) {
    assert_eq!((&event["action"], &event["via"]), (&"dropped".into(), &"direct".into()), "{event}");
    let from = format!("from {} by link {}", container.source, container.link);
    assert_eq!(event["detail"], from, "{event}");
    assert!(event["hint"].as_str().is_some_and(|hint| hint.contains("CAP_NET_ADMIN")), "{event}");
    assert!(event["first"].as_str() <= event["last"].as_str(), "{event}");
}

/// Sends datagrams to `ports` of the host, each once.
fn send(container: &Container, ports: std::ops::Range<u16>) {
    let code = format!(
        "import socket\n\
         s = socket.socket(type=socket.SOCK_DGRAM)\n\
         for port in range({}, {}): s.sendto(b'x', ('{}', port))",
        ports.start, ports.end, container.host
    );
    assert_eq!(container.inside(&["python3", "-c", &code]), (0, String::new()));
}

#[test]
fn an_attached_sandbox_without_its_inner_fence_is_told_for_every_packet() {
    let _alone = alone_with_the_host_fence();
    let (scene, container) = (Scene::new(), Container::start());
    assert!(container.reaches_the_host(), "the stand-in is broken");
    let daemon = Daemon::start(&scene, "");
    let attach = ["sandbox", "attach", "box", "--pid", &container.pid(), "--link", &container.link];
    daemon.ask(&attach).ended_with(0);
    assert_eq!(dropped(&daemon, "box"), 0);
    // In one go: the fence inside is put back soon.
    let script = format!(
        "nft flush ruleset; for port in 5001 5002 5003; do echo x > /dev/udp/{}/$port; done",
        container.host
    );
    eventually("three packets meet the host fence", || {
        assert_eq!(container.inside(&["bash", "-c", &script]).0, 0);
        let ports: Vec<u64> =
            violations(&daemon, "box").iter().filter_map(|event| event["dst_port"].as_u64()).collect();
        (5_001..=5_003).all(|port| ports.contains(&port))
    });
    let events = told_in_full(&daemon, "box");
    for event in events.iter().filter(|event| event["dst_port"].is_u64()) {
        assert_eq!(
            (&event["proto"], &event["dst_ip"]),
            (&"udp".into(), &container.host.as_str().into()),
            "{event}"
        );
    }
    let first = events.iter().find(|event| event["dst_port"] == 5_001).expect("an event");
    assert_violation(first, &container);
    daemon.ask(&["sandbox", "rm", "box"]).ended_with(0);
}

#[test]
fn an_external_sandbox_reaches_the_proxy_and_is_told_for_everything_else() {
    let _alone = alone_with_the_host_fence();
    let (scene, container, origin) = (Scene::new(), Container::start(), HttpOrigin::start());
    assert!(container.reaches_the_host(), "the stand-in is broken");
    let config = format!(
        "listen: {}:3128\nsandboxes:\n  - {{ name: vm, source: {}, link: {}, policy: open, identity: \"off\" }}\n",
        container.host, container.source, container.link
    );
    let daemon = Daemon::start(&scene, &config);
    let proxy = format!("http://{}:3128", container.host);
    let url = format!("http://origin.test:{}/", origin.port());
    let through = || container.inside(&["curl", "-sS", "-m", "20", "-x", &proxy, &url]);
    assert_eq!(through(), (0, BODY.to_owned()));
    assert_eq!(dropped(&daemon, "vm"), 0, "what is admitted is no violation");

    assert!(!container.reaches_the_host(), "another port of the host is open");
    send(&container, 5_001..5_004);
    // Another source, which the fence knows not to be its own.
    let spoof = [
        "bash",
        "-c",
        "ip addr add 198.19.255.7/32 dev eth0 && exec python3 -c \"
import socket
s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('198.19.255.7', 0)); s.sendto(b'x', ('$0', 5009))\"",
        &container.host,
    ];
    assert_eq!(container.inside(&spoof), (0, String::new()));
    let events = told_in_full(&daemon, "vm");
    let of_port = |port: u16| {
        events
            .iter()
            .find(|event| event["dst_port"] == port)
            .unwrap_or_else(|| panic!("{port} in {events:#?}"))
    };
    for port in 5_001..5_004 {
        assert_violation(of_port(port), &container);
        assert_eq!(of_port(port)["proto"], "udp");
    }
    let detail = of_port(5_009)["detail"].as_str().unwrap_or_default().to_owned();
    assert!(detail.starts_with("from 198.19.255.7 "), "{detail}");
    assert!(events.iter().any(|event| event["proto"] == "tcp"), "{events:#?}");
    // Nothing of it is an attempt seen from inside: there is no fence of ours there.
    assert!(daemon.events_of("bypass.detected", "vm").is_empty());
    assert_eq!(through(), (0, BODY.to_owned()), "and the proxy is still there");

    // Past the log's limit there are no lines, and the events still add up.
    send(&container, 10_000..12_000);
    eventually("the flood is counted", || dropped(&daemon, "vm") >= 2_000);
    told_in_full(&daemon, "vm");
    let rules = Command::new("nft").args(["list", "table", "netdev", "sluice_host"]).output().expect("nft");
    assert!(String::from_utf8_lossy(&rules.stdout).contains("limit rate"), "the log has a limit");
}
