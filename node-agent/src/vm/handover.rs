//! The two moments in which a VM's address moves from node to node. They lie in the VM's pause, so they are
//! done at once for all of its NICs, and not through each NIC's own task; those see afterwards that it is done.

use futures::future::join_all;
use hybridnic_net::netlink::{Netlink, NetlinkError};
use hybridnic_qmp::{Client, QmpError, commands::Announce};

use super::Vm;

/// Source, at `pre-switchover`: no NIC of the VM receives or sends here any more.
pub async fn silence(vm: &Vm, netlink: &Netlink) -> Result<(), NetlinkError> {
    set_all(vm, netlink, false).await
}

/// Target, at `RESUME`: every NIC of the VM receives here, and the switches are told.
pub async fn wake(vm: &Vm, netlink: &Netlink, client: &Client) -> Result<(), WakeError> {
    set_all(vm, netlink, true).await?;
    announce(vm, client).await?;
    Ok(())
}

/// Not every NIC could be woken.
#[derive(Debug, thiserror::Error)]
pub enum WakeError {
    /// A macvtap could not be set up.
    #[error("cannot set the standby up")]
    Standby(#[from] NetlinkError),
    /// QEMU did not announce the VM.
    #[error("cannot announce the VM")]
    Announce(#[from] QmpError),
}

async fn set_all(vm: &Vm, netlink: &Netlink, up: bool) -> Result<(), NetlinkError> {
    let nics = vm.nics();
    let each = nics.iter().filter_map(|(uid, nic)| Some((uid, nic.macvtap?)));
    let results = join_all(each.map(async |(uid, index)| {
        match netlink.set_up(index, up).await {
            Ok(()) => vm.note(uid, if up { "StandbyUp" } else { "StandbyDown" }),
            // One that has gone is silent, and its NIC's task says so.
            Err(error) if error.is_no_device() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }))
    .await;
    results.into_iter().collect()
}

async fn announce(vm: &Vm, client: &Client) -> Result<(), QmpError> {
    let nics = vm.nics();
    let devices: Vec<&str> = nics.values().map(|n| n.standby_device.as_str()).collect();
    client.announce_self(&devices, Announce::default()).await
}
