//! Shapes that several kinds share.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{Display, IntoStaticStr};

use crate::limits;

/// A reference to an object: name and uid, so that a later object of the same name is not taken for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectRef {
    /// The object's name.
    #[schemars(length(max = limits::NAME))]
    pub name: String,
    /// The object's uid.
    #[schemars(length(max = limits::LABEL))]
    pub uid: String,
}

/// The VLAN that a network's NICs are in. The guest does not see it: the PF tags and untags.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Vlan {
    /// VLAN id, 0 to 4094; 0 is untagged.
    #[x_kube(validation = Rule::new("self >= 0 && self <= 4094")
        .message("vlan.id must be from 0 (untagged) to 4094"))]
    pub id: i32,
    /// Priority code point of the frames that leave, 0 to 7.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[x_kube(validation = Rule::new("self >= 0 && self <= 7").message("vlan.qos must be from 0 to 7"))]
    pub qos: i32,
    /// The tag's protocol.
    #[serde(default)]
    pub protocol: VlanProtocol,
}

/// The port profile of a network: what the switch gives the ports of its VFs, by its name there (IEEE 802.1Qbh).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PortProfile {
    /// The profile's name at the switch: 1 to 39 printable ASCII characters, without spaces.
    // PORT_PROFILE_MAX of include/uapi/linux/if_link.h counts the zero at the end.
    #[schemars(length(min = 1, max = 39))]
    #[x_kube(validation = Rule::new("self.matches('^[!-~]+$')")
        .message("portProfile.name is the name of a port profile of the switch: printable ASCII characters, without spaces"))]
    pub name: String,
}

// serde passes a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
pub(super) fn is_zero(n: &i32) -> bool {
    *n == 0
}

/// Protocol of a VLAN tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum VlanProtocol {
    /// Customer tag, EtherType 0x8100.
    #[default]
    #[serde(rename = "802.1Q")]
    Dot1q,
    /// Service tag, EtherType 0x88a8. Few drivers take it on a VF.
    #[serde(rename = "802.1ad")]
    Dot1ad,
}

/// Transmit rate of a VF.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.minMbps) || !has(self.maxMbps) || self.minMbps <= self.maxMbps")
    .message("rate.minMbps must not be above rate.maxMbps"))]
pub struct Rate {
    /// Upper bound in Mbit/s; without it there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 1000000")
        .message("rate.maxMbps is in Mbit/s, from 1 to 1000000; leave it out for no limit"))]
    pub max_mbps: Option<i32>,
    /// Guaranteed share in Mbit/s; few drivers can do it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 1000000")
        .message("rate.minMbps is in Mbit/s, from 1 to 1000000; leave it out for no guarantee"))]
    pub min_mbps: Option<i32>,
}

/// The L2 settings of a network, as one NIC gets them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct L2Settings {
    /// The VLAN; without it, frames are untagged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<Vlan>,
    /// The port profile of the VF's port at the switch; without it, none is requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_profile: Option<PortProfile>,
    /// Transmit rate of the VF.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Whether the PF drops frames whose source MAC is not the VF's.
    pub spoof_check: bool,
    /// Whether the VF may change its MAC and receive promiscuously.
    pub trust: bool,
    /// Whether the guest may send tagged frames.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub guest_vlans: bool,
    /// MTU of VF and standby in bytes; without it, that of the PF.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<i32>,
    /// What to do when the VF's PF loses its link.
    #[serde(default, skip_serializing_if = "is_move")]
    pub on_link_loss: OnLinkLoss,
    /// The mode of the standby's macvtap.
    #[serde(default, skip_serializing_if = "is_bridge")]
    pub macvtap_mode: MacvtapMode,
}

// serde passes a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_bridge(mode: &MacvtapMode) -> bool {
    *mode == MacvtapMode::Bridge
}

/// What switches between the standbys that are on one PF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MacvtapMode {
    /// The node's kernel.
    #[default]
    Bridge,
    /// The switch outside, which must send frames back by the port that they came from (hairpin, reflective relay).
    Vepa,
}

// serde passes a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_move(on_link_loss: &OnLinkLoss) -> bool {
    *on_link_loss == OnLinkLoss::Move
}

/// What to do with a NIC whose VF is on a PF without link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnLinkLoss {
    /// Leave the VF after some seconds: for a VF of a PF that has a link, where one is free; or for the standby, where that is
    /// on such a PF.
    #[default]
    Move,
    /// Keep the VF, and wait for the link.
    Stay,
}

/// What to do with a NIC for which the node has no free VF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NoFreeVf {
    /// Attach it without one, and go to the fast path when a VF is free. Until then the standby carries the traffic; a NIC without a standby
    /// has no network.
    #[default]
    Standby,
    /// Attach it only once a VF is free; a migration to a node without one is refused.
    Wait,
}

/// Which device carries a NIC's traffic.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display, IntoStaticStr,
)]
#[cfg_attr(test, derive(strum::VariantArray))]
pub enum Path {
    /// The VF.
    FastPath,
    /// The virtio device on the macvtap.
    Standby,
    /// Neither: the NIC is not attached, its VM does not run here, or it has no standby and its VF is out.
    #[default]
    None,
}

/// A VF on its node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VfRef {
    /// PCI address of the VF on the node, `0000:01:10.0`.
    #[schemars(length(max = limits::WORD))]
    pub pci_address: String,
    /// Interface name of its PF.
    #[schemars(length(max = limits::WORD))]
    pub pf: String,
    /// The VF's index on its PF, from 0.
    pub index: i32,
}

/// The standby of a NIC on its node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StandbyRef {
    /// Interface name of the macvtap.
    #[schemars(length(max = limits::WORD))]
    pub macvtap: String,
    /// Interface name of the PF that it is on.
    #[schemars(length(max = limits::WORD))]
    pub pf: String,
}

/// The two devices of a NIC as the guest sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GuestDevices {
    /// Guest PCI address of the VF while it is plugged, `0000:02:00.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::WORD))]
    pub vf_pci_address: Option<String>,
    /// Guest PCI address of the standby, `0000:01:00.0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::WORD))]
    pub standby_pci_address: Option<String>,
    /// Id of QEMU's PCIe root port that is kept for the VF.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::WORD))]
    pub vf_port: Option<String>,
    /// Id of QEMU's PCIe root port that holds the standby.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = limits::WORD))]
    pub standby_port: Option<String>,
}

/// The order of the two steps of a switch between VF and standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Display, IntoStaticStr)]
#[cfg_attr(test, derive(strum::VariantArray))]
pub enum SwitchOrder {
    /// The standby receives before the VF is taken away.
    MakeBeforeBreak,
    /// The VF is taken away first: its driver refuses one MAC twice, or VF and standby are on two PFs.
    BreakBeforeMake,
}

/// Something that happened to a NIC, with its time on the node's clock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TimelineEntry {
    /// What happened: a step of the agent or an event of QEMU.
    #[schemars(length(max = limits::WORD))]
    pub event: String,
    /// When, to the microsecond.
    #[schemars(schema_with = "limits::time")]
    pub at: MicroTime,
}

/// A part of a migration with its length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MigrationPhaseTime {
    /// The phase.
    #[schemars(length(max = limits::WORD))]
    pub name: String,
    /// When it began.
    #[schemars(schema_with = "limits::time")]
    pub started_at: MicroTime,
    /// How long it took, in milliseconds; absent while it goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ms: Option<i64>,
}
