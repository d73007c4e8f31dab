//! Steps on the VF: reserve, bind, park, set up, give back.

use std::{error::Error, sync::Arc, time::Duration};

use hybridnic_api::{conditions::reasons, v1alpha1::NoFreeVf};
use hybridnic_net::{
    MacAddr, PciAddress, announce,
    dev::VfioUse,
    netlink::{NetlinkError, VfConfig, VfSetting},
    sysfs::DriverState,
};
use nix::errno::Errno;
use tracing::{info, warn};

use super::{Context, guest};
use crate::{
    error::{StepError, chain},
    host::Host,
    journal::{StandbyRecord, VfRecord, VlanRecord},
    nic::{
        observe::{Observation, VFIO_DRIVER, protocol, wanted},
        steps::ids,
    },
    node::{parking::parking_mac, pool::Choice},
};

/// How long a driver may take to let go of a VF and another to take it.
const BIND_DEADLINE: Duration = Duration::from_mins(1);

fn refused(error: &dyn Error) -> StepError {
    StepError::from_error(reasons::VF_SETTING_REFUSED, error)
}

fn bind_failed(error: &dyn Error) -> StepError {
    StepError::from_error(reasons::VF_BIND_FAILED, error)
}

/// Takes a VF and writes down how it was; without a free one, a PF for the standby alone.
pub(super) async fn reserve(cx: &mut Context) -> Result<(), StepError> {
    let inventory = cx
        .host
        .inventory()
        .await
        .map_err(|e| StepError::from_error(reasons::VF_LOST, &e))?;
    let network = cx.record.spec.network.clone();
    let standby_pf = cx.record.standby.as_ref().map(|s| s.pf);
    while let Some(choice) = cx.host.pools.take(&inventory, &network, &cx.claimant, standby_pf) {
        if in_use(&cx.host, &choice) {
            warn!(vf = %choice.vf.address, pf = choice.pf.name, "something else uses this VF through vfio; it is passed over");
            cx.host.pools.mark_foreign(choice.vf.address);
            cx.host.pools.release(choice.vf.address);
            continue;
        }
        let taken = choice.vf.address;
        let result = write_down(cx, choice).await;
        if result.is_err() {
            cx.record.vf = None;
            cx.host.pools.release(taken);
        }
        return result;
    }
    if cx.record.standby.is_none() && cx.record.spec.no_free_vf == NoFreeVf::Standby {
        let pf = cx.host.pools.standby_pf(&inventory, &network).ok_or_else(|| {
            StepError::new(
                reasons::NO_UPLINK,
                "no PF of the node that can be used matches the network's uplinks",
            )
        })?;
        let name = pf.name.clone().unwrap_or_default();
        cx.record.standby = Some(standby_record(cx, pf.address, name));
        cx.host.pools.note_standby(&cx.record.uid, pf.address);
        cx.save()?;
    }
    Ok(())
}

fn in_use(host: &Host, choice: &Choice) -> bool {
    let on_vfio = choice.vf.driver.as_deref().is_some_and(|d| d.starts_with("vfio"));
    on_vfio
        && choice
            .vf
            .iommu_group
            .is_some_and(|group| matches!(host.dev.vfio_use(group), Ok(VfioUse::InUse)))
}

fn standby_record(cx: &Context, pf: PciAddress, pf_name: String) -> StandbyRecord {
    let vlan = cx.record.spec.l2.vlan.as_ref().filter(|v| v.id != 0);
    StandbyRecord {
        macvtap: ids::macvtap(&cx.record.uid),
        pf,
        pf_name,
        vlan: vlan.map(|v| VlanRecord {
            id: u16::try_from(v.id).unwrap_or(0),
            protocol: protocol(v.protocol),
            qos: u8::try_from(v.qos).unwrap_or(0),
        }),
    }
}

