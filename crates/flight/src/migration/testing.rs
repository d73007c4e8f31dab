//! A migration for tests, with both controllers that work on it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hybridnic_api::conditions::{self, types};
use hybridnic_api::v1alpha1::{
    AttachmentState, Goal, MigrationOrder, MigrationPhase, MigrationState, MigrationStep, NicAttachment,
    NicAttachmentSpec, QemuMigration, QemuMigrationStatus, VmHybridNic, VmHybridNicStatus,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::encryption::Encryption;
use super::inputs::{Deadlines, Inputs, NicInputs};
use super::phases::Phases;
use super::step::step;
use crate::desired::{self, Place, desired_attachments};
use crate::moves::ends::Ends;
use crate::moves::{Move, qemu};
use crate::pods;
use crate::testing::{attachment, migration, nic, observe, pod, report};

/// A VM with one NIC, pods `a` and `b`, and a migration `m`, with the operator's two controllers and two agents that
/// report what a test says.
#[derive(Clone)]
pub struct Scene {
    pub second: i64,
    /// By how much the operator's wall clock is wrong.
    pub skew: i64,
    pub phases: Arc<Phases>,
    pub start: Instant,
    pub migration: QemuMigration,
    pub nic: VmHybridNic,
    pub pods: Vec<Arc<Pod>>,
    pub source: Option<NicAttachment>,
    pub target: Option<NicAttachment>,
    pub blocked_by: Option<String>,
    pub of_nodes: BTreeSet<IpAddr>,
    pub encryption: Encryption,
    pub refusal: Option<String>,
}

impl Scene {
    pub fn new() -> Self {
        let mut source = attachment("eth0", "a", "n1");
        observe(&mut source, AttachmentState::FastPath);
        let mut nic = nic("eth0", "vm", "net", 1);
        nic.status = Some(VmHybridNicStatus {
            pod: Some(source.spec.pod.clone()),
            ..VmHybridNicStatus::default()
        });
        Self {
            second: 100,
            skew: 0,
            phases: Arc::default(),
            start: Instant::now(),
            migration: migration("m", 100),
            nic,
            pods: vec![
                Arc::new(pod("a", "vm", 1, "Running", "n1")),
                Arc::new(pod("b", "vm", 2, "Running", "n2")),
            ],
            source: Some(source),
            target: None,
            blocked_by: None,
            of_nodes: BTreeSet::new(),
            encryption: Encryption::Off,
            refusal: None,
        }
    }

    pub fn attachments(&self) -> Vec<Arc<NicAttachment>> {
        self.source
            .iter()
            .chain(&self.target)
            .cloned()
            .map(Arc::new)
            .collect()
    }

    /// The move that the migration is, once it has begun.
    pub fn of(&self) -> Option<Move> {
        qemu::begun(&self.migration)
    }

    pub fn ends(&self) -> Option<Ends> {
        Some(Ends::observe(&self.of()?, &self.attachments(), &self.pods))
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_secs(self.second.unsigned_abs())
    }

    /// One reconcile of the migration.
    pub fn step(&mut self) -> Option<Duration> {
        let nic = NicInputs {
            nic: Arc::new(self.nic.clone()),
            attachments: self.attachments(),
            target_refusal: self.refusal.clone(),
        };
        let ends = self.ends();
        let silent = ends.as_ref().is_some_and(Ends::is_silent);
        let waits = self.phases.waits(&self.migration, silent, self.instant());
        let inputs = Inputs {
            now: Timestamp::from_second(self.second + self.skew).unwrap(),
            in_phase_for: waits.in_phase_for,
            silent_for: waits.silent_for,
            migration: &self.migration,
            blocked_by: self.blocked_by.clone(),
            nics: vec![nic],
            pods: &self.pods,
            away: BTreeSet::new(),
            of_nodes: self.of_nodes.clone(),
            ends,
            deadlines: Deadlines {
                prepare: Duration::from_mins(1),
                switch: Duration::from_mins(2),
            },
            encryption: self.encryption,
            decide: "kubectl patch qmig m -n ns, with the decision ResumeSource".to_owned(),
        };
        let step = step(&inputs);
        self.migration.status = Some(step.status);
        // The change of the status comes back at once.
        self.phases.waits(&self.migration, silent, self.instant());
        step.again
    }

    pub fn specs(&self) -> Vec<NicAttachmentSpec> {
        let attachments = self.attachments();
        let (of, ends) = (self.of(), self.ends());
        let place = match (&of, &ends) {
            (Some(of), Some(ends)) if of.is_under_way() => Place::Moving(of, ends),
            _ => {
                let arrived = self.phase() == MigrationPhase::Succeeded;
                let (pod, node) = if arrived { (1, "n2") } else { (0, "n1") };
                Place::At(pods::reference(&self.pods[pod]), node.to_owned())
            }
        };
        let inputs = desired::Inputs {
            nic: &self.nic,
            mac: "02:00:00:00:00:01",
            l2: None,
            interface: None,
            existing: &attachments,
            pods: &[],
            place,
        };
        desired_attachments(&inputs)
    }

    /// One reconcile of the NIC.
    pub fn apply(&mut self) {
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

    /// Both controllers, until nothing changes any more.
    pub fn settle(&mut self) {
        for _ in 0..5 {
            self.step();
            self.apply();
        }
    }

    pub fn phase(&self) -> MigrationPhase {
        self.status_now().phase
    }

    pub fn status_now(&self) -> QemuMigrationStatus {
        self.migration.status.clone().unwrap_or_default()
    }

    pub fn reason(&self) -> String {
        let status = self.status_now();
        conditions::find(&status.conditions, types::SUCCEEDED)
            .map(|c| c.reason.clone())
            .unwrap_or_default()
    }

    pub fn message(&self) -> String {
        let status = self.status_now();
        conditions::find(&status.conditions, types::SUCCEEDED)
            .map(|c| c.message.clone())
            .unwrap_or_default()
    }

    pub fn source(&mut self, state: AttachmentState) -> &mut NicAttachment {
        let source = self.source.as_mut().unwrap();
        observe(source, state);
        source
    }

    pub fn target(&mut self, state: AttachmentState) -> &mut NicAttachment {
        let target = self.target.as_mut().unwrap();
        observe(target, state);
        target
    }

    pub fn delete(&mut self) {
        self.migration.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH));
    }

    pub fn address_of_target(&mut self, ip: &str) {
        let mut pod = self.pods[1].as_ref().clone();
        pod.status.as_mut().unwrap().pod_ip = Some(ip.to_owned());
        self.pods[1] = Arc::new(pod);
    }

    pub fn end_pod(&mut self, index: usize) {
        let mut pod = self.pods[index].as_ref().clone();
        pod.status.as_mut().unwrap().phase = Some("Failed".to_owned());
        self.pods[index] = Arc::new(pod);
    }

    /// Both controllers, until the phase is `phase`.
    #[track_caller]
    pub fn reach(&mut self, phase: MigrationPhase) {
        self.step();
        assert_eq!(self.phase(), phase, "{}: {}", self.reason(), self.message());
        self.apply();
    }

    #[track_caller]
    pub fn stays(&mut self, reason: &str) {
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

    pub fn preparing() -> Self {
        let mut scene = Self::new();
        scene.reach(MigrationPhase::PreparingTarget);
        scene
    }

    /// A migration that must be encrypted.
    pub fn encrypted() -> Self {
        let mut scene = Self::new();
        scene.encryption = Encryption::Required;
        scene
    }

    /// The same, whose source has made its certificate, for a stream that is encrypted.
    pub fn certified(encryption: Encryption) -> Self {
        let mut scene = Self::new();
        scene.encryption = encryption;
        scene.reach(MigrationPhase::PreparingTarget);
        assert!(scene.target.is_none(), "it is told nothing yet");
        report(scene.source(AttachmentState::FastPath), MigrationState::Prepared);
        scene.settle();
        scene
    }

    pub fn switching() -> Self {
        let mut scene = Self::preparing();
        report(scene.target(AttachmentState::Reserved), MigrationState::Listening);
        scene.reach(MigrationPhase::SwitchingToStandby);
        scene
    }

    pub fn transferring() -> Self {
        let mut scene = Self::switching();
        scene.source(AttachmentState::Standby);
        scene.reach(MigrationPhase::Transferring);
        scene
    }

    pub fn wishes(&self) -> [Option<(Goal, Option<MigrationStep>)>; 2] {
        let wish = |end: &Option<NicAttachment>| {
            let order = |order: &MigrationOrder| order.step;
            end.as_ref()
                .map(|end| (end.spec.goal, end.spec.migration.as_ref().map(order)))
        };
        [wish(&self.source), wish(&self.target)]
    }
}
