//! All that the operator sees of a cluster, and which change asks for which reconcile.

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use hybridnic_api::names::VM_LABEL;
use hybridnic_api::v1alpha1::{HybridNetwork, HybridNode, NicAttachment, QemuMigration, VmHybridNic};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde::de::DeserializeOwned;

use crate::cache::{self, Cache, Feed, Key, Object};
use crate::controller::{Queue, Requests, queue};

/// The caches of all kinds.
#[derive(Clone)]
#[allow(missing_docs)]
pub struct World {
    pub nodes: Cache<PartialObjectMeta<Node>>,
    pub namespaces: Cache<PartialObjectMeta<Namespace>>,
    pub pods: Cache<Pod>,
    pub networks: Cache<HybridNetwork>,
    pub hybrid_nodes: Cache<HybridNode>,
    pub nics: Cache<VmHybridNic>,
    pub attachments: Cache<NicAttachment>,
    pub migrations: Cache<QemuMigration>,
}

/// The feeds of all caches.
pub struct Feeds {
    nodes: Feed<PartialObjectMeta<Node>>,
    namespaces: Feed<PartialObjectMeta<Namespace>>,
    pods: Feed<Pod>,
    networks: Feed<HybridNetwork>,
    hybrid_nodes: Feed<HybridNode>,
    nics: Feed<VmHybridNic>,
    attachments: Feed<NicAttachment>,
    migrations: Feed<QemuMigration>,
}

/// The queues of all controllers.
#[allow(missing_docs)]
pub struct Queues {
    pub networks: Queue<HybridNetwork>,
    pub hybrid_nodes: Queue<HybridNode>,
    pub nics: Queue<VmHybridNic>,
    pub migrations: Queue<QemuMigration>,
}

/// The controllers' ends of [`Queues`].
#[allow(missing_docs)]
pub struct AllRequests {
    pub networks: Requests<HybridNetwork>,
    pub hybrid_nodes: Requests<HybridNode>,
    pub nics: Requests<VmHybridNic>,
    pub migrations: Requests<QemuMigration>,
}

/// Queues and their ends.
pub fn queues() -> (Queues, AllRequests) {
    let (networks, network_requests) = queue();
    let (hybrid_nodes, node_requests) = queue();
    let (nics, nic_requests) = queue();
    let (migrations, migration_requests) = queue();
    (
        Queues {
            networks,
            hybrid_nodes,
            nics,
            migrations,
        },
        AllRequests {
            networks: network_requests,
            hybrid_nodes: node_requests,
            nics: nic_requests,
            migrations: migration_requests,
        },
    )
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
        let key = Key::Nic(nic.namespace().unwrap_or_default(), nic.name_any());
        let mut found = self.attachments.by(&key);
        // Those of a namesake that was deleted go with it.
        found.retain(|a| Some(&a.spec.nic.uid) == nic.metadata.uid.as_ref());
        found
    }
}

fn vm_key(namespace: &str, vm: &str) -> Key {
    Key::Vm(namespace.to_owned(), vm.to_owned())
}

/// What each kind is looked up by.
mod keys {
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

/// Which change asks for which reconcile.
struct Routes {
    world: World,
    queues: Arc<Queues>,
}

impl Routes {
    fn node(&self, old: Option<&PartialObjectMeta<Node>>, new: Option<&PartialObjectMeta<Node>>) {
        // A kubelet's heartbeat is no news.
        if old.map(|node| node.labels()) == new.map(|node| node.labels()) {
            return;
        }
        let Some(name) = new.or(old).map(ResourceExt::name_any) else {
            return;
        };
        self.queues.hybrid_nodes.add_name("", &name);
        if new.is_none() {
            for attachment in self.world.attachments.by(&Key::Node(name)) {
                self.nic_of(&attachment);
            }
        }
    }

