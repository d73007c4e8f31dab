use hybridnic_api::conditions::{NewCondition, reasons};
use hybridnic_api::v1alpha1::{MigrationReport, QemuRestoreSpec, QemuSaveSpec};

use super::*;
use crate::testing::{meta, save};
use hybridnic_api::v1alpha1::MigrationPhaseTime;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

fn end() -> MigrationEnd {
    MigrationEnd {
        node_name: "n1".to_owned(),
        pod: ObjectRef {
            name: "a".to_owned(),
            uid: "a-uid".to_owned(),
        },
        pod_ip: None,
    }
}

fn status_in(phase: MigrationPhase, before: &[MigrationPhase]) -> StateFileStatus {
    let time = |phase: &MigrationPhase| MigrationPhaseTime {
        name: phase.to_string(),
        started_at: MicroTime(jiff::Timestamp::UNIX_EPOCH),
        ms: None,
    };
    StateFileStatus {
        phase,
        end: Some(end()),
        phases: before.iter().map(time).collect(),
        ..StateFileStatus::default()
    }
}

fn file_of(of: &Move) -> FileMove {
    match &of.driver {
        Driver::File(file) => file.clone(),
        _ => panic!("it has a file"),
    }
}

fn restore() -> QemuRestore {
    let spec = QemuRestoreSpec {
        vm: "vm".to_owned(),
        file: "/f".to_owned(),
        pod: None,
        deadline_seconds: None,
    };
    let mut restore = QemuRestore::new("r", spec);
    restore.metadata = meta("r", 1);
    restore
}

#[test]
fn a_save_is_a_move_without_a_target_and_a_restore_one_without_a_source() {
    let mut saved: QemuSave = save("s", AfterSave::End);
    assert_eq!(begun(&saved), None);
    saved.status = Some(status_in(MigrationPhase::Transferring, &[]));
    let of = begun(&saved).unwrap();
    assert_eq!((&of.source, of.whereabouts()), (&end(), &end()));
    assert_eq!(of.target, MigrationEnd::default());
    assert!(file_of(&of).begun && !file_of(&of).left);
    assert_eq!(of.kind(), "save");

    let mut restored = restore();
    restored.status = Some(status_in(MigrationPhase::PreparingTarget, &[]));
    let of = begun(&restored).unwrap();
    assert_eq!((&of.target, of.whereabouts()), (&end(), &end()));
    assert_eq!(of.source, MigrationEnd::default());
    assert!(!file_of(&of).begun && !file_of(&of).saves());
    assert_eq!(of.kind(), "restore");
}

#[test]
fn one_that_has_not_ended_is_counted_in_its_phase() {
    let mut saved = save("s", AfterSave::End);
    let waits = going(&saved).unwrap();
    assert_eq!(
        (waits.phase, waits.since),
        ("Pending", saved.creation_timestamp().map(|at| at.0))
    );
    saved.status = Some(status_in(
        MigrationPhase::RollingBack,
        &[MigrationPhase::RollingBack],
    ));
    let back = going(&saved).unwrap();
    assert_eq!(
        (back.phase, back.since),
        ("RollingBack", Some(jiff::Timestamp::UNIX_EPOCH))
    );
    saved.status = Some(status_in(MigrationPhase::Cancelled, &[]));
    assert_eq!(going(&saved), None);
}

#[test]
fn a_save_that_waits_for_its_user_is_counted_as_one() {
    let undecided = |going: Option<Going>| going.unwrap().undecided;
    let mut saved = save("s", AfterSave::Pause);
    let mut restored = restore();
    for (reason, expected) in [
        (reasons::MIGRATING, None),
        (reasons::PAUSED, Some(reasons::PAUSED)),
        (reasons::VM_RUNS, Some(reasons::VM_RUNS)),
    ] {
        let mut status = status_in(MigrationPhase::Completing, &[]);
        let condition = NewCondition::unknown(types::SUCCEEDED, reason, "so it is");
        conditions::set(
            &mut status.conditions,
            None,
            jiff::Timestamp::UNIX_EPOCH,
            condition,
        );
        (saved.status, restored.status) = (Some(status.clone()), Some(status));
        assert_eq!(undecided(going(&saved)), expected);
        assert_eq!(undecided(going(&restored)), None, "nobody is asked");
    }
}

#[test]
fn a_vm_that_waits_for_a_word_runs_on_when_the_save_is_deleted() {
    let mut saved = save("s", AfterSave::Pause);
    assert_eq!(saved.order().then, Some(AfterSave::Pause));
    saved.metadata.deletion_timestamp = saved.metadata.creation_timestamp.clone();
    assert_eq!(saved.order().then, Some(AfterSave::Continue));
    let QemuSaveSpec { then, .. } = &mut saved.spec;
    *then = AfterSave::End;
    assert_eq!(saved.order().then, Some(AfterSave::End));
}

#[test]
fn a_vf_comes_back_only_to_a_vm_that_runs() {
    use MigrationPhase::{PreparingTarget, RollingBack, SwitchingToStandby, Transferring};
    let mut saved = save("s", AfterSave::End);
    let mut wish = |before: &[MigrationPhase], said: Option<MigrationState>| {
        saved.status = Some(status_in(RollingBack, before));
        let ends = Ends {
            source: said.map(|state| MigrationReport::new("s-uid", state)),
            ..Ends::default()
        };
        file_of(&begun(&saved).unwrap()).wishes(Stage::Returning, &ends).0
    };
    let cancel = Some(MigrationStep::Cancel);
    assert_eq!(wish(&[PreparingTarget], None), (Goal::FastPath, cancel));
    let sent = [PreparingTarget, SwitchingToStandby, Transferring];
    for said in [None, Some(MigrationState::Active), Some(MigrationState::Failed)] {
        assert_eq!(wish(&sent, said), (Goal::Standby, cancel), "{said:?}");
    }
    assert_eq!(
        wish(&sent, Some(MigrationState::Cancelled)),
        (Goal::FastPath, cancel)
    );
}

#[test]
fn a_qemu_is_ended_only_once_its_vm_is_in_the_file() {
    for then in [AfterSave::End, AfterSave::Continue, AfterSave::Pause] {
        let mut saved = save("s", then);
        saved.status = Some(status_in(MigrationPhase::Transferring, &[]));
        let file = file_of(&begun(&saved).unwrap());
        for stage in [Stage::Preparing, Stage::Leaving, Stage::Moving, Stage::Returning] {
            let ((goal, _), _) = file.wishes(stage, &Ends::default());
            assert_ne!(goal, Goal::Detached, "{then} {stage:?}");
        }
        let ((goal, order), _) = file.wishes(Stage::Arrived, &Ends::default());
        assert_eq!(goal == Goal::Detached, then == AfterSave::End);
        // A VM that stands still takes no VF.
        assert_eq!(goal == Goal::FastPath, then == AfterSave::Continue);
        assert_eq!(order, Some(MigrationStep::Save));
    }
}
