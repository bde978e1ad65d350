//! What one run of one workload over one proxy has shown.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::accounting::Spent;
use crate::load::driver::Measured;
use crate::statistics::Latency;
use crate::workload::Workload;

/// A run's result, as it goes into JSON.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outcome {
    /// The proxy.
    pub(crate) subject: String,
    /// The workload with its parameters.
    pub(crate) workload: Workload,
    /// Operations completed in the measured stretch.
    pub(crate) operations: u64,
    /// Payload bytes moved in it.
    pub(crate) bytes: u64,
    /// Its wall clock.
    pub(crate) seconds: f64,
    /// CPU time of the proxy's process in it.
    pub(crate) cpu_seconds: f64,
    /// Share of the wall clock that others used the proxy's cores, 0 to 1: the noise.
    pub(crate) foreign_share: f64,
    /// Operations that failed.
    pub(crate) errors: u64,
    /// The same by kind.
    pub(crate) failures: BTreeMap<String, u64>,
    /// Latencies of the operations.
    pub(crate) latency: Option<Latency>,
    /// Derived figures; the first one is what comparisons divide.
    pub(crate) figures: Vec<Figure>,
}

/// One figure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Figure {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its value.
    pub(crate) value: f64,
    /// Its unit.
    pub(crate) unit: &'static str,
}

impl Figure {
    /// A figure.
    pub(crate) const fn new(name: &'static str, value: f64, unit: &'static str) -> Self {
        Self { name, value, unit }
    }
}

impl Outcome {
    /// An outcome without derived figures.
    pub(crate) fn new(subject: &str, workload: &Workload, measured: &Measured) -> Self {
        let mut outcome = Self {
            subject: subject.to_owned(),
            workload: workload.clone(),
            operations: measured.operations,
            bytes: measured.bytes,
            seconds: 0.0,
            cpu_seconds: 0.0,
            foreign_share: 0.0,
            errors: 0,
            failures: BTreeMap::new(),
            latency: None,
            figures: Vec::new(),
        };
        outcome.book(&measured.spent);
        outcome.fail(&measured.failures);
        outcome.time(&measured.latency);
        outcome
    }

    /// Sets what was spent.
    pub(crate) fn book(&mut self, spent: &Spent) {
        self.seconds = spent.elapsed.as_secs_f64();
        self.cpu_seconds = spent.cpu.as_secs_f64();
        self.foreign_share = spent.foreign_share();
    }

    /// Adds failures.
    pub(crate) fn fail(&mut self, failures: &BTreeMap<String, u64>) {
        for (kind, count) in failures {
            *self.failures.entry(kind.clone()).or_default() += count;
            self.errors += count;
        }
    }

    /// Sets the latencies.
    pub(crate) fn time(&mut self, histogram: &Histogram<u64>) {
        self.latency = Latency::of(histogram);
    }

    /// The figure that comparisons divide: less is better in every workload.
    pub(crate) fn headline(&self) -> Option<Figure> {
        self.figures.first().copied()
    }

    /// Adds CPU per operation and the rate.
    pub(crate) fn per_operation(mut self) -> Self {
        let operations = self.operations as f64;
        self.figures.push(Figure::new("cpu_per_op", self.cpu_seconds * 1e6 / operations, "us"));
        self.figures.push(Figure::new("rate", operations / self.seconds, "op/s"));
        self
    }

    /// Adds CPU per volume and the throughput. A GB is 10⁹ bytes.
    pub(crate) fn per_volume(mut self) -> Self {
        let gigabytes = self.bytes as f64 / 1e9;
        self.figures.push(Figure::new("cpu_per_gb", self.cpu_seconds / gigabytes, "s/GB"));
        self.figures.push(Figure::new("throughput", gigabytes / self.seconds, "GB/s"));
        self
    }
}
