//! What the caches hold that matters to a NIC.

use std::sync::Arc;

use hybridnic_api::conditions::reasons;
use hybridnic_api::v1alpha1::{
    HybridNetwork, MigrationPhase, NicAttachment, ObjectRef, QemuMigration, VmHybridNic,
};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::admit::Refusal;
use crate::handover::Ends;
use crate::pods;
use crate::world::World;

/// What the caches hold that matters to a NIC.
pub struct Known {
    /// Its network.
    pub network: Option<Arc<HybridNetwork>>,
    /// The pods of its VM.
    pub pods: Vec<Arc<Pod>>,
    /// Its attachments.
    pub attachments: Vec<Arc<NicAttachment>>,
    /// The migrations of its VM.
    pub migrations: Vec<Arc<QemuMigration>>,
    /// The migration that has the NIC in its hands, and what both ends say.
    pub moving: Option<(Arc<QemuMigration>, Ends)>,
}

/// Where a NIC's VM runs, or is about to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The pod.
    pub pod: ObjectRef,
    /// Its node.
    pub node: String,
    /// Why the NIC cannot be attached there yet.
    pub wait: Option<Refusal>,
}

impl Known {
    /// Reads all caches.
    pub fn read(world: &World, nic: &VmHybridNic) -> Self {
        let namespace = nic.namespace().unwrap_or_default();
        let vm = nic.vm_name().unwrap_or_default();
        let (pods, migrations) = (world.pods_of(&namespace, vm), world.migrations_of(&namespace, vm));
        let name = nic.name_any();
        let mine = migrations
            .iter()
            .find(|migration| nics_of(migration).contains(&name));
        let moving = mine.and_then(|migration| {
            let ends = Ends::observe(migration, &world.attachments_of_vm(&namespace, vm), &pods)?;
            Some((migration.clone(), ends))
        });
        let network = world.networks.get("", &nic.spec.network);
        Self {
            network,
            pods,
            attachments: world.attachments_of(nic),
            migrations,
            moving,
        }
    }

    /// The pod of the VM, and its node; or why there is none.
    pub fn location(&self, nic: &VmHybridNic) -> Result<Location, Refusal> {
        if let Some(end) = self.moving.as_ref().and_then(|(migration, _)| {
            let status = migration.status.as_ref()?;
            let arrived = status.phase == MigrationPhase::Completing;
            if arrived {
                status.target.clone()
            } else {
                status.source.clone()
            }
        }) {
            return Ok(Location {
                pod: end.pod,
                node: end.node_name,
                wait: None,
            });
        }
        let vm = nic.vm_name().unwrap_or_default();
        let recorded = nic.status.as_ref().and_then(|status| status.pod.as_ref());
        let Some(found) = pods::active(recorded, &self.pods) else {
            return Err(Refusal::new(
                reasons::POD_NOT_FOUND,
                pods::missing(vm, &self.pods),
            ));
        };
        let Some(node) = pods::node(found) else {
            let message = format!("the pod {} has no node yet", found.name_any());
            return Err(Refusal::new(reasons::POD_NOT_RUNNING, message));
        };
        let pod = pods::reference(found);
        // A node that is not heard of takes nothing from a VM that may run there all the same.
        let attached = self
            .attachments
            .iter()
            .any(|attachment| attachment.spec.pod.uid == pod.uid);
        let wait = if attached {
            None
        } else if let Some(migration) = self.migrations.iter().find(|m| !nics_of(m).is_empty()) {
            let message = format!(
                "waits for the migration {}, which began without this NIC",
                migration.name_any()
            );
            Some(Refusal::new(reasons::MIGRATING, message))
        } else {
            let message = format!("the pod {} does not run yet", pod.name);
            (!pods::is_running(found)).then(|| Refusal::new(reasons::POD_NOT_RUNNING, message))
        };
        Ok(Location {
            pod,
            node: node.to_owned(),
            wait,
        })
    }
}

/// The NICs that a migration decides about: those with which it has begun, until it ends.
fn nics_of(migration: &QemuMigration) -> &[String] {
    match &migration.status {
        Some(status) if status.phase != MigrationPhase::Pending && !status.phase.is_final() => &status.nics,
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{attachment, migration, nic, pod};
    use hybridnic_api::v1alpha1::QemuMigrationStatus;

    fn known(pods: Vec<Pod>) -> Known {
        Known {
            network: None,
            pods: pods.into_iter().map(Arc::new).collect(),
            attachments: Vec::new(),
            migrations: Vec::new(),
            moving: None,
        }
    }

    fn wait(known: &Known) -> Option<&'static str> {
        match known.location(&nic("eth0", "vm", "net", 1)) {
            Ok(location) => location.wait.map(|refusal| refusal.reason),
            Err(refusal) => Some(refusal.reason),
        }
    }

    #[test]
    fn a_nic_waits_for_its_pod() {
        assert_eq!(wait(&known(Vec::new())), Some(reasons::POD_NOT_FOUND));
        assert_eq!(
            wait(&known(vec![pod("a", "vm", 1, "Pending", "")])),
            Some(reasons::POD_NOT_RUNNING)
        );
        assert_eq!(
            wait(&known(vec![pod("a", "vm", 1, "Pending", "n1")])),
            Some(reasons::POD_NOT_RUNNING)
        );
        assert_eq!(wait(&known(vec![pod("a", "vm", 1, "Running", "n1")])), None);
    }

    #[test]
    fn a_pod_that_is_not_heard_of_keeps_what_it_has() {
        let mut known = known(vec![pod("a", "vm", 1, "Unknown", "n1")]);
        assert_eq!(wait(&known), Some(reasons::POD_NOT_RUNNING));
        known.attachments.push(Arc::new(attachment("eth0", "a", "n1")));
        assert_eq!(wait(&known), None);
    }

    #[test]
    fn a_nic_that_comes_during_a_migration_waits_for_its_end() {
        let mut known = known(vec![pod("a", "vm", 1, "Running", "n1")]);
        let mut other = migration("m", 1);
        let status = |phase| QemuMigrationStatus {
            phase,
            nics: vec!["eth1".to_owned()],
            ..QemuMigrationStatus::default()
        };
        other.status = Some(status(MigrationPhase::Transferring));
        known.migrations = vec![Arc::new(other.clone())];
        assert_eq!(wait(&known), Some(reasons::MIGRATING));
        other.status = Some(status(MigrationPhase::Succeeded));
        known.migrations = vec![Arc::new(other)];
        assert_eq!(wait(&known), None);
    }
}
