//! All that the operator sees of a cluster.

use std::sync::Arc;

use hybridnic_api::names::VM_LABEL;
use hybridnic_api::v1alpha1::{HybridNetwork, HybridNode, NicAttachment, QemuMigration, VmHybridNic};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::ResourceExt;
use kube::core::PartialObjectMeta;

use crate::cache::{self, Cache, Feed, Key};

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
}

impl World {
    /// Empty caches, with their feeds.
    pub fn new() -> (Self, Feeds) {
        let (nodes, nodes_feed) = cache::cache(|_| Vec::new());
        let (namespaces, namespaces_feed) = cache::cache(|_| Vec::new());
        let (pods, pods_feed) = cache::cache(keys::pod);
        let (networks, networks_feed) = cache::cache(|_| Vec::new());
        let (hybrid_nodes, hybrid_nodes_feed) = cache::cache(keys::hybrid_node);
        let (nics, nics_feed) = cache::cache(keys::nic);
        let (attachments, attachments_feed) = cache::cache(keys::attachment);
        let (migrations, migrations_feed) = cache::cache(keys::migration);
        let feeds = Feeds {
            nodes: nodes_feed,
            namespaces: namespaces_feed,
            pods: pods_feed,
            networks: networks_feed,
            hybrid_nodes: hybrid_nodes_feed,
            nics: nics_feed,
            attachments: attachments_feed,
            migrations: migrations_feed,
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
            },
            feeds,
        )
    }

    /// Waits until every cache holds what the API server had.
    pub async fn ready(&self) -> Result<(), kube::runtime::reflector::store::WriterDropped> {
        self.nodes.store().wait_until_ready().await?;
        self.namespaces.store().wait_until_ready().await?;
        self.pods.store().wait_until_ready().await?;
        self.networks.store().wait_until_ready().await?;
        self.hybrid_nodes.store().wait_until_ready().await?;
        self.nics.store().wait_until_ready().await?;
        self.attachments.store().wait_until_ready().await?;
        self.migrations.store().wait_until_ready().await
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

/// Looks up by the VM.
pub fn vm_key(namespace: &str, vm: &str) -> Key {
    Key::Vm(namespace.to_owned(), vm.to_owned())
}

/// What each kind is looked up by.
pub mod keys {
    use super::{HybridNode, Key, NicAttachment, Pod, QemuMigration, ResourceExt, VM_LABEL, VmHybridNic};

    pub fn pod(pod: &Pod) -> Vec<Key> {
        let vm = pod.labels().get(VM_LABEL);
        vm.map(|vm| super::vm_key(&namespace(pod), vm))
            .into_iter()
            .collect()
    }

    pub fn hybrid_node(node: &HybridNode) -> Vec<Key> {
        let reported = node
            .status
            .iter()
            .flat_map(|status| status.pools.iter().map(|pool| &pool.network));
        let mut networks: Vec<_> = node
            .spec
            .pools
            .iter()
            .map(|pool| &pool.network)
            .chain(reported)
            .collect();
        networks.sort();
        networks.dedup();
        networks.into_iter().cloned().map(Key::Network).collect()
    }

    pub fn nic(nic: &VmHybridNic) -> Vec<Key> {
        let status = nic.status.as_ref();
        let has = status.and_then(|status| status.mac.as_ref());
        let mut macs: Vec<_> = nic
            .spec
            .mac
            .iter()
            .chain(has)
            .map(|mac| mac.to_ascii_lowercase())
            .collect();
        macs.dedup();
        let mut keys: Vec<_> = macs.into_iter().map(Key::Mac).collect();
        keys.push(Key::Namespace(namespace(nic)));
        keys.push(Key::Network(nic.spec.network.clone()));
        keys.extend(nic.vm_name().map(|vm| super::vm_key(&namespace(nic), vm)));
        keys.extend(status.and_then(|status| status.node_name.clone()).map(Key::Node));
        keys
    }

    pub fn attachment(attachment: &NicAttachment) -> Vec<Key> {
        let spec = &attachment.spec;
        vec![
            Key::Nic(namespace(attachment), spec.nic.name.clone()),
            super::vm_key(&namespace(attachment), &spec.vm),
            Key::Node(spec.node_name.clone()),
        ]
    }

    pub fn migration(migration: &QemuMigration) -> Vec<Key> {
        let ends = migration
            .status
            .iter()
            .flat_map(|status| [&status.source, &status.target])
            .flatten();
        let mut keys: Vec<_> = ends.map(|end| Key::Node(end.node_name.clone())).collect();
        keys.dedup();
        keys.push(super::vm_key(&namespace(migration), &migration.spec.vm));
        keys
    }

    fn namespace(object: &impl ResourceExt) -> String {
        object.namespace().unwrap_or_default()
    }
}
