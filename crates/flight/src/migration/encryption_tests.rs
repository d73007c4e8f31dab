//! Migrations that are encrypted, or cannot be.

use hybridnic_api::conditions::{self, reasons, types};
use hybridnic_api::v1alpha1::{
    AttachmentState, Goal, MigrationOrder, MigrationPhase, MigrationState, MigrationStep, NicAttachment,
};

use super::encryption::Encryption;
use super::testing::Scene;
use crate::testing::report;

fn order(end: Option<&NicAttachment>) -> MigrationOrder {
    end.unwrap().spec.migration.clone().unwrap()
}

fn peer(end: Option<&NicAttachment>) -> Option<String> {
    order(end).tls.unwrap().peer_ca
}

fn cannot(end: &mut NicAttachment) {
    report(end, MigrationState::Prepared);
    let report = end.status.as_mut().unwrap().migration.as_mut().unwrap();
    (report.ca, report.no_tls, report.error) = (None, true, Some("no GnuTLS".to_owned()));
}

#[test]
fn each_end_is_told_the_others_certificate_before_it_can_talk_to_it() {
    let mut scene = Scene::certified(Encryption::Required);
    assert_eq!(scene.status_now().encrypted, Some(true));
    assert_eq!(
        scene.wishes(),
        [
            Some((Goal::FastPath, Some(MigrationStep::Prepare))),
            Some((Goal::FastPath, Some(MigrationStep::Listen)))
        ]
    );
    assert_eq!(peer(scene.target.as_ref()).as_deref(), Some("CA of n1"));
    report(scene.target(AttachmentState::Reserved), MigrationState::Listening);
    scene.reach(MigrationPhase::SwitchingToStandby);
    assert_eq!(peer(scene.source.as_ref()), None);
    scene.source(AttachmentState::Standby);
    scene.reach(MigrationPhase::Transferring);
    let (uri, target) = (order(scene.source.as_ref()).target_uri, scene.target.clone());
    assert!(uri.is_some() && peer(scene.source.as_ref()).as_deref() == Some("CA of n2"));
    // What was said stays, no matter what the ends report.
    report(scene.source(AttachmentState::Standby), MigrationState::Active);
    report(scene.target(AttachmentState::Reserved), MigrationState::Active);
    scene.settle();
    assert_eq!(peer(scene.source.as_ref()).as_deref(), Some("CA of n2"));
    assert_eq!(scene.target.unwrap().spec, target.unwrap().spec);
}

#[test]
fn a_target_that_does_not_say_who_it_is_gets_nothing() {
    let mut scene = Scene::certified(Encryption::Required);
    let target = scene.target(AttachmentState::Reserved);
    report(target, MigrationState::Listening);
    target.status.as_mut().unwrap().migration.as_mut().unwrap().ca = None;
    scene.stays(reasons::MIGRATING);
    assert_eq!(scene.phase(), MigrationPhase::PreparingTarget);
}

#[test]
fn a_source_without_a_certificate_is_waited_for_until_the_deadline() {
    let mut scene = Scene::encrypted();
    scene.reach(MigrationPhase::PreparingTarget);
    scene.stays(reasons::MIGRATING);
    assert!(
        scene.message().contains("n1 has not made its certificate"),
        "{}",
        scene.message()
    );
    scene.second += 61;
    scene.settle();
    assert!(scene.target.is_none(), "nothing was begun there");
    assert_eq!(
        scene.status_now().failure.unwrap().reason,
        reasons::TLS_UNAVAILABLE
    );
}

#[test]
fn a_qemu_that_cannot_encrypt_ends_what_must_be_encrypted() {
    let mut scene = Scene::encrypted();
    scene.reach(MigrationPhase::PreparingTarget);
    cannot(scene.source(AttachmentState::FastPath));
    scene.settle();
    assert_eq!(
        scene.status_now().failure.unwrap().reason,
        reasons::TLS_UNAVAILABLE
    );

    let mut scene = Scene::certified(Encryption::Required);
    cannot(scene.target(AttachmentState::Reserved));
    scene.reach(MigrationPhase::RollingBack);
    let failure = scene.status_now().failure.unwrap();
    assert_eq!(failure.reason, reasons::TLS_UNAVAILABLE);
    assert!(
        failure.message.contains("n2") && failure.message.contains("no GnuTLS"),
        "{}",
        failure.message
    );
    assert_eq!(scene.wishes()[0], Some((Goal::FastPath, None)));
}

#[test]
fn where_encryption_is_preferred_it_is_told_that_there_is_none() {
    for source in [true, false] {
        let mut scene = Scene::new();
        scene.encryption = Encryption::Preferred;
        scene.reach(MigrationPhase::PreparingTarget);
        if source {
            cannot(scene.source(AttachmentState::FastPath));
        } else {
            report(scene.source(AttachmentState::FastPath), MigrationState::Prepared);
            scene.settle();
            cannot(scene.target(AttachmentState::Reserved));
        }
        scene.settle();
        let status = scene.status_now();
        assert_eq!(
            (status.phase, status.encrypted),
            (MigrationPhase::PreparingTarget, Some(false))
        );
        let condition = conditions::find(&status.conditions, types::ENCRYPTED).unwrap();
        assert_eq!(condition.reason, reasons::TLS_UNAVAILABLE);
        assert_eq!(order(scene.target.as_ref()).tls, None);
        report(scene.target(AttachmentState::Reserved), MigrationState::Listening);
        scene.reach(MigrationPhase::SwitchingToStandby);
        scene.source(AttachmentState::Standby);
        scene.reach(MigrationPhase::Transferring);
        assert_eq!(order(scene.source.as_ref()).tls, None);
    }
}

/// A handshake that an attacker makes fail, or an end that changes its report, makes no stream plain.
#[test]
fn what_was_settled_stands() {
    let mut scene = Scene::certified(Encryption::Preferred);
    report(scene.target(AttachmentState::Reserved), MigrationState::Listening);
    cannot(scene.source(AttachmentState::FastPath));
    scene.settle();
    assert_eq!(
        scene.status_now().failure.unwrap().reason,
        reasons::TLS_UNAVAILABLE
    );

    let mut scene = Scene::certified(Encryption::Preferred);
    report(scene.target(AttachmentState::Reserved), MigrationState::Listening);
    scene.reach(MigrationPhase::SwitchingToStandby);
    cannot(scene.source(AttachmentState::Standby));
    cannot(scene.target(AttachmentState::Reserved));
    scene.settle();
    assert_eq!(scene.status_now().encrypted, Some(true));
    // The option may be another by now.
    scene.encryption = Encryption::Off;
    scene.settle();
    assert!(order(scene.target.as_ref()).tls.is_some());
}
