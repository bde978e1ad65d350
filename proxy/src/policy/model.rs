//! A policy as written: rules, endpoints, binaries, each with its place in the file.
//!
//! Made by `load`, turned into tables by `compile`, kept for messages ever after: a denial names the rule and line.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;

use super::glob::Glob;
use super::host::HostPattern;
use super::query::QueryRule;
use crate::diagnostic::Place;

/// One policy file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyFile {
    /// As the user named it, or `open` or `deny`.
    pub source: Arc<str>,
    /// `network_policies`, in the order of the file.
    pub rules: Vec<Rule>,
    /// What `exec` does to the workload.
    pub confinement: Confinement,
}

impl PolicyFile {
    /// Whether a rule names binaries: then a sandbox whose processes cannot be known must not use this policy.
    pub fn names_binaries(&self) -> bool {
        self.rules.iter().any(|rule| rule.head.binaries != Binaries::Any)
    }
}

/// One entry of `network_policies`: every listed binary may reach every listed endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What its endpoints share.
    pub head: Arc<RuleHead>,
    /// Where to.
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// A rule without its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleHead {
    /// The display name, by default the key.
    pub name: Arc<str>,
    /// The key's place.
    pub place: Place,
    /// Who.
    pub binaries: Binaries,
}

/// The programs a rule is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Binaries {
    /// No `binaries` key: any program, also one that could not be identified.
    Any,
    /// One of these, or a descendant of one.
    Listed(Vec<BinaryPattern>),
}

/// One entry of `binaries`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BinaryPattern {
    /// Absolute path, exact or a glob with `/` as separator.
    pub path: Glob,
    /// The program's image must have this SHA-256.
    pub sha256: Option<[u8; 32]>,
}

/// One entry of `endpoints`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The rule it belongs to.
    pub rule: Arc<RuleHead>,
    /// Where it is written.
    pub place: Place,
    /// Which hosts.
    pub host: HostPattern,
    /// Which ports.
    pub ports: Ports,
    /// The addresses a host may resolve to; empty means: what the address rule of the host allows.
    pub allowed_ips: Arc<[IpNet]>,
    /// Present when the requests inside are judged (`protocol: http`, or any of `access`, `rules`, `path`).
    pub requests: Option<RequestPolicy>,
    /// What a mismatch does.
    pub enforcement: Enforcement,
    /// Whether a TLS ClientHello must name the host.
    pub sni: Sni,
}

/// The ports of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ports {
    /// All; only in the built-in policy `open`.
    Any,
    /// Sorted, without duplicates, never empty, never 0.
    Listed(Box<[u16]>),
}

impl Ports {
    /// Whether `port` is one of them.
    pub fn contains(&self, port: u16) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(ports) => ports.binary_search(&port).is_ok(),
        }
    }
}

/// How the requests of an endpoint are judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestPolicy {
    /// Which requests.
    pub allow: Allow,
    /// Exceptions; they win.
    pub deny: Vec<RequestRule>,
    /// Selects between endpoints of the same host and port: the most specific matching one allows.
    pub path: Option<Glob>,
    /// Whether `%2F` may stay in a path.
    pub allow_encoded_slash: bool,
    /// `protocol: websocket`: only the upgrade request (a GET) is let in.
    pub websocket: bool,
}

impl RequestPolicy {
    /// Whether there is anything to judge inside a tunnel. `access: full` alone is content with any byte, and gets a raw
    /// one.
    pub fn judges_tunnels(&self) -> bool {
        self.allow != Allow::Preset(Access::Full)
            || !self.deny.is_empty()
            || self.path.is_some()
            || self.websocket
    }
}

/// The requests an endpoint allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allow {
    /// `access`.
    Preset(Access),
    /// `rules`; at least one.
    Rules(Vec<RequestRule>),
}

/// The presets of `access`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// GET, HEAD, OPTIONS.
    ReadOnly,
    /// Those, POST, PUT and PATCH; not DELETE.
    ReadWrite,
    /// Every method.
    Full,
}

