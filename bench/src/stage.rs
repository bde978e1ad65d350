//! The origin and the proxies of one comparison, started and ended together.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::contender::{Contender, Inside, Profile, Programs, Setup};
use crate::origin::Ports;
use crate::outcome::Outcome;
use crate::pinning::{self, Niceness};
use crate::progress::Progress;
use crate::workload::{Conditions, Scene, Workload};

/// A running origin and what is needed to start proxies in front of it.
#[derive(Debug)]
pub(crate) struct Stage {
    origin: Child,
    setup: Setup,
    _niceness: Option<Niceness>,
}

impl Stage {
    /// Takes the load's cores and starts the origin for `workload`.
    pub(crate) fn set(workload: &Workload, conditions: &Conditions, programs: &Programs) -> Result<Self> {
        pinning::pin(&conditions.load_cores)?;
        let niceness = conditions.nice.map(Niceness::set).transpose()?;
        let cores = conditions.load_cores.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let mut command = Command::new(std::env::current_exe().context("/proc/self/exe")?);
        command.args(["origin", "--cores", &cores]).stdin(Stdio::null()).stdout(Stdio::piped());
        if workload.needs_priority() {
            command.arg("--first");
        }
        let mut origin = command.spawn().context("cannot start the origin")?;
        let mut line = String::new();
        let said = origin.stdout.take().map(|stdout| BufReader::new(stdout).read_line(&mut line));
        let ports: Result<Ports> = match said {
            Some(Ok(_)) => serde_json::from_str(&line).context("the origin did not say its ports"),
            _ => Err(anyhow::anyhow!("the origin ended at once")),
        };
        let setup = Setup {
            cores: conditions.proxy_cores.clone(),
            ports: ports?,
            programs: programs.clone(),
            inside: None,
        };
        Ok(Self { origin, setup, _niceness: niceness })
    }

    /// The origin's ports.
    pub(crate) const fn ports(&self) -> Ports {
        self.setup.ports
    }

    /// Has the proxies that are started from now on look inside TLS, or no longer.
    pub(crate) fn look_inside(&mut self, inside: Option<Inside>) {
        self.setup.inside = inside;
    }

    /// Starts a proxy.
    pub(crate) fn start(&self, profile: Profile) -> Result<Contender> {
        Contender::start(profile, &self.setup)
    }

    /// Runs `workload` once over a proxy that runs.
    pub(crate) fn run(
        &self,
        workload: &Workload,
        conditions: &Conditions,
        contender: &Contender,
        heading: &str,
    ) -> Result<Outcome> {
        let progress = Progress::new(heading);
        progress.show("setting up");
        let scene = Scene { contender, ports: self.setup.ports, conditions, progress: &progress };
        workload.run(&scene).with_context(|| format!("{} over {}", workload.name(), contender.name))
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.origin.kill();
        let _ = self.origin.wait();
    }
}
