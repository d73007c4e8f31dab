//! Writes to the API server that a migration of a VM with one NIC makes.

use anyhow::{Result, ensure};
use hybridnic_api::v1alpha1::{MigrationPhase, QemuMigration};
use hybridnic_e2e::world::{NicSpec, Vm, VmSpec, World};

use crate::{
    NETWORK, PATIENCE, Row, network, on_fast_path, say,
    writes::{Writes, until_quiet},
};

/// The migration.
const NAME: &str = "move";
/// Of the VM `mover` to the QEMU that waits in the pod `mover-b`.
const YAML: &str = "
apiVersion: hybridnic.io/v1alpha1
kind: QemuMigration
metadata: {name: move, namespace: default}
spec: {vm: mover, targetPod: mover-b}
";

/// Measures.
pub async fn measure(world: &World, vms: &mut Vec<Vm>) -> Result<Vec<Row>> {
    network(world).await?;
    let [source, target] = [1, 2].map(|number| world.node(number).name());
    let spec = VmSpec::new("mover", &[NicSpec::new(0, 50)]);
    let nic = spec.nic_name(0);
    say("starting the VM");
    vms.push(world.start_vm(&spec, "mover-a", 1, false).await?);
    world.apply(&spec.nic_yaml(0, NETWORK)).await?;
    on_fast_path(world, &nic, source).await?;
    vms.push(world.start_vm(&spec, "mover-b", 2, true).await?);
    until_quiet(world).await?;

    say("migrating it");
    let before = Writes::all(world)?;
    world.apply(YAML).await?;
    let fast = async {
        on_fast_path(world, &nic, target).await?;
        Writes::since(world, &before)
    };
    let (until_fast, ()) = tokio::try_join!(fast, succeeded(world))?;
    say(&format!(
        "writes until the NIC is on its fast path:{}",
        until_fast.told()
    ));
    until_quiet(world).await?;
    let whole = Writes::since(world, &before)?;
    say(&format!("writes until there is rest:{}", whole.told()));

    let row = |who: &str, count: &dyn Fn(&Writes) -> usize| {
        let (what, fast, whole) = (
            format!("API writes of a migration, {who}"),
            count(&until_fast),
            count(&whole),
        );
        (what, format!("{fast} until the fast path, {whole} in all"))
    };
    Ok(vec![
        row("operator", &Writes::of_operator),
        row("source agent", &|w| w.of_agent(source)),
        row("target agent", &|w| w.of_agent(target)),
    ])
}

/// Waits until the migration is over; a failure is an error at once.
async fn succeeded(world: &World) -> Result<()> {
    let over = |m: &QemuMigration| m.status.as_ref().is_some_and(|s| s.phase.is_final());
    let migration = world.until_migration(NAME, PATIENCE, "over", over).await?;
    let succeeded = migration
        .status
        .as_ref()
        .is_some_and(|s| s.phase == MigrationPhase::Succeeded);
    ensure!(
        succeeded,
        "the migration did not succeed: {:#?}",
        migration.status
    );
    Ok(())
}
