//! Which VFs are drained, how far that is, and how it is reported. Pure.

use std::collections::{BTreeMap, BTreeSet};

use hybridnic_api::{
    conditions::{NewCondition, reasons, types},
    v1alpha1::{Drain, DrainState, NodePool},
};
use hybridnic_net::{
    PciAddress,
    sysfs::{Inventory, Pf},
};

use super::{ledger::Claimant, select};

/// How many names a message has.
const NAMED: usize = 3;

/// What is to be drained, and what matters about the NICs for that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Draining {
    /// What is to be drained.
    pub drain: Drain,
    /// The network of the NIC or pod that has each VF.
    pub networks: BTreeMap<PciAddress, String>,
    /// VFs that no NIC holds and whose vfio group a pod has, in words.
    pub lent: BTreeMap<PciAddress, String>,
    /// How many NICs have their standby on each PF.
    pub standbys: BTreeMap<PciAddress, usize>,
}

impl Draining {
    /// Whether a NIC is to leave this VF, which it holds.
    pub fn is_left(&self, pf: &Pf, vf: PciAddress) -> bool {
        match self.networks.get(&vf) {
            Some(network) => self.drain.covers(network, &pf.address.to_string()),
            // Its NIC is about to be forgotten, and the VF with it.
            None => self.drain.covers_pf(&pf.address.to_string()),
        }
    }

    /// What still holds a VF.
    fn holder<'a>(&'a self, vf: PciAddress, holders: &'a BTreeMap<PciAddress, Claimant>) -> Option<&'a str> {
        let nic = holders.get(&vf).map(|claimant| claimant.nic.as_str());
        nic.or_else(|| self.lent.get(&vf).map(String::as_str))
    }

    /// Whether a VF is kept free that is this pool's and could be used.
    pub fn keeps_free(&self, pool: &NodePool, pf: &Pf) -> bool {
        self.drain.covers(&pool.network, &pf.address.to_string())
    }

    /// How far a PF's drain is, and what to report about it; `None` if it is not drained.
    pub fn of_pf(&self, pf: &Pf, holders: &BTreeMap<PciAddress, Claimant>) -> Option<(DrainState, String)> {
        if !self.drain.covers_pf(&pf.address.to_string()) {
            return None;
        }
        let hold = pf.vfs.iter().filter_map(|vf| self.holder(vf.address, holders));
        let (state, mut told) = said(hold);
        let standbys = self.standbys.get(&pf.address).copied().unwrap_or_default();
        if standbys > 0 {
            told = format!(
                "{told}; NICs with their standby on it: {standbys}; those without a VF need its link"
            );
        }
        Some((state, told))
    }

    /// How far a pool's drain is, and what to report about it; `None` if it is not drained.
    pub fn of_pool(
        &self,
        pool: &NodePool,
        holders: &BTreeMap<PciAddress, Claimant>,
    ) -> Option<(DrainState, String)> {
        if !self.drain.covers_network(&pool.network) {
            return None;
        }
        let hold = self
            .networks
            .iter()
            .filter(|(_, network)| **network == pool.network)
            .filter_map(|(vf, _)| self.holder(*vf, holders));
        Some(said(hold))
    }

    /// What the `HybridNode` says about the whole drain; `None` if nothing is to be drained.
    pub fn condition(
        &self,
        inventory: &Inventory,
        pools: &[NodePool],
        holders: &BTreeMap<PciAddress, Claimant>,
    ) -> Option<NewCondition> {
        if self.drain.is_empty() {
            return None;
        }
        let addresses: BTreeSet<String> = inventory.pfs.iter().map(|pf| pf.address.to_string()).collect();
        let pfs = self.drain.pfs.iter().filter(|pf| !addresses.contains(*pf));
        let networks = self.drain.networks.iter();
        let networks = networks.filter(|network| !pools.iter().any(|pool| pool.network == network.as_str()));
        let unknown: Vec<&str> = pfs.chain(networks).map(String::as_str).collect();
        if !unknown.is_empty() {
            let message = format!(
                "spec.drain names PFs or networks that are not on this node: {}; the others are drained",
                listed(&unknown)
            );
            return Some(NewCondition::no(
                types::DRAINED,
                reasons::NOTHING_TO_DRAIN,
                message,
            ));
        }
        let vfs = inventory
            .pfs
            .iter()
            .flat_map(|pf| pf.vfs.iter().map(move |vf| (pf, vf.address)));
        let hold: Vec<&str> = vfs
            .filter(|(pf, vf)| self.is_left(pf, *vf))
            .filter_map(|(_, vf)| self.holder(vf, holders))
            .collect();
        Some(if hold.is_empty() {
            let message = "nothing holds a VF of what is drained (spec.drain)";
            NewCondition::yes(types::DRAINED, reasons::DRAINED, message)
        } else {
            let message = format!(
                "VFs that are to be drained (spec.drain) are still held by {}",
                listed(&hold)
            );
            NewCondition::no(types::DRAINED, reasons::DRAINING, message)
        })
    }
}

