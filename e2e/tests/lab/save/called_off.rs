//! Saves that come to nothing.

use hybridnic_api::v1alpha1::{MigrationPhase, QemuSave, VmHybridNic};
use hybridnic_e2e::world::{NicSpec, Vm, VmSpec, World};

use super::{
    files::{FULL, full_volume, names, sh, unmount_full, volume},
    objects::{SLOW, made, phase, save_reaches, save_yaml, saved, why},
};
use crate::{
    alone::{check, has_stepped_aside, is_out},
    common::{SOON, check_fast_path, fast, vm_on_fast_path},
};

pub async fn called_off(world: &mut World) {
    volume(world).await;
    let spec = VmSpec::new("called", &[NicSpec::new(0, 73), NicSpec::new(1, 73).alone()]);
    let vm = vm_on_fast_path(world, &spec, "called-a", 1, "fast")
        .await
        .unwrap();
    let slow = format!("then: End, bandwidth: {SLOW}");
    let yaml = save_yaml("deleted", "called", "/volume/saves/off", &slow);
    let at = made(
        world,
        &yaml,
        save_reaches(world, "deleted", MigrationPhase::Transferring),
    )
    .await;
    // One NIC has its standby, the other no network meanwhile; and it is told how far QEMU is.
    world
        .until_nic("called-1", SOON, "out of the way of a save", has_stepped_aside)
        .await
        .unwrap();
    is_out(&vm, &spec.nics[1].mac).await;
    let before = written(&at);
    let more = |save: &QemuSave| written(save) > before;
    let now = world
        .until_save("deleted", SOON, "written in part", more)
        .await
        .unwrap();
    let status = now.status.as_ref().unwrap();
    assert!(
        written(&now) <= i64::from(spec.memory) << 20 && status.remaining > Some(0),
        "{status:#?}"
    );
    // It waits until the object has gone.
    world
        .kubectl(&["delete", "qsave", "deleted", "--timeout=120s"])
        .await
        .unwrap();
    assert!(names(world).await.is_empty(), "{:?}", names(world).await);
    back(world, &vm).await;

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
    back(world, &vm).await;

    // A disk that fills up: QEMU's own words say so.
    full_volume(world).await;
    world
        .apply(&save_yaml("full", "called", &format!("{FULL}/off"), "then: End"))
        .await
        .unwrap();
    let done = saved(world, "full").await;
    let words = why(done.status.as_ref());
    assert!(
        words.starts_with("TransferFailed: QEMU has failed") && words.contains("No space left on device"),
        "{words}"
    );
    assert_eq!(unmount_full(world).await, "", "nothing is left");
    let nic = back(world, &vm).await;

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

fn written(save: &QemuSave) -> i64 {
    save.status
        .as_ref()
        .and_then(|status| status.written)
        .unwrap_or_default()
}

/// The VM runs, and both of its NICs are on their VFs; gives the first of them.
async fn back(world: &World, vm: &Vm) -> VmHybridNic {
    assert_eq!(vm.guest.status().await.unwrap(), "running");
    let nic = fast(world, "called-1").await.unwrap();
    check(world, vm, &nic).await.unwrap();
    let nic = fast(world, "called-0").await.unwrap();
    check_fast_path(world, vm, &nic).await.unwrap();
    nic
}

/// A VM whose guest keeps its VF, on its fast path on node 1, is not saved, and loses nothing.
pub async fn kept(world: &World, vm: &Vm, name: &str) {
    volume(world).await;
    let nic = format!("{name}-0");
    let before = fast(world, &nic).await.unwrap().status.unwrap();
    world
        .apply(&save_yaml("kept", name, "/volume/saves/kept", "then: End"))
        .await
        .unwrap();
    let done = saved(world, "kept").await;
    let words = why(done.status.as_ref());
    assert!(words.starts_with("GuestKeepsVf"), "{words}");
    assert_eq!(phase(done.status.as_ref()), MigrationPhase::Failed);
    assert!(names(world).await.is_empty(), "{:?}", names(world).await);
    assert_eq!(vm.guest.status().await.unwrap(), "running");
    let after = fast(world, &nic).await.unwrap();
    check_fast_path(world, vm, &after).await.unwrap();
    assert_eq!(after.status.unwrap().vf, before.vf, "the VF was touched");
}