    fn namespace(
        &self,
        old: Option<&PartialObjectMeta<Namespace>>,
        new: Option<&PartialObjectMeta<Namespace>>,
    ) {
        if old.map(|namespace| namespace.labels()) == new.map(|namespace| namespace.labels()) {
            return;
        }
        let Some(name) = new.or(old).map(ResourceExt::name_any) else {
            return;
        };
        self.all_nics(&Key::Namespace(name));
    }

    fn pod(&self, old: Option<&Pod>, new: Option<&Pod>) {
        for pod in [old, new].into_iter().flatten() {
            if let Some(vm) = pod.labels().get(VM_LABEL) {
                self.vm(&pod.namespace().unwrap_or_default(), vm);
            }
        }
    }

    fn network(&self, old: Option<&HybridNetwork>, new: Option<&HybridNetwork>) {
        let Some(network) = new.or(old) else { return };
        self.queues.networks.add(network);
        if old.map(|network| &network.spec) == new.map(|network| &network.spec) {
            return;
        }
        for node in self.world.hybrid_nodes.all() {
            self.queues.hybrid_nodes.add(node.as_ref());
        }
        self.all_nics(&Key::Network(network.name_any()));
    }

    fn hybrid_node(&self, old: Option<&HybridNode>, new: Option<&HybridNode>) {
        let Some(node) = new.or(old) else { return };
        self.queues.hybrid_nodes.add(node);
        let pools = |node: &HybridNode| node.status.as_ref().map(|status| status.pools.clone());
        if old.map(|node| (&node.spec, pools(node))) == new.map(|node| (&node.spec, pools(node))) {
            return;
        }
        for node in [old, new].into_iter().flatten() {
            for key in keys::hybrid_node(node) {
                if let Key::Network(network) = key {
                    self.queues.networks.add_name("", &network);
                }
            }
        }
        if old.map(|node| &node.spec) != new.map(|node| &node.spec) {
            self.all_nics(&Key::Node(node.name_any()));
            for migration in self.world.migrations.by(&Key::Node(node.name_any())) {
                self.vm(&migration.namespace().unwrap_or_default(), &migration.spec.vm);
            }
        }
    }

    fn nic(&self, old: Option<&VmHybridNic>, new: Option<&VmHybridNic>) {
        let Some(nic) = new.or(old) else { return };
        let namespace = nic.namespace().unwrap_or_default();
        self.queues.nics.add(nic);
        self.queues.networks.add_name("", &nic.spec.network);
        if let Some(vm) = nic.vm_name() {
            for migration in self.world.migrations_of(&namespace, vm) {
                self.queues.migrations.add(migration.as_ref());
            }
        }
        // Who waits for the address may have it once this one is gone.
        if new.is_none() {
            for key in keys::nic(nic)
                .into_iter()
                .filter(|key| matches!(key, Key::Mac(_)))
            {
                self.all_nics(&key);
            }
        }
    }

    fn attachment(&self, old: Option<&NicAttachment>, new: Option<&NicAttachment>) {
        let Some(attachment) = new.or(old) else { return };
        self.nic_of(attachment);
        let namespace = attachment.namespace().unwrap_or_default();
        for migration in self.world.migrations_of(&namespace, &attachment.spec.vm) {
            self.queues.migrations.add(migration.as_ref());
        }
        // The verdict on a migration is made of the reports of all NICs.
        let report = |a: &NicAttachment| {
            a.status
                .as_ref()
                .map(|status| (status.state, status.migration.clone()))
        };
        if old.and_then(report) != new.and_then(report) {
            for nic in self.world.nics_of(&namespace, &attachment.spec.vm) {
                self.queues.nics.add(nic.as_ref());
            }
        }
    }

    fn migration(&self, old: Option<&QemuMigration>, new: Option<&QemuMigration>) {
        let Some(migration) = new.or(old) else { return };
        self.queues.migrations.add(migration);
        self.vm(&migration.namespace().unwrap_or_default(), &migration.spec.vm);
    }

    fn vm(&self, namespace: &str, vm: &str) {
        self.all_nics(&vm_key(namespace, vm));
        for migration in self.world.migrations_of(namespace, vm) {
            self.queues.migrations.add(migration.as_ref());
        }
    }

