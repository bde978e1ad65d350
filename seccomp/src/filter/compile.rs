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

/// The programs of one filter, to be installed one after the other, in their order.
#[derive(Clone, Debug)]
pub struct Programs(pub(crate) Vec<BpfProgram>);

impl Programs {
    /// Instructions in all programs together.
    pub fn instructions(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }

    /// Programs the kernel evaluates for a call.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is nothing to install.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Compiles the rows that `options` switch on, for this architecture.
pub fn compile(options: &FilterOptions) -> Result<Programs, FilterError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    compile_for(*options, arch, |row| Some(row.syscall))
}

/// Compiles for an architecture, of which `number` knows the calls; one it does not have needs no row.
pub(super) fn compile_for(
    options: FilterOptions,
    arch: TargetArch,
    number: impl Fn(&Row) -> Option<i64>,
) -> Result<Programs, FilterError> {
    let mut by_errno: BTreeMap<i32, Vec<&Row>> = BTreeMap::new();
    for row in ROWS.iter().filter(|row| options.includes(row.on)) {
        by_errno.entry(row.errno).or_default().push(row);
    }
    let mut programs = vec![above(HIGHEST_KNOWN_CALL)];
    // Where two rows refuse one call, the kernel takes the errno of the program installed last. EPERM
    // has the lowest number and is to win: "not allowed" says more than "not supported".
    for (errno, rows) in by_errno.into_iter().rev() {
        programs.push(refuse(errno, &rows, arch, &number)?);
    }
    Ok(Programs(programs))
}

/// `seccompiler` matches calls by number only, so the ceiling is written by hand:
/// load the call's number; above the ceiling, ENOSYS; else allow.
pub(super) fn above(ceiling: u32) -> BpfProgram {
    const LOAD_WORD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let refuse = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    vec![
        sock_filter { code: LOAD_WORD, jt: 0, jf: 0, k: 0 },
        sock_filter { code: JUMP_GREATER, jt: 0, jf: 1, k: ceiling },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: refuse },
        sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
    ]
}

fn refuse(
    errno: i32,
    rows: &[&Row],
    arch: TargetArch,
    number: impl Fn(&Row) -> Option<i64>,
) -> Result<BpfProgram, FilterError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for row in rows {
        let Some(syscall) = number(row) else { continue };
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
                    assert!(programs.len() >= 4, "{programs:?}");
                }
            }
        }
    }

    #[test]
    fn rows_have_names_of_their_own() {
        let names: HashSet<_> = ROWS.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), ROWS.len());
    }

    /// `seccompiler` reads a call without conditions as "always", so rows of one call and errno must
    /// not mix: the conditional ones would make the unconditional one conditional.
    #[test]
    fn a_call_is_refused_always_or_by_arguments_not_both() {
        for row in ROWS {
            for other in ROWS.iter().filter(|other| other.syscall == row.syscall && other.errno == row.errno)
            {
                assert_eq!(row.when.is_empty(), other.when.is_empty(), "{} and {}", row.name, other.name);
            }
        }
    }
}
