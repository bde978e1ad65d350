//! What goes over the admin socket, as both ends write and read it: docs/api.md in types.
//!
//! Unknown keys of a request are errors; unknown keys of an answer are not, so that an older command can read what a
//! newer daemon says.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::{AttachTo, IdentityMode};
use crate::diagnostic::Diagnostics;
use crate::limits::SandboxLimits;
use crate::policy::{self, Loaded, Source};

/// `POST /v1/sandboxes`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewSandbox {
    /// Its name.
    pub name: String,
    /// The namespace to take into custody; absent: one is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attach: Option<AttachTo>,
    /// The host's end of the attached namespace's link, to be fenced on the host's side too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// Its policy.
    #[serde(default)]
    pub policy: PolicyText,
    /// How the asking process is found.
    #[serde(default)]
    pub identity: IdentityMode,
    /// What it may use.
    #[serde(default)]
    pub limits: SandboxLimits,
}

/// A policy as it is sent: one of the built-in ones, or a text with the name its errors are told under.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PolicyText {
    /// `"open"` or `"deny"`.
    Builtin(Builtin),
    /// The text of a file.
    #[serde(rename_all = "lowercase")]
    Text {
        /// Where it came from; told in errors and shown, never opened.
        file: String,
        /// The YAML.
        text: String,
    },
}

/// The policies that need no file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Builtin {
    /// Everything the address guard lets through.
    Open,
    /// Nothing.
    #[default]
    Deny,
}

impl Default for PolicyText {
    fn default() -> Self {
        Self::Builtin(Builtin::Deny)
    }
}

impl PolicyText {
    /// Reads what `source` names, to be sent; a relative path is told as an absolute one.
    pub fn read(source: &Source) -> Result<Self, Diagnostics> {
        Ok(match source {
            Source::Open => Self::Builtin(Builtin::Open),
            Source::Deny => Self::Builtin(Builtin::Deny),
            Source::File(path) => {
                let file = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                let file = file.to_string_lossy().into_owned();
                match policy::read(path) {
                    Ok(text) => Self::Text { file, text },
                    Err(error) => {
                        let mut out = Diagnostics::default();
                        let place = crate::diagnostic::Place::whole(&Arc::from(file));
                        out.error(place, format!("cannot read the policy: {error}"));
                        return Err(out);
                    }
                }
            }
        })
    }

    /// The policy it is, with what its author should know; or every error in it.
    pub fn load(&self) -> Result<Loaded, Diagnostics> {
        let mut out = Diagnostics::default();
        let file = match self {
            Self::Builtin(Builtin::Open) => Some(policy::builtin(&Source::Open)),
            Self::Builtin(Builtin::Deny) => Some(policy::builtin(&Source::Deny)),
            Self::Text { file, text } => {
                let name: Arc<str> = file.as_str().into();
                out.add_source(&name, text);
                policy::parse(text, &name, &mut out)
            }
        };
        match file {
            Some(file) if !out.has_errors() => Ok(Loaded { file, notes: out }),
            _ => Err(out),
        }
    }

    /// `open`, `deny`, or the file's name.
    pub fn label(&self) -> &str {
        match self {
            Self::Builtin(Builtin::Open) => "open",
            Self::Builtin(Builtin::Deny) => "deny",
            Self::Text { file, .. } => file,
        }
    }
}

/// What makes a sandbox what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Sluice made its namespace.
    Made,
    /// Its namespace was there.
    Attached,
    /// Known by its source address on the host's listener.
    External,
}

/// Who asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The configuration file.
    Config,
    /// The admin API.
    Api,
}

/// `GET /v1/sandboxes`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct List {
    /// All that are served, by name.
    pub sandboxes: Vec<Summary>,
    /// Those of the configuration that cannot be served yet.
    pub waiting: Vec<Waiting>,
}

/// A sandbox of the configuration whose namespace or link is not there yet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Waiting {
    /// Its name.
    pub name: String,
    /// What it waits for.
    pub why: String,
}

