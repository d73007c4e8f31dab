use hybridnic_api::v1alpha1::FileOrder;

use super::super::tests::{begun, order, vm};
use super::super::{EndSeen, Inputs, decide};
use super::*;
use crate::{
    journal::Saving,
    machine::{
        NicEntry,
        qemu::state_file::{SavedMachine, SavedNic},
    },
};

const SAYS: Says<'_> = Says("m1");

fn ordered(step: MigrationStep, then: Option<AfterSave>) -> MigrationOrder {
    MigrationOrder {
        file: Some(FileOrder {
            path: "/saves/vm".to_owned(),
            then,
            bandwidth: None,
        }),
        ..order(step)
    }
}

fn at(stage: SaveStage) -> Begun {
    Begun {
        saving: Some(Saving {
            inode: 1,
            mapped: true,
            stage,
        }),
        ..begun("m1", None)
    }
}

/// What is done, and what is said.
fn is(verdict: &Verdict) -> (Option<Action>, Option<MigrationState>) {
    (
        verdict.action.clone(),
        verdict.report.as_ref().map(|report| report.state),
    )
}

fn saves(
    run: RunState,
    info: &str,
    stage: Option<SaveStage>,
    then: AfterSave,
) -> (Option<Action>, Option<MigrationState>) {
    let begun = stage.map(at);
    let order = ordered(MigrationStep::Save, Some(then));
    is(&save(&vm(run, info), begun.as_ref(), true, &order, SAYS))
}

const NONE: &str = "{}";
const ACTIVE: &str = r#"{"status":"active","ram":{"transferred":7,"remaining":3,"total":10}}"#;
const COMPLETED: &str = r#"{"status":"completed","downtime":12,"total-time":99}"#;
const FAILED: &str = r#"{"status":"failed","error-desc":"No space left on device"}"#;

#[test]
fn a_file_gets_its_name_once_all_is_written_and_the_vm_runs_on_only_if_it_is_to() {
    use AfterSave::{Continue, End, Pause};
    use MigrationState::{Active, Completed};
    let file = |action| Some(Action::File(action));
    for then in [End, Continue, Pause] {
        let resume = then == Continue;
        assert_eq!(
            saves(RunState::Running, NONE, None, then),
            (file(FileAction::Write), None)
        );
        let writing = Some(SaveStage::Writing);
        assert_eq!(
            saves(RunState::Running, ACTIVE, writing, then),
            (None, Some(Active))
        );
        let seal = (file(FileAction::Seal { resume }), Some(Active));
        assert_eq!(saves(RunState::PostMigrate, COMPLETED, writing, then), seal);
        assert_eq!(
            saves(RunState::PostMigrate, COMPLETED, Some(SaveStage::Whole), then),
            seal
        );
        let named = saves(RunState::PostMigrate, COMPLETED, Some(SaveStage::Named(9)), then);
        let after = if resume {
            (Some(Action::Resume), Some(Active))
        } else {
            (None, Some(Completed))
        };
        assert_eq!(named, after, "a VM that is still to run on is not done");
    }
    // The agent died after it had run the VM on.
    let whole = Some(SaveStage::Whole);
    let seal = file(FileAction::Seal { resume: true });
    assert_eq!(
        saves(RunState::Running, COMPLETED, whole, Continue),
        (seal, Some(Active))
    );
    // And the order to run on, for one that was to wait.
    let named = Some(SaveStage::Named(9));
    assert_eq!(
        saves(RunState::Running, COMPLETED, named, Continue),
        (None, Some(Completed))
    );
}

#[test]
fn an_agent_that_died_before_qemu_was_told_tells_it() {
    let write = (Some(Action::File(FileAction::Write)), None);
    let writing = Some(SaveStage::Writing);
    assert_eq!(saves(RunState::Running, NONE, writing, AfterSave::End), write);
    // Of the VM's own arrival, for example.
    assert_eq!(
        saves(RunState::Running, COMPLETED, writing, AfterSave::End),
        write
    );
}

