//! What comes next in each state that matters; and, on a model of a node, that whatever happens ends well.

use hybridnic_api::v1alpha1::AttachmentState::{Detached, FastPath, Pending, Reserved, Standby};
use proptest::prelude::*;

use super::*;

#[path = "plan_model_tests.rs"]
mod model;

use model::{Event, Hardware, Manners, Node};

fn ask(goal: Goal) -> Ask {
    Ask {
        goal,
        no_free_vf: NoFreeVf::Standby,
        order: SwitchOrder::MakeBeforeBreak,
        expected: false,
    }
}

fn broken_first(goal: Goal) -> Ask {
    Ask {
        order: SwitchOrder::BreakBeforeMake,
        ..ask(goal)
    }
}

/// A VF that is reserved and parked.
const PARKED: VfSeen = VfSeen {
    on_vfio: true,
    mac: VfMac::Parking,
    settings_ok: false,
    link: true,
    other_pf: false,
};
/// A VF as it must be before it is plugged.
const READY: VfSeen = VfSeen {
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
};
/// A guest on its VF.
const FAST: Guest = Guest {
    vf: true,
    uses_vf: true,
    ..GUEST
};
/// Nothing of the NIC is there; a VF is to be had.
const FRESH: Seen = Seen {
    recorded: false,
    vf: None,
    vf_offered: true,
    uplink: true,
    standby_recorded: false,
    macvtap: None,
    qemu: QemuSeen::Up(Guest {
        standby: false,
        failover: None,
        ..GUEST
    }),
};

/// A NIC that has all it needs.
fn seen(guest: Guest, up: bool, vf: VfSeen) -> Seen {
    Seen {
        recorded: true,
        vf: Some(Some(vf)),
        vf_offered: false,
        standby_recorded: true,
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
        vf: Some(Some(vf)),
        standby_recorded: true,
        ..FRESH
    };
    let found = VfSeen {
        on_vfio: false,
        mac: VfMac::Other,
        ..PARKED
    };
    for goal in [Goal::Reserved, Goal::Standby, Goal::FastPath] {
        does(ask(goal), FRESH, no, Step::Reserve);
        does(ask(goal), held(found), no, Step::Bind);
        does(
            ask(goal),
            held(VfSeen {
                on_vfio: true,
                ..found
            }),
            no,
            Step::Park,
        );
        does(ask(goal), held(PARKED), no, Step::MakeStandby);
        does(
            ask(goal),
            Seen {
                macvtap: Some(false),
                ..held(PARKED)
            },
            no,
            Step::PlugStandby,
        );
    }
    does(
        ask(Goal::FastPath),
        seen(GUEST, false, PARKED),
        no,
        Step::StandbyUp,
    );
    does(
        ask(Goal::FastPath),
        seen(GUEST, true, PARKED),
        taught(|l| l.announce = true),
        Step::Announce,
    );
    does(
        ask(Goal::FastPath),
        seen(GUEST, true, PARKED),
        no,
        Step::ConfigureVf,
    );
    does(ask(Goal::FastPath), seen(GUEST, true, READY), no, Step::PlugVf);
    let plugged = Guest {
        uses_vf: false,
        ..FAST
    };
    does(
        ask(Goal::FastPath),
        seen(plugged, true, READY),
        no,
        Step::AwaitGuest,
    );
    // Interrupts alone do not tell that the traffic has moved.
    does(ask(Goal::FastPath), seen(FAST, true, READY), no, Step::AwaitGuest);
    does(
        ask(Goal::FastPath),
        seen(FAST, true, READY),
        taught(|l| l.moved = true),
        Step::StandbyDown,
    );
    done(ask(Goal::FastPath), seen(FAST, false, READY), no, FastPath);
}

