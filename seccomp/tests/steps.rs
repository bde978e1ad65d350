//! Every step between clone and execve, made to fail: the launch names it, and nothing was executed.
//!
//! A forked launcher carries a filter that refuses just the step's system call, with an errno that no
//! kernel gives for it.
#![allow(unsafe_code, clippy::unwrap_used, reason = "forks; a failure is the test's")]

mod sandbox;

use sandbox::{Network, command};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter,
};
use sluice_seccomp::{Launch, LaunchError, Stdio, Step, User, launch};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;

const UNHEARD_OF: i32 = libc::EXFULL;

/// Refuses a call, when the argument of that index has that value.
fn refuse(call: i64, argument: Option<(u8, i32)>) -> BpfProgram {
    let rules = argument.map(|(index, value)| {
        let condition = SeccompCondition::new(
            index,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::Eq,
            u64::from(value.cast_unsigned()),
        );
        SeccompRule::new(vec![condition.unwrap()]).unwrap()
    });
    let filter = SeccompFilter::new(
        BTreeMap::from([(call, rules.into_iter().collect())]),
        SeccompAction::Allow,
        SeccompAction::Errno(UNHEARD_OF as u32),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    filter.unwrap().try_into().unwrap()
}

/// The call by which each step is known, and what marks it among others of its kind.
fn call_of(step: Step) -> (i64, Option<(u8, i32)>) {
    let prctl = |option| (libc::SYS_prctl, Some((0, option)));
    match step {
        #[cfg(target_arch = "x86_64")]
        Step::Stdio => (libc::SYS_dup2, None),
        #[cfg(not(target_arch = "x86_64"))]
        Step::Stdio => (libc::SYS_dup3, None),
        Step::Signals => (libc::SYS_rt_sigaction, None),
        Step::NetworkNamespace => (libc::SYS_setns, None),
        Step::SetId => (libc::SYS_mount_setattr, None),
        Step::Mounts => (libc::SYS_mount, None),
        Step::CoreLimit => (libc::SYS_prlimit64, Some((1, libc::RLIMIT_CORE as i32))),
        Step::BoundingSet => prctl(libc::PR_CAPBSET_DROP),
        Step::SecureBits => prctl(libc::PR_SET_SECUREBITS),
        Step::Groups => (libc::SYS_setgroups, None),
        Step::Gid => (libc::SYS_setresgid, None),
        Step::Uid => (libc::SYS_setresuid, None),
        Step::Capabilities => (libc::SYS_capset, None),
        Step::DeathSignal => prctl(libc::PR_SET_PDEATHSIG),
        Step::NoNewPrivs => prctl(libc::PR_SET_NO_NEW_PRIVS),
        Step::Landlock => (libc::SYS_landlock_restrict_self, None),
        Step::Directory => (libc::SYS_chdir, None),
        Step::CloseOnExec => (libc::SYS_close_range, Some((2, libc::CLOSE_RANGE_CLOEXEC as i32))),
        // The one filter with flags is the witness's.
        Step::Witness => (libc::SYS_seccomp, Some((1, 0x28))),
        Step::Filter => (libc::SYS_seccomp, Some((1, 0))),
        Step::Init => (libc::SYS_clone, Some((0, libc::SIGCHLD))),
        Step::Session => (libc::SYS_setsid, None),
        Step::SignalMask => (libc::SYS_rt_sigprocmask, Some((0, libc::SIG_UNBLOCK))),
        Step::Report => (libc::SYS_sendmsg, None),
        Step::Exec => (libc::SYS_execve, None),
    }
}

/// How a launch ended whose launcher carries `filter`.
fn launch_under(filter: Option<&BpfProgram>, wanted: &Launch<'_>) -> String {
    let (mut told, tell) = std::io::pipe().unwrap();
    // SAFETY: the child runs one thread; glibc keeps the allocator usable over fork.
    let launcher = unsafe { libc::fork() };
    assert!(launcher >= 0);
    if launcher == 0 {
        if let Some(filter) = filter {
            apply_filter(filter).unwrap();
        }
        let said = match launch(wanted) {
            Ok(mut child) => {
                drop(child.take_witness());
                format!("{:?}", child.wait())
            }
            Err(LaunchError::Step { step, reason }) => format!("{step:?} {reason:?}"),
            Err(LaunchError::NotExecutable { reason, .. }) => format!("Exec {reason:?}"),
            Err(other) => format!("{other:?}"),
        };
        let _ = (&tell).write_all(said.as_bytes());
        // SAFETY: ends the copy without the test harness's own ending.
        unsafe { libc::_exit(0) }
    }
    drop(tell);
    let mut said = String::new();
    told.read_to_string(&mut said).unwrap();
    // SAFETY: waits for the child made above.
    unsafe { libc::waitpid(launcher, std::ptr::null_mut(), 0) };
    said
}

#[test]
fn each_step_that_fails_names_itself_and_nothing_runs() {
    let network = Network::new();
    let directory = tempfile::tempdir().unwrap();
    let ran = directory.path().join("ran");
    let null = File::open("/dev/null").unwrap();
    let mut wanted = command(&["touch", ran.to_str().unwrap()]);
    wanted.netns = Some(network.fd.as_fd());
    wanted.user = Some(User::new(0, 0));
    wanted.cwd = Some("/".into());
    wanted.witness = true;
    wanted.stdio = Stdio { stdin: Some(null.as_fd()), ..Stdio::default() };
    for step in Step::ALL {
        let (call, argument) = call_of(*step);
        let said = launch_under(Some(&refuse(call, argument)), &wanted);
        assert!(said.starts_with(&format!("{step:?} ")), "refused {step:?}: {said}");
        assert!(*step == Step::Report || said.contains(&format!("code: {UNHEARD_OF}")), "{step:?}: {said}");
        assert!(!ran.exists(), "{step:?} failed and the program ran");
    }
    assert_eq!(launch_under(None, &wanted), "Ok(Exited(0))");
    assert!(ran.exists());
}
