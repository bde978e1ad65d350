//! `sluice serve`: the daemon.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use ipnet::IpNet;
use nix::sys::signal::Signal;
use sd_notify::NotifyState;

use super::{ServeArgs, check, doctor, exit};
use crate::appliance::{self, Appliance, Plan};
use crate::config::{self, Changes, Config, EventSink, IdentityMode, SandboxConfig, Workers};
use crate::control::observe::{self, Readiness, Refresh};
use crate::event::Words;
use crate::event::journal::Target;
use crate::identity::{Members, Mode, ProcTables, Resolver, Setup, TraceFigures};
use crate::measures::{self, Fenced};
use crate::policy::{self, Policy};
use crate::preflight::{self, Finding};
use crate::reload;
use crate::sandbox::{Sandbox, Sources};
use crate::signals::{Heard, Signals};

/// How often the appliance's health is looked at.
const CHECK_EVERY: Duration = Duration::from_millis(500);
/// A worker that has not swept for so long is stuck.
const STUCK: Duration = Duration::from_secs(3);

/// Runs until SIGTERM or SIGINT.
pub fn run(args: &ServeArgs) -> ExitCode {
    let loaded = match config::load(&args.config) {
        Ok(loaded) => {
            check::print(&loaded.notes);
            loaded
        }
        Err(findings) => {
            check::print(&findings);
            return exit::CONFIG.into();
        }
    };
    let missing: Vec<Finding> = preflight::all().into_iter().filter(Finding::is_fatal).collect();
    if !missing.is_empty() {
        eprintln!("{}", doctor::table(&missing));
        return exit::UNAVAILABLE.into();
    }
    let mut changes = Changes::default();
    changes.watch(loaded.notes.files(&args.config));
    match serve(&loaded.config, &args.config, changes) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice: {error:#}");
            exit::INTERNAL.into()
        }
    }
}

fn serve(config: &Config, config_path: &Path, changes: Changes) -> anyhow::Result<()> {
    let signals = Signals::block().context("signals cannot be blocked")?;
    raise_descriptors();
    // Before any figure is touched: handles taken earlier would count for nobody.
    let figures = observe::install().context("figures cannot be collected")?;
    if let Some(address) = config.listen {
        appliance::check_free(address)?;
    }
    let appliance = Arc::new(Appliance::start(plan(config)).context("the appliance does not start")?);
    let external = external(config, &appliance)?;
    match config.listen {
        Some(address) => appliance.serve_sources(address, &Arc::new(Sources::new(external.clone())))?,
        None if external.is_empty() => tracing::warn!("no `listen` and no `sandboxes`: nothing is served"),
        None => {
            anyhow::bail!("`sandboxes` has external sandboxes, but there is no `listen` for them to reach")
        }
    }
    if let Some(address) = config.metrics {
        let runtime = appliance.control().runtime();
        let listener = runtime.block_on(observe::bind(address));
        let listener = listener.with_context(|| format!("cannot listen on {address} for metrics"))?;
        let served: Vec<Arc<Sandbox>> = external.iter().map(|(_, sandbox)| Arc::clone(sandbox)).collect();
        let reporter = appliance.reporter().clone();
        let trace = appliance.trace();
        let refresh: Refresh = Arc::new(move || {
            metrics::gauge!("sluice_sandbox_count").set(served.len() as f64);
            metrics::counter!("sluice_events_dropped_total").absolute(reporter.dropped());
            if let Some(trace) = &trace {
                count_trace(trace.figures());
            }
            let figures = served
                .iter()
                .map(|sandbox| (Arc::clone(sandbox.shared_name()), sandbox.measures(), Fenced::default()));
            measures::render(&figures.collect::<Vec<_>>())
        });
        runtime.spawn(observe::serve(listener, figures, readiness(&appliance), refresh));
    }
    tracing::info!(
        listen = config.listen.map(|at| at.to_string()),
        metrics = config.metrics.map(|at| at.to_string()),
        workers = appliance.workers(),
        sandboxes = external.len(),
        "serving"
    );
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    let ended = attend(&appliance, &signals, config_path, changes, &external);
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    drop(external);
    // The metrics listener holds it only weakly.
    if let Some(appliance) = Arc::into_inner(appliance) {
        appliance.stop();
    }
    ended
}

fn count_trace(figures: TraceFigures) {
    let count =
        |what, number| metrics::counter!("sluice_identity_trace_total", "what" => what).absolute(number);
    count("noted", figures.noted);
    count("losses", figures.losses);
    count("overflowed", figures.overflowed);
}

fn plan(config: &Config) -> Plan {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = match &config.workers {
        Workers::Auto => (0..cores).map(Some).collect(),
        Workers::Count(count) => (0..*count).map(|index| Some(index % cores)).collect(),
        Workers::Cores(chosen) => chosen.iter().copied().map(Some).collect(),
    };
    Plan {
        workers,
        // External sandboxes have no fence of ours that could log anything.
        watch: false,
        limits: config.limits.clone(),
        listeners: config.listen.into_iter().chain([config.proxy_address]).collect(),
        permit_special: config.permit_special_addresses.clone(),
        events: match &config.events {
            EventSink::Stdout => Target::Stdout,
            EventSink::File(path) => Target::File(path.clone()),
        },
        trace: true,
        hash_always: true,
        refusal_hint: config.refusal_hint.clone(),
        words: Words::UpToARate,
        ..Plan::default()
    }
}

