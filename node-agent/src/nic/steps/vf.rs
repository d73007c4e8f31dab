//! Steps on the VF: bind, park, set up, give back.

use std::{io, time::Duration};

use hybridnic_api::conditions::reasons;
use hybridnic_net::{
    MacAddr, PciAddress,
    dev::VfioUse,
    netlink::{Link, NetlinkError, VfConfig, VfSetting},
    sysfs::{DriverState, Presence},
};
use nix::errno::Errno;
use tracing::{info, warn};

use super::{Context, descriptors};
use crate::{
    devices::DeviceError,
    error::{HasReason, chain},
    host::PfUnread,
    journal::{JournalError, VfRecord},
    nic::{
        macs::original,
        observe::{Observation, VFIO_DRIVER},
        plan::Learnt,
        settings::{parked, saved_rates, wanted},
    },
};

/// The VF is not as it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum VfError {
    #[error("no VF is reserved")]
    NotReserved,
    #[error("the VF {vf} cannot be read")]
    Presence { vf: PciAddress, source: io::Error },
    #[error("the PF {pf} does not show its VF {vf} at the moment")]
    Hidden { pf: String, vf: String },
    #[error("the VF's PF {pf} ({name}) has no network interface here")]
    NoInterface { pf: PciAddress, name: String },
    #[error(transparent)]
    Pf(#[from] PfUnread),
    #[error(transparent)]
    Table(NetlinkError),
    #[error(transparent)]
    Unread(DeviceError),
    #[error("{}", chain(.error))]
    Refused { setting: VfSetting, error: NetlinkError },
    #[error("the driver {driver} took {setting} of VF {vf} without an error, and did not do it")]
    NotDone {
        setting: VfSetting,
        driver: String,
        vf: u16,
    },
    #[error(transparent)]
    Mtu(NetlinkError),
    #[error(transparent)]
    NotBound(DeviceError),
    #[error(
        "a process keeps the descriptor that QEMU was given of the VF {0}; it is given back when that has ended"
    )]
    DescriptorKept(PciAddress),
    #[error("a process still holds the VF {0}; it is given back when that has ended")]
    Held(PciAddress),
    #[error(
        "a process of the VM's pod may keep a descriptor of the VF {0}, and nothing tells when it closes it; the VF is given back when \
         the pod has no process any more"
    )]
    MayBeKept(PciAddress),
    #[error("the VF {0} is with vfio, and whether the kubelet has given it to a pod is not known: {1}")]
    MayBePromised(PciAddress, String),
    #[error(transparent)]
    PodUnread(io::Error),
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl HasReason for VfError {
    fn reason(&self) -> &'static str {
        match self {
            Self::NotReserved => reasons::VF_LOST,
            Self::Refused { .. } | Self::NotDone { .. } | Self::Mtu(_) => reasons::VF_SETTING_REFUSED,
            Self::MayBePromised(..) => reasons::KUBELET_UNREACHABLE,
            Self::DescriptorKept(_) | Self::Held(_) | Self::MayBeKept(_) => reasons::VF_IN_USE,
            Self::Presence { .. }
            | Self::Hidden { .. }
            | Self::NoInterface { .. }
            | Self::Table(_)
            | Self::PodUnread(_) => reasons::VF_UNKNOWN,
            Self::NotBound(error) => error.reason_or(reasons::VF_BIND_FAILED),
            Self::Unread(error) => error.reason(),
            Self::Pf(error) => error.reason(),
            Self::Journal(error) => error.reason(),
        }
    }
}

impl VfError {
    /// The setting that the driver or the kernel did not do.
    fn refused(&self) -> Option<VfSetting> {
        match self {
            Self::Refused { setting, .. } | Self::NotDone { setting, .. } => Some(*setting),
            _ => None,
        }
    }

    fn is_mac(&self) -> bool {
        matches!(self.refused(), Some(VfSetting::Mac(_)))
    }
}

/// Gives the VF to vfio-pci.
pub(super) async fn bind(cx: &mut Context) -> Result<(), VfError> {
    let vf = held(cx)?.address;
    let wanted = DriverState {
        driver: Some(VFIO_DRIVER.into()),
        driver_override: Some(VFIO_DRIVER.into()),
    };
    let bound = cx.host.devices.set_driver(vf, wanted).await;
    bound.map_err(|error| cx.vf_failed(VfError::NotBound(error)))
}

pub(super) fn held(cx: &Context) -> Result<&VfRecord, VfError> {
    cx.record.vf.as_ref().ok_or(VfError::NotReserved)
}

/// The PF of the VF.
pub(super) async fn pf_of(cx: &Context) -> Result<Link, VfError> {
    let vf = held(cx)?;
    let pf = cx.host.pf_link(vf.pf).await?;
    pf.ok_or_else(|| VfError::NoInterface {
        pf: vf.pf,
        name: vf.pf_name.clone(),
    })
}

