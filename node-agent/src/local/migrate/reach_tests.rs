//! What a driver does that has just been started, and has heard nothing of the target; and what is left when an end is lost.

use hybridnic_api::v1alpha1::Decision;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::*;

/// The VM was sent, and the target is not heard since.
async fn sent(reaches: bool) -> Scene {
    let mut scene = Scene::new().await;
    while scene.phase() != MigrationPhase::SwitchingToStandby {
        scene.drive(usize::MAX);
        scene.agents().await;
    }
    scene.target.ended = !reaches;
    scene.reached = false;
    scene.settle().await;
    scene.waits.silent_for = Duration::from_secs(31);
    scene.settle().await;
    assert_eq!(scene.why().0, reasons::TARGET_SILENT);
    scene
}

/// Another driver begins, with a person's word.
fn again(scene: &mut Scene, decision: Decision) {
    scene.flight.session += 1;
    scene.flight.decision = Some(decision);
    (scene.seen, scene.failing_for) = (None, None);
}

fn step_at(host: &Host) -> Option<MigrationStep> {
    let want = &host.state.nics["eth0"].want;
    want.spec.migration.as_ref().map(|order| order.step)
}

#[tokio::test]
async fn a_decision_waits_until_the_target_was_asked() {
    // The VM has come: that counts, and not what was decided without knowing it.
    let mut scene = sent(true).await;
    assert_eq!(scene.vm, Vm::Target);
    again(&mut scene, Decision::ResumeSource);
    for failing in [None, Some(29)] {
        scene.failing_for = failing.map(Duration::from_secs);
        scene.settle().await;
        assert_eq!(scene.flight.status.resuming_since, None);
        assert_eq!(step_at(&scene.source), Some(MigrationStep::Transfer));
    }
    (scene.reached, scene.failing_for) = (true, None);
    scene.settle().await;
    scene.is_at_the_target();

    // It has not come, and never will: the only one is not ended.
    let mut scene = sent(false).await;
    again(&mut scene, Decision::AbandonSource);
    scene.settle().await;
    assert_eq!(scene.phase(), MigrationPhase::Transferring);
    scene.reached = true;
    scene.settle().await;
    scene.is_back_at_the_source(MigrationPhase::Failed);
}

/// As when the driver has died between its own write and that of the order.
#[tokio::test]
async fn that_the_source_was_to_resume_is_no_reason_not_to_ask() {
    let mut scene = sent(true).await;
    again(&mut scene, Decision::ResumeSource);
    scene.flight.status.phase = MigrationPhase::RollingBack;
    scene.flight.status.resuming_since = Some(MicroTime(Timestamp::UNIX_EPOCH));
    scene.settle().await;
    assert_eq!(step_at(&scene.source), Some(MigrationStep::Transfer));
    scene.reached = true;
    scene.settle().await;
    assert_eq!(
        (scene.why().0.as_str(), scene.vm),
        (reasons::NEEDS_DECISION, Vm::Target)
    );
}

#[tokio::test]
async fn a_target_that_is_lost_for_good_is_passed_over_by_a_decision() {
    for is_seen in [false, true] {
        let mut scene = sent(false).await;
        let seen = scene.seen.clone();
        again(&mut scene, Decision::ResumeSource);
        if is_seen {
            // It listened when it was seen last.
            scene.seen = seen;
            scene.settle().await;
            assert_eq!(scene.flight.status.resuming_since, None, "it may come back");
        }
        scene.failing_for = Some(Duration::from_secs(30));
        scene.settle().await;
        assert_eq!(
            (scene.phase(), scene.vm),
            (MigrationPhase::Failed, Vm::Source),
            "{:?}",
            scene.why()
        );
    }
}

/// It was passed over when the source was to resume, and has come back before the source was told.
#[tokio::test]
async fn a_target_that_is_back_gives_up_before_the_source_resumes() {
    let mut scene = sent(false).await;
    again(&mut scene, Decision::ResumeSource);
    scene.flight.status.phase = MigrationPhase::RollingBack;
    scene.flight.status.resuming_since = Some(MicroTime(Timestamp::UNIX_EPOCH));
    let source = scene.source.hand.look().unwrap();
    let tells = |scene: &Scene| {
        let target = scene.target.hand.look().unwrap();
        let both = Both {
            source: &source,
            target: Some(&target),
            failing_for: None,
        };
        assert!(scene.flight.may_go_on(both));
        scene.flight.changes(both)
    };
    let first = tells(&scene);
    assert!(first.iter().all(|(side, _)| *side == Side::Target), "{first:?}");
    assert_eq!(first.len(), 1);
    scene.target.hand.apply(&first[0].1).unwrap();
    let then = tells(&scene);
    assert!(then.iter().any(|(side, _)| *side == Side::Source), "{then:?}");
}

/// Its agent does not take the order up, but could still do so: the order is on its disk.
#[tokio::test]
async fn a_target_that_is_reached_must_have_given_up() {
    let mut scene = sent(false).await;
    again(&mut scene, Decision::ResumeSource);
    scene.flight.status.phase = MigrationPhase::RollingBack;
    let source = scene.source.hand.look().unwrap();
    let mut target = scene.target.hand.look().unwrap();
    let nic = target.nics.get_mut("eth0").unwrap();
    (nic.attached, nic.refusal) = (None, Some("NetworkNotFound".into()));
    let rules = Rules {
        deadlines: Deadlines {
            prepare: Duration::from_mins(1),
            switch: Duration::from_mins(2),
        },
        encryption: Encryption::Required,
    };
    let step = |target: &Seen| {
        let both = Both {
            source: &source,
            target: Some(target),
            failing_for: None,
        };
        let now = Timestamp::UNIX_EPOCH;
        let next = scene.flight.step(both, scene.waits, rules, now, String::new());
        (next.status.resuming_since, scene.flight.changes(both))
    };
    let (resuming, changes) = step(&target);
    assert_eq!(resuming, None);
    let (_, gives_up) = changes
        .into_iter()
        .find(|(side, _)| *side == Side::Target)
        .unwrap();
    scene.target.hand.apply(&gives_up).unwrap();
    let order = scene.target.hand.look().unwrap().nics["eth0"].order.clone();
    target.nics.get_mut("eth0").unwrap().order = order;
    assert!(step(&target).0.is_some());
}

