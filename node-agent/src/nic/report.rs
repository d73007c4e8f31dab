//! From what is seen and decided to what an attachment's status says. Pure.

use hybridnic_api::{
    conditions::{self, NewCondition, reasons, types},
    limits,
    v1alpha1::{
        Aside, AttachmentState, Goal, GuestDevices, MigrationReport, NicAttachmentStatus, OnLinkLoss, Path,
        StandbyKind, StandbyRef, SwitchOrder, TimelineEntry, VfRef,
    },
};
use jiff::Timestamp;

use super::{
    plan::{self, Decision},
    seen::{Guest, QemuSeen, Run, Seen, VfMac, VfSeen},
};
use crate::{error::StepError, journal::Record, machine::Filtered};

/// How many VLANs a message names.
const VLANS_TOLD: usize = 8;

/// What a status is made from.
#[derive(Clone, Debug)]
pub struct Inputs<'a> {
    /// What is held.
    pub record: &'a Record,
    /// Generation of the spec.
    pub generation: Option<i64>,
    /// What is seen; `None` when nothing could be.
    pub seen: Option<&'a Seen>,
    /// Whether QEMU runs the VM.
    pub running: bool,
    /// What comes next.
    pub decision: Option<&'a Decision>,
    /// What went wrong last, and is tried again.
    pub error: Option<&'a StepError>,
    /// Both devices in the guest.
    pub guest: GuestDevices,
    /// The order of the last switch to the standby.
    pub unplug_order: Option<SwitchOrder>,
    /// The VM's migration.
    pub migration: Option<MigrationReport>,
    /// What the standby does with what the guest asks it to receive.
    pub filtered: Filtered,
    /// What happened.
    pub timeline: Vec<TimelineEntry>,
}

/// Makes the status; `old` keeps the conditions' transition times.
pub fn build(inputs: Inputs<'_>, old: Option<&NicAttachmentStatus>, now: Timestamp) -> NicAttachmentStatus {
    let path = path(&inputs);
    let mut list = old.map(|o| o.conditions.clone()).unwrap_or_default();
    let (state, ready) = ready(&inputs, path);
    let fast = fast_path(&inputs, state, path, &ready);
    for condition in [ready, fast] {
        conditions::set(&mut list, inputs.generation, now, condition);
    }
    match standby_filter(&inputs) {
        Some(condition) => conditions::set(&mut list, inputs.generation, now, condition),
        None => conditions::remove(&mut list, types::STANDBY_FILTER),
    }
    let record = inputs.record;
    NicAttachmentStatus {
        observed_generation: inputs.generation,
        state,
        path,
        vf: record.vf.as_ref().map(|vf| VfRef {
            pci_address: vf.address.to_string(),
            pf: limits::word(&vf.pf_name),
            index: vf.index.into(),
        }),
        standby: record.standby.as_ref().map(|s| StandbyRef {
            macvtap: s.macvtap.clone(),
            pf: limits::word(&s.pf_name),
        }),
        guest: inputs.guest,
        unplug_order: inputs.unplug_order,
        migration: inputs.migration,
        timeline: inputs.timeline,
        conditions: list,
    }
}

/// Nothing could be seen: what was true before is the best guess. But with another spec a VF is not reported as out before that
/// was looked at: the former spec may have plugged it since.
pub fn as_before(status: &mut NicAttachmentStatus, old: NicAttachmentStatus) {
    let is_guess =
        old.state == AttachmentState::Aside && old.observed_generation != status.observed_generation;
    status.state = if is_guess {
        AttachmentState::Pending
    } else {
        old.state
    };
    status.path = old.path;
    status.migration = status.migration.take().or(old.migration);
    if status.guest == GuestDevices::default() {
        status.guest = old.guest;
    }
}

/// Reports why nothing is done for the NIC, and leaves the rest of its status as it was: the devices are where they were.
pub fn held_back(status: &mut NicAttachmentStatus, generation: Option<i64>, why: &str, now: Timestamp) {
    let condition = NewCondition::no(types::READY, reasons::JOURNAL_FAILED, why);
    conditions::set(&mut status.conditions, generation, now, condition);
}

/// Which device carries the traffic.
pub fn path(inputs: &Inputs<'_>) -> Path {
    let Some(seen) = inputs.seen else {
        return Path::None;
    };
    let standby_up = seen.macvtap == Some(true);
    // While both are up, the one that is on its way out carries the traffic.
    let arriving = plan::goal(&inputs.record.spec) == Goal::FastPath && standby_up;
    match seen.qemu {
        QemuSeen::Up(guest) if inputs.running && guest.vf && guest.uses_vf && !arriving => Path::FastPath,
        QemuSeen::Up(guest) if inputs.running && guest.standby && standby_up => Path::Standby,
        _ => Path::None,
    }
}

