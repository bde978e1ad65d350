//! Namespaces that something else made: stand-ins for containers and microVMs, with a link to the host.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::eventually;

/// A stand-in for a container: a process in a network namespace of its own, with a link to the host.
pub(crate) struct Container {
    pub(crate) process: Child,
    /// The host's end of its link.
    pub(crate) link: String,
    /// The host's address on the link, where a server of the host listens.
    pub(crate) host: String,
    /// Its own address on the link.
    pub(crate) source: String,
    server: TcpListener,
}

impl Container {
    pub(crate) fn start() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let process = Command::new("unshare").args(["-n", "sleep", "1000"]).stdin(Stdio::null()).spawn();
        let process = process.expect("unshare (needs root)");
        let pid = process.id();
        let own = std::fs::read_link("/proc/self/ns/net").expect("own namespace");
        eventually("it has a namespace of its own", || {
            std::fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|theirs| theirs != own)
        });
        let link = format!("sl{pid}");
        // A network of its own for each, out of what is set aside for benchmarks.
        let net = format!("198.18.{}.{}", pid % 256, number % 60 * 4);
        let at = |last: u32| {
            let (front, first) = net.rsplit_once('.').expect("an address");
            format!("{front}.{}", first.parse::<u32>().expect("a number") + last)
        };
        let (host, inside) = (at(1), at(2));
        run(&["ip", "link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &pid.to_string()]);
        run(&["ip", "addr", "add", &format!("{host}/30"), "dev", &link]);
        run(&["ip", "link", "set", &link, "up"]);
        let container = Self {
            server: TcpListener::bind((host.as_str(), 0)).expect("listen on the link"),
            process,
            link,
            host,
            source: inside.clone(),
        };
        for command in [
            &["ip", "link", "set", "lo", "up"][..],
            &["ip", "addr", "add", &format!("{inside}/30"), "dev", "eth0"],
            &["ip", "link", "set", "eth0", "up"],
            &["ip", "route", "add", "default", "via", &container.host],
        ] {
            assert_eq!(container.inside(command).0, 0, "{command:?}");
        }
        container
    }

    /// Ends it, and with it its namespace.
    pub(crate) fn end(&mut self) {
        self.process.kill().expect("kill");
        self.process.wait().expect("wait");
    }

    pub(crate) fn pid(&self) -> String {
        self.process.id().to_string()
    }

    /// Exit code and output of a program in its namespace.
    pub(crate) fn inside(&self, command: &[&str]) -> (i32, String) {
        let pid = self.pid();
        let mut enter = Command::new("nsenter");
        enter.args(["-n", "-t", &pid]).args(command).stdin(Stdio::null());
        let output = enter.output().expect("nsenter");
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap_or(-1), text)
    }

    pub(crate) fn reaches_the_host(&self) -> bool {
        let port = self.server.local_addr().expect("address").port().to_string();
        let script = format!("exec 3<>/dev/tcp/{}/{port}", self.host);
        self.inside(&["timeout", "2", "bash", "-c", &script]).0 == 0
    }

    pub(crate) fn through_the_proxy(&self, url: &str) -> (i32, String) {
        self.inside(&["curl", "-sS", "-m", "20", "-w", "%{http_code}", "-x", "http://10.200.0.1:3128", url])
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
        Command::new("ip").args(["link", "del", &self.link]).stderr(Stdio::null()).status().ok();
    }
}

fn run(command: &[&str]) {
    let status = Command::new(command[0]).args(&command[1..]).status().expect("run");
    assert!(status.success(), "{command:?}");
}
