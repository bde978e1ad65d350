//! What the kernel's trace of connects proves for sandboxes without a witness, and what it refuses to prove.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

mod identity_world;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use identity_world::*;
use sluice::identity::{
    Answer, Elsewhere, Holding, Identity, Need, Protocol, Query, Quick, Resolver, Setup, Source, Trace,
};

#[test]
#[ignore = "played by processes that the other tests start"]
fn client() {
    play();
}

fn trace() -> Arc<Trace> {
    Arc::new(Trace::open().expect("tracing connects needs root (CAP_PERFMON) and tracefs"))
}

fn known(resolver: &Resolver, query: &Query) -> Arc<Identity> {
    match resolver.quick(query) {
        Quick::Known(identity) => identity,
        Quick::NeedsScan(ticket) => panic!("needs a search: {ticket:?}"),
    }
}

#[test]
fn a_client_without_a_witness_is_proven_on_the_worker_and_nothing_is_searched() {
    let (world, trace) = (World::new(), trace());
    for role in ["connect", "connect-dual-stack"] {
        let listener = world.listen("127.0.0.1:0");
        let binary = world.binary(role);
        let client = world.start(&binary, role, listener.local_addr().unwrap(), None);
        let accepted = accept(&listener);
        let resolver = world.traced(&trace);
        for _ in 0..2 {
            let identity = known(&resolver, &accepted.query(Need::Proof));
            assert_eq!(identity.source, Source::Trace, "{}", identity.trail);
            assert_eq!(identity.trail.holding, Holding::NotTried);
            let process = proven(&identity);
            assert_eq!((process.pid, process.exe_for_policy()), (client.pid(), Some(binary.as_path())));
            assert_eq!(process.start_time, client.start_time());
            assert_eq!(
                identity.trail.to_string(),
                "witness: not available; trace: found; diag: not tried; pid-table: not tried; \
                 global-table: not tried; held by: not sought"
            );
        }
    }
}

#[test]
fn a_connection_from_before_the_trace_is_searched_for() {
    let world = World::new();
    let listener = world.listen("127.0.0.1:0");
    let client = world.start(&world.binary("agent"), "connect", listener.local_addr().unwrap(), None);
    let accepted = accept(&listener);
    let identity = identify(&world.traced(&trace()), &accepted.query(Need::Proof));
    assert_eq!((identity.source, identity.trail.trace), (Source::Diag, Answer::NotFound));
    assert_eq!(proven(&identity).pid, client.pid());
}

#[test]
fn a_process_that_connects_and_then_execs_an_allowed_binary_gains_nothing() {
    let (world, trace) = (World::new(), trace());
    let listener = world.listen("127.0.0.1:0");
    let (agent, allowed) = (world.binary("agent"), world.binary("allowed"));
    let client = world.start(&agent, "connect-then-exec", listener.local_addr().unwrap(), Some(&allowed));
    let mut accepted = accept(&listener);
    assert_eq!(accepted.hear(), b'c');
    let asked_before = world.traced(&trace);
    let query = accepted.query(Need::Proof);
    assert_eq!(exe_of(&known(&asked_before, &query)), agent);
    accepted.tell();
    assert_eq!(accepted.hear(), b'h');
    assert_eq!(fs::read_link(format!("/proc/{}/exe", client.pid())).unwrap(), allowed);
    // What was known at the connect is still known; what was not is never made up.
    assert_eq!(proven(&known(&asked_before, &query)).exe, agent);
    let identity = identify(&world.traced(&trace), &query);
    assert!(identity.proven().is_none(), "{}", identity.trail);
    assert_eq!(identity.trail.trace, Answer::Changed);
    assert!(identity.trail.to_string().contains("executed another program since"));
}

/// A process can stretch the moment in which `/proc` shows the new program and nothing tells of the exec yet.
#[test]
fn in_the_midst_of_an_exec_the_new_program_is_not_taken_for_the_one_that_connected() {
    let (world, trace) = (World::new(), trace());
    let listener = world.listen("127.0.0.1:0");
    let (agent, allowed) = (world.binary("agent"), world.binary("allowed"));
    let client =
        world.start(&agent, "connect-then-slow-exec", listener.local_addr().unwrap(), Some(&allowed));
    let accepted = accept(&listener);
    let exe = format!("/proc/{}/exe", client.pid());
    let deadline = Instant::now() + DEADLINE / 2;
    while fs::read_link(&exe).ok().as_ref() != Some(&allowed) {
        assert!(Instant::now() < deadline, "it never came to its exec");
    }
    let identity = identify(&world.traced(&trace), &accepted.query(Need::Proof));
    assert!(identity.proven().is_none(), "{}", identity.trail);
    assert_eq!(identity.trail.trace, Answer::Changed);
}

