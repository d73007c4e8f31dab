//! What comes next on each way from one goal to another.

mod alone;
mod aside;
mod bond;
mod drain;
mod effects;
mod links;
mod model;
mod port;
mod presence;
mod properties;
mod reserve;
mod rules;
mod runtime;
mod story;
mod tap;
mod trouble;

use hybridnic_api::{
    conditions::reasons,
    v1alpha1::AttachmentState::{Detached, FastPath, Pending, Reserved, Standby},
};

use super::*;
use crate::{
    machine::socket::Offence,
    nic::seen::{Guest, Port, QemuSeen, Run},
};

/// What most tests ask for; they change what matters to them.
pub(in crate::nic) const fn ask(goal: Goal) -> Ask {
    Ask {
        goal,
        aside: None,
        ordered: false,
        no_free_vf: NoFreeVf::Standby,
        standby: StandbyKind::Macvtap,
        pairing: Pairing::NetFailover,
        driver_order: SwitchOrder::MakeBeforeBreak,
        drained: false,
        expected: false,
        duties: crate::machine::Duties::QEMU,
    }
}

const TO_STANDBY: Ask = ask(Goal::Standby);
const TO_VF: Ask = ask(Goal::FastPath);
const BROKEN_FIRST: Ask = Ask {
    driver_order: SwitchOrder::BreakBeforeMake,
    ..TO_VF
};
const OUT: Ask = ask(Goal::Detached);

/// A VF that is reserved and parked.
const PARKED: VfThere = VfThere {
    on_vfio: true,
    mac: VfMac::Parking,
    settings_ok: false,
    link: true,
    dark: false,
    other_pf: false,
    held: false,
    port: Port::NoProfile,
};
/// A VF as it must be before it is plugged.
const READY: VfThere = VfThere {
    mac: VfMac::Nic,
    settings_ok: true,
    ..PARKED
};
/// A guest on its standby.
const GUEST: Guest = Guest {
    run: Run::Here,
    standby: true,
    vf: false,
    uses_vf: false,
    failover: Some(true),
    migrating: false,
    acpi: true,
};
/// A guest on its VF.
const FAST: Guest = Guest {
    vf: true,
    uses_vf: true,
    ..GUEST
};
/// Nothing of the NIC is there; a VF is to be had.
pub(in crate::nic) const FRESH: Seen = Seen {
    recorded: false,
    vf: None,
    vf_offered: true,
    other_vf: false,
    home_vf: false,
    uplink: true,
    standby_recorded: false,
    sandbox_waits: false,
    macvtap: None,
    guarded: true,
    foreign_mac: false,
    seized: false,
    seizer_ended: false,
    mtu_ok: true,
    standby_link: Some(true),
    standby_pf_gone: false,
    qemu: QemuSeen::Up(Guest {
        standby: false,
        failover: None,
        ..GUEST
    }),
};

/// A NIC that has all it needs.
fn seen(guest: Guest, up: bool, vf: VfThere) -> Seen {
    Seen {
        recorded: true,
        vf: Some(VfSeen::There(vf)),
        vf_offered: false,
        standby_recorded: true,
        sandbox_waits: false,
        macvtap: Some(up),
        qemu: QemuSeen::Up(guest),
        ..FRESH
    }
}

fn taught(teach: impl FnOnce(&mut Learnt)) -> Learnt {
    let mut learnt = Learnt::default();
    teach(&mut learnt);
    learnt
}

#[track_caller]
fn does(ask: Ask, seen: Seen, learnt: Learnt, step: Step) {
    assert_eq!(next(&ask, &seen, &learnt), Decision::Do(step));
}

#[track_caller]
fn done(ask: Ask, seen: Seen, learnt: Learnt, state: AttachmentState) {
    assert_eq!(next(&ask, &seen, &learnt), Decision::Done(state));
}

#[track_caller]
fn waits(ask: Ask, seen: Seen, learnt: Learnt, state: AttachmentState, reason: &str) {
    match next(&ask, &seen, &learnt) {
        Decision::Wait(wait) => assert_eq!((wait.state, wait.reason), (state, reason), "{}", wait.message),
        other => panic!("{other:?} and no wait: {reason}"),
    }
}

