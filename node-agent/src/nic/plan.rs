//! The attachment state machine: from a goal and what is observed to the next step. Pure.
//!
//! ```text
//!   Reserve ─ Bind ─ Park ─ MakeStandby ─ PlugStandby ──► Reserved
//!   Reserved ─ StandbyUp ─ Announce ──► Standby
//!   Standby ─ ConfigureVf ─ PlugVf ─ AwaitGuest ─ StandbyDown ──► FastPath       (make before break)
//!   Standby ─ StandbyDown ─ ConfigureVf ─ PlugVf ─ AwaitGuest ──► FastPath       (break before make)
//!   FastPath ─ StandbyUp ─ UnplugVf ─ Park ─ Announce ──► Standby               (make before break)
//!   FastPath ─ UnplugVf ─ Park ─ StandbyUp ─ Announce ──► Standby               (break before make)
//!   any ─ UnplugVf ─ UnplugStandby ─ RemoveStandby ─ RestoreVf ─ Forget ──► Detached
//! ```
//! The plan knows no history: after a crash it goes on from what it sees.

use super::seen::{Guest, QemuSeen, Run, Seen, VfMac, VfSeen};
use hybridnic_api::{
    conditions::reasons,
    v1alpha1::{AttachmentState, Goal, NoFreeVf, SwitchOrder},
};

/// One reversible step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Take a free VF, or a PF for the standby alone.
    Reserve,
    /// Give the VF to vfio-pci.
    Bind,
    /// Give the VF its parking MAC, no VLAN and its saved settings.
    Park,
    /// Forget a VF that has gone away.
    DropVf,
    /// Make the macvtap, down, and its VLAN device.
    MakeStandby,
    /// Plug the standby into the guest.
    PlugStandby,
    /// Macvtap up: the standby receives.
    StandbyUp,
    /// Macvtap down: the standby receives no more.
    StandbyDown,
    /// Give the VF the network's settings and, last, the NIC's MAC.
    ConfigureVf,
    /// Plug the VF into the guest.
    PlugVf,
    /// Wait until the guest uses the VF.
    AwaitGuest,
    /// Unplug the VF and wait until the guest has let go.
    UnplugVf,
    /// Tell the switches where the MAC is now.
    Announce,
    /// Unplug the standby from the guest.
    UnplugStandby,
    /// Delete the macvtap, and its VLAN device if nothing else uses it.
    RemoveStandby,
    /// Give the VF back as it was.
    RestoreVf,
    /// End a QEMU that will never run the VM.
    QuitQemu,
    /// Remove the journal's record: nothing is held any more.
    Forget,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Take this step, then observe anew.
    Do(Step),
    /// The goal is reached, as far as it can be for now.
    Done(AttachmentState),
    /// The goal is not reached, and nothing can be done until something changes.
    Wait(Wait),
}

/// Why nothing can be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Where the NIC is meanwhile.
    pub state: AttachmentState,
    /// One of [`reasons`].
    pub reason: &'static str,
    /// A sentence for a person.
    pub message: String,
}

/// What earlier steps have taught, and is forgotten when the goal changes or the VM does something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Learnt {
    /// The guest did not let go of the VF in time.
    pub keeps_vf: bool,
    /// The guest did not let go of the standby in time.
    pub keeps_standby: bool,
    /// The guest did not use the VF in time.
    pub ignores_vf: bool,
    /// The VF could not be set up or plugged; one of [`reasons`]. Tried again after a pause.
    pub vf_failed: Option<&'static str>,
    /// The driver refused one MAC twice.
    pub refuses_twice: bool,
    /// The standby has taken over, and the switches have not been told.
    pub announce: bool,
    /// The guest was seen to have moved its traffic to the VF.
    pub moved: bool,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Where the NIC should be.
    pub goal: Goal,
    /// What to do without a VF.
    pub no_free_vf: NoFreeVf,
    /// The driver's order.
    pub order: SwitchOrder,
    /// Whether the VM is, or was, expected here by a migration. It may have come while that was called off: then
    /// it runs here and nowhere else, and keeps its NICs until the operator has seen it.
    pub expected: bool,
}

