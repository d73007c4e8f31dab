//! Which change asks for which reconcile.

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use hybridnic_api::names::VM_LABEL;
use hybridnic_api::v1alpha1::{HybridNetwork, HybridNode, NicAttachment, QemuMigration, VmHybridNic};
use k8s_openapi::api::core::v1::{
    Namespace, Node, NodeCondition, NodeSpec, NodeStatus, Pod, PodSpec, PodStatus,
};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde::de::DeserializeOwned;

use crate::cache::{self, Feed, Key, Object};
use crate::controller::{Queue, Requests, queue};
use crate::fence::{NodeState, OUT_OF_SERVICE};
use crate::metrics::Reconciles;
use crate::nic::release::is_held;
use crate::world::{Feeds, World, keys, vm_key};

/// The queues of all controllers.
#[allow(missing_docs)]
pub struct Queues {
    pub networks: Queue<HybridNetwork>,
    pub hybrid_nodes: Queue<HybridNode>,
    pub nics: Queue<VmHybridNic>,
    pub attachments: Queue<NicAttachment>,
    pub migrations: Queue<QemuMigration>,
}

/// The controllers' ends of [`Queues`].
#[allow(missing_docs)]
pub struct AllRequests {
    pub networks: Requests<HybridNetwork>,
    pub hybrid_nodes: Requests<HybridNode>,
    pub nics: Requests<VmHybridNic>,
    pub attachments: Requests<NicAttachment>,
    pub migrations: Requests<QemuMigration>,
}

/// Queues and their ends.
pub fn queues(reconciles: &Reconciles) -> (Queues, AllRequests) {
    let (networks, network_requests) = queue(reconciles);
    let (hybrid_nodes, node_requests) = queue(reconciles);
    let (nics, nic_requests) = queue(reconciles);
    let (attachments, attachment_requests) = queue(reconciles);
    let (migrations, migration_requests) = queue(reconciles);
    (
        Queues {
            networks,
            hybrid_nodes,
            nics,
            attachments,
            migrations,
        },
        AllRequests {
            networks: network_requests,
            hybrid_nodes: node_requests,
            nics: nic_requests,
            attachments: attachment_requests,
            migrations: migration_requests,
        },
    )
}

struct Routes {
    world: World,
    queues: Arc<Queues>,
}

impl Routes {
    fn node(&self, old: Option<&Node>, new: Option<&Node>) {
        let Some(name) = new.or(old).map(ResourceExt::name_any) else {
            return;
        };
        // A kubelet's heartbeat is no news.
        if old.map(ResourceExt::labels) != new.map(ResourceExt::labels) {
            self.queues.hybrid_nodes.add_name("", &name);
        }
        if old.map(NodeState::of) == new.map(NodeState::of) {
            return;
        }
        // What waits for the node may go on without it, or with it again.
        for attachment in self.world.attachments.by(&Key::Node(name.clone())) {
            self.nic_of(&attachment);
            self.release(&attachment);
        }
        for migration in self.world.migrations.by(&Key::Node(name.clone())) {
            self.vm(&migration.namespace().unwrap_or_default(), &migration.spec.vm);
        }
        // Nor do its VFs count while it is not ready.
        if let Some(node) = self.world.hybrid_nodes.get("", &name) {
            self.networks_of(&node);
        }
    }

