use std::{collections::BTreeMap, fmt};

use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::link::{
    LinkAttribute, LinkMessage, LinkVfInfo, VfInfo, VfInfoLinkState, VfInfoMac, VfInfoRate, VfInfoSpoofCheck,
    VfInfoTrust, VfInfoVlan, VfLinkState as WireLinkState, VfStats, VfVlan, VfVlanInfo,
    VlanProtocol as WireVlanProtocol,
};
use serde::{Deserialize, Serialize};

use super::{Counters, Netlink, NetlinkError};
use crate::types::{MacAddr, VlanProtocol};

/// The id by which mlx4 says that a VF has no tag of the PF's, and may use those of its own (`MLX4_VGT`).
const VGT: u16 = 4095;

/// How a PF's driver has set up one VF (`IFLA_VFINFO_LIST`). `None` is what the kernel does not say.
///
/// A switch that the driver does not have (spoof check, trust) reads as off: the kernel tells the two apart, the
/// netlink decoder does not. Setting only what differs never asks such a driver for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VfConfig {
    /// Index of the VF on its PF.
    pub index: u16,
    /// The MAC set by the PF; [`MacAddr::ZERO`] where the VF may choose.
    pub mac: Option<MacAddr>,
    /// VLAN id that the PF puts on the VF's traffic; 0 for none.
    pub vlan: Option<u16>,
    /// Priority (PCP) of that tag, 0 to 7.
    pub qos: Option<u8>,
    /// Protocol of that tag.
    pub vlan_proto: Option<VlanProtocol>,
    /// Whether frames with another source address are dropped.
    pub spoofchk: Option<bool>,
    /// Whether the VF may ask for more (promiscuity, more addresses).
    pub trust: Option<bool>,
    /// Guaranteed rate in Mbit/s; 0 for none.
    pub min_tx_rate: Option<u32>,
    /// Rate limit in Mbit/s; 0 for none.
    pub max_tx_rate: Option<u32>,
    /// What link state the VF sees.
    pub link_state: Option<VfLinkState>,
}

/// The link state that a VF sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum VfLinkState {
    /// That of the PF.
    Auto,
    /// Always up.
    Enable,
    /// Always down.
    Disable,
}

/// One setting of a VF, the most that one request may change: the kernel applies several one after the other and stops
/// half-way at the first that a driver refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VfSetting {
    /// Its MAC. [`MacAddr::ZERO`] takes the address away, where the driver can.
    Mac(MacAddr),
    /// The tag on its traffic; an id and priority of 0 take it away.
    Vlan {
        /// VLAN id, 0 to 4094.
        id: u16,
        /// Priority (PCP), 0 to 7.
        qos: u8,
        /// Protocol of the tag.
        protocol: VlanProtocol,
    },
    /// Rates in Mbit/s; 0 for no limit and no guarantee.
    Rate {
        /// Guaranteed.
        min: u32,
        /// At most.
        max: u32,
    },
    /// Whether frames with another source address are dropped.
    SpoofCheck(bool),
    /// Whether the VF may ask for more.
    Trust(bool),
    /// What link state it sees.
    LinkState(VfLinkState),
}

impl fmt::Display for VfSetting {
    /// Name and value, as in "trust on".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name(), self.value())
    }
}

