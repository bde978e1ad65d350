//! Every row both ways, in forked children, as root: the refused form gets the row's errno although the
//! kernel would have answered otherwise; the neighbouring form gets what it gets without a filter.
//!
//! The calls are chosen to do nothing where no filter stops them: bad descriptors, bad magic, missing
//! paths.
#![allow(unsafe_code)]

use super::*;
use std::collections::HashSet;
use std::ffi::CStr;

/// A call's number and its arguments.
pub(super) type Call = (i64, [i64; 6]);

/// What a row is held against.
pub(super) struct Case {
    pub(super) row: &'static str,
    /// Refused by the row; without a filter each gets another answer.
    pub(super) refused: Vec<Call>,
    /// Refused by the row; what this kernel would answer depends on its modules.
    pub(super) also_refused: Vec<Call>,
    /// Let through.
    pub(super) allowed: Vec<Call>,
}

fn call(number: i64, args: &[i64]) -> Call {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    (number, all)
}

/// A call that the row refuses whatever its arguments.
fn always(row: &'static str, args: &[i64]) -> Case {
    let number = ROWS.iter().find(|known| known.name == row).expect(row).syscall;
    Case { row, refused: vec![call(number, args)], also_refused: vec![], allowed: vec![] }
}

fn case(row: &'static str, number: i64, refused: &[&[i64]], allowed: &[&[i64]]) -> Case {
    let calls = |all: &[&[i64]]| all.iter().map(|args| call(number, args)).collect();
    Case { row, refused: calls(refused), also_refused: vec![], allowed: calls(allowed) }
}

fn text(text: &'static CStr) -> i64 {
    text.as_ptr() as i64
}

