//! What is done to a VF, no matter for whom: for a NIC, or for a pod whose NIC is not known yet.

use std::{io, sync::Arc, time::Duration};

use hybridnic_api::conditions::reasons;
use hybridnic_net::{
    MacAddr, PciAddress,
    dev::VfioUse,
    netlink::{Link, NetlinkError, VfConfig, VfSetting},
    sysfs::{DriverState, Pf},
};
use nix::errno::Errno;
use tracing::{info, warn};

use super::{macs::original, observe::VFIO_DRIVER};
use crate::{
    devices::DeviceError,
    error::{HasReason, chain},
    host::{Host, PfUnread},
    journal::{JournalError, VfRecord},
    node::{choice::Choice, parking::parking_mac},
};

/// The VF is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum VfError {
    /// There is none.
    #[error("no VF is reserved")]
    NotReserved,
    /// Whether it is there is not known.
    #[error("the VF {vf} cannot be read")]
    Presence {
        /// The VF.
        vf: PciAddress,
        /// The kernel's error.
        source: io::Error,
    },
    /// It is not in its PF's table.
    #[error("the PF {pf} does not show its VF {vf} at the moment")]
    Hidden {
        /// The PF.
        pf: String,
        /// The VF.
        vf: String,
    },
    /// Its PF cannot be asked.
    #[error("the VF's PF {pf} ({name}) has no network interface here")]
    NoInterface {
        /// The PF.
        pf: PciAddress,
        /// Its name when it had one.
        name: String,
    },
    /// Its PF cannot be read.
    #[error(transparent)]
    Pf(#[from] PfUnread),
    /// The PF's table cannot be read.
    #[error(transparent)]
    Table(NetlinkError),
    /// It cannot be looked at.
    #[error(transparent)]
    Unread(DeviceError),
    /// A setting was refused.
    #[error("{}", chain(.error))]
    Refused {
        /// The setting.
        setting: VfSetting,
        /// The kernel's error.
        error: NetlinkError,
    },
    /// A setting was taken and not done.
    #[error("the driver {driver} took {setting} of VF {vf} without an error, and did not do it")]
    NotDone {
        /// The setting.
        setting: VfSetting,
        /// The PF's driver.
        driver: String,
        /// The VF's index.
        vf: u16,
    },
    /// The PF's MTU cannot be raised.
    #[error(transparent)]
    Mtu(NetlinkError),
    /// Its PF is down, and cannot be set up.
    #[error(transparent)]
    PfDown(NetlinkError),
    /// Its driver cannot be changed.
    #[error(transparent)]
    NotBound(DeviceError),
    /// A process has the descriptor that QEMU was given.
    #[error(
        "a process keeps the descriptor of the VF {0} that QEMU was given; the VF is given back when that process has ended"
    )]
    DescriptorKept(PciAddress),
    /// A process has it by its group.
    #[error("a process still holds the VF {0}; the VF is given back when that process has ended")]
    Held(PciAddress),
    /// It is not known whether a process has it.
    #[error(
        "a process of the VM's pod may keep a descriptor of the VF {0}, and nothing reports when it closes it; the VF is given back when \
         the pod has no process any more"
    )]
    MayBeKept(PciAddress),
    /// It may be another plugin's.
    #[error("the VF {0} is with vfio, and whether the kubelet has given it to a pod is not known: {1}")]
    MayBePromised(PciAddress, String),
    /// The pod's processes cannot be looked at.
    #[error(transparent)]
    PodUnread(io::Error),
    /// What is held cannot be written down.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl HasReason for VfError {
    fn reason(&self) -> &'static str {
        match self {
            Self::NotReserved => reasons::VF_LOST,
            Self::Refused { .. } | Self::NotDone { .. } | Self::Mtu(_) | Self::PfDown(_) => {
                reasons::VF_SETTING_REFUSED
            }
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
    /// The setting that the driver or the kernel did not apply.
    pub fn refused(&self) -> Option<VfSetting> {
        match self {
            Self::Refused { setting, .. } | Self::NotDone { setting, .. } => Some(*setting),
            _ => None,
        }
    }

    /// Whether that was the MAC.
    pub fn is_mac(&self) -> bool {
        matches!(self.refused(), Some(VfSetting::Mac(_)))
    }
}

/// Whether a driver is one that gives devices to processes.
pub fn is_vfio(driver: Option<&str>) -> bool {
    driver.is_some_and(|driver| driver.contains("vfio"))
}

const IN_USE: &str = "something other than hybridnic uses it through vfio";
const IS_KEPT: &str =
    "a process keeps the descriptor of it that a QEMU was given: fuser /dev/hybridnic/* says which one";
