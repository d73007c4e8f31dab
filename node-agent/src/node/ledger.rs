//! Who holds which VF of this node, and who waits for one.
//!
//! The agent alone hands out its node's VFs, so a lock in this process is all that keeps two NICs from one VF.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

use hybridnic_api::v1alpha1::NodePool;
use hybridnic_net::{
    DeviceId, PciAddress,
    sysfs::{Inventory, Pf},
};
use tokio::sync::watch;

use super::{
    choice::{self, Choice, Inputs, Pick, Wish},
    select,
};

/// Who asks for a VF. Older ones go first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claimant {
    /// When the attachment was made, in seconds since the epoch.
    pub created: i64,
    /// `namespace/name` of the NIC.
    pub nic: String,
    /// The attachment's uid.
    pub uid: String,
}

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
    /// None: its pod has asked for none, or for fewer than it has NICs.
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
    /// The PF of its standby.
    pub standby_pf: Option<PciAddress>,
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

#[derive(Debug, Default)]
struct State {
    pools: Vec<NodePool>,
    held: BTreeMap<PciAddress, Claimant>,
    /// Standbys by the PF that they are on.
    standbys: BTreeMap<String, PciAddress>,
    /// The network of whose VFs each waits for one, and which of them will do.
    waiting: BTreeMap<Claimant, (String, Pick)>,
    /// VFs that something else uses, or may use, and what is known of that.
    foreign: BTreeMap<PciAddress, String>,
    /// VFs that were given back with their parking MAC.
    parked: BTreeSet<PciAddress>,
    /// VFs that have failed for a NIC again and again: it gets them last.
    avoided: BTreeMap<String, BTreeSet<PciAddress>>,
    /// The NICs, and what each has of its pod's devices, by the attachment's uid.
    nics: BTreeMap<String, (Nic, Option<Ticket>)>,
    /// How many NICs each PF owes a VF, as their pods were given a device of it.
    owed: BTreeMap<PciAddress, usize>,
}

impl State {
    fn is_avoided(&self, claimant: &Claimant, vf: PciAddress) -> bool {
        let avoided = self.avoided.get(&claimant.uid);
        avoided.is_some_and(|avoided| avoided.contains(&vf))
    }

    fn has_device(&self, claimant: &Claimant) -> bool {
        let nic = self.nics.get(&claimant.uid);
        nic.is_some_and(|(_, ticket)| matches!(ticket, Some(Ticket::Device { .. })))
    }

    fn best(&self, inventory: &Inventory, claimant: &Claimant, wish: &Wish<'_>) -> Option<Choice> {
        let waiting = self.waiting.range(..claimant);
        let waiting = waiting.filter(|(_, (network, _))| network == wish.network);
        let older: Vec<Pick> = if self.has_device(claimant) {
            waiting.map(|(_, (_, pick))| *pick).collect()
        } else {
            // What was promised to pods comes first, and with it what their NICs wait for.
            let owed = self.owed.iter();
            let owed = owed.flat_map(|(pf, count)| std::iter::repeat_n(Pick::OnPf(*pf), *count));
            let others = waiting.filter(|(other, _)| !self.has_device(other));
            owed.chain(others.map(|(_, (_, pick))| *pick)).collect()
        };
        let none = BTreeSet::new();
        let inputs = Inputs {
            inventory,
            pools: &self.pools,
            taken: &self.held.keys().chain(self.foreign.keys()).copied().collect(),
            held: &self.held.keys().copied().collect(),
            avoided: self.avoided.get(&claimant.uid).unwrap_or(&none),
            older: &older,
        };
        choice::best(&inputs, wish)
    }
}

