//! Networking mechanisms of a node: SR-IOV functions, VF settings, macvtaps and the descriptors QEMU needs.
//!
//! Mechanism only: nothing here knows of Kubernetes, decides which VF to use, or keeps state. Each module does one
//! thing with one interface of the kernel:
//!
//! | module | does | by |
//! |---|---|---|
//! | [`sysfs`] | finds PFs and VFs, makes VFs, binds drivers | sysfs |
//! | [`netlink`] | links, macvtaps, VLAN devices, VF settings, link events | rtnetlink |
//! | [`multicast`] | the multicast addresses that a link receives | `SIOCADDMULTI`, `/proc/net/dev_mcast` |
//! | [`tap`] | a macvtap's descriptor | its character device |
//! | [`tap_node`] | the device node of a macvtap in a pod | `/sys/dev/char`, `/dev` |
//! | [`dev`] | vhost-net, iommufd and vfio descriptors; is a VF in use | device nodes |
//! | [`netns`] | network namespaces of pods | their descriptors |
//! | [`interrupts`] | does a guest use its VF | sysfs |
//! | [`uevent`] | PCI functions and interfaces that come and go | kernel uevents |
//! | [`announce`] | tells switches where a MAC is now | a packet socket |
#![cfg_attr(
    any(test, feature = "testing"),
    doc = "| [`testing`] | makes a sysfs to test with | files |"
)]

pub mod announce;
pub mod dev;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod interrupts;
pub mod multicast;
pub mod netlink;
pub mod netns;
pub mod sysfs;
pub mod tap;
pub mod tap_node;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod types;
pub mod uevent;

pub use types::{
    DeviceId, MacAddr, ParseDeviceIdError, ParseMacError, ParsePciError, ParseUuidError,
    ParseVlanProtocolError, PciAddress, PciId, SLOTS, Uuid, VlanProtocol,
};
