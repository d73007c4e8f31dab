//! A save or a restore of a VM with one NIC, with the operator's two controllers and an agent that says what a test lets it say.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hybridnic_api::conditions::{self, types};
use hybridnic_api::v1alpha1::{
    MigrationOrder, NicAttachment, QemuRestore, QemuRestoreSpec, VmHybridNic, VmHybridNicStatus,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::*;
use crate::migration::inputs::Deadlines;
use crate::moves::file::{OnFile, begun};
use crate::nic::desired::{self, Place, desired_attachments};
use crate::pods;
use crate::save::inputs::Request;
use crate::testing::{attachment, meta, nic, observe, pod, save, say};

struct Scene<K> {
    object: K,
    set: fn(&mut K, StateFileStatus),
    nic: VmHybridNic,
    pods: Vec<Arc<Pod>>,
    there: Option<NicAttachment>,
    in_phase_for: u64,
    deleted: bool,
}

/// A VM in the pod `a`, and a save.
fn saving(then: AfterSave) -> Scene<hybridnic_api::v1alpha1::QemuSave> {
    let mut there = attachment("eth0", "a", "n1");
    observe(&mut there, AttachmentState::FastPath);
    Scene::new(
        save("m", then),
        |save, status| save.status = Some(status),
        Some(there),
    )
}

/// A pod `a` whose QEMU waits, and a restore.
fn restoring() -> Scene<QemuRestore> {
    let spec = QemuRestoreSpec {
        vm: "vm".to_owned(),
        file: "/saves/vm".to_owned(),
        pod: None,
        deadline_seconds: Some(30),
    };
    let mut restore = QemuRestore::new("m", spec);
    restore.metadata = meta("m", 1);
    Scene::new(restore, |restore, status| restore.status = Some(status), None)
}

impl<K: OnFile> Scene<K> {
    fn new(object: K, set: fn(&mut K, StateFileStatus), there: Option<NicAttachment>) -> Self {
        let mut nic = nic("eth0", "vm", "net", 1);
        nic.status = there.as_ref().map(|there| VmHybridNicStatus {
            pod: Some(there.spec.pod.clone()),
            ..VmHybridNicStatus::default()
        });
        Self {
            object,
            set,
            nic,
            pods: vec![Arc::new(pod("a", "vm", 1, "Running", "n1"))],
            there,
            in_phase_for: 0,
            deleted: false,
        }
    }

    fn attachments(&self) -> Vec<Arc<NicAttachment>> {
        self.there.iter().cloned().map(Arc::new).collect()
    }

    fn ends(&self) -> Option<Ends> {
        Some(Ends::observe(
            &begun(&self.object)?,
            &self.attachments(),
            &self.pods,
        ))
    }

    fn step(&mut self) {
        let mut request = Request::of(&self.object);
        request.deleting = self.deleted;
        let inputs = Inputs {
            now: Timestamp::from_second(100).unwrap(),
            in_phase_for: Duration::from_secs(self.in_phase_for),
            request,
            blocked_by: None,
            nics: vec![NicInputs {
                nic: Arc::new(self.nic.clone()),
                attachments: self.attachments(),
                target_refusal: None,
            }],
            pods: &self.pods,
            away: BTreeSet::new(),
            ends: self.ends(),
            deadlines: Deadlines {
                prepare: Duration::from_mins(1),
                switch: Duration::from_mins(2),
            },
        };
        let status = step(&inputs).status;
        (self.set)(&mut self.object, status);
    }

    fn apply(&mut self) {
        let attachments = self.attachments();
        let (of, ends) = (begun(&self.object), self.ends());
        let (Some(of), Some(ends)) = (of, ends) else {
            return;
        };
        if !of.is_under_way() {
            return;
        }
        self.nic.status.get_or_insert_default().pod = Some(of.whereabouts().pod.clone());
        let specs = desired_attachments(&desired::Inputs {
            nic: &self.nic,
            mac: "02:00:00:00:00:01",
            l2: None,
            interface: None,
            existing: &attachments,
            pods: &self.pods,
            place: Place::Moving(&of, &ends),
        });
        assert_eq!(specs.len(), 1, "it has one end");
        for spec in specs {
            let there = self.there.get_or_insert_with(|| attachment("eth0", "a", "n1"));
            if there.spec != spec {
                there.spec = spec;
                there.metadata.generation = there.metadata.generation.map(|generation| generation + 1);
            }
        }
    }

    fn status_now(&self) -> StateFileStatus {
        self.object.file_status().cloned().unwrap_or_default()
    }

    fn why(&self) -> String {
        let status = self.status_now();
        let condition = conditions::find(&status.conditions, types::SUCCEEDED);
        condition
            .map(|c| format!("{}: {}", c.reason, c.message))
            .unwrap_or_default()
    }

    #[track_caller]
    fn reach(&mut self, phase: MigrationPhase) {
        self.step();
        assert_eq!(self.status_now().phase, phase, "{}", self.why());
        let before = self.status_now();
        self.apply();
        if phase.is_final() {
            self.step();
            assert_eq!(self.status_now(), before, "over is over");
        }
    }

    #[track_caller]
    fn stays(&mut self, reason: &str) {
        let phase = self.status_now().phase;
        self.step();
        assert_eq!(self.status_now().phase, phase, "{}", self.why());
        assert!(self.why().starts_with(reason), "{}", self.why());
        self.apply();
    }

    fn wish(&self) -> (Goal, Option<MigrationStep>) {
        let spec = &self.there.as_ref().unwrap().spec;
        let order = |order: &MigrationOrder| order.step;
        (spec.goal, spec.migration.as_ref().map(order))
    }

    fn at(&mut self, state: AttachmentState) {
        observe(self.there.as_mut().unwrap(), state);
    }

    fn says(&mut self, state: MigrationState) -> &mut MigrationReport {
        let status = self.there.as_mut().unwrap().status.get_or_insert_default();
        status.migration.insert(MigrationReport {
            error: (state == MigrationState::Failed).then(|| "no space".to_owned()),
            ..MigrationReport::new("m-uid", state)
        })
    }

    fn end_pod(&mut self) {
        let mut pod = self.pods[0].as_ref().clone();
        pod.status.as_mut().unwrap().phase = Some("Failed".to_owned());
        self.pods[0] = Arc::new(pod);
    }
}

/// A save of which QEMU writes the file.
fn writing(then: AfterSave) -> Scene<hybridnic_api::v1alpha1::QemuSave> {
    let mut scene = saving(then);
    scene.reach(MigrationPhase::PreparingTarget);
    assert_eq!(scene.wish(), (Goal::FastPath, Some(MigrationStep::Prepare)));
    scene.stays(reasons::MIGRATING);
    scene.at(AttachmentState::FastPath);
    scene.says(MigrationState::Prepared);
    scene.reach(MigrationPhase::SwitchingToStandby);
    assert_eq!(scene.wish(), (Goal::Standby, Some(MigrationStep::Prepare)));
    scene.stays(reasons::MIGRATING);
    scene.at(AttachmentState::Standby);
    scene.reach(MigrationPhase::Transferring);
    assert_eq!(scene.wish(), (Goal::Standby, Some(MigrationStep::Save)));
    scene.at(AttachmentState::Standby);
    scene
}

#[test]
fn a_vm_is_saved_and_its_qemu_is_ended() {
    let mut scene = writing(AfterSave::End);
    let report = scene.says(MigrationState::Active);
    (report.written, report.remaining) = (Some(7), Some(3));
    scene.stays(reasons::MIGRATING);
    assert_eq!(
        (scene.status_now().written, scene.status_now().remaining),
        (Some(7), Some(3))
    );
    let report = scene.says(MigrationState::Completed);
    (report.written, report.downtime_ms) = (Some(4096), Some(12));
    scene.reach(MigrationPhase::Completing);
    assert_eq!(scene.wish(), (Goal::Detached, Some(MigrationStep::Save)));
    scene.stays(reasons::MIGRATING);
    scene.at(AttachmentState::Detached);
    // QEMU lives on, by all that is known.
    scene.stays(reasons::MIGRATING);
    scene.says(MigrationState::Ended);
    scene.reach(MigrationPhase::Succeeded);
    let status = scene.status_now();
    assert_eq!((status.written, status.downtime_ms), (Some(4096), Some(12)));
    assert!(scene.why().contains("the VM is in /saves/vm"), "{}", scene.why());
    let phases: Vec<_> = status.phases.iter().map(|phase| phase.name.as_str()).collect();
    assert_eq!(
        phases,
        [
            "PreparingTarget",
            "SwitchingToStandby",
            "Transferring",
            "Completing"
        ]
    );
}

#[test]
fn a_snapshot_gives_the_vfs_back() {
    let mut scene = writing(AfterSave::Continue);
    scene.says(MigrationState::Completed);
    scene.reach(MigrationPhase::Completing);
    assert_eq!(scene.wish(), (Goal::FastPath, Some(MigrationStep::Save)));
    scene.at(AttachmentState::Standby);
    say(scene.there.as_mut().unwrap(), reasons::PROGRESSING, "");
    scene.stays(reasons::MIGRATING);
    scene.at(AttachmentState::FastPath);
    // It is not known to run on.
    scene.says(MigrationState::Active);
    scene.stays(reasons::MIGRATING);
    scene.says(MigrationState::Completed);
    scene.reach(MigrationPhase::Succeeded);
    assert!(scene.why().contains("it runs on, on n1"), "{}", scene.why());
}

#[test]
fn a_vm_that_something_has_run_on_is_not_ended() {
    let mut scene = writing(AfterSave::End);
    scene.says(MigrationState::Completed);
    scene.reach(MigrationPhase::Completing);
    scene.says(MigrationState::Failed);
    scene.reach(MigrationPhase::RollingBack);
    assert_eq!(scene.wish(), (Goal::Standby, Some(MigrationStep::Cancel)));
    scene.says(MigrationState::Cancelled);
    scene.stays(reasons::TRANSFER_FAILED);
    scene.at(AttachmentState::FastPath);
    scene.reach(MigrationPhase::Failed);
}

#[test]
fn a_vm_whose_save_was_called_off_before_it_was_to_be_ended_is_not_ended() {
    let mut scene = writing(AfterSave::End);
    scene.says(MigrationState::Completed);
    scene.reach(MigrationPhase::Completing);
    scene.says(MigrationState::Cancelled);
    scene.reach(MigrationPhase::RollingBack);
    assert_eq!(scene.wish(), (Goal::FastPath, Some(MigrationStep::Cancel)));
    scene.at(AttachmentState::FastPath);
    scene.reach(MigrationPhase::Failed);
}

#[test]
fn a_pod_that_is_gone_does_not_prove_that_its_file_stays() {
    let mut scene = writing(AfterSave::End);
    scene.says(MigrationState::Completed);
    scene.reach(MigrationPhase::Completing);
    scene.end_pod();
    scene.stays(reasons::MIGRATING);
    // Its agent has given the file up, and says so only now.
    scene.says(MigrationState::Cancelled);
    scene.reach(MigrationPhase::RollingBack);
    scene.reach(MigrationPhase::Failed);
}

#[test]
fn a_deadline_that_comes_too_late_leaves_no_vm_paused() {
    let mut scene = writing(AfterSave::Pause);
    scene.object.spec.deadline_seconds = Some(5);
    scene.in_phase_for = 5;
    scene.reach(MigrationPhase::RollingBack);
    scene.says(MigrationState::Completed);
    scene.reach(MigrationPhase::Completing);
    scene.stays(reasons::PAUSED);
    assert_eq!(scene.wish(), (Goal::Standby, Some(MigrationStep::Save)));
    scene.object.spec.then = AfterSave::Continue;
    scene.stays(reasons::MIGRATING);
    assert_eq!(scene.wish(), (Goal::FastPath, Some(MigrationStep::Save)));
    scene.at(AttachmentState::FastPath);
    scene.reach(MigrationPhase::Succeeded);
}

#[test]
fn nobody_is_told_to_take_a_snapshot_of_the_disks_of_a_vm_that_runs() {
    let mut scene = writing(AfterSave::Pause);
    scene.says(MigrationState::Completed);
    scene.stays(reasons::PAUSED);
    scene.says(MigrationState::Completed).error = Some("something else has run the VM on".to_owned());
    scene.stays(reasons::VM_RUNS);
    let why = scene.why();
    assert!(
        why.contains("is not paused: something else has run the VM on"),
        "{why}"
    );
    assert!(!why.contains("take the snapshot"), "{why}");
    scene.object.spec.then = AfterSave::Continue;
    scene.says(MigrationState::Completed);
    scene.reach(MigrationPhase::Completing);
    scene.at(AttachmentState::FastPath);
    scene.reach(MigrationPhase::Succeeded);
    assert!(scene.why().contains("the VM as it was is in"), "{}", scene.why());
}

#[test]
fn a_paused_vm_that_ends_is_in_its_file() {
    for gone in [false, true] {
        let mut scene = writing(AfterSave::Pause);
        scene.says(MigrationState::Completed);
        scene.stays(reasons::PAUSED);
        if gone {
            scene.end_pod();
        } else {
            scene.says(MigrationState::Ended);
        }
        scene.reach(MigrationPhase::Completing);
        scene.reach(MigrationPhase::Succeeded);
        assert!(scene.why().contains("has ended since"), "{}", scene.why());
    }
}

#[test]
fn a_vm_stays_paused_until_it_is_said_what_becomes_of_it() {
    let mut scene = writing(AfterSave::Pause);
    scene.says(MigrationState::Completed);
    scene.stays(reasons::PAUSED);
    assert_eq!(scene.wish(), (Goal::Standby, Some(MigrationStep::Save)));
    scene.object.spec.then = AfterSave::End;
    scene.reach(MigrationPhase::Completing);
    assert_eq!(scene.wish(), (Goal::Detached, Some(MigrationStep::Save)));

    // Nobody is left to say it: it runs on, and the file is good.
    let mut scene = writing(AfterSave::Pause);
    scene.says(MigrationState::Completed);
    scene.stays(reasons::PAUSED);
    scene.object.metadata.deletion_timestamp = scene.object.metadata.creation_timestamp.clone();
    scene.reach(MigrationPhase::Completing);
    assert_eq!(scene.wish(), (Goal::FastPath, Some(MigrationStep::Save)));
    let order = scene.there.as_ref().unwrap().spec.migration.as_ref().unwrap();
    assert_eq!(order.file.as_ref().unwrap().then, Some(AfterSave::Continue));
}

#[test]
fn a_file_that_cannot_be_written_costs_the_vm_nothing() {
    let mut scene = saving(AfterSave::End);
    scene.reach(MigrationPhase::PreparingTarget);
    scene.at(AttachmentState::FastPath);
    let report = scene.says(MigrationState::Prepared);
    (report.refused, report.error) = (true, Some("there is a file /saves/vm already".to_owned()));
    scene.reach(MigrationPhase::RollingBack);
    assert!(
        scene.why().starts_with("FileRefused: there is a file"),
        "{}",
        scene.why()
    );
    assert_eq!(
        scene.wish(),
        (Goal::FastPath, Some(MigrationStep::Cancel)),
        "its VF stays"
    );
    scene.at(AttachmentState::FastPath);
    scene.says(MigrationState::Cancelled);
    scene.reach(MigrationPhase::Failed);
}

#[test]
fn a_save_that_is_called_off_or_late_or_fails_goes_back() {
    type Change = fn(&mut Scene<hybridnic_api::v1alpha1::QemuSave>);
    let cases: [(Change, &str, MigrationPhase); 3] = [
        (
            |scene| scene.deleted = true,
            reasons::CANCELLED,
            MigrationPhase::Cancelled,
        ),
        (
            |scene| {
                scene.object.spec.deadline_seconds = Some(5);
                scene.in_phase_for = 5;
            },
            reasons::DEADLINE_EXCEEDED,
            MigrationPhase::Failed,
        ),
        (
            |scene| {
                scene.says(MigrationState::Failed);
            },
            reasons::TRANSFER_FAILED,
            MigrationPhase::Failed,
        ),
    ];
    for (change, reason, last) in cases {
        let mut scene = writing(AfterSave::End);
        scene.says(MigrationState::Active);
        change(&mut scene);
        scene.reach(MigrationPhase::RollingBack);
        assert_eq!(scene.wish(), (Goal::Standby, Some(MigrationStep::Cancel)));
        scene.stays(reason);
        scene.says(MigrationState::Cancelled);
        // The NIC's controller has not told it yet.
        scene.stays(reason);
        assert_eq!(scene.wish(), (Goal::FastPath, Some(MigrationStep::Cancel)));
        scene.at(AttachmentState::FastPath);
        scene.reach(last);
        assert!(scene.why().starts_with(reason), "{}", scene.why());
    }
}

#[test]
fn a_cancel_that_comes_too_late_does_not_lose_the_only_vm() {
    let mut scene = writing(AfterSave::End);
    scene.deleted = true;
    scene.reach(MigrationPhase::RollingBack);
    scene.says(MigrationState::Completed);
    scene.reach(MigrationPhase::Completing);
    assert_eq!(scene.wish(), (Goal::Detached, Some(MigrationStep::Save)));
    scene.at(AttachmentState::Detached);
    scene.says(MigrationState::Ended);
    scene.reach(MigrationPhase::Succeeded);
}

#[test]
fn a_vm_that_is_lost_meanwhile_is_lost() {
    let mut scene = writing(AfterSave::End);
    scene.end_pod();
    scene.reach(MigrationPhase::RollingBack);
    assert!(scene.why().starts_with(reasons::SOURCE_LOST), "{}", scene.why());
    scene.reach(MigrationPhase::Failed);
    // After the file was whole it is not.
    let mut scene = writing(AfterSave::End);
    scene.says(MigrationState::Completed);
    scene.end_pod();
    scene.reach(MigrationPhase::Completing);
    scene.at(AttachmentState::Detached);
    scene.reach(MigrationPhase::Succeeded);
}

#[path = "step_restore_tests.rs"]
mod restore;
