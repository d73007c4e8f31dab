//! Creates VFs where a network asks for some and a PF has none. Never changes the number of a PF that has some.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use hybridnic_api::v1alpha1::NodePool;
use hybridnic_net::{
    PciAddress,
    sysfs::{Inventory, Pf},
};
use tracing::{info, warn};

use super::select;
use crate::{error::chain, host::Host};

/// How long a driver may take to make its VFs.
const DEADLINE: Duration = Duration::from_mins(2);

/// The PFs that should get VFs, and how many. Pure.
pub fn wanted(inventory: &Inventory, pools: &[NodePool]) -> Vec<(PciAddress, u16)> {
    let want = |pf: &Pf| {
        pools
            .iter()
            .filter_map(|p| select::wanted_vfs(&p.uplinks, pf))
            .max()
    };
    inventory
        .pfs
        .iter()
        .filter(|pf| pf.num_vfs == 0 && select::pf_problem(pf).is_none())
        .filter_map(|pf| Some((pf.address, want(pf)?)))
        .collect()
}

/// Creates them. What a PF refuses is in the answer, by PF.
pub async fn provision(host: &Arc<Host>, inventory: &Inventory) -> BTreeMap<PciAddress, String> {
    let mut errors = BTreeMap::new();
    for (pf, count) in wanted(inventory, &host.pools.pools()) {
        let shared = Arc::clone(host);
        let task = tokio::task::spawn_blocking(move || shared.sysfs.create_vfs(pf, count));
        let error = match tokio::time::timeout(DEADLINE, task).await {
            Ok(Ok(Ok(()))) => {
                info!(%pf, count, "VFs created");
                continue;
            }
            Ok(Ok(Err(error))) => chain(&error),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!(
                "the driver did not create {count} VFs within {} s",
                DEADLINE.as_secs()
            ),
        };
        warn!(%pf, count, error, "cannot create VFs");
        errors.insert(pf, error);
    }
    errors
}
