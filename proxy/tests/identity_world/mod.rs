//! A world for identity tests: a network namespace of its own, a listener in it, and clients that are real processes.
//!
//! A client is this test binary, copied under another name and started again with `--exact client --ignored`: the
//! ignored test `client` in each test file hands over to [`play`], which does what the environment says.

#![allow(dead_code)] // each test file uses its part
#![allow(clippy::unwrap_used)] // a test ends at the first surprise

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket as nl;
use sluice::identity::{
    ConnectNotes, Elsewhere, Identity, Members, Mode, Need, ProcTables, Process, Protocol, Query, Quick,
    Resolver, Seen, Setup, Tables, Trace,
};

/// How long anything may take before a test fails.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
const ROLE: &str = "IDENTITY_ROLE";
const PROXY: &str = "IDENTITY_PROXY";
const OTHER: &str = "IDENTITY_OTHER";
const SOCKET: &str = "IDENTITY_SOCKET";
const TARGET: &str = "IDENTITY_TARGET";

/// A namespace with `lo` up, and a directory for binaries.
pub(crate) struct World {
    netns: OwnedFd,
    pub(crate) dir: tempfile::TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        let netns = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("making a network namespace needs root (CAP_SYS_ADMIN)");
            bring_lo_up();
            OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap())
        });
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self { netns: netns.join().unwrap(), dir }
    }

    pub(crate) fn netns(&self) -> OwnedFd {
        self.netns.try_clone().unwrap()
    }

    /// Runs `work` in the namespace.
    pub(crate) fn inside<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let netns = self.netns.as_fd();
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside.join().unwrap()
        })
    }

    pub(crate) fn listen(&self, address: &str) -> TcpListener {
        let listener = self.inside(|| TcpListener::bind(address).unwrap());
        // A client that connects faster than the test accepts must not wait for a second SYN.
        nl::listen(&listener, nl::Backlog::new(4_096).unwrap()).unwrap();
        listener
    }

    /// A binary of its own: a copy of this one, made by another process: a descriptor of ours that writes to it could be
    /// inherited by what another test starts just then, and a file that is written to is not executed (ETXTBSY).
    pub(crate) fn binary(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        let copied = Command::new("cp").arg(std::env::current_exe().unwrap()).arg(&path).status();
        assert!(copied.unwrap().success());
        path
    }

    /// Starts `binary` in the namespace as a client of `proxy`.
    pub(crate) fn start(&self, binary: &Path, role: &str, proxy: SocketAddr, other: Option<&Path>) -> Client {
        let mut command = as_client(binary, role, &proxy.to_string(), other);
        Client(self.inside(|| command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()))
    }

    /// The same, as one that asks the proxy for `target`.
    pub(crate) fn start_asking(
        &self,
        binary: &Path,
        role: &str,
        proxy: SocketAddr,
        target: &str,
        other: Option<&Path>,
    ) -> Client {
        let mut command = as_client(binary, role, &proxy.to_string(), other);
        command.env(TARGET, target).stdin(Stdio::piped()).stdout(Stdio::null());
        Client(self.inside(|| command.spawn().unwrap()))
    }

    pub(crate) fn setup(&self) -> Setup {
        setup(Some(self.netns()))
    }

    /// A resolver that has the kernel's trace.
    pub(crate) fn traced(&self, trace: &Arc<Trace>) -> Resolver {
        Resolver::open(Setup { trace: Some(Arc::clone(trace)), ..self.setup() }).unwrap()
    }

    pub(crate) fn resolver(&self) -> Resolver {
        Resolver::open(self.setup()).unwrap()
    }
}

/// A sandbox in this namespace, or in our own, as the daemon would set it up.
pub(crate) fn setup(netns: Option<OwnedFd>) -> Setup {
    Setup {
        mode: Mode::Process,
        netns,
        members: Members::Namespace,
        elsewhere: Arc::new(Elsewhere::with_host().unwrap()),
        view_of: None,
        notes: None,
        trace: None,
        tables: Arc::new(ProcTables::new("/proc")),
        proc: "/proc".into(),
    }
}

/// A process that ends with the test.
pub(crate) struct Client(Child);

impl Client {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn wait(&mut self) {
        self.0.wait().unwrap();
    }

    pub(crate) fn start_time(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(19).unwrap().parse().unwrap()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A connection as the proxy sees it.
pub(crate) struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) client: SocketAddr,
    pub(crate) proxy: SocketAddr,
}

impl Accepted {
    pub(crate) fn query(&self, need: Need) -> Query {
        Query { protocol: Protocol::Tcp, client: self.client, proxy: self.proxy, need }
    }

