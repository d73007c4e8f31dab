//! Which NIC holds which VF of this node, and which wait for one.
//!
//! Only the agent hands out its node's VFs, so a lock in this process is enough to keep two NICs from one VF.

mod drains;
mod instead;
mod lent;
mod seats;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

use hybridnic_api::v1alpha1::{Drain, NodePool};
use hybridnic_net::{
    DeviceId, PciAddress,
    sysfs::{Inventory, Pf},
};
use tokio::sync::watch;

pub use seats::{Nic, Seat, Ticket};

use super::choice::{self, Choice, Inputs, Pick, Wish};
use crate::journal::Lent;

/// A NIC that asks for a VF. Older ones go first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claimant {
    /// When the attachment was made, in seconds since the epoch.
    pub created: i64,
    /// `namespace/name` of the NIC.
    pub nic: String,
    /// The attachment's uid.
    pub uid: String,
}

#[derive(Debug, Default)]
struct State {
    pools: Vec<NodePool>,
    drain: Drain,
    held: BTreeMap<PciAddress, Claimant>,
    /// Standbys by the PF that they are on.
    standbys: BTreeMap<String, PciAddress>,
    /// The network that each waits for a VF of, and which VFs will do.
    waiting: BTreeMap<Claimant, (String, Pick)>,
    /// VFs that something else uses, or may use, and what is known about that.
    foreign: BTreeMap<PciAddress, String>,
    /// VFs that the kubelet has given to pods as devices of other plugins, and to which.
    elsewhere: BTreeMap<PciAddress, String>,
    /// VFs that were given back with their parking MAC.
    parked: BTreeSet<PciAddress>,
    /// VFs that have failed for a NIC again and again: it gets them last.
    avoided: BTreeMap<String, BTreeSet<PciAddress>>,
    /// The NICs, and what each has of its pod's devices, by the attachment's uid.
    nics: BTreeMap<String, (Nic, Option<Ticket>)>,
    /// NICs that are told to do without a VF, by the attachment's uid.
    giving_back: BTreeSet<String>,
    /// Which VFs are owed to how many NICs, because their pods were given devices.
    owed: BTreeMap<Pick, usize>,
    /// VFs whose vfio groups pods have.
    lent: BTreeMap<PciAddress, Lent>,
}

impl State {
    fn is_avoided(&self, claimant: &Claimant, vf: PciAddress) -> bool {
        let avoided = self.avoided.get(&claimant.uid);
        avoided.is_some_and(|avoided| avoided.contains(&vf))
    }

    fn device(&self, claimant: &Claimant) -> Option<DeviceId> {
        match self.nics.get(&claimant.uid) {
            Some((_, Some(Ticket::Device { id, .. }))) => Some(*id),
            _ => None,
        }
    }

    fn best(&self, inventory: &Inventory, claimant: &Claimant, wish: &Wish<'_>) -> Option<Choice> {
        self.best_after(
            self.waiting.range(..claimant),
            &self.drain,
            inventory,
            claimant,
            wish,
        )
    }

    /// The best VF that is left when each of those that wait before it has one.
    fn best_after<'a>(
        &'a self,
        before: impl Iterator<Item = (&'a Claimant, &'a (String, Pick))>,
        drain: &Drain,
        inventory: &Inventory,
        claimant: &Claimant,
        wish: &Wish<'_>,
    ) -> Option<Choice> {
        let waiting = before.filter(|(_, (network, _))| network == wish.network);
        // It has been promised something only on its device's PF.
        let promised = self
            .device(claimant)
            .is_some_and(|id| wish.pick == Pick::OnPf(id.pf()));
        let older: Vec<Pick> = if self.is_lent_to(wish.pick) {
            // No other NIC may have it, no matter how long others have waited.
            Vec::new()
        } else if promised {
            waiting.map(|(_, (_, pick))| *pick).collect()
        } else {
            // What was promised to pods comes first, and with it what their NICs wait for.
            let owed = self.owed.iter();
            let owed = owed.flat_map(|(pick, count)| std::iter::repeat_n(*pick, *count));
            let others = waiting.filter(|(other, _)| self.device(other).is_none());
            owed.chain(others.map(|(_, (_, pick))| *pick)).collect()
        };
        let none = BTreeSet::new();
        let inputs = Inputs {
            inventory,
            pools: &self.pools,
            drain,
            taken: &self
                .held
                .keys()
                .chain(self.foreign.keys())
                .chain(self.elsewhere.keys())
                .copied()
                .chain(self.others(wish.pick))
                .collect(),
            held: &self.held.keys().copied().collect(),
            avoided: self.avoided.get(&claimant.uid).unwrap_or(&none),
            older: &older,
        };
        choice::best(&inputs, wish)
    }
}

/// The node's VFs and the NICs that have them. Cheap to share behind an `Arc`.
#[derive(Debug)]
pub struct Ledger {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            changed: watch::Sender::new(0),
        }
    }
}

