//! Saved on one node and restored on the other.

use std::time::{Duration, Instant};

use hybridnic_api::v1alpha1::MigrationPhase;
use hybridnic_e2e::world::{NicSpec, VmSpec, World};

use super::{
    files::{is_whole, volume},
    objects::{gap_is_within, restore_yaml, restored, save_and_end, save_yaml, succeeded, tell},
};
use crate::{
    alone::check,
    common::{SOON, check_fast_path, fast, fast_on, migration, vm_on_fast_path, watch},
};

/// How long the VM may be away. In it QEMU ends, the test looks at node and file, and a pod starts with another QEMU.
const AWAY: Duration = Duration::from_mins(1);
/// How long it may take from the start of that pod to the first answer. In the emulation it takes some seconds, most of them for QEMU to
/// start and to load.
const BACK: Duration = Duration::from_secs(30);

pub async fn there(world: &mut World) {
    volume(world).await;
    let spec = VmSpec::new("saved", &[NicSpec::new(0, 71), NicSpec::new(1, 71).alone()]);
    let clean = [
        world.footprint(1).await.unwrap(),
        world.footprint(2).await.unwrap(),
    ];
    let vm = vm_on_fast_path(world, &spec, "saved-a", 1, "fast").await.unwrap();
    vm.guest.run("echo kept >/tmp/mark", SOON).await.unwrap();
    let mac = fast(world, "saved-0").await.unwrap().status.unwrap().mac;
    let lone = fast(world, "saved-1").await.unwrap().status.unwrap();
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

    // The object first, so that the NICs are where the file says.
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
    succeeded(done.status.as_ref());
    tell("restore", done.status.as_ref());
    assert!(pinger.answered(20, SOON).await, "no answer after the restore");
    let back = began.elapsed();
    eprintln!("figure: a restored VM answers {back:?} after its pod began to start");
    assert!(back < BACK);
    let nic = fast_on(world, "saved-0", 2).await.unwrap();
    check_fast_path(world, &target, &nic).await.unwrap();
    assert_eq!(nic.status.unwrap().mac, mac);
    let nic = fast_on(world, "saved-1", 2).await.unwrap();
    check(world, &target, &nic).await.unwrap();
    let status = nic.status.unwrap();
    assert_eq!(status.mac, lone.mac);
    assert_eq!(
        status.guest.vf_pci_address, lone.guest.vf_pci_address,
        "the guest finds its VF where it was"
    );
    let beside = world.lab.pinger(spec.nics[1].address, 20).unwrap();
    assert!(
        beside.answered(20, SOON).await,
        "no answer by the VF without a standby"
    );
    drop(beside);
    let mark = target.guest.run("cat /tmp/mark", SOON).await.unwrap();
    assert_eq!(mark.trim(), "kept", "it is the VM that was saved");
    is_whole(world, "web.state").await;
    gap_is_within("save and restore", AWAY, pinger).await;

    // What the file needs is not left in QEMU: it can be sent to another node.
    let third = world.start_vm(&spec, "saved-c", 1, true).await.unwrap();
    world
        .apply(&migration("onward", "saved", "saved-c"))
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
