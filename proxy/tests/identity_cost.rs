//! What identity costs in a crowd: 500 processes with 40 descriptors each and 10,000 connections in one sandbox.
//!
//! `cargo test --release -p sluice --test identity_cost -- --ignored cost --nocapture` prints a table of CPU times.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

mod identity_world;

use std::collections::HashMap;
use std::fs;
use std::net::TcpListener;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

use identity_world::*;
use nix::time::{ClockId, clock_gettime};
use sluice::identity::table::{Line, Tuple, parse};
use sluice::identity::{
    DiagSocket, Members, Need, Protocol, Query, Quick, Resolver, Seen, Setup, Source, Trace,
};

const PROCESSES: usize = 500;
const CONNECTIONS_EACH: usize = 20;
const ROUNDS: u32 = 200;

#[test]
#[ignore = "played by processes that the other tests start"]
fn client() {
    play();
}

#[test]
#[ignore = "measures; takes 20 s"]
fn cost_in_a_crowd() {
    raise_descriptor_limit();
    let world = World::new();
    let listener = world.listen("127.0.0.1:0");
    let binary = world.binary("crowd");
    let (crowd, connections) = gather(&world, &listener, &binary);
    let agent =
        world.start(&world.binary("agent"), "connect-when-told", listener.local_addr().unwrap(), None);
    let mut agent_connection = accept(&listener);
    let resolver = world.resolver();
    let query = agent_connection.query(Need::Proof);

    report(
        "naive: both tables parsed, every descriptor read",
        &mut || assert_eq!(naive(&query, agent.pid()), Some(agent.pid())),
        1,
    );
    report("first look ever (proof)", &mut || settle(&resolver, &query), 1);
    report("again within a tick (proof)", &mut || settle(&resolver, &query), 1);
    std::thread::sleep(Duration::from_millis(50));
    report("crowd known and idle (proof)", &mut || settle(&resolver, &query), ROUNDS);
    let name = agent_connection.query(Need::Name);
    report("known process (name, on the worker)", &mut || known(&resolver, &name), ROUNDS);
    let mut kept = Vec::new();
    let mut fresh = || {
        agent_connection.tell();
        let (stream, client) = listener.accept().unwrap();
        kept.push(stream);
        Query { client, ..name }
    };
    let queries: Vec<Query> = (0..ROUNDS).map(|_| fresh()).collect();
    let (mut next, mut scanned) = (queries.iter(), 0);
    let mut look = || match resolver.quick(next.next().unwrap()) {
        Quick::Known(_) => {}
        Quick::NeedsScan(ticket) => {
            scanned += 1;
            ticket.settle();
        }
    };
    report("new connection of a known process (name)", &mut look, ROUNDS);
    eprintln!("  of {ROUNDS}, not found by the worker itself: {scanned}");
    let own = Tuple::new(name.client, name.proxy);
    let mut kernel = DiagSocket::open(Some(world.netns().as_fd())).unwrap();
    let mut ask = || assert!(kernel.lookup(Protocol::Tcp, &own).unwrap().is_some());
    report("the kernel's lookup alone", &mut ask, ROUNDS);
    report_prepared("witness, new process", 50, || noted(&world, &agent), |resolver| known(&resolver, &name));
    let noted = noted(&world, &agent);
    report("witness, known process", &mut || known(&noted, &name), ROUNDS);
    trace_cost(&world, &listener, &mut agent_connection);
    let listed = by_cgroup(&world, &crowd, &agent);
    settle(&listed, &query);
    std::thread::sleep(Duration::from_millis(50));
    report("crowd known and idle, listed by cgroup (proof)", &mut || settle(&listed, &query), ROUNDS);
    for (what, need) in [("new process (name)", Need::Name), ("new process (proof)", Need::Proof)] {
        let (mut newcomers, mut arrived) = (Vec::new(), Vec::new());
        let newcomer = world.binary("newcomer");
        report_prepared(
            what,
            20,
            || {
                newcomers.push(world.start(&newcomer, "connect", listener.local_addr().unwrap(), None));
                arrived.push(accept(&listener));
                arrived.last().unwrap().query(need)
            },
            |query| settle(&resolver, &query),
        );
    }
    drop((connections, crowd));
}

