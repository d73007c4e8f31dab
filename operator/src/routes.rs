//! Which change asks for which reconcile.

use std::sync::Arc;
use std::time::Instant;

use futures::FutureExt;
use futures::future::BoxFuture;
use hybridnic_api::names::VM_LABEL;
use hybridnic_api::v1alpha1::{Goal, HybridNetwork, HybridNode, NicAttachment, QemuMigration, VmHybridNic};
use hybridnic_runtime::api;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};

use crate::cache::{Feed, Key, Name, Object, Wire};
use crate::fence::NodeState;
use crate::kinds::macs_of;
use crate::mac;
use crate::metrics::Reconciles;
use crate::moves::Stage;
use crate::nic::release::is_held;
use crate::presence::{AgentPod, AgentPods};
use crate::queue::{Places, Queue, Requests, Urgency, queue};
use crate::vm::VmRef;
use crate::world::{Feeds, World};

/// Of the kinds of which there are many.
const MANY: Places = Places {
    urgent: 64,
    others: 16,
    beside_urgent: 2,
};
/// Of the kinds of which there are few, or of which few are to be made true at once.
const FEW: Places = Places {
    urgent: 4,
    others: 4,
    beside_urgent: 4,
};

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
    let (networks, network_requests) = queue(reconciles, FEW);
    let (hybrid_nodes, node_requests) = queue(reconciles, FEW);
    let (nics, nic_requests) = queue(reconciles, MANY);
    let (attachments, attachment_requests) = queue(reconciles, FEW);
    let (migrations, migration_requests) = queue(reconciles, MANY);
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
            let node = Name::new("", &name);
            self.queues.hybrid_nodes.add(node, Urgency::Usual);
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
            self.vm(&VmRef::of_migration(&migration));
        }
        // Nor do its VFs count while it is not ready.
        if let Some(node) = self.world.hybrid_nodes.get("", &name) {
            self.networks_of(&node);
        }
    }

    /// VFs of a node whose agent is away do not count, and what is to leave it stays.
    fn agent(&self, old: Option<&AgentPod>, new: Option<&AgentPod>) {
        let seen = |pod: &AgentPod| (pod.node().to_owned(), pod.is_ready());
        if old.map(seen) == new.map(seen) {
            return;
        }
        for pod in [old, new].into_iter().flatten() {
            // It is waited for from now on.
            self.world.agents.look(pod.node(), Instant::now());
            if let Some(node) = self.world.hybrid_nodes.get("", pod.node()) {
                self.networks_of(&node);
            }
            // NICs that are to leave the node wait for it.
            for attachment in self.world.attachments.by(&Key::Node(pod.node().to_owned())) {
                if attachment.spec.goal == Goal::Detached {
                    self.nic_of(&attachment);
                }
            }
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
        self.all_nics(&Key::Namespace(name), Urgency::Usual);
    }

    fn pod(&self, old: Option<&Pod>, new: Option<&Pod>) {
        for pod in [old, new].into_iter().flatten() {
            if let Some(vm) = VmRef::of_pod(pod) {
                self.vm(&vm);
                for attachment in self.world.attachments_of_vm(&vm) {
                    self.release(&attachment);
                }
            }
        }
    }

    fn network(&self, old: Option<&HybridNetwork>, new: Option<&HybridNetwork>) {
        let Some(network) = new.or(old) else { return };
        self.queues.networks.add(Name::of(network), Urgency::Usual);
        if old.map(|network| &network.spec) == new.map(|network| &network.spec) {
            return;
        }
        for node in self.world.hybrid_nodes.all_names() {
            self.queues.hybrid_nodes.add(node, Urgency::Usual);
        }
        self.all_nics(&Key::Network(network.name_any()), Urgency::Usual);
    }

    fn hybrid_node(&self, old: Option<&HybridNode>, new: Option<&HybridNode>) {
        let Some(node) = new.or(old) else { return };
        if new.is_none() {
            self.world.agents.forget(&node.name_any());
        }
        self.queues.hybrid_nodes.add(Name::of(node), Urgency::Usual);
        // What of a node decides whether it can take a NIC.
        let admits = |node: &HybridNode| {
            let status = node.status.as_ref();
            (node.spec.clone(), status.and_then(|s| s.agent_version.clone()))
        };
        // Nobody's any more.
        let now: Vec<_> = new.into_iter().flat_map(macs_of).collect();
        for mac in old.into_iter().flat_map(macs_of).filter(|mac| !now.contains(mac)) {
            self.all_nics(&Key::Mac(mac), Urgency::Usual);
        }
        let pools = |node: &HybridNode| node.status.as_ref().map(|status| status.pools.clone());
        let all = |node: &HybridNode| (admits(node), pools(node));
        if old.map(all) == new.map(all) {
            return;
        }
        for node in [old, new].into_iter().flatten() {
            self.networks_of(node);
        }
        if old.map(admits) != new.map(admits) {
            self.all_nics(&Key::Node(node.name_any()), Urgency::Usual);
            for migration in self.world.migrations.by(&Key::Node(node.name_any())) {
                self.vm(&VmRef::of_migration(&migration));
            }
        }
    }

    fn nic(&self, old: Option<&VmHybridNic>, new: Option<&VmHybridNic>) {
        let Some(nic) = new.or(old) else { return };
        let vm = VmRef::of_nic(nic);
        let urgency = vm.as_ref().map_or(Urgency::Usual, |vm| self.world.urgency(vm));
        self.queues.nics.add(Name::of(nic), urgency);
        if old.map(Object::glance) != new.map(Object::glance) {
            self.status_of(&nic.spec.network);
        }
        if let Some(vm) = vm {
            self.migrations_of(vm, urgency);
        }
        // Who waits for the address may have it once this one is gone, or was refused.
        let was_refused = old.is_some_and(mac::is_refused);
        if new.is_none_or(|new| !was_refused && mac::is_refused(new)) {
            for key in nic.keys().iter().filter(|key| matches!(key, Key::Mac(_))) {
                self.all_nics(key, Urgency::Usual);
            }
        }
    }

    fn attachment(&self, old: Option<&NicAttachment>, new: Option<&NicAttachment>) {
        let Some(attachment) = new.or(old) else { return };
        self.nic_of(attachment);
        self.release(attachment);
        // A network stays while NICs are attached to it.
        if old.is_some() != new.is_some() {
            self.status_of(&attachment.spec.network);
        }
        let vm = VmRef::of_attachment(attachment);
        let urgency = self.world.urgency(&vm);
        self.migrations_of(vm.clone(), urgency);
        // The verdict on a migration is made of the reports of all NICs.
        let report = |a: &NicAttachment| {
            a.status
                .as_ref()
                .map(|status| (status.state, status.migration.clone()))
        };
        if old.and_then(report) != new.and_then(report) {
            self.all_nics(&Key::Vm(vm), urgency);
        }
    }

    fn migration(&self, old: Option<&QemuMigration>, new: Option<&QemuMigration>) {
        let Some(migration) = new.or(old) else { return };
        self.vm(&VmRef::of_migration(migration));
    }

    fn networks_of(&self, node: &HybridNode) {
        for key in node.keys() {
            if let Key::Network(network) = key {
                self.status_of(&network);
            }
        }
    }

    fn vm(&self, vm: &VmRef) {
        let urgency = self.world.urgency(vm);
        self.all_nics(&Key::Vm(vm.clone()), urgency);
        self.migrations_of(vm.clone(), urgency);
    }

    fn migrations_of(&self, vm: VmRef, urgency: Urgency) {
        for migration in self.world.migrations.names(&Key::Vm(vm)) {
            self.queues.migrations.add(migration, urgency);
        }
    }

    fn nic_of(&self, attachment: &NicAttachment) {
        let namespace = attachment.namespace().unwrap_or_default();
        let nic = Name::new(&namespace, &attachment.spec.nic.name);
        let urgency = self.world.urgency(&VmRef::of_attachment(attachment));
        self.queues.nics.add(nic, urgency);
    }

    fn release(&self, attachment: &NicAttachment) {
        if is_held(attachment) {
            let attachment = Name::of(attachment);
            self.queues.attachments.add(attachment, Urgency::Usual);
        }
    }

    fn all_nics(&self, key: &Key, urgency: Urgency) {
        for nic in self.world.nics.names(key) {
            self.queues.nics.add(nic, urgency);
        }
    }

    fn status_of(&self, network: &str) {
        self.queues.networks.add(Name::new("", network), Urgency::Usual);
    }
}

