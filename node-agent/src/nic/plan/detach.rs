//! The way out: everything is taken from the guest and given back.

use hybridnic_api::{conditions::reasons, v1alpha1::AttachmentState};

use super::{Ask, Decision, FLOOD, KEEPS_VF, Learnt, Step, UNKNOWN, has_nic_mac, wait_because};
use crate::{
    machine::Owner,
    nic::seen::{Guest, QemuSeen, Run, Seen, VfSeen},
};

/// The next step out.
pub(super) fn next(ask: &Ask, seen: &Seen, learnt: &Learnt) -> Decision {
    // A NIC without a standby whose VF is out has no record, and its VM may be the only thing that is left to do.
    let minds = seen.recorded || ask.is_alone() && ask.ordered;
    let held = if minds || matches!(seen.qemu, QemuSeen::Up(guest) if concerns(ask, guest)) {
        ask.off_vf()
    } else {
        AttachmentState::Detached
    };
    match seen.qemu {
        QemuSeen::Unreachable if minds => {
            return wait_because(
                held,
                reasons::QMP_UNAVAILABLE,
                "the VM's QEMU does not answer; nothing is taken from it",
            );
        }
        QemuSeen::Flooding if minds => return wait_because(held, reasons::QMP_FLOOD, FLOOD),
        QemuSeen::Untrusted(offence) if minds => {
            let message = format!("{offence}; nothing is taken from a QEMU that may live");
            return wait_because(held, reasons::QMP_UNTRUSTED, message);
        }
        // A VF that was taken with the NIC's MAC on it: the standby may stay for long, and has it too.
        QemuSeen::Up(guest) if guest.standby && !guest.vf && has_nic_mac(seen) => {
            return Decision::Do(Step::Park);
        }
        QemuSeen::Up(guest) if ask.is_alone() && !guest.vf && has_nic_mac(seen) && !learnt.not_parked => {
            return Decision::Do(Step::Park);
        }
        QemuSeen::Up(guest) if guest.vf || guest.standby || concerns(ask, guest) => {
            match guest.run {
                Run::Here if ask.expected => {
                    return wait_because(
                        held,
                        reasons::MIGRATING,
                        "the VM has arrived here; nothing is taken from it",
                    );
                }
                // Our devices in a guest that is not ours are removed as from any other.
                Run::Here | Run::Occupied => {}
                Run::Incoming | Run::HandedOver if !ask.ends_qemu() => {
                    return wait_because(
                        held,
                        reasons::WAITING_FOR_RUNTIME,
                        "the VM does not run in this QEMU; what runs the VM ends it",
                    );
                }
                // It will never run the VM again, and a guest that does not run releases nothing.
                Run::Incoming | Run::HandedOver => return Decision::Do(Step::QuitQemu),
                Run::Starting => {
                    return wait_because(
                        held,
                        reasons::MIGRATING,
                        "the VM is being started here; nothing is taken from it",
                    );
                }
                Run::HandingOver => {
                    return wait_because(
                        held,
                        reasons::MIGRATING,
                        "the VM is being handed over; nothing is taken from it",
                    );
                }
            }
            if guest.vf {
                return if learnt.keeps_vf {
                    wait_because(AttachmentState::FastPath, reasons::GUEST_KEEPS_VF, KEEPS_VF)
                } else {
                    Decision::Do(Step::UnplugVf)
                };
            }
            if ask.duties.standby == Owner::Runtime {
                return runtimes_standby(seen, held);
            }
            if guest.standby {
                return if learnt.keeps_standby {
                    wait_because(
                        held,
                        reasons::GUEST_KEEPS_VF,
                        "the guest does not let go of its standby device",
                    )
                } else {
                    Decision::Do(Step::UnplugStandby)
                };
            }
        }
        _ => {}
    }
    if seen.standby_recorded || seen.macvtap.is_some() {
        Decision::Do(Step::RemoveStandby)
    } else {
        match seen.vf {
            Some(VfSeen::There(_)) => Decision::Do(Step::RestoreVf),
            Some(VfSeen::Gone) => Decision::Do(Step::DropVf),
            Some(VfSeen::Unknown { .. }) => wait_because(held, reasons::VF_UNKNOWN, UNKNOWN),
            None if seen.recorded => Decision::Do(Step::Forget),
            None => Decision::Done(AttachmentState::Detached),
        }
    }
}

/// Whether what QEMU does matters to a NIC that has nothing in the guest: one without a standby, whose VF is out. Its VM may have no other
/// NIC that would keep it, or end its QEMU.
fn concerns(ask: &Ask, guest: Guest) -> bool {
    ask.is_alone()
        && match guest.run {
            Run::Here => ask.expected,
            Run::Incoming | Run::HandedOver => ask.ends_qemu(),
            Run::Starting | Run::HandingOver => true,
            Run::Occupied => false,
        }
}

/// The VF is not in the guest, and is given back. The standby stays there for as long as the VM is in this QEMU.
fn runtimes_standby(seen: &Seen, held: AttachmentState) -> Decision {
    match seen.vf {
        Some(VfSeen::There(_)) => Decision::Do(Step::RestoreVf),
        Some(VfSeen::Gone) => Decision::Do(Step::DropVf),
        Some(VfSeen::Unknown { .. }) => wait_because(held, reasons::VF_UNKNOWN, UNKNOWN),
        None => wait_because(
            held,
            reasons::WAITING_FOR_RUNTIME,
            "the standby stays in the guest for as long as the VM is in this pod",
        ),
    }
}