    /// Waits for the client's next byte: a sign that it has come so far.
    pub(crate) fn hear(&mut self) -> u8 {
        let mut byte = [0];
        self.stream.read_exact(&mut byte).expect("the client ended without its sign");
        byte[0]
    }

    /// Tells the client to go on.
    pub(crate) fn tell(&mut self) {
        self.stream.write_all(b"!").unwrap();
    }
}

pub(crate) fn accept(listener: &TcpListener) -> Accepted {
    let (stream, client) = listener.accept().unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let proxy = stream.local_addr().unwrap();
    Accepted { stream, client, proxy }
}

/// The full answer, by whatever it takes.
pub(crate) fn identify(resolver: &Resolver, query: &Query) -> Arc<Identity> {
    match resolver.quick(query) {
        Quick::Known(identity) => identity,
        Quick::NeedsScan(ticket) => ticket.settle(),
    }
}

pub(crate) fn exe_of(identity: &Identity) -> &Path {
    &identity.process.as_ref().unwrap_or_else(|| panic!("nobody: {}", identity.trail)).exe
}

pub(crate) fn proven(identity: &Identity) -> &Arc<Process> {
    identity.proven().unwrap_or_else(|| panic!("not proven: {}", identity.trail))
}

/// A witness that saw one connect.
pub(crate) struct OneNote(pub(crate) Seen);

impl ConnectNotes for OneNote {
    fn find(&self, _client: SocketAddr, _proxy: SocketAddr) -> Option<Seen> {
        Some(self.0.clone())
    }
}

/// Tables of a test's making.
pub(crate) struct Fixture {
    pub(crate) of_process: String,
    pub(crate) global: String,
}

impl Tables for Fixture {
    fn of_process(&self, _pid: u32, reading: &mut sluice::identity::table::Reading) -> std::io::Result<()> {
        reading.feed(self.of_process.as_bytes());
        reading.end_of_table();
        Ok(())
    }

    fn global(&self, reading: &mut sluice::identity::table::Reading) -> std::io::Result<()> {
        reading.feed(self.global.as_bytes());
        reading.end_of_table();
        Ok(())
    }
}

/// A row as the kernel would print it.
pub(crate) fn row(client: SocketAddr, proxy: SocketAddr, uid: u32, inode: u64) -> String {
    let end = |address: SocketAddr| match address.ip() {
        IpAddr::V4(ip) => format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), address.port()),
        IpAddr::V6(ip) => panic!("{ip}: fixtures are v4"),
    };
    format!(
        "   0: {} {} 01 00000000:00000000 00:00000000 00000000 {uid:5}        0 {inode} 1 0000000000000000 20 4 30 10 -1\n",
        end(client),
        end(proxy)
    )
}

/// The inode of the one socket that the process has to `peer`'s port, as the kernel tells it.
pub(crate) fn socket_inode(pid: u32) -> u64 {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| fs::metadata(entry.unwrap().path()).ok())
        .find(|metadata| metadata.mode() & nix::libc::S_IFMT == nix::libc::S_IFSOCK)
        .expect("the client has a socket")
        .ino()
}

fn as_client(binary: &Path, role: &str, proxy: &str, other: Option<&Path>) -> Command {
    let mut command = Command::new(binary);
    command.args(["--exact", "client", "--ignored", "--nocapture"]).env(ROLE, role).env(PROXY, proxy);
    if let Some(other) = other {
        command.env(OTHER, other);
    }
    command
}

