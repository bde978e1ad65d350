//! The data plane: one pinned thread per core with a ring of its own; nothing on the path is shared or locked
//! (decision 1).
//!
//! The life of a connection: `accept.rs` takes it from a sandbox's listener and knows by that which sandbox is asking;
//! `session.rs` reads heads and asks who (`who.rs`) and whether (`policy::decide`); `dial.rs` resolves, checks every
//! address and connects, the worker's cache and the control plane helping; `connect.rs` answers a CONNECT and hands the
//! two sockets to `relay.rs`, `screen.rs` looking at the client's ClientHello first. Where requests are judged in a
//! tunnel, `intercept.rs` ends its TLS (`tls.rs`, with certificates from `leaves.rs`); HTTP/2 in it is served by `h2/`. `forward.rs` judges requests and
//! `exchange.rs` passes each on, its bodies by `body.rs`, over pooled upstream connections (`upstream.rs`).
//! `watchdog.rs` ends what takes too long, `live.rs` what a new policy denies; `mailbox.rs` is how the other threads reach a worker.

mod accept;
mod body;
mod buffers;
mod connect;
mod dial;
mod exchange;
mod forward;
mod h2;
mod intercept;
mod leaves;
mod live;
mod mailbox;
mod names;
mod pending;
mod pipes;
mod race;
mod refusal;
mod relay;
mod report;
mod screen;
mod session;
mod socket;
mod tls;
mod upstream;
mod watchdog;
mod who;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use monoio::time::TimeDriver;
use monoio::{IoUringDriver, RuntimeBuilder};
use sluice_seccomp::harden;

use crate::address::Guard;
use crate::control::names::{Answer, Names};
use crate::destination::Host;
use crate::event::Reporter;
use crate::http::limits::HeadLimits;
use crate::http::rewrite::Pseudonym;
use crate::identity::{Digest, Identity, Images, Scanner};
use crate::limits::Limits;
use crate::measures::WorkerMeasures;
use crate::policy::{self, Ask, Deny, Permit, Policy};
use crate::sandbox::{Sandbox, Sources};
use crate::tls::signer::{Signed, Signer};
use mailbox::{Mailbox, Sender};
use pending::Pending;
use watchdog::{Cause, Watchdog};

/// Entries of a worker's submission queue; completions get twice as many.
const RING_ENTRIES: u32 = 4096;

/// Pipes of one worker: 64 MiB of kernel memory when all are full. Bulk beyond that is copied.
const PIPES_MAX: usize = 256;
/// Of so many policy decisions one is timed.
const DECISIONS_PER_SAMPLE: u64 = 64;
/// How long connections may take to say their last when the worker stops.
const DRAIN: Duration = Duration::from_secs(1);

/// A ring as the workers build it: only its own thread submits, and completions are taken when that thread asks for
/// them. A third cheaper than the default ring (docs/decisions/0001).
pub(crate) fn ring() -> io_uring::Builder {
    let mut builder = io_uring::IoUring::builder();
    builder.setup_single_issuer().setup_defer_taskrun().setup_coop_taskrun();
    builder
}

/// Who is behind the connections of a listener.
#[derive(Clone)]
pub enum Behind {
    /// One sandbox: the listener was made inside it.
    Sandbox(Arc<Sandbox>),
    /// Whoever the source address says: the host's listener.
    Sources(Arc<Sources>),
}

/// What other threads tell a worker.
pub(crate) enum Message {
    /// Accept on this socket from now on.
    Serve(Behind, TcpListener),
    /// Stop accepting for the sandbox and end its connections.
    Forget(Arc<Sandbox>),
    /// Their policies have been swapped: judge again what is open.
    Rejudge(Arc<[Arc<Sandbox>]>),
    /// The answer to a question about a name.
    Resolved(Box<str>, Answer),
    /// The answer to a question about a client.
    Identified(u64, Arc<Identity>),
    /// The answer to a request for a leaf.
    Signed((u64, Host), Signed),
    /// The answer to a question about a program's image.
    Hashed(u64, Option<Digest>),
    /// End everything and the thread.
    Stop,
}