impl Ledger {
    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        // A panic while holding the lock leaves plain data that is still right.
        let mut state = self
            .state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        change(&mut state)
    }

    fn notify(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    /// Resolves each time the pools or their holders change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Takes the pools that the operator has given this node.
    pub fn set_pools(&self, pools: &[NodePool]) {
        if self.with(|s| std::mem::replace(&mut s.pools, pools.to_vec()) != pools) {
            self.notify();
        }
    }

    /// The pools as given.
    pub fn pools(&self) -> Vec<NodePool> {
        self.with(|s| s.pools.clone())
    }

    /// Which NIC holds each VF.
    pub fn holders(&self) -> BTreeMap<PciAddress, Claimant> {
        self.with(|s| s.held.clone())
    }

    /// VFs that something else uses, or may use, and what is known about that.
    pub fn foreign(&self) -> BTreeMap<PciAddress, String> {
        self.with(|s| {
            let mut all = s.foreign.clone();
            // The owner says more than that they are in use.
            all.extend(s.elsewhere.clone());
            all
        })
    }

    /// Notes which VFs the kubelet has given to pods as devices of other plugins, in words.
    pub fn set_elsewhere(&self, elsewhere: BTreeMap<PciAddress, String>) {
        if self.with(|s| {
            let changed = s.elsewhere != elsewhere;
            s.elsewhere = elsewhere;
            changed
        }) {
            self.notify();
        }
    }

    /// Notes why this VF is passed over: something else uses it, or may use it.
    pub fn mark_foreign(&self, vf: PciAddress, why: String) {
        self.with(|s| s.foreign.insert(vf, why));
        self.notify();
    }

    /// Forgets who else was seen to use VFs, so that they are looked at again.
    pub fn forget_foreign(&self) {
        if self.with(|s| !std::mem::take(&mut s.foreign).is_empty()) {
            self.notify();
        }
    }

    /// VFs that were given back with their parking MAC, because their driver refused the one from before.
    pub fn parked(&self) -> BTreeSet<PciAddress> {
        self.with(|s| s.parked.clone())
    }

    /// Notes whether a VF is given back with its parking MAC; says whether that is news.
    pub fn note_parked(&self, vf: PciAddress, parked: bool) -> bool {
        self.with(|s| {
            if parked {
                s.parked.insert(vf)
            } else {
                s.parked.remove(&vf)
            }
        })
    }

    /// Notes a VF that the journal says a NIC holds.
    pub fn restore(&self, claimant: Claimant, vf: PciAddress) {
        self.with(|s| s.held.insert(vf, claimant));
        self.notify();
    }

    /// Notes the PF that a NIC's standby is on, for an even spread.
    pub fn note_standby(&self, uid: &str, pf: PciAddress) {
        self.with(|s| s.standbys.insert(uid.to_owned(), pf));
    }

    /// Forgets a NIC's standby.
    pub fn drop_standby(&self, uid: &str) {
        self.with(|s| s.standbys.remove(uid));
    }

    /// Takes the best free VF of a network for a NIC.
    pub fn take(&self, inventory: &Inventory, claimant: &Claimant, wish: &Wish<'_>) -> Option<Choice> {
        let choice = self.with(|s| {
            let choice = s.best(inventory, claimant, wish)?;
            s.held.insert(choice.vf.address, claimant.clone());
            s.waiting.remove(claimant);
            Some(choice)
        });
        if choice.is_some() {
            self.notify();
        }
        choice
    }

    /// Whether [`Ledger::take`] would give a VF. The NIC is queued, and older ones go first: so only one that could take
    /// a VF now may ask, and must [`Ledger::stop_waiting`] when it no longer can.
    pub fn offers(&self, inventory: &Inventory, claimant: &Claimant, wish: &Wish<'_>) -> bool {
        self.with(|s| {
            s.waiting
                .insert(claimant.clone(), (wish.network.to_owned(), wish.pick));
            s.best(inventory, claimant, wish).is_some()
        })
    }

    /// Notes that a VF has failed for a NIC again and again.
    pub fn avoid(&self, uid: &str, vf: PciAddress) {
        self.with(|s| s.avoided.entry(uid.to_owned()).or_default().insert(vf));
    }

    /// Forgets which VFs have failed for a NIC: it is another one now, or has left.
    pub fn forgive(&self, uid: &str) {
        self.with(|s| s.avoided.remove(uid));
    }

    /// The PF for a standby without a VF: one that is not drained, with a link, and with the fewest standbys.
    pub fn standby_pf(&self, inventory: &Inventory, network: &str, pick: Pick) -> Option<Pf> {
        self.with(|s| {
            let standbys = |pf| s.standbys.values().filter(|a| **a == pf).count();
            choice::standby_pf(inventory, &s.pools, &s.drain, network, pick, standbys)
        })
    }

    /// Which PFs of a network its NICs may not be on because of what other networks have there, and why; in words for a NIC.
    pub fn barred(&self, inventory: &Inventory, network: &str) -> Option<String> {
        self.with(|s| choice::barred(inventory, &s.pools, network))
    }

    /// Notes which VFs are owed to how many NICs.
    pub fn set_owed(&self, owed: BTreeMap<Pick, usize>) {
        if self.with(|s| {
            let changed = s.owed != owed;
            s.owed = owed;
            changed
        }) {
            self.notify();
        }
    }

    /// Lets those that wait look again: what they wait for may be known now.
    pub fn look_again(&self) {
        self.notify();
    }

    /// Stops waiting for a VF.
    pub fn stop_waiting(&self, claimant: &Claimant) {
        if self.with(|s| s.waiting.remove(claimant).is_some()) {
            self.notify();
        }
    }

    /// Gives a VF back.
    pub fn release(&self, vf: PciAddress) {
        if self.with(|s| s.held.remove(&vf).is_some()) {
            self.notify();
        }
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
