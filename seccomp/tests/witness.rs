//! The witness with real sockets: every note exact, nothing changed for the client.
#![allow(clippy::unwrap_used, reason = "also in the functions the tests share")]

mod sandbox;

use sandbox::{Network, Outcome, command, eventually, run_with};
use sluice_seccomp::{Call, Join, Launch, Note, Notes, Proto, ProxyVariable, Refused, Witness};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

struct Seen {
    outcome: Outcome,
    notes: Arc<Notes>,
}

impl Seen {
    fn all(&self) -> Vec<Arc<Note>> {
        self.notes.snapshot()
    }

    fn only(&self) -> Arc<Note> {
        let all = self.all();
        assert_eq!(all.len(), 1, "{all:#?}\n{:?}", self.outcome);
        Arc::clone(&all[0])
    }
}

/// Runs a workload under a witness in `network`.
fn watch<'a>(network: &'a Network, mut launch: Launch<'a>) -> Seen {
    let (notes, writer) = Notes::with_writer().unwrap();
    launch.netns = Some(network.fd.as_fd());
    launch.witness = true;
    let mut thread = None;
    let outcome = run_with(&launch, |child| {
        let witness = Witness::new(child.take_witness().unwrap(), child.pid(), writer, vec![]);
        thread = Some(std::thread::spawn(move || witness.run(None)));
    });
    thread.unwrap().join().unwrap().unwrap();
    Seen { outcome, notes }
}

fn python(network: &Network, script: &str) -> Seen {
    watch(network, command(&["python3", "-c", &format!("import socket, os, sys, errno\n{script}")]))
}

