//! What goes wrong in a migration: a guest that keeps its VF, a destination that dies, a user who changes his mind,
//! and programs that are killed.

use std::{sync::Arc, time::Duration};

use hybridnic_api::v1alpha1::{MigrationPhase, Path, QemuMigration, VmHybridNic};
use hybridnic_e2e::world::{NicSpec, Vm, VmSpec, World};
use libtest_mimic::Trial;

use crate::{
    common::{
        LATER, SOON, check_fast_path, condition, ended, fast_on, migration, on, phase, times, trio,
        until_said, vm_on_fast_path, watch, watched,
    },
    save,
    suite::Suite,
};

pub fn tests(suite: &Arc<Suite>) -> Vec<Trial> {
    vec![
        suite.test("a_guest_that_keeps_its_vf_is_not_migrated", async |w| {
            keeper(w).await
        }),
        suite.test(
            "a_guest_that_goes_without_its_vf_gets_its_standby_back",
            async |w| gone_without(w).await,
        ),
        suite.test(
            "a_destination_that_dies_and_a_migration_that_is_cancelled",
            async |w| broken(w).await,
        ),
        suite.test("programs_killed_at_three_moments_of_a_migration", async |w| {
            killed(w).await
        }),
    ]
}

pub fn failure(migration: &QemuMigration) -> String {
    migration
        .status
        .as_ref()
        .and_then(|s| s.failure.as_ref())
        .map(|f| f.reason.clone())
        .unwrap_or_default()
}

/// Waits until a NIC is back on its fast path on node 1, and checks all of it.
async fn back_on_fast_path(world: &World, vm: &Vm, nic: &str) {
    let nic = fast_on(world, nic, 1).await.unwrap();
    check_fast_path(world, vm, &nic).await.unwrap();
    assert_eq!(vm.guest.status().await.unwrap(), "running");
}

/// A guest that keeps its VF goes neither to a file nor to another node, and loses nothing by either.
async fn keeper(world: &mut World) {
    let mut spec = VmSpec::new("keeper", &[NicSpec::new(0, 53)]);
    spec.hotplug = false;
    let vm = vm_on_fast_path(world, &spec, "keeper-a", 1, "fast")
        .await
        .unwrap();
    let before = world.nic("keeper-0").await.unwrap().status.unwrap();
    let pinger = watch(&world.lab, spec.nics[0].address, 50).await;
    save::kept(world, &vm, &spec.name).await;
    spec.hotplug = true;
    let _target = world.start_vm(&spec, "keeper-b", 2, true).await.unwrap();
    world
        .apply(&migration("keep", "keeper", "keeper-b"))
        .await
        .unwrap();
    let done = ended(world, "keep").await.unwrap();
    assert_eq!(
        (phase(&done), failure(&done).as_str()),
        (MigrationPhase::Failed, "GuestKeepsVf")
    );
    back_on_fast_path(world, &vm, "keeper-0").await;
    let after = world.nic("keeper-0").await.unwrap().status.unwrap();
    assert_eq!(before.vf, after.vf, "the VF was touched");
    assert!(pinger.answered(20, SOON).await, "no answer after all");
    let report = watched(pinger).await;
    assert!(
        report.round_trip.longest() < Duration::from_secs(1),
        "{:#?}",
        report.round_trip.gaps
    );

    // Its NIC is deleted, and stays as long as the guest keeps the VF, also when its agent is killed meanwhile.
    let keeps = |n: &VmHybridNic| condition(n, "Ready") == "GuestKeepsVf";
    let delete = ["delete", "vhn", "keeper-0", "--wait=false"];
    world.kubectl(&delete).await.unwrap();
    world.until_nic("keeper-0", SOON, "kept", keeps).await.unwrap();
    let held = world.footprint(1).await.unwrap();
    let tries = "the guest does not let go of the VF";
    let before = times(world, 1, tries);
    world.kill_agent(1).await.unwrap();
    world.start_agent(1).await.unwrap();
    until_said(world, 1, tries, before).await;
    assert_eq!(world.footprint(1).await.unwrap(), held);
}

