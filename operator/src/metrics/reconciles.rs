//! The operator's own work: reconciles, how long they take, how they fail, what waits for one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hybridnic_process::metrics::{Counter, Gauge, Registry, Seconds};
use tokio::time::Instant;

use crate::queue::Urgency;
use crate::write;

/// Upper bounds of a reconcile's time: one that writes waits for the API server.
const BUCKETS: &[f64] = &[
    0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];
/// Upper bounds of the time that a reconcile waits for its turn.
const WAITS: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0,
];
/// Each of a reconcile's few requests has a deadline of 10 s. One that takes longer than all of them together hangs.
const HANGS: Duration = Duration::from_mins(5);

/// The operator's own work. Clones share it.
#[derive(Clone, Debug)]
pub struct Reconciles {
    duration: Seconds<1>,
    wait: Seconds<2>,
    failures: Counter<2>,
    waiting: Gauge<1>,
    running: Arc<Mutex<Running>>,
}

#[derive(Debug, Default)]
struct Running {
    last: u64,
    since: HashMap<u64, (String, Instant)>,
}

impl Reconciles {
    /// Adds its metrics.
    pub fn new(registry: &mut Registry) -> Self {
        Self {
            duration: registry.seconds(
                "hybridnic_reconcile_duration",
                ["kind"],
                BUCKETS,
                "How long a reconcile took, by kind",
            ),
            wait: registry.seconds(
                "hybridnic_reconcile_wait",
                ["kind", "urgency"],
                WAITS,
                "How long a reconcile waited for its turn after the change that asked for it, by kind and urgency: urgent of a VM that is without its VFs, begun of another migration that has begun, else usual",
            ),
            failures: registry.counter(
                "hybridnic_reconcile_failures",
                ["kind", "reason"],
                "Reconciles that failed and are done again, by kind and reason: conflict and gone are usual; refused and late are not",
            ),
            waiting: registry.gauge(
                "hybridnic_reconcile_queue_length",
                ["kind"],
                "Objects for which a change has asked for a reconcile that has not begun, by kind",
            ),
            running: Arc::default(),
        }
    }

    /// A reconcile of this kind has waited so long for its turn.
    pub fn waited(&self, kind: &str, urgency: Urgency, time: Duration) {
        self.wait.observe([kind, urgency.into()], time.as_secs_f64());
    }

    /// A reconcile of this kind begins; it ends when what this gives is dropped.
    pub fn begin(&self, kind: &str) -> Begun {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.last += 1;
        let id = running.last;
        running.since.insert(id, (kind.to_owned(), Instant::now()));
        Begun { of: self.clone(), id }
    }

    /// A reconcile of this kind failed.
    pub fn failed(&self, kind: &str, error: &write::Error) {
        let reason = match error {
            error if error.is_conflict() => "conflict",
            error if error.is_gone() => "gone",
            write::Error::Refused { .. } => "refused",
            write::Error::Late { .. } => "late",
        };
        self.failures.inc([kind, reason]);
    }

    /// So many objects of this kind wait.
    pub fn set_waiting(&self, kind: &str, objects: usize) {
        self.waiting.set([kind], objects.try_into().unwrap_or(i64::MAX));
    }

    /// Whether every reconcile gets on; if not, which does not.
    pub fn check(&self) -> Result<(), String> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        match running.since.values().find(|(_, since)| since.elapsed() > HANGS) {
            Some((kind, since)) => Err(format!("a reconcile of a {kind} hangs for {:?}", since.elapsed())),
            None => Ok(()),
        }
    }
}

/// A reconcile that runs.
pub struct Begun {
    of: Reconciles,
    id: u64,
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut running = self.of.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((kind, since)) = running.since.remove(&self.id) {
            self.of.duration.observe([&kind], since.elapsed().as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_reconcile_that_hangs_is_told() {
        let mut registry = Registry::default();
        let reconciles = Reconciles::new(&mut registry);
        let begun = reconciles.begin("VmHybridNic");
        tokio::time::advance(Duration::from_secs(40)).await;
        assert_eq!(reconciles.check(), Ok(()));
        tokio::time::advance(HANGS).await;
        assert!(reconciles.check().unwrap_err().contains("VmHybridNic"));
        drop(begun);
        assert_eq!(reconciles.check(), Ok(()));
        assert!(
            registry
                .encode()
                .contains("hybridnic_reconcile_duration_seconds_count{kind=\"VmHybridNic\"} 1")
        );
    }
}
