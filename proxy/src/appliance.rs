//! The appliance: control plane, workers and bypass core, started together and stopped in order.
//!
//! `exec`, `serve` and `demo` are three ways to use one appliance; they differ in the sandboxes they give it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use sluice_bypass::monitor::Resume;
use sluice_bypass::{Monitor, MonitorError, Settings as MonitorSettings};
use sluice_seccomp::harden::{self, HardenError, Mode, Role};
use thiserror::Error;

use crate::address::Guard;
use crate::confined;
use crate::control::Control;
use crate::control::names::Names;
use crate::event::feed::Feed;
use crate::event::journal::{Journal, Target, Urgency, Writer};
use crate::event::ledger::Ledger;
use crate::event::{Event, Kind, ProcessView, Reporter, Words};
use crate::http::rewrite::Pseudonym;
use crate::identity::{Changed, Elsewhere, Images, Scanner, Trace, TraceFigures};
use crate::limits::Limits;
use crate::policy::Policy;
use crate::sandbox::{Sandbox, Sources};
use crate::tls::authority::AuthorityError;
use crate::tls::signer::Signer;
use crate::tls::{self, Interception, Trust};
use crate::watch::{BypassSource, Watch, Watched};
use crate::worker::{Behind, Settings, Worker};

/// Connections the kernel may hold for a host listener before they are accepted.
const BACKLOG: i32 = 4096;
/// Identity lookups that may wait for a search of `/proc`, all sandboxes together.
const SCANS_WAITING_MAX: usize = 4096;
/// How long the bypass core may take to read what was logged before it is stopped.
const DRAIN: Duration = Duration::from_secs(2);
/// How often the host's own addresses are read again for the address guard.
const ADDRESSES_EVERY: Duration = Duration::from_secs(5);

/// What an appliance is to be like.
pub struct Plan {
    /// Cores of the workers, one worker each; `None` leaves a worker where the scheduler puts it.
    pub workers: Vec<Option<usize>>,
    /// Core of the bypass core.
    pub bypass_core: Option<usize>,
    /// Where direct attempts are learnt of.
    pub bypass_source: BypassSource,
    /// Whether direct attempts are to be watched for. Only sandboxes with a fence make any.
    pub watch: bool,
    /// Bounds and time-outs.
    pub limits: Limits,
    /// Where the proxy listens on this host: never dialled, whatever is permitted.
    pub listeners: Vec<SocketAddr>,
    /// Special ranges the address guard lets through.
    pub permit_special: Vec<IpNet>,
    /// The namespace the workers dial from; this process' when absent.
    pub dial_from: Option<OwnedFd>,
    /// Names answered without asking anybody.
    pub names: HashMap<Box<str>, Arc<[IpAddr]>>,
    /// Whether the host's connects are traced: identity for sandboxes without a witness.
    pub trace: bool,
    /// Whether every program that asks is hashed, for events and to notice changes; otherwise only where a policy pins a
    /// hash.
    pub hash_always: bool,
    /// The operator's own sentence for whoever is refused.
    pub refusal_hint: Option<Arc<str>>,
    /// Whom origins are trusted by where TLS is looked into, and what is spoken.
    pub trust: Arc<Trust>,
    /// Where events go.
    pub events: Target,
    /// Which refusals are said in words.
    pub words: Words,
    /// Where those who ask a daemon get its events. Then it also keeps account of many sandboxes, not of one command.
    pub feed: Option<Arc<Feed>>,
    /// How far this process confines itself.
    pub hardening: Mode,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            workers: vec![None],
            bypass_core: None,
            bypass_source: BypassSource::Kmsg,
            watch: true,
            limits: Limits::default(),
            listeners: Vec::new(),
            permit_special: Vec::new(),
            dial_from: None,
            names: HashMap::new(),
            trace: false,
            hash_always: false,
            refusal_hint: None,
            trust: Arc::new(Trust::nobody()),
            events: Target::None,
            words: Words::UpToARate,
            feed: None,
            hardening: Mode::Off,
        }
    }
}

