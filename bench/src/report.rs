//! What people read (tables on stdout) and what programs read (JSON).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::compare::Comparison;
use crate::machine::Machine;
use crate::outcome::Outcome;
use crate::targets::{Verdict, Verdicts};
use crate::workload::Conditions;

/// Above this share the proxy's core was not its own, and a warning says so.
const FOREIGN_SHARE_MAX: f64 = 0.05;
/// Below this share of the asked rate an open loop was not kept up.
const RATE_SHARE_MIN: f64 = 0.99;

/// Anything measured, with where and how.
#[derive(Debug, Serialize)]
pub(crate) struct Record<'a, T> {
    /// Where.
    pub(crate) machine: &'a Machine,
    /// How.
    pub(crate) conditions: &'a Conditions,
    /// What.
    #[serde(flatten)]
    pub(crate) result: &'a T,
}

impl<T: Serialize> Record<'_, T> {
    /// The JSON text.
    pub(crate) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Writes it to `directory` under the time, the commit and `name`.
    pub(crate) fn save(&self, directory: &Path, name: &str) -> Result<PathBuf> {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let time = self.machine.time.replace(':', "");
        let path = directory.join(format!("{time}-{}-{name}.json", self.machine.commit));
        fs::write(&path, self.json()?).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

/// One run.
pub(crate) fn outcome(outcome: &Outcome) -> String {
    let mut table = table(&["figure", "value"]);
    for figure in &outcome.figures {
        table.add_row([figure.name.to_owned(), format!("{:.3} {}", figure.value, figure.unit)]);
    }
    table.add_row(["operations".to_owned(), outcome.operations.to_string()]);
    if let Some(latency) = &outcome.latency {
        let text = format!(
            "p50 {:.0}  p90 {:.0}  p99 {:.0}  p99.9 {:.0}  max {:.0} us",
            latency.p50_us, latency.p90_us, latency.p99_us, latency.p999_us, latency.max_us
        );
        table.add_row(["latency".to_owned(), text]);
    }
    table.add_row(["errors".to_owned(), outcome.errors.to_string()]);
    align(&mut table, 1);
    format!(
        "{} over {}\n{table}{}",
        outcome.workload.name(),
        outcome.subject,
        notes(std::slice::from_ref(outcome))
    )
}

/// A comparison.
pub(crate) fn comparison(comparison: &Comparison) -> String {
    let headline =
        comparison.runs.first().map(|runs| format!("{} {}", runs.headline.name, runs.headline.unit));
    let headline = headline.unwrap_or_default();
    let mut table = table(&[
        "proxy",
        &headline,
        "min … max",
        "subject over it",
        "rounds",
        "op/s",
        "p50 us",
        "p99 us",
        "p99.9 us",
    ]);
    let subject = comparison.runs.first().map(|runs| (runs, None));
    let yardsticks = comparison.yardsticks().map(|(runs, ratio)| (runs, Some(ratio)));
    for (runs, ratio) in subject.into_iter().chain(yardsticks) {
        let over = ratio.map_or(String::new(), |ratio| format!("{:.3}", ratio.of_medians));
        let rounds = ratio.map_or(String::new(), |ratio| {
            let spread = ratio.per_round;
            format!("{:.3} ({:.3} … {:.3})", spread.median, spread.min, spread.max)
        });
        let median = |pick: &dyn Fn(&Outcome) -> Option<f64>| {
            let values: Vec<f64> = runs.outcomes.iter().filter_map(pick).collect();
            crate::statistics::Spread::of(&values)
                .map_or(String::new(), |spread| format!("{:.0}", spread.median))
        };
        table.add_row([
            runs.name.clone(),
            format!("{:.3}", runs.headline.value),
            format!("{:.3} … {:.3}", runs.spread.min, runs.spread.max),
            over,
            rounds,
            median(&|one| (one.seconds > 0.0).then(|| one.operations as f64 / one.seconds)),
            median(&|one| one.latency.map(|latency| latency.p50_us)),
            median(&|one| one.latency.map(|latency| latency.p99_us)),
            median(&|one| one.latency.map(|latency| latency.p999_us)),
        ]);
    }
    for column in 1..9 {
        align(&mut table, column);
    }
    let outcomes: Vec<Outcome> = comparison.runs.iter().flat_map(|runs| runs.outcomes.clone()).collect();
    format!("{}\n{table}{}", describe(&comparison.workload), notes(&outcomes))
}

/// The rows of promises.
pub(crate) fn verdict_rows(verdicts: &[Verdict]) -> String {
    let mut table = table(&["work", "target", "seen", "rounds", "figures", ""]);
    for verdict in verdicts {
        table.add_row([
            verdict.title.clone(),
            verdict.target.clone(),
            format!("{:.2}", verdict.seen),
            format!("{:.2} … {:.2}", verdict.range[0], verdict.range[1]),
            verdict.figures.clone(),
            if verdict.met { "met" } else { "MISSED" }.to_owned(),
        ]);
    }
    align(&mut table, 2);
    align(&mut table, 3);
    table.to_string()
}

/// The table of promises.
pub(crate) fn verdicts(verdicts: &Verdicts) -> String {
    let table = verdict_rows(&verdicts.verdicts);
    let outcomes: Vec<Outcome> = verdicts
        .comparisons
        .iter()
        .flat_map(|comparison| &comparison.runs)
        .flat_map(|runs| runs.outcomes.clone())
        .collect();
    let met = verdicts.verdicts.iter().filter(|verdict| verdict.met).count();
    let peers = peers(verdicts);
    format!("{table}\n{met} of {} met{}{peers}", verdicts.verdicts.len(), notes(&outcomes))
}

/// What other people's proxies took for the same work.
fn peers(verdicts: &Verdicts) -> String {
    let mut table = table(&["work", "proxy", "seen", "subject over it"]);
    for comparison in &verdicts.comparisons {
        for (runs, ratio) in comparison.yardsticks().filter(|(runs, _)| !runs.is_yardstick()) {
            table.add_row([
                format!("{:?}", comparison.workload),
                runs.name.clone(),
                format!("{:.3} {}", runs.headline.value, runs.headline.unit),
                format!("{:.2}", ratio.of_medians),
            ]);
        }
    }
    if table.is_empty() { String::new() } else { format!("\n{table}") }
}

/// A line on where this was seen.
pub(crate) fn machine(machine: &Machine) -> String {
    format!(
        "{}, {} cores{}, {:.0} GiB, Linux {}, commit {}, load {}",
        machine.processor,
        machine.cores,
        if machine.is_virtual { " of a virtual machine" } else { "" },
        machine.memory_gib,
        machine.kernel,
        machine.commit,
        machine.load_average,
    )
}

/// What a reader must know before believing the figures.
fn notes(outcomes: &[Outcome]) -> String {
    let mut lines = vec![String::new()];
    let noisy = outcomes.iter().filter(|outcome| outcome.foreign_share > FOREIGN_SHARE_MAX).count();
    if noisy > 0 {
        let most = outcomes.iter().map(|outcome| outcome.foreign_share).fold(0.0, f64::max);
        lines.push(format!(
            "noise: in {noisy} of {} runs others used the proxy's core (up to {:.0} % of the time)",
            outcomes.len(),
            most * 100.0
        ));
    }
    for outcome in outcomes {
        let failures = outcome.failures.iter();
        lines.extend(failures.map(|(kind, count)| {
            format!("error: {}, {}: {count} times {kind}", outcome.subject, outcome.workload.name())
        }));
    }
    lines.join("\n") + "\n"
}

/// Warns when an open loop fell behind its schedule.
pub(crate) fn overload(outcome: &Outcome, conditions: &Conditions) -> Option<String> {
    let asked = conditions.rate?;
    let seen = outcome.operations as f64 / outcome.seconds;
    (seen < asked * RATE_SHARE_MIN && conditions.operations.is_none()).then(|| {
        format!(
            "overload: {seen:.0} of {asked:.0} op/s were kept up; latencies grow with the length of the run"
        )
    })
}

fn describe(workload: &crate::workload::Workload) -> String {
    let parameters = serde_json::to_value(workload).unwrap_or_default();
    let pairs = parameters.as_object().into_iter().flatten().filter(|(key, _)| *key != "name");
    let pairs: Vec<String> =
        pairs.map(|(key, value)| format!("{key} {}", value.to_string().trim_matches('"'))).collect();
    format!("{}: {}", workload.name(), pairs.join(", "))
}

pub(crate) fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_HORIZONTAL_ONLY).set_header(header);
    table
}

fn align(table: &mut Table, column: usize) {
    if let Some(column) = table.column_mut(column) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}
