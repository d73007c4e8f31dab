use serde_json::json;

use super::*;

fn vm(run: RunState, status: &MigrationStatus) -> VmSeen {
    VmSeen {
        run,
        info: serde_json::from_value(json!({"status": status.to_string()})).unwrap(),
    }
}

fn watched(role: Role) -> Watched {
    Watched {
        migration: "m".into(),
        process: None,
        role,
        begun: false,
        arrived: false,
    }
}

/// Looks at a VM again and again; gives what is said each time, and whether the VM is known to be here and not on its way.
fn story(role: Role, looks: &[(RunState, MigrationStatus)]) -> Vec<(MigrationState, bool)> {
    let mut watched = watched(role);
    let mut said = None;
    let look = |(run, status): &(RunState, MigrationStatus)| {
        let seen = vm(run.clone(), status);
        watched = learn(watched.clone(), &seen);
        if let Some(report) = report(&watched, false, EndSeen::Up(&seen), said.as_ref()) {
            said = Some(report);
        }
        let said = said.as_ref().unwrap();
        (said.state, said.kept)
    };
    looks.iter().map(look).collect()
}

#[test]
fn a_source_says_when_it_keeps_its_vm() {
    use MigrationState::{Active, Cancelled, Completed, Failed, Prepared};
    use MigrationStatus as Status;
    use RunState::{FinishMigrate, PostMigrate, Running};
    assert_eq!(
        story(
            Role::Source,
            &[
                (Running, Status::None),
                (Running, Status::Setup),
                (Running, Status::Active),
                (FinishMigrate, Status::PreSwitchover),
                (FinishMigrate, Status::Device),
                (PostMigrate, Status::Completed),
            ]
        ),
        [
            (Prepared, true),
            (Active, false),
            (Active, false),
            (Active, false),
            (Active, false),
            (Completed, false)
        ]
    );
    // What QEMU says of an earlier try is not about this one.
    for earlier in [Status::Failed, Status::Cancelled, Status::Completed] {
        let said = story(
            Role::Source,
            &[
                (Running, earlier.clone()),
                (Running, Status::Active),
                (Running, Status::Failed),
            ],
        );
        assert_eq!(
            said,
            [(Prepared, true), (Active, false), (Failed, true)],
            "{earlier}"
        );
    }
    let cancelled = [
        (Running, Status::Active),
        (Running, Status::Cancelling),
        (Running, Status::Cancelled),
    ];
    assert_eq!(
        story(Role::Source, &cancelled),
        [(Active, false), (Active, false), (Cancelled, true)]
    );
}

#[test]
fn a_target_has_its_vm_once_it_has_run_there() {
    use MigrationState::{Active, Completed, Failed, Listening};
    use MigrationStatus as Status;
    use RunState::{InMigrate, Paused, Running};
    assert_eq!(
        story(
            Role::Target,
            &[
                (InMigrate, Status::None),
                (InMigrate, Status::Active),
                (Paused, Status::Completed),
                (Running, Status::Completed),
                (Paused, Status::Completed),
            ]
        ),
        [
            (Listening, false),
            (Listening, false),
            (Active, false),
            (Completed, false),
            (Completed, false)
        ]
    );
    assert_eq!(
        story(Role::Target, &[(InMigrate, Status::Failed)]),
        [(Failed, false)]
    );
}

#[test]
fn the_end_of_a_qemu_is_said_and_silence_says_nothing() {
    let source = watched(Role::Source);
    assert_eq!(report(&source, false, EndSeen::Silent, None), None);
    let state = |watched: &Watched, said: Option<&MigrationReport>| {
        report(watched, false, EndSeen::Ended, said).map(|report| report.state)
    };
    assert_eq!(state(&source, None), Some(MigrationState::Lost));
    let completed = MigrationReport::new("m", MigrationState::Completed);
    assert_eq!(state(&source, Some(&completed)), None, "it has done its part");
    let earlier = MigrationReport::new("another", MigrationState::Completed);
    assert_eq!(state(&source, Some(&earlier)), Some(MigrationState::Lost));
    let target = watched(Role::Target);
    assert_eq!(state(&target, None), Some(MigrationState::Lost));
    let arrived = Watched {
        arrived: true,
        ..target
    };
    assert_eq!(state(&arrived, Some(&completed)), Some(MigrationState::Ended));
}

#[test]
fn which_end_it_is_is_told_only_where_it_can_be() {
    use MigrationStatus as Status;
    use RunState::{InMigrate, Paused, Running};
    let none = RoleInputs::default();
    let (incoming, ran) = (
        RoleInputs {
            incoming: true,
            ..none
        },
        RoleInputs { ran: true, ..none },
    );
    let (both, another) = (
        RoleInputs {
            ran: true,
            ..incoming
        },
        RoleInputs {
            another: true,
            ..incoming
        },
    );
    let known = |run, status, inputs| {
        let seen = Some(&vm(run, status));
        role(RoleInputs { seen, ..inputs })
    };
    assert_eq!(role(none), Some(Role::Target), "there is no QEMU yet");
    assert_eq!(role(ran), Some(Role::Source), "there is none any more");
    assert_eq!(known(InMigrate, &Status::None, incoming), Some(Role::Target));
    assert_eq!(known(Paused, &Status::Completed, incoming), Some(Role::Target));
    assert_eq!(known(Running, &Status::None, ran), Some(Role::Source));
    assert_eq!(known(Running, &Status::Failed, ran), Some(Role::Source));
    assert_eq!(known(Running, &Status::Active, ran), Some(Role::Source));
    // It came by an earlier one that was watched.
    assert_eq!(known(Running, &Status::Completed, another), Some(Role::Source));
    // It came while nobody looked; or by a migration that was not watched, and has run here since.
    for seen in [none, both] {
        assert_eq!(known(Running, &Status::Completed, seen), None, "{seen:?}");
    }
    assert_eq!(known(Paused, &Status::Completed, both), None);
}

