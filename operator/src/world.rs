//! All that the operator sees of a cluster.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hybridnic_api::v1alpha1::{
    HybridNetwork, HybridNode, MigrationPhase, NicAttachment, QemuMigration, VmHybridNic,
};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::ResourceExt;
use kube::core::PartialObjectMeta;

use crate::cache::{self, Cache, Ended, Feed, Key};
use crate::kinds::vm_key;
use crate::presence::{AgentPod, Agents, Presence};
use crate::queue::Urgency;

/// The caches of all kinds.
#[derive(Clone)]
#[allow(missing_docs)]
pub struct World {
    pub nodes: Cache<Node>,
    pub namespaces: Cache<PartialObjectMeta<Namespace>>,
    pub pods: Cache<Pod>,
    pub networks: Cache<HybridNetwork>,
    pub hybrid_nodes: Cache<HybridNode>,
    pub nics: Cache<VmHybridNic>,
    pub attachments: Cache<NicAttachment>,
    pub migrations: Cache<QemuMigration>,
    pub agents: Agents,
}

/// The feeds of all caches.
#[allow(missing_docs)]
pub struct Feeds {
    pub nodes: Feed<Node>,
    pub namespaces: Feed<PartialObjectMeta<Namespace>>,
    pub pods: Feed<Pod>,
    pub networks: Feed<HybridNetwork>,
    pub hybrid_nodes: Feed<HybridNode>,
    pub nics: Feed<VmHybridNic>,
    pub attachments: Feed<NicAttachment>,
    pub migrations: Feed<QemuMigration>,
    pub agents: Feed<AgentPod>,
}

impl World {
    /// Empty caches, with their feeds; with how long an agent that is not ready counts as there, if anything is to be known of
    /// agents.
    pub fn new(patience: Option<Duration>) -> (Self, Feeds) {
        let (nodes, nodes_feed) = cache::cache();
        let (namespaces, namespaces_feed) = cache::cache();
        let (pods, pods_feed) = cache::cache();
        let (networks, networks_feed) = cache::cache();
        let (hybrid_nodes, hybrid_nodes_feed) = cache::cache();
        let (nics, nics_feed) = cache::cache();
        let (attachments, attachments_feed) = cache::cache();
        let (migrations, migrations_feed) = cache::cache();
        let (agents, agents_feed) = Agents::new(patience);
        let feeds = Feeds {
            nodes: nodes_feed,
            namespaces: namespaces_feed,
            pods: pods_feed,
            networks: networks_feed,
            hybrid_nodes: hybrid_nodes_feed,
            nics: nics_feed,
            attachments: attachments_feed,
            migrations: migrations_feed,
            agents: agents_feed,
        };
        (
            Self {
                nodes,
                namespaces,
                pods,
                networks,
                hybrid_nodes,
                nics,
                attachments,
                migrations,
                agents,
            },
            feeds,
        )
    }

    /// Waits until every cache holds what the API server had.
    pub async fn ready(&self) -> Result<(), Ended> {
        self.nodes.ready().await?;
        self.namespaces.ready().await?;
        self.pods.ready().await?;
        self.networks.ready().await?;
        self.hybrid_nodes.ready().await?;
        self.nics.ready().await?;
        self.attachments.ready().await?;
        self.migrations.ready().await?;
        self.agents.ready().await
    }

    /// Whether a node can take a NIC now, as far as is known.
    pub fn presence(&self, node: &str, now: Instant) -> Presence {
        match self.nodes.glance("", node) {
            Some(true) => Presence::NotReady,
            _ => self.agents.look(node, now),
        }
    }

    /// The pods of a VM.
    pub fn pods_of(&self, namespace: &str, vm: &str) -> Vec<Arc<Pod>> {
        self.pods.by(&vm_key(namespace, vm))
    }

    /// The NICs of a VM.
    pub fn nics_of(&self, namespace: &str, vm: &str) -> Vec<Arc<VmHybridNic>> {
        self.nics.by(&vm_key(namespace, vm))
    }

    /// The migrations of a VM.
    pub fn migrations_of(&self, namespace: &str, vm: &str) -> Vec<Arc<QemuMigration>> {
        self.migrations.by(&vm_key(namespace, vm))
    }

    /// How urgent it is what is to be done for a VM.
    pub fn urgency(&self, namespace: &str, vm: &str) -> Urgency {
        let phases = self.migrations.glances(&vm_key(namespace, vm)).into_iter();
        phases.map(urgency).max().unwrap_or_default()
    }

    /// The attachments of all NICs of a VM.
    pub fn attachments_of_vm(&self, namespace: &str, vm: &str) -> Vec<Arc<NicAttachment>> {
        self.attachments.by(&vm_key(namespace, vm))
    }

    /// The attachments of a NIC.
    pub fn attachments_of(&self, nic: &VmHybridNic) -> Vec<Arc<NicAttachment>> {
        self.attachments_by_name(nic).0
    }

    /// The attachments of a NIC, and those that a namesake has left behind.
    pub fn attachments_by_name(
        &self,
        nic: &VmHybridNic,
    ) -> (Vec<Arc<NicAttachment>>, Vec<Arc<NicAttachment>>) {
        let key = Key::Nic(nic.namespace().unwrap_or_default(), nic.name_any());
        let found = self.attachments.by(&key).into_iter();
        found.partition(|a| Some(&a.spec.nic.uid) == nic.metadata.uid.as_ref())
    }
}

/// How urgent it is what is to be done for the VM of a migration in this phase.
pub fn urgency(phase: MigrationPhase) -> Urgency {
    match phase {
        MigrationPhase::SwitchingToStandby | MigrationPhase::Transferring | MigrationPhase::RollingBack => {
            Urgency::Urgent
        }
        // The target's agent needs nobody to give the VM its VFs back.
        MigrationPhase::PreparingTarget | MigrationPhase::Completing => Urgency::Begun,
        MigrationPhase::Pending
        | MigrationPhase::Succeeded
        | MigrationPhase::Failed
        | MigrationPhase::Cancelled => Urgency::Usual,
    }
}