#[test]
fn a_fresh_nic_gets_its_devices_one_by_one() {
    let no = Learnt::default();
    let held = |vf| Seen {
        recorded: true,
        vf: Some(VfSeen::There(vf)),
        standby_recorded: true,
        ..FRESH
    };
    let found = VfThere {
        on_vfio: false,
        mac: VfMac::Other,
        ..PARKED
    };
    let on_vfio = VfThere {
        on_vfio: true,
        ..found
    };
    for goal in [Goal::Standby, Goal::FastPath] {
        does(ask(goal), FRESH, no, Step::Reserve);
        // The standby before all that a driver might refuse.
        does(ask(goal), held(found), no, Step::MakeStandby);
        does(
            ask(goal),
            Seen {
                macvtap: Some(false),
                ..held(found)
            },
            no,
            Step::PlugStandby,
        );
        does(ask(goal), seen(GUEST, false, found), no, Step::StandbyUp);
        does(ask(goal), seen(GUEST, true, found), no, Step::Bind);
        does(ask(goal), seen(GUEST, true, on_vfio), no, Step::Park);
    }
    does(
        TO_VF,
        seen(GUEST, true, found),
        taught(|l| l.announce = true),
        Step::Announce,
    );
    does(TO_VF, seen(GUEST, false, PARKED), no, Step::StandbyUp);
    does(
        TO_VF,
        seen(GUEST, true, PARKED),
        taught(|l| l.announce = true),
        Step::Announce,
    );
    does(TO_VF, seen(GUEST, true, PARKED), no, Step::ConfigureVf);
    does(TO_VF, seen(GUEST, true, READY), no, Step::PlugVf);
    let plugged = Guest {
        uses_vf: false,
        ..FAST
    };
    does(TO_VF, seen(plugged, true, READY), no, Step::AwaitGuest);
    // Interrupts alone do not tell that the traffic has moved.
    does(TO_VF, seen(FAST, true, READY), no, Step::AwaitGuest);
    does(
        TO_VF,
        seen(FAST, true, READY),
        taught(|l| l.moved = true),
        Step::StandbyDown,
    );
    done(TO_VF, seen(FAST, false, READY), no, FastPath);
}

#[test]
fn a_break_comes_first_where_the_hardware_needs_it() {
    let (no, twice) = (Learnt::default(), taught(|l| l.refuses_twice = true));
    let elsewhere = VfThere {
        other_pf: true,
        ..PARKED
    };
    for (ask, vf, learnt) in [
        (BROKEN_FIRST, PARKED, no),
        (TO_VF, PARKED, twice),
        (TO_VF, elsewhere, no),
    ] {
        does(ask, seen(GUEST, true, vf), learnt, Step::StandbyDown);
        does(ask, seen(GUEST, false, vf), learnt, Step::ConfigureVf);
        let ready = VfThere {
            other_pf: vf.other_pf,
            ..READY
        };
        does(ask, seen(GUEST, false, ready), learnt, Step::PlugVf);
        does(
            ask,
            seen(
                Guest {
                    uses_vf: false,
                    ..FAST
                },
                false,
                ready,
            ),
            learnt,
            Step::AwaitGuest,
        );
        done(ask, seen(FAST, false, ready), learnt, FastPath);
        let back = Ask {
            goal: Goal::Standby,
            ..ask
        };
        does(back, seen(FAST, false, ready), learnt, Step::UnplugVf);
        does(back, seen(GUEST, false, ready), learnt, Step::Park);
        does(back, seen(GUEST, false, vf), learnt, Step::StandbyUp);
    }
}

#[test]
fn an_unplug_is_made_before_it_is_broken() {
    let (no, announce) = (Learnt::default(), taught(|l| l.announce = true));
    does(TO_STANDBY, seen(FAST, false, READY), no, Step::StandbyUp);
    does(TO_STANDBY, seen(FAST, true, READY), no, Step::UnplugVf);
    does(TO_STANDBY, seen(GUEST, true, READY), announce, Step::Park);
    does(TO_STANDBY, seen(GUEST, true, PARKED), announce, Step::Announce);
    done(TO_STANDBY, seen(GUEST, true, PARKED), no, Standby);
}

#[test]
fn a_vm_that_is_not_here_yet_holds_at_reserved() {
    let no = Learnt::default();
    for run in [Run::Incoming, Run::HandingOver, Run::HandedOver] {
        let away = Guest {
            run,
            failover: None,
            ..GUEST
        };
        let rest = if run == Run::Incoming { Reserved } else { Standby };
        for goal in [Goal::Standby, Goal::FastPath] {
            does(ask(goal), seen(away, true, PARKED), no, Step::StandbyDown);
            // A VF found with the NIC's MAC would answer for a VM that runs elsewhere.
            does(ask(goal), seen(away, false, READY), no, Step::Park);
            done(ask(goal), seen(away, false, PARKED), no, rest);
        }
    }
    does(TO_VF, seen(GUEST, true, PARKED), no, Step::ConfigureVf);
}

#[test]
fn a_target_that_is_taken_gets_nothing() {
    let no = Learnt::default();
    let taken = |standby| Guest {
        run: Run::Occupied,
        standby,
        failover: None,
        ..GUEST
    };
    for goal in [Goal::Standby, Goal::FastPath] {
        for standby in [false, true] {
            does(
                ask(goal),
                seen(taken(standby), true, PARKED),
                no,
                Step::StandbyDown,
            );
            waits(
                ask(goal),
                seen(taken(standby), false, PARKED),
                no,
                Pending,
                reasons::TARGET_OCCUPIED,
            );
        }
    }
    // Its QEMU is not ours to end.
    does(OUT, seen(taken(true), false, PARKED), no, Step::UnplugStandby);
    does(OUT, seen(taken(false), false, PARKED), no, Step::RemoveStandby);
}

