//! From an inventory, pools and holders to what a `HybridNode` says. Pure.

use std::collections::{BTreeMap, BTreeSet};

use hybridnic_api::limits;
use hybridnic_api::v1alpha1::{NodePool, PfStatus, PoolStatus, VfCounts, VfState, VfStatus};
use hybridnic_net::{
    PciAddress,
    sysfs::{Inventory, Pf, Vf},
};

use super::{drain::Draining, ledger::Claimant, select, trunk};
use crate::journal::Lent;

/// What the table is made from.
#[derive(Clone, Copy, Debug)]
pub struct Sources<'a> {
    /// What the node has.
    pub inventory: &'a Inventory,
    /// What the operator has given it to manage.
    pub pools: &'a [NodePool],
    /// Which NIC holds which VF.
    pub holders: &'a BTreeMap<PciAddress, Claimant>,
    /// VFs that something else uses, or may use, and what is known about that.
    pub foreign: &'a BTreeMap<PciAddress, String>,
    /// VFs whose vfio groups pods have.
    pub lent: &'a BTreeMap<PciAddress, Lent>,
    /// What is drained.
    pub draining: &'a Draining,
    /// Why VFs could not be made, by PF.
    pub provision_errors: &'a BTreeMap<PciAddress, String>,
}

/// PFs, pools and the total of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Its PFs with their VFs.
    pub pfs: Vec<PfStatus>,
    /// Its pools.
    pub pools: Vec<PoolStatus>,
    /// All of its VFs that some network selects.
    pub vfs: VfCounts,
}

/// Makes the table.
pub fn build(sources: &Sources<'_>) -> Table {
    let mut table = Table {
        pools: sources
            .pools
            .iter()
            .map(|p| PoolStatus {
                network: p.network.clone(),
                ..PoolStatus::default()
            })
            .collect(),
        ..Table::default()
    };
    for pf in &sources.inventory.pfs {
        let mut status = pf_status(pf, sources);
        for vf in &pf.vfs {
            let row = vf_status(pf, vf, sources);
            count(&mut table.vfs, row.state);
            status.vfs.push(row);
        }
        table.pfs.push(status);
    }
    for (pool, counts) in sources.pools.iter().zip(&mut table.pools) {
        for (_, _, state) in of_pool(sources, pool) {
            count(&mut counts.vfs, state);
        }
    }
    for (pool, status) in sources.pools.iter().zip(&mut table.pools) {
        let told = pool_message(pool, status, &table.pfs, sources);
        let drained = sources.draining.of_pool(pool, sources.holders);
        status.drain = drained.as_ref().map(|(state, _)| *state);
        let all = drained.into_iter().map(|(_, told)| told);
        let all: Vec<_> = all.chain((!told.is_empty()).then_some(told)).collect();
        status.message = limits::text(&all.join("; "));
    }
    fit(&mut table);
    table
}

/// The VFs that a pool's uplinks select, each with its state for the pool's NICs.
pub fn of_pool<'a>(
    sources: &'a Sources<'_>,
    pool: &'a NodePool,
) -> impl Iterator<Item = (&'a Pf, &'a Vf, VfState)> {
    let vfs = sources
        .inventory
        .pfs
        .iter()
        .flat_map(|pf| pf.vfs.iter().map(move |vf| (pf, vf)));
    let selected = vfs.filter(|(pf, vf)| select::selects_vf(&pool.uplinks, pf, vf));
    selected.map(|(pf, vf)| match vf_state(pf, vf, sources).0 {
        VfState::Free if trunk::problem(sources.pools, pool, pf).is_some() => (pf, vf, VfState::Unhealthy),
        VfState::Free if sources.draining.keeps_free(pool, pf) => (pf, vf, VfState::Drained),
        state => (pf, vf, state),
    })
}

/// As many of the rows as the API takes. They are counted before.
fn fit(table: &mut Table) {
    table.pools.truncate(limits::POOLS);
    table.pfs.truncate(limits::PFS);
    for pf in &mut table.pfs {
        pf.vfs.truncate(limits::VFS);
    }
}

