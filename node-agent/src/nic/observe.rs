//! Sees how things are with one NIC: its VF, its macvtap, and its devices in QEMU. Changes nothing.

use std::sync::Arc;

use hybridnic_net::{
    MacAddr, VlanProtocol, interrupts,
    netlink::{Guard, Link, LinkKind, NetlinkError, VfConfig, VfLinkState, VfSetting},
    sysfs::Presence,
};
use hybridnic_qmp::{Client, QmpError};

use super::{
    seen::{Guest, QemuSeen, Run, Seen, VfMac, VfSeen, VfSight},
    steps::{VLAN_PREFIX, ids},
};
use crate::{
    error::{StepError, chain},
    host::Host,
    journal::{Record, StandbyRecord, VfRecord},
    machine::{
        Session, Vm,
        process::ProcessId,
        qemu::migration::{self, VmSeen},
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
    /// The standby's PF.
    pub standby_pf: Option<Link>,
    /// The VF's PF.
    pub vf_pf: Option<Link>,
    /// Why nothing is known of the VF, where that is so.
    pub unknown: Option<StepError>,
    /// QEMU's session, when it answers.
    pub client: Option<Client>,
    /// Id of the VF in QEMU, when it is plugged.
    pub vf_device: Option<String>,
    /// Whether QEMU runs the VM.
    pub running: bool,
}

/// The VF's settings that a network's L2 settings ask for, with the NIC's MAC.
pub fn wanted(vf: &VfRecord, mac: MacAddr, l2: &L2Settings) -> VfConfig {
    let vlan = l2.vlan.as_ref();
    let (min_tx_rate, max_tx_rate) = rates(vf, l2);
    VfConfig {
        index: vf.index,
        mac: Some(mac),
        vlan: Some(vlan.and_then(|v| u16::try_from(v.id).ok()).unwrap_or(0)),
        qos: Some(vlan.and_then(|v| u8::try_from(v.qos).ok()).unwrap_or(0)),
        vlan_proto: Some(vlan.map_or(VlanProtocol::Dot1q, |v| protocol(v.protocol))),
        spoofchk: Some(l2.spoof_check),
        trust: Some(l2.trust),
        min_tx_rate,
        max_tx_rate,
        // A VF whose link is always down gives a guest none.
        link_state: vf.saved.link_state.map(|saved| match saved {
            VfLinkState::Disable => VfLinkState::Auto,
            other => other,
        }),
    }
}

/// The same for a VF that is parked. It stays in its network: whoever has its descriptor, whatever QEMU says, must get nothing by it, and
/// without a VLAN it would be a trunk of all VLANs of its PF.
pub fn parked(vf: &VfRecord, l2: &L2Settings) -> VfConfig {
    VfConfig {
        spoofchk: Some(true),
        trust: Some(false),
        ..wanted(vf, vf.parking_mac, l2)
    }
}

/// The rates that a VF should have. Where the network asks for none they are left alone: some drivers always show one. One that
/// we have set is taken back.
fn rates(vf: &VfRecord, l2: &L2Settings) -> (Option<u32>, Option<u32>) {
    let rate = |n: Option<i32>| Some(n.and_then(|n| u32::try_from(n).ok()).unwrap_or(0));
    match &l2.rate {
        Some(asked) => (rate(asked.min_mbps), rate(asked.max_mbps)),
        None => saved_rates(vf),
    }
}

/// The rates to go back to; none where they were never changed.
pub fn saved_rates(vf: &VfRecord) -> (Option<u32>, Option<u32>) {
    if vf.rate_set {
        (vf.saved.min_tx_rate.or(Some(0)), vf.saved.max_tx_rate.or(Some(0)))
    } else {
        (None, None)
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
            None => Ok((None, None)),
            Some(vf) => Ok(see_vf(host, vf, record, mac).await),
        }
    };
    let standby = async {
        match &record.standby {
            None => Ok(Standby::default()),
            Some(standby) => see_standby(host, standby, mac, &record.spec.l2).await,
        }
    };
    let ((vf, vf_pf), standby, (qemu, client, vf_device, running)) =
        tokio::try_join!(vf, standby, see_qemu(vm, record))?;
    let (vf, unknown) = match vf {
        None => (None, None),
        Some(Ok(sight)) => (Some(sight), None),
        Some(Err(why)) => {
            let other_pf = is_split(record);
            (Some(VfSight::Unknown { other_pf }), Some(why))
        }
    };
    let seized = record.standby.as_ref().and_then(|s| s.seized.as_ref());
    let seen = Seen {
        recorded: false,
        vf,
        vf_offered: false,
        other_vf: false,
        uplink: false,
        standby_recorded: record.standby.is_some(),
        macvtap: standby.macvtap.as_ref().map(|l| l.up),
        guarded: standby.guarded,
        foreign_mac: standby.macvtap.as_ref().is_some_and(|l| l.mac != Some(mac)),
        seized: seized.is_some(),
        seizer_ended: seized
            .and_then(|seized| seized.process.as_ref())
            .is_some_and(ProcessId::has_ended),
        mtu_ok: standby.mtu_ok,
        standby_link: standby.pf.as_ref().map(has_link),
        qemu,
    };
    Ok(Observation {
        seen,
        macvtap: standby.macvtap,
        standby_pf: standby.pf,
        vf_pf,
        unknown,
        client,
        vf_device,
        running,
    })
}

