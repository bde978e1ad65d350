//! The daemon's configuration file.
//!
//! Owns the schema of `sluice serve --config`, and notices when its files change (`changes.rs`). Never acts on it: no
//! socket is bound, no folder made.
//!
//! The life of a configuration: [`load`] reads the file and every policy it names (`load.rs`), and gives a [`Config`]
//! in which all policies are loaded, or every error of all those files at once, each at its own place.

mod changes;
mod load;
mod shape;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sluice_netns::LinkName;
use sluice_seccomp::harden::Mode;

pub use changes::Changes;
pub(crate) use load::from_tree;
pub use load::{Files, Loaded, NAME_CHARS_MAX, REFUSAL_HINT_CHARS_MAX, SANDBOXES_MAX, is_name, load, parse};

use crate::diagnostic::Place;
use crate::limits::{Limits, SandboxLimits};
use crate::policy::{PolicyFile, Source};
use crate::tls::Oldest;
use crate::watch::BypassSource;

/// Listening sockets a sandbox gets unless told: as many workers share its connections. Each costs three descriptors
/// and some kernel memory, a thousand sandboxes over.
pub const LISTENERS_AUTO_MAX: usize = 4;

/// Everything `serve` can be told.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where the proxy listens inside every made or attached sandbox.
    pub proxy_address: SocketAddr,
    /// The host's listener for external sandboxes; none if absent.
    pub listen: Option<SocketAddr>,
    /// How many workers, and where.
    pub workers: Workers,
    /// Where the bypass monitor runs.
    pub bypass_core: Core,
    /// Where it learns of direct attempts.
    pub bypass_source: BypassSource,
    /// The admin API's Unix socket.
    pub admin_socket: PathBuf,
    /// `/metrics`, `/live`, `/ready`; none if absent.
    pub metrics: Option<SocketAddr>,
    /// Where events go, as NDJSON.
    pub events: EventSink,
    /// Listening sockets a made or attached sandbox gets, each served by a worker of its own; none: see
    /// [`LISTENERS_AUTO_MAX`].
    pub listeners_per_sandbox: Option<usize>,
    /// Where namespaces and other things to tidy up are noted.
    pub state_dir: PathBuf,
    /// Blocks that the address guard lets through though they are special.
    pub permit_special_addresses: Vec<IpNet>,
    /// The operator's own sentence at the end of every refusal's hint, such as whom to ask.
    pub refusal_hint: Option<Arc<str>>,
    /// `tls.upstream_ca`: files of authorities that origins are trusted by, besides the platform's.
    pub upstream_ca: Vec<PathBuf>,
    /// `tls.min_version`.
    pub tls_oldest: Oldest,
    /// `tls.http2`: whether it is spoken inside TLS where client and origin both do.
    pub tls_http2: bool,
    /// How far Sluice confines itself; absent: as `SLUICE_HARDENING` says, else `enforce`.
    pub hardening: Option<Mode>,
    /// The `timeouts` and `limits` blocks.
    pub limits: Limits,
    /// The static sandboxes; more come through the admin API.
    pub sandboxes: Vec<SandboxConfig>,
}

/// `workers` and `cores`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Workers {
    /// One for each core.
    Auto,
    /// This many, on the first cores.
    Count(usize),
    /// One on each of these cores; no duplicates.
    Cores(Vec<usize>),
}

/// `bypass_core`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Core {
    /// The last one.
    Auto,
    /// This one.
    Pinned(usize),
}

/// `events`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventSink {
    /// `-`, the default.
    Stdout,
    /// Appended to.
    File(PathBuf),
}

/// What a sandbox is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A namespace of our making.
    Made,
    /// `netns` or `pid`: a namespace that something else made.
    Attached {
        /// Which.
        to: AttachTo,
        /// The host's end of its link, to be fenced there too.
        link: Option<LinkName>,
    },
    /// `source`: known by its address on the host's listener.
    External {
        /// Its addresses. The longest prefix that holds a client's address decides.
        source: IpNet,
        /// The host's end of its link, to be fenced. Then the source is one address.
        link: Option<LinkName>,
    },
}

/// An existing namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachTo {
    /// That of this process, in the host's pids.
    Pid(u32),
    /// That this path leads to.
    Netns(PathBuf),
}

impl AttachTo {
    /// As the network takes it.
    pub fn target(&self) -> sluice_netns::Target {
        match self {
            Self::Pid(pid) => sluice_netns::Target::Pid(*pid),
            Self::Netns(path) => sluice_netns::Target::Path(path.clone()),
        }
    }
}

impl fmt::Display for AttachTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.target().fmt(f)
    }
}

/// One entry of `sandboxes`.
#[derive(Clone, Debug, PartialEq)]
pub struct SandboxConfig {
    /// Unique; see [`is_name`].
    pub name: Arc<str>,
    /// What it is made of.
    pub shape: Shape,
    /// How the asking process is found.
    pub identity: IdentityMode,
    /// What `policy` says.
    pub policy_source: Source,
    /// The policy; the same for all sandboxes that name the same file.
    pub policy: Arc<PolicyFile>,
    /// Its share.
    pub limits: SandboxLimits,
    /// Where it is written.
    pub place: Place,
}

/// `identity`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdentityMode {
    /// The program behind the socket, and its ancestors.
    #[default]
    Process,
    /// Only the user behind the socket.
    Uid,
    /// Nothing; a policy that names binaries is refused.
    Off,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            proxy_address: SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 200, 0, 1)), 3128),
            listen: None,
            workers: Workers::Auto,
            bypass_core: Core::Auto,
            bypass_source: BypassSource::Kmsg,
            admin_socket: PathBuf::from("/run/sluice/admin.sock"),
            metrics: None,
            events: EventSink::Stdout,
            listeners_per_sandbox: None,
            state_dir: PathBuf::from("/run/sluice"),
            permit_special_addresses: Vec::new(),
            refusal_hint: None,
            upstream_ca: Vec::new(),
            tls_oldest: Oldest::default(),
            tls_http2: true,
            hardening: None,
            limits: Limits::default(),
            sandboxes: Vec::new(),
        }
    }
}