#[rustfmt::skip] // one row, one case
pub(super) fn cases() -> Vec<Case> {
    const BAD: i64 = -1;
    const NOBODY: i64 = 0x7fff_fff0;
    const HIGH_BITS: i64 = 1 << 40;
    let missing = text(c"/no/such/path");
    let sock = libc::SYS_socket;
    let [unix, inet, inet6, netlink] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK].map(i64::from);
    let [stream, dgram, raw] = [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_RAW].map(i64::from);
    let (packet_type, cloexec) = (10, i64::from(libc::SOCK_CLOEXEC));
    let (audit, netfilter) = (i64::from(libc::NETLINK_AUDIT), i64::from(libc::NETLINK_NETFILTER));
    let packet = i64::from(libc::AF_PACKET);
    let other_families = [31, 38, 40, 44, 30, 41, 21, 43, 29, 15, 0, 45, 999].map(|family| call(sock, &[family, raw, 0]));
    let namespaces = [0x2_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000, 0x200_0000];
    // Without CLONE_VM this is an error, so no test clones.
    let sighand = i64::from(libc::CLONE_SIGHAND);
    let clones: Vec<_> = namespaces.iter().map(|flag| call(libc::SYS_clone, &[flag | sighand])).collect();
    let unshares: Vec<_> = namespaces.iter().map(|flag| call(libc::SYS_unshare, &[*flag])).collect();
    let (tiocsti, tioclinux, tiocsetd) = (0x5412, 0x541c, 0x5423);
    let ioctl = |row, request: i64| {
        case(row, libc::SYS_ioctl, &[&[BAD, request], &[BAD, request | HIGH_BITS]], &[&[BAD, 0x5401]])
    };
    vec![
        Case {
            also_refused: other_families.to_vec(),
            ..case("socket: family", sock, &[&[packet, raw, 0], &[packet | HIGH_BITS, raw, 0]],
                &[&[unix, stream, 0], &[unix, dgram | cloexec, 0], &[inet, stream, 0], &[inet, stream | cloexec, 6],
                  &[inet6, dgram, 17], &[inet6, stream, 0], &[netlink, raw, 0]])
        },
        case("socketpair: family", libc::SYS_socketpair, &[&[packet, dgram, 0, 8]], &[&[unix, stream, 0, 8]]),
        case("socket: raw inet", sock,
            &[&[inet, raw, 1], &[inet, raw | cloexec, 255], &[inet6, raw, 58], &[inet, raw | HIGH_BITS, 1]],
            &[&[unix, raw, 0], &[netlink, raw, 0], &[inet, dgram, 1]]),
        case("socket: packet", sock, &[&[inet, packet_type, 0x300], &[unix, packet_type, 0]], &[&[inet, stream, 0]]),
        case("socket: inet protocol", sock, &[&[inet, dgram, 136], &[inet6, dgram, 136]],
            &[&[inet, stream, 262], &[inet, dgram, 17], &[inet6, dgram, 58], &[unix, stream, 0]]).and_refused(vec![
                call(sock, &[inet, stream, 132]), call(sock, &[inet, 6, 33]), call(sock, &[inet, dgram, 115]), call(sock, &[inet, stream, 256]),
            ]),
        case("socket: inet type", sock, &[&[inet, 5, 0], &[inet6, 5 | cloexec, 0], &[inet, 4, 0], &[inet6, 4, 0], &[inet | HIGH_BITS, 5 | HIGH_BITS, 0]],
            &[&[inet, stream, 0], &[inet6, dgram, 0], &[unix, 5, 0]]).and_refused(vec![
                call(sock, &[inet, 6, 0]), call(sock, &[inet6, 6, 0]), call(sock, &[inet, 5, 132]),
            ]),
        case("socket: netlink protocol", sock, &[&[netlink, raw, netfilter], &[netlink, dgram, 16]], &[&[netlink, raw, 0], &[netlink, dgram, 0]])
            .and_refused(vec![call(sock, &[netlink, raw, audit])]),
        case("socket: netlink", sock, &[&[netlink, raw, 0], &[netlink, dgram, 16]], &[&[unix, stream, 0]]),
        always("io_uring_setup", &[0, 0]),
        always("io_uring_enter", &[BAD]),
        always("io_uring_register", &[BAD]),
        always("setns", &[BAD, 0]),
        Case { row: "unshare: namespaces", refused: unshares, also_refused: vec![], allowed: vec![call(libc::SYS_unshare, &[i64::from(libc::CLONE_FILES)])] },
        case("unshare: time", libc::SYS_unshare, &[&[0x80]], &[&[i64::from(libc::CLONE_FS)]]),
        Case { row: "clone: namespaces", refused: clones, also_refused: vec![], allowed: vec![call(libc::SYS_clone, &[sighand])] },
        always("clone3", &[0, 0]),
        case("seccomp: listener", libc::SYS_seccomp, &[&[1, 8, 0], &[1, 8 | 1 << 5, 0], &[1 | HIGH_BITS, 8 | HIGH_BITS, 0]],
            &[&[1, 0, 0], &[1, 1, 0], &[2, 8, 0]]),
        ioctl("ioctl: TIOCSTI", tiocsti),
        ioctl("ioctl: TIOCLINUX", tioclinux),
        ioctl("ioctl: TIOCSETD", tiocsetd),
        always("ptrace", &[16, NOBODY]),
        always("process_vm_readv", &[NOBODY, 8, 1, 8, 1, 0]),
        always("process_vm_writev", &[NOBODY, 8, 1, 8, 1, 0]),
        always("pidfd_getfd", &[BAD]),
        always("kcmp", &[NOBODY, NOBODY]),
        always("bpf", &[0xffff, 0, 0]),
        always("perf_event_open", &[0, 0, 0, BAD, 0]),
        always("userfaultfd", &[0xffff_ffff]),
        always("keyctl", &[0xffff]),
        always("add_key", &[0]),
        always("request_key", &[0]),
        always("init_module", &[0, 0, 0]),
        always("finit_module", &[BAD, 0, 0xffff]),
        always("delete_module", &[0, 0]),
        always("kexec_load", &[0, 0, 0, 0xffff_ffff]),
        always("kexec_file_load", &[BAD, BAD, 0, 0, 0xffff_ffff]),
        always("reboot", &[0, 0, 0, 0]),
        always("syslog", &[10]),
        always("lookup_dcookie", &[0, 0, 0]),
        always("vhangup", &[]),
        always("acct", &[missing]),
        always("swapon", &[missing, 0]),
        always("swapoff", &[missing]),
        always("quotactl", &[0xff, 0, 0, 0]),
        always("quotactl_fd", &[0xffff_ffff, 0xff, 0, 0]),
        always("settimeofday", &[8, 0]),
        always("clock_settime", &[9999, 8]),
        case("clock_adjtime: device", libc::SYS_clock_adjtime, &[&[-5, 8], &[0xffff_fffb, 8]], &[&[0, 8], &[1, 8]]),
        always("sethostname", &[0, BAD]),
        always("setdomainname", &[0, BAD]),
        case("personality", libc::SYS_personality, &[&[0x40_0000], &[0x10_0000], &[0x44_0000]],
            &[&[0xffff_ffff], &[0], &[0x4_0000], &[8], &[0x2_0000]]),
        #[cfg(target_arch = "x86_64")]
        always("modify_ldt", &[0, 0, 0]),
        #[cfg(target_arch = "x86_64")]
        always("uselib", &[missing]),
        #[cfg(target_arch = "x86_64")]
        always("iopl", &[4]),
        #[cfg(target_arch = "x86_64")]
        always("ioperm", &[0xffff_ffff, 1, 0]),
        always("mount", &[0, 0, 0, 0, 0]),
        always("umount2", &[missing, 0]),
        always("pivot_root", &[missing, missing]),
        always("open_tree", &[BAD, missing, 0]),
        always("open_tree_attr", &[BAD, missing, 0, 0, 0]),
        always("move_mount", &[BAD, missing, BAD, missing, 0xffff_ffff]),
        always("fsopen", &[0, 0xffff_ffff]),
        always("fsconfig", &[BAD, 0xffff, 0, 0, 0]),
        always("fsmount", &[BAD, 0, 0]),
        always("fspick", &[BAD, missing, 0]),
        always("mount_setattr", &[BAD, missing, 0, 0, 0]),
        always("open_by_handle_at", &[BAD, 0, 0]),
        case("memfd_create: executable", libc::SYS_memfd_create, &[&[text(c"x"), 0], &[text(c"x"), 0x10], &[text(c"x"), 1]], &[&[text(c"x"), 8], &[text(c"x"), 9]]),
    ]
}