fn has_link(pf: &Link) -> bool {
    pf.carrier == Some(true) && pf.up
}

/// Whether VF and standby are on two PFs.
fn is_split(record: &Record) -> bool {
    match (&record.vf, &record.standby) {
        (Some(vf), Some(standby)) => vf.pf != standby.pf,
        _ => false,
    }
}

#[derive(Default)]
struct Standby {
    macvtap: Option<Link>,
    pf: Option<Link>,
    guarded: bool,
    mtu_ok: bool,
}

async fn see_standby(
    host: &Arc<Host>,
    standby: &StandbyRecord,
    mac: MacAddr,
    l2: &L2Settings,
) -> Result<Standby, StepError> {
    let macvtap = async { host.netlink.link(&standby.macvtap).await.map_err(|e| netlink(&e)) };
    // A PF that cannot be read is one of which nothing is known.
    let pf = async { Ok(host.pf_link(standby.pf).await.unwrap_or_default()) };
    let (macvtap, pf) = tokio::try_join!(macvtap, pf)?;
    let room = match (&macvtap, &pf) {
        (Some(macvtap), Some(pf)) => room(host, macvtap, pf).await?,
        _ => None,
    };
    let mtu_ok = match (&macvtap, room) {
        (Some(macvtap), Some(room)) => macvtap.mtu >= mtu(l2, room),
        _ => true,
    };
    let guarded = match &macvtap {
        // What cannot be read may be missing; to guard it again says why.
        Some(macvtap) => host
            .netlink
            .is_guarded(macvtap.index, &guard(mac, l2))
            .await
            .unwrap_or(false),
        None => false,
    };
    Ok(Standby {
        macvtap,
        pf,
        guarded,
        mtu_ok,
    })
}

/// What a standby lets through: as much as the VF with the network's settings.
pub fn guard(mac: MacAddr, l2: &L2Settings) -> Guard {
    let rate = l2.rate.as_ref().and_then(|rate| rate.max_mbps);
    Guard {
        mac,
        any_source: !l2.spoof_check,
        any_destination: l2.trust,
        tags: l2.guest_vlans,
        rate: rate
            .and_then(|mbps| u32::try_from(mbps).ok())
            .filter(|mbps| *mbps > 0),
    }
}

/// The greatest MTU that a macvtap can have: that of its PF, but for a VLAN device of somebody else between the two.
pub async fn room(host: &Arc<Host>, macvtap: &Link, pf: &Link) -> Result<Option<u32>, StepError> {
    let Some(lower) = macvtap.lower.filter(|lower| *lower != pf.index) else {
        return Ok(Some(pf.mtu));
    };
    let lower = host.netlink.link_by_index(lower).await.map_err(|e| netlink(&e))?;
    Ok(lower.map(|lower| if is_ours(&lower) { pf.mtu } else { lower.mtu }))
}

