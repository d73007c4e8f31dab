//! NICs that are told to leave their VFs, and to come back.

use std::sync::Arc;

use hybridnic_api::v1alpha1::{HybridNetwork, HybridNode, MigrationPhase, Path, VmHybridNic};
use hybridnic_e2e::{
    lab::Report,
    world::{NicSpec, Vm, VmSpec, World},
};
use libtest_mimic::Trial;

use crate::{
    common::{
        LATER, RESERVED, SOON, check_fast_path, condition, ended, fast, fast_on, migration, on, phase, times,
        trio, vm_on_fast_path, watch, watched,
    },
    suite::Suite,
};

pub fn tests(suite: &Arc<Suite>) -> Vec<Trial> {
    vec![
        suite.test("a_nic_steps_aside_at_a_word_and_comes_back", async |w| {
            aside(w).await
        }),
        suite.test("a_vf_that_is_kept_is_no_other_nics", async |w| kept(w).await),
    ]
}

async fn aside(world: &mut World) {
    let spec = VmSpec::new("aside", &[NicSpec::new(0, 61)]);
    let clean = [
        world.footprint(1).await.unwrap(),
        world.footprint(2).await.unwrap(),
    ];
    let first = vm_on_fast_path(world, &spec, "aside-a", 1, "fast").await.unwrap();
    let pinger = watch(&world.lab, spec.nics[0].address, 100).await;

    // The VF leaves the guest, and is anybody's.
    tell(world, "aside-0", STANDBY).await;
    let nic = told(world, "aside-0", 1).await;
    assert_eq!(nic.status.as_ref().unwrap().vf, None);
    stands_by(world, &first, &spec, &nic).await;
    free(world, 1, 14).await;
    let counted = |n: &HybridNetwork| {
        n.status
            .as_ref()
            .is_some_and(|s| (s.on_fast_path, s.on_standby, s.told_standby) == (0, 1, 1))
    };
    world
        .until_network("fast", SOON, "counted", counted)
        .await
        .unwrap();
    assert!(pinger.answered(100, SOON).await, "no answer by the standby");

    // It arrives as it leaves, no matter which operator leads, and takes no VF there.
    world.restart_operator(&[]).await.unwrap();
    let reserved = times(world, 2, RESERVED);
    let second = world.start_vm(&spec, "aside-b", 2, true).await.unwrap();
    world
        .apply(&migration("aside", "aside", "aside-b"))
        .await
        .unwrap();
    let done = ended(world, "aside").await.unwrap();
    assert_eq!(phase(&done), MigrationPhase::Succeeded, "{:#?}", done.status);
    let nic = told(world, "aside-0", 2).await;
    assert_eq!(nic.status.as_ref().unwrap().vf, None);
    stands_by(world, &second, &spec, &nic).await;
    assert_eq!(times(world, 2, RESERVED), reserved, "it has had a VF");
    world.until_footprint(1, &clean[0]).await.unwrap();
    assert!(pinger.answered(100, SOON).await, "no answer after the migration");

    tell(world, "aside-0", AUTO).await;
    let nic = fast_on(world, "aside-0", 2).await.unwrap();
    check_fast_path(world, &second, &nic).await.unwrap();
    assert!(pinger.answered(100, SOON).await, "no answer by the VF");

    // If a program is killed on the way, the next one goes on.
    for (words, goes) in [(STANDBY, Path::Standby), (AUTO, Path::FastPath)] {
        tell(world, "aside-0", words).await;
        world.kill_agent(2).await.unwrap();
        world.start_agent(2).await.unwrap();
        if goes == Path::Standby {
            let nic = told(world, "aside-0", 2).await;
            stands_by(world, &second, &spec, &nic).await;
            free(world, 2, 14).await;
        } else {
            let nic = fast_on(world, "aside-0", 2).await.unwrap();
            check_fast_path(world, &second, &nic).await.unwrap();
        }
        assert!(pinger.answered(50, SOON).await, "no answer, told {words}");
    }

    // On its way: it is told during the migration, and what was reserved at the target goes back.
    let third = world.start_vm(&spec, "aside-c", 1, true).await.unwrap();
    world
        .apply(&migration("meanwhile", "aside", "aside-c"))
        .await
        .unwrap();
    crate::faults::reach(world, "meanwhile", MigrationPhase::SwitchingToStandby).await;
    tell(world, "aside-0", STANDBY).await;
    let done = ended(world, "meanwhile").await.unwrap();
    assert_eq!(phase(&done), MigrationPhase::Succeeded, "{:#?}", done.status);
    let nic = told(world, "aside-0", 1).await;
    stands_by(world, &third, &spec, &nic).await;
    free(world, 1, 14).await;
    world.until_footprint(2, &clean[1]).await.unwrap();

    let report = watched(pinger).await;
    show(&report);
    let downtime: i64 = [done, ended(world, "aside").await.unwrap()]
        .iter()
        .map(|m| m.status.as_ref().unwrap().downtime_ms.unwrap_or(0))
        .sum();
    // Two migrations, and four switches beside: each may cost what a migration's may (see `flight`).
    let lost_ms = i64::try_from(report.round_trip.lost() * 10).unwrap();
    assert!(lost_ms <= downtime + 6 * 500, "{:#?}", report.round_trip.gaps);

    world
        .kubectl(&["delete", "vhn", "aside-0", "--timeout=60s"])
        .await
        .unwrap();
    world.until_footprint(1, &clean[0]).await.unwrap();
}