/// The external sandboxes of the configuration, each with what finds out who asks.
fn external(config: &Config, appliance: &Appliance) -> anyhow::Result<Vec<(IpNet, Arc<Sandbox>)>> {
    config
        .sandboxes
        .iter()
        .map(|entry| {
            let resolver = resolver(entry, appliance).with_context(|| format!("sandbox {}", entry.name))?;
            let policy = Arc::new(Policy::compile_with(&entry.policy, &policy::host_links));
            let reporter = appliance.reporter().clone();
            let sandbox = Arc::new(Sandbox::new(&entry.name, policy, entry.limits, resolver, reporter));
            reload::loaded(&sandbox, &entry.policy.source);
            Ok((entry.source, sandbox))
        })
        .collect()
}

/// An external sandbox' processes are looked for in this host's own namespace.
fn resolver(entry: &SandboxConfig, appliance: &Appliance) -> anyhow::Result<Option<Arc<Resolver>>> {
    let mode = match entry.identity {
        IdentityMode::Process => Mode::Process,
        IdentityMode::Uid => Mode::Uid,
        IdentityMode::Off => return Ok(None),
    };
    let setup = Setup {
        mode,
        netns: None,
        members: Members::Namespace,
        elsewhere: Arc::clone(appliance.elsewhere()),
        view_of: None,
        notes: None,
        trace: appliance.trace(),
        tables: Arc::new(ProcTables::new("/proc")),
        proc: "/proc".into(),
    };
    Ok(Some(Arc::new(Resolver::open(setup)?)))
}

/// Waits for the end, reloading on SIGHUP and when a file of the configuration changes. An error when a part of the appliance died.
fn attend(
    appliance: &Appliance,
    signals: &Signals,
    config_path: &Path,
    mut changes: Changes,
    external: &[(IpNet, Arc<Sandbox>)],
) -> anyhow::Result<()> {
    loop {
        match signals.wait(None, CHECK_EVERY) {
            Heard::Signal(Signal::SIGHUP) => {
                appliance.reporter().reopen();
                changes.look_again();
                changes.watch(reload(appliance, config_path, external));
            }
            Heard::Signal(signal) => {
                tracing::info!(%signal, "stopping");
                return Ok(());
            }
            Heard::Other | Heard::Nothing => {
                if changes.settled() {
                    tracing::info!("a file has changed: reading the configuration again");
                    changes.watch(reload(appliance, config_path, external));
                }
            }
        }
        // A worker that died leaves its connections in an unknown state: the whole process ends, and what has a fence
        // stays fenced.
        if let Err(what) = appliance.health() {
            return Err(anyhow!("{what}"));
        }
    }
}

/// Reads the configuration anew and puts its policies in force; a bad one changes nothing. Returns the files it is made
/// of.
fn reload(appliance: &Appliance, config_path: &Path, external: &[(IpNet, Arc<Sandbox>)]) -> Vec<PathBuf> {
    let loaded = match config::load(config_path) {
        Ok(loaded) => loaded,
        Err(findings) => {
            check::print(&findings);
            for (_, sandbox) in external {
                reload::rejected(sandbox, &config_path.to_string_lossy(), &findings);
            }
            tracing::error!("the configuration is bad; what was in force stays in force");
            return findings.files(config_path);
        }
    };
    check::print(&loaded.notes);
    let known: HashMap<&str, &Arc<Sandbox>> =
        external.iter().map(|(_, sandbox)| (sandbox.name(), sandbox)).collect();
    let entries = &loaded.config.sandboxes;
    let wanted: Vec<_> = entries
        .iter()
        .filter_map(|entry| Some((Arc::clone(known.get(&*entry.name)?), Arc::clone(&entry.policy))))
        .collect();
    let unknown = entries.len() - wanted.len();
    reload::put(appliance, &wanted, &policy::host_links);
    tracing::info!("policies reloaded");
    if unknown > 0 {
        tracing::warn!(unknown, "sandboxes that are new in the configuration are served after a restart");
    }
    loaded.notes.files(config_path)
}

/// Ready while every part lives and every worker sweeps.
fn readiness(appliance: &Arc<Appliance>) -> Readiness {
    let appliance = Arc::downgrade(appliance);
    let seen: Mutex<Vec<(u64, Instant)>> = Mutex::default();
    Arc::new(move || {
        let appliance = appliance.upgrade().ok_or("stopping")?;
        appliance.health()?;
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let beats = appliance.beats();
        seen.resize(beats.len(), (u64::MAX, Instant::now()));
        for (index, (beats, (last, since))) in beats.iter().zip(seen.iter_mut()).enumerate() {
            if beats != last {
                (*last, *since) = (*beats, Instant::now());
            } else if since.elapsed() > STUCK {
                return Err(format!("worker {index} is stuck"));
            }
        }
        Ok(())
    })
}

/// Two descriptors a tunnel, two a pipe: as many as the hard limit allows.
fn raise_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, soft, "the limit of descriptors cannot be raised");
    }
}