/// Why a pool has no VF, or not all of them; empty when nothing is wrong.
fn pool_message(pool: &NodePool, status: &PoolStatus, rows: &[PfStatus], sources: &Sources<'_>) -> String {
    let matching = |pf: &&Pf| pool.uplinks.iter().any(|u| select::selects_pf(u, pf));
    let pfs: Vec<&Pf> = sources.inventory.pfs.iter().filter(matching).collect();
    if pfs.is_empty() {
        return "no PF of the node matches the network's uplinks".into();
    }
    if status.vfs.total == 0 {
        let errors: Vec<&str> = pfs
            .iter()
            .filter_map(|pf| sources.provision_errors.get(&pf.address))
            .map(String::as_str)
            .collect();
        return if errors.is_empty() {
            "the matching PFs have no VFs: create them, or set numVfs in the network's uplink".into()
        } else {
            errors.join("; ")
        };
    }
    let barred: BTreeSet<String> = pfs
        .iter()
        .filter_map(|pf| trunk::problem(sources.pools, pool, pf))
        .collect();
    let whys: BTreeSet<&str> = sources
        .inventory
        .pfs
        .iter()
        .zip(rows)
        .flat_map(|(pf, row)| pf.vfs.iter().map(move |vf| (pf, vf)).zip(&row.vfs))
        .filter(|((pf, vf), row)| {
            row.state == VfState::Unhealthy && select::selects_vf(&pool.uplinks, pf, vf)
        })
        .map(|(_, row)| row.message.as_str())
        .collect();
    let barred = barred.iter().map(String::as_str);
    if status.vfs.unhealthy == 0 {
        // VFs that are held stay held.
        return barred.collect::<Vec<_>>().join("; ");
    }
    let whys: Vec<_> = whys.into_iter().chain(barred).collect();
    format!(
        "{} of its {} VFs cannot be used: {}",
        status.vfs.unhealthy,
        status.vfs.total,
        whys.join("; ")
    )
}

fn pf_status(pf: &Pf, sources: &Sources<'_>) -> PfStatus {
    let drained = sources.draining.of_pf(pf, sources.holders);
    let mut message = select::pf_problem(pf).unwrap_or_default();
    if message.is_empty()
        && let Some((_, told)) = &drained
    {
        message.clone_from(told);
    }
    if message.is_empty()
        && let Some(error) = sources.provision_errors.get(&pf.address)
    {
        message.clone_from(error);
    }
    PfStatus {
        name: pf.name.as_deref().map(limits::word).unwrap_or_default(),
        pci_address: pf.address.to_string(),
        vendor: pf.id.map_or_else(String::new, |id| format!("{:04x}", id.vendor)),
        device: pf.id.map_or_else(String::new, |id| format!("{:04x}", id.device)),
        driver: pf.driver.as_deref().map(limits::word).unwrap_or_default(),
        numa_node: pf.numa_node.and_then(|n| i32::try_from(n).ok()),
        mac: pf.mac.map(|m| m.to_string()),
        mtu: pf.mtu.and_then(|m| i32::try_from(m).ok()),
        link_up: select::has_link(pf),
        total_vfs: pf.total_vfs.into(),
        drain: drained.map(|(state, _)| state),
        message: limits::text(&message),
        vfs: Vec::with_capacity(pf.vfs.len()),
    }
}

/// What a VF is, and why it cannot be used; if it is held, what is wrong with it.
fn vf_state(pf: &Pf, vf: &Vf, sources: &Sources<'_>) -> (VfState, String) {
    let holder = sources.holders.get(&vf.address);
    let mut pools = sources
        .pools
        .iter()
        .filter(|p| select::selects_vf(&p.uplinks, pf, vf))
        .peekable();
    let selected = pools.peek().is_some();
    let draining = sources.draining;
    let foreign = || sources.foreign.get(&vf.address).cloned();
    let lent = sources.lent.get(&vf.address).map(ToString::to_string);
    match holder {
        Some(_) => (
            VfState::Held,
            vf.hung
                .clone()
                .or_else(foreign)
                .or_else(|| draining.is_left(pf, vf.address).then(|| LEFT.to_owned()))
                .unwrap_or_default(),
        ),
        None if lent.is_some() => (VfState::Held, lent.unwrap_or_default()),
        None if !selected => (VfState::Unselected, String::new()),
        None => match foreign().or_else(|| select::vf_problem(pf, vf)) {
            Some(problem) => (VfState::Unhealthy, problem),
            None if pools.all(|pool| draining.keeps_free(pool, pf)) => {
                (VfState::Drained, KEPT_FREE.to_owned())
            }
            None => (VfState::Free, String::new()),
        },
    }
}

