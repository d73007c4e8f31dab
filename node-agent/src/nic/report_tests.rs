//! What a status says, for each thing that may be seen and decided.

use hybridnic_api::v1alpha1::NoFreeVf;
use hybridnic_net::{netlink::VfConfig, sysfs::DriverState};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{
    super::plan::{Step, Wait, tests::FRESH},
    super::seen::{Guest, Port, Run, VfMac, VfSeen, VfThere},
    *,
};
use crate::{
    journal::{StandbyRecord, VfRecord, tests::record},
    machine::Beyond,
};

const GUEST: Guest = Guest {
    run: Run::Here,
    standby: true,
    vf: false,
    uses_vf: false,
    failover: Some(true),
    migrating: false,
    acpi: true,
};
const FAST: Guest = Guest {
    vf: true,
    uses_vf: true,
    ..GUEST
};

const VF: VfThere = VfThere {
    on_vfio: true,
    mac: VfMac::Nic,
    settings_ok: true,
    link: true,
    dark: false,
    other_pf: false,
    held: false,
    port: Port::NoProfile,
};

fn seen(guest: Guest, up: bool) -> Seen {
    Seen {
        recorded: true,
        vf_offered: false,
        standby_recorded: true,
        macvtap: Some(up),
        qemu: QemuSeen::Up(guest),
        ..FRESH
    }
}

fn held(goal: Goal) -> Record {
    let mut held = record("a");
    held.spec.goal = goal;
    held
}

fn inputs<'a>(record: &'a Record, seen: &'a Seen, decision: Option<&'a Decision>) -> Inputs<'a> {
    Inputs {
        record,
        generation: Some(3),
        seen: Some(seen),
        running: true,
        decision,
        error: None,
        guest: GuestDevices::default(),
        unplug_order: None,
        migration: None,
        filtered: Filtered::default(),
        timeline: Vec::new(),
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn condition<'a>(status: &'a NicAttachmentStatus, type_: &str) -> &'a Condition {
    conditions::find(&status.conditions, type_).unwrap()
}

#[track_caller]
fn says(status: &NicAttachmentStatus, type_: &str, expected: (&str, &str)) {
    let found = condition(status, type_);
    assert_eq!(
        (found.status.as_str(), found.reason.as_str()),
        expected,
        "{type_}: {}",
        found.message
    );
}

#[test]
fn the_path_is_the_device_that_carries_the_traffic() {
    use Path::{FastPath, None, Standby};
    let idle = Guest {
        uses_vf: false,
        ..FAST
    };
    let cases = [
        // On the way to the VF the standby goes on until it is set down; on the way back the VF, until it is unplugged.
        (Goal::FastPath, seen(GUEST, true), Standby),
        (Goal::FastPath, seen(idle, true), Standby),
        (Goal::FastPath, seen(FAST, true), Standby),
        (Goal::FastPath, seen(FAST, false), FastPath),
        (Goal::Standby, seen(FAST, false), FastPath),
        (Goal::Standby, seen(FAST, true), FastPath),
        (Goal::Standby, seen(idle, true), Standby),
        (Goal::Standby, seen(GUEST, true), Standby),
        (Goal::Detached, seen(FAST, false), FastPath),
        // A break before the make.
        (Goal::Standby, seen(GUEST, false), None),
        (Goal::FastPath, seen(idle, false), None),
        (
            Goal::FastPath,
            seen(
                Guest {
                    standby: false,
                    ..GUEST
                },
                true,
            ),
            None,
        ),
        (
            Goal::FastPath,
            Seen {
                macvtap: Option::None,
                ..seen(GUEST, true)
            },
            None,
        ),
        (
            Goal::FastPath,
            Seen {
                qemu: QemuSeen::Gone,
                ..seen(GUEST, true)
            },
            None,
        ),
        (
            Goal::FastPath,
            Seen {
                qemu: QemuSeen::Unreachable,
                ..seen(GUEST, true)
            },
            None,
        ),
    ];
    for (goal, seen, expected) in cases {
        let record = held(goal);
        assert_eq!(
            path(&inputs(&record, &seen, Option::None)),
            expected,
            "{goal:?} {seen:?}"
        );
        assert_eq!(
            path(&Inputs {
                running: false,
                ..inputs(&record, &seen, Option::None)
            }),
            None
        );
        assert_eq!(
            path(&Inputs {
                seen: Option::None,
                ..inputs(&record, &seen, Option::None)
            }),
            None
        );
    }
}