impl Case {
    fn and_refused(self, also_refused: Vec<Call>) -> Self {
        Self { also_refused, ..self }
    }
}

/// Options under which the row is part of the filter, and ones under which it is not.
pub(super) fn with_and_without(on: On) -> (FilterOptions, Option<FilterOptions>) {
    let usual = FilterOptions::default();
    match on {
        On::Always => (usual, None),
        On::NetlinkRoute => (usual, Some(FilterOptions { netlink: Netlink::All, ..usual })),
        On::NetlinkDeny => (
            FilterOptions { netlink: Netlink::Deny, ..usual },
            Some(FilterOptions { netlink: Netlink::All, ..usual }),
        ),
        On::MemfdExecOff => (FilterOptions { memfd_exec: false, ..usual }, Some(usual)),
        On::TracingOff => (FilterOptions { tracing: false, ..usual }, Some(usual)),
    }
}

/// How a forked child that made one call ended: its errno (0 when it succeeded), or the signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Errno(i32),
    Killed(i32),
}

fn in_child(programs: &Programs, body: impl FnOnce() -> i32) -> Answer {
    // SAFETY: the child makes system calls and ends; it neither allocates nor unwinds.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
        if pid == 0 {
            // No controlling terminal that a call could hang up.
            libc::setsid();
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            for program in &programs.0 {
                let program = libc::sock_fprog {
                    len: program.len() as u16,
                    filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut(),
                };
                if libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) != 0
                {
                    libc::_exit(255);
                }
            }
            libc::_exit(body());
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
        if libc::WIFSIGNALED(status) {
            Answer::Killed(libc::WTERMSIG(status))
        } else {
            Answer::Errno(libc::WEXITSTATUS(status))
        }
    }
}

fn answer(programs: &Programs, (number, args): Call) -> Answer {
    // Scratch for socketpair, which writes: the address 8 in a case stands for it.
    let mut scratch = [0i64; 8];
    let at = scratch.as_mut_ptr() as i64;
    let [a0, a1, a2, a3, a4, a5] =
        args.map(|value| if value == 8 && number == libc::SYS_socketpair { at } else { value });
    in_child(programs, || {
        // SAFETY: the calls of this file's cases, which do nothing.
        let result = unsafe { libc::syscall(number, a0, a1, a2, a3, a4, a5) };
        // SAFETY: this thread's errno.
        if result == -1 { unsafe { *libc::__errno_location() } } else { 0 }
    })
}

