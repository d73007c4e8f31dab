//! What is seen of one NIC: its VF, its macvtap, its devices in the guest. Types only, for the plan and the report.

use crate::machine::socket::Offence;

pub use crate::machine::Run;

/// What is seen of a VF that is reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VfSeen {
    /// It is there.
    There(VfThere),
    /// It is proven that there is no such PCI function any more.
    Gone,
    /// Its state is unknown: its PF resets, or something cannot be read. It may have any MAC.
    Unknown {
        /// Whether its PF is not the standby's.
        other_pf: bool,
    },
}

/// What is seen of a VF that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VfThere {
    /// Whether it is bound to vfio-pci.
    pub on_vfio: bool,
    /// Whose MAC it has.
    pub mac: VfMac,
    /// Whether its other settings are the network's.
    pub settings_ok: bool,
    /// Whether its PF has a link.
    pub link: bool,
    /// Whether its PF has had no link for so long that the NIC may leave it. It stays so until the link has been back for a
    /// while.
    pub dark: bool,
    /// Whether its PF is not the standby's.
    pub other_pf: bool,
    /// Whether somebody has a descriptor of it that QEMU was given. No driver lets go of it before that is closed.
    pub held: bool,
    /// What the switch has been asked for its port.
    pub port: Port,
}

/// What the switch has been asked for a VF's port, where the network has a port profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Port {
    /// The network has no port profile: nothing is requested or read.
    NoProfile,
    /// Nothing, or it has taken the profile away.
    Free,
    /// It keeps what the NIC's profile needs.
    Preassociated,
    /// It has the NIC's profile.
    Associated,
    /// Anything else: what was asked is not done yet, was refused, or belongs to another NIC.
    Unsettled,
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
    /// It lives, and is not listened to for a while, because it has sent too many events.
    Flooding,
    /// What is at its socket's place is not talked to.
    Untrusted(Offence),
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
    /// Whether a migration is under way: no device can be plugged or unplugged then.
    pub migrating: bool,
    /// Whether a device may be plugged into it: a guest without ACPI does not survive that.
    pub acpi: bool,
}

/// All that the plan looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Whether the journal has a record.
    pub recorded: bool,
    /// The VF that is reserved.
    pub vf: Option<VfSeen>,
    /// Whether a VF can be had now.
    pub vf_offered: bool,
    /// Whether a VF is available that is better than the reserved one: on a PF that has a link, where the reserved one's is
    /// dark; one that is not drained, where the reserved one is; or one that has not failed yet, where the reserved one has.
    pub other_vf: bool,
    /// Whether VF and standby have been on two PFs for a while, and a VF of the standby's can be had.
    pub home_vf: bool,
    /// Whether some PF of the network is there for a standby.
    pub uplink: bool,
    /// Whether the journal has a standby.
    pub standby_recorded: bool,
    /// Whether the sandbox of the VM's pod waits for the macvtap. Only where the runtime has it as the pod's link.
    pub sandbox_waits: bool,
    /// Whether the macvtap is there, and up.
    pub macvtap: Option<bool>,
    /// Whether the macvtap lets through what the network allows, and nothing else.
    pub guarded: bool,
    /// Whether the macvtap has another MAC than the NIC: only a process with its descriptor can do that.
    pub foreign_mac: bool,
    /// Whether the macvtap has had one, and so stays down.
    pub seized: bool,
    /// Whether it is proven that the QEMU that gave it that has ended.
    pub seizer_ended: bool,
    /// Whether the macvtap has the MTU that it could have.
    pub mtu_ok: bool,
    /// Whether the standby's PF has a link, where that can be told.
    pub standby_link: Option<bool>,
    /// Whether the standby's PF has left the machine.
    pub standby_pf_gone: bool,
    /// The VM's QEMU.
    pub qemu: QemuSeen,
}

/// What the node's PFs and VFs have to offer to a NIC in this state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// Whether a VF can be had now.
    pub vf: bool,
    /// Whether a VF is available that is better than the reserved one.
    pub other_vf: bool,
    /// Whether the NIC has been split for a while, and a VF of its standby's PF can be had.
    pub home_vf: bool,
    /// Whether some PF of the network is there for a standby.
    pub uplink: bool,
    /// Whether the PF of the reserved VF has had no link for so long that the NIC may leave it.
    pub dark: bool,
}

impl Seen {
    /// The reserved VF, where it can be seen.
    pub fn there(&self) -> Option<VfThere> {
        match self.vf {
            Some(VfSeen::There(vf)) => Some(vf),
            _ => None,
        }
    }
}
