//! Starting, ending and failing to start a workload, and what it holds while it runs.
#![allow(clippy::unwrap_used, reason = "also in the functions the tests share")]

mod sandbox;

use sandbox::{command, eventually, run, run_with};
use sluice_seccomp::{
    ExitStatus, FileLists, LandlockPlan, LaunchError, Namespaces, Netlink, ReplacedFile, Requirement, Step,
    User, launch,
};
use std::path::PathBuf;

const BOTH: [Namespaces; 2] =
    [Namespaces { pids: true, private_tmp: false }, Namespaces { pids: false, private_tmp: false }];

/// `Name:` of `/proc/self/status` as the workload sees it.
fn status_field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
}

#[test]
fn the_exit_code_is_the_workloads() {
    for namespaces in BOTH {
        let mut launch = command(&["sh", "-c", "exit 42"]);
        launch.namespaces = namespaces;
        assert_eq!(run(&launch).status, ExitStatus::Exited(42));
    }
}

#[test]
fn a_signal_is_reported_as_128_and_its_number() {
    for namespaces in BOTH {
        let mut launch = command(&["sh", "-c", "kill -TERM $$; exec sleep 60"]);
        launch.namespaces = namespaces;
        let status = run(&launch).status;
        assert_eq!(status, ExitStatus::Signaled(libc::SIGTERM));
        assert_eq!(status.code(), 143);
    }
}

#[test]
fn signals_are_passed_on() {
    const SCRIPT: &str = "
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
open(sys.argv[1], 'w').close()
signal.sigwait([signal.SIGUSR1])
print('caught')
sys.exit(5)";
    for namespaces in BOTH {
        let directory = tempfile::tempdir().unwrap();
        let ready = directory.path().join("ready");
        let mut launch = command(&["/usr/bin/python3", "-c", SCRIPT, ready.to_str().unwrap()]);
        launch.namespaces = namespaces;
        let outcome = run_with(&launch, |child| {
            eventually("the signal is waited for", || ready.exists());
            child.signaller().unwrap().send(libc::SIGUSR1).unwrap();
        });
        assert_eq!((outcome.status, outcome.stdout.as_str()), (ExitStatus::Exited(5), "caught\n"));
    }
}

#[test]
fn a_missing_program_is_127_and_one_that_cannot_run_is_126() {
    for namespaces in BOTH {
        for missing in ["no-such-program-here", "/no/such/program", "./no-such-program"] {
            let mut wanted = command(&[missing]);
            wanted.namespaces = namespaces;
            let error = launch(&wanted).unwrap_err();
            assert!(matches!(error, LaunchError::NotFound { .. }), "{missing}: {error}");
            assert_eq!(error.exit_code(), 127);
        }
        for unfit in ["/etc/passwd", "/etc"] {
            let mut wanted = command(&[unfit]);
            wanted.namespaces = namespaces;
            let error = launch(&wanted).unwrap_err();
            assert!(matches!(error, LaunchError::NotExecutable { .. }), "{unfit}: {error}");
            assert_eq!(error.exit_code(), 126);
        }
    }
}

#[test]
fn a_script_without_its_interpreter_is_not_called_missing() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let error = launch(&command(&[script.to_str().unwrap()])).unwrap_err();
    assert!(matches!(error, LaunchError::NotExecutable { .. }), "{error}");
}

#[test]
fn a_step_that_fails_names_itself_and_nothing_runs() {
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("ran");
    for namespaces in BOTH {
        let mut wanted = command(&["touch", trace.to_str().unwrap()]);
        wanted.namespaces = namespaces;
        wanted.cwd = Some("/no/such/directory".into());
        let error = launch(&wanted).unwrap_err();
        assert!(matches!(error, LaunchError::Step { step: Step::Directory, .. }), "{error}");
        assert!(error.to_string().contains("working directory"), "{error}");

        let not_a_namespace = std::fs::File::open("/dev/null").unwrap();
        let mut wanted = command(&["touch", trace.to_str().unwrap()]);
        wanted.namespaces = namespaces;
        wanted.netns = Some(std::os::fd::AsFd::as_fd(&not_a_namespace));
        let error = launch(&wanted).unwrap_err();
        assert!(matches!(error, LaunchError::Step { step: Step::NetworkNamespace, .. }), "{error}");
    }
    assert!(!trace.exists());
}