#[test]
fn a_nic_leaves_by_the_way_it_came() {
    let no = Learnt::default();
    let bare = Guest {
        standby: false,
        ..GUEST
    };
    does(OUT, seen(FAST, false, READY), no, Step::UnplugVf);
    does(OUT, seen(GUEST, false, READY), no, Step::Park);
    does(OUT, seen(GUEST, false, PARKED), no, Step::UnplugStandby);
    let out = seen(bare, true, READY);
    does(OUT, out, no, Step::RemoveStandby);
    does(OUT, Seen { macvtap: None, ..out }, no, Step::RemoveStandby);
    let removed = Seen {
        macvtap: None,
        standby_recorded: false,
        ..out
    };
    does(OUT, removed, no, Step::RestoreVf);
    does(
        OUT,
        Seen {
            vf: Some(VfSeen::Gone),
            ..removed
        },
        no,
        Step::DropVf,
    );
    does(OUT, Seen { vf: None, ..removed }, no, Step::Forget);
    done(
        OUT,
        Seen {
            vf: None,
            recorded: false,
            ..removed
        },
        no,
        Detached,
    );
    let keeps = taught(|l| (l.keeps_vf, l.keeps_standby) = (true, true));
    waits(
        OUT,
        seen(FAST, false, READY),
        keeps,
        FastPath,
        reasons::GUEST_KEEPS_VF,
    );
    waits(
        OUT,
        seen(GUEST, true, PARKED),
        keeps,
        Standby,
        reasons::GUEST_KEEPS_VF,
    );
    // It may turn round halfway, and begins again.
    does(TO_VF, removed, no, Step::RestoreVf);
}

#[test]
fn a_nic_leaves_a_vm_that_does_not_run_here() {
    let no = Learnt::default();
    let held = seen(FAST, false, READY);
    does(
        OUT,
        Seen {
            qemu: QemuSeen::Gone,
            ..held
        },
        no,
        Step::RemoveStandby,
    );
    waits(
        OUT,
        Seen {
            qemu: QemuSeen::Unreachable,
            ..held
        },
        no,
        Standby,
        reasons::QMP_UNAVAILABLE,
    );
    done(
        OUT,
        Seen {
            qemu: QemuSeen::Unreachable,
            ..FRESH
        },
        no,
        Detached,
    );
    let run = |run| seen(Guest { run, ..GUEST }, false, PARKED);
    does(OUT, run(Run::Incoming), no, Step::QuitQemu);
    does(OUT, run(Run::HandedOver), no, Step::QuitQemu);
    waits(OUT, run(Run::HandingOver), no, Standby, reasons::MIGRATING);
    // Whatever is up or down then is its VM's doing.
    for macvtap in [false, true] {
        let starts = seen(
            Guest {
                run: Run::Starting,
                ..GUEST
            },
            macvtap,
            PARKED,
        );
        waits(OUT, starts, no, Standby, reasons::MIGRATING);
        done(TO_VF, starts, no, Reserved);
    }
    // It has come after all, while the migration was called off.
    let expected = Ask {
        expected: true,
        ..OUT
    };
    waits(expected, run(Run::Here), no, Standby, reasons::MIGRATING);
    does(expected, run(Run::Incoming), no, Step::QuitQemu);
    for goal in [Goal::Standby, Goal::FastPath] {
        waits(
            ask(goal),
            Seen {
                qemu: QemuSeen::Gone,
                ..held
            },
            no,
            Pending,
            reasons::QMP_UNAVAILABLE,
        );
        waits(
            ask(goal),
            Seen {
                qemu: QemuSeen::Unreachable,
                ..held
            },
            no,
            Pending,
            reasons::QMP_UNAVAILABLE,
        );
    }
}

/// QEMU may live beside what has taken the place of its socket.
#[test]
fn nothing_is_given_to_a_socket_that_is_not_the_pods_and_nothing_taken() {
    let no = Learnt::default();
    let qemu = QemuSeen::Untrusted(Offence::Foreign);
    let held = Seen {
        qemu,
        ..seen(FAST, false, READY)
    };
    waits(OUT, held, no, Standby, reasons::QMP_UNTRUSTED);
    for goal in [Goal::Standby, Goal::FastPath] {
        waits(ask(goal), held, no, Pending, reasons::QMP_UNTRUSTED);
        waits(
            ask(goal),
            Seen { qemu, ..FRESH },
            no,
            Pending,
            reasons::QMP_UNTRUSTED,
        );
    }
    done(OUT, Seen { qemu, ..FRESH }, no, Detached);
}
