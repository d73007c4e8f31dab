//! What a change of a migration's status adds to the metrics. Pure.

use hybridnic_api::conditions::reasons;
use hybridnic_api::v1alpha1::{MigrationFailure, MigrationPhase, QemuMigrationStatus};

use crate::metrics::{Change, End};
use crate::moves::qemu::stage;
use crate::moves::{Outcome, Stage};

/// What has become of a migration between two statuses.
pub fn between(old: &QemuMigrationStatus, new: &QemuMigrationStatus) -> Change {
    let was_open = |at: usize| old.phases.get(at).is_none_or(|phase| phase.ms.is_none());
    let phases = new
        .phases
        .iter()
        .enumerate()
        .filter(|(at, _)| was_open(*at))
        .filter_map(|(_, phase)| Some((phase.name.clone(), phase.ms?)))
        .collect();
    let mut end = end(old.phase, new.phase, new.failure.as_ref());
    if let Some(end) = &mut end {
        (end.total_ms, end.downtime_ms) = (new.total_ms, new.downtime_ms);
    }
    Change { phases, end }
}

/// How a move has ended between two phases, if it has; how long it took is not said.
pub fn end(was: MigrationPhase, now: MigrationPhase, failure: Option<&MigrationFailure>) -> Option<End> {
    let Some(Stage::Over(outcome)) = stage(now) else {
        return None;
    };
    let reason = match (outcome, failure) {
        (Outcome::Succeeded, _) => reasons::COMPLETED.to_owned(),
        (Outcome::Cancelled, _) => reasons::CANCELLED.to_owned(),
        (Outcome::Failed, Some(failure)) => failure.reason.clone(),
        (Outcome::Failed, None) => reasons::FAILED.to_owned(),
    };
    (!was.is_final()).then_some(End {
        outcome,
        reason,
        total_ms: None,
        downtime_ms: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hybridnic_api::v1alpha1::MigrationPhaseTime;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    fn in_phase(phase: MigrationPhase, phases: &[(&str, Option<i64>)]) -> QemuMigrationStatus {
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
        let first = in_phase(MigrationPhase::PreparingTarget, &[("PreparingTarget", None)]);
        let second = in_phase(
            MigrationPhase::RollingBack,
            &[("PreparingTarget", Some(1200)), ("RollingBack", None)],
        );
        let mut last = in_phase(
            MigrationPhase::Failed,
            &[("PreparingTarget", Some(1200)), ("RollingBack", Some(30))],
        );
        last.failure = Some(MigrationFailure {
            reason: reasons::TARGET_LOST.to_owned(),
            message: String::new(),
        });
        assert_eq!(between(&first, &first), Change::default());
        assert_eq!(
            between(&first, &second),
            Change {
                phases: vec![("PreparingTarget".to_owned(), 1200)],
                end: None
            }
        );
        assert_eq!(
            between(&second, &last),
            Change {
                phases: vec![("RollingBack".to_owned(), 30)],
                end: Some(End {
                    outcome: Outcome::Failed,
                    reason: reasons::TARGET_LOST.to_owned(),
                    total_ms: None,
                    downtime_ms: None,
                }),
            }
        );
        assert_eq!(between(&last, &last), Change::default());
    }
}