#[test]
fn a_vm_that_is_ahead_of_its_file_is_not_ended_for_it() {
    for then in [AfterSave::End, AfterSave::Pause] {
        let (action, state) = saves(RunState::Running, COMPLETED, Some(SaveStage::Whole), then);
        assert_eq!((action, state), (None, Some(MigrationState::Failed)));
    }
    let named = Some(SaveStage::Named(1));
    let ends = saves(RunState::Running, COMPLETED, named, AfterSave::End);
    let discard = Some(Action::File(FileAction::Discard { resume: false }));
    assert_eq!(ends, (discard.clone(), Some(MigrationState::Failed)));
    let begun = at(SaveStage::Named(1));
    let order = ordered(MigrationStep::Cancel, Some(AfterSave::End));
    let cancels = cancel(
        &vm(RunState::Running, COMPLETED),
        Some(&begun),
        None,
        &order,
        SAYS,
    );
    assert_eq!(is(&cancels), (discard, None), "and its file goes");
    let spoilt = saves(
        RunState::PostMigrate,
        COMPLETED,
        Some(SaveStage::Spoilt),
        AfterSave::End,
    );
    assert_eq!(spoilt, (None, Some(MigrationState::Failed)));
    let failed = saves(
        RunState::Running,
        FAILED,
        Some(SaveStage::Writing),
        AfterSave::End,
    );
    assert_eq!(failed, (None, Some(MigrationState::Failed)));
}

#[test]
fn a_vm_that_was_to_wait_beside_its_file_and_runs_is_reported() {
    let error = |run, step, then| {
        let (vm, begun) = (vm(run, COMPLETED), at(SaveStage::Named(1)));
        let order = ordered(step, Some(then));
        let verdict = match step {
            MigrationStep::Save => save(&vm, Some(&begun), true, &order, SAYS),
            _ => cancel(&vm, Some(&begun), None, &order, SAYS),
        };
        assert_eq!(is(&verdict), (None, Some(MigrationState::Completed)));
        verdict.report.unwrap().error
    };
    for step in [MigrationStep::Save, MigrationStep::Cancel] {
        assert_eq!(error(RunState::PostMigrate, step, AfterSave::Pause), None);
        let ran_on = error(RunState::Running, step, AfterSave::Pause);
        assert_eq!(ran_on.as_deref(), Some(RUN_ON), "{step}");
        assert_eq!(
            error(RunState::Running, step, AfterSave::Continue),
            None,
            "{step}"
        );
    }
}

/// Its agent may have died between the report and the journal, or after both.
#[test]
fn a_vm_that_ran_on_past_its_file_has_not_ended_in_it() {
    let ended = |stage, said: Option<MigrationReport>| {
        let nic = NicEntry {
            nic: "a".to_owned(),
            order: Some(ordered(MigrationStep::Save, Some(AfterSave::End))),
            ..NicEntry::default()
        };
        let verdict = decide(&Inputs {
            nics: &[("a".to_owned(), nic)].into(),
            end: EndSeen::Ended,
            begun: Some(&at(stage)),
            said: said.as_ref(),
            certified: None,
            file: None,
        });
        verdict.report.unwrap().state
    };
    let named = SaveStage::Named(1);
    let failed = |uid| Some(MigrationReport::new(uid, MigrationState::Failed));
    assert_eq!(ended(named, None), MigrationState::Ended);
    assert_eq!(ended(named, failed("m1")), MigrationState::Lost);
    assert_eq!(ended(named, failed("m0")), MigrationState::Ended, "of another");
    assert_eq!(ended(SaveStage::Spoilt, None), MigrationState::Lost);
}

#[test]
fn it_says_how_far_it_is_and_how_long_the_file_is_in_the_end() {
    let order = ordered(MigrationStep::Save, Some(AfterSave::End));
    let report = |info, stage| {
        let run = if info == ACTIVE {
            RunState::Running
        } else {
            RunState::PostMigrate
        };
        save(&vm(run, info), Some(&at(stage)), true, &order, SAYS)
            .report
            .unwrap()
    };
    let writes = report(ACTIVE, SaveStage::Writing);
    assert_eq!((writes.written, writes.remaining), (Some(7), Some(3)));
    let done = report(COMPLETED, SaveStage::Named(4096));
    assert_eq!(
        (done.written, done.remaining, done.downtime_ms),
        (Some(4096), None, Some(12))
    );
}

