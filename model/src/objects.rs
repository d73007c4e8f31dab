//! The objects of the API that the states of the world name by numbers: real ones, without what no decision may look at, that is
//! times, messages and counters.

use std::collections::HashMap;
use std::hash::Hash;
use std::marker::PhantomData;
use std::sync::{Mutex, OnceLock, PoisonError, RwLock};

use foldhash::fast::FixedState;
use hybridnic_api::conditions::{NewCondition, reasons, types};
use hybridnic_api::names::{ATTACHMENT_FINALIZER, VM_LABEL, attachment_name};
use hybridnic_api::v1alpha1::{
    Aside, AttachmentState, Decision, Goal, MigrationReport, NicAttachment, NicAttachmentSpec,
    NicAttachmentStatus, NoFreeVf, ObjectRef, Path, Placement, QemuMigration, QemuMigrationSpec,
    QemuMigrationStatus, QemuVm, StateFileStatus, VmHybridNic, VmHybridNicSpec, VmHybridNicStatus,
    WantedPath,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use kube::api::ObjectMeta;
use serde::Serialize;

use crate::search::fingerprint;
use crate::state::{self, Choice, Id, NICS};

/// The migration's uid.
pub const MIGRATION: &str = "m-uid";
/// The uids of what moves a VM: a migration or a save, and a restore.
pub const MOVE: [&str; 2] = [MIGRATION, "r-uid"];
/// The NICs' names.
pub const NIC: [&str; NICS] = ["eth0", "eth1"];
/// The nodes' names.
pub const NODE: [&str; 2] = ["n1", "n2"];
/// The pods' names.
pub const POD: [&str; 2] = ["a", "b"];
/// What stands for a NIC's own name in what is kept.
const ANY: &str = "any";

/// The time at which everything happens.
pub fn now() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

/// Things with a number each, the same for equal ones. A thing stays where it is, so it is read without a lock.
pub struct Numbered<T> {
    by_id: Box<[OnceLock<Box<T>>]>,
    ids: Mutex<HashMap<String, Id>>,
}

impl<T> Default for Numbered<T> {
    fn default() -> Self {
        Self {
            by_id: (0..Id::MAX).map(|_| OnceLock::new()).collect(),
            ids: Mutex::default(),
        }
    }
}

impl<T: Serialize> Numbered<T> {
    /// The number of a thing; never 0.
    ///
    /// # Panics
    ///
    /// If there are more things than numbers: two with one number would be a search of something else.
    pub fn id(&self, thing: T) -> Id {
        let text = serde_json::to_string(&thing).unwrap_or_default();
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = ids.get(&text) {
            return *id;
        }
        let index = ids.len();
        assert!(index < self.by_id.len(), "there are more objects than numbers");
        self.by_id[index].get_or_init(|| Box::new(thing));
        let id = Id::try_from(index + 1).unwrap_or(Id::MAX);
        ids.insert(text, id);
        id
    }

    /// The thing of a number; none for 0.
    pub fn get(&self, id: Id) -> Option<&T> {
        let index = usize::from(id).checked_sub(1)?;
        self.by_id.get(index)?.get().map(Box::as_ref)
    }
}

/// What a pure function has answered, by what it was asked. A question is known by its [`fingerprint`], as a state is.
pub struct Memo<K, V> {
    known: [RwLock<HashMap<u64, V, FixedState>>; SHARDS],
    asked: PhantomData<fn(K)>,
}

/// Threads that ask different questions do not wait for each other.
const SHARDS: usize = 64;

impl<K, V> Default for Memo<K, V> {
    fn default() -> Self {
        Self {
            known: std::array::from_fn(|_| RwLock::default()),
            asked: PhantomData,
        }
    }
}

impl<K: Hash, V: Clone> Memo<K, V> {
    /// The answer, which is worked out once.
    pub fn get(&self, key: &K, answer: impl FnOnce() -> V) -> V {
        let print = fingerprint(key);
        let shard = usize::try_from(print >> 32).unwrap_or_default() % SHARDS;
        let shard = &self.known[shard];
        if let Some(known) = shard.read().unwrap_or_else(PoisonError::into_inner).get(&print) {
            return known.clone();
        }
        let answer = answer();
        let mut known = shard.write().unwrap_or_else(PoisonError::into_inner);
        known.insert(print, answer.clone());
        answer
    }
}

/// All objects that have a number.
#[derive(Default)]
pub struct Objects {
    /// Migrations' statuses.
    pub migrations: Numbered<QemuMigrationStatus>,
    /// Attachments' specs, without their NIC's name.
    pub specs: Numbered<NicAttachmentSpec>,
    /// Attachments' statuses.
    pub statuses: Numbered<NicAttachmentStatus>,
    /// Statuses of saves and restores.
    pub files: Numbered<StateFileStatus>,
    /// What agents say of a VM's migration.
    pub reports: Numbered<MigrationReport>,
}

impl Objects {
    /// The number of a spec, which is the same for both NICs.
    pub fn spec_id(&self, mut spec: NicAttachmentSpec) -> Id {
        spec.nic = reference(ANY);
        spec.mac.clear();
        if let Some(Placement::Interface(name)) = &mut spec.placement {
            ANY.clone_into(name);
        }
        self.specs.id(spec)
    }

    /// A NIC's spec.
    pub fn spec(&self, n: usize, id: Id) -> Option<NicAttachmentSpec> {
        let mut spec = self.specs.get(id)?.clone();
        spec.nic = reference(NIC[n]);
        spec.mac = mac(n);
        if let Some(Placement::Interface(name)) = &mut spec.placement {
            NIC[n].clone_into(name);
        }
        Some(spec)
    }

    /// The number of a status. `path`: whether a decision looks at which device carries the traffic; otherwise it is only shown to
    /// people.
    pub fn status_id(&self, mut status: NicAttachmentStatus, path: bool) -> Id {
        status.observed_generation = None;
        status.timeline.clear();
        if !path {
            status.path = Path::None;
        }
        let matters = |c: &Condition| {
            c.type_ == types::READY || [reasons::NO_FREE_VF, reasons::PF_DRAINED].contains(&c.reason.as_str())
        };
        status.conditions.retain(matters);
        plain(&mut status.conditions);
        self.statuses.id(status)
    }

    /// The number of a migration's status.
    pub fn migration_id(&self, mut status: QemuMigrationStatus) -> Id {
        plain(&mut status.conditions);
        if let Some(failure) = &mut status.failure {
            failure.message.clear();
        }
        for phase in &mut status.phases {
            (phase.started_at, phase.ms) = (MicroTime(now()), None);
        }
        let since = [&mut status.undecided_since, &mut status.resuming_since];
        for time in [&mut status.started_at, &mut status.finished_at]
            .into_iter()
            .chain(since)
            .flatten()
        {
            *time = MicroTime(now());
        }
        (status.total_ms, status.downtime_ms) = (None, None);
        self.migrations.id(status)
    }

    /// The number of the status of a save or a restore.
    pub fn file_id(&self, mut status: StateFileStatus) -> Id {
        plain(&mut status.conditions);
        if let Some(failure) = &mut status.failure {
            failure.message.clear();
        }
        for phase in &mut status.phases {
            (phase.started_at, phase.ms) = (MicroTime(now()), None);
        }
        for time in [&mut status.started_at, &mut status.finished_at]
            .into_iter()
            .flatten()
        {
            *time = MicroTime(now());
        }
        (status.total_ms, status.downtime_ms) = (None, None);
        (status.written, status.remaining) = (None, None);
        self.files.id(status)
    }

    /// The number of a report.
    pub fn report_id(&self, report: Option<MigrationReport>) -> Id {
        let Some(mut report) = report else { return 0 };
        (report.total_ms, report.downtime_ms) = (None, None);
        report.error = None;
        self.reports.id(report)
    }

    /// An attachment to this pod as the operator has it.
    pub fn attachment(&self, pod: &str, n: usize, attachment: &state::Attachment) -> Option<NicAttachment> {
        let spec = self.spec(n, attachment.spec)?;
        let generation = |current| Some(if current { 2 } else { 1 });
        let status = self
            .statuses
            .get(attachment.status)
            .map(|status| NicAttachmentStatus {
                observed_generation: generation(attachment.current),
                ..status.clone()
            });
        let mut metadata = meta(&attachment_name(NIC[n], &uid(pod)), 1);
        let finalizer = attachment.finalizer.then(|| ATTACHMENT_FINALIZER.to_owned());
        metadata.finalizers = finalizer.map(|finalizer| vec![finalizer]);
        metadata.generation = generation(true);
        metadata.deletion_timestamp = attachment.deleting.then(|| Time(now()));
        Some(NicAttachment {
            metadata,
            spec,
            status,
        })
    }

    /// The migration as the operator has it.
    pub fn migration(&self, api: &state::Api) -> Option<QemuMigration> {
        let status = self.migrations.get(api.migration)?;
        let mut metadata = meta("m", 100);
        metadata.deletion_timestamp = api.deleting.then(|| Time(now()));
        let spec = QemuMigrationSpec {
            vm: "vm".to_owned(),
            target_pod: None,
            decision: api.decision.map(|choice| match choice {
                Choice::ResumeSource => Decision::ResumeSource,
                Choice::AbandonSource => Decision::AbandonSource,
            }),
        };
        Some(QemuMigration {
            metadata,
            spec,
            status: Some(status.clone()),
        })
    }
}

impl Objects {
    /// The same spec with the goal to leave.
    pub(crate) fn detached(&self, spec: Id) -> Id {
        match self.specs.get(spec) {
            Some(found) if found.goal != Goal::Detached => {
                let spec = NicAttachmentSpec {
                    goal: Goal::Detached,
                    ..found.clone()
                };
                self.specs.id(spec)
            }
            _ => spec,
        }
    }

    /// A spec's goal.
    pub(crate) fn goal(&self, spec: Id) -> Goal {
        self.specs.get(spec).map(|spec| spec.goal).unwrap_or_default()
    }

    /// What a spec says of the NIC's standby.
    pub(crate) fn aside(&self, spec: Id) -> Option<Aside> {
        self.specs.get(spec)?.aside
    }

    /// The number of what a status says of the VM's migration.
    pub(crate) fn said(&self, status: Id) -> Id {
        let status = self.statuses.get(status);
        self.report_id(status.and_then(|status| status.migration.clone()))
    }

    /// Whether a report is the last that QEMU makes by itself.
    pub(crate) fn is_final(&self, report: Id) -> bool {
        let report = self.reports.get(report);
        report.is_some_and(|report| report.state.is_final())
    }

    /// Whether a status says that nothing is left.
    pub(crate) fn is_detached(&self, status: Id) -> bool {
        let status = self.statuses.get(status);
        status.is_some_and(|status| status.state == AttachmentState::Detached)
    }
}

fn plain(conditions: &mut [Condition]) {
    for condition in conditions {
        condition.message.clear();
        condition.last_transition_time = Time(now());
        condition.observed_generation = None;
    }
}

/// The uid of what has this name.
pub fn uid(name: &str) -> String {
    format!("{name}-uid")
}

/// Names what has this name.
pub fn reference(name: &str) -> ObjectRef {
    ObjectRef {
        name: name.to_owned(),
        uid: uid(name),
    }
}

/// The metadata of what has this name, and was made at this second.
pub fn meta(name: &str, second: i64) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some("ns".to_owned()),
        uid: Some(uid(name)),
        generation: Some(1),
        resource_version: Some("1".to_owned()),
        creation_timestamp: Some(Time(now() + jiff::SignedDuration::from_secs(second))),
        ..ObjectMeta::default()
    }
}

