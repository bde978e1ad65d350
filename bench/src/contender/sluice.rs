//! Sluice as it is deployed: one worker, an external sandbox known by its source, a policy that names the client's
//! binary (so identity is looked up), events written to a file.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::{Inside, Leashed, Programs, Setup, Started, loopback};
use crate::origin;
use crate::tls::authority::ZONE;

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

fn configuration(setup: &Setup, folder: &str, address: &str, metrics: u16) -> String {
    let identity = if setup.programs.blind { "off" } else { "process" };
    let cores = setup.cores.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    let root = |inside: &Inside| format!("tls: {{upstream_ca: [{}]}}\n", inside.authority.root().display());
    let tls = setup.inside.as_ref().map(root).unwrap_or_default();
    format!(
        "listen: {address}
cores: [{cores}]
admin_socket: {folder}/admin.sock
metrics: 127.0.0.1:{metrics}
events: {folder}/events.ndjson
state_dir: {folder}
permit_special_addresses: [127.0.0.0/8, \"::1/128\"]
sandboxes:
  - name: bench
    source: 127.0.0.1/32
    identity: {identity}
    policy: {folder}/bench.yaml
    limits: {{connections: 65536, requests_per_s: 0, bytes_per_s: 0}}
{tls}"
    )
}

fn policy(setup: &Setup, client: &str) -> String {
    let ports = setup.ports;
    let binaries =
        if setup.programs.blind { String::new() } else { format!("    binaries:\n      - path: {client}\n") };
    let rules =
        if setup.programs.inspect { "\n        protocol: http\n        access: read-only" } else { "" };
    let judged = |Inside { origin, .. }: &Inside| {
        format!(
            "      - host: \"*.{ZONE}\"
        ports: [{}, {}]
        protocol: http
        rules: [{{allow: {{method: \"*\", path: \"/**\"}}}}]
",
            origin.fresh, origin.resuming
        )
    };
    let judged = setup.inside.as_ref().map(judged).unwrap_or_default();
    format!(
        "version: 1
network_policies:
  origin:
    endpoints:
      - host: 127.0.0.1
        ports: [{echo}, {bulk}]
      - host: 127.0.0.1
        port: {http}{rules}
{judged}{binaries}",
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
        let setup = Setup { cores: vec![0], ports, programs: Programs::default(), inside: None };
        let text = policy(&setup, "/opt/bench");
        for part in ["[1001, 1002]", "port: 1003\n", "path: /opt/bench\n"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(configuration(&setup, "/tmp/x", "127.0.0.1:9", 8).contains("cores: [0]\n"));
    }
}
