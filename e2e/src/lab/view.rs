//! What nodes and guests show of their network devices.

use serde::{Deserialize, Serialize};

/// A network device of a guest, from `/sys/class/net`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Netdev {
    /// Name, such as `eth0`.
    pub name: String,
    /// Kernel's number of it.
    pub ifindex: u32,
    /// MAC address, lower case with colons.
    pub mac: String,
    /// In bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// RFC 2863 state: `up`, `down`, `dormant` ...
    pub operstate: String,
    /// The link is there; false while the device is down.
    pub carrier: bool,
    /// Driver of the device behind it. A net_failover master shows that of its standby.
    pub driver: Option<String>,
    /// Name of the device behind it: PCI address or virtio number.
    pub device: Option<String>,
    /// Name of the master it is a slave of.
    pub master: Option<String>,
    /// `sby` on a net_failover standby.
    pub phys_port_name: Option<String>,
    /// Packets since it was made.
    pub rx_packets: u64,
    /// Packets since it was made.
    pub tx_packets: u64,
    /// Packets dropped on reception.
    pub rx_dropped: u64,
}

/// All network devices of a guest at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetView(pub Vec<Netdev>);

/// A net_failover trio, or a bond and the two in it. The primary is missing while no VF is paired.
#[derive(Debug, Clone, Copy)]
pub struct Failover<'a> {
    /// Has the IP address.
    pub master: &'a Netdev,
    /// The virtio device.
    pub standby: &'a Netdev,
    /// The VF.
    pub primary: Option<&'a Netdev>,
}

impl NetView {
    /// The net_failover devices of a MAC address, if the guest has made them.
    pub fn failover(&self, mac: &str) -> Option<Failover<'_>> {
        let standby = self
            .0
            .iter()
            .find(|n| n.mac == mac && n.phys_port_name.as_deref() == Some("sby"))?;
        let master = self.0.iter().find(|n| Some(&n.name) == standby.master.as_ref())?;
        let primary = self
            .0
            .iter()
            .find(|n| n.master.as_ref() == Some(&master.name) && n.name != standby.name);
        Some(Failover {
            master,
            standby,
            primary,
        })
    }

    /// A bond of this MAC address and the devices in it, if the guest has made one. The standby in it is a plain virtio-net.
    pub fn bond(&self, mac: &str) -> Option<Failover<'_>> {
        let master = self.0.iter().find(|n| n.mac == mac && n.driver.is_none())?;
        let in_it = |driver: &str| {
            self.0.iter().find(|n| {
                let is_plain = n.phys_port_name.as_deref() != Some("sby");
                n.master.as_ref() == Some(&master.name) && n.driver.as_deref() == Some(driver) && is_plain
            })
        };
        Some(Failover {
            master,
            standby: in_it("virtio_net")?,
            primary: in_it("igbvf"),
        })
    }

    /// The devices of a MAC address.
    pub fn with_mac<'a>(&'a self, mac: &'a str) -> impl Iterator<Item = &'a Netdev> {
        self.0.iter().filter(move |n| n.mac == mac)
    }
}

/// A VF's row in its PF's table, from `ip -j link show`. Fields a driver does not report are missing.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Vf {
    /// Number of the VF, from 0.
    #[serde(rename = "vf")]
    pub index: u32,
    /// The MAC address the PF gave it.
    #[serde(rename = "address")]
    pub mac: String,
    /// VLANs the PF tags its frames with; iproute2 says "none" by one without an id.
    #[serde(default, rename = "vlan_list")]
    vlans: Vec<VfVlan>,
    /// Frames with a foreign source MAC are dropped.
    pub spoofchk: Option<bool>,
    /// The VF may turn on promiscuous mode and the like.
    pub trust: Option<bool>,
    /// `auto`, `enable` or `disable`.
    pub link_state: Option<String>,
    /// Limits, in Mbit/s; 0 for none.
    pub rate: Option<VfRate>,
}

impl Vf {
    /// Its VLAN id; 0 for none.
    pub fn vlan(&self) -> u16 {
        self.vlans.first().map_or(0, |v| v.vlan)
    }