impl Access {
    /// Whether the preset allows a method. Methods are case-sensitive.
    pub fn allows(self, method: &[u8]) -> bool {
        let read = matches!(method, b"GET" | b"HEAD" | b"OPTIONS");
        match self {
            Self::ReadOnly => read,
            Self::ReadWrite => read || matches!(method, b"POST" | b"PUT" | b"PATCH"),
            Self::Full => true,
        }
    }

    /// As written in the file.
    pub fn text(self) -> &'static str {
        match self {
            Self::ReadOnly => "read-only",
            Self::ReadWrite => "read-write",
            Self::Full => "full",
        }
    }
}

/// One `allow`, or one entry of `deny_rules`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestRule {
    /// Where it is written.
    pub place: Place,
    /// Which methods.
    pub method: MethodRule,
    /// Which canonical paths; absent means all.
    pub path: Option<Glob>,
    /// Which queries.
    pub query: QueryRule,
}

/// The method of a [`RequestRule`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MethodRule {
    /// `*`.
    Any,
    /// This one, upper case; GET speaks for HEAD too.
    One(Box<str>),
}

impl MethodRule {
    /// Whether a method is meant.
    pub fn matches(&self, method: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::One(ours) => ours.as_bytes() == method || (&**ours == "GET" && method == b"HEAD"),
        }
    }
}

/// What happens to what an endpoint does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforcement {
    /// It is refused.
    Enforce,
    /// It passes and is reported with the reason it would have been refused for.
    Audit,
}

/// Whether the name in a TLS ClientHello is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sni {
    /// It must be the host of the CONNECT; a policy by name is worth nothing otherwise.
    Verify,
    /// Anything passes.
    Ignore,
}

/// The parts of a policy that confine the workload rather than its network.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "one for each key of the policy that is on or off")]
pub struct Confinement {
    /// `filesystem_policy`; absent means no Landlock rules about files.
    pub filesystem: Option<FilesystemPolicy>,
    /// `landlock.compatibility`.
    pub landlock: LandlockLevel,
    /// `landlock.tcp_connect: proxy`: Landlock, too, lets TCP connect to the proxy's port alone.
    pub connect_only_to_proxy: bool,
    /// `process.run_as_user`: a name or a number.
    pub run_as_user: Option<Account>,
    /// `process.run_as_group`.
    pub run_as_group: Option<Account>,
    /// `process.netlink`.
    pub netlink: Netlink,
    /// `process.memfd_exec`: whether memory files may be executed.
    pub memfd_exec: bool,
    /// `process.private_tmp`: an empty `/tmp` in memory.
    pub private_tmp: bool,
    /// `process.pid_namespace`: own processes, mounts and System V objects.
    pub pid_namespace: bool,
}

impl Default for Confinement {
    fn default() -> Self {
        Self {
            filesystem: None,
            landlock: LandlockLevel::default(),
            connect_only_to_proxy: false,
            run_as_user: None,
            run_as_group: None,
            netlink: Netlink::default(),
            memfd_exec: true,
            private_tmp: false,
            pid_namespace: true,
        }
    }
}

/// Which files the workload may touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FilesystemPolicy {
    /// Whether the working directory joins `read_write`.
    pub include_workdir: bool,
    /// Absolute paths.
    pub read_only: Vec<PathBuf>,
    /// Absolute paths, never `/`.
    pub read_write: Vec<PathBuf>,
}

/// What happens when the kernel cannot enforce the file-system part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LandlockLevel {
    /// The start fails. The default: a policy that says so must mean it.
    #[default]
    HardRequirement,
    /// The workload starts with what the kernel can do.
    BestEffort,
}

/// A user or a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Account {
    /// Looked up in the host's databases.
    Name(Box<str>),
    /// Never 0.
    Id(u32),
}

/// Which AF_NETLINK sockets the workload may make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Netlink {
    /// NETLINK_ROUTE: `getifaddrs` and the like work.
    #[default]
    Route,
    /// None.
    Deny,
    /// Every family.
    All,
}

impl fmt::Display for MethodRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Any => "*",
            Self::One(method) => method,
        })
    }
}