fn dst(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// What a log line of a TCP packet joins.
fn join(seen: &Seen, src_port: u16, to: &str, logged_ns: u64) -> Option<sluice_seccomp::Found> {
    seen.notes.join(&Refused { proto: Proto::Tcp, src_port: Some(src_port), dst: dst(to), logged_ns })
}

#[test]
fn an_accepted_connect_is_noted_with_the_port_its_server_sees() {
    let network = Network::new();
    let seen = python(
        &network,
        "
l = socket.socket(); l.bind(('10.200.0.1', 3128)); l.listen()
c = socket.create_connection(('10.200.0.1', 3128))
peer = l.accept()[1]
assert peer == c.getsockname(), (peer, c.getsockname())
print(peer[1])",
    );
    let note = seen.only();
    let port = seen.outcome.stdout.trim().parse().unwrap();
    assert_eq!(
        (note.proto, note.src_port, note.dst, note.call),
        (Proto::Tcp, Some(port), dst("10.200.0.1:3128"), Call::Connect)
    );
    assert!(note.process.exe.to_string_lossy().contains("python"), "{note:?}");
    assert!(seen.notes.lookup_tcp(port, dst("10.200.0.1:3128")).is_some());
    let found = join(&seen, port, "10.200.0.1:3128", note.time_ns).unwrap();
    assert_eq!(found.join, Join::Exact);
}

#[test]
fn refusal_and_a_second_connect_on_the_same_socket_are_unchanged() {
    let network = Network::new();
    let seen = python(
        &network,
        "
s = socket.socket()
for address in [('192.0.2.1', 80), ('192.0.2.2', 81)]:
    try: s.connect(address)
    except ConnectionRefusedError: print(s.getsockname()[1])
l = socket.socket(); l.bind(('10.200.0.1', 3128)); l.listen()
s.connect(('10.200.0.1', 3128))
print(l.accept()[1][1])
assert s.getsockname()[0] == '10.200.0.1'",
    );
    let all = seen.all();
    let destinations: Vec<_> = all.iter().map(|note| note.dst).collect();
    assert_eq!(
        destinations,
        ["192.0.2.1:80", "192.0.2.2:81", "10.200.0.1:3128"].map(dst),
        "{}",
        seen.outcome.stderr
    );
    let last = seen.outcome.stdout.lines().last().unwrap().parse().unwrap();
    assert_eq!(all[2].src_port, Some(last));
}

#[test]
fn a_non_blocking_connect_is_noted_once() {
    let network = Network::new();
    let seen = python(
        &network,
        "
import select
l = socket.socket(); l.bind(('10.200.0.1', 3128)); l.listen()
s = socket.socket(); s.setblocking(False)
first = s.connect_ex(('10.200.0.1', 3128))
assert first in (0, errno.EINPROGRESS), first
select.select([], [s], [])
assert s.connect_ex(('10.200.0.1', 3128)) in (0, errno.EISCONN)
assert s.connect_ex(('10.200.0.1', 3128)) == errno.EISCONN
print(s.getsockname()[1])",
    );
    assert_eq!(seen.only().src_port, Some(seen.outcome.stdout.trim().parse().unwrap()));
}

#[test]
fn asking_how_a_refused_connect_went_is_no_second_attempt() {
    let network = Network::new();
    let seen = python(
        &network,
        "
import select
s = socket.socket(); s.setblocking(False)
first = s.connect_ex(('192.0.2.1', 80))
assert first in (errno.EINPROGRESS, errno.ECONNREFUSED), first
if first == errno.EINPROGRESS:
    select.select([], [s], [])
    assert s.connect_ex(('192.0.2.1', 80)) == errno.ECONNREFUSED",
    );
    assert_eq!(seen.outcome.status.code(), 0, "{}", seen.outcome.stderr);
    assert_eq!(seen.only().dst, dst("192.0.2.1:80"));
}

#[test]
fn ipv6_and_mapped_ipv4_are_noted() {
    let network = Network::new();
    let seen = python(
        &network,
        "
l = socket.create_server(('', 3128), family=socket.AF_INET6, dualstack_ipv6=True)
ports = []
for family, address in [(socket.AF_INET6, 'fd00::1'), (socket.AF_INET6, '::ffff:10.200.0.1'), (socket.AF_INET, '10.200.0.1')]:
    for only in (0, 1):
        s = socket.socket(family)
        if family == socket.AF_INET6: s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
        try: s.connect((address, 3128))
        except OSError as e:
            assert only and 'ffff' in address and e.errno == errno.ENETUNREACH, e
            ports.append('-')
            continue
        assert s.getsockname()[1] == l.accept()[1][1]
        ports.append(str(s.getsockname()[1]))
print(*ports)",
    );
    let outcome = seen.outcome.stdout.clone();
    let all = seen.all();
    let ports: Vec<Option<u16>> = outcome.split_whitespace().map(|port| port.parse().ok()).collect();
    assert_eq!(ports.len(), 6, "{:?}", seen.outcome);
    let expected = [
        "[fd00::1]:3128",
        "[fd00::1]:3128",
        "10.200.0.1:3128",
        "10.200.0.1:3128",
        "10.200.0.1:3128",
        "10.200.0.1:3128",
    ];
    for ((note, port), expected) in all.iter().zip(ports).zip(expected) {
        assert_eq!(note.dst, dst(expected));
        assert!(port.is_none() || note.src_port == port, "{note:?} {port:?}");
    }
}

#[test]
fn mptcp_and_fast_open_carry_their_port() {
    let network = Network::new();
    let seen = python(
        &network,
        "
IPPROTO_MPTCP, MSG_FASTOPEN, TCP_FASTOPEN, TCP_FASTOPEN_CONNECT = 262, 0x20000000, 23, 30
l = socket.socket(); l.bind(('10.200.0.1', 3128)); l.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 5); l.listen()
def accepted(s):
    peer = l.accept()[1]
    assert peer == s.getsockname()
    print(peer[1])
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP); s.connect(('10.200.0.1', 3128)); accepted(s)
s = socket.socket(); s.sendto(b'x', MSG_FASTOPEN, ('10.200.0.1', 3128)); accepted(s)
s = socket.socket(); s.sendmsg([b'x'], [], MSG_FASTOPEN, ('10.200.0.1', 3128)); accepted(s)
s = socket.socket(); s.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1); s.connect(('10.200.0.1', 3128)); s.send(b'x'); accepted(s)
s = socket.socket(); s.connect(('10.200.0.1', 3128)); accepted(s)
s.sendto(b'x', 0, ('10.200.0.1', 9)) # a connected socket ignores the address",
    );
    let ports: Vec<_> = seen.outcome.stdout.lines().map(|port| port.parse().ok()).collect();
    let all = seen.all();
    assert_eq!(all.iter().map(|note| note.src_port).collect::<Vec<_>>(), ports, "{}", seen.outcome.stderr);
    let calls: Vec<_> = all.iter().map(|note| note.call).collect();
    assert_eq!(calls, [Call::Connect, Call::SendTo, Call::SendMsg, Call::Connect, Call::Connect]);
    assert!(all.iter().all(|note| note.proto == Proto::Tcp));
}

