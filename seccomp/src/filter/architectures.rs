//! The table means the same on every architecture: its numbers are held against an independent list of
//! system calls, and the programs for both architectures against the cases of `cases.rs`, by a small
//! interpreter of classic BPF (the other architecture's cannot be installed here).

use super::cases::{Call, cases};
use super::compile::compile_for;
use super::tests::with_and_without;
use super::*;
use seccompiler::{BpfProgram, TargetArch, sock_filter};
use std::str::FromStr;

/// Calls that only x86 has.
const X86_ALONE: &[&str] = &["iopl", "ioperm", "modify_ldt", "uselib"];

pub(crate) const AUDIT_X86_64: u32 = 0xc000_003e;
pub(crate) const AUDIT_AARCH64: u32 = 0xc000_00b7;
const AUDIT_I386: u32 = 0x4000_0003;
const AUDIT_ARM: u32 = 0x4000_0028;

pub(crate) fn on_x86_64(name: &str) -> Option<i64> {
    syscalls::x86_64::Sysno::from_str(name).ok().map(|call| call.id().into())
}

pub(crate) fn on_aarch64(name: &str) -> Option<i64> {
    syscalls::aarch64::Sysno::from_str(name).ok().map(|call| call.id().into())
}

#[test]
fn every_number_is_that_of_the_call_the_row_names() {
    let native = if cfg!(target_arch = "x86_64") { on_x86_64 } else { on_aarch64 };
    for row in ROWS {
        let name = row.call();
        assert_eq!(native(name), Some(row.syscall), "{}", row.name);
        assert_eq!(on_aarch64(name).is_none(), X86_ALONE.contains(&name), "{name} on aarch64");
    }
}

#[test]
fn the_highest_known_call_is_the_highest_of_both_architectures() {
    let highest = [syscalls::x86_64::Sysno::last().id(), syscalls::aarch64::Sysno::last().id()];
    assert_eq!(highest, [HIGHEST_KNOWN_CALL.cast_signed(); 2]);
}

/// What the kernel does: runs every program and takes the strictest answer, of equal ones the last installed.
pub(crate) fn answer(programs: &[BpfProgram], arch: u32, (number, args): Call) -> u32 {
    let mut data = [0u8; 64];
    data[0..4].copy_from_slice(&(number as u32).to_le_bytes());
    data[4..8].copy_from_slice(&arch.to_le_bytes());
    for (index, arg) in args.into_iter().enumerate() {
        data[16 + 8 * index..24 + 8 * index].copy_from_slice(&arg.to_le_bytes());
    }
    let strictest_first = |answer: &u32| (*answer & libc::SECCOMP_RET_ACTION_FULL).cast_signed();
    programs.iter().rev().map(|program| run(program, &data).unwrap()).min_by_key(strictest_first).unwrap()
}

/// Whether the kernel knows without running a program that the call is allowed: when its programs are installed it
/// walks each with the number alone, and gives up at the first look at anything but number and architecture
/// (`seccomp_is_const_allow` in `kernel/seccomp.c`, Linux 5.11). Such calls cost next to nothing.
pub(crate) fn is_free(programs: &[BpfProgram], arch: u32, number: i64) -> bool {
    let mut data = [0u8; 64];
    data[0..4].copy_from_slice(&(number as u32).to_le_bytes());
    data[4..8].copy_from_slice(&arch.to_le_bytes());
    programs.iter().all(|program| run(program, &data[..8]) == Some(libc::SECCOMP_RET_ALLOW))
}

/// Classic BPF as seccomp takes it; none when it looks beyond the data.
fn run(program: &[sock_filter], data: &[u8]) -> Option<u32> {
    let (mut at, mut accumulator) = (0usize, 0u32);
    loop {
        let step = &program[at];
        at += 1;
        let jump = |taken: bool| usize::from(if taken { step.jt } else { step.jf });
        match step.code {
            0x20 => {
                let from = step.k as usize;
                accumulator = u32::from_le_bytes(data.get(from..from + 4)?.try_into().unwrap());
            }
            0x54 => accumulator &= step.k,
            0x05 => at += step.k as usize,
            0x15 => at += jump(accumulator == step.k),
            0x25 => at += jump(accumulator > step.k),
            0x35 => at += jump(accumulator >= step.k),
            0x45 => at += jump(accumulator & step.k != 0),
            0x06 => return Some(step.k),
            code => panic!("an instruction this interpreter lacks: {code:#x}"),
        }
    }
}

#[test]
fn both_architectures_give_every_case_the_same_verdict() {
    let native = if cfg!(target_arch = "x86_64") { on_x86_64 } else { on_aarch64 };
    let allow = libc::SECCOMP_RET_ALLOW;
    for (arch, audit, number) in [
        (TargetArch::x86_64, AUDIT_X86_64, on_x86_64 as fn(&str) -> Option<i64>),
        (TargetArch::aarch64, AUDIT_AARCH64, on_aarch64),
    ] {
        for case in cases() {
            let row = ROWS.iter().find(|row| row.name == case.row).unwrap();
            let name = row.call();
            let Some(here) = number(name) else { continue };
            let (with, _) = with_and_without(row.on);
            let programs = compile_for(with, arch, |name, _| number(name)).unwrap().0;
            let moved = |call: &Call| if Some(call.0) == native(name) { (here, call.1) } else { *call };
            for refused in case.refused.iter().chain(&case.also_refused).map(moved) {
                let errno = libc::SECCOMP_RET_ERRNO | row.errno as u32;
                assert_eq!(answer(&programs, audit, refused), errno, "{arch:?} {} {refused:?}", row.name);
            }
            for allowed in case.allowed.iter().map(moved) {
                assert_eq!(answer(&programs, audit, allowed), allow, "{arch:?} {} {allowed:?}", row.name);
            }
        }
    }
}

#[test]
fn the_32_bit_entry_of_either_architecture_is_killed() {
    for (arch, audit) in [(TargetArch::x86_64, AUDIT_I386), (TargetArch::aarch64, AUDIT_ARM)] {
        let programs = compile_for(FilterOptions::default(), arch, |_, native| Some(native)).unwrap().0;
        assert_eq!(answer(&programs, audit, (20, [0; 6])), libc::SECCOMP_RET_KILL_PROCESS, "{arch:?}");
    }
}

#[test]
fn a_call_without_a_condition_on_its_arguments_is_never_filtered_twice() {
    // What every program does all day costs nothing: only calls whose answer depends on arguments are looked at.
    let mut looked_at: Vec<i64> = ROWS
        .iter()
        .filter(|row| !row.when.is_empty() && row.on != On::MemfdExecOff)
        .map(|row| row.syscall)
        .collect();
    looked_at.extend([libc::SYS_connect, libc::SYS_sendto, libc::SYS_sendmsg, libc::SYS_sendmmsg]);
    let mut programs = compile(&FilterOptions::default()).unwrap().0;
    programs.push(crate::witness::program());
    let native = if cfg!(target_arch = "x86_64") { AUDIT_X86_64 } else { AUDIT_AARCH64 };
    for number in 0..=i64::from(HIGHEST_KNOWN_CALL) {
        let refused = ROWS.iter().any(|row| {
            row.when.is_empty() && FilterOptions::default().includes(row.on) && row.syscall == number
        });
        let free = !refused && !looked_at.contains(&number);
        assert_eq!(is_free(&programs, native, number), free, "call {number}");
    }
}
