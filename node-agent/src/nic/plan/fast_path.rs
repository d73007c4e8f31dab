//! The way from the standby to the VF, and back, or to another VF if this one is useless.

use hybridnic_api::{
    conditions::reasons,
    v1alpha1::{AttachmentState, Pairing, SwitchOrder},
};

use super::{
    Ask, Decision, KEEPS_VF, Learnt, Sends, Step, TRIES,
    attach::{VF_FAILED, dark, leave, prepare, settle_on_standby},
    give_back, has_nic_mac, port, switch_order, wait_because,
};
use crate::nic::seen::{Guest, Seen, VfMac, VfThere};

/// The next step of a VM that is here.
pub(super) fn next(ask: &Ask, seen: &Seen, guest: Guest, up: bool, learnt: &Learnt) -> Decision {
    if guest.vf {
        plugged(ask, seen, guest, up, learnt)
    } else {
        match seen.there() {
            Some(vf) => reserved(ask, seen, guest, up, learnt, vf),
            None => without(seen, up, learnt),
        }
    }
}

/// On its standby, and why.
fn degraded(seen: &Seen, up: bool, learnt: &Learnt, reason: &'static str, message: &str) -> Decision {
    settle_on_standby(seen, up, learnt).map_or_else(
        || wait_because(AttachmentState::Standby, reason, message),
        Decision::Do,
    )
}

/// The VF is in the guest.
fn plugged(ask: &Ask, seen: &Seen, guest: Guest, up: bool, learnt: &Learnt) -> Decision {
    if ask.leaves_vf() && !learnt.keeps_vf {
        let works = guest.uses_vf && seen.there().is_some_and(|vf| vf.link);
        return if works && seen.standby_link == Some(false) && !seen.other_vf {
            wait_because(AttachmentState::FastPath, reasons::PF_LINK_DOWN, DRAINED_ALONE)
        } else {
            Decision::Do(leave(ask, seen, up, learnt))
        };
    }
    // Without its port the VF carries nothing, and the switch does not give it that now.
    if guest.uses_vf && port::take(seen).is_some() && learnt.vf_failed.is_some() && !learnt.keeps_vf {
        return Decision::Do(leave(ask, seen, up, learnt));
    }
    let lost = seen.there().filter(|vf| !vf.link);
    // If neither the standby nor another VF has a link, nothing is gained.
    let elsewhere = |vf: VfThere| vf.other_pf && seen.standby_link == Some(true) || seen.other_vf;
    if lost.is_some_and(|vf| dark(vf) && elsewhere(vf)) && !learnt.keeps_vf {
        return Decision::Do(Step::UnplugVf);
    }
    // With the standby down it is too late to look.
    if !guest.uses_vf || up && !learnt.moved {
        // One that is lost, or that the guest has met under another MAC, is useless to it.
        return if learnt.ignores_vf.is_some() || !has_nic_mac(seen) {
            if learnt.keeps_vf {
                let (reason, message) = ignored(ask.pairing, learnt.ignores_vf.unwrap_or(Sends::ByStandby));
                degraded(seen, up, learnt, reason, message)
            } else {
                Decision::Do(Step::UnplugVf)
            }
        } else if !up && switch_order(ask, seen, learnt) == SwitchOrder::MakeBeforeBreak {
            // A guest that has restarted may boot over its network.
            Decision::Do(Step::StandbyUp)
        } else if up && ask.pairing == Pairing::Bond && guest.failover.is_none() {
            // It still boots. A guest with net_failover reports when it has booted, and is tried again then, no matter how long it took.
            wait_because(AttachmentState::Standby, reasons::GUEST_NOT_BONDED, BOOTS_WITH_VF)
        } else {
            Decision::Do(Step::AwaitGuest)
        };
    }
    if let Some(vf) = seen.there()
        && !(vf.settings_ok && vf.mac == VfMac::Nic)
    {
        return match learnt.vf_failed {
            Some(reason) => wait_because(
                AttachmentState::FastPath,
                reason,
                "the VF's settings could not be changed",
            ),
            None => Decision::Do(Step::ConfigureVf),
        };
    }
    if let Some(step) = port::take(seen) {
        return match learnt.vf_failed {
            Some(reason) => wait_because(AttachmentState::FastPath, reason, PORT_LOST),
            None => Decision::Do(step),
        };
    }
    if up {
        return Decision::Do(Step::StandbyDown);
    }
    if ask.leaves_vf() {
        return wait_because(AttachmentState::FastPath, reasons::GUEST_KEEPS_VF, KEEPS_VF);
    }
    // On one PF with its standby again, it switches without a gap.
    if seen.home_vf && !ask.ordered && !guest.migrating && !learnt.keeps_vf {
        return Decision::Do(Step::UnplugVf);
    }
    match lost {
        Some(_) => wait_because(AttachmentState::FastPath, reasons::PF_LINK_DOWN, NO_LINK),
        None => Decision::Done(AttachmentState::FastPath),
    }
}

