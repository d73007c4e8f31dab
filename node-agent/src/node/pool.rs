//! Who holds which VF of this node, and which VF the next NIC gets.
//!
//! The agent alone hands out its node's VFs, so a lock in this process is all that keeps two NICs from one VF.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

use hybridnic_api::v1alpha1::NodePool;
use hybridnic_net::{
    PciAddress,
    sysfs::{Inventory, Pf, Vf},
};
use tokio::sync::watch;

use super::{select, trunk};

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

/// A VF that was chosen, with what must be known of its PF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The PF.
    pub pf: Pf,
    /// The VF.
    pub vf: Vf,
}

#[derive(Debug, Default)]
struct State {
    pools: Vec<NodePool>,
    held: BTreeMap<PciAddress, Claimant>,
    /// Standbys by the PF that they are on.
    standbys: BTreeMap<String, PciAddress>,
    waiting: BTreeMap<Claimant, String>,
    /// VFs that something else uses, or may use, and what is known of that.
    foreign: BTreeMap<PciAddress, String>,
    /// VFs that were given back with their parking MAC.
    parked: BTreeSet<PciAddress>,
    /// VFs that have failed for a NIC again and again: it gets them last.
    avoided: BTreeMap<String, BTreeSet<PciAddress>>,
}

impl State {
    fn is_avoided(&self, claimant: &Claimant, vf: PciAddress) -> bool {
        let avoided = self.avoided.get(&claimant.uid);
        avoided.is_some_and(|avoided| avoided.contains(&vf))
    }

    fn best(
        &self,
        inventory: &Inventory,
        network: &str,
        claimant: &Claimant,
        standby_pf: Option<PciAddress>,
    ) -> Option<Choice> {
        let pool = self.pools.iter().find(|p| p.network == network)?;
        let before = self
            .waiting
            .range(..claimant)
            .filter(|(_, n)| n.as_str() == network)
            .count();
        let mut free: Vec<(&Pf, &Vf)> = candidates(inventory, &self.pools, pool)
            .filter(|(_, vf)| !self.held.contains_key(&vf.address) && !self.foreign.contains_key(&vf.address))
            .collect();
        // Each older NIC that waits has one of them coming.
        if free.len() <= before {
            return None;
        }
        let load = |pf: &Pf| {
            self.held
                .keys()
                .filter(|a| pf.vfs.iter().any(|vf| vf.address == **a))
                .count()
        };
        // A port without link carries nothing, whoever else is on it.
        free.sort_by_key(|(pf, vf)| {
            (
                self.is_avoided(claimant, vf.address),
                !select::has_link(pf),
                Some(pf.address) != standby_pf,
                load(pf),
                pf.address,
                vf.index,
            )
        });
        let (pf, vf) = *free.first()?;
        Some(Choice {
            pf: pf.clone(),
            vf: vf.clone(),
        })
    }
}

/// The node's pools. Cheap to share behind an `Arc`.
#[derive(Debug)]
pub struct Pools {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

impl Default for Pools {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            changed: watch::Sender::new(0),
        }
    }
}

impl Pools {
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

    /// Takes the best free VF of a network for a NIC. A NIC whose standby is already on a PF prefers that PF's VFs.
    pub fn take(
        &self,
        inventory: &Inventory,
        network: &str,
        claimant: &Claimant,
        standby_pf: Option<PciAddress>,
    ) -> Option<Choice> {
        let choice = self.with(|s| {
            let choice = s.best(inventory, network, claimant, standby_pf)?;
            s.held.insert(choice.vf.address, claimant.clone());
            s.waiting.remove(claimant);
            Some(choice)
        });
        if choice.is_some() {
            self.notify();
        }
        choice
    }

    /// Whether [`Pools::take`] would give a VF. The NIC is queued, and older ones go first: so only one that could take
    /// a VF now may ask, and must [`Pools::stop_waiting`] when it no longer can.
    pub fn offers(
        &self,
        inventory: &Inventory,
        network: &str,
        claimant: &Claimant,
        standby_pf: Option<PciAddress>,
    ) -> bool {
        self.with(|s| {
            s.waiting.insert(claimant.clone(), network.to_owned());
            s.best(inventory, network, claimant, standby_pf).is_some()
        })
    }