/// What its NICs are told shows which end it is, where QEMU does not.
#[test]
fn a_source_is_known_when_it_is_asked_and_a_target_while_it_waits() {
    use Goal::{FastPath, Reserved, Standby};
    let role = |step, goals: &[Goal]| {
        role(RoleInputs {
            seen: Some(&vm(RunState::Running, &MigrationStatus::Completed)),
            incoming: true,
            ran: true,
            told: told(step, goals.iter().copied()),
            ..RoleInputs::default()
        })
    };
    assert_eq!(role(MigrationStep::Cancel, &[Standby]), Some(Role::Source));
    assert_eq!(
        role(MigrationStep::Watch, &[Standby, Reserved]),
        Some(Role::Target)
    );
    for unclear in [Standby, FastPath] {
        assert_eq!(role(MigrationStep::Watch, &[unclear]), None);
    }
}

#[test]
fn a_nic_is_silent_wherever_its_vm_may_run_elsewhere() {
    use MigrationStatus as Status;
    use RunState::{FinishMigrate, InMigrate, Paused, PostMigrate, Running};
    for (run, status, has_run, expected) in [
        (InMigrate, Status::None, false, Run::Incoming),
        (InMigrate, Status::Active, false, Run::Incoming),
        (Paused, Status::Completed, false, Run::Incoming),
        // A user's pause, after the VM's arrival or before any migration.
        (Paused, Status::Completed, true, Run::Here),
        (Paused, Status::None, true, Run::Here),
        (Running, Status::Active, true, Run::Here),
        (FinishMigrate, Status::PreSwitchover, true, Run::HandingOver),
        (Paused, Status::PreSwitchover, true, Run::HandingOver),
        // It was paused so that it converges, or was paused before: from here it may go.
        (Paused, Status::Active, true, Run::HandingOver),
        (FinishMigrate, Status::Completed, true, Run::HandedOver),
        (PostMigrate, Status::Completed, true, Run::HandedOver),
        (Running, Status::Failed, true, Run::Here),
    ] {
        assert_eq!(
            run_of(&vm(run.clone(), &status), has_run),
            expected,
            "{run} {status}"
        );
    }
}

/// KubeVirt has given up: what was reported before that is reported again, as a new report.
#[test]
fn a_source_that_never_began_says_so_once_it_is_off() {
    let mut source = watched(Role::Source);
    let said = |source: &Watched, run, status| {
        let report = report(source, true, EndSeen::Up(&vm(run, &status)), None).unwrap();
        (report.state, report.kept)
    };
    let none = MigrationStatus::None;
    assert_eq!(
        said(&source, RunState::Running, none.clone()),
        (MigrationState::Cancelled, true)
    );
    // It still began, and nobody has looked since.
    assert_eq!(
        said(&source, RunState::Running, MigrationStatus::Active),
        (MigrationState::Active, false)
    );
    assert_eq!(
        said(&source, RunState::PostMigrate, MigrationStatus::Completed),
        (MigrationState::Completed, false)
    );
    source.begun = true;
    assert_eq!(
        said(&source, RunState::Running, none),
        (MigrationState::Cancelled, true)
    );
}

/// In post-copy the VM runs at the target while its memory is still at the source: the standby carries it, and no VF is plugged, which would
/// pin memory that is not there yet.
#[test]
fn in_post_copy_the_target_has_the_vm_and_no_vf_is_plugged_until_its_memory_is_there() {
    use MigrationState::{Active, Completed, Listening};
    use MigrationStatus::{Completed as Done, PostcopyActive, PostcopyPaused};
    use RunState::{FinishMigrate, InMigrate, PostMigrate, Running};
    let target = [
        (InMigrate, MigrationStatus::Active),
        (Running, PostcopyActive),
        (Running, PostcopyPaused),
        (Running, Done),
    ];
    let said = story(Role::Target, &target).into_iter().map(|(state, _)| state);
    assert_eq!(
        said.collect::<Vec<_>>(),
        [Listening, Completed, Completed, Completed]
    );
    let may_plug = target.map(|(run, status)| {
        let seen = vm(run, &status);
        (run_of(&seen, false) == Run::Here, is_under_way(&seen))
    });
    assert_eq!(
        may_plug,
        [(false, true), (true, true), (true, true), (true, false)]
    );

    let source = [
        (Running, MigrationStatus::Active),
        (FinishMigrate, PostcopyActive),
        (FinishMigrate, PostcopyPaused),
        (PostMigrate, Done),
    ];
    let said = story(Role::Source, &source).into_iter().map(|(state, _)| state);
    assert_eq!(said.collect::<Vec<_>>(), [Active, Active, Active, Completed]);
    let is_silent = source.map(|(run, status)| run_of(&vm(run, &status), true) != Run::Here);
    assert_eq!(is_silent, [false, true, true, true]);
}
