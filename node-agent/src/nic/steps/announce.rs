//! Tells the switches where the MAC is now.

use hybridnic_net::announce;
use tracing::warn;

use super::Context;
use crate::nic::vf::VfError;
use crate::{
    error::chain,
    machine::{Machine, MachineError},
    nic::ids,
};

/// From the standby, by the guest's own device.
pub(super) async fn from_standby(cx: &mut Context, machine: &Machine) -> Result<(), MachineError> {
    let device = ids::standby(&cx.record.spec);
    machine.announce(&[&device]).await?;
    cx.learnt.announce = false;
    Ok(())
}

/// On the VF's PF, when the standby was on another one.
pub(super) async fn on_pf(cx: &Context) -> Result<(), VfError> {
    let Some(vf) = &cx.record.vf else {
        return Ok(());
    };
    if let Some(pf) = cx.host.pf_link(vf.pf).await?
        && let Err(error) = announce::send_rarp(pf.index, cx.mac)
    {
        warn!(error = chain(&error), "cannot announce the VF");
    }
    Ok(())
}
