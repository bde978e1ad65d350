//! What Sluice needs of the machine: each prerequisite found or missing, with the remedy (decision 8).
//!
//! `doctor` prints the table; `exec` and `serve` refuse to start while something required is missing.

use std::fmt::Write as _;

use serde::Serialize;

use crate::identity::Trace;
use crate::running::ThreadView;
use crate::watch::BypassSource;
use crate::worker::ring;

/// How much depends on a prerequisite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Need {
    /// Nothing starts without it.
    Required,
    /// Something degrades without it.
    Optional,
}

/// One prerequisite as it was found.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: String,
    /// How much depends on it.
    pub need: Need,
    /// Whether it is there.
    pub ok: bool,
    /// What was seen.
    pub detail: String,
    /// What to do, when it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
    /// What each thread of a running Sluice holds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub threads: Vec<ThreadView>,
}

impl Finding {
    fn of(name: &str, required: bool, ok: bool, detail: String, remedy: &str) -> Self {
        let need = if required { Need::Required } else { Need::Optional };
        let remedy = (!ok && !remedy.is_empty()).then(|| remedy.to_owned());
        Self { name: name.into(), need, ok, detail, remedy, threads: Vec::new() }
    }

    fn found(name: &str, detail: impl Into<String>) -> Self {
        let (remedy, threads) = (None, Vec::new());
        Self { name: name.into(), need: Need::Required, ok: true, detail: detail.into(), remedy, threads }
    }

    fn missing(name: &str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (remedy, threads) = (Some(remedy.into()), Vec::new());
        Self { name: name.into(), need: Need::Required, ok: false, detail: detail.into(), remedy, threads }
    }

    fn optional(mut self) -> Self {
        self.need = Need::Optional;
        self
    }

    /// Whether this stops a start.
    pub fn is_fatal(&self) -> bool {
        !self.ok && self.need == Need::Required
    }
}

const CAP_SYSLOG: u8 = 34;

/// Capabilities Sluice needs in the initial user namespace: number (linux/capability.h), name, what for.
const CAPABILITIES: [(u8, &str, &str); 8] = [
    (12, "CAP_NET_ADMIN", "addresses, routes and rules inside sandboxes"),
    (21, "CAP_SYS_ADMIN", "namespaces, mounts and seccomp listeners"),
    (CAP_SYSLOG, "CAP_SYSLOG", "reading the kernel log"),
    (19, "CAP_SYS_PTRACE", "naming the programs behind connections"),
    (2, "CAP_DAC_READ_SEARCH", "reading /proc of other users' processes"),
    (5, "CAP_KILL", "ending a sandbox' processes"),
    (6, "CAP_SETGID", "running workloads as other groups"),
    (7, "CAP_SETUID", "running workloads as other users"),
];

fn look(source: BypassSource) -> Vec<Finding> {
    let mut findings = vec![privileges(source), io_uring()];
    // Without privileges the rest would only repeat that they are missing; the one for the kernel log says nothing of it.
    if privileges(BypassSource::Nflog).ok && findings.iter().skip(1).all(|finding| finding.ok) {
        findings.extend(sluice_netns::probe::all().into_iter().map(of_netns));
        // The ring and the log setting are among the findings already.
        let own = |probe: &sluice_bypass::probe::Probe| matches!(probe.name, "kmsg" | "nflog");
        findings.extend(sluice_bypass::probe::probes().into_iter().filter(own).map(of_bypass));
        findings.extend(sluice_seccomp::probe::all().into_iter().map(of_seccomp));
    }
    findings.push(trace());
    findings.push(descriptors());
    findings
}

/// Looks at everything that is needed by who learns of direct attempts from `source`: what only the other one needs is not.
pub fn for_source(source: BypassSource) -> Vec<Finding> {
    let mut findings = look(source);
    for finding in &mut findings {
        match (source, finding.name.as_str()) {
            (BypassSource::Nflog, "nflog") => finding.need = Need::Required,
            (BypassSource::Nflog, "kmsg" | "kernel log from namespaces") => finding.need = Need::Optional,
            _ => {}
        }
    }
    findings
}

