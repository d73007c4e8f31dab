//! Steps in the guest, by QMP: plug and unplug VF and standby.

use std::{error::Error, os::fd::AsFd as _, time::Duration};

use hybridnic_api::{
    conditions::reasons,
    v1alpha1::{GuestPorts, MigrationStep},
};
use hybridnic_qmp::{
    Client, EventError, QmpError,
    commands::{Announce, Queues, TapNetdev, VfioPci, VfioSource, Vhost, VirtioNet},
    wait_event,
};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{Context, ids, vf};
use crate::{
    error::{StepError, chain},
    journal::{Record, VfRecord},
    machine::{Session, qemu::migration},
    nic::{disuse::Disuse, observe, seen::Run, silence::Silence},
};

/// How often is looked whether the guest uses its VF: there is no event for it.
const LOOK: Duration = Duration::from_millis(50);
/// How often is looked whether it still does.
const LOOK_AT_REST: Duration = Duration::from_secs(2);
/// QEMU pins all guest memory when it takes a VF.
const PIN_DEADLINE: Duration = Duration::from_mins(2);
/// Id of QEMU's iommufd object, one for a VM.
const IOMMUFD: &str = "hybridnic-iommufd";

fn refused(error: &dyn Error) -> StepError {
    StepError::from_error(reasons::QEMU_REFUSED, error)
}

/// Plugs the standby: descriptors of macvtap and vhost, a netdev, a virtio device that offers failover.
pub(super) async fn plug_standby(cx: &mut Context, client: &Client) -> Result<(), StepError> {
    let vm = std::sync::Arc::clone(&cx.vm);
    let _choosing = vm.choosing_ports.lock().await;
    let ports = choose_ports(cx, client).await?;
    if cx.record.ports.as_ref() != Some(&ports) {
        cx.commit(|record| record.ports = Some(ports.clone())).await?;
        cx.vm
            .update_nic(&cx.record.uid, |n| n.ports = Some(ports.clone()));
    }
    let nic = cx.record.spec.nic.name.clone();
    let netdev = ids::netdev(&nic);
    // A netdev that a crash, or a macvtap that was made again, has left without its device.
    match client.netdev_del(&netdev).await {
        Ok(()) | Err(QmpError::Command { .. }) => {}
        Err(error) => return Err(refused(&error)),
    }
    add_netdev(cx, client, &netdev).await?;
    let device = VirtioNet {
        id: ids::standby(&nic),
        netdev: netdev.clone(),
        mac: cx.mac.to_string(),
        bus: ports.standby,
        queues: Queues::MIN,
        mtu: None,
    };
    match client.device_add_virtio_net(&device).await {
        Err(error) if error.is_duplicate_id() => Ok(()),
        result => result.map_err(|e| refused(&e)),
    }
}

async fn add_netdev(cx: &Context, client: &Client, netdev: &str) -> Result<(), StepError> {
    let failed = |e: &dyn Error| StepError::from_error(reasons::STANDBY_FAILED, e);
    let name = cx.record.standby.as_ref().map_or("", |s| s.macvtap.as_str());
    let link = cx.host.netlink.link(name).await.map_err(|e| failed(&e))?;
    let link = link.ok_or_else(|| StepError::new(reasons::STANDBY_FAILED, "the macvtap has gone away"))?;
    let tap = cx
        .host
        .open_tap(name, link.index)
        .await
        .map_err(|e| e.into_step(reasons::STANDBY_FAILED))?;
    let vhost = match cx.host.dev.open_vhost_net() {
        Ok(fd) => fd,
        Err(error) => {
            warn!(
                error = chain(&error),
                "vhost-net cannot be used; QEMU handles the standby's packets itself"
            );
            None
        }
    };
    let (tap_fd, vhost_fd) = (format!("{netdev}-tap"), format!("{netdev}-vhost"));
    client
        .getfd(&tap_fd, tap.as_fd())
        .await
        .map_err(|e| refused(&e))?;
    let vhost = match vhost {
        None => Vhost::Off,
        Some(fd) => {
            client
                .getfd(&vhost_fd, fd.as_fd())
                .await
                .map_err(|e| refused(&e))?;
            Vhost::Fds(vec![vhost_fd])
        }
    };
    client
        .netdev_add_tap(&TapNetdev {
            id: netdev.to_owned(),
            fds: vec![tap_fd],
            vhost,
        })
        .await
        .map_err(|e| refused(&e))
}

/// The ports that the NIC had, or must have.
fn ports_of(record: &Record) -> Option<GuestPorts> {
    record.ports.clone().or_else(|| record.spec.root_ports().cloned())
}