fn said<'a>(hold: impl Iterator<Item = &'a str>) -> (DrainState, String) {
    let hold: Vec<&str> = hold.collect();
    if hold.is_empty() {
        let told = "it is drained (spec.drain): no NIC holds a VF, and none gets one";
        (DrainState::Drained, told.to_owned())
    } else {
        let told = format!(
            "it is being drained (spec.drain): VFs are still held by {}",
            listed(&hold)
        );
        (DrainState::Draining, told)
    }
}

/// A PF as a NIC's message names it.
pub fn name(pf: &Pf) -> String {
    match &pf.name {
        Some(name) => format!("{name} ({})", pf.address),
        None => pf.address.to_string(),
    }
}

/// Which PFs have VFs that a pool's NICs could use if these were not drained, in words; `None` if there are none.
pub fn kept_free(inventory: &Inventory, pool: &NodePool, drain: &Drain) -> Option<String> {
    let drained = inventory.pfs.iter().filter(|pf| {
        let selected = pf.vfs.iter().any(|vf| select::selects_vf(&pool.uplinks, pf, vf));
        selected && drain.covers(&pool.network, &pf.address.to_string())
    });
    let names: Vec<String> = drained.map(name).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    (!names.is_empty()).then(|| listed(&names))
}

fn listed(names: &[&str]) -> String {
    let more = names.len().saturating_sub(NAMED);
    let first = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    if more == 0 {
        first
    } else {
        format!("{first} and {more} more")
    }
}

#[cfg(test)]
mod tests {
    use hybridnic_api::v1alpha1::{Uplink, VfState};
    use hybridnic_net::testing;

    use super::*;
    use crate::node::table::{self, Sources, Table};

    fn pool(network: &str, pf: &str) -> NodePool {
        NodePool {
            network: network.into(),
            uplinks: vec![Uplink {
                pf_names: vec![pf.into()],
                ..Uplink::default()
            }],
            ..NodePool::default()
        }
    }

    fn inventory() -> Inventory {
        let dir = tempfile::tempdir().unwrap();
        let mut inventory = testing::make_sysfs(dir.path(), 2, 2).unwrap().discover().unwrap();
        for pf in &mut inventory.pfs {
            pf.carrier = Some(true);
        }
        inventory
    }

    struct Node {
        inventory: Inventory,
        pools: Vec<NodePool>,
        holders: BTreeMap<PciAddress, Claimant>,
        draining: Draining,
    }

    impl Node {
        /// Both networks are over both PFs; the first VF of the first PF is a NIC's, on `fast`.
        fn new(drain: Drain) -> Self {
            let inventory = inventory();
            let vf = inventory.pfs[0].vfs[0].address;
            let holder = Claimant {
                created: 0,
                nic: "shop/eth0".into(),
                uid: "u".into(),
            };
            Self {
                pools: vec![pool("fast", "*"), pool("slow", "*")],
                holders: BTreeMap::from([(vf, holder)]),
                draining: Draining {
                    drain,
                    networks: BTreeMap::from([(vf, "fast".into())]),
                    lent: BTreeMap::new(),
                    standbys: BTreeMap::from([(inventory.pfs[0].address, 2)]),
                },
                inventory,
            }
        }

        fn table(&self) -> Table {
            table::build(&Sources {
                inventory: &self.inventory,
                pools: &self.pools,
                holders: &self.holders,
                foreign: &BTreeMap::new(),
                lent: &BTreeMap::new(),
                draining: &self.draining,
                provision_errors: &BTreeMap::new(),
            })
        }

