//! A sandbox of our own making, from its namespace to its end: network, proxy listener, watch, workload.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sluice_bypass::nflog;
use sluice_netns::{Sandbox as Network, Spec};
use sluice_seccomp::harden::Role;
use sluice_seccomp::{Child, Launch, LaunchError, Notes, Terminal, User, Witness, note_ring};
use thiserror::Error;

use crate::appliance::Appliance;
use crate::confine;
use crate::confined::{self, Confined};
use crate::event::journal::Urgency;
use crate::event::{Event, Kind};
use crate::identity::{self, ConnectNotes, Members, Mode, ProcTables, Resolver, Seen, Setup};
use crate::limits::SandboxLimits;
use crate::policy::{Confinement, Policy};
use crate::sandbox::Sandbox;
use crate::tls::Names;
use crate::tls::authority::AuthorityError;
use crate::trusted;
use crate::watch::Watched;

/// How long the connections of processes that have ended may take to end by themselves, so that each says why it did.
const LAST_WORDS: Duration = Duration::from_millis(50);
/// How often is looked whether they have.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// What a made sandbox is to be like.
pub struct Plan {
    /// Its network.
    pub network: Spec,
    /// Its policy.
    pub policy: Arc<Policy>,
    /// What it may use.
    pub limits: SandboxLimits,
}

/// What is to run in it.
pub struct Workload {
    /// A path, or a name that is looked up in `PATH`.
    pub program: OsString,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Where it starts.
    pub directory: PathBuf,
    /// Who it runs as; root with few capabilities when absent.
    pub user: Option<User>,
    /// Environment on top of this process' own and the proxy variables.
    pub env: Vec<(OsString, OsString)>,
}

/// Why a sandbox could not be made or run.
#[derive(Debug, Error)]
pub enum MadeError {
    /// Its network.
    #[error(transparent)]
    Network(#[from] sluice_netns::Error),
    /// Finding out who asks.
    #[error(transparent)]
    Identity(#[from] identity::OpenError),
    /// Reading what its fence refuses.
    #[error(
        "the NFLOG group in the sandbox cannot be bound: {0}; it needs CONFIG_NETFILTER_NETLINK_LOG, or choose kmsg"
    )]
    Source(io::Error),
    /// Watching it.
    #[error(transparent)]
    Watch(#[from] sluice_bypass::MonitorError),
    /// Starting its workload.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The thread of its witness.
    #[error("the witness cannot be started: {0}")]
    Witness(io::Error),
    /// Descriptors ran out.
    #[error("no descriptor is left: {0}; raise the limit (ulimit -n, LimitNOFILE=)")]
    Descriptor(io::Error),
    /// Its certificate authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The files that make its workload trust that authority.
    #[error("the files of trusted certificates cannot be made in /run/sluice-ca: {0}")]
    Trusted(io::Error),
    /// It is gone.
    #[error("the sandbox has been removed")]
    Removed,
}

/// A living sandbox. Dropping it removes it.
pub struct Made<'a> {
    appliance: &'a Appliance,
    sandbox: Arc<Sandbox>,
    notes: Arc<Notes>,
    state_dir: PathBuf,
    network: Option<Network>,
    witness: Option<Confined>,
}

impl<'a> Made<'a> {
    /// Makes the sandbox and serves it; nothing runs in it yet.
    pub fn create(appliance: &'a Appliance, plan: Plan) -> Result<Self, MadeError> {
        let network = Network::create(&plan.network)?;
        let notes = Arc::new(Notes::default());
        let share = Share {
            names: Names::judged_by(&plan.policy),
            policy: plan.policy,
            limits: plan.limits,
            mode: Mode::Process,
            view_of: None,
            notes: Some(Arc::clone(&notes)),
            host_token: None,
            listeners: appliance.workers(),
        };
        let sandbox = serve(appliance, &network, share)?;
        report(&sandbox, Kind::SandboxStarted);
        Ok(Self {
            appliance,
            sandbox,
            notes,
            state_dir: plan.network.state_dir,
            network: Some(network),
            witness: None,
        })
    }