#[test]
fn a_nic_without_a_standby_says_that_it_carries_nothing() {
    let empty = Guest {
        standby: false,
        vf: false,
        uses_vf: false,
        failover: Option::None,
        ..GUEST
    };
    let without = Seen {
        macvtap: Option::None,
        standby_recorded: false,
        ..seen(empty, false)
    };
    let said = |aside, decision: Decision| {
        let mut record = held(Goal::Standby);
        (record.spec.standby, record.spec.aside) = (StandbyKind::None, aside);
        build(inputs(&record, &without, Some(&decision)), Option::None, at(1))
    };
    let out = said(Option::None, Decision::Done(AttachmentState::Aside));
    assert_eq!((out.state, out.path), (AttachmentState::Aside, Path::None));
    says(&out, types::READY, ("True", reasons::ATTACHED));
    says(&out, types::FAST_PATH, ("False", reasons::STEPPED_ASIDE));
    let told = said(Some(Aside::KeepVf), Decision::Done(AttachmentState::Aside));
    says(&told, types::FAST_PATH, ("False", reasons::STANDBY_REQUESTED));
    assert!(condition(&told, types::FAST_PATH).message.contains("no network"));
    // Between two steps, too.
    let steps = said(Option::None, Decision::Do(Step::Park));
    assert_eq!((steps.state, steps.path), (AttachmentState::Aside, Path::None));
}

#[test]
fn a_vf_is_out_when_it_is_seen_to_be_and_not_before() {
    let empty = Guest {
        standby: false,
        failover: Option::None,
        ..GUEST
    };
    let mut record = held(Goal::Standby);
    record.spec.standby = StandbyKind::None;
    let said = |vf: bool, there: Option<VfSeen>| {
        let seen = Seen {
            vf: there,
            ..seen(Guest { vf, ..empty }, false)
        };
        let decision = Decision::Do(Step::Park);
        build(inputs(&record, &seen, Some(&decision)), Option::None, at(1)).state
    };
    let with = |mac| Some(VfSeen::There(VfThere { mac, ..VF }));
    assert_eq!(said(false, with(VfMac::Parking)), AttachmentState::Aside);
    assert_eq!(said(false, Some(VfSeen::Gone)), AttachmentState::Aside);
    for (vf, there) in [
        (true, with(VfMac::Parking)),
        (true, Some(VfSeen::Gone)),
        (false, with(VfMac::Nic)),
        (false, Some(VfSeen::Unknown { other_pf: false })),
    ] {
        assert_eq!(said(vf, there), AttachmentState::Pending, "{vf} {there:?}");
    }
    let at_generation = |generation, state| NicAttachmentStatus {
        observed_generation: Some(generation),
        state,
        ..NicAttachmentStatus::default()
    };
    let guessed = |generation, state| {
        let mut status = at_generation(3, AttachmentState::Pending);
        as_before(&mut status, at_generation(generation, state));
        status.state
    };
    assert_eq!(guessed(3, AttachmentState::Aside), AttachmentState::Aside);
    assert_eq!(guessed(2, AttachmentState::Aside), AttachmentState::Pending);
    assert_eq!(guessed(2, AttachmentState::Standby), AttachmentState::Standby);
}