/// The order in which VF and standby are switched.
pub fn order(ask: &Ask, seen: &Seen, learnt: &Learnt) -> SwitchOrder {
    let other_pf = matches!(seen.vf, Some(Some(VfSeen { other_pf: true, .. })));
    if other_pf || learnt.refuses_twice {
        SwitchOrder::BreakBeforeMake
    } else {
        ask.order
    }
}

/// The next step.
pub fn next(ask: &Ask, seen: &Seen, learnt: &Learnt) -> Decision {
    match ask.goal {
        Goal::Detached => detach(ask, seen, learnt),
        goal => attach(goal, ask, seen, learnt),
    }
}

fn wait(state: AttachmentState, reason: &'static str, message: impl Into<String>) -> Decision {
    Decision::Wait(Wait {
        state,
        reason,
        message: message.into(),
    })
}

fn detach(ask: &Ask, seen: &Seen, learnt: &Learnt) -> Decision {
    let held = if seen.recorded {
        AttachmentState::Standby
    } else {
        AttachmentState::Detached
    };
    match seen.qemu {
        QemuSeen::Unreachable if seen.recorded => {
            return wait(
                held,
                reasons::QMP_UNAVAILABLE,
                "the VM's QEMU does not answer; nothing is taken from it",
            );
        }
        // A VF that was taken with the NIC's MAC on it: the standby may stay for long, and has it too.
        QemuSeen::Up(guest) if guest.standby && !guest.vf && has_nic_mac(seen) => {
            return Decision::Do(Step::Park);
        }
        QemuSeen::Up(guest) if guest.vf || guest.standby => {
            match guest.run {
                Run::Here if ask.expected => {
                    return wait(
                        held,
                        reasons::MIGRATING,
                        "the VM has arrived here; nothing is taken from it",
                    );
                }
                Run::Here => {}
                // It will never run the VM again, and a guest that does not run lets go of nothing.
                Run::Incoming | Run::HandedOver => return Decision::Do(Step::QuitQemu),
                Run::HandingOver => {
                    return wait(
                        held,
                        reasons::MIGRATING,
                        "the VM is being handed over; nothing is taken from it",
                    );
                }
            }
            if guest.vf {
                return if learnt.keeps_vf {
                    wait(AttachmentState::FastPath, reasons::GUEST_KEEPS_VF, KEEPS_VF)
                } else {
                    Decision::Do(Step::UnplugVf)
                };
            }
            return if learnt.keeps_standby {
                wait(
                    held,
                    reasons::GUEST_KEEPS_VF,
                    "the guest does not let go of its standby device",
                )
            } else {
                Decision::Do(Step::UnplugStandby)
            };
        }
        _ => {}
    }
    if seen.standby_recorded || seen.macvtap.is_some() {
        Decision::Do(Step::RemoveStandby)
    } else if seen.vf.is_some() {
        Decision::Do(Step::RestoreVf)
    } else if seen.recorded {
        Decision::Do(Step::Forget)
    } else {
        Decision::Done(AttachmentState::Detached)
    }
}

const KEEPS_VF: &str = "the guest did not let go of the VF in time: it needs a PCI hot-plug driver (acpiphp or pciehp) \
                        and must not be paused; the VF stays";

fn attach(goal: Goal, ask: &Ask, seen: &Seen, learnt: &Learnt) -> Decision {
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
        Run::Here => {}
        // Silent until RESUME, and from pre-switchover on.
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
        Goal::FastPath => fast_path(ask, seen, guest, up, learnt),
        Goal::Detached => detach(ask, seen, learnt),
    }
}

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

fn has_nic_mac(seen: &Seen) -> bool {
    matches!(seen.vf, Some(Some(VfSeen { mac: VfMac::Nic, .. })))
}

fn is_parked(seen: &Seen) -> bool {
    matches!(
        seen.vf,
        Some(Some(VfSeen {
            mac: VfMac::Parking,
            ..
        }))
    )
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
fn settle_on_standby(seen: &Seen, up: bool, learnt: &Learnt) -> Option<Step> {
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

fn fast_path(ask: &Ask, seen: &Seen, guest: Guest, up: bool, learnt: &Learnt) -> Decision {
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

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
