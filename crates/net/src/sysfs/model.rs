//! What discovery finds.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::types::{MacAddr, PciAddress, PciId};

/// All physical functions of a node, and what could not be read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inventory {
    /// Network functions that can have VFs, ordered by PCI address.
    pub pfs: Vec<Pf>,
    /// Attributes that exist and could not be read or understood.
    pub problems: Vec<Problem>,
}

/// An attribute that could not be read or understood.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// The attribute.
    pub path: PathBuf,
    /// The kernel's error, or what is wrong with the text.
    pub reason: String,
}

/// A physical function: a PCI network function with `sriov_totalvfs` above zero.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pf {
    /// Its PCI address.
    pub address: PciAddress,
    /// Its network interface; `None` where it has no driver, or lies in another network namespace.
    pub name: Option<String>,
    /// Kernel index of the interface.
    pub ifindex: Option<u32>,
    /// Vendor and device id.
    pub id: Option<PciId>,
    /// The driver it is bound to.
    pub driver: Option<String>,
    /// The NUMA node it hangs on; `None` where the firmware does not say.
    pub numa_node: Option<u32>,
    /// The interface's current address.
    pub mac: Option<MacAddr>,
    /// The interface's MTU in octets.
    pub mtu: Option<u32>,
    /// Whether the interface has a carrier; `None` while it is administratively down.
    pub carrier: Option<bool>,
    /// The interface's RFC 2863 state: `up`, `down`, `unknown` and so on.
    pub operstate: Option<String>,
    /// The bond, bridge or other device that the interface is enslaved to.
    pub master: Option<Master>,
    /// What it carries.
    pub link_layer: LinkLayer,
    /// Interfaces beside its own in the same directory that stand for other ports of its switch. It has some while its
    /// eswitch is in switchdev mode: what a VF sends then comes out of them.
    pub representors: Vec<String>,
    /// The most VFs it can have (`sriov_totalvfs`).
    pub total_vfs: u16,
    /// The VFs it has, by their links. `sriov_numvfs` says the same, and waits for the driver where that is at work.
    pub num_vfs: u16,
    /// Its VFs, ordered by index.
    pub vfs: Vec<Vf>,
    /// A sentence for people if its driver does not return. Sysfs does not show it: the caller of the driver fills it in.
    pub hung: Option<String>,
}

/// What a physical function carries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LinkLayer {
    /// Ethernet, or nothing that says otherwise.
    #[default]
    Ethernet,
    /// InfiniBand.
    InfiniBand,
    /// Another; its `ARPHRD` number.
    Other(u32),
}

/// The device that an interface is enslaved to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Master {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: MasterKind,
}

/// What enslaves an interface, as far as it matters to a macvtap beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MasterKind {
    /// A bond, in this mode (`802.3ad`, `active-backup`, ...).
    Bond(String),
    /// A Linux bridge.
    Bridge,
    /// Anything else: Open vSwitch, team, VRF, ...
    Other,
}

/// A virtual function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Vf {
    /// Its index on the PF, as netlink counts VFs.
    pub index: u16,
    /// Its PCI address.
    pub address: PciAddress,
    /// The driver it is bound to.
    pub driver: Option<String>,
    /// Its IOMMU group, the name of its node in `/dev/vfio`.
    pub iommu_group: Option<u32>,
    /// Its vfio character device (`vfio3`), the name of its node in `/dev/vfio/devices`; where bound to vfio and the
    /// kernel has `CONFIG_VFIO_DEVICE_CDEV`.
    pub vfio_cdev: Option<String>,
    /// Other functions of its IOMMU group, bridges left out. vfio gives a group away as a whole.
    pub group_peers: Vec<PciAddress>,
    /// Its network interface, where a network driver has it.
    pub netdev: Option<VfNetdev>,
    /// As of [`Pf::hung`].
    pub hung: Option<String>,
}

/// A VF's network interface on the node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VfNetdev {
    /// Its name.
    pub name: String,
    /// Its kernel index.
    pub ifindex: Option<u32>,
    /// Whether it is administratively up.
    pub up: bool,
    /// Devices on top of it: a bridge or bond that it is a port of, VLAN devices, macvlans.
    pub uppers: Vec<String>,
    /// Its addresses, link-local ones left out. Not from sysfs: [`crate::netlink::Netlink::addresses`] knows them.
    pub addresses: Vec<IpAddr>,
    /// Whether a route leads out of it. Not from sysfs: [`crate::netlink::Netlink::routed`] knows.
    pub routed: bool,
}
