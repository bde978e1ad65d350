//! A warm request and a relay's turn allocate nothing: counted on the worker, events included.

#![allow(clippy::unwrap_used, reason = "a test fails where it must")]
#![allow(clippy::float_cmp, reason = "none is exactly none")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use sluice::appliance::{Appliance, Plan};
use sluice::diagnostic::Diagnostics;
use sluice::event::journal::Target;
use sluice::limits::SandboxLimits;
use sluice::policy::{Policy, parse};
use sluice::sandbox::Sandbox;

/// Counts the allocations of one thread: the control plane looks at the host's addresses every few seconds, which is no
/// request's cost.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
/// The thread that is counted; none while zero.
static WORKER: AtomicI32 = AtomicI32::new(0);

fn count() {
    let worker = WORKER.load(Ordering::Relaxed);
    if worker != 0 && nix::unistd::gettid().as_raw() == worker {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

#[allow(unsafe_code)]
// SAFETY: every call is handed to the system allocator unchanged; counting takes an atomic and a system call, neither of
// which allocates.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Turns before anything is counted: pools, caches and the writer's buffers have found their size then.
const WARM_UP: usize = 4_000;
const COUNTED: usize = 2_000;
/// Larger than the scratch, so that it is spliced.
const LONG: usize = 200_000;

/// One test at a time: there is one `worker-0` to count.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// An appliance with one worker that writes events, and a sandbox whose policy judges requests to `origin`.
fn start(origin: SocketAddr, events: &tempfile::TempDir) -> (Appliance, SocketAddr) {
    let appliance = Appliance::start(Plan {
        watch: false,
        permit_special: vec!["127.0.0.0/8".parse().unwrap()],
        events: Target::File(events.path().join("events.ndjson")),
        ..Plan::default()
    })
    .unwrap();
    let text = format!(
        "version: 1\nnetwork_policies:\n  origin:\n    endpoints:\n      - {{host: 127.0.0.1, port: {}, protocol: \
         http, rules: [{{allow: {{method: GET, path: /a/**}}}}]}}\n      - {{host: 127.0.0.1, port: {}}}\n",
        origin.port(),
        origin.port() + 1,
    );
    let mut errors = Diagnostics::default();
    let file = parse(&text, &"policy.yaml".into(), &mut errors).unwrap();
    let policy = Arc::new(Policy::compile(&file));
    let sandbox =
        Arc::new(Sandbox::new("box", policy, SandboxLimits::default(), None, appliance.reporter().clone()));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    // As Sluice's own listeners have it: accepted sockets inherit it.
    socket2::SockRef::from(&listener).set_tcp_nodelay(true).unwrap();
    appliance.serve(&sandbox, vec![listener]);
    (appliance, at)
}

/// Two listeners on neighbouring ports: one is judged by request, the other a raw tunnel.
fn neighbours() -> [TcpListener; 2] {
    loop {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let Some(next) = first.local_addr().unwrap().port().checked_add(1) else { continue };
        if let Ok(second) = TcpListener::bind(("127.0.0.1", next)) {
            return [first, second];
        }
    }
}

/// Answers every head that comes over one connection at a time.
fn answer(listener: TcpListener, response: Vec<u8>) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.set_nodelay(true);
            let mut heard = Vec::new();
            let mut piece = [0; 4096];
            while let Ok(count) = stream.read(&mut piece) {
                if count == 0 {
                    break;
                }
                heard.extend_from_slice(&piece[..count]);
                if heard.ends_with(b"\r\n\r\n") {
                    heard.clear();
                    if stream.write_all(&response).is_err() {
                        break;
                    }
                }
            }
        }
    });
}

/// Gives back what comes over one connection at a time.
fn echo(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.set_nodelay(true);
            let mut piece = [0; 4096];
            while let Ok(count) = stream.read(&mut piece) {
                if count == 0 || stream.write_all(&piece[..count]).is_err() {
                    break;
                }
            }
        }
    });
}

