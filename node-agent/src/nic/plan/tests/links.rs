//! What comes next where a PF has no link.

use super::*;

const NO_LINK: VfThere = VfThere { link: false, ..READY };
const DARK: VfThere = VfThere {
    dark: true,
    ..NO_LINK
};

fn parked(vf: VfThere) -> VfThere {
    VfThere {
        mac: VfMac::Parking,
        settings_ok: false,
        ..vf
    }
}

#[test]
fn a_lost_link_is_told_and_left_only_for_one_that_is_there() {
    let (no, keeps) = (Learnt::default(), taught(|l| l.keeps_vf = true));
    // At once, and while there is nowhere to go.
    for vf in [NO_LINK, DARK] {
        waits(TO_VF, seen(FAST, false, vf), no, FastPath, reasons::PF_LINK_DOWN);
        waits(
            TO_VF,
            seen(FAST, false, vf),
            keeps,
            FastPath,
            reasons::PF_LINK_DOWN,
        );
    }
    let better = |guest, up, vf| Seen {
        other_vf: true,
        standby_link: Some(false),
        ..seen(guest, up, vf)
    };
    waits(
        TO_VF,
        better(FAST, false, NO_LINK),
        no,
        FastPath,
        reasons::PF_LINK_DOWN,
    );
    waits(
        TO_VF,
        better(FAST, false, DARK),
        keeps,
        FastPath,
        reasons::PF_LINK_DOWN,
    );
    // The VF is parked before the standby is up, and has gone back before another is taken.
    does(TO_VF, better(FAST, false, DARK), no, Step::UnplugVf);
    does(TO_VF, better(GUEST, false, DARK), no, Step::Park);
    does(TO_VF, better(GUEST, false, parked(DARK)), no, Step::StandbyUp);
    does(TO_VF, better(GUEST, true, parked(DARK)), no, Step::RestoreVf);
    // A link that came back in the meantime is kept.
    let back = VfThere { link: true, ..DARK };
    done(TO_VF, better(FAST, false, back), no, FastPath);
    // It is not gone back to before it has stayed.
    waits(
        TO_VF,
        better(GUEST, true, parked(back)),
        no,
        Standby,
        reasons::PF_LINK_DOWN,
    );
    // A migration takes no notice.
    does(TO_STANDBY, better(FAST, false, DARK), no, Step::StandbyUp);
    done(TO_STANDBY, better(GUEST, true, parked(DARK)), no, Standby);
}

#[test]
fn a_nic_on_two_pfs_leaves_the_vf_whose_pf_has_lost_its_link() {
    let no = Learnt::default();
    let split = |vf| VfThere { other_pf: true, ..vf };
    waits(
        TO_VF,
        seen(FAST, false, split(NO_LINK)),
        no,
        FastPath,
        reasons::PF_LINK_DOWN,
    );
    does(TO_VF, seen(FAST, false, split(DARK)), no, Step::UnplugVf);
    does(TO_VF, seen(GUEST, false, split(DARK)), no, Step::Park);
    does(
        TO_VF,
        seen(GUEST, false, split(parked(DARK))),
        no,
        Step::StandbyUp,
    );
    waits(
        TO_VF,
        seen(GUEST, true, split(parked(DARK))),
        no,
        Standby,
        reasons::PF_LINK_DOWN,
    );
    // Unless the standby has no link either, or it is not known.
    for standby_link in [Some(false), None] {
        let nowhere = Seen {
            standby_link,
            ..seen(FAST, false, split(DARK))
        };
        waits(TO_VF, nowhere, no, FastPath, reasons::PF_LINK_DOWN);
    }
}

#[test]
fn a_nic_that_is_not_in_the_guest_yet_leaves_a_dark_pf_with_both() {
    let no = Learnt::default();
    let bare = Guest {
        standby: false,
        ..GUEST
    };
    let dark = Seen {
        other_vf: true,
        standby_link: Some(false),
        ..seen(bare, false, parked(DARK))
    };
    does(TO_VF, dark, no, Step::RemoveStandby);
    let removed = Seen {
        standby_recorded: false,
        macvtap: None,
        ..dark
    };
    does(TO_VF, removed, no, Step::RestoreVf);
    let nowhere = Seen {
        other_vf: false,
        ..dark
    };
    does(TO_VF, nowhere, no, Step::PlugStandby);
}

#[test]
fn a_standby_that_is_not_in_the_guest_yet_goes_to_the_pf_of_a_vf_that_came_later() {
    let no = Learnt::default();
    let bare = Guest {
        standby: false,
        ..GUEST
    };
    let later = VfThere {
        other_pf: true,
        ..parked(READY)
    };
    let split = seen(bare, false, later);
    does(TO_VF, split, no, Step::MoveStandby);
    // It keeps its VF: what is given back may be another NIC's in the next moment.
    let moved = Seen {
        macvtap: None,
        ..seen(bare, false, parked(READY))
    };
    does(TO_VF, moved, no, Step::MakeStandby);
    // A PF without a link is no better, a macvtap with a foreign MAC stays shut, and one in the guest is not moved.
    let unlinked = VfThere { link: false, ..later };
    does(TO_VF, seen(bare, false, unlinked), no, Step::PlugStandby);
    let seized = Seen {
        seized: true,
        ..split
    };
    waits(TO_VF, seized, no, Pending, reasons::STANDBY_SEIZED);
    does(TO_VF, seen(GUEST, false, later), no, Step::ConfigureVf);
}

#[test]
fn a_standby_whose_pf_has_left_the_machine_is_made_on_another() {
    let no = Learnt::default();
    let bare = Guest {
        standby: false,
        ..GUEST
    };
    let gone = |guest| Seen {
        vf: None,
        macvtap: None,
        standby_link: None,
        standby_pf_gone: true,
        ..seen(guest, false, PARKED)
    };
    does(TO_VF, gone(GUEST), no, Step::UnplugStandby);
    does(TO_VF, gone(bare), no, Step::RemoveStandby);
    let elsewhere = Seen {
        standby_recorded: false,
        standby_pf_gone: false,
        ..gone(bare)
    };
    does(TO_VF, elsewhere, no, Step::Reserve);
    // A PF that only has no interface now comes back.
    let away = Seen {
        standby_pf_gone: false,
        ..gone(bare)
    };
    does(TO_VF, away, no, Step::MakeStandby);
    let nowhere = Seen {
        uplink: false,
        ..gone(bare)
    };
    does(TO_VF, nowhere, no, Step::MakeStandby);
}
