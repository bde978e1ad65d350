//! `sluice exec`: sandbox, proxy and monitor in one process, for one command.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use ipnet::IpNet;
use sluice_netns::{SandboxName, Spec};
use sluice_seccomp::{Child, Enforcement, Signaller, User};

use super::{ExecArgs, check, doctor, exit};
use crate::appliance::{Appliance, Plan};
use crate::confined;
use crate::destination::{Authority, Destination};
use crate::event::Words;
use crate::event::journal::Target;
use crate::event::ledger::{self, Key, Ledger, Line, Stage};
use crate::limits::SandboxLimits;
use crate::made::{self, Made, MadeError, Workload};
use crate::policy::{self, Account, Confinement, Observed, Policy, PolicyFile};
use crate::preflight::{self, Finding};
use crate::signals::{Heard, Signals};
use crate::tls::{Oldest, Roots, Trust};
use crate::watch::BypassSource;

/// After a second signal, or this long after the first, the command is killed.
const GRACE: Duration = Duration::from_secs(10);

/// How often the appliance's health is looked at.
const CHECK_EVERY: Duration = Duration::from_millis(200);
/// Columns of the summary where there is no terminal to measure.
const SUMMARY_COLUMNS: u16 = 140;

/// A refusal to go on: what to say, and the exit code.
pub(super) struct Failure {
    pub(super) code: u8,
    pub(super) error: anyhow::Error,
}

impl Failure {
    pub(super) fn new(code: u8, error: impl Into<anyhow::Error>) -> Self {
        Self { code, error: error.into() }
    }
}

/// Runs the command; its exit code is ours.
pub fn run(args: ExecArgs) -> u8 {
    told(run_command(args))
}

/// The exit code; a failure is said on standard error.
pub(super) fn told(outcome: Result<u8, Failure>) -> u8 {
    outcome.unwrap_or_else(|failure| {
        eprintln!("sluice: {:#}", failure.error);
        failure.code
    })
}

fn run_command(args: ExecArgs) -> Result<u8, Failure> {
    let source = args.policy.as_deref().unwrap_or(if args.learn.is_some() { "open" } else { "deny" });
    let loaded = policy::load(&policy::Source::parse(source)).map_err(|findings| {
        check::print(&findings);
        Failure::new(exit::CONFIG, anyhow!("the policy {source} cannot be used"))
    })?;
    let confinement = &loaded.file.confinement;
    let trust = trust(&args.upstream_ca, Oldest::parse(&args.tls_min).unwrap_or_default(), true)?;
    let permit_special = parse_ranges(&args.permit_special)?;
    let name = args.name.clone().unwrap_or_else(|| format!("exec-{}", std::process::id()));
    let name: SandboxName =
        name.parse().map_err(|error| Failure::new(exit::USAGE, anyhow!("--name: {error}")))?;
    let user = user_of(args.user.as_deref(), confinement)?;
    let directory = std::env::current_dir().map_err(|error| Failure::new(exit::INTERNAL, error))?;
    let hardening =
        confined::mode_of_environment().map_err(|error| Failure::new(exit::USAGE, anyhow!("{error}")))?;
    let bypass_source = args.bypass_source.into();
    check_machine(bypass_source)?;
    let signals = Signals::block().map_err(|error| Failure::new(exit::INTERNAL, error))?;

    let mut spec = Spec::new(name);
    spec.log_limit.per_second = args.log_limit;
    spec.log_limit.into = BypassSource::log_into(bypass_source);
    clear_away(&spec.state_dir);
    let appliance = Appliance::start(Plan {
        permit_special,
        bypass_source,
        events: args.events.as_deref().map_or(Target::None, Target::parse),
        words: Words::FirstOfEachKind,
        trust,
        hardening,
        ..Plan::default()
    })
    .map_err(|error| Failure::new(exit::INTERNAL, error))?;

    let mut command = args.command.into_iter();
    let workload = Workload {
        program: command.next().unwrap_or_default(),
        args: command.collect(),
        directory,
        user,
        env: Vec::new(),
    };
    let plan = made::Plan {
        network: spec,
        policy: Arc::new(Policy::compile_with(&loaded.file, &policy::host_links)),
        limits: SandboxLimits::default(),
    };
    let outcome = run_inside(&appliance, plan, workload, confinement, &signals);
    let reporter = appliance.reporter().clone();
    appliance.stop();
    if let Ok(ended) = &outcome
        && !args.no_summary
    {
        eprint!("{}", ledger::render(reporter.ledger(), terminal_width()));
        ended.enforcement.summary().lines().for_each(|line| eprintln!("sluice: {line}"));
    }
    if let Some(file) = &args.learn {
        write_learned(&learned(reporter.ledger(), &loaded.file), file.as_deref())
            .map_err(|error| Failure::new(exit::INTERNAL, error))?;
    }
    if reporter.dropped() > 0 {
        eprintln!("sluice: {} events could not be written", reporter.dropped());
    }
    outcome.map(|ended| ended.code)
}

