//! The way of most users today: Debian's own kernel, whose drivers are modules and which has no iommufd, so that QEMU takes
//! the VF by its vfio group.

use std::{sync::Arc, time::Duration};

use hybridnic_api::v1alpha1::MigrationPhase;
use hybridnic_e2e::{
    lab::Kernel,
    world::{NicSpec, VmSpec, World},
};
use libtest_mimic::Trial;

use crate::{
    common::{SOON, check_fast_path, ended, fast, fast_on, migration, phase, vm_on_fast_path},
    suite::Suite,
};

pub fn tests(suite: &Arc<Suite>) -> Vec<Trial> {
    vec![suite.test_on(
        Kernel::Debian,
        "a_vm_on_debians_own_kernel_migrates_by_vfio_groups",
        async |w| by_group(w).await,
    )]
}

async fn by_group(world: &World) {
    let spec = VmSpec::new("web", &[NicSpec::new(0, 58)]);
    let clean = world.footprint(1).await.unwrap();
    let here = vm_on_fast_path(world, &spec, "web-a", 1, "fast").await.unwrap();
    let nic = fast(world, "web-0").await.unwrap();
    check_fast_path(world, &here, &nic).await.unwrap();
    let cdevs = world
        .node(1)
        .exec("ls /dev/iommu /dev/vfio/devices", SOON)
        .await
        .unwrap();
    assert_ne!(cdevs.status, 0, "this kernel has iommufd: {}", cdevs.stdout);

    let pinger = world.lab.pinger(spec.nics[0].address, 50).unwrap();
    assert!(pinger.answered(50, SOON).await, "no answer");
    let there = world.start_vm(&spec, "web-b", 2, true).await.unwrap();
    world.apply(&migration("move", "web", "web-b")).await.unwrap();
    let done = ended(world, "move").await.unwrap();
    assert_eq!(phase(&done), MigrationPhase::Succeeded, "{:#?}", done.status);
    let nic = fast_on(world, "web-0", 2).await.unwrap();
    check_fast_path(world, &there, &nic).await.unwrap();
    world.until_footprint(1, &clean).await.unwrap();
    assert!(pinger.answered(50, SOON).await, "no answer after all");

    let report = pinger.stop().await;
    for gap in &report.round_trip.gaps {
        eprintln!("gap of {:?}, {} lost", gap.length, gap.lost);
    }
    // How long igbvf takes until its link is up is this kernel's own affair: docs/benchmarks.md.
    let longest = report.round_trip.longest();
    assert!(longest < Duration::from_secs(12), "{longest:?} without traffic");
}
