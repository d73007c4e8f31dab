//! The first step on a VF: to find one that nobody uses, and to write down how it was.

use std::sync::Arc;

use hybridnic_api::{
    conditions::reasons,
    v1alpha1::{Aside, NoFreeVf},
};
use hybridnic_net::{PciAddress, dev::VfioUse, netlink::NetlinkError, sysfs::DriverState};
use tracing::{info, warn};

use super::{
    Context, pod_link,
    vf::{VfError, is_vfio},
};
use crate::{
    devices::DeviceError,
    error::{HasReason, chain},
    host::{Host, PfUnread},
    journal::{JournalError, StandbyRecord, VfRecord, VlanRecord},
    nic::{ids, macs::original, settings::protocol},
    node::{
        choice::{Choice, Wish},
        parking::parking_mac,
    },
};

/// Nothing was reserved.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReserveError {
    #[error("no PF of the node that can be used matches the network's uplinks{}", .0.as_deref().unwrap_or_default())]
    NoUplink(Option<String>),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Vf(#[from] VfError),
    #[error(transparent)]
    Pf(#[from] PfUnread),
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl HasReason for ReserveError {
    fn reason(&self) -> &'static str {
        match self {
            Self::NoUplink(_) => reasons::NO_UPLINK,
            Self::Netlink(_) => reasons::VF_SETTING_REFUSED,
            Self::Vf(error) => error.reason(),
            Self::Pf(error) => error.reason(),
            Self::Journal(error) => error.reason(),
        }
    }
}

/// Takes a VF and writes down how it was; without one, or where the NIC is to have none, a PF for the standby alone.
pub(super) async fn reserve(cx: &mut Context) -> Result<(), ReserveError> {
    let host = Arc::clone(&cx.host);
    let asked = tokio::select! {
        asked = host.offers.look_elsewhere(&host.pools) => asked,
        // A kubelet may be silent for long, and something else is wanted meanwhile.
        _ = cx.interrupt.changed() => return Ok(()),
    };
    let inventory = cx.host.inventory().await.map_err(VfError::Unread)?;
    let network = cx.record.spec.network.clone();
    let promised = pod_link::promised_pf(cx).await?;
    let standby_pf = cx.record.standby.as_ref().map(|s| s.pf);
    let wish = Wish {
        network: &network,
        pick: cx.pick(&inventory),
        standby_pf: standby_pf.or_else(|| promised.as_ref().map(|(pf, _)| *pf)),
    };
    let (mut passed_over, mut failed) = (Vec::new(), None);
    let mut taken = false;
    let spec = &cx.record.spec;
    let wants_vf = spec.aside != Some(Aside::GiveVfBack);
    let may_go_without = !wants_vf || spec.no_free_vf == NoFreeVf::Standby;
    while wants_vf
        && !taken
        && cx.learnt.vf_failed.is_none()
        && let Some(choice) = cx.host.pools.take(&inventory, &cx.claimant, &wish)
    {
        let address = choice.vf.address;
        let reserved = match foreign(&cx.host, &choice, &asked).await {
            Ok(Some(why)) => {
                warn!(vf = %address, pf = choice.pf.name, why, "this VF is passed over");
                cx.host.pools.mark_foreign(address, why);
                cx.host.pools.release(address);
                continue;
            }
            Ok(None) => write_down(cx, choice).await,
            Err(error) => Err(error.into()),
        };
        match reserved {
            Ok(()) => taken = true,
            Err(error) => {
                warn!(vf = %address, error = chain(&error), "this VF cannot be reserved; it is passed over");
                passed_over.push(address);
                failed = Some(error);
            }
        }
    }
    for vf in passed_over {
        cx.host.pools.release(vf);
    }
    if taken {
        return Ok(());
    }
    if cx.record.standby.is_none() && may_go_without {
        let any = cx.host.pools.standby_pf(&inventory, &network, wish.pick);
        let any = any.map(|pf| (pf.address, pf.name.clone().unwrap_or_default()));
        let (pf, pf_name) = promised.or(any).ok_or_else(|| {
            let why = cx.host.pools.barred(&inventory, &network);
            ReserveError::NoUplink(why.map(|why| format!(": {why}")))
        })?;
        let standby = standby_record(cx, pf, pf_name);
        cx.commit(|record| record.standby = Some(standby)).await?;
        cx.host.pools.note_standby(&cx.record.uid, pf);
    }
    match failed {
        // The plan goes on without a VF, and says why.
        Some(error) => Err(cx.vf_failed(error)),
        None => Ok(()),
    }
}

const IN_USE: &str = "something other than hybridnic uses it through vfio";
const IS_KEPT: &str =
    "a process keeps the descriptor of it that a QEMU was given: fuser /dev/hybridnic/* says which one";
const MAY_BE_IN_USE: &str = "it is with vfio, and this kernel, which has no vfio groups, does not tell whether something uses it: \
                             give it to its own driver or to none, and hybridnic gives it to vfio itself";

/// Why a VF that no NIC of the journal holds is left alone: it is with vfio, and something else uses it, or may use it. `asked` is the
/// kubelet's answer to whether another plugin has given it to a pod.
pub(super) async fn foreign(
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
    // No record says so any more, and somebody may have what an earlier NIC's QEMU was given.
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

/// vfio lets go of a VF once nobody has it. Then it gets it back.
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

pub(super) fn standby_record(cx: &Context, pf: PciAddress, pf_name: String) -> StandbyRecord {
    let vlan = cx.record.spec.l2.vlan.as_ref().filter(|v| v.id != 0);
    StandbyRecord {
        macvtap: ids::ifname(&cx.record.spec).unwrap_or_else(|| ids::macvtap(&cx.record.uid)),
        pf,
        pf_name,
        vlan: vlan.map(|v| VlanRecord {
            id: u16::try_from(v.id).unwrap_or(0),
            protocol: protocol(v.protocol),
            qos: u8::try_from(v.qos).unwrap_or(0),
        }),
        seized: None,
        pod: None,
    }
}

async fn write_down(cx: &mut Context, choice: Choice) -> Result<(), ReserveError> {
    let Choice { pf, vf } = choice;
    let hidden = || VfError::Hidden {
        pf: pf.address.to_string(),
        vf: vf.address.to_string(),
    };
    let (Some(pf_name), Some(ifindex), Some(group)) = (pf.name.clone(), pf.ifindex, vf.iommu_group) else {
        return Err(hidden().into());
    };
    let table = cx.host.netlink.vf_table(ifindex).await?;
    let found = table
        .unwrap_or_default()
        .into_iter()
        .find(|c| c.index == vf.index)
        .ok_or_else(hidden)?;
    let saved_driver = cx.host.devices.driver_state(vf.address).await;
    let saved_driver = saved_driver.map_err(VfError::NotBound)?;
    if !pf.carrier.unwrap_or(false) {
        // A PF that is down carries nothing, and some drivers take no VF settings then.
        cx.host.netlink.set_up(ifindex, true).await?;
    }
    let parking_mac = parking_mac(&cx.host.options.node_name, vf.address);
    let saved = original(&found, parking_mac, &cx.host.macs);
    if saved.mac != found.mac {
        warn!(vf = %vf.address, pf = pf_name, mac = ?found.mac, "the VF was left with a MAC of ours; it will be given back without one");
    }
    info!(
        vf = %vf.address,
        pf = pf_name,
        "VF reserved"
    );
    let held = VfRecord {
        address: vf.address,
        index: vf.index,
        pf: pf.address,
        pf_name: pf_name.clone(),
        pf_driver: pf.driver.unwrap_or_default(),
        iommu_group: group,
        parking_mac,
        saved,
        saved_driver,
        rate_set: false,
    };
    let standby = if let Some(standby) = &cx.record.standby {
        standby.clone()
    } else {
        let promised = pod_link::promised_pf(cx).await?;
        let (pf, pf_name) = promised.unwrap_or((pf.address, pf_name));
        standby_record(cx, pf, pf_name)
    };
    let standby_pf = standby.pf;
    cx.commit(|record| (record.vf, record.standby) = (Some(held), Some(standby)))
        .await?;
    cx.host.pools.note_standby(&cx.record.uid, standby_pf);
    (cx.learnt.vf_failures, cx.learnt.not_parked) = (0, false);
    Ok(())
}