#[test]
fn a_client_that_has_gone_is_itself_if_it_was_known_and_else_nobody() {
    let (world, trace) = (World::new(), trace());
    let listener = world.listen("127.0.0.1:0");
    let agent = world.binary("agent");
    let mut client = world.start(&agent, "connect-twice", listener.local_addr().unwrap(), None);
    let (first, mut second) = (accept(&listener), accept(&listener));
    second.hear();
    let resolver = world.traced(&trace);
    known(&resolver, &first.query(Need::Proof));
    let query = second.query(Need::Proof);
    drop((first, second));
    client.wait();
    assert_eq!(proven(&known(&resolver, &query)).exe, agent, "its other connection was asked for before");
    let identity = identify(&world.traced(&trace), &query);
    assert!(identity.process.is_none());
    assert_eq!((identity.source, identity.trail.trace), (Source::None, Answer::Gone));
}

#[test]
fn the_same_four_tuple_in_two_namespaces_is_told_apart() {
    let trace = trace();
    let worlds = [World::new(), World::new()];
    let first = worlds[0].listen("127.0.0.1:0");
    let proxy = first.local_addr().unwrap();
    let listeners = [first, worlds[1].listen(&proxy.to_string())];
    let source = if proxy.port() == 40_001 { 40_002 } else { 40_001 };
    let mut seen = Vec::new();
    for (world, listener) in worlds.iter().zip(&listeners) {
        let binary = world.binary("agent");
        let client = world.start(&binary, "connect-from", proxy, Some(Path::new(&source.to_string())));
        seen.push((client, accept(listener)));
    }
    assert_eq!(seen[0].1.query(Need::Proof), seen[1].1.query(Need::Proof));
    for (world, (client, accepted)) in worlds.iter().zip(&seen) {
        let identity = known(&world.traced(&trace), &accepted.query(Need::Proof));
        assert_eq!(proven(&identity).pid, client.pid());
    }
    // To a sandbox of which only the address is known, they are not.
    let anywhere =
        Setup { elsewhere: Arc::new(Elsewhere::default()), trace: Some(Arc::clone(&trace)), ..setup(None) };
    let identity = identify(&Resolver::open(anywhere).unwrap(), &seen[0].1.query(Need::Proof));
    assert!(identity.proven().is_none());
    assert_eq!(identity.trail.trace, Answer::Several);
}

#[test]
fn a_sandbox_known_by_its_address_has_its_clients_named_in_whatever_namespace_they_are() {
    let (world, trace) = (World::new(), trace());
    let listener = world.listen("127.0.0.1:0");
    let client = world.start(&world.binary("agent"), "connect", listener.local_addr().unwrap(), None);
    // Held: the client ends with its connection.
    let accepted = accept(&listener);
    let query = accepted.query(Need::Proof);
    let external = || Setup { trace: Some(Arc::clone(&trace)), ..setup(None) };
    assert_eq!(proven(&known(&Resolver::open(external()).unwrap(), &query)).pid, client.pid());
    // But not in another sandbox's.
    let elsewhere = Elsewhere::with_host().unwrap();
    elsewhere.add(rustix_inode(&world));
    let other = Setup { elsewhere: Arc::new(elsewhere), ..external() };
    let identity = identify(&Resolver::open(other).unwrap(), &query);
    assert!(identity.process.is_none(), "{}", identity.trail);
}

fn rustix_inode(world: &World) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    fs::File::from(world.netns()).metadata().unwrap().ino()
}

#[test]
fn a_direct_attempt_that_was_refused_is_named_though_its_socket_is_gone() {
    let (world, trace) = (World::new(), trace());
    let listener = world.listen("127.0.0.1:0");
    let agent = world.binary("agent");
    let client =
        world.start(&agent, "connect-in-vain", listener.local_addr().unwrap(), Some(Path::new("40003")));
    let mut accepted = accept(&listener);
    accepted.hear();
    let end = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let query = Query { protocol: Protocol::Tcp, client: end(40_003), proxy: end(1), need: Need::Name };
    let identity = known(&world.traced(&trace), &query);
    assert_eq!(identity.source, Source::Trace);
    assert_eq!(proven(&identity).pid, client.pid());
}
