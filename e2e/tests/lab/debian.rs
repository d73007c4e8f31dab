//! The way of most users today: Debian's own kernel, whose drivers are modules and which has no iommufd, so that QEMU takes
//! the VF by its vfio group.

use std::{fs, sync::Arc, time::Duration};

use hybridnic_api::v1alpha1::{HybridNode, MigrationPhase, SwitchOrder};
use hybridnic_e2e::{
    lab::{Kernel, Node},
    world::{NETWORK, NETWORK_YAML, NicSpec, VmSpec, World},
};
use libtest_mimic::Trial;

use crate::{
    common::{
        SOON, check_fast_path, ended, fast, fast_on, migration, phase, vm_on_fast_path, watch, watched,
    },
    profile,
    suite::{Suite, give_macs, until_free},
};

pub fn tests(suite: &Arc<Suite>) -> Vec<Trial> {
    vec![
        suite.test_on(
            Kernel::Debian,
            "a_vm_on_debians_own_kernel_migrates_by_vfio_groups_from_a_card_whose_driver_nobody_knows",
            async |w| by_group(w).await,
        ),
        suite.test_on(
            Kernel::Debian,
            "a_driver_without_port_profiles_leaves_a_nic_on_its_standby",
            async |w| without_profiles(w).await,
        ),
    ]
}

/// Debian's igb has no port profiles, as no driver but enic has.
async fn without_profiles(world: &World) {
    world.apply(&profile::network("gold")).await.unwrap();
    let spec = VmSpec::new("gold", &[NicSpec::new(0, 69)]);
    let clean = world.footprint(1).await.unwrap();
    let _vm = world.start_vm(&spec, "gold-a", 1, false).await.unwrap();
    world.apply(&spec.nic_yaml(0, "gold")).await.unwrap();
    let nic = profile::on_standby(world, "gold-0", "PortProfileUnsupported").await;
    let said = profile::words(&nic);
    assert!(said.contains("igb of the VF's PF has no port profiles"), "{said}");
    profile::leaves(world, "gold-0", &clean).await;
}

/// A driver's name that is in no table of ours.
const UNKNOWN: &str = "igx";

/// Takes the cards from `igb` and gives them to the same driver by the name [`UNKNOWN`]: what is known of a driver by its name
/// alone is then known no more.
async fn rename_driver(node: &Node) {
    let module = "/lib/modules/$(uname -r)/kernel/drivers/net/ethernet/intel/igb/igb.ko";
    node.run(&format!("cp {module} /host/ && busybox rmmod igb"), SOON)
        .await
        .unwrap();
    let share = node.share();
    let mut content = fs::read(share.join("igb.ko")).unwrap();
    // Strings that are the name and nothing else: the driver's, and the module's.
    let (known, unknown) = (b"\0igb\0", b"\0igx\0");
    for at in 0..content.len() - known.len() {
        let here = &mut content[at..][..known.len()];
        if here == known {
            here.copy_from_slice(unknown);
        }
    }
    // A signature that is wrong is refused, none at all is not: without these words nobody looks for one.
    let signed = b"~Module signature appended~\n";
    if content.ends_with(signed) {
        content.truncate(content.len() - signed.len());
    }
    fs::write(share.join("igx.ko"), content).unwrap();
    node.run("busybox insmod /host/igx.ko", SOON).await.unwrap();
}

async fn by_group(world: &World) {
    rename_driver(world.node(1)).await;
    let both = NETWORK_YAML.replace("[igb]", &format!("[igb, {UNKNOWN}]"));
    world.apply(&both).await.unwrap();
    let known = |node: &HybridNode| {
        let status = node.status.as_ref();
        status.is_some_and(|s| s.vfs.free == 14 && s.pfs.iter().all(|pf| pf.driver == UNKNOWN))
    };
    let what = "with VFs of the unknown driver";
    world.until_node(1, SOON, what, known).await.unwrap();
    give_macs(world.node(1)).await.unwrap();

    let spec = VmSpec::new("web", &[NicSpec::new(0, 58)]);
    let clean = world.footprint(1).await.unwrap();
    let here = vm_on_fast_path(world, &spec, "web-a", 1, NETWORK).await.unwrap();
    let nic = fast(world, "web-0").await.unwrap();
    check_fast_path(world, &here, &nic).await.unwrap();
    let cdevs = world
        .node(1)
        .exec("ls /dev/iommu /dev/vfio/devices", SOON)
        .await
        .unwrap();
    assert_ne!(cdevs.status, 0, "this kernel has iommufd: {}", cdevs.stdout);

    let pinger = watch(&world.lab, spec.nics[0].address, 50).await;
    let there = world.start_vm(&spec, "web-b", 2, true).await.unwrap();
    world.apply(&migration("move", "web", "web-b")).await.unwrap();
    let done = ended(world, "move").await.unwrap();
    assert_eq!(phase(&done), MigrationPhase::Succeeded, "{:#?}", done.status);
    let nic = fast_on(world, "web-0", 2).await.unwrap();
    check_fast_path(world, &there, &nic).await.unwrap();
    // The card takes one MAC twice, and was not held to be one that does not.
    let order = nic.status.unwrap().last_migration.unwrap().unplug_order;
    assert_eq!(order, Some(SwitchOrder::MakeBeforeBreak));
    world.until_footprint(1, &clean).await.unwrap();
    assert!(pinger.answered(50, SOON).await, "no answer after all");

    let report = watched(pinger).await;
    for gap in &report.round_trip.gaps {
        eprintln!("gap of {:?}, {} lost", gap.length, gap.lost);
    }
    // How long igbvf takes until its link is up is this kernel's own affair: docs/benchmarks.md.
    let longest = report.round_trip.longest();
    assert!(longest < Duration::from_secs(12), "{longest:?} without traffic");

    // As it was, because another test comes next.
    world.clear(NETWORK).await.unwrap();
    let back = format!("busybox rmmod {UNKNOWN} && modprobe igb");
    world.node(1).run(&back, SOON).await.unwrap();
    world.apply(NETWORK_YAML).await.unwrap();
    until_free(world, 1).await.unwrap();
    give_macs(world.node(1)).await.unwrap();
}
