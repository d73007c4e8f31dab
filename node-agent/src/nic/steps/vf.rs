//! Steps on the VF: bind, park, set up, give back.

use std::sync::Arc;

use hybridnic_net::{PciAddress, netlink::VfConfig, sysfs::Presence};
use tracing::warn;

use super::{Context, descriptors};
use crate::{
    error::chain,
    journal::VfRecord,
    nic::{
        macs::original,
        observe::Observation,
        plan::Learnt,
        settings::{parked, wanted},
        vf::{self, VfError, apply, before, is_vfio},
    },
};

/// Gives the VF to vfio-pci.
pub(super) async fn bind(cx: &mut Context) -> Result<(), VfError> {
    let vf = held(cx)?.address;
    let bound = vf::bind(&cx.host, vf).await;
    bound.map_err(|error| cx.vf_failed(error))
}

pub(super) fn held(cx: &Context) -> Result<&VfRecord, VfError> {
    cx.record.vf.as_ref().ok_or(VfError::NotReserved)
}

/// Parking MAC, spoof check on, trust off; otherwise the network's settings. Those from before come back with proof only, see [`restore`].
pub(super) async fn park(cx: &mut Context) -> Result<(), VfError> {
    let limits = cx.record.spec.l2.rate.is_some();
    if limits {
        note_rate(cx, true).await?;
    }
    let (host, vf) = (Arc::clone(&cx.host), held(cx)?);
    let parking = parked(vf, &cx.record.spec.l2);
    let mac_only = VfConfig {
        index: vf.index,
        mac: parking.mac,
        ..VfConfig::default()
    };
    let applied = match apply(&host, vf, &parking).await {
        // Everything else stays as the guest has had it: the driver may refuse what its network has asked for since.
        Err(error) if error.refused().is_some() && !error.is_mac() => {
            warn!(vf = %vf.address, pf = vf.pf_name, error = chain(&error), "of the VF only the MAC is parked");
            apply(&host, vf, &mac_only).await
        }
        applied => applied,
    };
    if let Err(error) = applied {
        cx.learnt.not_parked |= error.refused().is_some();
        return Err(cx.vf_failed(error));
    }
    if limits { Ok(()) } else { rate_is_back(cx).await }
}

/// The VF has its rate from before: from now on it is left alone.
async fn rate_is_back(cx: &mut Context) -> Result<(), VfError> {
    note_rate(cx, false).await
}

async fn note_rate(cx: &mut Context, set: bool) -> Result<(), VfError> {
    if held(cx)?.rate_set == set {
        return Ok(());
    }
    cx.commit(|record| {
        if let Some(vf) = &mut record.vf {
            vf.rate_set = set;
        }
    })
    .await?;
    Ok(())
}

/// The network's settings and, last, the NIC's MAC.
pub(super) async fn configure(cx: &mut Context, now: &Observation) -> Result<(), VfError> {
    let limits = cx.record.spec.l2.rate.is_some();
    if limits {
        note_rate(cx, true).await?;
    }
    let wanted = wanted(held(cx)?, cx.mac, &cx.record.spec.l2);
    let applied = match raise_mtu(cx).await {
        Ok(()) => apply(&cx.host, held(cx)?, &wanted).await,
        Err(error) => Err(error),
    };
    match applied {
        Ok(()) if limits => Ok(()),
        Ok(()) => rate_is_back(cx).await,
        // Some drivers refuse the MAC that the macvtap, up, has in the PF's filter already.
        Err(error) if error.is_mac() && now.seen.macvtap == Some(true) && !cx.learnt.refuses_twice => {
            warn!(
                error = chain(&error),
                "the driver takes one MAC once only: break before make"
            );
            cx.learnt.refuses_twice = true;
            Ok(())
        }
        Err(error) => Err(cx.vf_failed(error)),
    }
}

