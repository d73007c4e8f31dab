//! The main job, to look at: a VM with a hybrid NIC moves between two nodes and back while its traffic is watched.
//!
//! Real parts: API server, operator, agents, kernels, SR-IOV cards (emulated), QEMU. Leaves
//! `target/demo/report.json`. Ctrl-C ends everything.
//!
//! `LAB_DEMOS=40` runs as many in a row, and counts what the emulation has spoilt; `LAB_COMPILERS=4` has as many compilers run
//! beside them.

mod count;
mod journey;
mod report;
mod show;

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Error, Result};
use hybridnic_e2e::{
    lab,
    world::{Fault, NicSpec, VmSpec, World, WorldOptions, repository},
};

use count::Compilers;
use journey::Journey;
use report::Report;
use show::Show;

/// The VM of `deploy/examples/`.
const VM: &str = "web";
/// Its network.
const NETWORK: &str = "fast";
/// Packets a second, each way.
const RATE: u32 = 100;
/// Longer than anything here takes on two slow cores.
const PATIENCE: Duration = Duration::from_mins(3);
/// From a failure to the word of what it comes of.
const HINDSIGHT: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> ExitCode {
    let show = Show::new();
    let demos = count::number("LAB_DEMOS");
    let result = tokio::select! {
        result = whole(&show, demos) => result,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("stopped; everything is cleaned up")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            show.failure(&error);
            ExitCode::FAILURE
        }
    }
}

async fn whole(show: &Show, demos: Option<u32>) -> Result<()> {
    let _compilers = Compilers::start(count::number("LAB_COMPILERS").unwrap_or(0))?;
    match demos {
        Some(demos) => count::count(show, demos).await,
        None => demo(show).await,
    }
}

/// The demo; it starts over once if the emulation has spoilt it.
async fn demo(show: &Show) -> Result<()> {
    show.title("hybridnic: SR-IOV speed, and a live migration that does not cut the network");
    let report = match attempt(show, "demo").await {
        Err(error) if is_emulations(&error) => {
            show.trouble(&format!("{error:#}"));
            show.step("so the demo starts over, once");
            attempt(show, "demo-again").await?
        }
        result => result?,
    };
    let path = write(&report)?;
    show.done(&format!("report: {}", path.display()));
    Ok(())
}

/// One try, whose logs are by its name.
async fn attempt(show: &Show, name: &str) -> Result<Report> {
    let world = start(show, name).await?;
    tour(show, &world).await
}

async fn start(show: &Show, name: &str) -> Result<World> {
    let world = World::start(WorldOptions::new(name), |what| show.step(what)).await?;
    show.done("two nodes, two SR-IOV cards each, a control plane, the operator and an agent on each node");
    Ok(world)
}

/// Whether the emulation is to blame: a node that does not boot, or a fault that a world blames on it.
fn is_emulations(error: &Error) -> bool {
    error.downcast_ref::<Fault>().is_some_and(Fault::is_emulations)
        || matches!(error.downcast_ref(), Some(lab::Error::Node(_)))
}

/// There and back, as long as the world is intact: in a broken one a wait never ends.
async fn tour(show: &Show, world: &World) -> Result<Report> {
    let result = tokio::select! {
        result = there_and_back(show, world) => result,
        fault = world.fault() => return Err(fault.into()),
        fault = world.freeze() => return Err(fault.into()),
    };
    let Err(error) = result else { return result };
    // The operator's report about a guest that is gone may come before QEMU's own.
    let fault = tokio::time::timeout(HINDSIGHT, world.fault()).await;
    match fault {
        Ok(fault) => Err(fault.into()),
        Err(_) if world.is_frozen().await => {
            Err(Fault::Frozen(format!("a guest has frozen, hence: {error:#}")).into())
        }
        Err(_) => Err(error),
    }
}

async fn there_and_back(show: &Show, world: &World) -> Result<Report> {
    apply(show, world, "network.yaml").await?;
    for node in 1..=2 {
        world
            .until_node(node, PATIENCE, "ready", |n| {
                n.status.as_ref().is_some_and(|s| s.vfs.free > 0)
            })
            .await?;
    }
    show.output(&world.kubectl(&["get", "hybridnetworks,hybridnodes"]).await?);

    show.step("starting the VM on n1");
    let spec = VmSpec::new(VM, &[NicSpec::new(0, 50)]);
    let mut here = world.start_vm(&spec, "web-a", 1, false).await?;
    let watch = show.watch(world.client(), &spec.nic_name(0));
    apply(show, world, "nic.yaml").await?;
    journey::on_fast_path(world, &spec.nic_name(0), "n1").await?;
    show.done("the VM runs on its VF");

    let mut report = Report::default();
    for (name, pod, node) in [("there", "web-b", 2), ("back", "web-c", 1)] {
        let to = world.node(node).name().to_owned();
        show.title(&format!(
            "Migration {name}: to {to}, {RATE} packets a second each way"
        ));
        show.step("starting the QEMU that waits for the VM");
        let target = world.start_vm(&spec, pod, node, true).await?;
        let yaml = if name == "there" {
            fs::read_to_string(example("migration.yaml"))?
        } else {
            journey::yaml("web-back", VM, pod)
        };
        let migration = Journey::run(world, &spec, &yaml, &target.guest).await?;
        show.timeline(&migration);
        report.migrations.push(migration);
        here = target;
    }
    show.output(&world.kubectl(&["get", "vhn,qmig"]).await?);
    watch.abort();
    drop(here);
    Ok(report)
}

fn example(file: &str) -> PathBuf {
    repository("deploy/examples").join(file)
}

async fn apply(show: &Show, world: &World, file: &str) -> Result<()> {
    show.command(&format!("kubectl apply -f deploy/examples/{file}"));
    let said = world.control_plane.apply(&example(file)).await?;
    show.output(&said);
    Ok(())
}

fn write(report: &Report) -> Result<PathBuf> {
    let dir = repository("target/demo");
    fs::create_dir_all(&dir)?;
    let path = dir.join("report.json");
    fs::write(&path, serde_json::to_string_pretty(report)?).context("cannot write the report")?;
    Ok(fs::canonicalize(path)?)
}
