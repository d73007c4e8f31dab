//! Migrations: some of them one after the other, and very many at once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hybridnic_api::v1alpha1::{MigrationPhase, QemuMigration};
use kube::api::ListParams;
use kube::{Api, Client};
use tokio::time::sleep;

use crate::agents::{Agents, Times};
use crate::cluster::{self, Size};
use crate::machine::Share;
use crate::operator::{Counts, Operator, Waits};
use crate::{START, say};

/// For all migrations.
const MIGRATED: Duration = Duration::from_mins(5);

/// What was seen of some migrations.
pub struct Seen {
    all: Vec<QemuMigration>,
    took: Duration,
    cpu: Duration,
    share: String,
    times: Times,
    waits: Waits,
    writes: Counts,
}

/// Asks for migrations of these VMs, all at once, and waits for their ends.
pub async fn run(
    client: &Client,
    operator: &Operator,
    agents: &Agents,
    (size, vms): (Size, &[usize]),
    share: &Share,
) -> Result<Seen> {
    cluster::target_pods(client, size, vms).await?;
    operator.until_at_rest(START).await?;
    agents.forget_times();
    let (waits, writes) = (operator.waits().await?, operator.writes().await?);
    let cpu = operator.usage()?.cpu;
    let load = share.begin(operator.usage()?)?;
    let begun = Instant::now();
    cluster::migrations(client, vms).await?;
    let all = ends(client, vms).await?;
    let took = begun.elapsed();
    let share = load.end(operator.usage()?)?;
    operator.until_at_rest(START).await?;
    Ok(Seen {
        all,
        took,
        cpu: operator.usage()?.cpu.saturating_sub(cpu),
        share,
        times: agents.times(),
        waits: operator.waits().await?.since(&waits),
        writes: operator.writes().await?.since(&writes),
    })
}

/// The same of one after the other.
pub async fn one_by_one(
    client: &Client,
    operator: &Operator,
    agents: &Agents,
    (size, vms): (Size, &[usize]),
    share: &Share,
) -> Result<Option<Seen>> {
    let mut sum: Option<Seen> = None;
    for vm in vms {
        let one = run(client, operator, agents, (size, &[*vm]), share).await?;
        match &mut sum {
            None => sum = Some(one),
            Some(sum) => sum.add(one),
        }
    }
    Ok(sum)
}

async fn ends(client: &Client, vms: &[usize]) -> Result<Vec<QemuMigration>> {
    let (begun, api) = (Instant::now(), Api::<QemuMigration>::all(client.clone()));
    let names: Vec<_> = vms.iter().map(|vm| cluster::migration(*vm)).collect();
    let phase = |m: &QemuMigration| m.status.as_ref().map(|s| s.phase).unwrap_or_default();
    let all = loop {
        sleep(Duration::from_millis(500)).await;
        let mut all = api.list(&ListParams::default()).await?.items;
        all.retain(|m| m.metadata.name.as_ref().is_some_and(|name| names.contains(name)));
        if all.iter().all(|m| phase(m).is_final()) {
            break all;
        }
        ensure!(begun.elapsed() < MIGRATED, "the migrations do not end");
    };
    let succeeded = all
        .iter()
        .filter(|m| phase(m) == MigrationPhase::Succeeded)
        .count();
    ensure!(
        succeeded == vms.len(),
        "{succeeded} of {} migrations succeeded",
        vms.len()
    );
    Ok(all)
}

impl Seen {
    fn add(&mut self, other: Self) {
        self.all.extend(other.all);
        self.took += other.took;
        self.cpu += other.cpu;
        self.times.urgent.extend(other.times.urgent);
        self.times.others.extend(other.times.others);
        self.times.writes.extend(other.times.writes);
        self.waits.add(&other.waits);
        self.writes.add(&other.writes);
    }

    /// Rows of what is reported about them, with a name each.
    fn rows(&self) -> BTreeMap<&'static str, String> {
        let of =
            |phases: &'static [&'static str]| percentiles(self.all.iter().map(move |m| spent(m, phases)));
        let n = f64::from(u32::try_from(self.all.len()).unwrap_or(u32::MAX));
        BTreeMap::from([
            (WHOLE, percentiles(self.all.iter().map(whole))),
            (PREPARING, of(&["PreparingTarget"])),
            (WITHOUT, of(&["SwitchingToStandby", "Transferring"])),
            (COMPLETING, of(&["Completing"])),
            (STEP, percentiles(self.times.urgent.iter().copied())),
            (OTHER_STEP, percentiles(self.times.others.iter().copied())),
            (ANSWER, percentiles(self.times.writes.iter().copied())),
            (URGENT, self.waits.told("urgent")),
            (BEGUN, self.waits.told("begun")),
            (USUAL, self.waits.told("usual")),
            (CPU, format!("{:.1} ms", self.cpu.as_secs_f64() * 1000.0 / n)),
        ])
    }

    fn each(&self, count: u64) -> f64 {
        #[allow(clippy::cast_precision_loss)]
        let each = count as f64 / self.all.len() as f64;
        each
    }
}