/// A guest that goes without its VF, as one does whose net_failover cannot join the two, gets its standby back.
async fn gone_without(world: &mut World) {
    let spec = VmSpec::new("vm", &[NicSpec::new(0, 59)]);
    let vm = vm_on_fast_path(world, &spec, "vm-a", 1, "fast").await.unwrap();
    let view = vm.guest.net().await.unwrap();
    let vf = trio(&view, &spec.nics[0].mac).unwrap().2.unwrap().name.clone();
    let pinger = world.lab.pinger(spec.nics[0].address, 50).unwrap();
    assert!(pinger.answered(20, SOON).await, "no answer");

    let down = format!("ip link set {vf} down; (ping -i 0.2 10.77.0.1 >/dev/null 2>&1 &)");
    vm.guest.run(&down, SOON).await.unwrap();
    world
        .until_nic("vm-0", SOON, "back on its standby", |n| {
            on(n, Path::Standby) && condition(n, "FastPath") == "GuestIgnoresVf"
        })
        .await
        .unwrap();
    assert!(pinger.answered(50, SOON).await, "no answer by the standby");
    assert!(
        pinger.answered_beside(10, SOON).await,
        "no multicast by the standby"
    );
    for gap in &pinger.stop().await.round_trip.gaps {
        eprintln!("gap of {:?}, {} lost", gap.length, gap.lost);
    }

    // An agent that has just started tries it again at once, and so does the guest.
    world.kill_agent(1).await.unwrap();
    world.start_agent(1).await.unwrap();
    back_on_fast_path(world, &vm, "vm-0").await;
}

async fn broken(world: &World) {
    let spec = VmSpec::new("vm", &[NicSpec::new(0, 54)]);
    let clean = world.footprint(2).await.unwrap();
    let vm = vm_on_fast_path(world, &spec, "vm-a", 1, "fast").await.unwrap();
    let pinger = watch(&world.lab, spec.nics[0].address, 50).await;

    // Before: its QEMU dies while the source unplugs.
    let target = world.start_vm(&spec, "vm-b", 2, true).await.unwrap();
    world
        .apply(&migration("dies-before", "vm", "vm-b"))
        .await
        .unwrap();
    reach(world, "dies-before", MigrationPhase::SwitchingToStandby).await;
    target.guest.kill().await.unwrap();
    let done = ended(world, "dies-before").await.unwrap();
    assert_eq!(phase(&done), MigrationPhase::Failed, "{:#?}", done.status);
    back_on_fast_path(world, &vm, "vm-0").await;
    world.until_footprint(2, &clean).await.unwrap();

    // During: the transfer is slowed down, so that there is a during.
    let target = world.start_vm(&spec, "vm-c", 2, true).await.unwrap();
    slow(&vm).await;
    world
        .apply(&migration("dies-during", "vm", "vm-c"))
        .await
        .unwrap();
    transferring(world, &vm, "dies-during").await;
    target.guest.kill().await.unwrap();
    let done = ended(world, "dies-during").await.unwrap();
    assert_eq!(phase(&done), MigrationPhase::Failed, "{:#?}", done.status);
    back_on_fast_path(world, &vm, "vm-0").await;
    world.until_footprint(2, &clean).await.unwrap();

    // Cancelled halfway.
    let _target = world.start_vm(&spec, "vm-d", 2, true).await.unwrap();
    world.apply(&migration("cancelled", "vm", "vm-d")).await.unwrap();
    transferring(world, &vm, "cancelled").await;
    world
        .kubectl(&["delete", "qmig", "cancelled", "--timeout=90s"])
        .await
        .unwrap();
    back_on_fast_path(world, &vm, "vm-0").await;
    world.until_footprint(2, &clean).await.unwrap();
    watched(pinger).await;
}

