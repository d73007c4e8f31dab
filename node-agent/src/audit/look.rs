//! What is seen of the node.

use std::{collections::BTreeSet, sync::Arc};

use hybridnic_net::{MacAddr, PciAddress, netlink::Link};

use crate::{error::chain, host::Host, journal::Contents};

/// A VF as its PF has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfSeen {
    /// Its PCI address.
    pub address: PciAddress,
    /// Name of its PF.
    pub pf: String,
    /// The MAC that the PF has set.
    pub mac: Option<MacAddr>,
}

/// What is seen of the node.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// All links.
    pub links: Vec<Link>,
    /// All VFs.
    pub vfs: Vec<VfSeen>,
    /// What the journal has.
    pub journal: Contents,
    /// VFs that keep their parking MAC though they were given back, because their driver takes no other; and those whose groups pods have.
    pub parked: BTreeSet<PciAddress>,
}

/// Looks at the whole node.
pub(super) async fn see_node(host: &Arc<Host>) -> Result<Observed, String> {
    let links = host.netlink.links().await.map_err(|e| chain(&e))?;
    let inventory = host.inventory().await.map_err(|e| chain(&e))?;
    let mut vfs = Vec::new();
    for pf in &inventory.pfs {
        let link = links.iter().find(|link| Some(link.index) == pf.ifindex);
        let Some(link) = link.filter(|_| !pf.vfs.is_empty()) else {
            continue;
        };
        let table = host.netlink.vf_table(link.index).await.map_err(|e| chain(&e))?;
        for config in table.unwrap_or_default() {
            let vf = pf.vfs.iter().find(|vf| vf.index == config.index);
            vfs.extend(vf.map(|vf| VfSeen {
                address: vf.address,
                pf: link.name.clone(),
                mac: config.mac,
            }));
        }
    }
    // Read last: what is taken is in the journal before it is there.
    let journal = host.journal.contents().await.map_err(|e| chain(&e))?;
    Ok(Observed {
        links,
        vfs,
        journal,
        // A VF that is lent is parked before any NIC has it.
        parked: host
            .pools
            .parked()
            .into_iter()
            .chain(host.pools.lent().into_keys())
            .collect(),
    })
}
