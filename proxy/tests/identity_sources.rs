//! Where identity is known from, what happens when a source fails, and that many lookups cost one reading.

#![allow(clippy::unwrap_used)] // a test ends at the first surprise

mod identity_world;

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use identity_world::*;
use sluice::identity::table::Reading;
use sluice::identity::{
    Answer, Elsewhere, Holding, Identity, Mode, Need, Protocol, Query, Quick, Resolver, Scanner, Source,
    Tables,
};

#[test]
#[ignore = "played by processes that the other tests start"]
fn client() {
    play();
}

/// On WSL2 the table of a process did not show the sandbox's connections; the daemon's own did, and every CONNECT was
/// refused. (Field report 4.)
#[test]
fn a_connection_only_the_global_table_shows_is_identified_and_says_so() {
    let world = World::new();
    let listener = world.listen("127.0.0.1:0");
    let agent = world.binary("agent");
    let client = world.start(&agent, "connect", listener.local_addr().unwrap(), None);
    let mut accepted = accept(&listener);
    accepted.hear();
    let heading =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
    let row = row(accepted.client, accepted.proxy, 0, socket_inode(client.pid()));
    // Asked in the wrong namespace, the kernel's lookup does not know the connection either.
    let mut setup = setup(None);
    setup.elsewhere = Arc::new(Elsewhere::default());
    setup.tables = Arc::new(Fixture { of_process: heading.to_owned(), global: format!("{heading}{row}") });
    let identity = identify(&Resolver::open(setup).unwrap(), &accepted.query(Need::Name));
    assert_eq!(identity.source, Source::GlobalTable);
    assert_eq!(exe_of(&identity), agent);
    let trail = identity.trail;
    assert_eq!(
        (trail.diag, trail.pid_table, trail.global_table),
        (Answer::NotFound, Answer::NotFound, Answer::Found)
    );
    assert_eq!(
        trail.to_string(),
        "witness: not available; trace: not available; diag: not found; pid-table: not found; global-table: found; \
         held by: one process, others not ruled out"
    );
}

#[test]
fn the_table_of_a_living_process_answers_where_the_kernel_can_not_be_asked() {
    let world = World::new();
    let listener = world.listen("127.0.0.1:0");
    let agent = world.binary("agent");
    let _client = world.start(&agent, "connect", listener.local_addr().unwrap(), None);
    let mut accepted = accept(&listener);
    accepted.hear();
    // The kernel's lookup is asked about a port that is not the client's, the real tables about the real one.
    let mut setup = world.setup();
    setup.tables = Arc::new(Shifted);
    let query = Query { client: shift(accepted.client), ..accepted.query(Need::Proof) };
    let identity = identify(&Resolver::open(setup).unwrap(), &query);
    assert_eq!(identity.source, Source::PidTable, "{}", identity.trail);
    assert_eq!(exe_of(&identity), agent);
    assert_eq!(identity.trail.diag, Answer::NotFound);
    assert_eq!(identity.trail.holding, Holding::Proven { holders: 1 });
}

/// Nobody dials from port 1 of 127.0.0.1.
fn shift(client: SocketAddr) -> SocketAddr {
    SocketAddr::new(client.ip(), 1)
}

/// The real tables of a process, with every client at the port of [`shift`].
struct Shifted;

impl Tables for Shifted {
    fn of_process(&self, pid: u32, reading: &mut Reading) -> io::Result<()> {
        let table = std::fs::read_to_string(format!("/proc/{pid}/net/tcp"))?;
        for line in table.lines() {
            let mut fields: Vec<&str> = line.split_ascii_whitespace().collect();
            fields[1] = "0100007F:0001";
            reading.feed(fields.join(" ").as_bytes());
            reading.feed(b"\n");
        }
        Ok(())
    }

    fn global(&self, _reading: &mut Reading) -> io::Result<()> {
        panic!("the process's table knows it")
    }
}

#[test]
fn a_socket_whose_process_is_gone_is_said_to_have_no_owner() {
    let client: SocketAddr = "127.0.0.1:1".parse().unwrap();
    let proxy: SocketAddr = "127.0.0.1:2".parse().unwrap();
    let mut setup = setup(None);
    setup.tables =
        Arc::new(Fixture { of_process: String::new(), global: row(client, proxy, 0, 0) + "nonsense\n" });
    let query = Query { protocol: Protocol::Tcp, client, proxy, need: Need::Proof };
    let identity = identify(&Resolver::open(setup).unwrap(), &query);
    assert_eq!((identity.source, identity.trail.global_table), (Source::None, Answer::Orphan));
    assert_eq!(identity.trail.malformed_rows, 1);
    assert!(identity.proven().is_none());
}

#[test]
fn tables_that_can_not_be_read_are_told_with_their_reason() {
    struct Refused;
    impl Tables for Refused {
        fn of_process(&self, _pid: u32, _reading: &mut Reading) -> io::Result<()> {
            Err(io::Error::from_raw_os_error(nix::libc::EACCES))
        }
        fn global(&self, _reading: &mut Reading) -> io::Result<()> {
            Err(io::Error::from_raw_os_error(nix::libc::EIO))
        }
    }
    let mut setup = setup(None);
    setup.tables = Arc::new(Refused);
    let identity = identify(&Resolver::open(setup).unwrap(), &nobodys_query());
    assert_eq!(identity.source, Source::None);
    assert_eq!(identity.trail.pid_table, Answer::NotPermitted);
    assert_eq!(identity.trail.global_table, Answer::Failed(nix::libc::EIO));
}

