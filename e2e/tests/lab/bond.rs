//! Guests that bond VF and standby by themselves (`pairing: Bond`): the whole flight, a target without a free VF, a reboot; and one
//! that was to have a bond and has none, whose VF is left alone or sends, too.

use std::sync::Arc;

use hybridnic_api::{
    conditions::{self, types},
    v1alpha1::{MigrationPhase, Pairing, Path, VmHybridNic},
};
use hybridnic_e2e::world::{NicSpec, Vm, VmSpec, World};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::{
    common::{
        LATER, SOON, check_fast_path, condition, ended, fast, fast_on, migration, on, phase, vm_on_fast_path,
        watch, watched,
    },
    flight::{downtime, first_is_over, move_to, runs_on_the_vf},
    pool::SCARCE,
    suite::Suite,
};

pub fn tests(suite: &Arc<Suite>) -> Vec<Trial> {
    vec![
        suite.test("a_guest_with_a_bond_flies_there_and_back", async |w| {
            there_and_back(w).await
        }),
        suite.test("a_guest_with_a_bond_arrives_where_no_vf_is_free", async |w| {
            crowded(w).await
        }),
        suite.test("a_guest_that_has_no_bond_is_told_what_is_seen", async |w| {
            without_bond(w).await
        }),
        suite.test("a_guest_that_sends_by_both_is_told_to_bond_them", async |w| {
            two_interfaces(w).await
        }),
    ]
}

async fn there_and_back(world: &World) {
    let spec = VmSpec::new("web", &[NicSpec::new(0, 44)]).bonded();
    let clean = [
        world.footprint(1).await.unwrap(),
        world.footprint(2).await.unwrap(),
    ];
    let first = vm_on_fast_path(world, &spec, "web-a", 1, "fast").await.unwrap();
    let nic = fast(world, "web-0").await.unwrap();
    check_fast_path(world, &first, &nic).await.unwrap();
    is_bonded(&first, &spec).await;
    keeps_its_tap(&first, &spec).await;
    runs_on_the_vf(world, &first, &spec).await;

    let pinger = watch(&world.lab, spec.nics[0].address, 100).await;
    let second = world.start_vm(&spec, "web-b", 2, true).await.unwrap();
    move_to(world, "there", "web-b", &second, &nic).await;
    first_is_over(world, &first, &clean[0]).await;
    is_bonded(&second, &spec).await;
    let nic = world.nic("web-0").await.unwrap();

    let third = world.start_vm(&spec, "web-c", 1, true).await.unwrap();
    move_to(world, "back", "web-c", &third, &nic).await;
    first_is_over(world, &second, &clean[1]).await;
    is_bonded(&third, &spec).await;
    assert!(pinger.answered(50, SOON).await, "no answer after all");

    let report = watched(pinger).await;
    for gap in &report.round_trip.gaps {
        eprintln!("gap of {:?}, {} lost", gap.length, gap.lost);
    }
    let downtime: u64 = downtime(world, "there").await + downtime(world, "back").await;
    let lost_ms = report.round_trip.lost() * 10;
    eprintln!(
        "lost {} of {} ({lost_ms} ms), QEMU's own downtime {downtime} ms",
        report.round_trip.lost(),
        report.round_trip.sent
    );
    // As with net_failover.
    assert!(lost_ms <= downtime + 2 * 500, "{:#?}", report.round_trip.gaps);

    reboots(world, &third, &spec).await;

    world
        .kubectl(&["delete", "vhn", "web-0", "--timeout=60s"])
        .await
        .unwrap();
    world.until_footprint(1, &clean[0]).await.unwrap();
    // The bond itself is the guest's.
    let mac = &spec.nics[0].mac;
    let (view, gone) = third
        .guest
        .net_when(SOON, |v| v.with_mac(mac).all(|n| n.driver.is_none()))
        .await
        .unwrap();
    assert!(gone, "the devices are still in the guest: {view:#?}");
}

/// The standby is a plain virtio-net, and both are in a bond that uses the VF.
async fn is_bonded(vm: &Vm, spec: &VmSpec) {
    let device = format!("/machine/peripheral/sb-{}", spec.nic_name(0));
    let failover = json!({ "path": device, "property": "failover" });
    let failover = vm.guest.qmp("qom-get", failover).await.unwrap();
    assert_eq!(failover, Value::Bool(false), "the standby offers net_failover");
    let view = vm.guest.net().await.unwrap();
    let mac = &spec.nics[0].mac;
    assert!(view.failover(mac).is_none(), "{view:#?}");
    let bond = view.bond(mac).unwrap();
    let primary = bond.primary.unwrap();
    let active = format!("cat /sys/class/net/{}/bonding/active_slave", bond.master.name);
    let active = vm.guest.run(&active, SOON).await.unwrap();
    assert_eq!(active.trim(), primary.name, "{view:#?}");
}

/// QEMU gives the standby no other tap, so it cannot be moved to another PF in the guest (decision 39).
async fn keeps_its_tap(vm: &Vm, spec: &VmSpec) {
    let device = format!("/machine/peripheral/sb-{}", spec.nic_name(0));
    let netdev = json!({ "path": device, "property": "netdev" });
    let netdev = vm.guest.qmp("qom-get", netdev).await.unwrap();
    let set = json!({ "path": device, "property": "netdev", "value": netdev });
    let refused = vm.guest.qmp("qom-set", set).await.map_err(anyhow::Error::from);
    let refused = format!("{:#}", refused.unwrap_err());
    assert!(refused.contains("after it was realized"), "{refused}");
}

