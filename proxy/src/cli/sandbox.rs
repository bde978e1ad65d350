//! `sluice sandbox …`: the daemon's sandboxes, over its socket.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use hyper::Method;

use super::daemon::{DaemonArgs, note, say, table};
use super::exec::{Failure, told};
use super::{check, exit, sandbox_exec};
use crate::admin::wire::{
    Collected, Confinement, Detail, Done, FenceState, Inside, Kind, LaunchedView, Level, List, NewSandbox,
    PolicyText, Summary,
};
use crate::config::{AttachTo, IdentityMode};
use crate::event::ledger::printable;
use crate::limits::SandboxLimits;
use crate::policy::Source;

/// No body to send.
pub(super) const NOTHING: Option<&()> = None;

/// `sluice sandbox`.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)] // a comment on a flattened field would become the command's help
pub enum SandboxCommand {
    /// Make a sandbox: a namespace whose one way out is the proxy.
    Create {
        #[command(flatten)]
        common: NewArgs,
    },
    /// Take an existing namespace (a container's, a pod's) into custody.
    Attach {
        #[command(flatten)]
        common: NewArgs,
        /// That of this process.
        #[arg(long, value_name = "PID", required_unless_present = "netns", conflicts_with = "netns")]
        pid: Option<u32>,
        /// That this path leads to.
        #[arg(long, value_name = "PATH")]
        netns: Option<PathBuf>,
        /// The host's end of its link, to be fenced on the host's side too.
        #[arg(long, value_name = "NAME")]
        link: Option<String>,
    },
    /// Run a command in a sandbox, confined by its policy; its exit code is the command's.
    Exec {
        /// The sandbox.
        name: String,
        /// User (and group) the command runs as; by name or number.
        #[arg(long, value_name = "UID[:GID]")]
        user: Option<String>,
        #[command(flatten)]
        daemon: DaemonArgs,
        /// The command and its arguments.
        #[arg(required = true, last = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
    /// List the sandboxes.
    Ls {
        #[command(flatten)]
        daemon: DaemonArgs,
    },
    /// Tell everything about a sandbox: fences, counters, identity, what confines it and what does not.
    Show {
        /// Its name.
        name: String,
        #[command(flatten)]
        daemon: DaemonArgs,
    },
    /// End what runs in a made sandbox and remove it; give an attached namespace back.
    Rm {
        /// Its name.
        name: String,
        #[command(flatten)]
        daemon: DaemonArgs,
    },
    /// Remove what is dead: runs of `exec` that were killed, namespaces that ended.
    Gc {
        #[command(flatten)]
        daemon: DaemonArgs,
    },
}

/// What a new sandbox is to be like.
#[derive(Args, Debug)]
#[allow(missing_docs)] // as above
pub struct NewArgs {
    /// Its name.
    pub name: String,
    /// Policy file, or `open` or `deny` [default: deny].
    #[arg(long, value_name = "FILE|open|deny")]
    pub policy: Option<String>,
    /// How the asking process is found.
    #[arg(long, value_name = "MODE", value_parser = ["process", "uid", "off"], default_value = "process")]
    pub identity: String,
    /// Open connections; 0 for no bound [default: 4096].
    #[arg(long, value_name = "N")]
    pub connections: Option<u32>,
    /// Requests a second; 0 for no bound [default: 0].
    #[arg(long, value_name = "N")]
    pub requests_per_s: Option<u32>,
    /// Octets a second, both directions; 0 for no bound [default: 0].
    #[arg(long, value_name = "N")]
    pub bytes_per_s: Option<u64>,
    #[command(flatten)]
    pub daemon: DaemonArgs,
}

/// Runs the command.
pub fn run(command: SandboxCommand) -> u8 {
    told(match command {
        SandboxCommand::Create { common } => create(&common, None, None),
        SandboxCommand::Attach { common, pid, netns, link } => {
            let to = pid
                .map(AttachTo::Pid)
                .or(netns.map(|path| AttachTo::Netns(std::path::absolute(&path).unwrap_or(path))));
            create(&common, to, link)
        }
        SandboxCommand::Exec { name, user, daemon, command } => {
            sandbox_exec::run(sandbox_exec::Wanted { name, user, command, daemon })
        }
        SandboxCommand::Ls { daemon } => ls(&daemon),
        SandboxCommand::Show { name, daemon } => show(&name, &daemon),
        SandboxCommand::Rm { name, daemon } => remove(&name, &daemon),
        SandboxCommand::Gc { daemon } => collect(&daemon),
    })
}

/// Reads a policy to be sent. It is checked here too: errors come with their source lines, and nothing is asked for.
pub(super) fn read_policy(source: &str) -> Result<PolicyText, Failure> {
    let read = PolicyText::read(&Source::parse(source)).and_then(|policy| {
        check::print(&policy.load()?.notes);
        Ok(policy)
    });
    read.map_err(|findings| {
        check::print(&findings);
        Failure::new(exit::CONFIG, anyhow::anyhow!("the policy {source} cannot be used"))
    })
}

fn create(args: &NewArgs, attach: Option<AttachTo>, link: Option<String>) -> Result<u8, Failure> {
    let limits = SandboxLimits::default();
    let request = NewSandbox {
        name: args.name.clone(),
        attach,
        link,
        policy: read_policy(args.policy.as_deref().unwrap_or("deny"))?,
        identity: match &*args.identity {
            "uid" => IdentityMode::Uid,
            "off" => IdentityMode::Off,
            _ => IdentityMode::Process,
        },
        limits: SandboxLimits {
            connections: args.connections.unwrap_or(limits.connections),
            requests_per_s: args.requests_per_s.unwrap_or(limits.requests_per_s),
            bytes_per_s: args.bytes_per_s.unwrap_or(limits.bytes_per_s),
        },
    };
    let made: Detail = args.daemon.client()?.call(Method::POST, "/v1/sandboxes", Some(&request))?;
    args.daemon.answer(&made, |made| {
        let address = made.proxy_address.map(|at| at.to_string()).unwrap_or_default();
        match &made.attached_to {
            Some(to) => {
                let name = &made.summary.name;
                let trust = made.tls.as_ref().map(|tls| {
                    format!(
                        "\nwhere its policy judges requests inside TLS, its programs must trust {}: mount {} into it \
                         (docs/tls.md)",
                        tls.bundle.display(),
                        tls.directory.display()
                    )
                });
                format!("{name} attached to {to}: its proxy is http://{address}{}", trust.unwrap_or_default())
            }
            None => format!(
                "{0} made: its proxy is http://{address}; `sluice sandbox exec {0} -- CMD` runs a command in it",
                made.summary.name
            ),
        }
    })
}

fn ls(daemon: &DaemonArgs) -> Result<u8, Failure> {
    let list: List = daemon.client()?.call(Method::GET, "/v1/sandboxes", NOTHING)?;
    daemon.answer(&list, |list| {
        if list.sandboxes.is_empty() && list.waiting.is_empty() {
            return "no sandboxes; `sluice sandbox create NAME` makes one".into();
        }
        let mut table = table(&["name", "kind", "policy", "open", "allowed", "denied", "bypassed", "since"]);
        for one in &list.sandboxes {
            table.add_row(row(one));
        }
        for waiting in &list.waiting {
            table.add_row([&*waiting.name, "waiting", &*waiting.why]);
        }
        table.to_string()
    })
}

fn row(one: &Summary) -> [String; 8] {
    let bypassed = one.counts.bypassed.map_or_else(|| "-".into(), |count| count.to_string());
    [
        one.name.clone(),
        kind(one.kind).into(),
        one.policy.clone(),
        one.connections.to_string(),
        one.counts.allowed.to_string(),
        one.counts.denied.to_string(),
        bypassed,
        one.since.get(..19).unwrap_or(&one.since).replace('T', " "),
    ]
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Made => "made",
        Kind::Attached => "attached",
        Kind::External => "external",
    }
}