#[test]
fn a_user_really_drops_everything() {
    for namespaces in BOTH {
        let mut wanted = command(&["cat", "/proc/self/status"]);
        wanted.namespaces = namespaces;
        wanted.user = Some(User { uid: 1234, gid: 2345, groups: vec![3456] });
        let status = run(&wanted).text();
        assert_eq!(status_field(&status, "Uid:"), "1234\t1234\t1234\t1234");
        assert_eq!(status_field(&status, "Gid:"), "2345\t2345\t2345\t2345");
        assert_eq!(status_field(&status, "Groups:"), "3456");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(status_field(&status, set), "0000000000000000", "{set}");
        }
        assert_eq!(status_field(&status, "NoNewPrivs:"), "1");
        assert_eq!(status_field(&status, "Seccomp:"), "2");
    }
}

#[test]
fn secure_bits_core_limit_session_and_death_signal_are_set() {
    const SCRIPT: &str = "
import ctypes, os, resource
prctl, word = ctypes.CDLL(None).prctl, ctypes.c_int()
prctl(2, ctypes.byref(word))
print(prctl(27), resource.getrlimit(resource.RLIMIT_CORE), os.getsid(0) == os.getpid(), word.value)";
    for namespaces in BOTH {
        // Uid 0 means nothing, no user change fixes anything up, nothing is ambient, each locked; root programs need the bits.
        for (user, secure_bits) in [(Some(User::new(1234, 1234)), 0xef), (None, 0)] {
            let mut wanted = command(&["/usr/bin/python3", "-c", SCRIPT]);
            wanted.namespaces = namespaces;
            wanted.user = user;
            // In a pid namespace the init has the death signal, and its end ends all.
            let signal = if namespaces.pids { 0 } else { libc::SIGKILL };
            assert_eq!(
                run(&wanted).text(),
                format!("{secure_bits} (0, 0) True {signal}\n"),
                "{namespaces:?}"
            );
        }
    }
}

#[test]
fn root_keeps_the_documented_capabilities_through_execve() {
    let expected = sluice_seccomp::KEPT_BY_ROOT.iter().fold(0u64, |set, kept| set | 1 << kept.number);
    for namespaces in BOTH {
        let mut wanted = command(&["cat", "/proc/self/status"]);
        wanted.namespaces = namespaces;
        let status = run(&wanted).text();
        for (set, held) in [
            ("CapInh:", 0),
            ("CapPrm:", expected),
            ("CapEff:", expected),
            ("CapBnd:", expected),
            ("CapAmb:", 0),
        ] {
            assert_eq!(status_field(&status, set), format!("{held:016x}"), "{set}");
        }
        // Rust's ignored SIGPIPE would make `yes | head` complain.
        assert_eq!(status_field(&status, "SigIgn:"), "0000000000000000");
        assert_eq!(status_field(&status, "SigBlk:"), "0000000000000000");
    }
}

#[test]
fn a_program_whose_file_demands_capabilities_runs_without_them() {
    let root_mount = || {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).map(String::from)
    };
    let before = root_mount();
    // Debian's ping. A bounding set without them makes the kernel refuse to execute such a file.
    let program = tempfile::NamedTempFile::with_suffix("-cat").unwrap().into_temp_path();
    // By another process: a descriptor of ours that writes to it could be inherited by what another test starts (ETXTBSY).
    let copied = std::process::Command::new("cp").arg("-p").arg("/bin/cat").arg(&program).status();
    assert!(copied.unwrap().success());
    let given =
        std::process::Command::new("setcap").arg("cap_net_raw,cap_net_admin=ep").arg(&program).status();
    assert!(given.unwrap().success(), "setcap, of libcap2-bin");
    let kept = sluice_seccomp::KEPT_BY_ROOT.iter().fold(0u64, |set, kept| set | 1 << kept.number);
    for (user, held) in [(None, kept), (Some(User::new(1234, 1234)), 0)] {
        let mut wanted = command(&[program.to_str().unwrap(), "/proc/self/status"]);
        wanted.user = user;
        let status = run(&wanted).text();
        for set in ["CapPrm:", "CapEff:"] {
            assert_eq!(status_field(&status, set), format!("{held:016x}"), "{set}");
        }
    }
    assert_eq!(root_mount(), before, "the host's mounts changed");
}

