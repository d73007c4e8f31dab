//! Which PFs a network's NICs may not be on because of what other networks have there. Pure.
//!
//! A VF without a VLAN passes whatever tags its guest sends, and no PF filters them. Where another network has a VLAN, the switch's port
//! is a trunk: guests of an untagged network on the same PF could send into that VLAN, and into all others.

use hybridnic_api::v1alpha1::{NodePool, PoolTags};
use hybridnic_net::sysfs::Pf;

use super::select;

/// The network that keeps this network's NICs off a PF; `None` if they may be there.
fn trunk<'a>(pools: &'a [NodePool], pool: &NodePool, pf: &Pf) -> Option<&'a NodePool> {
    if pool.tags != PoolTags::None {
        return None;
    }
    let selects = |other: &NodePool| other.uplinks.iter().any(|u| select::selects_pf(u, pf));
    pools
        .iter()
        .find(|other| other.tags == PoolTags::Vlan && selects(other))
}

/// Why this network's NICs may not be on a PF, for the administrator; `None` where they may.
pub fn problem(pools: &[NodePool], pool: &NodePool, pf: &Pf) -> Option<String> {
    let vlan = trunk(pools, pool, pf)?;
    Some(format!(
        "its PF {} also carries the network {}, which has a VLAN, and guests of an untagged network could send into that: give the \
         networks PFs of their own, or set guestVlans: true if guests may",
        pf.name.as_deref().unwrap_or_default(),
        vlan.network
    ))
}

/// The same for the owner of a NIC of the network, who must not learn which other networks there are.
pub fn problem_of_nic(pools: &[NodePool], pool: &NodePool, pf: &Pf) -> Option<String> {
    trunk(pools, pool, pf)?;
    Some(format!(
        "its PF {} also carries another network, which has a VLAN, and guests of an untagged network could send into that; which one, the \
         administrator finds in status.pools of the HybridNode",
        pf.name.as_deref().unwrap_or_default()
    ))
}

#[cfg(test)]
mod tests {
    use hybridnic_api::v1alpha1::Uplink;
    use hybridnic_net::testing;

    use super::*;

    #[test]
    fn an_untagged_network_shares_no_pf_with_a_vlan() {
        let dir = tempfile::tempdir().unwrap();
        let inventory = testing::make_sysfs(dir.path(), 2, 1).unwrap().discover().unwrap();
        let name = |pf: usize| inventory.pfs[pf].name.clone().unwrap();
        let pool = |network: &str, pf_names: &[String], tags| NodePool {
            network: network.into(),
            uplinks: vec![Uplink {
                pf_names: pf_names.to_vec(),
                ..Uplink::default()
            }],
            tags,
            standby_slots: 0,
            l2: None,
        };
        let pools = [
            pool("plain", &[name(0), name(1)], PoolTags::None),
            pool("trunk", &[name(0), name(1)], PoolTags::Guests),
            pool("blue", &[name(1)], PoolTags::Vlan),
        ];
        let problems = |pf: usize| {
            pools
                .each_ref()
                .map(|pool| problem(&pools, pool, &inventory.pfs[pf]))
        };
        assert_eq!(problems(0), [None, None, None]);
        let [plain, trunk, blue] = problems(1);
        assert!(plain.unwrap().contains("the network blue, which has a VLAN"));
        assert_eq!((trunk, blue), (None, None));
        let of_nic = |pool, pf: usize| problem_of_nic(&pools, &pools[pool], &inventory.pfs[pf]);
        let told = of_nic(0, 1).unwrap();
        assert!(
            told.contains("another network, which has a VLAN") && !told.contains("blue"),
            "{told}"
        );
        assert_eq!((of_nic(0, 0), of_nic(1, 1), of_nic(2, 1)), (None, None, None));
    }
}