    /// Whether [`Pools::take`] would give a NIC that has a VF a better one: one that has not failed for it, and is on a PF that
    /// has a link where its own PF, `dark`, has none.
    pub fn offers_better(
        &self,
        inventory: &Inventory,
        network: &str,
        claimant: &Claimant,
        dark: Option<PciAddress>,
    ) -> bool {
        self.with(|s| {
            s.best(inventory, network, claimant, None).is_some_and(|choice| {
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
    pub fn standby_pf(&self, inventory: &Inventory, network: &str) -> Option<Pf> {
        self.with(|s| {
            let pool = s.pools.iter().find(|p| p.network == network)?;
            inventory
                .pfs
                .iter()
                .filter(|pf| pool.uplinks.iter().any(|u| select::selects_pf(u, pf)))
                .filter(|pf| select::pf_problem(pf).is_none() && trunk::problem(&s.pools, pool, pf).is_none())
                .min_by_key(|pf| {
                    let standbys = s.standbys.values().filter(|a| **a == pf.address).count();
                    (!select::has_link(pf), standbys, pf.address)
                })
                .cloned()
        })
    }

    /// Which PFs of a network its NICs may not be on because of what other networks have there, and why; in words for a NIC.
    pub fn barred(&self, inventory: &Inventory, network: &str) -> Option<String> {
        self.with(|s| {
            let pool = s.pools.iter().find(|p| p.network == network)?;
            let selected = |pf: &&Pf| pool.uplinks.iter().any(|u| select::selects_pf(u, pf));
            let pfs = inventory.pfs.iter().filter(selected);
            let whys: Vec<_> = pfs
                .filter_map(|pf| trunk::problem_of_nic(&s.pools, pool, pf))
                .collect();
            (!whys.is_empty()).then(|| whys.join("; "))
        })
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

fn candidates<'a>(
    inventory: &'a Inventory,
    pools: &'a [NodePool],
    pool: &'a NodePool,
) -> impl Iterator<Item = (&'a Pf, &'a Vf)> {
    inventory
        .pfs
        .iter()
        .filter(|pf| trunk::problem(pools, pool, pf).is_none())
        .flat_map(|pf| pf.vfs.iter().map(move |vf| (pf, vf)))
        .filter(|(pf, vf)| select::selects_vf(&pool.uplinks, pf, vf))
        .filter(|(pf, vf)| select::vf_problem(pf, vf).is_none())
}

#[cfg(test)]
mod tests {
    use hybridnic_api::v1alpha1::{PoolTags, Uplink};
    use hybridnic_net::testing;

    use super::*;

    fn setup(vfs: u8) -> (Inventory, Pools) {
        let dir = tempfile::tempdir().unwrap();
        let mut inventory = testing::make_sysfs(dir.path(), 2, vfs)
            .unwrap()
            .discover()
            .unwrap();
        for pf in &mut inventory.pfs {
            pf.carrier = Some(true);
        }
        let pools = Pools::default();
        let uplinks = vec![Uplink {
            pf_names: vec!["*".into()],
            ..Uplink::default()
        }];
        pools.set_pools(&[NodePool {
            network: "n".into(),
            uplinks,
            tags: PoolTags::None,
            standby_slots: 0,
        }]);
        (inventory, pools)
    }

    #[test]
    fn who_gets_no_pf_is_told_that_another_network_is_in_the_way_and_not_which() {
        let (inventory, pools) = setup(1);
        assert_eq!(pools.barred(&inventory, "n"), None);
        let pool = |network: &str, pf: &str, tags| NodePool {
            network: network.into(),
            uplinks: vec![Uplink {
                pf_names: vec![pf.into()],
                ..Uplink::default()
            }],
            tags,
            standby_slots: 0,
        };
        pools.set_pools(&[
            pool("n", "*", PoolTags::None),
            pool("blue", "ens1", PoolTags::Vlan),
            pool("other", "ens0", PoolTags::None),
        ]);
        let why = pools.barred(&inventory, "n").unwrap();
        assert!(
            why.contains("PF ens1 also carries another network") && !why.contains("ens0"),
            "{why}"
        );
        assert!(!why.contains("blue"), "a tenant does not see networks: {why}");
        assert_eq!(pools.barred(&inventory, "other"), None);
        assert_eq!(pools.barred(&inventory, "nobody's"), None);
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
        let (inventory, pools) = setup(7);
        let mut seen = BTreeSet::new();
        for n in 0..14 {
            let choice = pools.take(&inventory, "n", &claimant(n), None).unwrap();
            assert!(seen.insert(choice.vf.address));
            assert_eq!(
                choice.pf.address,
                inventory.pfs[usize::try_from(n % 2).unwrap()].address
            );
        }
        assert_eq!(pools.take(&inventory, "n", &claimant(14), None), None);
        let freed = *seen.iter().next().unwrap();
        pools.release(freed);
        assert_eq!(
            pools
                .take(&inventory, "n", &claimant(14), None)
                .unwrap()
                .vf
                .address,
            freed
        );
    }

    #[test]
    fn the_oldest_waiter_goes_first() {
        let (inventory, pools) = setup(1);
        let taken: Vec<_> = (0..2)
            .map(|n| {
                pools
                    .take(&inventory, "n", &claimant(n), None)
                    .unwrap()
                    .vf
                    .address
            })
            .collect();
        assert!(!pools.offers(&inventory, "n", &claimant(3), None));
        assert!(!pools.offers(&inventory, "n", &claimant(2), None));
        pools.release(taken[0]);
        assert!(
            !pools.offers(&inventory, "n", &claimant(3), None),
            "the older one has it coming"
        );
        assert!(pools.take(&inventory, "n", &claimant(2), None).is_some());
        pools.release(taken[1]);
        assert!(pools.take(&inventory, "n", &claimant(3), None).is_some());
    }

    #[test]
    fn a_better_vf_has_not_failed_and_is_on_a_pf_with_a_link() {
        let (mut inventory, pools) = setup(1);
        let (one, two) = (inventory.pfs[0].address, inventory.pfs[1].address);
        let nic = claimant(1);
        let mine = pools.take(&inventory, "n", &nic, Some(one)).unwrap();
        assert_eq!(mine.pf.address, one);
        let better = |inventory: &Inventory, dark| pools.offers_better(inventory, "n", &nic, dark);
        assert!(better(&inventory, Some(one)) && better(&inventory, None));
        assert!(!better(&inventory, Some(two)), "both are dark");
        inventory.pfs[1].carrier = None;
        assert!(!better(&inventory, Some(one)), "nor has this one a link");
        assert!(better(&inventory, None), "but it has not failed");
        let (vf, uid) = (inventory.pfs[1].vfs[0].address, nic.uid.as_str());
        pools.avoid(uid, vf);
        assert!(!better(&inventory, None));
        assert!(
            pools.offers(&inventory, "n", &claimant(2), None),
            "for others it is as good as any"
        );
        pools.stop_waiting(&claimant(2));
        pools.forgive(uid);
        assert!(better(&inventory, None));
        // Whoever takes one gets one with a link first, then one that has not failed.
        pools.release(mine.vf.address);
        pools.avoid(uid, mine.vf.address);
        let other = pools.take(&inventory, "n", &nic, Some(one)).unwrap();
        assert_eq!(other.pf.address, two);
        pools.release(other.vf.address);
        pools.forgive(uid);
        let linked = pools.take(&inventory, "n", &nic, Some(two)).unwrap();
        assert_eq!(linked.pf.address, one);
    }

    #[test]
    fn a_standby_draws_its_vf_to_its_own_pf() {
        let (inventory, pools) = setup(2);
        let second = inventory.pfs[1].address;
        let choice = pools.take(&inventory, "n", &claimant(1), Some(second)).unwrap();
        assert_eq!(choice.pf.address, second);
        assert_eq!(pools.take(&inventory, "other", &claimant(2), None), None);
    }

    #[test]
    fn a_nic_that_cannot_take_a_vf_keeps_none_from_younger_ones() {
        let (inventory, pools) = setup(1);
        pools.take(&inventory, "n", &claimant(0), None).unwrap();
        // The older one could take the last VF, and is to have it.
        assert!(pools.offers(&inventory, "n", &claimant(1), None));
        assert!(!pools.offers(&inventory, "n", &claimant(2), None));
        let mut changes = pools.subscribe();
        changes.mark_unchanged();
        // Its QEMU has ended, or it has left: whoever waits looks again, and gets the VF.
        pools.stop_waiting(&claimant(1));
        assert!(changes.has_changed().unwrap());
        assert!(pools.offers(&inventory, "n", &claimant(2), None));
        assert!(pools.take(&inventory, "n", &claimant(2), None).is_some());
        changes.mark_unchanged();
        pools.stop_waiting(&claimant(1));
        assert!(!changes.has_changed().unwrap(), "there is nothing new");
    }

    #[test]
    fn a_port_without_link_comes_last() {
        let (mut inventory, pools) = setup(2);
        inventory.pfs[0].carrier = None;
        let [dark, lit] = [0, 1].map(|pf: usize| inventory.pfs[pf].address);
        let next = |nic, standby| {
            pools
                .take(&inventory, "n", &claimant(nic), standby)
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
        let (mut inventory, pools) = setup(2);
        inventory.pfs[0].carrier = Some(false);
        assert_eq!(
            pools
                .take(&inventory, "n", &claimant(1), None)
                .unwrap()
                .pf
                .address,
            lit
        );
        assert!(pools.take(&inventory, "n", &claimant(2), None).is_some());
        assert_eq!(pools.take(&inventory, "n", &claimant(3), None), None);
    }
}
