//! Whether a new status of a migration is worth a write. Pure.

use std::time::Duration;

use hybridnic_api::v1alpha1::QemuMigrationStatus;

/// The reason of a wait is written once it has lasted this long: most waits are over before anybody reads it.
const WORDS: Duration = Duration::from_secs(5);

/// Whether a status is worth a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worth {
    /// Nothing has changed.
    Nothing,
    /// It is written at once.
    Now,
    /// It is written after this time, unless something more important comes first.
    In(Duration),
}

/// Whether the change from `old` to `new`, of a migration that has been in its phase for so long, is worth a write.
pub fn write(old: Option<&QemuMigrationStatus>, new: &QemuMigrationStatus, in_phase_for: Duration) -> Worth {
    let Some(old) = old else { return Worth::Now };
    if old == new {
        return Worth::Nothing;
    }
    if without_words(old) != without_words(new) {
        return Worth::Now;
    }
    let rest = WORDS.saturating_sub(in_phase_for);
    if rest.is_zero() {
        Worth::Now
    } else {
        Worth::In(rest)
    }
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
    use hybridnic_api::v1alpha1::MigrationPhase;
    use jiff::Timestamp;

    fn waiting(phase: MigrationPhase, reason: &str, message: &str) -> QemuMigrationStatus {
        let mut status = QemuMigrationStatus {
            phase,
            ..QemuMigrationStatus::default()
        };
        let condition = NewCondition::unknown(types::SUCCEEDED, reason, message);
        conditions::set(&mut status.conditions, Some(1), Timestamp::UNIX_EPOCH, condition);
        status
    }

    #[test]
    fn words_wait_and_what_happens_does_not() {
        let worth = |old: &QemuMigrationStatus, new: &QemuMigrationStatus, seconds| {
            write(Some(old), new, Duration::from_secs(seconds))
        };
        let first = waiting(MigrationPhase::PreparingTarget, reasons::MIGRATING, "waits");
        let mut other = waiting(
            MigrationPhase::PreparingTarget,
            reasons::MIGRATING,
            "waits for eth0",
        );
        assert_eq!(write(None, &first, Duration::ZERO), Worth::Now);
        assert_eq!(worth(&first, &first, 1), Worth::Nothing);
        assert_eq!(worth(&first, &other, 1), Worth::In(Duration::from_secs(4)));
        assert_eq!(worth(&first, &other, 5), Worth::Now);
        other.downtime_ms = Some(31);
        assert_eq!(worth(&first, &other, 4), Worth::In(Duration::from_secs(1)));
        let next = waiting(MigrationPhase::SwitchingToStandby, reasons::MIGRATING, "waits");
        assert_eq!(worth(&first, &next, 1), Worth::Now);
        let reason = waiting(MigrationPhase::PreparingTarget, reasons::FAILED, "waits");
        assert_eq!(worth(&first, &reason, 1), Worth::Now);
    }
}