/// The smallest policy that covers what went through the proxy or asked to.
fn learned(ledger: &Ledger, current: &PolicyFile) -> String {
    let lines = ledger.lines();
    let seen: Vec<(Destination, Option<PathBuf>, &Key, &Line)> = lines
        .iter()
        .filter(|(key, _)| key.stage != Stage::Bypassed)
        .filter_map(|(key, line)| {
            let destination = Authority::parse(key.destination.as_bytes()).ok()?.to_destination(0);
            let exe = (!key.program.is_empty()).then(|| PathBuf::from(&*key.program));
            (destination.port != 0).then_some((destination, exe, key, line))
        })
        .collect();
    let mut observed = Vec::new();
    for (destination, exe, key, line) in &seen {
        let one = |request| Observed { destination, exe: exe.as_deref(), request };
        if &*key.how == "CONNECT" {
            observed.push(one(None));
        }
        observed.extend(line.paths.iter().map(|path| one(Some((&*key.how, &**path)))));
    }
    let mut learned = policy::learn(&observed, current);
    for (destination, _, _, line) in &seen {
        if line.paths_beyond {
            learned.leave_out(destination, "more different paths were asked for than are kept");
        }
    }
    learned.policy()
}

fn write_learned(policy: &str, file: Option<&Path>) -> anyhow::Result<()> {
    match file {
        Some(path) => {
            std::fs::write(path, policy)
                .with_context(|| format!("cannot write the policy to {}", path.display()))?;
            eprintln!("sluice: what was seen is allowed by {}", path.display());
        }
        None => eprint!("sluice: this policy allows what was seen\n\n{policy}"),
    }
    Ok(())
}

/// How a command ended, and under what.
pub(super) struct Ended {
    /// Its exit code.
    pub(super) code: u8,
    /// What held for it.
    pub(super) enforcement: Enforcement,
}

/// From the sandbox' creation to its removal.
pub(super) fn run_inside(
    appliance: &Appliance,
    plan: made::Plan,
    workload: Workload,
    confinement: &Confinement,
    signals: &Signals,
) -> Result<Ended, Failure> {
    let mut made = Made::create(appliance, plan).map_err(of_made)?;
    let child = made.launch(workload, confinement).map_err(of_made)?;
    let enforcement = child.enforcement().clone();
    let code = attend(child, signals, &|| appliance.health())?;
    made.remove().map_err(of_made)?;
    Ok(Ended { code, enforcement })
}

/// Waits for the command, passing signals on to it and ending it when `health` says what it depends on has died.
pub(super) fn attend(child: Child, signals: &Signals, health: Health<'_>) -> Result<u8, Failure> {
    let internal = |error| Failure::new(exit::INTERNAL, anyhow!("waiting for the command: {error}"));
    let signaller = child.signaller().map_err(internal)?;
    let ended = child.pidfd().try_clone_to_owned().map_err(internal)?;
    let (status, broken) = std::thread::scope(|scope| {
        let attendant = scope.spawn(|| pass_on(signals, health, &signaller, &ended));
        (child.wait(), attendant.join())
    });
    match broken {
        Ok(None) => status.map(|status| u8::try_from(status.code()).unwrap_or(u8::MAX)).map_err(internal),
        Ok(Some(what)) => Err(Failure::new(exit::INTERNAL, anyhow!("{what}; the command was ended"))),
        Err(_) => Err(Failure::new(exit::INTERNAL, anyhow!("the signal thread panicked"))),
    }
}

pub(super) fn check_machine(source: BypassSource) -> Result<(), Failure> {
    let findings = preflight::for_source(source);
    let missing: Vec<Finding> = findings.into_iter().filter(Finding::is_fatal).collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("{}", doctor::table(&missing));
    let names: Vec<&str> = missing.iter().map(|finding| finding.name.as_str()).collect();
    Err(Failure::new(exit::UNAVAILABLE, anyhow!("this machine lacks: {}", names.join(", "))))
}

