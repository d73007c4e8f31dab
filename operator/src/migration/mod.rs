//! `QemuMigration`: drives the phase, as [`hybridnic_flight::migration`] decides; the NICs decide what each of them does in it.

pub mod change;
mod trace;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use hybridnic_api::conditions::{self, types};
use hybridnic_api::names::MIGRATION_FINALIZER;
use hybridnic_api::v1alpha1::{MigrationEnd, QemuMigration, QemuMigrationStatus, VmHybridNic};
pub use hybridnic_flight::migration::{encryption, inputs, record, step};
use hybridnic_flight::migration::{
    phases::{Phases, Waits},
    worth::{self, Worth},
};
use hybridnic_process::traces::Traces;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt};

use crate::cache::Key;
use crate::controller::{Done, Reconciler};
use crate::events::{Events, Note};
use crate::fence::PodEnd;
use crate::fence::lookup::NodeLookup;
use crate::metrics::Migrations;
use crate::moves::claims::{self, Claim};
use crate::moves::ends::Ends;
use crate::moves::qemu;
use crate::moves::told::progress;
use crate::nic::admit;
use crate::pods;
use crate::vm::VmRef;
use crate::world::World;
use crate::write;
use encryption::Encryption;
use inputs::{Deadlines, Inputs, NicInputs};
use step::step;

/// Reconciles migrations. The only writer of their status.
pub struct MigrationReconciler {
    client: Client,
    world: World,
    lookup: NodeLookup,
    deadlines: Deadlines,
    encryption: Encryption,
    phases: Phases,
    told: Told,
}

/// Gets how migrations go, in addition to their status.
pub struct Told {
    /// For users who look at the object.
    pub events: Events,
    /// For monitoring.
    pub metrics: Migrations,
    /// To find out where the time goes.
    pub traces: Traces,
}

impl MigrationReconciler {
    /// A reconciler that reads from `world`.
    pub fn new(
        client: Client,
        world: World,
        lookup: NodeLookup,
        deadlines: Deadlines,
        encryption: Encryption,
        told: Told,
    ) -> Self {
        Self {
            client,
            world,
            lookup,
            deadlines,
            encryption,
            phases: Phases::default(),
            told,
        }
    }

    async fn run(&self, migration: &QemuMigration) -> Result<Done, write::Error> {
        let namespace = migration.namespace().unwrap_or_default();
        let api: Api<QemuMigration> = Api::namespaced(self.client.clone(), &namespace);
        let deleting = migration.metadata.deletion_timestamp.is_some();
        let mut finalizers = migration.finalizers().to_vec();
        let guarded = finalizers
            .iter()
            .any(|finalizer| finalizer == MIGRATION_FINALIZER);
        let over = migration
            .status
            .as_ref()
            .is_some_and(|status| status.phase.is_final());
        if over || deleting && !guarded {
            self.phases.forget(migration);
            if deleting && guarded {
                finalizers.retain(|finalizer| finalizer != MIGRATION_FINALIZER);
                write::finalizers(&api, migration, &finalizers).await?;
            }
            return Ok(Done::default());
        }
        if !guarded {
            finalizers.push(MIGRATION_FINALIZER.to_owned());
            // Its change comes back here.
            write::finalizers(&api, migration, &finalizers).await?;
            return Ok(Done {
                wrote: true,
                again: None,
            });
        }

        let pods = self.world.pods_of(&VmRef::of_migration(migration));
        let ends = self.ends(migration, &pods).await;
        let silent = ends.as_ref().is_some_and(Ends::is_silent);
        let Waits {
            in_phase_for,
            silent_for,
        } = self.phases.waits(migration, silent, Instant::now());
        let inputs = Inputs {
            now: Timestamp::now(),
            in_phase_for,
            silent_for,
            migration,
            blocked_by: self.blocked_by(migration),
            nics: self.nics(migration),
            pods: &pods,
            away: self.world.away(&pods),
            of_nodes: self.of_nodes(&pods),
            ends,
            deadlines: self.deadlines,
            encryption: self.encryption,
            decide: decide(migration),
        };
        let next = step(&inputs);
        let worth = worth::write(migration.status.as_ref(), &next.status, inputs.in_phase_for);
        let wrote = worth == Worth::Now;
        if wrote {
            let old = migration.status.clone().unwrap_or_default();
            write::apply_status(&api, migration, &next.status).await?;
            self.told.metrics.count(&change::between(&old, &next.status));
            trace::tell(&self.told.traces, migration, &old, &next.status);
            if old.phase != next.status.phase {
                log(migration, &old, &next.status);
            }
            self.told.events.tell(migration, notes(&old, &next.status));
        }
        let again = match worth {
            Worth::In(rest) => Some(next.again.map_or(rest, |again| again.min(rest))),
            Worth::Now | Worth::Nothing => next.again,
        };
        Ok(Done { wrote, again })
    }

