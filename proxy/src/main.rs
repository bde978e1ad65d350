//! The `sluice` command.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;
use sluice::cli::{Cli, Command, check, demo, doctor, events, exec, exit, explain, sandbox, serve};
use sluice::policy::Source;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if asked { ExitCode::SUCCESS } else { ExitCode::from(exit::USAGE) };
        }
    };
    tracing_subscriber::fmt()
        .with_max_level(cli.log_level())
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    match cli.command {
        Command::Exec(args) => exec::run(*args).into(),
        Command::Serve(args) => serve::run(&args),
        Command::Check { file } => check::run(&file),
        Command::Explain(args) => explain::run(&explain::Question {
            policy: Source::parse(&args.policy),
            binary: args.binary,
            ancestors: args.ancestor,
            method: args.method,
            target: args.target,
        }),
        Command::Sandbox(command) => sandbox::run(command).into(),
        Command::Policy(command) => sandbox::run_policy(command).into(),
        Command::Events(args) => events::run_events(&args).into(),
        Command::Denials(args) => events::run_denials(&args).into(),
        Command::Doctor { json, bypass_source } => doctor::run(json, bypass_source.into()).into(),
        Command::Demo { inside } => demo::run(inside).into(),
    }
}
