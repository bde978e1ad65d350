//! Other people's proxies, each configured to do as little as it can: one worker, no cache, no access log.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::leash::on_path;
use super::{DENIED_HOST, Inside, Leashed, Setup, Started, loopback};
use crate::tls::authority::{ORIGIN, ZONE};
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
    let config = match &setup.inside {
        None => include_str!("envoy.yaml").replace("@DENIED@", DENIED_HOST),
        Some(inside) => envoy_inside(inside),
    };
    let config = config.replace("@PORT@", &address.port().to_string());
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

/// The configuration of an Envoy that ends the clients' TLS and speaks its own to the origin.
fn envoy_inside(Inside { authority, origin }: &Inside) -> String {
    include_str!("envoy_inside.yaml")
        .replace("@ZONE@", ZONE)
        .replace("@ORIGIN@", ORIGIN)
        .replace("@LEAF@", &authority.leaf().display().to_string())
        .replace("@KEY@", &authority.key().display().to_string())
        .replace("@ROOT@", &authority.root().display().to_string())
        .replace("@FRESH@", &origin.fresh.to_string())
        .replace("@RESUMING@", &origin.resuming.to_string())
}

/// mitmproxy: no flow is shown or kept, bodies pass as they come.
pub(super) fn mitmproxy(setup: &Setup) -> Result<Started> {
    let program = match &setup.programs.mitmdump {
        Some(path) => path.canonicalize().with_context(|| path.display().to_string())?,
        None => on_path("mitmdump")?,
    };
    let inside =
        setup.inside.as_ref().context("mitmproxy is measured inside TLS only: `sluice-bench tls`")?;
    let directory = tempfile::tempdir().context("no temporary directory")?;
    let address = loopback(origin::free_port()?);
    let settings = [
        format!("confdir={}", directory.path().display()),
        format!("ssl_verify_upstream_trusted_ca={}", inside.authority.root().display()),
        "connection_strategy=lazy".into(),
        "http2=false".into(),
        "stream_large_bodies=64k".into(),
    ];
    let mut arguments =
        vec!["--quiet".into(), "--listen-host".into(), "127.0.0.1".into(), "--listen-port".into()];
    arguments.push(address.port().to_string());
    arguments.extend(settings.into_iter().flat_map(|setting| ["--set".into(), setting]));
    Ok((Leashed::start_in(directory, &program, &arguments, &setup.cores)?, address, None))
}

fn program(given: Option<&PathBuf>, name: &str) -> Result<PathBuf> {
    match given {
        Some(path) => path.canonicalize().with_context(|| format!("{}", path.display())),
        None => on_path(name),
    }
}
