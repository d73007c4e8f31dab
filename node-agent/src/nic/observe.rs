//! Sees how things are with one NIC: its VF, its macvtap, and its devices in QEMU. Changes nothing.

use std::{io, sync::Arc};

use hybridnic_api::conditions::reasons;
use hybridnic_net::{
    MacAddr, PciAddress, Uuid, interrupts,
    netlink::{Link, LinkKind, NetlinkError, VfSetting},
    sysfs::Presence,
};

use super::{
    ids, port,
    seen::{Guest, Offer, Port, QemuSeen, Seen, VfMac, VfSeen, VfThere},
    settings::{guard, mtu, wanted},
    steps::VLAN_PREFIX,
};
use crate::{
    error::{HasReason, StepError},
    host::{Host, PfUnread},
    journal::{Record, StandbyRecord, VfRecord},
    links::{Way, WayError},
    machine::{Machine, MachineError, Session, Vm, process::ProcessId},
};

/// What the driver that QEMU's VFs need is called.
pub const VFIO_DRIVER: &str = "vfio-pci";

/// Nothing can be decided, because something of the NIC cannot be seen.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The macvtap is out of reach.
    #[error(transparent)]
    Way(#[from] WayError),
    /// The kernel does not show the macvtap.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// What runs the VM does not say what there is.
    #[error(transparent)]
    Machine(MachineError),
}

impl HasReason for ObserveError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Way(error) => error.reason(),
            Self::Netlink(_) => reasons::STANDBY_FAILED,
            Self::Machine(_) => reasons::QMP_UNAVAILABLE,
        }
    }
}

/// Why nothing is known of a VF.
#[derive(Debug, thiserror::Error)]
enum VfUnknown {
    #[error("the VF {vf} cannot be read")]
    Presence { vf: PciAddress, source: io::Error },
    #[error(
        "the VF's PF {pf} ({name}) has no network interface here: no driver is bound, or it is in another namespace"
    )]
    NoInterface { pf: PciAddress, name: String },
    #[error(transparent)]
    Pf(#[from] PfUnread),
    #[error(transparent)]
    Table(#[from] NetlinkError),
    #[error("the PF {pf} does not show its VF {vf} at the moment: it may be in a reset")]
    Hidden { pf: String, vf: u16 },
}

impl HasReason for VfUnknown {
    fn reason(&self) -> &'static str {
        reasons::VF_UNKNOWN
    }
}

/// What is seen, and what the steps need of it.
#[derive(Debug)]
pub struct Observation {
    /// For the plan.
    pub seen: Seen,
    /// The macvtap.
    pub macvtap: Option<Link>,
    /// The standby's PF.
    pub standby_pf: Option<Link>,
    /// The VF's PF.
    pub vf_pf: Option<Link>,
    /// Why nothing is known about the VF, if nothing is.
    pub unknown: Option<StepError>,
    /// The session with what runs the VM, when it answers.
    pub machine: Option<Machine>,
    /// Id of the VF in QEMU, when it is plugged.
    pub vf_device: Option<String>,
    /// Whether QEMU runs the VM.
    pub running: bool,
}

/// What kernel, QEMU and the task itself know of a NIC. What is offered to it depends on that.
#[derive(Debug)]
pub struct Observed {
    own: Own,
    record: Record,
    mac: MacAddr,
    sandbox_waits: bool,
    vf: Option<VfSeen>,
    vf_pf: Option<Link>,
    unknown: Option<StepError>,
    standby: Standby,
    qemu: Qemu,
}

/// What the NIC's task knows by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Own {
    /// Whether the record is on disk.
    pub recorded: bool,
    /// Whether the guest was seen not to use the VF that it has.
    pub disused: bool,
}