pub async fn reach(world: &World, name: &str, wanted: MigrationPhase) {
    let is = |m: &QemuMigration| phase(m) == wanted || phase(m).is_final();
    let there = world.until_migration(name, LATER, "that far", is).await.unwrap();
    assert_eq!(phase(&there), wanted, "{:#?}", there.status);
}

/// Dirties memory, so that a transfer lasts until it is stopped.
pub async fn slow(vm: &Vm) {
    let busy = "dd if=/dev/zero of=/tmp/ballast bs=1M count=40 2>/dev/null; \
                (while :; do dd if=/dev/urandom of=/tmp/ballast bs=1M count=40 conv=notrunc 2>/dev/null; done) \
                </dev/null >/dev/null 2>&1 & echo $! >/tmp/busy";
    vm.guest.run(busy, SOON).await.unwrap();
}

/// Waits until QEMU sends the VM.
pub async fn transferring(world: &World, vm: &Vm, name: &str) {
    reach(world, name, MigrationPhase::Transferring).await;
    let end = tokio::time::Instant::now() + SOON;
    loop {
        let info = vm
            .guest
            .qmp("query-migrate", serde_json::json!({}))
            .await
            .unwrap();
        if info["status"] == "active" {
            return;
        }
        assert!(
            tokio::time::Instant::now() < end,
            "the transfer has not begun: {info}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[derive(Debug, Clone, Copy)]
enum Victim {
    SourceAgent,
    TargetAgent,
    Operator,
}

async fn killed(world: &mut World) {
    let spec = VmSpec::new("vm", &[NicSpec::new(0, 55)]);
    let clean = [
        world.footprint(1).await.unwrap(),
        world.footprint(2).await.unwrap(),
    ];
    let mut vm = vm_on_fast_path(world, &spec, "vm-0", 1, "fast").await.unwrap();
    let pinger = watch(&world.lab, spec.nics[0].address, 50).await;
    let moments = [
        MigrationPhase::PreparingTarget,
        MigrationPhase::SwitchingToStandby,
        MigrationPhase::Transferring,
    ];
    let victims = [Victim::SourceAgent, Victim::TargetAgent, Victim::Operator];
    // Each dies once in a migration, and in three of them at each moment.
    for run in 0..victims.len() {
        let (from, to) = (vm.node, 3 - vm.node);
        let (pod, name) = (format!("vm-{}", run + 1), format!("killed-{run}"));
        let target = world.start_vm(&spec, &pod, to, true).await.unwrap();
        world.apply(&migration(&name, "vm", &pod)).await.unwrap();
        for (moment, victim) in moments.into_iter().zip(victims.iter().cycle().skip(run)) {
            reach(world, &name, moment).await;
            eprintln!("--- {victim:?} dies at {moment:?}, the VM goes from n{from} to n{to}");
            kill(world, *victim, from, to).await;
        }
        let done = ended(world, &name).await.unwrap();
        assert_eq!(phase(&done), MigrationPhase::Succeeded, "{:#?}", done.status);
        let nic = fast_on(world, "vm-0", to).await.unwrap();
        check_fast_path(world, &target, &nic).await.unwrap();
        world.until_footprint(from, &clean[from - 1]).await.unwrap();
        assert!(pinger.answered(20, SOON).await, "no answer at n{to}");
        vm = target;
    }
    watched(pinger).await;
}

/// kill -9, and a new one at once.
async fn kill(world: &mut World, victim: Victim, from: usize, to: usize) {
    match victim {
        Victim::SourceAgent => {
            world.kill_agent(from).await.unwrap();
            world.start_agent(from).await.unwrap();
        }
        Victim::TargetAgent => {
            world.kill_agent(to).await.unwrap();
            world.start_agent(to).await.unwrap();
        }
        Victim::Operator => {
            world.kill_operator().await.unwrap();
            world.start_operator().unwrap();
        }
    }
}
