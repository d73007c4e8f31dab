//! Pools: VFs over both cards, NICs that wait, VMs that arrive without one, and peers on one PF.

use std::{collections::BTreeSet, sync::Arc};

use hybridnic_api::v1alpha1::{HybridNode, MigrationPhase, Path, VfState, VmHybridNic};
use hybridnic_e2e::world::{NicSpec, Vm, VmSpec, World};
use libtest_mimic::Trial;

use crate::{
    common::{
        LATER, SOON, check_fast_path, condition, ended, fast, migration, on, phase, vm_on_fast_path, watch,
        watched,
    },
    suite::Suite,
};

pub fn tests(suite: &Arc<Suite>) -> Vec<Trial> {
    vec![
        suite.test("a_vf_of_somebody_else_is_told_of_and_not_touched", async |w| {
            foreign(w).await
        }),
        suite.test("a_target_without_a_free_vf_and_peers_on_one_pf", async |w| {
            scarce(w).await
        }),
        suite.test(
            "fourteen_nics_get_fourteen_vfs_and_the_fifteenth_waits",
            async |w| fourteen(w).await,
        ),
    ]
}

/// A VF whose interface somebody has given to a namespace of theirs.
async fn foreign(world: &World) {
    let node = world.node(1);
    let before = world.footprint(1).await.unwrap();
    let take = "vf=$(basename $(readlink /sys/bus/pci/devices/0000:01:00.0/virtfn6)); \
                ip netns add other && ip link set $(ls /sys/bus/pci/devices/$vf/net) netns other && echo $vf";
    let taken = node.run(take, SOON).await.unwrap();
    let is_told = |node: &HybridNode| {
        node.status.as_ref().is_some_and(|s| {
            let vf = s.pfs.iter().flat_map(|pf| &pf.vfs);
            let vf = vf.into_iter().find(|vf| vf.pci_address == taken.trim());
            (s.vfs.free, s.vfs.unhealthy) == (13, 1)
                && vf.is_some_and(|vf| {
                    vf.state == VfState::Unhealthy && vf.message.contains("in another namespace")
                })
                && s.pools[0].message.starts_with("1 of its 14 VFs cannot be used: ")
        })
    };
    world
        .until_node(1, SOON, "with a VF of somebody else", is_told)
        .await
        .unwrap();
    assert_eq!(world.footprint(1).await.unwrap(), before);

    // It is one of the pool again as soon as it is back.
    node.run("ip netns del other", SOON).await.unwrap();
    let is_back = |node: &HybridNode| node.status.as_ref().is_some_and(|s| s.vfs.free == 14);
    world
        .until_node(1, SOON, "with all of its VFs", is_back)
        .await
        .unwrap();
}

