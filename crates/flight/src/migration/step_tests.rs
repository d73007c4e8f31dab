use std::sync::Arc;
use std::time::Duration;

use hybridnic_api::conditions::{self, NewCondition, reasons, types};
use hybridnic_api::v1alpha1::{
    AttachmentState, Goal, MigrationPhase, MigrationState, MigrationStep, NoFreeVf, WantedPath,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::migration::testing::Scene;
use crate::testing::{attachment, observe, pod, report, report_kept, say};

#[test]
fn a_migration_that_goes_well() {
    let mut scene = Scene::transferring();
    assert_eq!(
        scene
            .source
            .as_ref()
            .unwrap()
            .spec
            .migration
            .as_ref()
            .unwrap()
            .target_uri
            .as_deref(),
        Some("tcp:10.0.0.1:4444")
    );
    scene.second += 3;
    report(scene.source(AttachmentState::Standby), MigrationState::Completed);
    scene.stays(reasons::MIGRATING);
    report(scene.target(AttachmentState::Standby), MigrationState::Completed);
    scene.reach(MigrationPhase::Completing);
    assert_eq!(
        scene.wishes()[0],
        Some((Goal::Detached, Some(MigrationStep::Transfer)))
    );
    scene.stays(reasons::MIGRATING);
    scene.second += 1;
    scene.source(AttachmentState::Detached);
    scene.step();
    let status = scene.status_now();
    assert_eq!(status.phase, MigrationPhase::Succeeded);
    assert_eq!((status.total_ms, status.downtime_ms), (Some(4000), Some(42)));
    let phases: Vec<_> = status
        .phases
        .iter()
        .map(|phase| (phase.name.as_str(), phase.ms))
        .collect();
    let expected = [
        ("PreparingTarget", Some(0)),
        ("SwitchingToStandby", Some(0)),
        ("Transferring", Some(3000)),
        ("Completing", Some(1000)),
    ];
    assert_eq!(phases, expected);
    assert!(conditions::is_true(&status.conditions, types::SUCCEEDED));
    scene.step();
    assert_eq!(scene.status_now(), status, "over is over");
}

#[test]
fn what_keeps_a_migration_from_beginning() {
    type Change = fn(&mut Scene);
    let cases: [(&str, Change); 9] = [
        (reasons::NO_TARGET_POD, |scene| {
            scene.pods.pop();
        }),
        (reasons::NO_TARGET_POD, |scene| {
            scene.migration.spec.target_pod = Some("a".to_owned());
        }),
        (reasons::NO_TARGET_POD, |scene| {
            scene.migration.spec.target_pod = Some("x".to_owned());
        }),
        (reasons::SEVERAL_TARGET_PODS, |scene| {
            scene.pods.push(Arc::new(pod("c", "vm", 3, "Running", "n3")));
        }),
        (reasons::TARGET_ADDRESS_REFUSED, |scene| {
            scene.address_of_target("127.0.0.1");
        }),
        (reasons::TARGET_ADDRESS_REFUSED, |scene| {
            scene.of_nodes = ["192.168.1.2".parse().unwrap()].into();
            scene.address_of_target("192.168.1.2");
        }),
        (reasons::MIGRATION_BUSY, |scene| {
            scene.blocked_by = Some("other".to_owned());
        }),
        (reasons::POD_NOT_FOUND, |scene| scene.pods.clear()),
        (reasons::AGENT_PENDING, |scene| scene.source = None),
    ];
    for (reason, change) in cases {
        let mut scene = Scene::new();
        change(&mut scene);
        scene.stays(reason);
        let before = scene.status_now();
        scene.second += 10;
        scene.stays(reason);
        assert_eq!(scene.status_now(), before, "{reason}: waiting costs no writes");
        scene.delete();
        scene.step();
        assert_eq!(
            (scene.phase(), scene.reason().as_str()),
            (MigrationPhase::Cancelled, reasons::CANCELLED)
        );
    }
}

#[test]
fn of_several_targets_the_one_is_taken_whose_agent_says_that_it_waits() {
    let mut scene = Scene::new();
    // The youngest is anybody's.
    scene.pods.push(Arc::new(pod("c", "vm", 3, "Running", "n3")));
    scene.stays(reasons::SEVERAL_TARGET_PODS);
    assert!(
        scene.message().starts_with("b and c could take the VM"),
        "{}",
        scene.message()
    );
    let mut waits = attachment("eth0", "b", "n2");
    observe(&mut waits, AttachmentState::Reserved);
    say(&mut waits, reasons::VM_INCOMING, "QEMU waits for a VM");
    scene.target = Some(waits);
    scene.step();
    assert_eq!(scene.phase(), MigrationPhase::PreparingTarget);
    assert_eq!(scene.status_now().target.unwrap().pod.name, "b");

    // A name is a word, too.
    let mut scene = Scene::new();
    scene.pods.push(Arc::new(pod("c", "vm", 3, "Running", "n3")));
    scene.migration.spec.target_pod = Some("c".to_owned());
    scene.step();
    assert_eq!(scene.status_now().target.unwrap().pod.name, "c");
}

#[test]
fn a_vm_without_nics_fails() {
    let mut scene = Scene::new();
    scene.nic.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    scene.stays(reasons::PROGRESSING);
    // A NIC that was refused is none.
    scene.nic.metadata.deletion_timestamp = None;
    let refusal = NewCondition::no(types::ACCEPTED, reasons::MAC_CONFLICT, "");
    conditions::set(
        &mut scene.nic.status.as_mut().unwrap().conditions,
        None,
        Timestamp::UNIX_EPOCH,
        refusal,
    );
    scene.source = None;
    scene.step();
    assert_eq!(
        (scene.phase(), scene.reason().as_str()),
        (MigrationPhase::Failed, reasons::NO_NICS)
    );
}

/// A new leader's clock may be ahead of the one that wrote when the phase began, or behind.
#[test]
fn a_deadline_does_not_go_by_anothers_clock() {
    for skew in [3600, -3600] {
        let mut scene = Scene::preparing();
        scene.target(AttachmentState::Pending);
        scene.skew = skew;
        // The new leader has not seen the phase before.
        scene.phases = Arc::default();
        scene.second += 30;
        assert_eq!(scene.step(), Some(Duration::from_mins(1)), "it counts again");
        scene.second += 59;
        assert_eq!(scene.step(), Some(Duration::from_secs(1)));
        scene.second += 1;
        scene.reach(MigrationPhase::RollingBack);
    }
}

#[test]
fn a_target_that_does_not_get_ready_is_given_up() {
    let mut scene = Scene::preparing();
    say(
        scene.target(AttachmentState::Pending),
        reasons::QMP_UNAVAILABLE,
        "no socket",
    );
    scene.second += 59;
    assert_eq!(scene.step(), Some(Duration::from_secs(1)));
    assert!(
        scene.message().contains("QmpUnavailable: no socket"),
        "{}",
        scene.message()
    );
    scene.second += 1;
    scene.reach(MigrationPhase::RollingBack);
    assert_eq!(scene.reason(), reasons::TARGET_NOT_READY);
    assert!(
        scene.message().contains("QmpUnavailable: no socket"),
        "{}",
        scene.message()
    );
    assert_eq!(
        scene.wishes()[0],
        Some((Goal::FastPath, None)),
        "the source was never touched"
    );
    scene.step();
    assert_eq!(
        (scene.phase(), scene.reason().as_str()),
        (MigrationPhase::Failed, reasons::TARGET_NOT_READY)
    );
}

#[test]
fn a_node_that_cannot_take_the_nic_is_named() {
    let mut scene = Scene::preparing();
    scene.target = None;
    scene.refusal = Some("AgentNotFound: no agent on n2".to_owned());
    scene.step();
    assert!(scene.message().contains("no agent on n2"), "{}", scene.message());
}

#[test]
fn a_target_without_a_vf_matters_only_to_who_waits_for_one() {
    let mut scene = Scene::preparing();
    say(
        scene.target(AttachmentState::Pending),
        reasons::NO_FREE_VF,
        "all are held",
    );
    scene.stays(reasons::MIGRATING);
    scene.nic.spec.no_free_vf = NoFreeVf::Wait;
    scene.nic.spec.path = WantedPath::Standby;
    scene.step();
    assert_eq!(scene.phase(), MigrationPhase::PreparingTarget);
    scene.nic.spec.keep_vf = true;
    scene.step();
    assert_eq!(
        (scene.phase(), scene.reason().as_str()),
        (MigrationPhase::RollingBack, reasons::TARGET_NO_FREE_VF)
    );
}

/// A NIC without a standby is out of the way once its VF is out, and back at its source only with one, or with a reason that lasts.
#[test]
fn a_nic_without_a_standby_steps_aside() {
    let mut scene = Scene::switching();
    scene.source(AttachmentState::Pending);
    scene.stays(reasons::MIGRATING);
    scene.source(AttachmentState::Aside);
    scene.reach(MigrationPhase::Transferring);
    let mut back = attachment("eth0", "a", "n1");
    back.spec.goal = Goal::FastPath;
    observe(&mut back, AttachmentState::Aside);
    for (reason, is_so) in [(reasons::PROGRESSING, false), (reasons::NO_FREE_VF, true)] {
        say(&mut back, reason, "");
        assert_eq!(crate::migration::inputs::is_back(&back), is_so, "{reason}");
    }
}

#[test]
fn a_guest_that_keeps_its_vf_stops_the_migration() {
    let mut scene = Scene::switching();
    // The agent has not seen the new goal: what it says is about the old one.
    scene
        .source
        .as_mut()
        .unwrap()
        .status
        .as_mut()
        .unwrap()
        .observed_generation = Some(1);
    scene.source.as_mut().unwrap().status.as_mut().unwrap().state = AttachmentState::Standby;
    say(
        scene.source.as_mut().unwrap(),
        reasons::GUEST_KEEPS_VF,
        "from another time",
    );
    scene.stays(reasons::MIGRATING);
    say(
        scene.source(AttachmentState::FastPath),
        reasons::GUEST_KEEPS_VF,
        "no driver",
    );
    scene.reach(MigrationPhase::RollingBack);
    assert_eq!(scene.reason(), reasons::GUEST_KEEPS_VF);
    assert_eq!(
        scene.wishes(),
        [
            Some((Goal::FastPath, None)),
            Some((Goal::Detached, Some(MigrationStep::GiveUp)))
        ]
    );
    scene.stays(reasons::GUEST_KEEPS_VF);
    scene.source(AttachmentState::FastPath);
    scene.step();
    assert_eq!(
        (scene.phase(), scene.reason().as_str()),
        (MigrationPhase::Failed, reasons::GUEST_KEEPS_VF)
    );
    assert!(scene.message().contains("no driver"));
}

#[test]
fn a_source_that_does_not_switch_is_given_up() {
    let mut scene = Scene::switching();
    scene.second += 120;
    scene.step();
    assert_eq!(
        (scene.phase(), scene.reason().as_str()),
        (MigrationPhase::RollingBack, reasons::FAILED)
    );
}

#[test]
fn whoever_is_lost_is_named() {
    for (make, pod, reason) in [
        (Scene::preparing as fn() -> Scene, 1, reasons::TARGET_LOST),
        (Scene::preparing, 0, reasons::SOURCE_LOST),
        (Scene::switching, 1, reasons::TARGET_LOST),
        (Scene::switching, 0, reasons::SOURCE_LOST),
        (Scene::transferring, 1, reasons::TARGET_LOST),
        (Scene::transferring, 0, reasons::SOURCE_LOST),
    ] {
        let mut scene = make();
        let mut other = make();
        scene.end_pod(pod);
        scene.step();
        assert_eq!(
            (scene.phase(), scene.reason().as_str()),
            (MigrationPhase::RollingBack, reason)
        );
        // An object that is gone proves nothing about what ran.
        other.pods.remove(pod);
        other.step();
        assert_eq!(
            (other.phase(), other.reason().as_str()),
            (MigrationPhase::RollingBack, reason)
        );
        let proven = |scene: &Scene| !scene.message().contains("does not prove");
        assert_eq!(
            (proven(&scene), proven(&other)),
            (true, pod == 1),
            "{}",
            other.message()
        );
    }
    for state in [MigrationState::Failed, MigrationState::Lost] {
        let mut scene = Scene::transferring();
        report(scene.target(AttachmentState::Pending), state);
        scene.step();
        assert_eq!(
            (scene.phase(), scene.reason().as_str()),
            (MigrationPhase::RollingBack, reasons::TARGET_LOST)
        );
    }
}

#[test]
fn a_transfer_that_fails_brings_the_fast_path_back() {
    let mut scene = Scene::transferring();
    report_kept(scene.source(AttachmentState::Standby));
    scene.reach(MigrationPhase::RollingBack);
    assert_eq!(scene.reason(), reasons::TRANSFER_FAILED);
    assert!(scene.message().contains("no route"), "{}", scene.message());
    let revoke = Some((Goal::Detached, Some(MigrationStep::GiveUp)));
    assert_eq!(
        scene.wishes(),
        [Some((Goal::FastPath, Some(MigrationStep::Cancel))), revoke]
    );
    scene.stays(reasons::TRANSFER_FAILED);
    scene.source(AttachmentState::FastPath);
    scene.step();
    assert_eq!(
        (scene.phase(), scene.reason().as_str()),
        (MigrationPhase::Failed, reasons::TRANSFER_FAILED)
    );
}

#[test]
fn a_vm_that_was_let_go_runs_on_only_by_the_targets_word() {
    for source in [MigrationState::Completed, MigrationState::Failed] {
        let mut scene = Scene::transferring();
        report(scene.source(AttachmentState::Standby), source);
        report(scene.target(AttachmentState::Pending), MigrationState::Lost);
        scene.reach(MigrationPhase::RollingBack);
        assert_eq!(
            scene.wishes()[0],
            Some((Goal::Standby, Some(MigrationStep::Cancel))),
            "first the target gives up, and the status says what follows"
        );
        scene.settle();
        assert_eq!(
            scene.wishes()[0],
            Some((Goal::Standby, Some(MigrationStep::Resume)))
        );
        report(scene.source(AttachmentState::Standby), MigrationState::Cancelled);
        let reason = scene.reason();
        scene.stays(&reason);
        assert_eq!(scene.wishes()[0].unwrap().0, Goal::FastPath);
        scene.source(AttachmentState::FastPath);
        scene.step();
        assert_eq!((scene.phase(), scene.reason()), (MigrationPhase::Failed, reason));
    }
}

#[test]
fn a_vm_that_ended_at_the_target_is_not_brought_back() {
    let mut scene = Scene::transferring();
    report(scene.source(AttachmentState::Standby), MigrationState::Completed);
    report(scene.target(AttachmentState::Pending), MigrationState::Ended);
    scene.end_pod(1);
    scene.reach(MigrationPhase::Completing);
    assert_eq!(scene.wishes()[0].unwrap().0, Goal::Detached);
    scene.source(AttachmentState::Detached);
    scene.step();
    assert_eq!(scene.phase(), MigrationPhase::Succeeded);
}

#[test]
fn a_target_that_cannot_take_the_vm_is_named_at_once() {
    let mut scene = Scene::preparing();
    report(scene.target(AttachmentState::Pending), MigrationState::Failed);
    scene.reach(MigrationPhase::RollingBack);
    assert_eq!(scene.reason(), reasons::TARGET_NOT_READY);
    assert!(scene.message().contains("no route"), "{}", scene.message());
}

#[test]
fn a_cancel_brings_the_fast_path_back() {
    for make in [
        Scene::preparing as fn() -> Scene,
        Scene::switching,
        Scene::transferring,
    ] {
        let mut scene = make();
        scene.delete();
        scene.reach(MigrationPhase::RollingBack);
        if scene.ends().unwrap().begun {
            assert_eq!(
                scene.wishes()[0],
                Some((Goal::Standby, Some(MigrationStep::Cancel)))
            );
            report(scene.source(AttachmentState::Standby), MigrationState::Cancelled);
            scene.stays(reasons::CANCELLED);
        }
        assert_eq!(scene.wishes()[0].unwrap().0, Goal::FastPath);
        scene.source(AttachmentState::FastPath);
        scene.step();
        assert_eq!(
            (scene.phase(), scene.reason().as_str()),
            (MigrationPhase::Cancelled, reasons::CANCELLED)
        );
    }
}

#[test]
fn a_cancel_that_comes_too_late_is_a_success() {
    let mut scene = Scene::transferring();
    report(scene.source(AttachmentState::Standby), MigrationState::Completed);
    scene.delete();
    scene.reach(MigrationPhase::RollingBack);
    report(scene.target(AttachmentState::Standby), MigrationState::Completed);
    scene.reach(MigrationPhase::Completing);
    scene.source(AttachmentState::Detached);
    scene.step();
    assert_eq!(
        (scene.phase(), scene.reason().as_str()),
        (MigrationPhase::Succeeded, reasons::COMPLETED)
    );
    assert_eq!(scene.status_now().failure, None);
}

#[test]
fn a_source_on_standby_for_want_of_a_vf_is_back_too() {
    let mut scene = Scene::switching();
    scene.source(AttachmentState::Standby);
    scene.end_pod(1);
    scene.reach(MigrationPhase::RollingBack);
    say(
        scene.source(AttachmentState::Standby),
        reasons::PROGRESSING,
        "plugging",
    );
    scene.stays(reasons::TARGET_LOST);
    say(
        scene.source(AttachmentState::Standby),
        reasons::NO_FREE_VF,
        "all are held",
    );
    scene.step();
    assert_eq!(scene.phase(), MigrationPhase::Failed);
}

#[test]
fn a_source_that_is_told_to_stay_on_its_standby_is_back_there() {
    let mut scene = Scene::switching();
    scene.source(AttachmentState::Standby);
    scene.end_pod(1);
    scene.reach(MigrationPhase::RollingBack);
    let source = scene.source(AttachmentState::Standby);
    source.spec.aside = Some(hybridnic_api::v1alpha1::Aside::GiveVfBack);
    say(source, reasons::ATTACHED, "it is where it should be");
    scene.step();
    assert_eq!(scene.phase(), MigrationPhase::Failed);
}

#[test]
fn reports_of_another_migration_are_ignored() {
    let mut scene = Scene::preparing();
    let target = scene.target(AttachmentState::Reserved);
    report(target, MigrationState::Listening);
    target.status.as_mut().unwrap().migration.as_mut().unwrap().uid = "before".to_owned();
    scene.stays(reasons::MIGRATING);
}