#[test]
fn a_nic_that_is_told_to_stay_on_its_standby_is_ready_there() {
    let said = |aside, goal, vf: bool| {
        let mut record = held(goal);
        record.spec.aside = Some(aside);
        record.vf = vf.then(|| crate::journal::tests::held_vf(0, 0));
        let seen = seen(GUEST, true);
        let decision = Decision::Done(AttachmentState::Standby);
        let status = build(inputs(&record, &seen, Some(&decision)), None, at(1));
        assert_eq!(
            (status.state, status.path),
            (AttachmentState::Standby, Path::Standby)
        );
        says(&status, types::READY, ("True", reasons::ATTACHED));
        says(&status, types::FAST_PATH, ("False", reasons::STANDBY_REQUESTED));
        condition(&status, types::FAST_PATH).message.clone()
    };
    for goal in [Goal::FastPath, Goal::Standby] {
        assert!(said(Aside::GiveVfBack, goal, false).contains("holds no VF"));
        assert!(said(Aside::GiveVfBack, goal, true).contains("when the migration is over"));
        assert!(said(Aside::KeepVf, goal, true).contains("stays reserved for it"));
        assert!(said(Aside::KeepVf, goal, false).contains("no VF of the network is free"));
    }
    // Until it is there, its VF carries the traffic, also while both are up.
    let mut record = held(Goal::FastPath);
    record.spec.aside = Some(Aside::GiveVfBack);
    let both = seen(FAST, true);
    assert_eq!(path(&inputs(&record, &both, None)), Path::FastPath);
    let keeps = Decision::Wait(Wait {
        state: AttachmentState::FastPath,
        reason: reasons::GUEST_KEEPS_VF,
        message: "it stays".to_owned(),
    });
    let status = build(inputs(&record, &seen(FAST, false), Some(&keeps)), None, at(1));
    says(&status, types::READY, ("False", reasons::GUEST_KEEPS_VF));
    says(&status, types::FAST_PATH, ("True", reasons::VF_ACTIVE));
}

/// Checks state and conditions; without the fast path, its reason is what Ready says.
#[track_caller]
fn gives(
    goal: Goal,
    seen: &Seen,
    decision: &Decision,
    state: AttachmentState,
    ready: (&str, &str),
    fast: bool,
) {
    let record = held(goal);
    let status = build(inputs(&record, seen, Some(decision)), None, at(1));
    assert_eq!(status.state, state, "{decision:?}");
    says(&status, types::READY, ready);
    let fast = if fast {
        ("True", reasons::VF_ACTIVE)
    } else {
        ("False", ready.1)
    };
    says(&status, types::FAST_PATH, fast);
}

const AWAY: Guest = Guest {
    run: Run::Incoming,
    failover: None,
    ..GUEST
};

#[test]
fn a_nic_that_is_where_it_should_be_is_ready() {
    use AttachmentState::{Detached, FastPath, Standby};
    let gone = Seen {
        qemu: QemuSeen::Gone,
        macvtap: None,
        ..seen(GUEST, true)
    };
    let cases = [
        (Goal::FastPath, seen(FAST, false), FastPath, reasons::ATTACHED),
        (Goal::Standby, seen(GUEST, true), Standby, reasons::ATTACHED),
        (Goal::Detached, gone, Detached, reasons::DETACHED),
    ];
    for (goal, seen, state, reason) in cases {
        gives(
            goal,
            &seen,
            &Decision::Done(state),
            state,
            ("True", reason),
            state == FastPath,
        );
    }
}

#[test]
fn a_nic_whose_qemu_waits_for_a_vm_that_no_migration_brings_is_not_ready() {
    gives(
        Goal::FastPath,
        &seen(AWAY, false),
        &Decision::Done(AttachmentState::Reserved),
        AttachmentState::Reserved,
        ("False", reasons::VM_INCOMING),
        false,
    );
}

#[test]
fn a_nic_that_is_not_says_why() {
    use AttachmentState::{FastPath, Reserved, Standby};
    let cases = [
        (seen(GUEST, true), Standby),
        (seen(AWAY, false), Reserved),
        (seen(FAST, false), FastPath),
    ];
    for (seen, state) in cases {
        let ready = ("False", reasons::PROGRESSING);
        gives(
            Goal::Standby,
            &seen,
            &Decision::Do(Step::Park),
            state,
            ready,
            state == FastPath,
        );
    }
    let cases = [
        (Goal::FastPath, seen(GUEST, true), Standby, reasons::NO_FREE_VF),
        (
            Goal::Standby,
            seen(FAST, false),
            FastPath,
            reasons::GUEST_KEEPS_VF,
        ),
    ];
    for (goal, seen, state, reason) in cases {
        let wait = Decision::Wait(Wait {
            state,
            reason,
            message: "why".into(),
        });
        gives(goal, &seen, &wait, state, ("False", reason), state == FastPath);
    }
}

fn step_error(reason: &'static str, message: &str) -> StepError {
    StepError {
        reason,
        message: message.to_owned(),
    }
}

