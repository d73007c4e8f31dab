//! Which slots of a PF each network offers. Pure.
//!
//! A slot has the number of one of the PF's VFs that the network selects, so there are as many as NICs can get a VF there at once. It is not
//! tied to that VF. The numbers of standby slots are above all numbers that VFs can have, and differ between networks.

use std::collections::BTreeMap;

use hybridnic_api::v1alpha1::NodePool;
use hybridnic_net::{
    DeviceId, PciAddress,
    sysfs::{Inventory, Pf},
};

use crate::node::select;

/// The standby slots of a network on this node's PFs: spread evenly, and the same whatever state a PF is in.
pub fn standby(inventory: &Inventory, pools: &[NodePool], network: &str) -> Vec<DeviceId> {
    // Before a network's own come those of the networks whose names are before its own.
    let mut before: BTreeMap<PciAddress, u16> = BTreeMap::new();
    let mut pools: Vec<&NodePool> = pools.iter().collect();
    pools.sort_by_key(|pool| &pool.network);
    for pool in pools {
        let counts = spread(inventory, pool);
        if pool.network == network {
            let of_pf = |(pf, count): (&Pf, u16)| {
                let first = above_vfs(pf) + before.get(&pf.address).copied().unwrap_or(0);
                (first..first + count)
                    .filter_map(|slot| DeviceId::new(pf.address, slot))
                    .collect::<Vec<_>>()
            };
            return counts.into_iter().flat_map(of_pf).collect();
        }
        for (pf, count) in counts {
            *before.entry(pf.address).or_default() += count;
        }
    }
    vec![]
}

/// How many standby slots a network has on each PF that it selects.
fn spread<'a>(inventory: &'a Inventory, pool: &NodePool) -> Vec<(&'a Pf, u16)> {
    let selected = |pf: &&Pf| pool.uplinks.iter().any(|u| select::selects_pf(u, pf));
    let pfs: Vec<&Pf> = inventory.pfs.iter().filter(selected).collect();
    let (Ok(slots), Ok(count)) = (u16::try_from(pool.standby_slots), u16::try_from(pfs.len())) else {
        return vec![];
    };
    let each = |(pf, n): (&'a Pf, u16)| (pf, slots / count + u16::from(n < slots % count));
    pfs.into_iter().zip(0..).map(each).collect()
}

/// The first number that is no VF's, however many are made.
fn above_vfs(pf: &Pf) -> u16 {
    let highest = pf.vfs.iter().map(|vf| vf.index + 1).max().unwrap_or(0);
    highest.max(pf.total_vfs)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::offer::tests::{inventory, pool};

    #[test]
    fn standby_slots_are_spread_and_each_networks_own() {
        let inventory = inventory(2, 4);
        let pools = [pool("b", "*", 3), pool("a", "ens0", 2), pool("c", "ens1", 0)];
        let ids = |network| standby(&inventory, &pools, network);
        let of = |network| {
            let ids = ids(network).into_iter();
            ids.map(|id| (id.pf() == inventory.pfs[0].address, id.slot()))
                .collect::<Vec<_>>()
        };
        let first = inventory.pfs[0].total_vfs;
        assert_eq!(of("a"), [(true, first), (true, first + 1)]);
        assert_eq!(of("b"), [(true, first + 2), (true, first + 3), (false, first)]);
        assert_eq!(of("c"), []);
        assert_eq!(of("nobody's"), []);
        let all: Vec<DeviceId> = ["a", "b", "c"].into_iter().flat_map(ids).collect();
        assert_eq!(all.len(), all.iter().collect::<BTreeSet<_>>().len());
        // A negative number counts as none, and a network without a PF has none.
        assert_eq!(standby(&inventory, &[pool("n", "*", -1)], "n"), []);
        assert_eq!(standby(&inventory, &[pool("n", "nosuch", 5)], "n"), []);
    }
}
