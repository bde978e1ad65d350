//! Whether a host can hold sandboxes: one finding per prerequisite, for `sluice doctor` and the start.

use std::os::unix::fs::PermissionsExt;

use crate::fence::{self, InnerFence, LogLimit, LogPrefix};
use crate::{Error, LogToken, SandboxName, enter, links, namespace, nf_log};

/// A prerequisite, looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What was looked at, in a few words.
    pub name: &'static str,
    /// Whether it is there and works.
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What to do if it is not there.
    pub remedy: &'static str,
}

/// Every prerequisite of this crate, in the order in which a sandbox needs them.
pub fn all() -> Vec<Probe> {
    vec![log_setting(), network_namespace(), nft_program(), nft_in_namespace()]
}

/// The kernel can be told to log from namespaces.
pub fn log_setting() -> Probe {
    let setting = nf_log::HOST.read().and_then(|value| {
        let mode = std::fs::metadata(nf_log::HOST.sysctl)
            .map_err(Error::io("look at", nf_log::HOST.sysctl))?
            .permissions();
        let state = if value == "1" { "on" } else { "off; switched on while a sandbox lives" };
        let writable = mode.mode() & 0o200 != 0 && nix::unistd::geteuid().is_root();
        if writable || value == "1" {
            Ok(state.to_owned())
        } else {
            Err(Error::io("write", nf_log::HOST.sysctl)(std::io::Error::from_raw_os_error(libc::EACCES)))
        }
    });
    finding(
        "kernel log from namespaces",
        setting,
        "load nf_log_syslog (modprobe nf_log_syslog) and run in the host's network namespace as root; \
         or set sysctl net.netfilter.nf_log_all_netns=1",
    )
}

/// A network namespace can be made.
pub fn network_namespace() -> Probe {
    let made = enter::on_own_thread(|| namespace::make().map(|_netns| "can be made".to_owned()));
    finding(
        "network namespaces",
        made,
        "run as root with CAP_SYS_ADMIN; in a container add that capability; see user.max_net_namespaces",
    )
}

/// `nft` is installed.
pub fn nft_program() -> Probe {
    finding("nft", fence::nft_version(), "install the package nftables (Debian: apt-get install nftables)")
}

/// The kernel has everything our fence consists of: it is loaded into a namespace made for this.
pub fn nft_in_namespace() -> Probe {
    let loaded = enter::on_own_thread(|| {
        let _netns = namespace::make()?;
        let proxy = std::net::IpAddr::from([10, 200, 0, 1]);
        links::set_up_made(proxy)?;
        let name: SandboxName = "doctor".parse()?;
        let prefix = LogPrefix::inner(&name, LogToken::random()?);
        InnerFence { proxy, prefix, limit: LogLimit::default(), has_links: true }.load_into_own()?;
        Ok("loads into a namespace and reads back as loaded".to_owned())
    });
    finding(
        "the fence",
        loaded,
        "the kernel needs nf_tables with nft_fib_inet, nft_log, nft_limit, nft_reject_inet and nft_counter \
         (Debian: all in the stock kernel; in a container the host must have loaded them)",
    )
}

fn finding(name: &'static str, result: Result<String, Error>, remedy: &'static str) -> Probe {
    match result {
        Ok(detail) => Probe { name, ok: true, detail, remedy },
        Err(error) => Probe { name, ok: false, detail: error.to_string(), remedy },
    }
}
