//! The operator at scale: memory, start, CPU and migrations, with a real API server and agents that only say what agents say.
//!
//! `bench-scale NODES NICS MIGRATIONS` prints Markdown tables; progress goes to stderr. The operator is that of
//! `HYBRIDNIC_BIN`, a release build. What the rows mean is in docs/benchmarks.md.

mod agents;
mod cluster;
mod copies;
mod machine;
mod migrate;
mod operator;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hybridnic_api::v1alpha1::NicPhase;
use hybridnic_e2e::chart;
use hybridnic_e2e::controlplane::{ControlPlane, Options};
use hybridnic_e2e::usage::Usage;
use hybridnic_e2e::world::repository;
use tokio::sync::watch;

use agents::Agents;
use cluster::Size;
use machine::Share;
use operator::Operator;

/// After this, nothing is left to do from before.
const SETTLED: Duration = Duration::from_secs(20);
/// How long is looked at a program at rest.
const REST: Duration = Duration::from_secs(30);
/// For a start.
const START: Duration = Duration::from_mins(5);
/// If no other NIC reaches its fast path for so long, no more will.
const STUCK: Duration = Duration::from_mins(2);

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

/// Progress.
fn say(what: &str) {
    eprintln!("bench-scale: {what}");
}

fn row(what: &str, figure: &str, aim: &str) {
    println!("| {what} | {figure} | {aim} |");
}

async fn bench() -> Result<()> {
    let size = Size::from_args(std::env::args().skip(1))?;
    let dir = repository("target/bench-scale");
    let _ = std::fs::remove_dir_all(&dir);
    println!("{}\n\n{}\n", machine::describe()?, size.told());
    println!("| the operator | figure | aim |\n|---|---|---|");
    say("starting a control plane");
    let control_plane = ControlPlane::start(Options::new(dir.join("cluster"))).await?;
    chart::install_without_pods(&control_plane).await?;
    let client = control_plane.client_admin();

    let operator = Operator::start(&control_plane, &dir.join("nothing.log"))?;
    operator.until_filled(START).await?;
    operator.until_at_rest(START).await?;
    let nothing = operator.usage()?;
    row("memory with no NIC", &memory(nothing), "");
    operator.stop().await?;

    cluster::fill(&client, size).await?;
    let agents = Agents::start(client.clone());
    let operator = Operator::start(&control_plane, &dir.join("first.log"))?;
    let begun = Instant::now();
    let mut fast = cluster::watch_nics(client.clone(), |phase| phase == NicPhase::FastPath);
    attached(&mut fast, size.made()).await?;
    let what = format!("{} NICs attached", size.made());
    row(&what, &in_time(begun, operator.usage()?), "");
    tokio::time::sleep(SETTLED).await;
    operator.until_at_rest(START).await?;
    row("memory of who has seen them come", &memory(operator.usage()?), "");
    operator.stop().await?;
    if size.nics > size.made() {
        // While nobody leads: a NIC that is seen before its pod would be taken back.
        copies::make(&client, &control_plane.etcd_socket(), size).await?;
        Share::new(&control_plane).until_servers_rest().await?;
    }

    let operator = restart(&control_plane, &dir.join("second.log")).await?;
    // Everything is looked at once after a start.
    operator.until_at_rest(START).await?;
    let full = operator.usage()?;
    row(
        "memory after a restart",
        &memory(full),
        "100 MiB with 50,000 NICs",
    );
    row(
        "of it for each NIC, with its pod, its attachment and its share of the nodes",
        &slope(nothing, full, size),
        "",
    );
    let written = operator.writes().await?.sum();
    row(
        "writes after a restart, of all that is as it should be",
        &written.to_string(),
        "0",
    );
    tokio::time::sleep(REST).await;
    let cpu = operator.usage()?.cpu.saturating_sub(full.cpu);
    row(
        "processor time in 30 s of rest",
        &format!("{} ms", cpu.as_millis()),
        "",
    );

    if size.migrations > 0 {
        let share = Share::new(&control_plane);
        say("migrations, one after the other");
        let alone = (size, &size.soloists()[..]);
        let alone = migrate::one_by_one(&client, &operator, &agents, alone, &share).await?;
        say(&format!("{} migrations at once", size.migrations));
        let all = (size, &size.movers()[..]);
        let at_once = migrate::run(&client, &operator, &agents, all, &share).await?;
        row("memory after the migrations", &memory(operator.usage()?), "");
        migrate::tell(alone.as_ref(), &at_once);
    }
    operator.stop().await
}

async fn attached(fast: &mut watch::Receiver<usize>, all: usize) -> Result<()> {
    while *fast.borrow_and_update() < all {
        let more = tokio::time::timeout(STUCK, fast.changed()).await;
        let now = *fast.borrow();
        ensure!(more.is_ok(), "only {now} of {all} NICs are on their fast path");
    }
    Ok(())
}

async fn restart(control_plane: &ControlPlane, log: &Path) -> Result<Operator> {
    say("starting another operator");
    let begun = Instant::now();
    let operator = Operator::start(control_plane, log)?;
    operator.until_filled(START).await?;
    let took = in_time(begun, operator.usage()?);
    row("start to leading with full caches", &took, "10 s");
    Ok(operator)
}

fn in_time(begun: Instant, usage: Usage) -> String {
    let (took, cpu) = (begun.elapsed().as_secs_f64(), usage.cpu.as_secs_f64());
    format!("{took:.1} s, {cpu:.1} s of its processor time")
}

fn memory(usage: Usage) -> String {
    let mib = |kib: u64| format!("{}.{} MiB", kib / 1024, kib % 1024 * 10 / 1024);
    let [resident, private, peak] = [usage.resident_kib, usage.private_kib, usage.peak_kib].map(mib);
    format!("{resident}, of it {private} not of its program's file; {peak} at most so far")
}

fn slope(nothing: Usage, full: Usage, size: Size) -> String {
    let bytes = full.private_kib.saturating_sub(nothing.private_kib) * 1024;
    format!("{} bytes", bytes / size.nics as u64)
}