#[test]
fn udp_with_and_without_connect_is_noted() {
    let network = Network::new();
    let seen = python(
        &network,
        "
r = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); r.bind(('10.200.0.1', 5353))
def received(s):
    peer = r.recvfrom(9)[1]
    print(peer[1])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('10.200.0.1', 5353)); received(s)
s.sendto(b'x', ('10.200.0.1', 5353)); received(s)
c = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); c.connect(('10.200.0.1', 5353)); c.send(b'x'); received(c)
c.connect(('192.0.2.7', 53))
try: c.send(b'x')
except OSError: pass
print(c.getsockname()[1])
b = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); b.bind(('', 0)); b.sendto(b'x', ('10.200.0.1', 5353)); received(b)",
    );
    let ports: Vec<_> = seen.outcome.stdout.lines().map(|port| port.parse().ok()).collect();
    let all = seen.all();
    assert_eq!(all.iter().map(|note| note.src_port).collect::<Vec<_>>(), ports, "{}", seen.outcome.stderr);
    assert_eq!(all.iter().map(|note| note.dst.port()).collect::<Vec<_>>(), [5353, 5353, 5353, 53, 5353]);
    assert!(all.iter().all(|note| note.proto == Proto::Udp));
}

#[test]
fn bound_sockets_disconnects_local_servers_and_nonsense_are_left_alone() {
    let network = Network::new();
    let seen = python(
        &network,
        "
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def connect(fd, address): # raw: any bytes
    result = libc.connect(fd, address, len(address))
    return 0 if result == 0 else ctypes.get_errno()
l = socket.create_server(('127.0.0.1', 0)); socket.create_connection(l.getsockname())
u = socket.socket(socket.AF_UNIX); assert connect(u.fileno(), b'\\x01\\x00/no/such\\x00') == errno.ENOENT
s = socket.socket()
assert connect(s.fileno(), b'\\x02\\x00') == errno.EINVAL
assert libc.connect(s.fileno(), ctypes.c_void_p(8), 16) == -1 and ctypes.get_errno() == errno.EFAULT
assert connect(999, b'\\x02\\x00\\x00\\x50' + bytes([192,0,2,1]) + bytes(8)) == errno.EBADF
assert connect(os.open('/dev/null', 0), b'\\x02\\x00\\x00\\x50' + bytes([192,0,2,1]) + bytes(8)) == errno.ENOTSOCK
d = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
assert connect(d.fileno(), bytes(16)) == 0 # AF_UNSPEC
assert s.getsockname()[1] == 0 and d.getsockname()[1] == 0, 'nothing was bound'
b = socket.socket(); b.bind(('10.200.0.1', 40404))
assert b.connect_ex(('192.0.2.1', 80)) == errno.ECONNREFUSED
assert b.getsockname()[1] == 40404
n = socket.socket(); n.setsockopt(socket.IPPROTO_IP, 24, 1); n.bind(('10.200.0.1', 0)) # IP_BIND_ADDRESS_NO_PORT
assert n.connect_ex(('192.0.2.1', 81)) == errno.ECONNREFUSED
print('fine')",
    );
    assert_eq!(seen.outcome.stdout, "fine\n", "{}", seen.outcome.stderr);
    let all = seen.all();
    assert_eq!(
        all.iter().map(|note| note.dst).collect::<Vec<_>>(),
        ["192.0.2.1:80", "192.0.2.1:81"].map(dst)
    );
    assert_eq!(all[0].src_port, Some(40404));
}

