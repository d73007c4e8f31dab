use hybridnic_api::v1alpha1::ObjectRef;

use super::*;
use crate::journal::{Arrival, Saving};

pub(super) fn order(step: MigrationStep) -> MigrationOrder {
    MigrationOrder {
        migration: ObjectRef {
            name: "m".into(),
            uid: "m1".into(),
        },
        nics: vec!["a".into(), "b".into()],
        step,
        target_uri: Some("tcp:10.0.0.2:4000".into()),
        listen_address: None,
        tls: None,
        file: None,
    }
}

fn nics(step: MigrationStep, state: AttachmentState, names: &[&str]) -> BTreeMap<String, NicEntry> {
    let entry = |name: &&str| {
        let nic = NicEntry {
            nic: (*name).into(),
            state,
            goal: Goal::Standby,
            order: Some(order(step)),
            heard: true,
            ..NicEntry::default()
        };
        ((*name).to_owned(), nic)
    };
    names.iter().map(entry).collect()
}

pub(super) fn vm(run: RunState, info: &str) -> VmSeen {
    VmSeen {
        run,
        info: serde_json::from_str(info).unwrap(),
    }
}

pub(super) fn begun(migration: &str, arrival: Option<Arrival>) -> Begun {
    Begun {
        custody: Custody::Unknown,
        saving: None,
        migration: migration.into(),
        process: None,
        arrival,
    }
}

const BOTH: &[&str] = &["a", "b"];

struct Case {
    nics: BTreeMap<String, NicEntry>,
    begun: Option<Begun>,
    said: Option<MigrationReport>,
    certified: Option<Certified>,
}

impl Case {
    fn source(step: MigrationStep) -> Self {
        Self {
            nics: nics(step, AttachmentState::Standby, BOTH),
            begun: Some(begun("m1", None)),
            said: None,
            certified: None,
        }
        .with(Custody::Here)
    }

    fn target(arrival: Option<Arrival>) -> Self {
        Self {
            nics: nics(MigrationStep::Listen, AttachmentState::Reserved, BOTH),
            begun: Some(begun("m1", arrival)),
            said: None,
            certified: None,
        }
    }

    fn gives_up(arrival: Option<Arrival>) -> Self {
        Self {
            nics: nics(MigrationStep::GiveUp, AttachmentState::Standby, BOTH),
            ..Self::target(arrival)
        }
    }

    fn with(mut self, custody: Custody) -> Self {
        if let Some(begun) = &mut self.begun {
            begun.custody = custody;
        }
        self
    }

    fn begun(self, begun: Option<Begun>) -> Self {
        Self { begun, ..self }
    }

    /// Encrypted, with a peer of this CA.
    fn encrypted(mut self, peer_ca: Option<&str>) -> Self {
        for nic in self.nics.values_mut() {
            let peer_ca = peer_ca.map(Into::into);
            nic.order.as_mut().unwrap().tls = Some(MigrationTls { peer_ca });
        }
        self
    }

    fn certified(self, certified: Certified) -> Self {
        Self {
            certified: Some(certified),
            ..self
        }
    }

    fn decide(&self, end: EndSeen<'_>) -> Verdict {
        decide(&Inputs {
            nics: &self.nics,
            end,
            begun: self.begun.as_ref(),
            said: self.said.as_ref(),
            certified: self.certified.as_ref(),
            file: None,
        })
    }

    fn says(&self, end: EndSeen<'_>) -> (Option<Action>, Option<MigrationState>) {
        let verdict = self.decide(end);
        (verdict.action, verdict.report.map(|report| report.state))
    }

    fn sees(&self, run: RunState, info: &str) -> (Option<Action>, Option<MigrationState>) {
        self.says(EndSeen::Up(&vm(run, info)))
    }
}