    /// The addresses of these pods that are a node's, whichever node that is.
    fn of_nodes(&self, pods: &[Arc<Pod>]) -> BTreeSet<IpAddr> {
        let mut addresses = pods::all_addresses(pods);
        addresses.retain(|ip| self.world.nodes.any(&Key::Address(*ip)));
        addresses
    }

    /// What both ends say, and whether the target's node is off.
    async fn ends(&self, migration: &QemuMigration, pods: &[Arc<Pod>]) -> Option<Ends> {
        let of = qemu::begun(migration)?;
        let attachments = self.world.attachments_of_vm(&VmRef::of_migration(migration));
        let mut ends = Ends::observe(&of, &attachments, pods);
        // The node matters only if nothing else can show that no part of the VM is left there.
        if ends.is_silent() && ends.target_gone {
            let node = self.lookup.node(&of.target.node_name).await;
            ends.target_over = PodEnd::of(pods, &of.target.pod.uid, &node).is_over();
        }
        Some(ends)
    }

    fn nics(&self, migration: &QemuMigration) -> Vec<NicInputs> {
        let status = migration.status.as_ref();
        let target = status.and_then(|status| status.target.as_ref());
        let takes_part = |nic: &Arc<VmHybridNic>| {
            status.is_none_or(|status| status.target.is_none() || status.nics.contains(&nic.name_any()))
        };
        let nics = self.world.nics_of(&VmRef::of_migration(migration));
        nics.into_iter()
            .filter(takes_part)
            .map(|nic| {
                let refusal = target.and_then(|target| {
                    let node = self.world.hybrid_nodes.get("", &target.node_name);
                    admit::to_node(&nic.spec, &target.node_name, node.as_deref()).err()
                });
                let target_refusal =
                    refusal.map(|refusal| format!("{}: {}", refusal.reason, refusal.message));
                NicInputs {
                    attachments: self.world.attachments_of(&nic),
                    nic,
                    target_refusal,
                }
            })
            .collect()
    }

    /// What has the VM already, or is older and waits for it.
    fn blocked_by(&self, migration: &QemuMigration) -> Option<String> {
        let own = Claim::of("migration", migration, qemu::phase(migration));
        claims::blocked_by(&own, self.world.claims(&VmRef::of_migration(migration)))
    }
}

impl Reconciler for MigrationReconciler {
    type Kind = QemuMigration;

    async fn reconcile(&self, migration: Arc<QemuMigration>) -> Result<Done, write::Error> {
        self.run(&migration).await
    }
}

/// How a person decides that the source runs the VM on.
fn decide(migration: &QemuMigration) -> String {
    format!(
        "kubectl patch qmig {} -n {} --type merge -p '{{\"spec\":{{\"decision\":\"ResumeSource\"}}}}'",
        migration.name_any(),
        migration.namespace().unwrap_or_default()
    )
}

fn log(migration: &QemuMigration, old: &QemuMigrationStatus, new: &QemuMigrationStatus) {
    let node = |end: Option<&MigrationEnd>| end.map(|end| end.node_name.clone()).unwrap_or_default();
    tracing::info!(
        vm = migration.spec.vm,
        source = node(new.source.as_ref()),
        target = node(new.target.as_ref()),
        from = ?old.phase,
        to = ?new.phase,
        reason = new.failure.as_ref().map(|failure| failure.reason.as_str()),
        "migration"
    );
}

/// What a change of the status is worth telling: what it waits for before it begins, that it begins, that it is not encrypted though
/// it should be, that a person has to decide, and how it ends.
fn notes(old: &QemuMigrationStatus, new: &QemuMigrationStatus) -> Vec<Note> {
    let plain =
        |status: &QemuMigrationStatus| conditions::find(&status.conditions, types::ENCRYPTED).cloned();
    let mut notes = progress((old.phase, &old.conditions), (new.phase, &new.conditions));
    if plain(old).is_none() {
        notes.extend(plain(new).map(|now| Note::warning(now.reason, now.message)));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use hybridnic_api::conditions::{NewCondition, reasons};
    use hybridnic_api::v1alpha1::MigrationPhase;

    #[test]
    fn an_event_says_that_a_person_has_to_decide_in_whatever_phase() {
        let status = |phase, reason: &str| {
            let mut status = QemuMigrationStatus {
                phase,
                ..QemuMigrationStatus::default()
            };
            let condition = NewCondition::unknown(types::SUCCEEDED, reason, "decide");
            conditions::set(&mut status.conditions, None, Timestamp::UNIX_EPOCH, condition);
            status
        };
        for phase in [MigrationPhase::Transferring, MigrationPhase::RollingBack] {
            let before = status(phase, reasons::MIGRATING);
            for reason in [reasons::TARGET_SILENT, reasons::NEEDS_DECISION] {
                let now = status(phase, reason);
                assert_eq!(
                    notes(&before, &now),
                    [Note::warning(reason.to_owned(), "decide".to_owned())]
                );
                assert!(notes(&now, &now).is_empty(), "once");
            }
        }
    }
}
