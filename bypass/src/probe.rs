//! Whether this host lets the bypass core work: for `sluice doctor` and for the start, which refuses when a probe
//! that is needed fails.

use std::fs;

use crate::kmsg::{Reader, Start, reader::DEVICE};
use crate::nflog::Socket;

/// One prerequisite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Stable name: `kmsg`, `kmsg-netns`, `io-uring`, `nflog`.
    pub name: &'static str,
    /// Usable.
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What to do about it; empty when `ok`.
    pub remedy: String,
}

/// Source that a host can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usable {
    /// `/dev/kmsg`, the default.
    Kmsg,
    /// NFLOG only.
    Nflog,
    /// Neither: bypass attempts are refused but not named.
    Neither,
}

/// Tries everything. Changes nothing: the NFLOG probe binds an unused group of the current namespace and lets
/// it go again.
pub fn probes() -> Vec<Probe> {
    vec![kmsg(), kmsg_netns(), io_uring(), nflog()]
}

/// The source to use, by the outcome of [`probes`]. `nf_log_all_netns` does not count: the daemon sets it.
pub fn usable(probes: &[Probe]) -> Usable {
    let ok = |name| probes.iter().any(|probe| probe.name == name && probe.ok);
    match (ok("io-uring"), ok("kmsg"), ok("nflog")) {
        (true, true, _) => Usable::Kmsg,
        (true, false, true) => Usable::Nflog,
        _ => Usable::Neither,
    }
}

fn found(name: &'static str, detail: impl Into<String>) -> Probe {
    Probe { name, ok: true, detail: detail.into(), remedy: String::new() }
}

fn missing(name: &'static str, detail: impl Into<String>, remedy: &str) -> Probe {
    Probe { name, ok: false, detail: detail.into(), remedy: remedy.into() }
}

fn kmsg() -> Probe {
    let mut buffer = vec![0; crate::limits::KMSG_RECORD_BYTES];
    match Reader::open(Start::End).and_then(|reader| reader.read(&mut buffer)) {
        Ok(_) => found("kmsg", format!("{DEVICE} can be read without waiting")),
        Err(error) => missing(
            "kmsg",
            format!("{DEVICE}: {error}"),
            "give the daemon CAP_SYSLOG (or kernel.dmesg_restrict=0) and, in a container, the device /dev/kmsg; or choose bypass_source: nflog",
        ),
    }
}

const ALL_NETNS: &str = "/proc/sys/net/netfilter/nf_log_all_netns";

fn kmsg_netns() -> Probe {
    const NAME: &str = "kmsg-netns";
    match fs::read_to_string(ALL_NETNS) {
        Ok(value) if value.trim() == "1" => found(NAME, "net.netfilter.nf_log_all_netns is 1"),
        Ok(value) => missing(
            NAME,
            format!(
                "net.netfilter.nf_log_all_netns is {}: log rules inside sandboxes print nothing",
                value.trim()
            ),
            "sysctl -w net.netfilter.nf_log_all_netns=1 (Sluice sets it while a sandbox lives)",
        ),
        Err(error) => missing(
            NAME,
            format!("{ALL_NETNS}: {error}"),
            "it exists in the initial network namespace only, with CONFIG_NF_LOG_SYSLOG: \
             run Sluice there",
        ),
    }
}

fn io_uring() -> Probe {
    match tokio_uring::Runtime::new(&tokio_uring::builder()) {
        Ok(_) => found("io-uring", "an io_uring ring can be set up"),
        Err(error) => missing(
            "io-uring",
            format!("io_uring_setup: {error}"),
            "sysctl -w kernel.io_uring_disabled=0, and allow io_uring_setup, io_uring_enter and \
             io_uring_register in the container's seccomp profile",
        ),
    }
}

fn nflog() -> Probe {
    // Any group will do; the highest is the least likely to be in use.
    match Socket::open(u16::MAX) {
        Ok(_) => found("nflog", "an NFLOG group can be bound"),
        Err(error) => missing(
            "nflog",
            format!("NFLOG: {error}"),
            "needs CAP_NET_ADMIN and CONFIG_NETFILTER_NETLINK_LOG (modprobe nfnetlink_log); only bypass_source: nflog depends on it",
        ),
    }
}