#[test]
fn an_error_is_told_whatever_comes_next() {
    let (record, seen) = (held(Goal::FastPath), seen(GUEST, true));
    let error = step_error(reasons::QEMU_REFUSED, "no such bus");
    let decision = Decision::Do(Step::PlugVf);
    let status = build(
        Inputs {
            error: Some(&error),
            ..inputs(&record, &seen, Some(&decision))
        },
        None,
        at(1),
    );
    assert_eq!(
        (status.state, status.path),
        (AttachmentState::Standby, Path::Standby)
    );
    for type_ in [types::READY, types::FAST_PATH] {
        says(&status, type_, ("False", reasons::QEMU_REFUSED));
        assert_eq!(condition(&status, type_).message, "no such bus");
    }
    let blind = build(
        Inputs {
            seen: None,
            error: Some(&error),
            ..inputs(&record, &seen, None)
        },
        None,
        at(1),
    );
    assert_eq!((blind.state, blind.path), (AttachmentState::Pending, Path::None));
    let begun = build(inputs(&record, &seen, None), None, at(1));
    assert_eq!(begun.state, AttachmentState::Pending);
    says(&begun, types::READY, ("False", reasons::PROGRESSING));
}

#[test]
fn a_condition_keeps_the_time_since_when_it_holds() {
    let record = held(Goal::FastPath);
    let (slow, fast) = (seen(GUEST, true), seen(FAST, false));
    let (step, done) = (
        Decision::Do(Step::PlugVf),
        Decision::Done(AttachmentState::FastPath),
    );
    let since = |status: &NicAttachmentStatus| {
        [types::READY, types::FAST_PATH].map(|t| condition(status, t).last_transition_time.clone())
    };
    let first = build(inputs(&record, &slow, Some(&step)), None, at(1));
    assert_eq!(since(&first), [Time(at(1)), Time(at(1))]);
    let wait = Decision::Wait(Wait {
        state: AttachmentState::Standby,
        reason: reasons::PF_LINK_DOWN,
        message: "no link".into(),
    });
    // Another reason, and still not ready.
    let second = build(inputs(&record, &slow, Some(&wait)), Some(&first), at(2));
    assert_eq!(since(&second), [Time(at(1)), Time(at(1))]);
    assert_eq!(condition(&second, types::READY).observed_generation, Some(3));
    let third = build(inputs(&record, &fast, Some(&done)), Some(&second), at(3));
    assert_eq!(since(&third), [Time(at(3)), Time(at(3))]);
    assert_eq!(
        build(inputs(&record, &fast, Some(&done)), Some(&third), at(4)),
        third
    );
    // On its way to the standby it is not ready, and still fast.
    let leaving = held(Goal::Standby);
    let fourth = build(
        inputs(&leaving, &fast, Some(&Decision::Do(Step::StandbyUp))),
        Some(&third),
        at(5),
    );
    assert_eq!(since(&fourth), [Time(at(5)), Time(at(3))]);
    assert_eq!(fourth.conditions.len(), 2);
}

#[test]
fn a_vf_without_link_or_of_which_nothing_is_known_carries_nothing_that_could_be_told() {
    let record = held(Goal::FastPath);
    let dark = VfSeen::There(VfThere { link: false, ..VF });
    let unknown = VfSeen::Unknown { other_pf: false };
    for (vf, expected) in [
        (VfSeen::There(VF), ("True", reasons::VF_ACTIVE)),
        (dark, ("False", reasons::PF_LINK_DOWN)),
        (unknown, ("Unknown", reasons::VF_UNKNOWN)),
    ] {
        let seen = Seen {
            vf: Some(vf),
            ..seen(FAST, false)
        };
        let done = Decision::Done(AttachmentState::FastPath);
        let status = build(inputs(&record, &seen, Some(&done)), None, at(1));
        says(&status, types::FAST_PATH, expected);
        assert_eq!(status.path, Path::FastPath);
    }
    // Whose network says that it stays, says so.
    let seen = Seen {
        vf: Some(dark),
        ..seen(FAST, false)
    };
    for (on_link_loss, stays) in [(OnLinkLoss::Move, false), (OnLinkLoss::Stay, true)] {
        let mut record = held(Goal::FastPath);
        record.spec.l2.on_link_loss = on_link_loss;
        let status = build(inputs(&record, &seen, None), None, at(1));
        let message = &condition(&status, types::FAST_PATH).message;
        assert_eq!(message.contains("onLinkLoss: Stay"), stays, "{message}");
    }
}

