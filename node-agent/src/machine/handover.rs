//! The two moments in which a VM's address moves from node to node. They happen in the VM's pause, so they are
//! done for all of its NICs at once, and not by each NIC's own task; the tasks see afterwards that it is done.
//!
//! The journal says which macvtaps there are, because a NIC's task may not have looked since the agent started.

use std::fmt;

use futures::future::{BoxFuture, join_all};
use hybridnic_net::netlink::NetlinkError;

use super::{NicEntry, Vm};
use crate::links::LinkAt;

/// Where macvtaps are set up and down.
pub trait Macvtaps: fmt::Debug + Send + Sync {
    /// Sets one up or down; `false` where there is none.
    fn set<'a>(&'a self, macvtap: &'a LinkAt, up: bool) -> BoxFuture<'a, Result<bool, NetlinkError>>;
}

/// Source, at `pre-switchover`: no NIC of the VM receives or sends here any more. An error means that one may.
pub async fn silence(vm: &Vm, macvtaps: &dyn Macvtaps) -> Result<(), NetlinkError> {
    set_all(vm, macvtaps, false, |_| true).await
}

/// Target, before the VM starts or once it runs: every NIC of the VM that is not on its VF receives here.
pub async fn wake(vm: &Vm, macvtaps: &dyn Macvtaps) -> Result<(), NetlinkError> {
    // One that is on its VF has its standby down.
    set_all(vm, macvtaps, true, |nic| !nic.vf).await
}

async fn set_all(
    vm: &Vm,
    macvtaps: &dyn Macvtaps,
    up: bool,
    of: impl Fn(&NicEntry) -> bool,
) -> Result<(), NetlinkError> {
    let nics = vm.nics();
    let each = nics
        .iter()
        .filter(|(_, nic)| of(nic))
        .filter_map(|(uid, nic)| Some((uid, nic.macvtap.as_ref()?)));
    let results = join_all(each.map(async |(uid, at)| {
        // A macvtap that has gone is silent, and its NIC's task reports it.
        if macvtaps.set(at, up).await? {
            vm.note(uid, if up { "StandbyUp" } else { "StandbyDown" });
        }
        Ok(())
    }))
    .await;
    results.into_iter().collect()
}
