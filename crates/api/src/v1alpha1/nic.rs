//! `VmHybridNic`: one NIC of one VM on one network.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{Display, IntoStaticStr};

use crate::limits;

use super::{
    Aside, GuestDevices, MigrationPhaseTime, NoFreeVf, Path, Runtime, StandbyRef, SwitchOrder, VfRef, Vm,
};

/// One NIC of one VM on one network.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "hybridnic.io",
    version = "v1alpha1",
    kind = "VmHybridNic",
    plural = "vmhybridnics",
    shortname = "vhn",
    category = "hybridnic",
    namespaced,
    status = "VmHybridNicStatus",
    derive = "PartialEq",
    doc = "One hybrid NIC of one virtual machine: an SR-IOV VF and its virtio standby under one MAC.",
    validation = Rule::new("self.metadata.name.size() <= 50 && !self.metadata.name.contains('.')")
        .message("the name of a VmHybridNic must have at most 50 characters and no dots"),
    printcolumn(name = "VM", type_ = "string", json_path = ".spec.vm.*.name"),
    printcolumn(name = "Runtime", type_ = "string", json_path = ".status.runtime"),
    printcolumn(name = "Network", type_ = "string", json_path = ".spec.network"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Path", type_ = "string", json_path = ".status.path"),
    printcolumn(name = "Why", type_ = "string", json_path = r#".status.conditions[?(@.type=="FastPath")].reason"#),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.nodeName"),
    printcolumn(name = "PF", type_ = "string", json_path = ".status.vf.pf"),
    printcolumn(name = "VF", type_ = "string", json_path = ".status.vf.pciAddress"),
    printcolumn(name = "MAC", type_ = "string", json_path = ".status.mac"),
    printcolumn(name = "Message", type_ = "string", json_path = r#".status.conditions[?(@.type=="FastPath")].message"#, priority = "1"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(oldSelf.mac) == has(self.mac) && (!has(self.mac) || self.mac == oldSelf.mac)")
    .message("mac cannot change: delete the NIC and create it again with the other address"))]
#[x_kube(validation = Rule::new("has(oldSelf.portInstanceId) == has(self.portInstanceId) && (!has(self.portInstanceId) || self.portInstanceId == oldSelf.portInstanceId)")
    .message("portInstanceId cannot change: delete the NIC and create it again with the other id"))]
#[x_kube(validation = Rule::new("!has(self.keepVf) || !self.keepVf || self.path == 'Standby'")
    .message("keepVf says what becomes of the VF under path: Standby; with path: Auto leave it out"))]
#[x_kube(validation = Rule::new("!has(self.vm.kubevirt) || !has(self.pairing) || self.pairing != 'Bond'")
    .message("pairing: Bond is for VMs in QEMU pods: the standby of a VM of KubeVirt always has virtio's standby feature, \
              so its guest pairs by net_failover"))]
#[x_kube(validation = Rule::new("!has(self.vm.kubevirt) || !has(self.standby) || self.standby != 'None'")
    .message("standby: None is for VMs in QEMU pods: KubeVirt starts a VM with its standby, which is the interface in the VM's spec"))]
#[x_kube(validation = Rule::new("!has(self.standby) || self.standby != 'None' || !has(self.pairing) || self.pairing != 'Bond'")
    .message("pairing says how the guest makes one NIC of VF and standby: with standby: None leave it out"))]
pub struct VmHybridNicSpec {
    /// Name of the [`super::HybridNetwork`].
    #[schemars(length(min = 1, max = 50))]
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("network cannot change: delete the NIC and create it again on the other network"))]
    pub network: String,
    /// The virtual machine.
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("vm cannot change: delete the NIC and create it again for the other VM"))]
    pub vm: Vm,
    /// The NIC's MAC address, if the network's `macs` allows it; without it, one of the network's range is generated once and
    /// kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 17))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}$')")
        .message("mac must be six hexadecimal pairs with colons, as in \"02:00:00:00:00:01\""))]
    #[x_kube(validation = Rule::new("self.size() < 2 || self.substring(1, 2).matches('[02468aceACE]')")
        .message("mac must be a unicast address: its second digit is even, as in \"02:00:00:00:00:01\""))]
    #[x_kube(validation = Rule::new("self != '00:00:00:00:00:00'")
        .message("mac must not be all zeros: leave it out to have one generated"))]
    #[x_kube(validation = Rule::new("!self.startsWith('06:')")
        .message("mac must not begin with 06, as the addresses of parked VFs do"))]
    #[x_kube(validation = Rule::new(
        "!self.lowerAscii().matches('^00:(00:5e:00:0[12]|00:0c:07:ac|00:0c:9f:f.|05:73:a0:0.|07:b4:00:..):')")
        .message("mac must not be one of virtual routers (VRRP, CARP, HSRP, GLBP)"))]
    pub mac: Option<String>,
    /// What carries the traffic while the VF is out of the guest. It is a device of the guest, so it cannot change.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("standby cannot change: delete the NIC and create it again with the other standby"))]
    pub standby: StandbyKind,
    /// What to do when the node has no free VF.
    #[serde(default)]
    pub no_free_vf: NoFreeVf,
    /// Which device is to carry the traffic. May change at any time.
    #[serde(default)]
    pub path: WantedPath,
    /// With `path: Standby`: the VF stays reserved for the NIC, and no other NIC gets it. Without it, it goes back to the pool.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep_vf: bool,
    /// How the guest makes one NIC of VF and standby. Both devices are made for it, so it cannot change.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("pairing cannot change: delete the NIC and create it again with the other pairing"))]
    pub pairing: Pairing,
    /// On a network with a port profile: the UUID by which the switch knows the NIC; without it, the NIC's uid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 36))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$')")
        .message("portInstanceId must be a UUID, as in \"09b11c53-8b5c-4eeb-8f00-d84eaa0aaa4f\""))]
    pub port_instance_id: Option<String>,
}

