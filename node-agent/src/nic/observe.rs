//! Sees how things are with one NIC: its VF, its macvtap, and its devices in QEMU. Changes nothing.

use std::sync::Arc;

use hybridnic_net::{
    MacAddr, VlanProtocol, interrupts,
    netlink::{Link, NetlinkError, VfConfig},
};
use hybridnic_qmp::{Client, QmpError};

use super::{
    seen::{Guest, QemuSeen, Run, Seen, VfMac, VfSeen},
    steps::ids,
};
use crate::{
    error::StepError,
    host::Host,
    journal::{Record, VfRecord},
    vm::{
        Session, Vm,
        migration::{self, VmSeen},
    },
};
use hybridnic_api::{conditions::reasons, v1alpha1::L2Settings};

/// What the driver that QEMU's VFs need is called.
pub const VFIO_DRIVER: &str = "vfio-pci";

/// What is seen, and what the steps need of it.
#[derive(Debug)]
pub struct Observation {
    /// For the plan. What pool and journal know is filled in by the task.
    pub seen: Seen,
    /// The macvtap.
    pub macvtap: Option<Link>,
    /// QEMU's session, when it answers.
    pub client: Option<Client>,
    /// Id of the VF in QEMU, when it is plugged.
    pub vf_device: Option<String>,
    /// Whether QEMU runs the VM.
    pub running: bool,
}

/// The VF's settings that a network's L2 settings ask for, with the NIC's MAC.
pub fn wanted(vf: &VfRecord, mac: MacAddr, l2: &L2Settings) -> VfConfig {
    let rate = |n: Option<i32>| Some(n.and_then(|n| u32::try_from(n).ok()).unwrap_or(0));
    let vlan = l2.vlan.as_ref();
    let (max, min) = l2
        .rate
        .as_ref()
        .map_or((None, None), |r| (r.max_mbps, r.min_mbps));
    VfConfig {
        index: vf.index,
        mac: Some(mac),
        vlan: Some(vlan.and_then(|v| u16::try_from(v.id).ok()).unwrap_or(0)),
        qos: Some(vlan.and_then(|v| u8::try_from(v.qos).ok()).unwrap_or(0)),
        vlan_proto: Some(vlan.map_or(VlanProtocol::Dot1q, |v| protocol(v.protocol))),
        spoofchk: Some(l2.spoof_check),
        trust: Some(l2.trust),
        min_tx_rate: rate(min),
        max_tx_rate: rate(max),
        link_state: None,
    }
}

/// The kernel's protocol of an API's.
pub fn protocol(protocol: hybridnic_api::v1alpha1::VlanProtocol) -> VlanProtocol {
    match protocol {
        hybridnic_api::v1alpha1::VlanProtocol::Dot1q => VlanProtocol::Dot1q,
        hybridnic_api::v1alpha1::VlanProtocol::Dot1ad => VlanProtocol::Dot1ad,
    }
}

/// Looks at everything that belongs to a record.
pub async fn observe(
    host: &Arc<Host>,
    vm: &Vm,
    record: &Record,
    mac: MacAddr,
) -> Result<Observation, StepError> {
    // Kernel and QEMU are asked at once: between two steps the guest may be without its network.
    let vf = async {
        match &record.vf {
            None => Ok(None),
            Some(vf) => see_vf(host, vf, record, mac).await.map(Some),
        }
    };
    let macvtap = async {
        match &record.standby {
            None => Ok(None),
            Some(standby) => host.netlink.link(&standby.macvtap).await.map_err(|e| netlink(&e)),
        }
    };
    let (vf, macvtap, (qemu, client, vf_device, running)) =
        tokio::try_join!(vf, macvtap, see_qemu(vm, record))?;
    let seen = Seen {
        recorded: false,
        vf,
        vf_offered: false,
        uplink: false,
        standby_recorded: record.standby.is_some(),
        macvtap: macvtap.as_ref().map(|l| l.up),
        qemu,
    };
    Ok(Observation {
        seen,
        macvtap,
        client,
        vf_device,
        running,
    })
}

fn netlink(error: &NetlinkError) -> StepError {
    StepError::from_error(reasons::STANDBY_FAILED, error)
}