    /// Starts `workload` inside, confined and witnessed.
    pub fn launch(&mut self, workload: Workload, confinement: &Confinement) -> Result<Child, MadeError> {
        let network = self.network.as_ref().ok_or(MadeError::Removed)?;
        let mut launch = Launch::new(workload.program);
        launch.args = workload.args;
        launch.env = environment(network.name().as_str(), network.proxy_address(), workload.env);
        launch.netns = Some(network.netns());
        launch.user = workload.user;
        launch.cwd = Some(workload.directory);
        confine::apply(&mut launch, confinement, network.proxy_address(), &self.state_dir);
        // Without requests to judge nothing is looked into, and there is nobody new to trust.
        if let Some(interception) = self.sandbox.interception()
            && self.sandbox.policy_now().judged().next().is_some()
        {
            let platform = self.appliance.trust().roots().of_platform();
            trusted::equip(
                &mut launch,
                network.name().as_str(),
                interception.authority().certificate(),
                platform,
            )
            .map_err(MadeError::Trusted)?;
        }
        launch.witness = true;
        launch.terminal = Terminal::Foreground;
        let mut child = sluice_seccomp::launch(&launch)?;
        if let Some(listener) = child.take_witness() {
            let (writer, memory) = note_ring().map_err(MadeError::Witness)?;
            self.notes.attach(memory).map_err(MadeError::Witness)?;
            let mut witness = Witness::new(listener, child.pid(), writer, Vec::new());
            witness.set_proxy(network.proxy_address());
            if let Some(alert) = self.appliance.bypass_alert() {
                witness.on_attempt(alert);
            }
            self.witness = Some(attend(witness).map_err(MadeError::Witness)?);
        }
        Ok(child)
    }

    /// The sandbox as the proxy sees it.
    pub fn sandbox(&self) -> &Arc<Sandbox> {
        &self.sandbox
    }

    /// Its network.
    pub fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// Ends everything in it and removes it.
    pub fn remove(mut self) -> Result<(), MadeError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), MadeError> {
        let Some(network) = self.network.take() else { return Ok(()) };
        // First nothing more happens, then the account is closed.
        if let Err(error) = network.end_processes() {
            tracing::warn!(%error, "direct attempts may be missing from the account");
        }
        trusted::clear(network.name().as_str());
        end_service(self.appliance, &self.sandbox, network.inode());
        let removed = network.destroy();
        // It ends with the last process of the workload.
        if let Some(witness) = self.witness.take() {
            let _ = witness.join();
        }
        report(&self.sandbox, Kind::SandboxStopped);
        Ok(removed?)
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(%error, sandbox = self.sandbox.name(), "the sandbox could not be removed");
        }
    }
}

/// What a network is served with.
pub(crate) struct Share {
    /// The names its authority is for, if its policy stays as it is.
    pub(crate) names: Option<Names>,
    /// Its policy.
    pub(crate) policy: Arc<Policy>,
    /// What it may use.
    pub(crate) limits: SandboxLimits,
    /// How far who asks is found out.
    pub(crate) mode: Mode,
    /// The process whose file system gives paths their meaning; this one's if absent.
    pub(crate) view_of: Option<u32>,
    /// What its witnesses note, if it has any.
    pub(crate) notes: Option<Arc<Notes>>,
    /// The secret in the lines of the host's fence about it, if that guards a link of it.
    pub(crate) host_token: Option<u64>,
    /// Listening sockets, each for another worker as far as there are workers.
    pub(crate) listeners: usize,
}

/// Watches and serves the sandbox whose network this is.
pub(crate) fn serve(
    appliance: &Appliance,
    network: &Network,
    share: Share,
) -> Result<Arc<Sandbox>, MadeError> {
    let notes = share.notes.as_ref();
    let setup = Setup {
        mode: share.mode,
        netns: Some(network.netns().try_clone_to_owned().map_err(MadeError::Descriptor)?),
        members: Members::Namespace,
        elsewhere: Arc::clone(appliance.elsewhere()),
        view_of: share.view_of,
        notes: notes.map(|notes| Arc::new(Witnessed(Arc::clone(notes))) as Arc<dyn ConnectNotes>),
        trace: appliance.trace(),
        tables: Arc::new(ProcTables::new("/proc")),
        proc: "/proc".into(),
    };
    let resolver = match share.mode {
        Mode::Off => None,
        _ => Some(Arc::new(Resolver::open(setup)?)),
    };
    let name = network.name().as_str();
    let reporter = appliance.reporter().clone();
    let sandbox = Sandbox::new(name, share.policy, share.limits, resolver, reporter);
    let sandbox = Arc::new(appliance.intercepted(sandbox, share.names.as_ref())?);
    let listeners = network.listeners(share.listeners)?;
    appliance.watch(Watched {
        sandbox: Arc::clone(&sandbox),
        token: Some(network.log_token().value()),
        host_token: share.host_token,
        counters: Some(network.counter_reader()?),
        nflog: open_source(appliance, network)?,
        notes: share.notes,
        proxy_address: network.proxy_address(),
    })?;
    appliance.elsewhere().add(network.inode());
    appliance.serve(&sandbox, listeners);
    Ok(sandbox)
}

