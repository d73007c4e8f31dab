//! What a change of a save's or a restore's status adds to the metrics. Pure.

use hybridnic_api::v1alpha1::StateFileStatus;

use crate::metrics::End;
use crate::migration::change;

/// How it has ended between two statuses, if it has.
pub fn end(old: &StateFileStatus, new: &StateFileStatus) -> Option<End> {
    change::end(old.phase, new.phase, new.failure.as_ref()).map(|end| End {
        total_ms: new.total_ms,
        downtime_ms: new.downtime_ms,
        ..end
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moves::Outcome;
    use hybridnic_api::conditions::reasons;
    use hybridnic_api::v1alpha1::{MigrationFailure, MigrationPhase};

    #[test]
    fn each_end_is_counted_once_and_for_its_reason() {
        let at = |phase, reason: Option<&str>| StateFileStatus {
            phase,
            failure: reason.map(|reason| MigrationFailure {
                reason: reason.to_owned(),
                message: String::new(),
            }),
            total_ms: Some(7),
            ..StateFileStatus::default()
        };
        let back = at(MigrationPhase::RollingBack, Some(reasons::TRANSFER_FAILED));
        let failed = at(MigrationPhase::Failed, Some(reasons::TRANSFER_FAILED));
        let counted = end(&back, &failed).unwrap();
        assert_eq!(
            (counted.outcome, counted.reason.as_str(), counted.total_ms),
            (Outcome::Failed, reasons::TRANSFER_FAILED, Some(7))
        );
        assert_eq!(end(&failed, &failed), None);
        assert_eq!(end(&StateFileStatus::default(), &back), None);
        // One that is refused before it has begun.
        let refused = at(MigrationPhase::Failed, Some(reasons::NO_NICS));
        assert_eq!(
            end(&StateFileStatus::default(), &refused).unwrap().reason,
            reasons::NO_NICS
        );
        let done = at(MigrationPhase::Succeeded, None);
        assert_eq!(end(&back, &done).unwrap().reason, reasons::COMPLETED);
    }
}