#[test]
fn nothing_starts_before_every_nic_is_there_and_ready() {
    let idle = vm(RunState::Running, "{}");
    let case = |state, names| Case {
        nics: nics(MigrationStep::Transfer, state, names),
        begun: None,
        said: None,
        certified: None,
    };
    assert_eq!(
        case(AttachmentState::Standby, &["a"]).decide(EndSeen::Up(&idle)),
        Verdict::default()
    );
    assert_eq!(
        case(AttachmentState::FastPath, BOTH).says(EndSeen::Up(&idle)).0,
        None
    );
    // One that has no standby is ready when its VF is out.
    let mut alone = case(AttachmentState::Standby, BOTH);
    alone.nics.get_mut("b").unwrap().state = AttachmentState::Aside;
    for case in [case(AttachmentState::Standby, BOTH), alone] {
        assert_eq!(
            case.says(EndSeen::Up(&idle)).0,
            Some(Action::Start("tcp:10.0.0.2:4000".into()))
        );
    }
}

#[test]
fn a_qemu_that_does_not_answer_has_said_what_it_said() {
    use MigrationStep::{Cancel, GiveUp, Listen, Prepare, Resume, Transfer};
    for step in [Listen, GiveUp, Prepare, Transfer, Cancel, Resume] {
        for arrival in [None, Some(Arrival::Starting), Some(Arrival::Started)] {
            for custody in [Custody::Unknown, Custody::Here, Custody::Left] {
                let case = Case {
                    nics: nics(step, AttachmentState::Standby, BOTH),
                    begun: Some(begun("m1", arrival)),
                    said: None,
                    certified: None,
                }
                .with(custody);
                assert_eq!(case.decide(EndSeen::Silent), Verdict::default());
            }
        }
    }
}

#[test]
fn a_qemu_that_has_ended_is_lost_or_had_the_vm() {
    let says = |case: &Case| case.says(EndSeen::Ended).1;
    assert_eq!(says(&Case::target(None)), Some(MigrationState::Lost));
    assert_eq!(says(&Case::gives_up(None)), Some(MigrationState::Lost));
    assert_eq!(
        says(&Case::gives_up(Some(Arrival::Starting))),
        Some(MigrationState::Ended)
    );
    for arrival in [Arrival::Starting, Arrival::Started] {
        assert_eq!(says(&Case::target(Some(arrival))), Some(MigrationState::Ended));
    }
    assert_eq!(
        says(&Case::source(MigrationStep::Transfer)),
        Some(MigrationState::Lost)
    );
    // A QEMU in which this migration was not begun has said nothing about it.
    assert_eq!(says(&Case::target(None).begun(None)), None);
    // A VM that is in its file is not lost.
    let saved = |stage| {
        let saving = Saving {
            inode: 1,
            mapped: true,
            stage,
        };
        let begun = Begun {
            saving: Some(saving),
            ..begun("m1", None)
        };
        says(&Case::source(MigrationStep::Save).begun(Some(begun)))
    };
    assert_eq!(saved(SaveStage::Named(1)), Some(MigrationState::Ended));
    assert_eq!(saved(SaveStage::Whole), Some(MigrationState::Lost));
    // The other NIC has left before that was heard.
    let alone = Case {
        nics: nics(MigrationStep::Listen, AttachmentState::Pending, &["a"]),
        ..Case::target(None)
    };
    assert_eq!(says(&alone), Some(MigrationState::Lost));
    assert_eq!(
        says(&Case::target(None).begun(Some(begun("m0", Some(Arrival::Started))))),
        None
    );
}

#[test]
fn a_transfer_that_failed_is_not_started_again_after_a_restart() {
    let failed = r#"{"status":"failed","error-desc":"broken pipe"}"#;
    let case = Case::source(MigrationStep::Transfer).with(Custody::Unknown);
    let verdict = case.decide(EndSeen::Up(&vm(RunState::Running, failed)));
    let report = verdict.report.unwrap();
    assert_eq!((verdict.action, report.state), (None, MigrationState::Failed));
    assert_eq!(report.error.as_deref(), Some("broken pipe"));
    assert!(!report.kept, "whether the VM had left is not known any more");
    // The failure of an earlier migration is no obstacle.
    let other = Case::source(MigrationStep::Transfer).begun(Some(begun("m0", None)));
    assert!(matches!(
        other.sees(RunState::Running, failed).0,
        Some(Action::Start(_))
    ));
}