/// One VF on each node.
const ONE_VF: &str = "
apiVersion: hybridnic.io/v1alpha1
kind: HybridNetwork
metadata: {name: one}
spec:
  uplinks:
  - pciAddresses: [\"0000:01:00.0\"]
    numVfs: 7
    vfs: [\"0\"]
  macRange: {from: \"52:54:00:77:00:00\", to: \"52:54:00:77:ff:ff\"}
";

/// Two NICs of one VM, and one VF for both.
async fn kept(world: &mut World) {
    world.apply(ONE_VF).await.unwrap();
    let spec = VmSpec::new("kept", &[NicSpec::new(0, 62), NicSpec::new(1, 62)]);
    let vm = world.start_vm(&spec, "kept-a", 1, false).await.unwrap();
    world.apply(&spec.nic_yaml(0, "one")).await.unwrap();
    let nic = fast(world, "kept-0").await.unwrap();
    check_fast_path(world, &vm, &nic).await.unwrap();
    let vf = nic.status.as_ref().unwrap().vf.clone().unwrap();
    world.apply(&spec.nic_yaml(1, "one")).await.unwrap();
    lacks(world, "kept-1").await;
    let pingers = [
        watch(&world.lab, spec.nics[0].address, 50).await,
        watch(&world.lab, spec.nics[1].address, 50).await,
    ];

    // It is out of the guest and answers for nobody, and yet no other NIC gets it, no matter which program is killed.
    tell(world, "kept-0", KEEP).await;
    for killed in [false, true] {
        if killed {
            world.kill_agent(1).await.unwrap();
            world.start_agent(1).await.unwrap();
        }
        let nic = told(world, "kept-0", 1).await;
        assert_eq!(nic.status.as_ref().unwrap().vf.as_ref(), Some(&vf));
        stands_by(world, &vm, &spec, &nic).await;
        let table = world.node(1).vfs(&vf.pf).await.unwrap();
        let row = table.iter().find(|r| i64::from(r.index) == i64::from(vf.index));
        assert!(row.unwrap().mac.starts_with("06:"), "{row:?}");
        let counted = |n: &HybridNetwork| {
            n.status
                .as_ref()
                .is_some_and(|s| (s.on_standby, s.told_standby, s.vfs.held) == (2, 1, 1))
        };
        world
            .until_network("one", SOON, "counted", counted)
            .await
            .unwrap();
        lacks(world, "kept-1").await;
    }

    // Given back, it is the other's at once; and then it is this one that waits.
    tell(world, "kept-0", GIVE).await;
    let nic = fast(world, "kept-1").await.unwrap();
    check_fast_path(world, &vm, &nic).await.unwrap();
    tell(world, "kept-0", AUTO).await;
    lacks(world, "kept-0").await;
    tell(world, "kept-1", STANDBY).await;
    let nic = fast(world, "kept-0").await.unwrap();
    check_fast_path(world, &vm, &nic).await.unwrap();
    let nic = told(world, "kept-1", 1).await;
    assert_eq!(nic.status.as_ref().unwrap().vf, None);
    for pinger in pingers {
        assert!(pinger.answered(50, SOON).await, "no answer after all");
        show(&watched(pinger).await);
    }
}

pub const STANDBY: &str = r#"{"path": "Standby"}"#;
const KEEP: &str = r#"{"path": "Standby", "keepVf": true}"#;
const GIVE: &str = r#"{"keepVf": null}"#;
pub const AUTO: &str = r#"{"path": "Auto", "keepVf": null}"#;

/// Tells a NIC where its traffic is to run.
pub async fn tell(world: &World, nic: &str, spec: &str) {
    let patch = format!(r#"{{"spec": {spec}}}"#);
    world
        .kubectl(&["patch", "vhn", nic, "--type", "merge", "-p", &patch])
        .await
        .unwrap();
}

/// Waits until a NIC is on its standby because it was told so, on this node.
pub async fn told(world: &World, nic: &str, node: usize) -> VmHybridNic {
    let name = world.node(node).name();
    let is = |n: &VmHybridNic| {
        on(n, Path::Standby)
            && condition(n, "FastPath") == "StandbyRequested"
            && condition(n, "Ready") == "Attached"
            && n.status
                .as_ref()
                .is_some_and(|s| s.node_name.as_deref() == Some(name))
    };
    world
        .until_nic(
            nic,
            LATER,
            &format!("on its standby on {name}, as it was told"),
            is,
        )
        .await
        .unwrap()
}

/// Waits until a NIC is on its standby because there is no VF for it.
async fn lacks(world: &World, nic: &str) {
    let is = |n: &VmHybridNic| on(n, Path::Standby) && condition(n, "FastPath") == "NoFreeVf";
    world
        .until_nic(nic, LATER, "without a free VF", is)
        .await
        .unwrap();
}

/// Waits until a node has this many free VFs.
async fn free(world: &World, node: usize, count: i32) {
    let is = |n: &HybridNode| n.status.as_ref().is_some_and(|s| s.vfs.free == count);
    world
        .until_node(node, SOON, &format!("with {count} free VFs"), is)
        .await
        .unwrap();
}

/// The guest has no VF of this NIC, and its macvtap is up.
async fn stands_by(world: &World, vm: &Vm, spec: &VmSpec, nic: &VmHybridNic) {
    let status = nic.status.as_ref().unwrap();
    let mac = status.mac.as_deref().unwrap();
    assert!(spec.nics.iter().any(|nic| nic.mac == mac), "{mac}");
    let view = vm.guest.net().await.unwrap();
    assert!(trio(&view, mac).unwrap().2.is_none(), "{view:#?}");
    let macvtaps = world.node(vm.node).macvtaps().await.unwrap();
    let standby = status.standby.as_ref().unwrap();
    let macvtap = macvtaps.iter().find(|m| m.name == standby.macvtap).unwrap();
    assert!(macvtap.up && macvtap.mac == mac, "{macvtap:?}");
}

fn show(report: &Report) {
    for gap in &report.round_trip.gaps {
        eprintln!("gap of {:?}, {} lost", gap.length, gap.lost);
    }
}
