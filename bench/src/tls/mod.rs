//! `sluice-bench tls`: what it costs to look inside TLS, beside the least that could do it.
//!
//! Owns an origin that speaks TLS, clients that do, and two yardsticks: rustls' own handshakes from memory to memory, and
//! the reference `tls-relay`, which is rustls on both sides with nothing between.
//!
//! The life of a run: `authority` makes the certificates, `origin` serves in this process; Sluice and the relay are
//! started once, and in each round every `work` runs over each of them in turn, the handshakes in `memory` between
//! them. `client` is one client. What passes untouched is measured with the workloads of the other comparisons, over
//! two Sluices: one that is set up to look inside and one that is not.

pub(crate) mod authority;
pub(crate) mod client;
mod memory;
pub(crate) mod origin;
mod wire;
mod work;

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::contender::{Contender, Inside, Profile, Programs};
use crate::load::volume::Direction;
use crate::reference::Reference;
use crate::report;
use crate::stage::Stage;
use crate::statistics::{Ratio, Spread};
use crate::targets::Verdict;
use crate::workload::{Conditions, Workload};
use authority::Authority;
use work::{Run, Work};

/// At most so many times the CPU of rustls' own pair of handshakes.
const FULL_MAX: f64 = 1.3;
/// At most such a part of a full pair.
const RESUMED_MAX: f64 = 0.35;
/// At most so many times the relay's.
const GET_MAX: f64 = 1.3;
/// The same for volume.
const BULK_MAX: f64 = 1.15;
/// A name that nobody has asked for, ms.
const FIRST_SIGHT_MS_MAX: f64 = 3.0;
/// What passes untouched costs what it cost, give or take this.
const UNTOUCHED: f64 = 0.03;
/// New names a round.
const NAMES: u32 = 50;
/// Volume that passes untouched, GB.
const UNTOUCHED_GB: f64 = 4.0;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Row {
    /// Full and resumed handshakes
    Handshakes,
    /// GETs over standing connections
    Requests,
    /// Volume both ways
    Bulk,
    /// Names that nobody has asked for
    First,
    /// What is not looked into
    Untouched,
}

/// All that was seen.
#[derive(Debug, Serialize)]
pub(crate) struct Seen {
    verdicts: Vec<Verdict>,
    /// One pair of handshakes in memory, µs: full, resumed.
    memory_us: [Vec<f64>; 2],
    /// Wall clock of CONNECT and handshake, ms: new names, a known one.
    first_sight_ms: [Vec<f64>; 2],
    runs: Vec<Run>,
    untouched: Vec<Untouched>,
}

/// What passes untouched, CPU: set up to look inside, and not.
#[derive(Debug, Serialize)]
struct Untouched {
    work: &'static str,
    unit: &'static str,
    with: Vec<f64>,
    without: Vec<f64>,
}

