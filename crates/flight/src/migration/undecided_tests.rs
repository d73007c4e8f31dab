//! Migrations whose ends do not say where the VM is.

use std::sync::Arc;

use hybridnic_api::conditions::reasons;
use hybridnic_api::v1alpha1::{
    AttachmentState, Decision, Goal, MigrationPhase, MigrationState, MigrationStep, NicAttachment,
};

use super::testing::Scene;
use crate::testing::{report, report_kept};

/// The VM was handed over, and the target's node is away: its pod was force-deleted, or only does not report.
fn let_go(pod_is_gone: bool) -> Scene {
    let mut scene = Scene::transferring();
    report(scene.source(AttachmentState::Standby), MigrationState::Completed);
    if pod_is_gone {
        scene.pods.pop();
    }
    scene
}

#[test]
fn where_nothing_is_known_a_person_decides() {
    use Decision::{AbandonSource, ResumeSource};
    for (gone, reason) in [(true, reasons::NEEDS_DECISION), (false, reasons::TARGET_SILENT)] {
        let mut scene = let_go(gone);
        scene.step();
        scene.second += 30;
        scene.stays(reason);
        assert_eq!(
            scene.wishes()[0],
            Some((Goal::Standby, Some(MigrationStep::Transfer))),
            "nobody runs it again"
        );
        // Also one that was cancelled stays, and says so.
        scene.delete();
        scene.reach(MigrationPhase::RollingBack);
        scene.second += 30;
        scene.stays(reason);
        assert!(scene.message().contains("decision"), "{}", scene.message());
        let mut other = scene.clone();

        scene.migration.spec.decision = Some(ResumeSource);
        scene.settle();
        assert_eq!(
            scene.wishes()[0],
            Some((Goal::Standby, Some(MigrationStep::Resume)))
        );
        report(scene.source(AttachmentState::Standby), MigrationState::Cancelled);
        scene.apply();
        scene.source(AttachmentState::FastPath);
        scene.step();
        assert_eq!(scene.phase(), MigrationPhase::Cancelled);

        other.migration.spec.decision = Some(AbandonSource);
        other.reach(MigrationPhase::Completing);
        assert_eq!(other.wishes()[0].unwrap().0, Goal::Detached);
        other.source(AttachmentState::Detached);
        other.step();
        assert_eq!(other.phase(), MigrationPhase::Succeeded);
    }
}

/// Found by the model checker: the node was away, the VM's end there was not reported when the person decided.
#[test]
fn that_the_vm_has_ended_at_the_target_comes_too_late_once_a_person_has_let_the_source_go_on() {
    let mut scene = let_go(true);
    scene.stays(reasons::NEEDS_DECISION);
    scene.delete();
    scene.reach(MigrationPhase::RollingBack);
    scene.migration.spec.decision = Some(Decision::ResumeSource);
    scene.settle();
    let resume = Some((Goal::Standby, Some(MigrationStep::Resume)));
    assert_eq!(scene.wishes()[0], resume);
    report(scene.target(AttachmentState::Pending), MigrationState::Ended);
    scene.reach(MigrationPhase::RollingBack);
    assert_eq!(scene.wishes()[0], resume);
    report(scene.source(AttachmentState::Standby), MigrationState::Cancelled);
    scene.reach(MigrationPhase::RollingBack);
    assert_eq!(scene.wishes()[0].unwrap().0, Goal::FastPath);

    // A decision that comes when the target has spoken does not count, also when its report is no longer heard.
    let mut scene = let_go(true);
    scene.stays(reasons::NEEDS_DECISION);
    report(scene.target(AttachmentState::Pending), MigrationState::Lost);
    scene.reach(MigrationPhase::RollingBack);
    scene.settle();
    assert_eq!(scene.wishes()[0], resume);
    scene.target(AttachmentState::Pending).status = None;
    scene.migration.spec.decision = Some(Decision::AbandonSource);
    scene.reach(MigrationPhase::RollingBack);
    assert_eq!(scene.wishes()[0], resume);

    // A decision that nobody has acted on yet does not count.
    let mut scene = let_go(true);
    scene.stays(reasons::NEEDS_DECISION);
    scene.migration.spec.decision = Some(Decision::ResumeSource);
    report(scene.target(AttachmentState::Pending), MigrationState::Ended);
    scene.reach(MigrationPhase::Completing);
}

