//! Other people's proxies, each configured to do as little as it can: one worker, no cache, no access log.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::leash::on_path;
use super::{DENIED_HOST, Leashed, Setup, Started, loopback};
use crate::origin;

/// Squid: no cache, no logs, one process.
pub(super) fn squid(setup: &Setup) -> Result<Started> {
    let program = program(setup.programs.squid.as_ref(), "squid")?;
    let directory = tempfile::tempdir().context("no temporary directory")?;
    let root = directory.path().display().to_string();
    let address = loopback(origin::free_port()?);
    let config = format!(
        "http_port {address}
acl denied dstdomain {DENIED_HOST}
http_access deny denied
http_access allow all
cache deny all
access_log none
cache_log {root}/cache.log
cache_store_log none
pid_filename none
coredump_dir {root}
cache_effective_user root
client_persistent_connections on
server_persistent_connections on
max_filedescriptors 65536
shutdown_lifetime 0 seconds
icon_directory {root}
cache_mem 8 MB
"
    );
    let file = directory.path().join("squid.conf");
    fs::write(&file, config)?;
    let arguments = ["-N".into(), "-f".into(), file.display().to_string()];
    Ok((Leashed::start_in(directory, &program, &arguments, &setup.cores)?, address, Some(403)))
}

/// tinyproxy: errors only.
pub(super) fn tinyproxy(setup: &Setup) -> Result<Started> {
    let program = program(setup.programs.tinyproxy.as_ref(), "tinyproxy")?;
    let directory = tempfile::tempdir().context("no temporary directory")?;
    let address = loopback(origin::free_port()?);
    let config = format!(
        "Port {port}\nListen 127.0.0.1\nTimeout 600\nMaxClients 20000\nLogLevel Critical\nDisableViaHeader Yes\n",
        port = address.port()
    );
    let file = directory.path().join("tinyproxy.conf");
    fs::write(&file, config)?;
    let arguments = ["-d".into(), "-c".into(), file.display().to_string()];
    Ok((Leashed::start_in(directory, &program, &arguments, &setup.cores)?, address, None))
}

/// Envoy: one worker, dynamic forward proxy for CONNECT and forward requests, upgrades allowed.
pub(super) fn envoy(setup: &Setup) -> Result<Started> {
    let program = program(setup.programs.envoy.as_ref(), "envoy")?;
    let directory = tempfile::tempdir().context("no temporary directory")?;
    let address = loopback(origin::free_port()?);
    let file = directory.path().join("envoy.yaml");
    let config = include_str!("envoy.yaml")
        .replace("@PORT@", &address.port().to_string())
        .replace("@DENIED@", DENIED_HOST);
    fs::write(&file, config)?;
    let arguments = [
        "-c",
        &file.display().to_string(),
        "--concurrency",
        "1",
        "--log-level",
        "error",
        "--use-dynamic-base-id",
    ]
    .map(String::from);
    Ok((Leashed::start_in(directory, &program, &arguments, &setup.cores)?, address, Some(403)))
}

fn program(given: Option<&PathBuf>, name: &str) -> Result<PathBuf> {
    match given {
        Some(path) => path.canonicalize().with_context(|| format!("{}", path.display())),
        None => on_path(name),
    }
}
