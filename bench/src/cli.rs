//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::bypass::{Bypass, Part};
use crate::compare::Sides;
use crate::contender::{Profile, Programs};
use crate::identity;
use crate::reference::Reference;
use crate::tls;
use crate::workload::{Conditions, Workload};

/// Load, origin, yardsticks and comparisons that show what a proxy costs
///
/// CPU is the proxy's whole process by the kernel's own account, in nanoseconds. Any failed operation makes the exit
/// code 1.
#[derive(Debug, Parser)]
#[command(name = "sluice-bench", version, subcommand_value_name = "WORKLOAD or COMMAND")]
pub(crate) struct Cli {
    /// Where, how long, how fast.
    #[command(flatten)]
    pub(crate) conditions: Conditions,
    /// Programs to start.
    #[command(flatten)]
    pub(crate) programs: Programs,
    /// The proxy that is judged: sluice, squid, envoy, tinyproxy, running, or a reference
    #[arg(long, global = true, default_value = "sluice")]
    pub(crate) subject: Profile,
    /// Print JSON instead of a table
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run one workload once over one proxy
    #[command(flatten)]
    Once(Workload),
    /// Run one workload over several proxies in alternation and divide
    Compare {
        /// Who against whom.
        #[command(flatten)]
        sides: Sides,
        /// Where the JSON goes.
        #[command(flatten)]
        keeping: Keeping,
        /// The workload.
        #[command(subcommand)]
        workload: Workload,
    },
    /// Measure every promise of cost beside its yardstick: target, seen, met or missed
    Targets {
        /// Rounds of every comparison
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..1000))]
        rounds: u32,
        /// Only these workloads
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// Run Squid and Envoy beside the yardsticks, where they are installed
        #[arg(long)]
        peers: bool,
        /// A missed target makes the exit code 2
        #[arg(long)]
        strict: bool,
        /// Where the JSON goes.
        #[command(flatten)]
        keeping: Keeping,
    },
    /// What it costs to know which program asks, in a crowd of processes, beside a full scan of /proc
    Identity {
        /// The crowd.
        #[command(flatten)]
        size: identity::Size,
        /// Where the JSON goes.
        #[command(flatten)]
        keeping: Keeping,
    },
    /// Be one of the crowd of `identity`
    #[command(hide = true)]
    Crowd {
        /// Where its connections go
        #[arg(long)]
        to: SocketAddr,
        /// How many
        #[arg(long)]
        connections: usize,
        /// Descriptors besides
        #[arg(long)]
        files: usize,
    },
    /// Make one CONNECT
    #[command(hide = true)]
    Visit {
        /// Through which proxy
        #[arg(long)]
        proxy_address: SocketAddr,
        /// Where to
        #[arg(long)]
        target: String,
    },
    /// Measure what looking inside TLS costs, beside rustls alone and a relay of two rustls ends
    Tls {
        /// Rounds of every comparison
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..1000))]
        rounds: u32,
        /// Only these rows: handshakes, requests, bulk, first, untouched
        #[arg(long, value_delimiter = ',')]
        only: Vec<tls::Row>,
        /// Run Envoy and mitmproxy beside, where they are installed
        #[arg(long)]
        peers: bool,
        /// A missed target makes the exit code 2
        #[arg(long)]
        strict: bool,
        /// Where the JSON goes.
        #[command(flatten)]
        keeping: Keeping,
    },
    /// Measure what attempts to go around the proxy cost, and how soon they are told
    Bypass(Bypass),
    /// A part of that, inside a sandbox
    #[command(hide = true)]
    BypassPart {
        /// Which
        #[command(subcommand)]
        part: Part,
    },
    /// Serve as one of the yardsticks until the parent ends
    Reference {
        /// Which
        name: Reference,
        /// Where
        #[arg(long)]
        listen: SocketAddr,
        /// Folder of root.pem, leaf.pem and leaf.key, for `tls-relay`
        #[arg(long, value_name = "DIR")]
        tls: Option<PathBuf>,
    },
    /// Serve as the origin until the parent ends
    #[command(hide = true)]
    Origin {
        /// Cores, two threads on each
        #[arg(long, value_delimiter = ',')]
        cores: Vec<usize>,
        /// Run latency threads before all others
        #[arg(long)]
        first: bool,
    },
    /// Become a command that dies with the parent
    #[command(hide = true)]
    Leash {
        /// The command
        #[arg(last = true)]
        command: Vec<String>,
    },
}

/// Where results are kept.
#[derive(Debug, Args)]
pub(crate) struct Keeping {
    /// Folder for the JSON of this run
    #[arg(long, global = true, default_value = "bench/results")]
    pub(crate) results: PathBuf,
    /// Keep nothing
    #[arg(long, global = true)]
    pub(crate) no_results: bool,
}
