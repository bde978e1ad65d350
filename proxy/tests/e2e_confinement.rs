//! What a workload may do, and what not.

mod e2e;

use e2e::*;

/// Runs Python inside and gives what it printed.
fn python_says(scene: &Scene, code: &str) -> String {
    scene.exec().run(&[python(), "-c", code]).ended_with(0).text()
}

#[test]
fn programs_can_list_the_network_interfaces() {
    // The third field report (FACTS.md): AF_NETLINK was blocked outright, and Node died at start-up.
    let scene = Scene::new();
    let code = "console.log(Object.keys(require('os').networkInterfaces()).join())";
    assert_eq!(scene.exec().run(&[node(), "-e", code]).ended_with(0).text(), "lo\n");
    let outcome = scene.exec().run(&["ip", "-o", "addr", "show"]).ended_with(0);
    assert!(outcome.text().contains("10.200.0.1"), "{outcome}");
    assert!(outcome.text().lines().all(|line| line.contains(" lo ")), "nothing but lo: {outcome}");
    assert_eq!(python_says(&scene, "import socket; print(socket.if_nameindex())"), "[(1, 'lo')]\n");
}

#[test]
fn a_root_workload_can_change_neither_links_nor_rules() {
    let scene = Scene::new();
    let script = "ip link set lo down 2>&1; ip route del default 2>&1; nft flush ruleset 2>&1; true";
    let outcome = scene.exec().run(&["sh", "-c", script]).ended_with(0);
    assert_eq!(outcome.text().matches("Operation not permitted").count(), 2, "{outcome}");
    // The socket that rules are set through cannot even be made.
    assert!(outcome.text().contains("Protocol not supported"), "{outcome}");
}

#[test]
fn netlink_other_than_route_is_refused() {
    let scene = Scene::new();
    let code = "import errno, socket\n\
        for protocol in (0, 12, 16):\n\
        \x20   try: socket.socket(16, socket.SOCK_RAW, protocol); print('made')\n\
        \x20   except OSError as error: print(errno.errorcode[error.errno])";
    assert_eq!(python_says(&scene, code), "made\nEPROTONOSUPPORT\nEPROTONOSUPPORT\n");
}

#[test]
fn io_uring_does_not_exist_inside() {
    // It would evade every rule of the filter.
    let scene = Scene::new();
    let code = "import ctypes, errno\n\
        libc = ctypes.CDLL(None, use_errno=True)\n\
        params = ctypes.create_string_buffer(256)\n\
        for number, arguments in ((425, (8, params)), (426, (0, 0, 0, 0, 0, 0)), (427, (0, 0, 0, 0))):\n\
        \x20   print(libc.syscall(number, *arguments), errno.errorcode[ctypes.get_errno()])";
    assert_eq!(python_says(&scene, code), "-1 ENOSYS\n".repeat(3));
}

#[test]
fn namespaces_mounts_and_tracing_are_out_of_reach() {
    let scene = Scene::new();
    let script = "unshare -n true; unshare -U true; mount -t tmpfs none /mnt; nsenter -t 1 -n true; \
                  echo 0 > /proc/sys/net/ipv4/ip_forward; dmesg; true";
    let outcome = scene.exec().option("--no-summary").run(&["sh", "-c", script]).ended_with(0);
    assert!(outcome.stdout.is_empty(), "{outcome}");
    assert!(outcome.stderr.lines().count() >= 6, "each said that it failed: {outcome}");
}

/// The lines of `/proc/self/status` that say who a process is.
fn credentials(outcome: &Outcome) -> Vec<(String, String)> {
    let text = outcome.text();
    let fields = text.lines().filter_map(|line| line.split_once(':'));
    fields
        .map(|(name, value)| (name.into(), value.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect()
}

fn field<'a>(fields: &'a [(String, String)], name: &str) -> &'a str {
    &fields.iter().find(|(own, _)| own == name).unwrap_or_else(|| panic!("no {name}")).1
}