impl Observed {
    /// Everything that the plan looks at. It is put together only here.
    pub fn seen(&self, offer: Offer) -> Seen {
        let standby = self.record.standby.as_ref();
        let seized = standby.and_then(|standby| standby.seized.as_ref());
        let macvtap = self.standby.macvtap.as_ref();
        let vf = self.vf.map(|vf| match vf {
            VfSeen::There(vf) => VfSeen::There(VfThere {
                dark: offer.dark,
                ..vf
            }),
            VfSeen::Gone | VfSeen::Unknown { .. } => vf,
        });
        let qemu = match self.qemu.seen {
            QemuSeen::Up(guest) => QemuSeen::Up(Guest {
                uses_vf: guest.uses_vf && !self.own.disused,
                ..guest
            }),
            other => other,
        };
        Seen {
            recorded: self.own.recorded,
            vf,
            vf_offered: offer.vf,
            other_vf: offer.other_vf,
            home_vf: offer.home_vf,
            uplink: offer.uplink,
            standby_recorded: standby.is_some(),
            sandbox_waits: self.sandbox_waits,
            macvtap: macvtap.map(|link| link.up),
            guarded: self.standby.guarded,
            foreign_mac: macvtap.is_some_and(|link| link.mac != Some(self.mac)),
            seized: seized.is_some(),
            seizer_ended: seized
                .and_then(|seized| seized.process.as_ref())
                .is_some_and(ProcessId::has_ended),
            mtu_ok: self.standby.mtu_ok,
            standby_link: self.standby.pf.as_ref().map(has_link),
            standby_pf_gone: self.standby.pf_gone,
            qemu,
        }
    }

    /// With what is offered to the NIC, all that is known.
    pub fn with(self, offer: Offer) -> Observation {
        Observation {
            seen: self.seen(offer),
            macvtap: self.standby.macvtap,
            standby_pf: self.standby.pf,
            vf_pf: self.vf_pf,
            unknown: self.unknown,
            machine: self.qemu.machine,
            vf_device: self.qemu.vf_device,
            running: self.qemu.running,
        }
    }
}

/// Looks at everything that belongs to a NIC.
pub async fn observe(
    host: &Arc<Host>,
    vm: &Vm,
    record: &Record,
    mac: MacAddr,
    own: Own,
) -> Result<Observed, ObserveError> {
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
            Some(standby) => see_standby(host, record, standby, mac).await,
        }
    };
    let ((vf, vf_pf), standby, qemu) = tokio::try_join!(vf, standby, see_qemu(vm, record))?;
    let (vf, unknown) = match vf {
        None => (None, None),
        Some(Ok(seen)) => (Some(seen), None),
        Some(Err(why)) => {
            let other_pf = is_split(record);
            (Some(VfSeen::Unknown { other_pf }), Some(why.into()))
        }
    };
    Ok(Observed {
        own,
        record: record.clone(),
        mac,
        sandbox_waits: sandbox_waits(host, record),
        vf,
        vf_pf,
        unknown,
        standby,
        qemu,
    })
}

