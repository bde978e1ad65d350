//! A network namespace with a fence like the product's, for tests. Needs root, `ip` and `nft`.
#![allow(dead_code)] // each test and example uses its part

use std::fs::File;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

/// A namespace of this test, removed on drop.
pub(crate) struct Namespace {
    pub(crate) name: String,
    pub(crate) token: u64,
}

/// How the fence of a [`Namespace`] logs.
pub(crate) enum Log {
    Kmsg,
    Nflog(u16),
}

impl Namespace {
    /// `lo` only, default routes into it, everything but local destinations logged and rejected.
    pub(crate) fn fenced(log: &Log) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("bypass-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let token = u64::from(std::process::id()) << 32 | 0xfe2ce;
        run(&format!("ip netns add {name}"), "");
        let namespace = Self { name, token };
        namespace.run("ip link set lo up", "");
        namespace.run("ip addr add 10.200.0.1/32 dev lo", "");
        namespace.run("ip route add default dev lo", "");
        namespace.run("ip -6 route add default dev lo", "");
        namespace.run("nft -f -", &namespace.rules(log));
        if let Log::Kmsg = log {
            let path = "/proc/sys/net/netfilter/nf_log_all_netns";
            std::fs::write(path, "1").unwrap_or_else(|error| panic!("{path}: {error}"));
        }
        namespace
    }

    pub(crate) fn prefix(&self) -> String {
        sluice_bypass::Tag { fence: sluice_bypass::Fence::Inner, name: &self.name, token: self.token }
            .to_string()
    }

    fn rules(&self, log: &Log) -> String {
        let log = match log {
            Log::Kmsg => format!("log prefix \"{}\" flags all", self.prefix()),
            Log::Nflog(group) => format!("log prefix \"{}\" group {group}", self.prefix()),
        };
        format!(
            "table inet test {{\n chain output {{\n  type filter hook output priority 0; policy drop;\n  \
             fib daddr type local accept\n  {log}\n  meta l4proto tcp reject with tcp reset\n  reject\n }}\n}}\n"
        )
    }

    /// Runs a command in the namespace.
    pub(crate) fn run(&self, command: &str, input: &str) {
        run(&format!("ip netns exec {} {command}", self.name), input);
    }

    /// Runs `work` on a thread that has entered the namespace.
    pub(crate) fn enter<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let path = format!("/run/netns/{}", self.name);
        let thread = std::thread::spawn(move || {
            let namespace = File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("setns needs root");
            work()
        });
        thread.join().expect("the work in the namespace panicked")
    }

    /// A TCP connect that must be refused at once.
    pub(crate) fn connect(&self, to: &str) {
        let to: SocketAddr = to.parse().expect("an address and a port");
        let error = self
            .enter(move || TcpStream::connect_timeout(&to, Duration::from_secs(5)))
            .expect_err("the fence must refuse");
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{error}");
    }

    /// Sends `count` UDP datagrams, each of which must be refused.
    pub(crate) fn send(&self, to: &str, count: usize) {
        self.send_every(Duration::ZERO, to, count);
    }

    /// The same, one each `pause` at most: without a core of its own nothing else sleeps so short.
    pub(crate) fn send_every(&self, pause: Duration, to: &str, count: usize) {
        let to: SocketAddr = to.parse().expect("an address and a port");
        self.enter(move || {
            let from = if to.is_ipv4() { "10.200.0.1:0" } else { "[::1]:0" };
            let socket = UdpSocket::bind(from).expect("bind");
            let began = std::time::Instant::now();
            for number in 0..count as u32 {
                while began.elapsed() < pause * number {
                    std::hint::spin_loop();
                }
                let _refused = socket.send_to(b"hello", to);
            }
        });
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn run(command: &str, input: &str) {
    use std::io::Write;
    let words: Vec<_> = command.split(' ').collect();
    let mut child = Command::new(words[0])
        .args(&words[1..])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command}: {error} (tests need root, ip and nft)"));
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("the command reads its input");
    drop(stdin);
    let status = child.wait().expect("a child");
    assert!(status.success(), "{command}: {status} (tests need root, ip and nft)");
}
