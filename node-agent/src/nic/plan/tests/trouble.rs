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
    let ignores = taught(|l| (l.keeps_vf, l.ignores_vf) = (true, Some(Sends::ByStandby)));
    for (goal, learnt) in [(Goal::Standby, keeps), (Goal::FastPath, ignores)] {
        for driver_order in [SwitchOrder::MakeBeforeBreak, SwitchOrder::BreakBeforeMake] {
            let ask = Ask {
                driver_order,
                ..ask(goal)
            };
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
    // And when it wakes up, it gets the VF again: it has met it under another MAC.
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
    let found = VfThere {
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
    // One that is on its standby already stays there, no matter what it was told at the start.
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
fn a_vf_that_its_drivers_do_not_give_leaves_the_nic_its_standby() {
    let found = VfThere {
        on_vfio: false,
        mac: VfMac::Other,
        ..PARKED
    };
    let bind = taught(|l| (l.vf_failed, l.vf_failures) = (Some(reasons::VF_BIND_FAILED), 1));
    let held = Seen {
        recorded: true,
        vf: Some(VfSeen::There(found)),
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
    let split = VfThere {
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
        guarded: true,
        foreign_mac: false,
        seized: false,
        seizer_ended: false,
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
        VfThere {
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
            taught(|l| l.ignores_vf = Some(Sends::ByStandby)),
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
        let ready = VfThere {
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
        taught(|l| l.ignores_vf = Some(Sends::ByStandby)),
        Step::UnplugVf,
    );
    let other = VfThere {
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

/// A QEMU that keeps the descriptor of a VF costs its own NIC the exchange, and nothing else.
#[test]
fn a_vf_whose_descriptor_somebody_keeps_is_not_exchanged_and_goes_on_otherwise() {
    let kept = VfThere { held: true, ..PARKED };
    let failed = taught(|l| {
        (l.vf_failed, l.vf_failures) = (Some(reasons::QEMU_REFUSED), TRIES);
    });
    let better = |vf| Seen {
        other_vf: true,
        ..seen(GUEST, true, vf)
    };
    does(TO_VF, better(PARKED), failed, Step::RestoreVf);
    waits(TO_VF, better(kept), failed, Standby, reasons::QEMU_REFUSED);
    // Once the pause is over it is tried again, and the guest has it as before.
    let no = Learnt::default();
    does(TO_VF, better(kept), no, Step::ConfigureVf);
    let ready = VfThere { held: true, ..READY };
    does(TO_VF, better(ready), no, Step::PlugVf);
    does(TO_STANDBY, seen(FAST, true, ready), no, Step::UnplugVf);
    does(TO_STANDBY, seen(GUEST, true, ready), no, Step::Park);
}
