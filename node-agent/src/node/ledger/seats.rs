//! The node's NICs, and what each has of the devices that the kubelet has given to its pod.

use std::collections::BTreeMap;

use hybridnic_net::{DeviceId, PciAddress, sysfs::Inventory};

use super::Ledger;

/// A NIC of this node, and its pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid.
    pub pod_uid: String,
    /// The NIC's network.
    pub network: String,
}

/// What a NIC has of the devices that the kubelet has given to its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ticket {
    /// None: its pod has requested none, or fewer than it has NICs.
    None,
    /// This one.
    Device {
        /// Its id.
        id: DeviceId,
        /// Whether its standby has the device's index, and so cannot be on another PF, nor its VF.
        tied: bool,
    },
}

/// A NIC with what is known of its devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// The NIC.
    pub nic: Nic,
    /// What it has of its pod's devices; `None` where the kubelet has not said yet.
    pub ticket: Option<Ticket>,
    /// The PF of the VF that it holds.
    pub vf_pf: Option<PciAddress>,
    /// The device with which that VF was lent to its pod.
    pub lent: Option<DeviceId>,
    /// The PF of its standby.
    pub standby_pf: Option<PciAddress>,
    /// Whether it is told to do without a VF: others may have the one that its pod was promised.
    pub gives_back: bool,
}

impl Seat {
    /// The device that it uses.
    pub fn device(&self) -> Option<DeviceId> {
        match self.ticket {
            Some(Ticket::Device { id, .. }) => Some(id),
            Some(Ticket::None) | None => None,
        }
    }
}

impl Ledger {
    /// A NIC of this node has a task now.
    pub fn enter(&self, uid: &str, nic: Nic) {
        self.with(|s| {
            let ticket = s.nics.remove(uid).and_then(|(_, ticket)| ticket);
            s.nics.insert(uid.to_owned(), (nic, ticket));
        });
        self.notify();
    }

    /// A NIC has left, and no longer holds a device.
    pub fn leave(&self, uid: &str) {
        if self.with(|s| {
            s.giving_back.remove(uid);
            s.nics.remove(uid).is_some()
        }) {
            self.notify();
        }
    }

    /// Notes whether a NIC is told to do without a VF.
    pub fn set_gives_back(&self, uid: &str, gives_back: bool) {
        if self.with(|s| {
            if gives_back {
                s.giving_back.insert(uid.to_owned())
            } else {
                s.giving_back.remove(uid)
            }
        }) {
            self.notify();
        }
    }

    /// What a NIC has of its pod's devices; `None` where that is not known yet.
    pub fn ticket(&self, uid: &str) -> Option<Ticket> {
        self.with(|s| s.nics.get(uid).and_then(|(_, ticket)| *ticket))
    }

    /// Whether a NIC has a device of its pod's, or may have.
    pub fn may_have_devices(&self) -> bool {
        self.with(|s| s.nics.values().any(|(_, ticket)| *ticket != Some(Ticket::None)))
    }

    /// Notes what a NIC has of its pod's devices.
    pub fn set_ticket(&self, uid: &str, ticket: Ticket) {
        let changed = self.with(|s| {
            let nic = s.nics.get_mut(uid);
            nic.is_some_and(|(_, old)| old.replace(ticket) != Some(ticket))
        });
        if changed {
            self.notify();
        }
    }

    /// A NIC has the macvtap with the index of this device, or is about to make it. Only one NIC at a time may have it: an error names that
    /// NIC.
    pub fn tie(&self, uid: &str, id: DeviceId) -> Result<(), Nic> {
        let ours = Some(Ticket::Device { id, tied: true });
        let changed = self.with(|s| {
            let theirs = s
                .nics
                .iter()
                .find(|(other, (_, ticket))| *other != uid && *ticket == ours);
            if let Some((_, (nic, _))) = theirs {
                return Err(nic.clone());
            }
            let nic = s.nics.get_mut(uid);
            Ok(nic.is_some_and(|(_, ticket)| std::mem::replace(ticket, ours) != ours))
        })?;
        if changed {
            self.notify();
        }
        Ok(())
    }

    /// All NICs, with what is known of their devices.
    pub fn seats(&self, inventory: &Inventory) -> BTreeMap<String, Seat> {
        self.with(|s| {
            let pf_of = |vf: PciAddress| {
                let mut pfs = inventory.pfs.iter();
                pfs.find(|pf| pf.vfs.iter().any(|v| v.address == vf))
                    .map(|pf| pf.address)
            };
            let vf_pfs: BTreeMap<&str, PciAddress> = s
                .held
                .iter()
                .filter_map(|(vf, claimant)| Some((claimant.uid.as_str(), pf_of(*vf)?)))
                .collect();
            let lent: BTreeMap<&str, DeviceId> = s
                .held
                .iter()
                .filter_map(|(vf, claimant)| Some((claimant.uid.as_str(), s.device_of(*vf)?)))
                .collect();
            let seat = |(uid, (nic, ticket)): (&String, &(Nic, Option<Ticket>))| {
                let seat = Seat {
                    nic: nic.clone(),
                    ticket: *ticket,
                    vf_pf: vf_pfs.get(uid.as_str()).copied(),
                    lent: lent.get(uid.as_str()).copied(),
                    standby_pf: s.standbys.get(uid).copied(),
                    gives_back: s.giving_back.contains(uid),
                };
                (uid.clone(), seat)
            };
            s.nics.iter().map(seat).collect()
        })
    }
}
