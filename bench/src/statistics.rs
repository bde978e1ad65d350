//! From many runs to one figure: medians, ratios per round, latency percentiles.

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest latency told apart, ns; longer ones count as this.
const LATENCY_NS_MAX: u64 = 60_000_000_000;

/// Middle, smallest and largest of a set of figures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    /// The median (mean of the two middle ones for an even number).
    pub(crate) median: f64,
    /// The smallest.
    pub(crate) min: f64,
    /// The largest.
    pub(crate) max: f64,
}

impl Spread {
    /// The spread of `values`; `None` when there are none or one is no number.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
            return None;
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, min: sorted[0], max: sorted[sorted.len() - 1] })
    }
}

/// Subject against yardstick over alternating rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Ratio {
    /// Median of the subject over median of the yardstick.
    pub(crate) of_medians: f64,
    /// Ratios of the two runs of each round.
    pub(crate) per_round: Spread,
}

impl Ratio {
    /// Pairs the rounds up; `None` when a side has no figures.
    pub(crate) fn of(subject: &[f64], yardstick: &[f64]) -> Option<Self> {
        let rounds: Vec<f64> = subject.iter().zip(yardstick).map(|(a, b)| a / b).collect();
        let of_medians = Spread::of(subject)?.median / Spread::of(yardstick)?.median;
        Some(Self { of_medians, per_round: Spread::of(&rounds)? })
    }
}

/// Latencies of one run, µs.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Latency {
    /// Operations in it.
    pub(crate) count: u64,
    /// Half are faster.
    pub(crate) p50_us: f64,
    /// 90 %.
    pub(crate) p90_us: f64,
    /// 99 %.
    pub(crate) p99_us: f64,
    /// 99.9 %.
    pub(crate) p999_us: f64,
    /// The slowest.
    pub(crate) max_us: f64,
    /// The mean.
    pub(crate) mean_us: f64,
}

impl Latency {
    /// Percentiles of a histogram of nanoseconds; `None` when it is empty.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        (!histogram.is_empty()).then(|| Self {
            count: histogram.len(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: histogram.max() as f64 / 1e3,
            mean_us: histogram.mean() / 1e3,
        })
    }
}

/// A histogram of nanoseconds, three digits, up to a minute.
pub(crate) fn latencies() -> Histogram<u64> {
    let mut histogram =
        Histogram::new_with_max(LATENCY_NS_MAX, 3).expect("the bounds are constants that fit");
    histogram.auto(false);
    histogram
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_even_and_odd_sets() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]).unwrap(), Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]).unwrap(), Spread { median: 2.5, min: 1.0, max: 4.0 });
        assert!(Spread::of(&[]).is_none());
        assert!(Spread::of(&[1.0, f64::NAN]).is_none());
    }

    #[test]
    fn ratio_of_medians_and_of_rounds_differ_when_a_round_is_noisy() {
        let ratio = Ratio::of(&[10.0, 11.0, 50.0], &[10.0, 10.0, 10.0]).unwrap();
        assert_eq!(ratio, Ratio { of_medians: 1.1, per_round: Spread { median: 1.1, min: 1.0, max: 5.0 } });
    }

    #[test]
    fn percentiles_are_in_microseconds() {
        let mut histogram = latencies();
        for us in 1..=1000_u64 {
            histogram.saturating_record(us * 1000);
        }
        let latency = Latency::of(&histogram).unwrap();
        assert!((latency.p50_us - 500.0).abs() < 2.0, "{latency:?}");
        assert!((latency.p999_us - 999.0).abs() < 2.0, "{latency:?}");
        assert_eq!(latency.count, 1000);
        assert!(Latency::of(&latencies()).is_none());
    }
}
