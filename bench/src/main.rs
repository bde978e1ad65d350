//! `sluice-bench`: shows what Sluice costs, honestly, as ratios to the least that is possible.
//!
//! Owns a load generator, an origin, reference relays and the comparison of proxies; never a line of the product.
//!
//! The life of a comparison: `cli` names a `workload` and the proxies; `stage` starts the `origin` on the load's core and
//! each `contender` (Sluice, a peer, or a `reference` of ours) on the proxy's; the workload makes sessions which `load`
//! drives; `accounting` reads what the kernel charged the proxy at both ends of the measured stretch; `outcome` holds
//! the figures, `compare` alternates and divides, `targets` judges, `report` prints, and `machine` says where it was seen.

mod accounting;
mod bypass;
mod cli;
mod compare;
mod contender;
mod identity;
mod load;
mod machine;
mod origin;
mod outcome;
mod pinning;
mod poll;
mod progress;
mod reference;
mod report;
mod socket;
mod stage;
mod statistics;
mod targets;
mod tls;
mod workload;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use serde::Serialize;

use cli::{Cli, Command, Keeping};
use machine::Machine;
use report::Record;
use stage::Stage;

/// Some operation failed.
const EXIT_ERRORS: u8 = 1;
/// A target was missed and `--strict` was given.
const EXIT_MISSED: u8 = 2;
/// The command line is wrong.
const EXIT_USAGE: u8 = 64;
/// Nothing could be measured.
const EXIT_FAILED: u8 = 70;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print(); // help and version come this way too
            return ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 });
        }
    };
    match act(&cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("sluice-bench: {error:#}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn act(cli: &Cli) -> Result<u8> {
    let (conditions, programs) = (&cli.conditions, &cli.programs);
    match &cli.command {
        Command::Reference { name, listen, tls } => name.serve(*listen, tls.as_deref()).map(|()| 0),
        Command::Origin { cores, first } => origin::serve(cores, *first).map(|()| 0),
        Command::Leash { command } => contender::run_on_leash(command).map(|()| 0),
        Command::Crowd { to, connections, files } => {
            identity::play_crowd(*to, *connections, *files).map(|()| 0)
        }
        Command::Visit { proxy_address, target } => {
            identity::play_visitor(*proxy_address, target).map(|()| 0)
        }
        Command::Identity { size, keeping } => {
            let machine = Machine::look();
            let cost = identity::run(*size, conditions, programs)?;
            show(cli, &machine, &cost, identity::Cost::table)?;
            keep(cli, keeping, &machine, &cost, "identity")?;
            Ok(0)
        }
        Command::Tls { rounds, only, peers, strict, keeping } => {
            let machine = Machine::look();
            let seen = tls::run((*rounds, only, *peers), conditions, programs)?;
            show(cli, &machine, &seen, tls::Seen::table)?;
            keep(cli, keeping, &machine, &seen, "tls")?;
            Ok(if *strict && !seen.all_met() { EXIT_MISSED } else { 0 })
        }
        Command::BypassPart { part } => part.play().map(|()| 0),
        Command::Bypass(bypass) => {
            let machine = Machine::look();
            let seen = bypass.run(&contender::sluice_program(programs)?)?;
            show(cli, &machine, &seen, bypass::table)?;
            keep(cli, &bypass.keeping, &machine, &seen, "bypass")?;
            Ok(code(seen.errors()))
        }
        Command::Once(workload) => {
            let subject = cli.subject;
            let machine = Machine::look();
            let workload = &workload.fitted()?;
            let stage = Stage::set(workload, conditions, programs)?;
            let contender = stage.start(subject)?;
            let outcome =
                stage.run(workload, conditions, &contender, &format!("{} {subject}", workload.name()))?;
            show(cli, &machine, &outcome, report::outcome)?;
            if let Some(warning) = report::overload(&outcome, conditions) {
                eprintln!("{warning}");
            }
            Ok(code(outcome.errors))
        }
        Command::Compare { sides, keeping, workload } => {
            let machine = Machine::look();
            let comparison = compare::run(workload, cli.subject, sides, conditions, programs)?;
            show(cli, &machine, &comparison, report::comparison)?;
            keep(cli, keeping, &machine, &comparison, workload.name())?;
            Ok(code(comparison.errors()))
        }
        Command::Targets { rounds, only, peers, strict, keeping } => {
            let machine = Machine::look();
            let verdicts = targets::run(cli.subject, (*rounds, only, *peers), conditions, programs)?;
            show(cli, &machine, &verdicts, report::verdicts)?;
            keep(cli, keeping, &machine, &verdicts, "targets")?;
            let errors = verdicts.comparisons.iter().map(compare::Comparison::errors).sum();
            let missed = *strict && verdicts.verdicts.iter().any(|verdict| !verdict.met);
            Ok(if errors == 0 && missed { EXIT_MISSED } else { code(errors) })
        }
    }
}

/// Prints a result as a table or as JSON.
fn show<T: Serialize>(cli: &Cli, machine: &Machine, result: &T, table: impl Fn(&T) -> String) -> Result<()> {
    if cli.json {
        print!("{}", Record { machine, conditions: &cli.conditions, result }.json()?);
    } else {
        println!("{}\n{}", report::machine(machine), table(result));
    }
    Ok(())
}

/// Keeps a result as a file.
fn keep<T: Serialize>(cli: &Cli, keeping: &Keeping, machine: &Machine, result: &T, name: &str) -> Result<()> {
    if !keeping.no_results {
        let path = Record { machine, conditions: &cli.conditions, result }.save(&keeping.results, name)?;
        eprintln!("kept as {}", path.display());
    }
    Ok(())
}

fn code(errors: u64) -> u8 {
    if errors == 0 { 0 } else { EXIT_ERRORS }
}
