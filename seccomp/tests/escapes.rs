//! Known ways out, each tried by a root workload: the strongest there is. What holds here holds for
//! every other.
#![allow(clippy::unwrap_used, reason = "also in the functions the tests share")]

mod sandbox;

use sandbox::{Network, command, eventually, run, run_with, scratch};
use sluice_seccomp::{ExitStatus, FileLists, LandlockPlan, Namespaces, Notes, User, Witness, launch};
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

const SHARED_PIDS: Namespaces = Namespaces { pids: false, private_tmp: false };

/// Runs a Python script whose `attempt` prints a call's errno, or DONE.
fn python(script: &str, namespaces: Namespaces) -> Vec<String> {
    const PRELUDE: &str = "
import ctypes, errno, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def attempt(what, *args):
    try:
        if callable(what): what(*args); print('DONE'); return
        result = getattr(libc, what)(*args)
        print(errno.errorcode[ctypes.get_errno()] if result == -1 else 'DONE')
    except OSError as e: print(errno.errorcode[e.errno])
";
    let script = format!("{PRELUDE}{script}");
    let mut wanted = command(&["/usr/bin/python3", "-c", &script]);
    wanted.namespaces = namespaces;
    run(&wanted).text().lines().map(str::to_owned).collect()
}

#[test]
fn the_launcher_cannot_be_traced_read_signalled_or_robbed_of_a_socket() {
    let (me, secret) = (std::process::id(), std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    let script = format!(
        "
attempt('ptrace', 16, {me}, 0, 0)
attempt(open, '/proc/{me}/mem', 'rb')
attempt(os.kill, {me}, 0)
attempt('syscall', 438, os.pidfd_open({me}), {fd}, 0)
attempt(os.readlink, '/proc/{me}/fd/{fd}')",
        fd = secret.as_raw_fd()
    );
    assert_eq!(python(&script, SHARED_PIDS), ["EPERM", "EACCES", "EPERM", "EPERM", "EACCES"]);
}

#[test]
fn a_pid_namespace_has_no_number_for_the_launcher() {
    let me = std::process::id();
    // -1 is everybody: in here, nobody but the caller and an init that signals do not reach.
    let script = format!(
        "attempt(os.kill, {me}, 9)\nattempt(os.kill, 1, 9)\nattempt(open, '/proc/1/mem', 'rb')\nattempt('kill', -1, 9)"
    );
    assert_eq!(python(&script, Namespaces::default()), ["ESRCH", "DONE", "EACCES", "ESRCH"]);
}

#[test]
fn abstract_sockets_of_the_host_are_out_of_reach() {
    let name = format!("sluice-escape-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let _listener = UnixListener::bind_addr(&address).unwrap();
    let script = format!("attempt(socket.socket(socket.AF_UNIX).connect, '\\0{name}')");
    for namespaces in [SHARED_PIDS, Namespaces::default()] {
        assert_eq!(python(&script, namespaces), ["EPERM"]);
    }
}

#[test]
fn a_set_user_id_program_gives_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = directory.path().join("id");
    // By another process: a descriptor of ours that writes to it could be inherited by what another test starts (ETXTBSY).
    let copied = std::process::Command::new("cp").arg("/usr/bin/id").arg(&program).status();
    assert!(copied.unwrap().success());
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o4755)).unwrap();
    let mut wanted = command(&[program.to_str().unwrap(), "-u"]);
    wanted.user = Some(User::new(1234, 1234));
    assert_eq!(run(&wanted).text(), "1234\n");
}

