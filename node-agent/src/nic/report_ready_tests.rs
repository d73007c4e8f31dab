//! When a NIC is ready and on its VF, and what its conditions say where it is not.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::machine::Beyond;

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