        fn reason(&self) -> Option<String> {
            let condition = self
                .draining
                .condition(&self.inventory, &self.pools, &self.holders);
            condition.map(|condition| condition.reason)
        }
    }

    fn pfs(pfs: &[&str]) -> Drain {
        Drain {
            pfs: pfs.iter().map(|pf| (*pf).to_owned()).collect(),
            ..Drain::default()
        }
    }

    #[test]
    fn a_pf_is_drained_once_no_nic_holds_a_vf_of_it() {
        let mut node = Node::new(pfs(&["0000:01:00.0"]));
        let table = node.table();
        let [first, second] = &table.pfs[..] else {
            panic!("{table:?}")
        };
        assert_eq!((first.drain, second.drain), (Some(DrainState::Draining), None));
        assert!(
            first.message.contains("shop/eth0") && first.message.contains("standby on it: 2"),
            "{}",
            first.message
        );
        assert_eq!(
            (first.vfs[0].state, first.vfs[1].state),
            (VfState::Held, VfState::Drained)
        );
        assert!(first.vfs[0].message.contains("its NIC leaves it"), "{first:?}");
        assert_eq!(second.vfs[0].state, VfState::Free);
        assert_eq!(
            (table.vfs.total, table.vfs.free, table.vfs.held, table.vfs.drained),
            (4, 2, 1, 1)
        );
        assert_eq!(table.pools[1].vfs, table.vfs);
        assert_eq!(table.pools[1].drain, None);
        assert_eq!(node.reason().as_deref(), Some(reasons::DRAINING));
        node.holders.clear();
        assert_eq!(node.table().pfs[0].drain, Some(DrainState::Drained));
        assert_eq!(node.reason().as_deref(), Some(reasons::DRAINED));
        node.draining.drain = Drain::default();
        assert_eq!((node.table().pfs[0].drain, node.reason()), (None, None));
        assert_eq!(node.table().vfs.free, 4);
    }

    #[test]
    fn a_network_is_drained_for_its_own_nics() {
        let mut node = Node::new(Drain {
            networks: vec!["fast".into()],
            ..Drain::default()
        });
        let table = node.table();
        assert_eq!(table.pools[0].drain, Some(DrainState::Draining));
        assert_eq!((table.pools[0].vfs.free, table.pools[0].vfs.drained), (0, 3));
        assert!(
            table.pools[0].message.contains("shop/eth0"),
            "{}",
            table.pools[0].message
        );
        // The other one has the same VFs, and may have them.
        assert_eq!((table.pools[1].drain, table.pools[1].vfs.free), (None, 3));
        assert_eq!((table.vfs.free, table.vfs.drained), (3, 0));
        node.draining.networks.clear();
        assert_eq!(node.table().pools[0].drain, Some(DrainState::Drained));
        // All of both.
        node.draining.drain.all = true;
        let table = node.table();
        assert_eq!((table.vfs.free, table.vfs.drained), (0, 3));
        assert_eq!(table.pfs[1].drain, Some(DrainState::Drained));
    }

    #[test]
    fn what_is_not_there_is_said() {
        let mut node = Node::new(pfs(&["0000:7f:00.0", "0000:01:00.0"]));
        assert_eq!(node.reason().as_deref(), Some(reasons::NOTHING_TO_DRAIN));
        node.draining.drain = Drain {
            networks: vec!["nosuch".into()],
            ..Drain::default()
        };
        let condition = node
            .draining
            .condition(&node.inventory, &node.pools, &node.holders)
            .unwrap();
        assert!(condition.message.contains("nosuch"), "{}", condition.message);
    }

    #[test]
    fn no_vfs_are_made_on_a_pf_that_is_drained() {
        let mut node = Node::new(pfs(&["0000:01:00.0"]));
        for pf in &mut node.inventory.pfs {
            (pf.num_vfs, pf.vfs) = (0, Vec::new());
        }
        node.pools[0].uplinks[0].num_vfs = Some(2);
        let wanted =
            |drain: &Drain| crate::node::provision::wanted(&node.inventory, &node.pools, drain).len();
        assert_eq!((wanted(&node.draining.drain), wanted(&Drain::default())), (1, 2));
    }
}