#[test]
fn no_second_listener_and_no_filter_of_its_own_hides_a_connect() {
    // A filter that allows everything, asked for with a listener (8): the witness holds the only one. The
    // same filter without is taken, and changes nothing.
    let script = "
import ctypes, errno, socket
libc = ctypes.CDLL(None, use_errno=True)
allow = ctypes.create_string_buffer(bytes([6, 0, 0, 0]) + (0x7fff0000).to_bytes(4, 'little'))
class Program(ctypes.Structure): _fields_ = [('len', ctypes.c_ushort), ('filter', ctypes.c_void_p)]
program = Program(1, ctypes.addressof(allow))
for flags in (8, 0):
    result = libc.syscall(317, 1, flags, ctypes.byref(program))
    print(errno.errorcode[ctypes.get_errno()] if result == -1 else 'DONE')
print(socket.socket().connect_ex(('192.0.2.1', 80)))";
    if cfg!(target_arch = "x86_64") {
        let network = Network::new();
        let (notes, writer) = Notes::with_writer().unwrap();
        let mut wanted = command(&["/usr/bin/python3", "-c", script]);
        wanted.netns = Some(network.fd.as_fd());
        wanted.witness = true;
        let outcome = run_with(&wanted, |child| {
            let witness = Witness::new(child.take_witness().unwrap(), child.pid(), writer, vec![]);
            std::thread::spawn(move || witness.run(None));
        });
        assert_eq!(outcome.text(), format!("EBUSY\nDONE\n{}\n", libc::ECONNREFUSED));
        assert_eq!(notes.len(), 1);
    }
}

#[test]
fn clearing_the_death_signal_and_hiding_in_a_session_saves_nobody() {
    let script = "
import ctypes, os, time
ctypes.CDLL(None).prctl(1, 0)
if os.fork() == 0:
    os.setsid()
    if os.fork(): os._exit(0)
    ctypes.CDLL(None).prctl(1, 0)
open(os.environ['MARK'] + str(os.getpid()), 'w')
time.sleep(1000)";
    let directory = tempfile::tempdir().unwrap();
    let mark = format!("{}/", directory.path().display());
    let mut wanted = command(&["/usr/bin/python3", "-c", script]);
    wanted.env.push(("MARK".into(), mark.clone().into()));
    let mine = format!("MARK={mark}").into_bytes();
    let alive = || {
        let processes = std::fs::read_dir("/proc").unwrap();
        let environs =
            processes.filter_map(|entry| std::fs::read(entry.unwrap().path().join("environ")).ok());
        environs.filter(|environ| environ.split(|byte| *byte == 0).any(|entry| entry == mine)).count()
    };
    // The launching thread ends as soon as both processes hide.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let child = launch(&wanted).unwrap();
            eventually("both have started", || std::fs::read_dir(directory.path()).unwrap().count() == 2);
            std::mem::forget(child);
        });
    });
    eventually("all of them are gone", || alive() == 0);
}

#[test]
fn memory_files_are_not_executed_where_the_policy_says_so() {
    let script = "
import os
try: fd = os.memfd_create('x', 0)
except PermissionError: fd = os.memfd_create('x', 8)
os.write(fd, open('/bin/true', 'rb').read())
try: os.execve(f'/proc/self/fd/{fd}', ['true'], {})
except PermissionError: print('refused')";
    for (memfd_exec, says) in [(true, ""), (false, "refused\n")] {
        let mut wanted = command(&["/usr/bin/python3", "-c", script]);
        wanted.memfd_exec = memfd_exec;
        assert_eq!(run(&wanted).text(), says);
    }
}

#[test]
fn a_workload_that_kills_its_way_out_takes_only_itself() {
    let mut wanted = command(&["sh", "-c", "kill -9 -1; kill -9 $$"]);
    wanted.namespaces = Namespaces::default();
    assert_eq!(run(&wanted).status, ExitStatus::Signaled(libc::SIGKILL));
}

#[test]
fn a_script_in_a_listed_directory_cannot_read_beside_it() {
    let outside = scratch("secret");
    let link = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(outside.path(), link.path().join("link")).unwrap();
    let mut wanted = command(&["cat", link.path().join("link").to_str().unwrap()]);
    let files = FileLists {
        read_only: ["/usr", "/lib", "/lib64", "/bin"].map(Into::into).to_vec(),
        read_write: vec![link.path().to_owned()],
    };
    wanted.landlock = Some(LandlockPlan { files: Some(files), ..LandlockPlan::default() });
    let outcome = run(&wanted);
    assert!(outcome.stdout.is_empty() && outcome.stderr.contains("Permission denied"), "{outcome:?}");
}