const DRAINED_ALONE: &str = "the NIC's VF is drained, the standby's PF has no link, and no other VF is free: the NIC stays on its VF until one of \
                             them is";

/// There is no VF, or it is gone.
fn without(seen: &Seen, up: bool, learnt: &Learnt) -> Decision {
    let (reason, message) = match (learnt.vf_failed, seen.standby_link) {
        (Some(reason), _) => (reason, VF_FAILED),
        (None, Some(false)) => (
            reasons::PF_LINK_DOWN,
            "no VF of the network is free on the node, and the standby's PF has no link",
        ),
        (None, _) => (
            reasons::NO_FREE_VF,
            "no VF of the network is free on the node; the standby carries the traffic",
        ),
    };
    degraded(seen, up, learnt, reason, message)
}

/// A VF is reserved, and not in the guest.
fn reserved(ask: &Ask, seen: &Seen, guest: Guest, up: bool, learnt: &Learnt, vf: VfThere) -> Decision {
    if ask.drained {
        let step = settle_on_standby(seen, up, learnt).or_else(|| give_back(ask, seen));
        return step.map_or_else(
            || wait_because(AttachmentState::Standby, reasons::PF_DRAINED, DRAINED),
            Decision::Do,
        );
    }
    // The standby comes before all that may take long.
    if let Some(step) = prepare(ask, seen, learnt) {
        return Decision::Do(settle_on_standby(seen, up, learnt).unwrap_or(step));
    }
    let useless = dark(vf) || learnt.vf_failed.is_some() && learnt.vf_failures >= TRIES;
    // A VF that somebody keeps cannot be exchanged: it is better to try it again.
    if (useless && seen.other_vf || seen.home_vf && !ask.ordered) && !vf.held {
        return Decision::Do(settle_on_standby(seen, up, learnt).unwrap_or(Step::RestoreVf));
    }
    if let Some((reason, message)) = obstacle(ask, guest, learnt, vf) {
        // First the traffic.
        let step = settle_on_standby(seen, up, learnt).or_else(|| port::leave(seen, learnt));
        return step.map_or_else(
            || wait_because(AttachmentState::Standby, reason, message),
            Decision::Do,
        );
    }
    let make_first = switch_order(ask, seen, learnt) == SwitchOrder::MakeBeforeBreak;
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
    Decision::Do(port::take(seen).unwrap_or(Step::PlugVf))
}

/// What stands against plugging the VF.
fn obstacle(ask: &Ask, guest: Guest, learnt: &Learnt, vf: VfThere) -> Option<(&'static str, &'static str)> {
    unfit(guest, learnt, vf)
        .or_else(|| unready(ask.pairing, guest))
        .or_else(|| learnt.ignores_vf.map(|sends| ignored(ask.pairing, sends)))
}

