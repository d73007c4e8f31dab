//! Descriptors that are handed to what runs the VM: of the VF, of the macvtap, of vhost.

use std::os::fd::OwnedFd;

use hybridnic_net::PciAddress;
use tracing::warn;

use super::{Context, standby::StandbyError};
use crate::{
    error::chain,
    host::Host,
    links::WayError,
    machine::{Session, VfDescriptors},
    nic::ids,
};

/// An iommufd, and the VF's own device; `None` where the kernel has none.
pub(super) fn of_vf(host: &Host, vf: PciAddress) -> Option<VfDescriptors> {
    let cdev = host.sysfs.vf(vf).ok()??.vfio_cdev?;
    let iommu = host.dev.open_iommu().ok()??;
    // It is in use from here on, until it is proven that nobody has it.
    let device = match host.handouts.open(vf, &cdev) {
        Ok(device) => device,
        Err(error) => {
            warn!(%vf, %error, "it will not be known which process has the VF's descriptor");
            host.handouts.note_unwatched(vf);
            host.dev.open_vfio_cdev(&cdev).ok()??
        }
    };
    Some(VfDescriptors { iommu, device })
}

/// The macvtap, and vhost-net where it can be used.
pub(super) async fn of_standby(cx: &Context) -> Result<(OwnedFd, Option<OwnedFd>), StandbyError> {
    let name = cx.record.standby.as_ref().map_or("", |s| s.macvtap.as_str());
    let link = cx.host.netlink.link(name).await?.ok_or(WayError::Gone)?;
    let tap = cx.host.open_tap(name, link.index).await?;
    let vhost = cx.host.dev.open_vhost_net().unwrap_or_else(|error| {
        warn!(
            error = chain(&error),
            "vhost-net cannot be used; QEMU handles the standby's packets itself"
        );
        None
    });
    Ok((tap, vhost))
}

/// Takes back all descriptors of the NIC's VFs that a crash may have left behind.
pub(super) async fn take_back(cx: &Context) {
    if let Session::Up(machine) = cx.vm.session() {
        for plug in 1..=cx.record.plugs {
            machine.take_back(&ids::vf(&cx.record.spec.nic.name, plug)).await;
        }
    }
}
