//! Agents that die meanwhile: kill -9 in each phase, and a new one at once.

use hybridnic_api::v1alpha1::MigrationPhase;
use hybridnic_e2e::world::{NicSpec, Vm, VmSpec, World};

use super::{
    files::{is_whole, names, sh, volume},
    objects::{
        SLOW, made, restore_reaches, restore_yaml, restored, save_and_end, save_reaches, save_yaml,
        stands_still, succeeded,
    },
};
use crate::common::{check_fast_path, fast, fast_on, vm_on_fast_path};

pub async fn killed(world: &mut World) {
    volume(world).await;
    let spec = VmSpec::new("die", &[NicSpec::new(0, 75)]);
    let clean = world.footprint(1).await.unwrap();
    let vm = vm_on_fast_path(world, &spec, "die-a", 1, "fast").await.unwrap();

    // Paused for its disks, and deleted then: it runs on, and the file stays.
    until_written(world, "pause", "Pause").await;
    stands_still(world, "pause", &vm).await;
    dies(world, 1, "Paused").await;
    delete(world, "pause", MigrationPhase::Completing).await;
    dies(world, 1, "Completing").await;
    gone(world, "pause").await;
    back(world, &vm).await;
    is_whole(world, "pause").await;
    sh(world, 1, "rm /volume/saves/pause*").await;

    // Cancelled.
    let slow = format!("then: End, bandwidth: {SLOW}");
    let yaml = save_yaml("cancel", "die", "/volume/saves/cancel", &slow);
    made(
        world,
        &yaml,
        save_reaches(world, "cancel", MigrationPhase::Transferring),
    )
    .await;
    delete(world, "cancel", MigrationPhase::RollingBack).await;
    dies(world, 1, "RollingBack").await;
    gone(world, "cancel").await;
    back(world, &vm).await;
    assert!(names(world).await.is_empty(), "{:?}", names(world).await);

    // Ended.
    until_written(world, "end", "End").await;
    save_reaches(world, "end", MigrationPhase::Completing).await;
    dies(world, 1, "Completing").await;
    save_and_end(world, "end", &vm, &clean).await;
    is_whole(world, "end").await;

    // And restored.
    world
        .apply(&restore_yaml("again", "die", "/volume/saves/end", "die-b"))
        .await
        .unwrap();
    let first = MigrationPhase::PreparingTarget;
    let (target, ()) = tokio::join!(
        world.start_vm(&spec, "die-b", 2, true),
        restore_reaches(world, "again", first)
    );
    let target = target.unwrap();
    dies(world, 2, &first.to_string()).await;
    for moment in [MigrationPhase::Transferring, MigrationPhase::Completing] {
        restore_reaches(world, "again", moment).await;
        dies(world, 2, &moment.to_string()).await;
    }
    let done = restored(world, "again").await;
    succeeded(done.status.as_ref());
    let nic = fast_on(world, "die-0", 2).await.unwrap();
    check_fast_path(world, &target, &nic).await.unwrap();
    assert_eq!(target.guest.status().await.unwrap(), "running");
}

/// kill -9, and a new one at once.
async fn dies(world: &mut World, node: usize, moment: &str) {
    eprintln!("--- the agent of node {node} dies at {moment}");
    world.kill_agent(node).await.unwrap();
    world.start_agent(node).await.unwrap();
}

/// Begins a save whose agent dies in each phase until QEMU has written.
async fn until_written(world: &mut World, name: &str, then: &str) {
    // Some seconds to die in.
    let more = format!("then: {then}, bandwidth: {}", 16 << 20);
    let yaml = save_yaml(name, "die", &format!("/volume/saves/{name}"), &more);
    let first = MigrationPhase::PreparingTarget;
    made(world, &yaml, save_reaches(world, name, first)).await;
    dies(world, 1, &first.to_string()).await;
    for moment in [MigrationPhase::SwitchingToStandby, MigrationPhase::Transferring] {
        save_reaches(world, name, moment).await;
        dies(world, 1, &moment.to_string()).await;
    }
}

/// Deletes a save that is under way, and waits until that has come so far.
async fn delete(world: &World, name: &str, comes: MigrationPhase) {
    let deletion = ["delete", "qsave", name, "--wait=false"];
    let (_, deleted) = tokio::join!(save_reaches(world, name, comes), world.kubectl(&deletion));
    deleted.unwrap();
}

/// Waits until a save that was deleted is gone.
async fn gone(world: &World, name: &str) {
    let deletion = ["delete", "qsave", name, "--ignore-not-found", "--timeout=120s"];
    world.kubectl(&deletion).await.unwrap();
}

/// The VM runs, and is on its fast path.
async fn back(world: &World, vm: &Vm) {
    assert_eq!(vm.guest.status().await.unwrap(), "running");
    let nic = fast(world, "die-0").await.unwrap();
    check_fast_path(world, vm, &nic).await.unwrap();
}