/// Opens what the fence's messages are read from, where they are not in the kernel log.
fn open_source(appliance: &Appliance, network: &Network) -> Result<Option<nflog::Socket>, MadeError> {
    let source = appliance.bypass_source();
    sluice_netns::inside(network.netns(), || source.open_in_own())?.map_err(MadeError::Source)
}

/// Undoes [`serve`], once what was logged is told. The namespace with this inode is not touched.
pub(crate) fn end_service(appliance: &Appliance, sandbox: &Arc<Sandbox>, inode: u64) {
    let began = Instant::now();
    while sandbox.connections_now() > 0 && began.elapsed() < LAST_WORDS {
        std::thread::sleep(LOOK_EVERY);
    }
    appliance.forget(sandbox);
    appliance.unwatch(sandbox);
    appliance.elsewhere().remove(inode);
}

/// Serves the witness on a thread of its own. Should it end early, connects fail inside; the fence stands.
pub(crate) fn attend(witness: Witness) -> io::Result<Confined> {
    confined::spawn(Role::Witness, Vec::new(), move || {
        if let Err(error) = witness.run(None) {
            tracing::error!(%error, "the witness has ended; direct attempts are refused without a name");
        }
    })
}

fn report(sandbox: &Sandbox, kind: Kind) {
    let mut event = Event::now(kind);
    event.sandbox = Some(sandbox.name());
    sandbox.reporter().report(&event, Urgency::Now);
}

/// The witness' notes, as identity asks for them.
struct Witnessed(Arc<Notes>);

impl ConnectNotes for Witnessed {
    fn find(&self, client: SocketAddr, proxy: SocketAddr) -> Option<Seen> {
        let note = self.0.lookup_tcp(client.port(), proxy)?;
        let process = &note.process;
        Some(Seen {
            pid: process.pid,
            tid: note.tid,
            start_time: process.start_time,
            exe: process.exe.to_path_buf(),
            comm: process.comm.to_string(),
            uid: process.uid,
            ancestors: Some(process.ancestors.iter().map(|path| path.to_path_buf()).collect()),
        })
    }
}

/// Variables that carry the proxy's URL, each also in lower case.
const PROXY_VARIABLES: [&str; 6] =
    ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "WS_PROXY", "WSS_PROXY", "GRPC_PROXY"];
/// Local servers of the sandbox are reached without the proxy.
const NO_PROXY: &str = "localhost,127.0.0.1,::1";

/// This process' environment with every variable that makes a known runtime use the proxy.
pub(crate) fn environment(
    sandbox: &str,
    proxy: SocketAddr,
    own: Vec<(OsString, OsString)>,
) -> Vec<(OsString, OsString)> {
    let url = format!("http://{proxy}");
    let mut set: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
    for name in PROXY_VARIABLES {
        set.insert(name.into(), url.clone().into());
        set.insert(name.to_ascii_lowercase().into(), url.clone().into());
    }
    for name in ["NO_PROXY", "no_proxy"] {
        set.insert(name.into(), NO_PROXY.into());
    }
    // Node ignores the others before 22.21 and 24, and obeys them only with this.
    set.insert("NODE_USE_ENV_PROXY".into(), "1".into());
    // What Electron's and global-agent's users set.
    set.insert("ELECTRON_GET_USE_PROXY".into(), "1".into());
    set.insert("GLOBAL_AGENT_HTTP_PROXY".into(), url.into());
    set.insert("SLUICE_SANDBOX".into(), sandbox.into());
    set.extend(own);
    set.into_iter().collect()
}
