//! From clone to execve: the one list of steps, in its order.
//!
//! Unsafe because the child of a multi-threaded launcher may only make system calls: another thread
//! may have held the allocator's lock when the child was made. So nothing here allocates, locks,
//! panics or runs a destructor; all data was laid out by `plan.rs`. Calls that glibc would spread over
//! threads (setresuid and its kin) are made directly.
#![allow(unsafe_code)]

use super::mounts;
use super::plan::{Ids, Plan};
use super::report::{self, Failure, MESSAGE_BYTES, Step};
use crate::filesystem::{LateRule, Prepared};
use crate::privileges::Credentials;
use libc::{c_char, c_int, c_long, c_ulong};
use seccompiler::sock_filter;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::null_mut;

/// A system call's errno.
pub(super) type Done<T = ()> = Result<T, i32>;

/// The exit code of a child that could not confine itself; the report socket has told why.
const NOT_STARTED: c_int = 70;

/// What a workload has to itself beside the network: processes, mounts, and System V and POSIX queues and
/// segments, which otherwise everybody of the same user id may open.
const OWN_NAMESPACES: c_int = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC;

/// Clones the launcher; the clone walks [`confine`] and never returns here. Gives the clone's pid and pidfd.
pub(super) fn clone_and_run(plan: &Plan, report: &OwnedFd, status: &OwnedFd) -> io::Result<(i32, OwnedFd)> {
    let mut pidfd: c_int = -1;
    let namespaces = if plan.is_init { OWN_NAMESPACES } else { 0 };
    let flags = libc::CLONE_PIDFD | namespaces | libc::SIGCHLD;
    // SAFETY: without CLONE_VM and with a null stack this is fork: the child gets a copy of this
    // memory. The third argument is where the kernel writes the pidfd, on both architectures.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            flags as c_ulong,
            null_mut::<u8>(),
            &raw mut pidfd,
            null_mut::<u8>(),
            null_mut::<u8>(),
        )
    };
    match pid {
        0 => {
            let Err(failure) = confine(plan, report.as_raw_fd(), status.as_raw_fd());
            tell(report.as_raw_fd(), failure.step as u32, failure.errno, None).ok();
            exit(NOT_STARTED)
        }
        pid if pid > 0 => {
            // SAFETY: the kernel has just made this descriptor; nothing else owns it.
            Ok((pid as i32, unsafe { OwnedFd::from_raw_fd(pidfd) }))
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// The list. Every step that fails ends it; nothing was executed then.
///
/// Why this order: namespaces and mounts need the privileges that the credentials steps give up; the
/// death signal is cleared by a change of user, so it comes after; Landlock and seccomp need
/// no_new_privs; the filters come last as they refuse calls the steps before them make, and the
/// witness's before the workload's, which refuses any further listener.
fn confine(plan: &Plan, report: RawFd, status: RawFd) -> Result<std::convert::Infallible, Failure> {
    at(Step::Stdio, put_stdio(&plan.stdio))?;
    at(Step::Signals, default_signals())?;
    at(Step::NetworkNamespace, enter_network(plan.netns))?;
    at(Step::SetId, mounts::ignore_set_id(plan.mounts.as_ref()))?;
    at(Step::Mounts, mounts::apply(plan.mounts.as_ref()))?;
    at(Step::CoreLimit, no_core_dumps())?;
    at(Step::BoundingSet, cut_bounding_set(plan.credentials))?;
    at(Step::SecureBits, prctl(libc::PR_SET_SECUREBITS, plan.credentials.securebits.into()))?;
    at(Step::Groups, set_groups(plan.user.as_ref()))?;
    at(Step::Gid, set_gid(plan.user.as_ref()))?;
    at(Step::Uid, set_uid(plan.user.as_ref()))?;
    at(Step::Capabilities, cut_capabilities(plan.credentials))?;
    at(Step::DeathSignal, prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as c_ulong))?;
    at(Step::NoNewPrivs, prctl(libc::PR_SET_NO_NEW_PRIVS, 1))?;
    at(Step::Landlock, restrict_files(&plan.landlock))?;
    at(Step::Directory, enter_directory(plan.cwd.as_deref()))?;
    at(Step::CloseOnExec, close_on_exec())?;
    let listener = at(Step::Witness, plan.witness.as_deref().map(install_witness).transpose())?;
    at(Step::Filter, install_filters(&plan.filters.0))?;
    if plan.is_init {
        at(Step::Init, become_init(status))?;
    }
    at(Step::Session, own_session(plan.foreground))?;
    at(Step::SignalMask, unblock_signals())?;
    at(Step::Report, report_and_wait(report, listener))?;
    at(Step::Exec, execute(plan))
}

fn at<T>(step: Step, done: Done<T>) -> Result<T, Failure> {
    done.map_err(|errno| Failure { step, errno })
}

fn errno() -> i32 {
    // SAFETY: the C library's errno of this thread, always readable.
    unsafe { *libc::__errno_location() }
}

pub(super) fn check(result: c_long) -> Done<c_long> {
    if result < 0 { Err(errno()) } else { Ok(result) }
}

fn prctl(option: c_int, value: c_ulong) -> Done {
    // SAFETY: the options used here take numbers.
    check(unsafe { libc::prctl(option, value, 0 as c_ulong, 0 as c_ulong, 0 as c_ulong) }.into()).map(drop)
}

fn exit(code: c_int) -> ! {
    // SAFETY: ends the process without running handlers of the launcher.
    unsafe { libc::_exit(code) }
}

fn put_stdio(stdio: &[Option<OwnedFd>; 3]) -> Done {
    for (target, fd) in (0..).zip(stdio) {
        if let Some(fd) = fd {
            // SAFETY: numbers only; the source is above 2, so no source is overwritten.
            check(unsafe { libc::dup2(fd.as_raw_fd(), target) }.into())?;
        }
    }
    Ok(())
}

/// Rust ignores SIGPIPE, and ignored signals survive execve. Made directly, as the C library keeps two
/// signals to itself, which whoever started the launcher may have ignored.
fn default_signals() -> Done {
    const LAST: c_int = 64;
    const SIGSET_BYTES: usize = 8;
    // `struct kernel_sigaction` (handler, flags, restorer, mask): all zero is SIG_DFL.
    let default = [0u64; 4];
    for signal in (1..=LAST).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal)) {
        // SAFETY: the kernel reads one structure; SIG_DFL is no function of ours.
        check(unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), null_mut::<u8>(), SIGSET_BYTES)
        })?;
    }
    Ok(())
}