const WHOLE: &str = "the whole, from the first phase to the last";
const PREPARING: &str = "of it before the VFs leave, the target being prepared";
const WITHOUT: &str = "of it without VFs, on the standby or sent";
const COMPLETING: &str = "of it with the VM at the target, the source being cleaned up";
const STEP: &str = "from an agent's report that the VM is on its standby to the order to send it, two writes of the operator's among it";
const OTHER_STEP: &str = "the same of other orders";
const ANSWER: &str = "the API server's answer to an agent's write";
const URGENT: &str = "the operator's own delay for VMs without VFs: a change waits for its turn";
const BEGUN: &str = "the same for other migrations that have begun";
const USUAL: &str = "the same for all else";
const CPU: &str = "the operator's processor time for one";

/// Prints what was seen of migrations alone and of those at once, and what they write.
pub fn tell(alone: Option<&Seen>, at_once: &Seen) {
    let n = at_once.all.len();
    println!("\n| a migration, p50 / p99 / longest | alone | {n} at once | aim |\n|---|---|---|---|");
    let (alone_rows, rows) = (alone.map(Seen::rows).unwrap_or_default(), at_once.rows());
    for what in [
        WHOLE, PREPARING, WITHOUT, COMPLETING, STEP, OTHER_STEP, ANSWER, URGENT, BEGUN, USUAL, CPU,
    ] {
        let aim = match what {
            WITHOUT => "as long as alone",
            STEP => "p99 50 ms, where the API server answers in 5 ms",
            _ => "",
        };
        let figure = |rows: &BTreeMap<_, String>| rows.get(what).cloned().unwrap_or_default();
        println!("| {what} | {} | {} | {aim} |", figure(&alone_rows), figure(&rows));
    }
    let share = |seen: &Seen| seen.share.clone();
    println!(
        "| processors in use: operator, API server with etcd, the stand-in agents, anything else | | {} | |",
        share(at_once)
    );
    println!("| all of them | | {:.1} s | |", at_once.took.as_secs_f64());

    println!("\n| writes for one migration | alone | {n} at once | aim |\n|---|---|---|---|");
    let count = |seen: Option<&Seen>, what: &str| {
        let count = seen.map(|seen| seen.each(seen.writes.of(what)));
        count.map(|count| format!("{count:.1}")).unwrap_or_default()
    };
    for what in at_once.writes.kinds() {
        println!(
            "| {what} | {} | {} | |",
            count(alone, what),
            count(Some(at_once), what)
        );
    }
    let all = |seen: &Seen| {
        let (operator, agents) = (
            seen.each(seen.writes.sum()),
            seen.each(seen.times.writes.len() as u64),
        );
        format!("{operator:.1} and {agents:.1}, {:.1} in all", operator + agents)
    };
    println!(
        "| of the operator, and of the stand-in agents | {} | {} | 31 in all |",
        alone.map(all).unwrap_or_default(),
        all(at_once)
    );
    say("done");
}

/// From a migration's first phase to its end.
fn whole(migration: &QemuMigration) -> Duration {
    let ms = migration.status.as_ref().and_then(|status| status.total_ms);
    Duration::from_millis(ms.and_then(|ms| ms.try_into().ok()).unwrap_or_default())
}

/// What it spent in these phases.
fn spent(migration: &QemuMigration, phases: &[&str]) -> Duration {
    let all = migration.status.iter().flat_map(|status| &status.phases);
    let those = all.filter(|phase| phases.contains(&phase.name.as_str()));
    let ms = those.filter_map(|phase| u64::try_from(phase.ms?).ok()).sum();
    Duration::from_millis(ms)
}

fn percentiles(times: impl Iterator<Item = Duration>) -> String {
    let mut times: Vec<_> = times.collect();
    times.sort();
    let at =
        |hundredths: usize| times.get((times.len() * hundredths / 100).min(times.len().saturating_sub(1)));
    let ms = |time: Option<&Duration>| time.map(|time| time.as_secs_f64() * 1000.0);
    match (ms(at(50)), ms(at(99)), ms(times.last())) {
        (Some(p50), Some(p99), Some(most)) => format!("{p50:.0} / {p99:.0} / {most:.0} ms"),
        _ => String::new(),
    }
}
