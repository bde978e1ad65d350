//! What is told about sandboxes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::links::host_counts;
use super::{Daemon, Member, Refusal};
use crate::admin::wire::{
    Confinement, Counts, Detail, Fence, FenceState, Identity, IdentitySource, Inside, Kind, Level, Namespace,
    Origin, PolicyBody, PolicyText, ProcessInside, Summary,
};
use crate::config::{IdentityMode, Shape};
use crate::event::Time;
use crate::identity::{Answer, Source as IdentityFrom};
use crate::measures::{self, Fenced};
use crate::policy::Source;
use crate::trusted;

/// Processes that `show` lists.
const PROCESSES_MAX: usize = 200;

impl Daemon {
    /// All sandboxes, by name.
    pub fn list(&self) -> Vec<Summary> {
        self.members().iter().map(|member| summary(member)).collect()
    }

    /// Everything about one sandbox. Reads its fence back from the kernel.
    pub fn show(&self, name: &str) -> Result<Detail, Refusal> {
        let member = self.member(name)?;
        let proxy_address = match member.kind() {
            Kind::External => self.settings.listen,
            _ => member.with_network(sluice_netns::Sandbox::proxy_address),
        };
        let namespace = member.with_network(|network| Namespace {
            path: network.netns_path().to_owned(),
            inode: network.inode(),
        });
        let (processes, processes_left_out) = processes(&member);
        Ok(Detail {
            summary: summary(&member),
            limits: member.limits(),
            proxy_address,
            source: member.source(),
            attached_to: match member.shape() {
                Shape::Attached { to, .. } => Some(to.clone()),
                _ => None,
            },
            namespace,
            fence: fence(&member),
            host_fence: self.host_fence_of(&member),
            identity: identity(self, &member),
            confinement: confinement(&member),
            tls: self.inside(&member),
            launches: member.launches().views(),
            state_dir: self.settings.state_dir.clone(),
            processes,
            processes_left_out,
        })
    }

    fn inside(&self, member: &Member) -> Option<Inside> {
        let sandbox = member.sandbox();
        let authority = sandbox.interception()?.authority();
        let directory = trusted::host_directory(&self.settings.state_dir, member.name());
        Some(Inside {
            used: sandbox.policy_now().judged().next().is_some(),
            bundle: directory.join(trusted::BUNDLE),
            ca: directory.join(trusted::OWN),
            truststore: directory.join(trusted::TRUSTSTORE),
            directory,
            fingerprint: authority.fingerprint(),
            expires: text(Time::of(authority.until())),
            certificate: authority.pem().to_owned(),
        })
    }

    /// The policy in force, as it was sent; a file of the configuration as it is now.
    pub fn policy_of(&self, name: &str) -> Result<PolicyBody, Refusal> {
        let member = self.member(name)?;
        let now = member.policy().clone();
        let policy = match now.text {
            Some(text) => text,
            // Of the configuration: its file is what is in force, unless it was spoilt since.
            None => PolicyText::read(&Source::parse(&now.label)).map_err(Refusal::Policy)?,
        };
        policy.load().map_err(Refusal::Policy)?;
        Ok(PolicyBody { policy })
    }

    /// A sentence for whoever removes a sandbox that the configuration brings back.
    pub fn will_return(&self, name: &str) -> Option<String> {
        let member = self.member(name).ok()?;
        (member.origin() == Origin::Config)
            .then(|| format!("{name} is in the configuration: it comes back at the next reload or restart"))
    }

    /// The figures of all sandboxes, as Prometheus reads them.
    pub fn figures(&self) -> String {
        let members = self.members();
        let guards = members.iter().any(|member| member.guarded().is_some());
        let counts = if guards { host_counts() } else { Ok(HashMap::new()) };
        let counts =
            counts.inspect_err(|why| tracing::warn!(why, "the host fence's counters cannot be read"));
        let counts = counts.unwrap_or_default();
        let rows: Vec<_> = members
            .iter()
            .map(|member| {
                let dropped = member.guarded().and_then(|_| Some(counts.get(member.name())?.packets));
                let fenced: Fenced = member.fenced(dropped);
                (Arc::clone(member.sandbox().shared_name()), member.sandbox().measures(), fenced)
            })
            .collect();
        measures::render(&rows)
    }
}

fn summary(member: &Member) -> Summary {
    let sandbox = member.sandbox();
    let (allowed, denied) = sandbox.measures().totals();
    let bypassed = member.counters().map(|counters| counters.refused_packets());
    Summary {
        name: member.name().to_owned(),
        kind: member.kind(),
        origin: member.origin(),
        policy: member.policy().label.to_string(),
        since: text(member.since()),
        connections: sandbox.connections_now(),
        counts: Counts { allowed, denied, bypassed },
    }
}