const MAY_BE_IN_USE: &str = "it is with vfio, and this kernel, which has no vfio groups, does not tell whether something uses it: \
                             give it to its own driver or to none, and hybridnic gives it to vfio itself";

/// Why a VF that no NIC of the journal holds is left alone: it is with vfio, and something else uses it, or may use it. `asked` is the
/// kubelet's answer to whether another plugin has given it to a pod.
pub async fn foreign(
    host: &Host,
    choice: &Choice,
    asked: &Result<(), String>,
) -> Result<Option<String>, VfError> {
    let vf = &choice.vf;
    let Some(group) = vf.iommu_group.filter(|_| is_vfio(vf.driver.as_deref())) else {
        return Ok(None);
    };
    // A pod that has got it from another plugin need not have opened it yet. One with a driver of its own shows that it is in a pod.
    if let Err(why) = asked {
        return Err(VfError::MayBePromised(vf.address, why.clone()));
    }
    // No record shows it any more, but a process may have what an earlier NIC's QEMU was given.
    host.take_over_handouts(vf.address);
    if host.handouts.is_out(vf.address) {
        return Ok(Some(IS_KEPT.to_owned()));
    }
    let used = host
        .devices
        .vfio_use(vf.address, group)
        .await
        .map_err(VfError::Unread)?;
    if used != VfioUse::InUse && host.handouts.is_unsure(vf.address) {
        prove_free(host, vf.address).await.map_err(VfError::NotBound)?;
        return Ok(None);
    }
    match used {
        VfioUse::Free => Ok(None),
        VfioUse::InUse => Ok(Some(IN_USE.to_owned())),
        VfioUse::Unknown => {
            // The group goes with its last VF, which another NIC may just have given back.
            let now = host.devices.driver_state(vf.address).await;
            let now = now.map_err(VfError::Unread)?;
            Ok(is_vfio(now.driver.as_deref()).then(|| MAY_BE_IN_USE.to_owned()))
        }
    }
}

/// vfio lets go of a VF once no process has it. Then vfio gets it back.
async fn prove_free(host: &Host, vf: PciAddress) -> Result<(), DeviceError> {
    let before = host.devices.driver_state(vf).await?;
    let unbound = DriverState {
        driver: None,
        ..before.clone()
    };
    host.devices.set_driver(vf, unbound).await?;
    host.handouts.forget(vf);
    host.devices.set_driver(vf, before).await
}

/// A VF as it is before it is touched, to be written down. Its PF is brought up.
pub async fn describe(host: &Host, choice: Choice) -> Result<VfRecord, VfError> {
    let Choice { pf, vf } = choice;
    let hidden = || VfError::Hidden {
        pf: pf.address.to_string(),
        vf: vf.address.to_string(),
    };
    let (Some(pf_name), Some(ifindex), Some(group)) = (pf.name.clone(), pf.ifindex, vf.iommu_group) else {
        return Err(hidden());
    };
    let table = host.netlink.vf_table(ifindex).await.map_err(VfError::Table)?;
    let found = table
        .unwrap_or_default()
        .into_iter()
        .find(|c| c.index == vf.index)
        .ok_or_else(hidden)?;
    let saved_driver = host.devices.driver_state(vf.address).await;
    let saved_driver = saved_driver.map_err(VfError::NotBound)?;
    bring_up(host, &pf).await?;
    let parking_mac = parking_mac(&host.options.node_name, vf.address);
    let saved = original(&found, parking_mac, &host.macs);
    if saved.mac != found.mac {
        warn!(vf = %vf.address, pf = pf_name, mac = ?found.mac, "the VF was left with a MAC of ours; it will be given back without one");
    }
    Ok(VfRecord {
        address: vf.address,
        index: vf.index,
        pf: pf.address,
        pf_name,
        pf_driver: pf.driver.unwrap_or_default(),
        iommu_group: group,
        parking_mac,
        saved,
        saved_driver,
        rate_set: false,
        port_asked: false,
    })
}

/// A PF that is down carries nothing, and some drivers take no VF settings then.
pub async fn bring_up(host: &Host, pf: &Pf) -> Result<(), VfError> {
    let down = pf.ifindex.filter(|_| !pf.carrier.unwrap_or(false));
    if let Some(ifindex) = down {
        let up = host.netlink.set_up(ifindex, true).await;
        up.map_err(VfError::PfDown)?;
    }
    Ok(())
}

/// Gives a VF to vfio-pci.
pub async fn bind(host: &Host, vf: PciAddress) -> Result<(), VfError> {
    let wanted = DriverState {
        driver: Some(VFIO_DRIVER.into()),
        driver_override: Some(VFIO_DRIVER.into()),
    };
    host.devices
        .set_driver(vf, wanted)
        .await
        .map_err(VfError::NotBound)
}