/// Measures `rows` (all when empty) over so many rounds. Nothing else should run on the machine.
pub(crate) fn run(
    (rounds, rows, peers): (u32, &[Row], bool),
    conditions: &Conditions,
    programs: &Programs,
) -> Result<Seen> {
    let wanted = |row| rows.is_empty() || rows.contains(&row);
    let workload = Workload::Connect { clients: 32 }.fitted()?;
    let mut stage = Stage::set(&workload, conditions, programs)?;
    let folder = tempfile::tempdir().context("no temporary directory")?;
    let authority = Authority::make(folder.path())?;
    let inside = Inside { origin: origin::serve(&authority)?, authority };
    let mut seen = Seen {
        verdicts: Vec::new(),
        memory_us: Default::default(),
        first_sight_ms: Default::default(),
        runs: Vec::new(),
        untouched: Vec::new(),
    };
    if wanted(Row::Untouched) {
        seen.untouched = untouched(&mut stage, &inside, rounds, conditions)?;
    }
    stage.look_inside(Some(inside.clone()));
    let relay = Profile::Reference(Reference::TlsRelay);
    let peers = if peers { Profile::installed_interceptors(programs) } else { Vec::new() };
    let profiles: Vec<Profile> = [Profile::Sluice, relay].into_iter().chain(peers).collect();
    let standing = profiles.iter().map(|&profile| Ok((profile, stage.start(profile)?)));
    let standing = standing.collect::<Result<Vec<(Profile, Contender)>>>()?;
    let mut works = Vec::new();
    if wanted(Row::Handshakes) {
        works.extend([Work::Full, Work::Resumed, Work::Returning]);
    }
    if wanted(Row::Requests) {
        works.push(Work::Get);
    }
    if wanted(Row::Bulk) {
        works.extend([Work::Down, Work::Up]);
    }
    for round in 0..rounds {
        for &work in &works {
            for &(profile, ref contender) in &standing {
                let is_peer = !matches!(profile, Profile::Sluice | Profile::Reference(_));
                let keeps_nothing = profile == relay && work == Work::Returning;
                if keeps_nothing || (is_peer && round > 0) {
                    continue;
                }
                eprintln!("round {}/{rounds} {work:?} {}", round + 1, contender.name);
                let way = work::way(contender, profile, &inside.authority.root(), inside.origin, work)?;
                let run = work::run(contender, &way, work, conditions);
                seen.runs.push(run.with_context(|| format!("{work:?} over {}", contender.name))?);
            }
            for (index, kind) in [Work::Full, Work::Resumed].into_iter().enumerate() {
                if work == kind {
                    let time = Duration::from_secs_f64(conditions.seconds);
                    let cores = [&*conditions.proxy_cores, &*conditions.load_cores];
                    let cpu = memory::cpu_us(&inside.authority, kind == Work::Resumed, cores, time)?;
                    seen.memory_us[index].push(cpu);
                }
            }
        }
        if wanted(Row::First)
            && let Some((profile, contender)) = standing.first()
        {
            let way = work::way(contender, *profile, &inside.authority.root(), inside.origin, Work::Full)?;
            let (new, known) = work::first_sights(&way, round, NAMES)?;
            seen.first_sight_ms[0].extend(new);
            seen.first_sight_ms[1].extend(known);
        }
    }
    seen.judge()?;
    Ok(seen)
}

/// Tunnels that nobody looks into, through a Sluice that would look into others and through one that would not.
fn untouched(
    stage: &mut Stage,
    inside: &Inside,
    rounds: u32,
    conditions: &Conditions,
) -> Result<Vec<Untouched>> {
    let without = stage.start(Profile::Sluice)?;
    stage.look_inside(Some(inside.clone()));
    let with = stage.start(Profile::Sluice)?;
    let mut all = Vec::new();
    for workload in [
        Workload::Connect { clients: 32 },
        Workload::Pingpong { tunnels: 64, bytes: 64 },
        Workload::Bulk { tunnels: 4, direction: Direction::Down, gb: UNTOUCHED_GB },
    ] {
        let mut one = Untouched { work: workload.name(), unit: "us", with: Vec::new(), without: Vec::new() };
        for round in 0..rounds {
            // Who goes first alternates: what the first leaves warm is not always the same one's gain.
            let mut sides = [(&with, true), (&without, false)];
            sides.rotate_left(round as usize % 2);
            for (contender, is_set_up) in sides {
                let heading = format!("untouched {} {}/{rounds}", workload.name(), round + 1);
                let outcome = stage.run(&workload, conditions, contender, &heading)?;
                ensure!(outcome.errors == 0, "{} operations failed: {:?}", outcome.errors, outcome.failures);
                let figure = outcome.headline().context("no figure")?;
                one.unit = figure.unit;
                if is_set_up { &mut one.with } else { &mut one.without }.push(figure.value);
            }
        }
        all.push(one);
    }
    Ok(all)
}

impl Seen {
    /// Whether every promise was kept.
    pub(crate) fn all_met(&self) -> bool {
        self.verdicts.iter().all(|verdict| verdict.met)
    }

    fn cpu(&self, subject: &str, work: Work) -> Vec<f64> {
        let runs = self.runs.iter().filter(|run| run.work == work && run.subject == subject);
        runs.map(|run| run.cpu).collect()
    }