fn enter_network(netns: Option<RawFd>) -> Done {
    let Some(netns) = netns else { return Ok(()) };
    // SAFETY: numbers only; the launcher keeps the descriptor open during the clone.
    check(unsafe { libc::setns(netns, libc::CLONE_NEWNET) }.into()).map(drop)
}

fn no_core_dumps() -> Done {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: reads one structure.
    check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) }.into()).map(drop)
}

fn cut_bounding_set(credentials: Credentials) -> Done {
    const LAST_POSSIBLE: u32 = 63;
    let cleared = prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as c_ulong);
    // Kernels before 4.3 have no ambient set.
    cleared.or_else(|errno| if errno == libc::EINVAL { Ok(()) } else { Err(errno) })?;
    for capability in 0..=LAST_POSSIBLE {
        if credentials.kept & (1 << capability) != 0 {
            continue;
        }
        match prctl(libc::PR_CAPBSET_DROP, capability.into()) {
            // Above the last capability of this kernel.
            Err(libc::EINVAL) => break,
            other => other?,
        }
    }
    Ok(())
}

fn set_groups(user: Option<&Ids>) -> Done {
    let Some(user) = user else { return Ok(()) };
    // SAFETY: the pointer and the count describe one slice.
    check(unsafe { libc::syscall(libc::SYS_setgroups, user.groups.len(), user.groups.as_ptr()) }).map(drop)
}

fn set_gid(user: Option<&Ids>) -> Done {
    let Some(user) = user else { return Ok(()) };
    // SAFETY: numbers only.
    check(unsafe { libc::syscall(libc::SYS_setresgid, user.gid, user.gid, user.gid) }).map(drop)
}

fn set_uid(user: Option<&Ids>) -> Done {
    let Some(user) = user else { return Ok(()) };
    // SAFETY: numbers only.
    check(unsafe { libc::syscall(libc::SYS_setresuid, user.uid, user.uid, user.uid) }).map(drop)
}

