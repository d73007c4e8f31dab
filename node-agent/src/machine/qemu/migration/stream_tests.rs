//! What an encrypted stream asks for besides.

use super::*;

#[test]
fn a_source_says_who_it_is_before_anything_begins() {
    let plain = Case::source(MigrationStep::Prepare).begun(None);
    assert_eq!(plain.sees(RunState::Running, "{}"), (None, None));
    let source = || Case::source(MigrationStep::Prepare).begun(None).encrypted(None);
    assert_eq!(
        source().sees(RunState::Running, "{}"),
        (Some(Action::Certify), None)
    );
    let seen = vm(RunState::Running, "{}");
    let says = |certified| source().certified(certified).decide(EndSeen::Up(&seen));
    let by = says(Certified::By("CA".into()));
    assert_eq!(by.action, None);
    let report = by.report.unwrap();
    assert_eq!(
        (report.state, report.ca.as_deref()),
        (MigrationState::Prepared, Some("CA"))
    );
    let not = says(Certified::Not("no GnuTLS".into())).report.unwrap();
    assert!(not.no_tls && not.ca.is_none());
    assert_eq!(not.error.as_deref(), Some("no GnuTLS"));
}

#[test]
fn nothing_is_sent_or_received_before_the_peer_is_known() {
    let source = || Case::source(MigrationStep::Transfer).begun(None);
    let starts = |source: Case| source.sees(RunState::Running, "{}").0.is_some();
    assert!(!starts(source().encrypted(None)));
    assert!(starts(source().encrypted(Some("CA"))) && starts(source()));

    let target = || Case::target(None).begun(None);
    let listens = |target: Case| target.sees(RunState::InMigrate, "{}");
    assert_eq!(listens(target().encrypted(None)), (None, None));
    assert_eq!(
        listens(target().encrypted(Some("CA"))),
        (Some(Action::Listen), None)
    );
    let cannot = target()
        .encrypted(Some("CA"))
        .certified(Certified::Not("no GnuTLS".into()));
    assert_eq!(listens(cannot), (None, Some(MigrationState::Prepared)));
    // The operator has settled for plain since.
    let plain = target().certified(Certified::Not("no GnuTLS".into()));
    assert_eq!(listens(plain), (Some(Action::Listen), None));
}

#[test]
fn a_target_that_listens_says_who_it_is() {
    const LISTENS: &str =
        r#"{"status":"setup","socket-address":[{"type":"inet","host":"10.0.0.2","port":"4000"}]}"#;
    let target = Case::target(None)
        .encrypted(Some("CA of the source"))
        .certified(Certified::By("CA".into()));
    let seen = vm(RunState::InMigrate, LISTENS);
    let report = target.decide(EndSeen::Up(&seen)).report.unwrap();
    assert_eq!(
        (report.state, report.port),
        (MigrationState::Listening, Some(4000))
    );
    assert_eq!(report.ca.as_deref(), Some("CA"));
}
