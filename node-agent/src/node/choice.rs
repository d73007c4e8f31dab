//! Which VF a NIC gets, and which PF a standby without a VF. Pure: reads an inventory and what the ledger has, touches
//! nothing.

use std::collections::{BTreeMap, BTreeSet};

use hybridnic_api::v1alpha1::{Drain, NodePool};
use hybridnic_net::{
    PciAddress,
    sysfs::{Inventory, Pf, Vf},
};

use super::{select, trunk};

/// Which of a network's VFs will do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pick {
    /// Any.
    #[default]
    Any,
    /// A VF of this PF: the pod was given a device of it, or its standby cannot move.
    OnPf(PciAddress),
    /// This one and no other.
    Exactly(PciAddress),
}

impl Pick {
    /// Whether this VF will do.
    pub fn allows(self, pf: &Pf, vf: &Vf) -> bool {
        match self {
            Self::Any => true,
            Self::OnPf(address) => pf.address == address,
            Self::Exactly(address) => vf.address == address,
        }
    }

    /// Whether this PF will do for a standby.
    pub fn allows_pf(self, pf: &Pf) -> bool {
        match self {
            Self::Any => true,
            Self::OnPf(address) => pf.address == address,
            Self::Exactly(address) => pf.vfs.iter().any(|vf| vf.address == address),
        }
    }
}

/// A VF that was chosen, with what must be known about its PF.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The PF.
    pub pf: Pf,
    /// The VF.
    pub vf: Vf,
}

/// What a NIC asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// The network.
    pub network: &'a str,
    /// Which of its VFs will do.
    pub pick: Pick,
    /// The PF that the NIC's standby is on already: its VFs are preferred.
    pub standby_pf: Option<PciAddress>,
}

/// What bears on a choice.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// What the node has.
    pub inventory: &'a Inventory,
    /// What the operator has given it to manage.
    pub pools: &'a [NodePool],
    /// What is drained: no NIC gets it.
    pub drain: &'a Drain,
    /// VFs that somebody holds, and those that something else uses, or may use.
    pub taken: &'a BTreeSet<PciAddress>,
    /// VFs that are held, for an even spread over PFs.
    pub held: &'a BTreeSet<PciAddress>,
    /// VFs that have failed for this NIC again and again: it gets them last.
    pub avoided: &'a BTreeSet<PciAddress>,
    /// Which VFs would do for each older NIC that waits for one of this network.
    pub older: &'a [Pick],
}

/// The best VF for a NIC. Each older NIC that waits and can be served has one of them coming.
pub fn best(inputs: &Inputs<'_>, wish: &Wish<'_>) -> Option<Choice> {
    let pool = inputs.pools.iter().find(|p| p.network == wish.network)?;
    let free: Vec<(&Pf, &Vf)> = usable(inputs, pool)
        .filter(|(_, vf)| !inputs.taken.contains(&vf.address))
        .collect();
    let spare = spare(&free, inputs.older);
    let mut good: Vec<(&Pf, &Vf)> = free
        .into_iter()
        .filter(|(pf, vf)| wish.pick.allows(pf, vf))
        .filter(|(pf, vf)| spare.contains(&pf.address) && !inputs.older.contains(&Pick::Exactly(vf.address)))
        .collect();
    let load = |pf: &Pf| {
        let held = pf.vfs.iter().filter(|vf| inputs.held.contains(&vf.address));
        held.count()
    };
    // A port without link carries nothing, no matter which NICs are on it.
    good.sort_by_key(|(pf, vf)| {
        (
            inputs.avoided.contains(&vf.address),
            !select::has_link(pf),
            Some(pf.address) != wish.standby_pf,
            load(pf),
            pf.address,
            vf.index,
        )
    });
    let (pf, vf) = *good.first()?;
    Some(Choice {
        pf: pf.clone(),
        vf: vf.clone(),
    })
}

/// The PFs that have more VFs than are kept for NICs that wait. The NICs with the least choice are served first, which serves
/// the most NICs: the choice of one is part of another's, or they have nothing in common.
fn spare(free: &[(&Pf, &Vf)], waiting: &[Pick]) -> BTreeSet<PciAddress> {
    let mut left: BTreeMap<PciAddress, usize> = BTreeMap::new();
    for (pf, vf) in free {
        if !waiting.contains(&Pick::Exactly(vf.address)) {
            *left.entry(pf.address).or_default() += 1;
        }
    }
    let count = |pick| waiting.iter().filter(|p| **p == pick).count();
    for (pf, left) in &mut left {
        *left = left.saturating_sub(count(Pick::OnPf(*pf)));
    }
    if left.values().sum::<usize>() <= count(Pick::Any) {
        return BTreeSet::new();
    }
    left.retain(|_, left| *left > 0);
    left.into_keys().collect()
}

/// The PF for a standby without a VF: one that is not drained, with a link, and with the fewest standbys of those that `standbys`
/// counts.
pub fn standby_pf(
    inventory: &Inventory,
    pools: &[NodePool],
    drain: &Drain,
    network: &str,
    pick: Pick,
    standbys: impl Fn(PciAddress) -> usize,
) -> Option<Pf> {
    let pool = pools.iter().find(|p| p.network == network)?;
    inventory
        .pfs
        .iter()
        .filter(|pf| pick.allows_pf(pf))
        .filter(|pf| pool.uplinks.iter().any(|u| select::selects_pf(u, pf)))
        .filter(|pf| select::pf_problem(pf).is_none() && trunk::problem(pools, pool, pf).is_none())
        .min_by_key(|pf| {
            let drained = drain.covers_pf(&pf.address.to_string());
            (drained, !select::has_link(pf), standbys(pf.address), pf.address)
        })
        .cloned()
}

/// Which PFs of a network its NICs may not be on because of what other networks have there, and why; in words for a NIC.
pub fn barred(inventory: &Inventory, pools: &[NodePool], network: &str) -> Option<String> {
    let pool = pools.iter().find(|p| p.network == network)?;
    let selected = |pf: &&Pf| pool.uplinks.iter().any(|u| select::selects_pf(u, pf));
    let pfs = inventory.pfs.iter().filter(selected);
    let whys: Vec<_> = pfs
        .filter_map(|pf| trunk::problem_of_nic(pools, pool, pf))
        .collect();
    (!whys.is_empty()).then(|| whys.join("; "))
}

/// A network's VFs that can be used and are not drained, no matter which NICs have them.
fn usable<'a>(inputs: &'a Inputs<'a>, pool: &'a NodePool) -> impl Iterator<Item = (&'a Pf, &'a Vf)> {
    let pools = inputs.pools;
    inputs
        .inventory
        .pfs
        .iter()
        .filter(move |pf| trunk::problem(pools, pool, pf).is_none())
        .filter(move |pf| !inputs.drain.covers(&pool.network, &pf.address.to_string()))
        .flat_map(|pf| pf.vfs.iter().map(move |vf| (pf, vf)))
        .filter(|(pf, vf)| select::selects_vf(&pool.uplinks, pf, vf))
        .filter(|(pf, vf)| select::vf_problem(pf, vf).is_none())
}
