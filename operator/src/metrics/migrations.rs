//! How migrations went.

use hybridnic_api::conditions::reasons;
use hybridnic_process::metrics::{Counter, Registry, Seconds};

use crate::moves::Outcome;

/// Upper bounds of a migration's times: from the length of a switch to that of a large VM's transfer.
pub(super) const BUCKETS: &[f64] = &[
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0,
];
/// Upper bounds of the VM's pause.
pub(super) const DOWNTIMES: &[f64] = &[0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];
/// Why a migration may fail.
const FAILURES: &[&str] = &[
    reasons::NO_NICS,
    reasons::TOO_MANY_NICS,
    reasons::TARGET_NOT_READY,
    reasons::TARGET_NO_FREE_VF,
    reasons::GUEST_KEEPS_VF,
    reasons::TRANSFER_FAILED,
    reasons::TARGET_LOST,
    reasons::SOURCE_LOST,
    reasons::FAILED,
];

/// How migrations went. Clones share it.
#[derive(Clone, Debug)]
pub struct Migrations {
    ended: Counter<2>,
    phases: Seconds<1>,
    total: Seconds<1>,
    downtime: Seconds<0>,
}

/// What has become of a migration since it was counted last.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// Phases that have ended, with their length in milliseconds.
    pub phases: Vec<(String, i64)>,
    /// How it has ended.
    pub end: Option<End>,
}

/// How a migration, a save or a restore has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// How.
    pub outcome: Outcome,
    /// Why.
    pub reason: String,
    /// From begin to end, in milliseconds.
    pub total_ms: Option<i64>,
    /// The VM's pause, in milliseconds.
    pub downtime_ms: Option<i64>,
}

impl Migrations {
    /// Adds its metrics.
    pub fn new(registry: &mut Registry) -> Self {
        let this = Self {
            ended: registry.counter(
                "hybridnic_migrations",
                ["result", "reason"],
                "Migrations that have ended, by result (succeeded, failed, cancelled) and reason",
            ),
            phases: registry.seconds(
                "hybridnic_migration_phase_duration",
                ["phase"],
                BUCKETS,
                "How long a migration was in each phase",
            ),
            total: registry.seconds(
                "hybridnic_migration_duration",
                ["result"],
                BUCKETS,
                "How long a migration took, by result",
            ),
            downtime: registry.seconds(
                "hybridnic_migration_downtime",
                [],
                DOWNTIMES,
                "The VM's pause in a migration that succeeded, as QEMU says",
            ),
        };
        this.ended.show(["succeeded", reasons::COMPLETED]);
        this.ended.show(["cancelled", reasons::CANCELLED]);
        for reason in FAILURES {
            this.ended.show(["failed", reason]);
        }
        this
    }

    /// Counts a change, once it is written.
    pub fn count(&self, change: &Change) {
        for (phase, ms) in &change.phases {
            self.phases.observe([phase], seconds(*ms));
        }
        let Some(end) = &change.end else { return };
        let result = result(end.outcome);
        self.ended.inc([result, &end.reason]);
        if let Some(ms) = end.total_ms {
            self.total.observe([result], seconds(ms));
        }
        if let Some(ms) = end.downtime_ms.filter(|_| end.outcome == Outcome::Succeeded) {
            self.downtime.observe([], seconds(ms));
        }
    }
}

/// How a move has ended, as a label.
pub(super) fn result(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded => "succeeded",
        Outcome::Failed => "failed",
        Outcome::Cancelled => "cancelled",
    }
}

/// A duration of the API in seconds; none is near the limits of an f64.
pub(super) fn seconds(ms: i64) -> f64 {
    std::time::Duration::from_millis(ms.try_into().unwrap_or_default()).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_alerts_wait_for_is_there_from_the_start() {
        let mut registry = Registry::default();
        let migrations = Migrations::new(&mut registry);
        let failed = "hybridnic_migrations_total{result=\"failed\",reason=\"TargetLost\"}";
        assert!(registry.encode().contains(&format!("{failed} 0")));
        migrations.count(&Change {
            phases: vec![("Completing".to_owned(), 100)],
            end: Some(End {
                outcome: Outcome::Succeeded,
                reason: reasons::COMPLETED.to_owned(),
                total_ms: Some(2000),
                downtime_ms: Some(31),
            }),
        });
        let text = registry.encode();
        for line in [
            "hybridnic_migrations_total{result=\"succeeded\",reason=\"Completed\"} 1",
            "hybridnic_migration_phase_duration_seconds_sum{phase=\"Completing\"} 0.1",
            "hybridnic_migration_duration_seconds_count{result=\"succeeded\"} 1",
            "hybridnic_migration_downtime_seconds_sum 0.031",
        ] {
            assert!(text.lines().any(|l| l == line), "no {line} in\n{text}");
        }
    }
}
