//! The allow-lists: which system calls each kind of thread makes, and with which arguments.
//!
//! One row, one call: name, kinds, argument test, why. Whatever is not here is refused. The lists were
//! drawn up from traces of the tests, and the tests run under them in strict mode.

use super::Mode;
use super::table::Role::{self, BypassCore, Errands, Events, Hashing, Scanner, Witness, Worker};
use crate::filter::{Arg, Op};
use seccompiler::{BackendError, BpfProgram, SeccompAction, SeccompFilter, SeccompRule, TargetArch};
use std::collections::BTreeMap;

/// One call that some kinds of thread make.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(test), allow(dead_code, reason = "names and reasons are read by people, and held by tests"))]
pub(super) struct Row {
    /// The call's name.
    pub(super) name: &'static str,
    /// Its number on this architecture.
    pub(super) syscall: i64,
    /// Who makes it.
    pub(super) roles: &'static [Role],
    /// Allowed when all conditions of any of these groups hold; no group at all: always.
    pub(super) when: &'static [&'static [Arg]],
    /// What for.
    pub(super) why: &'static str,
}

const fn eq(index: u8, value: i32) -> Arg {
    Arg { index, op: Op::Eq, value: value as u32 }
}
const fn lacks(index: u8, flags: i32) -> Arg {
    Arg { index, op: Op::Masked(flags as u32), value: 0 }
}

const fn row(
    name: &'static str,
    syscall: i64,
    roles: &'static [Role],
    when: &'static [&'static [Arg]],
    why: &'static str,
) -> Row {
    Row { name, syscall, roles, when, why }
}

const ALL: &[Role] = Role::ALL;
/// Who reads `/proc`.
const NAMING: &[Role] = &[Worker, BypassCore, Errands, Scanner, Hashing, Witness];
/// Who runs a ring.
const RINGS: &[Role] = &[Worker, BypassCore];
/// Who has sockets.
const SOCKETS: &[Role] = &[Worker, BypassCore, Errands, Scanner, Witness];
const ALWAYS: &[&[Arg]] = &[];

const NOT_EXECUTABLE: &[&[Arg]] = &[&[lacks(2, libc::PROT_EXEC)]];
/// Reading: neither access for writing, nor creation, nor truncation.
const FOR_READING: &[&[Arg]] =
    &[&[lacks(2, libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC | libc::O_APPEND)]];
/// Connections to origins: TCP over IPv4 and IPv6; and nothing else.
const STREAMS: &[&[Arg]] = &[&[eq(0, libc::AF_INET), eq(1, STREAM)], &[eq(0, libc::AF_INET6), eq(1, STREAM)]];
const STREAM: i32 = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
/// Netlink to netfilter, and to no other family.
const NETFILTER: &[&[Arg]] = &[&[eq(0, libc::AF_NETLINK), eq(2, libc::NETLINK_NETFILTER)]];
/// Of this process, and reading: no new limit is given.
const OWN_LIMITS: &[&[Arg]] = &[&[eq(0, 0), eq(2, 0)]];
const DESCRIPTOR_FLAGS: &[&[Arg]] = &[
    &[eq(1, libc::F_GETFD)],
    &[eq(1, libc::F_SETFD)],
    &[eq(1, libc::F_GETFL)],
    &[eq(1, libc::F_SETFL)],
    &[eq(1, libc::F_DUPFD_CLOEXEC)],
    &[eq(1, libc::F_SETPIPE_SZ)],
    &[eq(1, libc::F_GETPIPE_SZ)],
    &[eq(1, libc::F_GET_SEALS)],
];