async fn raise_mtu(cx: &Context) -> Result<(), VfError> {
    let Some(mtu) = cx.record.spec.l2.mtu.and_then(|m| u32::try_from(m).ok()) else {
        return Ok(());
    };
    let pf = vf::pf_of(&cx.host, held(cx)?).await?;
    if pf.mtu < mtu {
        let raised = cx.host.netlink.set_mtu(pf.index, mtu).await;
        raised.map_err(VfError::Mtu)?;
    }
    Ok(())
}

/// Forgets a VF that is proven to be gone; another may be taken.
pub(super) async fn drop_lost(cx: &mut Context) -> Result<(), VfError> {
    let Some(vf) = cx.record.vf.clone() else {
        return Ok(());
    };
    warn!(
        vf = %vf.address,
        pf = vf.pf_name,
        "the VF has gone away"
    );
    let_go(cx, vf.address).await
}

/// Nothing is held of the VF any more.
async fn let_go(cx: &mut Context, vf: PciAddress) -> Result<(), VfError> {
    cx.commit(|record| record.vf = None).await?;
    cx.host.handouts.forget(vf);
    cx.host.pools.release(vf);
    cx.learnt = Learnt {
        vf_failed: None,
        vf_failures: 0,
        not_parked: false,
        ignores_vf: None,
        ..cx.learnt
    };
    Ok(())
}

/// No process has the VF when this has returned: vfio lets go of it once every process has closed its descriptor
/// (`vfio_unregister_group_dev` in drivers/vfio/vfio_main.c).
async fn take_from_vfio(cx: &Context, vf: &VfRecord, driver: Option<String>) -> Result<(), VfError> {
    let driver = vf::driver_of(&cx.host, vf.address, driver).await?;
    if is_vfio(driver.as_deref()) {
        vf::nobody_holds(&cx.host, vf).await?;
        if cx.host.handouts.is_unsure(vf.address) && vm_lives(cx).await? {
            return Err(VfError::MayBeKept(vf.address));
        }
        vf::unbind(&cx.host, vf.address).await?;
    }
    cx.host.handouts.forget(vf.address);
    Ok(())
}

/// Whether there are processes of the VM. They may have what the driver would wait for, and a process that waits for it cannot be ended: the
/// agent's own pod could not be replaced.
async fn vm_lives(cx: &Context) -> Result<bool, VfError> {
    let (proc, home) = (cx.host.proc.clone(), cx.vm.home.clone());
    let known = cx.vm.record().process;
    let lives = tokio::task::spawn_blocking(move || home.has_processes(&proc, known.as_ref()));
    let lives = lives.await.map_err(std::io::Error::from).flatten();
    lives.map_err(VfError::PodUnread)
}

/// Gives the VF back: settings and driver as they were, and free for others only then.
pub(super) async fn restore(cx: &mut Context) -> Result<(), VfError> {
    let vf = held(cx)?.clone();
    let presence = cx.host.sysfs.presence(vf.address);
    let presence = presence.map_err(|source| VfError::Presence {
        vf: vf.address,
        source,
    })?;
    let Presence::Present { driver } = presence else {
        return drop_lost(cx).await;
    };
    descriptors::take_back(cx).await;
    if cx.host.pools.is_lent(vf.address) {
        return leave_to_pod(cx, &vf, driver.as_deref()).await;
    }
    take_from_vfio(cx, &vf, driver).await?;
    // A record of an older agent may have a MAC that is a NIC's.
    let saved = original(&before(&vf), vf.parking_mac, &cx.host.macs);
    vf::give_back(&cx.host, &vf, saved).await?;
    let_go(cx, vf.address).await
}

/// The NIC does without its VF, and its pod still has the VF's group: it stays with vfio, because a group that is made again may have another
/// device number, and parked. It goes back to the pool with the pod.
async fn leave_to_pod(cx: &mut Context, vf: &VfRecord, driver: Option<&str>) -> Result<(), VfError> {
    if is_vfio(driver) {
        vf::nobody_holds(&cx.host, vf).await?;
    }
    park(cx).await?;
    let_go(cx, vf.address).await
}