/// The ports that the NIC had, or must have, or two free ones.
async fn choose_ports(cx: &Context, client: &Client) -> Result<GuestPorts, StepError> {
    if let Some(ports) = ports_of(&cx.record) {
        return Ok(ports);
    }
    let mut free = client.free_root_ports().await.map_err(|e| refused(&e))?;
    for (uid, other) in cx.vm.nics() {
        if let Some(ports) = other.ports
            && uid != cx.record.uid
        {
            free.retain(|p| *p != ports.standby && *p != ports.vf);
        }
    }
    let mut free = free.into_iter();
    match (free.next(), free.next()) {
        (Some(standby), Some(vf)) => Ok(GuestPorts { standby, vf }),
        _ => Err(StepError::new(
            reasons::NO_GUEST_PORT,
            "the VM needs two free hot-pluggable PCIe root ports for each hybrid NIC: start QEMU with more of \
             -device pcie-root-port,id=…",
        )),
    }
}

/// Plugs the VF, by an iommufd where kernel and QEMU have it, by its vfio group otherwise. `false` where the spec has changed
/// before its turn came.
pub(super) async fn plug_vf(cx: &mut Context, client: &Client) -> Result<bool, StepError> {
    // QEMU answers nothing while it pins the guest's memory for another NIC's VF, for minutes.
    let vm = std::sync::Arc::clone(&cx.vm);
    let _plugging = tokio::select! {
        biased;
        turn = vm.plugging.lock() => turn,
        Ok(()) = cx.interrupt.changed() => return Ok(false),
    };
    let plugged = try_plug_vf(cx, client).await;
    plugged.map_err(|error| cx.vf_failed(error))?;
    cx.learnt.vf_failures = 0;
    Ok(true)
}

async fn try_plug_vf(cx: &mut Context, client: &Client) -> Result<(), StepError> {
    let ports = ports_of(&cx.record);
    let ports =
        ports.ok_or_else(|| StepError::new(reasons::NO_GUEST_PORT, "the NIC has no ports in the guest"))?;
    let vf = cx
        .record
        .vf
        .clone()
        .ok_or_else(|| StepError::new(reasons::VF_LOST, "no VF is reserved"))?;
    // Of the very process of the pod that is talked to, and of no other.
    cx.vm.unlimit_locked_memory().map_err(|error| {
        StepError::new(
            reasons::QEMU_REFUSED,
            format!("QEMU's limit of locked memory cannot be lifted: {error}"),
        )
    })?;
    (cx.learnt.moved, cx.disused) = (false, false);
    cx.commit(|record| record.plugs += 1).await?;
    cx.sent_at_plug = Some(sent_by_standby(cx).await?);
    let id = ids::vf(&cx.record.spec.nic.name, cx.record.plugs);
    let result = add_vf(cx, client, &vf, &id, ports.vf).await;
    match &result {
        Ok(how) => {
            info!(
                namespace = cx.record.namespace,
                nic = cx.record.spec.nic.name,
                node = cx.record.spec.node_name,
                vf = %vf.address,
                pf = vf.pf_name,
                device = id,
                how,
                "VF plugged"
            );
        }
        Err(_) => close_descriptor(client, &id).await,
    }
    result.map(|_| ())
}

/// Adds the device; says whether by iommufd or by group.
async fn add_vf(
    cx: &Context,
    client: &Client,
    vf: &VfRecord,
    id: &str,
    port: String,
) -> Result<&'static str, StepError> {
    let source = vfio_source(cx, client, vf, id).await?;
    let how = if matches!(source, VfioSource::Host(_)) {
        "group"
    } else {
        "iommufd"
    };
    client
        .with_timeout(PIN_DEADLINE)
        .device_add_vfio(&VfioPci {
            id: id.to_owned(),
            bus: port,
            source,
        })
        .await
        .map_err(|e| refused(&e))?;
    Ok(how)
}

/// Takes back a descriptor that QEMU was given and may not have used: as long as it has it, no driver lets go of the VF.
async fn close_descriptor(client: &Client, id: &str) {
    if let Err(error) = client.closefd(id).await {
        debug!(id, error = chain(&error), "QEMU has no such descriptor");
    }
}

/// The same for all descriptors of the NIC's VFs that a crash may have left in QEMU.
pub(super) async fn close_descriptors(cx: &Context) {
    if let Session::Up(client) = cx.vm.session() {
        for plug in 1..=cx.record.plugs {
            close_descriptor(&client, &ids::vf(&cx.record.spec.nic.name, plug)).await;
        }
    }
}