/// The table.
#[rustfmt::skip] // one row, one call: the columns are read downwards
pub(super) const ROWS: &[Row] = &[
    // Memory, threads, time: the allocator's, the standard library's and the runtimes'.
    row("mmap", libc::SYS_mmap, ALL, NOT_EXECUTABLE, "memory, never executable"),
    row("mprotect", libc::SYS_mprotect, ALL, NOT_EXECUTABLE, "memory, never executable"),
    row("munmap", libc::SYS_munmap, ALL, ALWAYS, "memory"),
    row("mremap", libc::SYS_mremap, ALL, ALWAYS, "memory"),
    row("madvise", libc::SYS_madvise, ALL, ALWAYS, "memory given back"),
    row("brk", libc::SYS_brk, ALL, ALWAYS, "memory"),
    row("futex", libc::SYS_futex, ALL, ALWAYS, "locks, channels"),
    row("sched_yield", libc::SYS_sched_yield, ALL, ALWAYS, "locks, channels"),
    row("sched_getaffinity", libc::SYS_sched_getaffinity, ALL, ALWAYS, "the C library asks for its stack's bounds so"),
    row("gettid", libc::SYS_gettid, ALL, ALWAYS, "panics name their thread"),
    row("getpid", libc::SYS_getpid, ALL, ALWAYS, "identity: never one of our own threads"),
    row("rt_sigprocmask", libc::SYS_rt_sigprocmask, ALL, ALWAYS, "a thread's end"),
    row("rt_sigreturn", libc::SYS_rt_sigreturn, ALL, ALWAYS, "the handler that counts refused calls"),
    row("sigaltstack", libc::SYS_sigaltstack, ALL, ALWAYS, "a thread's end"),
    row("set_robust_list", libc::SYS_set_robust_list, ALL, ALWAYS, "threads"),
    row("rseq", libc::SYS_rseq, ALL, ALWAYS, "threads"),
    row("exit", libc::SYS_exit, ALL, ALWAYS, "a thread's end"),
    row("exit_group", libc::SYS_exit_group, ALL, ALWAYS, "the process's end"),
    row("clock_gettime", libc::SYS_clock_gettime, ALL, ALWAYS, "where the vDSO cannot answer"),
    row("clock_nanosleep", libc::SYS_clock_nanosleep, ALL, ALWAYS, "pauses"),
    row("restart_syscall", libc::SYS_restart_syscall, ALL, ALWAYS, "a stopped wait goes on"),
    row("getrandom", libc::SYS_getrandom, ALL, ALWAYS, "hash seeds, keys"),
    row("write", libc::SYS_write, ALL, ALWAYS, "logs, events, wake-ups"),
    row("writev", libc::SYS_writev, ALL, ALWAYS, "logs, events"),
    row("read", libc::SYS_read, ALL, ALWAYS, "wake-ups, /proc, the kernel's log"),
    row("close", libc::SYS_close, ALL, ALWAYS, "every descriptor"),
    row("fcntl", libc::SYS_fcntl, ALL, DESCRIPTOR_FLAGS, "flags and duplicates; the size of a pipe"),
    row("fstat", libc::SYS_fstat, ALL, ALWAYS, "what a descriptor is"),
    row("statx", libc::SYS_statx, ALL, ALWAYS, "what a descriptor is"),
    row("lseek", libc::SYS_lseek, ALL, ALWAYS, "the size of what is read"),

    // Connections.
    row("io_uring_enter", libc::SYS_io_uring_enter, RINGS, ALWAYS, "the runtime; a worker's ring takes a list of operations alone"),
    row("accept4", libc::SYS_accept4, &[Worker], ALWAYS, "clients"),
    row("socket", libc::SYS_socket, &[Worker], STREAMS, "TCP to origins, and no other kind"),
    row("socket", libc::SYS_socket, &[BypassCore], NETFILTER, "the fences' counters, and NFLOG"),
    row("connect", libc::SYS_connect, &[Worker], ALWAYS, "origins"),
    row("recvfrom", libc::SYS_recvfrom, SOCKETS, ALWAYS, "bytes; sock_diag's answers"),
    row("sendto", libc::SYS_sendto, ALL, ALWAYS, "bytes; questions to sock_diag; waking a worker with an answer"),
    row("recvmsg", libc::SYS_recvmsg, SOCKETS, ALWAYS, "bytes; sock_diag's answers"),
    row("sendmsg", libc::SYS_sendmsg, SOCKETS, ALWAYS, "bytes; questions to sock_diag"),
    row("getsockname", libc::SYS_getsockname, SOCKETS, ALWAYS, "which listener was asked; a caller's port"),
    row("getpeername", libc::SYS_getpeername, SOCKETS, ALWAYS, "who asks"),
    row("getsockopt", libc::SYS_getsockopt, SOCKETS, ALWAYS, "how a connect went; a caller's protocol"),
    row("setsockopt", libc::SYS_setsockopt, &[Worker, BypassCore], ALWAYS, "no delay, keep-alive, linger; strict netlink answers and their buffers"),
    row("shutdown", libc::SYS_shutdown, &[Worker], ALWAYS, "half-closed tunnels"),
    row("splice", libc::SYS_splice, &[Worker], ALWAYS, "bulk"),
    row("pipe2", libc::SYS_pipe2, &[Worker], ALWAYS, "bulk"),
    row("ppoll", libc::SYS_ppoll, &[Worker, BypassCore, Witness], ALWAYS, "readiness"),
    #[cfg(target_arch = "x86_64")]
    row("poll", libc::SYS_poll, &[Worker, BypassCore, Witness], ALWAYS, "readiness"),

    // The bypass core's second runtime.
    #[cfg(target_arch = "x86_64")]
    row("epoll_wait", libc::SYS_epoll_wait, &[BypassCore], ALWAYS, "tokio"),
    row("epoll_pwait", libc::SYS_epoll_pwait, &[BypassCore], ALWAYS, "tokio"),
    row("epoll_ctl", libc::SYS_epoll_ctl, &[BypassCore], ALWAYS, "tokio"),
    row("timerfd_settime", libc::SYS_timerfd_settime, &[BypassCore], ALWAYS, "waking for a record that is due"),

    // Naming processes, all of it reading.
    row("openat", libc::SYS_openat, NAMING, FOR_READING, "/proc"),
    row("openat2", libc::SYS_openat2, NAMING, ALWAYS, "programs below a sandbox's root; its flags are behind a pointer, so the user id for files must hold it to reading"),
    #[cfg(target_arch = "x86_64")]
    row("readlink", libc::SYS_readlink, NAMING, ALWAYS, "/proc/<pid>/exe"),
    row("readlinkat", libc::SYS_readlinkat, NAMING, ALWAYS, "/proc/<pid>/exe and /proc/<pid>/fd"),
    row("newfstatat", libc::SYS_newfstatat, NAMING, ALWAYS, "which file runs"),
    row("getdents64", libc::SYS_getdents64, NAMING, ALWAYS, "processes, threads, descriptors"),
    row("prlimit64", libc::SYS_prlimit64, NAMING, OWN_LIMITS, "how many descriptors a search may hold"),
    row("pread64", libc::SYS_pread64, NAMING, ALWAYS, "/proc and programs"),

    // The witness.
    row("ioctl", libc::SYS_ioctl, &[Witness, BypassCore], ALWAYS, "the seccomp listener, pidfds"),
    row("process_vm_readv", libc::SYS_process_vm_readv, &[Witness], ALWAYS, "the address a caller connects to"),
    row("pidfd_open", libc::SYS_pidfd_open, &[Witness], ALWAYS, "a caller that cannot come to mean another"),
    row("pidfd_getfd", libc::SYS_pidfd_getfd, &[Witness], ALWAYS, "a caller's socket"),
    row("bind", libc::SYS_bind, &[Witness, BypassCore], ALWAYS, "the port a caller connects from; the netlink sockets of the fences' counters"),

    // The events file, opened anew after log rotation.
    row("openat", libc::SYS_openat, &[Events], ALWAYS, "the file, which Landlock holds to its directory"),
];

/// The programs for one kind of thread.
pub(super) fn compile(role: Role, mode: Mode) -> Result<Vec<BpfProgram>, BackendError> {
    let otherwise = if mode == Mode::Strict { SeccompAction::KillProcess } else { SeccompAction::Trap };
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    compile_for(role, otherwise, arch, |row| Some(row.syscall)).map(|program| vec![program])
}

/// For an architecture of which `number` knows the calls.
pub(super) fn compile_for(
    role: Role,
    otherwise: SeccompAction,
    arch: TargetArch,
    number: impl Fn(&Row) -> Option<i64>,
) -> Result<BpfProgram, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for row in ROWS.iter().filter(|row| row.roles.contains(&role)) {
        let Some(syscall) = number(row) else { continue };
        let of_call = rules.entry(syscall).or_default();
        for group in row.when {
            let conditions = group.iter().map(crate::filter::condition).collect::<Result<_, _>>()?;
            of_call.push(SeccompRule::new(conditions)?);
        }
    }
    SeccompFilter::new(rules, otherwise, SeccompAction::Allow, arch)?.try_into()
}