fn state_of(path: Path, inputs: &Inputs<'_>) -> AttachmentState {
    let is_alone = inputs.record.spec.standby == StandbyKind::None;
    let has_nic_mac = match inputs.seen.and_then(|seen| seen.vf) {
        Some(VfSeen::There(vf)) => vf.mac == VfMac::Nic,
        Some(VfSeen::Unknown { .. }) => true,
        Some(VfSeen::Gone) | None => false,
    };
    // The guest may have let go of the VF long before QEMU has removed it, and with it no VM can be sent.
    let leaves = plan::goal(&inputs.record.spec) != Goal::FastPath;
    let is_leaving = |guest: &Guest| leaves && guest.vf;
    match (path, inputs.seen) {
        (Path::FastPath, _) => AttachmentState::FastPath,
        (
            Path::Standby,
            Some(Seen {
                qemu: QemuSeen::Up(guest),
                ..
            }),
        ) if is_leaving(guest) => AttachmentState::FastPath,
        (Path::Standby, _) => AttachmentState::Standby,
        (
            Path::None,
            Some(Seen {
                qemu: QemuSeen::Up(guest),
                ..
            }),
        ) if guest.standby && !is_leaving(guest) => AttachmentState::Reserved,
        (
            Path::None,
            Some(Seen {
                qemu: QemuSeen::Up(guest),
                ..
            }),
        ) if is_alone && guest.run == Run::Here && !guest.vf && !has_nic_mac => AttachmentState::Aside,
        (Path::None, _) => AttachmentState::Pending,
    }
}

fn ready(inputs: &Inputs<'_>, path: Path) -> (AttachmentState, NewCondition) {
    let no = |reason: &str, message: &str| NewCondition::no(types::READY, reason, message);
    if let Some(error) = inputs.error {
        // The plan knows what the traffic does not show: a VM whose VF may keep the MAC is not on its standby alone.
        let state = match inputs.decision {
            Some(Decision::Wait(wait)) => wait.state,
            _ => state_of(path, inputs),
        };
        return (state, no(error.reason, &error.message));
    }
    match inputs.decision {
        None => (
            AttachmentState::Pending,
            no(reasons::PROGRESSING, "the agent has begun"),
        ),
        Some(Decision::Do(step)) => (
            state_of(path, inputs),
            no(reasons::PROGRESSING, &format!("next step: {step}")),
        ),
        Some(Decision::Wait(wait)) => (wait.state, no(wait.reason, &wait.message)),
        // Only a migration's target is ready without its VM.
        Some(Decision::Done(state @ AttachmentState::Reserved))
            if inputs.record.spec.migration.is_none() && inputs.record.spec.goal != Goal::Reserved =>
        {
            let message = "QEMU waits for a VM to migrate here (-incoming), and no migration brings one";
            (*state, no(reasons::VM_INCOMING, message))
        }
        Some(Decision::Done(state)) => {
            let (reason, message) = match state {
                AttachmentState::Detached => (reasons::DETACHED, "nothing of the NIC is left on the node"),
                AttachmentState::Reserved => (reasons::VM_INCOMING, "all is ready for the VM to arrive"),
                _ => (reasons::ATTACHED, "the NIC is where it should be"),
            };
            (*state, NewCondition::yes(types::READY, reason, message))
        }
    }
}

fn fast_path(inputs: &Inputs<'_>, state: AttachmentState, path: Path, ready: &NewCondition) -> NewCondition {
    if path == Path::FastPath {
        return match inputs.seen.and_then(|seen| seen.vf) {
            Some(VfSeen::There(vf)) if !vf.link => {
                let message = match inputs.record.spec.l2.on_link_loss {
                    OnLinkLoss::Move => "the guest is on its VF, whose PF has no link",
                    OnLinkLoss::Stay => {
                        "the guest is on its VF, whose PF has no link, and stays there, as the network says (onLinkLoss: Stay)"
                    }
                };
                NewCondition::no(types::FAST_PATH, reasons::PF_LINK_DOWN, message)
            }
            Some(VfSeen::Unknown { .. }) => {
                let message = "the guest is on its VF, and how that is cannot be read at the moment";
                NewCondition::unknown(types::FAST_PATH, reasons::VF_UNKNOWN, message)
            }
            Some(VfSeen::There(vf)) if vf.other_pf => {
                NewCondition::yes(types::FAST_PATH, reasons::VF_ACTIVE, split(inputs.record))
            }
            _ => NewCondition::yes(types::FAST_PATH, reasons::VF_ACTIVE, "the VF carries the traffic"),
        };
    }
    // Ready without the fast path: that is what was asked for.
    if ready.status == Some(true) {
        let is_off = path == Path::Standby || state == AttachmentState::Aside;
        if let Some(aside) = inputs.record.spec.aside.filter(|_| is_off) {
            let told = match state {
                AttachmentState::Aside => told_alone(aside, inputs.record),
                _ => told(aside, inputs.record),
            };
            return NewCondition::no(types::FAST_PATH, reasons::STANDBY_REQUESTED, told);
        }
        if state == AttachmentState::Aside {
            return NewCondition::no(types::FAST_PATH, reasons::STEPPED_ASIDE, STEPPED_ASIDE);
        }
        let message = match inputs.record.spec.goal {
            Goal::Standby => "the standby carries the traffic, as a migration asks for",
            Goal::Detached => "the NIC has left the node",
            Goal::FastPath | Goal::Reserved => "the VM does not run here yet",
        };
        return NewCondition::no(types::FAST_PATH, ready.reason.clone(), message);
    }
    NewCondition::no(types::FAST_PATH, ready.reason.clone(), ready.message.clone())
}

