//! Steps on the VF: bind, park, set up, give back.

use std::{error::Error, time::Duration};

use hybridnic_api::conditions::reasons;
use hybridnic_net::{
    MacAddr, PciAddress,
    dev::VfioUse,
    netlink::{Link, VfConfig, VfSetting},
    sysfs::{DriverState, Presence},
};
use nix::errno::Errno;
use tracing::{info, warn};

use super::{Context, descriptors};
use crate::{
    devices::DeviceError,
    error::{StepError, chain},
    journal::VfRecord,
    machine::residents,
    nic::{
        macs::original,
        observe::{Observation, VFIO_DRIVER},
        plan::Learnt,
        settings::{parked, saved_rates, wanted},
    },
};

pub(super) fn refused(error: &dyn Error) -> StepError {
    StepError::from_error(reasons::VF_SETTING_REFUSED, error)
}

pub(super) fn bind_failed(error: DeviceError) -> StepError {
    error.into_step(reasons::VF_BIND_FAILED)
}

/// Gives the VF to vfio-pci.
pub(super) async fn bind(cx: &mut Context) -> Result<(), StepError> {
    let vf = held(cx)?.address;
    let wanted = DriverState {
        driver: Some(VFIO_DRIVER.into()),
        driver_override: Some(VFIO_DRIVER.into()),
    };
    let bound = cx.host.devices.set_driver(vf, wanted).await.map_err(bind_failed);
    bound.map_err(|error| cx.vf_failed(error))
}

fn held(cx: &Context) -> Result<&VfRecord, StepError> {
    cx.record
        .vf
        .as_ref()
        .ok_or_else(|| StepError::new(reasons::VF_LOST, "no VF is reserved"))
}

/// Settings that could not be applied.
#[derive(Debug)]
enum ApplyError {
    /// The VF or its PF cannot be read.
    Unread(StepError),
    /// The driver or the kernel did not do this one.
    Refused(VfSetting, StepError),
}

impl ApplyError {
    fn is_mac(&self) -> bool {
        matches!(self, Self::Refused(VfSetting::Mac(_), _))
    }
}

impl From<ApplyError> for StepError {
    fn from(error: ApplyError) -> Self {
        let (ApplyError::Unread(error) | ApplyError::Refused(_, error)) = error;
        error
    }
}

/// The PF of the VF.
async fn pf_of(cx: &Context) -> Result<Link, StepError> {
    let vf = held(cx)?;
    cx.host.pf_link(vf.pf).await?.ok_or_else(|| {
        StepError::new(
            reasons::VF_UNKNOWN,
            format!(
                "the VF's PF {} ({}) has no network interface here",
                vf.pf, vf.pf_name
            ),
        )
    })
}

/// The settings that a VF goes to, one request each, and read back.
async fn apply(cx: &Context, wanted: &VfConfig) -> Result<(), ApplyError> {
    let vf = held(cx).map_err(ApplyError::Unread)?;
    let pf = pf_of(cx).await.map_err(ApplyError::Unread)?;
    let read = async || {
        let unread = |message: String| ApplyError::Unread(StepError::new(reasons::VF_UNKNOWN, message));
        let table = cx.host.netlink.vf_table(pf.index).await;
        table
            .map_err(|e| unread(chain(&e)))?
            .unwrap_or_default()
            .into_iter()
            .find(|c| c.index == vf.index)
            .ok_or_else(|| {
                unread(format!(
                    "the PF {} does not show its VF {} at the moment",
                    pf.name, vf.index
                ))
            })
    };
    for setting in read().await?.changes_to(wanted) {
        let done = set_patiently(cx, pf.index, vf.index, setting).await;
        done.map_err(|error| ApplyError::Refused(setting, error))?;
    }
    match first_undone(&read().await?, wanted) {
        None => Ok(()),
        Some(setting) => {
            let message = format!(
                "the driver {} took {setting} of VF {} without an error, and did not do it",
                vf.pf_driver, vf.index
            );
            let error = StepError::new(reasons::VF_SETTING_REFUSED, message);
            Err(ApplyError::Refused(setting, error))
        }
    }
}

