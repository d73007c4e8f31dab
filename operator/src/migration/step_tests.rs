use hybridnic_api::v1alpha1::{MigrationOrder, NicAttachmentSpec, VmHybridNicStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;

use super::*;
use crate::nic::desired::{Place, Wanted, desired_attachments};
use crate::testing::{attachment, migration, nic, observe, pod, report, say};

/// A VM with one NIC, pods `a` and `b`, and a migration `m`, with the operator's two controllers and two agents that say
/// what a test lets them say.
struct Scene {
    second: i64,
    migration: QemuMigration,
    nic: VmHybridNic,
    pods: Vec<Arc<Pod>>,
    source: Option<NicAttachment>,
    target: Option<NicAttachment>,
    blocked_by: Option<String>,
    refusal: Option<String>,
}

impl Scene {
    fn new() -> Self {
        let mut source = attachment("eth0", "a", "n1");
        observe(&mut source, AttachmentState::FastPath);
        let mut nic = nic("eth0", "vm", "net", 1);
        nic.status = Some(VmHybridNicStatus {
            pod: Some(source.spec.pod.clone()),
            ..VmHybridNicStatus::default()
        });
        Self {
            second: 100,
            migration: migration("m", 100),
            nic,
            pods: vec![
                Arc::new(pod("a", "vm", 1, "Running", "n1")),
                Arc::new(pod("b", "vm", 2, "Running", "n2")),
            ],
            source: Some(source),
            target: None,
            blocked_by: None,
            refusal: None,
        }
    }

    fn attachments(&self) -> Vec<Arc<NicAttachment>> {
        self.source
            .iter()
            .chain(&self.target)
            .cloned()
            .map(Arc::new)
            .collect()
    }

    fn ends(&self) -> Option<Ends> {
        Ends::observe(&self.migration, &self.attachments(), &self.pods)
    }

    /// One reconcile of the migration.
    fn step(&mut self) -> Option<Duration> {
        let nic = NicView {
            nic: Arc::new(self.nic.clone()),
            attachments: self.attachments(),
            target_refusal: self.refusal.clone(),
        };
        let view = View {
            now: Timestamp::from_second(self.second).unwrap(),
            migration: &self.migration,
            blocked_by: self.blocked_by.clone(),
            nics: vec![nic],
            pods: &self.pods,
            ends: self.ends(),
            deadlines: Deadlines {
                prepare: Duration::from_secs(60),
                switch: Duration::from_secs(120),
            },
        };
        let step = step(&view);
        self.migration.status = Some(step.status);
        step.again
    }

    fn specs(&self) -> Vec<NicAttachmentSpec> {
        let attachments = self.attachments();
        let (phase, ends) = (self.phase(), self.ends());
        let place = match &ends {
            Some(ends) if !phase.is_final() => Place::Moving(&self.migration, ends),
            _ => {
                let arrived = phase == MigrationPhase::Succeeded;
                let (pod, node) = if arrived { (1, "n2") } else { (0, "n1") };
                Place::At(pods::reference(&self.pods[pod]), node.to_owned())
            }
        };
        let wanted = Wanted {
            nic: &self.nic,
            mac: "02:00:00:00:00:01",
            l2: None,
            existing: &attachments,
            place,
        };
        desired_attachments(&wanted)
    }

    /// One reconcile of the NIC.
    fn apply(&mut self) {
        for spec in self.specs() {
            let slot = if spec.pod.uid == "a-uid" {
                &mut self.source
            } else {
                &mut self.target
            };
            match slot {
                Some(there) if there.spec == spec => {}
                Some(there) => {
                    there.spec = spec;
                    there.metadata.generation = there.metadata.generation.map(|generation| generation + 1);
                }
                None if spec.goal == Goal::Detached => {}
                None => {
                    let mut new = attachment("eth0", &spec.pod.name, &spec.node_name);
                    new.spec = spec;
                    *slot = Some(new);
                }
            }
        }
        if self.phase() == MigrationPhase::Completing {
            self.nic.status.get_or_insert_default().pod =
                self.target.as_ref().map(|target| target.spec.pod.clone());
        }
    }

    fn phase(&self) -> MigrationPhase {
        self.status().phase
    }

    fn status(&self) -> QemuMigrationStatus {
        self.migration.status.clone().unwrap_or_default()
    }

    fn reason(&self) -> String {
        let status = self.status();
        conditions::find(&status.conditions, types::SUCCEEDED)
            .map(|c| c.reason.clone())
            .unwrap_or_default()
    }

    fn message(&self) -> String {
        let status = self.status();
        conditions::find(&status.conditions, types::SUCCEEDED)
            .map(|c| c.message.clone())
            .unwrap_or_default()
    }

    fn source(&mut self, state: AttachmentState) -> &mut NicAttachment {
        let source = self.source.as_mut().unwrap();
        observe(source, state);
        source
    }

    fn target(&mut self, state: AttachmentState) -> &mut NicAttachment {
        let target = self.target.as_mut().unwrap();
        observe(target, state);
        target
    }

    fn delete(&mut self) {
        self.migration.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    }

    fn end_pod(&mut self, index: usize) {
        let mut pod = self.pods[index].as_ref().clone();
        pod.status.as_mut().unwrap().phase = Some("Failed".to_owned());
        self.pods[index] = Arc::new(pod);
    }

    /// Both controllers, until the phase is `phase`.
    #[track_caller]
    fn reach(&mut self, phase: MigrationPhase) {
        self.step();
        assert_eq!(self.phase(), phase, "{}: {}", self.reason(), self.message());
        self.apply();
    }

    #[track_caller]
    fn stays(&mut self, reason: &str) {
        let phase = self.phase();
        self.step();
        assert_eq!(
            (self.phase(), self.reason().as_str()),
            (phase, reason),
            "{}",
            self.message()
        );
        if phase != MigrationPhase::Pending {
            self.apply();
        }
    }

    fn preparing() -> Self {
        let mut scene = Self::new();
        scene.reach(MigrationPhase::PreparingTarget);
        scene
    }

    fn switching() -> Self {
        let mut scene = Self::preparing();
        report(scene.target(AttachmentState::Reserved), MigrationState::Listening);
        scene.reach(MigrationPhase::SwitchingToStandby);
        scene
    }

    fn transferring() -> Self {
        let mut scene = Self::switching();
        scene.source(AttachmentState::Standby);
        scene.reach(MigrationPhase::Transferring);
        scene
    }

    fn wishes(&self) -> [Option<(Goal, Option<MigrationStep>)>; 2] {
        let wish = |end: &Option<NicAttachment>| {
            let order = |order: &MigrationOrder| order.step;
            end.as_ref()
                .map(|end| (end.spec.goal, end.spec.migration.as_ref().map(order)))
        };
        [wish(&self.source), wish(&self.target)]
    }
}

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
    let status = scene.status();
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
    assert_eq!(scene.status(), status, "over is over");
}

