//! Files that are not loaded.

use std::fs;

use hybridnic_api::v1alpha1::{MigrationPhase, MigrationStep, NicAttachment};
use hybridnic_e2e::{
    until::until,
    world::{NAMESPACE, NicSpec, VmSpec, World},
};
use kube::{Api, ResourceExt as _};

use super::{
    files::{sh, volume},
    objects::{
        made, phase, restore_reaches, restore_yaml, restore_yaml_with, restored, save_and_end, save_yaml,
        succeeded, why,
    },
};
use crate::{
    common::{LATER, SOON, check_fast_path, fast_on, vm_on_fast_path},
    suite::until_free,
};

pub async fn refused(world: &mut World) {
    volume(world).await;
    let spec = VmSpec::new("right", &[NicSpec::new(0, 74)]);
    let clean = [
        world.footprint(1).await.unwrap(),
        world.footprint(2).await.unwrap(),
    ];
    let vm = vm_on_fast_path(world, &spec, "right-a", 1, "fast").await.unwrap();
    world
        .apply(&save_yaml("right", "right", "/volume/saves/right", "then: End"))
        .await
        .unwrap();
    save_and_end(world, "right", &vm, &clean[0]).await;

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
    // Nothing is left of them but what the QEMU that waits has, and that goes with it.
    world.delete_pod(&target).await.unwrap();
    world.until_footprint(2, &clean[1]).await.unwrap();
    until_free(world, 2).await.unwrap();

    given_up(world, &spec, &clean[1]).await;

    // And then the right one.
    let target = world.start_vm(&spec, "right-c", 2, true).await.unwrap();
    world
        .apply(&restore_yaml("back", "right", "/volume/saves/right", "right-c"))
        .await
        .unwrap();
    let done = restored(world, "back").await;
    succeeded(done.status.as_ref());
    let nic = fast_on(world, "right-0", 2).await.unwrap();
    check_fast_path(world, &target, &nic).await.unwrap();
}

/// Restores that are deleted while QEMU loads, and that take too long: QEMU ends, nothing is left on the node, and the file stays.
async fn given_up(world: &World, spec: &VmSpec, clean: &str) {
    let file = "/volume/saves/right";
    let whole = sh(world, 1, &format!("stat -c %s {file} {file}.hybridnic.json")).await;
    for (name, more) in [("deleted", ""), ("late", "deadlineSeconds: 1")] {
        let pod = format!("right-{name}");
        let target = world.start_vm(spec, &pod, 2, true).await.unwrap();
        // QEMU gets a fifth of a processor, so that to load takes long enough.
        pods_get(world, "20000 100000").await;
        let yaml = restore_yaml_with(name, "right", file, &pod, more);
        made(
            world,
            &yaml,
            restore_reaches(world, name, MigrationPhase::Transferring),
        )
        .await;
        if more.is_empty() {
            let deletion = ["delete", "qrestore", name, "--wait=false"];
            world.kubectl(&deletion).await.unwrap();
        }
        until_called_off(world, &pod).await;
        // Until then it must not be done with loading: a VM that runs is ended by nobody.
        let ended = target.guest.qemu().wait(LATER).await.unwrap();
        assert_eq!(ended, Some(0), "QEMU was ended");
        pods_get(world, "max 100000").await;
        if more.is_empty() {
            let deletion = ["delete", "qrestore", name, "--ignore-not-found", "--timeout=120s"];
            world.kubectl(&deletion).await.unwrap();
        } else {
            let done = restored(world, name).await;
            let why = why(done.status.as_ref());
            assert!(why.starts_with("DeadlineExceeded"), "{why}");
            assert_eq!(phase(done.status.as_ref()), MigrationPhase::Failed);
        }
        world.until_footprint(2, clean).await.unwrap();
        until_free(world, 2).await.unwrap();
        let now = sh(world, 1, &format!("stat -c %s {file} {file}.hybridnic.json")).await;
        assert_eq!(now, whole);
    }
}

/// Waits until the agent of a pod is told to give its VM up.
async fn until_called_off(world: &World, pod: &str) {
    let attachments = world.attachments().await.unwrap();
    let of_pod = attachments.iter().find(|of| of.spec.pod.name == pod).unwrap();
    let told = |of: &NicAttachment| {
        let order = of.spec.migration.as_ref();
        order.is_some_and(|order| order.step == MigrationStep::GiveUp)
    };
    let api = Api::namespaced(world.client(), NAMESPACE);
    until(api, &of_pod.name_any(), SOON, "called off", told)
        .await
        .unwrap();
}

/// What all pods of node 2 get of its processors: so many µs of so many.
async fn pods_get(world: &World, most: &str) {
    sh(
        world,
        2,
        &format!("echo '{most}' >/sys/fs/cgroup/kubepods/cpu.max"),
    )
    .await;
}