impl VfSetting {
    /// What is set, in words: `MAC`, `VLAN`, `rate`, `spoof check`, `trust` or `link state`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Mac(_) => "MAC",
            Self::Vlan { .. } => "VLAN",
            Self::Rate { .. } => "rate",
            Self::SpoofCheck(_) => "spoof check",
            Self::Trust(_) => "trust",
            Self::LinkState(_) => "link state",
        }
    }

    fn value(&self) -> String {
        match self {
            Self::Mac(mac) => mac.to_string(),
            Self::Vlan { id, qos, protocol } => format!("{id} with priority {qos} ({protocol})"),
            Self::Rate { min, max } => format!("{min} to {max} Mbit/s"),
            Self::SpoofCheck(on) | Self::Trust(on) => if *on { "on" } else { "off" }.to_owned(),
            Self::LinkState(state) => match state {
                VfLinkState::Auto => "auto",
                VfLinkState::Enable => "enable",
                VfLinkState::Disable => "disable",
            }
            .to_owned(),
        }
    }

    fn to_wire(self, vf: u32) -> VfInfo {
        match self {
            Self::Mac(mac) => VfInfo::Mac(VfInfoMac::new(vf, &mac.octets())),
            // Every driver takes the old attribute for 802.1Q; the list came with 802.1ad.
            Self::Vlan {
                id,
                qos,
                protocol: VlanProtocol::Dot1q,
            } => VfInfo::Vlan(VfInfoVlan::new(vf, id.into(), qos.into())),
            Self::Vlan {
                id,
                qos,
                protocol: VlanProtocol::Dot1ad,
            } => {
                let info = VfVlanInfo::new(vf, id.into(), qos.into(), WireVlanProtocol::Ieee8021Ad);
                VfInfo::VlanList(vec![VfVlan::Info(info)])
            }
            Self::Rate { min, max } => VfInfo::Rate(VfInfoRate::new(vf, min, max)),
            Self::SpoofCheck(on) => VfInfo::SpoofCheck(VfInfoSpoofCheck::new(vf, on)),
            Self::Trust(on) => VfInfo::Trust(VfInfoTrust::new(vf, on)),
            Self::LinkState(state) => {
                let state = match state {
                    VfLinkState::Auto => WireLinkState::Auto,
                    VfLinkState::Enable => WireLinkState::Enable,
                    VfLinkState::Disable => WireLinkState::Disable,
                };
                VfInfo::LinkState(VfInfoLinkState::new(vf, state))
            }
        }
    }
}

impl VfConfig {
    /// The settings to change so that `self` becomes `wanted`, in the order that drivers want them: the MAC last, so
    /// that the VF gets traffic only once everything else is right. What `wanted` leaves open is not touched.
    pub fn changes_to(&self, wanted: &Self) -> Vec<VfSetting> {
        let differs = |wanted: bool, now: Option<bool>| now != Some(wanted);
        let mut changes = Vec::new();
        changes.extend(
            wanted
                .trust
                .filter(|on| differs(*on, self.trust))
                .map(VfSetting::Trust),
        );
        changes.extend(
            wanted
                .spoofchk
                .filter(|on| differs(*on, self.spoofchk))
                .map(VfSetting::SpoofCheck),
        );
        if (wanted.min_tx_rate.is_some() && wanted.min_tx_rate != self.min_tx_rate)
            || (wanted.max_tx_rate.is_some() && wanted.max_tx_rate != self.max_tx_rate)
        {
            changes.push(VfSetting::Rate {
                min: wanted.min_tx_rate.or(self.min_tx_rate).unwrap_or_default(),
                max: wanted.max_tx_rate.or(self.max_tx_rate).unwrap_or_default(),
            });
        }
        changes.extend(wanted.tag().filter(|tag| self.tag().as_ref() != Some(tag)));
        let state = wanted.link_state.filter(|state| Some(*state) != self.link_state);
        changes.extend(state.map(VfSetting::LinkState));
        changes.extend(
            wanted
                .mac
                .filter(|mac| Some(*mac) != self.mac)
                .map(VfSetting::Mac),
        );
        changes
    }

    /// The VLAN setting it amounts to. Without a tag the protocol means nothing.
    fn tag(&self) -> Option<VfSetting> {
        let id = self.vlan.map(|id| if id == VGT { 0 } else { id })?;
        let qos = self.qos.unwrap_or_default();
        let tagged = id != 0 || qos != 0;
        let protocol = self.vlan_proto.filter(|_| tagged).unwrap_or_default();
        Some(VfSetting::Vlan { id, qos, protocol })
    }

