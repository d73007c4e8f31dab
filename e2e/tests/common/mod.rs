//! What the lab's tests share.

#![allow(dead_code, reason = "each test binary uses some of it")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as it should be"
)]

use std::{
    panic::{AssertUnwindSafe, resume_unwind},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use futures::FutureExt as _;
use hybridnic_api::v1alpha1::{MigrationPhase, NicPhase, Path, QemuMigration, VmHybridNic};
use hybridnic_e2e::{
    lab::{Inside, NetView, Netdev, Node},
    world::{Vm, VmSpec, World, WorldOptions},
};

/// For what takes a moment.
pub const SOON: Duration = Duration::from_mins(1);
/// For what a guest must boot, or a VM must move for.
pub const LATER: Duration = Duration::from_mins(2);
/// For a whole test.
pub const WHOLE: Duration = Duration::from_mins(12);

/// All VFs of all cards, made where there are none.
pub const NETWORK: &str = "
apiVersion: hybridnic.io/v1alpha1
kind: HybridNetwork
metadata: {name: fast}
spec:
  uplinks:
  - drivers: [igb]
    numVfs: 7
";

/// Runs a test in a world of its own. Nested emulation on two cores fails now and then for reasons that are not ours
/// (docs/testing.md); so a test that fails is started once more, and that is said, with what it failed of: `make test`
/// counts those lines.
pub async fn case(name: &str, network: bool, test: impl AsyncFn(&mut World)) {
    case_in(&WorldOptions::new(name), network, test).await;
}

/// The same in a world that is to be as these options say.
pub async fn case_in(options: &WorldOptions, network: bool, test: impl AsyncFn(&mut World)) {
    twice(&options.name, async |name| {
        let options = WorldOptions {
            name: name.into(),
            ..options.clone()
        };
        attempt(&options, network, &test).await;
    })
    .await;
}

/// Runs something by its name and, should it fail, once more by another one, so that the logs of the first try stay.
pub async fn twice(name: &str, attempt: impl AsyncFn(&str)) {
    if AssertUnwindSafe(attempt(name)).catch_unwind().await.is_ok() {
        return;
    }
    eprintln!("AGAIN: {name} has failed, see above; it is started once more");
    attempt(&format!("{name}-again")).await;
}

async fn attempt(options: &WorldOptions, network: bool, test: &impl AsyncFn(&mut World)) {
    let name = &options.name;
    let mut world = if network {
        world_with_network(options).await
    } else {
        world(options).await
    };
    let result = AssertUnwindSafe(tokio::time::timeout(WHOLE, test(&mut world)))
        .catch_unwind()
        .await;
    let panic: Box<dyn std::any::Any + Send> = match result {
        Ok(Ok(())) => return,
        Ok(Err(_)) => Box::new(format!("not over after {WHOLE:?}")),
        Err(panic) => panic,
    };
    if world.is_frozen().await {
        eprintln!("FROZEN: the emulation lost a guest's timer in {name}");
    }
    resume_unwind(panic);
}

async fn world(options: &WorldOptions) -> World {
    let say = |what: &str| eprintln!("--- {what}");
    World::start(options.clone(), say).await.expect("the world")
}

/// A world with the network of all VFs, which are there.
async fn world_with_network(options: &WorldOptions) -> World {
    let world = world(options).await;
    world.apply(NETWORK).await.unwrap();
    for node in 1..=world.lab.nodes().len() {
        world
            .until_node(node, SOON, "with 14 free VFs", |n| free(n) == 14)
            .await
            .unwrap();
        give_macs(&world, node).await;
    }
    world
}

/// Gives every VF a MAC, as an administrator may have: it must come back. (Without one, igbvf makes one up.)
async fn give_macs(world: &World, node: usize) {
    let script = format!(
        "for pf in 1 2; do n=$(ls /sys/bus/pci/devices/0000:0$pf:00.0/net); ip link set $n up; \
           for vf in 0 1 2 3 4 5 6; do ip link set $n vf $vf mac 02:ad:0{node}:0$pf:00:0$vf; done; done"
    );
    world.node(node).run(&script, SOON).await.unwrap();
}

fn free(node: &hybridnic_api::v1alpha1::HybridNode) -> i32 {
    node.status.as_ref().map_or(0, |s| s.vfs.free)
}

/// Whether a NIC's traffic runs so.
pub fn on(nic: &VmHybridNic, path: Path) -> bool {
    nic.status.as_ref().is_some_and(|s| {
        s.path == path
            && matches!(
                (path, s.phase),
                (Path::FastPath, NicPhase::FastPath) | (Path::Standby, NicPhase::Standby)
            )
    })
}

/// Waits until a NIC is on its fast path.
pub async fn fast(world: &World, nic: &str) -> Result<VmHybridNic> {
    world
        .until_nic(nic, LATER, "on the fast path", |n| on(n, Path::FastPath))
        .await
}

/// Waits until a NIC is on its fast path on node number `node`, as after a migration.
pub async fn fast_on(world: &World, nic: &str, node: usize) -> Result<VmHybridNic> {
    let name = world.node(node).name();
    let there = |n: &VmHybridNic| {
        on(n, Path::FastPath)
            && n.status
                .as_ref()
                .is_some_and(|s| s.node_name.as_deref() == Some(name))
    };
    world
        .until_nic(nic, LATER, &format!("on the fast path on {name}"), there)
        .await
}

/// YAML of a migration.
pub fn migration(name: &str, vm: &str, pod: &str) -> String {
    format!(
        "apiVersion: hybridnic.io/v1alpha1\nkind: QemuMigration\nmetadata: {{name: {name}, namespace: default}}\n\
         spec: {{vm: {vm}, targetPod: {pod}}}\n"
    )
}

/// Where a migration is.
pub fn phase(migration: &QemuMigration) -> MigrationPhase {
    migration.status.as_ref().map(|s| s.phase).unwrap_or_default()
}

/// Waits until a migration has ended, and says how.
pub async fn ended(world: &World, name: &str) -> Result<QemuMigration> {
    world
        .until_migration(name, LATER, "over", |m| phase(m).is_final())
        .await
}

/// Starts a VM with its NICs on a node, each on its fast path.
pub async fn vm_on_fast_path(
    world: &World,
    spec: &VmSpec,
    pod: &str,
    node: usize,
    network: &str,
) -> Result<Vm> {
    let vm = world.start_vm(spec, pod, node, false).await?;
    let yaml: String = (0..spec.nics.len()).map(|i| spec.nic_yaml(i, network)).collect();
    world.apply(&yaml).await?;
    for index in 0..spec.nics.len() {
        fast(world, &spec.nic_name(index)).await?;
    }
    Ok(vm)
}

/// The three devices of a NIC in the guest.
pub fn trio<'a>(view: &'a NetView, mac: &str) -> Result<(&'a Netdev, &'a Netdev, Option<&'a Netdev>)> {
    let failover = view
        .failover(mac)
        .context("the guest has made no failover device")?;
    Ok((failover.master, failover.standby, failover.primary))
}

