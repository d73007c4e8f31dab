//! Which PFs a network's NICs may not be on because of what other networks have there. Pure.
//!
//! A VF without a VLAN passes whatever tags its guest sends, and no PF filters them. Where another network has a VLAN, the switch's port
//! is a trunk: guests of an untagged network on the same PF could send into that VLAN, and into all others.

use hybridnic_api::v1alpha1::{NodePool, PoolTags};
use hybridnic_net::sysfs::Pf;

use super::select;

/// Why this network's NICs may not be on a PF; `None` where they may.
pub fn problem(pools: &[NodePool], pool: &NodePool, pf: &Pf) -> Option<String> {
    if pool.tags != PoolTags::None {
        return None;
    }
    let selects = |other: &NodePool| other.uplinks.iter().any(|u| select::selects_pf(u, pf));
    let vlan = pools
        .iter()
        .find(|other| other.tags == PoolTags::Vlan && selects(other))?;
    Some(format!(
        "its PF {} also carries the network {}, which has a VLAN, and guests of an untagged network could send into that: give the \
         networks PFs of their own, or set guestVlans: true if guests may",
        pf.name.as_deref().unwrap_or_default(),
        vlan.network
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
    }
}
