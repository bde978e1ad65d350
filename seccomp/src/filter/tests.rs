//! Every row both ways, in forked children, as root: the refused form gets the row's errno although the
//! kernel would have answered otherwise; the neighbouring form gets what it gets without a filter.
#![allow(unsafe_code)]

use super::cases::{Call, call, cases};
use super::*;
use std::collections::HashSet;

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
