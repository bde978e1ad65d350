//! A workload that is root in its namespace with CAP_NET_ADMIN takes the inner fence away and does whatever a network
//! administrator can; for each kind of sandbox it still gets nowhere.
//!
//! What is held against it is not its own word: on the host's side every packet that got past the fence is counted
//! (`spy`), and listeners on all that it could reach accept nobody.

mod acts;
mod scene;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Duration;

use acts::{ACTS, Act, FRAMES};
use scene::Scene;
use scene::bare::{netns_of, run, within};
use scene::host::{Host, guarded, proxy_for};
use sluice_netns::{Admit, HostFence, Sandbox, Target, inside};

/// How long to wait for an answer that must not come. Those that must take well below a millisecond.
const SILENCE: Duration = Duration::from_millis(250);

/// Where a workload is, and what it may try to reach.
struct Workload {
    netns: OwnedFd,
    /// Its own link, its address there, and what else its scripts are told.
    environment: Vec<(&'static str, String)>,
    targets: Vec<SocketAddr>,
}

impl Workload {
    /// Runs a script as root of that namespace; its exit code and what it said.
    fn shell(&self, script: &str) -> (i32, String) {
        let frames = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(frames.path(), FRAMES).expect("write");
        let mut shell = Command::new("bash");
        shell.args(["-ec", script]).stdin(Stdio::null()).envs(self.environment.iter().cloned());
        shell.env("FRAMES", frames.path());
        let output = inside(self.netns.as_fd(), || shell.output()).expect("enter").expect("bash");
        let said = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
    }

    /// Does what it can; `false` where this kernel has no such thing.
    fn tamper(&self, act: &Act) -> bool {
        let (code, said) =
            self.shell("nft flush ruleset; ip route flush table main; ip route add default dev lo");
        assert_eq!(code, 0, "{said}");
        if let Some((probe, _)) = act.made_by {
            let (code, said) = self.shell(probe);
            let missing = ["Unknown device type", "not supported", "No such file", "No such device"];
            if code != 0 && missing.iter().any(|word| said.contains(word)) {
                return false;
            }
            assert_eq!(code, 0, "{}: {said}", act.name);
        }
        let rest = act.made_by.map_or("", |(_, rest)| rest);
        let (code, said) = self.shell(&[rest, act.script].concat());
        assert_eq!(code, 0, "{}: {said}", act.name);
        true
    }

    /// Connects and sends to all its targets at once; those that answered.
    fn reached(&self) -> Vec<SocketAddr> {
        let reached = |target: &SocketAddr| {
            let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            UdpSocket::bind(any).and_then(|socket| socket.send_to(b"out", target)).ok();
            TcpStream::connect_timeout(target, SILENCE).is_ok()
        };
        inside(self.netns.as_fd(), || {
            std::thread::scope(|scope| {
                let tries: Vec<_> = self
                    .targets
                    .iter()
                    .map(|target| (target, scope.spawn(move || reached(target))))
                    .collect();
                tries
                    .into_iter()
                    .filter_map(|(target, tried)| tried.join().expect("a try").then_some(*target))
                    .collect()
            })
        })
        .expect("enter")
    }
}

/// Runs every act in a fresh world and says which ones this kernel cannot do.
fn each_act(kind: &str, mut try_act: impl FnMut(&Act) -> bool) {
    let (done, missing): (Vec<&Act>, Vec<&Act>) = ACTS.iter().partition(|act| try_act(act));
    let names = |acts: &[&Act]| acts.iter().map(|act| act.name).collect::<Vec<_>>().join(", ");
    println!("{kind}: {} acts lead nowhere: {}", done.len(), names(&done));
    println!("{kind}: this kernel has no {} of them: {}", missing.len(), names(&missing));
    assert!(done.len() >= 18, "too few: {}", names(&done));
}

/// Counts on the host what comes past the fence of `tap0` and is not what it admits.
fn spy(host: &Host, admitted: &str) {
    let rules = format!(
        "table inet spy {{\nchain in {{\ntype filter hook prerouting priority raw\n{admitted}\niifname tap0 counter\n}}\n}}\n\
         table arp spy {{\nchain in {{\ntype filter hook input priority 0\n\
         iifname tap0 arp saddr ip != 10.9.0.2 counter\n}}\n}}\n"
    );
    within(&host.host, || {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), rules).expect("write");
        let loaded = Command::new("nft").arg("-f").arg(file.path()).status().expect("nft");
        assert!(loaded.success());
    });
}

fn spied(host: &Host) -> u64 {
    let listed = run(&host.host, &["nft", "list", "ruleset"]);
    let spies = listed.split("table ").filter(|table| table.contains(" spy {"));
    let counts: Vec<u64> = spies
        .flat_map(|table| table.split("counter packets ").skip(1))
        .map(|rest| rest.split(' ').next().and_then(|count| count.parse().ok()).expect("a count"))
        .collect();
    assert_eq!(counts.len(), 2, "{listed}");
    counts.iter().sum()
}

