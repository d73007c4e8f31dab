//! The first step on a VF: to find one that nobody uses, and to write down how it was.

use std::sync::Arc;

use hybridnic_api::{
    conditions::reasons,
    v1alpha1::{Aside, NoFreeVf, StandbyKind},
};
use hybridnic_net::PciAddress;
use tracing::{info, warn};

use super::{Context, pod_link};
use crate::{
    error::{HasReason, chain},
    host::PfUnread,
    journal::{JournalError, StandbyRecord, VfRecord, VlanRecord},
    nic::{
        ids,
        settings::protocol,
        vf::{self, VfError, foreign},
    },
    node::choice::{Choice, Wish},
};

/// Nothing was reserved.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReserveError {
    #[error("no PF of the node that can be used matches the network's uplinks{}", .0.as_deref().unwrap_or_default())]
    NoUplink(Option<String>),
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
        // A kubelet may be silent for long, and the spec may change meanwhile.
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
    let has_standby = spec.standby == StandbyKind::Macvtap;
    while wants_vf
        && !taken
        && cx.learnt.vf_failed.is_none()
        && let Some(choice) = cx.host.pools.take(&inventory, &cx.claimant, &wish)
    {
        let address = choice.vf.address;
        // A VF that is lent is with vfio, and belongs to the NIC's own pod.
        let foreign = match cx.host.pools.loan_of(address) {
            Some(_) => Ok(None),
            None => foreign(&cx.host, &choice, &asked).await,
        };
        let reserved = match foreign {
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
    if has_standby && cx.record.standby.is_none() && may_go_without {
        let any = cx
            .host
            .pools
            .standby_pf(&inventory, &network, cx.pick_standby(&inventory));
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
    let held = if let Some(loan) = cx.host.pools.loan_of(choice.vf.address) {
        // How it was before it was lent to the NIC's pod.
        vf::bring_up(&cx.host, &choice.pf).await?;
        VfRecord {
            iommu_group: choice.vf.iommu_group.unwrap_or(loan.vf.iommu_group),
            ..loan.vf
        }
    } else {
        vf::describe(&cx.host, choice).await?
    };
    info!(vf = %held.address, pf = held.pf_name, "VF reserved");
    let standby = match (cx.record.spec.standby, &cx.record.standby) {
        (_, Some(standby)) => Some(standby.clone()),
        (StandbyKind::None, None) => None,
        (StandbyKind::Macvtap, None) => {
            let promised = pod_link::promised_pf(cx).await?;
            let (pf, pf_name) = promised.unwrap_or_else(|| (held.pf, held.pf_name.clone()));
            Some(standby_record(cx, pf, pf_name))
        }
    };
    let standby_pf = standby.as_ref().map(|standby| standby.pf);
    cx.commit(|record| (record.vf, record.standby) = (Some(held), standby))
        .await?;
    if let Some(pf) = standby_pf {
        cx.host.pools.note_standby(&cx.record.uid, pf);
    }
    (cx.learnt.vf_failures, cx.learnt.not_parked) = (0, false);
    Ok(())
}
