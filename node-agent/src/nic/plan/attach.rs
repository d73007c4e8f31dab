//! The way in: VF and standby are taken and plugged, and then what the goal says. The standby comes first, so that the NIC has
//! network even if drivers refuse the VF.

use hybridnic_api::{
    conditions::reasons,
    v1alpha1::{AttachmentState, Goal, SwitchOrder},
};

use super::{
    Ask, Decision, FLOOD, KEEPS_VF, Learnt, Step, UNKNOWN, alone, detach, fast_path, give_back, has_nic_mac,
    is_parked, port,
    reserve::{self, NOBODY},
    switch_order, wait_because,
};
use crate::{
    machine::Owner,
    nic::seen::{Guest, QemuSeen, Run, Seen, VfMac, VfSeen, VfThere},
};

/// The next step in.
pub(super) fn next(goal: Goal, ask: &Ask, seen: &Seen, learnt: &Learnt) -> Decision {
    use AttachmentState::Pending;
    let guest = match guest(ask, seen, learnt) {
        Ok(guest) => guest,
        Err(decision) => return decision,
    };
    if guest.run == Run::Starting {
        return Decision::Done(AttachmentState::Reserved);
    }
    if guest.run == Run::Occupied {
        return if seen.macvtap == Some(true) {
            Decision::Do(Step::StandbyDown)
        } else {
            wait_because(Pending, reasons::TARGET_OCCUPIED, OCCUPIED)
        };
    }
    if let Some(decision) = take(ask, seen, guest, learnt) {
        return decision;
    }
    if seen.macvtap.is_none() {
        return make_standby(ask, seen, guest, learnt);
    }
    if let Some(decision) = seized(seen, guest) {
        return decision;
    }
    if !seen.mtu_ok && !learnt.mtu_refused {
        return Decision::Do(Step::RaiseMtu);
    }
    if !guest.standby {
        return match ask.duties.standby {
            Owner::Agent => Decision::Do(Step::PlugStandby),
            Owner::Runtime => wait_because(Pending, reasons::WAITING_FOR_RUNTIME, NO_STANDBY),
        };
    }
    let up = seen.macvtap == Some(true);
    if guest.run != Run::Here {
        return away(ask, seen, guest, up, learnt);
    }
    match (goal, seen.vf) {
        (Goal::Detached, _) => detach::next(ask, seen, learnt),
        (Goal::Reserved, _) => reserve::next(ask, seen, learnt),
        (_, Some(VfSeen::Unknown { other_pf })) => unknown(ask, seen, guest, up, learnt, other_pf),
        (Goal::Standby, _) => standby(ask, seen, guest, up, learnt),
        (Goal::FastPath, _) => fast_path::next(ask, seen, guest, up, learnt),
    }
}

/// The guest, or the next best source if QEMU does not show one.
pub(super) fn guest(ask: &Ask, seen: &Seen, learnt: &Learnt) -> Result<Guest, Decision> {
    use AttachmentState::Pending;
    Err(match seen.qemu {
        // A VF that was parked in the guest carries nothing, nor does one that is gone, no matter what its driver has started.
        QemuSeen::Up(guest) => {
            return Ok(Guest {
                uses_vf: guest.uses_vf && !is_parked(seen) && seen.vf != Some(VfSeen::Gone),
                ..guest
            });
        }
        QemuSeen::Gone if seen.seized && seen.seizer_ended => Decision::Do(Step::RemoveStandby),
        QemuSeen::Gone if ask.duties.standby == Owner::Runtime => before_vm(ask, seen, learnt),
        QemuSeen::Gone => match give_back(ask, seen) {
            Some(step) => {
                let parks = has_nic_mac(seen) && !learnt.not_parked;
                Decision::Do(if parks { Step::Park } else { step })
            }
            None => wait_because(
                Pending,
                reasons::QMP_UNAVAILABLE,
                "the VM's QEMU has no QMP socket yet, or has ended",
            ),
        },
        QemuSeen::Unreachable => wait_because(
            Pending,
            reasons::QMP_UNAVAILABLE,
            "the VM's QEMU does not answer on its QMP socket",
        ),
        QemuSeen::Flooding => wait_because(Pending, reasons::QMP_FLOOD, FLOOD),
        QemuSeen::Untrusted(offence) => wait_because(Pending, reasons::QMP_UNTRUSTED, offence.to_string()),
    })
}

