//! A VM that runs on, at once or when its disks have their snapshot too.

use hybridnic_api::v1alpha1::{MigrationPhase, QemuSave};
use hybridnic_e2e::world::{NicSpec, VmSpec, World};

use super::{
    files::{is_whole, volume},
    objects::{gaps, phase, restore_yaml, restored, save_yaml, saved, tell, why},
};
use crate::common::{LATER, SOON, check_fast_path, fast, vm_on_fast_path, watch};

pub async fn snapshots(world: &mut World) {
    volume(world).await;
    let spec = VmSpec::new("snap", &[NicSpec::new(0, 72)]);
    let vm = vm_on_fast_path(world, &spec, "snap-a", 1, "fast").await.unwrap();
    let pinger = watch(&world.lab, spec.nics[0].address, 100).await;
    world
        .apply(&save_yaml("snap", "snap", "/volume/saves/snap", "then: Continue"))
        .await
        .unwrap();
    let done = saved(world, "snap").await;
    assert_eq!(
        phase(done.status.as_ref()),
        MigrationPhase::Succeeded,
        "{:#?}",
        done.status
    );
    tell("snapshot", done.status.as_ref());
    let nic = fast(world, "snap-0").await.unwrap();
    check_fast_path(world, &vm, &nic).await.unwrap();
    is_whole(world, "snap").await;
    assert!(pinger.answered(50, SOON).await, "no answer after the snapshot");
    gaps("snapshot", pinger).await;

    // The VM has one address, and runs once.
    let waiting = world.start_vm(&spec, "snap-b", 2, true).await.unwrap();
    world
        .apply(&restore_yaml("twice", "snap", "/volume/saves/snap", "snap-b"))
        .await
        .unwrap();
    let done = restored(world, "twice").await;
    assert!(
        why(done.status.as_ref()).starts_with("VmRuns"),
        "{:#?}",
        done.status
    );
    assert_eq!(waiting.guest.status().await.unwrap(), "inmigrate");
    world.delete_pod(&waiting).await.unwrap();

    // With its disks: it stands still until it is said what becomes of it.
    world
        .apply(&save_yaml("disks", "snap", "/volume/saves/disks", "then: Pause"))
        .await
        .unwrap();
    let paused = |save: &QemuSave| {
        why(save.status.as_ref()).starts_with("Paused") || phase(save.status.as_ref()).is_final()
    };
    let there = world.until_save("disks", LATER, "paused", paused).await.unwrap();
    assert_eq!(
        phase(there.status.as_ref()),
        MigrationPhase::Transferring,
        "{:#?}",
        there.status
    );
    assert_eq!(vm.guest.status().await.unwrap(), "postmigrate");
    let go_on = r#"{"spec": {"then": "Continue"}}"#;
    world
        .kubectl(&["patch", "qsave", "disks", "--type", "merge", "-p", go_on])
        .await
        .unwrap();
    let done = saved(world, "disks").await;
    assert_eq!(
        phase(done.status.as_ref()),
        MigrationPhase::Succeeded,
        "{:#?}",
        done.status
    );
    let nic = fast(world, "snap-0").await.unwrap();
    check_fast_path(world, &vm, &nic).await.unwrap();
}