/// Removes what dead runs left behind. That it fails for another's remains must not stop this run.
pub(super) fn clear_away(state_dir: &Path) {
    match sluice_netns::sweep(state_dir) {
        Ok(swept) => {
            for left in swept {
                let (name, owner) =
                    (&left.name, left.owner.map_or_else(|| "?".into(), |pid| pid.to_string()));
                match left.outcome {
                    Ok(_) => eprintln!(
                        "sluice: removed what a dead run left behind: sandbox {name} (process {owner})"
                    ),
                    Err(error) => {
                        tracing::warn!(%name, %error, "what a dead run left behind could not be removed");
                    }
                }
            }
        }
        Err(error) => tracing::warn!(%error, "what dead runs left behind could not be removed"),
    }
}

/// Whom origins are trusted by where TLS is looked into.
pub(super) fn trust(files: &[PathBuf], oldest: Oldest, http2: bool) -> Result<Arc<Trust>, Failure> {
    let roots = Roots::load(files).map_err(|error| Failure::new(exit::CONFIG, error))?;
    let trust = Trust::new(roots, oldest).map_err(|error| Failure::new(exit::INTERNAL, error))?;
    Ok(Arc::new(trust.with_http2(http2)))
}

fn parse_ranges(texts: &[String]) -> Result<Vec<IpNet>, Failure> {
    texts
        .iter()
        .map(|text| {
            text.parse()
                .map_err(|error| Failure::new(exit::USAGE, anyhow!("--permit-special {text}: {error}")))
        })
        .collect()
}

/// Who the command runs as: what the command line says, else what the policy says.
pub(super) fn user_of(argument: Option<&str>, confinement: &Confinement) -> Result<Option<User>, Failure> {
    let usage = |error| Failure::new(exit::USAGE, error);
    if let Some(text) = argument {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        return account(user, group).map(Some).map_err(usage);
    }
    let text = |account: &Account| match account {
        Account::Name(name) => name.to_string(),
        Account::Id(id) => id.to_string(),
    };
    let Some(user) = &confinement.run_as_user else { return Ok(None) };
    let group = confinement.run_as_group.as_ref().map(text);
    account(&text(user), group.as_deref()).map(Some).map_err(|error| Failure::new(exit::CONFIG, error))
}

fn account(user: &str, group: Option<&str>) -> anyhow::Result<User> {
    let known = match user.parse::<u32>() {
        Ok(uid) => nix::unistd::User::from_uid(uid.into())?,
        Err(_) => {
            Some(nix::unistd::User::from_name(user)?.with_context(|| format!("there is no user {user:?}"))?)
        }
    };
    let uid = known.as_ref().map(|known| known.uid.as_raw()).map_or_else(|| user.parse(), Ok)?;
    let gid = match (group, &known) {
        (None, Some(known)) => known.gid.as_raw(),
        (None, None) => uid,
        (Some(group), _) => match group.parse() {
            Ok(gid) => gid,
            Err(_) => nix::unistd::Group::from_name(group)?
                .with_context(|| format!("there is no group {group:?}"))?
                .gid
                .as_raw(),
        },
    };
    Ok(User::new(uid, gid))
}

/// What a command depends on: `Err` names the part that has died.
pub(super) type Health<'a> = &'a (dyn Fn() -> Result<(), &'static str> + Sync);

/// Passes signals on until the command has ended; kills it when it does not heed them, or when a part of the appliance
/// has died. Returns what died.
fn pass_on(
    signals: &Signals,
    health: Health<'_>,
    command: &Signaller,
    ended: &OwnedFd,
) -> Option<&'static str> {
    let mut kill_at: Option<Instant> = None;
    let mut broken = None;
    loop {
        match signals.wait(Some(ended.as_fd()), CHECK_EVERY) {
            Heard::Other => return broken,
            Heard::Signal(signal) => {
                let again = kill_at.is_some();
                kill_at = Some(Instant::now() + if again { Duration::ZERO } else { GRACE });
                let _ = command.send(signal as i32);
            }
            Heard::Nothing => {}
        }
        if broken.is_none()
            && let Err(what) = health()
        {
            broken = Some(what);
            kill_at = Some(Instant::now());
        }
        if kill_at.is_some_and(|at| Instant::now() >= at) {
            let _ = command.send(libc::SIGKILL);
        }
    }
}

pub(super) fn of_made(error: MadeError) -> Failure {
    let code = match &error {
        MadeError::Launch(launch) => u8::try_from(launch.exit_code()).unwrap_or(exit::INTERNAL),
        _ => exit::INTERNAL,
    };
    Failure::new(code, error)
}

/// How wide the summary may be; a terminal's own width is found by the table.
fn terminal_width() -> Option<u16> {
    use std::io::IsTerminal as _;
    if std::io::stderr().is_terminal() { None } else { Some(SUMMARY_COLUMNS) }
}