/// The settings that a VF goes to, one request each, and read back.
async fn apply(cx: &Context, wanted: &VfConfig) -> Result<(), VfError> {
    let vf = held(cx)?;
    let pf = pf_of(cx).await?;
    let read = async || {
        let table = cx.host.netlink.vf_table(pf.index).await;
        let table = table.map_err(VfError::Table)?.unwrap_or_default();
        let found = table.into_iter().find(|c| c.index == vf.index);
        found.ok_or_else(|| VfError::Hidden {
            pf: pf.name.clone(),
            vf: vf.index.to_string(),
        })
    };
    for setting in read().await?.changes_to(wanted) {
        set_patiently(cx, pf.index, vf.index, setting).await?;
    }
    match first_undone(&read().await?, wanted) {
        None => Ok(()),
        Some(setting) => Err(VfError::NotDone {
            setting,
            driver: vf.pf_driver.clone(),
            vf: vf.index,
        }),
    }
}

/// The first setting that was taken and not done. Where there is no limit some drivers show one all the same, as the link's speed.
fn first_undone(now: &VfConfig, wanted: &VfConfig) -> Option<VfSetting> {
    let left = now.changes_to(wanted);
    left.into_iter()
        .find(|s| !matches!(s, VfSetting::Rate { min: 0, max: 0 }))
}

/// Drivers answer EBUSY or EAGAIN while a VF resets itself: there is no event for its end.
async fn set_patiently(cx: &Context, pf: u32, vf: u16, setting: VfSetting) -> Result<(), VfError> {
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
            Err(error) => return Err(VfError::Refused { setting, error }),
        }
    }
}

/// Parking MAC, spoof check on, trust off; otherwise the network's settings. Those from before come back with proof only, see [`restore`].
pub(super) async fn park(cx: &mut Context) -> Result<(), VfError> {
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
        Err(error) if error.refused().is_some() && !error.is_mac() => {
            warn!(vf = %vf.address, pf = vf.pf_name, error = chain(&error), "of the VF only the MAC is parked");
            apply(cx, &mac_only).await
        }
        applied => applied,
    };
    if let Err(error) = applied {
        cx.learnt.not_parked |= error.refused().is_some();
        return Err(cx.vf_failed(error));
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
        Ok(()) => apply(cx, &wanted).await,
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
    let pf = pf_of(cx).await?;
    if pf.mtu < mtu {
        let raised = cx.host.netlink.set_mtu(pf.index, mtu).await;
        raised.map_err(VfError::Mtu)?;
    }
    Ok(())
}

/// Forgets a VF of which it is proven that it has gone away; another may be taken.
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

/// Nobody has the VF when this has returned: vfio lets go of it once the last descriptor is closed, whoever had it
/// (`vfio_unregister_group_dev` in drivers/vfio/vfio_main.c).
async fn take_from_vfio(cx: &Context, vf: &VfRecord, driver: Option<String>) -> Result<(), VfError> {
    let driver = match driver {
        // While vfio waits it is named no more, but has the device's lock, which this takes.
        driver if !is_vfio(driver.as_deref()) => {
            let state = cx.host.devices.driver_state(vf.address).await;
            state.map_err(VfError::NotBound)?.driver
        }
        driver => driver,
    };
    if is_vfio(driver.as_deref()) {
        if cx.host.handouts.is_out(vf.address) {
            return Err(VfError::DescriptorKept(vf.address));
        }
        let in_vfio = cx.host.devices.vfio_use(vf.address, vf.iommu_group).await;
        match in_vfio.map_err(VfError::Unread)? {
            VfioUse::InUse => return Err(VfError::Held(vf.address)),
            // What is not known of it vfio proves.
            VfioUse::Free | VfioUse::Unknown => {}
        }
        if cx.host.handouts.is_unsure(vf.address) && vm_lives(cx).await? {
            return Err(VfError::MayBeKept(vf.address));
        }
        let unbound = DriverState {
            driver: None,
            driver_override: Some(VFIO_DRIVER.into()),
        };
        let unbound = cx.host.devices.set_driver(vf.address, unbound).await;
        unbound.map_err(VfError::NotBound)?;
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

/// Whether a driver is one that gives devices to processes.
pub(super) fn is_vfio(driver: Option<&str>) -> bool {
    driver.is_some_and(|driver| driver.contains("vfio"))
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
    take_from_vfio(cx, &vf, driver).await?;
    // A record of an older agent may have a MAC that is a NIC's.
    let saved = original(&before(&vf), vf.parking_mac, &cx.host.macs);
    let mut parked = false;
    if let Err(error) = apply(cx, &saved).await {
        // Some drivers refuse the zero MAC that they have shown. The parking MAC harms nobody.
        if !error.is_mac() || !saved.mac.is_some_and(MacAddr::is_zero) {
            return Err(error);
        }
        info!(vf = %vf.address, pf = vf.pf_name, error = chain(&error), "the VF keeps its parking MAC");
        let parking = VfConfig {
            mac: Some(vf.parking_mac),
            ..saved
        };
        apply(cx, &parking).await?;
        parked = true;
    }
    cx.host.note_parked(vf.address, parked).await;
    let saved_driver = vf.saved_driver.clone();
    let bound = cx.host.devices.set_driver(vf.address, saved_driver).await;
    bound.map_err(VfError::NotBound)?;
    info!(
        vf = %vf.address,
        pf = vf.pf_name,
        "VF given back"
    );
    let_go(cx, vf.address).await
}
