//! A VM that runs on, at once or when its disks have their snapshot too.

use std::time::Duration;

use hybridnic_e2e::world::{NicSpec, VmSpec, World};

use super::{
    files::{is_whole, volume},
    objects::{gap_is_within, restore_yaml, restored, save_yaml, saved, stands_still, succeeded, tell, why},
};
use crate::{
    alone::check,
    common::{SOON, check_fast_path, fast, vm_on_fast_path, watch},
};

/// How long a snapshot may take the VM's network away. It was 0.3 s in the emulation; the rest is for a busy machine.
const GAP: Duration = Duration::from_secs(3);

pub async fn snapshots(world: &mut World) {
    volume(world).await;
    let spec = VmSpec::new("snap", &[NicSpec::new(0, 72), NicSpec::new(1, 72).alone()]);
    let vm = vm_on_fast_path(world, &spec, "snap-a", 1, "fast").await.unwrap();
    let mac = fast(world, "snap-1").await.unwrap().status.unwrap().mac;
    let pinger = watch(&world.lab, spec.nics[0].address, 100).await;
    world
        .apply(&save_yaml("snap", "snap", "/volume/saves/snap", "then: Continue"))
        .await
        .unwrap();
    let done = saved(world, "snap").await;
    succeeded(done.status.as_ref());
    tell("snapshot", done.status.as_ref());
    let nic = fast(world, "snap-0").await.unwrap();
    check_fast_path(world, &vm, &nic).await.unwrap();
    let nic = fast(world, "snap-1").await.unwrap();
    check(world, &vm, &nic).await.unwrap();
    assert_eq!(nic.status.unwrap().mac, mac);
    is_whole(world, "snap").await;
    assert!(pinger.answered(50, SOON).await, "no answer after the snapshot");
    gap_is_within("snapshot", GAP, pinger).await;

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
    stands_still(world, "disks", &vm).await;
    let go_on = r#"{"spec": {"then": "Continue"}}"#;
    world
        .kubectl(&["patch", "qsave", "disks", "--type", "merge", "-p", go_on])
        .await
        .unwrap();
    let done = saved(world, "disks").await;
    succeeded(done.status.as_ref());
    let nic = fast(world, "snap-0").await.unwrap();
    check_fast_path(world, &vm, &nic).await.unwrap();
}