async fn fourteen(world: &World) {
    // Fifteen guests, or only three, are more than two cores can emulate; one has too few slots for fifteen NICs.
    let specs: Vec<VmSpec> = [(0, 8), (1, 7)]
        .map(|(vm, count)| {
            let nics: Vec<NicSpec> = (0..count).map(|n| NicSpec::new(8 * vm + n, 50)).collect();
            VmSpec::new(&format!("many{vm}"), &nics)
        })
        .into();
    let mut vms: Vec<Vm> = Vec::new();
    for spec in &specs {
        vms.push(world.start_vm(spec, &spec.name, 1, false).await.unwrap());
    }
    let names: Vec<(usize, String)> = specs
        .iter()
        .enumerate()
        .flat_map(|(vm, spec)| (0..spec.nics.len()).map(move |n| (vm, spec.nic_name(n))))
        .collect();
    let (last, others) = names.split_last().unwrap();
    for (vm, name) in others {
        let index = name.rsplit('-').next().unwrap().parse().unwrap();
        world.apply(&specs[*vm].nic_yaml(index, "fast")).await.unwrap();
    }
    let mut vfs = BTreeSet::new();
    let mut pfs = BTreeSet::new();
    for (vm, name) in others {
        let nic = fast(world, name).await.unwrap();
        check_fast_path(world, &vms[*vm], &nic).await.unwrap();
        let vf = nic.status.unwrap().vf.unwrap();
        pfs.insert(vf.pf.clone());
        assert!(vfs.insert(vf.pci_address.clone()), "{} twice", vf.pci_address);
    }
    assert_eq!((vfs.len(), pfs.len()), (14, 2));

    world.apply(&specs[last.0].nic_yaml(6, "fast")).await.unwrap();
    let waiting = world
        .until_nic(&last.1, LATER, "on standby", |n| {
            on(n, Path::Standby) && condition(n, "FastPath") == "NoFreeVf"
        })
        .await
        .unwrap();
    let pinger = world.lab.pinger(specs[last.0].nics[6].address, 50).unwrap();
    assert!(
        pinger.answered(50, SOON).await,
        "the fifteenth has no traffic on its standby"
    );
    let network = world
        .until_network("fast", SOON, "counted", |n| {
            n.status
                .as_ref()
                .is_some_and(|s| s.on_fast_path == 14 && s.on_standby == 1)
        })
        .await
        .unwrap();
    let counts = network.status.unwrap().vfs;
    assert_eq!((counts.total, counts.free, counts.held), (28, 14, 14));

    // A VF of the other PF will do too: what is freed is what there is.
    let standby_pf = waiting.status.unwrap().standby.unwrap().pf;
    world
        .kubectl(&["delete", "vhn", &others[0].1, "--timeout=90s"])
        .await
        .unwrap();
    let nic = fast(world, &last.1).await.unwrap();
    let vf = nic.status.unwrap().vf.unwrap();
    eprintln!("the fifteenth's standby is on {standby_pf}, its VF on {}", vf.pf);
    assert!(
        pinger.answered(50, SOON).await,
        "the fifteenth has no traffic on its VF"
    );
}

/// One VF on each node.
pub const SCARCE: &str = "
apiVersion: hybridnic.io/v1alpha1
kind: HybridNetwork
metadata: {name: scarce}
spec:
  uplinks:
  - pciAddresses: [\"0000:01:00.0\"]
    numVfs: 7
    vfs: [\"0\"]
  macRange: {from: \"52:54:00:77:00:00\", to: \"52:54:00:77:ff:ff\"}
";

async fn scarce(world: &World) {
    world.apply(SCARCE).await.unwrap();
    let (mover, stayer) = (
        VmSpec::new("mover", &[NicSpec::new(0, 51)]),
        VmSpec::new("stayer", &[NicSpec::new(0, 52)]),
    );
    let there = vm_on_fast_path(world, &stayer, "stayer", 2, "scarce")
        .await
        .unwrap();
    let here = vm_on_fast_path(world, &mover, "mover-a", 1, "scarce")
        .await
        .unwrap();

    let pinger = watch(&world.lab, mover.nics[0].address, 50).await;
    let arriving = world.start_vm(&mover, "mover-b", 2, true).await.unwrap();
    world
        .apply(&migration("crowded", "mover", "mover-b"))
        .await
        .unwrap();
    let done = ended(world, "crowded").await.unwrap();
    assert_eq!(phase(&done), MigrationPhase::Succeeded, "{:#?}", done.status);
    let at_n2 = |n: &VmHybridNic| {
        n.status
            .as_ref()
            .is_some_and(|s| s.node_name.as_deref() == Some("n2"))
    };
    world
        .until_nic("mover-0", LATER, "on standby at n2", |n| {
            on(n, Path::Standby) && at_n2(n) && condition(n, "FastPath") == "NoFreeVf"
        })
        .await
        .unwrap();
    drop(here);

    // One is on its VF, the other on its standby, on one PF: they reach each other, by ARP too.
    let clear = "ip neigh flush all; ping -c 5 -i 0.2 -W 2";
    for (from, to) in [(&there, "10.77.0.51"), (&arriving, "10.77.0.52")] {
        let output = from.guest.exec(&format!("{clear} {to}"), SOON).await.unwrap();
        assert!(
            output.stdout.contains(" 0% packet loss"),
            "{} to {to}: {output:?}",
            from.pod
        );
    }

    world
        .kubectl(&["delete", "vhn", "stayer-0", "--timeout=90s"])
        .await
        .unwrap();
    let nic = fast(world, "mover-0").await.unwrap();
    check_fast_path(world, &arriving, &nic).await.unwrap();
    watched(pinger).await;
}
