//! Real processes in a real namespace are named, and never misnamed.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

mod identity_world;

use std::fs;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use identity_world::*;
use sluice::identity::{
    Answer, Holding, Images, Need, Protocol, Query, Quick, Resolver, Seen, Setup, Source, Standing,
};

#[test]
#[ignore = "played by processes that the other tests start"]
fn client() {
    play();
}

#[test]
fn a_client_is_named_through_the_kernels_socket_table() {
    let world = World::new();
    let listener = world.listen("127.0.0.1:0");
    let binary = world.binary("agent");
    let client = world.start(&binary, "connect", listener.local_addr().unwrap(), None);
    let accepted = accept(&listener);
    let identity = identify(&world.resolver(), &accepted.query(Need::Proof));
    assert_eq!(identity.source, Source::Diag, "{}", identity.trail);
    assert_eq!(identity.trail.holding, Holding::Proven { holders: 1 });
    let process = proven(&identity);
    assert_eq!(process.pid, client.pid());
    assert_eq!(process.start_time, client.start_time());
    assert_eq!(process.exe_for_policy(), Some(binary.as_path()));
    assert_eq!(process.standing, Standing::Present);
    assert_eq!((identity.uid, process.uid), (Some(0), 0));
    // Its parent is this test, which is not in the sandbox.
    assert_eq!(process.ppid, std::process::id());
    assert!(process.ancestors.is_empty(), "{:?}", process.ancestors);
}

#[test]
fn a_client_on_a_dual_stack_socket_is_named() {
    let world = World::new();
    let listener = world.listen("127.0.0.1:0");
    let _client =
        world.start(&world.binary("agent"), "connect-dual-stack", listener.local_addr().unwrap(), None);
    let accepted = accept(&listener);
    let identity = identify(&world.resolver(), &accepted.query(Need::Proof));
    assert!(identity.proven().is_some(), "{}", identity.trail);
    // And so is a v4 client of a dual-stack listener, whose address the proxy sees as v4-mapped.
    let listener = world.listen("[::]:0");
    let v4 = format!("127.0.0.1:{}", listener.local_addr().unwrap().port()).parse().unwrap();
    let _client = world.start(&world.binary("other"), "connect", v4, None);
    let accepted = accept(&listener);
    assert!(accepted.client.is_ipv6());
    let identity = identify(&world.resolver(), &accepted.query(Need::Proof));
    assert!(identity.proven().is_some(), "{}", identity.trail);
}

#[test]
fn a_process_that_was_named_lately_is_named_without_a_scan() {
    let world = World::new();
    let listener = world.listen("127.0.0.1:0");
    let client = world.start(&world.binary("agent"), "connect-twice", listener.local_addr().unwrap(), None);
    let (first, mut second) = (accept(&listener), accept(&listener));
    second.hear();
    let resolver = world.resolver();
    assert!(matches!(resolver.quick(&first.query(Need::Name)), Quick::NeedsScan(_)));
    identify(&resolver, &first.query(Need::Name));
    for accepted in [&first, &second] {
        let Quick::Known(identity) = resolver.quick(&accepted.query(Need::Name)) else {
            panic!("scanned again")
        };
        assert_eq!(identity.process.as_ref().unwrap().pid, client.pid());
        assert_eq!(identity.trail.holding, Holding::Named);
        assert!(!identity.ambiguous);
    }
    // What one process is enough for is not enough to prove that there is no other.
    assert!(matches!(resolver.quick(&second.query(Need::Proof)), Quick::NeedsScan(_)));
}

#[test]
fn a_socket_shared_by_two_binaries_is_ambiguous() {
    let world = World::new();
    let listener = world.listen("127.0.0.1:0");
    let (agent, tool) = (world.binary("agent"), world.binary("tool"));
    let _client = world.start(&agent, "share", listener.local_addr().unwrap(), Some(&tool));
    let mut accepted = accept(&listener);
    assert_eq!(accepted.hear(), b'h');
    let resolver = world.resolver();
    // Repeatedly: what is remembered of the holders must not hide one of them.
    for _ in 0..3 {
        let identity = identify(&resolver, &accepted.query(Need::Proof));
        assert!(identity.ambiguous);
        assert!(identity.proven().is_none());
        assert_eq!(identity.trail.holding, Holding::Different { holders: 2 });
        assert_eq!(exe_of(&identity), agent, "the one that started first");
    }
}