#[test]
fn a_wait_that_a_failure_led_to_has_its_own_state_and_the_failures_words() {
    let record = held(Goal::Standby);
    let error = step_error(reasons::VF_UNKNOWN, "the PF resets");
    let seen = seen(GUEST, true);
    let wait = Decision::Wait(Wait {
        state: AttachmentState::Pending,
        reason: reasons::VF_UNKNOWN,
        message: "left as it is".into(),
    });
    let inputs = Inputs {
        error: Some(&error),
        ..inputs(&record, &seen, Some(&wait))
    };
    let status = build(inputs, None, at(1));
    assert_eq!(
        (status.state, status.path),
        (AttachmentState::Pending, Path::Standby)
    );
    says(&status, types::READY, ("False", reasons::VF_UNKNOWN));
    assert_eq!(condition(&status, types::READY).message, "the PF resets");
}

#[test]
fn what_is_held_is_named() {
    let mut record = held(Goal::FastPath);
    record.spec.no_free_vf = NoFreeVf::Wait;
    let pf = "0000:03:00.0".parse().unwrap();
    let parking_mac = "06:00:00:00:00:01".parse().unwrap();
    record.vf = Some(VfRecord {
        address: "0000:03:10.2".parse().unwrap(),
        index: 1,
        pf,
        pf_name: "ens3".into(),
        pf_driver: "igb".into(),
        iommu_group: 7,
        parking_mac,
        saved: VfConfig::default(),
        saved_driver: DriverState {
            driver: None,
            driver_override: None,
        },
        rate_set: false,
        port_asked: false,
    });
    record.standby = Some(StandbyRecord {
        macvtap: "hn0".into(),
        pf,
        pf_name: "ens3".into(),
        vlan: None,
        seized: None,
        pod: None,
    });
    let seen = seen(FAST, false);
    let inputs = Inputs {
        unplug_order: Some(SwitchOrder::MakeBeforeBreak),
        ..inputs(&record, &seen, None)
    };
    let status = build(inputs, None, at(1));
    assert_eq!(
        status.vf,
        Some(VfRef {
            pci_address: "0000:03:10.2".into(),
            pf: "ens3".into(),
            index: 1
        })
    );
    assert_eq!(
        status.standby,
        Some(StandbyRef {
            macvtap: "hn0".into(),
            pf: "ens3".into()
        })
    );
    assert_eq!(status.observed_generation, Some(3));
    assert_eq!(status.unplug_order, Some(SwitchOrder::MakeBeforeBreak));
}

/// The condition is there only while there is something to say.
#[test]
fn what_the_standby_does_not_receive_is_said() {
    let (mut held, seen) = (held(Goal::FastPath), seen(GUEST, true));
    let mut old = None;
    let mut look = |held: &Record, filtered: Filtered| {
        let inputs = Inputs {
            filtered,
            ..inputs(held, &seen, None)
        };
        let status = build(inputs, old.as_ref(), at(1));
        let said = conditions::find(&status.conditions, types::STANDBY_FILTER)
            .map(|c| (c.status.clone(), c.reason.clone(), c.message.clone()));
        old = Some(status);
        said
    };
    let vlans = Filtered {
        beyond: Beyond {
            vlans: (1..=9).collect(),
            macs: true,
        },
        failed: None,
    };
    let (status, reason, message) = look(&held, vlans.clone()).unwrap();
    assert_eq!(
        (status.as_str(), reason.as_str()),
        ("False", reasons::GUEST_VLANS_FILTERED)
    );
    assert!(message.contains("(1, 2, 3, 4, 5, 6, 7, 8, …)"), "{message}");
    // Inside the network's VLAN, the guest's own pass.
    held.spec.l2.vlan = Some(hybridnic_api::v1alpha1::Vlan {
        id: 42,
        ..serde_json::from_str(r#"{"id": 42}"#).unwrap()
    });
    assert_eq!(look(&held, vlans.clone()), None);
    held.spec.l2.trust = true;
    assert_eq!(look(&held, vlans).unwrap().1, reasons::GUEST_MACS_FILTERED);
    assert_eq!(look(&held, Filtered::default()), None);
    let failed = Filtered {
        failed: Some("the kernel refused".to_owned()),
        ..Filtered::default()
    };
    let (_, reason, message) = look(&held, failed).unwrap();
    assert_eq!(reason, reasons::STANDBY_FAILED);
    assert!(message.contains("the kernel refused"), "{message}");
}