async fn write_down(cx: &mut Context, choice: Choice) -> Result<(), StepError> {
    let Choice { pf, vf } = choice;
    let lost = || StepError::new(reasons::VF_LOST, format!("the VF {} has gone away", vf.address));
    let (Some(pf_name), Some(ifindex), Some(group)) = (pf.name.clone(), pf.ifindex, vf.iommu_group) else {
        return Err(lost());
    };
    let table = cx.host.netlink.vf_table(ifindex).await.map_err(|e| refused(&e))?;
    let saved = table
        .unwrap_or_default()
        .into_iter()
        .find(|c| c.index == vf.index)
        .ok_or_else(lost)?;
    let saved_driver = cx
        .host
        .sysfs
        .driver_state(vf.address)
        .map_err(|e| bind_failed(&e))?;
    if !pf.carrier.unwrap_or(false) {
        // A PF that is down carries nothing, and some drivers take no VF settings then.
        cx.host
            .netlink
            .set_up(ifindex, true)
            .await
            .map_err(|e| refused(&e))?;
    }
    info!(
        namespace = cx.record.namespace,
        nic = cx.record.spec.nic.name,
        node = cx.record.spec.node_name,
        vf = %vf.address,
        pf = pf_name,
        "VF reserved"
    );
    cx.record.vf = Some(VfRecord {
        address: vf.address,
        index: vf.index,
        pf: pf.address,
        pf_name: pf_name.clone(),
        pf_driver: pf.driver.unwrap_or_default(),
        iommu_group: group,
        parking_mac: parking_mac(&cx.host.options.node_name, vf.address),
        saved,
        saved_driver,
    });
    if cx.record.standby.is_none() {
        cx.record.standby = Some(standby_record(cx, pf.address, pf_name));
        cx.host.pools.note_standby(&cx.record.uid, pf.address);
    }
    cx.save()
}

/// Gives the VF to vfio-pci.
pub(super) async fn bind(cx: &mut Context) -> Result<(), StepError> {
    let vf = held(cx)?.address;
    let wanted = DriverState {
        driver: Some(VFIO_DRIVER.into()),
        driver_override: Some(VFIO_DRIVER.into()),
    };
    set_driver(&cx.host, vf, wanted).await
}

async fn set_driver(host: &Arc<Host>, vf: PciAddress, wanted: DriverState) -> Result<(), StepError> {
    let shared = Arc::clone(host);
    let task = tokio::task::spawn_blocking(move || shared.sysfs.restore_driver(&shared.dev, vf, &wanted));
    match tokio::time::timeout(BIND_DEADLINE, task).await {
        Ok(Ok(result)) => result.map_err(|e| bind_failed(&e)),
        Ok(Err(error)) => Err(bind_failed(&error)),
        Err(_) => Err(StepError::new(
            reasons::VF_BIND_FAILED,
            format!(
                "the driver of {vf} did not let go of it within {} s",
                BIND_DEADLINE.as_secs()
            ),
        )),
    }
}

fn held(cx: &Context) -> Result<&VfRecord, StepError> {
    cx.record
        .vf
        .as_ref()
        .ok_or_else(|| StepError::new(reasons::VF_LOST, "no VF is reserved"))
}

/// The settings that a VF goes to, one request each, and read back.
async fn apply(cx: &Context, wanted: &VfConfig) -> Result<(), StepError> {
    let vf = held(cx)?;
    let lost = || {
        StepError::new(
            reasons::VF_LOST,
            format!("the PF {} of the VF has gone away", vf.pf_name),
        )
    };
    let pf = cx
        .host
        .netlink
        .link(&vf.pf_name)
        .await
        .map_err(|e| refused(&e))?
        .ok_or_else(lost)?;
    let read = async || {
        let table = cx
            .host
            .netlink
            .vf_table(pf.index)
            .await
            .map_err(|e| refused(&e))?;
        table
            .unwrap_or_default()
            .into_iter()
            .find(|c| c.index == vf.index)
            .ok_or_else(lost)
    };
    for setting in read().await?.changes_to(wanted) {
        set_patiently(cx, pf.index, vf.index, setting).await?;
    }
    let left = read().await?.changes_to(wanted);
    if let Some(setting) = left.first() {
        return Err(StepError::new(
            reasons::VF_SETTING_REFUSED,
            format!(
                "the driver {} took {setting} of VF {} without an error, and did not do it",
                vf.pf_driver, vf.index
            ),
        ));
    }
    Ok(())
}

