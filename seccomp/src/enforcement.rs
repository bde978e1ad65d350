//! What holds for one workload, at what level, and what does not: for summaries and `sandbox show`.

use crate::filesystem::{SCOPES_ABI, TRUNCATE_ABI};
use crate::filter::Netlink;
use crate::launch::{Launch, Plan};
use crate::privileges::KEPT_BY_ROOT;
use std::fmt::{self, Write as _};

/// How much of a measure holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// All of it.
    Full,
    /// Some of it; the detail says what is missing.
    Partial,
    /// None of it.
    Off,
}

impl Level {
    /// One word, stable: `on`, `partly`, `off`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "on",
            Self::Partial => "partly",
            Self::Off => "off",
        }
    }
}

/// One measure of confinement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Measure {
    /// A few words, stable.
    pub name: &'static str,
    /// How much of it holds.
    pub level: Level,
    /// What exactly, in one line.
    pub detail: String,
}

/// Every measure, in a fixed order. `Display` gives one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enforcement {
    /// The measures.
    pub measures: Vec<Measure>,
}

impl Enforcement {
    pub(crate) fn of(launch: &Launch<'_>, plan: &Plan) -> Self {
        Self {
            measures: [
                Some(network(launch)),
                connects(launch, plan),
                Some(system_calls(launch, plan)),
                Some(witness(launch)),
                Some(files(launch, plan)),
                Some(processes(launch, plan)),
                Some(privileges(launch, plan)),
            ]
            .into_iter()
            .flatten()
            .collect(),
        }
    }

    /// One line for what holds, and one for each measure of which something does not.
    pub fn summary(&self) -> String {
        let full: Vec<_> = self.of_level(Level::Full).map(|measure| measure.name).collect();
        let mut text = format!("enforced: {}", full.join(", "));
        for (level, says) in [(Level::Partial, "enforced in part"), (Level::Off, "NOT enforced")] {
            for measure in self.of_level(level) {
                let _ = write!(text, "\n{says}: {} ({})", measure.name, measure.detail);
            }
        }
        text
    }

    fn of_level(&self, level: Level) -> impl Iterator<Item = &Measure> {
        self.measures.iter().filter(move |measure| measure.level == level)
    }
}

impl fmt::Display for Enforcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for measure in &self.measures {
            writeln!(f, "{:<13} {:<7} {}", measure.name, measure.level.name(), measure.detail)?;
        }
        Ok(())
    }
}

fn measure(name: &'static str, level: Level, detail: impl Into<String>) -> Measure {
    Measure { name, level, detail: detail.into() }
}

fn network(launch: &Launch<'_>) -> Measure {
    match launch.netns {
        Some(_) => measure("network", Level::Full, "the sandbox's own namespace; it cannot be left"),
        None => measure("network", Level::Off, "the launcher's namespace"),
    }
}

/// Named only where the policy asks for it: the fence refuses the same connects.
fn connects(launch: &Launch<'_>, plan: &Plan) -> Option<Measure> {
    let port = launch.landlock.as_ref()?.connect_only_to_port?;
    Some(match plan.landlock().connects_to {
        Some(_) => measure("connects", Level::Full, format!("TCP to port {port} alone, by Landlock as well")),
        None => measure(
            "connects",
            Level::Off,
            "this kernel's Landlock has no rule for them; the fence refuses them",
        ),
    })
}

fn system_calls(launch: &Launch<'_>, plan: &Plan) -> Measure {
    let netlink = match launch.netlink {
        Netlink::Route => "NETLINK_ROUTE only",
        Netlink::Deny => "no netlink",
        Netlink::All => "all netlink",
    };
    let memory = if launch.memfd_exec { "" } else { ", no executable memory files" };
    let detail = format!("seccomp, {} rules; {netlink}{memory}", plan.filter_rules());
    measure("system calls", Level::Full, detail)
}

fn witness(launch: &Launch<'_>) -> Measure {
    if launch.witness {
        measure(
            "witness",
            Level::Full,
            "connect, sendto and fast open are noted with process and source port",
        )
    } else {
        measure("witness", Level::Off, "attempts are named from socket tables, which refused ones have left")
    }
}

fn files(launch: &Launch<'_>, plan: &Plan) -> Measure {
    let landlock = plan.landlock();
    let Some(wanted) = launch.landlock.as_ref().and_then(|wanted| wanted.files.as_ref()) else {
        let who = if plan.credentials().kept == 0 {
            "file modes apply"
        } else {
            "root writes root's files on this host"
        };
        return measure("files", Level::Off, format!("no filesystem policy: {who}"));
    };
    if !landlock.files {
        return measure("files", Level::Off, "this kernel has no Landlock; the policy is best_effort");
    }
    let lists = format!("{} read-only, {} read-write paths", wanted.read_only.len(), wanted.read_write.len());
    let mut missing: Vec<_> = landlock.skipped.iter().map(|path| path.display().to_string()).collect();
    if landlock.abi < TRUNCATE_ABI {
        missing.push("a rule about truncating files (Linux 6.2)".into());
    }
    let detail = format!("Landlock ABI {}: {lists}", landlock.abi);
    if missing.is_empty() {
        measure("files", Level::Full, detail)
    } else {
        measure("files", Level::Partial, format!("{detail}; missing: {}", missing.join(", ")))
    }
}

fn processes(launch: &Launch<'_>, plan: &Plan) -> Measure {
    match (launch.namespaces.pids, plan.landlock().is_scoped()) {
        (true, true) => measure(
            "processes",
            Level::Full,
            "own pid and ipc namespaces; signals and abstract sockets scoped by Landlock",
        ),
        (true, false) => measure(
            "processes",
            Level::Full,
            format!(
                "own pid and ipc namespaces; Landlock before ABI {SCOPES_ABI} does not scope abstract sockets"
            ),
        ),
        (false, true) => measure(
            "processes",
            Level::Partial,
            "signals and tracing stay inside (Landlock); the host's processes and shared memory are visible, and children outlive the launcher",
        ),
        (false, false) => measure(
            "processes",
            Level::Off,
            "processes of the same user can be signalled: turn the pid namespace on",
        ),
    }
}

fn privileges(launch: &Launch<'_>, plan: &Plan) -> Measure {
    let who = match &launch.user {
        Some(user) => format!("uid {} gid {}", user.uid, user.gid),
        None => "root".to_owned(),
    };
    let kept: Vec<_> = KEPT_BY_ROOT
        .iter()
        .filter(|kept| plan.credentials().kept & (1 << kept.number) != 0)
        .map(|kept| kept.name)
        .collect();
    let kept = if kept.is_empty() { "no capability".to_owned() } else { kept.join(" ") };
    measure("privileges", Level::Full, format!("{who}, no_new_privs, {kept}"))
}
