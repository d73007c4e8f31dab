//! Steps in the guest: plug and unplug VF and standby.

use std::{io, time::Duration};

use hybridnic_api::{
    conditions::reasons,
    v1alpha1::{GuestPorts, Placement, StandbyKind},
};
use hybridnic_net::netlink::Link;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{
    Context, alone, announce, descriptors,
    standby::{self, StandbyError},
    vf,
};
use crate::{
    error::{HasReason, chain},
    journal::{JournalError, Record, StandbyRecord, VfRecord},
    machine::{FileSeen, LetGo, Machine, MachineError, StandbyPlug, VfPlug},
    nic::{disuse::Disuse, ids, observe, plan::Sends, silence::Silence, vf::VfError},
};

/// How often is looked whether the guest uses its VF: there is no event for it.
pub(super) const LOOK: Duration = Duration::from_millis(50);
/// How often is looked whether it still does.
pub(super) const LOOK_AT_REST: Duration = Duration::from_secs(2);

/// VF or standby could not be plugged, or watched.
#[derive(Debug, thiserror::Error)]
pub(super) enum GuestError {
    #[error(
        "the VM needs two free hot-pluggable PCIe root ports for each hybrid NIC, or one for a NIC without a standby: start QEMU with \
         more of -device pcie-root-port,id=…"
    )]
    NoFreePorts,
    #[error(
        "waits until the file is read from which the VM is restored: it says at which root ports the NIC is"
    )]
    FileUnread,
    #[error("{0}")]
    NoGroup(String),
    #[error("the NIC has no ports in the guest")]
    NoPorts,
    #[error(
        "the port {0} of the VF has another device in it: take that out of the VM, or give it another port"
    )]
    PortTaken(String),
    #[error("QEMU's limit of locked memory cannot be lifted: {0}")]
    Limited(io::Error),
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Vf(#[from] VfError),
    #[error(transparent)]
    Standby(#[from] StandbyError),
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl HasReason for GuestError {
    fn reason(&self) -> &'static str {
        match self {
            Self::NoFreePorts | Self::NoPorts | Self::PortTaken(_) => reasons::NO_GUEST_PORT,
            Self::FileUnread => reasons::MIGRATING,
            Self::NoGroup(_) => reasons::NO_VFIO_GROUP,
            Self::Limited(_) => reasons::QEMU_REFUSED,
            Self::Machine(error) => error.reason(),
            Self::Vf(error) => error.reason(),
            Self::Standby(error) => error.reason(),
            Self::Journal(error) => error.reason(),
        }
    }
}

/// Plugs the standby.
pub(super) async fn plug_standby(cx: &mut Context, machine: &Machine) -> Result<(), GuestError> {
    let vm = std::sync::Arc::clone(&cx.vm);
    let _choosing = vm.choosing_ports.lock().await;
    let port = settle_ports(cx, machine).await?.standby;
    let port = port.ok_or(GuestError::NoPorts)?;
    let nic = cx.record.spec.nic.name.clone();
    machine.clear_standby(&nic).await?;
    let (tap, vhost) = descriptors::of_standby(cx).await?;
    let plug = StandbyPlug {
        id: ids::standby(&cx.record.spec),
        nic,
        mac: cx.mac,
        pairing: cx.record.spec.pairing,
        port,
        tap,
        vhost,
    };
    Ok(machine.plug_standby(&plug).await?)
}

/// The NIC's ports, as the journal has them from now on.
pub(super) async fn settle_ports(cx: &mut Context, machine: &Machine) -> Result<GuestPorts, GuestError> {
    let ports = match cx.record.known_ports() {
        // At a target the guest has them as at its source.
        Some(ports) if cx.record.spec.root_ports().is_some() => ports.clone(),
        _ => choose_ports(cx, machine).await?,
    };
    note_ports(cx, ports).await
}

async fn note_ports(cx: &mut Context, ports: GuestPorts) -> Result<GuestPorts, GuestError> {
    if cx.record.ports.as_ref() != Some(&ports) {
        cx.commit(|record| record.ports = Some(ports.clone())).await?;
        cx.vm
            .update_nic(&cx.record.uid, |n| n.ports = Some(ports.clone()));
    }
    Ok(ports)
}

/// The VF's port.
fn vf_port(record: &Record) -> Option<String> {
    match &record.spec.placement {
        Some(Placement::Interface(interface)) => Some(ids::vf_port(interface)),
        Some(Placement::RootPorts(_)) | None => Some(record.known_ports()?.vf.clone()),
    }
}

/// The ports that the NIC had and can have still, or free ones: two, or one where it has no standby.
async fn choose_ports(cx: &Context, machine: &Machine) -> Result<GuestPorts, GuestError> {
    let spec = &cx.record.spec;
    let (standby, vf) = match kept_ports(cx, machine).await? {
        (standby, Some(vf)) if standby.is_some() || spec.standby == StandbyKind::None => {
            return Ok(GuestPorts { standby, vf });
        }
        kept => kept,
    };
    if let Some(order) = spec.migration.as_ref().filter(|order| order.restores()) {
        return match cx.vm.file(&order.migration.uid) {
            Some(FileSeen::Loadable(file) | FileSeen::Told(file)) => {
                let ports = file.ports_of(&spec.nic.name).cloned();
                ports.ok_or(GuestError::NoPorts)
            }
            _ => Err(GuestError::FileUnread),
        };
    }
    let mut free = machine.free_ports().await?;
    free.retain(|port| standby.as_ref() != Some(port) && vf.as_ref() != Some(port));
    for (uid, other) in cx.vm.nics() {
        if let Some(ports) = other.ports
            && uid != cx.record.uid
        {
            free.retain(|p| Some(p) != ports.standby.as_ref() && *p != ports.vf);
        }
    }
    let mut free = free.into_iter();
    let standby = match spec.standby {
        StandbyKind::Macvtap => Some(standby.or_else(|| free.next()).ok_or(GuestError::NoFreePorts)?),
        StandbyKind::None => None,
    };
    let vf = vf.or_else(|| free.next()).ok_or(GuestError::NoFreePorts)?;
    Ok(GuestPorts { standby, vf })
}

/// The ports that the NIC had for its standby and its VF, and can have still. At the same socket may be another QEMU by now, with other
/// ports, or with devices of others in them.
async fn kept_ports(
    cx: &Context,
    machine: &Machine,
) -> Result<(Option<String>, Option<String>), MachineError> {
    let Some(known) = cx.record.known_ports() else {
        return Ok((None, None));
    };
    let all = machine.ports().await?;
    let mut standby = match &known.standby {
        Some(port) => is_free(machine, &all, port).await?,
        None => true,
    };
    let mut vf = is_free(machine, &all, &known.vf).await?;
    if !(standby && vf) {
        // The NIC's own device may be in it.
        let seen = machine.observe(&cx.vm, &cx.record).await?;
        standby |= seen.standby;
        vf |= seen.vf.is_some();
    }
    let kept = |port: &String, keeps: bool| keeps.then(|| port.clone());
    let standby = known.standby.as_ref().and_then(|port| kept(port, standby));
    Ok((standby, kept(&known.vf, vf)))
}

/// Whether a QEMU with these ports has this one, and nothing is in it.
async fn is_free(machine: &Machine, all: &[String], port: &str) -> Result<bool, MachineError> {
    Ok(all.iter().any(|there| there == port) && machine.is_free_port(port).await?)
}

/// Sees to it that nothing is in the VF's port, which may be another one from then on. QEMU keeps the descriptors of a device that it refuses
/// because of its port (`vfio_device_set_fd`, hw/vfio/device.c): so this comes before it gets them.
async fn clear_port(cx: &mut Context, machine: &Machine) -> Result<(), GuestError> {
    let port = vf_port(&cx.record).ok_or(GuestError::NoPorts)?;
    if machine.is_free_port(&port).await? {
        return Ok(());
    }
    if !matches!(cx.record.spec.placement, Some(Placement::Interface(_))) {
        let vm = std::sync::Arc::clone(&cx.vm);
        let _choosing = vm.choosing_ports.lock().await;
        // The VM runs here, so what a migration has asked for does not bind it any more.
        let ports = choose_ports(cx, machine).await?;
        if note_ports(cx, ports).await?.vf != port {
            return Ok(());
        }
    }
    Err(GuestError::PortTaken(port))
}

/// Plugs the VF. `false` where the spec has changed before its turn came.
pub(super) async fn plug_vf(cx: &mut Context, machine: &Machine) -> Result<bool, GuestError> {
    // QEMU answers nothing while it pins the guest's memory for another NIC's VF, for minutes.
    let vm = std::sync::Arc::clone(&cx.vm);
    let _plugging = tokio::select! {
        biased;
        turn = vm.plugging.lock() => turn,
        Ok(()) = cx.interrupt.changed() => return Ok(false),
    };
    let plugged = async {
        if cx.record.spec.standby == StandbyKind::None {
            let _choosing = vm.choosing_ports.lock().await;
            settle_ports(cx, machine).await?;
        }
        clear_port(cx, machine).await?;
        try_plug_vf(cx, machine).await
    };
    plugged.await.map_err(|error| cx.vf_failed(error))?;
    cx.learnt.vf_failures = 0;
    Ok(true)
}

async fn try_plug_vf(cx: &mut Context, machine: &Machine) -> Result<(), GuestError> {
    let port = vf_port(&cx.record).ok_or(GuestError::NoPorts)?;
    let vf = vf::held(cx)?.clone();
    if let Some(why) = cx.lacks_group().or_else(|| other_group(cx, &vf)) {
        return Err(GuestError::NoGroup(why));
    }
    // Only for the very process of the pod that is talked to.
    cx.vm.unlimit_locked_memory().map_err(GuestError::Limited)?;
    (cx.learnt.moved, cx.disused) = (false, false);
    cx.commit(|record| record.plugs += 1).await?;
    cx.sent_at_plug = Some(sent_by_standby(cx).await?);
    let id = ids::vf(&cx.record.spec.nic.name, cx.record.plugs);
    let descriptors = machine
        .takes_descriptors()
        .then(|| descriptors::of_vf(&cx.host, vf.address))
        .flatten();
    let plug = VfPlug {
        id: id.clone(),
        port,
        vf: vf.address,
        descriptors,
    };
    match machine.plug_vf(plug).await {
        Ok(how) => {
            info!(vf = %vf.address, pf = vf.pf_name, device = id, %how, "VF plugged");
            Ok(())
        }
        Err(error) => {
            machine.take_back(&id).await;
            Err(error.into())
        }
    }
}

/// Why a pod cannot use the group that it was given: the kernel has numbered its groups in another order since.
fn other_group(cx: &Context, vf: &VfRecord) -> Option<String> {
    let loan = cx.host.pools.loan_of(vf.address)?;
    let (given, now) = (loan.vf.iommu_group, vf.iommu_group);
    (given != now).then(|| {
        format!(
            "the VM's pod has got the vfio group {given} for the VF {}, which is {now} since the node's boot; the NIC stays on its standby \
             until the VM is restarted or migrated",
            vf.address
        )
    })
}

/// Waits until the guest uses the VF, or the goal changes, or the deadline passes.
pub(super) async fn await_guest(cx: &mut Context) -> Result<(), GuestError> {
    let Some(vf) = cx.record.vf.clone() else {
        return Ok(());
    };
    if cx.record.spec.standby == StandbyKind::None {
        return alone::await_guest(cx, &vf).await;
    }
    let deadline = Instant::now() + cx.host.options.plug_deadline;
    let mut pulse = cx.vm.pulse();
    let sent = sent_by_standby(cx).await?;
    let mut silence = Silence::new(cx.sent_at_plug.unwrap_or(sent), sent, Instant::now());
    loop {
        let sent = sent_by_standby(cx).await?;
        let now = Instant::now();
        if silence.has_moved(now, sent, observe::interrupts_of(&vf)) {
            cx.learnt.moved = true;
            if cx.record.standby.as_ref().is_some_and(|s| s.pf != vf.pf) {
                announce::on_pf(cx).await?;
            }
            return Ok(());
        }
        if now >= deadline {
            warn!(
                vf = %vf.address,
                pf = vf.pf_name,
                "the guest does not use the VF"
            );
            cx.learnt.ignores_vf = Some(silence.sends());
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            // Both are looked at by the task.
            _ = cx.interrupt.changed() => return Ok(()),
            _ = pulse.changed() => {}
        }
    }
}

/// Resolves when the guest, which has moved to the VF, does not use it and has no network; returns what it sends through. `disuse` is
/// what earlier calls have seen.
pub async fn until_disused(cx: &Context, disuse: &mut Option<Disuse>) -> Sends {
    let (Some(vf), Some(standby)) = (&cx.record.vf, &cx.record.standby) else {
        return std::future::pending().await;
    };
    loop {
        match dropped_by_standby(cx, standby).await {
            Ok(dropped) => {
                let interrupts = || observe::interrupts_of(vf);
                let (pairing, now) = (cx.record.spec.pairing, Instant::now());
                let disuse = disuse.get_or_insert_with(|| Disuse::new(pairing, now, dropped, interrupts()));
                if let Some(sends) = disuse.found(now, dropped, interrupts) {
                    return sends;
                }
            }
            Err(error) => debug!(error = chain(&error), "the standby cannot be looked at"),
        }
        // The kernel does not report changes of counters.
        tokio::time::sleep(LOOK_AT_REST).await;
    }
}

/// Packets that the guest has sent through the standby.
async fn sent_by_standby(cx: &Context) -> Result<u64, StandbyError> {
    Ok(standby_link(cx)
        .await?
        .map(|link| link.counters.tx_packets)
        .unwrap_or_default())
}

/// The standby's macvtap.
async fn standby_link(cx: &Context) -> Result<Option<Link>, StandbyError> {
    let Some(standby) = &cx.record.standby else {
        return Ok(None);
    };
    Ok(standby::way(cx)?.find(standby).await?)
}

/// Packets that the standby has dropped, because it is down.
async fn dropped_by_standby(cx: &Context, standby: &StandbyRecord) -> Result<u64, StandbyError> {
    if standby.pod.is_some() {
        let link = standby_link(cx).await?;
        return Ok(link.map(|link| link.counters.tx_dropped).unwrap_or_default());
    }
    let dropped = cx.host.sysfs.tx_dropped(&standby.macvtap);
    dropped.map_err(StandbyError::Uncounted)
}

/// Asks the guest to let go of the VF and waits until it has.
pub(super) async fn unplug_vf(
    cx: &mut Context,
    machine: &Machine,
    device: Option<&str>,
) -> Result<(), MachineError> {
    let Some(device) = device else {
        return Ok(());
    };
    cx.learnt.moved = false;
    cx.note("UnplugRequested");
    match unplug(cx, machine, device).await? {
        LetGo::Yes => cx.learnt.announce = true,
        LetGo::No => {
            warn!(device, "the guest does not let go of the VF");
            cx.learnt.keeps_vf = true;
        }
    }
    Ok(())
}

/// Takes the standby out of the guest, and its netdev and the like out of QEMU.
pub(super) async fn unplug_standby(cx: &mut Context, machine: &Machine) -> Result<(), MachineError> {
    let nic = cx.record.spec.nic.name.clone();
    match unplug(cx, machine, &ids::standby(&cx.record.spec)).await? {
        LetGo::Yes => machine.clear_standby(&nic).await,
        LetGo::No => {
            cx.learnt.keeps_standby = true;
            Ok(())
        }
    }
}

async fn unplug(cx: &Context, machine: &Machine, id: &str) -> Result<LetGo, MachineError> {
    let deadline = Instant::now() + cx.host.options.unplug_deadline;
    machine.unplug(id, deadline).await
}

/// Ends a QEMU that will never run the VM again, and waits until it has gone.
pub(super) async fn quit(cx: &Context, machine: &Machine) -> Result<(), MachineError> {
    machine.end(&cx.vm, &cx.record).await
}
