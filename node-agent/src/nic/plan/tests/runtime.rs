//! A VM whose runtime takes care of its standby: the macvtap is a link of the VM's pod, there before there is a QEMU.

use super::{model::RUNTIME, *};
use crate::machine::Duties;

const fn theirs(goal: Goal) -> Ask {
    Ask {
        duties: RUNTIME,
        ..ask(goal)
    }
}

/// The pod's sandbox asks for its link; there is no QEMU.
const ASKED: Seen = Seen {
    sandbox_waits: true,
    qemu: QemuSeen::Gone,
    ..FRESH
};

fn held(macvtap: Option<bool>, waits: bool) -> Seen {
    Seen {
        recorded: true,
        vf: Some(VfSeen::There(PARKED)),
        vf_offered: false,
        standby_recorded: true,
        macvtap,
        sandbox_waits: waits,
        ..ASKED
    }
}

#[test]
fn the_link_is_there_and_guarded_before_its_sandbox_is_answered() {
    let no = Learnt::default();
    for goal in [Goal::Standby, Goal::FastPath] {
        let ask = theirs(goal);
        let early = Seen {
            sandbox_waits: false,
            ..ASKED
        };
        waits(ask, early, no, Pending, reasons::WAITING_FOR_RUNTIME);
        does(ask, ASKED, no, Step::Reserve);
        does(ask, held(None, true), no, Step::MakeStandby);
        let unguarded = Seen {
            guarded: false,
            ..held(Some(false), true)
        };
        does(ask, unguarded, no, Step::GuardStandby);
        does(ask, held(Some(true), true), no, Step::StandbyDown);
        does(ask, held(Some(false), true), no, Step::AnswerSandbox);
        waits(
            ask,
            held(Some(false), false),
            no,
            Pending,
            reasons::QMP_UNAVAILABLE,
        );
        // The sandbox has gone, and its link with it: the next one asks again.
        waits(ask, held(None, false), no, Pending, reasons::WAITING_FOR_RUNTIME);
    }
}

#[test]
fn a_reserved_nic_keeps_its_sandbox_waiting() {
    let no = Learnt::default();
    let ask = theirs(Goal::Reserved);
    does(ask, ASKED, no, Step::Reserve);
    done(ask, held(None, true), no, Reserved);
}

#[test]
fn a_sandbox_that_waits_too_long_is_told_what_for() {
    let no = Learnt::default();
    let why = |goal, seen| {
        let decision = next(&theirs(goal), &seen, &no);
        decision.withholds().map(str::to_owned)
    };
    let reserved = why(Goal::Reserved, held(None, true)).expect("a reason");
    assert!(reserved.contains("its source"), "{reserved}");
    assert_eq!(why(Goal::Reserved, ASKED), None, "a step comes first");
    let busy = Seen {
        qemu: QemuSeen::Unreachable,
        ..held(Some(false), true)
    };
    assert!(why(Goal::Reserved, busy).is_some_and(|why| why != reserved));
    // The interface is there, and answered.
    assert_eq!(why(Goal::FastPath, held(Some(false), true)), None);
}

#[test]
fn what_the_runtime_sees_to_is_waited_for() {
    let no = Learnt::default();
    let bare = Guest {
        standby: false,
        failover: None,
        ..GUEST
    };
    waits(
        theirs(Goal::FastPath),
        seen(bare, false, PARKED),
        no,
        Pending,
        reasons::WAITING_FOR_RUNTIME,
    );
    let out = theirs(Goal::Detached);
    does(out, seen(FAST, false, READY), no, Step::UnplugVf);
    does(out, seen(GUEST, true, READY), no, Step::Park);
    does(out, seen(GUEST, true, PARKED), no, Step::RestoreVf);
    let without = Seen {
        vf: None,
        ..seen(GUEST, true, PARKED)
    };
    waits(out, without, no, Standby, reasons::WAITING_FOR_RUNTIME);
    let left = Guest {
        run: Run::HandedOver,
        ..GUEST
    };
    waits(
        out,
        seen(left, false, PARKED),
        no,
        Standby,
        reasons::WAITING_FOR_RUNTIME,
    );
    // With its QEMU it goes.
    let ended = Seen {
        qemu: QemuSeen::Gone,
        ..without
    };
    does(out, ended, no, Step::RemoveStandby);
}

#[test]
fn a_pods_link_is_not_moved_to_another_pf() {
    let elsewhere = VfThere {
        other_pf: true,
        ..PARKED
    };
    let seen = Seen {
        vf: Some(VfSeen::There(elsewhere)),
        ..held(Some(false), true)
    };
    does(
        theirs(Goal::FastPath),
        seen,
        Learnt::default(),
        Step::AnswerSandbox,
    );
}

#[test]
fn no_vf_is_plugged_without_acpi_or_during_a_migration() {
    let no = Learnt::default();
    let no_acpi = Guest { acpi: false, ..GUEST };
    waits(
        TO_VF,
        seen(no_acpi, true, PARKED),
        no,
        Standby,
        reasons::GUEST_NO_ACPI,
    );
    let migrating = Guest {
        migrating: true,
        ..GUEST
    };
    waits(
        TO_VF,
        seen(migrating, true, PARKED),
        no,
        Standby,
        reasons::MIGRATING,
    );
}

/// Somebody has started it, and knows what it waits for.
#[test]
fn a_qemu_of_the_host_is_not_ended() {
    let no = Learnt::default();
    let ours = ask(Goal::Detached);
    let of_host = Ask {
        duties: Duties::HOST,
        ..ours
    };
    for run in [Run::Incoming, Run::HandedOver] {
        let waiting = seen(Guest { run, ..GUEST }, false, PARKED);
        does(ours, waiting, no, Step::QuitQemu);
        let decision = next(&of_host, &waiting, &no);
        assert!(
            matches!(&decision, Decision::Wait(wait) if wait.reason == reasons::WAITING_FOR_RUNTIME),
            "{run:?}: {decision:?}"
        );
        // What a migration leaves is ended: the VM has gone, or does not come.
        let moved = Ask {
            ordered: true,
            ..of_host
        };
        does(moved, waiting, no, Step::QuitQemu);
    }
}