#[test]
fn no_inherited_descriptor_is_left() {
    use std::os::fd::AsRawFd;
    let open = std::fs::File::open("/etc/passwd").unwrap();
    nix::fcntl::fcntl(&open, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    for namespaces in BOTH {
        // ls has its own descriptor on the directory: 3.
        let mut wanted = command(&["ls", "/proc/self/fd"]);
        wanted.namespaces = namespaces;
        assert_eq!(run(&wanted).text(), "0\n1\n2\n3\n", "{} was open", open.as_raw_fd());
    }
}

#[test]
fn the_pid_namespace_shows_its_own_processes_alone() {
    let mut wanted =
        command(&["sh", "-c", "echo $$; ls -d /proc/[0-9]*; cat /proc/1/comm; cat /proc/1/maps"]);
    wanted.user = Some(User::new(1234, 1234));
    let outcome = run(&wanted);
    assert!(outcome.stdout.starts_with("2\n/proc/1\n/proc/2\n"), "{}", outcome.stdout);
    assert!(
        outcome.stdout.ends_with("sluice-init\n"),
        "the init's memory must not be readable: {}",
        outcome.stdout
    );
}

#[test]
fn the_kernels_knobs_are_read_only_to_a_root_workload() {
    for knob in ["/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/kernel/profiling"] {
        if !std::path::Path::new(knob).exists() {
            continue;
        }
        let outcome = run(&command(&["sh", "-c", &format!("true >> {knob}")]));
        assert_ne!(outcome.status, ExitStatus::Exited(0), "{knob}");
        assert!(outcome.stderr.contains("Read-only file system"), "{knob}: {}", outcome.stderr);
    }
    assert_eq!(run(&command(&["cat", "/dev/kmsg"])).text(), "");
}

#[test]
fn a_private_tmp_is_empty_and_leaves_nothing() {
    let mark = tempfile::NamedTempFile::new().unwrap();
    let mut wanted = command(&["sh", "-c", "ls -A /tmp; pwd > /tmp/left-behind; cat /tmp/left-behind"]);
    wanted.namespaces = Namespaces { pids: true, private_tmp: true };
    wanted.cwd = Some("/".into());
    assert_eq!(run(&wanted).text(), "/\n", "{} is not to be seen", mark.path().display());
    assert!(!std::path::Path::new("/tmp/left-behind").exists());
}

#[test]
fn hidden_paths_are_empty_and_replaced_files_read_as_given() {
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    std::fs::write(&secret, "secret").unwrap();
    let script = format!(
        "ls -A {}; cat {} /etc/resolv.conf; echo x >> /etc/resolv.conf",
        directory.path().display(),
        file_with("hidden")
    );
    let mut wanted = command(&["sh", "-c", &script]);
    wanted.hidden = vec![directory.path().to_owned(), file_with("hidden").into(), "/no/such/path".into()];
    wanted.replaced = vec![ReplacedFile {
        path: "/etc/resolv.conf".into(),
        contents: b"# names are the proxy's\n".to_vec(),
    }];
    let outcome = run(&wanted);
    assert_eq!(outcome.stdout, "# names are the proxy's\n", "{}", outcome.stderr);
    assert!(outcome.stderr.contains("Read-only file system"), "{}", outcome.stderr);
    assert!(secret.exists());
    std::fs::remove_file(file_with("hidden")).unwrap();
}

/// A file in the temporary directory that lasts until it is removed.
fn file_with(text: &str) -> String {
    let path = std::env::temp_dir().join(format!("sluice-test-{}-{text}", std::process::id()));
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn what_needs_a_mount_namespace_says_so() {
    let mut wanted = command(&["true"]);
    wanted.namespaces = Namespaces { pids: false, private_tmp: false };
    wanted.hidden = vec!["/etc".into()];
    assert!(launch(&wanted).unwrap_err().to_string().contains("namespaces.pids"));
}

#[test]
fn leftover_processes_end_with_the_workload() {
    let mut wanted = command(&["sh", "-c", "setsid sleep 1000 > /dev/null 2>&1 & echo $!"]);
    wanted.env.push(("SLUICE_LEFTOVER".into(), std::process::id().to_string().into()));
    let mark = format!("SLUICE_LEFTOVER={}", std::process::id());
    run(&wanted).text();
    assert_eq!(processes_with(&mark), Vec::<PathBuf>::new());
}

fn processes_with(mark: &str) -> Vec<PathBuf> {
    let has_mark = |path: &PathBuf| {
        std::fs::read(path.join("environ"))
            .is_ok_and(|environ| environ.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes()))
    };
    std::fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path()).filter(has_mark).collect()
}