/// What a client does, told by its environment.
pub(crate) fn play() {
    let role = std::env::var(ROLE).expect("only run as a client of another test");
    let proxy = std::env::var(PROXY).unwrap();
    let other = std::env::var_os(OTHER).map(PathBuf::from);
    match role.as_str() {
        "connect" => stay(&mut TcpStream::connect(proxy).unwrap()),
        "connect-dual-stack" => stay(&mut connect_dual_stack(proxy.parse().unwrap())),
        "connect-from" => stay(&mut connect_from(&proxy, std::env::var(OTHER).unwrap().parse().unwrap())),
        "connect-in-vain" => {
            let port = std::env::var(OTHER).unwrap().parse().unwrap();
            assert_eq!(
                try_connect_from("127.0.0.1:1", port).unwrap_err().kind(),
                std::io::ErrorKind::ConnectionRefused
            );
            stay(&mut TcpStream::connect(proxy).unwrap());
        }
        "connect-then-slow-exec" => connect_then_slow_exec(&proxy, &other.unwrap()),
        "stay" => drop(std::io::stdin().read(&mut [0])),
        "ask" => ask(TcpStream::connect(proxy).unwrap()),
        "ask-over" => {
            // The descriptor's number is all an exec leaves of it; opening a socket by /proc is not possible.
            ask_over(std::env::var(SOCKET).unwrap().parse().unwrap());
        }
        "connect-then-exec-then-ask" => {
            let stream = TcpStream::connect(&proxy).unwrap();
            pass_on(&stream);
            let error = as_client(&other.unwrap(), "ask-over", &proxy, None)
                .env(SOCKET, stream.as_raw_fd().to_string())
                .exec();
            panic!("exec: {error}");
        }
        "connect-twice" => {
            let (mut first, mut second) =
                (TcpStream::connect(&proxy).unwrap(), TcpStream::connect(&proxy).unwrap());
            first.write_all(b"1").unwrap();
            stay(&mut second);
        }
        "connect-when-told" => connect_when_told(&proxy),
        "crowd" => be_one_of_a_crowd(&proxy),
        "connect-many" => connect_many(&proxy),
        "connect-and-exit" => TcpStream::connect(proxy).unwrap().write_all(b"x").unwrap(),
        "share" => {
            let stream = TcpStream::connect(&proxy).unwrap();
            pass_on(&stream);
            let mut child = as_client(&other.unwrap(), "hold", &proxy, None)
                .env(SOCKET, stream.as_raw_fd().to_string())
                .spawn()
                .unwrap();
            child.wait().unwrap();
        }
        "start-another" => {
            as_client(&other.unwrap(), "connect", &proxy, None).status().unwrap();
        }
        "connect-then-exec" => {
            let mut stream = TcpStream::connect(&proxy).unwrap();
            stream.write_all(b"c").unwrap();
            stream.read_exact(&mut [0]).unwrap();
            pass_on(&stream);
            let error = as_client(&other.unwrap(), "hold", &proxy, None)
                .env(SOCKET, stream.as_raw_fd().to_string())
                .exec();
            panic!("exec: {error}");
        }
        "hold" => {
            // The descriptor's number is all an exec leaves of it.
            let path = format!("/proc/self/fd/{}", std::env::var(SOCKET).unwrap());
            assert!(fs::metadata(path).is_ok(), "the socket was not passed on");
            stay_with(std::env::var(SOCKET).unwrap().parse().unwrap());
        }
        "mask" => mask_and_exec(&std::env::current_exe().unwrap(), &other.unwrap(), &proxy),
        "observe" => observe(&proxy),
        other => panic!("no role {other}"),
    }
}

/// A CONNECT; then waits for the proxy to close.
fn ask(mut stream: TcpStream) {
    let target = std::env::var(TARGET).unwrap();
    write!(stream, "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n").unwrap();
    while matches!(stream.read(&mut [0; 4096]), Ok(length) if length > 0) {}
}

/// The same over a descriptor that an exec left.
fn ask_over(socket: i32) {
    let target = std::env::var(TARGET).unwrap();
    let head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
    nl::send(socket, head.as_bytes(), nl::MsgFlags::empty()).unwrap();
    while matches!(nl::recv(socket, &mut [0; 4096], nl::MsgFlags::empty()), Ok(length) if length > 0) {}
}

/// Gives a sign, then waits for the proxy to close.
fn stay(stream: &mut TcpStream) {
    stream.write_all(b"s").unwrap();
    while matches!(stream.read(&mut [0; 64]), Ok(length) if length > 0) {}
}

fn stay_with(socket: i32) {
    nl::send(socket, b"h", nl::MsgFlags::empty()).unwrap();
    while matches!(nl::recv(socket, &mut [0; 64], nl::MsgFlags::empty()), Ok(length) if length > 0) {}
}

fn pass_on(stream: &TcpStream) {
    fcntl(stream, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
}

/// One more connection for every byte that comes on the first one; then some work, so that it is not put to sleep.
fn connect_when_told(proxy: &str) {
    let mut first = TcpStream::connect(proxy).unwrap();
    let mut all = Vec::new();
    while matches!(first.read(&mut [0]), Ok(1)) {
        all.push(TcpStream::connect(proxy).unwrap());
        let until = std::time::Instant::now() + Duration::from_millis(2);
        while std::time::Instant::now() < until {
            std::hint::spin_loop();
        }
    }
}

/// The number of connections comes on the first one.
fn connect_many(proxy: &str) {
    raise_descriptor_limit();
    let mut first = TcpStream::connect(proxy).unwrap();
    let mut count = [0; 4];
    first.read_exact(&mut count).unwrap();
    let rest: Vec<_> = (1..u32::from_ne_bytes(count)).map(|_| TcpStream::connect(proxy).unwrap()).collect();
    stay(&mut first);
    drop(rest);
}

pub(crate) fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}

fn connect_from(proxy: &str, port: u16) -> TcpStream {
    try_connect_from(proxy, port).unwrap()
}

