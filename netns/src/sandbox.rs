//! A sandbox's network from creation to removal.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::adopt;
use crate::attach::{self, Target};
use crate::fence::{self, CounterReader, CounterSocket, Counters, InnerFence, LogLimit, LogPrefix};
use crate::nf_log::{self, LoggingOn};
use crate::state::{Claim, Record, RecordedNamespace, StateDir};
use crate::{
    Error, LogToken, NamespaceId, SandboxName, enter, links, listeners, namespace, processes, removal,
};

/// What a sandbox shall be like.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its name, unique within the state directory.
    pub name: SandboxName,
    /// Where owners note their sandboxes; `/run/sluice` unless told. Should be on a tmpfs.
    pub state_dir: PathBuf,
    /// The proxy's address inside: made on the sandbox's `lo`, the same in every sandbox. `10.200.0.1:3128` unless
    /// told.
    pub proxy_address: SocketAddr,
    /// How much of what is refused may be written to the kernel log. Refusing and counting know no limit.
    pub log_limit: LogLimit,
    /// Whether the sandbox outlives its owner: no sweep removes it, and a successor takes it over with
    /// [`Sandbox::adopt`]. A daemon's are kept, so that its restart ends no workload.
    pub kept: bool,
}

impl Spec {
    /// A sandbox with the defaults.
    pub fn new(name: SandboxName) -> Self {
        Self {
            name,
            state_dir: PathBuf::from("/run/sluice"),
            proxy_address: SocketAddr::from((Ipv4Addr::new(10, 200, 0, 1), 3128)),
            log_limit: LogLimit::default(),
            kept: false,
        }
    }
}

/// Where a sandbox's namespace comes from, and so what may be done to it at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// We made it: everything in it ends with the sandbox.
    Made,
    /// It was there (a container, a pod): only what we put into it is removed.
    Attached,
}

/// A living sandbox. Dropping a made one removes it, as [`Sandbox::destroy`] does, with errors only logged; dropping a
/// kept or an attached one leaves its processes fenced, as the owner's death would.
#[derive(Debug)]
pub struct Sandbox {
    kind: Kind,
    kept: bool,
    proxy_address: SocketAddr,
    token: LogToken,
    counting: CounterSocket,
    log_limit: LogLimit,
    netns: OwnedFd,
    id: NamespaceId,
    state: StateDir,
    /// What is given up at the end; `None` once it is.
    held: Option<Held>,
    name: SandboxName,
    netns_path: PathBuf,
}

/// What a living sandbox holds on the host.
#[derive(Debug)]
struct Held {
    claim: Claim,
    logging: Option<LoggingOn>,
}

impl Sandbox {
    /// Makes a namespace with the fence up and nothing in it but `lo`.
    ///
    /// Whatever a dead owner left under this name is removed first. On failure nothing is left behind.
    pub fn create(spec: &Spec) -> Result<Self, Error> {
        let state = StateDir::new(&spec.state_dir);
        let claim = claim(&state, &spec.name)?;
        match make(spec, &claim) {
            Ok(fenced) => Ok(Self::living(spec, Kind::Made, state, claim, fenced)),
            Err(error) => {
                removal::give_up(&state, claim);
                Err(error)
            }
        }
    }

    /// Takes an existing namespace into custody: fences it and makes the proxy's address in it.
    ///
    /// The fence is two-way: servers inside can no longer be reached from outside. A workload that may change the
    /// rules of its namespace could remove it; the fence on the host's side of its link is for that. If an earlier
    /// owner of the same namespace and name died, what runs inside stays fenced throughout.
    pub fn attach(spec: &Spec, target: &Target) -> Result<Self, Error> {
        let state = StateDir::new(&spec.state_dir);
        let (claim, fenced) = attach::attach(&state, spec, target)?;
        Ok(Self::living(spec, Kind::Attached, state, claim, fenced))
    }

    /// Takes over a kept sandbox whose owner is gone, as it is: what runs in it stays fenced throughout and its counts
    /// go on. A fence that is not as it should be is replaced in one transaction, and the second value says in what
    /// it differed. `None` if nothing of that name was kept since the machine started.
    pub fn adopt(spec: &Spec) -> Result<Option<(Self, Option<String>)>, Error> {
        let state = StateDir::new(&spec.state_dir);
        Ok(adopt::adopt(&state, spec)?.map(|adopted| {
            (Self::living(spec, adopted.kind, state, adopted.claim, adopted.fenced), adopted.difference)
        }))
    }