/// Found by the model checker: the source's agent starts again, cannot reach QEMU yet, and has nothing to say; then the target's
/// end is heard.
#[test]
fn a_source_that_was_told_to_run_on_is_told_so_until_it_has() {
    let mut scene = let_go(true);
    scene.stays(reasons::NEEDS_DECISION);
    scene.migration.spec.decision = Some(Decision::ResumeSource);
    scene.reach(MigrationPhase::RollingBack);
    scene.settle();
    let resume = Some((Goal::Standby, Some(MigrationStep::Resume)));
    assert_eq!(scene.wishes()[0], resume);
    scene
        .source(AttachmentState::Pending)
        .status
        .as_mut()
        .unwrap()
        .migration = None;
    scene.apply();
    assert_eq!(scene.wishes()[0], resume);
    report(scene.target(AttachmentState::Pending), MigrationState::Ended);
    scene.reach(MigrationPhase::RollingBack);
    assert_eq!(scene.wishes()[0], resume);
}

/// The target is back after all, and had started the VM before it was told to give up.
#[test]
fn that_a_vm_runs_twice_after_a_wrong_decision_is_told_until_one_ends() {
    let mut scene = let_go(true);
    let pod = Arc::new(crate::testing::pod("b", "vm", 2, "Running", "n2"));
    scene.stays(reasons::NEEDS_DECISION);
    scene.migration.spec.decision = Some(Decision::ResumeSource);
    scene.settle();
    report(scene.source(AttachmentState::Standby), MigrationState::Cancelled);
    scene.settle();
    scene.source(AttachmentState::FastPath);
    scene.pods.push(pod);
    report(scene.target(AttachmentState::Standby), MigrationState::Completed);
    scene.stays(reasons::NEEDS_DECISION);
    assert!(scene.message().contains("may run twice"), "{}", scene.message());
    report(scene.target(AttachmentState::Pending), MigrationState::Ended);
    scene.step();
    assert_eq!(scene.phase(), MigrationPhase::Failed);
}

/// The source is heard first, nearly always.
#[test]
fn a_decision_that_nobody_has_asked_for_does_not_count() {
    for decision in [Decision::ResumeSource, Decision::AbandonSource] {
        let mut scene = let_go(false);
        scene.migration.spec.decision = Some(decision);
        scene.stays(reasons::MIGRATING);
        assert_eq!(
            scene.wishes()[0],
            Some((Goal::Standby, Some(MigrationStep::Transfer)))
        );
        report(scene.target(AttachmentState::Standby), MigrationState::Completed);
        scene.reach(MigrationPhase::Completing);
    }
}

#[test]
fn a_target_is_silent_from_when_the_source_has_let_go() {
    let mut scene = Scene::transferring();
    report(scene.target(AttachmentState::Reserved), MigrationState::Active);
    scene.second += 600;
    scene.stays(reasons::MIGRATING);
    report(scene.source(AttachmentState::Standby), MigrationState::Completed);
    scene.stays(reasons::MIGRATING);
    scene.second += 29;
    scene.stays(reasons::MIGRATING);
    assert_eq!(scene.status_now().undecided_since, None);
    scene.second += 1;
    scene.stays(reasons::TARGET_SILENT);
    assert!(scene.status_now().undecided_since.is_some());
    let message = scene.message();
    assert!(message.contains("patch qmig m -n ns"), "{message}");
}