impl VmHybridNicSpec {
    /// Whether the NIC is told to stay on its standby, and what becomes of its VF then.
    pub fn aside(&self) -> Option<Aside> {
        match (self.path, self.keep_vf) {
            (WantedPath::Auto, _) => None,
            (WantedPath::Standby, true) => Some(Aside::KeepVf),
            (WantedPath::Standby, false) => Some(Aside::GiveVfBack),
        }
    }
}

/// Which device is to carry a NIC's traffic.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display, IntoStaticStr,
)]
#[cfg_attr(test, derive(strum::VariantArray))]
pub enum WantedPath {
    /// The VF, where there is one.
    #[default]
    Auto,
    /// The standby: the VF is taken out of the guest and stays out, also where the VM migrates to. A NIC without a standby has no
    /// network then.
    Standby,
}

/// What carries a NIC's traffic while its VF is out of the guest.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
    Display,
    IntoStaticStr,
)]
#[cfg_attr(test, derive(strum::VariantArray))]
pub enum StandbyKind {
    /// A virtio-net device on a macvtap, on the VF's PF.
    #[default]
    Macvtap,
    /// Nothing: the VF is all that the NIC has. During a migration, and without a free VF, the VM has no network through this NIC.
    None,
}

/// How the guest makes one NIC of VF and standby.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display, IntoStaticStr,
)]
#[cfg_attr(test, derive(strum::VariantArray))]
pub enum Pairing {
    /// The guest's virtio-net driver pairs both by their MAC (`VIRTIO_NET_F_STANDBY`).
    #[default]
    NetFailover,
    /// The guest bonds both by itself: Linux by a bond of mode `active-backup` with the VF as its primary and
    /// `fail_over_mac=none`. The standby is a plain virtio-net.
    Bond,
}

/// Where a NIC is in its life.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display, IntoStaticStr,
)]
#[cfg_attr(test, derive(strum::VariantArray))]
pub enum NicPhase {
    /// Not attached: no VM runs, or something must be fixed first.
    #[default]
    Pending,
    /// On its way into the guest.
    Attaching,
    /// The VF carries the traffic.
    FastPath,
    /// The standby carries the traffic.
    Standby,
    /// It has no standby, and its VF is not in the guest: the VM has no network through this NIC.
    Aside,
    /// Its VM migrates.
    Migrating,
    /// On its way out of the guest.
    Detaching,
    /// Refused; the conditions say why.
    Failed,
}

/// What is true of a NIC.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VmHybridNicStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What runs its VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,
    /// Where the NIC is in its life.
    #[serde(default)]
    pub phase: NicPhase,
    /// The NIC's MAC address, lower case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::WORD))]
    pub mac: Option<String>,
    /// The node where the VM runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::NAME))]
    pub node_name: Option<String>,
    /// The pod in which the VM runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<super::ObjectRef>,
    /// Which device carries the traffic.
    #[serde(default)]
    pub path: Path,
    /// The VF that the NIC holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vf: Option<VfRef>,
    /// The NIC's standby.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standby: Option<StandbyRef>,
    /// Both devices as the guest sees them.
    #[serde(default)]
    pub guest: GuestDevices,
    /// The last migration of the VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_migration: Option<NicMigration>,
    /// Conditions `Accepted`, `Ready` and `FastPath`; and `StandbyFilter`, while the standby does not receive all that the guest asks for.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(schema_with = "limits::conditions")]
    pub conditions: Vec<Condition>,
}

/// A NIC's part in a migration of its VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NicMigration {
    /// Name of the [`super::QemuMigration`], or of KubeVirt's `VirtualMachineInstanceMigration`.
    #[schemars(length(max = limits::NAME))]
    pub name: String,
    /// The node that the VM left.
    #[schemars(length(max = limits::NAME))]
    pub from: String,
    /// The node that the VM went to.
    #[schemars(length(max = limits::NAME))]
    pub to: String,
    /// `Succeeded`, `Failed` or `Cancelled`; absent while it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::WORD))]
    pub result: Option<String>,
    /// When it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "limits::maybe_time")]
    pub started_at: Option<MicroTime>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "limits::maybe_time")]
    pub finished_at: Option<MicroTime>,
    /// QEMU's own count of the VM's pause, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<i64>,
    /// The order in which VF and standby were switched at the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unplug_order: Option<SwitchOrder>,
    /// The parts of the migration.
    #[serde(default)]
    #[schemars(length(max = limits::PHASES))]
    pub phases: Vec<MigrationPhaseTime>,
}