/// Which VF, and on which PF the standby; `None` if that is decided.
pub(super) fn take(ask: &Ask, seen: &Seen, guest: Guest, learnt: &Learnt) -> Option<Decision> {
    use AttachmentState::Pending;
    if ask.is_alone() {
        return alone::take(ask, seen, guest, learnt);
    }
    // If the runtime has it, the standby is where the pod's sandbox was promised it.
    let bare = ask.duties.standby == Owner::Agent && !guest.vf && !guest.standby;
    match seen.vf {
        _ if guest.vf => None,
        Some(VfSeen::Gone) => Some(Decision::Do(Step::DropVf)),
        Some(VfSeen::Unknown { .. }) if !seen.standby_recorded => {
            Some(wait_because(Pending, reasons::VF_UNKNOWN, UNKNOWN))
        }
        // A way out that was called off: the standby has gone already.
        Some(VfSeen::There(_)) if !seen.standby_recorded => Some(Decision::Do(Step::RestoreVf)),
        // Both are on a PF without link, or a drained one, and another will do: nothing is in the guest yet that would tie the NIC to
        // this one.
        Some(VfSeen::There(vf)) if bare && (dark(vf) || ask.leaves_vf()) && !vf.other_pf && seen.other_vf => {
            Some(Decision::Do(Step::RemoveStandby))
        }
        // The standby was made when there was no VF, and one has come on another PF: because nothing is in the guest yet, the
        // standby goes there, and the NIC is not split for as long as its VM stays here.
        Some(VfSeen::There(vf)) if bare && vf.other_pf && vf.link && !seen.seized => {
            Some(Decision::Do(Step::MoveStandby))
        }
        Some(_) => None,
        None if ask.duties.standby == Owner::Runtime && !seen.standby_recorded && !seen.sandbox_waits => {
            Some(wait_because(Pending, reasons::WAITING_FOR_RUNTIME, NO_SANDBOX))
        }
        None if ask.wants_vf() && seen.vf_offered && learnt.vf_failed.is_none() => {
            Some(Decision::Do(Step::Reserve))
        }
        // Its PF has left the machine, and the macvtap with it: the standby is made where there is another.
        None if bare && seen.standby_pf_gone && seen.macvtap.is_none() && seen.uplink => {
            Some(Decision::Do(Step::RemoveStandby))
        }
        None if seen.standby_recorded => None,
        None if ask.waits_for_vf() => Some(wait_because(
            Pending,
            learnt.vf_failed.unwrap_or(reasons::NO_FREE_VF),
            WAITS_FOR_VF,
        )),
        None if !seen.uplink => Some(wait_because(Pending, reasons::NO_UPLINK, NO_UPLINK)),
        None => Some(Decision::Do(Step::Reserve)),
    }
}

pub(super) const WAITS_FOR_VF: &str = "no VF of the network is free on the node; the NIC waits for one";
pub(super) const NO_UPLINK: &str = "no PF of the node that can be used matches the network's uplinks";

/// Whether the NIC may leave a VF because of its PF's link, and that is still missing.
pub(super) fn dark(vf: VfThere) -> bool {
    vf.dark && !vf.link
}

/// What a VF that the NIC is to have still lacks to be ready for the guest: it is bound to vfio-pci, and has no MAC of somebody else.
pub(super) fn prepare(ask: &Ask, seen: &Seen, learnt: &Learnt) -> Option<Step> {
    let is_wanted = ask.wants_vf() && learnt.vf_failed.is_none();
    let vf = seen.there().filter(|_| is_wanted)?;
    if !vf.on_vfio {
        Some(Step::Bind)
    } else if vf.mac == VfMac::Other {
        Some(Step::Park)
    } else {
        None
    }
}

pub(super) const OCCUPIED: &str = "QEMU at the target was not started with -incoming defer, runs a guest already, or waits for another \
                        migration; nothing is plugged into it";

const NO_SANDBOX: &str = "the pod's sandbox has not asked for its link yet";
const NO_STANDBY: &str = "the VM has no standby yet: what runs it puts it in";

/// The runtime starts the VM once its pod has the link that the standby will be on.
fn before_vm(ask: &Ask, seen: &Seen, learnt: &Learnt) -> Decision {
    use AttachmentState::Pending;
    if let Some(decision) = take(ask, seen, NOBODY, learnt) {
        return decision;
    }
    if has_nic_mac(seen) && !learnt.not_parked {
        return Decision::Do(Step::Park);
    }
    let waits = match seen.macvtap {
        None if seen.sandbox_waits => return Decision::Do(Step::MakeStandby),
        None => wait_because(Pending, reasons::WAITING_FOR_RUNTIME, NO_SANDBOX),
        Some(_) if seen.seized => wait_because(Pending, reasons::STANDBY_SEIZED, SEIZED),
        Some(true) => return Decision::Do(Step::StandbyDown),
        Some(false) if seen.sandbox_waits => return Decision::Do(Step::AnswerSandbox),
        Some(false) => wait_because(
            Pending,
            reasons::QMP_UNAVAILABLE,
            "the pod has its link; its VM has not started yet, or has ended",
        ),
    };
    let step = give_back(ask, seen).or_else(|| prepare(ask, seen, learnt));
    step.map_or(waits, Decision::Do)
}

