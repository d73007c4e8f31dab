//! What comes next if a VF is gone, or nothing is known about it.

use super::*;

#[test]
fn a_vf_that_is_gone_is_taken_from_the_guest_and_then_forgotten() {
    let no = Learnt::default();
    let gone = |guest, up| Seen {
        vf: Some(VfSeen::Gone),
        vf_offered: true,
        ..seen(guest, up, READY)
    };
    does(TO_STANDBY, gone(FAST, false), no, Step::StandbyUp);
    for ask in [TO_VF, TO_STANDBY] {
        // QEMU still has it; no other is taken before.
        does(ask, gone(FAST, true), no, Step::UnplugVf);
        does(ask, gone(GUEST, true), no, Step::DropVf);
        let dropped = Seen {
            vf: None,
            ..gone(GUEST, true)
        };
        does(ask, dropped, no, Step::Reserve);
    }
    does(TO_VF, gone(FAST, false), no, Step::UnplugVf);
    let keeps = taught(|l| l.keeps_vf = true);
    for vf in [Some(VfSeen::Gone), None] {
        let kept = |up| Seen { vf, ..gone(FAST, up) };
        let unused = |up| Seen {
            qemu: QemuSeen::Up(Guest {
                uses_vf: false,
                ..FAST
            }),
            ..kept(up)
        };
        does(TO_VF, unused(false), keeps, Step::StandbyUp);
        waits(TO_VF, unused(true), keeps, Standby, reasons::GUEST_IGNORES_VF);
    }
    waits(
        TO_STANDBY,
        gone(FAST, true),
        keeps,
        FastPath,
        reasons::GUEST_KEEPS_VF,
    );
}

const SAME_PF: VfSeen = VfSeen::Unknown { other_pf: false };
const OTHER_PF: VfSeen = VfSeen::Unknown { other_pf: true };

#[test]
fn a_vf_of_which_nothing_is_known_is_left_as_it_is() {
    let no = Learnt::default();
    let unread = |guest, up, vf| Seen {
        vf: Some(vf),
        other_vf: true,
        ..seen(guest, up, READY)
    };
    for ask in [TO_VF, TO_STANDBY] {
        for vf in [SAME_PF, OTHER_PF] {
            // It may carry the traffic: nothing is unplugged.
            waits(ask, unread(FAST, false, vf), no, FastPath, reasons::VF_UNKNOWN);
            waits(
                ask,
                Seen {
                    standby_recorded: false,
                    ..unread(GUEST, false, vf)
                },
                no,
                Pending,
                reasons::VF_UNKNOWN,
            );
        }
    }
    // It may have the MAC: on the standby's own PF that is no second owner, on another it would be.
    does(TO_VF, unread(GUEST, false, SAME_PF), no, Step::StandbyUp);
    let announce = taught(|l| l.announce = true);
    does(TO_VF, unread(GUEST, true, SAME_PF), announce, Step::Announce);
    waits(
        TO_VF,
        unread(GUEST, true, SAME_PF),
        no,
        Standby,
        reasons::VF_UNKNOWN,
    );
    waits(
        TO_VF,
        unread(GUEST, false, OTHER_PF),
        no,
        Pending,
        reasons::VF_UNKNOWN,
    );
    // Nor may its VM go elsewhere.
    waits(
        TO_STANDBY,
        unread(GUEST, true, SAME_PF),
        no,
        Pending,
        reasons::VF_UNKNOWN,
    );
    let booting = Guest {
        uses_vf: false,
        ..FAST
    };
    does(TO_VF, unread(booting, false, SAME_PF), no, Step::StandbyUp);
    waits(
        TO_VF,
        unread(booting, false, OTHER_PF),
        no,
        Pending,
        reasons::VF_UNKNOWN,
    );
    let once = taught(|l| l.refuses_twice = true);
    waits(
        TO_VF,
        unread(booting, false, SAME_PF),
        once,
        Pending,
        reasons::VF_UNKNOWN,
    );
    // At a migration's target it is not ready.
    let incoming = Guest {
        run: Run::Incoming,
        failover: None,
        ..GUEST
    };
    waits(
        TO_VF,
        unread(incoming, false, SAME_PF),
        no,
        Pending,
        reasons::VF_UNKNOWN,
    );
    // On the way out the guest is asked as ever, and the VF waits to be given back.
    does(OUT, unread(FAST, false, SAME_PF), no, Step::UnplugVf);
    does(OUT, unread(GUEST, false, SAME_PF), no, Step::UnplugStandby);
    let bare = Guest {
        standby: false,
        ..GUEST
    };
    let removed = Seen {
        macvtap: None,
        standby_recorded: false,
        ..unread(bare, false, SAME_PF)
    };
    waits(OUT, removed, no, Standby, reasons::VF_UNKNOWN);
}
