//! One migration under traffic, and what is known of it afterwards.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use hybridnic_api::{
    conditions,
    v1alpha1::{MigrationPhase, MigrationPhaseTime, Path, QemuMigration, QemuMigrationStatus, VmHybridNic},
};
use hybridnic_e2e::{
    lab::{Guest, Stream, deaf},
    world::{VmSpec, World},
};

use crate::{
    PATIENCE, RATE,
    report::{Migration, Packets, Phase, Unplug, Vf},
};

/// A migration.
pub struct Journey;

/// YAML of a migration.
pub fn yaml(name: &str, vm: &str, pod: &str) -> String {
    format!(
        "apiVersion: hybridnic.io/v1alpha1\nkind: QemuMigration\nmetadata:\n  name: {name}\n  namespace: default\n\
         spec:\n  vm: {vm}\n  targetPod: {pod}\n"
    )
}

/// Waits until a NIC runs on a VF of a node.
pub async fn on_fast_path(world: &World, nic: &str, node: &str) -> Result<VmHybridNic> {
    let there = |n: &VmHybridNic| {
        n.status
            .as_ref()
            .is_some_and(|s| s.path == Path::FastPath && s.node_name.as_deref() == Some(node))
    };
    world.until_nic(nic, PATIENCE, "on the fast path", there).await
}

fn vf(nic: &VmHybridNic) -> Vf {
    let Some(status) = &nic.status else {
        return Vf::default();
    };
    let (pci, pf) = status
        .vf
        .as_ref()
        .map(|v| (v.pci_address.clone(), v.pf.clone()))
        .unwrap_or_default();
    Vf {
        node: status.node_name.clone().unwrap_or_default(),
        pci,
        pf,
    }
}

impl Journey {
    /// Applies a migration and follows it until the VM is on its fast path at the target.
    pub async fn run(world: &World, spec: &VmSpec, yaml: &str, target: &Guest) -> Result<Migration> {
        let to = target.node().name();
        let nic = spec.nic_name(0);
        let before = vf(&world.nic(&nic).await?);
        let pinger = world.lab.pinger(spec.nics[0].address, RATE)?;
        ensure!(
            pinger.answered(50, PATIENCE).await,
            "the VM does not answer before the migration"
        );
        let name = name_of(yaml)?;
        world.apply(yaml).await?;
        let over = |m: &QemuMigration| m.status.as_ref().is_some_and(|s| s.phase.is_final());
        let migration = world.until_migration(&name, PATIENCE, "over", over).await?;
        let status = migration.status.context("no status")?;
        // A migration that has failed brings the VM nowhere: there is nothing to wait for.
        ensure!(
            status.phase == MigrationPhase::Succeeded,
            "the migration has ended as {:?}: {}",
            status.phase,
            why(&status)
        );
        let after = on_fast_path(world, &nic, to).await?;
        let fast = SystemTime::now();
        // The tail shows that the plug loses nothing.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let report = pinger.stop().await;
        let (traffic, silence) = (report.round_trip, report.from_guest.longest());
        let unplug = unplug(&status.phases, &traffic, target).await?;
        let phases = phases(&status.phases, fast)
            .map(|(name, from, until)| Phase {
                ms: i64::try_from(until.duration_since(from).unwrap_or_default().as_millis())
                    .unwrap_or(i64::MAX),
                lost: traffic.lost_between(from, until),
                name,
            })
            .collect::<Vec<_>>();
        Ok(Migration {
            from: status.source.map(|s| s.node_name).unwrap_or_default(),
            to: status.target.map(|s| s.node_name).unwrap_or_default(),
            result: format!("{:?}", status.phase),
            vf_before: before,
            vf_after: vf(&after),
            total_ms: phases.iter().map(|p| p.ms).sum(),
            qemu_downtime_ms: status.downtime_ms.unwrap_or_default(),
            packets: Packets {
                interval_ms: 1000 / RATE,
                sent: traffic.sent,
                lost: traffic.lost(),
                silence_ms: u64::try_from(silence.as_millis()).unwrap_or(u64::MAX),
            },
            unplug,
            phases,
        })
    }
}

/// The gap at the unplug, and the guest's own share.
async fn unplug(times: &[MigrationPhaseTime], traffic: &Stream, guest: &Guest) -> Result<Option<Unplug>> {
    let Some(phase) = times.iter().find(|p| p.name == "SwitchingToStandby") else {
        return Ok(None);
    };
    let within = begun(phase)..ended(phase);
    let gaps = traffic.gaps.iter().filter(|gap| within.contains(&gap.from));
    let gap: Duration = gaps.map(|gap| gap.length).sum();
    let log = guest.run("dmesg", PATIENCE).await?;
    let Some(deaf) = deaf(&log).filter(|_| !gap.is_zero()) else {
        return Ok(None);
    };
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Ok(Some(Unplug {
        gap_ms: ms(gap),
        guest_ms: ms(deaf),
    }))
}

/// Why it did not succeed, in the operator's words.
fn why(status: &QemuMigrationStatus) -> String {
    match (
        &status.failure,
        conditions::find(&status.conditions, conditions::types::SUCCEEDED),
    ) {
        (Some(failure), _) => format!("{}: {}", failure.reason, failure.message),
        (None, Some(condition)) => format!("{}: {}", condition.reason, condition.message),
        (None, None) => "it does not say why".to_owned(),
    }
}

fn name_of(yaml: &str) -> Result<String> {
    let line = yaml.lines().find_map(|l| l.trim().strip_prefix("name:"));
    Ok(line.context("a migration without a name")?.trim().to_owned())
}

/// The migration's phases one after the other, and the plug at the target, which goes on beside the clean-up.
fn phases(
    times: &[MigrationPhaseTime],
    fast: SystemTime,
) -> impl Iterator<Item = (String, SystemTime, SystemTime)> + '_ {
    let before = times
        .iter()
        .filter(|p| p.name != "Completing" && p.name != "Pending");
    let arrived = times.iter().find(|p| p.name == "Transferring").map(ended);
    before
        .map(move |p| (p.name.clone(), begun(p), ended(p)))
        .chain(arrived.map(|at| ("PluggingVf".to_owned(), at, fast)))
}

fn begun(phase: &MigrationPhaseTime) -> SystemTime {
    SystemTime::from(phase.started_at.0)
}

fn ended(phase: &MigrationPhaseTime) -> SystemTime {
    begun(phase) + Duration::from_millis(phase.ms.unwrap_or(0).unsigned_abs())
}