    fn from_wire(infos: &[VfInfo]) -> Option<Self> {
        let mut config = Self::default();
        let mut index = None;
        for info in infos {
            match info {
                VfInfo::Mac(mac) => {
                    index = u16::try_from(mac.vf_id).ok();
                    config.mac = MacAddr::from_prefix(&mac.mac);
                }
                VfInfo::Vlan(vlan) => {
                    config.vlan = vlan.vlan_id.try_into().ok();
                    config.qos = vlan.qos.try_into().ok();
                }
                VfInfo::VlanList(list) => {
                    config.vlan_proto = list.iter().find_map(|vlan| match vlan {
                        VfVlan::Info(info) if info.protocol == WireVlanProtocol::Ieee8021Ad => {
                            Some(VlanProtocol::Dot1ad)
                        }
                        VfVlan::Info(_) => Some(VlanProtocol::Dot1q),
                        _ => None,
                    });
                }
                VfInfo::Rate(rate) => {
                    config.min_tx_rate = Some(rate.min_tx_rate);
                    config.max_tx_rate = Some(rate.max_tx_rate);
                }
                VfInfo::SpoofCheck(check) => config.spoofchk = Some(check.enabled),
                VfInfo::Trust(trust) => config.trust = Some(trust.enabled),
                VfInfo::LinkState(state) => {
                    config.link_state = match state.state {
                        WireLinkState::Auto => Some(VfLinkState::Auto),
                        WireLinkState::Enable => Some(VfLinkState::Enable),
                        WireLinkState::Disable => Some(VfLinkState::Disable),
                        _ => None,
                    };
                }
                _ => {}
            }
        }
        // Every entry the kernel writes has a MAC, and with it the index.
        Some(Self {
            index: index?,
            ..config
        })
    }
}

impl Netlink {
    /// The VFs of a PF as its driver has set them up, by index; empty where it has none. `None` where there is no such
    /// link.
    pub async fn vf_table(&self, pf: u32) -> Result<Option<Vec<VfConfig>>, NetlinkError> {
        let Some(message) = self.link_with_vfs(pf).await? else {
            return Ok(None);
        };
        Ok(Some(table(&message)))
    }

    /// What went through each VF of a PF, by index, where its driver counts that. Of a PF with more than some hundred VFs the kernel
    /// cannot say it: their counters do not fit into the one attribute that has all of them.
    pub async fn vf_counters(&self, pf: u32) -> Result<BTreeMap<u16, Counters>, NetlinkError> {
        let message = self.link_with_counters(pf).await?;
        Ok(message.as_ref().map(counters).unwrap_or_default())
    }

    /// Changes one setting of a VF, through the PF with this link index. An error names the setting and has the
    /// driver's own text where it gives one.
    pub async fn set_vf(&self, pf: u32, vf: u16, setting: VfSetting) -> Result<(), NetlinkError> {
        let list = LinkAttribute::VfInfoList(vec![LinkVfInfo(vec![setting.to_wire(vf.into())])]);
        let message = LinkUnspec::new_with_index(pf)
            .append_extra_attribute(list)
            .build();
        let (name, value) = (setting.name(), setting.value());
        self.set(
            "set_vf",
            format!("set {name} of VF {vf} of link {pf} to {value}"),
            message,
        )
        .await
    }
}

/// The counters in a PF's message, by the VF's index. Of a driver that counts nothing the kernel says zeros (`rtnl_fill_vfinfo`), so what is
/// all zeros is not known.
fn counters(message: &LinkMessage) -> BTreeMap<u16, Counters> {
    let lists = message.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::VfInfoList(list) => Some(list),
        _ => None,
    });
    let vf = |infos: &[VfInfo]| {
        let index = infos.iter().find_map(|info| match info {
            VfInfo::Mac(mac) => u16::try_from(mac.vf_id).ok(),
            _ => None,
        });
        let mut counters = Counters::default();
        let lists = infos.iter().filter_map(|info| match info {
            VfInfo::Stats(list) => Some(list),
            _ => None,
        });
        for one in lists.flatten() {
            match *one {
                VfStats::RxPackets(count) => counters.rx_packets = count,
                VfStats::TxPackets(count) => counters.tx_packets = count,
                VfStats::RxBytes(count) => counters.rx_bytes = count,
                VfStats::TxBytes(count) => counters.tx_bytes = count,
                VfStats::RxDropped(count) => counters.rx_dropped = count,
                VfStats::TxDropped(count) => counters.tx_dropped = count,
                _ => {}
            }
        }
        Some((index?, counters)).filter(|(_, counters)| *counters != Counters::default())
    };
    lists.flatten().filter_map(|infos| vf(&infos.0)).collect()
}

