//! A NIC whose VF is drained, and one that goes back to a VF of its standby's PF.

use super::*;

const DRAINED: Ask = Ask {
    drained: true,
    ..TO_VF
};
const IN_A_MIGRATION: Ask = Ask {
    ordered: true,
    ..DRAINED
};
const SPLIT: VfThere = VfThere {
    other_pf: true,
    ..READY
};

#[test]
fn the_standby_is_up_before_a_vf_is_drained() {
    let (no, announce) = (Learnt::default(), taught(|l| l.announce = true));
    does(DRAINED, seen(FAST, false, READY), no, Step::StandbyUp);
    does(DRAINED, seen(FAST, true, READY), no, Step::UnplugVf);
    does(DRAINED, seen(GUEST, true, READY), announce, Step::Park);
    does(DRAINED, seen(GUEST, true, PARKED), announce, Step::Announce);
    does(DRAINED, seen(GUEST, true, PARKED), no, Step::RestoreVf);
    // Without a VF it is like any other that waits for one.
    let without = Seen {
        vf: None,
        ..seen(GUEST, true, PARKED)
    };
    waits(TO_VF, without, no, Standby, reasons::NO_FREE_VF);
    let offered = Seen {
        vf_offered: true,
        ..without
    };
    does(TO_VF, offered, no, Step::Reserve);
}

#[test]
fn on_two_pfs_the_vf_goes_first() {
    let no = Learnt::default();
    does(DRAINED, seen(FAST, false, SPLIT), no, Step::UnplugVf);
    does(DRAINED, seen(GUEST, false, SPLIT), no, Step::Park);
    let parked = VfThere {
        other_pf: true,
        ..PARKED
    };
    does(DRAINED, seen(GUEST, false, parked), no, Step::StandbyUp);
    does(DRAINED, seen(GUEST, true, parked), no, Step::RestoreVf);
}

#[test]
fn a_vf_that_is_drained_need_not_be_made_ready_and_is_not_plugged() {
    let no = Learnt::default();
    let found = VfThere {
        on_vfio: false,
        mac: VfMac::Other,
        ..PARKED
    };
    does(DRAINED, seen(GUEST, true, found), no, Step::RestoreVf);
    // It is known before the guest has anything: both go to another PF, where there is one.
    let bare = Guest {
        standby: false,
        ..GUEST
    };
    let other = Seen {
        other_vf: true,
        ..seen(bare, false, PARKED)
    };
    does(DRAINED, other, no, Step::RemoveStandby);
    does(DRAINED, seen(bare, false, PARKED), no, Step::PlugStandby);
    // One that waits for its VM, and not for a migration.
    let incoming = Guest {
        run: Run::Incoming,
        failover: None,
        ..GUEST
    };
    does(DRAINED, seen(incoming, false, PARKED), no, Step::RestoreVf);
    // One that is told to keep it beside its standby.
    let keeps = Ask {
        aside: Some(Aside::KeepVf),
        drained: true,
        ..TO_STANDBY
    };
    does(keeps, seen(GUEST, true, PARKED), no, Step::RestoreVf);
}

#[test]
fn a_migration_is_not_disturbed_and_gets_no_vf_that_is_drained() {
    let no = Learnt::default();
    done(IN_A_MIGRATION, seen(FAST, false, READY), no, FastPath);
    waits(
        IN_A_MIGRATION,
        seen(GUEST, true, PARKED),
        no,
        Standby,
        reasons::PF_DRAINED,
    );
    let incoming = Guest {
        run: Run::Incoming,
        failover: None,
        ..GUEST
    };
    done(IN_A_MIGRATION, seen(incoming, false, PARKED), no, Reserved);
    let source = Ask {
        goal: Goal::Standby,
        ..IN_A_MIGRATION
    };
    done(source, seen(GUEST, true, PARKED), no, Standby);
}

#[test]
fn a_guest_that_keeps_its_vf_keeps_its_traffic() {
    let keeps = taught(|l| l.keeps_vf = true);
    // By the VF alone, once it is sure that the traffic runs there.
    does(DRAINED, seen(FAST, true, READY), keeps, Step::AwaitGuest);
    let moved = taught(|l| (l.keeps_vf, l.moved) = (true, true));
    does(DRAINED, seen(FAST, true, READY), moved, Step::StandbyDown);
    waits(
        DRAINED,
        seen(FAST, false, READY),
        keeps,
        FastPath,
        reasons::GUEST_KEEPS_VF,
    );
}

#[test]
fn a_nic_that_is_split_goes_back_to_its_standbys_pf() {
    let no = Learnt::default();
    let home = |guest, up, vf| Seen {
        home_vf: true,
        ..seen(guest, up, vf)
    };
    done(TO_VF, seen(FAST, false, SPLIT), no, FastPath);
    does(TO_VF, home(FAST, false, SPLIT), no, Step::UnplugVf);
    does(TO_VF, home(GUEST, false, SPLIT), no, Step::Park);
    let parked = VfThere {
        other_pf: true,
        ..PARKED
    };
    does(TO_VF, home(GUEST, false, parked), no, Step::StandbyUp);
    does(TO_VF, home(GUEST, true, parked), no, Step::RestoreVf);
    // Somebody was quicker: it takes its own again.
    does(TO_VF, seen(GUEST, true, parked), no, Step::StandbyDown);
    // Not in a migration, ours or one of somebody else's, and not from a guest that keeps it.
    let ordered = Ask {
        ordered: true,
        ..TO_VF
    };
    done(ordered, home(FAST, false, SPLIT), no, FastPath);
    let migrating = Guest {
        migrating: true,
        ..FAST
    };
    done(TO_VF, home(migrating, false, SPLIT), no, FastPath);
    done(
        TO_VF,
        home(FAST, false, SPLIT),
        taught(|l| l.keeps_vf = true),
        FastPath,
    );
}

#[test]
fn a_vf_that_is_drained_is_not_left_for_a_standby_that_has_no_link() {
    let no = Learnt::default();
    let dark = |vf| Seen {
        standby_link: Some(false),
        ..seen(FAST, false, vf)
    };
    waits(DRAINED, dark(SPLIT), no, FastPath, reasons::PF_LINK_DOWN);
    let elsewhere = Seen {
        other_vf: true,
        ..dark(SPLIT)
    };
    does(DRAINED, elsewhere, no, Step::UnplugVf);
    let both = VfThere { link: false, ..SPLIT };
    does(DRAINED, dark(both), no, Step::UnplugVf);
}