/// Drivers answer EBUSY or EAGAIN while a VF resets itself: there is no event for its end.
async fn set_patiently(cx: &Context, pf: u32, vf: u16, setting: VfSetting) -> Result<(), StepError> {
    let mut pause = Duration::from_millis(50);
    loop {
        match cx.host.netlink.set_vf(pf, vf, setting).await {
            Ok(()) => return Ok(()),
            Err(error)
                if matches!(error.errno(), Some(Errno::EBUSY | Errno::EAGAIN))
                    && pause < Duration::from_secs(2) =>
            {
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            Err(error) => return Err(refused(&error)),
        }
    }
}

/// Parking MAC, no VLAN, the settings from before.
pub(super) async fn park(cx: &mut Context) -> Result<(), StepError> {
    let vf = held(cx)?;
    let parked = VfConfig {
        mac: Some(vf.parking_mac),
        vlan: Some(0),
        qos: Some(0),
        ..without_link_state(&vf.saved)
    };
    apply(cx, &parked).await
}

fn without_link_state(config: &VfConfig) -> VfConfig {
    VfConfig {
        link_state: None,
        vlan_proto: None,
        ..config.clone()
    }
}

/// The network's settings and, last, the NIC's MAC.
pub(super) async fn configure(cx: &mut Context, now: &Observation) -> Result<(), StepError> {
    let wanted = wanted(held(cx)?, cx.mac, &cx.record.spec.l2);
    raise_mtu(cx).await?;
    match apply(cx, &wanted).await {
        Ok(()) => Ok(()),
        // Some drivers refuse the MAC that the macvtap, up, has in the PF's filter already.
        Err(error)
            if now.seen.macvtap == Some(true)
                && !cx.learnt.refuses_twice
                && error.message.contains("MAC") =>
        {
            warn!(
                namespace = cx.record.namespace,
                nic = cx.record.spec.nic.name,
                node = cx.record.spec.node_name,
                error = error.message,
                "the driver takes one MAC once only: break before make"
            );
            cx.learnt.refuses_twice = true;
            Ok(())
        }
        Err(error) => {
            cx.learnt.vf_failed = Some(error.reason);
            Err(error)
        }
    }
}

async fn raise_mtu(cx: &Context) -> Result<(), StepError> {
    let Some(mtu) = cx.record.spec.l2.mtu.and_then(|m| u32::try_from(m).ok()) else {
        return Ok(());
    };
    let vf = held(cx)?;
    if let Some(pf) = cx.host.netlink.link(&vf.pf_name).await.map_err(|e| refused(&e))?
        && pf.mtu < mtu
    {
        cx.host
            .netlink
            .set_mtu(pf.index, mtu)
            .await
            .map_err(|e| refused(&e))?;
    }
    Ok(())
}

/// Forgets a VF that has gone away; another may be taken.
pub(super) fn drop_lost(cx: &mut Context) -> Result<(), StepError> {
    if let Some(vf) = cx.record.vf.take() {
        warn!(
            namespace = cx.record.namespace,
            nic = cx.record.spec.nic.name,
            node = cx.record.spec.node_name,
            vf = %vf.address,
            pf = vf.pf_name,
            "the VF has gone away"
        );
        cx.save()?;
        cx.host.pools.release(vf.address);
    }
    Ok(())
}

/// Gives the VF back: settings and driver as they were, and free for others only then.
pub(super) async fn restore(cx: &mut Context) -> Result<(), StepError> {
    let vf = held(cx)?.clone();
    if matches!(cx.host.dev.vfio_use(vf.iommu_group), Ok(VfioUse::InUse)) {
        return Err(StepError::new(
            reasons::VF_IN_USE,
            format!(
                "a process still holds the VF {}; it is given back when that has ended",
                vf.address
            ),
        ));
    }
    guest::close_descriptors(cx).await;
    if cx.host.sysfs.driver_state(vf.address).is_ok() {
        // It had it already when it was taken.
        let mut parked = vf.saved.mac == Some(vf.parking_mac);
        if let Err(error) = apply(cx, &without_link_state(&vf.saved)).await {
            // Some drivers refuse the zero MAC that they have shown. The parking MAC harms nobody.
            let zero = vf.saved.mac.is_some_and(MacAddr::is_zero);
            if !zero {
                return Err(error);
            }
            info!(vf = %vf.address, pf = vf.pf_name, error = error.message, "the VF keeps its parking MAC");
            park(cx).await?;
            parked = true;
        }
        cx.host.note_parked(vf.address, parked);
        set_driver(&cx.host, vf.address, vf.saved_driver.clone()).await?;
    }
    info!(
        namespace = cx.record.namespace,
        nic = cx.record.spec.nic.name,
        node = cx.record.spec.node_name,
        vf = %vf.address,
        pf = vf.pf_name,
        "VF given back"
    );
    cx.record.vf = None;
    cx.save()?;
    cx.host.pools.release(vf.address);
    Ok(())
}

/// Teaches the switches of a VF's PF where the MAC is, when the standby was on another PF.
pub(super) async fn announce_on_pf(cx: &Context) -> Result<(), NetlinkError> {
    let Some(vf) = &cx.record.vf else {
        return Ok(());
    };
    if let Some(pf) = cx.host.netlink.link(&vf.pf_name).await?
        && let Err(error) = announce::send_rarp(pf.index, cx.mac)
    {
        warn!(
            namespace = cx.record.namespace,
            nic = cx.record.spec.nic.name,
            node = cx.record.spec.node_name,
            error = chain(&error),
            "cannot announce the VF"
        );
    }
    Ok(())
}