/// One line of `GET /v1/sandboxes`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// Its name.
    pub name: String,
    /// Made, attached or external.
    pub kind: Kind,
    /// Who asked for it.
    pub origin: Origin,
    /// `open`, `deny`, or the policy's file.
    pub policy: String,
    /// When it was made or attached, RFC 3339.
    pub since: String,
    /// Connections open now.
    pub connections: u32,
    /// What went through the proxy and what was refused.
    pub counts: Counts,
}

/// Totals of a sandbox since the daemon started; `bypassed` since the fence was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// CONNECTs and requests that were allowed.
    pub allowed: u64,
    /// CONNECTs and requests that were refused, or failed.
    pub denied: u64,
    /// Direct attempts that the fence refused; none for a sandbox without a fence of ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bypassed: Option<u64>,
}

/// `GET /v1/sandboxes/{name}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Detail {
    /// As in the list.
    #[serde(flatten)]
    pub summary: Summary,
    /// What it may use.
    pub limits: SandboxLimits,
    /// The proxy's address: inside its namespace, or on the host for an external one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_address: Option<SocketAddr>,
    /// The source addresses of an external one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<IpNet>,
    /// What an attached one was attached to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attached_to: Option<AttachTo>,
    /// Its namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<Namespace>,
    /// The fence inside it.
    pub fence: Fence,
    /// The fence on the host's side of its link.
    pub host_fence: HostFence,
    /// How the asking process is found.
    pub identity: Identity,
    /// What confines the processes in it.
    pub confinement: Vec<Confinement>,
    /// How TLS is looked into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Inside>,
    /// Commands that `sluice sandbox exec` runs in it.
    pub launches: Vec<LaunchedView>,
    /// The daemon's state directory, which workloads must not see.
    pub state_dir: PathBuf,
    /// The processes in its namespace.
    pub processes: Vec<ProcessInside>,
    /// More processes than are listed.
    pub processes_left_out: usize,
}

/// How TLS in a sandbox is looked into, and what its processes must trust for that. Paths are the host's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Inside {
    /// Whether the policy in force judges requests, so that TLS is looked into.
    pub used: bool,
    /// The folder of the three files, to be mounted where processes can read it.
    pub directory: PathBuf,
    /// The platform's authorities and the sandbox' own, PEM.
    pub bundle: PathBuf,
    /// The sandbox' own alone, PEM.
    pub ca: PathBuf,
    /// The same as the bundle, for Java.
    pub truststore: PathBuf,
    /// Of the sandbox' own: SHA-256 of the certificate.
    pub fingerprint: String,
    /// Until when it is valid, RFC 3339.
    pub expires: String,
    /// Itself, PEM.
    pub certificate: String,
}

/// A network namespace.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Namespace {
    /// `nsenter --net=` takes it.
    pub path: PathBuf,
    /// The number in `net:[…]`.
    pub inode: u64,
}

/// The state of a fence.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Fence {
    /// How it stands.
    pub state: FenceState,
    /// In what it differs, or why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Refused attempts by protocol (`tcp`, `udp`, `icmp`, `other`), and `logged` of them.
    pub counters: BTreeMap<String, u64>,
}

/// How a fence stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FenceState {
    /// Read back from the kernel just now, as it was loaded.
    Up,
    /// Not as it was loaded.
    Differs,
    /// None of ours.
    None,
}

/// The fence on the host's side of a link.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostFence {
    /// How it stands.
    pub state: FenceState,
    /// In what it differs, or why it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// Packets it dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped: Option<u64>,
}

/// How the asking process is found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Identity {
    /// As configured.
    pub mode: IdentityMode,
    /// The sources in the order in which they are asked.
    pub sources: Vec<IdentitySource>,
}

/// One source of identity.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IdentitySource {
    /// As events name it.
    pub source: String,
    /// Whether it can answer.
    pub usable: bool,
    /// What it is, or why it cannot.
    pub detail: String,
}

/// One measure of confinement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Confinement {
    /// A few words, stable.
    pub measure: String,
    /// How much of it holds.
    pub level: Level,
    /// What exactly.
    pub detail: String,
}

