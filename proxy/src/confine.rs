//! From what a policy says of the workload itself to how it is launched: files, sockets, mounts, processes.

use std::net::SocketAddr;
use std::path::Path;

use sluice_seccomp::{FileLists, LandlockPlan, Launch, Namespaces, Netlink, ReplacedFile, Requirement};

use crate::policy::{self, Confinement};
use crate::resolv_conf;

/// Sets what `confinement` asks for. The launch's directory and user are set already; `state_dir` is what the workload
/// must not see of Sluice.
pub fn apply(launch: &mut Launch<'_>, confinement: &Confinement, proxy: SocketAddr, state_dir: &Path) {
    launch.netlink = match confinement.netlink {
        policy::Netlink::Route => Netlink::Route,
        policy::Netlink::Deny => Netlink::Deny,
        policy::Netlink::All => Netlink::All,
    };
    launch.memfd_exec = confinement.memfd_exec;
    launch.landlock = Some(landlock(confinement, launch.cwd.as_deref(), proxy));
    launch.namespaces = Namespaces { pids: confinement.pid_namespace, private_tmp: confinement.private_tmp };
    if confinement.pid_namespace {
        launch.hidden = vec![state_dir.to_owned()];
        launch.replaced = own_resolv_conf(proxy).into_iter().collect();
    }
}

/// What Landlock enforces beside its scopes.
fn landlock(confinement: &Confinement, directory: Option<&Path>, proxy: SocketAddr) -> LandlockPlan {
    let files = confinement.filesystem.as_ref().map(|files| {
        let own = directory.filter(|_| files.include_workdir).map(Path::to_owned);
        FileLists {
            read_only: files.read_only.clone(),
            read_write: files.read_write.iter().cloned().chain(own).collect(),
        }
    });
    LandlockPlan {
        files,
        requirement: match confinement.landlock {
            policy::LandlockLevel::HardRequirement => Requirement::Required,
            policy::LandlockLevel::BestEffort => Requirement::BestEffort,
        },
        connect_only_to_port: confinement.connect_only_to_proxy.then(|| proxy.port()),
    }
}

/// The sandbox' own `/etc/resolv.conf`, if the host has one to put it over.
fn own_resolv_conf(proxy: SocketAddr) -> Option<ReplacedFile> {
    // Often a link; what it leads to is what is read.
    let path = std::fs::canonicalize("/etc/resolv.conf").ok()?;
    let host = std::fs::read_to_string(&path).ok()?;
    Some(ReplacedFile { path, contents: resolv_conf::for_sandbox(&host, proxy).into_bytes() })
}