fn show(name: &str, daemon: &DaemonArgs) -> Result<u8, Failure> {
    let detail: Detail = daemon.client()?.call(Method::GET, &path_of(name, ""), NOTHING)?;
    daemon.answer(&detail, described)
}

/// The path of a sandbox; what could not be a name is not made part of one.
pub(super) fn path_of(name: &str, below: &str) -> String {
    let escaped: String = name
        .bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect();
    format!("/v1/sandboxes/{escaped}{below}")
}

fn described(detail: &Detail) -> String {
    let mut table = table(&[]);
    let mut row = |name: &str, text: String| {
        table.add_row([name.to_owned(), text]);
    };
    let summary = &detail.summary;
    row("name", summary.name.clone());
    let origin = match summary.origin {
        crate::admin::wire::Origin::Config => "of the configuration",
        crate::admin::wire::Origin::Api => "by the admin API",
    };
    row("kind", format!("{}, {origin}, since {}", kind(summary.kind), summary.since));
    if let Some(to) = &detail.attached_to {
        row("attached to", to.to_string());
    }
    if let Some(source) = detail.source {
        row("source", source.to_string());
    }
    if let Some(address) = detail.proxy_address {
        row("proxy", format!("http://{address}"));
    }
    if let Some(namespace) = &detail.namespace {
        row("namespace", format!("{} (net:[{}])", namespace.path.display(), namespace.inode));
    }
    row("policy", summary.policy.clone());
    let bound = |number: u64| if number == 0 { "no bound".to_owned() } else { number.to_string() };
    row(
        "limits",
        format!(
            "connections: {}, requests/s: {}, octets/s: {}",
            bound(detail.limits.connections.into()),
            bound(detail.limits.requests_per_s.into()),
            bound(detail.limits.bytes_per_s)
        ),
    );
    row(
        "through the proxy",
        format!(
            "{} open, {} allowed, {} denied",
            summary.connections, summary.counts.allowed, summary.counts.denied
        ),
    );
    row("fence inside", fence_inside(detail));
    row("fence on the host", fence_on_host(detail));
    let sources: Vec<String> = detail
        .identity
        .sources
        .iter()
        .map(|source| {
            let mark = if source.usable { "ok " } else { "NO " };
            format!("{mark} {:<13} {}", source.source, source.detail)
        })
        .collect();
    row("identity", if sources.is_empty() { "off".into() } else { sources.join("\n") });
    row("confinement", measures(&detail.confinement).join("\n"));
    row("inside TLS", detail.tls.as_ref().map_or_else(|| "never looked into".into(), inside));
    let launches: Vec<String> = detail.launches.iter().map(launch).collect();
    row("commands", if launches.is_empty() { "none".into() } else { launches.join("\n") });
    row("processes", processes(detail));
    table.to_string()
}