#[test]
fn ancestors_and_a_program_after_execve_are_named() {
    let network = Network::new();
    let connect = "import socket; socket.socket().connect_ex(('192.0.2.1', PORT))";
    let script = format!(
        "python3 -c \"{}\"; bash -c 'python3 -c \"{}\"; true'; true",
        connect.replace("PORT", "1").replace('\'', "\\\""),
        connect.replace("PORT", "2").replace('\'', "\\\"")
    );
    let seen = watch(&network, command(&["bash", "-c", &script]));
    let all = seen.all();
    assert_eq!(all.len(), 2, "{:?}", seen.outcome);
    let names = |note: &Note| {
        note.process.ancestors.iter().map(|exe| exe.file_name().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert!(names(&all[0]).ends_with(&["bash".into()]), "{all:#?}");
    assert!(names(&all[1]).ends_with(&["bash".into(), "bash".into()]), "{all:#?}");

    // One process, two programs: execve keeps the pid and the start time.
    let perl = "use Socket; socket(S, PF_INET, SOCK_STREAM, 0); connect(S, sockaddr_in(4, inet_aton(\"192.0.2.1\")));";
    let seen = python(
        &network,
        &format!(
            "socket.socket().connect_ex(('192.0.2.1', 3)); os.execvp('perl', ['perl', '-e', '''{perl}'''])"
        ),
    );
    let all = seen.all();
    assert_eq!(all.len(), 2, "{:?}", seen.outcome);
    assert_eq!(all[0].process.pid, all[1].process.pid);
    assert!(all[0].process.exe.to_string_lossy().contains("python"));
    assert!(all[1].process.exe.to_string_lossy().contains("perl"));
}

#[test]
fn a_thousand_short_lived_connects_are_each_noted_exactly() {
    const PROCESSES: usize = 10;
    const THREADS: usize = 10;
    const CONNECTS: usize = 10;
    let network = Network::new();
    let resets = Resets::listen(&network);
    // Each prints pid, thread and destination port.
    let seen = python(
        &network,
        &format!(
            "
import threading
def work(base):
    for i in range({CONNECTS}):
        s = socket.socket()
        assert s.connect_ex(('192.0.2.1', base + i)) == errno.ECONNREFUSED
        os.write(1, f'{{os.getpid()}} {{threading.get_native_id()}} {{base + i}}\\n'.encode())
        s.close()
children = []
for p in range({PROCESSES}):
    pid = os.fork()
    if pid == 0:
        threads = [threading.Thread(target=work, args=(10000 + p * 1000 + t * 100,)) for t in range({THREADS})]
        for t in threads: t.start()
        for t in threads: t.join()
        os._exit(0)
    children.append(pid)
assert all(os.waitpid(c, 0)[1] == 0 for c in children)"
        ),
    );
    let all = seen.all();
    let total = PROCESSES * THREADS * CONNECTS;
    assert_eq!(all.len(), total, "{}", seen.outcome.stderr);
    assert_eq!(seen.notes.overflow(), 0);
    let noted: HashSet<u16> = all.iter().map(|note| note.dst.port()).collect();
    let made: HashSet<u16> =
        seen.outcome.stdout.lines().map(|line| line.split(' ').nth(2).unwrap().parse().unwrap()).collect();
    assert_eq!((noted.len(), noted), (total, made));
    assert!(all.iter().all(|note| note.src_port.is_some()), "every socket was named");
    let named: HashSet<(u16, u16)> =
        all.iter().map(|note| (note.src_port.unwrap(), note.dst.port())).collect();
    assert_eq!(resets.seen(total), named, "the ports are those on the wire");
    // Ten processes, a hundred threads, and the right ones: all notes of a destination range share a pid.
    let pids: HashSet<u32> = all.iter().map(|note| note.process.pid).collect();
    assert_eq!(pids.len(), PROCESSES);
    for note in &all {
        let range = note.dst.port() / 1000;
        assert!(
            all.iter()
                .filter(|other| other.dst.port() / 1000 == range)
                .all(|other| other.process.pid == note.process.pid)
        );
    }
}

/// The resets that refuse the connects, as they pass over the namespace's `lo`.
struct Resets(OwnedFd);

impl Resets {
    fn listen(network: &Network) -> Self {
        use nix::sys::socket::{
            AddressFamily, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt,
        };
        const BUFFER_BYTES: usize = 16 << 20;
        let socket = network.inside(|| {
            socket(AddressFamily::Packet, SockType::Datagram, SockFlag::SOCK_NONBLOCK, SockProtocol::EthAll)
        });
        let socket = socket.unwrap();
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES).unwrap();
        Self(socket)
    }

    /// (client's port, server's port) of `count` different resets.
    fn seen(&self, count: usize) -> HashSet<(u16, u16)> {
        const RST: u8 = 4;
        let mut seen = HashSet::new();
        let mut packet = [0; 2048];
        eventually("a reset for each connect", || {
            while let Ok(length) = nix::unistd::read(&self.0, &mut packet) {
                // IPv4 without options, then TCP: ports first, flags at 13.
                if length >= 40 && packet[0] == 0x45 && packet[9] == 6 && packet[33] & RST != 0 {
                    let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
                    seen.insert((port(22), port(20)));
                }
            }
            seen.len() >= count
        });
        seen
    }
}

#[test]
fn when_the_ports_run_out_notes_go_without_and_connects_go_on() {
    let network = Network::new();
    network.inside(|| std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40009").unwrap());
    let seen = python(
        &network,
        "
held = [socket.socket() for _ in range(10)]
for s in held: s.bind(('0.0.0.0', 0))
for i in range(3): # nothing is free for either of us
    assert socket.socket().connect_ex(('192.0.2.1', 80)) == errno.EADDRNOTAVAIL
assert held[0].connect_ex(('192.0.2.2', 80)) == errno.ECONNREFUSED
port = held[0].getsockname()[1]
print('fine')",
    );
    assert_eq!(seen.outcome.stdout, "fine\n", "{}", seen.outcome.stderr);
    let all = seen.all();
    let ports: Vec<_> = all.iter().map(|note| note.src_port.is_some()).collect();
    assert_eq!(ports, [false, false, false, true], "{all:#?}");
    let found = join(&seen, 40_001, "192.0.2.1:80", all[0].time_ns).unwrap();
    assert_eq!((found.join, found.note.tid), (Join::Order, all[0].tid));
}

#[test]
fn a_client_showered_with_signals_is_noted_once_per_connect() {
    // Each connect is refused all the same: no EINTR, no second attempt.
    let network = Network::new();
    let seen = python(
        &network,
        "
import signal
signal.signal(signal.SIGALRM, lambda *_: None); signal.siginterrupt(signal.SIGALRM, False)
signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
for port in range(1, 501):
    assert socket.socket().connect_ex(('192.0.2.1', port)) == errno.ECONNREFUSED
signal.setitimer(signal.ITIMER_REAL, 0)
print('fine')",
    );
    assert_eq!(seen.outcome.stdout, "fine\n", "{}", seen.outcome.stderr);
    let ports: Vec<_> = seen.all().iter().map(|note| note.dst.port()).collect();
    assert_eq!(ports, (1..=500).collect::<Vec<u16>>());
}

#[test]
fn a_dead_witness_makes_connects_fail_at_once() {
    let network = Network::new();
    let mut launch =
        command(&["python3", "-c", "import socket; print(socket.socket().connect_ex(('10.200.0.1', 1)))"]);
    launch.netns = Some(network.fd.as_fd());
    launch.witness = true;
    let outcome = run_with(&launch, |child| drop(child.take_witness()));
    assert_eq!(outcome.stdout.trim(), libc::ENOSYS.to_string(), "{outcome:?}");
}

#[test]
fn a_witness_stopped_in_the_middle_releases_the_caller() {
    let network = Network::new();
    let mut launch = command(&[
        "python3",
        "-uc",
        "
import socket, errno
while (e := socket.socket().connect_ex(('10.200.0.1', 1))) == errno.ECONNREFUSED: pass
print(e)",
    ]);
    launch.netns = Some(network.fd.as_fd());
    launch.witness = true;
    let (notes, writer) = Notes::with_writer().unwrap();
    let outcome = run_with(&launch, |child| {
        let (stop, tell) = nix::unistd::pipe().unwrap();
        let witness = Witness::new(child.take_witness().unwrap(), child.pid(), writer, vec![]);
        let thread = std::thread::spawn(move || witness.run(Some(&stop)));
        eventually("a hundred notes", || notes.len() >= 100);
        nix::unistd::write(&tell, &[1]).unwrap();
        thread.join().unwrap().unwrap();
    });
    assert_eq!(outcome.stdout.trim(), libc::ENOSYS.to_string(), "{outcome:?}");
}

#[test]
fn a_ping_is_noted_with_its_identifier() {
    let network = Network::new();
    let seen = python(
        &network,
        "
for family, kind, to in ((socket.AF_INET, socket.IPPROTO_ICMP, '192.0.2.1'), (socket.AF_INET6, socket.IPPROTO_ICMPV6, '2001:db8::1')):
    s = socket.socket(family, socket.SOCK_DGRAM, kind)
    try: s.sendto(b'\\x08\\0\\0\\0\\0\\0\\0\\0' if family == socket.AF_INET else b'\\x80\\0\\0\\0\\0\\0\\0\\0', (to, 1025))
    except OSError as error: pass
    print(s.getsockname()[1])",
    );
    let identifiers: Vec<u16> = seen.outcome.stdout.lines().map(|line| line.parse().unwrap()).collect();
    let all = seen.all();
    let noted: Vec<_> = all.iter().map(|note| (note.proto, note.src_port, note.dst, note.call)).collect();
    let wanted = [(identifiers[0], "192.0.2.1:0"), (identifiers[1], "[2001:db8::1]:0")]
        .map(|(id, to)| (Proto::Icmp, Some(id), dst(to), Call::SendTo));
    assert_eq!(noted, wanted, "{:?}", seen.outcome);
}

#[test]
fn how_a_program_was_started_is_noted_of_attempts_and_not_of_clients_of_the_proxy() {
    let network = Network::new();
    let script =
        "import socket\nfor ip in ('10.200.0.1', '192.0.2.1'): socket.socket().connect_ex((ip, 3128))";
    for (variable, expected) in [("https_proxy", ProxyVariable::Present), ("no_proxy", ProxyVariable::Absent)]
    {
        let mut launch = command(&["python3", "-c", script, "--noproxy"]);
        launch.env =
            vec![(variable.into(), "http://10.200.0.1:3128".into()), ("PATH".into(), "/usr/bin:/bin".into())];
        launch.netns = Some(network.fd.as_fd());
        launch.witness = true;
        let (notes, writer) = Notes::with_writer().unwrap();
        let mut thread = None;
        let outcome = run_with(&launch, |child| {
            let mut witness = Witness::new(child.take_witness().unwrap(), child.pid(), writer, vec![]);
            witness.set_proxy(dst("10.200.0.1:3128"));
            thread = Some(std::thread::spawn(move || witness.run(None)));
        });
        thread.unwrap().join().unwrap().unwrap();
        let all = notes.snapshot();
        let started: Vec<_> =
            all.iter().map(|note| (note.process.proxy_variable, note.process.args.len())).collect();
        assert_eq!(started, [(None, 0), (Some(expected), 4)], "{outcome:?}");
        assert_eq!(&*all[1].process.args[3], "--noproxy");
    }
}
