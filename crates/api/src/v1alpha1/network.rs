//! `HybridNetwork`: a pool of VFs over many PFs and nodes, with its L2 settings.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::limits;

use super::{MacvtapMode, OnLinkLoss, PortProfile, Rate, Vlan, is_zero};

/// A pool of VFs over many PFs and nodes, with the L2 settings of the NICs on it.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "hybridnic.io",
    version = "v1alpha1",
    kind = "HybridNetwork",
    plural = "hybridnetworks",
    shortname = "hnet",
    category = "hybridnic",
    status = "HybridNetworkStatus",
    derive = "PartialEq",
    doc = "A pool of SR-IOV VFs over many PFs and nodes, with the L2 settings of the NICs on it.",
    validation = Rule::new("self.metadata.name.size() <= 50")
        .message("the name of a HybridNetwork must have at most 50 characters"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "VFs", type_ = "integer", json_path = ".status.vfs.total"),
    printcolumn(name = "Free", type_ = "integer", json_path = ".status.vfs.free"),
    printcolumn(name = "Held", type_ = "integer", json_path = ".status.vfs.held"),
    printcolumn(name = "Unhealthy", type_ = "integer", json_path = ".status.vfs.unhealthy", priority = "1"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes"),
    printcolumn(name = "NICs", type_ = "integer", json_path = ".status.nics"),
    printcolumn(name = "Fast", type_ = "integer", json_path = ".status.onFastPath"),
    printcolumn(name = "Standby", type_ = "integer", json_path = ".status.onStandby"),
    printcolumn(name = "VLAN", type_ = "integer", json_path = ".spec.vlan.id", priority = "1"),
    printcolumn(name = "Why", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(oldSelf.vlan) == has(self.vlan) && (!has(self.vlan) || self.vlan == oldSelf.vlan)")
    .message("vlan cannot change while NICs may use it: create another HybridNetwork"))]
#[x_kube(validation = Rule::new("has(oldSelf.mtu) == has(self.mtu) && (!has(self.mtu) || self.mtu == oldSelf.mtu)")
    .message("mtu cannot change while NICs may use it: create another HybridNetwork"))]
#[x_kube(validation = Rule::new("has(oldSelf.portProfile) == has(self.portProfile) && (!has(self.portProfile) || self.portProfile == oldSelf.portProfile)")
    .message("portProfile cannot change while NICs may use it: create another HybridNetwork"))]
#[x_kube(validation = Rule::new("!has(self.portProfile) || !has(self.vlan) || self.vlan.id == 0")
    .message("portProfile and vlan exclude each other: the profile says which VLAN the switch's port is in, so leave vlan out"))]
#[x_kube(validation = Rule::new("!has(self.vlan) || !has(self.vlan.qos) || self.vlan.qos == 0 || self.vlan.id > 0")
    .message("vlan.qos is the priority in a VLAN's tag: set vlan.id too, or leave qos out"))]
pub struct HybridNetworkSpec {
    /// The nodes whose VFs belong to the pool, by their labels; without it, all nodes with an agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "limits::selector")]
    pub node_selector: Option<LabelSelector>,
    /// Which PFs, and which of their VFs, make the pool. A VF belongs to it when any entry selects it.
    #[schemars(length(min = 1, max = limits::UPLINKS))]
    pub uplinks: Vec<Uplink>,
    /// The VLAN of the NICs; without it, their frames are untagged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<Vlan>,
    /// The port profile that the VFs get at their switch (IEEE 802.1Qbh): it is associated before a VF is plugged, and taken back when
    /// the VF is parked. Only for PFs whose driver can do that, as enic's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_profile: Option<PortProfile>,
    /// Transmit rate of each VF.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Whether a frame whose source MAC is not the NIC's is dropped.
    #[serde(default = "yes")]
    pub spoof_check: bool,
    /// Whether a guest may change its VF's MAC and receive promiscuously. Only for guests that you trust. The standby does
    /// neither.
    #[serde(default)]
    pub trust: bool,
    /// Whether guests may send frames with VLAN tags of their own. A VF passes them always: so an untagged network without this is
    /// refused a PF that also carries networks with a VLAN, where its guests could reach those.
    #[serde(default)]
    pub guest_vlans: bool,
    /// MTU of VF and standby in bytes; without it, that of the PF. A PF with a smaller one is raised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 68 && self <= 65535")
        .message("mtu is in bytes, from 68 to 65535"))]
    pub mtu: Option<i32>,
    /// The mode of the standbys' macvtaps: `Bridge`, in which the node's kernel switches between those on one PF; or `Vepa`, in which the
    /// switch does, by a port in hairpin mode.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("macvtapMode cannot change while NICs may use it: create another HybridNetwork"))]
    pub macvtap_mode: MacvtapMode,
    /// What a NIC does when its VF's PF has lost its link: `Move` to a VF of a PF that has one, or `Stay`.
    #[serde(default)]
    pub on_link_loss: OnLinkLoss,
    /// Which MAC addresses NICs may ask for. An attached NIC keeps the address that it has, whatever this changes to.
    #[serde(default)]
    pub macs: MacPolicy,
    /// Where generated MAC addresses come from; without it, a locally administered range of the network's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac_range: Option<MacRange>,
    /// How many NICs of the network a node may have beside those that get a VF, for VMs whose pods ask their node for a device of the
    /// network, as KubeVirt's do: such a NIC runs on its standby until a VF is free. With 0 such a pod waits for a node with a free VF.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[x_kube(validation = Rule::new("self >= 0 && self <= 256")
        .message("standbySlots is from 0 to 256"))]
    pub standby_slots: i32,
    /// The namespaces whose NICs may use the network, by their labels; without it, all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "limits::selector")]
    pub namespace_selector: Option<LabelSelector>,
}