/// How much of a measure holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// All of it.
    Full,
    /// Some of it; the detail says what is missing.
    Partial,
    /// None of it.
    Off,
}

/// A process in a sandbox' namespace.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProcessInside {
    /// In the host's pids.
    pub pid: u32,
    /// Its program, if it can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exe: Option<String>,
    /// Whether `sluice sandbox exec` started it or an ancestor, so that it is confined.
    pub launched: bool,
}

/// `POST /v1/sandboxes/{name}/launches`: a launcher tells of the command it has started. The answer lasts as long as the
/// daemon attends to it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launched {
    /// The command's process, in the host's pids.
    pub pid: u32,
    /// The command, to be shown.
    pub command: String,
    /// The launcher's descriptor of the ring of notes.
    pub notes_fd: i32,
    /// The launcher's descriptor of the eventfd that announces a note.
    pub bell_fd: i32,
    /// What confines it.
    pub confinement: Vec<Confinement>,
}

/// A command that `sluice sandbox exec` runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LaunchedView {
    /// Its process.
    pub pid: u32,
    /// The command.
    pub command: String,
    /// When the daemon heard of it.
    pub since: String,
    /// What confines it.
    pub confinement: Vec<Confinement>,
}

/// `GET /v1/denials`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Denials {
    /// What was refused, folded.
    pub denials: Vec<DenialLine>,
    /// By sandbox, attempts that have no line any more.
    pub left_out: BTreeMap<String, u64>,
    /// What would allow it, where that was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suggestions: Vec<Suggested>,
}

/// Attempts that are alike.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DenialLine {
    /// The sandbox.
    pub sandbox: String,
    /// `denied`, `audited` (it passed, and would be denied) or `bypassed`.
    pub stage: String,
    /// `CONNECT`, the method of a request, or the protocol of a direct attempt.
    pub how: String,
    /// Host and port.
    pub destination: String,
    /// The program, or empty.
    pub program: String,
    /// Of a closed set, as in the events.
    pub reason: String,
    /// Paths of requests, the first of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// How often.
    pub count: u64,
    /// The first time.
    pub first: String,
    /// The last time.
    pub last: String,
    /// Of a direct attempt: whether the policy allows it through the proxy, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_via_proxy: Option<bool>,
    /// The process of the last time; 0 if unknown.
    pub pid: u32,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// The policy that would allow what was refused to one sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Suggested {
    /// The sandbox.
    pub sandbox: String,
    /// YAML: a policy of its own, to be merged into the one in force.
    pub policy: String,
}

/// `PUT` and `GET /v1/sandboxes/{name}/policy`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyBody {
    /// The policy.
    pub policy: PolicyText,
}

/// What a call that changed something has to say beyond that it did.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Done {
    /// What its caller should know, one line each.
    pub notes: Vec<String>,
}

/// `POST /v1/gc`: what was found dead, and what was done.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Collected {
    /// Each of them.
    pub sandboxes: Vec<CollectedSandbox>,
}

/// One sandbox that was found dead.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CollectedSandbox {
    /// Its name.
    pub name: String,
    /// Whether it is gone.
    pub removed: bool,
    /// What was done, or why not.
    pub detail: String,
}

/// An error's body.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failed {
    /// Of a closed set, for programs.
    pub error: String,
    /// For people.
    pub message: String,
    /// Each finding in a policy or configuration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
}

/// One finding in a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// `error` or `note`.
    pub severity: String,
    /// The file as it was named.
    pub file: String,
    /// From 1; 0 for the whole file.
    pub line: u32,
    /// From 1, in characters; 0 for the whole file.
    pub column: u32,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

impl Finding {
    /// All findings, by place.
    pub fn all(found: &Diagnostics) -> Vec<Self> {
        let one = |finding: &crate::diagnostic::Diagnostic| Self {
            severity: finding.severity.to_string(),
            file: finding.place.file.to_string(),
            line: finding.place.line,
            column: finding.place.column,
            message: finding.message.clone(),
            help: finding.help.clone(),
        };
        found.sorted().into_iter().map(one).collect()
    }
}
