//! The way from the standby to the VF, and back where the VF is of no use.

use hybridnic_api::{
    conditions::reasons,
    v1alpha1::{AttachmentState, SwitchOrder},
};

use super::{Ask, Decision, Learnt, Step, attach::settle_on_standby, has_nic_mac, order, wait};
use crate::nic::seen::{Guest, Seen, VfMac};

/// The next step of a VM that is here.
pub(super) fn next(ask: &Ask, seen: &Seen, guest: Guest, up: bool, learnt: &Learnt) -> Decision {
    let degraded = |reason, message: &str| {
        settle_on_standby(seen, up, learnt)
            .map_or_else(|| wait(AttachmentState::Standby, reason, message), Decision::Do)
    };
    if guest.vf {
        // The standby's PF may have a link yet; where it is the VF's own, nothing is won.
        if matches!(seen.vf, Some(Some(vf)) if vf.other_pf && !vf.link) && !learnt.keeps_vf {
            return Decision::Do(Step::UnplugVf);
        }
        // With the standby down it is too late to look.
        if !guest.uses_vf || up && !learnt.moved {
            // One that is lost, or that the guest has met under another MAC, is of no use to it.
            return if learnt.ignores_vf || !has_nic_mac(seen) {
                if learnt.keeps_vf {
                    degraded(reasons::GUEST_IGNORES_VF, IGNORES_VF)
                } else {
                    Decision::Do(Step::UnplugVf)
                }
            } else if !up && order(ask, seen, learnt) == SwitchOrder::MakeBeforeBreak {
                // A guest that has restarted may boot by its network.
                Decision::Do(Step::StandbyUp)
            } else {
                Decision::Do(Step::AwaitGuest)
            };
        }
        if let Some(Some(vf)) = seen.vf
            && !(vf.settings_ok && vf.mac == VfMac::Nic)
        {
            return match learnt.vf_failed {
                Some(reason) => wait(
                    AttachmentState::FastPath,
                    reason,
                    "the VF's settings could not be changed",
                ),
                None => Decision::Do(Step::ConfigureVf),
            };
        }
        return if up {
            Decision::Do(Step::StandbyDown)
        } else {
            Decision::Done(AttachmentState::FastPath)
        };
    }
    let Some(Some(vf)) = seen.vf else {
        return degraded(
            reasons::NO_FREE_VF,
            "no VF of the network is free on the node; the standby carries the traffic",
        );
    };
    if !vf.link {
        return degraded(
            reasons::PF_LINK_DOWN,
            "the VF's PF has no link; the standby stays in use until it has",
        );
    }
    if guest.failover == Some(false) {
        return degraded(
            reasons::GUEST_NO_FAILOVER,
            "the guest's virtio-net driver did not take the standby feature: it needs net_failover (Linux 4.18 and later)",
        );
    }
    if guest.failover.is_none() {
        return degraded(
            reasons::GUEST_NO_FAILOVER,
            "the guest's virtio-net driver has not started yet; the VF is plugged when it has",
        );
    }
    if learnt.ignores_vf {
        return degraded(reasons::GUEST_IGNORES_VF, IGNORES_VF);
    }
    if let Some(reason) = learnt.vf_failed {
        return degraded(
            reason,
            "the VF could not be set up or plugged; tried again after a pause",
        );
    }
    let make_first = order(ask, seen, learnt) == SwitchOrder::MakeBeforeBreak;
    let configured = vf.mac == VfMac::Nic && vf.settings_ok;
    if make_first && !up {
        return Decision::Do(if has_nic_mac(seen) {
            Step::Park
        } else {
            Step::StandbyUp
        });
    }
    if make_first && learnt.announce && !has_nic_mac(seen) {
        return Decision::Do(Step::Announce);
    }
    if !make_first && up {
        return Decision::Do(Step::StandbyDown);
    }
    if !configured {
        return Decision::Do(Step::ConfigureVf);
    }
    Decision::Do(Step::PlugVf)
}

const IGNORES_VF: &str = "the guest did not use the VF: it needs the VF's driver, and net_failover must have joined it with \
                          the standby (the guest's kernel log says why not); tried again, later each time, and when the \
                          guest restarts";