#[test]
fn a_source_that_failed_says_whether_the_vm_may_have_left() {
    use MigrationStep::{Cancel, Transfer};
    let failed = r#"{"status":"failed"}"#;
    let report = |step, custody| {
        let case = Case::source(step).with(custody);
        let verdict = case.decide(EndSeen::Up(&vm(RunState::Running, failed)));
        let report = verdict.report.unwrap();
        (verdict.action, report.state, report.kept)
    };
    assert_eq!(
        report(Transfer, Custody::Here),
        (None, MigrationState::Failed, true)
    );
    assert_eq!(
        report(Cancel, Custody::Here),
        (None, MigrationState::Cancelled, false)
    );
    for step in [Transfer, Cancel] {
        assert_eq!(
            report(step, Custody::Left),
            (Some(Action::Hold), MigrationState::Failed, false),
            "QEMU runs it again by itself"
        );
        assert_eq!(
            report(step, Custody::Unknown),
            (None, MigrationState::Failed, false)
        );
    }
    // The operator has decided that it is here: nothing is held any more, also after a restart.
    for custody in [Custody::Left, Custody::Unknown] {
        let mut case = Case::source(Cancel).with(custody);
        case.nics.values_mut().for_each(|nic| nic.goal = Goal::FastPath);
        assert_eq!(
            case.sees(RunState::Running, failed),
            (None, Some(MigrationState::Cancelled))
        );
    }
}

#[test]
fn the_source_hands_over_at_pre_switchover() {
    let paused = r#"{"status":"pre-switchover"}"#;
    let case = Case::source(MigrationStep::Transfer);
    assert_eq!(
        case.sees(RunState::FinishMigrate, paused).0,
        Some(Action::HandOver)
    );
    let cancelled = Case::source(MigrationStep::Cancel);
    assert_eq!(
        cancelled.sees(RunState::FinishMigrate, paused).0,
        Some(Action::Cancel)
    );
}