/// Whether a link is a VLAN device that we have made.
pub fn is_ours(link: &Link) -> bool {
    matches!(link.kind, LinkKind::Vlan { .. }) && link.name.starts_with(VLAN_PREFIX)
}

/// The MTU that a standby should have where there is room for so much.
pub fn mtu(l2: &L2Settings, room: u32) -> u32 {
    let asked = l2.mtu.and_then(|mtu| u32::try_from(mtu).ok());
    asked.map_or(room, |asked| asked.min(room))
}

fn netlink(error: &NetlinkError) -> StepError {
    StepError::from_error(reasons::STANDBY_FAILED, error)
}

/// A VF as it is, or why that cannot be told; and its PF.
async fn see_vf(
    host: &Arc<Host>,
    vf: &VfRecord,
    record: &Record,
    mac: MacAddr,
) -> (Option<Result<VfSight, StepError>>, Option<Link>) {
    let unknown = |message: String| Some(Err(StepError::new(reasons::VF_UNKNOWN, message)));
    let driver = match host.sysfs.presence(vf.address) {
        Ok(Presence::Absent) => return (Some(Ok(VfSight::Gone)), None),
        Ok(Presence::Present { driver }) => driver,
        Err(error) => {
            return (
                unknown(format!("the VF {} cannot be read: {error}", vf.address)),
                None,
            );
        }
    };
    let pf = match host.pf_link(vf.pf).await {
        Ok(Some(pf)) => pf,
        Ok(None) => {
            let message = format!(
                "the VF's PF {} ({}) has no network interface here: no driver is bound, or it is in another namespace",
                vf.pf, vf.pf_name
            );
            return (unknown(message), None);
        }
        Err(error) => return (Some(Err(error)), None),
    };
    let now = match host.netlink.vf_table(pf.index).await {
        Ok(table) => table
            .unwrap_or_default()
            .into_iter()
            .find(|c| c.index == vf.index),
        Err(error) => return (unknown(chain(&error)), Some(pf)),
    };
    // Drivers leave a VF out while it, or the PF, resets itself.
    let Some(now) = now else {
        let message = format!(
            "the PF {} does not show its VF {} at the moment: it may be in a reset",
            pf.name, vf.index
        );
        return (unknown(message), Some(pf));
    };
    let mut settings = now.changes_to(&wanted(vf, mac, &record.spec.l2));
    settings.retain(|s| !matches!(s, VfSetting::Mac(_)));
    let seen = VfSeen {
        on_vfio: driver.as_deref() == Some(VFIO_DRIVER),
        mac: match now.mac {
            Some(m) if m == mac => VfMac::Nic,
            Some(m) if m == vf.parking_mac => VfMac::Parking,
            _ => VfMac::Other,
        },
        settings_ok: settings.is_empty(),
        link: has_link(&pf),
        dark: false,
        other_pf: is_split(record),
        held: host.handouts.is_out(vf.address),
    };
    (Some(Ok(VfSight::There(seen))), Some(pf))
}

type Qemu = (QemuSeen, Option<Client>, Option<String>, bool);

/// QEMU and, where it answers, its session, the VF's device id, and whether the VM runs.
async fn see_qemu(vm: &Vm, record: &Record) -> Result<Qemu, StepError> {
    Ok(match vm.session() {
        Session::Gone => (QemuSeen::Gone, None, None, false),
        Session::Unreachable(_) => (QemuSeen::Unreachable, None, None, false),
        Session::Flooding => (QemuSeen::Flooding, None, None, false),
        Session::Untrusted(offence) => (QemuSeen::Untrusted(offence), None, None, false),
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
    let migration = order.map_or("", |order| order.migration.uid.as_str());
    let (begun, same) = vm.begun(migration);
    let known = migration::Known {
        begun: begun.as_ref(),
        same,
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

#[cfg(test)]
#[path = "observe_tests.rs"]
mod tests;
