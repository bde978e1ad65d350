//! The command line: one binary, one file a command.

pub mod check;
pub mod daemon;
pub mod demo;
pub mod doctor;
pub mod events;
pub mod exec;
pub mod exit;
pub mod explain;
pub mod sandbox;
mod sandbox_exec;
pub mod serve;

use std::ffi::OsString;
use std::io::Write as _;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::watch::BypassSource;

/// Writes a line to standard output. A reader that went away is no failure.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Egress appliance for hosts that run many untrusted sandboxes: one way out, decided by policy, and every other attempt
/// refused at once and named.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, max_term_width = 100)]
pub struct Cli {
    /// How much Sluice says of itself on stderr.
    #[arg(long, global = true, value_name = "LEVEL", value_parser = ["error", "warn", "info", "debug", "trace"])]
    pub log: Option<String>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// How much to say: what was asked for, or what suits the command. A daemon tells of its life, a command run for a
    /// person of refusals only, and the tour tells them itself.
    pub fn log_level(&self) -> tracing::Level {
        let asked = self.log.as_deref().and_then(|level| level.parse().ok());
        asked.unwrap_or(match self.command {
            Command::Serve(_) => tracing::Level::INFO,
            Command::Demo { .. } => tracing::Level::ERROR,
            _ => tracing::Level::WARN,
        })
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one command whose only way out is the proxy; tidy up; say what it tried.
    Exec(Box<ExecArgs>),
    /// Run the daemon.
    Serve(ServeArgs),
    /// Validate a config or policy: every error at once, with file:line:column.
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Tell what a policy decides, and why.
    Explain(ExplainArgs),
    /// The daemon's sandboxes: make, attach, list, show, remove.
    #[command(subcommand)]
    Sandbox(sandbox::SandboxCommand),
    /// The policies of the daemon's sandboxes.
    #[command(subcommand)]
    Policy(sandbox::PolicyCommand),
    /// Print what the daemon has seen, as NDJSON.
    Events(events::EventsArgs),
    /// Show what was refused, folded; or the policy that would allow it.
    Denials(events::DenialsArgs),
    /// Show every prerequisite: found or missing, what degrades, how to fix it.
    Doctor {
        /// As JSON.
        #[arg(long)]
        json: bool,
        /// What is needed by who learns of direct attempts this way.
        #[arg(long, value_enum, default_value_t = Source::Kmsg)]
        bypass_source: Source,
    },
    /// A self-contained tour on this machine; needs no internet.
    Demo {
        /// Internal: the part of the tour that runs inside the sandbox.
        #[arg(long, hide = true)]
        inside: bool,
    },
}

/// `sluice exec`.
#[derive(Args, Debug)]
pub struct ExecArgs {
    /// Policy file, or `open` or `deny` [default: deny].
    #[arg(long, value_name = "FILE|open|deny")]
    pub policy: Option<String>,
    /// Write the smallest policy that covers what was seen, to FILE or to stderr. Without `--policy` everything is
    /// allowed that the address guard lets through; with one, what it denies is covered too.
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true)]
    pub learn: Option<Option<PathBuf>>,
    /// Name of the sandbox in events [default: exec-PID].
    #[arg(long, value_name = "ID")]
    pub name: Option<String>,
    /// User (and group) the command runs as; by name or number.
    #[arg(long, value_name = "UID[:GID]")]
    pub user: Option<String>,
    /// Write events as NDJSON to a file, or to stdout with `-`.
    #[arg(long, value_name = "FILE|-")]
    pub events: Option<String>,
    /// Let the address guard pass this range although it is special (loopback, metadata, …).
    #[arg(long = "permit-special", value_name = "CIDR")]
    pub permit_special: Vec<String>,
    /// Certificate authorities (PEM) that origins are trusted by, besides the platform's, where TLS is looked into.
    #[arg(long = "upstream-ca", value_name = "FILE")]
    pub upstream_ca: Vec<PathBuf>,
    /// The oldest TLS version spoken where TLS is looked into.
    #[arg(long = "tls-min", value_name = "VERSION", default_value = "1.2", value_parser = ["1.2", "1.3"])]
    pub tls_min: String,
    /// Where direct attempts are learnt of: the kernel's log, or netlink messages that keep it clean.
    #[arg(long, value_enum, default_value_t = Source::Kmsg)]
    pub bypass_source: Source,
    /// Log lines a second that the fence may write for each protocol; 0 for no limit. What has none is counted, told and
    /// named all the same.
    #[arg(long, value_name = "LINES", default_value_t = sluice_netns::limits::LOG_LINES_PER_SECOND)]
    pub log_limit: u32,
    /// Do not print the summary.
    #[arg(long)]
    pub no_summary: bool,
    /// The command and its arguments.
    #[arg(required = true, last = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// `--bypass-source`.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Source {
    /// `/dev/kmsg`
    Kmsg,
    /// NFLOG
    Nflog,
}

impl From<Source> for BypassSource {
    fn from(source: Source) -> Self {
        match source {
            Source::Kmsg => Self::Kmsg,
            Source::Nflog => Self::Nflog,
        }
    }
}

/// `sluice serve`.
#[derive(Args, Debug)]
pub struct ServeArgs {
    /// Configuration file.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// `sluice explain`.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// Policy file, or `open` or `deny`.
    #[arg(long, value_name = "FILE|open|deny")]
    pub policy: String,
    /// Path of the program that asks.
    #[arg(long, value_name = "PATH")]
    pub binary: Option<PathBuf>,
    /// Path of a parent's program, nearest first.
    #[arg(long, value_name = "PATH")]
    pub ancestor: Vec<PathBuf>,
    /// `CONNECT` or a method.
    pub method: String,
    /// `HOST:PORT` for CONNECT, otherwise a URL.
    pub target: String,
}