#[test]
fn the_end_of_the_launching_thread_kills_the_workload() {
    for namespaces in BOTH {
        let pid = std::thread::spawn(move || {
            let mut wanted = command(&["sleep", "1000"]);
            wanted.namespaces = namespaces;
            let child = launch(&wanted).unwrap();
            let pid = child.pid();
            std::mem::forget(child); // as if the launcher had died
            pid
        })
        .join()
        .unwrap();
        eventually("the workload is killed", || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
            stat.is_err() || stat.unwrap().contains(") Z ")
        });
    }
}

#[test]
fn a_dropped_child_is_killed() {
    for namespaces in BOTH {
        let mut wanted = command(&["sleep", "1000"]);
        wanted.namespaces = namespaces;
        let child = launch(&wanted).unwrap();
        let path = format!("/proc/{}", child.pid());
        drop(child);
        assert!(!std::path::Path::new(&path).exists());
    }
}

#[test]
fn landlock_opens_what_is_listed_and_nothing_else() {
    let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let files = FileLists {
        read_only: ["/usr", "/lib", "/lib64", "/bin", "/etc/passwd", "/proc"].map(PathBuf::from).to_vec(),
        read_write: vec![inside.path().to_owned(), "/dev/null".into()],
    };
    let plan = LandlockPlan { files: Some(files), ..LandlockPlan::default() };
    for namespaces in BOTH {
        let script = format!(
            "cat /etc/passwd > /dev/null && echo read; cat /proc/self/comm; echo x > {inside}/x && echo wrote; \
             cat /etc/group; echo x > {outside}/x; echo x > /etc/passwd; ls {outside}; true",
            inside = inside.path().display(),
            outside = outside.path().display()
        );
        let mut wanted = command(&["sh", "-c", &script]);
        wanted.namespaces = namespaces;
        wanted.landlock = Some(plan.clone());
        let outcome = run(&wanted);
        assert_eq!(outcome.stdout, "read\ncat\nwrote\n", "{}", outcome.stderr);
        assert_eq!(outcome.stderr.matches("Permission denied").count(), 4, "{}", outcome.stderr);
    }
}

#[test]
fn a_missing_path_is_an_error_or_is_reported() {
    let read_only = ["/usr", "/no/such/path", "/lib", "/lib64", "/bin"].map(PathBuf::from).to_vec();
    let files = FileLists { read_only, ..FileLists::default() };
    let mut plan = LandlockPlan { files: Some(files), ..LandlockPlan::default() };
    let mut wanted = command(&["true"]);
    wanted.landlock = Some(plan.clone());
    let error = launch(&wanted).unwrap_err();
    assert!(error.to_string().contains("/no/such/path"), "{error}");

    plan.requirement = Requirement::BestEffort;
    wanted.landlock = Some(plan);
    let child = launch(&wanted).unwrap();
    assert!(child.enforcement().to_string().contains("missing: /no/such/path"), "{}", child.enforcement());
    assert_eq!(child.wait().unwrap(), ExitStatus::Exited(0));
}