/// What a worker needs to begin.
pub struct Settings {
    /// Its number; names the thread.
    pub index: usize,
    /// The core it is pinned to.
    pub core: Option<usize>,
    /// The namespace it dials from; its parent's when absent.
    pub dial_from: Option<OwnedFd>,
    /// Bounds and time-outs.
    pub limits: Arc<Limits>,
    /// Where names are asked for.
    pub names: Names,
    /// What stands in front of every dial.
    pub guard: Arc<ArcSwap<Guard>>,
    /// How this proxy calls itself in `Via`: a request that carries it has been here.
    pub pseudonym: Pseudonym,
    /// Where `/proc` is read at length.
    pub scanner: Arc<Scanner>,
    /// Where programs are hashed.
    pub images: Arc<Images>,
    /// Whether every program is hashed, or only those whose policy pins a hash.
    pub hash_always: bool,
    /// Where certificates for intercepted names are signed.
    pub signer: Arc<Signer>,
    /// Where events go that belong to no sandbox.
    pub reporter: Reporter,
    /// The operator's own sentence for whoever is refused.
    pub refusal_hint: Option<Arc<str>>,
}

/// A running worker.
pub struct Worker {
    sender: Sender,
    thread: Option<JoinHandle<()>>,
    beat: Arc<AtomicU64>,
}

impl Worker {
    /// Starts the thread; returns when its ring is made.
    pub fn start(settings: Settings) -> io::Result<Self> {
        let (sender, mailbox) = mailbox::mailbox()?;
        let beat = Arc::new(AtomicU64::new(0));
        let (started, outcome) = std::sync::mpsc::channel();
        let (own_sender, own_beat) = (sender.clone(), Arc::clone(&beat));
        let thread = std::thread::Builder::new()
            .name(format!("worker-{}", settings.index))
            .spawn(move || run(settings, mailbox, own_sender, own_beat, &started))?;
        outcome.recv().map_err(|_| io::Error::other("the worker died at its start"))??;
        Ok(Self { sender, thread: Some(thread), beat })
    }

    /// Accepts on `listener` for whoever is behind it.
    pub fn serve(&self, behind: Behind, listener: TcpListener) {
        self.sender.send(Message::Serve(behind, listener));
    }

    /// Stops accepting for `sandbox` and ends its connections.
    pub fn forget(&self, sandbox: &Arc<Sandbox>) {
        self.sender.send(Message::Forget(Arc::clone(sandbox)));
    }

    /// Judges again what is open in these sandboxes, whose policies have been swapped.
    pub fn rejudge(&self, changed: &Arc<[Arc<Sandbox>]>) {
        self.sender.send(Message::Rejudge(Arc::clone(changed)));
    }

