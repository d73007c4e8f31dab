//! The way of a NIC that has no standby (`standby: None`): its VF is all that it has, and the only owner of its MAC. While the VF is out, as
//! for a migration, the VM has no network through the NIC. So there is no order of two devices here, and a VF that works is left only for
//! another VF, or on request.

use hybridnic_api::{
    conditions::reasons,
    v1alpha1::{AttachmentState, Goal},
};

use super::{
    Ask, Decision, KEEPS_VF, Learnt, Step, TRIES, UNKNOWN,
    attach::{self, KEEPS_MAC, NO_UPLINK, OCCUPIED, VF_FAILED, WAITS_FOR_VF, dark, prepare},
    fast_path::{NO_LINK, PORT_LOST, unfit},
    give_back, has_nic_mac, port, wait_because,
};
use crate::nic::seen::{Guest, Run, Seen, VfMac, VfSeen};

/// The next step to the VF, or out of the way.
pub(super) fn next(ask: &Ask, seen: &Seen, learnt: &Learnt) -> Decision {
    let guest = match attach::guest(ask, seen, learnt) {
        Ok(guest) => guest,
        Err(decision) => return decision,
    };
    match guest.run {
        Run::Starting => return Decision::Done(AttachmentState::Reserved),
        Run::Occupied => return wait_because(AttachmentState::Pending, reasons::TARGET_OCCUPIED, OCCUPIED),
        Run::Here | Run::Incoming | Run::HandingOver | Run::HandedOver => {}
    }
    if let Some(decision) = take(ask, seen, guest, learnt) {
        return decision;
    }
    if guest.run != Run::Here {
        return attach::away(ask, seen, guest, false, learnt);
    }
    if let Some(VfSeen::Unknown { .. }) = seen.vf {
        return unknown(ask, guest);
    }
    match (ask.goal, guest.vf) {
        (Goal::FastPath, true) => plugged(ask, seen, guest, learnt),
        (Goal::FastPath, false) => unplugged(ask, seen, guest, learnt),
        (Goal::Standby | Goal::Reserved | Goal::Detached, _) => aside(ask, seen, guest, learnt),
    }
}

/// Which VF; `None` if that is decided, or there is none.
pub(super) fn take(ask: &Ask, seen: &Seen, guest: Guest, learnt: &Learnt) -> Option<Decision> {
    use AttachmentState::Pending;
    if guest.vf {
        return None;
    }
    if let Some(vf) = seen.vf {
        return (vf == VfSeen::Gone).then_some(Decision::Do(Step::DropVf));
    }
    if ask.wants_vf() && seen.vf_offered && learnt.vf_failed.is_none() {
        return Some(Decision::Do(Step::Reserve));
    }
    // If the VM runs already, or has run, it goes without one, and reports that.
    if guest.run != Run::Incoming {
        return None;
    }
    if ask.waits_for_vf() {
        let reason = learnt.vf_failed.unwrap_or(reasons::NO_FREE_VF);
        return Some(wait_because(Pending, reason, WAITS_FOR_VF));
    }
    (ask.wants_vf() && !seen.uplink).then(|| wait_because(Pending, reasons::NO_UPLINK, NO_UPLINK))
}

/// If nothing is known about a VF, nothing is done to it, and nothing is concluded from it.
fn unknown(ask: &Ask, guest: Guest) -> Decision {
    let state = if guest.uses_vf {
        AttachmentState::FastPath
    } else if guest.vf || ask.goal == Goal::Standby && ask.ordered {
        // It is not out; or it may have the MAC, and must not be left behind by its VM.
        AttachmentState::Pending
    } else {
        AttachmentState::Aside
    };
    wait_because(state, reasons::VF_UNKNOWN, UNKNOWN)
}

/// The VF is to be out of the guest.
fn aside(ask: &Ask, seen: &Seen, guest: Guest, learnt: &Learnt) -> Decision {
    if guest.vf {
        return if learnt.keeps_vf {
            wait_because(AttachmentState::FastPath, reasons::GUEST_KEEPS_VF, KEEPS_VF)
        } else {
            Decision::Do(Step::UnplugVf)
        };
    }
    let step = park(seen, learnt)
        // One that is only drained may have to go back into the guest.
        .or_else(|| give_back(ask, seen).filter(|_| ask.aside.is_some()))
        .or_else(|| prepare(ask, seen, learnt))
        .or_else(|| port::leave(seen, learnt).filter(|_| !ask.ordered));
    if let Some(step) = step {
        return Decision::Do(step);
    }
    if has_nic_mac(seen) {
        return wait_because(AttachmentState::Pending, reasons::VF_SETTING_REFUSED, KEEPS_MAC);
    }
    if let Some(reason) = learnt
        .vf_failed
        .filter(|_| !ask.ordered && port::is_left_over(seen))
    {
        return wait_because(AttachmentState::Aside, reason, port::LEFT_OVER);
    }
    Decision::Done(AttachmentState::Aside)
}

