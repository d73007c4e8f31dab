//! Metrics in the OpenMetrics text format, by the crate `prometheus-client`; and a list of them, which the documentation,
//! the alerts and the dashboard are compared with.
//!
//! Labels must be bounded: kinds, words of a fixed list, names of cluster-scoped objects. Never names of NICs or VMs.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::text;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::info::Info;
use prometheus_client::metrics::{counter, gauge, histogram};
use prometheus_client::registry::{self, Metric, Unit};

/// The media type of [`Registry::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels<const N: usize> = [(&'static str, String); N];

/// What a metric is, for the documentation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// Its name, as in a query; of a histogram without `_bucket`, `_sum` and `_count`.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Its labels.
    pub labels: Vec<&'static str>,
    /// What it says.
    pub help: String,
}

/// All metrics of a program.
#[derive(Default)]
pub struct Registry {
    inner: registry::Registry,
    described: Vec<Described>,
    refreshes: Vec<Box<dyn Fn() + Send + Sync>>,
    /// Held while the metrics are written, so that two readers do not refresh at once.
    writing: Mutex<()>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Registry").field(&self.described).finish()
    }
}

impl Registry {
    /// The metrics of `program` in this version; the first of them says so.
    pub fn new(program: &'static str, version: &'static str) -> Self {
        let mut this = Self::default();
        let help = "The program and its version; always 1";
        let info = Info::new([("program", program), ("version", version)]);
        this.inner.register("hybridnic_build", help, info);
        this.describe("hybridnic_build_info", "gauge", &["program", "version"], help);
        this
    }

