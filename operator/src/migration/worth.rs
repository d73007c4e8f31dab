//! Whether a new status of a migration is worth a write. Pure.

use std::time::Duration;

use hybridnic_api::v1alpha1::QemuMigrationStatus;
use jiff::Timestamp;

use super::record::since;

/// What a wait waits for is written once it has lasted so long: most are over before anybody reads it.
const WORDS: Duration = Duration::from_secs(5);

/// Whether a status is worth a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worth {
    /// Nothing has changed.
    Nothing,
    /// It is written at once.
    Now,
    /// It is written after so long, if nothing that matters more has come by then.
    In(Duration),
}

/// Whether the change from `old` to `new` is worth a write.
pub fn write(old: Option<&QemuMigrationStatus>, new: &QemuMigrationStatus, now: Timestamp) -> Worth {
    let Some(old) = old else { return Worth::Now };
    if old == new {
        return Worth::Nothing;
    }
    if without_words(old) != without_words(new) {
        return Worth::Now;
    }
    let lasts = new
        .phases
        .last()
        .map(|phase| since(&phase.started_at, now).unsigned_abs());
    let rest = lasts.and_then(|lasts| WORDS.checked_sub(lasts));
    rest.filter(|rest| !rest.is_zero()).map_or(Worth::Now, Worth::In)
}

/// What drives the migration, and what people wait for.
fn without_words(status: &QemuMigrationStatus) -> QemuMigrationStatus {
    let mut status = status.clone();
    // QEMU's count comes with the end.
    status.downtime_ms = None;
    status.observed_generation = None;
    for condition in &mut status.conditions {
        condition.message.clear();
        condition.observed_generation = None;
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use hybridnic_api::conditions::{self, NewCondition, reasons, types};
    use hybridnic_api::v1alpha1::{MigrationPhase, MigrationPhaseTime};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    fn waiting(phase: MigrationPhase, reason: &str, message: &str) -> QemuMigrationStatus {
        let began = MicroTime(Timestamp::from_second(100).unwrap());
        let mut status = QemuMigrationStatus {
            phase,
            phases: vec![MigrationPhaseTime {
                name: format!("{phase:?}"),
                started_at: began,
                ms: None,
            }],
            ..QemuMigrationStatus::default()
        };
        let condition = NewCondition::unknown(types::SUCCEEDED, reason, message);
        conditions::set(&mut status.conditions, Some(1), Timestamp::UNIX_EPOCH, condition);
        status
    }

    #[test]
    fn words_wait_and_what_happens_does_not() {
        let worth = |old: &QemuMigrationStatus, new: &QemuMigrationStatus, second| {
            write(Some(old), new, Timestamp::from_second(second).unwrap())
        };
        let first = waiting(MigrationPhase::PreparingTarget, reasons::MIGRATING, "waits");
        let mut other = waiting(
            MigrationPhase::PreparingTarget,
            reasons::MIGRATING,
            "waits for eth0",
        );
        assert_eq!(write(None, &first, Timestamp::UNIX_EPOCH), Worth::Now);
        assert_eq!(worth(&first, &first, 101), Worth::Nothing);
        assert_eq!(worth(&first, &other, 101), Worth::In(Duration::from_secs(4)));
        assert_eq!(worth(&first, &other, 105), Worth::Now);
        other.downtime_ms = Some(31);
        assert_eq!(worth(&first, &other, 104), Worth::In(Duration::from_secs(1)));
        let next = waiting(MigrationPhase::SwitchingToStandby, reasons::MIGRATING, "waits");
        assert_eq!(worth(&first, &next, 101), Worth::Now);
        let reason = waiting(MigrationPhase::PreparingTarget, reasons::FAILED, "waits");
        assert_eq!(worth(&first, &reason, 101), Worth::Now);
        // One that has not begun has no phase that is young.
        let pending = |message| QemuMigrationStatus {
            phases: Vec::new(),
            ..waiting(MigrationPhase::Pending, reasons::NO_TARGET_POD, message)
        };
        assert_eq!(worth(&pending("a"), &pending("b"), 101), Worth::Now);
    }
}