#[test]
fn what_is_called_off_leaves_nothing_and_the_vm_runs() {
    let cancels = |run, info, stage: Option<SaveStage>, file: Option<&FileSeen>| {
        let begun = stage.map(at);
        let order = ordered(MigrationStep::Cancel, Some(AfterSave::End));
        is(&cancel(&vm(run, info), begun.as_ref(), file, &order, SAYS))
    };
    let discard = |resume| (Some(Action::File(FileAction::Discard { resume })), None);
    let gone = Some(&FileSeen::Gone);
    let cancelled = (None, Some(MigrationState::Cancelled));
    assert_eq!(cancels(RunState::Running, NONE, None, None), discard(false));
    assert_eq!(cancels(RunState::Running, NONE, None, gone), cancelled);
    let writing = Some(SaveStage::Writing);
    assert_eq!(
        cancels(RunState::Running, ACTIVE, writing, None),
        (Some(Action::Cancel), Some(MigrationState::Active))
    );
    let cancelling = r#"{"status":"cancelling"}"#;
    assert_eq!(
        cancels(RunState::Running, cancelling, writing, None),
        (None, Some(MigrationState::Active))
    );
    assert_eq!(
        cancels(RunState::Running, r#"{"status":"cancelled"}"#, writing, None),
        discard(false)
    );
    for stage in [SaveStage::Writing, SaveStage::Whole, SaveStage::Spoilt] {
        assert_eq!(
            cancels(RunState::PostMigrate, COMPLETED, Some(stage), None),
            discard(true)
        );
        // Even where it was removed before: the VM must run.
        assert_eq!(
            cancels(RunState::PostMigrate, COMPLETED, Some(stage), gone),
            discard(true)
        );
    }
    assert_eq!(
        cancels(RunState::Running, COMPLETED, Some(SaveStage::Spoilt), gone),
        cancelled
    );
    // It came too late: the file is there.
    let named = cancels(RunState::PostMigrate, COMPLETED, Some(SaveStage::Named(1)), None);
    assert_eq!(named, (None, Some(MigrationState::Completed)));
}

fn manifest() -> Manifest {
    let machine = SavedMachine {
        namespace: "ns".to_owned(),
        vm: "vm".to_owned(),
        machine_type: "pc-q35-10.0".to_owned(),
        memory: 1,
        qemu: "10.0.2".to_owned(),
        nics: Vec::<SavedNic>::new(),
    };
    Manifest::new("s", machine, true, 1, String::new())
}

fn loadable() -> FileSeen {
    FileSeen::Loadable(manifest())
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_done() {
    let prepares = |run, info, then: Option<AfterSave>, file: Option<&FileSeen>| {
        prepare(&vm(run, info), &ordered(MigrationStep::Prepare, then), file, SAYS)
    };
    let no = FileSeen::Refused("no".to_owned());
    let end = Some(AfterSave::End);
    let look = Some(Action::File(FileAction::Look));
    assert_eq!(prepares(RunState::Running, NONE, end, None).action, look);
    let report = prepares(RunState::Running, NONE, end, Some(&no)).report.unwrap();
    assert!(report.refused && report.error.as_deref() == Some("no"));
    let report = prepares(RunState::Running, NONE, end, Some(&FileSeen::Writable))
        .report
        .unwrap();
    assert!(!report.refused && report.state == MigrationState::Prepared);
    // A restore needs a QEMU that waits.
    assert!(
        prepares(RunState::Running, NONE, None, None)
            .report
            .unwrap()
            .refused
    );
    assert_eq!(prepares(RunState::InMigrate, NONE, None, None).action, look);
    assert!(
        prepares(RunState::InMigrate, ACTIVE, None, None)
            .report
            .unwrap()
            .refused
    );
    let report = prepares(RunState::InMigrate, NONE, None, Some(&loadable()))
        .report
        .unwrap();
    assert!(!report.refused);
}

#[test]
fn a_vm_that_was_loaded_is_started_by_the_agent_alone() {
    let loads = |run, info, begun: Option<&Begun>, file: Option<&FileSeen>| {
        load(&vm(run, info), begun, true, file, SAYS)
    };
    let none = begun("m1", None);
    let file = loadable();
    let verdict = loads(RunState::InMigrate, NONE, None, Some(&file));
    assert_eq!(verdict.action, Some(Action::File(FileAction::Load)));
    let verdict = loads(RunState::InMigrate, NONE, Some(&none), Some(&file));
    assert_eq!(
        verdict.action,
        Some(Action::File(FileAction::Load)),
        "QEMU was not told"
    );
    let told = FileSeen::Told(manifest());
    let verdict = loads(RunState::InMigrate, NONE, Some(&none), Some(&told));
    assert_eq!(is(&verdict), (None, Some(MigrationState::Active)), "once");
    let verdict = loads(RunState::InMigrate, ACTIVE, Some(&none), Some(&file));
    assert_eq!(is(&verdict), (None, Some(MigrationState::Active)));
    let verdict = loads(RunState::Paused, COMPLETED, Some(&none), Some(&file));
    assert_eq!(is(&verdict), (Some(Action::Run), Some(MigrationState::Active)));
    let half = begun("m1", Some(Arrival::Starting));
    assert_eq!(
        loads(RunState::Paused, COMPLETED, Some(&half), None).action,
        Some(Action::Run)
    );
    let started = begun("m1", Some(Arrival::Started));
    let verdict = loads(RunState::Running, COMPLETED, Some(&started), None);
    assert_eq!(is(&verdict), (None, Some(MigrationState::Completed)));
    let no = FileSeen::Refused("no".to_owned());
    let report = loads(RunState::InMigrate, NONE, None, Some(&no)).report.unwrap();
    assert!(report.refused && report.state == MigrationState::Failed);
}

#[test]
fn a_qemu_is_over_only_once_its_file_has_its_name() {
    use AfterSave::{Continue, End};
    use MigrationStep::{Cancel, Save};
    let run = |step, then, goal, stage: Option<SaveStage>| {
        let begun = stage.map(at);
        run_of(Run::HandedOver, goal, &ordered(step, Some(then)), begun.as_ref())
    };
    let named = Some(SaveStage::Named(1));
    assert_eq!(run(Save, End, Goal::Detached, named), Run::HandedOver);
    assert_eq!(run(Save, End, Goal::Standby, named), Run::Here);
    let order = ordered(Save, Some(End));
    let runs_on = run_of(Run::Here, Goal::Detached, &order, Some(&at(SaveStage::Named(1))));
    assert_eq!(runs_on, Run::HandingOver, "nothing is taken from it");
    assert_eq!(run(Save, Continue, Goal::Detached, named), Run::Here);
    assert_eq!(run(Cancel, End, Goal::Detached, named), Run::Here);
    for stage in [
        None,
        Some(SaveStage::Writing),
        Some(SaveStage::Whole),
        Some(SaveStage::Spoilt),
    ] {
        assert_eq!(
            run(Save, End, Goal::Detached, stage),
            Run::HandingOver,
            "{stage:?}"
        );
        let begun = stage.map(at);
        let runs = run_of(Run::Here, Goal::Detached, &order, begun.as_ref());
        assert_eq!(
            runs,
            Run::HandingOver,
            "nothing is taken from a VM that is in no file: {stage:?}"
        );
    }
}

#[test]
fn only_what_qemu_says_is_told_as_its_words() {
    let order = ordered(MigrationStep::Save, Some(AfterSave::End));
    let error = |run, info, stage| {
        let verdict = save(&vm(run, info), Some(&at(stage)), true, &order, SAYS);
        verdict.report.unwrap().error
    };
    let said = error(RunState::Running, FAILED, SaveStage::Writing);
    assert_eq!(said.as_deref(), Some("QEMU has failed: No space left on device"));
    let said = error(RunState::PostMigrate, COMPLETED, SaveStage::Spoilt);
    assert_eq!(said.as_deref(), Some(GIVEN_UP));
    for stage in [SaveStage::Named(1), SaveStage::Spoilt] {
        let said = error(RunState::Running, COMPLETED, stage);
        assert_eq!(
            said.as_deref(),
            Some(RUN_ON),
            "before the file is gone, and after"
        );
    }
    let none = begun("m1", None);
    let loaded = load(&vm(RunState::InMigrate, FAILED), Some(&none), true, None, SAYS);
    assert_eq!(
        loaded.report.unwrap().error.as_deref(),
        Some("QEMU has failed: No space left on device")
    );
}
