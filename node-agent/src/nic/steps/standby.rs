//! Steps on the macvtap: make, guard, up, down, remove, move.

use std::{io, sync::Arc};

use hybridnic_api::conditions::reasons;
use hybridnic_net::{
    PciAddress, VlanProtocol,
    netlink::{Link, MacvtapSpec, Netlink, NetlinkError, VlanSpec},
    tap_node::NodeError,
};
use nix::errno::Errno;
use tracing::{info, warn};

use super::{Context, pod_link, reserve::standby_record};
use crate::{
    devices::DeviceError,
    error::{HasReason, chain},
    host::PfUnread,
    journal::{JournalError, Seized, StandbyRecord, VlanRecord},
    links::{Way, WayError},
    nic::{
        ids,
        observe::{self, Observation},
        seen::QemuSeen,
        settings,
    },
};

/// The beginning of the names of VLAN devices that we have made, and may remove.
pub const VLAN_PREFIX: &str = "hnv";

/// The macvtap is not as it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum StandbyError {
    #[error("no standby is reserved")]
    NotReserved,
    #[error("the standby's PF {pf} ({name}) has no network interface here")]
    NoInterface { pf: PciAddress, name: String },
    #[error(
        "the standby cannot be guarded, and does not go up without: {}; the kernel needs sch_ingress, cls_flower, act_gact and \
         act_police", chain(.0)
    )]
    NotGuarded(NetlinkError),
    #[error("the pod's sandbox does not ask for its link any more")]
    NotAskedFor,
    #[error(transparent)]
    Uncounted(io::Error),
    #[error(transparent)]
    Way(#[from] WayError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Tap(#[from] DeviceError),
    #[error(transparent)]
    Pf(#[from] PfUnread),
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl HasReason for StandbyError {
    fn reason(&self) -> &'static str {
        match self {
            Self::NotAskedFor => reasons::WAITING_FOR_RUNTIME,
            Self::Tap(error) => error.reason_or(reasons::STANDBY_FAILED),
            Self::Pf(error) => error.reason(),
            Self::Journal(error) => error.reason(),
            Self::NotReserved
            | Self::NoInterface { .. }
            | Self::NotGuarded(_)
            | Self::Uncounted(_)
            | Self::Way(_)
            | Self::Netlink(_)
            | Self::Node(_) => reasons::STANDBY_FAILED,
        }
    }
}

/// The macvtap, administratively down: its MAC is in no filter yet.
pub(super) async fn make(cx: &mut Context) -> Result<(), StandbyError> {
    let standby = recorded(cx)?.clone();
    // The journal has the name before the link exists.
    cx.commit(|_| ()).await?;
    let host = Arc::clone(&cx.host);
    let netlink = &host.netlink;
    let pf = host.pf_link(standby.pf).await?;
    let pf = pf.ok_or_else(|| StandbyError::NoInterface {
        pf: standby.pf,
        name: standby.pf_name.clone(),
    })?;
    if !pf.up {
        netlink.set_up(pf.index, true).await?;
    }
    let mtu = cx.record.spec.l2.mtu.and_then(|m| u32::try_from(m).ok());
    if let Some(mtu) = mtu
        && pf.mtu < mtu
    {
        netlink.set_mtu(pf.index, mtu).await?;
    }
    // Another NIC must not take the VLAN device away before the macvtap is on it.
    let _vlan_devices = host.vlan_devices.lock().await;
    let lower = match &standby.vlan {
        None => pf.index,
        Some(vlan) => vlan_device(cx, &pf, vlan).await?,
    };
    let alias = format!("hybridnic {} {}", cx.record.nic(), cx.record.uid);
    let spec = MacvtapSpec {
        name: standby.macvtap.clone(),
        lower,
        mac: cx.mac,
        mtu,
        mode: settings::mode(&cx.record.spec.l2),
        alias: Some(alias),
    };
    if ids::interface(&cx.record.spec).is_some() {
        return pod_link::make(cx, &spec).await;
    }
    match netlink.create_macvtap(&spec).await {
        Ok(_) => Ok(()),
        // A step that was cut short by a crash.
        Err(error) if error.errno() == Some(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The way to the macvtap.
pub(super) fn way(cx: &Context) -> Result<Way, StandbyError> {
    Ok(Way::to(&cx.host, &cx.record, recorded(cx)?)?)
}

/// The name of our VLAN device: one for each protocol, because the kernel takes both of one id on one PF.
fn vlan_name(pf: u32, vlan: &VlanRecord) -> String {
    let separator = match vlan.protocol {
        VlanProtocol::Dot1q => '.',
        VlanProtocol::Dot1ad => 's',
    };
    format!("{VLAN_PREFIX}{pf}{separator}{}", vlan.id)
}

async fn vlan_device(cx: &Context, pf: &Link, vlan: &VlanRecord) -> Result<u32, NetlinkError> {
    let netlink = &cx.host.netlink;
    let find = async || netlink.vlan_on(pf.index, vlan.id, vlan.protocol).await;
    let link = if let Some(link) = find().await? {
        link
    } else {
        let spec = VlanSpec {
            name: vlan_name(pf.index, vlan),
            lower: pf.index,
            id: vlan.id,
            protocol: vlan.protocol,
            qos: vlan.qos,
        };
        match netlink.create_vlan(&spec).await {
            Ok(link) => link,
            // Somebody else was quicker.
            Err(error) if error.errno() == Some(Errno::EEXIST) => find().await?.ok_or(error)?,
            Err(error) => return Err(error),
        }
    };
    if !link.up {
        netlink.set_up(link.index, true).await?;
    }
    Ok(link.index)
}

/// Gives our VLAN device, and then the macvtap, the MTU back that they lost while the PF had a smaller one.
pub(super) async fn raise_mtu(cx: &mut Context, now: &Observation) {
    if let Err(error) = try_raise_mtu(cx, now).await {
        warn!(error = chain(&error), "the standby keeps a smaller MTU");
        cx.learnt.mtu_refused = true;
    }
}

async fn try_raise_mtu(cx: &Context, now: &Observation) -> Result<(), StandbyError> {
    let (Some(macvtap), Some(pf)) = (&now.macvtap, &now.standby_pf) else {
        return Ok(());
    };
    let Some(room) = observe::room(&cx.host, macvtap, pf).await? else {
        return Ok(());
    };
    let mtu = settings::mtu(&cx.record.spec.l2, room);
    let way = way(cx)?;
    if let Some(lower) = macvtap.lower.filter(|lower| *lower != pf.index)
        && let Some(lower) = cx.host.netlink.link_by_index(lower).await?
        && observe::is_ours(&lower)
        && lower.mtu < mtu
    {
        let netlink = &cx.host.netlink;
        netlink.set_mtu(lower.index, mtu).await?;
    }
    Ok(way.must()?.set_mtu(macvtap.index, mtu).await?)
}

fn recorded(cx: &Context) -> Result<&StandbyRecord, StandbyError> {
    cx.record.standby.as_ref().ok_or(StandbyError::NotReserved)
}

/// Only what the network allows passes, from before the macvtap is up for the first time.
pub(super) async fn guard(cx: &Context, now: &Observation) -> Result<(), StandbyError> {
    let Some(link) = &now.macvtap else {
        return Ok(());
    };
    let guard = settings::guard(cx.mac, &cx.record.spec.l2);
    let way = way(cx)?;
    let guarded = way.must()?.guard(link.index, &guard).await;
    guarded.map_err(StandbyError::NotGuarded)
}

/// Shuts the macvtap for good: the QEMU that has its descriptor has given it another MAC.
pub(super) async fn seize(cx: &mut Context, now: &Observation) -> Result<(), StandbyError> {
    // First of all: it receives another station's frames.
    down(cx, now).await?;
    warn!(
        mac = ?now.macvtap.as_ref().and_then(|link| link.mac),
        "the standby has another MAC than its NIC: it is shut until its QEMU has ended"
    );
    // If no QEMU is talked to now, the journal has the last one.
    let process = cx.vm.peer().or_else(|| cx.vm.record().process);
    cx.commit(|record| {
        if let Some(standby) = &mut record.standby {
            standby.seized.get_or_insert(Seized { process });
        }
    })
    .await?;
    Ok(())
}

/// The standby receives from now on.
pub(super) async fn up(cx: &mut Context, now: &Observation) -> Result<(), StandbyError> {
    let Some(link) = &now.macvtap else {
        return Err(WayError::Gone.into());
    };
    let vf_plugged = matches!(now.seen.qemu, QemuSeen::Up(guest) if guest.vf);
    let way = way(cx)?;
    match way.must()?.set_up(link.index, true).await {
        Ok(()) => {
            // With the VF still in the guest, the switches should know the VF.
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
                %error,
                "the driver takes one MAC once only: break before make"
            );
            cx.learnt.refuses_twice = true;
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// The standby receives no more: its MAC leaves the PF's filter.
pub(super) async fn down(cx: &mut Context, now: &Observation) -> Result<(), StandbyError> {
    if let Some(link) = &now.macvtap {
        let way = way(cx)?;
        way.must()?.set_up(link.index, false).await?;
    }
    cx.learnt.announce = false;
    Ok(())
}

/// Deletes the macvtap and, with its last user, a VLAN device of ours. What has gone with its PF needs no deletion.
pub(super) async fn remove(cx: &mut Context) -> Result<(), StandbyError> {
    delete(cx).await?;
    cx.commit(|record| record.standby = None).await?;
    cx.host.pools.drop_standby(&cx.record.uid);
    Ok(())
}

/// Deletes it, and moves it to the VF's PF, where it is made next. The NIC keeps the VF.
pub(super) async fn move_to_vf(cx: &mut Context) -> Result<(), StandbyError> {
    let Some(vf) = cx.record.vf.clone() else {
        return Ok(());
    };
    delete(cx).await?;
    let standby = standby_record(cx, vf.pf, vf.pf_name);
    cx.commit(|record| record.standby = Some(standby)).await?;
    cx.host.pools.note_standby(&cx.record.uid, vf.pf);
    Ok(())
}

async fn delete(cx: &Context) -> Result<(), StandbyError> {
    let Some(standby) = cx.record.standby.clone() else {
        return Ok(());
    };
    let netlink = cx.host.netlink.clone();
    let way = way(cx)?;
    if let Some(link) = way.find(&standby).await? {
        way.must()?.delete_link(link.index).await?;
    }
    // Before its sandbox is let go of.
    drop(way);
    pod_link::forget(cx);
    if let Some(vlan) = &standby.vlan
        && let Some(pf) = cx.host.pf_link(standby.pf).await?
    {
        let _vlan_devices = cx.host.vlan_devices.lock().await;
        remove_unused(&netlink, &pf, vlan).await?;
    }
    Ok(())
}

/// Removes a VLAN device of ours that nothing is stacked on, neither ours nor anything else.
async fn remove_unused(netlink: &Netlink, pf: &Link, vlan: &VlanRecord) -> Result<(), NetlinkError> {
    let links = netlink.links().await?;
    let device = links
        .iter()
        .find(|link| link.is_vlan_on(pf.index, vlan.id, vlan.protocol) && observe::is_ours(link));
    if let Some(device) = device
        && !links.iter().any(|link| link.lower == Some(device.index))
    {
        info!(
            device = device.name,
            "VLAN device removed: nothing uses it any more"
        );
        netlink.delete_link(device.index).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_protocol_has_a_name_of_its_own() {
        let vlan = |protocol| VlanRecord {
            id: 4094,
            protocol,
            qos: 0,
        };
        assert_eq!(vlan_name(12, &vlan(VlanProtocol::Dot1q)), "hnv12.4094");
        assert_eq!(vlan_name(12, &vlan(VlanProtocol::Dot1ad)), "hnv12s4094");
        assert!(vlan_name(9_999_999, &vlan(VlanProtocol::Dot1ad)).len() <= 15);
    }
}
