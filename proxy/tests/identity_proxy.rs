//! Identity through the whole proxy: from a client's connect to the decision and its event.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

mod identity_world;

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use identity_world::*;
use serde_json::Value;
use sluice::appliance::{Appliance, Plan};
use sluice::event::journal::Target;
use sluice::identity::table::Reading;
use sluice::identity::{Elsewhere, Resolver, Setup, Tables};
use sluice::limits::SandboxLimits;
use sluice::policy::{self, Policy, Source};
use sluice::sandbox::Sandbox;

#[test]
#[ignore = "played by processes that the other tests start"]
fn client() {
    play();
}

/// An appliance that serves one sandbox, whose clients are processes in a namespace of their own.
struct House {
    world: World,
    appliance: Appliance,
    listener: Option<TcpListener>,
    proxy: std::net::SocketAddr,
    origin: TcpListener,
}

impl House {
    fn new() -> Self {
        let world = World::new();
        let origin = TcpListener::bind("127.0.0.1:0").unwrap();
        let listener = world.listen("127.0.0.1:0");
        let plan = Plan {
            watch: false,
            trace: true,
            hash_always: true,
            permit_special: vec!["127.0.0.0/8".parse().unwrap()],
            events: Target::File(world.dir.path().join("events")),
            ..Plan::default()
        };
        let appliance = Appliance::start(plan).unwrap();
        listener.set_nonblocking(true).unwrap();
        let proxy = listener.local_addr().unwrap();
        Self { world, appliance, listener: Some(listener), proxy, origin }
    }

    fn target(&self) -> String {
        self.origin.local_addr().unwrap().to_string()
    }

    /// The origin is for these programs alone.
    fn serve(&mut self, binaries: &[&Path], resolver: Option<Resolver>) {
        let port = self.origin.local_addr().unwrap().port();
        let mut text = format!(
            "version: 1\nnetwork_policies:\n  origin:\n    endpoints:\n      - {{ host: 127.0.0.1, port: {port} }}\n"
        );
        if !binaries.is_empty() {
            text.push_str("    binaries:\n");
        }
        for binary in binaries {
            writeln!(text, "      - {{ path: {} }}", binary.display()).unwrap();
        }
        let path = self.world.dir.path().join("policy.yaml");
        fs::write(&path, text).unwrap();
        let policy = policy::load(&Source::File(path)).unwrap();
        let policy = Arc::new(Policy::compile_with(&policy.file, &policy::host_links));
        let sandbox = Sandbox::new(
            "house",
            policy,
            SandboxLimits::default(),
            resolver.map(Arc::new),
            self.appliance.reporter().clone(),
        );
        self.appliance.serve(&Arc::new(sandbox), vec![self.listener.take().unwrap()]);
    }

    fn ask(&self, binary: &Path, role: &str, other: Option<&Path>) -> Client {
        self.world.start_asking(binary, role, self.proxy, &self.target(), other)
    }

