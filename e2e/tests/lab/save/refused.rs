//! Files that are not loaded.

use std::fs;

use hybridnic_api::v1alpha1::MigrationPhase;
use hybridnic_e2e::world::{NicSpec, VmSpec, World};

use super::{
    files::{sh, volume},
    objects::{phase, restore_yaml, restored, save_and_end, save_yaml, why},
};
use crate::common::{check_fast_path, fast_on, vm_on_fast_path};

pub async fn refused(world: &mut World) {
    volume(world).await;
    let spec = VmSpec::new("right", &[NicSpec::new(0, 74)]);
    let clean = world.footprint(1).await.unwrap();
    let vm = vm_on_fast_path(world, &spec, "right-a", 1, "fast").await.unwrap();
    world
        .apply(&save_yaml("right", "right", "/volume/saves/right", "then: End"))
        .await
        .unwrap();
    save_and_end(world, "right", &vm, &clean).await;

    // On this host, because a node takes a minute to copy so much.
    let saves = world.lab.dir().join("common/saves");
    let length = fs::copy(saves.join("right"), saves.join("half")).unwrap();
    let half = fs::File::options().write(true).open(saves.join("half")).unwrap();
    half.set_len(length - 4096).unwrap();
    for name in ["other", "machine", "bare"] {
        fs::hard_link(saves.join("right"), saves.join(name)).unwrap();
    }
    let copies = "cd /volume/saves && for n in half other machine; do cp right.hybridnic.json $n.hybridnic.json; done; \
                  sed -i 's/\"vm\": \"right\"/\"vm\": \"wrong\"/' other.hybridnic.json; \
                  sed -i 's/\"machineType\": \"[^\"]*\"/\"machineType\": \"pc-q35-8.2\"/' machine.hybridnic.json";
    sh(world, 1, copies).await;
    let target = world.start_vm(&spec, "right-b", 2, true).await.unwrap();
    for (name, words) in [
        ("half", "the file is not whole"),
        ("other", "the file is of the VM default/wrong"),
        ("machine", "on a machine of type pc-q35-8.2"),
        ("bare", "/volume/saves/bare.hybridnic.json is no file"),
        ("none", "is no file"),
    ] {
        let file = format!("/volume/saves/{name}");
        world
            .apply(&restore_yaml(name, "right", &file, "right-b"))
            .await
            .unwrap();
        let done = restored(world, name).await;
        let why = why(done.status.as_ref());
        assert!(
            why.starts_with("FileRefused") && why.contains(words),
            "{name}: {why}"
        );
        assert_eq!(target.guest.status().await.unwrap(), "inmigrate", "it waits on");
    }
    // And then the right one.
    world
        .apply(&restore_yaml("back", "right", "/volume/saves/right", "right-b"))
        .await
        .unwrap();
    let done = restored(world, "back").await;
    assert_eq!(
        phase(done.status.as_ref()),
        MigrationPhase::Succeeded,
        "{:#?}",
        done.status
    );
    let nic = fast_on(world, "right-0", 2).await.unwrap();
    check_fast_path(world, &target, &nic).await.unwrap();
}