/// Asks for a reconcile of all there is: what has changed while nobody led is not known. Migrations that have
/// begun come first.
pub fn everything(world: &World, queues: &Arc<Queues>) {
    let routes = Routes {
        world: world.clone(),
        queues: Arc::clone(queues),
    };
    let begun = |stage: Option<Stage>| stage.is_some_and(|stage| stage.urgency() > Urgency::Usual);
    for migration in world.migrations.select(begun) {
        routes.migration(None, Some(&migration));
    }
    for node in world.hybrid_nodes.all_names() {
        queues.hybrid_nodes.add(node, Urgency::Usual);
    }
    for network in world.networks.all_names() {
        queues.networks.add(network, Urgency::Usual);
    }
    for nic in world.nics.all_names() {
        queues.nics.add(nic, Urgency::Usual);
    }
    for attachment in world.attachments.select(|is_held| is_held) {
        queues
            .attachments
            .add(Name::of(attachment.as_ref()), Urgency::Usual);
    }
    for migration in world.migrations.all_names() {
        queues.migrations.add(migration, Urgency::Usual);
    }
}

/// The tasks that keep the caches true and ask for reconciles. None of them ends. Without `agents` nobody watches their pods.
pub fn tasks(
    feeds: Feeds,
    client: &Client,
    world: &World,
    queues: &Arc<Queues>,
    agents: Option<&AgentPods>,
) -> Vec<BoxFuture<'static, ()>> {
    let routes = || Routes {
        world: world.clone(),
        queues: queues.clone(),
    };
    let all = api::watches;
    let labelled = all().labels(VM_LABEL);
    let (node, namespace, pod, network) = (routes(), routes(), routes(), routes());
    let (hybrid_node, nic, attachment, migration) = (routes(), routes(), routes(), routes());
    let mut tasks = vec![
        watch(client, feeds.nodes, all(), move |old, new| node.node(old, new)),
        watch(client, feeds.namespaces, all(), move |old, new| {
            namespace.namespace(old, new);
        }),
        watch(client, feeds.pods, labelled, move |old, new| pod.pod(old, new)),
        watch(client, feeds.networks, all(), move |old, new| {
            network.network(old, new);
        }),
        watch(client, feeds.hybrid_nodes, all(), move |old, new| {
            hybrid_node.hybrid_node(old, new);
        }),
        watch(client, feeds.nics, all(), move |old, new| nic.nic(old, new)),
        watch(client, feeds.attachments, all(), move |old, new| {
            attachment.attachment(old, new);
        }),
        watch(client, feeds.migrations, all(), move |old, new| {
            migration.migration(old, new);
        }),
    ];
    if let Some(pods) = agents {
        let api = Api::namespaced(client.clone(), &pods.namespace);
        let (config, agent) = (all().labels(&pods.labels), routes());
        tasks.push(follow(api, feeds.agents, config, move |old, new| {
            agent.agent(old, new);
        }));
    }
    tasks
}

fn watch<K: Object>(
    client: &Client,
    feed: Feed<K>,
    config: watcher::Config,
    changed: impl Fn(Option<&K>, Option<&K>) + Send + 'static,
) -> BoxFuture<'static, ()> {
    follow(Api::all(client.clone()), feed, config, changed)
}

fn follow<K: Object>(
    api: Api<Wire<K>>,
    feed: Feed<K>,
    config: watcher::Config,
    changed: impl Fn(Option<&K>, Option<&K>) + Send + 'static,
) -> BoxFuture<'static, ()> {
    let events = watcher(api, config).default_backoff();
    async move { feed.run(events, changed).await }.boxed()
}
