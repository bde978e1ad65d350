//! What a reload costs those who are connected: a daemon with one worker and 1,000 sandboxes, each with a policy of its
//! own and idle tunnels, reloads again and again while another connection's round trips are timed. The worker says
//! itself how long its longest slice of re-decisions was. `make bench` runs it; `-- --strict` exits with 2 when a slice
//! took over a millisecond or a tunnel was lost.

#![allow(clippy::unwrap_used, reason = "a bench fails where it must")]
#![allow(clippy::format_push_string, reason = "a configuration is written once")]

use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

const SANDBOXES: usize = 1_000;
const TUNNELS_EACH: usize = 4;
const RELOADS: usize = 10;
const SLICE_MAX_S: f64 = 1e-3;
const TIMEOUT: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    raise_descriptors();
    let folder = tempfile::tempdir().unwrap();
    let idle = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let echo = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (idle_at, echo_at) = (idle.local_addr().unwrap(), echo.local_addr().unwrap());
    std::thread::spawn(move || idle.incoming().map_while(Result::ok).collect::<Vec<_>>());
    std::thread::spawn(move || {
        for stream in echo.incoming().map_while(Result::ok) {
            std::thread::spawn(move || answer(stream));
        }
    });
    let (listen, metrics) = (free(), free());
    write_configuration(folder.path(), listen, metrics, [idle_at.port(), echo_at.port()]);
    let mut daemon = start(folder.path());
    let tunnels: Vec<TcpStream> = (0..SANDBOXES * TUNNELS_EACH)
        .map(|number| tunnel(source(number % SANDBOXES), listen, idle_at))
        .collect();
    let mut probe = tunnel(source(0), listen, echo_at);
    let calm = round_trips(&mut probe, Duration::from_secs(5), || {});
    let mut reloads = 0;
    let mut last = Instant::now();
    let busy = round_trips(&mut probe, Duration::from_secs(RELOADS as u64), || {
        if last.elapsed() > Duration::from_millis(900) && reloads < RELOADS {
            (reloads, last) = (reloads + 1, Instant::now());
            let pid = nix::unistd::Pid::from_raw(daemon.id().try_into().unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
        }
    });
    let (slices, longest) = slices(metrics);
    let closed = tunnels.iter().filter(|tunnel| !is_open(tunnel)).count();
    let _ = daemon.kill();
    let _ = daemon.wait();
    println!("reload: {SANDBOXES} sandboxes, {} tunnels on one worker, {reloads} reloads\n", tunnels.len());
    println!("  round trips of a tunnel        calm    while reloading");
    for (what, at) in [("median", 0.5), ("99.9 %", 0.999), ("longest", 1.0)] {
        println!("  {what:24}{:>10} µs {:>10} µs", quantile(&calm, at), quantile(&busy, at));
    }
    let met = longest <= SLICE_MAX_S && closed == 0 && slices > 0;
    let verdict = if met { "met" } else { "MISSED" };
    println!("  {slices} slices of re-decisions; the longest took at most {} µs   {verdict}", longest * 1e6);
    println!("  tunnels lost: {closed}\n");
    let strict = std::env::args().any(|argument| argument == "--strict");
    ExitCode::from(if strict && !met { 2 } else { 0 })
}

fn source(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 2, (number / 250) as u8, (number % 250 + 1) as u8)
}

fn free() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

fn write_configuration(folder: &Path, listen: SocketAddr, metrics: SocketAddr, ports: [u16; 2]) {
    let shown = folder.display();
    let mut text = format!(
        "listen: {listen}\nmetrics: {metrics}\nworkers: 1\nevents: {shown}/events.ndjson\nstate_dir: {shown}\n\
         admin_socket: {shown}/admin.sock\npermit_special_addresses: [127.0.0.0/8]\nsandboxes:\n"
    );
    for number in 0..SANDBOXES {
        text.push_str(&format!(
            "  - {{name: box-{number}, source: {}/32, identity: off, policy: {number}.yaml}}\n",
            source(number)
        ));
        let mut policy = String::from("version: 1\nnetwork_policies:\n  all:\n    endpoints:\n");
        for other in 0..9 {
            policy.push_str(&format!("      - {{host: h{other}.b{number}.example.com, port: 443}}\n"));
        }
        policy.push_str(&format!("      - {{host: 127.0.0.1, ports: {ports:?}}}\n"));
        fs::write(folder.join(format!("{number}.yaml")), policy).unwrap();
    }
    fs::write(folder.join("serve.yaml"), text).unwrap();
}

fn start(folder: &Path) -> Child {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", env!("CARGO_BIN_EXE_sluice"), "serve", "--config"]);
    command.arg(folder.join("serve.yaml")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("setpriv (util-linux)");
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains(" serving ")), "the daemon does not start");
    std::thread::spawn(move || lines.count());
    child
}

fn tunnel(from: Ipv4Addr, proxy: SocketAddr, to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&proxy.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    write!(stream, "CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n\r\n").unwrap();
    let mut heard = Vec::new();
    while !heard.ends_with(b"\r\n\r\n") {
        let mut octet = [0];
        stream.read_exact(&mut octet).unwrap();
        heard.push(octet[0]);
    }
    assert!(heard.starts_with(b"HTTP/1.1 200"), "{}", heard.escape_ascii());
    stream
}

fn answer(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut octets = [0; 64];
    while let Ok(count @ 1..) = stream.read(&mut octets) {
        if stream.write_all(&octets[..count]).is_err() {
            return;
        }
    }
}

/// Times round trips for so long, doing `between` between two.
fn round_trips(probe: &mut TcpStream, within: Duration, mut between: impl FnMut()) -> Vec<Duration> {
    let began = Instant::now();
    let mut times = Vec::new();
    let mut octets = [7; 64];
    while began.elapsed() < within {
        between();
        let start = Instant::now();
        probe.write_all(&octets).unwrap();
        probe.read_exact(&mut octets).unwrap();
        times.push(start.elapsed());
    }
    times.sort_unstable();
    times
}

fn quantile(sorted: &[Duration], at: f64) -> u128 {
    let index = ((sorted.len() - 1) as f64 * at) as usize;
    sorted[index].as_micros()
}

/// How many slices there were, and the bound of the highest bucket that holds one.
fn slices(metrics: SocketAddr) -> (u64, f64) {
    let mut stream = TcpStream::connect(metrics).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (mut count, mut longest) = (0, 0.0);
    for line in text.lines() {
        let Some(rest) = line.strip_prefix("sluice_policy_rejudge_slice_seconds_bucket{") else { continue };
        let bound = rest.split('"').skip_while(|part| !part.ends_with("le=")).nth(1).unwrap_or("+Inf");
        let within: u64 = rest.rsplit(' ').next().unwrap().parse().unwrap();
        if within > count {
            (count, longest) = (within, bound.parse().unwrap_or(f64::INFINITY));
        }
    }
    (count, longest)
}

fn is_open(tunnel: &TcpStream) -> bool {
    tunnel.set_nonblocking(true).unwrap();
    matches!(tunnel.peek(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
}

fn raise_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}
