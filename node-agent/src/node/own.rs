//! Which VFs the node uses itself: what sysfs does not show of them.

use hybridnic_net::{
    netlink::{Netlink, NetlinkError},
    sysfs::{Inventory, VfNetdev},
};

/// Fills in the addresses and routes of the VFs' interfaces. Asks nothing where no VF has one.
pub async fn fill_in(netlink: &Netlink, inventory: &mut Inventory) -> Result<(), NetlinkError> {
    if netdevs(inventory).next().is_none() {
        return Ok(());
    }
    let addresses = netlink.addresses().await?;
    for netdev in netdevs(inventory) {
        let its = addresses
            .iter()
            .filter(|(index, _)| Some(*index) == netdev.ifindex);
        netdev.addresses = its.map(|(_, address)| *address).collect();
    }
    // A node can have many routes. An interface that is down has none, and one that is in use has an address as a rule.
    let open = |netdev: &mut VfNetdev| netdev.up && netdev.uppers.is_empty() && netdev.addresses.is_empty();
    if netdevs(inventory).any(open) {
        let routed = netlink.routed().await?;
        for netdev in netdevs(inventory) {
            netdev.routed = netdev.ifindex.is_some_and(|index| routed.contains(&index));
        }
    }
    Ok(())
}

fn netdevs(inventory: &mut Inventory) -> impl Iterator<Item = &mut VfNetdev> {
    let vfs = inventory.pfs.iter_mut().flat_map(|pf| &mut pf.vfs);
    vfs.filter_map(|vf| vf.netdev.as_mut())
}

#[cfg(test)]
mod tests {
    use hybridnic_net::testing;

    use super::*;

    /// On the machine that runs the test: `lo` has an address, and what is not there has none.
    #[tokio::test]
    async fn addresses_are_those_of_the_interface() {
        let dir = tempfile::tempdir().unwrap();
        let mut inventory = testing::make_sysfs(dir.path(), 1, 4).unwrap().discover().unwrap();
        let lo = Netlink::open().unwrap().link("lo").await.unwrap().unwrap();
        let vfs = &mut inventory.pfs[0].vfs;
        vfs[1].netdev.as_mut().unwrap().ifindex = Some(lo.index);
        vfs[3].netdev.as_mut().unwrap().ifindex = Some(i32::MAX.unsigned_abs());
        fill_in(&Netlink::open().unwrap(), &mut inventory).await.unwrap();
        let has = |vf: usize| {
            !inventory.pfs[0].vfs[vf]
                .netdev
                .as_ref()
                .unwrap()
                .addresses
                .is_empty()
        };
        assert_eq!((has(1), has(3)), (lo.up, false));
    }
}
