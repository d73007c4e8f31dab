//! Objects for unit tests.

use hybridnic_api::conditions::{self, NewCondition, types};
use hybridnic_api::names::VM_LABEL;
use hybridnic_api::names::attachment_name;
use hybridnic_api::v1alpha1::{
    AfterSave, AttachedVm, AttachmentState, Goal, L2Settings, MigrationEnd, MigrationReport, MigrationState,
    NicAttachment, NicAttachmentSpec, NicAttachmentStatus, NoFreeVf, ObjectRef, Pairing, Path, QemuMigration,
    QemuMigrationSpec, QemuSave, QemuSaveSpec, QemuVm, StandbyKind, Vm, VmHybridNic, VmHybridNicSpec,
    WantedPath,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use crate::moves::{Driver, Move, Orders, Stage, Times};

/// Metadata in namespace `ns`, made at a second, with a uid that sorts as the name.
pub fn meta(name: &str, second: i64) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some("ns".to_owned()),
        uid: Some(format!("{name}-uid")),
        generation: Some(1),
        resource_version: Some("1".to_owned()),
        creation_timestamp: Some(Time(Timestamp::from_second(second).unwrap())),
        ..ObjectMeta::default()
    }
}

/// A NIC of the VM `vm`, as it was just created.
pub fn nic(name: &str, vm: &str, network: &str, second: i64) -> VmHybridNic {
    let spec = VmHybridNicSpec {
        network: network.to_owned(),
        vm: Vm {
            qemu: Some(QemuVm { name: vm.to_owned() }),
            kubevirt: None,
        },
        mac: None,
        standby: StandbyKind::Macvtap,
        no_free_vf: NoFreeVf::Standby,
        path: WantedPath::Auto,
        keep_vf: false,
        pairing: Pairing::NetFailover,
        port_instance_id: None,
    };
    VmHybridNic {
        metadata: meta(name, second),
        spec,
        status: None,
    }
}

/// A pod with the address 10.0.0.1.
pub fn pod(name: &str, vm: &str, second: i64, phase: &str, node: &str) -> Pod {
    let mut metadata = meta(name, second);
    metadata.labels = Some([(VM_LABEL.to_owned(), vm.to_owned())].into());
    Pod {
        metadata,
        spec: Some(PodSpec {
            node_name: Some(node.to_owned()),
            restart_policy: Some("Never".to_owned()),
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            phase: Some(phase.to_owned()),
            pod_ip: Some("10.0.0.1".to_owned()),
            ..PodStatus::default()
        }),
    }
}

/// A migration of the VM `vm`, as it was just created.
pub fn migration(name: &str, second: i64) -> QemuMigration {
    let spec = QemuMigrationSpec {
        vm: "vm".to_owned(),
        target_pod: None,
        decision: None,
    };
    QemuMigration {
        metadata: meta(name, second),
        spec,
        status: None,
    }
}

/// A save of the VM `vm`, as it was just created.
pub fn save(name: &str, then: AfterSave) -> QemuSave {
    let spec = QemuSaveSpec {
        vm: "vm".to_owned(),
        file: "/saves/vm".to_owned(),
        then,
        deadline_seconds: None,
        bandwidth: None,
    };
    QemuSave {
        metadata: meta(name, 1),
        spec,
        status: None,
    }
}

/// A move of the NIC `eth0` between two pods, each on the node `node-of-` its name. It has just begun.
pub fn a_move(name: &str, source: &str, target: &str) -> Move {
    let end = |pod: &str| MigrationEnd {
        node_name: format!("node-of-{pod}"),
        pod: reference(pod),
        pod_ip: Some("10.0.0.1".to_owned()),
    };
    Move {
        id: reference(name),
        nics: vec!["eth0".to_owned()],
        source: end(source),
        target: end(target),
        stage: Stage::Preparing,
        driver: Driver::Ours(Orders::default()),
        times: Times::default(),
    }
}

/// Name and uid.
fn reference(name: &str) -> ObjectRef {
    ObjectRef {
        name: name.to_owned(),
        uid: format!("{name}-uid"),
    }
}

/// An attachment of a NIC of the VM `vm` to a pod, with nothing reported yet.
pub fn attachment(nic: &str, pod: &str, node: &str) -> NicAttachment {
    let spec = NicAttachmentSpec {
        node_name: node.to_owned(),
        nic: reference(nic),
        vm: AttachedVm::Qemu {
            name: "vm".to_owned(),
        },
        pod: reference(pod),
        network: "net".to_owned(),
        mac: "02:00:00:00:00:01".to_owned(),
        goal: Goal::FastPath,
        aside: None,
        standby: StandbyKind::Macvtap,
        no_free_vf: NoFreeVf::Standby,
        pairing: Pairing::NetFailover,
        port_instance_id: None,
        l2: L2Settings::default(),
        placement: None,
        pod_devices: None,
        migration: None,
    };
    let metadata = meta(&attachment_name(nic, &spec.pod.uid), 1);
    NicAttachment {
        metadata,
        spec,
        status: None,
    }
}

/// Lets the agent report where the NIC is, about the spec as it is.
pub fn observe(attachment: &mut NicAttachment, state: AttachmentState) {
    let generation = attachment.metadata.generation;
    let status = attachment.status.get_or_insert_with(NicAttachmentStatus::default);
    status.observed_generation = generation;
    status.state = state;
    status.path = match state {
        AttachmentState::FastPath => Path::FastPath,
        AttachmentState::Standby => Path::Standby,
        _ => Path::None,
    };
}

/// Lets the agent say why the NIC is not where it should be.
pub fn say(attachment: &mut NicAttachment, reason: &str, message: &str) {
    let status = attachment.status.get_or_insert_with(NicAttachmentStatus::default);
    for type_ in [types::READY, types::FAST_PATH] {
        let condition = NewCondition::no(type_, reason, message);
        conditions::set(&mut status.conditions, None, Timestamp::UNIX_EPOCH, condition);
    }
}

/// Lets the agent report on the migration `m`.
pub fn report(attachment: &mut NicAttachment, state: MigrationState) {
    let listens = state == MigrationState::Listening;
    let status = attachment.status.get_or_insert_with(NicAttachmentStatus::default);
    let ca = || format!("CA of {}", attachment.spec.node_name);
    status.migration = Some(MigrationReport {
        port: listens.then_some(4444),
        error: (state == MigrationState::Failed).then(|| "no route".to_owned()),
        downtime_ms: (state == MigrationState::Completed).then_some(42),
        ca: (listens || state == MigrationState::Prepared).then(ca),
        ..MigrationReport::new("m-uid", state)
    });
}

/// As [`report`], for a source whose transfer failed before the VM could leave.
pub fn report_kept(attachment: &mut NicAttachment) {
    report(attachment, MigrationState::Failed);
    let report = attachment
        .status
        .as_mut()
        .and_then(|status| status.migration.as_mut());
    report.unwrap().kept = true;
}
