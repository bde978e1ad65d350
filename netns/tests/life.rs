//! A sandbox from creation to removal: what is there while it lives and that nothing is left afterwards.

mod scene;

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use scene::{Scene, eventually};
use sluice_netns::{Error, Kind, Sandbox, inside, sweep};

/// A process inside `sandbox` that does nothing for ever.
fn sleeper(sandbox: &Sandbox) -> Child {
    inside(sandbox.netns(), || {
        Command::new("sleep")
            .arg("infinity")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("spawn sleep")
    })
    .expect("enter")
}

#[test]
fn a_connection_from_inside_is_accepted_outside() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("talk");
    let listeners = sandbox.listeners(2).expect("listeners");
    for listener in &listeners {
        assert_eq!(listener.local_addr().expect("address"), sandbox.proxy_address());
    }
    let mut client = inside(sandbox.netns(), || TcpStream::connect(sandbox.proxy_address()))
        .expect("enter")
        .expect("connect to the proxy's address");
    client.write_all(b"hello").expect("write");
    let mut accepted = None;
    eventually("a listener accepts", || {
        accepted = listeners.iter().find_map(|listener| listener.accept().ok());
        accepted.is_some()
    });
    let (mut server, from) = accepted.expect("accepted");
    assert_eq!(from, client.local_addr().expect("address"));
    server.set_nonblocking(false).expect("blocking");
    let mut heard = [0; 5];
    server.read_exact(&mut heard).expect("read");
    assert_eq!(&heard, b"hello");
    assert_eq!(sandbox.counters().expect("counters").refused_packets(), 0);
}

#[test]
fn listeners_are_nonblocking_and_close_on_exec() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("flags");
    let listeners = sandbox.listeners(1).expect("listeners");
    let listener = listeners.first().expect("one");
    assert_eq!(listener.accept().expect_err("nobody calls").kind(), std::io::ErrorKind::WouldBlock);
    let flags = nix::fcntl::fcntl(listener, nix::fcntl::FcntlArg::F_GETFD).expect("fcntl");
    assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
}

#[test]
fn a_senseless_number_of_listeners_is_refused() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("count");
    assert!(matches!(sandbox.listeners(0), Err(Error::ListenerCount(0))));
    assert!(matches!(sandbox.listeners(1_000_000), Err(Error::ListenerCount(1_000_000))));
}

#[test]
fn servers_inside_are_reached_from_inside() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("servers");
    inside(sandbox.netns(), || {
        for address in ["127.0.0.1:0", "127.9.9.9:0", "[::1]:0", "10.200.0.1:0"] {
            let server = std::net::TcpListener::bind(address).expect(address);
            let mut client = TcpStream::connect(server.local_addr().expect("address")).expect(address);
            let (mut accepted, _) = server.accept().expect(address);
            client.write_all(b"ping").expect(address);
            let mut heard = [0; 4];
            accepted.read_exact(&mut heard).expect(address);

            let server = UdpSocket::bind(address).expect(address);
            let client = UdpSocket::bind(address).expect(address);
            client.send_to(b"ping", server.local_addr().expect("address")).expect(address);
            let (length, from) = server.recv_from(&mut heard).expect(address);
            assert_eq!((length, from), (4, client.local_addr().expect("address")));
            server.send_to(b"pong", from).expect(address);
            client.recv(&mut heard).expect(address);
            assert_eq!(&heard, b"pong");
        }
    })
    .expect("enter");
    assert_eq!(sandbox.counters().expect("counters").refused_packets(), 0);
}

#[test]
fn while_it_lives_its_namespace_can_be_entered_by_path() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("path");
    let output = Command::new("nsenter")
        .arg(format!("--net={}", sandbox.netns_path().display()))
        .args(["readlink", "/proc/self/ns/net"])
        .output()
        .expect("run nsenter");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), format!("net:[{}]", sandbox.inode()));
    assert_eq!(sandbox.kind(), Kind::Made);
}

#[test]
fn destroying_leaves_no_process_mount_or_directory() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("gone");
    let mut children = [sleeper(&sandbox), sleeper(&sandbox)];
    let mut pids = children.each_ref().map(Child::id).to_vec();
    pids.sort_unstable();
    let mut seen = sandbox.processes().expect("processes");
    seen.sort_unstable();
    assert_eq!(seen, pids);
    assert!(!scene.mounts().is_empty());

    sandbox.destroy().expect("destroy");

    for child in &mut children {
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(child.wait().expect("wait").signal(), Some(libc::SIGKILL));
    }
    scene.assert_nothing_left();
}

#[test]
fn dropping_removes_as_destroying_does() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("dropped");
    let mut child = sleeper(&sandbox);
    drop(sandbox);
    assert!(!child.wait().expect("wait").success());
    scene.assert_nothing_left();
}

#[test]
fn the_namespace_itself_ends_with_its_last_socket() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("ended");
    let inode = sandbox.inode();
    let listeners = sandbox.listeners(1).expect("listeners");
    sandbox.destroy().expect("destroy");
    drop(listeners);
    // A namespace that lives has a file or a process; this one has neither, and its mounts are gone everywhere.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("read mountinfo");
    assert!(!mounts.contains(&format!("net:[{inode}]")));
}