/// What is said of a NIC whose VF and standby are on two PFs.
fn split(record: &Record) -> String {
    let [vf, standby] = [
        record.vf.as_ref().map(|vf| vf.pf_name.as_str()),
        record.standby.as_ref().map(|standby| standby.pf_name.as_str()),
    ]
    .map(Option::unwrap_or_default);
    format!(
        "the VF carries the traffic; it is on {vf} and the standby on {standby}, so a switch takes longer, until a VF of {standby} is \
         free or the VM migrates"
    )
}

/// Why a NIC is on its standby that was told to be there, and where its VF is.
fn told(aside: Aside, record: &Record) -> &'static str {
    match (aside, &record.vf) {
        (Aside::GiveVfBack, None) => {
            "the NIC is told to stay on its standby (path: Standby), and holds no VF; path: Auto brings one back"
        }
        (Aside::GiveVfBack, Some(_)) => {
            "the NIC is told to stay on its standby (path: Standby); its VF goes back to the pool when the migration is over"
        }
        (Aside::KeepVf, Some(_)) => {
            "the NIC is told to stay on its standby (path: Standby), and its VF stays reserved for it (keepVf); path: Auto brings it back"
        }
        (Aside::KeepVf, None) => {
            "the NIC is told to stay on its standby (path: Standby) and to keep a VF (keepVf), but no VF of the network is free on the node"
        }
    }
}

const STEPPED_ASIDE: &str = "the NIC has no standby, and its VF is out of the guest for a migration: the VM has no network through this \
                             NIC until its VF is back";

/// Why the VF of a NIC without a standby is out on request, and where it is.
fn told_alone(aside: Aside, record: &Record) -> &'static str {
    match (aside, &record.vf) {
        (Aside::GiveVfBack, None) => {
            "the NIC is told to do without its VF (path: Standby), holds none, and has no standby: the VM has no network through it; path: \
             Auto brings a VF back"
        }
        (Aside::GiveVfBack, Some(_)) => {
            "the NIC is told to do without its VF (path: Standby), and has no standby: the VM has no network through it; its VF goes back \
             to the pool when the migration is over"
        }
        (Aside::KeepVf, Some(_)) => {
            "the NIC is told to do without its VF (path: Standby), which stays reserved for it (keepVf), and has no standby: the VM has no \
             network through it; path: Auto brings the VF back"
        }
        (Aside::KeepVf, None) => {
            "the NIC is told to do without its VF (path: Standby) and to keep one (keepVf), but no VF of the network is free on the node; it \
             has no standby: the VM has no network through it"
        }
    }
}

/// What reaches the guest on its VF only.
fn standby_filter(inputs: &Inputs<'_>) -> Option<NewCondition> {
    let no = |reason: &str, message: String| Some(NewCondition::no(types::STANDBY_FILTER, reason, message));
    let l2 = &inputs.record.spec.l2;
    let Filtered { beyond, failed } = &inputs.filtered;
    if let Some(error) = failed {
        let message = format!("multicast may not reach the guest on its standby: {error}");
        return no(reasons::STANDBY_FAILED, message);
    }
    // Where the network has a VLAN, the PF's filter sees that one only.
    let untagged = l2.vlan.as_ref().is_none_or(|vlan| vlan.id == 0);
    if untagged && !beyond.vlans.is_empty() {
        let first: Vec<_> = beyond
            .vlans
            .iter()
            .take(VLANS_TOLD)
            .map(ToString::to_string)
            .collect();
        let more = if beyond.vlans.len() > first.len() {
            ", …"
        } else {
            ""
        };
        let message = format!(
            "the guest has VLANs of its own ({}{more}): on its standby it receives them only where the PF does not filter VLANs",
            first.join(", ")
        );
        return no(reasons::GUEST_VLANS_FILTERED, message);
    }
    if l2.trust && beyond.macs {
        let message = "the guest receives for more MACs, or promiscuously: on its standby it receives for the NIC's MAC only";
        return no(reasons::GUEST_MACS_FILTERED, message.to_owned());
    }
    None
}

#[cfg(test)]
#[path = "report_tests.rs"]
mod tests;