#[test]
fn with_user_nobody_nothing_of_root_is_left() {
    let scene = Scene::new();
    let outcome =
        scene.exec().option("--user").option("nobody").run(&["cat", "/proc/self/status"]).ended_with(0);
    let status = credentials(&outcome);
    assert_eq!(field(&status, "Uid"), "65534 65534 65534 65534");
    assert_eq!(field(&status, "Gid"), "65534 65534 65534 65534");
    assert_eq!(field(&status, "Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(u64::from_str_radix(field(&status, set), 16), Ok(0), "{set}");
    }
    assert_eq!(field(&status, "NoNewPrivs"), "1");
    assert_eq!(field(&status, "Seccomp"), "2");
}

#[test]
fn a_root_workload_keeps_few_capabilities() {
    let scene = Scene::new();
    let status = credentials(&scene.exec().run(&["cat", "/proc/self/status"]).ended_with(0));
    assert_eq!(field(&status, "Uid"), "0 0 0 0");
    assert_eq!(field(&status, "NoNewPrivs"), "1");
    let held = u64::from_str_radix(field(&status, "CapEff"), 16).expect("hex");
    // linux/capability.h: NET_ADMIN, NET_RAW, SYS_MODULE, SYS_RAWIO, SYS_PTRACE, SYS_ADMIN, SYS_BOOT, SYSLOG, BPF.
    for capability in [12, 13, 16, 17, 19, 21, 22, 34, 39] {
        assert_eq!(held & (1 << capability), 0, "holds capability {capability}");
    }
}

#[test]
fn user_and_group_are_taken_by_number_and_from_the_policy() {
    let scene = Scene::new();
    let outcome = scene.exec().option("--user").option("12345:54321").run(&["id", "-u"]).ended_with(0);
    assert_eq!(outcome.text(), "12345\n");
    let policy = "version: 1\nprocess:\n  run_as_user: nobody\n  run_as_group: daemon\n";
    let status = credentials(&scene.exec().policy(policy).run(&["cat", "/proc/self/status"]).ended_with(0));
    assert_eq!(field(&status, "Uid"), "65534 65534 65534 65534");
    assert_eq!(field(&status, "Gid"), "1 1 1 1");
}

#[test]
fn a_workload_of_another_user_is_served_and_named_as_such() {
    let (scene, origin) = (Scene::new(), HttpOrigin::start());
    let exec = scene.exec().open().option("--user").option("nobody");
    let outcome =
        exec.run(&["curl", "-sS", &origin.url("origin.test", "/"), "--noproxy", "x", "http://192.0.2.1/"]);
    assert!(outcome.text().starts_with(BODY), "{outcome}");
    let event = outcome.events_of("request.allowed").first().copied().expect("allowed").clone();
    assert_eq!((&event["uid"], &event["process"]["exe"]), (&65534.into(), &program("curl").into()));
    let script = "curl -s --noproxy '*' http://192.0.2.1/";
    let outcome =
        scene.exec().open().option("--user").option("nobody").run(&["sh", "-c", script]).ended_with(7);
    let event = outcome.the("bypass.detected");
    assert_eq!((&event["uid"], &event["process"]["exe"]), (&65534.into(), &program("curl").into()));
}

/// A policy with a file-system part: all may be read, `writable` may be written.
fn filesystem(writable: &str) -> String {
    format!(
        "version: 1\nfilesystem_policy:\n  include_workdir: false\n  read_only: [/]\n  read_write: [/dev/null, {writable}]\n\
         landlock:\n  compatibility: hard_requirement\n"
    )
}

#[test]
fn files_are_written_where_the_policy_allows_it_and_nowhere_else() {
    let scene = Scene::new();
    for name in ["inside", "outside"] {
        std::fs::create_dir(scene.dir().join(name)).expect("a directory");
    }
    scene.file("outside/old", "old\n");
    let inside = scene.dir().join("inside").display().to_string();
    let script = "cat outside/old; echo new > inside/new && cat inside/new; \
        for act in 'echo x > outside/new' 'echo x > outside/old' 'rm outside/old' 'mkdir outside/dir' \
            'mv outside/old inside/' 'ln -s x outside/link' 'truncate -s 0 outside/old' 'echo x > here'; do \
            if sh -c \"$act\" 2>/dev/null; then echo \"done: $act\"; fi; done; true";
    let outcome = scene.exec().policy(&filesystem(&inside)).run(&["sh", "-c", script]).ended_with(0);
    assert_eq!(outcome.text(), "old\nnew\n", "{outcome}");
    assert_eq!(std::fs::read_to_string(scene.dir().join("outside/old")).expect("there"), "old\n");
    assert_eq!(std::fs::read_to_string(scene.dir().join("inside/new")).expect("there"), "new\n");
}

#[test]
fn what_the_policy_does_not_name_cannot_even_be_read() {
    let scene = Scene::new();
    scene.file("secret", "secret\n");
    let policy = "version: 1\nfilesystem_policy:\n  include_workdir: false\n  read_only: [/usr, /bin, /lib, /lib64, /etc]\n  \
        read_write: [/dev/null]\nlandlock:\n  compatibility: required\n";
    let outcome = scene.exec().policy(policy).run(&[
        "sh",
        "-c",
        "cat secret; cat /etc/passwd > /dev/null && echo passwd",
    ]);
    assert_eq!(outcome.text(), "passwd\n", "{outcome}");
    assert!(outcome.stderr.contains("Permission denied"), "{outcome}");
}

#[test]
fn ordinary_programs_find_what_they_need() {
    let scene = Scene::new();
    // Threads, subprocesses, socket pairs, pipes, shared memory, semaphores, an event loop.
    let code = "import asyncio, multiprocessing, socket, subprocess, tempfile, threading\n\
        thread = threading.Thread(target=lambda: None); thread.start(); thread.join()\n\
        a, b = socket.socketpair(); a.send(b'x'); b.recv(1)\n\
        async def main(): return (await (await asyncio.create_subprocess_exec('true')).wait())\n\
        assert asyncio.run(main()) == 0\n\
        with multiprocessing.Pool(2) as pool: assert pool.map(abs, [-1, 2]) == [1, 2]\n\
        with tempfile.NamedTemporaryFile() as file: file.write(b'x')\n\
        assert subprocess.check_output(['echo', 'fine']) == b'fine\\n'\n\
        print('fine')";
    assert_eq!(python_says(&scene, code), "fine\n");
    let code = "const { Worker } = require('worker_threads');\n\
        new Worker('require(\"worker_threads\").parentPort.postMessage(\"fine\")', { eval: true })\n\
          .on('message', console.log);";
    assert_eq!(scene.exec().run(&[node(), "-e", code]).ended_with(0).text(), "fine\n");
}

#[test]
fn the_summary_says_what_is_enforced_and_what_is_not() {
    let scene = Scene::new();
    let outcome = scene.exec().run(&["true"]).ended_with(0);
    let all = "sluice: enforced: network, system calls, witness, processes, privileges\n\
               sluice: NOT enforced: files (no filesystem policy: root writes root's files on this host)\n";
    assert!(outcome.stderr.contains(all), "{outcome}");
    let outcome = scene.exec().policy(&filesystem("/tmp")).run(&["true"]).ended_with(0);
    let all = "sluice: enforced: network, system calls, witness, files, processes, privileges\n";
    assert!(outcome.stderr.contains(all) && !outcome.stderr.contains("NOT enforced"), "{outcome}");
    let outcome = scene.exec().option("--no-summary").run(&["true"]).ended_with(0);
    assert!(outcome.stderr.is_empty(), "{outcome}");
}

#[test]
fn the_policy_decides_about_memory_files_tmp_and_the_pid_namespace() {
    let scene = Scene::new();
    // The scene's directory is below /tmp, which a private one covers.
    let with = |lines: &str, script: &str| {
        let policy = scene.file("policy.yaml", &format!("version: 1\n{lines}\n"));
        let command = format!(
            "cd / && exec {} exec --no-summary --name {} --policy {} -- {} -c \"$0\"",
            sluice().display(),
            scene.name(),
            policy.display(),
            python()
        );
        run(&scene, &["sh", "-c", &command, script]).ended_with(0).text()
    };
    let memory = "import os\n\
        try: os.memfd_create('x', 0); print('made')\n\
        except OSError as error: print(error.strerror)";
    assert_eq!(with("process: {memfd_exec: allow}", memory), "made\n");
    assert_eq!(with("process: {memfd_exec: deny}", memory), "Permission denied\n");
    let tmp = "import os; print(len(os.listdir('/tmp')), os.getpid())";
    assert_eq!(with("process: {private_tmp: true}", tmp), "0 2\n");
    let own = with("process: {pid_namespace: false}", tmp);
    let pid: u32 = own.trim().split(' ').nth(1).expect("a pid").parse().expect("a number");
    assert!(pid > 2, "{own}");
}

#[test]
fn landlock_holds_connects_to_the_proxy_where_the_policy_says_so() {
    let (scene, origin) = (Scene::new(), HttpOrigin::start());
    let policy = "version: 1\nlandlock: {tcp_connect: proxy}\nnetwork_policies:\n  o:\n    endpoints:\n      \
                  - {host: origin.test, port: PORT}\n";
    let port = origin.url("", "").rsplit(':').next().expect("a port").trim_end_matches('/').to_owned();
    let script = format!(
        "curl -sS -p {}; curl -sS --noproxy '*' http://192.0.2.1/ 2>&1; true",
        origin.url("origin.test", "/")
    );
    let exec = scene.exec().policy(&policy.replace("PORT", &port)).permit_loopback();
    let outcome = exec.run(&["sh", "-c", &script]).ended_with(0);
    assert!(outcome.text().starts_with(BODY), "{outcome}");
    assert!(outcome.stderr.contains("enforced: network, connects, "), "{outcome}");
    assert!(outcome.text().contains("Failed to connect"), "{outcome}");
}