fn yes() -> bool {
    true
}

/// Which MAC addresses the NICs of a network may ask for. No NIC ever gets the address of a group, of a virtual router (VRRP, CARP,
/// HSRP, GLBP), of a node's PF, of the range of parked VFs (`06:…`), or of another NIC of the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MacPolicy {
    /// None: each gets a generated one.
    Generated,
    /// Those of `macRange`, or of the network's own range where there is none.
    #[default]
    InRange,
    /// All. For networks whose users may take any station's address.
    Any,
}

/// PFs, chosen by what they are. All of the fields that are set must fit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "has(self.pfNames) || has(self.pciAddresses) || has(self.vendor) || has(self.device) || has(self.drivers)")
    .message("an uplink must say which PFs it means: set pfNames, pciAddresses, vendor, device or drivers"))]
#[x_kube(validation = Rule::new("!has(self.device) || has(self.vendor)")
    .message("device ids are unique only within a vendor: set vendor too"))]
pub struct Uplink {
    /// Interface names of PFs, with the wildcards `*` and `?`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 15)))]
    #[x_kube(validation = Rule::new("self.all(n, n.matches('^[A-Za-z0-9_.*?@-]+$'))")
        .message("pfNames are interface names of at most 15 characters, with * and ? as wildcards, as in \"ens1f*\""))]
    pub pf_names: Vec<String>,
    /// PCI addresses of PFs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(max = 16)))]
    #[x_kube(validation = Rule::new("self.all(a, a.matches('^[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f][.][0-7]$'))")
        .message("pciAddresses are full and in lower case, as in \"0000:01:00.0\""))]
    pub pci_addresses: Vec<String>,
    /// PCI vendor id, four hexadecimal digits, as in `8086`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9a-f]{4}$')")
        .message("vendor is four hexadecimal digits in lower case, as in \"8086\""))]
    pub vendor: Option<String>,
    /// PCI device id of the PF, four hexadecimal digits, as in `10c9`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9a-f]{4}$')")
        .message("device is four hexadecimal digits in lower case, as in \"10c9\""))]
    pub device: Option<String>,
    /// Kernel drivers of the PF, as in `ixgbe`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 32)))]
    #[x_kube(validation = Rule::new("self.all(d, d.matches('^[A-Za-z0-9_-]+$'))")
        .message("drivers are names of kernel drivers, as in \"ixgbe\""))]
    pub drivers: Vec<String>,
    /// Which VFs of the PF: indexes and ranges of them, as in `0-3` and `5`; without it, all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 7)))]
    #[x_kube(validation = Rule::new("self.all(r, r.matches('^[0-9]{1,3}(-[0-9]{1,3})?$') && \
         (!r.contains('-') || int(r.split('-')[0]) <= int(r.split('-')[1])))")
        .message("vfs are VF indexes or rising ranges of them, as in \"0-3\" or \"5\""))]
    pub vfs: Vec<String>,
    /// How many VFs to create on a PF that has none. A PF that has some keeps them as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 255")
        .message("numVfs is from 1 to 255; leave it out to take the VFs that are there"))]
    pub num_vfs: Option<i32>,
}

/// A range of MAC addresses, both ends included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.from.lowerAscii() <= self.to.lowerAscii()")
    .message("macRange.from must not be above macRange.to"))]
pub struct MacRange {
    /// The first address.
    #[schemars(length(max = 17))]
    #[x_kube(validation = Rule::new(
        "self.matches('^[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}$') && self != '00:00:00:00:00:00'")
        .message("macRange.from must be a unicast MAC address, as in \"02:00:00:00:00:01\""))]
    #[x_kube(validation = Rule::new("!self.startsWith('06:')")
        .message("macRange.from must not begin with 06, as the addresses of parked VFs do"))]
    pub from: String,
    /// The last address.
    #[schemars(length(max = 17))]
    #[x_kube(validation = Rule::new(
        "self.matches('^[0-9a-fA-F][02468aceACE](:[0-9a-fA-F]{2}){5}$') && self != '00:00:00:00:00:00'")
        .message("macRange.to must be a unicast MAC address, as in \"02:00:00:00:ff:ff\""))]
    #[x_kube(validation = Rule::new("!self.startsWith('06:')")
        .message("macRange.to must not begin with 06, as the addresses of parked VFs do"))]
    pub to: String,
}

/// The state of a network in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HybridNetworkStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The pool's VFs.
    #[serde(default)]
    pub vfs: VfCounts,
    /// Nodes with at least one VF of the pool.
    #[serde(default)]
    pub nodes: i32,
    /// NICs on the network.
    #[serde(default)]
    pub nics: i32,
    /// NICs whose traffic runs on a VF.
    #[serde(default)]
    pub on_fast_path: i32,
    /// NICs whose traffic runs on the standby.
    #[serde(default)]
    pub on_standby: i32,
    /// How many of these are told to stay there (`path: Standby`).
    #[serde(default)]
    pub told_standby: i32,
    /// Conditions `Accepted` and `Ready`.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[schemars(schema_with = "limits::conditions")]
    pub conditions: Vec<Condition>,
}

/// How many VFs there are, by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VfCounts {
    /// All.
    pub total: i32,
    /// Free for a NIC.
    pub free: i32,
    /// Held by a NIC.
    pub held: i32,
    /// Not to be used: gone, without link, or used by something else.
    pub unhealthy: i32,
    /// Kept free, because they are drained.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub drained: i32,
}
