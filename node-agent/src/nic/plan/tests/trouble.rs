//! What comes next where something is missing, or does not do its part.

use super::*;

#[test]
fn a_guest_that_keeps_its_vf_keeps_its_network() {
    let keeps = taught(|l| l.keeps_vf = true);
    does(TO_STANDBY, seen(FAST, true, READY), keeps, Step::StandbyDown);
    waits(
        TO_STANDBY,
        seen(FAST, false, READY),
        keeps,
        FastPath,
        reasons::GUEST_KEEPS_VF,
    );
    // It keeps one that it does not use: the standby is all it has.
    let blind = Guest {
        uses_vf: false,
        ..FAST
    };
    let ignores = taught(|l| (l.keeps_vf, l.ignores_vf) = (true, true));
    for (goal, learnt) in [(Goal::Standby, keeps), (Goal::FastPath, ignores)] {
        for order in [SwitchOrder::MakeBeforeBreak, SwitchOrder::BreakBeforeMake] {
            let ask = Ask { order, ..ask(goal) };
            does(ask, seen(blind, false, READY), learnt, Step::Park);
            does(ask, seen(blind, false, PARKED), learnt, Step::StandbyUp);
            // Its driver starts in this moment: on a VF that has another MAC by now.
            does(ask, seen(FAST, false, PARKED), learnt, Step::StandbyUp);
        }
    }
    waits(
        TO_VF,
        seen(blind, true, PARKED),
        ignores,
        Standby,
        reasons::GUEST_IGNORES_VF,
    );
    waits(
        TO_STANDBY,
        seen(blind, true, PARKED),
        keeps,
        FastPath,
        reasons::GUEST_KEEPS_VF,
    );
    // And when it wakes up, it gets the VF anew: it has met it under another MAC.
    does(
        TO_VF,
        seen(blind, true, PARKED),
        Learnt::default(),
        Step::UnplugVf,
    );
}

#[test]
fn a_guest_that_restarts_has_its_standby_until_it_has_its_vf_again() {
    let booting = Guest {
        uses_vf: false,
        ..FAST
    };
    let no = Learnt::default();
    does(TO_VF, seen(booting, false, READY), no, Step::StandbyUp);
    does(TO_VF, seen(booting, true, READY), no, Step::AwaitGuest);
    // Such a driver has no MAC left for the standby.
    let once = taught(|l| l.refuses_twice = true);
    does(TO_VF, seen(booting, false, READY), once, Step::AwaitGuest);
}

#[test]
fn a_vf_that_was_found_with_the_mac_gives_it_up_before_a_standby_can_be_kept() {
    let found = VfSeen {
        on_vfio: false,
        other_pf: true,
        ..READY
    };
    let keeps = taught(|l| l.keeps_standby = true);
    does(OUT, seen(GUEST, true, found), keeps, Step::Park);
    let arrived = Ask {
        expected: true,
        ..OUT
    };
    does(arrived, seen(GUEST, true, found), Learnt::default(), Step::Park);
}

#[test]
fn without_a_free_vf_the_nic_runs_on_its_standby_or_waits() {
    let (none, no) = (
        Seen {
            vf_offered: false,
            ..FRESH
        },
        Learnt::default(),
    );
    let waiting = Ask {
        no_free_vf: NoFreeVf::Wait,
        ..TO_VF
    };
    waits(waiting, none, no, Pending, reasons::NO_FREE_VF);
    does(TO_VF, none, no, Step::Reserve);
    waits(
        TO_VF,
        Seen {
            uplink: false,
            ..none
        },
        no,
        Pending,
        reasons::NO_UPLINK,
    );
    let alone = Seen {
        vf: None,
        ..seen(GUEST, false, PARKED)
    };
    does(TO_VF, alone, no, Step::StandbyUp);
    waits(
        TO_VF,
        Seen {
            macvtap: Some(true),
            ..alone
        },
        no,
        Standby,
        reasons::NO_FREE_VF,
    );
    // One that is on its standby already stays there, whatever it was told for the start.
    waits(
        waiting,
        Seen {
            macvtap: Some(true),
            ..alone
        },
        no,
        Standby,
        reasons::NO_FREE_VF,
    );
    done(
        TO_STANDBY,
        Seen {
            macvtap: Some(true),
            ..alone
        },
        no,
        Standby,
    );
    // A late VF.
    does(
        TO_VF,
        Seen {
            macvtap: Some(true),
            vf_offered: true,
            ..alone
        },
        no,
        Step::Reserve,
    );
}