    /// Whether the thread is alive. A worker never ends by itself; one that did has panicked.
    pub fn is_alive(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// How often the worker has swept, four times a second or more: a figure that stands still is a worker that does.
    pub fn beats(&self) -> u64 {
        self.beat.load(Ordering::Relaxed)
    }

    /// Ends every connection and the thread.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.sender.send(Message::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a worker panicked");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}

/// What the tasks of one worker share.
pub(crate) struct Core {
    pub(crate) limits: Arc<Limits>,
    pub(crate) guard: Arc<ArcSwap<Guard>>,
    pub(crate) pseudonym: Pseudonym,
    pub(crate) scanner: Arc<Scanner>,
    pub(crate) reporter: Reporter,
    pub(crate) refusal_hint: Option<Arc<str>>,
    pub(crate) measures: WorkerMeasures,
    pub(crate) means: relay::Means,
    pub(crate) watchdog: Watchdog,
    pub(crate) names: names::NameCache,
    pub(crate) upstreams: upstream::Upstreams<socket::Socket>,
    pub(crate) callers: who::Callers,
    /// Dialled for TLS, and nothing said yet.
    pub(crate) dialled: upstream::Upstreams<socket::Socket>,
    pub(crate) tls_upstreams: upstream::Upstreams<tls::Tls<socket::Socket>>,
    pub(crate) leaves: leaves::Leaves,
    /// Origins that speak no HTTP/2.
    pub(crate) without_h2: h2::Without,
    pub(crate) scans: Pending<Arc<Identity>>,
    pub(crate) hashes: Pending<Option<Digest>>,
    pub(crate) images: Arc<Images>,
    pub(crate) hash_always: bool,
    pub(crate) sender: Sender,
    /// Decisions made, to time one in so many.
    decisions: Cell<u64>,
    /// Ends the accept loops of a sandbox when dropped.
    accepting: RefCell<HashMap<*const Sandbox, Vec<futures_channel::oneshot::Sender<()>>>>,
    stopping: Cell<bool>,
    /// Connections that were refused at the door and are still read.
    turned_away: Cell<usize>,
    /// Sandboxes with a new policy, by address, whose connections have not been judged again.
    changed: RefCell<HashMap<*const (), Arc<Sandbox>>>,
    /// A task is at it.
    rejudging: Cell<bool>,
}

fn run(
    settings: Settings,
    mailbox: Mailbox,
    sender: Sender,
    beat: Arc<AtomicU64>,
    started: &std::sync::mpsc::Sender<io::Result<()>>,
) {
    let made = prepare(&settings).and_then(|()| {
        let mut uring = ring();
        uring.setup_cqsize(RING_ENTRIES * 2);
        if harden::mode() != harden::Mode::Off {
            uring.setup_r_disabled();
        }
        let builder: RuntimeBuilder<IoUringDriver> = RuntimeBuilder::new();
        let runtime = builder.uring_builder(uring).with_entries(RING_ENTRIES).enable_timer().build()?;
        harden::limit_rings(harden::Role::Worker)?;
        Ok(runtime)
    });
    let mut runtime: monoio::Runtime<TimeDriver<IoUringDriver>> = match made {
        Ok(runtime) => runtime,
        Err(error) => return drop(started.send(Err(error))),
    };
    let core = Rc::new(Core {
        measures: WorkerMeasures::new(),
        means: relay::Means::new(PIPES_MAX),
        watchdog: Watchdog::new(settings.limits.shortest_timeout()),
        names: names::NameCache::new(settings.names, sender.clone()),
        upstreams: upstream::Upstreams::new(Arc::clone(&settings.limits)),
        callers: who::Callers::default(),
        dialled: upstream::Upstreams::new(Arc::clone(&settings.limits)),
        tls_upstreams: upstream::Upstreams::new(Arc::clone(&settings.limits)),
        leaves: leaves::Leaves::new(settings.signer, sender.clone()),
        without_h2: h2::Without::default(),
        scans: Pending::default(),
        hashes: Pending::default(),
        images: settings.images,
        hash_always: settings.hash_always,
        limits: settings.limits,
        guard: settings.guard,
        pseudonym: settings.pseudonym,
        scanner: settings.scanner,
        reporter: settings.reporter,
        refusal_hint: settings.refusal_hint,
        sender,
        decisions: Cell::new(0),
        accepting: RefCell::default(),
        stopping: Cell::new(false),
        turned_away: Cell::new(0),
        changed: RefCell::default(),
        rejudging: Cell::new(false),
    });
    if let Err(error) = harden::enter(harden::Role::Worker, &[]) {
        return drop(started.send(Err(error.into())));
    }
    drop(started.send(Ok(())));
    runtime.block_on(core.live(mailbox, beat));
}

fn prepare(settings: &Settings) -> io::Result<()> {
    if let Some(namespace) = &settings.dial_from {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
    }
    if let Some(core) = settings.core {
        let mut set = nix::sched::CpuSet::new();
        set.set(core)?;
        nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?;
    }
    Ok(())
}

impl Core {
    /// The bounds on a head, as HTTP wants them.
    pub(crate) fn head_limits(&self) -> HeadLimits {
        HeadLimits {
            head_octets_max: self.limits.head_bytes,
            fields_max: self.limits.head_count,
            ..HeadLimits::default()
        }
    }

    /// Decides. One decision in [`DECISIONS_PER_SAMPLE`] is timed: reading the clock costs as much as deciding.
    pub(crate) fn decide<'a>(&self, policy: &'a Policy, ask: &Ask<'a>) -> Result<Permit<'a>, Box<Deny>> {
        let number = self.decisions.get();
        self.decisions.set(number.wrapping_add(1));
        if !number.is_multiple_of(DECISIONS_PER_SAMPLE) {
            return policy::decide(policy, ask);
        }
        let began = Instant::now();
        let decision = policy::decide(policy, ask);
        self.measures.policy_decision.record(began.elapsed().as_secs_f64());
        decision
    }

    /// Takes mail until told to stop, then waits for the connections to say their last.
    async fn live(self: Rc<Self>, mailbox: Mailbox, beat: Arc<AtomicU64>) {
        monoio::spawn(Rc::clone(&self).keep_time(beat));
        let ring = match mailbox.on_ring() {
            Ok(ring) => ring,
            Err(error) => return tracing::error!(%error, "a worker cannot hear"),
        };
        let mut mail = Vec::new();
        while !self.stopping.get() {
            if let Err(error) = mailbox.receive(&ring, &mut mail).await {
                return tracing::error!(%error, "a worker can no longer hear");
            }
            for message in mail.drain(..) {
                self.take(message);
            }
        }
        let began = Instant::now();
        while self.watchdog.alive() > 0 && began.elapsed() < DRAIN {
            monoio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn take(self: &Rc<Self>, message: Message) {
        match message {
            Message::Serve(behind, listener) => self.serve(behind, listener),
            Message::Forget(sandbox) => {
                self.accepting.borrow_mut().remove(&Arc::as_ptr(&sandbox));
                self.watchdog.stop_all(Some(Arc::as_ptr(&sandbox)), Cause::Stopping);
                self.upstreams.forget(&sandbox);
                self.dialled.forget(&sandbox);
                self.tls_upstreams.forget(&sandbox);
                if let Some(interception) = sandbox.interception() {
                    self.leaves.forget(interception);
                    self.without_h2.forget(interception);
                }
            }
            Message::Rejudge(changed) => self.rejudge(&changed),
            Message::Resolved(name, answer) => self.names.answered(name, answer),
            Message::Identified(ticket, identity) => self.scans.answer(ticket, identity),
            Message::Signed(key, signed) => self.leaves.answered(key, signed),
            Message::Hashed(ticket, digest) => self.hashes.answer(ticket, digest),
            Message::Stop => {
                self.stopping.set(true);
                self.accepting.borrow_mut().clear();
                self.watchdog.stop_all::<Sandbox>(None, Cause::Stopping);
            }
        }
    }

    fn serve(self: &Rc<Self>, behind: Behind, listener: TcpListener) {
        let (stop, stopped) = futures_channel::oneshot::channel();
        let key = match &behind {
            Behind::Sandbox(sandbox) => Arc::as_ptr(sandbox),
            Behind::Sources(_) => std::ptr::null(),
        };
        self.accepting.borrow_mut().entry(key).or_default().push(stop);
        monoio::spawn(accept::accept(Rc::clone(self), behind, listener, stopped));
    }

    async fn keep_time(self: Rc<Self>, beat: Arc<AtomicU64>) {
        loop {
            self.watchdog.sweep();
            self.upstreams.sweep();
            self.dialled.sweep();
            self.tls_upstreams.sweep();
            beat.fetch_add(1, Ordering::Relaxed);
            monoio::time::sleep(self.watchdog.every()).await;
        }
    }
}
