//! From rows to BPF programs.

use super::table::{HIGHEST_KNOWN_CALL, Op, ROWS, Row};
use super::{Arg, FilterOptions};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};
use std::collections::BTreeMap;

/// The table cannot be compiled. Every knob's combination is compiled by a test, so a user never sees it.
#[derive(Debug, thiserror::Error)]
#[error("the seccomp table does not compile: {0}")]
pub struct FilterError(#[from] seccompiler::BackendError);

/// The program of one filter; tests have filters of none.
#[derive(Clone, Debug)]
pub struct Programs(pub(crate) Vec<BpfProgram>);

impl Programs {
    /// Instructions in all programs together.
    pub fn instructions(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }

    /// Whether there is nothing to install.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Compiles the rows that `options` switch on, for this architecture.
pub fn compile(options: &FilterOptions) -> Result<Programs, FilterError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    compile_for(*options, arch, |_, native| Some(native))
}

/// Compiles for an architecture, of which `number` knows the calls by name and native number; one it does not have needs no
/// row.
pub(super) fn compile_for(
    options: FilterOptions,
    arch: TargetArch,
    number: impl Fn(&str, i64) -> Option<i64>,
) -> Result<Programs, FilterError> {
    let rows: Vec<&Row> = ROWS.iter().filter(|row| options.includes(row.on)).collect();
    // Calls with conditions come first, as the kernel caches the answer to all others and runs no program for them.
    // Where two rows refuse one call the first errno wins. EPERM has the lowest number and is to win: "not allowed" says more
    // than "not supported".
    let mut of_call: BTreeMap<i64, BTreeMap<i32, Vec<&Row>>> = BTreeMap::new();
    let mut always: BTreeMap<i32, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        let rows = if row.when.is_empty() { &mut always } else { of_call.entry(row.syscall).or_default() };
        rows.entry(row.errno).or_default().push(row);
    }
    let witnessed = WITNESSED.iter().filter_map(|(name, native)| number(name, *native));
    let mut parts = vec![Part::new(above(HIGHEST_KNOWN_CALL)), Part::new(let_pass(witnessed))];
    for by_errno in of_call.values() {
        let last = by_errno.len() - 1;
        for (at, (errno, rows)) in by_errno.iter().enumerate() {
            let program = refuse(*errno, rows, arch, &number)?;
            parts.push(Part { program, call_goes_on: at < last });
        }
    }
    for (errno, rows) in &always {
        parts.push(Part::new(refuse(*errno, rows, arch, &number)?));
    }
    let nothing = refuse(libc::EPERM, &[], arch, &number)?;
    Ok(Programs(vec![join(&parts, &nothing[..ARCHITECTURE_CHECK])]))
}

/// One program of several, of which each knows one refusal: `seccompiler` has no more. The kernel would take them one by one
/// and answer with the strictest, but each costs some 8 ns of a call that it has no cached answer to.
struct Part {
    program: BpfProgram,
    /// A later part has rows for the same call: what this one lets pass is not allowed yet.
    call_goes_on: bool,
}

impl Part {
    fn new(program: BpfProgram) -> Self {
        Self { program, call_goes_on: false }
    }
}

const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const ALLOW: sock_filter = sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW };
const LOAD_NUMBER: sock_filter = sock_filter { code: LOAD_WORD, jt: 0, jf: 0, k: 0 };

/// Instructions at the head of a program of `seccompiler`'s that kill calls of another architecture.
const ARCHITECTURE_CHECK: usize = 3;

/// Lays the parts behind one another. A part ends by allowing what it does not know: that instruction goes, so that the next
/// part is asked; and where it lets a call pass that a later part knows, it jumps there.
fn join(parts: &[Part], check: &[sock_filter]) -> BpfProgram {
    let mut joined = check.to_vec();
    for part in parts {
        let body = part.program.strip_prefix(check).unwrap_or(&part.program);
        let end = body.len() - 1;
        joined.extend(body[..end].iter().enumerate().map(|(at, instruction)| {
            if part.call_goes_on && *instruction == ALLOW {
                sock_filter { code: JUMP, jt: 0, jf: 0, k: (end - at - 1) as u32 }
            } else {
                instruction.clone()
            }
        }));
    }
    joined.push(ALLOW);
    joined
}

