//! `sluice serve` as a test wants it.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::{DEADLINE, Peer};

/// What is particular about a daemon. The default: one worker, policy `open`, loopback permitted, no identity.
#[derive(Default)]
pub(crate) struct Setup {
    policy: Option<String>,
    timeouts: String,
    limits: String,
    sandbox_limits: String,
    wrapper: Vec<String>,
    refusal_hint: Option<&'static str>,
    tls: String,
}

impl Setup {
    /// The text of a policy, in place of `open`.
    pub(crate) fn policy(mut self, text: impl Into<String>) -> Self {
        self.policy = Some(text.into());
        self
    }

    /// A policy with one rule, of these endpoints (YAML flow mappings).
    pub(crate) fn endpoints(self, endpoints: &[String]) -> Self {
        self.policy(policy_of(endpoints))
    }

    /// Entries of `timeouts`.
    pub(crate) fn timeouts(mut self, entries: &str) -> Self {
        self.timeouts = entries.into();
        self
    }

    /// Entries of the sandbox' `limits`.
    pub(crate) fn sandbox_limits(mut self, entries: &str) -> Self {
        self.sandbox_limits = entries.into();
        self
    }

    /// What the operator wants the refused to know.
    pub(crate) fn refusal_hint(mut self, text: &'static str) -> Self {
        self.refusal_hint = Some(text);
        self
    }

    /// Entries of `tls`.
    pub(crate) fn tls(mut self, entries: &str) -> Self {
        self.tls = entries.into();
        self
    }

    /// A command that runs the daemon, its arguments being the rest of the line.
    pub(crate) fn run_by(mut self, command: &[&str]) -> Self {
        self.wrapper.extend(command.iter().map(|&word| word.to_owned()));
        self
    }

    pub(crate) fn start(self) -> Proxy {
        Proxy::start(&self)
    }

    fn write(&self, dir: &TempDir, listen: SocketAddr) -> std::path::PathBuf {
        let path = |name: &str| dir.path().join(name);
        let policy = match &self.policy {
            Some(text) => {
                fs::write(path("policy.yaml"), text).unwrap();
                "policy.yaml"
            }
            None => "open",
        };
        let Self { timeouts, limits, sandbox_limits, tls, .. } = self;
        let events = path("events.ndjson");
        let config = format!(
            "listen: {listen}\nworkers: 1\nevents: {}\nadmin_socket: {}\nstate_dir: {}\n\
             permit_special_addresses: [127.0.0.0/8, \"::1/128\"]\ntls: {{{tls}}}\ntimeouts: {{{timeouts}}}\nlimits: {{{limits}}}\nsandboxes:\n  - name: box\n    source: 127.0.0.1/32\n    \
             identity: off\n    policy: {policy}\n    limits: {{{sandbox_limits}}}\n",
            events.display(),
            path("state/admin.sock").display(),
            path("state").display()
        );
        let hint = self.refusal_hint.map(|text| format!("refusal_hint: {text}\n")).unwrap_or_default();
        fs::write(path("serve.yaml"), hint + &config).unwrap();
        path("serve.yaml")
    }
}

/// The text of a policy with one rule, of these endpoints (YAML flow mappings).
pub(crate) fn policy_of(endpoints: &[String]) -> String {
    let mut text = String::from("version: 1\nnetwork_policies:\n  test:\n    endpoints:\n");
    for endpoint in endpoints {
        writeln!(text, "      - {{{endpoint}}}").unwrap();
    }
    text
}

/// A running daemon; it ends when this is dropped, or with the test process.
pub(crate) struct Proxy {
    at: SocketAddr,
    child: Child,
    dir: TempDir,
    said: Arc<Mutex<String>>,
}

