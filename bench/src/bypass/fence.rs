//! What the fence costs traffic that uses the proxy: one sandbox, one proxy, one client; its table is taken away and put
//! back between short runs.
//!
//! There is no way to run a sandbox without a fence, so the bench does what only root of the host can: it enters the
//! namespace and uses `nft` there. `sluice exec` does not look after its fence while its workload runs.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

use super::running::Running;
use crate::accounting::Meter;
use crate::statistics::{Ratio, Spread};

/// Where the proxy is inside every sandbox.
const PROXY: &str = "10.200.0.1:3128";

/// CPU of client and proxy per operation, µs, with the fence and without.
#[derive(Debug, Serialize)]
pub(crate) struct Paid {
    pub(super) connect: Beside,
    pub(super) ping_pong: Beside,
}

#[derive(Debug, Serialize)]
pub(crate) struct Beside {
    pub(super) with_us: Spread,
    pub(super) without_us: Spread,
    pub(super) ratio: Ratio,
}

/// Alternates `rounds` runs of `seconds` each.
pub(super) fn measure(sluice: &Path, folder: &Path, rounds: u32, seconds: f64) -> Result<Paid> {
    let name = format!("bench-fence-{}", std::process::id());
    let origin = echo()?;
    let options = ["--name", &name, "--permit-special", "127.0.0.0/8"];
    let part = ["load", PROXY, &origin.to_string()];
    let mut running = Running::start(sluice, &folder.join("fence"), &part, &options)?;
    let mut client = Client {
        to: running.exec.stdin.take().context("no input")?,
        from: BufReader::new(running.exec.stdout.take().context("no output")?),
        proxy: Meter::new(running.exec.id(), &[]),
    };
    client.run("connect", 0.2)?; // it stands
    let fence = Fence::of(&name)?;
    let mut figures: [[Vec<f64>; 2]; 2] = Default::default();
    for round in 0..rounds {
        // Who goes first changes, too.
        for turn in 0..2 {
            let with = (round + turn) % 2 == 0;
            fence.load(with)?;
            for (what, figures) in ["connect", "pingpong"].into_iter().zip(&mut figures) {
                figures[usize::from(with)].push(client.run(what, seconds)?);
            }
        }
    }
    let [connect, ping_pong] = figures.map(|[without, with]| {
        Some(Beside {
            with_us: Spread::of(&with)?,
            without_us: Spread::of(&without)?,
            ratio: Ratio::of(&with, &without)?,
        })
    });
    Ok(Paid { connect: connect.context("no rounds")?, ping_pong: ping_pong.context("no rounds")? })
}

struct Client {
    to: std::process::ChildStdin,
    from: BufReader<std::process::ChildStdout>,
    proxy: Meter,
}

impl Client {
    /// CPU of both sides per operation, µs. The meter counts the proxy's descendants, and the client is one.
    fn run(&mut self, what: &str, seconds: f64) -> Result<f64> {
        let before = self.proxy.read()?;
        writeln!(self.to, "{what} {seconds}")?;
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        let done: u64 =
            line.split(' ').next().and_then(|number| number.parse().ok()).context("the client failed")?;
        ensure!(done > 0, "the client did nothing");
        Ok(self.proxy.read()?.cpu.saturating_sub(before.cpu).as_nanos() as f64 / 1e3 / done as f64)
    }
}

/// The table of a sandbox, as it was loaded.
struct Fence {
    netns: String,
    rules: String,
}

impl Fence {
    fn of(sandbox: &str) -> Result<Self> {
        let mut fence =
            Self { netns: format!("--net=/run/sluice/sandboxes/{sandbox}/netns"), rules: String::new() };
        fence.rules = fence.nft(&["list", "table", "inet", "sluice"])?;
        Ok(fence)
    }

    fn load(&self, with: bool) -> Result<()> {
        self.nft(&["flush", "ruleset"])?; // nobody else has any there
        if with {
            let file = tempfile::NamedTempFile::new()?;
            std::fs::write(file.path(), &self.rules)?;
            self.nft(&["-f", &file.path().display().to_string()])?;
        }
        Ok(())
    }

    fn nft(&self, args: &[&str]) -> Result<String> {
        let output =
            Command::new("nsenter").arg(&self.netns).arg("nft").args(args).output().context("nsenter")?;
        if !output.status.success() {
            bail!("nft {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// Sends back whatever comes, until the bench ends.
fn echo() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for mut peer in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let _ = peer.set_nodelay(true);
                let mut octets = [0; 256];
                while let Ok(length @ 1..) = peer.read(&mut octets) {
                    if peer.write_all(&octets[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(address)
}
