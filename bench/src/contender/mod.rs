//! The proxies that can be measured: how each is configured, started on its core, waited for and ended.

mod leash;
mod peers;
mod sluice;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use crate::accounting::Meter;
use crate::origin::Ports;
use crate::reference::Reference;
use crate::tls::authority::Authority;
use crate::tls::origin::Secure;
pub(crate) use leash::{Leashed, run_on_leash};
pub(crate) use sluice::program as sluice_program;

/// A host that no policy here allows.
pub(crate) const DENIED_HOST: &str = "denied.invalid";

/// Which proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// `sluice serve`.
    Sluice,
    /// One of the yardsticks of this program.
    Reference(Reference),
    /// Squid.
    Squid,
    /// Envoy.
    Envoy,
    /// tinyproxy.
    Tinyproxy,
    /// mitmproxy; it looks inside TLS.
    Mitmproxy,
    /// A proxy that runs already (`--proxy` and `--pid`).
    Running,
}

/// What starting a proxy needs to know.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// Cores for the proxy.
    pub(crate) cores: Vec<usize>,
    /// The origin's ports: what policies allow.
    pub(crate) ports: Ports,
    /// The programs to start, where they are not on the PATH.
    pub(crate) programs: Programs,
    /// Whether they look inside TLS, and how.
    pub(crate) inside: Option<Inside>,
}

/// What a proxy needs that looks inside TLS.
#[derive(Debug, Clone)]
pub(crate) struct Inside {
    /// The root that origins are trusted by, and a certificate for proxies that make none.
    pub(crate) authority: Authority,
    /// The origin inside TLS.
    pub(crate) origin: Secure,
}

/// Paths of proxies, from the command line.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Programs {
    /// The `sluice` program [default: beside this one]
    #[arg(long, global = true, value_name = "PATH")]
    sluice: Option<PathBuf>,
    /// Whether Sluice does not look for the program that asks.
    #[arg(skip)]
    blind: bool,
    /// Judge forward requests by method and path too (`protocol: http, access: full`), not only by host and port
    #[arg(long, global = true)]
    inspect: bool,
    /// The `envoy` program [default: from the PATH]
    #[arg(long, global = true, value_name = "PATH")]
    envoy: Option<PathBuf>,
    /// The `squid` program [default: from the PATH]
    #[arg(long, global = true, value_name = "PATH")]
    squid: Option<PathBuf>,
    /// The `tinyproxy` program [default: from the PATH]
    #[arg(long, global = true, value_name = "PATH")]
    tinyproxy: Option<PathBuf>,
    /// The `mitmdump` program [default: from the PATH]
    #[arg(long, global = true, value_name = "PATH")]
    mitmdump: Option<PathBuf>,
    /// Address of a proxy that runs already, for the subject `running`
    #[arg(long, global = true, value_name = "ADDR", requires = "pid")]
    proxy: Option<SocketAddr>,
    /// Its process id
    #[arg(long, global = true, requires = "proxy")]
    pid: Option<u32>,
}

impl Programs {
    /// The same, with Sluice not looking for the program that asks, or looking.
    pub(crate) const fn blind(mut self, blind: bool) -> Self {
        self.blind = blind;
        self
    }
}

/// A proxy that runs and can be measured.
#[derive(Debug)]
pub(crate) struct Contender {
    /// What it is called in reports.
    pub(crate) name: String,
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Its accounts.
    pub(crate) meter: Meter,
    /// The status that it refuses with; `None` when it has no policy.
    pub(crate) refusal: Option<u16>,
    /// Ended when dropped. `None` for one that ran before.
    process: Option<Leashed>,
}

impl FromStr for Profile {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "sluice" => Ok(Self::Sluice),
            "squid" => Ok(Self::Squid),
            "envoy" => Ok(Self::Envoy),
            "tinyproxy" => Ok(Self::Tinyproxy),
            "mitmproxy" => Ok(Self::Mitmproxy),
            "running" => Ok(Self::Running),
            other => Reference::from_str(other.strip_prefix("reference:").unwrap_or(other))
                .map(Self::Reference)
                .map_err(|names| {
                    format!(
                        "no such proxy: choose sluice, squid, envoy, tinyproxy, mitmproxy, running, {names}"
                    )
                }),
        }
    }
}

impl std::fmt::Display for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sluice => f.write_str("sluice"),
            Self::Reference(reference) => write!(f, "{reference}"),
            Self::Squid => f.write_str("squid"),
            Self::Envoy => f.write_str("envoy"),
            Self::Tinyproxy => f.write_str("tinyproxy"),
            Self::Mitmproxy => f.write_str("mitmproxy"),
            Self::Running => f.write_str("running"),
        }
    }
}

impl Profile {
    /// Other people's proxies that are installed, or were given with a path.
    pub(crate) fn installed_peers(programs: &Programs) -> Vec<Self> {
        [(Self::Squid, &programs.squid), (Self::Envoy, &programs.envoy)]
            .into_iter()
            .filter(|(peer, given)| given.is_some() || leash::on_path(&peer.to_string()).is_ok())
            .map(|(peer, _)| peer)
            .collect()
    }

    /// Those of them that look inside TLS.
    pub(crate) fn installed_interceptors(programs: &Programs) -> Vec<Self> {
        [(Self::Envoy, "envoy", &programs.envoy), (Self::Mitmproxy, "mitmdump", &programs.mitmdump)]
            .into_iter()
            .filter(|(_, program, given)| given.is_some() || leash::on_path(program).is_ok())
            .map(|(peer, ..)| peer)
            .collect()
    }
}

impl Contender {
    /// Starts the proxy and waits until it takes connections.
    pub(crate) fn start(profile: Profile, setup: &Setup) -> Result<Self> {
        let name = profile.to_string();
        if profile == Profile::Running {
            let (Some(address), Some(pid)) = (setup.programs.proxy, setup.programs.pid) else {
                bail!("the subject `running` needs --proxy ADDR and --pid PID");
            };
            let meter = Meter::new(pid, &setup.cores);
            return Ok(Self { name, address, meter, refusal: Some(403), process: None });
        }
        let (process, address, refusal) = match profile {
            Profile::Sluice => sluice::start(setup)?,
            Profile::Squid => peers::squid(setup)?,
            Profile::Envoy => peers::envoy(setup)?,
            Profile::Tinyproxy => peers::tinyproxy(setup)?,
            Profile::Mitmproxy => peers::mitmproxy(setup)?,
            Profile::Reference(reference) => reference_process(reference, setup)?,
            Profile::Running => unreachable!("handled above"),
        };
        process.wait_until_it_listens(address).with_context(|| format!("{name} did not start"))?;
        let meter = Meter::new(process.pid(), &setup.cores);
        Ok(Self { name, address, meter, refusal, process: Some(process) })
    }

    /// The folder it runs in, of one that was started here.
    pub(crate) fn folder(&self) -> Option<&Path> {
        self.process.as_ref().map(Leashed::folder)
    }
}

/// What a profile's start returns: the process, where it will listen, what it refuses with.
type Started = (Leashed, SocketAddr, Option<u16>);

fn reference_process(reference: Reference, setup: &Setup) -> Result<Started> {
    let address = loopback(crate::origin::free_port()?);
    let program = std::env::current_exe().context("/proc/self/exe")?;
    let mut arguments =
        vec!["reference".into(), reference.to_string(), "--listen".into(), address.to_string()];
    if let Some(inside) = &setup.inside {
        arguments.extend(["--tls".into(), inside.authority.folder().display().to_string()]);
    }
    Ok((Leashed::start(&program, &arguments, &setup.cores)?, address, None))
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, port))
}