fn try_connect_from(to: &str, port: u16) -> std::io::Result<TcpStream> {
    let to: SocketAddr = to.parse().unwrap();
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], port)).into()).unwrap();
    socket.connect(&to.into())?;
    Ok(socket.into())
}

/// All the descriptors it may have are to be closed by its exec: that takes milliseconds, in which `exe` is the new
/// program's already, but the exec is not over.
fn connect_then_slow_exec(proxy: &str, other: &Path) {
    raise_descriptor_limit();
    let stream = TcpStream::connect(proxy).unwrap();
    pass_on(&stream);
    let mut command = as_client(other, "hold", proxy, None);
    command.env(SOCKET, stream.as_raw_fd().to_string());
    let null = File::open("/dev/null").unwrap();
    let mut all: Vec<_> = std::iter::from_fn(|| null.try_clone().ok()).take(200_000).collect();
    all.truncate(all.len() - 20);
    let error = command.exec();
    panic!("exec: {error}");
}

/// Forty descriptors, half of them connections.
fn be_one_of_a_crowd(proxy: &str) {
    let mut connections: Vec<_> = (0..20).map(|_| TcpStream::connect(proxy).unwrap()).collect();
    let _files: Vec<_> = (0..16).map(|_| File::open("/dev/null").unwrap()).collect();
    stay(&mut connections[19]);
}

fn connect_dual_stack(proxy: SocketAddr) -> TcpStream {
    let IpAddr::V4(ip) = proxy.ip() else { panic!("{proxy}: the v4 address of the proxy is wanted") };
    let mapped = SocketAddr::from((Ipv6Addr::from(ip.to_ipv6_mapped().octets()), proxy.port()));
    let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).unwrap();
    socket.set_only_v6(false).unwrap();
    socket.connect(&mapped.into()).unwrap();
    socket.into()
}

/// In a mount namespace of its own: `other` appears at `here`, and is run from there.
fn mask_and_exec(here: &Path, other: &Path, proxy: &str) {
    use nix::mount::{MsFlags, mount};
    // A copy at `here` is being run; a bind mount over it is fine.
    std::thread::spawn({
        let (here, other, proxy) = (here.to_owned(), other.to_owned(), proxy.to_owned());
        move || {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
                .unwrap();
            mount(Some(&other), &here, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
            as_client(&here, "connect", &proxy, None).status().unwrap();
        }
    })
    .join()
    .unwrap();
}

/// Looks a connection up with less privilege than its client has: `PROXY` is "client proxy".
fn observe(ends: &str) {
    let (client, proxy) = ends.split_once(' ').unwrap();
    let query = Query {
        protocol: Protocol::Tcp,
        client: client.parse().unwrap(),
        proxy: proxy.parse().unwrap(),
        need: Need::Proof,
    };
    let identity = identify(&Resolver::open(setup(None)).unwrap(), &query);
    println!("observed {} {:?}", identity.source, identity.process.as_ref().map(|process| &process.exe));
    println!("observed {}", identity.trail);
}

impl World {
    /// What a process of nobody's, in the namespace, finds out about a connection.
    pub(crate) fn observe_as_nobody(&self, binary: &Path, query: &Query) -> String {
        let mut command = as_client(binary, "observe", &format!("{} {}", query.client, query.proxy), None);
        let output = self.inside(|| command.uid(65_534).gid(65_534).output().unwrap());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// RTM_NEWLINK: interface 1, flags |= IFF_UP (`linux/rtnetlink.h`).
fn bring_lo_up() {
    let flags = nl::SockFlag::SOCK_CLOEXEC;
    let socket =
        nl::socket(nl::AddressFamily::Netlink, nl::SockType::Raw, flags, nl::SockProtocol::NetlinkRoute)
            .unwrap();
    let mut message = [0_u8; 32];
    message[0..4].copy_from_slice(&32_u32.to_ne_bytes());
    message[4..6].copy_from_slice(&16_u16.to_ne_bytes());
    message[6..8].copy_from_slice(&5_u16.to_ne_bytes()); // NLM_F_REQUEST | NLM_F_ACK
    message[20..24].copy_from_slice(&1_i32.to_ne_bytes());
    message[24..28].copy_from_slice(&1_u32.to_ne_bytes());
    message[28..32].copy_from_slice(&1_u32.to_ne_bytes());
    nl::sendto(socket.as_raw_fd(), &message, &nl::NetlinkAddr::new(0, 0), nl::MsgFlags::empty()).unwrap();
    let mut reply = [0; 256];
    nl::recv(socket.as_raw_fd(), &mut reply, nl::MsgFlags::empty()).unwrap();
    assert_eq!(reply[16..20], [0; 4], "lo could not be brought up");
}
