//! The cost that Sluice promises, row by row: measured beside its yardstick, met or missed.

use anyhow::Result;
use serde::Serialize;

use crate::compare::{self, Comparison, Sides};
use crate::contender::{Profile, Programs};
use crate::load::volume::Direction;
use crate::reference::Reference;
use crate::workload::{Conditions, Workload};

/// One promise.
#[derive(Debug)]
struct Target {
    title: String,
    workload: Workload,
    bounds: Vec<Bound>,
}

/// What a figure may be at most.
#[derive(Debug, Clone, Copy)]
enum Bound {
    /// So many times the yardstick's figure.
    Times(f64, Reference),
    /// So much, in the figure's own unit.
    Absolute(f64),
}

/// A promise and what was seen.
#[derive(Debug, Serialize)]
pub(crate) struct Verdict {
    /// The work.
    pub(crate) title: String,
    /// The bound in words.
    pub(crate) target: String,
    /// The bound.
    pub(crate) limit: f64,
    /// What was seen: the ratio of medians, or the median.
    pub(crate) seen: f64,
    /// Least and most over the rounds.
    pub(crate) range: [f64; 2],
    /// The figures themselves, in words.
    pub(crate) figures: String,
    /// Whether `seen` is within `limit`.
    pub(crate) met: bool,
}

/// All verdicts and the runs behind them.
#[derive(Debug, Serialize)]
pub(crate) struct Verdicts {
    /// The table.
    pub(crate) verdicts: Vec<Verdict>,
    /// The comparisons they come from.
    pub(crate) comparisons: Vec<Comparison>,
}

/// Measures every promise whose workload is in `only` (all when empty), over so many rounds. `peers`: other people's
/// proxies run too, where they are installed; nothing is promised about them.
pub(crate) fn run(
    subject: Profile,
    (rounds, only, peers): (u32, &[String], bool),
    conditions: &Conditions,
    programs: &Programs,
) -> Result<Verdicts> {
    let mut all = Verdicts { verdicts: Vec::new(), comparisons: Vec::new() };
    for target in targets() {
        if !only.is_empty() && !only.iter().any(|name| name == target.workload.name()) {
            continue;
        }
        let yardsticks = target.bounds.iter().filter_map(|bound| bound.yardstick()).map(Profile::Reference);
        let beside = if peers { Profile::installed_peers(programs) } else { Vec::new() };
        let against = yardsticks.chain(beside).collect();
        let sides = Sides { against, rounds };
        let comparison = compare::run(&target.workload, subject, &sides, conditions, programs)?;
        all.verdicts.extend(target.bounds.iter().filter_map(|bound| bound.judge(&target.title, &comparison)));
        all.comparisons.push(comparison);
    }
    Ok(all)
}

/// The table of promises.
fn targets() -> Vec<Target> {
    use Reference::{EpollCopy, EpollSplice, Least, RawUring};
    let row = |title: &str, workload, bounds: &[Bound]| Target {
        title: title.to_owned(),
        workload,
        bounds: bounds.to_vec(),
    };
    let get = |body, new_connection| Workload::Http { connections: 64, body, new_connection };
    let mut rows = vec![
        row(
            "ping-pong 64 B over 64 tunnels",
            Workload::Pingpong { tunnels: 64, bytes: 64 },
            &[Bound::Times(1.10, RawUring)],
        ),
        row("CONNECT + 1 byte + close", Workload::Connect { clients: 32 }, &[Bound::Times(1.25, Least)]),
        row("GET keep-alive 1 KiB", get(1024, false), &[Bound::Times(1.35, Least)]),
        row("GET keep-alive 64 KiB", get(65536, false), &[Bound::Times(1.35, Least)]),
        row("GET 1 KiB, new connection", get(1024, true), &[Bound::Times(0.95, Least)]),
    ];
    for direction in [Direction::Down, Direction::Up] {
        for tunnels in [1, 4, 64] {
            let way = if direction == Direction::Down { "down" } else { "up" };
            let title = format!("bulk {way}, {tunnels} tunnel{}", if tunnels == 1 { "" } else { "s" });
            let bounds = [Bound::Times(1.15, EpollSplice), Bound::Times(1.0, EpollCopy)];
            rows.push(row(&title, Workload::Bulk { tunnels, direction, gb: 4.0 }, &bounds));
        }
    }
    rows.push(row(
        "idle tunnel, 10,000 of them",
        Workload::Idle { tunnels: 10_000 },
        &[Bound::Absolute(4.0)],
    ));
    rows.push(row(
        "p99.9 of 64 ping-pong tunnels, 8 bulk beside",
        Workload::Mixed { tunnels: 64, bulk: 8, direction: Direction::Down },
        &[Bound::Absolute(2.0)],
    ));
    rows
}

impl Bound {
    fn yardstick(self) -> Option<Reference> {
        match self {
            Self::Times(_, reference) => Some(reference),
            Self::Absolute(_) => None,
        }
    }

    fn judge(self, title: &str, comparison: &Comparison) -> Option<Verdict> {
        let subject = comparison.runs.first()?;
        let unit = subject.headline.unit;
        let own = format!("{:.3} {unit}", subject.headline.value);
        let (target, limit, seen, range, figures) = match self {
            Self::Times(limit, reference) => {
                let (yardstick, ratio) = comparison.beside(reference.name())?;
                let figures = format!("{own} against {:.3} {unit}", yardstick.headline.value);
                let range = [ratio.per_round.min, ratio.per_round.max];
                (format!("≤ {limit:.2} × {reference}"), limit, ratio.of_medians, range, figures)
            }
            Self::Absolute(limit) => {
                let range = [subject.spread.min, subject.spread.max];
                (format!("≤ {limit} {unit}"), limit, subject.spread.median, range, own)
            }
        };
        Some(Verdict { title: title.to_owned(), target, limit, seen, range, figures, met: seen <= limit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_promise_has_a_bound_and_a_title_of_its_own() {
        let rows = targets();
        assert!(rows.iter().all(|row| !row.bounds.is_empty()));
        let mut titles: Vec<&str> = rows.iter().map(|row| row.title.as_str()).collect();
        titles.sort_unstable();
        titles.dedup();
        assert_eq!(titles.len(), rows.len());
    }
}