fn no_filter() -> Programs {
    Programs(Vec::new())
}

#[test]
fn every_row_is_tested() {
    let rows: HashSet<_> = ROWS.iter().map(|row| row.name).collect();
    let tested: HashSet<_> = cases().iter().map(|case| case.row).collect();
    assert_eq!(rows.symmetric_difference(&tested).collect::<Vec<_>>(), Vec::<&&str>::new());
    for case in cases() {
        let row = ROWS.iter().find(|row| row.name == case.row).unwrap();
        assert!(
            row.when.is_empty() || !case.allowed.is_empty(),
            "{}: a row with a test needs an allowed form",
            row.name
        );
    }
}

#[test]
fn the_refused_form_of_every_row_gets_its_errno_and_only_from_the_filter() {
    for case in cases() {
        let row = ROWS.iter().find(|row| row.name == case.row).unwrap();
        let (with, without) = with_and_without(row.on);
        let (with, without) = (compile(&with).unwrap(), without.map(|options| compile(&options).unwrap()));
        for refused in &case.refused {
            let unfiltered = answer(&no_filter(), *refused);
            assert_ne!(
                unfiltered,
                Answer::Errno(row.errno),
                "{} {refused:?}: the kernel itself says so; the case shows nothing",
                row.name
            );
            assert_eq!(answer(&with, *refused), Answer::Errno(row.errno), "{} {refused:?}", row.name);
            if let Some(without) = &without {
                assert_eq!(
                    answer(without, *refused),
                    unfiltered,
                    "{} {refused:?} with the knob off",
                    row.name
                );
            }
        }
        for refused in &case.also_refused {
            assert_eq!(answer(&with, *refused), Answer::Errno(row.errno), "{} {refused:?}", row.name);
        }
    }
}

#[test]
fn the_allowed_form_of_every_row_is_answered_as_without_a_filter() {
    for case in cases() {
        let row = ROWS.iter().find(|row| row.name == case.row).unwrap();
        let with = compile(&with_and_without(row.on).0).unwrap();
        for allowed in &case.allowed {
            let unfiltered = answer(&no_filter(), *allowed);
            assert_ne!(unfiltered, Answer::Errno(row.errno), "{} {allowed:?}: indistinguishable", row.name);
            assert_eq!(answer(&with, *allowed), unfiltered, "{} {allowed:?}", row.name);
        }
    }
}

#[test]
fn calls_newer_than_the_table_do_not_exist() {
    // One below the highest known call stands for the future; the child must still be able to exit.
    let lower = Programs(vec![super::compile::above(libc::SYS_quotactl_fd as u32 - 1)]);
    let call_above = call(libc::SYS_quotactl_fd, &[-1, 0xff]);
    assert_ne!(answer(&no_filter(), call_above), Answer::Errno(libc::ENOSYS));
    assert_eq!(answer(&lower, call_above), Answer::Errno(libc::ENOSYS));
    let ceiling = compile(&FilterOptions::default()).unwrap();
    for number in
        [i64::from(HIGHEST_KNOWN_CALL) + 1, 512, 547, 0x4000_0000 + libc::SYS_socket, 0x4000_0000 + 520]
    {
        assert_eq!(answer(&ceiling, call(number, &[2, 3, 1])), Answer::Errno(libc::ENOSYS), "{number:#x}");
    }
}

/// i386 numbers mean other calls: 20 is getpid there and writev here.
#[test]
#[cfg(target_arch = "x86_64")]
fn the_32_bit_entry_is_closed() {
    let filter = compile(&FilterOptions::default()).unwrap();
    let enter = || {
        let mut result: i64 = 20;
        // SAFETY: getpid by the 32-bit entry; it clobbers r8 to r11 at most.
        unsafe {
            std::arch::asm!("int 0x80", inout("rax") result, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
        }
        i32::from(result <= 0)
    };
    assert_eq!(in_child(&no_filter(), enter), Answer::Errno(0), "without a filter this kernel takes it");
    assert_eq!(in_child(&filter, enter), Answer::Killed(libc::SIGSYS));
}