#[test]
fn what_keeps_a_migration_from_beginning() {
    type Change = fn(&mut Scene);
    let cases: [(&str, Change); 6] = [
        (reasons::NO_TARGET_POD, |scene| {
            scene.pods.pop();
        }),
        (reasons::NO_TARGET_POD, |scene| {
            scene.migration.spec.target_pod = Some("a".to_owned())
        }),
        (reasons::NO_TARGET_POD, |scene| {
            scene.migration.spec.target_pod = Some("x".to_owned())
        }),
        (reasons::MIGRATION_BUSY, |scene| {
            scene.blocked_by = Some("other".to_owned())
        }),
        (reasons::POD_NOT_FOUND, |scene| scene.pods.clear()),
        (reasons::AGENT_PENDING, |scene| scene.source = None),
    ];
    for (reason, change) in cases {
        let mut scene = Scene::new();
        change(&mut scene);
        scene.stays(reason);
        let before = scene.status();
        scene.second += 10;
        scene.stays(reason);
        assert_eq!(scene.status(), before, "{reason}: waiting costs no writes");
        scene.delete();
        scene.step();
        assert_eq!(
            (scene.phase(), scene.reason().as_str()),
            (MigrationPhase::Cancelled, reasons::CANCELLED)
        );
    }
}

#[test]
fn a_vm_without_nics_fails() {
    let mut scene = Scene::new();
    scene.nic.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    scene.step();
    assert_eq!(
        (scene.phase(), scene.reason().as_str()),
        (MigrationPhase::Failed, reasons::NO_NICS)
    );
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
    scene.step();
    assert_eq!(
        (scene.phase(), scene.reason().as_str()),
        (MigrationPhase::RollingBack, reasons::TARGET_NO_FREE_VF)
    );
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
            Some((Goal::Detached, Some(MigrationStep::Listen)))
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
        scene.end_pod(pod);
        scene.step();
        assert_eq!(
            (scene.phase(), scene.reason().as_str()),
            (MigrationPhase::RollingBack, reason)
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
    report(scene.source(AttachmentState::Standby), MigrationState::Failed);
    scene.reach(MigrationPhase::RollingBack);
    assert_eq!(scene.reason(), reasons::TRANSFER_FAILED);
    assert!(scene.message().contains("no route"), "{}", scene.message());
    let revoke = Some((Goal::Detached, Some(MigrationStep::Listen)));
    assert_eq!(
        scene.wishes(),
        [Some((Goal::Standby, Some(MigrationStep::Cancel))), revoke]
    );
    scene.target(AttachmentState::Detached);
    scene.apply();
    assert_eq!(
        scene.wishes(),
        [Some((Goal::FastPath, Some(MigrationStep::Resume))), revoke]
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
fn a_vm_that_was_handed_over_to_a_dead_target_runs_on() {
    let mut scene = Scene::transferring();
    report(scene.source(AttachmentState::Standby), MigrationState::Completed);
    report(scene.target(AttachmentState::Pending), MigrationState::Lost);
    scene.reach(MigrationPhase::RollingBack);
    assert_eq!(
        scene.wishes()[0],
        Some((Goal::Standby, Some(MigrationStep::Resume)))
    );
    report(scene.source(AttachmentState::Standby), MigrationState::Cancelled);
    scene.stays(reasons::TARGET_LOST);
    assert_eq!(scene.wishes()[0].unwrap().0, Goal::FastPath);
    scene.source(AttachmentState::FastPath);
    scene.step();
    assert_eq!(
        (scene.phase(), scene.reason().as_str()),
        (MigrationPhase::Failed, reasons::TARGET_LOST)
    );
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
        if handover::transfer_ordered(&scene.status()) {
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
    assert_eq!(scene.status().failure, None);
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
fn reports_of_another_migration_are_ignored() {
    let mut scene = Scene::preparing();
    let target = scene.target(AttachmentState::Reserved);
    report(target, MigrationState::Listening);
    target.status.as_mut().unwrap().migration.as_mut().unwrap().uid = "before".to_owned();
    scene.stays(reasons::MIGRATING);
}

#[path = "simulation_tests.rs"]
mod simulation;