/// The node's VFs and who has them. Cheap to share behind an `Arc`.
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

    /// Who holds each VF.
    pub fn holders(&self) -> BTreeMap<PciAddress, Claimant> {
        self.with(|s| s.held.clone())
    }

    /// VFs that something else uses, or may use, and what is known of that.
    pub fn foreign(&self) -> BTreeMap<PciAddress, String> {
        self.with(|s| s.foreign.clone())
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
            s.best(inventory, claimant, wish).is_some_and(|choice| {
                let lit = dark != Some(choice.pf.address) && select::has_link(&choice.pf);
                !s.is_avoided(claimant, choice.vf.address) && (dark.is_none() || lit)
            })
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

    /// The PF for a standby without a VF: with a link, and with the fewest standbys.
    pub fn standby_pf(&self, inventory: &Inventory, network: &str, pick: Pick) -> Option<Pf> {
        self.with(|s| {
            let standbys = |pf| s.standbys.values().filter(|a| **a == pf).count();
            choice::standby_pf(inventory, &s.pools, network, pick, standbys)
        })
    }

    /// Which PFs of a network its NICs may not be on because of what other networks have there, and why; in words for a NIC.
    pub fn barred(&self, inventory: &Inventory, network: &str) -> Option<String> {
        self.with(|s| choice::barred(inventory, &s.pools, network))
    }

    /// A NIC of this node has a task now.
    pub fn enter(&self, uid: &str, nic: Nic) {
        self.with(|s| {
            let ticket = s.nics.remove(uid).and_then(|(_, ticket)| ticket);
            s.nics.insert(uid.to_owned(), (nic, ticket));
        });
        self.notify();
    }

    /// A NIC has left, and with it goes its hold on a device.
    pub fn leave(&self, uid: &str) {
        if self.with(|s| s.nics.remove(uid).is_some()) {
            self.notify();
        }
    }

    /// What a NIC has of its pod's devices; `None` where that is not known yet.
    pub fn ticket(&self, uid: &str) -> Option<Ticket> {
        self.with(|s| s.nics.get(uid).and_then(|(_, ticket)| *ticket))
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

    /// A NIC has the macvtap with the index of this device, or is about to make it. It is one NIC's at a time: an error says whose it is.
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
            let seat = |(uid, (nic, ticket)): (&String, &(Nic, Option<Ticket>))| {
                let seat = Seat {
                    nic: nic.clone(),
                    ticket: *ticket,
                    vf_pf: vf_pfs.get(uid.as_str()).copied(),
                    standby_pf: s.standbys.get(uid).copied(),
                };
                (uid.clone(), seat)
            };
            s.nics.iter().map(seat).collect()
        })
    }

    /// Notes how many NICs each PF owes a VF.
    pub fn set_owed(&self, owed: BTreeMap<PciAddress, usize>) {
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
mod tests {
    use hybridnic_api::v1alpha1::{PoolTags, Uplink};
    use hybridnic_net::testing;

    use super::*;

    const WISH: Wish<'_> = Wish {
        network: "n",
        pick: Pick::Any,
        standby_pf: None,
    };

    fn beside(standby_pf: impl Into<Option<PciAddress>>) -> Wish<'static> {
        Wish {
            standby_pf: standby_pf.into(),
            ..WISH
        }
    }

    fn of(pick: Pick) -> Wish<'static> {
        Wish { pick, ..WISH }
    }

    fn setup(vfs: u8) -> (Inventory, Ledger) {
        let dir = tempfile::tempdir().unwrap();
        let mut inventory = testing::make_sysfs(dir.path(), 2, vfs)
            .unwrap()
            .discover()
            .unwrap();
        for pf in &mut inventory.pfs {
            pf.carrier = Some(true);
        }
        let ledger = Ledger::default();
        let uplinks = vec![Uplink {
            pf_names: vec!["*".into()],
            ..Uplink::default()
        }];
        ledger.set_pools(&[NodePool {
            network: "n".into(),
            uplinks,
            tags: PoolTags::None,
            standby_slots: 0,
        }]);
        (inventory, ledger)
    }

    #[test]
    fn who_gets_no_pf_is_told_that_another_network_is_in_the_way_and_not_which() {
        let (inventory, ledger) = setup(1);
        assert_eq!(ledger.barred(&inventory, "n"), None);
        let pool = |network: &str, pf: &str, tags| NodePool {
            network: network.into(),
            uplinks: vec![Uplink {
                pf_names: vec![pf.into()],
                ..Uplink::default()
            }],
            tags,
            standby_slots: 0,
        };
        ledger.set_pools(&[
            pool("n", "*", PoolTags::None),
            pool("blue", "ens1", PoolTags::Vlan),
            pool("other", "ens0", PoolTags::None),
        ]);
        let why = ledger.barred(&inventory, "n").unwrap();
        assert!(
            why.contains("PF ens1 also carries another network") && !why.contains("ens0"),
            "{why}"
        );
        assert!(!why.contains("blue"), "a tenant does not see networks: {why}");
        assert_eq!(ledger.barred(&inventory, "other"), None);
        assert_eq!(ledger.barred(&inventory, "nobody's"), None);
    }

    fn claimant(n: i64) -> Claimant {
        Claimant {
            created: n,
            nic: format!("ns/nic{n}"),
            uid: format!("uid{n}"),
        }
    }

    #[test]
    fn fourteen_nics_get_fourteen_vfs_over_both_pfs_and_the_fifteenth_waits() {
        let (inventory, ledger) = setup(7);
        let mut seen = BTreeSet::new();
        for n in 0..14 {
            let choice = ledger.take(&inventory, &claimant(n), &WISH).unwrap();
            assert!(seen.insert(choice.vf.address));
            assert_eq!(
                choice.pf.address,
                inventory.pfs[usize::try_from(n % 2).unwrap()].address
            );
        }
        assert_eq!(ledger.take(&inventory, &claimant(14), &WISH), None);
        let freed = *seen.iter().next().unwrap();
        ledger.release(freed);
        assert_eq!(
            ledger.take(&inventory, &claimant(14), &WISH).unwrap().vf.address,
            freed
        );
    }

    #[test]
    fn the_oldest_waiter_goes_first() {
        let (inventory, ledger) = setup(1);
        let taken: Vec<_> = (0..2)
            .map(|n| ledger.take(&inventory, &claimant(n), &WISH).unwrap().vf.address)
            .collect();
        assert!(!ledger.offers(&inventory, &claimant(3), &WISH));
        assert!(!ledger.offers(&inventory, &claimant(2), &WISH));
        ledger.release(taken[0]);
        assert!(
            !ledger.offers(&inventory, &claimant(3), &WISH),
            "the older one has it coming"
        );
        assert!(ledger.take(&inventory, &claimant(2), &WISH).is_some());
        ledger.release(taken[1]);
        assert!(ledger.take(&inventory, &claimant(3), &WISH).is_some());
    }

    #[test]
    fn a_better_vf_has_not_failed_and_is_on_a_pf_with_a_link() {
        let (mut inventory, ledger) = setup(1);
        let (one, two) = (inventory.pfs[0].address, inventory.pfs[1].address);
        let nic = claimant(1);
        let mine = ledger.take(&inventory, &nic, &beside(one)).unwrap();
        assert_eq!(mine.pf.address, one);
        let better = |inventory: &Inventory, dark| ledger.offers_better(inventory, &nic, &WISH, dark);
        assert!(better(&inventory, Some(one)) && better(&inventory, None));
        assert!(!better(&inventory, Some(two)), "both are dark");
        inventory.pfs[1].carrier = None;
        assert!(!better(&inventory, Some(one)), "nor has this one a link");
        assert!(better(&inventory, None), "but it has not failed");
        let (vf, uid) = (inventory.pfs[1].vfs[0].address, nic.uid.as_str());
        ledger.avoid(uid, vf);
        assert!(!better(&inventory, None));
        assert!(
            ledger.offers(&inventory, &claimant(2), &WISH),
            "for others it is as good as any"
        );
        ledger.stop_waiting(&claimant(2));
        ledger.forgive(uid);
        assert!(better(&inventory, None));
        // Whoever takes one gets one with a link first, then one that has not failed.
        ledger.release(mine.vf.address);
        ledger.avoid(uid, mine.vf.address);
        let other = ledger.take(&inventory, &nic, &beside(one)).unwrap();
        assert_eq!(other.pf.address, two);
        ledger.release(other.vf.address);
        ledger.forgive(uid);
        let linked = ledger.take(&inventory, &nic, &beside(two)).unwrap();
        assert_eq!(linked.pf.address, one);
    }

    #[test]
    fn a_standby_draws_its_vf_to_its_own_pf() {
        let (inventory, ledger) = setup(2);
        let second = inventory.pfs[1].address;
        let choice = ledger.take(&inventory, &claimant(1), &beside(second)).unwrap();
        assert_eq!(choice.pf.address, second);
        assert_eq!(
            ledger.take(
                &inventory,
                &claimant(2),
                &Wish {
                    network: "other",
                    ..WISH
                }
            ),
            None
        );
    }

    #[test]
    fn a_nic_that_cannot_take_a_vf_keeps_none_from_younger_ones() {
        let (inventory, ledger) = setup(1);
        ledger.take(&inventory, &claimant(0), &WISH).unwrap();
        // The older one could take the last VF, and is to have it.
        assert!(ledger.offers(&inventory, &claimant(1), &WISH));
        assert!(!ledger.offers(&inventory, &claimant(2), &WISH));
        let mut changes = ledger.subscribe();
        changes.mark_unchanged();
        // Its QEMU has ended, or it has left: whoever waits looks again, and gets the VF.
        ledger.stop_waiting(&claimant(1));
        assert!(changes.has_changed().unwrap());
        assert!(ledger.offers(&inventory, &claimant(2), &WISH));
        assert!(ledger.take(&inventory, &claimant(2), &WISH).is_some());
        changes.mark_unchanged();
        ledger.stop_waiting(&claimant(1));
        assert!(!changes.has_changed().unwrap(), "there is nothing new");
    }

    #[test]
    fn a_port_without_link_comes_last() {
        let (mut inventory, ledger) = setup(2);
        inventory.pfs[0].carrier = None;
        let [dark, lit] = [0, 1].map(|pf: usize| inventory.pfs[pf].address);
        let next = |nic, standby| {
            ledger
                .take(&inventory, &claimant(nic), &beside(standby))
                .unwrap()
                .pf
                .address
        };
        assert_eq!(next(1, None), lit);
        assert_eq!(
            next(2, Some(dark)),
            lit,
            "its standby carries nothing where it is"
        );
        assert_eq!(next(3, None), dark, "it may yet get a link when it is up");
        let (mut inventory, ledger) = setup(2);
        inventory.pfs[0].carrier = Some(false);
        assert_eq!(
            ledger.take(&inventory, &claimant(1), &WISH).unwrap().pf.address,
            lit
        );
        assert!(ledger.take(&inventory, &claimant(2), &WISH).is_some());
        assert_eq!(ledger.take(&inventory, &claimant(3), &WISH), None);
    }

    #[test]
    fn a_nic_gets_a_vf_of_the_pf_that_it_names_or_the_very_vf() {
        let (inventory, ledger) = setup(2);
        let [one, two] = [0, 1].map(|pf: usize| &inventory.pfs[pf]);
        let take = |n, pick| {
            ledger
                .take(&inventory, &claimant(n), &of(pick))
                .map(|c| c.vf.address)
        };
        assert_eq!(
            take(1, Pick::Exactly(two.vfs[1].address)),
            Some(two.vfs[1].address)
        );
        assert_eq!(
            take(2, Pick::Exactly(two.vfs[1].address)),
            None,
            "somebody has it"
        );
        assert_eq!(take(2, Pick::OnPf(two.address)), Some(two.vfs[0].address));
        assert_eq!(
            take(3, Pick::OnPf(two.address)),
            None,
            "that there are others helps nobody"
        );
        assert!(one.vfs.iter().any(|vf| take(3, Pick::Any) == Some(vf.address)));
        let standby = |pick| ledger.standby_pf(&inventory, "n", pick).map(|pf| pf.address);
        assert_eq!(standby(Pick::OnPf(two.address)), Some(two.address));
        assert_eq!(standby(Pick::Exactly(two.vfs[0].address)), Some(two.address));
        assert_eq!(standby(Pick::OnPf(two.vfs[0].address)), None, "it is no PF");
        ledger.note_standby("u", one.address);
        assert_eq!(standby(Pick::Any), Some(two.address));
    }

    #[test]
    fn who_waits_for_one_pf_keeps_none_of_another_from_younger_ones() {
        let (inventory, ledger) = setup(2);
        let [one, two] = [0, 1].map(|pf: usize| inventory.pfs[pf].address);
        let exactly = inventory.pfs[1].vfs[0].address;
        // The first PF has one VF left and the second two.
        assert!(
            ledger
                .take(&inventory, &claimant(0), &of(Pick::OnPf(one)))
                .is_some()
        );
        assert!(ledger.offers(&inventory, &claimant(1), &of(Pick::OnPf(one))));
        assert!(
            !ledger.offers(&inventory, &claimant(9), &of(Pick::OnPf(one))),
            "the older one has it coming"
        );
        ledger.stop_waiting(&claimant(9));
        assert!(ledger.offers(&inventory, &claimant(2), &of(Pick::Exactly(exactly))));
        let third = ledger.take(&inventory, &claimant(3), &WISH).unwrap();
        assert_eq!(
            third.vf.address, inventory.pfs[1].vfs[1].address,
            "the one that nobody older waits for"
        );
        assert_eq!(ledger.take(&inventory, &claimant(4), &WISH), None);
        assert_eq!(ledger.take(&inventory, &claimant(4), &of(Pick::OnPf(two))), None);
        // One that is content with any leaves none for a younger one that is not.
        ledger.release(third.vf.address);
        assert!(ledger.offers(&inventory, &claimant(5), &WISH));
        assert!(!ledger.offers(&inventory, &claimant(6), &of(Pick::OnPf(two))));
    }

    fn nic(n: i64) -> Nic {
        Nic {
            namespace: "ns".into(),
            pod: format!("pod{n}"),
            pod_uid: format!("pod uid{n}"),
            network: "n".into(),
        }
    }

    #[test]
    fn what_was_promised_to_a_pod_goes_to_no_pod_that_has_asked_for_nothing() {
        let (inventory, ledger) = setup(2);
        let [one, two] = [0, 1].map(|pf: usize| inventory.pfs[pf].address);
        ledger.set_owed([(one, 1), (two, 2)].into());
        let id = DeviceId::new(two, 0).unwrap();
        for n in [1, 2] {
            ledger.enter(&claimant(n).uid, nic(n));
        }
        ledger.set_ticket(&claimant(1).uid, Ticket::Device { id, tied: false });
        let got = ledger.take(&inventory, &claimant(2), &WISH).unwrap();
        assert_eq!(got.pf.address, one, "the only one that nobody is owed");
        assert_eq!(ledger.take(&inventory, &claimant(3), &WISH), None);
        // The one that is owed waits, which keeps nobody twice, and takes it.
        assert!(ledger.offers(&inventory, &claimant(1), &of(Pick::OnPf(two))));
        assert!(!ledger.offers(&inventory, &claimant(3), &WISH));
        assert!(
            ledger
                .take(&inventory, &claimant(1), &of(Pick::OnPf(two)))
                .is_some()
        );
        ledger.set_owed([(two, 1)].into());
        assert!(ledger.offers(&inventory, &claimant(3), &WISH));
        let seats = ledger.seats(&inventory);
        assert_eq!(seats[&claimant(1).uid].device(), Some(id));
        assert_eq!(seats[&claimant(1).uid].vf_pf, Some(two));
        assert_eq!(
            (seats[&claimant(2).uid].device(), seats[&claimant(2).uid].ticket),
            (None, None)
        );
    }

    #[test]
    fn an_index_is_one_nics_at_a_time() {
        let (inventory, ledger) = setup(1);
        let id = DeviceId::new(inventory.pfs[0].address, 0).unwrap();
        for n in [1, 2] {
            ledger.enter(&claimant(n).uid, nic(n));
        }
        let mut changes = ledger.subscribe();
        assert_eq!(ledger.tie(&claimant(1).uid, id), Ok(()));
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        assert_eq!(
            ledger.tie(&claimant(1).uid, id),
            Ok(()),
            "again, in a new sandbox"
        );
        assert_eq!(ledger.tie(&claimant(2).uid, id), Err(nic(1)));
        assert!(!changes.has_changed().unwrap(), "it is asked for at each look");
        ledger.leave(&claimant(1).uid);
        assert!(changes.has_changed().unwrap());
        assert_eq!(ledger.tie(&claimant(2).uid, id), Ok(()));
    }
}
