//! The two moments in which a VM's address moves from node to node. They lie in the VM's pause, so they are
//! done at once for all of its NICs, and not through each NIC's own task; those see afterwards that it is done.
//!
//! Which macvtaps there are is what the journal says, and not what a NIC's task has seen since the agent started.

use futures::future::join_all;
use hybridnic_net::netlink::{Netlink, NetlinkError};
use hybridnic_qmp::{Client, QmpError, commands::Announce};

use super::Vm;

/// Source, at `pre-switchover`: no NIC of the VM receives or sends here any more. An error means that one may.
pub async fn silence(vm: &Vm, netlink: &Netlink) -> Result<(), NetlinkError> {
    set_all(vm, netlink, false).await
}

/// Target, before the VM starts: every NIC of the VM receives here.
pub async fn wake(vm: &Vm, netlink: &Netlink) -> Result<(), NetlinkError> {
    set_all(vm, netlink, true).await
}

async fn set_all(vm: &Vm, netlink: &Netlink, up: bool) -> Result<(), NetlinkError> {
    let nics = vm.nics();
    let each = nics
        .iter()
        .filter_map(|(uid, nic)| Some((uid, nic.macvtap.as_deref()?)));
    let results = join_all(each.map(async |(uid, name)| {
        // One that has gone is silent, and its NIC's task says so.
        let Some(link) = netlink.link(name).await? else {
            return Ok(());
        };
        match netlink.set_up(link.index, up).await {
            Ok(()) => vm.note(uid, if up { "StandbyUp" } else { "StandbyDown" }),
            Err(error) if error.is_no_device() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }))
    .await;
    results.into_iter().collect()
}

/// Target, once the VM runs: the switches are told where it is.
pub async fn announce(vm: &Vm, client: &Client) -> Result<(), QmpError> {
    let nics = vm.nics();
    let devices: Vec<&str> = nics.values().map(|n| n.standby_device.as_str()).collect();
    client.announce_self(&devices, Announce::default()).await
}