/// Whether the sandbox of the NIC's pod waits for its link.
fn sandbox_waits(host: &Host, record: &Record) -> bool {
    let ifname = ids::ifname(&record.spec);
    let sandbox = ifname.and_then(|ifname| host.sandboxes.of(&record.spec.pod.uid, &ifname));
    sandbox.is_some_and(|sandbox| sandbox.waits)
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

#[derive(Debug, Default)]
struct Standby {
    macvtap: Option<Link>,
    pf: Option<Link>,
    pf_gone: bool,
    guarded: bool,
    mtu_ok: bool,
}

async fn see_standby(
    host: &Arc<Host>,
    record: &Record,
    standby: &StandbyRecord,
    mac: MacAddr,
) -> Result<Standby, ObserveError> {
    let l2 = &record.spec.l2;
    let way = Way::to(host, record, standby)?;
    let macvtap = way.find(standby);
    // Nothing is known about a PF that cannot be read.
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
    let guarded = match macvtap.as_ref().zip(way.netlink()) {
        // What cannot be read may be missing; to guard it again says why.
        Some((macvtap, netlink)) => netlink
            .is_guarded(macvtap.index, &guard(mac, l2))
            .await
            .unwrap_or(false),
        None => false,
    };
    let pf_gone = pf.is_none() && matches!(host.sysfs.presence(standby.pf), Ok(Presence::Absent));
    Ok(Standby {
        macvtap,
        pf,
        pf_gone,
        guarded,
        mtu_ok,
    })
}

/// The greatest MTU that a macvtap can have: that of its PF, unless a VLAN device that is not ours is between the two.
pub async fn room(host: &Arc<Host>, macvtap: &Link, pf: &Link) -> Result<Option<u32>, NetlinkError> {
    let Some(lower) = macvtap.lower.filter(|lower| *lower != pf.index) else {
        return Ok(Some(pf.mtu));
    };
    let lower = host.netlink.link_by_index(lower).await?;
    Ok(lower.map(|lower| if is_ours(&lower) { pf.mtu } else { lower.mtu }))
}

/// Whether a link is a VLAN device that we have made.
pub fn is_ours(link: &Link) -> bool {
    matches!(link.kind, LinkKind::Vlan { .. }) && link.name.starts_with(VLAN_PREFIX)
}

/// A VF as it is, or why that is unknown; and its PF.
async fn see_vf(
    host: &Arc<Host>,
    vf: &VfRecord,
    record: &Record,
    mac: MacAddr,
) -> (Option<Result<VfSeen, VfUnknown>>, Option<Link>) {
    let unknown = |why: VfUnknown| Some(Err(why));
    let driver = match host.sysfs.presence(vf.address) {
        Ok(Presence::Absent) => return (Some(Ok(VfSeen::Gone)), None),
        Ok(Presence::Present { driver }) => driver,
        Err(source) => {
            let vf = vf.address;
            return (unknown(VfUnknown::Presence { vf, source }), None);
        }
    };
    let pf = match host.pf_link(vf.pf).await {
        Ok(Some(pf)) => pf,
        Ok(None) => {
            let (pf, name) = (vf.pf, vf.pf_name.clone());
            return (unknown(VfUnknown::NoInterface { pf, name }), None);
        }
        Err(error) => return (unknown(error.into()), None),
    };
    let now = match host.netlink.vf_table(pf.index).await {
        Ok(table) => table
            .unwrap_or_default()
            .into_iter()
            .find(|c| c.index == vf.index),
        Err(error) => return (unknown(error.into()), Some(pf)),
    };
    // Drivers leave a VF out while it, or the PF, resets itself.
    let Some(now) = now else {
        let hidden = VfUnknown::Hidden {
            pf: pf.name.clone(),
            vf: vf.index,
        };
        return (unknown(hidden), Some(pf));
    };
    let port = match port::profile(&record.spec, Uuid::of(0)) {
        None => Port::NoProfile,
        Some(profile) => match host.netlink.vf_port(pf.index, vf.index).await {
            Ok(found) => port::seen(found.as_ref(), &profile),
            Err(error) => return (unknown(error.into()), Some(pf)),
        },
    };
    let mut settings = now.changes_to(&wanted(vf, mac, &record.spec.l2));
    settings.retain(|s| !matches!(s, VfSetting::Mac(_)));
    let seen = VfThere {
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
        port,
    };
    (Some(Ok(VfSeen::There(seen))), Some(pf))
}

/// QEMU and, where it answers, its session, the VF's device id, and whether the VM runs.
async fn see_qemu(vm: &Vm, record: &Record) -> Result<Qemu, ObserveError> {
    let machine = match vm.session() {
        Session::Gone => return Ok(Qemu::silent(QemuSeen::Gone)),
        Session::Unreachable(_) => return Ok(Qemu::silent(QemuSeen::Unreachable)),
        Session::Flooding => return Ok(Qemu::silent(QemuSeen::Flooding)),
        Session::Untrusted(offence) => return Ok(Qemu::silent(QemuSeen::Untrusted(offence))),
        Session::Up(machine) => machine,
    };
    match machine.observe(vm, record).await {
        Ok(seen) => Ok(Qemu {
            seen: QemuSeen::Up(Guest {
                run: seen.run,
                standby: seen.standby,
                vf: seen.vf.is_some(),
                uses_vf: seen.vf.is_some() && record.vf.as_ref().is_some_and(uses),
                failover: seen.failover,
                migrating: seen.migrating,
                acpi: seen.acpi,
            }),
            machine: Some(machine),
            vf_device: seen.vf,
            running: seen.running,
        }),
        Err(MachineError::Gone(_)) => Ok(Qemu::silent(QemuSeen::Unreachable)),
        Err(error) => Err(ObserveError::Machine(error)),
    }
}

#[derive(Debug)]
struct Qemu {
    seen: QemuSeen,
    machine: Option<Machine>,
    vf_device: Option<String>,
    running: bool,
}

impl Qemu {
    fn silent(seen: QemuSeen) -> Self {
        Self {
            seen,
            machine: None,
            vf_device: None,
            running: false,
        }
    }
}

/// Whether a guest's driver has switched the VF's interrupts on, as far as is known: there is no event for it. Interrupts that cannot be
/// read do not mean that a driver has switched them off.
pub fn uses(vf: &VfRecord) -> bool {
    may_use(&interrupts::read(vf.address))
}

fn may_use(read: &io::Result<interrupts::VfioInterrupts>) -> bool {
    read.as_ref().map_or(true, |interrupts| interrupts.vectors > 0)
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