/// `struct __user_cap_header_struct` and two `__user_cap_data_struct` of `linux/capability.h`.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: c_int,
}
#[repr(C)]
#[derive(Default)]
struct CapabilityWord {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn cut_capabilities(credentials: Credentials) -> Done {
    const VERSION_3: u32 = 0x2008_0522;
    let mut header = CapabilityHeader { version: VERSION_3, pid: 0 };
    let mut words = [CapabilityWord::default(), CapabilityWord::default()];
    // SAFETY: version 3 reads and writes a header and two words.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, words.as_mut_ptr()) })?;
    for (word, kept) in words.iter_mut().zip([credentials.kept as u32, (credentials.kept >> 32) as u32]) {
        word.permitted &= kept;
        word.effective = word.permitted;
        word.inheritable = 0;
    }
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, words.as_ptr()) }).map(drop)
}

fn restrict_files(landlock: &Prepared) -> Done {
    let Some(ruleset) = &landlock.ruleset else { return Ok(()) };
    for rule in &landlock.late {
        add_rule(ruleset.as_raw_fd(), rule)?;
    }
    // SAFETY: numbers only.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) }).map(drop)
}

/// `struct landlock_path_beneath_attr`.
#[repr(C, packed)]
struct PathBeneath {
    allowed_access: u64,
    parent_fd: i32,
}

/// A path that lies on a mount made a few steps ago.
fn add_rule(ruleset: RawFd, rule: &LateRule) -> Done {
    const LANDLOCK_RULE_PATH_BENEATH: c_int = 1;
    // SAFETY: the path is a C string.
    let fd = check(unsafe { libc::open(rule.path.as_ptr(), libc::O_PATH | libc::O_CLOEXEC) }.into());
    let fd = match fd {
        Err(libc::ENOENT) if rule.skip_missing => return Ok(()),
        other => other? as c_int,
    };
    let attribute = PathBeneath { allowed_access: rule.access, parent_fd: fd };
    // SAFETY: the structure is the kernel's; the descriptor was opened above and is closed below.
    let added = check(unsafe {
        let added = libc::syscall(
            libc::SYS_landlock_add_rule,
            ruleset,
            LANDLOCK_RULE_PATH_BENEATH,
            &raw const attribute,
            0,
        );
        let errno = errno();
        libc::close(fd);
        *libc::__errno_location() = errno;
        added
    });
    added.map(drop)
}

fn enter_directory(cwd: Option<&CStr>) -> Done {
    let Some(cwd) = cwd else { return Ok(()) };
    // SAFETY: a C string.
    check(unsafe { libc::chdir(cwd.as_ptr()) }.into()).map(drop)
}

fn close_on_exec() -> Done {
    const FIRST_AFTER_STDIO: u32 = 3;
    // SAFETY: numbers only.
    check(unsafe {
        libc::syscall(libc::SYS_close_range, FIRST_AFTER_STDIO, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
    })
    .map(drop)
}

/// `struct sock_fprog`.
#[repr(C)]
struct Program {
    length: libc::c_ushort,
    instructions: *const sock_filter,
}

fn set_filter(program: &[sock_filter], flags: c_ulong) -> Done<c_long> {
    let program = Program { length: program.len() as libc::c_ushort, instructions: program.as_ptr() };
    // SAFETY: the kernel copies `length` instructions from a slice that outlives the call.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
    })
}

fn install_filters(programs: &[Vec<sock_filter>]) -> Done {
    for program in programs {
        set_filter(program, 0)?;
    }
    Ok(())
}

fn install_witness(program: &[sock_filter]) -> Done<RawFd> {
    // Once the listener has taken a call, only fatal signals interrupt it: without this a Go or Java
    // program that signals its own threads would restart its connects over and over.
    let wait_killable = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    match set_filter(program, wait_killable) {
        // Linux before 5.19.
        Err(libc::EINVAL) => set_filter(program, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER),
        other => other,
    }
    .map(|fd| fd as RawFd)
}

/// `linux/seccomp.h`; libc does not name it yet.
const SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: c_ulong = 1 << 5;

