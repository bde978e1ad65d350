//! Sluice as it is deployed: one worker, an external sandbox known by its source, a policy that names the client's
//! binary (so identity is looked up), events written to a file.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::{Leashed, Programs, Setup, Started, loopback};
use crate::origin;

/// The status of a refusal by policy.
const REFUSAL: u16 = 403;

/// Writes configuration and policy and starts `sluice serve`.
pub(super) fn start(setup: &Setup) -> Result<Started> {
    let program = program(&setup.programs)?;
    let address = loopback(origin::free_port()?);
    let directory = tempfile::tempdir().context("no temporary directory")?;
    let root = directory.path().display().to_string();
    let client = std::env::current_exe().context("/proc/self/exe")?;
    fs::write(directory.path().join("bench.yaml"), policy(setup, &client.display().to_string()))?;
    let config = directory.path().join("sluice.yaml");
    fs::write(&config, configuration(setup, &root, &address.to_string(), origin::free_port()?))?;
    let arguments = ["serve".into(), "--config".into(), config.display().to_string()];
    Ok((Leashed::start_in(directory, &program, &arguments, &setup.cores)?, address, Some(REFUSAL)))
}

/// The program asked for, or the one built beside this one.
pub(crate) fn program(programs: &Programs) -> Result<PathBuf> {
    if let Some(path) = &programs.sluice {
        return path.canonicalize().with_context(|| format!("{}", path.display()));
    }
    let beside = std::env::current_exe().context("/proc/self/exe")?.with_file_name("sluice");
    if !beside.is_file() {
        bail!(
            "{} does not exist: build it (`cargo build --release -p sluice`) or give --sluice PATH",
            beside.display()
        );
    }
    Ok(beside)
}

fn configuration(setup: &Setup, root: &str, address: &str, metrics: u16) -> String {
    let identity = if setup.programs.blind { "off" } else { "process" };
    let cores = setup.cores.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    format!(
        "listen: {address}
cores: [{cores}]
admin_socket: {root}/admin.sock
metrics: 127.0.0.1:{metrics}
events: {root}/events.ndjson
state_dir: {root}
permit_special_addresses: [127.0.0.0/8]
sandboxes:
  - name: bench
    source: 127.0.0.1/32
    identity: {identity}
    policy: {root}/bench.yaml
    limits: {{connections: 65536, requests_per_s: 0, bytes_per_s: 0}}
"
    )
}

fn policy(setup: &Setup, client: &str) -> String {
    let ports = setup.ports;
    let binaries =
        if setup.programs.blind { String::new() } else { format!("    binaries:\n      - path: {client}\n") };
    let rules =
        if setup.programs.inspect { "\n        protocol: http\n        access: read-only" } else { "" };
    format!(
        "version: 1
network_policies:
  origin:
    endpoints:
      - host: 127.0.0.1
        ports: [{echo}, {bulk}]
      - host: 127.0.0.1
        port: {http}{rules}
{binaries}",
        echo = ports.echo,
        bulk = ports.bulk,
        http = ports.http,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin::Ports;

    #[test]
    fn the_policy_names_the_client_and_every_port() {
        let ports = Ports { echo: 1001, bulk: 1002, http: 1003 };
        let setup = Setup { cores: vec![0], ports, programs: Programs::default() };
        let text = policy(&setup, "/opt/bench");
        for part in ["[1001, 1002]", "port: 1003\n", "path: /opt/bench\n"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(configuration(&setup, "/tmp/x", "127.0.0.1:9", 8).contains("cores: [0]\n"));
    }
}