const LEFT: &str = "it is being drained (spec.drain): its NIC leaves it";
const KEPT_FREE: &str = "it is drained (spec.drain), and kept free";

fn vf_status(pf: &Pf, vf: &Vf, sources: &Sources<'_>) -> VfStatus {
    let holder = sources.holders.get(&vf.address);
    let (state, message) = vf_state(pf, vf, sources);
    VfStatus {
        index: vf.index.into(),
        pci_address: vf.address.to_string(),
        driver: vf.driver.as_deref().map(limits::word).unwrap_or_default(),
        iommu_group: vf.iommu_group.and_then(|g| i32::try_from(g).ok()),
        state,
        held_by: holder.map(|h| h.nic.clone()),
        message: limits::text(&message),
    }
}

fn count(counts: &mut VfCounts, state: VfState) {
    match state {
        VfState::Unselected => return,
        VfState::Free => counts.free += 1,
        VfState::Held => counts.held += 1,
        VfState::Unhealthy => counts.unhealthy += 1,
        VfState::Drained => counts.drained += 1,
    }
    counts.total += 1;
}

#[cfg(test)]
mod tests {
    use hybridnic_api::v1alpha1::Uplink;
    use hybridnic_net::testing;

    use super::*;

    #[test]
    fn counts_add_up_and_reasons_are_given() {
        let dir = tempfile::tempdir().unwrap();
        let mut inventory = testing::make_sysfs(dir.path(), 2, 3).unwrap().discover().unwrap();
        inventory.pfs[0].carrier = Some(true);
        inventory.pfs[1].carrier = Some(false);
        let name = |i: usize| inventory.pfs[i].name.clone().unwrap();
        let pool = |network: &str, pf: &str| NodePool {
            network: network.into(),
            uplinks: vec![Uplink {
                pf_names: vec![pf.into()],
                ..Uplink::default()
            }],
            tags: hybridnic_api::v1alpha1::PoolTags::None,
            standby_slots: 0,
            l2: None,
        };
        let pools = [pool("a", &name(0)), pool("b", &name(1)), pool("c", "nosuch")];
        let holder = Claimant {
            created: 0,
            nic: "ns/x".into(),
            uid: "u".into(),
        };
        let holders = BTreeMap::from([(inventory.pfs[0].vfs[1].address, holder)]);
        let in_use = "something other than hybridnic uses it through vfio";
        let given = "the kubelet has given it to another pod";
        let foreign = BTreeMap::from([
            (inventory.pfs[0].vfs[1].address, given.to_owned()),
            (inventory.pfs[0].vfs[2].address, in_use.to_owned()),
        ]);
        let table = build(&Sources {
            inventory: &inventory,
            pools: &pools,
            holders: &holders,
            foreign: &foreign,
            lent: &BTreeMap::new(),
            draining: &Draining::default(),
            provision_errors: &BTreeMap::new(),
        });
        assert_eq!(
            table.vfs,
            VfCounts {
                total: 6,
                free: 1,
                held: 1,
                unhealthy: 4,
                drained: 0,
            }
        );
        assert_eq!(
            table.pools[0].vfs,
            VfCounts {
                total: 3,
                free: 1,
                held: 1,
                unhealthy: 1,
                drained: 0,
            }
        );
        assert_eq!(table.pfs[0].vfs[1].held_by.as_deref(), Some("ns/x"));
        assert_eq!(
            table.pfs[0].vfs[1].message, given,
            "it is held, and that is said too"
        );
        assert_eq!(table.pfs[0].vfs[2].message, in_use);
        assert!(table.pfs[1].vfs[0].message.contains("no link"));
        assert_eq!(
            table.pools[0].message,
            format!("1 of its 3 VFs cannot be used: {in_use}")
        );
        assert_eq!(
            table.pools[1].message,
            "3 of its 3 VFs cannot be used: its PF has no link: look at cable and switch"
        );
        assert!(table.pools[2].message.contains("no PF"));
    }
}