    /// The first event of this kind that comes.
    fn event(&self, kind: &str) -> Value {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let text = fs::read_to_string(self.world.dir.path().join("events")).unwrap_or_default();
            let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            if let Some(event) = events.into_iter().find(|event| event["event"] == kind) {
                return event;
            }
            assert!(Instant::now() < deadline, "no {kind} in\n{text}");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

/// What WSL2 showed: the table of a process does not have the sandbox's connections, the daemon's own does. (Field
/// report 4: every CONNECT was refused.)
struct Wsl {
    of: PathBuf,
}

impl Tables for Wsl {
    fn of_process(&self, _pid: u32, reading: &mut Reading) -> io::Result<()> {
        reading.feed(b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n");
        reading.end_of_table();
        Ok(())
    }

    fn global(&self, reading: &mut Reading) -> io::Result<()> {
        reading.feed(&fs::read(&self.of)?);
        reading.end_of_table();
        Ok(())
    }
}

#[test]
fn a_client_only_the_global_table_shows_is_identified_and_allowed_and_the_event_says_so() {
    let mut house = House::new();
    let agent = house.world.binary("agent");
    // A process whose table of the namespace can be read in place of the daemon's own.
    let inside = house.world.start(&agent, "stay", house.proxy, None);
    let of = PathBuf::from(format!("/proc/{}/net/tcp", inside.pid()));
    // Asked in the wrong namespace, the kernel does not know the connection either.
    let setup =
        Setup { elsewhere: Arc::new(Elsewhere::default()), tables: Arc::new(Wsl { of }), ..setup(None) };
    house.serve(&[&agent], Some(Resolver::open(setup).unwrap()));
    let client = house.ask(&agent, "ask", None);
    let event = house.event("connect.allowed");
    assert_eq!(event["identity"], "global-table", "{event}");
    assert_eq!(event["process"]["pid"], client.pid(), "{event}");
    assert_eq!(event["process"]["exe"], agent.display().to_string(), "{event}");
}

#[test]
fn a_client_without_a_witness_is_allowed_by_the_kernels_trace_alone() {
    let mut house = House::new();
    let agent = house.world.binary("agent");
    let trace = house.appliance.trace().expect("tracing connects needs root (CAP_PERFMON) and tracefs");
    let resolver = house.world.traced(&trace);
    house.serve(&[&agent], Some(resolver));
    let client = house.ask(&agent, "ask", None);
    let event = house.event("connect.allowed");
    assert_eq!((&event["identity"], &event["process"]["pid"]), (&"trace".into(), &client.pid().into()));
}

#[test]
fn a_client_that_execs_an_allowed_binary_after_its_connect_is_denied_and_told_why() {
    let mut house = House::new();
    let (agent, allowed) = (house.world.binary("agent"), house.world.binary("allowed"));
    let trace = house.appliance.trace().unwrap();
    let resolver = house.world.traced(&trace);
    house.serve(&[&allowed], Some(resolver));
    // The allowed program asks, over the connection that another made.
    let _client = house.ask(&agent, "connect-then-exec-then-ask", Some(&allowed));
    let event = house.event("connect.denied");
    let trail = event["identity_trail"].as_str().unwrap_or_default();
    assert!(
        event["reason"] == "binary_not_allowed" && event["process"]["exe"] == agent.display().to_string()
            || event["reason"] == "identity_ambiguous"
                && trail.contains("trace: found, but its process has executed another program since"),
        "{event}"
    );
}

#[test]
fn a_denial_says_how_identity_was_sought_where_it_is_not_sought_too() {
    let mut house = House::new();
    let agent = house.world.binary("agent");
    house.serve(&[], None);
    let _client = house.world.start_asking(&agent, "ask", house.proxy, "denied.test:443", None);
    let event = house.event("connect.denied");
    assert_eq!(event["identity_trail"], "not sought (identity: off)", "{event}");
}

#[test]
fn another_program_at_the_path_of_one_that_was_seen_is_an_event() {
    let mut house = House::new();
    let (agent, next) = (house.world.binary("agent"), house.world.binary("next"));
    let trace = house.appliance.trace().unwrap();
    let resolver = house.world.traced(&trace);
    house.serve(&[&agent], Some(resolver));
    let first = house.ask(&agent, "ask", None);
    house.event("connect.allowed");
    // It is hashed on the side: the second one may come only when that is done.
    let hashed = Instant::now() + DEADLINE;
    while !fs::read_to_string(house.world.dir.path().join("events")).unwrap().contains("sha256") {
        assert!(Instant::now() < hashed, "it is never hashed");
        let again = house.ask(&agent, "ask", None);
        std::thread::sleep(std::time::Duration::from_millis(50));
        drop(again);
    }
    fs::OpenOptions::new().append(true).open(&next).unwrap().write_all(b"another").unwrap();
    fs::rename(&next, &agent).unwrap();
    let second = house.ask(&agent, "ask", None);
    let event = house.event("binary.changed");
    assert_eq!(event["process"]["exe"], agent.display().to_string(), "{event}");
    assert!(event["detail"].as_str().unwrap().starts_with("first seen as sha256 "), "{event}");
    drop((first, second));
}
