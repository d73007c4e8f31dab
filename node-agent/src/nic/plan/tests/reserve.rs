//! A VF that is reserved for a VM whose pod has no link yet.

use super::*;

const RESERVE: Ask = ask(Goal::Reserved);

/// No QEMU has started in the pod.
const EMPTY: Seen = Seen {
    qemu: QemuSeen::Gone,
    ..FRESH
};

fn held(vf: VfThere) -> Seen {
    Seen {
        recorded: true,
        vf: Some(VfSeen::There(vf)),
        vf_offered: false,
        standby_recorded: true,
        ..EMPTY
    }
}

#[test]
fn a_vf_is_reserved_and_parked_and_nothing_of_the_standby_is_made() {
    let no = Learnt::default();
    let found = VfThere {
        on_vfio: false,
        mac: VfMac::Other,
        ..PARKED
    };
    does(RESERVE, EMPTY, no, Step::Reserve);
    does(RESERVE, held(found), no, Step::Bind);
    let on_vfio = VfThere {
        on_vfio: true,
        ..found
    };
    does(RESERVE, held(on_vfio), no, Step::Park);
    done(RESERVE, held(PARKED), no, Reserved);
    // The gate opens: the standby is next.
    let started = Seen {
        qemu: FRESH.qemu,
        ..held(PARKED)
    };
    does(TO_STANDBY, started, no, Step::MakeStandby);
    // Or nothing comes of it.
    does(OUT, held(PARKED), no, Step::RemoveStandby);
}

#[test]
fn a_nic_without_a_vf_is_reserved_where_it_may_run_on_its_standby() {
    let no = Learnt::default();
    let none = Seen {
        vf_offered: false,
        ..EMPTY
    };
    let with_pf = Seen {
        recorded: true,
        standby_recorded: true,
        ..none
    };
    let patient = Ask {
        no_free_vf: NoFreeVf::Wait,
        ..RESERVE
    };
    does(RESERVE, none, no, Step::Reserve);
    done(RESERVE, with_pf, no, Reserved);
    waits(patient, none, no, Pending, reasons::NO_FREE_VF);
    let failed = taught(|l| l.vf_failed = Some(reasons::VF_BIND_FAILED));
    done(RESERVE, held(PARKED), failed, Reserved);
    waits(patient, held(PARKED), failed, Pending, reasons::VF_BIND_FAILED);
}

#[test]
fn what_is_found_is_made_silent_first() {
    let no = Learnt::default();
    let up = Seen {
        macvtap: Some(true),
        ..held(PARKED)
    };
    does(RESERVE, up, no, Step::StandbyDown);
    does(RESERVE, held(READY), no, Step::Park);
    let unread = Seen {
        vf: Some(VfSeen::Unknown { other_pf: false }),
        ..held(PARKED)
    };
    waits(RESERVE, unread, no, Pending, reasons::VF_UNKNOWN);
}

#[test]
fn nothing_is_taken_from_a_guest_by_a_goal_that_came_too_late() {
    let no = Learnt::default();
    for (guest, vf) in [(GUEST, PARKED), (FAST, READY)] {
        waits(
            RESERVE,
            seen(guest, true, vf),
            no,
            Pending,
            reasons::TARGET_OCCUPIED,
        );
    }
    does(RESERVE, seen(GUEST, true, READY), no, Step::Park);
    let silent = Seen {
        qemu: QemuSeen::Unreachable,
        ..seen(FAST, true, READY)
    };
    waits(RESERVE, silent, no, Pending, reasons::QMP_UNAVAILABLE);
}