pub(super) fn text(time: Time) -> String {
    serde_json::to_value(time).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn fence(member: &Member) -> Fence {
    let checked = member.with_network(|network| (network.check_fence(), network.counters().ok()));
    let Some((checked, counters)) = checked else {
        let detail = Some("an external sandbox: its own network must lead nowhere else".to_owned());
        return Fence { state: FenceState::None, detail, counters: BTreeMap::new() };
    };
    let counters = counters.map(|counters| {
        [
            ("tcp", counters.tcp),
            ("udp", counters.udp),
            ("icmp", counters.icmp),
            ("other", counters.other),
            ("logged", counters.logged),
        ]
        .map(|(name, traffic)| (name.to_owned(), traffic.packets))
        .into()
    });
    let counters = counters.unwrap_or_default();
    match checked {
        Ok(()) => Fence { state: FenceState::Up, detail: None, counters },
        Err(error) => Fence { state: FenceState::Differs, detail: Some(error.to_string()), counters },
    }
}

fn identity(daemon: &Daemon, member: &Member) -> Identity {
    let source = |source: IdentityFrom, usable: bool, detail: &str| IdentitySource {
        source: source.label().to_owned(),
        usable,
        detail: detail.to_owned(),
    };
    let mode = member.identity();
    if mode == IdentityMode::Off {
        return Identity { mode, sources: Vec::new() };
    }
    let readable = |path: &str| std::fs::File::open(path).is_ok();
    let witness = match member.kind() {
        Kind::Made => {
            source(IdentityFrom::Witness, true, "what `sluice sandbox exec` starts is noted at each connect")
        }
        _ => source(IdentityFrom::Witness, false, "Sluice did not start these processes"),
    };
    let diag = match member.sandbox().resolver().map(|resolver| resolver.diag_state()) {
        Some(Answer::Found) => source(IdentityFrom::Diag, true, "sock_diag answers in its namespace"),
        Some(answer) => source(IdentityFrom::Diag, false, &answer.to_string()),
        None => source(IdentityFrom::Diag, false, "identity is off"),
    };
    let trace = daemon.appliance().trace().is_some();
    let traced =
        if trace { "the kernel's trace of connects" } else { "the kernel's trace cannot be read here" };
    let tables = readable("/proc/self/net/tcp");
    let told = |usable| if usable { "readable" } else { "/proc/…/net/tcp cannot be read" };
    Identity {
        mode,
        sources: vec![
            witness,
            source(IdentityFrom::Trace, trace, traced),
            diag,
            source(IdentityFrom::PidTable, tables, told(tables)),
            source(IdentityFrom::GlobalTable, tables, told(tables)),
        ],
    }
}

/// What holds for whatever runs in it; what holds for one launched workload in addition, its launcher says.
fn confinement(member: &Member) -> Vec<Confinement> {
    let measure = |measure: &str, level: Level, detail: &str| Confinement {
        measure: measure.to_owned(),
        level,
        detail: detail.to_owned(),
    };
    let network = match member.kind() {
        Kind::Made => measure(
            "network",
            Level::Full,
            "a namespace with lo and nothing else: the proxy is the one way out",
        ),
        Kind::Attached if member.guarded().is_some() => measure(
            "network",
            Level::Full,
            "fenced inside, and on the host's side of its link whatever happens inside",
        ),
        Kind::Attached => measure(
            "network",
            Level::Partial,
            "fenced inside only: a process with CAP_NET_ADMIN in it can remove that; name its `link` to fence the host's \
             side too",
        ),
        Kind::External if member.guarded().is_some() => measure(
            "network",
            Level::Full,
            "fenced on the host's side of its link: its address, the proxy's port",
        ),
        Kind::External => measure(
            "network",
            Level::Off,
            "no fence of Sluice's; what is not the proxy's business its own network must stop; name its `link` to fence it",
        ),
    };
    let rest = match member.kind() {
        Kind::Made => measure(
            "workload",
            Level::Partial,
            "what `sluice sandbox exec` starts has seccomp, Landlock and few capabilities by its policy; what entered by \
             other means has not",
        ),
        _ => measure(
            "workload",
            Level::Off,
            "Sluice did not start it: seccomp, files and privileges are what its runtime set",
        ),
    };
    vec![network, rest]
}

fn processes(member: &Member) -> (Vec<ProcessInside>, usize) {
    let pids = member.with_network(|network| network.processes().unwrap_or_default()).unwrap_or_default();
    let left_out = pids.len().saturating_sub(PROCESSES_MAX);
    let exe = |pid: u32| std::fs::read_link(format!("/proc/{pid}/exe")).ok();
    let one = |pid: u32| ProcessInside {
        pid,
        exe: exe(pid).map(|path| path.to_string_lossy().into_owned()),
        launched: is_filtered(pid),
    };
    (pids.into_iter().take(PROCESSES_MAX).map(one).collect(), left_out)
}

/// Whether a seccomp filter is on it.
fn is_filtered(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"))
}
