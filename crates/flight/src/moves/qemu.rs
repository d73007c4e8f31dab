//! A `QemuMigration` as a [`Move`]. Pure. We, an operator or `ctl migrate`, drive it: `migration` decides on its phase.

use hybridnic_api::conditions::{self, types};
use hybridnic_api::v1alpha1::{
    MigrationPhase, MigrationPhaseTime, ObjectRef, QemuMigration, QemuMigrationStatus,
};
use jiff::Timestamp;
use kube::ResourceExt;

use super::{Driver, Going, Move, Orders, Outcome, Stage, Times};

/// The stage of a phase; none before it begins.
pub fn stage(phase: MigrationPhase) -> Option<Stage> {
    match phase {
        MigrationPhase::Pending => None,
        MigrationPhase::PreparingTarget => Some(Stage::Preparing),
        MigrationPhase::SwitchingToStandby => Some(Stage::Leaving),
        MigrationPhase::Transferring => Some(Stage::Moving),
        MigrationPhase::Completing => Some(Stage::Arrived),
        MigrationPhase::RollingBack => Some(Stage::Returning),
        MigrationPhase::Succeeded => Some(Stage::Over(Outcome::Succeeded)),
        MigrationPhase::Failed => Some(Stage::Over(Outcome::Failed)),
        MigrationPhase::Cancelled => Some(Stage::Over(Outcome::Cancelled)),
    }
}

/// The word for a stage, no matter who drives the move.
pub fn phase_of(stage: Stage) -> MigrationPhase {
    match stage {
        Stage::Preparing => MigrationPhase::PreparingTarget,
        Stage::Leaving => MigrationPhase::SwitchingToStandby,
        Stage::Moving => MigrationPhase::Transferring,
        Stage::Arrived => MigrationPhase::Completing,
        Stage::Returning => MigrationPhase::RollingBack,
        Stage::Over(Outcome::Succeeded) => MigrationPhase::Succeeded,
        Stage::Over(Outcome::Failed) => MigrationPhase::Failed,
        Stage::Over(Outcome::Cancelled) => MigrationPhase::Cancelled,
    }
}

/// The phase that a migration is in.
pub fn phase(migration: &QemuMigration) -> MigrationPhase {
    let status = migration.status.as_ref();
    status.map(|status| status.phase).unwrap_or_default()
}

/// The move that a migration is; none before it has begun.
pub fn begun(migration: &QemuMigration) -> Option<Move> {
    let status = migration.status.as_ref()?;
    let decision = migration.spec.decision;
    Some(Move {
        id: ObjectRef {
            name: migration.name_any(),
            uid: migration.uid().unwrap_or_default(),
        },
        nics: status.nics.clone(),
        source: status.source.clone()?,
        target: status.target.clone()?,
        stage: stage(status.phase)?,
        driver: Driver::Ours(Orders {
            encrypted: status.encrypted == Some(true),
            transfer: transfer_ordered(status),
            resume: status.resuming_since.is_some(),
            decision: decision.filter(|_| status.undecided_since.is_some()),
        }),
        times: Times {
            started_at: status.started_at.clone(),
            finished_at: status.finished_at.clone(),
            downtime_ms: status.downtime_ms,
            phases: status.phases.clone(),
        },
    })
}

/// A migration that has not ended, as it is counted.
pub fn going(migration: &QemuMigration) -> Option<Going> {
    let phase = phase(migration);
    if phase.is_final() {
        return None;
    }
    let status = migration.status.as_ref();
    let phases = status.map(|status| status.phases.as_slice()).unwrap_or_default();
    let since = since(phases, migration);
    let condition = status.and_then(|status| conditions::find(&status.conditions, types::SUCCEEDED));
    let reason = condition.map(|condition| condition.reason.as_str());
    Some(Going {
        phase: phase.into(),
        since,
        undecided: conditions::UNDECIDED
            .into_iter()
            .find(|undecided| reason == Some(undecided)),
    })
}

/// Since when what was asked for is in its phase. Before it begins it has no phase with a time.
pub(super) fn since(phases: &[MigrationPhaseTime], object: &impl ResourceExt) -> Option<Timestamp> {
    phases
        .last()
        .map(|phase| phase.started_at.0)
        .or_else(|| object.creation_timestamp().map(|time| time.0))
}

