//! A VM runs once: what is known of a target decides, and not what is not heard of it.

use std::{sync::Arc, time::Duration};

use hybridnic_api::{
    conditions,
    v1alpha1::{MigrationPhase, QemuMigration},
};
use hybridnic_e2e::{
    lab::Pinger,
    world::{NicSpec, Vm, VmSpec, World},
};
use libtest_mimic::Trial;
use nix::sys::signal::Signal;

use crate::{
    common::{
        LATER, SOON, check_fast_path, ended, fast_on, migration, phase, vm_on_fast_path, watch, watched,
        watched_with,
    },
    faults::{failure, reach, transferring},
    suite::Suite,
};

pub fn tests(suite: &Arc<Suite>) -> Vec<Trial> {
    vec![
        suite.test("a_target_that_does_not_answer_is_not_given_up", async |w| {
            silent(w).await
        }),
        suite.test("a_vm_that_ended_at_its_target_is_not_brought_back", async |w| {
            ended_there(w).await
        }),
        suite.test("a_vm_that_its_target_never_started_runs_on", async |w| {
            never_started(w).await
        }),
        suite.test("a_target_that_runs_a_guest_gets_nothing", async |w| {
            occupied(w).await
        }),
    ]
}

/// A VM on node 1 whose transfer to node 2 is under way, and lasts until it is allowed to end.
async fn sending(world: &World, name: &str, host: u8) -> ([Vm; 2], Pinger) {
    let spec = VmSpec::new("vm", &[NicSpec::new(0, host)]);
    let vm = vm_on_fast_path(world, &spec, "vm-a", 1, "fast").await.unwrap();
    let pinger = watch(&world.lab, spec.nics[0].address, 50).await;
    let target = world.start_vm(&spec, "vm-b", 2, true).await.unwrap();
    world.apply(&migration(name, "vm", "vm-b")).await.unwrap();
    transferring(world, &vm, name).await;
    bandwidth(&vm, 100_000).await;
    let parameters = serde_json::json!({});
    for vm in [&vm, &target] {
        let now = vm
            .guest
            .qmp("query-migrate-parameters", parameters.clone())
            .await
            .unwrap();
        assert_eq!(
            now["tls-creds"], "hybridnic-tls",
            "QEMU encrypts, and knows its peer"
        );
    }
    assert_eq!(
        vm.guest.status().await.unwrap(),
        "running",
        "it was sent too fast"
    );
    ([vm, target], pinger)
}

async fn let_it_end(vm: &Vm) {
    bandwidth(vm, 1_000_000_000).await;
}

/// The agent has set it at the start of the transfer, and leaves it alone from then on.
async fn bandwidth(vm: &Vm, bytes_per_second: u64) {
    let most = serde_json::json!({"max-bandwidth": bytes_per_second});
    vm.guest.qmp("migrate-set-parameters", most).await.unwrap();
}

