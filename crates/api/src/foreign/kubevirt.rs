//! KubeVirt's kinds.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResource;
use serde::{Deserialize, Serialize};

/// API group of these kinds.
pub const GROUP: &str = "kubevirt.io";
/// Name of our network binding.
pub const BINDING: &str = "hybridnic";
/// Label, with [`LAUNCHER`] as its value, of the pods in which VMs run.
pub const POD_LABEL: &str = "kubevirt.io";
/// See [`POD_LABEL`].
pub const LAUNCHER: &str = "virt-launcher";
/// Label of such a pod: its VM's name.
pub const NAME_LABEL: &str = "vm.kubevirt.io/name";
/// Label of such a pod: uid of the `VirtualMachineInstance` for which it was made.
pub const CREATED_BY_LABEL: &str = "kubevirt.io/created-by";
/// Label of such a pod: uid of the migration for which it was made.
pub const MIGRATION_LABEL: &str = "kubevirt.io/migrationJobUID";

/// A VM, running or not.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "kubevirt.io",
    version = "v1",
    kind = "VirtualMachine",
    plural = "virtualmachines",
    namespaced,
    schema = "disabled",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineSpec {
    /// What a `VirtualMachineInstance` is made from when it starts.
    #[serde(default)]
    pub template: Template,
}

/// What a `VirtualMachineInstance` is made from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Template {
    /// Its spec.
    #[serde(default)]
    pub spec: VirtualMachineInstanceSpec,
}

/// A VM that runs, or is about to.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "kubevirt.io",
    version = "v1",
    kind = "VirtualMachineInstance",
    plural = "virtualmachineinstances",
    namespaced,
    status = "VirtualMachineInstanceStatus",
    schema = "disabled",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineInstanceSpec {
    /// The machine.
    #[serde(default)]
    pub domain: Domain,
    /// Its networks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub networks: Vec<Network>,
}

/// A VM's machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Domain {
    /// Its devices.
    #[serde(default)]
    pub devices: Devices,
    /// What it can do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<Features>,
}

/// What a machine can do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Features {
    /// ACPI.
    #[serde(default)]
    pub acpi: Feature,
}

/// Something that is on unless it was switched off.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Feature {
    /// Whether it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
}

/// A machine's devices.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Devices {
    /// Its network interfaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
}

/// A network interface of a VM.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Its name, which is that of its network too.
    pub name: String,
    /// The plugin that binds it, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<Binding>,
    /// It is a VF of another device plugin's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sriov: Option<Sriov>,
    /// The MAC address that it is to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac_address: Option<String>,
    /// The device that the guest sees; virtio where it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// `absent`: it is to be taken out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
}

/// An interface that is a VF of another device plugin's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sriov {}

/// A network binding plugin.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Binding {
    /// Its name.
    #[serde(default)]
    pub name: String,
}

/// A network of a VM.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// Its name, which is that of its interface too.
    pub name: String,
    /// The network of Multus that it is, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multus: Option<MultusNetwork>,
}

/// A network of Multus.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MultusNetwork {
    /// Its `NetworkAttachmentDefinition`: `NAME`, or `NAMESPACE/NAME`.
    #[serde(default)]
    pub network_name: String,
}

/// What is true of a VM that runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineInstanceStatus {
    /// Where it is in its life.
    #[serde(default)]
    pub phase: String,
    /// Its node.
    #[serde(default)]
    pub node_name: String,
    /// Uids of its pods that live, with the node of each.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub active_pods: BTreeMap<String, String>,
    /// What is true of it besides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Its last migration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration_state: Option<MigrationState>,
}

/// Something that is true of a VM, or not.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Condition {
    /// What.
    #[serde(rename = "type")]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    #[serde(default)]
    pub status: String,
    /// Why, in a word.
    #[serde(default)]
    pub reason: String,
    /// Why, in a sentence.
    #[serde(default)]
    pub message: String,
}

/// A migration of a VM.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "kubevirt.io",
    version = "v1",
    kind = "VirtualMachineInstanceMigration",
    plural = "virtualmachineinstancemigrations",
    namespaced,
    status = "VirtualMachineInstanceMigrationStatus",
    schema = "disabled",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineInstanceMigrationSpec {
    /// Name of the VM.
    #[serde(default)]
    pub vmi_name: String,
    /// Labels of the node that the VM is to go to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub added_node_selector: BTreeMap<String, String>,
    /// It goes to another cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_to: Option<Elsewhere>,
    /// It comes from another cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive: Option<Elsewhere>,
}

/// The other end of a migration between clusters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Elsewhere {}

/// How a migration goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineInstanceMigrationStatus {
    /// How far it is.
    #[serde(default)]
    pub phase: String,
    /// When it came to each phase.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub phase_transition_timestamps: Vec<PhaseTransition>,
    /// Its ends, and how the transfer goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration_state: Option<MigrationState>,
}

/// When a migration came to a phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PhaseTransition {
    /// The phase.
    #[serde(default)]
    pub phase: String,
    /// When.
    pub phase_transition_timestamp: Time,
}

/// A migration's ends, and how the transfer goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MigrationState {
    /// Uid of the migration.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub migration_uid: String,
    /// The node that the VM comes from.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source_node: String,
    /// The pod that the VM comes from.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source_pod: String,
    /// The node that the VM goes to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target_node: String,
    /// The pod that the VM goes to.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target_pod: String,
    /// Why it has failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub failure_reason: String,
}

/// KubeVirt's installation.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "kubevirt.io",
    version = "v1",
    kind = "KubeVirt",
    plural = "kubevirts",
    namespaced,
    status = "KubeVirtStatus",
    schema = "disabled",
    derive = "PartialEq"
)]
pub struct KubeVirtSpec {
    /// Its configuration.
    #[serde(default)]
    pub configuration: Configuration,
}

/// KubeVirt's configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Configuration {
    /// Of the network.
    #[serde(default)]
    pub network: NetworkConfiguration,
}

/// KubeVirt's configuration of the network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NetworkConfiguration {
    /// The network binding plugins, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub binding: BTreeMap<String, serde_json::Value>,
}

/// What is true of KubeVirt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KubeVirtStatus {
    /// Its version that runs.
    #[serde(default)]
    pub observed_kube_virt_version: String,
}
