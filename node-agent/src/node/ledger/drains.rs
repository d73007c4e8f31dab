//! What of the node's VFs is drained.

use std::collections::BTreeMap;

use hybridnic_api::v1alpha1::Drain;
use hybridnic_net::{PciAddress, sysfs::Inventory};

use super::{
    super::{
        choice::Wish,
        drain::{self, Draining},
    },
    Claimant, Ledger,
};
use crate::journal::Lent;

impl Ledger {
    /// Takes what an administrator wants to be drained; says whether that is news.
    pub fn set_drain(&self, drain: &Drain) -> bool {
        let changed = self.with(|s| std::mem::replace(&mut s.drain, drain.clone()) != *drain);
        if changed {
            self.notify();
        }
        changed
    }

    /// What is to be drained.
    pub fn drain(&self) -> Drain {
        self.with(|s| s.drain.clone())
    }

    /// Whether a network's NICs are to leave the VFs of a PF.
    pub fn is_drained(&self, network: &str, pf: PciAddress) -> bool {
        self.with(|s| s.drain.covers(network, &pf.to_string()))
    }

    /// What is to be drained, with what of the NICs matters for that.
    pub fn draining(&self) -> Draining {
        self.with(|s| {
            let network = |uid: &str| s.nics.get(uid).map(|(nic, _)| nic.network.clone());
            let held = s.held.iter();
            let networks = held.filter_map(|(vf, claimant)| Some((*vf, network(&claimant.uid)?)));
            let mut networks: BTreeMap<_, _> = networks.collect();
            let mut lent = BTreeMap::new();
            for (vf, loan) in s.lent.iter().filter(|(vf, _)| !s.held.contains_key(*vf)) {
                lent.insert(*vf, format!("a pod that has the group of {vf}"));
                if let Lent::Known(loan) = loan {
                    networks.insert(*vf, loan.network.clone());
                }
            }
            let mut standbys = BTreeMap::new();
            for pf in s.standbys.values() {
                *standbys.entry(*pf).or_default() += 1;
            }
            Draining {
                drain: s.drain.clone(),
                networks,
                lent,
                standbys,
            }
        })
    }

    /// Which PFs are drained, in words, where a NIC would get a VF if none were.
    pub fn kept_free(&self, inventory: &Inventory, claimant: &Claimant, wish: &Wish<'_>) -> Option<String> {
        self.with(|s| {
            let before = s.waiting.range(..claimant);
            s.best_after(before, &Drain::default(), inventory, claimant, wish)?;
            let pool = s.pools.iter().find(|pool| pool.network == wish.network)?;
            drain::kept_free(inventory, pool, &s.drain)
        })
    }
}
