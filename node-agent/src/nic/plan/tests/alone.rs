//! A NIC without a standby: its VF is all that it has.

use super::*;
use crate::machine::{Duties, socket::Offence};
use hybridnic_api::v1alpha1::AttachmentState::Aside as Out;

const fn alone(goal: Goal) -> Ask {
    Ask {
        standby: StandbyKind::None,
        ..ask(goal)
    }
}

const ON: Ask = alone(Goal::FastPath);
const OFF: Ask = alone(Goal::Standby);
const AWAY: Ask = alone(Goal::Detached);

/// A guest without a VF.
const EMPTY: Guest = Guest {
    standby: false,
    failover: None,
    ..GUEST
};
/// One with.
const HAS: Guest = Guest {
    standby: false,
    failover: None,
    ..FAST
};
/// One whose driver of the VF has not started.
const IDLE: Guest = Guest {
    uses_vf: false,
    ..HAS
};

fn with(guest: Guest, vf: VfThere) -> Seen {
    Seen {
        recorded: true,
        vf: Some(VfSeen::There(vf)),
        vf_offered: false,
        standby_link: None,
        qemu: QemuSeen::Up(guest),
        ..FRESH
    }
}

fn without(guest: Guest) -> Seen {
    Seen {
        vf: None,
        ..with(guest, PARKED)
    }
}

fn other(seen: Seen) -> Seen {
    Seen {
        other_vf: true,
        ..seen
    }
}

fn moved() -> Learnt {
    taught(|l| l.moved = true)
}

#[test]
fn a_vf_goes_in_and_nothing_else() {
    let no = Learnt::default();
    let found = VfThere {
        on_vfio: false,
        mac: VfMac::Other,
        ..PARKED
    };
    let bound = VfThere {
        on_vfio: true,
        ..found
    };
    does(ON, FRESH, no, Step::Reserve);
    does(ON, with(EMPTY, found), no, Step::Bind);
    does(ON, with(EMPTY, bound), no, Step::Park);
    does(ON, with(EMPTY, PARKED), no, Step::ConfigureVf);
    does(ON, with(EMPTY, READY), no, Step::PlugVf);
    does(ON, with(IDLE, READY), no, Step::AwaitGuest);
    // The switches have not been told where the MAC is.
    does(ON, with(HAS, READY), no, Step::AwaitGuest);
    done(ON, with(HAS, READY), moved(), FastPath);
}

#[test]
fn it_is_out_for_a_migration_and_says_so() {
    let no = Learnt::default();
    let moves = Ask { ordered: true, ..OFF };
    does(moves, with(HAS, READY), moved(), Step::UnplugVf);
    does(moves, with(EMPTY, READY), no, Step::Park);
    done(moves, with(EMPTY, PARKED), no, Out);
    done(moves, without(EMPTY), no, Out);
    for run in [Run::HandingOver, Run::HandedOver] {
        let gone = Guest { run, ..EMPTY };
        does(moves, with(gone, READY), no, Step::Park);
        done(moves, with(gone, PARKED), no, Out);
        done(moves, without(gone), no, Out);
    }
    let keeps = taught(|l| l.keeps_vf = true);
    waits(moves, with(HAS, READY), keeps, FastPath, reasons::GUEST_KEEPS_VF);
    // Its driver does not take the parking MAC: the VM does not leave it behind.
    let stuck = taught(|l| l.not_parked = true);
    waits(
        moves,
        with(EMPTY, READY),
        stuck,
        Pending,
        reasons::VF_SETTING_REFUSED,
    );
    let unread = Seen {
        vf: Some(VfSeen::Unknown { other_pf: false }),
        ..with(EMPTY, PARKED)
    };
    waits(moves, unread, no, Pending, reasons::VF_UNKNOWN);
    waits(ON, unread, no, Out, reasons::VF_UNKNOWN);
    // It comes back.
    does(ON, with(EMPTY, PARKED), no, Step::ConfigureVf);
}