#[test]
fn a_vf_that_is_gone_is_taken_from_the_guest_and_then_forgotten() {
    let no = Learnt::default();
    let gone = |guest, up| Seen {
        vf: Some(VfSight::Gone),
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
    for vf in [Some(VfSight::Gone), None] {
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

const SAME_PF: VfSight = VfSight::Unknown { other_pf: false };
const OTHER_PF: VfSight = VfSight::Unknown { other_pf: true };

#[test]
fn a_vf_of_which_nothing_is_known_is_left_as_it_is() {
    let no = Learnt::default();
    let unread = |guest, up, vf| Seen {
        vf: Some(vf),
        other_vf: true,
        ..seen(guest, up, READY)
    };
    for ask in [TO_VF, TO_STANDBY, TO_RESERVED] {
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

#[test]
fn a_vf_that_its_drivers_do_not_give_leaves_the_nic_its_standby() {
    let found = VfSeen {
        on_vfio: false,
        mac: VfMac::Other,
        ..PARKED
    };
    let bind = taught(|l| (l.vf_failed, l.vf_failures) = (Some(reasons::VF_BIND_FAILED), 1));
    let held = Seen {
        recorded: true,
        vf: Some(VfSight::There(found)),
        standby_recorded: true,
        ..FRESH
    };
    does(TO_VF, held, bind, Step::MakeStandby);
    does(
        TO_VF,
        Seen {
            macvtap: Some(false),
            ..held
        },
        bind,
        Step::PlugStandby,
    );
    for ask in [TO_VF, BROKEN_FIRST] {
        does(ask, seen(GUEST, false, found), bind, Step::StandbyUp);
        waits(
            ask,
            seen(GUEST, true, found),
            bind,
            Standby,
            reasons::VF_BIND_FAILED,
        );
    }
    done(TO_STANDBY, seen(GUEST, true, found), bind, Standby);
    // A target without a VF is as good as its NIC says.
    let incoming = Guest {
        run: Run::Incoming,
        failover: None,
        ..GUEST
    };
    let waiting = Ask {
        no_free_vf: NoFreeVf::Wait,
        ..TO_VF
    };
    done(TO_VF, seen(incoming, false, found), bind, Reserved);
    waits(
        waiting,
        seen(incoming, false, found),
        bind,
        Pending,
        reasons::VF_BIND_FAILED,
    );
    // A VF that none could be reserved of.
    let none = Seen {
        vf: None,
        vf_offered: true,
        ..seen(GUEST, true, PARKED)
    };
    waits(TO_VF, none, bind, Standby, reasons::VF_BIND_FAILED);
    does(TO_VF, FRESH, bind, Step::Reserve);
}

#[test]
fn a_vf_that_fails_again_and_again_is_given_back_for_another() {
    let failed = |n| taught(|l| (l.vf_failed, l.vf_failures) = (Some(reasons::VF_SETTING_REFUSED), n));
    let another = |vf, up| Seen {
        other_vf: true,
        ..seen(GUEST, up, vf)
    };
    waits(
        TO_VF,
        another(PARKED, true),
        failed(TRIES - 1),
        Standby,
        reasons::VF_SETTING_REFUSED,
    );
    does(TO_VF, another(READY, false), failed(TRIES), Step::Park);
    does(TO_VF, another(PARKED, false), failed(TRIES), Step::StandbyUp);
    does(TO_VF, another(PARKED, true), failed(TRIES), Step::RestoreVf);
    waits(
        TO_VF,
        seen(GUEST, true, PARKED),
        failed(TRIES),
        Standby,
        reasons::VF_SETTING_REFUSED,
    );
}

#[test]
fn a_vf_that_keeps_the_mac_shares_it_with_the_standby_of_its_pf_only() {
    let stuck = taught(|l| (l.vf_failed, l.not_parked) = (Some(reasons::VF_SETTING_REFUSED), true));
    let split = VfSeen {
        other_pf: true,
        ..READY
    };
    does(TO_VF, seen(GUEST, false, READY), stuck, Step::StandbyUp);
    waits(
        TO_VF,
        seen(GUEST, true, READY),
        stuck,
        Standby,
        reasons::VF_SETTING_REFUSED,
    );
    does(TO_VF, seen(GUEST, false, split), stuck, Step::Park);
    // Its VM must not go elsewhere.
    waits(
        TO_STANDBY,
        seen(GUEST, true, READY),
        stuck,
        Pending,
        reasons::VF_SETTING_REFUSED,
    );
}

#[test]
fn an_mtu_that_was_lost_is_given_back() {
    let low = Seen {
        mtu_ok: false,
        ..seen(FAST, false, READY)
    };
    does(TO_VF, low, Learnt::default(), Step::RaiseMtu);
    let refused = taught(|l| l.mtu_refused = true);
    done(TO_VF, low, refused, FastPath);
}

#[test]
fn what_stands_against_the_fast_path_is_told_and_the_standby_carries_the_traffic() {
    let (no, no_link) = (
        Learnt::default(),
        VfSeen {
            link: false,
            ..PARKED
        },
    );
    let deaf = |failover| Guest { failover, ..GUEST };
    let cases = [
        (GUEST, no_link, no, reasons::PF_LINK_DOWN),
        (deaf(Some(false)), PARKED, no, reasons::GUEST_NO_FAILOVER),
        (deaf(None), PARKED, no, reasons::GUEST_NO_FAILOVER),
        (
            GUEST,
            PARKED,
            taught(|l| l.ignores_vf = true),
            reasons::GUEST_IGNORES_VF,
        ),
        (
            GUEST,
            PARKED,
            taught(|l| l.vf_failed = Some(reasons::QEMU_REFUSED)),
            reasons::QEMU_REFUSED,
        ),
    ];
    for (guest, vf, learnt, reason) in cases {
        let ready = VfSeen {
            mac: VfMac::Nic,
            settings_ok: true,
            ..vf
        };
        does(BROKEN_FIRST, seen(guest, false, ready), learnt, Step::Park);
        does(TO_VF, seen(guest, false, vf), learnt, Step::StandbyUp);
        does(
            TO_VF,
            seen(guest, true, vf),
            Learnt {
                announce: true,
                ..learnt
            },
            Step::Announce,
        );
        waits(TO_VF, seen(guest, true, vf), learnt, Standby, reason);
    }
    does(
        TO_VF,
        seen(FAST, true, READY),
        taught(|l| l.ignores_vf = true),
        Step::UnplugVf,
    );
    let other = VfSeen {
        settings_ok: false,
        ..READY
    };
    does(TO_VF, seen(FAST, false, other), no, Step::ConfigureVf);
    let refused = taught(|l| l.vf_failed = Some(reasons::VF_SETTING_REFUSED));
    waits(
        TO_VF,
        seen(FAST, false, other),
        refused,
        FastPath,
        reasons::VF_SETTING_REFUSED,
    );
}

#[test]
fn a_standby_on_a_macvtap_that_was_removed_is_plugged_anew_unless_the_vf_carries_the_traffic() {
    let no = Learnt::default();
    let dead = |guest, vf| Seen {
        macvtap: None,
        ..seen(guest, false, vf)
    };
    for ask in [TO_VF, TO_STANDBY] {
        waits(ask, dead(FAST, READY), no, FastPath, reasons::STANDBY_FAILED);
        does(ask, dead(GUEST, PARKED), no, Step::UnplugStandby);
        let keeps = taught(|l| l.keeps_standby = true);
        waits(ask, dead(GUEST, PARKED), keeps, Pending, reasons::STANDBY_FAILED);
    }
    let gone = Guest {
        standby: false,
        ..GUEST
    };
    does(TO_VF, dead(gone, PARKED), no, Step::MakeStandby);
    // One that waits for its VM cannot let go.
    let incoming = Guest {
        run: Run::Incoming,
        ..GUEST
    };
    waits(
        TO_VF,
        dead(incoming, PARKED),
        no,
        Pending,
        reasons::STANDBY_FAILED,
    );
    // To take all of it away needs no macvtap.
    does(OUT, dead(FAST, READY), no, Step::UnplugVf);
}

const NO_LINK: VfSeen = VfSeen { link: false, ..READY };
const DARK: VfSeen = VfSeen {
    dark: true,
    ..NO_LINK
};

fn parked(vf: VfSeen) -> VfSeen {
    VfSeen {
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
    let back = VfSeen { link: true, ..DARK };
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
    let split = |vf| VfSeen { other_pf: true, ..vf };
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
