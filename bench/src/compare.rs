//! Proxies in alternation: A B C, A B C, …, so that drift of the machine falls on all of them.

use std::str::FromStr as _;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::contender::{Contender, Profile, Programs};
use crate::outcome::{Figure, Outcome};
use crate::stage::Stage;
use crate::statistics::{Ratio, Spread};
use crate::workload::{Conditions, Workload};

/// Against whom, and how often.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Sides {
    /// What the subject is divided by
    #[arg(long, global = true, value_delimiter = ',', default_value = "least")]
    pub(crate) against: Vec<Profile>,
    /// Rounds: each runs every proxy once
    #[arg(long, global = true, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..1000))]
    pub(crate) rounds: u32,
}

/// What a comparison has shown.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    /// The workload.
    pub(crate) workload: Workload,
    /// The subject first, then the yardsticks.
    pub(crate) runs: Vec<Runs>,
    /// The subject over each yardstick.
    pub(crate) ratios: Vec<RatioTo>,
}

/// One proxy's runs.
#[derive(Debug, Serialize)]
pub(crate) struct Runs {
    /// The proxy.
    pub(crate) name: String,
    /// Name and unit of the headline figure, with its median as the value.
    pub(crate) headline: Figure,
    /// Over the rounds.
    pub(crate) spread: Spread,
    /// Each run.
    pub(crate) outcomes: Vec<Outcome>,
}

impl Runs {
    /// Whether this is one of our own references.
    pub(crate) fn is_yardstick(&self) -> bool {
        crate::reference::Reference::from_str(&self.name).is_ok()
    }
}

/// The subject's headline figure over a yardstick's.
#[derive(Debug, Serialize)]
pub(crate) struct RatioTo {
    /// The yardstick.
    pub(crate) against: String,
    /// Medians and rounds.
    pub(crate) ratio: Ratio,
}

impl Comparison {
    /// The yardsticks, each with the subject's ratio to it.
    pub(crate) fn yardsticks(&self) -> impl Iterator<Item = (&Runs, Ratio)> {
        self.runs.iter().skip(1).zip(self.ratios.iter().map(|ratio| ratio.ratio))
    }

    /// The yardstick `name`, which may be the subject's own name: a proxy against itself shows the noise.
    pub(crate) fn beside(&self, name: &str) -> Option<(&Runs, Ratio)> {
        self.yardsticks().find(|(runs, _)| runs.name == name)
    }

    /// Operations that failed, over all runs.
    pub(crate) fn errors(&self) -> u64 {
        self.runs.iter().flat_map(|runs| &runs.outcomes).map(|outcome| outcome.errors).sum()
    }
}

/// Runs the rounds.
pub(crate) fn run(
    workload: &Workload,
    subject: Profile,
    sides: &Sides,
    conditions: &Conditions,
    programs: &Programs,
) -> Result<Comparison> {
    let profiles: Vec<Profile> = std::iter::once(subject).chain(sides.against.iter().copied()).collect();
    let workload = &workload.fitted()?;
    let stage = Stage::set(workload, conditions, programs)?;
    let mut standing = Vec::new();
    if !workload.needs_fresh_proxy() {
        for &profile in &profiles {
            standing.push(stage.start(profile)?);
        }
    }
    let mut outcomes: Vec<Vec<Outcome>> = profiles.iter().map(|_| Vec::new()).collect();
    for round in 1..=sides.rounds {
        for (index, &profile) in profiles.iter().enumerate() {
            let heading = format!("{} round {round}/{} {profile}", workload.name(), sides.rounds);
            let fresh: Contender;
            let contender = if let Some(contender) = standing.get(index) {
                contender
            } else {
                fresh = stage.start(profile)?;
                &fresh
            };
            outcomes[index].push(stage.run(workload, conditions, contender, &heading)?);
        }
    }
    let runs = profiles.iter().zip(outcomes).map(|(profile, outcomes)| gather(profile.to_string(), outcomes));
    let runs = runs.collect::<Result<Vec<Runs>>>()?;
    let ratios = ratios(&runs)?;
    Ok(Comparison { workload: workload.clone(), runs, ratios })
}

fn gather(name: String, outcomes: Vec<Outcome>) -> Result<Runs> {
    let first = outcomes.first().and_then(Outcome::headline).context("no figure")?;
    let spread = Spread::of(&headlines(&outcomes));
    let spread =
        spread.with_context(|| format!("{name}: no operation completed: {:?}", outcomes[0].failures))?;
    Ok(Runs { name, headline: Figure { value: spread.median, ..first }, spread, outcomes })
}

fn ratios(runs: &[Runs]) -> Result<Vec<RatioTo>> {
    let [subject, yardsticks @ ..] = runs else { return Ok(Vec::new()) };
    let figures = headlines(&subject.outcomes);
    let mut all = Vec::new();
    for yardstick in yardsticks {
        ensure!(yardstick.headline.name == subject.headline.name, "figures of different kinds");
        let ratio = Ratio::of(&figures, &headlines(&yardstick.outcomes)).context("no figure to divide by")?;
        all.push(RatioTo { against: yardstick.name.clone(), ratio });
    }
    Ok(all)
}

fn headlines(outcomes: &[Outcome]) -> Vec<f64> {
    outcomes.iter().filter_map(Outcome::headline).map(|figure| figure.value).collect()
}
