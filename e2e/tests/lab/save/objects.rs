//! `QemuSave` and `QemuRestore` as a test makes them, and how they go.

use std::time::Duration;

use hybridnic_api::{
    conditions::{find, types},
    v1alpha1::{MigrationPhase, QemuRestore, QemuSave, StateFileStatus},
};
use hybridnic_e2e::{
    lab::Pinger,
    world::{Vm, World},
};

use crate::common::{LATER, SOON, watched};

/// The least that a `QemuSave` takes: so slow that a test can act while QEMU writes.
pub const SLOW: &str = "1048576";

pub fn save_yaml(name: &str, vm: &str, file: &str, more: &str) -> String {
    format!(
        "apiVersion: hybridnic.io/v1alpha1\nkind: QemuSave\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{vm: {vm}, file: {file}, {more}}}\n"
    )
}

pub fn restore_yaml(name: &str, vm: &str, file: &str, pod: &str) -> String {
    restore_yaml_with(name, vm, file, pod, "")
}

/// The same with more of its spec.
pub fn restore_yaml_with(name: &str, vm: &str, file: &str, pod: &str, more: &str) -> String {
    format!(
        "apiVersion: hybridnic.io/v1alpha1\nkind: QemuRestore\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{vm: {vm}, file: {file}, pod: {pod}, {more}}}\n"
    )
}

pub fn phase(status: Option<&StateFileStatus>) -> MigrationPhase {
    status.map(|status| status.phase).unwrap_or_default()
}

/// Reason and message.
pub fn why(status: Option<&StateFileStatus>) -> String {
    let condition = status.and_then(|status| find(&status.conditions, types::SUCCEEDED));
    condition
        .map(|c| format!("{}: {}", c.reason, c.message))
        .unwrap_or_default()
}

pub async fn saved(world: &World, name: &str) -> QemuSave {
    let is = |save: &QemuSave| phase(save.status.as_ref()).is_final();
    world.until_save(name, LATER, "over", is).await.unwrap()
}

pub async fn restored(world: &World, name: &str) -> QemuRestore {
    let is = |restore: &QemuRestore| phase(restore.status.as_ref()).is_final();
    world.until_restore(name, LATER, "over", is).await.unwrap()
}

/// Waits until a save is in this phase. One that passes it unseen fails.
pub async fn save_reaches(world: &World, name: &str, wanted: MigrationPhase) -> QemuSave {
    let is = |save: &QemuSave| {
        let at = phase(save.status.as_ref());
        at == wanted || at.is_final()
    };
    let there = world.until_save(name, LATER, "that far", is).await.unwrap();
    assert_eq!(phase(there.status.as_ref()), wanted, "{:#?}", there.status);
    there
}

/// The same of a restore.
pub async fn restore_reaches(world: &World, name: &str, wanted: MigrationPhase) {
    let is = |restore: &QemuRestore| {
        let at = phase(restore.status.as_ref());
        at == wanted || at.is_final()
    };
    let there = world.until_restore(name, LATER, "that far", is).await.unwrap();
    assert_eq!(phase(there.status.as_ref()), wanted, "{:#?}", there.status);
}

/// Waits until a VM is paused for its disks, and its save says so.
pub async fn stands_still(world: &World, name: &str, vm: &Vm) {
    let paused = |save: &QemuSave| {
        why(save.status.as_ref()).starts_with("Paused") || phase(save.status.as_ref()).is_final()
    };
    let there = world.until_save(name, LATER, "paused", paused).await.unwrap();
    assert_eq!(
        phase(there.status.as_ref()),
        MigrationPhase::Transferring,
        "{:#?}",
        there.status
    );
    assert_eq!(vm.guest.status().await.unwrap(), "postmigrate");
}

/// Makes an object, and waits for what it comes to from its first moment on.
pub async fn made<T>(world: &World, yaml: &str, comes: impl Future<Output = T>) -> T {
    let (came, applied) = tokio::join!(comes, world.apply(yaml));
    applied.unwrap();
    came
}

/// Checks that it has succeeded.
pub fn succeeded(status: Option<&StateFileStatus>) {
    assert_eq!(phase(status), MigrationPhase::Succeeded, "{status:#?}");
}

pub fn tell(what: &str, status: Option<&StateFileStatus>) {
    let Some(status) = status else { return };
    eprintln!(
        "{what}: {:?} ms in all, paused for {:?} ms, {:?} octets",
        status.total_ms, status.downtime_ms, status.written
    );
    for part in &status.phases {
        eprintln!("  {} took {:?} ms", part.name, part.ms);
    }
}

/// Ends a watch: IPv4 was away for no longer than `most`, and IPv6 and multicast for not much longer than IPv4.
pub async fn gap_is_within(what: &str, most: Duration, pinger: Pinger) {
    let report = watched(pinger).await;
    for gap in &report.round_trip.gaps {
        eprintln!("figure: {what}: gap of {:?}, {} lost", gap.length, gap.lost);
    }
    let longest = report.round_trip.longest();
    assert!(longest < most, "{what}: away for {longest:?}");
}

/// Waits until a VM is saved, and until nothing of it is left on its node.
pub async fn save_and_end(world: &World, name: &str, vm: &Vm, clean: &str) {
    let done = saved(world, name).await;
    succeeded(done.status.as_ref());
    tell("save", done.status.as_ref());
    assert_eq!(
        vm.guest.qemu().wait(SOON).await.unwrap(),
        Some(0),
        "QEMU was ended"
    );
    world.until_footprint(vm.node, clean).await.unwrap();
}
