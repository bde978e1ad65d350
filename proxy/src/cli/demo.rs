//! `sluice demo`: the tour.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, anyhow};
use sluice_netns::Spec;

use super::exec::{Failure, check_machine, clear_away, run_inside, told};
use super::{exit, say};
use crate::appliance::{Appliance, Plan};
use crate::confined;
use crate::demo::internet::Internet;
use crate::demo::{POLICY, tour};
use crate::diagnostic::Diagnostics;
use crate::event::journal::Target;
use crate::event::{Words, ledger};
use crate::limits::SandboxLimits;
use crate::made::{self, Workload};
use crate::policy::{self, Policy};
use crate::signals::Signals;
use crate::watch::BypassSource;

/// Runs the tour; with `inside`, the part of it that runs in the sandbox.
pub fn run(inside: bool) -> u8 {
    told(if inside { tour::run().map(|()| exit::OK).map_err(internal) } else { demonstrate() })
}

fn internal(error: impl Into<anyhow::Error>) -> Failure {
    Failure::new(exit::INTERNAL, error)
}

fn demonstrate() -> Result<u8, Failure> {
    check_machine(BypassSource::Kmsg)?;
    let began = Instant::now();
    let signals = Signals::block().map_err(internal)?;
    let mut findings = Diagnostics::default();
    let file = policy::parse(POLICY, &"demo".into(), &mut findings)
        .filter(|_| !findings.has_errors())
        .ok_or_else(|| internal(anyhow!("{findings}")))?;
    let spec = Spec::new(format!("demo-{}", std::process::id()).parse().map_err(internal)?);
    clear_away(&spec.state_dir);
    let internet = Internet::start().map_err(internal)?;
    let folder = std::env::temp_dir().join(format!("sluice-demo-{}.ndjson", std::process::id()));
    let appliance = Appliance::start(Plan {
        dial_from: Some(internet.netns().map_err(internal)?),
        names: Internet::names(),
        events: Target::File(folder.clone()),
        words: Words::FirstOfEachKind,
        hardening: confined::mode_of_environment().map_err(|error| internal(anyhow!("{error}")))?,
        ..Plan::default()
    })
    .map_err(internal)?;
    say("A sandbox: its own network namespace, with nothing in it but lo and the proxy's listener.");
    say("An internet of this demonstration's own, in another namespace. Policy:\n");
    say(&indented(POLICY));

    let own = std::env::current_exe().map_err(internal)?;
    let workload = Workload {
        program: own.into(),
        args: vec!["demo".into(), "--inside".into()],
        directory: "/".into(),
        user: None,
        env: Vec::new(),
    };
    let policy = Arc::new(Policy::compile(&file));
    let plan = made::Plan { network: spec, policy, limits: SandboxLimits::default() };
    let outcome = run_inside(&appliance, plan, workload, &file.confinement, &signals);
    let reporter = appliance.reporter().clone();
    appliance.stop();
    say("\nWhat the appliance saw\n");
    say(&indented(&ledger::render(reporter.ledger(), Some(100))));
    if let Ok(ended) = &outcome {
        say(&indented(&ended.enforcement.summary()));
    }
    let shown = show_event(&folder);
    let _ = std::fs::remove_file(&folder);
    shown.map_err(internal)?;
    say(&format!(
        "\n{:.1} s; nothing is left behind. Next: sluice exec --policy FILE -- CMD",
        began.elapsed().as_secs_f64()
    ));
    outcome.map(|ended| ended.code)
}

/// One event as a log shipper gets it.
fn show_event(path: &std::path::Path) -> anyhow::Result<()> {
    let events = std::fs::read_to_string(path).context("the events of the demonstration")?;
    let line =
        events.lines().find(|line| line.contains("bypass.detected")).context("no bypass was reported")?;
    say(&format!("\nOne of the events, as shippers read them\n\n  {line}"));
    Ok(())
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