    fn living(spec: &Spec, kind: Kind, state: StateDir, claim: Claim, fenced: Fenced) -> Self {
        Self {
            kind,
            kept: spec.kept,
            proxy_address: spec.proxy_address,
            token: fenced.token,
            counting: fenced.counting,
            log_limit: spec.log_limit,
            netns: fenced.netns,
            id: fenced.id,
            state,
            name: spec.name.clone(),
            netns_path: claim.netns_path(),
            held: Some(Held { claim, logging: fenced.logging }),
        }
    }

    /// Its name.
    pub fn name(&self) -> &SandboxName {
        &self.name
    }

    /// Whether the namespace is ours or was there before.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The namespace, to run a workload in ([`crate::inside`], setns(2)).
    pub fn netns(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    /// Which namespace it is, as `/proc/<pid>/ns/net` shows it.
    pub fn id(&self) -> NamespaceId {
        self.id
    }

    /// The inode of the namespace, the number in `net:[…]`.
    pub fn inode(&self) -> u64 {
        self.id.inode
    }

    /// Where the namespace is mounted, for `nsenter --net=`.
    pub fn netns_path(&self) -> &Path {
        &self.netns_path
    }

    /// The proxy's address inside.
    pub fn proxy_address(&self) -> SocketAddr {
        self.proxy_address
    }

    /// The secret in this sandbox's log lines.
    pub fn log_token(&self) -> LogToken {
        self.token
    }

    /// How each kernel log line about this sandbox begins.
    pub fn log_prefix(&self) -> LogPrefix {
        LogPrefix::inner(&self.name, self.token)
    }

    /// Makes `count` listening sockets on the proxy's address inside (SO_REUSEPORT, non-blocking, close-on-exec).
    /// Accept on them from the host: the accepted socket belongs to the sandbox, and nothing else does.
    pub fn listeners(&self, count: usize) -> Result<Vec<TcpListener>, Error> {
        listeners::listen_inside(self.netns(), &self.name, self.proxy_address, count)
    }

    /// What the fence refused so far, exactly.
    pub fn counters(&self) -> Result<Counters, Error> {
        self.read_counters()?.ok_or_else(|| Error::FenceGone(self.name.clone()))
    }

    /// The same; `None` when the fence is not there, which only somebody with power over the namespace can bring
    /// about. Takes some ten microseconds.
    pub fn read_counters(&self) -> Result<Option<Counters>, Error> {
        fence::read_counters(&self.counting)
    }

    /// A reader of the same counts for another thread.
    pub fn counter_reader(&self) -> Result<CounterReader, Error> {
        enter::inside(self.netns(), open_counting)?.map(CounterReader::new)
    }

    /// Puts the fence back as it was loaded, in one transaction. Its counts start anew.
    pub fn repair_fence(&self) -> Result<(), Error> {
        let fence = self.inner_fence();
        enter::inside(self.netns(), || fence.replace_in_own())?
    }

    fn inner_fence(&self) -> InnerFence {
        InnerFence {
            proxy: self.proxy_address.ip(),
            prefix: self.log_prefix(),
            limit: self.log_limit,
            has_links: self.kind == Kind::Attached,
        }
    }

    /// The processes inside, in the host's pids; threads that entered on their own are not seen.
    pub fn processes(&self) -> Result<Vec<u32>, Error> {
        processes::in_namespace(self.id)
    }

    /// Kills every process inside a namespace that we made, so that nothing more is tried from it; one that was there
    /// before keeps them. For a last look at counters and log before [`Sandbox::destroy`].
    pub fn end_processes(&self) -> Result<(), Error> {
        match self.kind {
            Kind::Made => processes::kill_all(&self.name, self.id).map(|_killed| ()),
            Kind::Attached => Ok(()),
        }
    }

    /// Kills every process inside, then removes the namespace, its directory and its lock. The namespace itself
    /// ends when the last socket made inside it is closed.
    ///
    /// An attached namespace keeps its processes and loses only what was put into it, the fence included.
    pub fn destroy(mut self) -> Result<(), Error> {
        self.tear_down()
    }

    /// Gives the sandbox up without changing anything in it: what runs inside stays fenced. A kept one waits for
    /// [`Sandbox::adopt`], any other for a sweep.
    pub fn release(mut self) -> Result<(), Error> {
        self.let_go()
    }

    /// Reads the fence inside back from the kernel; [`Error::FenceDiffers`] or [`Error::NftRefused`] if it is not as
    /// it was loaded.
    pub fn check_fence(&self) -> Result<(), Error> {
        let fence = self.inner_fence();
        enter::inside(self.netns(), || fence.check_own())?
    }

    fn let_go(&mut self) -> Result<(), Error> {
        self.held.take().and_then(|held| held.logging).map_or(Ok(()), LoggingOn::release)
    }

    fn tear_down(&mut self) -> Result<(), Error> {
        let Some(Held { claim, logging }) = self.held.take() else { return Ok(()) };
        // The log setting is given back also when a process would not die.
        let removed = removal::tear_down(&self.state, claim);
        logging.map_or(Ok(()), LoggingOn::release)?;
        removed.map(|_killed| ())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let (done, failed) = match self.kind {
            Kind::Made if !self.kept => {
                (self.tear_down(), "cannot remove a sandbox; the next sweep tries again")
            }
            // As if the owner had died: what runs inside stays fenced.
            Kind::Made | Kind::Attached => (self.let_go(), "a sandbox was not given up cleanly"),
        };
        if let Err(error) = done {
            tracing::error!(name = %self.name, %error, "{failed}");
        }
    }
}

/// Claims `name`, after removing what a dead owner may have left under it.
fn claim(state: &StateDir, name: &SandboxName) -> Result<Claim, Error> {
    let remains = {
        let guard = state.lock()?;
        if let Some(claim) = guard.claim(name)? {
            return Ok(claim);
        }
        guard.take_if_ownerless(name)?
    };
    // Without the guard: killing what a dead owner left may take a while.
    if let Some(remains) = remains {
        refuse_if_kept(&remains)?;
        removal::tear_down(state, remains)?;
    }
    let guard = state.lock()?;
    if let Some(claim) = guard.claim(name)? {
        return Ok(claim);
    }
    Err(guard.exists(name)?)
}

/// A kept sandbox is its next owner's: whoever only wants its name must not end what runs in it.
pub(crate) fn refuse_if_kept(remains: &Claim) -> Result<(), Error> {
    match remains.read_record()? {
        Some(record) if record.is_kept()? => Err(Error::Kept(remains.name().clone())),
        _ => Ok(()),
    }
}

/// A namespace behind a fence that was read back.
pub(crate) struct Fenced {
    pub(crate) token: LogToken,
    pub(crate) counting: CounterSocket,
    pub(crate) netns: OwnedFd,
    pub(crate) id: NamespaceId,
    pub(crate) logging: Option<LoggingOn>,
}

fn make(spec: &Spec, claim: &Claim) -> Result<Fenced, Error> {
    let token = LogToken::random()?;
    let logging = nf_log::HOST.ensure_for(spec.log_limit.into)?;
    // Noted before the namespace is pinned: a sweeper kills only in what is known to be made by us.
    let mut record = Record::new(Kind::Made, token, spec.proxy_address)?;
    record.kept = spec.kept;
    claim.write_record(&record)?;
    let fence = InnerFence {
        proxy: spec.proxy_address.ip(),
        prefix: LogPrefix::inner(&spec.name, token),
        limit: spec.log_limit,
        has_links: false,
    };
    let path = claim.netns_path();
    let (netns, counting, namespace) = enter::on_own_thread(|| {
        let netns = namespace::make()?;
        namespace::pin_own(&path)?;
        links::set_up_made(spec.proxy_address.ip())?;
        fence.load_into_own()?;
        let id = NamespaceId::of_fd(netns.as_fd())?;
        let counting = open_counting()?;
        Ok((netns, counting, RecordedNamespace { id, cookie: namespace::own_cookie()? }))
    })?;
    record.namespace = Some(namespace);
    claim.write_record(&record)?;
    Ok(Fenced { token, counting, netns, id: namespace.id, logging })
}

/// Opens the socket through which the fence of the calling thread's namespace will be counted.
pub(crate) fn open_counting() -> Result<CounterSocket, Error> {
    CounterSocket::open_in_own().map_err(Error::io("open a netlink socket in", "/proc/thread-self/ns/net"))
}
