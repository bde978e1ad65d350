//! Other people's proxies, each configured to do as little as it can: one worker, no cache, no access log.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::leash::on_path;
use super::{DENIED_HOST, Leashed, Setup, Started, loopback};
use crate::{origin, pinning};

/// Squid: no cache, no logs, one process.
pub(super) fn squid(setup: &Setup) -> Result<Started> {
    let program = program(setup.programs.squid.as_ref(), "squid")?;
    let directory = tempfile::tempdir().context("no temporary directory")?;
    let root = directory.path().display().to_string();
    let address = loopback(origin::free_port()?);
    let limit = pinning::raise_descriptors(0)?;
    let config = format!(
        "http_port {address}
acl denied dstdomain {DENIED_HOST}
http_access deny denied
http_access allow all
cache deny all
access_log none
cache_log none
cache_store_log none
pid_filename none
coredump_dir none
cache_effective_user proxy
client_persistent_connections on
server_persistent_connections on
max_filedescriptors {limit}
shutdown_lifetime 0 seconds
icon_directory {root}
mime_table {root}/mime.conf
unlinkd_program /bin/true
pinger_enable off
cache_mem 8 MB
"
    );
    fs::write(directory.path().join("mime.conf"), "")?; // it will not start without one
    let file = directory.path().join("squid.conf");
    fs::write(&file, config)?;
    // Squid names its shared memory after the service: one of our own, whatever else runs here.
    let service = format!("bench{}", std::process::id());
    let arguments = ["-N".into(), "-n".into(), service, "-f".into(), file.display().to_string()];
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
        "--disable-hot-restart",
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