#[test]
fn a_target_has_a_vf_parked_or_none_where_that_will_do() {
    let no = Learnt::default();
    let comes = Guest {
        run: Run::Incoming,
        ..EMPTY
    };
    let waits_for_vf = Ask {
        no_free_vf: NoFreeVf::Wait,
        ..ON
    };
    let bare = Seen {
        qemu: QemuSeen::Up(comes),
        ..FRESH
    };
    does(ON, bare, no, Step::Reserve);
    done(ON, with(comes, PARKED), no, Reserved);
    done(ON, without(comes), no, Reserved);
    waits(waits_for_vf, without(comes), no, Pending, reasons::NO_FREE_VF);
    let nowhere = Seen {
        uplink: false,
        ..without(comes)
    };
    waits(ON, nowhere, no, Pending, reasons::NO_UPLINK);
    let starts = Guest {
        run: Run::Starting,
        ..EMPTY
    };
    done(ON, with(starts, PARKED), no, Reserved);
    let another = Guest {
        run: Run::Occupied,
        ..EMPTY
    };
    waits(ON, with(another, PARKED), no, Pending, reasons::TARGET_OCCUPIED);
}

#[test]
fn a_vm_that_runs_without_a_vf_is_told_so() {
    let no = Learnt::default();
    for no_free_vf in [NoFreeVf::Standby, NoFreeVf::Wait] {
        let ask = Ask { no_free_vf, ..ON };
        waits(ask, without(EMPTY), no, Out, reasons::NO_FREE_VF);
    }
    let nowhere = Seen {
        uplink: false,
        ..without(EMPTY)
    };
    waits(ON, nowhere, no, Out, reasons::NO_UPLINK);
    let failed = taught(|l| l.vf_failed = Some(reasons::QEMU_REFUSED));
    does(ON, with(EMPTY, READY), failed, Step::Park);
    waits(ON, with(EMPTY, PARKED), failed, Out, reasons::QEMU_REFUSED);
    let again = Learnt {
        vf_failures: TRIES,
        ..failed
    };
    does(ON, other(with(EMPTY, PARKED)), again, Step::RestoreVf);
}

#[test]
fn a_drain_takes_no_vm_its_network() {
    let drained = Ask { drained: true, ..ON };
    let seen = with(HAS, READY);
    waits(drained, seen, moved(), FastPath, reasons::PF_DRAINED);
    does(drained, other(seen), moved(), Step::UnplugVf);
    does(drained, other(with(EMPTY, READY)), moved(), Step::Park);
    does(drained, other(with(EMPTY, PARKED)), moved(), Step::RestoreVf);
    let moves = Ask {
        ordered: true,
        ..drained
    };
    done(moves, seen, moved(), FastPath);
    let keeps = taught(|l| l.keeps_vf = true);
    does(drained, other(seen), keeps, Step::AwaitGuest);
}

#[test]
fn a_drained_vf_goes_back_into_the_guest_whose_only_one_it_is() {
    let no = Learnt::default();
    let drained = Ask { drained: true, ..ON };
    let moves = Ask {
        ordered: true,
        ..drained
    };
    // A migration has failed; or the guest was restarted while its VF was out.
    for ask in [drained, moves] {
        does(ask, with(EMPTY, PARKED), no, Step::ConfigureVf);
        does(ask, with(EMPTY, READY), no, Step::PlugVf);
    }
    // The guest restarts, and its driver has not started yet.
    does(drained, with(IDLE, READY), no, Step::AwaitGuest);
    // The link blinks.
    let blinks = VfThere { link: false, ..READY };
    waits(drained, with(HAS, blinks), moved(), FastPath, reasons::PF_DRAINED);
    // Between the migration's order and what comes after it.
    let after = Ask { drained: true, ..OFF };
    done(after, with(EMPTY, PARKED), no, Out);
}

#[test]
fn a_drain_has_a_vf_that_is_of_no_use() {
    let drained = Ask { drained: true, ..ON };
    let gone = Seen {
        vf: Some(VfSeen::Gone),
        ..with(HAS, READY)
    };
    does(drained, gone, moved(), Step::UnplugVf);
    let dark = VfThere {
        link: false,
        dark: true,
        ..READY
    };
    let parked = VfThere {
        mac: VfMac::Parking,
        ..dark
    };
    does(drained, with(HAS, dark), moved(), Step::UnplugVf);
    does(drained, with(EMPTY, dark), moved(), Step::Park);
    does(drained, with(EMPTY, parked), moved(), Step::RestoreVf);
    let ignores = taught(|l| l.ignores_vf = Some(Sends::ByNeither));
    does(drained, with(IDLE, READY), ignores, Step::UnplugVf);
    does(drained, with(EMPTY, PARKED), ignores, Step::RestoreVf);
}