async fn vfio_source(
    cx: &Context,
    client: &Client,
    vf: &VfRecord,
    id: &str,
) -> Result<VfioSource, StepError> {
    let by_group = Ok(VfioSource::Host(vf.address.to_string()));
    // QEMU takes iommufd and passed vfio descriptors since 9.0.
    if !client.version().at_least(9, 0) {
        return by_group;
    }
    let open = || -> Option<_> {
        let cdev = cx.host.sysfs.vf(vf.address).ok()??.vfio_cdev?;
        let iommu = cx.host.dev.open_iommu().ok()??;
        // It is in use from here on, until it is proven that nobody has it.
        let device = match cx.host.handouts.open(vf.address, &cdev) {
            Ok(device) => device,
            Err(error) => {
                warn!(vf = %vf.address, %error, "who has the VF's descriptor will not be known");
                cx.host.handouts.note_unwatched(vf.address);
                cx.host.dev.open_vfio_cdev(&cdev).ok()??
            }
        };
        Some((iommu, device))
    };
    let Some((iommu, device)) = open() else {
        return by_group;
    };
    let objects = client.qom_list("/objects").await.map_err(|e| refused(&e))?;
    if !objects.contains_key(IOMMUFD) {
        client
            .getfd(IOMMUFD, iommu.as_fd())
            .await
            .map_err(|e| refused(&e))?;
        match client.object_add_iommufd(IOMMUFD, IOMMUFD).await {
            Ok(()) => {}
            // A QEMU without iommufd; or the VM's other NIC was quicker.
            Err(QmpError::Command { .. }) => {
                let objects = client.qom_list("/objects").await.map_err(|e| refused(&e))?;
                if !objects.contains_key(IOMMUFD) {
                    return by_group;
                }
            }
            Err(error) => return Err(refused(&error)),
        }
    }
    client.getfd(id, device.as_fd()).await.map_err(|e| refused(&e))?;
    Ok(VfioSource::Fd {
        fd: id.to_owned(),
        iommufd: IOMMUFD.into(),
    })
}