/// With the kernel's trace and no witness: processes that were looked up before, and others.
fn trace_cost(world: &World, listener: &TcpListener, connection: &mut Accepted) {
    let trace = Arc::new(Trace::open().unwrap());
    let resolver = world.traced(&trace);
    let proxy = connection.proxy;
    let mut kept = Vec::new();
    let mut fresh = || {
        connection.tell();
        let (stream, client) = listener.accept().unwrap();
        kept.push(stream);
        Query { protocol: Protocol::Tcp, client, proxy, need: Need::Proof }
    };
    known(&resolver, &fresh());
    let sees = |resolver: &Resolver, query: &Query| match resolver.quick(query) {
        Quick::Known(identity) => assert_eq!(identity.source, Source::Trace),
        Quick::NeedsScan(ticket) => panic!("{ticket:?}"),
    };
    report_prepared("trace, known process, new connection (proof)", ROUNDS, &mut fresh, |query| {
        sees(&resolver, &query);
    });
    let same = fresh();
    report("trace, known process, same connection (proof)", &mut || sees(&resolver, &same), ROUNDS);
    report_prepared(
        "trace, process never seen (proof)",
        50,
        || (world.traced(&trace), fresh()),
        |(resolver, query)| sees(&resolver, &query),
    );
}

fn gather(world: &World, listener: &TcpListener, binary: &std::path::Path) -> (Vec<Client>, Vec<Accepted>) {
    let mut connections = Vec::new();
    let crowd = (0..PROCESSES)
        .map(|_| {
            let one = world.start(binary, "crowd", listener.local_addr().unwrap(), None);
            connections.extend((0..CONNECTIONS_EACH).map(|_| accept(listener)));
            one
        })
        .collect();
    (crowd, connections)
}

/// The same sandbox, its processes listed by a file such as a cgroup has.
fn by_cgroup(world: &World, crowd: &[Client], agent: &Client) -> Resolver {
    let path = world.dir.path().join("cgroup");
    fs::create_dir(&path).unwrap();
    let lines = crowd.iter().chain([agent]).map(|client| format!("{}\n", client.pid()));
    fs::write(path.join("cgroup.procs"), lines.collect::<String>()).unwrap();
    Resolver::open(Setup { members: Members::Cgroup(path), ..world.setup() }).unwrap()
}

/// A resolver that knows nothing yet, and a witness that saw the agent connect.
fn noted(world: &World, agent: &Client) -> Resolver {
    let (pid, exe) = (agent.pid(), world.dir.path().join("agent"));
    let (tid, start_time, comm) = (pid, agent.start_time(), "agent".to_owned());
    let seen = Seen { pid, tid, start_time, exe, comm, uid: 0, ancestors: None };
    Resolver::open(Setup { notes: Some(Arc::new(OneNote(seen))), ..world.setup() }).unwrap()
}

fn settle(resolver: &Resolver, query: &Query) {
    let identity = identify(resolver, query);
    assert!(identity.process.is_some() && !identity.ambiguous, "{}", identity.trail);
}

fn known(resolver: &Resolver, query: &Query) {
    assert!(matches!(resolver.quick(query), Quick::Known(_)));
}

fn report(what: &str, work: &mut dyn FnMut(), rounds: u32) {
    report_prepared(what, rounds, || (), |()| work());
}

/// CPU time of this thread for `work`, without what prepares it.
fn report_prepared<T>(what: &str, rounds: u32, mut prepare: impl FnMut() -> T, mut work: impl FnMut(T)) {
    let cpu = || Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap());
    let mut times: Vec<Duration> = (0..rounds)
        .map(|_| {
            let prepared = prepare();
            let before = cpu();
            work(prepared);
            cpu().saturating_sub(before)
        })
        .collect();
    times.sort();
    eprintln!("{what:50} least {:>9.1?}   median {:>9.1?}", times[0], times[times.len() / 2]);
}

/// The yardstick: what a proxy does that knows no better.
fn naive(query: &Query, member: u32) -> Option<u32> {
    let sought = Tuple::new(query.client, query.proxy);
    let listed = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        let pid: u32 = path.file_name()?.to_str()?.parse().ok()?;
        Some((pid, path))
    });
    let members: Vec<_> = listed.collect();
    let mut inodes = HashMap::new();
    for table in ["tcp", "tcp6"] {
        for line in fs::read_to_string(format!("/proc/{member}/net/{table}")).unwrap().lines() {
            if let Line::Row(row) = parse(line.as_bytes()) {
                inodes.insert(row.tuple, row.inode);
            }
        }
    }
    let inode = *inodes.get(&sought)?;
    let mut holder = None;
    for (pid, path) in members {
        for fd in fs::read_dir(path.join("fd")).into_iter().flatten() {
            let link = fs::read_link(fd.unwrap().path()).unwrap_or_default();
            if link.to_string_lossy() == format!("socket:[{inode}]") {
                holder = Some(pid);
            }
        }
    }
    fs::metadata(format!("/proc/{}/exe", holder?)).unwrap().ino();
    holder
}
