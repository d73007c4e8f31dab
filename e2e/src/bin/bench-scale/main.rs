//! The operator at scale: memory, start, CPU and migrations at once, with a real API server and agents that only say what
//! agents say.
//!
//! `bench-scale NODES NICS MIGRATIONS` prints rows of a Markdown table; progress goes to stderr. The operator is that of
//! `HYBRIDNIC_BIN`, a release build. See docs/benchmarks.md.

mod agents;
mod cluster;
mod operator;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hybridnic_api::v1alpha1::{MigrationPhase, NicPhase, QemuMigration};
use hybridnic_e2e::chart;
use hybridnic_e2e::controlplane::{ControlPlane, Options};
use hybridnic_e2e::world::repository;
use kube::{Api, Client};

use agents::{Agents, Times};
use cluster::Size;
use operator::Operator;

/// After which nothing of what was before is left to do.
const SETTLED: Duration = Duration::from_secs(20);
/// How long is looked at a program at rest.
const REST: Duration = Duration::from_secs(30);
/// For a start.
const START: Duration = Duration::from_mins(5);
/// Without one more NIC on its fast path for so long, nothing more comes.
const STUCK: Duration = Duration::from_mins(2);
/// For all migrations.
const MIGRATED: Duration = Duration::from_mins(5);

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

fn row(what: &str, figure: &str) {
    println!("| {what} | {figure} |");
}

async fn bench() -> Result<()> {
    let size = Size::from_args(std::env::args().skip(1))?;
    let dir = repository("target/bench-scale");
    let _ = std::fs::remove_dir_all(&dir);
    say("starting a control plane");
    let control_plane = ControlPlane::start(Options::new(dir.join("cluster"))).await?;
    chart::install_without_pods(&control_plane).await?;
    let client = control_plane.client_admin();
    cluster::fill(&client, size).await?;

    let agents = Agents::start(client.clone());
    let operator = Operator::start(&control_plane, &dir.join("first.log"))?;
    attach(&client, &operator, size).await?;
    tokio::time::sleep(SETTLED).await;
    memory(&operator, "once all NICs are attached")?;
    operator.stop().await?;

    let operator = restart(&control_plane, &dir.join("second.log")).await?;
    // Everything is looked at once after a start.
    operator.until_at_rest(START).await?;
    memory(&operator, "after a restart")?;
    let before = operator.usage()?;
    tokio::time::sleep(REST).await;
    let cpu = operator.usage()?.cpu.saturating_sub(before.cpu);
    row("CPU in 30 s of rest", &format!("{} ms", cpu.as_millis()));

    if size.migrations > 0 {
        migrate(&client, &operator, &agents, size).await?;
        memory(&operator, "after the migrations")?;
    }
    operator.stop().await
}

async fn attach(client: &Client, operator: &Operator, size: Size) -> Result<()> {
    let begun = Instant::now();
    let fast = cluster::watch_nics(client.clone(), |phase| phase == NicPhase::FastPath);
    let (mut last, mut since) = (0, Instant::now());
    while last < size.nics {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = *fast.borrow();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        ensure!(
            since.elapsed() < STUCK,
            "only {last} of {} NICs are on their fast path",
            size.nics
        );
    }
    let cpu = operator.usage()?.cpu;
    row(
        "all NICs attached",
        &format!(
            "{:.1} s, {:.1} s of CPU",
            begun.elapsed().as_secs_f64(),
            cpu.as_secs_f64()
        ),
    );
    Ok(())
}

async fn restart(control_plane: &ControlPlane, log: &std::path::Path) -> Result<Operator> {
    say("starting another operator");
    let begun = Instant::now();
    let operator = Operator::start(control_plane, log)?;
    operator.until_filled(START).await?;
    let cpu = operator.usage()?.cpu;
    row(
        "start to leading with full caches",
        &format!(
            "{:.1} s, {:.1} s of CPU",
            begun.elapsed().as_secs_f64(),
            cpu.as_secs_f64()
        ),
    );
    Ok(operator)
}

fn memory(operator: &Operator, when: &str) -> Result<()> {
    let usage = operator.usage()?;
    let mib = |kib: u64| format!("{}.{} MiB", kib / 1024, kib % 1024 * 10 / 1024);
    row(
        &format!("memory {when}"),
        &format!(
            "{}, of it {} private; at most {}",
            mib(usage.resident_kib),
            mib(usage.private_kib),
            mib(usage.peak_kib)
        ),
    );
    Ok(())
}

