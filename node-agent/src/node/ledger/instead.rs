//! VFs in place of those that NICs have.

use hybridnic_net::{PciAddress, sysfs::Inventory};

use super::{Claimant, Ledger, State};
use crate::node::{
    choice::{Choice, Pick, Wish},
    select,
};

impl Ledger {
    /// Whether [`Ledger::take`] would give a NIC that has a VF a better one: one that has not failed for it, and is on a PF that
    /// has a link where its own PF, `dark`, has none.
    pub fn offers_better(
        &self,
        inventory: &Inventory,
        claimant: &Claimant,
        wish: &Wish<'_>,
        dark: Option<PciAddress>,
    ) -> bool {
        self.with(|s| {
            let choice = s.best(inventory, claimant, wish);
            choice.is_some_and(|choice| s.is_better(claimant, &choice, dark))
        })
    }

    /// Whether a NIC may have a VF of this PF in place of the one that it has: one for which nobody waits. It is queued for it, so that
    /// no other NIC leaves its VF for the same one; it must [`Ledger::stop_waiting`] when it goes there no longer.
    pub fn offers_home(
        &self,
        inventory: &Inventory,
        claimant: &Claimant,
        network: &str,
        home: PciAddress,
    ) -> bool {
        let wish = Wish {
            network,
            pick: Pick::OnPf(home),
            standby_pf: Some(home),
        };
        let fit = |s: &State, choice: &Choice| {
            select::has_link(&choice.pf) && !s.is_avoided(claimant, choice.vf.address)
        };
        self.with(|s| s.queue_for(inventory, claimant, &wish, fit))
    }

    /// As [`Ledger::offers_better`], for a NIC that has nothing besides its VF: it is queued for the better one, for which nobody waits, so
    /// that no other NIC leaves its own for the same. It must [`Ledger::stop_waiting`] when it goes there no longer.
    pub fn offers_sole(
        &self,
        inventory: &Inventory,
        claimant: &Claimant,
        wish: &Wish<'_>,
        dark: Option<PciAddress>,
    ) -> bool {
        self.with(|s| {
            s.queue_for(inventory, claimant, wish, |s, choice| {
                s.is_better(claimant, choice, dark)
            })
        })
    }
}

impl State {
    /// Whether a VF is better than the one that a NIC has: it has not failed for it, and is on a PF that has a link where its own PF,
    /// `dark`, has none.
    pub(super) fn is_better(&self, claimant: &Claimant, choice: &Choice, dark: Option<PciAddress>) -> bool {
        let lit = dark != Some(choice.pf.address) && select::has_link(&choice.pf);
        !self.is_avoided(claimant, choice.vf.address) && (dark.is_none() || lit)
    }

    /// Whether there is a VF that is fit, and for which nobody waits; the NIC is queued for it then.
    pub(super) fn queue_for(
        &mut self,
        inventory: &Inventory,
        claimant: &Claimant,
        wish: &Wish<'_>,
        fit: impl Fn(&Self, &Choice) -> bool,
    ) -> bool {
        self.waiting.remove(claimant);
        let choice = self.best_after(self.waiting.iter(), &self.drain, inventory, claimant, wish);
        let offered = choice.is_some_and(|choice| fit(self, &choice));
        if offered {
            self.waiting
                .insert(claimant.clone(), (wish.network.to_owned(), wish.pick));
        }
        offered
    }
}
