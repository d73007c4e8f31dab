//! The way in: VF and standby are taken and plugged, and then what the goal says.

use hybridnic_api::{
    conditions::reasons,
    v1alpha1::{AttachmentState, Goal, NoFreeVf, SwitchOrder},
};

use super::{Ask, Decision, KEEPS_VF, Learnt, Step, detach, fast_path, has_nic_mac, is_parked, order, wait};
use crate::nic::seen::{Guest, QemuSeen, Run, Seen, VfMac};

/// The next step in.
pub(super) fn next(goal: Goal, ask: &Ask, seen: &Seen, learnt: &Learnt) -> Decision {
    use AttachmentState::{Pending, Reserved};
    let guest = match seen.qemu {
        // A VF that was parked in the guest carries nothing, whatever its driver has started since.
        QemuSeen::Up(guest) => Guest {
            uses_vf: guest.uses_vf && !is_parked(seen),
            ..guest
        },
        QemuSeen::Gone => {
            return wait(
                Pending,
                reasons::QMP_UNAVAILABLE,
                "the VM's QEMU has no QMP socket yet, or has ended",
            );
        }
        QemuSeen::Unreachable => {
            return wait(
                Pending,
                reasons::QMP_UNAVAILABLE,
                "the VM's QEMU does not answer on its QMP socket",
            );
        }
    };
    if guest.run == Run::Occupied {
        return if seen.macvtap == Some(true) {
            Decision::Do(Step::StandbyDown)
        } else {
            wait(Pending, reasons::TARGET_OCCUPIED, OCCUPIED)
        };
    }
    // The VF first: the standby is derived from it.
    match seen.vf {
        Some(None) => return Decision::Do(Step::DropVf),
        // A way out that was called off: the standby has gone already.
        Some(Some(_)) if !seen.standby_recorded && !guest.vf => return Decision::Do(Step::RestoreVf),
        None if seen.vf_offered && !guest.vf => return Decision::Do(Step::Reserve),
        None if !seen.standby_recorded && ask.no_free_vf == NoFreeVf::Wait => {
            return wait(
                Pending,
                reasons::NO_FREE_VF,
                "no VF of the network is free on the node; the NIC waits for one",
            );
        }
        None if !seen.standby_recorded && !seen.uplink => {
            return wait(
                Pending,
                reasons::NO_UPLINK,
                "no PF of the node that can be used matches the network's uplinks",
            );
        }
        None if !seen.standby_recorded => return Decision::Do(Step::Reserve),
        Some(Some(vf)) if !guest.vf => {
            if !vf.on_vfio {
                return Decision::Do(Step::Bind);
            }
            if vf.mac == VfMac::Other {
                return Decision::Do(Step::Park);
            }
        }
        _ => {}
    }
    if seen.macvtap.is_none() {
        return make_standby(guest, learnt);
    }
    if !guest.standby {
        return Decision::Do(Step::PlugStandby);
    }
    let up = seen.macvtap == Some(true);
    match guest.run {
        Run::Here | Run::Occupied => {}
        // Silent until the VM starts, and from pre-switchover on.
        Run::Incoming | Run::HandingOver | Run::HandedOver if up => return Decision::Do(Step::StandbyDown),
        Run::Incoming | Run::HandingOver | Run::HandedOver if has_nic_mac(seen) => {
            return Decision::Do(Step::Park);
        }
        Run::Incoming => return Decision::Done(Reserved),
        Run::HandingOver | Run::HandedOver => return Decision::Done(AttachmentState::Standby),
    }
    match goal {
        Goal::Reserved => reserved(seen, guest, up, learnt),
        Goal::Standby => standby(ask, seen, guest, up, learnt),
        Goal::FastPath => fast_path::next(ask, seen, guest, up, learnt),
        Goal::Detached => detach::next(ask, seen, learnt),
    }
}

const OCCUPIED: &str = "QEMU at the target was not started with -incoming defer, runs a guest already, or waits for another \
                        migration; nothing is plugged into it";

/// The macvtap is missing. A standby that is in the guest stays on the one that is gone, whatever is made in its place.
fn make_standby(guest: Guest, learnt: &Learnt) -> Decision {
    if !guest.standby {
        return Decision::Do(Step::MakeStandby);
    }
    match guest.run {
        // To take the standby out would take the guest's master netdev, and with it the addresses of one that works.
        Run::Here if guest.uses_vf => wait(AttachmentState::FastPath, reasons::STANDBY_FAILED, DEAD_STANDBY),
        Run::Here if !learnt.keeps_standby => Decision::Do(Step::UnplugStandby),
        Run::Here => wait(
            AttachmentState::Pending,
            reasons::STANDBY_FAILED,
            "the standby's macvtap was removed, and the guest does not let go of the device on it",
        ),
        _ => wait(AttachmentState::Pending, reasons::STANDBY_FAILED, DEAD_STANDBY),
    }
}

const DEAD_STANDBY: &str = "the standby's macvtap was removed by somebody else, and the guest's device stays on it: until the \
                            VM's QEMU restarts, or the NIC is deleted and made again, the standby carries nothing";

fn reserved(seen: &Seen, guest: Guest, up: bool, learnt: &Learnt) -> Decision {
    if guest.vf {
        if learnt.keeps_vf {
            return wait(AttachmentState::FastPath, reasons::GUEST_KEEPS_VF, KEEPS_VF);
        }
        return Decision::Do(Step::UnplugVf);
    }
    if has_nic_mac(seen) {
        return Decision::Do(Step::Park);
    }
    if up {
        return Decision::Do(Step::StandbyDown);
    }
    Decision::Done(AttachmentState::Reserved)
}

fn standby(ask: &Ask, seen: &Seen, guest: Guest, up: bool, learnt: &Learnt) -> Decision {
    let make_first = order(ask, seen, learnt) == SwitchOrder::MakeBeforeBreak;
    if guest.vf {
        return if learnt.keeps_vf {
            let keeps = || wait(AttachmentState::FastPath, reasons::GUEST_KEEPS_VF, KEEPS_VF);
            match (guest.uses_vf, up) {
                (true, true) => Decision::Do(Step::StandbyDown),
                (true, false) => keeps(),
                // It carries nothing: the standby must.
                (false, _) => settle_on_standby(seen, up, learnt).map_or_else(keeps, Decision::Do),
            }
        } else if make_first && !up {
            Decision::Do(Step::StandbyUp)
        } else {
            Decision::Do(Step::UnplugVf)
        };
    }
    settle_on_standby(seen, up, learnt).map_or(Decision::Done(AttachmentState::Standby), Decision::Do)
}

/// What is left to do before the standby alone carries the traffic. The VF is not in the guest.
pub(super) fn settle_on_standby(seen: &Seen, up: bool, learnt: &Learnt) -> Option<Step> {
    if has_nic_mac(seen) {
        Some(Step::Park)
    } else if !up {
        Some(Step::StandbyUp)
    } else if learnt.announce {
        Some(Step::Announce)
    } else {
        None
    }
}