/// The PF of a VF.
pub async fn pf_of(host: &Host, vf: &VfRecord) -> Result<Link, VfError> {
    let pf = host.pf_link(vf.pf).await?;
    pf.ok_or_else(|| VfError::NoInterface {
        pf: vf.pf,
        name: vf.pf_name.clone(),
    })
}

/// The settings that a VF goes to, one request each, and read back.
pub async fn apply(host: &Host, vf: &VfRecord, wanted: &VfConfig) -> Result<(), VfError> {
    let pf = pf_of(host, vf).await?;
    let read = async || {
        let table = host.netlink.vf_table(pf.index).await;
        let table = table.map_err(VfError::Table)?.unwrap_or_default();
        let found = table.into_iter().find(|c| c.index == vf.index);
        found.ok_or_else(|| VfError::Hidden {
            pf: pf.name.clone(),
            vf: vf.index.to_string(),
        })
    };
    for setting in read().await?.changes_to(wanted) {
        set_patiently(host, pf.index, vf.index, setting).await?;
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

/// The first setting that was accepted and not applied. If there is no limit, some drivers still show one, such as the link's speed.
fn first_undone(now: &VfConfig, wanted: &VfConfig) -> Option<VfSetting> {
    let left = now.changes_to(wanted);
    left.into_iter()
        .find(|s| !matches!(s, VfSetting::Rate { min: 0, max: 0 }))
}

/// Drivers answer EBUSY or EAGAIN while a VF resets itself: there is no event for its end.
async fn set_patiently(host: &Host, pf: u32, vf: u16, setting: VfSetting) -> Result<(), VfError> {
    let mut pause = Duration::from_millis(50);
    loop {
        match host.netlink.set_vf(pf, vf, setting).await {
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

/// Gives settings and driver back as they were to a VF that vfio has let go of.
pub async fn give_back(host: &Arc<Host>, vf: &VfRecord, saved: VfConfig) -> Result<(), VfError> {
    let mut parked = false;
    if let Err(error) = apply(host, vf, &saved).await {
        // Some drivers refuse the zero MAC that they have shown. The parking MAC harms nobody.
        if !error.is_mac() || !saved.mac.is_some_and(MacAddr::is_zero) {
            return Err(error);
        }
        info!(vf = %vf.address, pf = vf.pf_name, error = chain(&error), "the VF keeps its parking MAC");
        let parking = VfConfig {
            mac: Some(vf.parking_mac),
            ..saved
        };
        apply(host, vf, &parking).await?;
        parked = true;
    }
    host.note_parked(vf.address, parked).await;
    let bound = host.devices.set_driver(vf.address, vf.saved_driver.clone()).await;
    bound.map_err(VfError::NotBound)?;
    info!(
        vf = %vf.address,
        pf = vf.pf_name,
        "VF given back"
    );
    Ok(())
}

/// That nobody holds a VF that is with vfio.
pub async fn nobody_holds(host: &Host, vf: &VfRecord) -> Result<(), VfError> {
    if host.handouts.is_out(vf.address) {
        return Err(VfError::DescriptorKept(vf.address));
    }
    let in_vfio = host.devices.vfio_use(vf.address, vf.iommu_group).await;
    match in_vfio.map_err(VfError::Unread)? {
        VfioUse::InUse => Err(VfError::Held(vf.address)),
        // What is not known of it vfio proves.
        VfioUse::Free | VfioUse::Unknown => Ok(()),
    }
}

/// Takes a VF from vfio, which lets go once nobody has it open.
pub async fn unbind(host: &Host, vf: PciAddress) -> Result<(), VfError> {
    let unbound = DriverState {
        driver: None,
        driver_override: Some(VFIO_DRIVER.into()),
    };
    host.devices
        .set_driver(vf, unbound)
        .await
        .map_err(VfError::NotBound)
}

/// For a VF that has no driver by name: while vfio waits it is no longer named, but has the device's lock, which this takes.
pub async fn driver_of(
    host: &Host,
    vf: PciAddress,
    driver: Option<String>,
) -> Result<Option<String>, VfError> {
    if is_vfio(driver.as_deref()) {
        return Ok(driver);
    }
    let state = host.devices.driver_state(vf).await;
    Ok(state.map_err(VfError::NotBound)?.driver)
}

/// The settings that a VF had, but for those that were never changed.
pub fn before(vf: &VfRecord) -> VfConfig {
    let (min_tx_rate, max_tx_rate) = super::settings::saved_rates(vf);
    VfConfig {
        min_tx_rate,
        max_tx_rate,
        ..vf.saved.clone()
    }
}
