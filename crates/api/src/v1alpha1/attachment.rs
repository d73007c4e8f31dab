//! `NicAttachment`: one NIC on one node. Here operator and node agent meet.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{Display, IntoStaticStr};

use crate::limits;

use super::{
    AfterSave, AttachedVm, GuestDevices, L2Settings, NoFreeVf, ObjectRef, Pairing, Path, StandbyKind,
    StandbyRef, SwitchOrder, TimelineEntry, VfRef,
};

/// One NIC on one node: where it should be, and where it is. Made and deleted by the operator; during a
/// migration a NIC has two.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "hybridnic.io",
    version = "v1alpha1",
    kind = "NicAttachment",
    plural = "nicattachments",
    shortname = "nicatt",
    category = "hybridnic",
    namespaced,
    status = "NicAttachmentStatus",
    derive = "PartialEq",
    doc = "One hybrid NIC on one node. Written by the operator (spec) and the node's agent (status).",
    printcolumn(name = "NIC", type_ = "string", json_path = ".spec.nic.name"),
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.nodeName"),
    printcolumn(name = "Pod", type_ = "string", json_path = ".spec.pod.name"),
    printcolumn(name = "Goal", type_ = "string", json_path = ".spec.goal"),
    printcolumn(name = "Aside", type_ = "string", json_path = ".spec.aside", priority = "1"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Path", type_ = "string", json_path = ".status.path"),
    printcolumn(name = "PF", type_ = "string", json_path = ".status.vf.pf"),
    printcolumn(name = "VF", type_ = "string", json_path = ".status.vf.pciAddress"),
    printcolumn(
        name = "Why",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    selectable = ".spec.nodeName"
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(oldSelf.portInstanceId) == has(self.portInstanceId) && (!has(self.portInstanceId) || self.portInstanceId == oldSelf.portInstanceId)")
    .message("portInstanceId cannot change"))]
pub struct NicAttachmentSpec {
    /// The node.
    #[x_kube(validation = Rule::new("self == oldSelf").message("nodeName cannot change"))]
    #[schemars(length(max = limits::NAME))]
    pub node_name: String,
    /// The NIC.
    #[x_kube(validation = Rule::new("self == oldSelf").message("nic cannot change"))]
    pub nic: ObjectRef,
    /// The VM.
    #[x_kube(validation = Rule::new("self == oldSelf").message("vm cannot change"))]
    pub vm: AttachedVm,
    /// The pod that runs, or will run, the VM on the node.
    #[x_kube(validation = Rule::new("self == oldSelf").message("pod cannot change"))]
    pub pod: ObjectRef,
    /// The network, whose pool on this node is in the [`super::HybridNode`].
    #[x_kube(validation = Rule::new("self == oldSelf").message("network cannot change"))]
    #[schemars(length(max = limits::NAME))]
    pub network: String,
    /// The NIC's MAC address, lower case.
    #[x_kube(validation = Rule::new("self == oldSelf").message("mac cannot change"))]
    #[schemars(length(max = limits::WORD))]
    pub mac: String,
    /// Where the NIC should be.
    pub goal: Goal,
    /// Set if the NIC is told to stay on its standby (`path: Standby`): what becomes of its VF. The standby then carries the traffic, also
    /// with the goal `FastPath`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aside: Option<Aside>,
    /// What carries the traffic while the VF is out of the guest. The same at both ends of a migration.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("standby cannot change"))]
    pub standby: StandbyKind,
    /// What to do without a free VF.
    pub no_free_vf: NoFreeVf,
    /// How the guest makes one NIC of VF and standby. It is in the guest's device, and so the same at both ends of a migration.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("pairing cannot change"))]
    pub pairing: Pairing,
    /// The UUID by which the switch knows the NIC, where the network has a port profile; without it, the NIC's uid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::WORD))]
    pub port_instance_id: Option<String>,
    /// L2 settings of the network.
    pub l2: L2Settings,
    /// Where the NIC must be in the guest: where it is at the migration's source, or where KubeVirt has put it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Placement>,
    /// How many devices of the network (`hybridnic.io/NETWORK`) the pod requests; absent where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_devices: Option<i32>,
    /// The migration that this attachment takes part in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationOrder>,
}

impl NicAttachmentSpec {
    /// The root ports that the NIC must have.
    pub fn root_ports(&self) -> Option<&GuestPorts> {
        match &self.placement {
            Some(Placement::RootPorts(ports)) => Some(ports),
            Some(Placement::Interface(_)) | None => None,
        }
    }
}

/// What becomes of the VF of a NIC that is told to stay on its standby.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, Display, IntoStaticStr,
)]
#[cfg_attr(test, derive(strum::VariantArray))]
pub enum Aside {
    /// It goes back to the pool. During a migration it stays until that is over.
    GiveVfBack,
    /// It stays reserved and parked.
    KeepVf,
}