#[test]
fn a_name_in_use_is_refused_with_its_owner() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("twice");
    let error = Sandbox::create(&scene.spec("twice")).expect_err("the name is taken");
    assert_eq!(
        error.to_string(),
        format!(
            "sandbox twice exists already and is owned by the living process {}: choose another name",
            std::process::id()
        )
    );
    // The refusal left the first one whole.
    assert_eq!(sandbox.counters().expect("counters").refused_packets(), 0);
    sandbox.destroy().expect("destroy");
    scene.sandbox("twice").destroy().expect("the name is free again");
}

#[test]
fn sandboxes_made_at_the_same_time_do_not_meet() {
    let scene = Scene::new();
    let names: Vec<String> = (0..8).map(|number| format!("many-{number}")).collect();
    std::thread::scope(|scope| {
        let workers: Vec<_> = names.iter().map(|name| scope.spawn(|| scene.sandbox(name))).collect();
        let sandboxes: Vec<Sandbox> =
            workers.into_iter().map(|worker| worker.join().expect("made")).collect();
        let mut inodes: Vec<u64> = sandboxes.iter().map(Sandbox::inode).collect();
        inodes.sort_unstable();
        inodes.dedup();
        assert_eq!(inodes.len(), names.len());
        // The same address in each, and each reached only from its own.
        for sandbox in &sandboxes {
            let listener = sandbox.listeners(1).expect("listener").pop().expect("one");
            inside(sandbox.netns(), || TcpStream::connect(sandbox.proxy_address()).map(drop))
                .expect("enter")
                .expect("connect");
            listener.accept().expect("its own connection");
            assert!(listener.accept().is_err(), "a connection of another sandbox");
        }
        for sandbox in sandboxes {
            sandbox.destroy().expect("destroy");
        }
    });
    scene.assert_nothing_left();
}

#[test]
fn a_creation_that_fails_leaves_nothing() {
    let scene = Scene::new();
    let mut spec = scene.spec("bad");
    // No kernel gives lo a multicast address.
    spec.proxy_address = "224.0.0.1:3128".parse().expect("address");
    let error = Sandbox::create(&spec).expect_err("an address lo cannot have");
    assert!(error.to_string().contains("224.0.0.1"), "{error}");
    scene.assert_nothing_left();
}

#[test]
fn an_ipv6_proxy_address_works_as_well() {
    let scene = Scene::new();
    let mut spec = scene.spec("six");
    spec.proxy_address = "[fd00:5::1]:3128".parse().expect("address");
    let sandbox = Sandbox::create(&spec).expect("create");
    let listener = sandbox.listeners(1).expect("listeners").pop().expect("one");
    inside(sandbox.netns(), || TcpStream::connect(sandbox.proxy_address()).map(drop))
        .expect("enter")
        .expect("connect");
    listener.accept().expect("accept");
}

#[test]
fn a_copy_of_the_mounts_does_not_keep_a_namespace() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("copied");
    // A mount namespace made now starts with copies of all mounts, as a container's does.
    let mut container = Command::new("unshare")
        .args(["--mount", "--propagation", "slave", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run unshare");
    let mounts = format!("/proc/{}/mountinfo", container.id());
    let path = sandbox.netns_path().to_str().expect("UTF-8").to_owned();
    let shown = || std::fs::read_to_string(&mounts).expect("read mountinfo").contains(&path);
    // Only once its program runs has the new mount namespace been entered.
    let mut input = container.stdin.take().expect("stdin");
    input.write_all(b"x").expect("write");
    container.stdout.as_mut().expect("stdout").read_exact(&mut [0]).expect("echo");
    assert!(shown(), "the copy is not there to begin with");
    sandbox.destroy().expect("destroy");
    assert!(!shown(), "the copy outlived the sandbox");
    drop(input);
    container.wait().expect("wait");
}

#[test]
fn a_sandbox_that_lives_is_not_swept() {
    let scene = Scene::new();
    let sandbox = scene.sandbox("living");
    let mut child = sleeper(&sandbox);
    assert!(sweep(scene.state_dir()).expect("sweep").is_empty());
    assert!(child.try_wait().expect("wait").is_none(), "its process was killed");
    assert!(inside(sandbox.netns().as_fd(), || ()).is_ok());
    sandbox.destroy().expect("destroy");
    child.wait().expect("wait");
}

#[test]
fn making_a_sandbox_takes_milliseconds() {
    let scene = Scene::new();
    scene.sandbox("warm").destroy().expect("destroy");
    let mut times: Vec<Duration> = (0..9)
        .map(|_| {
            let begun = Instant::now();
            let sandbox = scene.sandbox("timed");
            let took = begun.elapsed();
            sandbox.destroy().expect("destroy");
            took
        })
        .collect();
    times.sort_unstable();
    let median = times[times.len() / 2];
    eprintln!("creation, two runs of nft included: median {median:?}, slowest {:?}", times[times.len() - 1]);
    // Ten times what a busy two-core machine needs: this finds a forgotten wait, not a slow day.
    assert!(median < Duration::from_millis(250), "median {median:?}");
}
