//! The standby as the link of a pod: made in the pod's network namespace when the pod's sandbox asks for it, and handed over then.

use hybridnic_net::{
    PciAddress,
    netlink::{MacvtapSpec, Place},
    tap_node,
};
use tracing::debug;

use super::{Context, standby::StandbyError};
use crate::{
    cni::{Made, Sandbox},
    host::PfUnread,
    journal::SandboxRecord,
    nic::{ids, observe::Observation},
};

/// The user that QEMU runs as in a launcher.
const QEMU: tap_node::Owner = tap_node::Owner { uid: 107, gid: 107 };

/// The sandbox of the NIC's pod that counts now.
pub(super) fn sandbox(cx: &Context) -> Option<Sandbox> {
    let ifname = ids::ifname(&cx.record.spec)?;
    cx.host.sandboxes.of(&cx.record.spec.pod.uid, &ifname)
}

/// The PF that the pod's device is on, and its name; `None` where no sandbox has said.
pub(super) async fn promised_pf(cx: &Context) -> Result<Option<(PciAddress, String)>, PfUnread> {
    // It is not kept while the PF is looked at.
    let Some(pf) = sandbox(cx).map(|sandbox| sandbox.device.pf()) else {
        return Ok(None);
    };
    let link = cx.host.pf_link(pf).await?;
    Ok(Some((pf, link.map(|link| link.name).unwrap_or_default())))
}

/// Makes the macvtap of this spec in the pod's network namespace, on a link of the host's.
pub(super) async fn make(cx: &mut Context, spec: &MacvtapSpec) -> Result<(), StandbyError> {
    let sandbox = sandbox(cx).ok_or(StandbyError::NotAskedFor)?;
    let (container, device) = (sandbox.container.clone(), sandbox.device);
    let index = device.ifindex();
    let made = SandboxRecord { container, device };
    // The journal has it before it exists, and before another sandbox may come.
    cx.commit(|record| {
        if let Some(standby) = &mut record.standby {
            standby.pod = Some(made);
        }
    })
    .await?;
    let (sysfs, dev) = (&cx.host.sysfs, &cx.host.dev);
    let there = sandbox.netlink.link_by_index(index).await?;
    // A macvtap that is there comes from a step that a crash cut short.
    if there.is_none() {
        tap_node::make_room(sysfs, dev, index)?;
        let place = Place {
            netns: &sandbox.netns,
            inside: &sandbox.netlink,
            index,
            queues: None,
        };
        cx.host.netlink.create_macvtap_in(&place, spec).await?;
    }
    tap_node::give(sysfs, dev, index, QEMU)?;
    Ok(())
}

/// Tells the runtime that the link is there.
pub(super) fn answer(cx: &Context, now: &Observation) {
    let (Some(ifname), Some(link)) = (ids::ifname(&cx.record.spec), &now.macvtap) else {
        return;
    };
    let pod = cx
        .record
        .standby
        .as_ref()
        .and_then(|standby| standby.pod.as_ref());
    let container = pod.map_or("", |pod| pod.container.as_str());
    let made = Made {
        mac: cx.mac,
        mtu: link.mtu,
    };
    let sandboxes = &cx.host.sandboxes;
    if !sandboxes.answer(&cx.record.spec.pod.uid, &ifname, container, made) {
        debug!("the pod's sandbox does not wait for its link any more");
    }
}

/// The link has gone, or goes with its sandbox: nothing of it is held any more.
pub(super) fn forget(cx: &Context) {
    if let Some(ifname) = ids::ifname(&cx.record.spec) {
        cx.host.sandboxes.forget(&cx.record.spec.pod.uid, &ifname);
    }
}