#[test]
fn what_keeps_an_end_from_going_on_is_told() {
    let error = |attachment: &mut NicAttachment| {
        let status = attachment.status.as_mut().unwrap();
        status.migration.as_mut().unwrap().error = Some("the disk is full".to_owned());
    };
    let told = |scene: &Scene| {
        let message = scene.message();
        assert!(message.contains("the disk is full"), "{message}");
    };

    let mut scene = Scene::preparing();
    let target = scene.target(AttachmentState::Pending);
    report(target, MigrationState::Active);
    error(target);
    scene.stays(reasons::MIGRATING);
    told(&scene);

    let mut scene = Scene::transferring();
    let source = scene.source(AttachmentState::Standby);
    report(source, MigrationState::Active);
    error(source);
    scene.stays(reasons::MIGRATING);
    told(&scene);

    let mut scene = let_go(false);
    let target = scene.target(AttachmentState::Reserved);
    report(target, MigrationState::Active);
    error(target);
    scene.stays(reasons::MIGRATING);
    told(&scene);
    scene.second += 30;
    scene.stays(reasons::TARGET_SILENT);
    told(&scene);
}

#[test]
fn whom_the_end_waits_for_is_told() {
    let told = |scene: &Scene, what: &str| assert!(scene.message().contains(what), "{}", scene.message());
    let mut scene = let_go(false);
    report(scene.target(AttachmentState::Standby), MigrationState::Completed);
    scene.reach(MigrationPhase::Completing);
    scene.stays(reasons::MIGRATING);
    told(&scene, "waits for eth0 on n1");

    let mut scene = Scene::transferring();
    scene.delete();
    scene.reach(MigrationPhase::RollingBack);
    scene.stays(reasons::CANCELLED);
    told(
        &scene,
        "waits for QEMU on n1 to say that the transfer has stopped",
    );
    report_kept(scene.source(AttachmentState::Standby));
    scene.stays(reasons::CANCELLED);
    told(&scene, "waits for eth0 on n1");
}

#[test]
fn a_vm_that_is_lost_at_both_ends_holds_nothing() {
    let mut scene = Scene::transferring();
    report(scene.source(AttachmentState::Standby), MigrationState::Lost);
    scene.reach(MigrationPhase::RollingBack);
    // The target may still get it, as long as nothing says that its pod is over.
    let pod = scene.pods.pop().unwrap();
    scene.stays(reasons::NEEDS_DECISION);
    scene.pods.push(pod);
    scene.end_pod(1);
    scene.step();
    assert_eq!(
        (scene.phase(), scene.reason().as_str()),
        (MigrationPhase::Failed, reasons::SOURCE_LOST)
    );
}

#[test]
fn a_decision_does_not_count_while_the_ends_can_tell() {
    for decision in [Decision::ResumeSource, Decision::AbandonSource] {
        let mut scene = Scene::transferring();
        scene.migration.spec.decision = Some(decision);
        scene.stays(reasons::MIGRATING);
        report(scene.source(AttachmentState::Standby), MigrationState::Active);
        scene.stays(reasons::MIGRATING);
        report(scene.source(AttachmentState::Standby), MigrationState::Completed);
        report(scene.target(AttachmentState::Standby), MigrationState::Completed);
        scene.reach(MigrationPhase::Completing);
    }
}

/// Found by the model checker: the target's report was on its way when the person decided.
#[test]
fn a_target_that_says_it_has_the_vm_stops_a_source_that_has_not_gone_on_yet() {
    for target_ends in [true, false] {
        let mut scene = let_go(true);
        scene.stays(reasons::NEEDS_DECISION);
        scene.migration.spec.decision = Some(Decision::ResumeSource);
        scene.settle();
        assert_eq!(scene.wishes()[0].unwrap().1, Some(MigrationStep::Resume));
        report(scene.target(AttachmentState::Standby), MigrationState::Completed);
        scene.settle();
        assert_eq!(scene.reason(), reasons::NEEDS_DECISION);
        assert_eq!(
            scene.wishes(),
            [
                Some((Goal::Standby, Some(MigrationStep::Cancel))),
                Some((Goal::FastPath, Some(MigrationStep::Listen))),
            ]
        );
        if target_ends {
            report(scene.target(AttachmentState::Pending), MigrationState::Ended);
            scene.settle();
            assert_eq!(scene.wishes()[0].unwrap().1, Some(MigrationStep::Resume));
        } else {
            report(scene.source(AttachmentState::Pending), MigrationState::Lost);
            scene.reach(MigrationPhase::Completing);
        }
    }
}