/// What prevents plugging the VF, no matter what else the guest has.
pub(super) fn unfit(guest: Guest, learnt: &Learnt, vf: VfThere) -> Option<(&'static str, &'static str)> {
    if let Some(reason) = learnt.vf_failed {
        return Some((reason, VF_FAILED));
    }
    if !vf.link {
        return Some((reasons::PF_LINK_DOWN, NO_LINK));
    }
    if vf.dark {
        return Some((
            reasons::PF_LINK_DOWN,
            "the link of the VF's PF has just come back; the VF is plugged when it stays",
        ));
    }
    if !guest.acpi {
        return Some((reasons::GUEST_NO_ACPI, NO_ACPI));
    }
    if guest.migrating {
        return Some((
            reasons::MIGRATING,
            "a migration is under way, and QEMU takes no VF before it is over",
        ));
    }
    None
}

/// Why the guest's side of the standby is not ready for a VF.
fn unready(pairing: Pairing, guest: Guest) -> Option<(&'static str, &'static str)> {
    match (pairing, guest.failover) {
        (Pairing::NetFailover, Some(false)) => Some((reasons::GUEST_NO_FAILOVER, NO_FAILOVER)),
        (Pairing::NetFailover, None) => Some((
            reasons::GUEST_NO_FAILOVER,
            "the guest's virtio-net driver has not started yet; the VF is plugged when it has",
        )),
        // One that still boots would meet the VF halfway.
        (Pairing::Bond, None) => Some((
            reasons::GUEST_NOT_BONDED,
            "the guest's virtio-net driver has not started yet; the VF is plugged when the guest sets the standby up",
        )),
        (Pairing::NetFailover, Some(true)) | (Pairing::Bond, Some(_)) => None,
    }
}

/// What is reported about a guest that does not use its VF as it should.
fn ignored(pairing: Pairing, sends: Sends) -> (&'static str, &'static str) {
    match (pairing, sends) {
        (Pairing::NetFailover, _) => (reasons::GUEST_IGNORES_VF, IGNORES_VF),
        (Pairing::Bond, Sends::BesideVf) => (reasons::GUEST_NOT_BONDED, NOT_BONDED),
        (Pairing::Bond, Sends::ByStandby) => (reasons::GUEST_IGNORES_VF, NOT_IN_BOND),
        (Pairing::Bond, Sends::ByNeither) => (reasons::GUEST_IGNORES_VF, NO_BOND),
    }
}

pub(super) const PORT_LOST: &str =
    "the switch has taken the port profile from the port of the VF that the guest has";

const NO_ACPI: &str =
    "the VM has no ACPI, and its guest would crash when the VF is plugged: start the VM with ACPI";

const DRAINED: &str = "the VF is drained, and goes back when the migration is over";

pub(super) const NO_LINK: &str = "the VF's PF has no link";

const IGNORES_VF: &str = "the guest did not use the VF: it needs the VF's driver, and net_failover must have joined it with \
                          the standby (the guest's kernel log says why not); tried again, later each time, and when the \
                          guest restarts";

const BOOTS_WITH_VF: &str = "the guest restarts with its VF, and its virtio-net driver has not started yet: the standby carries the traffic";

const NO_FAILOVER: &str = "the guest's virtio-net driver did not take the standby feature: it needs net_failover (Linux 4.18 and \
                           later); or, if it is no VM of KubeVirt's, make the NIC again with pairing: Bond, and a bond in the guest";

const NOT_BONDED: &str = "the guest goes on sending by its standby while the driver of its VF runs too, so they are two interfaces \
                          with one MAC: it needs a bond of mode active-backup with both in it and the VF as primary; the \
                          VF was taken out, and is tried again, later each time, and when the guest restarts";

const NOT_IN_BOND: &str = "the guest sent by its standby only, and its VF was still: the guest needs the VF's driver, and the VF must be in \
                           the bond, as its primary; tried again, later each time, and when the guest restarts";

const NO_BOND: &str = "the guest was seen to use neither VF nor standby: it needs the VF's driver, and a bond that is up, with both \
                       in it and the VF as primary; tried again, later each time, and when the guest restarts";