#[test]
fn a_socket_shared_by_two_processes_of_one_binary_is_not() {
    let world = World::new();
    let listener = world.listen("127.0.0.1:0");
    let agent = world.binary("agent");
    let client = world.start(&agent, "share", listener.local_addr().unwrap(), Some(&agent));
    let mut accepted = accept(&listener);
    assert_eq!(accepted.hear(), b'h');
    let identity = identify(&world.resolver(), &accepted.query(Need::Proof));
    assert_eq!(proven(&identity).pid, client.pid(), "the one that started first");
    assert_eq!(identity.trail.holding, Holding::Proven { holders: 2 });
}

#[test]
fn a_process_that_connects_and_then_execs_an_allowed_binary_gains_nothing_where_there_is_a_witness() {
    let world = World::new();
    let listener = world.listen("127.0.0.1:0");
    let (agent, allowed) = (world.binary("agent"), world.binary("allowed"));
    let client = world.start(&agent, "connect-then-exec", listener.local_addr().unwrap(), Some(&allowed));
    let mut accepted = accept(&listener);
    assert_eq!(accepted.hear(), b'c');
    let seen = Seen {
        pid: client.pid(),
        tid: client.pid(),
        start_time: client.start_time(),
        exe: agent.clone(),
        comm: "agent".to_owned(),
        uid: 0,
        ancestors: None,
    };
    accepted.tell();
    assert_eq!(accepted.hear(), b'h');
    let mut setup = world.setup();
    setup.notes = Some(Arc::new(OneNote(seen)));
    let resolver = Resolver::open(setup).unwrap();
    let Quick::Known(identity) = resolver.quick(&accepted.query(Need::Proof)) else {
        panic!("a note is an answer")
    };
    assert_eq!(identity.source, Source::Witness);
    assert_eq!(exe_of(&identity), agent);
    assert_eq!(proven(&identity).standing, Standing::Noted);
    assert_eq!(proven(&identity).image, None, "what runs now is not what connected");
    // Without a witness the answer is as of the look.
    assert_eq!(exe_of(&identify(&world.resolver(), &accepted.query(Need::Proof))), allowed);
}

/// Its counters may not show yet that it runs: it must be seen all the same.
#[test]
fn a_process_that_is_remembered_as_idle_is_seen_with_the_socket_it_has_just_made() {
    let world = World::new();
    let listener = world.listen("127.0.0.1:0");
    let client =
        world.start(&world.binary("agent"), "connect-when-told", listener.local_addr().unwrap(), None);
    let _idle = world.start(&world.binary("idle"), "connect", listener.local_addr().unwrap(), None);
    let accepted = [accept(&listener), accept(&listener)];
    let resolver = world.resolver();
    let mut first = accepted
        .into_iter()
        .find(|accepted| proven(&identify(&resolver, &accepted.query(Need::Proof))).pid == client.pid())
        .unwrap();
    for _ in 0..100 {
        // It sleeps, and what it holds is remembered: looked at until longer ago than any tick.
        let until = Instant::now() + Duration::from_millis(30);
        while Instant::now() < until {
            identify(&resolver, &first.query(Need::Proof));
        }
        first.tell();
        let (stream, peer) = listener.accept().unwrap();
        let query = Query { client: peer, proxy: stream.local_addr().unwrap(), ..first.query(Need::Proof) };
        let identity = identify(&resolver, &query);
        assert_eq!(proven(&identity).pid, client.pid());
        assert_eq!(identity.trail.holding, Holding::Proven { holders: 1 });
    }
}