#[test]
fn a_break_comes_first_where_the_hardware_needs_it() {
    let (no, twice) = (Learnt::default(), taught(|l| l.refuses_twice = true));
    let elsewhere = VfSeen {
        other_pf: true,
        ..PARKED
    };
    for (ask, vf, learnt) in [
        (broken_first(Goal::FastPath), PARKED, no),
        (ask(Goal::FastPath), PARKED, twice),
        (ask(Goal::FastPath), elsewhere, no),
    ] {
        does(ask, seen(GUEST, true, vf), learnt, Step::StandbyDown);
        does(ask, seen(GUEST, false, vf), learnt, Step::ConfigureVf);
        let ready = VfSeen {
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
    does(ask(Goal::Standby), seen(FAST, false, READY), no, Step::StandbyUp);
    does(ask(Goal::Standby), seen(FAST, true, READY), no, Step::UnplugVf);
    does(ask(Goal::Standby), seen(GUEST, true, READY), announce, Step::Park);
    does(
        ask(Goal::Standby),
        seen(GUEST, true, PARKED),
        announce,
        Step::Announce,
    );
    done(ask(Goal::Standby), seen(GUEST, true, PARKED), no, Standby);
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
        for goal in [Goal::Reserved, Goal::Standby, Goal::FastPath] {
            does(ask(goal), seen(away, true, PARKED), no, Step::StandbyDown);
            // A VF found with the NIC's MAC would answer for a VM that runs elsewhere.
            does(ask(goal), seen(away, false, READY), no, Step::Park);
            done(ask(goal), seen(away, false, PARKED), no, rest);
        }
    }
    does(
        ask(Goal::FastPath),
        seen(GUEST, true, PARKED),
        no,
        Step::ConfigureVf,
    );
}

#[test]
fn back_to_reserved_all_is_silent() {
    let no = Learnt::default();
    does(ask(Goal::Reserved), seen(FAST, false, READY), no, Step::UnplugVf);
    does(ask(Goal::Reserved), seen(GUEST, true, READY), no, Step::Park);
    does(
        ask(Goal::Reserved),
        seen(GUEST, true, PARKED),
        no,
        Step::StandbyDown,
    );
    done(ask(Goal::Reserved), seen(GUEST, false, PARKED), no, Reserved);
    let keeps = taught(|l| l.keeps_vf = true);
    waits(
        ask(Goal::Reserved),
        seen(FAST, false, READY),
        keeps,
        FastPath,
        reasons::GUEST_KEEPS_VF,
    );
}

#[test]
fn a_guest_that_keeps_its_vf_keeps_its_network() {
    let keeps = taught(|l| l.keeps_vf = true);
    does(
        ask(Goal::Standby),
        seen(FAST, true, READY),
        keeps,
        Step::StandbyDown,
    );
    waits(
        ask(Goal::Standby),
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
        }
    }
    waits(
        ask(Goal::FastPath),
        seen(blind, true, PARKED),
        ignores,
        Standby,
        reasons::GUEST_IGNORES_VF,
    );
    waits(
        ask(Goal::Standby),
        seen(blind, true, PARKED),
        keeps,
        FastPath,
        reasons::GUEST_KEEPS_VF,
    );
    // And when it wakes up, it gets the VF anew: it has met it under another MAC.
    does(
        ask(Goal::FastPath),
        seen(blind, true, PARKED),
        Learnt::default(),
        Step::UnplugVf,
    );
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
        ..ask(Goal::FastPath)
    };
    waits(waiting, none, no, Pending, reasons::NO_FREE_VF);
    does(ask(Goal::FastPath), none, no, Step::Reserve);
    waits(
        ask(Goal::FastPath),
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
    does(ask(Goal::FastPath), alone, no, Step::StandbyUp);
    waits(
        ask(Goal::FastPath),
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
        ask(Goal::Standby),
        Seen {
            macvtap: Some(true),
            ..alone
        },
        no,
        Standby,
    );
    // A late VF.
    does(
        ask(Goal::FastPath),
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
fn a_vf_that_is_lost_is_let_go_of() {
    let no = Learnt::default();
    for goal in [Goal::Reserved, Goal::Standby, Goal::FastPath] {
        does(
            ask(goal),
            Seen {
                vf: Some(None),
                ..seen(FAST, false, READY)
            },
            no,
            Step::DropVf,
        );
    }
    // QEMU still has it; no other is taken before.
    let plugged = Guest {
        uses_vf: false,
        ..FAST
    };
    let gone = Seen {
        vf: None,
        vf_offered: true,
        ..seen(plugged, true, READY)
    };
    does(ask(Goal::FastPath), gone, no, Step::UnplugVf);
    does(ask(Goal::Standby), gone, no, Step::UnplugVf);
    let keeps = taught(|l| l.keeps_vf = true);
    does(
        ask(Goal::FastPath),
        Seen {
            macvtap: Some(false),
            ..gone
        },
        keeps,
        Step::StandbyUp,
    );
    waits(
        ask(Goal::FastPath),
        gone,
        keeps,
        Standby,
        reasons::GUEST_IGNORES_VF,
    );
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
        does(
            broken_first(Goal::FastPath),
            seen(guest, false, ready),
            learnt,
            Step::Park,
        );
        does(
            ask(Goal::FastPath),
            seen(guest, false, vf),
            learnt,
            Step::StandbyUp,
        );
        does(
            ask(Goal::FastPath),
            seen(guest, true, vf),
            Learnt {
                announce: true,
                ..learnt
            },
            Step::Announce,
        );
        waits(
            ask(Goal::FastPath),
            seen(guest, true, vf),
            learnt,
            Standby,
            reason,
        );
    }
    does(
        ask(Goal::FastPath),
        seen(FAST, true, READY),
        taught(|l| l.ignores_vf = true),
        Step::UnplugVf,
    );
    let other = VfSeen {
        settings_ok: false,
        ..READY
    };
    does(
        ask(Goal::FastPath),
        seen(FAST, false, other),
        no,
        Step::ConfigureVf,
    );
    let refused = taught(|l| l.vf_failed = Some(reasons::VF_SETTING_REFUSED));
    waits(
        ask(Goal::FastPath),
        seen(FAST, false, other),
        refused,
        FastPath,
        reasons::VF_SETTING_REFUSED,
    );
}

#[test]
fn a_nic_leaves_by_the_way_it_came() {
    let (no, detached) = (Learnt::default(), ask(Goal::Detached));
    let bare = Guest {
        standby: false,
        ..GUEST
    };
    does(detached, seen(FAST, false, READY), no, Step::UnplugVf);
    does(detached, seen(GUEST, false, READY), no, Step::UnplugStandby);
    let out = seen(bare, true, READY);
    does(detached, out, no, Step::RemoveStandby);
    does(detached, Seen { macvtap: None, ..out }, no, Step::RemoveStandby);
    let removed = Seen {
        macvtap: None,
        standby_recorded: false,
        ..out
    };
    does(detached, removed, no, Step::RestoreVf);
    does(
        detached,
        Seen {
            vf: Some(None),
            ..removed
        },
        no,
        Step::RestoreVf,
    );
    does(detached, Seen { vf: None, ..removed }, no, Step::Forget);
    done(
        detached,
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
        detached,
        seen(FAST, false, READY),
        keeps,
        FastPath,
        reasons::GUEST_KEEPS_VF,
    );
    waits(
        detached,
        seen(GUEST, true, PARKED),
        keeps,
        Standby,
        reasons::GUEST_KEEPS_VF,
    );
    // It may turn round halfway, and begins anew.
    does(ask(Goal::FastPath), removed, no, Step::RestoreVf);
}

#[test]
fn a_nic_leaves_a_vm_that_does_not_run_here() {
    let (no, detached) = (Learnt::default(), ask(Goal::Detached));
    let held = seen(FAST, false, READY);
    does(
        detached,
        Seen {
            qemu: QemuSeen::Gone,
            ..held
        },
        no,
        Step::RemoveStandby,
    );
    waits(
        detached,
        Seen {
            qemu: QemuSeen::Unreachable,
            ..held
        },
        no,
        Standby,
        reasons::QMP_UNAVAILABLE,
    );
    done(
        detached,
        Seen {
            qemu: QemuSeen::Unreachable,
            ..FRESH
        },
        no,
        Detached,
    );
    let run = |run| seen(Guest { run, ..GUEST }, false, PARKED);
    does(detached, run(Run::Incoming), no, Step::QuitQemu);
    does(detached, run(Run::HandedOver), no, Step::QuitQemu);
    waits(detached, run(Run::HandingOver), no, Standby, reasons::MIGRATING);
    // It has come after all, while the migration was called off.
    let expected = Ask {
        expected: true,
        ..detached
    };
    waits(expected, run(Run::Here), no, Standby, reasons::MIGRATING);
    does(expected, run(Run::Incoming), no, Step::QuitQemu);
    for goal in [Goal::Reserved, Goal::Standby, Goal::FastPath] {
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

fn goals() -> impl Strategy<Value = Goal> {
    prop::sample::select(
        &[
            Goal::Reserved,
            Goal::Standby,
            Goal::FastPath,
            Goal::FastPath,
            Goal::Detached,
        ][..],
    )
}

fn hardware() -> impl Strategy<Value = Hardware> {
    let order = prop::sample::select(&[SwitchOrder::MakeBeforeBreak, SwitchOrder::BreakBeforeMake][..]);
    let no_free_vf = prop::sample::select(&[NoFreeVf::Standby, NoFreeVf::Wait][..]);
    let mac = prop::sample::select(&[VfMac::Other, VfMac::Nic][..]);
    (
        any::<bool>(),
        order,
        no_free_vf,
        any::<bool>(),
        mac,
        any::<bool>(),
    )
        .prop_map(
            |(refuses_twice, order, no_free_vf, vf_elsewhere, stale_mac, plain)| Hardware {
                refuses_twice,
                order,
                no_free_vf,
                vf_elsewhere,
                stale_mac,
                plain,
            },
        )
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    use Manners::{Asleep, Blind, Good, IgnoresVf, KeepsVf, NoFailover};
    let manners =
        prop::sample::select(&[Good, Good, Good, KeepsVf, IgnoresVf, Blind, NoFailover, Asleep][..]);
    let event = prop_oneof![
        40 => prop::bool::weighted(0.1).prop_map(|fails| Event::Step { fails }),
        2 => Just(Event::Crash),
        2 => Just(Event::Relearn),
        5 => goals().prop_map(Event::Goal),
        3 => manners.prop_map(Event::Guest),
        2 => any::<bool>().prop_map(Event::Link),
        2 => any::<bool>().prop_map(Event::Offer),
        1 => Just(Event::VfLost),
        1 => Just(Event::MacvtapLost),
        1 => Just(Event::Settings),
        1 => any::<bool>().prop_map(Event::Expected),
        1 => any::<bool>().prop_map(Event::Refuses),
        1 => any::<bool>().prop_map(Event::NoPlug),
        1 => Just(Event::QemuEnds),
        2 => any::<bool>().prop_map(|incoming| Event::QemuStarts { incoming }),
        2 => any::<bool>().prop_map(Event::Mute),
        1 => Just(Event::Reset),
        1 => Just(Event::Interrupts),
        4 => Just(Event::Migrate),
        2 => Just(Event::TakenBack),
    ];
    prop::collection::vec(event, 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_it_ends_well(
        hardware in hardware(),
        incoming: bool,
        history in events(),
        goal in goals(),
    ) {
        let mut node = Node::new(hardware, incoming);
        for event in history {
            node.handle(event);
        }
        node.settle();
        node.handle(Event::Goal(goal));
        node.settle();
        node.handle(Event::Crash);
        node.settle();
        node.heal();
        node.handle(Event::Goal(Goal::FastPath));
        prop_assert_eq!(node.settle(), Decision::Done(FastPath));
        node.handle(Event::Goal(Goal::Detached));
        prop_assert_eq!(node.settle(), Decision::Done(Detached));
    }

    /// Also what no history leads to: an agent starts on what it finds.
    #[test]
    fn a_vm_that_is_not_here_stays_silent_and_nothing_is_taken_from_it(
        goal in goals(),
        run in prop::sample::select(&[Run::Incoming, Run::HandingOver, Run::HandedOver][..]),
        guest: (bool, bool, bool),
        vf: (bool, bool, bool, bool),
        macvtap: Option<bool>,
        learnt: (bool, bool, bool, bool),
    ) {
        let guest = Guest { run, standby: guest.0, vf: guest.1, uses_vf: guest.2, failover: None };
        let mac = if vf.0 { VfMac::Nic } else { VfMac::Parking };
        let vf = VfSeen { mac, settings_ok: vf.1, link: vf.2, other_pf: vf.3, ..PARKED };
        let learnt = Learnt {
            keeps_vf: learnt.0, ignores_vf: learnt.1, refuses_twice: learnt.2, announce: learnt.3, ..Learnt::default()
        };
        let decision = next(&ask(goal), &Seen { macvtap, ..seen(guest, true, vf) }, &learnt);
        let wrong = match decision {
            Decision::Do(Step::StandbyUp | Step::ConfigureVf | Step::PlugVf | Step::Announce) => true,
            Decision::Do(Step::UnplugVf | Step::UnplugStandby) => true,
            Decision::Do(Step::RemoveStandby | Step::RestoreVf | Step::Forget) => guest.vf || guest.standby,
            _ => false,
        };
        prop_assert!(!wrong, "{decision:?}");
    }
}