/// Returns in the workload-to-be. This process stays behind as the sandbox's pid 1: it reaps, passes
/// on how the workload ends, and its own end ends every process of the sandbox.
fn become_init(status: RawFd) -> Done {
    // It is a copy of the launcher's memory: no process of the sandbox may read it.
    prctl(libc::PR_SET_DUMPABLE, 0)?;
    // SAFETY: a plain fork, as in `clone_and_run`.
    let workload = check(unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::SIGCHLD as c_ulong,
            null_mut::<u8>(),
            null_mut::<u8>(),
            null_mut::<u8>(),
            null_mut::<u8>(),
        )
    })?;
    if workload == 0 {
        return Ok(());
    }
    // SAFETY: numbers and a C string; from here on only descriptor 0, the status pipe, is open.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"sluice-init".as_ptr());
        libc::dup2(status, 0);
        libc::syscall(libc::SYS_close_range, 1u32, u32::MAX, 0u32);
    }
    loop {
        let mut ended: c_int = 0;
        // SAFETY: writes one integer.
        let pid = unsafe { libc::waitpid(-1, &raw mut ended, libc::WUNTRACED | libc::__WALL) };
        if c_long::from(pid) == workload {
            let bytes = ended.to_ne_bytes();
            // SAFETY: the slice lives on this stack. A closed pipe means the launcher is gone.
            unsafe { libc::write(0, bytes.as_ptr().cast(), bytes.len()) };
            if !libc::WIFSTOPPED(ended) {
                exit(0)
            }
        }
        if pid < 0 && errno() != libc::EINTR {
            exit(NOT_STARTED)
        }
    }
}

fn own_session(foreground: bool) -> Done {
    if !foreground {
        // SAFETY: no arguments.
        return check(unsafe { libc::setsid() }.into()).map(drop);
    }
    // SAFETY: numbers only. SIGTTOU is still blocked, so a background group may take the terminal.
    unsafe {
        check(libc::setpgid(0, 0).into())?;
        check(libc::tcsetpgrp(0, libc::getpid()).into()).map(drop)
    }
}

fn unblock_signals() -> Done {
    // SAFETY: the set is initialised before use.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        check(libc::sigprocmask(libc::SIG_UNBLOCK, &raw const all, null_mut()).into()).map(drop)
    }
}

fn report_and_wait(report: RawFd, listener: Option<RawFd>) -> Done {
    tell(report, 0, 0, listener)?;
    let mut answer = [0u8; 1];
    // SAFETY: the buffer lives on this stack.
    match check(unsafe { libc::recv(report, answer.as_mut_ptr().cast(), answer.len(), 0) } as c_long)? {
        // The launcher is gone.
        0 => exit(NOT_STARTED),
        _ => Ok(()),
    }
}

/// One datagram, with a descriptor when there is one.
fn tell(report: RawFd, step: u32, errno: i32, fd: Option<RawFd>) -> Done {
    let mut message: [u8; MESSAGE_BYTES] = report::encode(step, errno);
    let mut part = libc::iovec { iov_base: message.as_mut_ptr().cast(), iov_len: message.len() };
    // Eight-byte words keep the control message aligned; one descriptor needs 24 bytes.
    let mut control = [0u64; 4];
    // SAFETY: all pointers are to this stack; CMSG_FIRSTHDR is within `control`, which holds
    // CMSG_SPACE(4) bytes.
    unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        if let Some(fd) = fd {
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = libc::CMSG_SPACE(size_of::<RawFd>() as u32) as _;
            let first = libc::CMSG_FIRSTHDR(&raw const header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(size_of::<RawFd>() as u32) as _;
            libc::CMSG_DATA(first).cast::<RawFd>().write_unaligned(fd);
        }
        check(libc::sendmsg(report, &raw const header, libc::MSG_NOSIGNAL) as c_long).map(drop)
    }
}

/// Tries each candidate as execvp does: go on when it is not there, remember when it may not be run.
fn execute(plan: &Plan) -> Done<std::convert::Infallible> {
    let mut answer = libc::ENOENT;
    for path in &plan.candidates {
        match execve(path, plan.argv.as_ptr(), plan.envp.as_ptr()) {
            libc::EACCES => answer = libc::EACCES,
            libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENAMETOOLONG => {}
            other => return Err(other),
        }
    }
    Err(answer)
}

fn execve(path: &CString, argv: *const *const c_char, envp: *const *const c_char) -> i32 {
    // SAFETY: null-terminated arrays of C strings, owned by the plan.
    unsafe { libc::execve(path.as_ptr(), argv, envp) };
    errno()
}
