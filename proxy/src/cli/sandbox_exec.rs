//! `sluice sandbox exec`: a command in one of the daemon's sandboxes, launched and witnessed by this process.
//!
//! The workload is this process' child: it ends with it, has its terminal and its exit code, and its connects are
//! answered here, so a daemon that restarts stalls nothing. The daemon reads the notes from shared memory, for as long
//! as it lives; the next one is told again.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use hyper::Method;
use nix::sys::eventfd::{EfdFlags, EventFd};
use sluice_seccomp::{Child, Enforcement, Launch, LaunchError, Terminal, Witness, note_ring};

use super::daemon::DaemonArgs;
use super::exec::{Failure, attend, of_made, user_of};
use super::exit;
use super::sandbox::{NOTHING, path_of};
use crate::admin::client::{Client, ClientError};
use crate::admin::wire::{Confinement, Detail, Kind, Launched, Level, PolicyBody};
use crate::confine;
use crate::made::{self, MadeError};
use crate::signals::Signals;
use crate::trusted;

/// Between two attempts to tell a daemon that is away.
const TELL_AGAIN: Duration = Duration::from_millis(500);

/// What `sluice sandbox exec` was asked for.
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) user: Option<String>,
    pub(super) command: Vec<OsString>,
    pub(super) daemon: DaemonArgs,
}

/// Runs the command; its exit code is ours.
pub(super) fn run(wanted: Wanted) -> Result<u8, Failure> {
    let internal = |error: anyhow::Error| Failure::new(exit::INTERNAL, error);
    let client = wanted.daemon.client()?;
    let sandbox: Detail = client.call(Method::GET, &path_of(&wanted.name, ""), NOTHING)?;
    let (Kind::Made, Some(proxy), Some(namespace)) =
        (sandbox.summary.kind, sandbox.proxy_address, &sandbox.namespace)
    else {
        return Err(Failure::new(
            exit::USAGE,
            anyhow!("Sluice did not make sandbox {}: its own runtime starts what runs in it", wanted.name),
        ));
    };
    let policy: PolicyBody = client.call(Method::GET, &path_of(&wanted.name, "/policy"), NOTHING)?;
    let loaded = policy.policy.load().map_err(|findings| Failure::new(exit::CONFIG, findings))?;
    let user = user_of(wanted.user.as_deref(), &loaded.file.confinement)?;
    let directory = std::env::current_dir().context("the working directory").map_err(internal)?;
    let netns = File::open(&namespace.path)
        .with_context(|| {
            format!("cannot open {}; run this as root, on the daemon's host", namespace.path.display())
        })
        .map_err(|error| Failure::new(exit::UNAVAILABLE, error))?;
    let signals = Signals::block().context("signals cannot be blocked").map_err(internal)?;

    let said: Vec<_> = wanted.command.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let mut command = wanted.command.into_iter();
    let mut launch = Launch::new(command.next().unwrap_or_default());
    launch.args = command.collect();
    launch.env = made::environment(&wanted.name, proxy, Vec::new());
    launch.netns = Some(netns.as_fd());
    launch.user = user;
    launch.cwd = Some(directory);
    confine::apply(&mut launch, &loaded.file.confinement, proxy, &sandbox.state_dir);
    // Its policy may come to judge requests while this command runs.
    trusted::equip_from(&mut launch, &sandbox.state_dir, &wanted.name)
        .context("the files of trusted certificates")
        .map_err(internal)?;
    launch.witness = true;
    launch.terminal = Terminal::Foreground;
    let started = |error: LaunchError| of_made(MadeError::Launch(error));
    let mut child = sluice_seccomp::launch(&launch).map_err(started)?;
    let told = Told { client, path: path_of(&wanted.name, "/launches"), command: said.join(" ") };
    let ended = Arc::new(AtomicBool::new(false));
    witness(&mut child, proxy, told, &ended).map_err(internal)?;
    let code = attend(child, &signals, &|| Ok(()));
    ended.store(true, Ordering::Relaxed);
    code
}

/// Whom to tell of the launch.
struct Told {
    client: Client,
    path: String,
    command: String,
}

/// Tells the daemon of the launch, then answers the witness: a connect waits until the daemon knows where its note will
/// be.
fn witness(
    child: &mut Child,
    proxy: std::net::SocketAddr,
    told: Told,
    ended: &Arc<AtomicBool>,
) -> anyhow::Result<()> {
    let Some(listener) = child.take_witness() else { return Ok(()) };
    let (writer, memory) = note_ring().context("the notes")?;
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let bell = Arc::new(EventFd::from_flags(flags).context("an eventfd")?);
    let mut witness = Witness::new(listener, child.pid(), writer, Vec::new());
    witness.set_proxy(proxy);
    let ring = Arc::clone(&bell);
    witness.on_attempt(move || {
        // A full bell is ringing already.
        let _ = ring.write(1);
    });
    let launched = Launched {
        pid: child.pid(),
        command: told.command.clone(),
        notes_fd: memory.as_raw_fd(),
        bell_fd: bell.as_fd().as_raw_fd(),
        confinement: confinement(child.enforcement()),
    };
    let (tell, told_already) = std::sync::mpsc::channel();
    let ended = Arc::clone(ended);
    std::thread::Builder::new()
        .name("launch".into())
        .spawn(move || keep_told(&told, &launched, (&memory, &bell), &ended, &tell))
        .context("a thread")?;
    // It answers or fails at once; a daemon that does neither must not keep the workload waiting.
    if let Ok(Err(error)) = told_already.recv_timeout(Duration::from_secs(2)) {
        tracing::warn!(%error, "the daemon does not read this launch's notes yet");
    }
    made::attend(witness).context("the witness")?;
    Ok(())
}

/// Tells the daemon, and the next one when that ends, until the command has. The descriptors are the daemon's to take.
fn keep_told(
    told: &Told,
    launched: &Launched,
    _kept: (&OwnedFd, &EventFd),
    ended: &AtomicBool,
    tell: &std::sync::mpsc::Sender<Result<(), ClientError>>,
) {
    while !ended.load(Ordering::Relaxed) {
        let outcome = told.client.stream(Method::POST, &told.path, Some(launched), |_| {
            let _ = tell.send(Ok(()));
            Ok(())
        });
        if let Err(error) = outcome {
            // The sandbox was removed, or there is no room: it will not change by asking again soon.
            tracing::debug!(%error, "the daemon is not told of the launch");
            let _ = tell.send(Err(error));
        }
        std::thread::sleep(TELL_AGAIN);
    }
}

fn confinement(enforcement: &Enforcement) -> Vec<Confinement> {
    let one = |measure: &sluice_seccomp::Measure| Confinement {
        measure: measure.name.to_owned(),
        level: match measure.level {
            sluice_seccomp::Level::Full => Level::Full,
            sluice_seccomp::Level::Partial => Level::Partial,
            sluice_seccomp::Level::Off => Level::Off,
        },
        detail: measure.detail.clone(),
    };
    enforcement.measures.iter().map(one).collect()
}