#[test]
fn segments_and_queues_of_the_host_are_out_of_reach() {
    // The same user id on both sides: without a namespace of its own the workload may open them.
    let key = 0x5_1000 + (std::process::id() & 0xfff) as i32;
    let made = std::process::Command::new("/usr/bin/python3")
        .args(["-c", &format!("import ctypes; print(ctypes.CDLL(None).shmget({key}, 4096, 0o1666))")])
        .output()
        .unwrap();
    let id: i32 = String::from_utf8(made.stdout).unwrap().trim().parse().unwrap();
    let outcomes = [SHARED_PIDS, Namespaces::default()]
        .map(|namespaces| python(&format!("attempt('shmget', {key}, 4096, 0)"), namespaces));
    let removed = std::process::Command::new("ipcrm").args(["-m", &id.to_string()]).status().unwrap();
    assert!(removed.success());
    assert_eq!(outcomes, [["DONE"], ["ENOENT"]]);
}

#[test]
fn tracing_stops_at_another_user_also_inside() {
    // Process 1, the launcher's copy, and a child that became another user.
    let script = "
pid = os.fork()
if pid == 0:
    os.setgid(1234); os.setuid(1234)
    import time; time.sleep(1000)
import time
word = ctypes.create_string_buffer(8)
part = (ctypes.c_uint64 * 2)(ctypes.addressof(word), 8)
while str(1234) not in open(f'/proc/{pid}/status').read(): time.sleep(0.01)
for target in (1, pid):
    attempt('ptrace', 16, target, 0, 0)
    attempt('process_vm_readv', target, part, 1, part, 1, 0)
    attempt(open, f'/proc/{target}/mem', 'rb')
    attempt('syscall', 438, os.pidfd_open(target), 0, 0)
os.kill(pid, 9)";
    let outcome = python(script, Namespaces::default());
    assert_eq!(outcome, ["EPERM", "EPERM", "EACCES", "EPERM"].repeat(2));
}

#[test]
fn an_abandoned_family_of_ways_out_stays_shut() {
    // One known trick for each class of row, by number as shellcode would; what is left out of a row is
    // tried through a neighbour.
    let script = "
import struct
NR = dict(mount=165, clone=56, unshare=272, setns=308, open_tree=428, fsopen=430, mount_setattr=442, bpf=321,
          keyctl=250, open_by_handle_at=304, personality=135, io_uring_setup=425, seccomp=317, ioctl=16)
def call(name, *args): attempt('syscall', NR[name], *args)
for flags in (0x10000000, 0x40000000, 0x20000000, 0x02000000, 0x10000000 | 0x40000000 | 17):
    call('clone', flags, 0, 0, 0, 0)
call('unshare', 0x10000000 | 1 << 40)
call('open_tree', -100, b'/', 1)
call('fsopen', b'tmpfs', 0)
call('mount_setattr', -100, b'/', 0, bytes(32), 32)
call('mount', b'/', b'/mnt', 0, 4096, 0)
call('bpf', 0, bytes(64), 64)
call('keyctl', 1, 0)
call('open_by_handle_at', -100, bytes(16), 0)
call('personality', 0x0400000)
call('ioctl', 0, 0x5412 | 1 << 32, b'x')
attempt(os.mknod, '/tmp/sluice-node', 0o600 | 0o020000, os.makedev(1, 11))
attempt(os.chroot, '/no/such/path')
attempt(open, '/proc/sys/kernel/core_pattern', 'w')
attempt(open, '/proc/1/root/proc/sysrq-trigger', 'w')";
    if cfg!(target_arch = "x86_64") {
        let outcome = python(script, Namespaces::default());
        let expected =
            [["EPERM"; 5].as_slice(), &["EPERM"; 10], &["EPERM", "ENOENT", "EROFS", "EACCES"]].concat();
        assert_eq!(outcome, expected);
    }
}
