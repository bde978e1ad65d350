//! `sluice serve`: the daemon.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use metrics_exporter_prometheus::PrometheusHandle;
use nix::sys::signal::Signal;
use sd_notify::NotifyState;

use super::{ServeArgs, check, doctor, exec, exit};
use crate::admin::socket::AdminSocket;
use crate::admin::{self, Reload};
use crate::appliance::{self, Appliance, Plan};
use crate::config::{self, Changes, Config, Core, EventSink, Workers};
use crate::confined;
use crate::control::observe::{self, Readiness, Refresh};
use crate::daemon::{Daemon, Refusal, Settings};
use crate::event::Words;
use crate::event::journal::Target;
use crate::identity::TraceFigures;
use crate::preflight::{self, Finding};
use crate::reload;
use crate::signals::{Heard, Signals};

/// How often the appliance's health is looked at.
const CHECK_EVERY: Duration = Duration::from_millis(500);
/// Every how many of those looks the sandboxes are looked after.
const UPKEEP_EVERY: u32 = 4;
/// How long calls of the admin API may take to end when the daemon does.
const LAST_CALLS: Duration = Duration::from_secs(5);
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
    let missing: Vec<Finding> =
        preflight::for_source(loaded.config.bypass_source).into_iter().filter(Finding::is_fatal).collect();
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
    // First of all: whoever has it is the one daemon that touches what is in the state directory.
    let mut socket = AdminSocket::bind(&config.admin_socket)?;
    let metrics = config.metrics.map(bind_metrics).transpose()?;
    let trust = exec::trust(&config.upstream_ca, config.tls_oldest, config.tls_http2)
        .map_err(|failure| failure.error)?;
    let hardening = config.hardening.map_or_else(confined::mode_of_environment, Ok);
    let hardening = hardening.map_err(|error| anyhow!("{error}"))?;
    let plan = Plan { trust, hardening, ..plan(config) };
    let appliance = Appliance::start(plan).context("the appliance does not start")?;
    exec::clear_away(&config.state_dir);
    let daemon = Arc::new(Daemon::new(appliance, settings(config)));
    let reloading = Arc::new(Reloading {
        daemon: Arc::downgrade(&daemon),
        config_path: config_path.to_owned(),
        changes: Mutex::new(changes),
    });
    let ended = offer(&daemon, config, &mut socket, metrics.zip(Some(figures)), &reloading)
        .and_then(|()| attend(&daemon, &signals, &reloading));
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    // However it ended: what was taken over is let go of, and only then may another daemon come.
    stop(daemon);
    drop(socket);
    ended
}

/// Brings the sandboxes about and opens all doors to them.
fn offer(
    daemon: &Arc<Daemon>,
    config: &Config,
    socket: &mut AdminSocket,
    metrics: Option<(std::net::TcpListener, PrometheusHandle)>,
    reloading: &Arc<Reloading>,
) -> anyhow::Result<()> {
    daemon.begin(config)?;
    if let Some(address) = config.listen {
        daemon.appliance().serve_sources(address, daemon.sources())?;
    }
    let runtime = daemon.appliance().control().runtime();
    let _inside = runtime.enter();
    if let Some((listener, figures)) = metrics {
        let listener = tokio::net::TcpListener::from_std(listener).context("the metrics listener")?;
        runtime.spawn(observe::serve(listener, figures, readiness(daemon), refresh(daemon)));
    }
    let listener = socket.listener().context("the admin socket")?;
    let reload: Reload = {
        let reloading = Arc::clone(reloading);
        Arc::new(move || reloading.now())
    };
    runtime.spawn(admin::serve(listener, Arc::downgrade(daemon), reload));
    tracing::info!(
        admin_socket = %config.admin_socket.display(),
        listen = config.listen.map(|at| at.to_string()),
        metrics = config.metrics.map(|at| at.to_string()),
        workers = daemon.appliance().workers(),
        sandboxes = daemon.members().len(),
        "serving"
    );
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    Ok(())
}

/// Stops the daemon. Calls that are still at work hold it for moments; nothing new comes in.
fn stop(daemon: Arc<Daemon>) {
    let deadline = Instant::now() + LAST_CALLS;
    let mut daemon = daemon;
    loop {
        match Arc::try_unwrap(daemon) {
            Ok(last) => return last.stop(),
            Err(still) if Instant::now() < deadline => {
                daemon = still;
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(_) => return tracing::warn!("a call did not end; what it holds ends with the process"),
        }
    }
}

/// Bound before anything else is made: a port that is taken stops the start.
fn bind_metrics(address: SocketAddr) -> anyhow::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)
        .with_context(|| format!("cannot listen on {address} for metrics"))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn settings(config: &Config) -> Settings {
    let workers = worker_cores(config).len();
    Settings {
        proxy_address: config.proxy_address,
        listen: config.listen,
        state_dir: config.state_dir.clone(),
        listeners_per_sandbox: config
            .listeners_per_sandbox
            .unwrap_or_else(|| workers.min(config::LISTENERS_AUTO_MAX)),
    }
}

