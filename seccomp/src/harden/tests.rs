//! The lists both ways: every call of every kind on both architectures by interpreter, and in the kernel.
#![allow(unsafe_code)]

use super::calls::{ROWS, Row, compile_for};
use super::*;
use crate::filter::architectures::{AUDIT_AARCH64, AUDIT_X86_64, answer, is_free, on_aarch64, on_x86_64};
use crate::filter::{HIGHEST_KNOWN_CALL, Op};
use seccompiler::{SeccompAction, TargetArch};
use std::collections::HashSet;

#[test]
fn rows_say_why_and_number_the_call_they_name() {
    let native = if cfg!(target_arch = "x86_64") { on_x86_64 } else { on_aarch64 };
    for row in ROWS {
        assert_eq!(native(row.name), Some(row.syscall), "{}", row.name);
        assert!(!row.why.is_empty() && !row.roles.is_empty(), "{}", row.name);
    }
}

/// Arguments that a group of conditions takes, and some that it does not.
fn arguments(row: &Row) -> (Vec<[i64; 6]>, Vec<[i64; 6]>) {
    const OTHERS: [i64; 6] = [0x7f77_7777; 6];
    let taken = row.when.iter().map(|group| {
        let mut args = OTHERS;
        for arg in *group {
            args[usize::from(arg.index)] = match arg.op {
                Op::Eq | Op::Masked(_) => i64::from(arg.value),
                Op::Ne => i64::from(arg.value) + 1,
            };
        }
        args
    });
    if row.when.is_empty() { (vec![OTHERS], vec![]) } else { (taken.collect(), vec![OTHERS]) }
}

#[test]
fn each_kind_may_make_the_calls_of_its_rows_and_no_others() {
    let (allow, kill) = (libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_KILL_PROCESS);
    for (arch, audit, number) in [
        (TargetArch::x86_64, AUDIT_X86_64, on_x86_64 as fn(&str) -> Option<i64>),
        (TargetArch::aarch64, AUDIT_AARCH64, on_aarch64),
    ] {
        for role in Role::ALL {
            let of_row = |row: &Row| number(row.name);
            let program = [compile_for(*role, SeccompAction::KillProcess, arch, of_row).unwrap()];
            let mut listed = HashSet::new();
            for row in ROWS.iter().filter(|row| row.roles.contains(role)) {
                let Some(call) = number(row.name) else { continue };
                listed.insert(call);
                let (taken, refused) = arguments(row);
                for args in taken {
                    assert_eq!(
                        answer(&program, audit, (call, args)),
                        allow,
                        "{role:?} {} {args:?}",
                        row.name
                    );
                }
                for args in refused {
                    assert_eq!(answer(&program, audit, (call, args)), kill, "{role:?} {} {args:?}", row.name);
                }
            }
            for call in (0..=i64::from(HIGHEST_KNOWN_CALL) + 100).filter(|call| !listed.contains(call)) {
                assert_eq!(answer(&program, audit, (call, [0; 6])), kill, "{role:?} {call}");
            }
        }
    }
}

#[test]
fn of_a_workers_calls_only_those_with_a_condition_on_arguments_are_looked_at() {
    let number = if cfg!(target_arch = "x86_64") { on_x86_64 } else { on_aarch64 };
    let native = if cfg!(target_arch = "x86_64") { AUDIT_X86_64 } else { AUDIT_AARCH64 };
    let programs = calls::compile(Role::Worker, Mode::Enforce).unwrap();
    let of_worker = ROWS.iter().filter(|row| row.roles.contains(&Role::Worker));
    let costly: HashSet<_> = of_worker
        .map(|row| row.name)
        .filter(|name| !is_free(&programs, native, number(name).unwrap()))
        .collect();
    // Of these a tunnel makes one: the socket it dials from.
    assert_eq!(costly, HashSet::from(["mmap", "mprotect", "fcntl", "socket", "openat", "prlimit64"]));
}

#[test]
fn no_kind_runs_programs_makes_processes_or_changes_the_machine() {
    for name in [
        "execve",
        "execveat",
        "clone",
        "clone3",
        "fork",
        "vfork",
        "ptrace",
        "mount",
        "umount2",
        "setns",
        "unshare",
        "unlinkat",
        "renameat2",
        "mkdirat",
        "linkat",
        "symlinkat",
        "fchmodat",
        "fchownat",
        "kill",
        "tgkill",
        "pidfd_send_signal",
        "bpf",
        "perf_event_open",
        "init_module",
        "io_uring_setup",
        "io_uring_register",
        "listen",
        "process_vm_writev",
        "setuid",
        "capset",
        "prctl",
        "seccomp",
        "keyctl",
    ] {
        assert!(ROWS.iter().all(|row| row.name != name), "{name}");
    }
}