async fn migrate(client: &Client, operator: &Operator, agents: &Agents, size: Size) -> Result<()> {
    say(&format!("{} migrations at once", size.migrations));
    cluster::target_pods(client, size).await?;
    operator.until_at_rest(START).await?;
    agents.forget_times();
    let (writes, cpu) = (operator.writes().await?, operator.usage()?.cpu);
    let begun = Instant::now();
    cluster::migrations(client, size).await?;
    let api: Api<QemuMigration> = Api::all(client.clone());
    let all = loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let all = api.list(&kube::api::ListParams::default()).await?.items;
        let phase = |m: &QemuMigration| m.status.as_ref().map(|s| s.phase).unwrap_or_default();
        if all.iter().all(|m| phase(m).is_final()) {
            break all;
        }
        ensure!(begun.elapsed() < MIGRATED, "the migrations do not end");
    };
    let took = begun.elapsed();
    let well = |m: &&QemuMigration| {
        m.status
            .as_ref()
            .is_some_and(|s| s.phase == MigrationPhase::Succeeded)
    };
    let (succeeded, n) = (all.iter().filter(well).count(), all.len());
    ensure!(succeeded == n, "{succeeded} of {n} migrations succeeded");
    operator.until_at_rest(START).await?;
    let cpu = operator.usage()?.cpu.saturating_sub(cpu);
    row(
        &format!("{n} migrations at once"),
        &format!("{:.1} s, {:.2} s of CPU", took.as_secs_f64(), cpu.as_secs_f64()),
    );
    row(
        "a migration, first to last phase",
        &percentiles(all.iter().map(whole))?,
    );
    row(
        "of it without its VFs",
        &percentiles(all.iter().map(without_vfs))?,
    );
    let Times { steps, writes: api } = agents.times();
    row(
        "an agent's report to the operator's next order",
        &percentiles(steps.into_iter())?,
    );
    row(
        "a write of an agent, as long as the API server takes",
        &percentiles(api.into_iter())?,
    );
    let after = operator.writes().await?;
    let mut sum = 0.0;
    for (what, count) in &after {
        let count = count - writes.get(what).copied().unwrap_or_default();
        #[allow(clippy::cast_precision_loss)]
        let each = count as f64 / n as f64;
        sum += each;
        if count > 0 {
            row(&format!("writes a migration: {what}"), &format!("{each:.1}"));
        }
    }
    row("writes a migration, of the operator", &format!("{sum:.1}"));
    Ok(())
}

/// From a migration's first phase to its end.
fn whole(migration: &QemuMigration) -> Duration {
    let ms = migration.status.as_ref().and_then(|status| status.total_ms);
    Duration::from_millis(ms.and_then(|ms| ms.try_into().ok()).unwrap_or_default())
}

/// The phases in which the standby, or nothing, carries the traffic.
fn without_vfs(migration: &QemuMigration) -> Duration {
    let phases = migration.status.iter().flat_map(|status| &status.phases);
    let without =
        phases.filter(|phase| ["SwitchingToStandby", "Transferring"].contains(&phase.name.as_str()));
    let ms = without.filter_map(|phase| u64::try_from(phase.ms?).ok()).sum();
    Duration::from_millis(ms)
}

fn percentiles(times: impl Iterator<Item = Duration>) -> Result<String> {
    let mut times: Vec<_> = times.collect();
    times.sort();
    let at =
        |hundredths: usize| times.get((times.len() * hundredths / 100).min(times.len().saturating_sub(1)));
    let (p50, p99, most) = (at(50), at(99), times.last());
    let ms = |time: Option<&Duration>| Some(time?.as_secs_f64() * 1000.0);
    let (p50, p99, most) = (ms(p50), ms(p99), ms(most));
    let (p50, p99, most) = p50
        .zip(p99)
        .zip(most)
        .map(|((a, b), c)| (a, b, c))
        .context("nothing was measured")?;
    Ok(format!("p50 {p50:.0} ms, p99 {p99:.0} ms, at most {most:.0} ms"))
}
