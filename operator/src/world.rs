//! All that the operator sees of a cluster.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hybridnic_api::v1alpha1::{HybridNetwork, HybridNode, NicAttachment, QemuMigration, VmHybridNic};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::ResourceExt;
use kube::core::PartialObjectMeta;

use crate::cache::{self, Cache, Ended, Feed, Key};
use crate::moves::{self, Going, Move, Stage};
use crate::presence::{AgentPod, Agents, Presence};
use crate::queue::Urgency;
use crate::vm::VmRef;

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
    pub fn pods_of(&self, vm: &VmRef) -> Vec<Arc<Pod>> {
        self.pods.by(&Key::Vm(vm.clone()))
    }

    /// The NICs of a VM.
    pub fn nics_of(&self, vm: &VmRef) -> Vec<Arc<VmHybridNic>> {
        self.nics.by(&Key::Vm(vm.clone()))
    }

    /// The moves of a VM, also those that are over.
    pub fn moves_of(&self, vm: &VmRef) -> Vec<Move> {
        let migrations = self.migrations.by(&Key::Vm(vm.clone()));
        migrations
            .iter()
            .filter_map(|migration| moves::qemu::begun(migration))
            .collect()
    }

    /// All that is asked for and has not ended.
    pub fn going(&self) -> Vec<Going> {
        let migrations = self
            .migrations
            .select(|stage| !matches!(stage, Some(Stage::Over(_))));
        migrations
            .iter()
            .filter_map(|migration| moves::qemu::going(migration))
            .collect()
    }

    /// How urgent it is what is to be done for a VM.
    pub fn urgency(&self, vm: &VmRef) -> Urgency {
        let stages = self.migrations.glances(&Key::Vm(vm.clone())).into_iter();
        stages.flatten().map(Stage::urgency).max().unwrap_or_default()
    }

    /// The attachments of all NICs of a VM.
    pub fn attachments_of_vm(&self, vm: &VmRef) -> Vec<Arc<NicAttachment>> {
        self.attachments.by(&Key::Vm(vm.clone()))
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
