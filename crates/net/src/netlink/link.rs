use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoMacVtap, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, MacVtapMode,
    VlanProtocol as WireVlanProtocol,
};
use serde::{Deserialize, Serialize};

use crate::types::{MacAddr, VlanProtocol};

/// A network interface, as `ip -details -statistics link` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    /// Its kernel index, never used again while the namespace lives.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its address, where it has an Ethernet one.
    pub mac: Option<MacAddr>,
    /// Whether it is administratively up (`IFF_UP`).
    pub up: bool,
    /// Whether it has a carrier; `None` where the kernel does not say.
    pub carrier: Option<bool>,
    /// MTU in octets.
    pub mtu: u32,
    /// What it is.
    pub kind: LinkKind,
    /// Index of the bond or bridge it is enslaved to.
    pub master: Option<u32>,
    /// Index of the link it is stacked on, or of a veth's peer; `None` where that is in another namespace.
    pub lower: Option<u32>,
    /// The free text that its maker gave it (`ip link set alias`).
    pub alias: Option<String>,
    /// Device it belongs to: the PCI address of a PF or VF (`IFLA_PARENT_DEV_NAME`).
    pub parent: Option<String>,
    /// What went through it.
    pub counters: Counters,
}

/// What a link is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LinkKind {
    /// A device without a software kind: hardware, or loopback.
    Device,
    /// A macvtap.
    Macvtap {
        /// Whether in bridge mode, the only one where local peers reach each other.
        bridge: bool,
    },
    /// A VLAN device.
    #[serde(rename_all = "camelCase")]
    Vlan {
        /// VLAN id.
        id: u16,
        /// Tag protocol.
        protocol: VlanProtocol,
    },
    /// Any other kind, by the kernel's name for it (`veth`, `bridge`, `bond`, `macvlan`, ...).
    Other(String),
}

/// Packets and octets through a link. Of a macvtap, "received" went to the guest and "sent" came from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Octets received.
    pub rx_bytes: u64,
    /// Octets sent.
    pub tx_bytes: u64,
    /// Received packets that were dropped.
    pub rx_dropped: u64,
    /// Packets to send that were dropped.
    pub tx_dropped: u64,
}

impl Link {
    /// Whether it is a macvtap on that lower link.
    pub fn is_macvtap_on(&self, lower: u32) -> bool {
        matches!(self.kind, LinkKind::Macvtap { .. }) && self.lower == Some(lower)
    }

    /// Whether it is that VLAN on that lower link.
    pub fn is_vlan_on(&self, lower: u32, id: u16, protocol: VlanProtocol) -> bool {
        self.kind == LinkKind::Vlan { id, protocol } && self.lower == Some(lower)
    }

    pub(super) fn from_message(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            up: message.header.flags.contains(LinkFlags::Up),
            carrier: None,
            mtu: 0,
            kind: LinkKind::Device,
            master: None,
            lower: None,
            alias: None,
            parent: None,
            counters: Counters::default(),
        };
        let mut lower_elsewhere = false;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(address) if address.len() == 6 => {
                    link.mac = MacAddr::from_prefix(address);
                }
                LinkAttribute::Carrier(carrier) => link.carrier = Some(*carrier != 0),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Controller(index) => link.master = Some(*index),
                LinkAttribute::Link(index) => link.lower = Some(*index).filter(|index| *index != 0),
                LinkAttribute::LinkNetNsId(_) => lower_elsewhere = true,
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
                LinkAttribute::ParentDevName(name) => link.parent = Some(name.clone()),
                LinkAttribute::Stats64(stats) => {
                    link.counters = Counters {
                        rx_packets: stats.rx_packets,
                        tx_packets: stats.tx_packets,
                        rx_bytes: stats.rx_bytes,
                        tx_bytes: stats.tx_bytes,
                        rx_dropped: stats.rx_dropped,
                        tx_dropped: stats.tx_dropped,
                    };
                }
                LinkAttribute::LinkInfo(infos) => link.kind = kind(infos),
                _ => {}
            }
        }
        if lower_elsewhere {
            link.lower = None;
        }
        link
    }
}

fn kind(infos: &[LinkInfo]) -> LinkKind {
    let data = infos.iter().find_map(|info| match info {
        LinkInfo::Data(data) => Some(data),
        _ => None,
    });
    let kind = infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    match (kind, data) {
        (None, _) => LinkKind::Device,
        (Some(InfoKind::MacVtap), data) => LinkKind::Macvtap {
            bridge: matches!(data, Some(InfoData::MacVtap(infos))
                if infos.contains(&InfoMacVtap::Mode(MacVtapMode::Bridge))),
        },
        (Some(InfoKind::Vlan), Some(InfoData::Vlan(infos))) => vlan(infos),
        (Some(kind), _) => LinkKind::Other(kind.to_string()),
    }
}

fn vlan(infos: &[InfoVlan]) -> LinkKind {
    let (mut vlan_id, mut protocol) = (0, VlanProtocol::Dot1q);
    for info in infos {
        match info {
            InfoVlan::Id(id) => vlan_id = *id,
            InfoVlan::Protocol(WireVlanProtocol::Ieee8021Ad) => protocol = VlanProtocol::Dot1ad,
            _ => {}
        }
    }
    LinkKind::Vlan {
        id: vlan_id,
        protocol,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(attributes: Vec<LinkAttribute>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.header.flags = LinkFlags::Up;
        message.attributes = attributes;
        message
    }

    #[test]
    fn reads_a_macvtap() {
        let link = Link::from_message(&message(vec![
            LinkAttribute::IfName("hn0".into()),
            LinkAttribute::Address(vec![0x52, 0x54, 0, 0, 0, 1]),
            LinkAttribute::Link(3),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::MacVtap),
                LinkInfo::Data(InfoData::MacVtap(vec![InfoMacVtap::Mode(MacVtapMode::Bridge)])),
            ]),
        ]));
        assert_eq!((link.index, link.name.as_str(), link.up), (7, "hn0", true));
        assert_eq!(link.mac, Some("52:54:00:00:00:01".parse().unwrap()));
        assert_eq!(link.kind, LinkKind::Macvtap { bridge: true });
        assert!(link.is_macvtap_on(3) && !link.is_macvtap_on(4));
    }

    #[test]
    fn an_index_of_another_namespace_is_no_lower_link() {
        let link = Link::from_message(&message(vec![
            LinkAttribute::Link(3),
            LinkAttribute::LinkNetNsId(0),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::MacVtap)]),
        ]));
        assert!(!link.is_macvtap_on(3));
    }

    #[test]
    fn reads_a_vlan_device() {
        let link = Link::from_message(&message(vec![
            LinkAttribute::Link(3),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vlan),
                LinkInfo::Data(InfoData::Vlan(vec![
                    InfoVlan::Protocol(WireVlanProtocol::Ieee8021Ad),
                    InfoVlan::Id(42),
                ])),
            ]),
        ]));
        assert!(link.is_vlan_on(3, 42, VlanProtocol::Dot1ad));
        assert!(!link.is_vlan_on(3, 42, VlanProtocol::Dot1q));
    }
}
