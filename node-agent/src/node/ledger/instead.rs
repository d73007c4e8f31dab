//! VFs in place of those that NICs have.

use hybridnic_net::{PciAddress, sysfs::Inventory};

use super::{Claimant, Ledger, State};
use crate::node::{
    choice::{Choice, Wish},
    select,
};

impl Ledger {
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
