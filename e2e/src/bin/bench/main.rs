//! What the running system costs: memory, processor time, and writes to the API server; in the lab, except for what it takes at rest.
//!
//! Rows of a Markdown table go to stdout, progress to stderr. `e2e/bench.sh` prints the table's head and the rows of the
//! benchmarks that need no lab; `HYBRIDNIC_BIN` names the directory of the release builds that are measured. `bench PART` measures
//! one part alone: `rest`, `pool`, `migration` or `filters`.

mod filters;
mod migration;
mod pool;
mod rest;
mod writes;

use std::{process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, ensure};
use hybridnic_api::v1alpha1::{HybridNode, NicPhase, Path, VmHybridNic};
use hybridnic_e2e::world::{NETWORK, NETWORK_YAML, Vm, World, WorldOptions};

/// Longer than a guest takes on two slow cores to boot or to move, and to use its VF.
const PATIENCE: Duration = Duration::from_mins(3);
/// VFs that a node of the lab has for it.
const VFS: i32 = 14;

/// What was measured, and the figure with its unit.
type Row = (String, String);

#[tokio::main]
async fn main() -> ExitCode {
    let result = tokio::select! {
        result = bench() => result,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("stopped; everything is cleaned up")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn bench() -> Result<()> {
    // Without it the programs would be the debug builds, whose memory does not matter.
    let dir = std::env::var_os("HYBRIDNIC_BIN")
        .context("HYBRIDNIC_BIN must name the directory of the release builds")?;
    say(&format!("measures the programs in {}", dir.display()));
    let only = std::env::args().nth(1);
    let asked = |what: &str| only.as_deref().is_none_or(|only| only == what);
    ensure!(
        ["rest", "pool", "migration", "filters"]
            .iter()
            .any(|what| asked(what)),
        "there is no part of that name"
    );
    if asked("rest") {
        print(rest::measure().await?);
    }
    if asked("pool") {
        part("bench-pool", pool::measure).await?;
    }
    if asked("migration") {
        part("bench-migration", migration::measure).await?;
    }
    if asked("filters") {
        part("bench-filters", filters::measure).await?;
    }
    Ok(())
}

/// Measures in a world of its own and prints the rows. If that fails because the emulation has frozen a guest, it
/// is done once more, and reported. The VMs are kept until that is known.
async fn part(name: &str, measure: impl AsyncFn(&World, &mut Vec<Vm>) -> Result<Vec<Row>>) -> Result<()> {
    let mut last = false;
    loop {
        let world = World::start(
            WorldOptions {
                alone: true,
                ..WorldOptions::new(name)
            },
            say,
        )
        .await?;
        let mut vms = Vec::new();
        match measure(&world, &mut vms).await {
            Ok(rows) => {
                print(rows);
                return Ok(());
            }
            Err(error) if !last && is_frozen(&vms).await => {
                say(&format!(
                    "FROZEN: the emulation lost a guest's timer; {name} is started once more: {error:#}"
                ));
                last = true;
            }
            Err(error) => return Err(error.context(name.to_owned())),
        }
    }
}

/// As rows of the table.
fn print(rows: Vec<Row>) {
    for (what, figure) in rows {
        println!("| {what} | {figure} |");
    }
}

/// Whether the emulation has frozen a VM, which is its fault and not ours. A QEMU that waits for its VM does not count.
async fn is_frozen(vms: &[Vm]) -> bool {
    for vm in vms {
        let running = vm.guest.status().await.is_ok_and(|s| s == "running");
        if running && vm.guest.is_frozen().await {
            return true;
        }
    }
    false
}

/// Progress.
fn say(what: &str) {
    eprintln!("bench: {what}");
}

/// Applies the network and waits until each node has its VFs, all free.
async fn network(world: &World) -> Result<()> {
    say("making the VFs");
    world.apply(NETWORK_YAML).await?;
    let whole = |n: &HybridNode| n.status.as_ref().is_some_and(|s| s.vfs.free == VFS);
    for number in 1..=world.lab.nodes().len() {
        world
            .until_node(number, PATIENCE, "with all its VFs free", whole)
            .await?;
    }
    Ok(())
}

/// Waits until a NIC runs on a VF of a node.
async fn on_fast_path(world: &World, nic: &str, node: &str) -> Result<()> {
    let there = |n: &VmHybridNic| {
        n.status.as_ref().is_some_and(|s| {
            s.path == Path::FastPath && s.phase == NicPhase::FastPath && s.node_name.as_deref() == Some(node)
        })
    };
    let nic = world.until_nic(nic, PATIENCE, "on the fast path", there).await?;
    ensure!(
        nic.status.is_some_and(|s| s.vf.is_some()),
        "on the fast path without a VF"
    );
    Ok(())
}