#[test]
fn a_lost_link_is_left_for_another_vf_only() {
    let dark = VfThere {
        link: false,
        dark: true,
        ..READY
    };
    waits(ON, with(HAS, dark), moved(), FastPath, reasons::PF_LINK_DOWN);
    does(ON, other(with(HAS, dark)), moved(), Step::UnplugVf);
    does(ON, other(with(EMPTY, dark)), moved(), Step::Park);
    let parked = VfThere {
        mac: VfMac::Parking,
        ..dark
    };
    does(ON, other(with(EMPTY, parked)), moved(), Step::RestoreVf);
    waits(ON, with(EMPTY, parked), moved(), Out, reasons::PF_LINK_DOWN);
}

#[test]
fn a_vf_that_the_guest_does_not_use_stays_in_it() {
    let ignores = taught(|l| l.ignores_vf = Some(Sends::ByNeither));
    // It is not out, whatever it carries.
    waits(ON, with(IDLE, READY), ignores, Pending, reasons::GUEST_IGNORES_VF);
    let keeps = taught(|l| l.keeps_vf = true);
    waits(ON, with(IDLE, PARKED), keeps, Pending, reasons::GUEST_KEEPS_VF);
    let unread = Seen {
        vf: Some(VfSeen::Unknown { other_pf: false }),
        ..with(IDLE, READY)
    };
    waits(ON, unread, Learnt::default(), Pending, reasons::VF_UNKNOWN);
    // Its driver has come.
    does(ON, with(HAS, READY), ignores, Step::AwaitGuest);
    // What it has met under another MAC is useless to it.
    does(ON, with(IDLE, PARKED), ignores, Step::UnplugVf);
}

#[test]
fn at_a_word_the_vf_is_out_and_back_in_the_pool_or_kept() {
    let no = Learnt::default();
    let told = |aside| Ask {
        aside: Some(aside),
        ..OFF
    };
    for aside in [Aside::GiveVfBack, Aside::KeepVf] {
        does(told(aside), with(HAS, READY), moved(), Step::UnplugVf);
        does(told(aside), with(EMPTY, READY), no, Step::Park);
    }
    does(told(Aside::GiveVfBack), with(EMPTY, PARKED), no, Step::RestoreVf);
    done(told(Aside::GiveVfBack), without(EMPTY), no, Out);
    done(told(Aside::KeepVf), with(EMPTY, PARKED), no, Out);
}

#[test]
fn what_leaves_ends_a_qemu_that_has_nothing_of_it() {
    let no = Learnt::default();
    let at = |run| Guest { run, ..EMPTY };
    does(AWAY, with(HAS, READY), moved(), Step::UnplugVf);
    does(AWAY, with(EMPTY, READY), no, Step::Park);
    does(AWAY, with(EMPTY, PARKED), no, Step::RestoreVf);
    does(AWAY, without(EMPTY), no, Step::Forget);
    for run in [Run::Incoming, Run::HandedOver] {
        does(AWAY, with(at(run), PARKED), no, Step::QuitQemu);
        // Its VM may have no other NIC.
        let nothing = Seen {
            recorded: false,
            ..without(at(run))
        };
        does(AWAY, nothing, no, Step::QuitQemu);
        let host = Ask {
            duties: Duties::HOST,
            ..AWAY
        };
        does(host, with(at(run), PARKED), no, Step::RestoreVf);
    }
    for run in [Run::Starting, Run::HandingOver] {
        waits(AWAY, with(at(run), PARKED), no, Out, reasons::MIGRATING);
    }
    // It does not report that it has nothing here before it is known what becomes of the VM.
    let nothing = |qemu| Seen {
        recorded: false,
        qemu,
        ..without(EMPTY)
    };
    let moves = Ask {
        ordered: true,
        ..AWAY
    };
    let silent = [
        (QemuSeen::Unreachable, reasons::QMP_UNAVAILABLE),
        (QemuSeen::Flooding, reasons::QMP_FLOOD),
        (QemuSeen::Untrusted(Offence::Foreign), reasons::QMP_UNTRUSTED),
    ];
    for (qemu, reason) in silent {
        waits(moves, nothing(qemu), no, Out, reason);
        done(AWAY, nothing(qemu), no, Detached);
    }
    waits(
        AWAY,
        nothing(QemuSeen::Up(at(Run::HandingOver))),
        no,
        Out,
        reasons::MIGRATING,
    );
    done(moves, nothing(QemuSeen::Gone), no, Detached);
    let expected = Ask {
        expected: true,
        ..AWAY
    };
    waits(expected, with(EMPTY, PARKED), no, Out, reasons::MIGRATING);
    let ended = Seen {
        qemu: QemuSeen::Gone,
        ..with(EMPTY, PARKED)
    };
    does(AWAY, ended, no, Step::RestoreVf);
}