/// The macvtap is missing. A standby that is in the guest stays on the one that is gone, no matter what is made in its place.
fn make_standby(ask: &Ask, seen: &Seen, guest: Guest, learnt: &Learnt) -> Decision {
    if !guest.standby {
        return match ask.duties.standby {
            Owner::Runtime if !seen.sandbox_waits => {
                wait_because(AttachmentState::Pending, reasons::WAITING_FOR_RUNTIME, NO_SANDBOX)
            }
            _ => Decision::Do(Step::MakeStandby),
        };
    }
    match guest.run {
        Run::Here if !guest.uses_vf && ask.duties.standby == Owner::Runtime => {
            wait_because(AttachmentState::Pending, reasons::STANDBY_FAILED, DEAD_STANDBY)
        }
        // Taking the standby out would take the guest's master netdev, and the addresses of a working one with it.
        Run::Here if guest.uses_vf => {
            wait_because(AttachmentState::FastPath, reasons::STANDBY_FAILED, DEAD_STANDBY)
        }
        Run::Here if !learnt.keeps_standby => Decision::Do(Step::UnplugStandby),
        Run::Here => wait_because(
            AttachmentState::Pending,
            reasons::STANDBY_FAILED,
            "the standby's macvtap was removed, and the guest does not let go of the device on it",
        ),
        _ => wait_because(AttachmentState::Pending, reasons::STANDBY_FAILED, DEAD_STANDBY),
    }
}

const DEAD_STANDBY: &str = "the standby's macvtap was removed by somebody else, and the guest's device stays on it: until the \
                            VM's QEMU restarts, or the NIC is deleted and made again, the standby carries nothing";

/// The macvtap has had another MAC: it stays shut. A VF that the guest uses is its own, whose MAC the card enforces.
fn seized(seen: &Seen, guest: Guest) -> Option<Decision> {
    // Nobody has the descriptor of a macvtap that is made again.
    if seen.seized && seen.seizer_ended && !guest.standby {
        return Some(Decision::Do(Step::RemoveStandby));
    }
    let state = if guest.uses_vf {
        AttachmentState::FastPath
    } else {
        AttachmentState::Pending
    };
    seen.seized
        .then(|| wait_because(state, reasons::STANDBY_SEIZED, SEIZED))
}

const SEIZED: &str = "the VM's QEMU has given the standby's macvtap another MAC than the NIC's, which a QEMU in order never \
                      does: the standby is shut until that QEMU has ended";

/// The VM is not here: silent until RESUME, and from pre-switchover on.
pub(super) fn away(ask: &Ask, seen: &Seen, guest: Guest, up: bool, learnt: &Learnt) -> Decision {
    use AttachmentState::{Pending, Reserved};
    let waits = guest.run == Run::Incoming;
    if up {
        return Decision::Do(Step::StandbyDown);
    }
    if has_nic_mac(seen) {
        return Decision::Do(Step::Park);
    }
    if let Some(VfSeen::Unknown { .. }) = seen.vf {
        let state = if waits { Pending } else { ask.off_vf() };
        return wait_because(state, reasons::VF_UNKNOWN, UNKNOWN);
    }
    if let Some(step) = give_back(ask, seen).filter(|_| !guest.vf) {
        return Decision::Do(step);
    }
    if !waits {
        return Decision::Done(ask.off_vf());
    }
    let step = prepare(ask, seen, learnt).or_else(|| port::keep(seen, learnt));
    match (step, learnt.vf_failed) {
        (Some(step), _) => Decision::Do(step),
        (None, Some(reason)) if ask.waits_for_vf() => wait_because(Pending, reason, VF_FAILED),
        (None, _) => Decision::Done(Reserved),
    }
}

pub(super) const VF_FAILED: &str = "the VF could not be set up or plugged; tried again after a pause";