async fn see_vf(
    host: &Arc<Host>,
    vf: &VfRecord,
    record: &Record,
    mac: MacAddr,
) -> Result<Option<VfSeen>, StepError> {
    let lost = |e: &dyn std::error::Error| StepError::from_error(reasons::VF_LOST, e);
    let Ok(state) = host.sysfs.driver_state(vf.address) else {
        return Ok(None);
    };
    let Some(pf) = host.netlink.link(&vf.pf_name).await.map_err(|e| lost(&e))? else {
        return Ok(None);
    };
    let table = host
        .netlink
        .vf_table(pf.index)
        .await
        .map_err(|e| lost(&e))?
        .unwrap_or_default();
    let Some(now) = table.into_iter().find(|c| c.index == vf.index) else {
        return Ok(None);
    };
    let mut settings = now.changes_to(&wanted(vf, mac, &record.spec.l2));
    settings.retain(|s| s.name() != "MAC");
    Ok(Some(VfSeen {
        on_vfio: state.driver.as_deref() == Some(VFIO_DRIVER),
        mac: match now.mac {
            Some(m) if m == mac => VfMac::Nic,
            Some(m) if m == vf.parking_mac => VfMac::Parking,
            _ => VfMac::Other,
        },
        settings_ok: settings.is_empty(),
        link: pf.carrier == Some(true) && pf.up,
        other_pf: record.standby.as_ref().is_some_and(|s| s.pf != vf.pf),
    }))
}

type Qemu = (QemuSeen, Option<Client>, Option<String>, bool);

/// QEMU and, where it answers, its session, the VF's device id, and whether the VM runs.
async fn see_qemu(vm: &Vm, record: &Record) -> Result<Qemu, StepError> {
    Ok(match vm.session() {
        Session::Gone => (QemuSeen::Gone, None, None, false),
        Session::Unreachable(_) => (QemuSeen::Unreachable, None, None, false),
        Session::Up(client) => match see_guest(vm, &client, record).await {
            Ok((guest, device, running)) => (QemuSeen::Up(guest), Some(client), device, running),
            Err(QmpError::Closed(_)) => (QemuSeen::Unreachable, None, None, false),
            Err(error) => return Err(StepError::from_error(reasons::QMP_UNAVAILABLE, &error)),
        },
    })
}

/// What QEMU does with the VM, for a NIC of it; and what it says itself.
pub async fn see_run(vm: &Vm, client: &Client, record: &Record) -> Result<(Run, VmSeen, bool), QmpError> {
    let (status, info) = tokio::try_join!(client.query_status(), client.query_migrate())?;
    let seen = VmSeen {
        run: status.status,
        info,
    };
    let order = record.spec.migration.as_ref();
    let custody = order
        .map(|order| vm.custody(&order.migration.uid))
        .unwrap_or_default();
    let (begun, same) = vm.begun();
    let known = migration::Known {
        begun: begun.as_ref(),
        same,
        custody,
    };
    let run = migration::run_of(&seen, record.spec.goal, order, known);
    Ok((run, seen, status.running))
}

/// What QEMU says of the guest; the VF's device id; whether the VM runs.
async fn see_guest(
    vm: &Vm,
    client: &Client,
    record: &Record,
) -> Result<(Guest, Option<String>, bool), QmpError> {
    let (devices, (run, _, running)) = tokio::try_join!(client.peripheral(), see_run(vm, client, record))?;
    let nic = &record.spec.nic.name;
    let standby = devices.contains_key(&ids::standby(nic));
    let vf_device = devices.keys().find(|id| ids::is_vf(id, nic)).cloned();
    let failover = if standby && run == Run::Here {
        match client.standby_negotiated(&ids::standby(nic)).await {
            Ok(negotiated) => negotiated,
            // This QEMU cannot tell: believe that the guest does.
            Err(QmpError::Command { .. } | QmpError::Decode { .. }) => Some(true),
            Err(error) => return Err(error),
        }
    } else {
        None
    };
    let uses_vf = vf_device.is_some() && record.vf.as_ref().is_some_and(uses);
    let guest = Guest {
        run,
        standby,
        vf: vf_device.is_some(),
        uses_vf,
        failover,
    };
    Ok((guest, vf_device, running))
}

/// Whether a guest's driver has switched the VF's interrupts on: there is no event for it.
pub fn uses(vf: &VfRecord) -> bool {
    interrupts_of(vf).is_some()
}

/// How many interrupts the guest's driver of the VF has had; `None` while it has none switched on. With posted
/// interrupts the hardware delivers them past the host, and the number stands still.
pub fn interrupts_of(vf: &VfRecord) -> Option<u64> {
    interrupts::read(vf.address)
        .ok()
        .filter(|i| i.vectors > 0)
        .map(|i| i.total)
}
