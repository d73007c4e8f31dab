//! What a NIC may think of its VM while a migration has it in hand.

use super::*;
use crate::machine::qemu::migration::tests::{COMPLETED, FAILED, begun, order, vm};

#[test]
fn a_nic_is_silent_at_a_target_until_the_vm_is_started() {
    let target = |step, run, info: &str, begun: Option<Begun>| {
        run_of(RunInputs {
            seen: &vm(run, info),
            goal: Goal::FastPath,
            order: Some(&order(step)),
            begun: begun.as_ref(),
            same: true,
        })
    };
    let ours = || Some(begun("m1", None));
    let arrived = |arrival| Some(begun("m1", Some(arrival)));
    let active = r#"{"status":"active"}"#;
    for (run, info, begun, listens, gives_up) in [
        (RunState::InMigrate, "{}", None, Run::Incoming, Run::Incoming),
        (RunState::Running, "{}", None, Run::Occupied, Run::Occupied),
        (RunState::InMigrate, active, None, Run::Occupied, Run::Occupied),
        (RunState::InMigrate, active, ours(), Run::Incoming, Run::Incoming),
        (RunState::Paused, COMPLETED, ours(), Run::Incoming, Run::Incoming),
        (
            RunState::Paused,
            COMPLETED,
            arrived(Arrival::Starting),
            Run::Starting,
            Run::Incoming,
        ),
        (
            RunState::Running,
            COMPLETED,
            arrived(Arrival::Starting),
            Run::Here,
            Run::Here,
        ),
        (
            RunState::Paused,
            COMPLETED,
            arrived(Arrival::Started),
            Run::Here,
            Run::Here,
        ),
    ] {
        let see = |step| target(step, run.clone(), info, begun.clone());
        assert_eq!(see(MigrationStep::Listen), listens, "{run:?} {info} {begun:?}");
        assert_eq!(see(MigrationStep::GiveUp), gives_up, "{run:?} {info} {begun:?}");
    }
}

#[test]
fn a_nic_is_silent_at_a_source_that_the_vm_may_have_left() {
    use MigrationStep::{Cancel, Resume, Transfer};
    let source = |run, info: &str, goal, step: Option<MigrationStep>, custody, same| {
        let order = step.map(order);
        let begun = Begun {
            custody,
            ..begun("m1", None)
        };
        run_of(RunInputs {
            seen: &vm(run, info),
            goal,
            order: order.as_ref(),
            begun: Some(&begun),
            same,
        })
    };
    let (standby, fast) = (Goal::Standby, Goal::FastPath);
    for step in [Transfer, Cancel] {
        let at = |run, info, custody, same| source(run, info, standby, Some(step), custody, same);
        assert_eq!(at(RunState::Running, FAILED, Custody::Here, true), Run::Here);
        for custody in [Custody::Left, Custody::Unknown] {
            assert_eq!(at(RunState::Running, FAILED, custody, true), Run::HandedOver);
            assert_eq!(at(RunState::Paused, FAILED, custody, true), Run::HandedOver);
            assert_eq!(
                at(RunState::PostMigrate, COMPLETED, custody, true),
                Run::HandedOver
            );
        }
        // A QEMU that was started since runs a VM that may run elsewhere.
        assert_eq!(
            at(RunState::Running, "{}", Custody::Unknown, false),
            Run::HandedOver
        );
    }
    let resumed = source(
        RunState::Running,
        COMPLETED,
        standby,
        Some(Resume),
        Custody::Here,
        true,
    );
    assert_eq!(resumed, Run::Here);
    // The operator knows that it is here.
    for step in [Some(Cancel), None] {
        let known = source(RunState::Running, FAILED, fast, step, Custody::Left, true);
        assert_eq!(known, Run::Here);
    }
    // Without an order a QEMU waits, or is what a migration has left; or something else brings a VM, which is left alone.
    let active = r#"{"status":"active"}"#;
    for (info, same, run) in [
        ("{}", false, Run::Incoming),
        (active, true, Run::Incoming),
        (FAILED, true, Run::Incoming),
        (active, false, Run::Occupied),
    ] {
        let seen = source(RunState::InMigrate, info, fast, None, Custody::Unknown, same);
        assert_eq!(seen, run, "{info} {same}");
    }
}