    /// The priority in its VLAN tag, 0 to 7.
    pub fn qos(&self) -> u8 {
        self.vlans.first().map_or(0, |v| v.qos)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct VfVlan {
    #[serde(default)]
    vlan: u16,
    #[serde(default)]
    qos: u8,
}

/// See [`Vf::rate`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct VfRate {
    /// Mbit/s.
    #[serde(default)]
    pub max_tx: u32,
    /// Mbit/s.
    #[serde(default)]
    pub min_tx: u32,
}

/// A macvtap of a node, from `ip -j -d -s link show`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Macvtap {
    /// Name.
    pub name: String,
    /// Number, also that of its `/dev/tapN`.
    pub ifindex: u32,
    /// Netdev it sits on: the PF, or the PF's VLAN device.
    pub lower: String,
    /// MAC address.
    pub mac: String,
    /// `bridge`, `vepa`, `private` or `passthru`.
    pub mode: String,
    /// Administratively up.
    pub up: bool,
    /// In bytes.
    pub mtu: u32,
    /// Packets to the guest.
    pub rx_packets: u64,
    /// Packets from the guest.
    pub tx_packets: u64,
}

/// One element of `ip -j -d -s link show`, as far as it is used.
#[derive(Debug, Deserialize)]
pub(crate) struct IpLink {
    ifindex: u32,
    ifname: String,
    #[serde(default)]
    link: Option<String>,
    #[serde(default)]
    flags: Vec<String>,
    mtu: u32,
    #[serde(default)]
    address: String,
    #[serde(default)]
    linkinfo: IpLinkInfo,
    #[serde(default)]
    pub(crate) vfinfo_list: Vec<Vf>,
    #[serde(default)]
    stats64: IpStats,
}

#[derive(Debug, Default, Deserialize)]
struct IpLinkInfo {
    #[serde(default)]
    info_kind: String,
    #[serde(default)]
    info_data: IpInfoData,
}

#[derive(Debug, Default, Deserialize)]
struct IpInfoData {
    #[serde(default)]
    mode: String,
}

#[derive(Debug, Default, Deserialize)]
struct IpStats {
    #[serde(default)]
    rx: IpCounters,
    #[serde(default)]
    tx: IpCounters,
}

#[derive(Debug, Default, Deserialize)]
struct IpCounters {
    #[serde(default)]
    packets: u64,
}

impl IpLink {
    pub(crate) fn into_macvtap(self) -> Option<Macvtap> {
        (self.linkinfo.info_kind == "macvtap").then(|| Macvtap {
            name: self.ifname,
            ifindex: self.ifindex,
            lower: self.link.unwrap_or_default(),
            mac: self.address,
            mode: self.linkinfo.info_data.mode,
            up: self.flags.iter().any(|flag| flag == "UP"),
            mtu: self.mtu,
            rx_packets: self.stats64.rx.packets,
            tx_packets: self.stats64.tx.packets,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn netdev(name: &str, master: Option<&str>, port: Option<&str>) -> Netdev {
        Netdev {
            name: name.into(),
            ifindex: 1,
            mac: "52:54:00:aa:bb:01".into(),
            mtu: 1500,
            up: true,
            operstate: "up".into(),
            carrier: true,
            driver: None,
            device: None,
            master: master.map(Into::into),
            phys_port_name: port.map(Into::into),
            rx_packets: 0,
            tx_packets: 0,
            rx_dropped: 0,
        }
    }

    #[test]
    fn a_trio_is_told_by_its_standby() {
        let view = NetView(vec![
            netdev("eth0", None, None),
            netdev("eth1", Some("eth0"), Some("sby")),
            netdev("eth2", Some("eth0"), None),
        ]);
        let trio = view.failover("52:54:00:aa:bb:01").unwrap();
        assert_eq!(
            (trio.master.name.as_str(), trio.standby.name.as_str()),
            ("eth0", "eth1")
        );
        assert_eq!(trio.primary.unwrap().name, "eth2");
        assert!(view.failover("52:54:00:aa:bb:02").is_none());
        assert!(view.bond("52:54:00:aa:bb:01").is_none());
    }

    #[test]
    fn a_bond_is_told_from_a_trio() {
        let of = |driver: &str, netdev: Netdev| Netdev {
            driver: Some(driver.into()),
            ..netdev
        };
        let (bond, standby) = (
            netdev("bond0", None, None),
            of("virtio_net", netdev("eth0", Some("bond0"), None)),
        );
        let mac = "52:54:00:aa:bb:01";
        let alone = NetView(vec![bond.clone(), standby.clone()]);
        assert!(alone.failover(mac).is_none() && alone.bond(mac).unwrap().primary.is_none());
        let vf = of("igbvf", netdev("eth1", Some("bond0"), None));
        let both = NetView(vec![bond, standby, vf]);
        let both = both.bond(mac).unwrap();
        assert_eq!(
            (both.master.name.as_str(), both.standby.name.as_str()),
            ("bond0", "eth0")
        );
        assert_eq!(both.primary.unwrap().name, "eth1");
    }
}
