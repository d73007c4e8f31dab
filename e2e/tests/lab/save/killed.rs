//! Agents that die meanwhile.

use hybridnic_api::v1alpha1::{MigrationPhase, QemuRestore};
use hybridnic_e2e::world::{NicSpec, VmSpec, World};

use super::{
    files::{is_whole, sh, volume},
    objects::{is_at, phase, restore_yaml, restored, save_and_end, save_reaches, save_yaml, saved},
};
use crate::common::{LATER, check_fast_path, fast, fast_on, vm_on_fast_path};

pub async fn killed(world: &mut World) {
    volume(world).await;
    let spec = VmSpec::new("die", &[NicSpec::new(0, 75)]);
    let clean = world.footprint(1).await.unwrap();
    let vm = vm_on_fast_path(world, &spec, "die-a", 1, "fast").await.unwrap();
    let moments = [
        MigrationPhase::PreparingTarget,
        MigrationPhase::SwitchingToStandby,
        MigrationPhase::Transferring,
    ];
    for (run, then) in ["Continue", "End"].into_iter().enumerate() {
        let (name, file) = (format!("die-{run}"), format!("die{run}"));
        // Some seconds to die in.
        let more = format!("then: {then}, bandwidth: {}", 16 << 20);
        world
            .apply(&save_yaml(&name, "die", &format!("/volume/saves/{file}"), &more))
            .await
            .unwrap();
        for moment in moments {
            let at = save_reaches(world, &name, moment).await;
            eprintln!("--- the agent dies at {at}, then: {then}");
            world.kill_agent(1).await.unwrap();
            world.start_agent(1).await.unwrap();
        }
        if then == "End" {
            save_and_end(world, &name, &vm, &clean).await;
        } else {
            let done = saved(world, &name).await;
            assert_eq!(
                phase(done.status.as_ref()),
                MigrationPhase::Succeeded,
                "{:#?}",
                done.status
            );
            let nic = fast(world, "die-0").await.unwrap();
            check_fast_path(world, &vm, &nic).await.unwrap();
        }
        is_whole(world, &file).await;
        sh(world, 1, "rm -f /volume/saves/die0*").await;
    }

    world
        .apply(&restore_yaml("die-again", "die", "/volume/saves/die1", "die-b"))
        .await
        .unwrap();
    let target = world.start_vm(&spec, "die-b", 2, true).await.unwrap();
    for moment in [MigrationPhase::PreparingTarget, MigrationPhase::Transferring] {
        let is = |restore: &QemuRestore| is_at(restore.status.as_ref(), moment);
        let there = world
            .until_restore("die-again", LATER, "that far", is)
            .await
            .unwrap();
        eprintln!("--- the agent dies at {}", phase(there.status.as_ref()));
        world.kill_agent(2).await.unwrap();
        world.start_agent(2).await.unwrap();
    }
    let done = restored(world, "die-again").await;
    assert_eq!(
        phase(done.status.as_ref()),
        MigrationPhase::Succeeded,
        "{:#?}",
        done.status
    );
    let nic = fast_on(world, "die-0", 2).await.unwrap();
    check_fast_path(world, &target, &nic).await.unwrap();
    assert_eq!(target.guest.status().await.unwrap(), "running");
}