/// What the fence on the host's side dropped, the guest kernel's chatter included.
fn dropped(host: &Host) -> u64 {
    let noise = run(&host.host, &["nft", "list", "counter", "netdev", "sluice_host", "kernel_noise"]);
    let noise = noise.split("packets ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u64>().ok());
    host.violations("guest-0").packets + noise.expect("a count")
}

/// Guest 0 of a stand-in for a host: everything it might reach listens.
fn guest(host: &Host) -> (Workload, Vec<TcpListener>) {
    let on_host = ["10.9.0.1:22", "10.9.1.1:22", "203.0.113.9:22", "[fd09::1]:22", "[2001:db8::9]:22"];
    for address in ["203.0.113.9/32", "2001:db8::9/128"] {
        run(&host.host, &["ip", "addr", "add", address, "dev", "lo", "nodad"]);
    }
    let mut listeners: Vec<_> = on_host.iter().map(|address| host.listen(address)).collect();
    let beside = ["10.9.1.2:80", "[fd09:1::2]:80"];
    listeners.extend(
        beside.map(|address| {
            within(host.guest(1), || TcpListener::bind(address)).expect("the neighbour listens")
        }),
    );
    let mac = |of, link: &str| {
        let shown = run(of, &["ip", "-o", "link", "show", link]);
        let mac = shown.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next());
        mac.expect("an address").to_owned()
    };
    let environment = vec![
        ("LINK", "eth0".to_owned()),
        ("SELF", "10.9.0.2".to_owned()),
        ("SELF6", "fd09::2".to_owned()),
        ("GATE", "10.9.0.1".to_owned()),
        ("GATE6", "fd09::1".to_owned()),
        ("BESIDE", "10.9.1.2".to_owned()),
        ("BESIDE6", "fd09:1::2".to_owned()),
        ("GATE_MAC", mac(&host.host, "tap0")),
        ("BESIDE_MAC", mac(host.guest(1), "eth0")),
    ];
    let targets =
        on_host.into_iter().chain(beside).map(|address| address.parse().expect("address")).collect();
    (Workload { netns: netns_of(host.guest(0)), environment, targets }, listeners)
}

fn assert_nobody_came(act: &Act, listeners: &[TcpListener]) {
    for listener in listeners {
        listener.set_nonblocking(true).expect("non-blocking");
        let came = listener.accept();
        let nobody = matches!(&came, Err(error) if error.kind() == ErrorKind::WouldBlock);
        assert!(nobody, "{}: {:?} was reached: {came:?}", act.name, listener.local_addr());
    }
}

/// Nothing of an act passes the fence of `tap0`, where `admit` holds.
fn leads_nowhere(host: &Host, act: &Act, admitted: &str) -> bool {
    let (workload, listeners) = guest(host);
    spy(host, admitted);
    let before = dropped(host);
    if !workload.tamper(act) {
        return false;
    }
    assert_eq!(workload.reached(), [], "{}", act.name);
    assert_nobody_came(act, &listeners);
    assert_eq!(spied(host), 0, "{}: packets passed the fence", act.name);
    if act.leaves {
        assert!(dropped(host) > before, "{}: nothing met the fence: the act is none", act.name);
    }
    true
}

#[test]
fn a_made_sandbox_has_no_way_out_whatever_its_root_does() {
    each_act("made", |act| {
        let scene = Scene::new();
        let (own, beside) = (scene.sandbox("own"), scene.sandbox("beside"));
        let _proxy = own.listeners(1).expect("the proxy's listener");
        // The host of this test is the real one, which shares no link with a made sandbox.
        let on_host = ["0.0.0.0:0", "[::]:0"].map(|address| TcpListener::bind(address).expect("bind"));
        let ports = on_host.each_ref().map(|listener| listener.local_addr().expect("address").port());
        let next_door = inside(netns_of_sandbox(&beside).as_fd(), || {
            let added = Command::new("ip").args(["addr", "add", "10.200.7.7/32", "dev", "lo"]).status();
            assert!(added.expect("ip").success());
            TcpListener::bind("10.200.7.7:80").expect("bind")
        });
        let [v4, v6] = addresses_of_the_host();
        let mut targets: Vec<SocketAddr> = vec!["10.200.7.7:80".parse().expect("address")];
        targets.extend(v4.iter().map(|ip| SocketAddr::new(*ip, ports[0])));
        targets.extend(v6.iter().map(|ip| SocketAddr::new(*ip, ports[1])));
        let gate =
            |ips: &[IpAddr], otherwise: &str| ips.first().map_or(otherwise.to_owned(), IpAddr::to_string);
        let mac = || "02:00:00:00:00:01".to_owned();
        let environment = vec![
            ("LINK", "lo".to_owned()),
            ("SELF", "10.200.0.1".to_owned()),
            ("SELF6", "::1".to_owned()),
            ("GATE", gate(&v4, "192.0.2.1")),
            ("GATE6", gate(&v6, "2001:db8::1")),
            ("BESIDE", "10.200.7.7".to_owned()),
            ("BESIDE6", "2001:db8::7".to_owned()),
            ("GATE_MAC", mac()),
            ("BESIDE_MAC", mac()),
        ];
        let workload = Workload { netns: netns_of_sandbox(&own), environment, targets };
        if !workload.tamper(act) {
            return false;
        }
        assert_eq!(workload.reached(), [], "{}", act.name);
        let [first, second] = on_host;
        assert_nobody_came(act, &[first, second, next_door.expect("enter")]);
        own.destroy().expect("destroy");
        beside.destroy().expect("destroy");
        true
    });
}

