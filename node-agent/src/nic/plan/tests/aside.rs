//! A NIC that is told to stay on its standby.

use super::*;

const GIVES: Ask = Ask {
    aside: Some(Aside::GiveVfBack),
    ..TO_STANDBY
};
const KEEPS: Ask = Ask {
    aside: Some(Aside::KeepVf),
    ..TO_STANDBY
};
const IN_A_MIGRATION: Ask = Ask {
    ordered: true,
    ..GIVES
};

/// On its standby, without a VF.
fn alone() -> Seen {
    Seen {
        vf: None,
        vf_offered: true,
        ..seen(GUEST, true, PARKED)
    }
}

#[test]
fn its_goal_goes_no_further_than_its_standby() {
    let mut spec = crate::journal::tests::record("a").spec;
    for (told, aside, goes) in [
        (Goal::FastPath, None, Goal::FastPath),
        (Goal::FastPath, Some(Aside::GiveVfBack), Goal::Standby),
        (Goal::FastPath, Some(Aside::KeepVf), Goal::Standby),
        (Goal::Reserved, Some(Aside::GiveVfBack), Goal::Reserved),
        (Goal::Detached, Some(Aside::KeepVf), Goal::Detached),
    ] {
        (spec.goal, spec.aside) = (told, aside);
        assert_eq!(goal(&spec), goes);
        let ask = Ask::of(
            &spec,
            SwitchOrder::MakeBeforeBreak,
            crate::machine::Duties::QEMU,
            false,
        );
        assert_eq!((ask.goal, ask.ordered), (goes, false));
    }
}

#[test]
fn the_standby_carries_the_traffic_before_the_vf_goes_back() {
    let (no, announce) = (Learnt::default(), taught(|l| l.announce = true));
    for ask in [GIVES, KEEPS] {
        does(ask, seen(FAST, false, READY), no, Step::StandbyUp);
        does(ask, seen(FAST, true, READY), no, Step::UnplugVf);
        does(ask, seen(GUEST, true, READY), announce, Step::Park);
        does(ask, seen(GUEST, true, PARKED), announce, Step::Announce);
        let keeps_vf = taught(|l| l.keeps_vf = true);
        waits(
            ask,
            seen(FAST, false, READY),
            keeps_vf,
            FastPath,
            reasons::GUEST_KEEPS_VF,
        );
    }
    does(GIVES, seen(GUEST, true, PARKED), no, Step::RestoreVf);
    done(GIVES, alone(), no, Standby);
    done(KEEPS, seen(GUEST, true, PARKED), no, Standby);
}

#[test]
fn a_standby_without_a_link_is_told_of() {
    let no = Learnt::default();
    let dark = Seen {
        standby_link: Some(false),
        ..alone()
    };
    waits(GIVES, dark, no, Standby, reasons::PF_LINK_DOWN);
    done(IN_A_MIGRATION, dark, no, Standby);
    done(
        TO_STANDBY,
        Seen {
            vf_offered: false,
            ..dark
        },
        no,
        Standby,
    );
    let unseen = Seen {
        standby_link: None,
        ..dark
    };
    done(GIVES, unseen, no, Standby);
}

#[test]
fn what_is_kept_or_not_may_change_meanwhile() {
    let no = Learnt::default();
    does(KEEPS, alone(), no, Step::Reserve);
    let none = Seen {
        vf_offered: false,
        ..alone()
    };
    done(KEEPS, none, no, Standby);
    let found = VfThere {
        on_vfio: false,
        mac: VfMac::Other,
        ..PARKED
    };
    does(KEEPS, seen(GUEST, true, found), no, Step::Bind);
    // It need not be made ready to be given back.
    does(GIVES, seen(GUEST, true, found), no, Step::RestoreVf);
    does(TO_VF, alone(), no, Step::Reserve);
}

#[test]
fn a_nic_that_needs_no_vf_waits_for_none() {
    let no = Learnt::default();
    let patient = Ask {
        no_free_vf: NoFreeVf::Wait,
        ..GIVES
    };
    let none = Seen {
        vf_offered: false,
        ..FRESH
    };
    does(patient, none, no, Step::Reserve);
    let with_pf = Seen {
        recorded: true,
        standby_recorded: true,
        ..none
    };
    does(patient, with_pf, no, Step::MakeStandby);
    let nowhere = Seen {
        uplink: false,
        ..none
    };
    waits(patient, nowhere, no, Pending, reasons::NO_UPLINK);
    let keeps = Ask {
        aside: Some(Aside::KeepVf),
        ..patient
    };
    waits(keeps, none, no, Pending, reasons::NO_FREE_VF);
}

#[test]
fn a_migration_does_not_wait_until_a_vf_has_gone_back() {
    let no = Learnt::default();
    done(IN_A_MIGRATION, seen(GUEST, true, PARKED), no, Standby);
    // Neither source nor target, which takes none.
    for (run, rest) in [
        (Run::Incoming, Reserved),
        (Run::HandingOver, Standby),
        (Run::HandedOver, Standby),
    ] {
        let away = Guest {
            run,
            failover: None,
            ..GUEST
        };
        done(IN_A_MIGRATION, seen(away, false, PARKED), no, rest);
        let without = Seen {
            macvtap: Some(false),
            qemu: QemuSeen::Up(away),
            ..alone()
        };
        done(IN_A_MIGRATION, without, no, rest);
        done(GIVES, without, no, rest);
    }
    let reserves = Ask {
        goal: Goal::Reserved,
        ..IN_A_MIGRATION
    };
    let empty = Seen {
        qemu: QemuSeen::Gone,
        recorded: true,
        standby_recorded: true,
        ..FRESH
    };
    done(reserves, empty, no, Reserved);
}

#[test]
fn a_pod_gets_its_link_without_a_vf() {
    let no = Learnt::default();
    let theirs = Ask {
        duties: model::RUNTIME,
        ..GIVES
    };
    let asks = Seen {
        qemu: QemuSeen::Gone,
        sandbox_waits: true,
        ..FRESH
    };
    does(theirs, asks, no, Step::Reserve);
    let with_pf = Seen {
        recorded: true,
        standby_recorded: true,
        ..asks
    };
    does(theirs, with_pf, no, Step::MakeStandby);
    let made = Seen {
        macvtap: Some(false),
        ..with_pf
    };
    does(theirs, made, no, Step::AnswerSandbox);
    let answered = Seen {
        sandbox_waits: false,
        ..made
    };
    waits(theirs, answered, no, Pending, reasons::QMP_UNAVAILABLE);
    let held = Seen {
        vf: Some(VfSeen::There(PARKED)),
        ..answered
    };
    does(theirs, held, no, Step::RestoreVf);
}