#[test]
fn a_root_workload_cannot_signal_its_launcher() {
    // In the pid namespace there is no number for it; without one Landlock's scope must hold.
    let mut wanted = command(&["sh", "-c", &format!("kill -0 {} 2>&1", std::process::id())]);
    wanted.namespaces = Namespaces { pids: false, private_tmp: false };
    let outcome = run(&wanted);
    assert_ne!(outcome.status, ExitStatus::Exited(0));
    assert!(outcome.stdout.contains("not permitted"), "{outcome:?}");
}

#[test]
fn netlink_is_as_the_policy_says() {
    for (netlink, ends) in [(Netlink::Route, 0), (Netlink::Deny, 1), (Netlink::All, 0)] {
        let mut wanted = command(&["ip", "-brief", "link"]);
        wanted.netlink = netlink;
        assert_eq!(run(&wanted).status == ExitStatus::Exited(0), ends == 0, "{netlink:?}");
    }
}

#[test]
fn the_enforcement_report_says_what_holds() {
    let child = launch(&command(&["true"])).unwrap();
    let report = child.enforcement().to_string();
    let summary = child.enforcement().summary();
    child.wait().unwrap();
    assert!(
        summary.starts_with("enforced: system calls, processes, privileges\nNOT enforced: "),
        "{summary}"
    );
    assert!(
        summary.contains("NOT enforced: files (no filesystem policy: root writes root's files"),
        "{summary}"
    );
    for line in [
        "network       off",
        "files         off     no filesystem policy: root writes root's files",
        "processes     on",
    ] {
        assert!(report.contains(line), "{line} in:\n{report}");
    }
}

#[test]
fn connects_go_to_the_one_port_and_binding_stays_free() {
    // A rule set that handled binding would forbid every bind.
    const SCRIPT: &str = "
import errno, socket
proxy, other = socket.create_server(('127.0.0.1', 3128)), socket.create_server(('127.0.0.1', 0))
for server in (proxy, other):
    client = socket.socket()
    print(errno.errorcode.get(client.connect_ex(server.getsockname()), 'connected'))
client = socket.socket(); client.bind(('127.0.0.1', 0))
u = socket.socket(type=socket.SOCK_DGRAM); u.connect(('127.0.0.1', 9)); print('datagrams')";
    let network = sandbox::Network::new();
    let mut wanted = command(&["/usr/bin/python3", "-c", SCRIPT]);
    wanted.netns = Some(std::os::fd::AsFd::as_fd(&network.fd));
    wanted.landlock = Some(LandlockPlan { connect_only_to_port: Some(3128), ..LandlockPlan::default() });
    let mut said = String::new();
    let outcome = run_with(&wanted, |child| said = child.enforcement().to_string());
    assert_eq!(outcome.text(), "connected\nEACCES\ndatagrams\n");
    assert!(said.contains("connects      on      TCP to port 3128 alone"), "{said}");
    // No file is refused without lists.
    wanted.args = vec!["-c".into(), "open('/etc/passwd')".into()];
    assert_eq!(run(&wanted).status, ExitStatus::Exited(0));
}

#[test]
fn a_replaced_file_that_is_listed_alone_can_be_read() {
    let contents = b"# names are the proxy's\n".to_vec();
    let path = std::fs::canonicalize("/etc/resolv.conf").unwrap();
    let read_only = ["/usr", "/lib", "/lib64", "/bin", "/etc/resolv.conf"].map(PathBuf::from).to_vec();
    let files = FileLists { read_only, ..FileLists::default() };
    let mut wanted = command(&["cat", "/etc/resolv.conf"]);
    wanted.replaced = vec![ReplacedFile { path, contents }];
    wanted.landlock = Some(LandlockPlan { files: Some(files), ..LandlockPlan::default() });
    assert_eq!(run(&wanted).text(), "# names are the proxy's\n");
}