    fn judge(&mut self) -> Result<()> {
        let sluice = |work| self.cpu("sluice", work);
        let relay = |work| self.cpu(Reference::TlsRelay.name(), work);
        let full = &self.memory_us[0];
        let mut rows = vec![
            ("full handshakes", "rustls in memory", FULL_MAX, "us", sluice(Work::Full), full.clone()),
            ("both sides resumed", "full", RESUMED_MAX, "us", sluice(Work::Resumed), sluice(Work::Full)),
            (
                "client resumed, origin kept",
                "full",
                RESUMED_MAX,
                "us",
                sluice(Work::Returning),
                sluice(Work::Full),
            ),
            ("GET 1 KiB, kept", "tls-relay", GET_MAX, "us", sluice(Work::Get), relay(Work::Get)),
            ("bulk down", "tls-relay", BULK_MAX, "s/GB", sluice(Work::Down), relay(Work::Down)),
            ("bulk up", "tls-relay", BULK_MAX, "s/GB", sluice(Work::Up), relay(Work::Up)),
        ];
        for one in &self.untouched {
            let bound = 1.0 + UNTOUCHED;
            rows.push((
                one.work,
                "without TLS set up",
                bound,
                one.unit,
                one.with.clone(),
                one.without.clone(),
            ));
        }
        let mut verdicts = Vec::new();
        for (title, beside, limit, unit, own, other) in rows {
            if own.is_empty() {
                continue;
            }
            let ratio = Ratio::of(&own, &other).context("no figure to divide by")?;
            let median = |values: &[f64]| Spread::of(values).map_or(f64::NAN, |spread| spread.median);
            verdicts.push(Verdict {
                title: title.to_owned(),
                target: format!("≤ {limit:.2} × {beside}"),
                limit,
                seen: ratio.of_medians,
                range: [ratio.per_round.min, ratio.per_round.max],
                figures: format!("{:.3} {unit} against {:.3}", median(&own), median(&other)),
                met: ratio.of_medians <= limit,
            });
        }
        if let (Some(new), Some(known)) =
            (Spread::of(&self.first_sight_ms[0]), Spread::of(&self.first_sight_ms[1]))
        {
            verdicts.push(Verdict {
                title: "first sight of a name".into(),
                target: format!("≤ {FIRST_SIGHT_MS_MAX} ms"),
                limit: FIRST_SIGHT_MS_MAX,
                seen: new.median,
                range: [new.min, new.max],
                figures: format!("{:.2} ms against {:.2} for a known one", new.median, known.median),
                met: new.median <= FIRST_SIGHT_MS_MAX,
            });
        }
        self.verdicts = verdicts;
        Ok(())
    }

    /// The figures in words.
    pub(crate) fn table(&self) -> String {
        let mut text = report::verdict_rows(&self.verdicts);
        let [full, resumed] = self.memory_us.each_ref().map(|values| Spread::of(values));
        let relay = Spread::of(&self.cpu(Reference::TlsRelay.name(), Work::Full));
        if let (Some(full), Some(resumed), Some(relay)) = (full, resumed, relay) {
            let _ = write!(
                text,
                "\nrustls in memory: {:.0} us a full pair, {:.0} a resumed one ({:.2}); tls-relay with its sockets: {:.2} \
                 times a full pair\n",
                full.median,
                resumed.median,
                resumed.median / full.median,
                relay.median / full.median
            );
        }
        let mut subjects: Vec<(&str, Work)> = Vec::new();
        for run in &self.runs {
            if !subjects.contains(&(&run.subject, run.work)) {
                subjects.push((&run.subject, run.work));
            }
        }
        for (subject, work) in subjects {
            let Some(cpu) = Spread::of(&self.cpu(subject, work)) else { continue };
            let unit = work.unit();
            let _ = writeln!(
                text,
                "{:10} {subject:10} {:9.3} {unit} ({:.3} to {:.3})",
                format!("{work:?}"),
                cpu.median,
                cpu.min,
                cpu.max
            );
        }
        text
    }
}