/// The thread of the one worker.
fn worker() -> i32 {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let is_worker = |task: &std::path::PathBuf| {
        std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim_end() == "worker-0")
    };
    let workers: Vec<_> = tasks.filter(is_worker).collect();
    assert_eq!(workers.len(), 1, "{workers:?}");
    workers[0].file_name().unwrap().to_str().unwrap().parse().unwrap()
}

/// Allocations a turn, rounded to the hundredth: a buffer that grows once because the writer of events was late is no
/// turn's.
fn counted(mut turn: impl FnMut()) -> f64 {
    for _ in 0..WARM_UP {
        turn();
    }
    WORKER.store(worker(), Ordering::Relaxed);
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..COUNTED {
        turn();
    }
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
    (allocations as f64 * 100.0 / COUNTED as f64).round() / 100.0
}

/// A request that expects an answer of so many octets behind its head.
fn requests(proxy: SocketAddr, origin: SocketAddr, body: usize) -> f64 {
    let mut client = TcpStream::connect(proxy).unwrap();
    client.set_nodelay(true).unwrap();
    let request = format!("GET http://{origin}/a/path?q HTTP/1.1\r\nHost: {origin}\r\nAccept: */*\r\n\r\n");
    let mut answer = vec![0; body + 4096];
    counted(|| {
        client.write_all(request.as_bytes()).unwrap();
        let mut read = 0;
        loop {
            read += client.read(&mut answer[read..]).unwrap();
            assert!(answer.starts_with(&b"HTTP/1.1 200 "[..read.min(13)]));
            let head = answer[..read.min(4096)].windows(4).position(|at| at == b"\r\n\r\n");
            if head.is_some_and(|head| read == head + 4 + body) {
                break;
            }
        }
    })
}

fn response(body: usize) -> Vec<u8> {
    let mut response =
        format!("HTTP/1.1 200 OK\r\nServer: test\r\nContent-Length: {body}\r\n\r\n").into_bytes();
    response.resize(response.len() + body, b'x');
    response
}

fn with_origin(body: usize, test: impl FnOnce(SocketAddr, SocketAddr) -> f64) -> f64 {
    let _alone = ONE_AT_A_TIME.lock().unwrap();
    let [requests, tunnels] = neighbours();
    let origin = requests.local_addr().unwrap();
    answer(requests, response(body));
    echo(tunnels);
    let events = tempfile::tempdir().unwrap();
    let (appliance, proxy) = start(origin, &events);
    let allocations = test(proxy, origin);
    appliance.stop();
    let lines = std::fs::read_to_string(events.path().join("events.ndjson")).unwrap().lines().count();
    assert!(lines > 0, "events were written");
    allocations
}

#[test]
fn a_warm_request_allocates_nothing() {
    assert_eq!(with_origin(1024, |proxy, origin| requests(proxy, origin, 1024)), 0.0);
}

#[test]
fn a_long_answer_allocates_nothing() {
    assert_eq!(with_origin(LONG, |proxy, origin| requests(proxy, origin, LONG)), 0.0);
}

#[test]
fn a_turn_of_a_relay_allocates_nothing() {
    for octets in [64, 100_000] {
        let allocations = with_origin(0, |proxy, origin| {
            let mut client = TcpStream::connect(proxy).unwrap();
            client.set_nodelay(true).unwrap();
            let target = SocketAddr::new(origin.ip(), origin.port() + 1);
            write!(client, "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").unwrap();
            let mut head = [0; 39];
            client.read_exact(&mut head).unwrap();
            assert!(head.ends_with(b"\r\n\r\n"));
            let (message, mut echo) = (vec![b'm'; octets], vec![0; octets]);
            counted(|| {
                client.write_all(&message).unwrap();
                client.read_exact(&mut echo).unwrap();
            })
        });
        assert_eq!(allocations, 0.0, "{octets} octets to and fro");
    }
}