fn measures(all: &[Confinement]) -> Vec<String> {
    let one = |measure: &Confinement| {
        let level = match measure.level {
            Level::Full => "on",
            Level::Partial => "partly",
            Level::Off => "OFF",
        };
        format!("{:<13} {level:<7} {}", measure.measure, measure.detail)
    };
    all.iter().map(one).collect()
}

fn inside(tls: &Inside) -> String {
    let used = if tls.used {
        "looked into where the policy judges requests"
    } else {
        "not looked into: the policy judges no requests"
    };
    format!(
        "{used}\ntrust {}\nauthority SHA256 {}\n  in {}, until {}",
        tls.bundle.display(),
        tls.fingerprint,
        tls.ca.display(),
        tls.expires
    )
}

fn launch(launch: &LaunchedView) -> String {
    let mut lines = vec![format!("{} {}", launch.pid, printable(&launch.command))];
    lines.extend(measures(&launch.confinement).into_iter().map(|line| format!("  {line}")));
    lines.join("\n")
}

fn fence_inside(detail: &Detail) -> String {
    let state = match (detail.fence.state, &detail.fence.detail) {
        (FenceState::Up, _) => "up, read back just now".to_owned(),
        (FenceState::Differs, detail) => format!("DIFFERS: {}", detail.as_deref().unwrap_or("")),
        (FenceState::None, detail) => format!("none: {}", detail.as_deref().unwrap_or("")),
    };
    if detail.fence.counters.is_empty() {
        return state;
    }
    let count = |name: &str| detail.fence.counters.get(name).copied().unwrap_or(0);
    format!(
        "{state}\nrefused: {} tcp, {} udp, {} icmp, {} other; {} of them logged",
        count("tcp"),
        count("udp"),
        count("icmp"),
        count("other"),
        count("logged")
    )
}