    /// Adds a counter. `name` has no `_total`; it is added.
    pub fn counter<const N: usize>(
        &mut self,
        name: &str,
        labels: [&'static str; N],
        help: &str,
    ) -> Counter<N> {
        let family = Family::default();
        self.add(name, None, help, family.clone());
        self.describe(&format!("{name}_total"), "counter", &labels, help);
        let counter = Counter { labels, family };
        if N == 0 {
            counter.show([""; N]);
        }
        counter
    }

    /// Adds a gauge.
    pub fn gauge<const N: usize>(&mut self, name: &str, labels: [&'static str; N], help: &str) -> Gauge<N> {
        let family = Family::default();
        self.add(name, None, help, family.clone());
        self.describe(name, "gauge", &labels, help);
        let gauge = Gauge { labels, family };
        if N == 0 {
            gauge.set([""; N], 0);
        }
        gauge
    }

    /// Adds a histogram of times. `name` has no `_seconds`; it is added. `buckets` are upper bounds in seconds.
    pub fn seconds<const N: usize>(
        &mut self,
        name: &str,
        labels: [&'static str; N],
        buckets: &'static [f64],
        help: &str,
    ) -> Seconds<N> {
        let family = Family::new_with_constructor(Buckets(buckets));
        self.add(name, Some(Unit::Seconds), help, family.clone());
        self.describe(&format!("{name}_seconds"), "histogram", &labels, help);
        Seconds { labels, family }
    }

    /// Calls `refresh` before each reading, to set what is counted only then.
    pub fn before_reading(&mut self, refresh: impl Fn() + Send + Sync + 'static) {
        self.refreshes.push(Box::new(refresh));
    }

    /// What metrics there are.
    pub fn described(&self) -> &[Described] {
        &self.described
    }

    /// All metrics as text.
    pub fn encode(&self) -> String {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        for refresh in &self.refreshes {
            refresh();
        }
        let mut text = String::new();
        if text::encode(&mut text, &self.inner).is_err() {
            // No metrics are better than half of them, which would look like counters that have gone.
            tracing::error!("the metrics could not be written");
            return "# EOF\n".to_owned();
        }
        text
    }

    fn add(&mut self, name: &str, unit: Option<Unit>, help: &str, metric: impl Metric) {
        match unit {
            Some(unit) => self.inner.register_with_unit(name, help, unit, metric),
            None => self.inner.register(name, help, metric),
        }
    }

    fn describe(&mut self, name: &str, kind: &'static str, labels: &[&'static str], help: &str) {
        self.described.push(Described {
            name: name.to_owned(),
            kind,
            labels: labels.to_vec(),
            help: help.to_owned(),
        });
    }
}

fn pairs<const N: usize>(labels: [&'static str; N], values: [&str; N]) -> Labels<N> {
    let mut values = values.into_iter();
    labels.map(|label| (label, values.next().unwrap_or_default().to_owned()))
}

/// Counts of what happened, by `N` labels. Clones share them.
#[derive(Clone, Debug)]
pub struct Counter<const N: usize> {
    labels: [&'static str; N],
    family: Family<Labels<N>, counter::Counter>,
}

impl<const N: usize> Counter<N> {
    /// Counts one more; the values are those of the labels, in their order.
    pub fn inc(&self, values: [&str; N]) {
        self.of(values).inc();
    }

    /// Shows a count that is still 0. Prometheus sees no increase when a counter first appears as 1, so counters that alerts use
    /// are shown before.
    pub fn show(&self, values: [&str; N]) {
        self.of(values);
    }

    /// How many there were.
    pub fn get(&self, values: [&str; N]) -> u64 {
        self.of(values).get()
    }

    fn of(&self, values: [&str; N]) -> counter::Counter {
        self.family.get_or_create_owned(&pairs(self.labels, values))
    }
}

/// Numbers that go up and down, by `N` labels. Clones share them.
#[derive(Clone, Debug)]
pub struct Gauge<const N: usize> {
    labels: [&'static str; N],
    family: Family<Labels<N>, gauge::Gauge>,
}

impl<const N: usize> Gauge<N> {
    /// Sets one of them.
    pub fn set(&self, values: [&str; N], number: i64) {
        self.family
            .get_or_create_owned(&pairs(self.labels, values))
            .set(number);
    }

    /// Sets all values: others are no longer shown.
    pub fn replace<'a>(&self, all: impl IntoIterator<Item = ([&'a str; N], i64)>) {
        self.family.clear();
        for (values, number) in all {
            self.set(values, number);
        }
    }

    /// One of them; 0 where there is none.
    pub fn get(&self, values: [&str; N]) -> i64 {
        let found = self.family.get(&pairs(self.labels, values));
        found.map(|gauge| gauge.get()).unwrap_or_default()
    }
}

/// How a histogram is made.
#[derive(Clone, Copy, Debug)]
struct Buckets(&'static [f64]);

impl MetricConstructor<histogram::Histogram> for Buckets {
    fn new_metric(&self) -> histogram::Histogram {
        histogram::Histogram::new(self.0.iter().copied())
    }
}

/// Histograms of times, by `N` labels. Clones share them.
#[derive(Clone, Debug)]
pub struct Seconds<const N: usize> {
    labels: [&'static str; N],
    family: Family<Labels<N>, histogram::Histogram, Buckets>,
}

impl<const N: usize> Seconds<N> {
    /// Adds a time, in seconds.
    pub fn observe(&self, values: [&str; N], seconds: f64) {
        self.of(values).observe(seconds);
    }

    fn of(&self, values: [&str; N]) -> histogram::Histogram {
        self.family.get_or_create_owned(&pairs(self.labels, values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_written_as_openmetrics_and_described_by_the_same_names() {
        let mut registry = Registry::new("test", "1.2.3");
        let counter = registry.counter("hybridnic_things", ["kind"], "Things");
        registry.counter("hybridnic_plain", [], "Plain");
        let gauge = registry.gauge("hybridnic_level", ["network"], "Level");
        let seconds = registry.seconds("hybridnic_duration", ["kind"], &[0.1, 1.0], "Duration");
        let shared = gauge.clone();
        registry.before_reading(move || shared.replace([(["b"], 2)]));
        counter.inc(["a \"quoted\" kind"]);
        gauge.set(["a"], 1);
        seconds.observe(["x"], 0.5);
        let text = registry.encode();
        for line in [
            "hybridnic_build_info{program=\"test\",version=\"1.2.3\"} 1",
            "hybridnic_things_total{kind=\"a \\\"quoted\\\" kind\"} 1",
            "hybridnic_plain_total 0",
            "hybridnic_level{network=\"b\"} 2",
            "hybridnic_duration_seconds_bucket{le=\"0.1\",kind=\"x\"} 0",
            "hybridnic_duration_seconds_bucket{le=\"1.0\",kind=\"x\"} 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
        }
        assert!(
            !text.contains("network=\"a\""),
            "what has gone is no longer shown:\n{text}"
        );
        let names: Vec<_> = registry.described().iter().map(|d| d.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "hybridnic_build_info",
                "hybridnic_things_total",
                "hybridnic_plain_total",
                "hybridnic_level",
                "hybridnic_duration_seconds"
            ]
        );
    }
}