/// It may be another host by the name of the target.
#[tokio::test]
async fn an_end_without_an_order_is_not_told_to_listen_once_the_vm_may_have_left() {
    let scene = sent(true).await;
    for file in scene.files()[1].clone() {
        fs::remove_file(scene.target.dir().join(file)).unwrap();
    }
    let (source, target) = (
        scene.source.hand.look().unwrap(),
        scene.target.hand.look().unwrap(),
    );
    let both = Both {
        source: &source,
        target: Some(&target),
        failing_for: None,
    };
    let changes = scene.flight.changes(both);
    assert!(
        changes.iter().all(|(side, _)| *side == Side::Source),
        "{changes:?}"
    );
}

/// Nobody sees it end, and its NICs never come back.
#[tokio::test]
async fn a_source_that_has_ended_before_the_transfer_is_not_waited_for_for_ever() {
    let mut scene = Scene::new().await;
    scene.target.listens = false;
    scene.settle().await;
    scene.source.ended = true;
    scene.flight.cancelled = true;
    scene.settle().await;
    assert_eq!(scene.phase(), MigrationPhase::RollingBack);
    scene.waits.in_phase_for = Duration::from_mins(2);
    scene.settle().await;
    assert_eq!(scene.phase(), MigrationPhase::Cancelled);
    let here = ["eth0.status.yaml", "eth0.yaml"].map(str::to_owned).to_vec();
    assert_eq!(scene.files(), [here, Vec::new()], "its file counts again");
}

#[tokio::test]
async fn an_agent_that_takes_nothing_in_is_known() {
    let mut scene = Scene::new().await;
    scene.drive(usize::MAX);
    let lags = |scene: &Scene| {
        let source = scene.source.hand.look().unwrap();
        let both = Both {
            source: &source,
            target: None,
            failing_for: None,
        };
        scene.flight.source_lags(both)
    };
    assert!(lags(&scene));
    scene.agents().await;
    assert!(!lags(&scene));
}

/// That nothing is said of a NIC does not mean that it has left, nor that the migration has none.
#[tokio::test]
async fn a_nic_of_which_nothing_is_said_is_waited_for() {
    let mut scene = Scene::new().await;
    while scene.phase() != MigrationPhase::Completing {
        scene.drive(usize::MAX);
        scene.agents().await;
    }
    let path = scene.source.dir().join("eth0.status.yaml");
    let said = fs::read_to_string(&path).unwrap();
    let mut document: serde_json::Value = serde_saphyr::from_str(&said).unwrap();
    document.as_object_mut().unwrap().remove("attached");
    fs::write(&path, serde_saphyr::to_string(&document).unwrap()).unwrap();
    fs::remove_file(scene.target.dir().join("eth0.yaml")).unwrap_or_default();
    scene.drive(1);
    assert_eq!(scene.phase(), MigrationPhase::Completing, "its file is not there");
}

/// The NIC would leave a VM that runs.
#[tokio::test]
async fn the_order_ends_after_the_file_is_there_and_goes_after_the_agent_knows() {
    let mut scene = Scene::new().await;
    while scene.phase() != MigrationPhase::Succeeded {
        scene.drive(usize::MAX);
        scene.agents().await;
    }
    let source = scene.source.hand.look().unwrap();
    let mut target = scene.target.hand.look().unwrap();
    let nic = target.nics.get_mut("eth0").unwrap();
    nic.file = None;
    let (order, _) = nic.order.as_mut().unwrap();
    if order.says == Says::Over {
        // As it was before.
        let mut be = nic.attached.clone().unwrap();
        be.spec.migration = None;
        order.says = Says::Be(Box::new(Be {
            socket: be.socket,
            spec: be.spec,
        }));
    }
    let told = |target: &Seen| {
        let both = Both {
            source: &source,
            target: Some(target),
            failing_for: None,
        };
        let changes = scene.flight.changes(both);
        changes.into_iter().find(|(side, _)| *side == Side::Target)
    };
    let is_file =
        |command: &Option<(Side, Command)>| matches!(command, Some((_, Command::File { text: Some(_), .. })));
    assert!(is_file(&told(&target)));
    let nic = target.nics.get_mut("eth0").unwrap();
    nic.file = Some(scene.flight.nics["eth0"].there.clone());
    assert!(matches!(told(&target), Some((_, Command::Order { .. }))));
    // The agent wants it by its file now, and its journal has the order still.
    let nic = target.nics.get_mut("eth0").unwrap();
    nic.order.as_mut().unwrap().0.says = Says::Over;
    let attached = nic.attached.as_mut().unwrap();
    attached.spec.migration = None;
    attached.generation = Some(77);
    assert_eq!(told(&target), None);
    let attached = target.nics.get_mut("eth0").unwrap().attached.as_mut().unwrap();
    attached.status.as_mut().unwrap().observed_generation = Some(77);
    assert!(matches!(told(&target), Some((_, Command::Forget { .. }))));
}
