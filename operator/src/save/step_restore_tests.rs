//! Restores: what comes of them, and of files that are not loaded.

use super::*;

/// A restore of which QEMU loads the file.
fn loading() -> Scene<QemuRestore> {
    let mut scene = restoring();
    scene.reach(MigrationPhase::PreparingTarget);
    assert_eq!(scene.wish(), (Goal::FastPath, Some(MigrationStep::Prepare)));
    scene.says(MigrationState::Prepared);
    scene.stays(reasons::MIGRATING);
    scene.at(AttachmentState::Reserved);
    scene.reach(MigrationPhase::Transferring);
    assert_eq!(scene.wish(), (Goal::FastPath, Some(MigrationStep::Load)));
    scene
}

#[test]
fn a_vm_comes_back() {
    let mut scene = loading();
    scene.says(MigrationState::Active);
    scene.stays(reasons::MIGRATING);
    scene.says(MigrationState::Completed);
    scene.reach(MigrationPhase::Completing);
    assert_eq!(scene.wish(), (Goal::FastPath, Some(MigrationStep::Load)));
    scene.reach(MigrationPhase::Succeeded);
    assert!(scene.why().contains("the VM runs on n1"), "{}", scene.why());
}

#[test]
fn a_wrong_file_is_refused_and_qemu_waits_on() {
    for begun in [false, true] {
        let mut scene = if begun { loading() } else { restoring() };
        if !begun {
            scene.reach(MigrationPhase::PreparingTarget);
        }
        let state = if begun {
            MigrationState::Failed
        } else {
            MigrationState::Prepared
        };
        let report = scene.says(state);
        (report.refused, report.error) = (true, Some("the file is not whole".to_owned()));
        scene.reach(MigrationPhase::RollingBack);
        assert_eq!(scene.wish(), (Goal::FastPath, None), "nothing was told to it");
        scene.reach(MigrationPhase::Failed);
        assert!(
            scene.why().starts_with("FileRefused: the file is not whole"),
            "{}",
            scene.why()
        );
    }
}

#[test]
fn a_qemu_that_was_told_to_load_is_ended_when_that_is_called_off() {
    for late in [false, true] {
        let mut scene = loading();
        scene.says(MigrationState::Active);
        scene.deleted = !late;
        scene.in_phase_for = if late { 30 } else { 0 };
        scene.reach(MigrationPhase::RollingBack);
        assert_eq!(scene.wish(), (Goal::Detached, Some(MigrationStep::GiveUp)));
        scene.stays(if late {
            reasons::DEADLINE_EXCEEDED
        } else {
            reasons::CANCELLED
        });
        scene.at(AttachmentState::Detached);
        scene.reach(if late {
            MigrationPhase::Failed
        } else {
            MigrationPhase::Cancelled
        });
    }
    // It had started the VM by then.
    let mut scene = loading();
    scene.deleted = true;
    scene.reach(MigrationPhase::RollingBack);
    scene.says(MigrationState::Completed);
    scene.reach(MigrationPhase::Completing);
    assert_eq!(scene.wish(), (Goal::FastPath, Some(MigrationStep::Load)));
}

#[test]
fn a_vm_that_runs_is_not_doubled() {
    let mut scene = restoring();
    let mut there = attachment("eth0", "b", "n2");
    observe(&mut there, AttachmentState::FastPath);
    scene.there = Some(there);
    scene.pods.push(Arc::new(pod("b", "vm", 2, "Running", "n2")));
    scene.step();
    assert_eq!(scene.status_now().phase, MigrationPhase::Failed);
    assert!(
        scene
            .why()
            .starts_with("VmRuns: the VM vm runs in the pod b on n2"),
        "{}",
        scene.why()
    );

    // Its pod has ended, and its NIC is not proven to have left.
    let mut scene = restoring();
    let mut there = attachment("eth0", "c", "n2");
    observe(&mut there, AttachmentState::FastPath);
    scene.there = Some(there);
    scene.stays(reasons::WAITING_FOR_DETACH);
    scene.there = None;
    scene.reach(MigrationPhase::PreparingTarget);
    assert!(pods::is_running(&scene.pods[0]));
}

#[test]
fn what_is_needed_to_begin_is_waited_for() {
    let mut scene = restoring();
    scene.pods.clear();
    scene.stays(reasons::NO_TARGET_POD);
    scene.pods = ["a", "b"]
        .map(|name| Arc::new(pod(name, "vm", 1, "Running", "n1")))
        .into();
    scene.stays(reasons::SEVERAL_TARGET_PODS);
    scene.object.spec.pod = Some("a".to_owned());
    // No NIC is in it, and the VM may be.
    scene.stays(reasons::VM_RUNS);
    scene.pods[1] = Arc::new(pod("b", "vm", 1, "Failed", "n1"));
    scene.reach(MigrationPhase::PreparingTarget);
    // Its kubelet would start it again.
    for then in [AfterSave::End, AfterSave::Continue] {
        let mut scene = saving(then);
        let mut restarts = scene.pods[0].as_ref().clone();
        restarts.spec.as_mut().unwrap().restart_policy = Some("OnFailure".to_owned());
        scene.pods[0] = Arc::new(restarts);
        match then {
            AfterSave::End => scene.stays(reasons::POD_RESTARTS),
            _ => scene.reach(MigrationPhase::PreparingTarget),
        }
    }
    let mut scene = saving(AfterSave::End);
    scene.at(AttachmentState::Pending);
    scene.stays(reasons::AGENT_PENDING);
    scene.deleted = true;
    scene.step();
    assert_eq!(scene.status_now().phase, MigrationPhase::Cancelled);
}