/// Calls the witness looks at, so that the kernel caches no answer to them: allowed here as soon as can be. No row may name
/// them.
const WITNESSED: &[(&str, i64)] = &[
    ("sendmsg", libc::SYS_sendmsg),
    ("sendto", libc::SYS_sendto),
    ("connect", libc::SYS_connect),
    ("sendmmsg", libc::SYS_sendmmsg),
];

fn let_pass(calls: impl Iterator<Item = i64>) -> BpfProgram {
    let each = |call| [sock_filter { code: JUMP_EQUAL, jt: 0, jf: 1, k: call as u32 }, ALLOW];
    [LOAD_NUMBER].into_iter().chain(calls.flat_map(each)).chain([ALLOW]).collect()
}

/// `seccompiler` matches calls by number only, so the ceiling is written by hand:
/// load the call's number; above the ceiling, ENOSYS; else allow.
pub(super) fn above(ceiling: u32) -> BpfProgram {
    let refuse = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    vec![
        LOAD_NUMBER,
        sock_filter { code: JUMP_GREATER, jt: 0, jf: 1, k: ceiling },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: refuse },
        ALLOW,
    ]
}

fn refuse(
    errno: i32,
    rows: &[&Row],
    arch: TargetArch,
    number: impl Fn(&str, i64) -> Option<i64>,
) -> Result<BpfProgram, FilterError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for row in rows {
        let Some(syscall) = number(row.call(), row.syscall) else { continue };
        let of_call = rules.entry(syscall).or_default();
        for group in row.when {
            let conditions = group.iter().map(condition).collect::<Result<_, _>>()?;
            of_call.push(SeccompRule::new(conditions)?);
        }
    }
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno as u32), arch)?;
    Ok(filter.try_into()?)
}

/// One comparison, as `seccompiler` has it.
pub(crate) fn condition(arg: &Arg) -> Result<SeccompCondition, seccompiler::BackendError> {
    let op = match arg.op {
        Op::Eq => SeccompCmpOp::Eq,
        Op::Ne => SeccompCmpOp::Ne,
        Op::Masked(mask) => SeccompCmpOp::MaskedEq(u64::from(mask)),
    };
    SeccompCondition::new(arg.index, SeccompCmpArgLen::Dword, op, u64::from(arg.value))
}

#[cfg(test)]
mod tests {
    use super::super::Netlink;
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_combination_of_knobs_compiles() {
        for netlink in [Netlink::Route, Netlink::Deny, Netlink::All] {
            for memfd_exec in [true, false] {
                for tracing in [true, false] {
                    let programs = compile(&FilterOptions { netlink, memfd_exec, tracing }).unwrap();
                    assert_eq!(programs.0.len(), 1);
                    // The last resort is to allow, whatever part came before.
                    assert_eq!(programs.0[0].last(), Some(&ALLOW));
                }
            }
        }
    }

    #[test]
    fn rows_have_names_of_their_own() {
        let names: HashSet<_> = ROWS.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), ROWS.len());
    }

    /// `seccompiler` reads a call without conditions as "always", so rows of one call must not mix: the conditional ones would
    /// make the unconditional one conditional, and what they let pass is asked no further.
    #[test]
    fn a_call_is_refused_always_or_by_arguments_not_both() {
        for row in ROWS {
            for other in ROWS.iter().filter(|other| other.syscall == row.syscall) {
                assert_eq!(row.when.is_empty(), other.when.is_empty(), "{} and {}", row.name, other.name);
            }
            assert!(!WITNESSED.contains(&(row.call(), row.syscall)), "{}", row.name);
        }
    }
}