/// Waits until the guest uses the VF, or the goal changes, or the deadline passes.
pub(super) async fn await_guest(cx: &mut Context) -> Result<(), StepError> {
    let Some(vf) = cx.record.vf.clone() else {
        return Ok(());
    };
    let deadline = Instant::now() + cx.host.options.plug_deadline;
    let mut pulse = cx.vm.pulse();
    let sent = sent_by_standby(cx).await?;
    let mut silence = Silence::new(cx.sent_at_plug.unwrap_or(sent), sent, Instant::now());
    loop {
        let sent = sent_by_standby(cx).await?;
        let now = Instant::now();
        if silence.look(now, sent, observe::interrupts_of(&vf)) {
            cx.learnt.moved = true;
            if cx.record.standby.as_ref().is_some_and(|s| s.pf != vf.pf) {
                vf::announce_on_pf(cx).await?;
            }
            return Ok(());
        }
        if now >= deadline {
            warn!(
                namespace = cx.record.namespace,
                nic = cx.record.spec.nic.name,
                node = cx.record.spec.node_name,
                vf = %vf.address,
                pf = vf.pf_name,
                "the guest does not use the VF"
            );
            cx.learnt.ignores_vf = true;
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

/// Resolves when the guest, which has moved to the VF, does not use it and goes without network. `disuse` is what earlier
/// calls have seen.
pub async fn until_disused(cx: &Context, disuse: &mut Option<Disuse>) {
    let (Some(vf), Some(standby)) = (&cx.record.vf, &cx.record.standby) else {
        return std::future::pending().await;
    };
    loop {
        match cx.host.sysfs.tx_dropped(&standby.macvtap) {
            Ok(dropped) => {
                let interrupts = || observe::interrupts_of(vf);
                let disuse = disuse.get_or_insert_with(|| Disuse::new(dropped, interrupts()));
                if disuse.look(dropped, interrupts) {
                    return;
                }
            }
            Err(error) => debug!(%error, "the standby cannot be looked at"),
        }
        // Counters are nothing that the kernel tells of.
        tokio::time::sleep(LOOK_AT_REST).await;
    }
}

/// Packets that the guest has sent through the standby.
async fn sent_by_standby(cx: &Context) -> Result<u64, StepError> {
    let name = cx.record.standby.as_ref().map_or("", |s| s.macvtap.as_str());
    let link = cx
        .host
        .netlink
        .link(name)
        .await
        .map_err(|e| StepError::from_error(reasons::STANDBY_FAILED, &e))?;
    Ok(link.map(|l| l.counters.tx_packets).unwrap_or_default())
}

/// Asks the guest to let go of the VF and waits until it has.
pub(super) async fn unplug_vf(
    cx: &mut Context,
    client: &Client,
    device: Option<&str>,
) -> Result<(), StepError> {
    let Some(device) = device else {
        return Ok(());
    };
    cx.learnt.moved = false;
    cx.note("UnplugRequested");
    if remove_device(cx, client, device).await? {
        cx.learnt.announce = true;
    } else {
        warn!(
            namespace = cx.record.namespace,
            nic = cx.record.spec.nic.name,
            node = cx.record.spec.node_name,
            device,
            "the guest does not let go of the VF"
        );
        cx.learnt.keeps_vf = true;
    }
    Ok(())
}

/// Takes the standby out of the guest, and its netdev out of QEMU.
pub(super) async fn unplug_standby(cx: &mut Context, client: &Client) -> Result<(), StepError> {
    let nic = cx.record.spec.nic.name.clone();
    if !remove_device(cx, client, &ids::standby(&nic)).await? {
        cx.learnt.keeps_standby = true;
        return Ok(());
    }
    match client.netdev_del(&ids::netdev(&nic)).await {
        Ok(()) | Err(QmpError::Command { .. }) => Ok(()),
        Err(error) => Err(refused(&error)),
    }
}

/// `device_del` and its end; `false` when the guest did not let go in time.
async fn remove_device(cx: &Context, client: &Client, id: &str) -> Result<bool, StepError> {
    let deadline = Instant::now() + cx.host.options.unplug_deadline;
    let mut events = client.subscribe();
    match client.device_del(id).await {
        Ok(()) => {}
        Err(error) if error.is_device_not_found() => return Ok(true),
        // An earlier request still stands.
        Err(error) if error.is_unplug_pending() || error.is_busy_guest() => {}
        Err(error) => return Err(refused(&error)),
    }
    loop {
        match wait_event(&mut events, deadline, |e| {
            e.is_device_deleted(id) || e.is_unplug_refused(id)
        })
        .await
        {
            Ok(event) => return Ok(event.is_device_deleted(id)),
            Err(EventError::Timeout) => {
                let devices = client.peripheral().await.map_err(|e| refused(&e))?;
                return Ok(!devices.contains_key(id));
            }
            Err(EventError::Lagged(_)) => {
                let devices = client.peripheral().await.map_err(|e| refused(&e))?;
                if !devices.contains_key(id) {
                    return Ok(true);
                }
            }
            Err(EventError::Closed(reason)) => {
                return Err(StepError::new(reasons::QMP_UNAVAILABLE, reason.to_string()));
            }
        }
    }
}

/// Tells the switches, from the standby, where the MAC is now.
pub(super) async fn announce(cx: &mut Context, client: &Client) -> Result<(), StepError> {
    let device = ids::standby(&cx.record.spec.nic.name);
    client
        .announce_self(&[&device], Announce::default())
        .await
        .map_err(|e| refused(&e))?;
    cx.learnt.announce = false;
    Ok(())
}

/// Ends a QEMU that will never run the VM again, and waits until it has gone.
pub(super) async fn quit(cx: &Context, client: &Client) -> Result<(), StepError> {
    // The VM is started under the same lock: what is seen here stays true until QEMU is told.
    let fate = cx.vm.fate.lock().await;
    let (run, seen, _) = observe::see_run(&cx.vm, client, &cx.record)
        .await
        .map_err(|e| refused(&e))?;
    let order = cx.record.spec.migration.as_ref();
    let listens = order.is_some_and(|order| order.step == MigrationStep::Listen);
    let arrives = listens && migration::is_loaded(&seen);
    if arrives || !matches!(run, Run::Incoming | Run::HandedOver) {
        return Err(StepError::new(
            reasons::MIGRATING,
            "the VM has arrived in the QEMU that was to be ended",
        ));
    }
    let quit = async {
        client.until_migration_settled().await?;
        client.quit().await
    };
    let told = quit.await;
    drop(fate);
    match told {
        Ok(()) | Err(QmpError::Closed(_)) => {}
        Err(error) => return Err(refused(&error)),
    }
    match tokio::time::timeout(Duration::from_secs(10), client.closed()).await {
        Ok(_) => Ok(()),
        Err(_) => Err(StepError::new(
            reasons::QEMU_REFUSED,
            "QEMU was told to quit and did not",
        )),
    }
}
