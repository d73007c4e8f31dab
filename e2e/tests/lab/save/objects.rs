//! `QemuSave` and `QemuRestore` as a test makes them, and how they go.

use hybridnic_api::{
    conditions::{find, types},
    v1alpha1::{MigrationPhase, QemuRestore, QemuSave, StateFileStatus},
};
use hybridnic_e2e::{
    lab::Pinger,
    world::{Vm, World},
};

use crate::common::{LATER, SOON};

/// The least that a `QemuSave` takes: so slow that a test can act while QEMU writes.
pub const SLOW: &str = "1048576";

pub fn save_yaml(name: &str, vm: &str, file: &str, more: &str) -> String {
    format!(
        "apiVersion: hybridnic.io/v1alpha1\nkind: QemuSave\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{vm: {vm}, file: {file}, {more}}}\n"
    )
}

pub fn restore_yaml(name: &str, vm: &str, file: &str, pod: &str) -> String {
    format!(
        "apiVersion: hybridnic.io/v1alpha1\nkind: QemuRestore\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{vm: {vm}, file: {file}, pod: {pod}}}\n"
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

/// The phases of one that goes well, in their order.
const WAY: [MigrationPhase; 5] = [
    MigrationPhase::Pending,
    MigrationPhase::PreparingTarget,
    MigrationPhase::SwitchingToStandby,
    MigrationPhase::Transferring,
    MigrationPhase::Completing,
];

/// Whether it has come so far, or is not on its way any more.
pub fn is_at(status: Option<&StateFileStatus>, wanted: MigrationPhase) -> bool {
    let rank = |phase| WAY.iter().position(|of| *of == phase);
    rank(phase(status)).is_none_or(|at| rank(wanted).is_some_and(|wanted| at >= wanted))
}

/// Waits until a save is that far; a phase may be over before it is seen.
pub async fn save_reaches(world: &World, name: &str, wanted: MigrationPhase) -> MigrationPhase {
    let is = |save: &QemuSave| is_at(save.status.as_ref(), wanted);
    let there = world.until_save(name, LATER, "that far", is).await.unwrap();
    let phase = phase(there.status.as_ref());
    assert!(
        WAY.contains(&phase) || phase == MigrationPhase::Succeeded,
        "{:#?}",
        there.status
    );
    phase
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

pub async fn gaps(what: &str, pinger: Pinger) {
    for gap in &pinger.stop().await.round_trip.gaps {
        eprintln!("{what}: gap of {:?}, {} lost", gap.length, gap.lost);
    }
}

/// Saves the VM, and waits until nothing of it is left on its node.
pub async fn save_and_end(world: &World, name: &str, vm: &Vm, clean: &str) {
    let done = saved(world, name).await;
    assert_eq!(
        phase(done.status.as_ref()),
        MigrationPhase::Succeeded,
        "{:#?}",
        done.status
    );
    tell("save", done.status.as_ref());
    assert_eq!(
        vm.guest.qemu().wait(SOON).await.unwrap(),
        Some(0),
        "QEMU was ended"
    );
    world.until_footprint(vm.node, clean).await.unwrap();
}
