//! How often a migration of one NIC writes: by the decisions of both controllers, with agents that say all that agents say.

use std::time::Duration;

use hybridnic_api::v1alpha1::{AttachmentState, MigrationPhase, MigrationState};

use crate::migration::testing::Scene;
use crate::migration::worth::{self, Worth};
use crate::testing::{report, say};

/// Statuses of the migration and specs of attachments that were written.
type Writes = (usize, usize);

/// Both controllers, until nothing changes.
fn settle(scene: &mut Scene) -> Writes {
    let mut writes = (0, 0);
    for _ in 0..9 {
        let old = scene.migration.status.clone();
        scene.step();
        if worth::write(old.as_ref(), &scene.status_now(), Duration::ZERO) == Worth::Now {
            writes.0 += 1;
        } else {
            scene.migration.status = old;
        }
        let before = (scene.source.clone(), scene.target.clone());
        if scene.phase() != MigrationPhase::Pending {
            scene.apply();
        }
        writes.1 += usize::from(before.0 != scene.source) + usize::from(before.1 != scene.target);
    }
    writes
}

#[test]
fn each_phase_is_written_once_and_each_end_is_told_once() {
    let mut scene = Scene::new();
    let begun = settle(&mut scene);
    assert_eq!((scene.phase(), begun), (MigrationPhase::PreparingTarget, (1, 1)));
    goes_on(scene, begun, (5, 5));
}

/// Knowing each other costs one more order to the source, and one more report from it.
#[test]
fn an_encrypted_one_tells_the_source_once_more() {
    let mut scene = Scene::encrypted();
    let begun = settle(&mut scene);
    assert_eq!((scene.phase(), begun), (MigrationPhase::PreparingTarget, (1, 1)));
    report(scene.source(AttachmentState::FastPath), MigrationState::Prepared);
    let known = settle(&mut scene);
    assert_eq!((scene.phase(), known), (MigrationPhase::PreparingTarget, (0, 1)));
    goes_on(scene, (1, 2), (5, 6));
}

/// The target has been told to listen.
fn goes_on(mut scene: Scene, mut sum: Writes, total: Writes) {
    let mut then = |scene: &mut Scene, phase, wanted: Writes| {
        let writes = settle(scene);
        assert_eq!((scene.phase(), writes), (phase, wanted));
        sum = (sum.0 + writes.0, sum.1 + writes.1);
    };
    // It has taken the attachment, and makes its devices.
    say(
        scene.target(AttachmentState::Pending),
        "Progressing",
        "the standby is made",
    );
    then(&mut scene, MigrationPhase::PreparingTarget, (0, 0));
    scene.target(AttachmentState::Reserved);
    then(&mut scene, MigrationPhase::PreparingTarget, (0, 0));
    report(scene.target(AttachmentState::Reserved), MigrationState::Listening);
    then(&mut scene, MigrationPhase::SwitchingToStandby, (1, 1));
    say(
        scene.source(AttachmentState::FastPath),
        "Progressing",
        "the VF is unplugged",
    );
    then(&mut scene, MigrationPhase::SwitchingToStandby, (0, 0));
    scene.source(AttachmentState::Standby);
    then(&mut scene, MigrationPhase::Transferring, (1, 1));

    // From here to the target's report the VM is sent, and paused: nobody waits for a write.
    for (state, words) in [
        (AttachmentState::Standby, MigrationState::Active),
        (AttachmentState::Standby, MigrationState::Completed),
    ] {
        report(scene.source(state), words);
        then(&mut scene, MigrationPhase::Transferring, (0, 0));
    }
    report(scene.target(AttachmentState::Reserved), MigrationState::Active);
    then(&mut scene, MigrationPhase::Transferring, (0, 0));
    report(scene.target(AttachmentState::Standby), MigrationState::Completed);
    then(&mut scene, MigrationPhase::Completing, (1, 1));
    report(scene.target(AttachmentState::FastPath), MigrationState::Completed);
    then(&mut scene, MigrationPhase::Completing, (0, 0));
    scene.source(AttachmentState::Detached);
    then(&mut scene, MigrationPhase::Succeeded, (1, 1));
    assert_eq!(sum, total);
}
