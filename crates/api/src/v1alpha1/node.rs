//! `HybridNode`: a node's PFs and VFs.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, transform::Transform as _};
use serde::{Deserialize, Serialize};
use strum::Display;

use crate::limits;

use super::{L2Settings, Uplink, VfCounts, is_zero};

/// A node's PFs and VFs: what to provision, what there is, and who holds it. Its name is the node's.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "hybridnic.io",
    version = "v1alpha1",
    kind = "HybridNode",
    plural = "hybridnodes",
    shortname = "hnode",
    category = "hybridnic",
    status = "HybridNodeStatus",
    derive = "PartialEq",
    doc = "A node's SR-IOV PFs and VFs. Written by the operator (spec.pools), an administrator (spec.drain) and the node's agent (status).",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(name = "PFs", type_ = "integer", json_path = ".status.pfCount"),
    printcolumn(name = "VFs", type_ = "integer", json_path = ".status.vfs.total"),
    printcolumn(name = "Free", type_ = "integer", json_path = ".status.vfs.free"),
    printcolumn(name = "Held", type_ = "integer", json_path = ".status.vfs.held"),
    printcolumn(name = "Unhealthy", type_ = "integer", json_path = ".status.vfs.unhealthy"),
    printcolumn(
        name = "Agent",
        type_ = "string",
        json_path = ".status.agentVersion",
        priority = "1"
    ),
    printcolumn(
        name = "Why",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct HybridNodeSpec {
    /// The pools that this node is part of, by network.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["network".into()]))]
    #[schemars(length(max = limits::POOLS))]
    pub pools: Vec<NodePool>,
    /// What is to be drained of VFs. Only an administrator writes it.
    #[serde(default, skip_serializing_if = "Drain::is_empty")]
    pub drain: Drain,
}

/// What of a node is to be drained of VFs: NICs leave them: for VFs that are not drained where some are free, otherwise for their
/// standby. No NIC gets one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Drain {
    /// All PFs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// These PFs, by PCI address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[schemars(length(max = limits::PFS), inner(length(max = 16)))]
    #[x_kube(validation = Rule::new("self.all(a, a.matches('^[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f][.][0-7]$'))")
        .message("drain.pfs are full PCI addresses in lower case, as in \"0000:01:00.0\""))]
    pub pfs: Vec<String>,
    /// All PFs for the NICs of these networks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[schemars(length(max = limits::POOLS), inner(length(min = 1, max = limits::NAME)))]
    pub networks: Vec<String>,
}

impl Drain {
    /// Whether nothing is to be drained.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether no NIC at all is to have a VF of this PF.
    pub fn covers_pf(&self, pci_address: &str) -> bool {
        self.all || self.pfs.iter().any(|pf| pf == pci_address)
    }

    /// Whether no NIC of this network is to have a VF of any PF.
    pub fn covers_network(&self, network: &str) -> bool {
        self.all || self.networks.iter().any(|other| other == network)
    }

    /// Whether no NIC of this network is to have a VF of this PF.
    pub fn covers(&self, network: &str, pci_address: &str) -> bool {
        self.covers_pf(pci_address) || self.covers_network(network)
    }
}

/// How far a drain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display)]
pub enum DrainState {
    /// NICs still hold VFs.
    Draining,
    /// No NIC holds one any more.
    Drained,
}

/// A network's pool on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodePool {
    /// Name of the [`super::HybridNetwork`].
    #[schemars(length(max = limits::NAME))]
    pub network: String,
    /// Its uplinks.
    #[schemars(schema_with = "uplinks_without_rules")]
    pub uplinks: Vec<Uplink>,
    /// The VLAN tags of its NICs' frames.
    #[serde(default)]
    pub tags: PoolTags,
    /// How many NICs it takes beside those that get a VF.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub standby_slots: i32,
    /// The L2 settings of its NICs: on nodes whose kernel has vfio groups only, a pod gets a VF before its NIC is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "l2_without_rules")]
    pub l2: Option<L2Settings>,
}

/// Which VLAN tags the frames of a network's NICs have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PoolTags {
    /// None, and guests may set none: such a network is given no PF that also carries one with a VLAN.
    #[default]
    None,
    /// That of the network's VLAN, which the PF sets.
    Vlan,
    /// None, or what the guests set.
    Guests,
}