/// The pod of an end.
pub fn pod(end: usize, state: state::Pod) -> Option<Pod> {
    let phase = match state {
        state::Pod::Running => "Running",
        state::Pod::Ended => "Failed",
        state::Pod::Gone => return None,
    };
    let mut metadata = meta(POD[end], if end == state::SOURCE { 1 } else { 2 });
    metadata.labels = Some([(VM_LABEL.to_owned(), "vm".to_owned())].into());
    Some(Pod {
        metadata,
        spec: Some(PodSpec {
            node_name: Some(NODE[end].to_owned()),
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            phase: Some(phase.to_owned()),
            pod_ip: Some("10.0.0.1".to_owned()),
            ..PodStatus::default()
        }),
    })
}

/// The end of a pod's uid.
pub fn end_of(pod_uid: &str) -> Option<usize> {
    POD.iter().position(|name| uid(name) == pod_uid)
}

/// A NIC whose status says in which pod the VM is, and which is told to stay on its standby, or not.
pub fn nic(n: usize, pod: Option<u8>, aside: Option<Aside>) -> VmHybridNic {
    let mut accepted = Vec::new();
    hybridnic_api::conditions::set(
        &mut accepted,
        Some(1),
        now(),
        NewCondition::yes(types::ACCEPTED, reasons::ACCEPTED, ""),
    );
    VmHybridNic {
        metadata: meta(NIC[n], 1),
        spec: VmHybridNicSpec {
            network: "net".to_owned(),
            vm: hybridnic_api::v1alpha1::Vm {
                qemu: Some(QemuVm {
                    name: "vm".to_owned(),
                }),
                kubevirt: None,
            },
            mac: None,
            standby: hybridnic_api::v1alpha1::StandbyKind::Macvtap,
            no_free_vf: NoFreeVf::Standby,
            path: aside.map_or(WantedPath::Auto, |_| WantedPath::Standby),
            keep_vf: aside == Some(Aside::KeepVf),
            pairing: hybridnic_api::v1alpha1::Pairing::NetFailover,
            port_instance_id: None,
        },
        status: Some(VmHybridNicStatus {
            pod: pod.map(|end| reference(POD[usize::from(end)])),
            mac: Some(mac(n)),
            conditions: accepted,
            ..VmHybridNicStatus::default()
        }),
    }
}

/// A NIC's address.
pub fn mac(n: usize) -> String {
    format!("02:00:00:00:00:0{n}")
}