/// Whether the transfer may have been ordered: its phase has begun at some time.
fn transfer_ordered(status: &QemuMigrationStatus) -> bool {
    let word: &str = MigrationPhase::Transferring.into();
    status.phase == MigrationPhase::Transferring || status.phases.iter().any(|phase| phase.name == word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::migration;
    use hybridnic_api::conditions::NewCondition;
    use hybridnic_api::conditions::reasons;
    use hybridnic_api::v1alpha1::{Decision, MigrationEnd};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn phases(names: &[MigrationPhase]) -> Vec<MigrationPhaseTime> {
        let times = names.iter().enumerate().map(|(at, phase)| MigrationPhaseTime {
            name: phase.to_string(),
            started_at: MicroTime(second(i64::try_from(at).unwrap() + 10)),
            ms: None,
        });
        times.collect()
    }

    #[test]
    fn what_has_not_begun_is_no_move() {
        let mut waits = migration("m", 1);
        assert_eq!(begun(&waits), None);
        waits.status = Some(QemuMigrationStatus {
            phase: MigrationPhase::Failed,
            ..QemuMigrationStatus::default()
        });
        assert_eq!(begun(&waits), None, "it had no ends");
        let status = waits.status.as_mut().unwrap();
        (status.source, status.target) = (Some(MigrationEnd::default()), Some(MigrationEnd::default()));
        let stage = begun(&waits).unwrap().stage;
        assert_eq!(stage, Stage::Over(Outcome::Failed));
    }

    #[test]
    fn what_may_have_been_ordered_stays_ordered() {
        let orders = |phases: &[MigrationPhase], change: fn(&mut QemuMigration)| {
            let mut migration = migration("m", 1);
            migration.status = Some(QemuMigrationStatus {
                phase: MigrationPhase::RollingBack,
                source: Some(MigrationEnd::default()),
                target: Some(MigrationEnd::default()),
                phases: super::tests::phases(phases),
                ..QemuMigrationStatus::default()
            });
            change(&mut migration);
            match begun(&migration).unwrap().driver {
                Driver::Ours(orders) => orders,
                Driver::File(_) | Driver::Theirs { .. } => panic!("we drive it"),
            }
        };
        let began = [MigrationPhase::PreparingTarget, MigrationPhase::RollingBack];
        assert_eq!(orders(&began, |_| {}), Orders::default());
        let sent = [MigrationPhase::Transferring, MigrationPhase::RollingBack];
        assert!(orders(&sent, |_| {}).transfer);
        // A decision counts that was asked for.
        let decided = |m: &mut QemuMigration| m.spec.decision = Some(Decision::ResumeSource);
        assert_eq!(orders(&sent, decided).decision, None);
        let asked = orders(&sent, |m| {
            m.spec.decision = Some(Decision::ResumeSource);
            m.status.as_mut().unwrap().undecided_since = Some(MicroTime(second(1)));
        });
        assert_eq!(asked.decision, Some(Decision::ResumeSource));
        let told = |m: &mut QemuMigration| {
            m.status.as_mut().unwrap().resuming_since = Some(MicroTime(second(1)));
        };
        assert!(orders(&sent, told).resume);
    }

    #[test]
    fn a_person_should_look_at_those_that_wait_for_a_decision() {
        use MigrationPhase::{Failed, RollingBack, Transferring};
        let undecided = |phase, reason| {
            let mut migration = migration("m", 1);
            let status = migration.status.get_or_insert_default();
            status.phase = phase;
            let condition = NewCondition::unknown(types::SUCCEEDED, reason, "");
            conditions::set(&mut status.conditions, None, second(1), condition);
            going(&migration).map(|going| going.undecided)
        };
        for reason in [reasons::NEEDS_DECISION, reasons::TARGET_SILENT] {
            assert_eq!(undecided(Transferring, reason), Some(Some(reason)));
            assert_eq!(undecided(RollingBack, reason), Some(Some(reason)));
            assert_eq!(undecided(Failed, reason), None, "it is over");
        }
        assert_eq!(undecided(Transferring, reasons::MIGRATING), Some(None));
    }

    #[test]
    fn one_that_waits_to_begin_waits_since_it_was_made() {
        let mut migration = migration("m", 7);
        let since = |migration: &QemuMigration| {
            let going = going(migration).unwrap();
            (going.phase, going.since)
        };
        assert_eq!(since(&migration), ("Pending", Some(second(7))));
        let status = migration.status.get_or_insert_default();
        status.phase = MigrationPhase::Transferring;
        status.phases = phases(&[MigrationPhase::PreparingTarget, MigrationPhase::Transferring]);
        assert_eq!(since(&migration), ("Transferring", Some(second(11))));
    }
}