/// Where a NIC should be on its node.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display, IntoStaticStr,
)]
#[cfg_attr(test, derive(strum::VariantArray))]
pub enum Goal {
    /// A VF is reserved and parked. The VM's pod does not have its link yet, and is not started before it has: the goal of a pod
    /// that KubeVirt will migrate the VM to, until the source is on its standby.
    Reserved,
    /// A VF is reserved and parked; the standby carries the traffic, if the NIC has one.
    Standby,
    /// The VF carries the traffic; the standby's macvtap is down. A NIC that is told to stay on its standby stays there.
    FastPath,
    /// Nothing of the NIC is left on the node.
    #[default]
    Detached,
}

/// Where a NIC is on its node.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display, IntoStaticStr,
)]
#[cfg_attr(test, derive(strum::VariantArray))]
pub enum AttachmentState {
    /// Nothing of it is in the guest yet, or nothing can be said.
    #[default]
    Pending,
    /// All is ready for a VM that does not run here yet. Its standby is in the guest, its macvtap down; or, where that is the goal or
    /// the NIC has no standby, a VF is reserved and nothing else is made.
    Reserved,
    /// The standby carries the traffic.
    Standby,
    /// The NIC has no standby, and its VF is not in the guest: it carries nothing.
    Aside,
    /// The VF carries the traffic; or the standby does, and QEMU has not removed the VF yet that the NIC is to leave.
    FastPath,
    /// Nothing of it is left on the node.
    Detached,
}

impl AttachmentState {
    /// Whether the VM runs here without the NIC's VF, which is what a migration needs.
    pub fn is_off_vf(self) -> bool {
        matches!(self, Self::Standby | Self::Aside)
    }
}

/// Where a NIC is in the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Placement {
    /// On these root ports, which this VM's QEMU was started with.
    RootPorts(GuestPorts),
    /// It is this interface of KubeVirt's VM, by its name in the VM's spec.
    Interface(#[schemars(length(max = limits::LABEL))] String),
}

/// The guest's PCIe root ports of a NIC, by QEMU's ids.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GuestPorts {
    /// The port of the standby; absent where the NIC has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::WORD))]
    pub standby: Option<String>,
    /// The port of the VF.
    #[schemars(length(max = limits::WORD))]
    pub vf: String,
}

/// What the operator wants from a node in a migration. All attachments of the VM on the node carry the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationOrder {
    /// The [`super::QemuMigration`], the [`super::QemuSave`], the [`super::QemuRestore`], or KubeVirt's
    /// `VirtualMachineInstanceMigration`.
    pub migration: ObjectRef,
    /// Names of all NICs of the VM: the agent acts once it has seen the attachment of each.
    #[schemars(length(max = limits::NICS), inner(length(max = limits::NAME)))]
    pub nics: Vec<String>,
    /// What to do.
    pub step: MigrationStep,
    /// For `Transfer`: QEMU's URI of the destination, `tcp:10.0.0.2:49152`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::ADDRESS))]
    pub target_uri: Option<String>,
    /// For `Listen`: the address of the target's pod, IPv4 or IPv6, on which QEMU listens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::ADDRESS))]
    pub listen_address: Option<String>,
    /// The stream is encrypted, and each end knows the other. Without it, it is plain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<MigrationTls>,
    /// The VM goes to a file or comes from one, and to or from no other node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileOrder>,
}

impl MigrationOrder {
    /// Whether the VM comes from a file.
    pub fn restores(&self) -> bool {
        self.file.as_ref().is_some_and(|file| !file.saves())
    }

    /// What becomes of the VM once it is in a file; `None` where it goes to none.
    pub fn after_save(&self) -> Option<AfterSave> {
        self.file.as_ref()?.then
    }
}

/// A file that a VM goes to or comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FileOrder {
    /// Its path in the container that runs QEMU.
    #[schemars(length(max = 1024))]
    pub path: String,
    /// The VM goes there, and then this becomes of it; without it, the VM comes from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then: Option<AfterSave>,
    /// The most octets a second that QEMU writes; without it, as many as for migrations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<i64>,
}

impl FileOrder {
    /// Whether the VM goes to the file, rather than coming from it.
    pub fn saves(&self) -> bool {
        self.then.is_some()
    }
}

/// What an end of a migration needs to know the other end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationTls {
    /// For `Listen` and `Transfer`: the certificate of the CA that the other end has made for this migration, in PEM, as that
    /// end has reported it. This end talks to nobody else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub peer_ca: Option<String>,
}