/// The effective capability set of this process, as in /proc/self/status.
fn effective_capabilities() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn privileges(source: BypassSource) -> Finding {
    let held = effective_capabilities().unwrap_or(0);
    let needed = CAPABILITIES.iter().filter(|(bit, ..)| *bit != CAP_SYSLOG || source == BypassSource::Kmsg);
    let lacking: Vec<_> = needed.filter(|(bit, ..)| held & (1 << bit) == 0).collect();
    if lacking.is_empty() {
        return Finding::found("privileges", "all capabilities needed are held");
    }
    let mut detail = String::from("missing");
    for (_, name, purpose) in &lacking {
        let _ = write!(detail, " {name} ({purpose})");
        detail.push(',');
    }
    detail.pop();
    let remedy = if lacking.iter().all(|(bit, ..)| *bit == CAP_SYSLOG) {
        "give the unit CAP_SYSLOG, or learn of direct attempts by netlink: `bypass_source: nflog`, `exec --bypass-source nflog`"
    } else {
        "run as root (sudo sluice …), or give the unit these capabilities"
    };
    Finding::missing("privileges", detail, remedy)
}

fn io_uring() -> Finding {
    const NAME: &str = "io_uring";
    // A ring belongs to the thread that made it.
    let made = std::thread::scope(|scope| scope.spawn(|| ring().build(8).map(drop)).join());
    match made {
        Ok(Ok(())) => Finding::found(NAME, "SINGLE_ISSUER, DEFER_TASKRUN, COOP_TASKRUN accepted"),
        Ok(Err(error)) => Finding::missing(NAME, error.to_string(), io_uring_remedy(&error)),
        Err(_) => Finding::missing(NAME, "the probe failed", "report this"),
    }
}

fn io_uring_remedy(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            "io_uring is switched off: set sysctl kernel.io_uring_disabled=0; in a container allow \
            io_uring_setup, io_uring_enter and io_uring_register in its seccomp profile"
                .into()
        }
        Some(libc::EINVAL) => "the ring flags need Linux 6.1 or later".into(),
        Some(libc::ENOSYS) => {
            "the kernel lacks io_uring: use Linux 6.1 or later with CONFIG_IO_URING, and allow it in \
            the container's seccomp profile"
                .into()
        }
        Some(libc::ENOMEM) => "raise the memlock limit (ulimit -l, LimitMEMLOCK=)".into(),
        _ => "see the error".into(),
    }
}

/// Only sandboxes without a witness depend on it: external and attached ones.
fn trace() -> Finding {
    const NAME: &str = "connect trace";
    match Trace::open() {
        Ok(_) => Finding::found(NAME, "clients without a witness are named as of their connect").optional(),
        Err(error) => Finding::missing(
            NAME,
            format!(
                "clients without a witness are named as of the lookup, not of the connect: {}",
                error.cause()
            ),
            error.remedy(),
        )
        .optional(),
    }
}

/// Descriptors below which a busy host runs out: two a tunnel, two a pipe.
const DESCRIPTORS_WANTED: u64 = 65_536;

fn descriptors() -> Finding {
    use nix::sys::resource::{Resource, getrlimit};
    const NAME: &str = "descriptors";
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard >= DESCRIPTORS_WANTED => Finding::found(NAME, format!("up to {hard}")),
        Ok((_, hard)) => Finding::missing(
            NAME,
            format!("only {hard}: some {} tunnels", hard / 4),
            format!("raise the limit (ulimit -Hn {DESCRIPTORS_WANTED}, LimitNOFILE=)"),
        ),
        Err(error) => Finding::missing(NAME, error.to_string(), "see the error"),
    }
    .optional()
}

fn of_netns(probe: sluice_netns::probe::Probe) -> Finding {
    Finding::of(probe.name, true, probe.ok, probe.detail, probe.remedy)
}

fn of_bypass(probe: sluice_bypass::probe::Probe) -> Finding {
    // NFLOG is the other source of the same lines.
    Finding::of(probe.name, probe.name == "kmsg", probe.ok, probe.detail, &probe.remedy)
}

fn of_seccomp(probe: sluice_seccomp::probe::Probe) -> Finding {
    Finding::of(probe.name, probe.required, probe.ok, probe.detail, probe.remedy)
}