/// Checks on guest and node that a NIC is on its fast path as it should be, whatever statuses say.
pub async fn check_fast_path(world: &World, vm: &Vm, nic: &VmHybridNic) -> Result<()> {
    check_nic(world.node(vm.node), &vm.guest, nic).await
}

/// The same, whoever started node and guest.
pub async fn check_nic(node: &Node, guest: &Inside, nic: &VmHybridNic) -> Result<()> {
    let status = nic.status.as_ref().context("no status")?;
    let mac = status.mac.as_deref().context("no MAC")?;
    let vf = status.vf.as_ref().context("no VF")?;
    let view = guest.net().await?;
    let (_, _, primary) = trio(&view, mac)?;
    let primary = primary.context("no VF is paired in the guest")?;
    ensure!(
        primary.driver.as_deref() == Some("igbvf") && primary.carrier,
        "the guest's VF: {primary:?}"
    );
    let guest_address = status
        .guest
        .vf_pci_address
        .clone()
        .context("no guest address of the VF")?;
    ensure!(
        primary.device.as_deref() == Some(&guest_address),
        "{guest_address} is not {primary:?}"
    );
    ensure!(
        node.driver_of(&vf.pci_address).await?.as_deref() == Some("vfio-pci"),
        "the VF's driver"
    );
    let table = node.vfs(&vf.pf).await?;
    let row = table
        .iter()
        .find(|r| i64::from(r.index) == i64::from(vf.index))
        .context("no such VF")?;
    ensure!(row.mac == mac, "the VF's MAC is {}", row.mac);
    let macvtaps = node.macvtaps().await?;
    let standby = status.standby.as_ref().context("no standby")?;
    let macvtap = macvtaps
        .iter()
        .find(|m| m.name == standby.macvtap)
        .context("no macvtap")?;
    ensure!(
        macvtap.mac == mac && !macvtap.up,
        "the macvtap at rest: {macvtap:?}"
    );
    ensure!(standby.pf == vf.pf, "standby on {}, VF on {}", standby.pf, vf.pf);
    Ok(())
}
