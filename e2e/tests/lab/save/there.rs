//! Saved on one node and restored on the other.

use std::time::Instant;

use hybridnic_api::v1alpha1::MigrationPhase;
use hybridnic_e2e::world::{NicSpec, VmSpec, World};

use super::{
    files::{is_whole, volume},
    objects::{gaps, phase, restore_yaml, restored, save_and_end, save_yaml, tell},
};
use crate::common::{SOON, check_fast_path, fast, fast_on, vm_on_fast_path, watch};

pub async fn there(world: &mut World) {
    volume(world).await;
    let spec = VmSpec::new("saved", &[NicSpec::new(0, 71)]);
    let clean = [
        world.footprint(1).await.unwrap(),
        world.footprint(2).await.unwrap(),
    ];
    let vm = vm_on_fast_path(world, &spec, "saved-a", 1, "fast").await.unwrap();
    vm.guest.run("echo kept >/tmp/mark", SOON).await.unwrap();
    let mac = fast(world, "saved-0").await.unwrap().status.unwrap().mac;
    let pinger = watch(&world.lab, spec.nics[0].address, 50).await;

    world
        .apply(&save_yaml(
            "there",
            "saved",
            "/volume/saves/web.state",
            "then: End",
        ))
        .await
        .unwrap();
    save_and_end(world, "there", &vm, &clean[0]).await;
    is_whole(world, "web.state").await;

    // The object first, so that the NIC is where the file says.
    world
        .apply(&restore_yaml(
            "again",
            "saved",
            "/volume/saves/web.state",
            "saved-b",
        ))
        .await
        .unwrap();
    let began = Instant::now();
    let target = world.start_vm(&spec, "saved-b", 2, true).await.unwrap();
    let done = restored(world, "again").await;
    assert_eq!(
        phase(done.status.as_ref()),
        MigrationPhase::Succeeded,
        "{:#?}",
        done.status
    );
    tell("restore", done.status.as_ref());
    assert!(pinger.answered(20, SOON).await, "no answer after the restore");
    eprintln!("it answers {:?} after its pod began to start", began.elapsed());
    let nic = fast_on(world, "saved-0", 2).await.unwrap();
    check_fast_path(world, &target, &nic).await.unwrap();
    assert_eq!(nic.status.unwrap().mac, mac);
    let mark = target.guest.run("cat /tmp/mark", SOON).await.unwrap();
    assert_eq!(mark.trim(), "kept", "it is the VM that was saved");
    is_whole(world, "web.state").await;
    gaps("save and restore", pinger).await;

    // What the file needs is not left in QEMU: it can be sent to another node.
    let third = world.start_vm(&spec, "saved-c", 1, true).await.unwrap();
    world
        .apply(&crate::common::migration("onward", "saved", "saved-c"))
        .await
        .unwrap();
    let done = crate::common::ended(world, "onward").await.unwrap();
    assert_eq!(
        crate::common::phase(&done),
        MigrationPhase::Succeeded,
        "{:#?}",
        done.status
    );
    let nic = fast_on(world, "saved-0", 1).await.unwrap();
    check_fast_path(world, &third, &nic).await.unwrap();
    world.until_footprint(2, &clean[1]).await.unwrap();
}
