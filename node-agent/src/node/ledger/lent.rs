//! VFs whose vfio groups pods have, and to whom they are promised one by one.

use std::collections::BTreeMap;

use hybridnic_net::{DeviceId, PciAddress};

use super::{Ledger, State};
use crate::{
    journal::{Lent, Loan},
    node::choice::Pick,
};

impl State {
    /// The device with which a VF is lent.
    pub(super) fn device_of(&self, vf: PciAddress) -> Option<DeviceId> {
        match self.lent.get(&vf)? {
            Lent::Known(loan) => Some(loan.device),
            Lent::Unreadable(_) => None,
        }
    }

    /// Whether a NIC asks for exactly the VF that its pod has.
    pub(super) fn is_lent_to(&self, pick: Pick) -> bool {
        matches!(pick, Pick::Exactly(vf) if self.lent.contains_key(&vf))
    }

    /// VFs that are lent or promised to pods other than that of a NIC that asks for exactly one VF. That NIC gets it from its own pod.
    pub(super) fn others(&self, pick: Pick) -> impl Iterator<Item = PciAddress> {
        let promised = self.owed.keys().filter_map(|owed| match owed {
            Pick::Exactly(vf) => Some(*vf),
            Pick::Any | Pick::OnPf(_) => None,
        });
        let all = self.lent.keys().copied().chain(promised);
        all.filter(move |vf| pick != Pick::Exactly(*vf))
    }
}

impl Ledger {
    /// Notes that a pod has a VF's group.
    pub fn lend(&self, vf: PciAddress, lent: Lent) {
        self.with(|s| s.lent.insert(vf, lent));
        self.notify();
    }

    /// Notes that a pod is about to get a VF's group, unless a NIC holds the VF.
    pub fn lend_free(&self, loan: &Loan) -> bool {
        let vf = loan.vf.address;
        let is_free = self.with(|s| {
            // Only a file that can be read says how the VF was before.
            let is_unread = matches!(s.lent.get(&vf), Some(Lent::Unreadable(_)));
            let is_free = !s.held.contains_key(&vf) && !is_unread;
            if is_free {
                s.lent.insert(vf, Lent::Known(Box::new(loan.clone())));
            }
            is_free
        });
        if is_free {
            self.notify();
        }
        is_free
    }

    /// No pod has this VF's group any more.
    pub fn unlend(&self, vf: PciAddress) {
        if self.with(|s| s.lent.remove(&vf).is_some()) {
            self.notify();
        }
    }

    /// All VFs that are lent.
    pub fn lent(&self) -> BTreeMap<PciAddress, Lent> {
        self.with(|s| s.lent.clone())
    }

    /// Whether a VF is lent.
    pub fn is_lent(&self, vf: PciAddress) -> bool {
        self.with(|s| s.lent.contains_key(&vf))
    }

    /// To whom a VF is lent, and how it was before.
    pub fn loan_of(&self, vf: PciAddress) -> Option<Loan> {
        self.with(|s| match s.lent.get(&vf)? {
            Lent::Known(loan) => Some((**loan).clone()),
            Lent::Unreadable(_) => None,
        })
    }

    /// The VF that is lent with a device.
    pub fn loan_by(&self, device: DeviceId) -> Option<Loan> {
        self.with(|s| {
            let mut all = s.lent.values().filter_map(|lent| match lent {
                Lent::Known(loan) => Some(&**loan),
                Lent::Unreadable(_) => None,
            });
            all.find(|loan| loan.device == device).cloned()
        })
    }
}