#[test]
fn what_may_have_left_is_not_cancelled() {
    let cancel = |custody, status: &str| {
        let case = Case::source(MigrationStep::Cancel).with(custody);
        case.sees(RunState::FinishMigrate, &format!(r#"{{"status":"{status}"}}"#))
            .0
    };
    for custody in [Custody::Unknown, Custody::Here] {
        assert_eq!(cancel(custody, "active"), Some(Action::Cancel));
        assert_eq!(cancel(custody, "device"), None);
        assert_eq!(cancel(custody, "cancelling"), None);
    }
    assert_eq!(
        cancel(Custody::Left, "pre-switchover"),
        Some(Action::HandOver),
        "what was begun is ended"
    );
    assert_eq!(cancel(Custody::Left, "device"), None);
}

#[test]
fn the_target_listens_and_starts_what_has_come() {
    let case = Case::target(None);
    assert_eq!(
        case.sees(RunState::InMigrate, "{}").0,
        Some(Action::Listen),
        "the agent died before QEMU was told"
    );
    let listening = r#"{"status":"setup","socket-address":[{"type":"inet","host":"0.0.0.0","port":"4001"}]}"#;
    let verdict = case.decide(EndSeen::Up(&vm(RunState::InMigrate, listening)));
    assert_eq!(verdict.report.unwrap().port, Some(4001));
    let loaded = r#"{"status":"completed"}"#;
    assert_eq!(
        case.sees(RunState::Paused, loaded),
        (Some(Action::Run), Some(MigrationState::Active)),
        "it has not run yet"
    );
    assert_eq!(
        Case::target(Some(Arrival::Starting)).sees(RunState::Paused, loaded),
        (Some(Action::Run), None)
    );
    for run in [RunState::Running, RunState::Shutdown] {
        assert_eq!(
            Case::target(Some(Arrival::Started)).sees(run, loaded),
            (None, Some(MigrationState::Completed))
        );
    }
    assert_eq!(
        Case::target(Some(Arrival::Started)).sees(RunState::Paused, loaded),
        (None, Some(MigrationState::Completed)),
        "somebody has paused it since"
    );
    assert_eq!(
        case.sees(RunState::InMigrate, r#"{"status":"failed"}"#).1,
        Some(MigrationState::Failed)
    );
    assert_eq!(
        case.sees(RunState::InMigrate, r#"{"status":"active"}"#),
        (None, Some(MigrationState::Active))
    );
}

#[test]
fn a_target_that_gives_up_starts_nothing_and_says_what_was() {
    use Arrival::{Started, Starting};
    let sees = |arrival, run, info| Case::gives_up(arrival).sees(run, info);
    assert_eq!(
        sees(None, RunState::Paused, COMPLETED),
        (None, Some(MigrationState::Active)),
        "loaded"
    );
    assert_eq!(sees(None, RunState::InMigrate, "{}").0, None);
    assert_eq!(
        sees(Some(Starting), RunState::Paused, COMPLETED),
        (Some(Action::Forgo), None)
    );
    for (arrival, run) in [
        (Starting, RunState::Running),
        (Started, RunState::Running),
        (Started, RunState::Paused),
    ] {
        assert_eq!(
            sees(Some(arrival), run, COMPLETED),
            (None, Some(MigrationState::Completed))
        );
    }
    // One NIC that was told is enough.
    let mut half = Case::target(None);
    half.nics.get_mut("a").unwrap().order = Some(order(MigrationStep::GiveUp));
    assert_eq!(half.sees(RunState::Paused, COMPLETED).0, None);
}

#[test]
fn a_target_that_is_taken_says_so() {
    let listening = r#"{"status":"setup","socket-address":[{"type":"inet","host":"0.0.0.0","port":"4001"}]}"#;
    for begun in [None, Some(begun("m0", Some(Arrival::Started)))] {
        let case = Case::target(None).begun(begun);
        assert_eq!(case.sees(RunState::InMigrate, "{}").0, Some(Action::Listen));
        let error = |run, info| {
            let verdict = case.decide(EndSeen::Up(&vm(run, info)));
            assert_eq!(verdict.action, None);
            let report = verdict.report.unwrap();
            assert_eq!(report.state, MigrationState::Failed);
            report.error.unwrap()
        };
        assert_eq!(error(RunState::Running, "{}"), NOT_INCOMING);
        assert_eq!(error(RunState::Paused, "{}"), NOT_INCOMING);
        assert_eq!(error(RunState::InMigrate, listening), OTHER_INCOMING);
        assert_eq!(
            error(RunState::InMigrate, r#"{"status":"active"}"#),
            OTHER_INCOMING
        );
    }
}

#[test]
fn cancel_and_resume() {
    let cancel = Case::source(MigrationStep::Cancel);
    assert_eq!(
        cancel.sees(RunState::Running, r#"{"status":"active"}"#).0,
        Some(Action::Cancel)
    );
    let over = r#"{"status":"cancelled"}"#;
    assert_eq!(
        cancel.sees(RunState::Running, over),
        (None, Some(MigrationState::Cancelled))
    );
    let never = Case::source(MigrationStep::Cancel).begun(None);
    assert_eq!(
        never.sees(RunState::Running, "{}").1,
        Some(MigrationState::Cancelled)
    );
    let completed = r#"{"status":"completed"}"#;
    let gone = Case::source(MigrationStep::Cancel).with(Custody::Left);
    assert_eq!(
        gone.sees(RunState::PostMigrate, completed),
        (None, Some(MigrationState::Completed))
    );

    let resume = Case::source(MigrationStep::Resume).with(Custody::Left);
    for (run, info) in [
        (RunState::PostMigrate, completed),
        (RunState::FinishMigrate, completed),
        (RunState::Paused, r#"{"status":"failed"}"#),
        (RunState::Paused, r#"{"status":"cancelled"}"#),
    ] {
        assert_eq!(resume.sees(run, info).0, Some(Action::Resume));
    }
    assert_eq!(
        resume.sees(RunState::Running, completed),
        (None, Some(MigrationState::Cancelled))
    );
}

pub(super) const FAILED: &str = r#"{"status":"failed"}"#;
pub(super) const COMPLETED: &str = r#"{"status":"completed"}"#;

#[test]
fn an_order_that_only_the_journal_has_starts_no_vm() {
    let mut loaded = Case::target(None);
    let mut resume = Case::source(MigrationStep::Resume).with(Custody::Left);
    assert_eq!(loaded.sees(RunState::Paused, COMPLETED).0, Some(Action::Run));
    assert_eq!(
        resume.sees(RunState::PostMigrate, COMPLETED).0,
        Some(Action::Resume)
    );
    for case in [&mut loaded, &mut resume] {
        case.nics.get_mut("a").unwrap().heard = false;
    }
    assert_eq!(
        loaded.sees(RunState::Paused, COMPLETED),
        (None, Some(MigrationState::Active)),
        "it may have been told to give up since"
    );
    assert_eq!(resume.sees(RunState::PostMigrate, COMPLETED).0, None);
}

#[test]
fn what_was_said_to_be_over_does_not_begin() {
    let over = MigrationReport {
        error: Some("refused".to_owned()),
        kept: true,
        ..Says("m1").report(MigrationState::Failed)
    };
    let mut source = Case::source(MigrationStep::Transfer);
    let mut target = Case::target(None).begun(None);
    assert!(matches!(
        source.sees(RunState::Running, "{}").0,
        Some(Action::Start(_))
    ));
    assert_eq!(target.sees(RunState::InMigrate, "{}").0, Some(Action::Listen));
    (source.said, target.said) = (Some(over.clone()), Some(over.clone()));
    assert_eq!(source.sees(RunState::Running, "{}"), (None, None));
    assert_eq!(target.sees(RunState::InMigrate, "{}"), (None, None));
    let other = MigrationReport {
        uid: "m0".to_owned(),
        ..over
    };
    source.said = Some(other);
    assert!(matches!(
        source.sees(RunState::Running, "{}").0,
        Some(Action::Start(_))
    ));
}

/// The VM came here by a migration of its own, and its user has paused it; the agent died before QEMU was told to send it.
#[test]
fn a_vms_own_arrival_is_not_the_end_of_its_next_migration() {
    let source = Case::source(MigrationStep::Transfer);
    assert!(matches!(
        source.sees(RunState::Paused, COMPLETED).0,
        Some(Action::Start(_))
    ));
    let left = Case::source(MigrationStep::Transfer).with(Custody::Left);
    assert_eq!(
        left.sees(RunState::PostMigrate, COMPLETED),
        (None, Some(MigrationState::Completed))
    );
}

/// The journal was lost, or could not be read and was removed.
#[test]
fn a_vm_that_came_by_an_unknown_migration_is_not_said_to_have_failed_to() {
    let target = Case::target(None).begun(None);
    for run in [RunState::Running, RunState::Paused] {
        let verdict = target.decide(EndSeen::Up(&vm(run, COMPLETED)));
        let report = verdict.report.unwrap();
        assert_eq!((verdict.action, report.state), (None, MigrationState::Active));
        assert_eq!(report.error.as_deref(), Some(NOT_INCOMING));
    }
}

#[path = "stream_tests.rs"]
mod stream;