/// The first setting that was taken and not done. Where there is no limit some drivers show one all the same, as the link's speed.
fn first_undone(now: &VfConfig, wanted: &VfConfig) -> Option<VfSetting> {
    let left = now.changes_to(wanted);
    left.into_iter()
        .find(|s| !matches!(s, VfSetting::Rate { min: 0, max: 0 }))
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

/// Parking MAC, spoof check on, trust off; otherwise the network's settings. Those from before come back with proof only, see [`restore`].
pub(super) async fn park(cx: &mut Context) -> Result<(), StepError> {
    let limits = cx.record.spec.l2.rate.is_some();
    if limits {
        note_rate(cx, true).await?;
    }
    let vf = held(cx)?;
    let parking = parked(vf, &cx.record.spec.l2);
    let mac_only = VfConfig {
        index: vf.index,
        mac: parking.mac,
        ..VfConfig::default()
    };
    let applied = match apply(cx, &parking).await {
        // All else stays as the guest has had it: what its network has asked for since may be what the driver refuses.
        Err(error @ ApplyError::Refused(..)) if !error.is_mac() => {
            let error = StepError::from(error);
            warn!(vf = %vf.address, pf = vf.pf_name, error = error.message, "of the VF only the MAC is parked");
            apply(cx, &mac_only).await
        }
        applied => applied,
    };
    if let Err(error) = applied {
        cx.learnt.not_parked |= matches!(error, ApplyError::Refused(..));
        return Err(cx.vf_failed(error.into()));
    }
    if limits { Ok(()) } else { rate_is_back(cx).await }
}

/// The settings that the VF had, but for those that were never changed.
fn before(vf: &VfRecord) -> VfConfig {
    let (min_tx_rate, max_tx_rate) = saved_rates(vf);
    VfConfig {
        min_tx_rate,
        max_tx_rate,
        ..vf.saved.clone()
    }
}

/// The VF has its rate from before: from now on it is left alone.
async fn rate_is_back(cx: &mut Context) -> Result<(), StepError> {
    note_rate(cx, false).await
}

async fn note_rate(cx: &mut Context, set: bool) -> Result<(), StepError> {
    if held(cx)?.rate_set == set {
        return Ok(());
    }
    cx.commit(|record| {
        if let Some(vf) = &mut record.vf {
            vf.rate_set = set;
        }
    })
    .await
}

/// The network's settings and, last, the NIC's MAC.
pub(super) async fn configure(cx: &mut Context, now: &Observation) -> Result<(), StepError> {
    let limits = cx.record.spec.l2.rate.is_some();
    if limits {
        note_rate(cx, true).await?;
    }
    let wanted = wanted(held(cx)?, cx.mac, &cx.record.spec.l2);
    let applied = match raise_mtu(cx).await {
        Ok(()) => apply(cx, &wanted).await,
        Err(error) => Err(ApplyError::Unread(error)),
    };
    match applied {
        Ok(()) if limits => Ok(()),
        Ok(()) => rate_is_back(cx).await,
        // Some drivers refuse the MAC that the macvtap, up, has in the PF's filter already.
        Err(error) if error.is_mac() && now.seen.macvtap == Some(true) && !cx.learnt.refuses_twice => {
            let error = StepError::from(error);
            warn!(
                error = error.message,
                "the driver takes one MAC once only: break before make"
            );
            cx.learnt.refuses_twice = true;
            Ok(())
        }
        Err(error) => Err(cx.vf_failed(error.into())),
    }
}

async fn raise_mtu(cx: &Context) -> Result<(), StepError> {
    let Some(mtu) = cx.record.spec.l2.mtu.and_then(|m| u32::try_from(m).ok()) else {
        return Ok(());
    };
    let pf = pf_of(cx).await?;
    if pf.mtu < mtu {
        cx.host
            .netlink
            .set_mtu(pf.index, mtu)
            .await
            .map_err(|e| refused(&e))?;
    }
    Ok(())
}

/// Forgets a VF of which it is proven that it has gone away; another may be taken.
pub(super) async fn drop_lost(cx: &mut Context) -> Result<(), StepError> {
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
async fn let_go(cx: &mut Context, vf: PciAddress) -> Result<(), StepError> {
    cx.commit(|record| record.vf = None).await?;
    cx.host.handouts.forget(vf);
    cx.host.pools.release(vf);
    cx.learnt = Learnt {
        vf_failed: None,
        vf_failures: 0,
        not_parked: false,
        ignores_vf: false,
        ..cx.learnt
    };
    Ok(())
}

/// Nobody has the VF when this has returned: vfio lets go of it once the last descriptor is closed, whoever had it
/// (`vfio_unregister_group_dev` in drivers/vfio/vfio_main.c).
async fn take_from_vfio(cx: &Context, vf: &VfRecord, driver: Option<String>) -> Result<(), StepError> {
    let driver = match driver {
        // While vfio waits it is named no more, but has the device's lock, which this takes.
        driver if !is_vfio(driver.as_deref()) => {
            let state = cx.host.devices.driver_state(vf.address).await;
            state.map_err(bind_failed)?.driver
        }
        driver => driver,
    };
    if is_vfio(driver.as_deref()) {
        let in_use = |who: &str| {
            let message = format!(
                "{who} the VF {}; it is given back when that has ended",
                vf.address
            );
            Err(StepError::new(reasons::VF_IN_USE, message))
        };
        if cx.host.handouts.is_out(vf.address) {
            return in_use("a process keeps the descriptor that QEMU was given of");
        }
        let in_vfio = cx.host.devices.vfio_use(vf.address, vf.iommu_group).await;
        match in_vfio.map_err(|error| error.into_step(reasons::VF_UNKNOWN))? {
            VfioUse::InUse => return in_use("a process still holds"),
            // What is not known of it vfio proves.
            VfioUse::Free | VfioUse::Unknown => {}
        }
        if cx.host.handouts.is_unsure(vf.address) && pod_lives(cx).await? {
            let message = format!(
                "a process of the VM's pod may keep a descriptor of the VF {}, and nothing tells when it closes it; the VF is given back when \
                 the pod has no process any more",
                vf.address
            );
            return Err(StepError::new(reasons::VF_IN_USE, message));
        }
        let unbound = DriverState {
            driver: None,
            driver_override: Some(VFIO_DRIVER.into()),
        };
        let unbound = cx.host.devices.set_driver(vf.address, unbound).await;
        unbound.map_err(bind_failed)?;
    }
    cx.host.handouts.forget(vf.address);
    Ok(())
}

/// Whether the VM's pod has processes. They may have what the driver would wait for, and a process that waits for it cannot be ended: the
/// agent's own pod could not be replaced.
async fn pod_lives(cx: &Context) -> Result<bool, StepError> {
    let (proc, pod) = (cx.host.proc.clone(), cx.record.spec.pod.uid.clone());
    let lives = tokio::task::spawn_blocking(move || residents::has_any(&proc, &pod));
    let lives = lives.await.map_err(std::io::Error::from).flatten();
    lives.map_err(|error| StepError::from_error(reasons::VF_UNKNOWN, &error))
}

/// Whether a driver is one that gives devices to processes.
pub(super) fn is_vfio(driver: Option<&str>) -> bool {
    driver.is_some_and(|driver| driver.contains("vfio"))
}

/// Gives the VF back: settings and driver as they were, and free for others only then.
pub(super) async fn restore(cx: &mut Context) -> Result<(), StepError> {
    let vf = held(cx)?.clone();
    let presence = cx.host.sysfs.presence(vf.address).map_err(|e| {
        StepError::new(
            reasons::VF_UNKNOWN,
            format!("the VF {} cannot be read: {e}", vf.address),
        )
    })?;
    let Presence::Present { driver } = presence else {
        return drop_lost(cx).await;
    };
    descriptors::take_back(cx).await;
    take_from_vfio(cx, &vf, driver).await?;
    // A record of an older agent may have a MAC that is a NIC's.
    let saved = original(&before(&vf), vf.parking_mac, &cx.host.macs);
    let mut parked = false;
    if let Err(error) = apply(cx, &saved).await {
        // Some drivers refuse the zero MAC that they have shown. The parking MAC harms nobody.
        if !error.is_mac() || !saved.mac.is_some_and(MacAddr::is_zero) {
            return Err(error.into());
        }
        let error = StepError::from(error);
        info!(vf = %vf.address, pf = vf.pf_name, error = error.message, "the VF keeps its parking MAC");
        let parking = VfConfig {
            mac: Some(vf.parking_mac),
            ..saved
        };
        apply(cx, &parking).await?;
        parked = true;
    }
    cx.host.note_parked(vf.address, parked).await;
    let saved_driver = vf.saved_driver.clone();
    cx.host
        .devices
        .set_driver(vf.address, saved_driver)
        .await
        .map_err(bind_failed)?;
    info!(
        vf = %vf.address,
        pf = vf.pf_name,
        "VF given back"
    );
    let_go(cx, vf.address).await
}