fn fence_on_host(detail: &Detail) -> String {
    let fence = &detail.host_fence;
    match (&fence.link, detail.summary.kind) {
        (Some(link), _) => {
            let state = match (fence.state, &fence.detail) {
                (FenceState::Up, _) => "up, read back just now".to_owned(),
                (_, why) => format!("DIFFERS: {}", why.as_deref().unwrap_or("")),
            };
            let dropped = fence.dropped.map(|dropped| format!("\n{dropped} packets dropped"));
            format!("on {link}: {state}{}", dropped.unwrap_or_default())
        }
        (None, Kind::Made) => "not needed: there is no link".into(),
        (None, _) => "none: its `link` is not named".into(),
    }
}

fn processes(detail: &Detail) -> String {
    if detail.processes.is_empty() {
        return "none".into();
    }
    let one = |process: &crate::admin::wire::ProcessInside| {
        let mark = if process.launched { "" } else { "  (no seccomp filter)" };
        format!("{} {}{mark}", process.pid, process.exe.as_deref().unwrap_or("?"))
    };
    let mut lines: Vec<String> = detail.processes.iter().map(one).collect();
    if detail.processes_left_out > 0 {
        lines.push(format!("and {} more", detail.processes_left_out));
    }
    lines.join("\n")
}

fn remove(name: &str, daemon: &DaemonArgs) -> Result<u8, Failure> {
    let done: Done = daemon.client()?.call(Method::DELETE, &path_of(name, ""), NOTHING)?;
    note(&done.notes);
    daemon.answer(&done, |_| format!("{name} removed"))
}

fn collect(daemon: &DaemonArgs) -> Result<u8, Failure> {
    let collected: Collected = daemon.client()?.call(Method::POST, "/v1/gc", NOTHING)?;
    daemon.answer(&collected, |collected| {
        if collected.sandboxes.is_empty() {
            return "nothing is dead".into();
        }
        let mut table = table(&["name", "", "why"]);
        for one in &collected.sandboxes {
            table.add_row([&*one.name, if one.removed { "removed" } else { "LEFT" }, &*one.detail]);
        }
        table.to_string()
    })
}

/// `sluice policy`.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)] // as above
pub enum PolicyCommand {
    /// Put another policy in force for a sandbox, at once; a bad one changes nothing.
    Set {
        /// The sandbox.
        name: String,
        /// Policy file, or `open` or `deny`.
        #[arg(value_name = "FILE|open|deny")]
        policy: String,
        #[command(flatten)]
        daemon: DaemonArgs,
    },
}

/// Runs the command.
pub fn run_policy(command: PolicyCommand) -> u8 {
    let PolicyCommand::Set { name, policy, daemon } = command;
    told(set_policy(&name, &policy, &daemon))
}

fn set_policy(name: &str, policy: &str, daemon: &DaemonArgs) -> Result<u8, Failure> {
    let body = crate::admin::wire::PolicyBody { policy: read_policy(policy)? };
    let done: Done = daemon.client()?.call(Method::PUT, &path_of(name, "/policy"), Some(&body))?;
    note(&done.notes);
    if daemon.json {
        return daemon.answer(&done, |_| String::new());
    }
    say(&format!("{name} is under {policy} now"));
    Ok(exit::OK)
}