/// The VFs of a PF's message, by index.
pub(super) fn table(message: &LinkMessage) -> Vec<VfConfig> {
    let mut vfs: Vec<VfConfig> = message
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            LinkAttribute::VfInfoList(list) => Some(list),
            _ => None,
        })
        .flatten()
        .filter_map(|vf| VfConfig::from_wire(&vf.0))
        .collect();
    vfs.sort_unstable_by_key(|vf| vf.index);
    vfs
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::{Emitable, NlaBuffer, Parseable};

    use super::*;

    fn config() -> VfConfig {
        VfConfig {
            index: 3,
            mac: Some("52:54:00:00:00:01".parse().unwrap()),
            vlan: Some(0),
            qos: Some(0),
            vlan_proto: Some(VlanProtocol::Dot1q),
            spoofchk: Some(true),
            trust: Some(false),
            min_tx_rate: Some(0),
            max_tx_rate: Some(0),
            link_state: Some(VfLinkState::Auto),
        }
    }

    #[test]
    fn counters_that_are_all_zero_are_none() {
        let vf = |index, stats| {
            LinkVfInfo(vec![
                VfInfo::Mac(VfInfoMac::new(index, &[2, 0, 0, 0, 0, 1])),
                VfInfo::Stats(stats),
            ])
        };
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::VfInfoList(vec![
            vf(0, vec![VfStats::RxBytes(0), VfStats::TxBytes(0)]),
            vf(3, vec![VfStats::RxBytes(7), VfStats::TxPackets(1)]),
        ])];
        let counted = Counters {
            rx_bytes: 7,
            tx_packets: 1,
            ..Counters::default()
        };
        assert_eq!(counters(&message), BTreeMap::from([(3, counted)]));
    }

    #[test]
    fn nothing_to_change_is_no_request() {
        assert_eq!(config().changes_to(&config()), []);
        assert_eq!(
            config().changes_to(&VfConfig {
                index: 3,
                ..VfConfig::default()
            }),
            []
        );
        // An 802.1ad tag of nothing is no tag.
        let untagged = VfConfig {
            vlan_proto: Some(VlanProtocol::Dot1ad),
            ..config()
        };
        assert_eq!(config().changes_to(&untagged), []);
    }

    #[test]
    fn mlx4_has_a_number_of_its_own_for_no_tag() {
        let vgt = VfConfig {
            vlan: Some(4095),
            ..config()
        };
        assert_eq!(vgt.changes_to(&config()), []);
        assert_eq!(config().changes_to(&vgt), []);
        let tagged = VfConfig {
            vlan: Some(7),
            ..config()
        };
        let untagged = VfSetting::Vlan {
            id: 0,
            qos: 0,
            protocol: VlanProtocol::Dot1q,
        };
        assert_eq!(tagged.changes_to(&vgt), [untagged]);
    }

    #[test]
    fn the_mac_comes_last() {
        let wanted = VfConfig {
            mac: Some("52:54:00:00:00:02".parse().unwrap()),
            vlan: Some(42),
            qos: Some(3),
            vlan_proto: Some(VlanProtocol::Dot1ad),
            spoofchk: Some(false),
            trust: Some(true),
            max_tx_rate: Some(1000),
            min_tx_rate: None,
            link_state: Some(VfLinkState::Enable),
            index: 3,
        };
        assert_eq!(
            config().changes_to(&wanted),
            [
                VfSetting::Trust(true),
                VfSetting::SpoofCheck(false),
                VfSetting::Rate { min: 0, max: 1000 },
                VfSetting::Vlan {
                    id: 42,
                    qos: 3,
                    protocol: VlanProtocol::Dot1ad
                },
                VfSetting::LinkState(VfLinkState::Enable),
                VfSetting::Mac("52:54:00:00:00:02".parse().unwrap()),
            ]
        );
    }

    /// Every setting reads back from its own wire form as what was set.
    #[test]
    fn settings_survive_the_wire() {
        let wanted = VfConfig {
            vlan: Some(42),
            qos: Some(3),
            vlan_proto: Some(VlanProtocol::Dot1ad),
            ..config()
        };
        let mut infos: Vec<VfInfo> = VfConfig::default()
            .changes_to(&wanted)
            .iter()
            .map(|s| s.to_wire(3))
            .collect();
        // The kernel reports id and priority in the old attribute also for 802.1ad.
        infos.push(VfInfo::Vlan(VfInfoVlan::new(3, 42, 3)));
        let decoded: Vec<VfInfo> = infos
            .iter()
            .map(|info| {
                let mut bytes = vec![0; info.buffer_len()];
                info.emit(&mut bytes);
                VfInfo::parse(&NlaBuffer::new_checked(&bytes[..]).unwrap()).unwrap()
            })
            .collect();
        assert_eq!(VfConfig::from_wire(&decoded), Some(wanted));
    }
}
