//! What is seen of one NIC: its VF, its macvtap, its devices in the guest. Words only, for the plan and the report.

/// What is seen of a VF that is reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VfSeen {
    /// Whether it is bound to vfio-pci.
    pub on_vfio: bool,
    /// Whose MAC it has.
    pub mac: VfMac,
    /// Whether its other settings are the network's.
    pub settings_ok: bool,
    /// Whether its PF has a link.
    pub link: bool,
    /// Whether its PF is not the standby's.
    pub other_pf: bool,
}

/// Whose MAC a VF has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VfMac {
    /// The NIC's.
    Nic,
    /// Its parking MAC.
    Parking,
    /// Another.
    Other,
}

/// What is seen of the VM's QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QemuSeen {
    /// Nothing listens on its socket.
    Gone,
    /// It may live, but cannot be talked to.
    Unreachable,
    /// It answers.
    Up(Guest),
}

/// What is seen in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guest {
    /// What QEMU does.
    pub run: Run,
    /// Whether the standby is plugged.
    pub standby: bool,
    /// Whether the VF is plugged, or its unplug not yet acknowledged.
    pub vf: bool,
    /// Whether the guest uses the VF.
    pub uses_vf: bool,
    /// Whether the guest took the standby feature; `None` while its driver has not spoken.
    pub failover: Option<bool>,
}

/// What a QEMU does with the VM, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Run {
    /// The VM is here; it runs, or is paused for a reason of its own.
    Here,
    /// It waits for the VM, loads it, or has loaded it and not started it.
    Incoming,
    /// It runs a guest, or waits for one, that is not this migration's.
    Occupied,
    /// The VM is being handed over: its NICs must be silent here.
    HandingOver,
    /// The VM was handed over, or may have been, and waits here for the end, or to be taken back.
    HandedOver,
}

/// All that the plan looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Whether the journal has a record.
    pub recorded: bool,
    /// The VF that is reserved; `Some(None)` is one that has gone away.
    pub vf: Option<Option<VfSeen>>,
    /// Whether a VF can be had now.
    pub vf_offered: bool,
    /// Whether some PF of the network is there for a standby.
    pub uplink: bool,
    /// Whether the journal has a standby.
    pub standby_recorded: bool,
    /// Whether the macvtap is there, and up.
    pub macvtap: Option<bool>,
    /// The VM's QEMU.
    pub qemu: QemuSeen,
}