/// QEMU tells its state by events to the agent alone.
async fn until_status(vm: &Vm, wanted: &str) {
    let end = tokio::time::Instant::now() + LATER;
    loop {
        let status = vm.guest.status().await.unwrap();
        if status == wanted {
            return;
        }
        assert!(tokio::time::Instant::now() < end, "{status} and not {wanted}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The VM has arrived on node 2, whose agent is dead before anybody could hear it.
async fn unheard(world: &mut World, vm: &Vm, target: &Vm) {
    world.kill_operator().await.unwrap();
    world.control_plane.pause_api().unwrap();
    let_it_end(vm).await;
    until_status(target, "running").await;
    until_status(vm, "postmigrate").await;
    world.kill_agent(2).await.unwrap();
    // What the agent has written lies in the stopped server's sockets, and must not be read when it goes on.
    world.control_plane.kill_api();
}

async fn heard_again(world: &mut World) {
    world.control_plane.start_api().await.unwrap();
    world.start_operator().unwrap();
    world.start_agent(2).await.unwrap();
}

fn reason(migration: &QemuMigration) -> &str {
    let status = migration.status.as_ref();
    status
        .and_then(|status| conditions::find(&status.conditions, conditions::types::SUCCEEDED))
        .map(|condition| condition.reason.as_str())
        .unwrap_or_default()
}

async fn silent(world: &mut World) {
    let ([vm, target], pinger) = sending(world, "silent", 61).await;
    unheard(world, &vm, &target).await;
    // What the guest receives was set before it was started, and stays when the agent is dead.
    assert!(pinger.answered(20, SOON).await, "no answer by the standby");
    assert!(
        pinger.answered_beside(10, SOON).await,
        "no multicast by the standby"
    );
    target.guest.qemu().signal(Signal::SIGSTOP).unwrap();
    heard_again(world).await;
    let told = |m: &QemuMigration| reason(m) == conditions::reasons::TARGET_SILENT || phase(m).is_final();
    let waits = world
        .until_migration("silent", LATER, "waiting for the target", told)
        .await
        .unwrap();
    assert_eq!(phase(&waits), MigrationPhase::Transferring, "{:#?}", waits.status);
    assert_eq!(vm.guest.status().await.unwrap(), "postmigrate", "it runs twice");

    target.guest.qemu().signal(Signal::SIGCONT).unwrap();
    let done = ended(world, "silent").await.unwrap();
    assert_eq!(phase(&done), MigrationPhase::Succeeded, "{:#?}", done.status);
    let nic = fast_on(world, "vm-0", 2).await.unwrap();
    check_fast_path(world, &target, &nic).await.unwrap();
    // While QEMU stood still its neighbours have given it up, and what waits for it has filled its queue.
    watched_with(pinger, Duration::from_secs(5)).await;
}

async fn ended_there(world: &mut World) {
    let ([vm, target], _) = sending(world, "ended", 62).await;
    unheard(world, &vm, &target).await;
    target.guest.kill().await.unwrap();
    heard_again(world).await;
    let done = ended(world, "ended").await.unwrap();
    assert_eq!(phase(&done), MigrationPhase::Succeeded, "{:#?}", done.status);
    vm.guest.qemu().wait(SOON).await.unwrap();
    let log = std::fs::read_to_string(world.node(1).dir().join("agent.log")).unwrap();
    assert!(!log.contains("Resume"), "the VM was brought back");
}

async fn never_started(world: &mut World) {
    let ([vm, target], pinger) = sending(world, "never-started", 63).await;
    world.kill_agent(2).await.unwrap();
    let_it_end(&vm).await;
    until_status(&vm, "postmigrate").await;
    until_status(&target, "paused").await;
    target.guest.kill().await.unwrap();
    world.start_agent(2).await.unwrap();
    let done = ended(world, "never-started").await.unwrap();
    assert_eq!(
        (phase(&done), failure(&done).as_str()),
        (MigrationPhase::Failed, "TargetLost")
    );
    let nic = fast_on(world, "vm-0", 1).await.unwrap();
    check_fast_path(world, &vm, &nic).await.unwrap();
    assert_eq!(vm.guest.status().await.unwrap(), "running");
    watched(pinger).await;
}

async fn occupied(world: &mut World) {
    let spec = VmSpec::new("vm", &[NicSpec::new(0, 64)]);
    let clean = world.footprint(2).await.unwrap();
    let vm = vm_on_fast_path(world, &spec, "vm-a", 1, "fast").await.unwrap();
    let pinger = watch(&world.lab, spec.nics[0].address, 50).await;
    let _other = world.start_vm(&spec, "vm-b", 2, false).await.unwrap();
    world.apply(&migration("occupied", "vm", "vm-b")).await.unwrap();
    reach(world, "occupied", MigrationPhase::RollingBack).await;
    assert_eq!(world.footprint(2).await.unwrap(), clean, "something was plugged");
    let done = ended(world, "occupied").await.unwrap();
    assert_eq!(
        (phase(&done), failure(&done).as_str()),
        (MigrationPhase::Failed, "TargetNotReady")
    );
    let why = done.status.unwrap().failure.unwrap().message;
    assert!(why.contains("-incoming defer"), "{why}");
    let nic = fast_on(world, "vm-0", 1).await.unwrap();
    check_fast_path(world, &vm, &nic).await.unwrap();
    watched(pinger).await;
}