    fn nic_of(&self, attachment: &NicAttachment) {
        let namespace = attachment.namespace().unwrap_or_default();
        self.queues.nics.add_name(&namespace, &attachment.spec.nic.name);
    }

    fn all_nics(&self, key: &Key) {
        for nic in self.world.nics.by(key) {
            self.queues.nics.add(nic.as_ref());
        }
    }
}

impl Feeds {
    /// The tasks that keep the caches true and ask for reconciles. None of them ends.
    pub fn tasks(self, client: &Client, world: &World, queues: &Arc<Queues>) -> Vec<BoxFuture<'static, ()>> {
        let routes = || Routes {
            world: world.clone(),
            queues: queues.clone(),
        };
        let labelled = watcher::Config::default().labels(VM_LABEL);
        let (node, namespace, pod, network) = (routes(), routes(), routes(), routes());
        let (hybrid_node, nic, attachment, migration) = (routes(), routes(), routes(), routes());
        vec![
            raw(client, self.nodes, move |old, new| node.node(old, new)),
            raw(client, self.namespaces, move |old, new| {
                namespace.namespace(old, new)
            }),
            guarded(client, self.pods, labelled, strip, move |old, new| {
                pod.pod(old, new)
            }),
            plain(client, self.networks, move |old, new| network.network(old, new)),
            plain(client, self.hybrid_nodes, move |old, new| {
                hybrid_node.hybrid_node(old, new)
            }),
            plain(client, self.nics, move |old, new| nic.nic(old, new)),
            plain(client, self.attachments, move |old, new| {
                attachment.attachment(old, new)
            }),
            plain(client, self.migrations, move |old, new| {
                migration.migration(old, new)
            }),
        ]
    }
}

/// A watch of metadata only.
fn raw<K: Object + DeserializeOwned>(
    client: &Client,
    feed: Feed<K>,
    changed: impl Fn(Option<&K>, Option<&K>) + Send + 'static,
) -> BoxFuture<'static, ()> {
    let events = watcher(Api::<K>::all(client.clone()), watcher::Config::default())
        .default_backoff()
        .modify(forget);
    async move { feed.run(events, changed).await }.boxed()
}

fn plain<K: Object + DeserializeOwned>(
    client: &Client,
    feed: Feed<K>,
    changed: impl Fn(Option<&K>, Option<&K>) + Send + 'static,
) -> BoxFuture<'static, ()> {
    guarded(client, feed, watcher::Config::default(), |_| {}, changed)
}

/// A watch that one object which does not parse cannot stop.
fn guarded<K: Object + DeserializeOwned>(
    client: &Client,
    feed: Feed<K>,
    config: watcher::Config,
    strip: fn(&mut K),
    changed: impl Fn(Option<&K>, Option<&K>) + Send + 'static,
) -> BoxFuture<'static, ()> {
    let events = watcher(Api::<DeserializeGuard<K>>::all(client.clone()), config).default_backoff();
    let events = cache::parsed(events).map(move |event| {
        event.map(|event| {
            event.modify(|object| {
                forget(object);
                strip(object);
            })
        })
    });
    async move { feed.run(events, changed).await }.boxed()
}

/// Nobody reads it, and it is the larger part of many objects.
fn forget<K: Object>(object: &mut K) {
    object.managed_fields_mut().clear();
}

/// Of a pod, only its node, phase and address matter.
fn strip(pod: &mut Pod) {
    pod.annotations_mut().clear();
    if let Some(spec) = pod.spec.take() {
        pod.spec = Some(k8s_openapi::api::core::v1::PodSpec {
            node_name: spec.node_name,
            ..Default::default()
        });
    }
    if let Some(status) = pod.status.take() {
        let (phase, pod_ip) = (status.phase, status.pod_ip);
        pod.status = Some(k8s_openapi::api::core::v1::PodStatus {
            phase,
            pod_ip,
            ..Default::default()
        });
    }
}
