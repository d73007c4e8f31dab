//! How migrations went, from what changes in their status.

use hybridnic_api::conditions::reasons;
use hybridnic_api::v1alpha1::{MigrationPhase, QemuMigrationStatus};
use hybridnic_runtime::metrics::{Counter, Registry, Seconds};

/// Upper bounds of a migration's times: from the length of a switch to that of a large VM's transfer.
const BUCKETS: &[f64] = &[
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0,
];
/// Upper bounds of the VM's pause.
const DOWNTIMES: &[f64] = &[0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0];
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

/// What a change of a migration's status adds to the metrics.
#[derive(Clone, Debug, Default, PartialEq)]
struct Change {
    /// Phases that have ended, with their length in milliseconds.
    phases: Vec<(String, i64)>,
    /// How it has ended, and why.
    end: Option<(&'static str, String)>,
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

    /// Counts what has changed between two statuses, the second of which was written.
    pub fn count(&self, old: &QemuMigrationStatus, new: &QemuMigrationStatus) {
        let change = change(old, new);
        for (phase, ms) in &change.phases {
            self.phases.observe([phase], seconds(*ms));
        }
        let Some((result, reason)) = change.end else {
            return;
        };
        self.ended.inc([result, &reason]);
        if let Some(ms) = new.total_ms {
            self.total.observe([result], seconds(ms));
        }
        if let Some(ms) = new.downtime_ms.filter(|_| result == "succeeded") {
            self.downtime.observe([], seconds(ms));
        }
    }
}

/// A duration of the API in seconds; none is near the limits of an f64.
fn seconds(ms: i64) -> f64 {
    std::time::Duration::from_millis(ms.try_into().unwrap_or_default()).as_secs_f64()
}

fn change(old: &QemuMigrationStatus, new: &QemuMigrationStatus) -> Change {
    let was_open = |at: usize| old.phases.get(at).is_none_or(|phase| phase.ms.is_none());
    let phases = new
        .phases
        .iter()
        .enumerate()
        .filter(|(at, _)| was_open(*at))
        .filter_map(|(_, phase)| Some((phase.name.clone(), phase.ms?)))
        .collect();
    let failure = || {
        let failure = new.failure.as_ref();
        failure.map_or_else(|| reasons::FAILED.to_owned(), |f| f.reason.clone())
    };
    let end = match new.phase {
        _ if old.phase.is_final() => None,
        MigrationPhase::Succeeded => Some(("succeeded", reasons::COMPLETED.to_owned())),
        MigrationPhase::Cancelled => Some(("cancelled", reasons::CANCELLED.to_owned())),
        MigrationPhase::Failed => Some(("failed", failure())),
        _ => None,
    };
    Change { phases, end }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hybridnic_api::v1alpha1::{MigrationFailure, MigrationPhaseTime};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    fn status(phase: MigrationPhase, phases: &[(&str, Option<i64>)]) -> QemuMigrationStatus {
        let time = |(name, ms): &(&str, Option<i64>)| MigrationPhaseTime {
            name: (*name).to_owned(),
            started_at: MicroTime(jiff::Timestamp::UNIX_EPOCH),
            ms: *ms,
        };
        QemuMigrationStatus {
            phase,
            phases: phases.iter().map(time).collect(),
            ..QemuMigrationStatus::default()
        }
    }

    #[test]
    fn each_phase_and_each_end_is_counted_once() {
        let first = status(MigrationPhase::PreparingTarget, &[("PreparingTarget", None)]);
        let second = status(
            MigrationPhase::RollingBack,
            &[("PreparingTarget", Some(1200)), ("RollingBack", None)],
        );
        let mut last = status(
            MigrationPhase::Failed,
            &[("PreparingTarget", Some(1200)), ("RollingBack", Some(30))],
        );
        last.failure = Some(MigrationFailure {
            reason: reasons::TARGET_LOST.to_owned(),
            message: String::new(),
        });
        assert_eq!(change(&first, &first), Change::default());
        assert_eq!(
            change(&first, &second),
            Change {
                phases: vec![("PreparingTarget".to_owned(), 1200)],
                end: None
            }
        );
        assert_eq!(
            change(&second, &last),
            Change {
                phases: vec![("RollingBack".to_owned(), 30)],
                end: Some(("failed", reasons::TARGET_LOST.to_owned())),
            }
        );
        assert_eq!(change(&last, &last), Change::default());
    }

    #[test]
    fn what_alerts_wait_for_is_there_from_the_start() {
        let mut registry = Registry::default();
        let migrations = Migrations::new(&mut registry);
        let failed = "hybridnic_migrations_total{result=\"failed\",reason=\"TargetLost\"}";
        assert!(registry.encode().contains(&format!("{failed} 0")));
        let mut end = status(MigrationPhase::Succeeded, &[("Completing", Some(100))]);
        (end.total_ms, end.downtime_ms) = (Some(2000), Some(31));
        migrations.count(&status(MigrationPhase::Completing, &[("Completing", None)]), &end);
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
