//! Operator and agent without a NIC, with all NICs that a node has VFs for, and in a minute of rest with these.

use std::time::Duration;

use anyhow::Result;
use hybridnic_api::v1alpha1::HybridNetwork;
use hybridnic_e2e::usage::Usage;
use hybridnic_e2e::world::{NicSpec, Vm, VmSpec, World};

use crate::{
    NETWORK, PATIENCE, Row, VFS, network, on_fast_path, say,
    writes::{Writes, until_quiet},
};

/// NICs of each VM. Fourteen VMs, or only three, are more than two cores can emulate.
const NICS: [u8; 2] = [7, 7];
/// The node that has them all.
const NODE: usize = 1;
/// The minute of rest.
const REST: Duration = Duration::from_mins(1);

/// Measures.
pub async fn measure(world: &World, vms: &mut Vec<Vm>) -> Result<Vec<Row>> {
    network(world).await?;
    until_quiet(world).await?;
    let (agent, operator) = usage(world).await?;
    let mut rows = vec![
        ("memory of the agent, no NIC".into(), agent.memory()),
        ("memory of the operator, no NIC".into(), operator.memory()),
    ];

    fill(world, vms).await?;
    until_quiet(world).await?;
    let (agent, operator) = usage(world).await?;
    rows.push((format!("memory of the agent, {VFS} NICs"), agent.memory()));
    rows.push((format!("memory of the operator, {VFS} NICs"), operator.memory()));

    say("resting for a minute");
    let before = Writes::all(world)?;
    tokio::time::sleep(REST).await;
    let (rested_agent, rested_operator) = usage(world).await?;
    let writes = Writes::since(world, &before)?;
    say(&format!("writes in the minute of rest:{}", writes.told()));
    let agents = world
        .lab
        .nodes()
        .iter()
        .map(|n| writes.of_agent(n.name()))
        .sum::<usize>();
    let at_rest = |what: &str| format!("{what}, a minute at rest with {VFS} NICs");
    let ms = |before: Usage, after: Usage| format!("{} ms", after.cpu.saturating_sub(before.cpu).as_millis());
    rows.push((at_rest("CPU time of the agent"), ms(agent, rested_agent)));
    rows.push((at_rest("CPU time of the operator"), ms(operator, rested_operator)));
    rows.push((
        at_rest("API writes of the operator"),
        writes.of_operator().to_string(),
    ));
    rows.push((at_rest("API writes of both agents"), agents.to_string()));
    Ok(rows)
}

async fn usage(world: &World) -> Result<(Usage, Usage)> {
    Ok((Usage::of_agent(world, NODE).await?, Usage::of_operator(world)?))
}

/// Starts the VMs and gives each NIC its VF.
async fn fill(world: &World, vms: &mut Vec<Vm>) -> Result<()> {
    let mut specs = Vec::new();
    for (vm, count) in (0..).zip(NICS) {
        let name = format!("many{vm}");
        say(&format!("starting the VM {name} with {count} NICs"));
        let nics: Vec<NicSpec> = (0..count).map(|nic| NicSpec::new(8 * vm + nic, 50)).collect();
        let spec = VmSpec::new(&name, &nics);
        vms.push(world.start_vm(&spec, &name, NODE, false).await?);
        specs.push(spec);
    }
    let nics = || {
        specs
            .iter()
            .flat_map(|spec| (0..spec.nics.len()).map(move |index| (spec, index)))
    };
    let yaml: String = nics()
        .map(|(spec, index)| spec.nic_yaml(index, NETWORK))
        .collect();
    world.apply(&yaml).await?;
    let node = world.node(NODE).name();
    for (spec, index) in nics() {
        on_fast_path(world, &spec.nic_name(index), node).await?;
        say(&format!("{} is on its fast path", spec.nic_name(index)));
    }
    let full = |n: &HybridNetwork| n.status.as_ref().is_some_and(|s| s.on_fast_path == VFS);
    world
        .until_network(NETWORK, PATIENCE, "with all NICs on their fast path", full)
        .await?;
    Ok(())
}