fn netns_of_sandbox(sandbox: &Sandbox) -> OwnedFd {
    std::fs::File::open(sandbox.netns_path()).expect("its namespace").into()
}

/// Those that others could reach it by: v4, then v6.
fn addresses_of_the_host() -> [Vec<IpAddr>; 2] {
    let shown = Command::new("ip").args(["-br", "addr", "show", "scope", "global"]).output().expect("ip");
    let shown = String::from_utf8(shown.stdout).expect("UTF-8");
    let all = shown.split_whitespace().filter_map(|word| word.split_once('/')?.0.parse::<IpAddr>().ok());
    let (v4, v6) = all.partition(IpAddr::is_ipv4);
    [v4, v6]
}

#[test]
fn an_attached_sandbox_has_no_way_out_whatever_its_root_does() {
    each_act("attached", |act| {
        let (scene, host) = (Scene::new(), Host::start());
        assert!(reaches_its_gate(&host), "the stand-in is broken");
        let target = Target::Pid(host.guest(0).id());
        let sandbox = Sandbox::attach(&scene.spec("box"), &target).expect("attach");
        host.load(&[guarded(&scene, 0, Admit::Nothing), guarded(&scene, 1, Admit::Nothing)]);
        let done = leads_nowhere(&host, act, "");
        sandbox.destroy().expect("destroy");
        within(&host.host, HostFence::remove).expect("remove");
        done
    });
}

#[test]
fn an_external_sandbox_has_the_proxy_and_no_other_way_out_whatever_its_root_does() {
    each_act("external", |act| {
        let (scene, host) = (Scene::new(), Host::start());
        let proxy = host.listen("10.9.0.1:3128");
        assert!(reaches_its_gate(&host), "the stand-in is broken");
        let admit = proxy_for("10.9.0.2", "10.9.0.1:3128");
        host.load(&[guarded(&scene, 0, admit), guarded(&scene, 1, proxy_for("10.9.1.2", "10.9.1.1:3128"))]);
        let proxy_alone = "iifname tap0 ip saddr 10.9.0.2 ip daddr 10.9.0.1 tcp dport 3128 accept";
        let done = leads_nowhere(&host, act, proxy_alone);
        drop(proxy);
        done
    });
}

fn reaches_its_gate(host: &Host) -> bool {
    let _server = host.listen("10.9.0.1:2222");
    let gate = "10.9.0.1:2222".parse().expect("address");
    within(host.guest(0), || TcpStream::connect_timeout(&gate, scene::PATIENCE).is_ok())
}

#[test]
fn what_an_external_sandbox_says_of_its_neighbours_is_not_believed() {
    const OTHER: [&str; 2] = ["10.9.0.77", "fd09::77"];
    let (scene, host) = (Scene::new(), Host::start());
    let (workload, _listeners) = guest(&host);
    for (sandbox, admit) in
        [("v4", proxy_for("10.9.0.2", "10.9.0.1:3128")), ("v6", proxy_for("fd09::2", "[fd09::1]:3128"))]
    {
        host.load(&[guarded(&scene, 0, admit)]);
        for address in OTHER {
            let entry = ["lladdr", "02:00:00:00:00:77", "nud", "stale", "dev", "tap0"];
            run(&host.host, &[&["ip", "neigh", "replace", address][..], &entry].concat());
        }
        let (code, said) = workload.shell("python3 $FRAMES neighbours");
        assert_eq!(code, 0, "{said}");
        for address in OTHER {
            let known = run(&host.host, &["ip", "neigh", "show", address, "dev", "tap0"]);
            assert!(known.contains("02:00:00:00:00:77"), "{sandbox}: {address} is now {known}");
        }
        // Itself it may speak of.
        run(&host.host, &["ip", "neigh", "flush", "dev", "tap0"]);
        let gate = if sandbox == "v4" { "10.9.0.1:3128" } else { "[fd09::1]:3128" };
        let _server = host.listen(gate);
        let gate = gate.parse().expect("address");
        within(host.guest(0), || TcpStream::connect_timeout(&gate, scene::PATIENCE)).expect(sandbox);
    }
}
