//! A network with a port profile: when the switch is asked for what.

use super::*;

fn with(port: Port, vf: VfThere) -> VfThere {
    VfThere { port, ..vf }
}

fn failed() -> Learnt {
    taught(|l| l.vf_failed = Some(reasons::PORT_PROFILE_REFUSED))
}

#[test]
fn a_port_has_its_profile_before_the_vf_is_plugged() {
    let no = Learnt::default();
    for port in [Port::Free, Port::Preassociated, Port::Unsettled] {
        // The MAC first: it is what the switch learns.
        does(
            TO_VF,
            seen(GUEST, true, with(port, PARKED)),
            no,
            Step::ConfigureVf,
        );
        does(TO_VF, seen(GUEST, true, with(port, READY)), no, Step::Associate);
        // One that the switch has forgotten.
        does(TO_VF, seen(FAST, false, with(port, READY)), no, Step::Associate);
        let lost = seen(FAST, false, with(port, READY));
        // Without its port it carries nothing: the standby does, unless the guest keeps its VF.
        does(TO_VF, lost, failed(), Step::StandbyUp);
        does(
            TO_VF,
            seen(FAST, true, with(port, READY)),
            failed(),
            Step::UnplugVf,
        );
        let keeps = Learnt {
            keeps_vf: true,
            ..failed()
        };
        waits(TO_VF, lost, keeps, FastPath, reasons::PORT_PROFILE_REFUSED);
    }
    let associated = with(Port::Associated, READY);
    does(TO_VF, seen(GUEST, true, associated), no, Step::PlugVf);
    done(TO_VF, seen(FAST, false, associated), no, FastPath);
}

#[test]
fn a_port_is_kept_for_a_vm_that_comes() {
    let no = Learnt::default();
    let waiting = Guest {
        run: Run::Incoming,
        failover: None,
        ..GUEST
    };
    let kept = with(Port::Preassociated, PARKED);
    for port in [Port::Free, Port::Associated, Port::Unsettled] {
        let vf = with(port, PARKED);
        does(TO_VF, seen(waiting, false, vf), no, Step::Preassociate);
        done(TO_VF, seen(waiting, false, vf), failed(), Reserved);
        let patient = Ask {
            no_free_vf: NoFreeVf::Wait,
            ..TO_VF
        };
        waits(
            patient,
            seen(waiting, false, vf),
            failed(),
            Pending,
            reasons::PORT_PROFILE_REFUSED,
        );
        let before = Seen {
            qemu: QemuSeen::Gone,
            macvtap: None,
            ..seen(GUEST, false, vf)
        };
        does(ask(Goal::Reserved), before, no, Step::Preassociate);
        done(ask(Goal::Reserved), before, failed(), Reserved);
    }
    done(TO_VF, seen(waiting, false, kept), no, Reserved);
    // The VM has just come, and its goal follows.
    done(TO_STANDBY, seen(GUEST, true, kept), no, Standby);
}

#[test]
fn a_port_loses_its_profile_once_the_standby_carries_the_traffic() {
    let (no, announce) = (Learnt::default(), taught(|l| l.announce = true));
    let left = |port, mac| with(port, VfThere { mac, ..PARKED });
    for port in [Port::Associated, Port::Unsettled] {
        does(
            TO_STANDBY,
            seen(FAST, true, with(port, READY)),
            no,
            Step::UnplugVf,
        );
        does(
            TO_STANDBY,
            seen(GUEST, true, left(port, VfMac::Nic)),
            announce,
            Step::Park,
        );
        does(
            TO_STANDBY,
            seen(GUEST, false, left(port, VfMac::Parking)),
            announce,
            Step::StandbyUp,
        );
        does(
            TO_STANDBY,
            seen(GUEST, true, left(port, VfMac::Parking)),
            announce,
            Step::Announce,
        );
        let rests = seen(GUEST, true, left(port, VfMac::Parking));
        does(TO_STANDBY, rests, no, Step::Disassociate);
        // A migration does not wait for the switch; a NIC that is told to stay here reports it.
        let migrates = Ask {
            ordered: true,
            ..TO_STANDBY
        };
        done(migrates, rests, no, Standby);
        done(migrates, rests, failed(), Standby);
        waits(
            TO_STANDBY,
            rests,
            failed(),
            Standby,
            reasons::PORT_PROFILE_REFUSED,
        );
        // Nor is it kept for a guest that does not use its VF.
        let ignores = taught(|l| l.ignores_vf = Some(Sends::ByStandby));
        does(TO_VF, rests, ignores, Step::Disassociate);
    }
    done(
        TO_STANDBY,
        seen(GUEST, true, with(Port::Free, PARKED)),
        no,
        Standby,
    );
}

#[test]
fn a_vf_whose_port_is_refused_leaves_the_traffic_to_the_standby() {
    let free = with(Port::Free, READY);
    does(TO_VF, seen(GUEST, true, free), failed(), Step::Park);
    let parked = with(Port::Free, PARKED);
    waits(
        TO_VF,
        seen(GUEST, true, parked),
        failed(),
        Standby,
        reasons::PORT_PROFILE_REFUSED,
    );
    let thrice = Learnt {
        vf_failures: TRIES,
        ..failed()
    };
    let other = Seen {
        other_vf: true,
        ..seen(GUEST, true, parked)
    };
    does(TO_VF, other, thrice, Step::RestoreVf);
}

#[test]
fn without_a_profile_nothing_is_asked() {
    let no = Learnt::default();
    does(TO_VF, seen(GUEST, true, READY), no, Step::PlugVf);
    done(TO_STANDBY, seen(GUEST, true, PARKED), no, Standby);
}
