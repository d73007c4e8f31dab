//! Steps on the macvtap: make, up, down, remove.

use std::error::Error;

use hybridnic_api::conditions::reasons;
use hybridnic_net::netlink::{Link, MacvtapSpec, NetlinkError, VlanSpec};
use nix::errno::Errno;
use tracing::{info, warn};

use super::Context;
use crate::{
    error::StepError,
    journal::{StandbyRecord, VlanRecord},
    nic::{observe::Observation, seen::QemuSeen},
};

/// How the names of VLAN devices begin that we have made, and may remove.
const VLAN_PREFIX: &str = "hnv";

fn failed(error: &dyn Error) -> StepError {
    StepError::from_error(reasons::STANDBY_FAILED, error)
}

/// The macvtap, administratively down: its MAC is in no filter yet.
pub(super) async fn make(cx: &mut Context) -> Result<(), StepError> {
    let standby = recorded(cx)?.clone();
    // The journal has the name before the link exists.
    cx.save()?;
    let netlink = &cx.host.netlink;
    let pf = netlink.link(&standby.pf_name).await.map_err(|e| failed(&e))?;
    let pf = pf.ok_or_else(|| {
        StepError::new(
            reasons::VF_LOST,
            format!("the PF {} of the standby has gone away", standby.pf_name),
        )
    })?;
    if !pf.up {
        netlink.set_up(pf.index, true).await.map_err(|e| failed(&e))?;
    }
    let mtu = cx.record.spec.l2.mtu.and_then(|m| u32::try_from(m).ok());
    if let Some(mtu) = mtu
        && pf.mtu < mtu
    {
        netlink.set_mtu(pf.index, mtu).await.map_err(|e| failed(&e))?;
    }
    let lower = match &standby.vlan {
        None => pf.index,
        Some(vlan) => vlan_device(cx, &pf, vlan).await.map_err(|e| failed(&e))?,
    };
    let alias = format!("hybridnic {} {}", cx.record.nic(), cx.record.uid);
    let spec = MacvtapSpec {
        name: standby.macvtap.clone(),
        lower,
        mac: cx.mac,
        mtu,
        alias: Some(alias),
    };
    match netlink.create_macvtap(&spec).await {
        Ok(_) => Ok(()),
        // A step that was cut short by a crash.
        Err(error) if error.errno() == Some(Errno::EEXIST) => Ok(()),
        Err(error) => Err(failed(&error)),
    }
}

async fn vlan_device(cx: &Context, pf: &Link, vlan: &VlanRecord) -> Result<u32, NetlinkError> {
    let netlink = &cx.host.netlink;
    let find = async || netlink.vlan_on(pf.index, vlan.id, vlan.protocol).await;
    let link = if let Some(link) = find().await? {
        link
    } else {
        let spec = VlanSpec {
            name: format!("{VLAN_PREFIX}{}.{}", pf.index, vlan.id),
            lower: pf.index,
            id: vlan.id,
            protocol: vlan.protocol,
            qos: vlan.qos,
        };
        match netlink.create_vlan(&spec).await {
            Ok(link) => link,
            // Another NIC of the network was quicker.
            Err(error) if error.errno() == Some(Errno::EEXIST) => find().await?.ok_or(error)?,
            Err(error) => return Err(error),
        }
    };
    if !link.up {
        netlink.set_up(link.index, true).await?;
    }
    Ok(link.index)
}

fn recorded(cx: &Context) -> Result<&StandbyRecord, StepError> {
    cx.record
        .standby
        .as_ref()
        .ok_or_else(|| StepError::new(reasons::STANDBY_FAILED, "no standby is reserved"))
}

/// The standby receives from now on.
pub(super) async fn up(cx: &mut Context, now: &Observation) -> Result<(), StepError> {
    let Some(link) = &now.macvtap else {
        return Err(StepError::new(
            reasons::STANDBY_FAILED,
            "the macvtap has gone away",
        ));
    };
    let vf_plugged = matches!(now.seen.qemu, QemuSeen::Up(guest) if guest.vf);
    match cx.host.netlink.set_up(link.index, true).await {
        Ok(()) => {
            // With the VF still in the guest, it is the VF that the switches should know.
            cx.learnt.announce |= !vf_plugged;
            Ok(())
        }
        Err(error)
            if vf_plugged
                && !cx.learnt.refuses_twice
                && matches!(
                    error.errno(),
                    Some(Errno::EEXIST | Errno::EBUSY | Errno::EADDRINUSE | Errno::EINVAL)
                ) =>
        {
            warn!(
                namespace = cx.record.namespace,
                nic = cx.record.spec.nic.name,
                node = cx.record.spec.node_name,
                %error,
                "the driver takes one MAC once only: break before make"
            );
            cx.learnt.refuses_twice = true;
            Ok(())
        }
        Err(error) => Err(failed(&error)),
    }
}

/// The standby receives no more: its MAC leaves the PF's filter.
pub(super) async fn down(cx: &mut Context, now: &Observation) -> Result<(), StepError> {
    if let Some(link) = &now.macvtap {
        cx.host
            .netlink
            .set_up(link.index, false)
            .await
            .map_err(|e| failed(&e))?;
    }
    cx.learnt.announce = false;
    Ok(())
}

/// Deletes the macvtap and, with its last user, a VLAN device of ours.
pub(super) async fn remove(cx: &mut Context) -> Result<(), StepError> {
    let Some(standby) = cx.record.standby.clone() else {
        return Ok(());
    };
    let netlink = cx.host.netlink.clone();
    if let Some(link) = netlink.link(&standby.macvtap).await.map_err(|e| failed(&e))? {
        netlink.delete_link(link.index).await.map_err(|e| failed(&e))?;
    }
    if let Some(vlan) = &standby.vlan
        && let Some(pf) = netlink.link(&standby.pf_name).await.map_err(|e| failed(&e))?
        && let Some(device) = netlink
            .vlan_on(pf.index, vlan.id, vlan.protocol)
            .await
            .map_err(|e| failed(&e))?
        && device.name.starts_with(VLAN_PREFIX)
        && netlink
            .macvtaps_on(device.index)
            .await
            .map_err(|e| failed(&e))?
            .is_empty()
    {
        info!(
            device = device.name,
            "VLAN device removed: nothing uses it any more"
        );
        netlink.delete_link(device.index).await.map_err(|e| failed(&e))?;
    }
    cx.record.standby = None;
    cx.host.pools.drop_standby(&cx.record.uid);
    cx.save()
}