/// How a forked child ends that runs `work` on a thread of its own.
fn in_child(mode: Mode, work: fn() -> i32) -> i32 {
    // SAFETY: the child runs one thread; glibc keeps the allocator usable over fork.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0);
        if pid == 0 {
            let done = process(mode).map(|()| std::thread::spawn(work).join().unwrap_or(250));
            libc::_exit(done.unwrap_or(251));
        }
        let mut status = 0;
        libc::waitpid(pid, &raw mut status, 0);
        if libc::WIFSIGNALED(status) { 1000 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
    }
}

/// A call outside every list; its errno, and the count it was put on.
fn a_forbidden_call() -> i32 {
    // SAFETY: a name that does not exist.
    let errno = unsafe {
        libc::unlinkat(libc::AT_FDCWD, c"/no/such/path".as_ptr(), 0);
        *libc::__errno_location()
    };
    let counted = refused() == [(libc::SYS_unlinkat as usize, 1)];
    if counted { errno } else { 200 + errno }
}

#[test]
fn a_call_outside_the_list_fails_and_is_counted() {
    for role in Role::ALL {
        let body: fn() -> i32 = match role {
            Role::Worker => || enter(Role::Worker, &[]).map_or(240, |()| a_forbidden_call()),
            Role::BypassCore => || enter(Role::BypassCore, &[]).map_or(240, |()| a_forbidden_call()),
            Role::Errands => || enter(Role::Errands, &[]).map_or(240, |()| a_forbidden_call()),
            Role::Scanner => || enter(Role::Scanner, &[]).map_or(240, |()| a_forbidden_call()),
            Role::Hashing => || enter(Role::Hashing, &[]).map_or(240, |()| a_forbidden_call()),
            Role::Events => || enter(Role::Events, &["/tmp".as_ref()]).map_or(240, |()| a_forbidden_call()),
            Role::Signer => || enter(Role::Signer, &[]).map_or(240, |()| a_forbidden_call()),
            Role::Witness => || enter(Role::Witness, &[]).map_or(240, |()| a_forbidden_call()),
        };
        assert_eq!(in_child(Mode::Enforce, body), libc::EPERM, "{role:?}");
        assert_eq!(in_child(Mode::Strict, body), 1000 + libc::SIGSYS, "{role:?} in strict mode");
        assert_eq!(in_child(Mode::Off, body), 200 + libc::ENOENT, "{role:?} unconfined");
    }
}

#[test]
fn a_worker_holds_what_its_row_says_and_still_reads_other_users_processes() {
    let held = in_child(Mode::Enforce, || {
        let tid = nix::unistd::gettid().as_raw().unsigned_abs();
        let own = || {
            let status = std::fs::read_to_string("/proc/thread-self/status").ok()?;
            held::parse(std::process::id(), tid, &status)
        };
        let before = own().map_or(0, |held| held.capabilities);
        let readable = std::fs::read_link("/proc/1/exe").is_ok();
        if enter(Role::Worker, &[]).is_err() {
            return 240;
        }
        let Some(own) = own() else { return 241 };
        let row = Role::Worker.holding().capabilities.iter().fold(0, |set, kept| set | 1u64 << kept.number);
        let right = own.capabilities == before & row && own.files_as == 65_534 && own.filters == 1;
        let reads = std::fs::read_link("/proc/1/exe").is_ok() == readable;
        // Root's file, which nobody may not write; asked for reading it can be had.
        let writes = std::fs::OpenOptions::new().append(true).open("/etc/passwd").is_ok();
        i32::from(!(right && own.no_new_privileges && reads && !writes))
    });
    assert_eq!(held, 0);
}

#[test]
fn the_events_writer_is_held_to_its_directory() {
    let left = in_child(Mode::Enforce, || {
        let directory = std::env::temp_dir();
        if enter(Role::Events, &[&directory]).is_err() {
            return 240;
        }
        let inside = std::fs::File::open(directory.join(".")).is_ok();
        let outside = std::fs::File::open("/etc/passwd").is_ok();
        i32::from(!inside || outside)
    });
    assert_eq!(left, 0);
}