impl Proxy {
    /// The daemon shared by the tests of one file: everything at its default.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<&'static Proxy> = OnceLock::new();
        SHARED.get_or_init(|| {
            let (sender, started) = mpsc::channel();
            // The daemon dies with the thread that started it, and a test's own thread ends with the test.
            std::thread::spawn(move || {
                sender.send(&*Box::leak(Box::new(Setup::default().start()))).unwrap();
                loop {
                    std::thread::park();
                }
            });
            started.recv().expect("the shared daemon starts")
        })
    }

    fn start(setup: &Setup) -> Self {
        // The directory of a shared daemon stays behind: beside what was built it is cleaned up with it.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let at = own_address();
        let config = setup.write(&dir, at);
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).args(&setup.wrapper);
        // A call that a thread's list does not have ends Sluice.
        command.env("SLUICE_HARDENING", "strict");
        command.arg(env!("CARGO_BIN_EXE_sluice")).args(["serve", "--config"]).arg(config);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("setpriv (util-linux) and the rest of the command line");
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let said = Arc::new(Mutex::new(String::new()));
        let (sender, serving) = mpsc::channel();
        let kept = Arc::clone(&said);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let is_serving = line.contains(" serving ");
                let mut kept = kept.lock().unwrap();
                kept.push_str(&line);
                kept.push('\n');
                if is_serving {
                    let _ = sender.send(());
                }
            }
        });
        // An error says that its stderr has closed: it has ended.
        let ready = serving.recv_timeout(DEADLINE);
        let proxy = Self { at, child, dir, said };
        assert!(ready.is_ok(), "the daemon does not serve; it says:\n{}", proxy.said());
        proxy
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.at
    }

    /// The certificate that the sandbox' clients are to trust.
    pub(crate) fn authority(&self) -> PathBuf {
        self.dir.path().join("state/ca/box/ca.pem")
    }

    /// As clients want it in `http_proxy`.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.at)
    }

    /// A client of the sandbox.
    pub(crate) fn connect(&self) -> Peer {
        Peer::new(TcpStream::connect_timeout(&self.at, DEADLINE).expect("the daemon listens"))
    }

    /// A client that has said this.
    pub(crate) fn ask(&self, octets: impl AsRef<[u8]>) -> Peer {
        let mut client = self.connect();
        client.send(octets);
        client
    }

    /// A client with an open tunnel to `authority`.
    pub(crate) fn tunnel(&self, authority: impl std::fmt::Display) -> Peer {
        let mut client = self.ask(format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n"));
        assert_eq!(client.head().status(), 200);
        client
    }

    /// Writes another policy; the daemon notices by itself, or is told by [`hang_up`](Self::hang_up).
    pub(crate) fn write_policy(&self, text: &str) {
        fs::write(self.dir.path().join("policy.yaml"), text).unwrap();
    }

    /// The folder of the configuration.
    pub(crate) fn folder(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Has the daemon read its configuration again, and waits until it has told what came of it.
    pub(crate) fn hang_up(&self) {
        let told = self.loads();
        self.signal_reload();
        self.loaded_after(told);
    }

    /// Has the daemon read its configuration again.
    pub(crate) fn signal_reload(&self) {
        let pid = nix::unistd::Pid::from_raw(self.pid().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
    }

    /// How often policies were loaded or rejected.
    pub(crate) fn loads(&self) -> usize {
        let text = self.events_text();
        ["loaded", "rejected"]
            .map(|what| text.matches(&format!("\"event\":\"policy.{what}\"")).count())
            .iter()
            .sum()
    }

    /// Waits for one load more than so many.
    pub(crate) fn loaded_after(&self, told: usize) {
        let began = Instant::now();
        while self.loads() <= told {
            assert!(began.elapsed() < DEADLINE, "no policy was loaded; the daemon said:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The first event that is `wanted`, now or within the deadline.
    pub(crate) fn event(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            if let Some(found) = self.events().into_iter().find(|event| wanted(event)) {
                return found;
            }
            assert!(began.elapsed() < DEADLINE, "no such event among:\n{}", self.events_text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The first event of this kind about this port.
    pub(crate) fn event_about(&self, kind: &str, port: u16) -> Value {
        self.event(|event| event["event"] == kind && event["dst_port"] == port)
    }

    pub(crate) fn events(&self) -> Vec<Value> {
        self.events_text().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    fn events_text(&self) -> String {
        fs::read_to_string(self.dir.path().join("events.ndjson")).unwrap_or_default()
    }

    /// What the daemon has said on stderr.
    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory of the daemon in octets.
    pub(crate) fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// Descriptors the daemon holds.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the daemon said:\n{}", self.said());
        }
    }
}

/// A loopback address that belongs to this test process, and a port for each daemon: nobody else takes it between the
/// choice and the bind.
fn own_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    // Process ids have 22 bits.
    let ip = Ipv4Addr::new(127, 64 + high, middle, low);
    SocketAddr::from((ip, NEXT.fetch_add(1, Ordering::Relaxed)))
}