/// If nothing is known about a VF, nothing is done to it, and nothing is concluded from it. On its own PF the standby may be up no
/// matter what MAC the VF has.
fn unknown(ask: &Ask, seen: &Seen, guest: Guest, up: bool, learnt: &Learnt, other_pf: bool) -> Decision {
    use AttachmentState::{FastPath, Pending, Standby};
    let twice = !other_pf && (!guest.vf || switch_order(ask, seen, learnt) == SwitchOrder::MakeBeforeBreak);
    if !guest.uses_vf && twice {
        if !up {
            return Decision::Do(Step::StandbyUp);
        }
        if !guest.vf && learnt.announce {
            return Decision::Do(Step::Announce);
        }
    }
    let is_told = ask.aside.is_some() && !ask.ordered;
    let state = match ask.goal {
        _ if guest.uses_vf => FastPath,
        Goal::FastPath if up => Standby,
        Goal::Standby if up && is_told => Standby,
        // A VF that may have the MAC must not be left behind by its VM.
        _ => Pending,
    };
    wait_because(state, reasons::VF_UNKNOWN, UNKNOWN)
}

fn standby(ask: &Ask, seen: &Seen, guest: Guest, up: bool, learnt: &Learnt) -> Decision {
    if guest.vf {
        return if learnt.keeps_vf {
            let keeps = || wait_because(AttachmentState::FastPath, reasons::GUEST_KEEPS_VF, KEEPS_VF);
            match (guest.uses_vf, up) {
                (true, true) => Decision::Do(Step::StandbyDown),
                (true, false) => keeps(),
                // It carries nothing: the standby must.
                (false, _) => settle_on_standby(seen, up, learnt).map_or_else(keeps, Decision::Do),
            }
        } else if guest.uses_vf && seen.there().is_some_and(|vf| vf.link) && told_without_link(ask, seen) {
            wait_because(AttachmentState::FastPath, reasons::PF_LINK_DOWN, NO_STANDBY_LINK)
        } else {
            Decision::Do(leave(ask, seen, up, learnt))
        };
    }
    let rest = || {
        give_back(ask, seen)
            .or_else(|| prepare(ask, seen, learnt))
            .or_else(|| port::leave(seen, learnt).filter(|_| !ask.ordered))
    };
    if let Some(step) = settle_on_standby(seen, up, learnt).or_else(rest) {
        return Decision::Do(step);
    }
    if has_nic_mac(seen) {
        return wait_because(AttachmentState::Pending, reasons::VF_SETTING_REFUSED, KEEPS_MAC);
    }
    if let Some(reason) = learnt
        .vf_failed
        .filter(|_| !ask.ordered && port::is_left_over(seen))
    {
        return wait_because(AttachmentState::Standby, reason, port::LEFT_OVER);
    }
    if told_without_link(ask, seen) {
        return wait_because(
            AttachmentState::Standby,
            reasons::PF_LINK_DOWN,
            "the NIC is told to stay on its standby (path: Standby), and the standby's PF has no link",
        );
    }
    Decision::Done(AttachmentState::Standby)
}

pub(super) const KEEPS_MAC: &str = "the VF keeps the NIC's MAC: it would answer for a VM that runs elsewhere";

/// Whether the NIC is told to stay on a standby whose PF has no link. A migration goes on without it, and may lead to one that has.
fn told_without_link(ask: &Ask, seen: &Seen) -> bool {
    ask.aside.is_some() && !ask.ordered && seen.standby_link == Some(false)
}

const NO_STANDBY_LINK: &str = "the NIC is told to stay on its standby (path: Standby), and the standby's PF has no link: the NIC stays on its VF, \
                               which has one, until it has";

/// The VF out of the guest, with the standby up first where that can be.
pub(super) fn leave(ask: &Ask, seen: &Seen, up: bool, learnt: &Learnt) -> Step {
    let make_first = switch_order(ask, seen, learnt) == SwitchOrder::MakeBeforeBreak;
    if make_first && !up {
        Step::StandbyUp
    } else {
        Step::UnplugVf
    }
}

/// What is left to do before the standby alone carries the traffic. The VF is not in the guest.
pub(super) fn settle_on_standby(seen: &Seen, up: bool, learnt: &Learnt) -> Option<Step> {
    // One that keeps the MAC, on the standby's own PF, gives it no second owner.
    let stuck = learnt.not_parked && seen.there().is_some_and(|vf| !vf.other_pf);
    if has_nic_mac(seen) && !stuck {
        Some(Step::Park)
    } else if !up {
        Some(Step::StandbyUp)
    } else if learnt.announce {
        Some(Step::Announce)
    } else {
        None
    }
}