/// Why an appliance did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The events file.
    #[error("events cannot be written to {target}: {source}; create its directory, or choose another file")]
    Events {
        /// As configured.
        target: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A thread, ring or socket of ours.
    #[error("{what} cannot be started: {source}")]
    Part {
        /// Which part.
        what: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The bypass core.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// Confining ourselves.
    #[error(transparent)]
    Harden(#[from] HardenError),
    /// A listener for external sandboxes.
    #[error("cannot listen on {address}; choose another address, or end what uses it")]
    Listen {
        /// As configured.
        address: SocketAddr,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// A running appliance.
pub struct Appliance {
    // In the order in which they end.
    monitor: Option<Monitor<Watch>>,
    bypass_source: BypassSource,
    host_watched: Mutex<bool>,
    workers: Vec<Worker>,
    /// Which worker serves the next sandbox' first listener.
    next_worker: AtomicUsize,
    scanner: Arc<Scanner>,
    elsewhere: Arc<Elsewhere>,
    trace: Option<OnceLock<Option<Arc<Trace>>>>,
    trust: Arc<Trust>,
    control: Control,
    reporter: Reporter,
    writer: Option<Writer>,
    retired: Retired,
}

/// Policies that are no longer in force, kept until no worker reads them: freeing a large one takes milliseconds, which
/// no connection is to wait for.
#[derive(Default)]
struct Retired(Mutex<Vec<Arc<Policy>>>);

impl Retired {
    fn keep(&self, policies: Vec<Arc<Policy>>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(policies);
        self.free();
    }

    /// Frees what nobody else holds. Once swapped out, a policy gets no new holders.
    fn free(&self) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (free, held) = kept.drain(..).partition::<Vec<_>, _>(|policy| Arc::strong_count(policy) == 1);
        *kept = held;
        drop(kept);
        drop(free);
    }
}

impl Appliance {
    /// Starts all parts.
    pub fn start(plan: Plan) -> Result<Self, StartError> {
        let part = |what| move |source| StartError::Part { what, source };
        harden::process(plan.hardening)?;
        let feed = plan.feed;
        let ledger = if feed.is_some() { Ledger::of_many() } else { Ledger::default() };
        let (journal, writer) = Journal::open(&plan.events, feed.clone())
            .map_err(|source| StartError::Events { target: plan.events.to_string(), source })?;
        let reporter = Reporter::new(journal, Arc::new(ledger), plan.words).with_feed(feed);
        let control = Control::start().map_err(part("the control plane"))?;
        let scanner = Arc::new(Scanner::start(SCANS_WAITING_MAX).map_err(part("the identity scanner"))?);
        let told = reporter.clone();
        let images =
            Images::start(move |change| tell_changed(&told, &change)).map_err(part("the hashing thread"))?;
        let images = Arc::new(images);
        let signer = Arc::new(Signer::start().map_err(part("the signing thread"))?);
        let elsewhere = Arc::new(Elsewhere::with_host().map_err(part("identity"))?);
        let trace = plan.trace.then(OnceLock::new);
        let names = Names::new(control.runtime().clone(), plan.names);
        let guard = keep_guard(&control, plan.permit_special, plan.listeners, plan.dial_from.is_some());
        let limits = Arc::new(plan.limits);
        let pseudonym = Pseudonym::new(random());
        let mut workers = Vec::with_capacity(plan.workers.len());
        for (index, core) in plan.workers.into_iter().enumerate() {
            let dial_from =
                plan.dial_from.as_ref().map(OwnedFd::try_clone).transpose().map_err(part("a worker"))?;
            let settings = Settings {
                index,
                core,
                dial_from,
                limits: Arc::clone(&limits),
                names: names.clone(),
                guard: Arc::clone(&guard),
                pseudonym: pseudonym.clone(),
                scanner: Arc::clone(&scanner),
                images: Arc::clone(&images),
                hash_always: plan.hash_always,
                signer: Arc::clone(&signer),
                reporter: reporter.clone(),
                refusal_hint: plan.refusal_hint.clone(),
            };
            workers.push(Worker::start(settings).map_err(part("a worker"))?);
        }
        let monitor = plan
            .watch
            .then(|| {
                let watch = Watch::new(reporter.clone(), Arc::clone(&scanner), Arc::clone(&guard));
                let watch = watch.map_err(part("the bypass core"))?;
                start_monitor(plan.bypass_core, plan.bypass_source, watch)
            })
            .transpose()?;
        Ok(Self {
            monitor,
            bypass_source: plan.bypass_source,
            host_watched: Mutex::new(false),
            workers,
            next_worker: AtomicUsize::new(0),
            scanner,
            elsewhere,
            trace,
            trust: plan.trust,
            control,
            reporter,
            writer: Some(writer),
            retired: Retired::default(),
        })
    }

    /// Where events go.
    pub fn reporter(&self) -> &Reporter {
        &self.reporter
    }

    /// Where `/proc` is read at length.
    pub fn scanner(&self) -> &Arc<Scanner> {
        &self.scanner
    }

    /// The namespaces of all sandboxes and of the host: none is searched for another's processes.
    pub fn elsewhere(&self) -> &Arc<Elsewhere> {
        &self.elsewhere
    }

    /// The trace of this host's connects, if it was wanted and can be had. It begins with the first who asks for it.
    pub fn trace(&self) -> Option<Arc<Trace>> {
        self.trace.as_ref()?.get_or_init(open_trace).clone()
    }

    /// What the trace has seen, if it has begun.
    pub fn trace_figures(&self) -> Option<TraceFigures> {
        Some(self.trace.as_ref()?.get()?.as_ref()?.figures())
    }

    /// The sandbox with an authority of its own, so that TLS inside it can be looked into where its policy judges requests;
    /// an authority for `names` alone, where no other can be asked for in the sandbox' life.
    pub fn intercepted(
        &self,
        sandbox: Sandbox,
        names: Option<&tls::Names>,
    ) -> Result<Sandbox, AuthorityError> {
        let interception = Interception::new(&self.trust, sandbox.name(), names, SystemTime::now())?;
        Ok(sandbox.intercepted(interception))
    }

    /// Whom origins are trusted by.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// The control plane.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// How many workers there are: a sandbox may have as many listeners.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Serves the sandbox on listeners made inside it, one a worker as far as they go. The next sandbox begins with the
    /// next worker.
    pub fn serve(&self, sandbox: &Arc<Sandbox>, listeners: Vec<TcpListener>) {
        let first =
            self.next_worker.fetch_add(listeners.len(), Ordering::Relaxed) % self.workers.len().max(1);
        for (worker, listener) in self.workers.iter().cycle().skip(first).zip(listeners) {
            worker.serve(Behind::Sandbox(Arc::clone(sandbox)), listener);
        }
    }

    /// Serves external sandboxes on the host's listener, every worker with a socket of its own.
    pub fn serve_sources(&self, address: SocketAddr, sources: &Arc<Sources>) -> Result<(), StartError> {
        for worker in &self.workers {
            let listener = listen(address).map_err(|source| StartError::Listen { address, source })?;
            worker.serve(Behind::Sources(Arc::clone(sources)), listener);
        }
        Ok(())
    }

    /// Where direct attempts are learnt of, and so where the fences' lines are to go.
    pub fn bypass_source(&self) -> BypassSource {
        self.bypass_source
    }

    /// Reads the messages of the host's fence from now on, where they are not in the kernel log. Once is enough, more
    /// does no harm.
    pub fn watch_host(&self) -> io::Result<()> {
        let mut watched = self.host_watched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(monitor) = self.monitor.as_ref().filter(|_| !*watched)
            && let Some(socket) = self.bypass_source.open_in_own()?
        {
            monitor.handle().watch(socket).map_err(io::Error::other)?;
        }
        *watched = true;
        Ok(())
    }

    /// Watches for the sandbox' direct attempts from now on.
    pub fn watch(&self, watched: Watched) -> Result<(), MonitorError> {
        match &self.monitor {
            Some(monitor) => monitor.handle().with(move |watch| watch.add(watched)),
            None => Ok(()),
        }
    }

    /// Reports what is still to be said of the sandbox' direct attempts, and watches no more.
    pub fn unwatch(&self, sandbox: &Arc<Sandbox>) {
        let name = sandbox.name().to_owned();
        self.finish_watching(move |watch| watch.remove(&name));
    }

    /// The same for all sandboxes.
    pub fn unwatch_all(&self) {
        self.finish_watching(Watch::remove_all);
    }

    fn finish_watching(&self, work: impl FnOnce(&mut Watch) + Send + 'static) {
        let Some(monitor) = &self.monitor else { return };
        let handle = monitor.handle();
        let (done, wait) = std::sync::mpsc::channel();
        let told = handle.drain(DRAIN).and_then(|()| {
            handle.with(move |watch| {
                work(watch);
                let _ = done.send(());
            })
        });
        if let Err(error) = told {
            tracing::error!(%error, "direct attempts may be missing from the account");
        } else {
            let _ = wait.recv_timeout(DRAIN);
        }
    }

    /// What the witness calls for each attempt it notes: a log line is due, and the bypass core looks at once instead of
    /// at the kernel's next tick.
    pub fn bypass_alert(&self) -> Option<impl Fn() + Send + use<>> {
        let handle = self.monitor.as_ref()?.handle();
        Some(move || {
            let _ = handle.nudge();
        })
    }

    /// Stops serving the sandbox and ends its connections.
    pub fn forget(&self, sandbox: &Arc<Sandbox>) {
        for worker in &self.workers {
            worker.forget(sandbox);
        }
    }

    /// Puts policies in force, all of them before a worker is told; what is open and now denied is closed soon after.
    pub fn put_policies(&self, policies: Vec<(Arc<Sandbox>, Arc<Policy>)>) {
        let changed: Arc<[Arc<Sandbox>]> = policies.iter().map(|(sandbox, _)| Arc::clone(sandbox)).collect();
        let before = policies.into_iter().map(|(sandbox, policy)| sandbox.set_policy(policy)).collect();
        self.retired.keep(before);
        for worker in &self.workers {
            worker.rejudge(&changed);
        }
    }

    /// Whether every part is alive; if not, which is not.
    pub fn health(&self) -> Result<(), &'static str> {
        confined::tell_refused();
        self.retired.free();
        if !self.workers.iter().all(Worker::is_alive) {
            return Err("a worker has died");
        }
        if self.monitor.as_ref().is_some_and(|monitor| !monitor.is_running()) {
            return Err("the bypass core has died");
        }
        if !self.control.is_alive() {
            return Err("the control plane has died");
        }
        Ok(())
    }

    /// How often each worker has swept; what stands still is stuck.
    pub fn beats(&self) -> Vec<u64> {
        self.workers.iter().map(Worker::beats).collect()
    }

    /// Ends all parts; everything reported before is written when this returns.
    pub fn stop(mut self) {
        for worker in self.workers.drain(..) {
            worker.stop();
        }
        if let Some(monitor) = self.monitor.take()
            && let Err(error) = monitor.stop()
        {
            tracing::error!(%error, "the bypass core did not end well");
        }
        if let Some(writer) = self.writer.take() {
            writer.close();
        }
    }
}

/// A path runs another binary than at first.
fn tell_changed(reporter: &Reporter, change: &Changed) {
    let (now, path) = (change.now.to_string(), change.path.to_string_lossy());
    let detail = format!("first seen as sha256 {}", change.first);
    let mut event = Event::now(Kind::BinaryChanged);
    event.sandbox = Some(&change.sandbox);
    event.uid = Some(change.process.uid);
    event.process = Some(ProcessView {
        pid: change.process.pid,
        exe: Some(&path),
        sha256: Some(&now),
        comm: Some(&change.process.comm),
        ancestors: &[],
    });
    event.detail = Some(&detail);
    reporter.report(&event, Urgency::Now);
    tracing::warn!(
        sandbox = &*change.sandbox,
        path = &*path,
        now,
        "a binary has changed since it was first seen"
    );
}

/// The trace, or a word about what is weaker without it.
fn open_trace() -> Option<Arc<Trace>> {
    match Trace::open() {
        Ok(trace) => Some(Arc::new(trace)),
        Err(error) => {
            tracing::warn!(%error, "clients without a witness are named as of the lookup, not of the connect");
            None
        }
    }
}

fn start_monitor(
    core: Option<usize>,
    source: BypassSource,
    watch: Watch,
) -> Result<Monitor<Watch>, StartError> {
    let settings = MonitorSettings {
        core,
        kmsg: (source == BypassSource::Kmsg).then_some(Resume::Fresh),
        ..MonitorSettings::default()
    };
    let monitor = Monitor::start(settings, watch)?;
    let home = monitor.handle();
    let (tell, told) = std::sync::mpsc::channel();
    monitor.handle().with(move |watch| {
        watch.set_home(home);
        let _ = tell.send(harden::enter(Role::BypassCore, &[]));
    })?;
    told.recv().map_err(|_| MonitorError::Stopped)??;
    Ok(monitor)
}

/// A guard that knows the host's own addresses, and learns of new ones.
fn keep_guard(
    control: &Control,
    permit: Vec<IpNet>,
    listeners: Vec<SocketAddr>,
    elsewhere: bool,
) -> Arc<ArcSwap<Guard>> {
    // Dialling from another namespace, this one's addresses mean nothing.
    if elsewhere {
        return Arc::new(ArcSwap::from_pointee(Guard::new(&permit, &[], &listeners)));
    }
    let guard = Arc::new(ArcSwap::from_pointee(Guard::new(&permit, &own_addresses(), &listeners)));
    let kept = Arc::clone(&guard);
    control.runtime().spawn(async move {
        loop {
            tokio::time::sleep(ADDRESSES_EVERY).await;
            kept.store(Arc::new(Guard::new(&permit, &own_addresses(), &listeners)));
        }
    });
    guard
}

/// Addresses of this host's interfaces, in the namespace this process runs in.
fn own_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    interfaces
        .filter_map(|interface| interface.address)
        .filter_map(|address| {
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .collect()
}

/// Finds out whether somebody listens there already: with SO_REUSEPORT a second daemon would quietly share the port. To
/// be asked before anything is started.
pub fn check_free(address: SocketAddr) -> Result<(), StartError> {
    TcpListener::bind(address).map(drop).map_err(|source| StartError::Listen { address, source })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // Accepted sockets inherit it, those that wait in the backlog from the first moment too.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A number that differs from process to process.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // Seeded by the kernel's random source.
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}