fn nobodys_query() -> Query {
    let (client, proxy) = ("127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap());
    Query { protocol: Protocol::Tcp, client, proxy, need: Need::Proof }
}

#[test]
fn identity_is_sought_no_further_than_it_is_asked_for() {
    let world = World::new();
    let listener = world.listen("127.0.0.1:0");
    let _client = world.start(&world.binary("agent"), "connect", listener.local_addr().unwrap(), None);
    let accepted = accept(&listener);
    let look = |mode| {
        let resolver = Resolver::open(sluice::identity::Setup { mode, ..world.setup() }).unwrap();
        let Quick::Known(identity) = resolver.quick(&accepted.query(Need::Proof)) else { panic!("scanned") };
        identity
    };
    let uid = look(Mode::Uid);
    assert_eq!((uid.uid, uid.source, uid.trail.diag), (Some(0), Source::None, Answer::Found));
    assert!(uid.process.is_none());
    let off = look(Mode::Off);
    assert_eq!((off.uid, off.source, off.trail.diag), (None, Source::None, Answer::Absent));
}

/// Tables that wait at each reading until the test lets them go.
struct Gate {
    readings: AtomicUsize,
    entered: Sender<()>,
    go: Mutex<Receiver<()>>,
}

impl Tables for Gate {
    fn of_process(&self, _pid: u32, _reading: &mut Reading) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(nix::libc::ESRCH))
    }

    fn global(&self, _reading: &mut Reading) -> io::Result<()> {
        self.readings.fetch_add(1, Ordering::SeqCst);
        self.entered.send(()).unwrap();
        self.go.lock().unwrap().recv_timeout(DEADLINE).unwrap();
        Ok(())
    }
}

/// A resolver whose readings wait, the sign that one has begun, and the word that lets it end.
fn gated() -> (Resolver, Arc<Gate>, Receiver<()>, Sender<()>) {
    let ((entered, begun), (let_go, go)) = (channel(), channel());
    let gate = Arc::new(Gate { readings: AtomicUsize::new(0), entered, go: Mutex::new(go) });
    let mut setup = setup(None);
    setup.tables = Arc::clone(&gate) as Arc<dyn Tables>;
    (Resolver::open(setup).unwrap(), gate, begun, let_go)
}

fn submit(scanner: &Scanner, resolver: &Resolver, answers: &Sender<Arc<Identity>>) {
    let Quick::NeedsScan(ticket) = resolver.quick(&nobodys_query()) else { panic!("known without looking") };
    let answers = answers.clone();
    scanner.submit(ticket, move |identity| answers.send(identity).unwrap());
}

#[test]
fn one_reading_of_the_tables_serves_all_lookups_that_wait() {
    let (resolver, gate, begun, let_go) = gated();
    let scanner = Scanner::start(1_000).unwrap();
    let (answers, answered) = channel();
    submit(&scanner, &resolver, &answers);
    begun.recv_timeout(DEADLINE).unwrap();
    for _ in 0..500 {
        submit(&scanner, &resolver, &answers);
    }
    let_go.send(()).unwrap();
    begun.recv_timeout(DEADLINE).unwrap();
    let_go.send(()).unwrap();
    for _ in 0..501 {
        assert_eq!(answered.recv_timeout(DEADLINE).unwrap().trail.global_table, Answer::NotFound);
    }
    assert_eq!(gate.readings.load(Ordering::SeqCst), 2);
}

#[test]
fn lookups_beyond_the_queue_are_turned_away_at_once_and_say_so() {
    let (resolver, _gate, begun, let_go) = gated();
    let scanner = Scanner::start(2).unwrap();
    let (answers, answered) = channel();
    submit(&scanner, &resolver, &answers);
    begun.recv_timeout(DEADLINE).unwrap();
    for _ in 0..3 {
        submit(&scanner, &resolver, &answers);
    }
    let turned_away = answered.recv_timeout(DEADLINE).unwrap();
    assert_eq!((turned_away.source, turned_away.trail.global_table), (Source::None, Answer::Busy));
    let_go.send(()).unwrap();
    let_go.send(()).unwrap();
    // Those that were let in are answered, even if the scanner is told to end meanwhile.
    drop(scanner);
    drop(answers);
    assert_eq!(answered.iter().filter(|identity| identity.trail.global_table == Answer::NotFound).count(), 3);
}

#[test]
fn ten_thousand_parallel_connections_are_all_named() {
    const CONNECTIONS: u32 = 9_900; // twice that and some fit into a limit of 20,000 descriptors
    const WAITING: usize = 4_000; // one sandbox may have 4,096 lookups waiting
    raise_descriptor_limit();
    let world = World::new();
    let listener = world.listen("127.0.0.1:0");
    let agent = world.binary("agent");
    let client = world.start(&agent, "connect-many", listener.local_addr().unwrap(), None);
    let mut first = accept(&listener);
    first.stream.write_all(&CONNECTIONS.to_ne_bytes()).unwrap();
    let mut all = vec![first];
    all.extend((1..CONNECTIONS).map(|_| accept(&listener)));
    let (resolver, scanner) = (world.resolver(), Scanner::start(WAITING).unwrap());
    for (at, wave) in all.chunks(WAITING).enumerate() {
        let need = if at % 2 == 0 { Need::Proof } else { Need::Name };
        let (answers, answered) = channel();
        for accepted in wave {
            match resolver.quick(&accepted.query(need)) {
                Quick::Known(identity) => answers.send(identity).unwrap(),
                Quick::NeedsScan(ticket) => {
                    let answers = answers.clone();
                    scanner.submit(ticket, move |identity| answers.send(identity).unwrap());
                }
            }
        }
        for _ in wave {
            let identity = answered.recv_timeout(DEADLINE).unwrap();
            assert_eq!(
                identity.process.as_ref().map(|process| process.pid),
                Some(client.pid()),
                "{}",
                identity.trail
            );
            assert!(!identity.ambiguous, "{}", identity.trail);
        }
    }
}