fn refresh(daemon: &Arc<Daemon>) -> Refresh {
    let daemon = Arc::downgrade(daemon);
    Arc::new(move || {
        let Some(daemon) = daemon.upgrade() else { return String::new() };
        metrics::gauge!("sluice_sandbox_count").set(daemon.members().len() as f64);
        metrics::counter!("sluice_events_dropped_total").absolute(daemon.appliance().reporter().dropped());
        metrics::counter!("sluice_hardening_refused_total").absolute(confined::refused_total());
        if let Some(figures) = daemon.appliance().trace_figures() {
            count_trace(figures);
        }
        daemon.figures()
    })
}

fn count_trace(figures: TraceFigures) {
    let count =
        |what, number| metrics::counter!("sluice_identity_trace_total", "what" => what).absolute(number);
    count("noted", figures.noted);
    count("losses", figures.losses);
    count("overflowed", figures.overflowed);
}

/// Cores of this machine that this process may use.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Cores from which on the bypass core gets one of its own.
const CORES_TO_SPARE: usize = 8;

/// The bypass core's: the last one, where there are enough that the workers can do without it.
fn bypass_core(config: &Config) -> Option<usize> {
    match config.bypass_core {
        Core::Pinned(core) => Some(core),
        Core::Auto => (cores() >= CORES_TO_SPARE).then(|| cores() - 1),
    }
}

fn worker_cores(config: &Config) -> Vec<Option<usize>> {
    let cores = cores();
    match &config.workers {
        Workers::Auto => {
            let spared = bypass_core(config).filter(|_| cores >= CORES_TO_SPARE);
            (0..cores).filter(|core| Some(*core) != spared).map(Some).collect()
        }
        Workers::Count(count) => (0..*count).map(|index| Some(index % cores)).collect(),
        Workers::Cores(chosen) => chosen.iter().copied().map(Some).collect(),
    }
}

fn plan(config: &Config) -> Plan {
    Plan {
        workers: worker_cores(config),
        bypass_core: bypass_core(config),
        bypass_source: config.bypass_source,
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
        feed: Some(Arc::default()),
        ..Plan::default()
    }
}

/// Waits for the end, reloading on SIGHUP and when a file of the configuration changes. An error when a part of the
/// appliance died.
fn attend(daemon: &Daemon, signals: &Signals, reloading: &Reloading) -> anyhow::Result<()> {
    let mut rounds = 0_u32;
    loop {
        // What is wrong with a configuration is in the log and in the events.
        match signals.wait(None, CHECK_EVERY) {
            Heard::Signal(Signal::SIGHUP) => {
                daemon.appliance().reporter().reopen();
                let _ = reloading.now();
            }
            Heard::Signal(signal) => {
                tracing::info!(%signal, "stopping");
                return Ok(());
            }
            Heard::Other | Heard::Nothing => {
                if reloading.is_due() {
                    tracing::info!("a file has changed: reading the configuration again");
                    let _ = reloading.now();
                }
            }
        }
        // A worker that died leaves its connections in an unknown state: the whole process ends, and what has a fence
        // stays fenced.
        if let Err(what) = daemon.appliance().health() {
            return Err(anyhow!("{what}"));
        }
        rounds = rounds.wrapping_add(1);
        if rounds.is_multiple_of(UPKEEP_EVERY) {
            daemon.round();
        }
    }
}

/// Reading the configuration anew, whoever asks: a signal, a changed file, the admin API.
struct Reloading {
    daemon: Weak<Daemon>,
    config_path: PathBuf,
    changes: Mutex<Changes>,
}

impl Reloading {
    /// Whether a file of the configuration has changed.
    fn is_due(&self) -> bool {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner).settled()
    }

    /// Policies are put in force, new sandboxes brought about, those that are gone removed; a bad configuration changes
    /// nothing. What else there is to know comes back.
    fn now(&self) -> Result<Vec<String>, Refusal> {
        let stopping = || Refusal::Unavailable("the daemon is stopping".into());
        let daemon = self.daemon.upgrade().ok_or_else(stopping)?;
        // Held throughout: two at a time would undo each other.
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.look_again();
        match config::load(&self.config_path) {
            Ok(loaded) => {
                check::print(&loaded.notes);
                changes.watch(loaded.notes.files(&self.config_path));
                daemon.put_config_policies(&loaded.config.sandboxes);
                daemon.follow(&loaded.config);
                tracing::info!("the configuration was reloaded");
                Ok(loaded.notes.sorted().iter().map(ToString::to_string).collect())
            }
            Err(findings) => {
                check::print(&findings);
                changes.watch(findings.files(&self.config_path));
                for member in daemon.members() {
                    reload::rejected(member.sandbox(), &self.config_path.to_string_lossy(), &findings);
                }
                tracing::error!("the configuration is bad; what was in force stays in force");
                Err(Refusal::Config(findings))
            }
        }
    }
}

/// Ready while every part lives and every worker sweeps.
fn readiness(daemon: &Arc<Daemon>) -> Readiness {
    let daemon = Arc::downgrade(daemon);
    let seen: Mutex<Vec<(u64, Instant)>> = Mutex::default();
    Arc::new(move || {
        let daemon = daemon.upgrade().ok_or("stopping")?;
        let appliance = daemon.appliance();
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