#[test]
fn a_client_that_has_gone_is_nobody_or_itself_but_never_another() {
    let world = World::new();
    let listener = world.listen("127.0.0.1:0");
    let (agent, bystander) = (world.binary("agent"), world.binary("bystander"));
    let _bystander = world.start(&bystander, "connect", listener.local_addr().unwrap(), None);
    let _kept = accept(&listener);
    let resolver = world.resolver();
    for round in 0..50 {
        let mut client = world.start(&agent, "connect-and-exit", listener.local_addr().unwrap(), None);
        let accepted = accept(&listener);
        if round % 2 == 0 {
            client.wait();
        }
        let identity = identify(&resolver, &accepted.query(Need::Name));
        match &identity.process {
            Some(process) => assert_eq!(process.exe, agent, "{}", identity.trail),
            None => assert!(
                identity.trail.diag == Answer::Orphan
                    || identity.trail.diag == Answer::NotFound
                    || matches!(identity.trail.holding, Holding::Nobody { .. }),
                "{}",
                identity.trail
            ),
        }
        if round % 2 == 0 {
            assert_eq!(identity.source, Source::None, "{}", identity.trail);
        }
    }
}

#[test]
fn a_binary_replaced_while_it_runs_is_named_by_its_path_and_hashed_by_what_runs() {
    let world = World::new();
    let listener = world.listen("127.0.0.1:0");
    let agent = world.binary("agent");
    let _old = world.start(&agent, "connect", listener.local_addr().unwrap(), None);
    let old_connection = accept(&listener);
    let newer = world.binary("newer");
    let mut bytes = fs::read(&newer).unwrap();
    bytes.extend_from_slice(b"a newer version");
    fs::write(&newer, &bytes).unwrap();
    fs::rename(&newer, &agent).unwrap();
    let _new = world.start(&agent, "connect", listener.local_addr().unwrap(), None);
    let new_connection = accept(&listener);

    let resolver = world.resolver();
    let old = identify(&resolver, &old_connection.query(Need::Proof));
    let new = identify(&resolver, &new_connection.query(Need::Proof));
    assert_eq!(proven(&old).standing, Standing::Deleted);
    assert_eq!(proven(&new).standing, Standing::Present);
    assert_eq!((exe_of(&old), exe_of(&new)), (agent.as_path(), agent.as_path()));

    let (tell, told) = mpsc::channel();
    let images = Images::start(move |change| tell.send(change).unwrap()).unwrap();
    let sandbox: Arc<str> = "a".into();
    let hash = |process| {
        let (answers, answer) = mpsc::channel();
        images.request(&sandbox, process, move |digest| answers.send(digest).unwrap());
        answer.recv_timeout(DEADLINE).unwrap().unwrap()
    };
    let (first, now) = (hash(proven(&old)), hash(proven(&new)));
    assert_ne!(first, now);
    assert_eq!(first, sha256(&std::env::current_exe().unwrap()));
    assert_eq!(now, sha256(&agent));
    assert_eq!(images.known(proven(&new)), Some(now));
    let change = told.recv_timeout(DEADLINE).unwrap();
    assert_eq!((change.path.as_path(), change.first, change.now), (agent.as_path(), first, now));
    // Told once, not at every connection.
    hash(proven(&new));
    assert!(told.try_recv().is_err());
}

fn sha256(path: &std::path::Path) -> sluice::identity::Digest {
    use sha2::Digest as _;
    sluice::identity::Digest(sha2::Sha256::digest(fs::read(path).unwrap()).into())
}

#[test]
fn a_file_really_named_deleted_is_told_from_one_that_is() {
    let world = World::new();
    let listener = world.listen("127.0.0.1:0");
    let named = world.binary("agent (deleted)");
    let gone = world.binary("gone (deleted)");
    let linked = world.binary("linked");
    let resolver = world.resolver();
    let look = |binary: &std::path::Path, then: &dyn Fn()| {
        let client = world.start(binary, "connect", listener.local_addr().unwrap(), None);
        let mut accepted = accept(&listener);
        accepted.hear();
        then();
        let identity = identify(&resolver, &accepted.query(Need::Proof));
        drop(client);
        let process = proven(&identity);
        (process.exe.clone(), process.standing)
    };
    assert_eq!(look(&named, &|| ()), (named.clone(), Standing::Present));
    assert_eq!(look(&gone, &|| fs::remove_file(&gone).unwrap()), (gone.clone(), Standing::Deleted));
    // Unlinked under one name while another remains: the file has links, but not the name.
    let elsewhere = world.dir.path().join("elsewhere");
    let relink = || {
        fs::hard_link(&linked, &elsewhere).unwrap();
        fs::remove_file(&linked).unwrap();
    };
    assert_eq!(look(&linked, &relink), (linked.clone(), Standing::Deleted));
}

