//! What a NIC's task sees of its VM, asks it for, and hands over.

use std::os::fd::OwnedFd;

use hybridnic_api::v1alpha1::Pairing;
use hybridnic_net::{MacAddr, PciAddress};

/// What a VM's runtime does with it, as far as it matters to a NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Run {
    /// The VM is here; it runs, or is paused for a reason of its own.
    Here,
    /// It waits for the VM, loads it, or has loaded it and not started it.
    Incoming,
    /// The VM is loaded, and is being started: its NICs are in the hands of the VM's own task.
    Starting,
    /// It runs a guest, or waits for one, that is not this migration's.
    Occupied,
    /// The VM is being handed over: its NICs must be silent here.
    HandingOver,
    /// The VM was handed over, or may have been, and waits here for the end, or to be taken back.
    HandedOver,
}

/// What is seen of one NIC's VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineSeen {
    /// What is done with the VM.
    pub run: Run,
    /// Whether the VM runs.
    pub running: bool,
    /// Whether the standby is plugged.
    pub standby: bool,
    /// Id of the VF's device, where it is plugged.
    pub vf: Option<String>,
    /// Whether the guest took the standby feature; `None` while its driver has not spoken.
    pub failover: Option<bool>,
    /// Whether a migration is under way.
    pub migrating: bool,
    /// Whether the VM has ACPI.
    pub acpi: bool,
}

/// A standby to be plugged.
#[derive(Debug)]
pub struct StandbyPlug {
    /// The device's id.
    pub id: String,
    /// The NIC's name.
    pub nic: String,
    /// Its MAC.
    pub mac: MacAddr,
    /// How the guest pairs it with its VF.
    pub pairing: Pairing,
    /// The port of the guest.
    pub port: String,
    /// The macvtap.
    pub tap: OwnedFd,
    /// vhost-net, where it can be used.
    pub vhost: Option<OwnedFd>,
}

/// A VF to be plugged.
#[derive(Debug)]
pub struct VfPlug {
    /// The device's id.
    pub id: String,
    /// The port of the guest.
    pub port: String,
    /// The VF.
    pub vf: PciAddress,
    /// How it is plugged; without them, by its group.
    pub descriptors: Option<VfDescriptors>,
}

/// By what a VF is plugged.
#[derive(Debug)]
pub struct VfDescriptors {
    /// An iommufd.
    pub iommu: OwnedFd,
    /// The VF's own vfio device.
    pub device: OwnedFd,
}

/// How a VF was plugged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display)]
#[strum(serialize_all = "lowercase")]
pub enum PlugPath {
    /// By an iommufd and a descriptor.
    Iommufd,
    /// By its vfio group.
    Group,
}

/// Whether the guest has let go of a device in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LetGo {
    /// It has.
    Yes,
    /// It has not, or says that it will not.
    No,
}