    fn namespace(
        &self,
        old: Option<&PartialObjectMeta<Namespace>>,
        new: Option<&PartialObjectMeta<Namespace>>,
    ) {
        if old.map(ResourceExt::labels) == new.map(ResourceExt::labels) {
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
                let namespace = pod.namespace().unwrap_or_default();
                self.vm(&namespace, vm);
                for attachment in self.world.attachments_of_vm(&namespace, vm) {
                    self.release(&attachment);
                }
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
        // What of a node decides whether it can take a NIC.
        let admits = |node: &HybridNode| {
            let status = node.status.as_ref();
            (node.spec.clone(), status.and_then(|s| s.agent_version.clone()))
        };
        let pools = |node: &HybridNode| node.status.as_ref().map(|status| status.pools.clone());
        let all = |node: &HybridNode| (admits(node), pools(node));
        if old.map(all) == new.map(all) {
            return;
        }
        for node in [old, new].into_iter().flatten() {
            self.networks_of(node);
        }
        if old.map(admits) != new.map(admits) {
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
        self.release(attachment);
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

    fn networks_of(&self, node: &HybridNode) {
        for key in keys::hybrid_node(node) {
            if let Key::Network(network) = key {
                self.queues.networks.add_name("", &network);
            }
        }
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

    fn release(&self, attachment: &NicAttachment) {
        if is_held(attachment) {
            self.queues.attachments.add(attachment);
        }
    }

    fn all_nics(&self, key: &Key) {
        for nic in self.world.nics.by(key) {
            self.queues.nics.add(nic.as_ref());
        }
    }
}

/// The tasks that keep the caches true and ask for reconciles. None of them ends.
pub fn tasks(
    feeds: Feeds,
    client: &Client,
    world: &World,
    queues: &Arc<Queues>,
) -> Vec<BoxFuture<'static, ()>> {
    let routes = || Routes {
        world: world.clone(),
        queues: queues.clone(),
    };
    let labelled = watcher::Config::default().labels(VM_LABEL);
    let (node, namespace, pod, network) = (routes(), routes(), routes(), routes());
    let (hybrid_node, nic, attachment, migration) = (routes(), routes(), routes(), routes());
    vec![
        // Guarded, a node that does not parse would look as if it were deleted, and what is on it would be taken for dead.
        raw(client, feeds.nodes, strip_node, move |old, new| {
            node.node(old, new);
        }),
        raw(
            client,
            feeds.namespaces,
            |_| {},
            move |old, new| {
                namespace.namespace(old, new);
            },
        ),
        guarded(client, feeds.pods, labelled, strip, move |old, new| {
            pod.pod(old, new);
        }),
        plain(client, feeds.networks, move |old, new| network.network(old, new)),
        plain(client, feeds.hybrid_nodes, move |old, new| {
            hybrid_node.hybrid_node(old, new);
        }),
        plain(client, feeds.nics, move |old, new| nic.nic(old, new)),
        plain(client, feeds.attachments, move |old, new| {
            attachment.attachment(old, new);
        }),
        plain(client, feeds.migrations, move |old, new| {
            migration.migration(old, new);
        }),
    ]
}

/// A watch of what always parses.
fn raw<K: Object + DeserializeOwned>(
    client: &Client,
    feed: Feed<K>,
    strip: fn(&mut K),
    changed: impl Fn(Option<&K>, Option<&K>) + Send + 'static,
) -> BoxFuture<'static, ()> {
    let events = watcher(Api::<K>::all(client.clone()), watcher::Config::default())
        .default_backoff()
        .modify(move |object| {
            forget(object);
            object.annotations_mut().clear();
            strip(object);
        });
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

/// Of a node, only its labels matter, whether it is ready, and whether it is said to be off.
fn strip_node(node: &mut Node) {
    let taints = node.spec.take().and_then(|spec| spec.taints).unwrap_or_default();
    let off: Vec<_> = taints
        .into_iter()
        .filter(|taint| taint.key == OUT_OF_SERVICE)
        .collect();
    if !off.is_empty() {
        node.spec = Some(NodeSpec {
            taints: Some(off),
            ..Default::default()
        });
    }
    let conditions = node
        .status
        .take()
        .and_then(|status| status.conditions)
        .unwrap_or_default();
    let ready = conditions
        .into_iter()
        .find(|condition| condition.type_ == "Ready")
        .map(|ready| {
            vec![NodeCondition {
                type_: ready.type_,
                status: ready.status,
                last_transition_time: ready.last_transition_time,
                ..Default::default()
            }]
        });
    if ready.is_some() {
        node.status = Some(NodeStatus {
            conditions: ready,
            ..Default::default()
        });
    }
}

/// Of a pod, only its node, phase and address matter.
fn strip(pod: &mut Pod) {
    pod.annotations_mut().clear();
    if let Some(spec) = pod.spec.take() {
        pod.spec = Some(PodSpec {
            node_name: spec.node_name,
            ..Default::default()
        });
    }
    if let Some(status) = pod.status.take() {
        let (phase, pod_ip) = (status.phase, status.pod_ip);
        pod.status = Some(PodStatus {
            phase,
            pod_ip,
            ..Default::default()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_kept_of_a_node_says_the_same_of_it() {
        let taints =
            json!([{"key": "a", "effect": "NoSchedule"}, {"key": OUT_OF_SERVICE, "effect": "NoExecute"}]);
        for (taints, ready) in [(json!([]), "True"), (json!([]), "Unknown"), (taints, "Unknown")] {
            let mut node: Node = serde_json::from_value(json!({
                "metadata": {"name": "n1", "labels": {"zone": "x"}},
                "spec": {"podCIDR": "10.0.0.0/24", "taints": taints},
                "status": {"images": [{"names": ["large"]}], "conditions": [
                    {"type": "DiskPressure", "status": "False", "message": "long"},
                    {"type": "Ready", "status": ready, "message": "long", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                ]},
            }))
            .unwrap();
            let before = NodeState::of(&node);
            strip_node(&mut node);
            assert_eq!(NodeState::of(&node), before);
            let left = serde_json::to_string(&node).unwrap();
            for gone in ["large", "long", "10.0.0.0", "DiskPressure", "\"a\""] {
                assert!(!left.contains(gone), "{left}");
            }
        }
    }
}
