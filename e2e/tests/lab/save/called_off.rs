//! Saves that come to nothing.

use hybridnic_api::v1alpha1::MigrationPhase;
use hybridnic_e2e::world::{NicSpec, VmSpec, World};

use super::{
    files::{names, sh, volume},
    objects::{SLOW, save_reaches, save_yaml, saved, why},
};
use crate::common::{check_fast_path, fast, vm_on_fast_path};

pub async fn called_off(world: &mut World) {
    volume(world).await;
    let spec = VmSpec::new("called", &[NicSpec::new(0, 73)]);
    let vm = vm_on_fast_path(world, &spec, "called-a", 1, "fast")
        .await
        .unwrap();
    let slow = format!("then: End, bandwidth: {SLOW}");
    world
        .apply(&save_yaml("deleted", "called", "/volume/saves/off", &slow))
        .await
        .unwrap();
    let at = save_reaches(world, "deleted", MigrationPhase::Transferring).await;
    assert_eq!(at, MigrationPhase::Transferring);
    // It waits until the object has gone.
    world
        .kubectl(&["delete", "qsave", "deleted", "--timeout=120s"])
        .await
        .unwrap();
    assert!(names(world).await.is_empty(), "{:?}", names(world).await);
    assert_eq!(vm.guest.status().await.unwrap(), "running");
    let nic = fast(world, "called-0").await.unwrap();
    check_fast_path(world, &vm, &nic).await.unwrap();

    let late = format!("then: End, bandwidth: {SLOW}, deadlineSeconds: 3");
    world
        .apply(&save_yaml("late", "called", "/volume/saves/off", &late))
        .await
        .unwrap();
    let done = saved(world, "late").await;
    assert!(
        why(done.status.as_ref()).starts_with("DeadlineExceeded"),
        "{:#?}",
        done.status
    );
    assert!(names(world).await.is_empty(), "{:?}", names(world).await);
    let nic = fast(world, "called-0").await.unwrap();
    check_fast_path(world, &vm, &nic).await.unwrap();

    // What cannot be written costs the VM nothing: its VF never leaves.
    sh(
        world,
        1,
        "echo of somebody >/volume/saves/taken; mkdir -p /no-volume",
    )
    .await;
    let plugged = nic.status.unwrap().vf;
    for (name, file, words) in [
        (
            "taken",
            "/volume/saves/taken",
            "there is a file /volume/saves/taken already",
        ),
        (
            "nowhere",
            "/volume/saves/none/off",
            "the directory /volume/saves/none cannot be opened",
        ),
        ("lost", "/no-volume/off", "is on no volume"),
    ] {
        world
            .apply(&save_yaml(name, "called", file, "then: End"))
            .await
            .unwrap();
        let done = saved(world, name).await;
        let why = why(done.status.as_ref());
        assert!(why.starts_with("FileRefused") && why.contains(words), "{why}");
        let nic = fast(world, "called-0").await.unwrap();
        assert_eq!(nic.status.unwrap().vf, plugged);
    }
    assert_eq!(
        sh(world, 1, "cat /volume/saves/taken").await.trim(),
        "of somebody"
    );
    assert_eq!(names(world).await, ["taken"]);
}