/// The uplinks have been checked in their network; checking them again in each pool of each node is more than
/// the API server's budget for rules.
fn uplinks_without_rules(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let mut schema = generator.subschema_for::<Vec<Uplink>>();
    schema.insert("maxItems".to_owned(), limits::UPLINKS.into());
    without_rules(schema)
}

/// The same.
fn l2_without_rules(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    without_rules(generator.subschema_for::<Option<L2Settings>>())
}

fn without_rules(mut schema: schemars::Schema) -> schemars::Schema {
    schemars::transform::RecursiveTransform(|s: &mut schemars::Schema| {
        s.remove("x-kubernetes-validations");
    })
    .transform(&mut schema);
    schema
}

/// What a node has.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HybridNodeStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Version of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::WORD))]
    pub agent_version: Option<String>,
    /// What the agent can do and earlier ones cannot, as `NoStandby` of a NIC.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[schemars(length(max = limits::FEATURES), inner(length(min = 1, max = limits::WORD)))]
    pub features: Vec<String>,
    /// How many PFs there are.
    #[serde(default)]
    pub pf_count: i32,
    /// The node's VFs.
    #[serde(default)]
    pub vfs: VfCounts,
    /// The VFs of each pool.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["network".into()]))]
    #[schemars(length(max = limits::POOLS))]
    pub pools: Vec<PoolStatus>,
    /// The PFs.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["pciAddress".into()]))]
    #[schemars(length(max = limits::PFS))]
    pub pfs: Vec<PfStatus>,
    /// Conditions `Ready`; `Degraded`: something of the node does not work, while the rest goes on; and `Drained`, where something is
    /// to be drained of VFs.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(schema_with = "limits::conditions")]
    pub conditions: Vec<Condition>,
}

/// The VFs of a pool on one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolStatus {
    /// Name of the network.
    #[schemars(length(max = limits::NAME))]
    pub network: String,
    /// Its VFs here.
    pub vfs: VfCounts,
    /// How far its NICs have left their VFs; absent where they are not told to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainState>,
    /// What is wrong with the pool here; empty when nothing is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = limits::TEXT))]
    pub message: String,
}

/// A PF.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PfStatus {
    /// Interface name; empty when the driver has made none.
    #[schemars(length(max = limits::WORD))]
    pub name: String,
    /// PCI address, `0000:01:00.0`.
    #[schemars(length(max = limits::WORD))]
    pub pci_address: String,
    /// PCI vendor id, `8086`.
    #[schemars(length(max = limits::WORD))]
    pub vendor: String,
    /// PCI device id, `10c9`.
    #[schemars(length(max = limits::WORD))]
    pub device: String,
    /// Kernel driver; empty when none is bound.
    #[serde(default)]
    #[schemars(length(max = limits::WORD))]
    pub driver: String,
    /// NUMA node, when the firmware says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<i32>,
    /// MAC address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::WORD))]
    pub mac: Option<String>,
    /// MTU in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<i32>,
    /// Whether it has a link.
    pub link_up: bool,
    /// The most VFs that it can have.
    pub total_vfs: i32,
    /// How far NICs have left its VFs; absent where they are not told to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainState>,
    /// Why none of its VFs can be used; empty when they can.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = limits::TEXT))]
    pub message: String,
    /// Its VFs.
    #[serde(default)]
    #[schemars(length(max = limits::VFS))]
    pub vfs: Vec<VfStatus>,
}

/// A VF.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VfStatus {
    /// Index on its PF, from 0.
    pub index: i32,
    /// PCI address, `0000:01:10.0`.
    #[schemars(length(max = limits::WORD))]
    pub pci_address: String,
    /// Kernel driver; empty when none is bound.
    #[serde(default)]
    #[schemars(length(max = limits::WORD))]
    pub driver: String,
    /// IOMMU group; absent when the node has no IOMMU that covers it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iommu_group: Option<i32>,
    /// Whether a NIC can have it.
    pub state: VfState,
    /// The NIC that holds it, `namespace/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::NAME))]
    pub held_by: Option<String>,
    /// Why it is unhealthy; if it is held, what is wrong with it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = limits::TEXT))]
    pub message: String,
}

/// Whether a NIC can have a VF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum VfState {
    /// No network selects it.
    #[default]
    Unselected,
    /// Free for a NIC.
    Free,
    /// Held by a NIC.
    Held,
    /// Selected, but not to be used; its message says why.
    Unhealthy,
    /// It could be used, but is kept free because it is drained.
    Drained,
}