#[test]
fn a_binary_that_hides_behind_a_path_in_its_own_mount_namespace_is_masked() {
    let world = World::new();
    let listener = world.listen("127.0.0.1:0");
    let (allowed, evil) = (world.binary("allowed"), world.binary("evil"));
    let _client = world.start(&allowed, "mask", listener.local_addr().unwrap(), Some(&evil));
    let accepted = accept(&listener);
    let identity = identify(&world.resolver(), &accepted.query(Need::Proof));
    let process = identity.process.as_ref().unwrap();
    assert_eq!(process.exe, allowed, "the kernel spells it as the process sees it");
    assert_eq!(process.standing, Standing::Masked);
    assert_eq!(process.exe_for_policy(), None);
    // For a container, whose paths mean what they mean inside, the same file is in its place.
    let view_of = Some(process.pid);
    let resolver = Resolver::open(Setup { view_of, ..world.setup() }).unwrap();
    let identity = identify(&resolver, &accepted.query(Need::Proof));
    assert_eq!(proven(&identity).exe_for_policy(), Some(allowed.as_path()));
}

#[test]
fn the_line_of_ancestors_ends_at_the_sandboxs_first_process() {
    let world = World::new();
    let listener = world.listen("127.0.0.1:0");
    let (agent, tool) = (world.binary("agent"), world.binary("tool"));
    let first = world.start(&agent, "start-another", listener.local_addr().unwrap(), Some(&tool));
    let accepted = accept(&listener);
    let resolver = world.resolver();
    let identity = identify(&resolver, &accepted.query(Need::Proof));
    assert_eq!(proven(&identity).exe, tool);
    assert_eq!(proven(&identity).ppid, first.pid());
    assert_eq!(proven(&identity).ancestors, [agent]);
    // Its parent gone, it is the first itself: what was remembered of the line no longer holds.
    drop(first);
    let identity = identify(&resolver, &accepted.query(Need::Proof));
    assert!(proven(&identity).ancestors.is_empty());
}

#[test]
fn descriptors_that_are_hidden_from_us_are_nobodys_and_the_trail_says_so() {
    let world = World::new();
    let listener = world.listen("127.0.0.1:0");
    let agent = world.binary("agent");
    let _client = world.start(&agent, "connect", listener.local_addr().unwrap(), None);
    let accepted = accept(&listener);
    let observed = world.observe_as_nobody(&agent, &accepted.query(Need::Proof));
    assert!(observed.contains("observed none None"), "{observed}");
    assert!(observed.contains("diag: found"), "{observed}");
    assert!(observed.contains("of which could not be read"), "{observed}");
}

#[test]
fn the_socket_of_a_datagram_is_named_after_it_was_refused() {
    let world = World::new();
    let (socket, client) = world.inside(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(b"?", "127.0.0.1:9").unwrap();
        let port = socket.local_addr().unwrap().port();
        (socket, format!("127.0.0.1:{port}").parse().unwrap())
    });
    let query =
        Query { protocol: Protocol::Udp, client, proxy: "127.0.0.1:9".parse().unwrap(), need: Need::Name };
    let Quick::NeedsScan(ticket) = world.resolver().quick(&query) else { panic!("found without looking") };
    // We hold it, and we are not of the sandbox: found, but nobody's.
    let identity = ticket.settle();
    assert_eq!((identity.source, identity.trail.diag), (Source::None, Answer::Found));
    assert!(matches!(identity.trail.holding, Holding::Nobody { unreadable: 0, .. }));
    assert!(socket.as_raw_fd() > 0);
}