/// A step of a migration that one node's agent takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display, IntoStaticStr)]
#[cfg_attr(test, derive(strum::VariantArray))]
pub enum MigrationStep {
    /// Target: listen for the incoming VM once every NIC is `Reserved`, and start it when it has come.
    Listen,
    /// Target: never start the VM, whether or not it has arrived, and confirm that.
    GiveUp,
    /// Source: make the certificate if the stream is to be encrypted, and switch the fast path of every NIC off once its
    /// goal says so. The transfer has not begun. With a `file`: check whether it can be written or loaded.
    Prepare,
    /// Source: send the VM to `targetUri`.
    Transfer,
    /// Source: stop the transfer; the VM runs on. Where KubeVirt migrates the VM, KubeVirt has given up: report whether the VM
    /// has stayed.
    Cancel,
    /// Source: if the VM was paused for the hand-over, run it on, because the target has said that it never ran it and never will, or
    /// because a person has decided.
    Resume,
    /// KubeVirt migrates the VM: nothing is ordered, and what this end's QEMU does is reported.
    Watch,
    /// Write the VM to `file`, give the file its name once it is whole, and do with the VM what `file` says.
    Save,
    /// Load the VM from `file` once every NIC is `Reserved`, and start it.
    Load,
}

impl MigrationStep {
    /// Whether the VM is to come here.
    pub fn receives(self) -> bool {
        matches!(self, Self::Listen | Self::Load)
    }
}

/// What is true of a NIC on its node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NicAttachmentStatus {
    /// Generation of the spec that the agent last acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where the NIC is.
    #[serde(default)]
    pub state: AttachmentState,
    /// Which device carries the traffic.
    #[serde(default)]
    pub path: Path,
    /// The VF that is reserved for the NIC or plugged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vf: Option<VfRef>,
    /// The NIC's standby.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby: Option<StandbyRef>,
    /// Both devices as the guest sees them.
    #[serde(default)]
    pub guest: GuestDevices,
    /// The order of the last switch from VF to standby.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unplug_order: Option<SwitchOrder>,
    /// How the VM's migration goes, as this node's QEMU sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationReport>,
    /// The last things that happened, oldest first.
    #[serde(default)]
    #[schemars(length(max = limits::TIMELINE))]
    pub timeline: Vec<TimelineEntry>,
    /// Conditions `Ready` (the goal is reached; why not) and `FastPath`; and `StandbyFilter`, while the standby does not
    /// receive all that the guest asks for.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(schema_with = "limits::conditions")]
    pub conditions: Vec<Condition>,
}

/// How a migration goes, as one node's QEMU sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationReport {
    /// Uid of the migration that this is about.
    #[schemars(length(max = limits::LABEL))]
    pub uid: String,
    /// How far it is.
    pub state: MigrationState,
    /// Target: the TCP port that QEMU listens on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
    /// QEMU's own text when it failed, at most 1024 characters of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::TEXT))]
    pub error: Option<String>,
    /// Source: the VM is known not to have left. Without it, a transfer that failed may have failed after the hand-over.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub kept: bool,
    /// Source: length of the transfer in milliseconds, by QEMU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_ms: Option<i64>,
    /// Source: the VM's pause in milliseconds, by QEMU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<i64>,
    /// The certificate of the CA that this end has made for this migration, and with which it has signed its own certificate, in PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub ca: Option<String>,
    /// QEMU cannot encrypt the stream here; `error` says why.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_tls: bool,
    /// The file cannot be written or loaded here, as `error` says; nothing was done to QEMU.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refused: bool,
    /// Save: octets written so far; in the end the file's length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<i64>,
    /// Save: octets of memory that are left to write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining: Option<i64>,
}

impl MigrationReport {
    /// That the migration of this uid is this far here, and nothing else.
    pub fn new(uid: impl Into<String>, state: MigrationState) -> Self {
        Self {
            uid: uid.into(),
            state,
            port: None,
            error: None,
            kept: false,
            total_ms: None,
            downtime_ms: None,
            ca: None,
            no_tls: false,
            refused: false,
            written: None,
            remaining: None,
        }
    }
}

/// How far a migration is on one node. What a node has once reported about its end stays true.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, Display, IntoStaticStr,
)]
#[cfg_attr(test, derive(strum::VariantArray))]
pub enum MigrationState {
    /// Nothing has begun. The certificate for the stream is made, or cannot be used here; or the file can be written or loaded.
    Prepared,
    /// Target: QEMU listens.
    Listening,
    /// The transfer is under way.
    Active,
    /// Source: the VM has been handed over. Target: the VM runs here. Only the target's report is success. Save: the file is whole, and
    /// has its name.
    Completed,
    /// It has failed. Source: the VM is here, running or paused; `kept` says whether the target may have it as well.
    /// Target: this QEMU has never run the VM, and never will.
    Failed,
    /// Source: it was cancelled, the VM runs here. Where KubeVirt migrates the VM: also where it was given up before it had begun.
    Cancelled,
    /// QEMU's process has ended. Target: without ever having run the VM.
    Lost,
    /// Target: the VM has run here, and QEMU's process has ended since. Save: the file has its name, and QEMU's process has ended.
    Ended,
}

impl MigrationState {
    /// Whether QEMU will say nothing else about the migration by itself.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Prepared | Self::Listening | Self::Active)
    }
}
