//! The way to `Reserved`: a VF is taken and parked before the VM's pod has its link. No part of the standby is made.

use hybridnic_api::{conditions::reasons, v1alpha1::AttachmentState};

use super::{
    Ask, Decision, FLOOD, Learnt, Step, UNKNOWN,
    attach::{VF_FAILED, prepare, take},
    has_nic_mac, port, wait_because,
};
use crate::nic::seen::{Guest, QemuSeen, Run, Seen, VfSeen};

/// A guest that does not exist yet.
pub(super) const NOBODY: Guest = Guest {
    run: Run::Incoming,
    standby: false,
    vf: false,
    uses_vf: false,
    failover: None,
    migrating: false,
    acpi: true,
};

/// The next step to a VF that is reserved, and nothing else.
pub(super) fn next(ask: &Ask, seen: &Seen, learnt: &Learnt) -> Decision {
    use AttachmentState::Pending;
    match seen.qemu {
        // A VF that was found with the NIC's MAC is a second owner of the MAC.
        QemuSeen::Up(guest) if guest.standby && !guest.vf && has_nic_mac(seen) => {
            return Decision::Do(Step::Park);
        }
        // A goal that came too late takes nothing from a guest.
        QemuSeen::Up(guest) if guest.standby || guest.vf => {
            return wait_because(Pending, reasons::TARGET_OCCUPIED, IN_A_GUEST);
        }
        QemuSeen::Up(_) | QemuSeen::Gone => {}
        QemuSeen::Unreachable => return wait_because(Pending, reasons::QMP_UNAVAILABLE, NO_ANSWER),
        QemuSeen::Flooding => return wait_because(Pending, reasons::QMP_FLOOD, FLOOD),
        QemuSeen::Untrusted(offence) => {
            return wait_because(Pending, reasons::QMP_UNTRUSTED, offence.to_string());
        }
    }
    if let Some(decision) = take(ask, seen, NOBODY, learnt) {
        return decision;
    }
    if seen.macvtap == Some(true) {
        return Decision::Do(Step::StandbyDown);
    }
    if has_nic_mac(seen) {
        return Decision::Do(Step::Park);
    }
    if let Some(VfSeen::Unknown { .. }) = seen.vf {
        return wait_because(Pending, reasons::VF_UNKNOWN, UNKNOWN);
    }
    let step = prepare(ask, seen, learnt).or_else(|| port::keep(seen, learnt));
    match (step, learnt.vf_failed) {
        (Some(step), _) => Decision::Do(step),
        (None, Some(reason)) if ask.waits_for_vf() => wait_because(Pending, reason, VF_FAILED),
        (None, _) => Decision::Done(AttachmentState::Reserved),
    }
}

const IN_A_GUEST: &str =
    "the NIC is in a guest here already: nothing is reserved, and nothing is taken from it";

const NO_ANSWER: &str = "a QEMU may be in the pod, and does not answer on its QMP socket";