/// The VF is in the guest, and should be.
fn plugged(ask: &Ask, seen: &Seen, guest: Guest, learnt: &Learnt) -> Decision {
    use AttachmentState::{FastPath, Pending};
    let vf = seen.there();
    let may_leave = !learnt.keeps_vf;
    if yields(ask, seen, guest, learnt) && may_leave {
        return Decision::Do(Step::UnplugVf);
    }
    if vf.is_some_and(dark) && seen.other_vf && may_leave {
        return Decision::Do(Step::UnplugVf);
    }
    // One that is lost, or that the guest has met under another MAC, is useless to it.
    if !guest.uses_vf && !has_nic_mac(seen) {
        return if may_leave {
            Decision::Do(Step::UnplugVf)
        } else {
            wait_because(Pending, reasons::GUEST_KEEPS_VF, KEEPS_VF)
        };
    }
    if !guest.uses_vf && learnt.ignores_vf.is_some() {
        // It stays: outside of the guest it would be no more useful.
        return wait_because(Pending, reasons::GUEST_IGNORES_VF, IGNORES_VF);
    }
    if !guest.uses_vf || !learnt.moved {
        return Decision::Do(Step::AwaitGuest);
    }
    if vf.is_some_and(|vf| !(vf.settings_ok && vf.mac == VfMac::Nic)) {
        return match learnt.vf_failed {
            Some(reason) => wait_because(FastPath, reason, "the VF's settings could not be changed"),
            None => Decision::Do(Step::ConfigureVf),
        };
    }
    if let Some(step) = port::take(seen) {
        return match learnt.vf_failed {
            Some(reason) => wait_because(FastPath, reason, PORT_LOST),
            None => Decision::Do(step),
        };
    }
    if ask.leaves_vf() {
        return if may_leave {
            wait_because(FastPath, reasons::PF_DRAINED, DRAINED_ONLY)
        } else {
            wait_because(FastPath, reasons::GUEST_KEEPS_VF, KEEPS_VF)
        };
    }
    if vf.is_some_and(|vf| !vf.link) {
        return wait_because(FastPath, reasons::PF_LINK_DOWN, NO_LINK);
    }
    Decision::Done(FastPath)
}

/// The VF should be in the guest, and is not.
fn unplugged(ask: &Ask, seen: &Seen, guest: Guest, learnt: &Learnt) -> Decision {
    use AttachmentState::Aside;
    let Some(vf) = seen.there() else {
        let (reason, message) = match learnt.vf_failed {
            Some(reason) => (reason, VF_FAILED),
            None if !seen.uplink => (reasons::NO_UPLINK, NO_UPLINK),
            None => (reasons::NO_FREE_VF, NO_VF),
        };
        return wait_because(Aside, reason, message);
    };
    // Otherwise it goes back into the guest: it may be out because of a migration that has failed, and there is nothing else.
    if yields(ask, seen, guest, learnt) {
        return Decision::Do(park(seen, learnt).unwrap_or(Step::RestoreVf));
    }
    if let Some(step) = prepare(ask, seen, learnt) {
        return Decision::Do(step);
    }
    let useless = dark(vf) || learnt.vf_failed.is_some() && learnt.vf_failures >= TRIES;
    // A VF that somebody keeps cannot be exchanged: it is better to try it again.
    if useless && seen.other_vf && !vf.held {
        return Decision::Do(park(seen, learnt).unwrap_or(Step::RestoreVf));
    }
    if let Some((reason, message)) = unfit(guest, learnt, vf) {
        let step = park(seen, learnt).or_else(|| port::leave(seen, learnt));
        return step.map_or_else(|| wait_because(Aside, reason, message), Decision::Do);
    }
    if vf.mac != VfMac::Nic || !vf.settings_ok {
        return Decision::Do(Step::ConfigureVf);
    }
    Decision::Do(port::take(seen).unwrap_or(Step::PlugVf))
}

/// Whether a drain has the VF. An administrator may clear a card for another, and takes no VM its network: another VF takes its place, or
/// it is seen to be useless. A guest that does not use it at the moment, or a link that is down for a moment, does not show that.
fn yields(ask: &Ask, seen: &Seen, guest: Guest, learnt: &Learnt) -> bool {
    let is_useless = seen.vf == Some(VfSeen::Gone)
        || seen.there().is_some_and(dark)
        || !guest.uses_vf && learnt.ignores_vf.is_some();
    ask.leaves_vf() && (seen.other_vf || is_useless)
}

/// The VF gives the MAC up, if its driver takes another.
fn park(seen: &Seen, learnt: &Learnt) -> Option<Step> {
    (has_nic_mac(seen) && !learnt.not_parked).then_some(Step::Park)
}

const NO_VF: &str = "no VF of the network is free on the node; the NIC has no standby, so the VM has no network through it until one is";

const DRAINED_ONLY: &str = "the NIC's VF is drained, the NIC has no standby, and no other VF is free: it stays on its VF until one is; \
                            path: Standby takes the VF out, and the VM its network";

const IGNORES_VF: &str = "the guest does not use the VF, and the NIC has no standby: the VM has no network through it; the guest needs the \
                          VF's driver. The VF stays in the guest, and is looked at every few seconds";
