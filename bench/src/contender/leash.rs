//! A child process that does not outlive the bench: pinned, logged, ended on drop and with its parent.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::pinning;

/// Longest wait for a proxy to take connections.
const START_MAX: Duration = Duration::from_secs(20);
/// Longest wait for it to end in good order.
const END_MAX: Duration = Duration::from_secs(3);
/// How much of a log goes into an error message, bytes.
const LOG_TAIL_BYTES: usize = 2000;

/// The child and its scratch directory.
#[derive(Debug)]
pub(crate) struct Leashed {
    child: Child,
    directory: TempDir,
}

impl Leashed {
    /// Starts `program` on `cores`; its output goes to a log.
    pub(crate) fn start(program: &Path, arguments: &[String], cores: &[usize]) -> Result<Self> {
        let directory = tempfile::tempdir().context("no temporary directory")?;
        Self::start_in(directory, program, arguments, cores)
    }

    /// The same, with a directory that holds its files already.
    pub(crate) fn start_in(
        directory: TempDir,
        program: &Path,
        arguments: &[String],
        cores: &[usize],
    ) -> Result<Self> {
        let log = File::create(directory.path().join("log")).context("log file")?;
        let mut command = Command::new(std::env::current_exe().context("/proc/self/exe")?);
        command.arg("leash").arg("--").arg(program).args(arguments);
        command.current_dir(directory.path()).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = pinning::started_on(cores, || command.spawn())?
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self { child, directory })
    }

    /// The folder it runs in.
    pub(super) fn folder(&self) -> &Path {
        self.directory.path()
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns once `address` takes connections; fails with the log's end when the process ends or time runs out.
    pub(crate) fn wait_until_it_listens(&self, address: SocketAddr) -> Result<()> {
        let deadline = Instant::now() + START_MAX;
        while Instant::now() < deadline {
            if TcpStream::connect_timeout(&address, START_MAX).is_ok() {
                return Ok(());
            }
            if self.has_ended() {
                bail!("it ended at once; its log says:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("nothing listens on {address} after {} s; its log says:\n{}", START_MAX.as_secs(), self.log())
    }

    fn has_ended(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        stat.rsplit(") ").next().is_none_or(|state| state.is_empty() || state.starts_with('Z'))
    }

    fn log(&self) -> String {
        let log = fs::read(self.directory.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_TAIL_BYTES)..]).into_owned()
    }
}

impl Drop for Leashed {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.pid() as i32), Signal::SIGTERM);
        let deadline = Instant::now() + END_MAX;
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `sluice-bench leash -- CMD`: becomes CMD, which is killed when the bench is, whatever ends the bench.
pub(crate) fn run_on_leash(command: &[String]) -> Result<()> {
    let [program, arguments @ ..] = command else { bail!("leash: no command") };
    pinning::die_with_parent()?;
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot start {program}"))
}

/// Where `name` is on the PATH.
pub(super) fn on_path(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    places
        .map(|place| place.join(name))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("{name} is not installed: install it or give its path with --{name}"))
}