/// Both devices stay plugged. The standby carries the traffic until the guest has its bond again.
async fn reboots(world: &World, vm: &Vm, spec: &VmSpec) {
    let before = fast(world, "web-0").await.unwrap().status.unwrap();
    // The lab's guests end at a reset, so that a kernel's panic is seen.
    let resets = json!({ "reboot": "reset" });
    vm.guest.qmp("set-action", resets).await.unwrap();
    vm.guest.qmp("system_reset", json!({})).await.unwrap();
    world
        .until_nic("web-0", SOON, "on its standby, while the guest boots", |n| {
            on(n, Path::Standby) && condition(n, types::FAST_PATH) == "GuestNotBonded"
        })
        .await
        .unwrap();
    let nic = fast(world, "web-0").await.unwrap();
    check_fast_path(world, vm, &nic).await.unwrap();
    assert_eq!(nic.status.unwrap().vf, before.vf, "the VF stays in the guest");
    is_bonded(vm, spec).await;
    let pinger = watch(&world.lab, spec.nics[0].address, 50).await;
    watched(pinger).await;
}

async fn crowded(world: &World) {
    world.apply(SCARCE).await.unwrap();
    let (mover, stayer) = (
        VmSpec::new("mover", &[NicSpec::new(0, 45)]).bonded(),
        VmSpec::new("stayer", &[NicSpec::new(0, 46)]),
    );
    let _there = vm_on_fast_path(world, &stayer, "stayer", 2, "scarce")
        .await
        .unwrap();
    let _here = vm_on_fast_path(world, &mover, "mover-a", 1, "scarce")
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
    let waits = |n: &VmHybridNic| {
        let at_n2 = n
            .status
            .as_ref()
            .is_some_and(|s| s.node_name.as_deref() == Some("n2"));
        at_n2 && on(n, Path::Standby) && condition(n, types::FAST_PATH) == "NoFreeVf"
    };
    world
        .until_nic("mover-0", LATER, "on standby at n2", waits)
        .await
        .unwrap();
    assert!(pinger.answered(50, SOON).await, "no answer by the standby");

    world
        .kubectl(&["delete", "vhn", "stayer-0", "--timeout=90s"])
        .await
        .unwrap();
    let nic = fast_on(world, "mover-0", 2).await.unwrap();
    check_fast_path(world, &arriving, &nic).await.unwrap();
    is_bonded(&arriving, &mover).await;
    watched(pinger).await;
}

/// The guest has two interfaces with one MAC, and its address on the standby.
async fn without_bond(world: &mut World) {
    let mut spec = VmSpec::new("vm", &[NicSpec::new(0, 47)]);
    spec.pairing = Pairing::Bond;
    let _vm = world.start_vm(&spec, "vm-a", 1, false).await.unwrap();
    world.apply(&spec.nic_yaml(0, "fast")).await.unwrap();
    let pinger = world.lab.pinger(spec.nics[0].address, 50).unwrap();
    assert!(pinger.answered(20, SOON).await, "no answer");

    // It leaves its VF alone.
    let message = told(world, "GuestIgnoresVf").await;
    assert!(message.contains("sent by its standby only"), "{message}");
    assert!(pinger.answered(50, SOON).await, "no answer by the standby");
}

/// The guest has both as interfaces of their own, with the address on the standby, and sends by both.
async fn two_interfaces(world: &World) {
    let mut spec = VmSpec::new("vm", &[NicSpec::new(0, 43)]);
    (spec.pairing, spec.kernel_args) = (Pairing::Bond, "lab.two=1".into());
    let vm = world.start_vm(&spec, "vm-a", 1, false).await.unwrap();
    world.apply(&spec.nic_yaml(0, "fast")).await.unwrap();
    // As long as nobody asks it for anything, it sends by its VF alone, and looks like one with a bond.
    fast(world, "vm-0").await.unwrap();
    let view = vm.guest.net().await.unwrap();
    let both: Vec<_> = view.with_mac(&spec.nics[0].mac).collect();
    assert!(
        both.len() == 2
            && both
                .iter()
                .all(|device| device.up && device.master.is_none() && device.tx_packets > 0),
        "{view:#?}"
    );

    // It answers by the interface that has its address.
    let pinger = world.lab.pinger(spec.nics[0].address, 50).unwrap();
    let message = told(world, "GuestNotBonded").await;
    for words in ["two interfaces with one MAC", "bond of mode active-backup"] {
        assert!(message.contains(words), "{message}");
    }
    assert!(pinger.answered(50, SOON).await, "no answer by the standby");
    pinger.stop().await;
}

/// Waits until the NIC is back on its standby for this reason; gives the message.
async fn told(world: &World, reason: &str) -> String {
    let is_told = |n: &VmHybridNic| on(n, Path::Standby) && condition(n, types::FAST_PATH) == reason;
    let nic = world.until_nic("vm-0", LATER, reason, is_told).await.unwrap();
    let status = nic.status.unwrap();
    let fast_path = conditions::find(&status.conditions, types::FAST_PATH).unwrap();
    fast_path.message.clone()
}
