//! `HybridNetwork.status`: what the cluster has of a network; and its finalizer, while NICs are attached to it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hybridnic_api::conditions::{self, NewCondition, reasons, types};
use hybridnic_api::names::NETWORK_FINALIZER;
use hybridnic_api::v1alpha1::{
    HybridNetwork, HybridNetworkStatus, HybridNode, HybridNodeSpec, HybridNodeStatus, NicAttachment,
    NodePool, Path, PoolStatus, VfCounts,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client, ResourceExt};
use tokio::time::Instant;

use crate::cache::{Key, Object};
use crate::controller::{Done, Reconciler};
use crate::events::{Events, Note};
use crate::fence::NodeState;
use crate::kinds::NicGlance;
use crate::select::selects;
use crate::world::World;
use crate::{mac, write};

/// All nodes of a network are looked at, and its status is written, no more often than this.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Counts of thousands of NICs change all the time; nobody reads them more often than this.
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// So many nodes are looked at before others have a turn: 5,000 at once would hold up all migrations.
const NODES_AT_ONCE: usize = 32;
/// How many nodes a message names.
const NAMED: usize = 3;

/// Reconciles the status of networks.
pub struct NetworkReconciler {
    client: Client,
    world: World,
    events: Events,
    times: Mutex<HashMap<String, Times>>,
}

/// When a network was last looked at, and when its status was written.
#[derive(Clone, Copy, Debug)]
struct Times {
    looked: Instant,
    written: Option<Instant>,
}

impl NetworkReconciler {
    /// A reconciler that reads from `world`.
    pub fn new(client: Client, world: World, events: Events) -> Self {
        Self {
            client,
            world,
            events,
            times: Mutex::default(),
        }
    }

    /// How long a network is not to be looked at again. If it is, that is noted.
    fn rest(&self, network: &str) -> Option<Duration> {
        let (mut times, looked) = (self.times(), Instant::now());
        times.retain(|_, times| times.looked.elapsed() < COUNT_EVERY);
        let before = times.get(network).copied();
        let rest = before.map_or(Duration::ZERO, |before| left(before.looked, LOOK_EVERY));
        if rest.is_zero() {
            let written = before.and_then(|before| before.written);
            times.insert(network.to_owned(), Times { looked, written });
        }
        (!rest.is_zero()).then_some(rest)
    }

    /// How long its counts must stay as they were written last.
    fn counts_rest(&self, network: &str) -> Option<Duration> {
        let written = self.times().get(network)?.written?;
        Some(left(written, COUNT_EVERY)).filter(|rest| !rest.is_zero())
    }

    fn times(&self) -> MutexGuard<'_, HashMap<String, Times>> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The nodes of a network's pool: those whose VFs count, and those that are not ready.
    async fn nodes(&self, network: &str) -> (Vec<HybridNode>, Vec<HybridNode>) {
        let key = Key::Network(network.to_owned());
        let mut names = self.world.hybrid_nodes.names(&key);
        names.sort_by(|a, b| a.name().cmp(b.name()));
        let (mut there, mut away) = (Vec::new(), Vec::new());
        for some in names.chunks(NODES_AT_ONCE) {
            for name in some {
                let node = self.world.hybrid_nodes.peek(name);
                let Some(node) = node.filter(|node| node.keys().contains(&key)) else {
                    continue;
                };
                let is_away = self.world.nodes.glance("", name.name()) == Some(true);
                let nodes = if is_away { &mut away } else { &mut there };
                nodes.push(of_network(&node, network));
            }
            tokio::task::yield_now().await;
        }
        (there, away)
    }
}

/// What is left of a time.
fn left(since: Instant, of: Duration) -> Duration {
    of.saturating_sub(since.elapsed())
}

/// What of a node is a network's: all of 5,000 nodes are looked at together.
fn of_network(node: &HybridNode, network: &str) -> HybridNode {
    let pools = node.spec.pools.iter().filter(|pool| pool.network == network);
    let pools = pools.map(|pool| NodePool {
        network: pool.network.clone(),
        uplinks: Vec::new(),
    });
    let mut slim = HybridNode::new(
        &node.name_any(),
        HybridNodeSpec {
            pools: pools.collect(),
        },
    );
    slim.status = node.status.as_ref().map(|status| HybridNodeStatus {
        pools: status
            .pools
            .iter()
            .filter(|pool| pool.network == network)
            .cloned()
            .collect(),
        ..HybridNodeStatus::default()
    });
    slim
}

impl NetworkReconciler {
    /// Keeps the finalizer for as long as NICs are attached; says whether it wrote.
    async fn guard(&self, network: &HybridNetwork, in_use: bool) -> Result<bool, write::Error> {
        let Some(finalizers) = finalizers(network, in_use) else {
            return Ok(false);
        };
        write::finalizers(&Api::all(self.client.clone()), network, &finalizers).await?;
        Ok(true)
    }
}

/// Whether nothing on a node can take a NIC: its kubelet does not answer, or it is said to be off. Of one that says nothing
/// this is not known, and what its agent has published counts.
pub fn is_away(node: &Node) -> bool {
    let conditions = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let not_ready = conditions
        .filter(|condition| condition.type_ == "Ready")
        .any(|ready| ready.status != "True");
    not_ready || NodeState::of(node) == NodeState::OutOfService
}

/// The NICs that are attached to a network.
fn attached(world: &World, network: &Key) -> Vec<String> {
    let attachments = world.attachments.by(network);
    let nic = |a: &Arc<NicAttachment>| format!("{}/{}", a.namespace().unwrap_or_default(), a.spec.nic.name);
    // During a migration a NIC has two.
    attachments
        .iter()
        .map(nic)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

/// The finalizers that a network should have, where it has others.
fn finalizers(network: &HybridNetwork, in_use: bool) -> Option<Vec<String>> {
    let mut finalizers = network.finalizers().to_vec();
    let guarded = finalizers.iter().any(|finalizer| finalizer == NETWORK_FINALIZER);
    match (guarded, in_use) {
        (true, false) => finalizers.retain(|finalizer| finalizer != NETWORK_FINALIZER),
        // Nobody may add one to an object that is on its way out.
        (false, true) if network.metadata.deletion_timestamp.is_none() => {
            finalizers.push(NETWORK_FINALIZER.to_owned());
        }
        _ => return None,
    }
    Some(finalizers)
}

impl Reconciler for NetworkReconciler {
    type Kind = HybridNetwork;

    async fn reconcile(&self, network: Arc<HybridNetwork>) -> Result<Done, write::Error> {
        let name = network.name_any();
        let key = Key::Network(name.clone());
        if self.guard(&network, self.world.attachments.any(&key)).await? {
            return Ok(Done {
                wrote: true,
                again: None,
            });
        }
        let after = |rest| Done {
            wrote: false,
            again: Some(rest),
        };
        if let Some(rest) = self.rest(&name) {
            return Ok(after(rest));
        }
        let (nodes, away) = self.nodes(&name).await;
        let leaves = network.metadata.deletion_timestamp.is_some();
        let attached = if leaves {
            attached(&self.world, &key)
        } else {
            Vec::new()
        };
        let new = status(
            &network,
            Nodes {
                there: &nodes,
                away: &away,
            },
            &self.world.nics.glances(&key),
            &attached,
            Timestamp::now(),
        );
        if network.status.as_ref() != Some(&new) {
            let counts = network.status.as_ref().is_some_and(|old| {
                (&old.conditions, old.observed_generation) == (&new.conditions, new.observed_generation)
            });
            if let Some(rest) = self.counts_rest(&name).filter(|_| counts) {
                return Ok(after(rest));
            }
            write::status(&Api::all(self.client.clone()), network.as_ref(), &new).await?;
            let written = Instant::now();
            let times = Times {
                looked: written,
                written: Some(written),
            };
            self.times().insert(name, times);
            let old = network.status.clone().unwrap_or_default();
            self.events.tell(network.as_ref(), notes(&old, &new));
        }
        Ok(Done::default())
    }
}

/// The nodes of a network's pool.
#[derive(Clone, Copy)]
struct Nodes<'a> {
    /// Those whose VFs count.
    there: &'a [HybridNode],
    /// Those that are not ready.
    away: &'a [HybridNode],
}

/// The status that follows from the nodes of the network's pool and its NICs.
fn status(
    network: &HybridNetwork,
    nodes: Nodes<'_>,
    nics: &[NicGlance],
    attached: &[String],
    now: Timestamp,
) -> HybridNetworkStatus {
    let name = network.name_any();
    let pools: Vec<(&HybridNode, &PoolStatus)> = nodes
        .there
        .iter()
        .filter_map(|node| Some((node, pool(node, &name)?)))
        .collect();
    let mut vfs = VfCounts::default();
    for (_, pool) in &pools {
        vfs.total += pool.vfs.total;
        vfs.free += pool.vfs.free;
        vfs.held += pool.vfs.held;
        vfs.unhealthy += pool.vfs.unhealthy;
    }
    let on = |path: Path| count(nics.iter().filter(|nic| nic.path == path));
    let mut status = HybridNetworkStatus {
        observed_generation: network.metadata.generation,
        vfs,
        nodes: count(pools.iter().filter(|(_, pool)| pool.vfs.total > 0)),
        nics: count(nics.iter()),
        on_fast_path: on(Path::FastPath),
        on_standby: on(Path::Standby),
        conditions: network
            .status
            .as_ref()
            .map(|status| status.conditions.clone())
            .unwrap_or_default(),
    };
    let ready = if network.metadata.deletion_timestamp.is_some() {
        let message = format!(
            "{} NICs are attached to it, and it is deleted when they have left: {}",
            attached.len(),
            listed(attached.iter().cloned())
        );
        NewCondition::no(types::READY, reasons::NETWORK_IN_USE, message)
    } else {
        not_counted(ready(&status, nodes, &pools), &name, nodes.away)
    };
    for condition in [accepted(network), ready] {
        conditions::set(
            &mut status.conditions,
            network.metadata.generation,
            now,
            condition,
        );
    }
    status
}

/// What a node has of a network, while the network selects it.
fn pool<'a>(node: &'a HybridNode, network: &str) -> Option<&'a PoolStatus> {
    node.spec.pools.iter().find(|pool| pool.network == network)?;
    node.status
        .as_ref()?
        .pools
        .iter()
        .find(|pool| pool.network == network)
}

fn count<T>(items: impl Iterator<Item = T>) -> i32 {
    i32::try_from(items.count()).unwrap_or(i32::MAX)
}

fn accepted(network: &HybridNetwork) -> NewCondition {
    let none = BTreeMap::new();
    let spec = &network.spec;
    let selectors = [
        ("spec.nodeSelector", &spec.node_selector),
        ("spec.namespaceSelector", &spec.namespace_selector),
    ];
    for (field, selector) in selectors {
        if let Err(error) = selects(selector.as_ref(), &none) {
            return NewCondition::no(
                types::ACCEPTED,
                reasons::FAILED,
                format!("{field} is not valid: {error}"),
            );
        }
    }
    match spec.mac_range.as_ref().map(mac::Range::parse) {
        Some(Err(error)) => NewCondition::no(
            types::ACCEPTED,
            reasons::FAILED,
            format!("spec.macRange is not valid: {error}"),
        ),
        _ => NewCondition::yes(types::ACCEPTED, reasons::ACCEPTED, "the spec is valid"),
    }
}

fn ready(
    status: &HybridNetworkStatus,
    nodes: Nodes<'_>,
    pools: &[(&HybridNode, &PoolStatus)],
) -> NewCondition {
    let (vfs, with) = (status.vfs.total, status.nodes);
    if vfs > 0 && status.vfs.unhealthy == vfs {
        let whys = pools
            .iter()
            .filter(|(_, pool)| pool.vfs.total > 0)
            .map(|(node, pool)| match pool.message.as_str() {
                // An older agent does not say.
                "" => node.name_any(),
                why => format!("{}: {why}", node.name_any()),
            })
            .collect::<Vec<_>>();
        let message = format!("none of {vfs} VFs can be used; {}", listed(whys.into_iter()));
        return NewCondition::no(types::READY, reasons::POOL_UNHEALTHY, message);
    }
    if vfs > 0 {
        let message = format!("{vfs} VFs on {with} {}", if with == 1 { "node" } else { "nodes" });
        return NewCondition::yes(types::READY, reasons::POOL_READY, message);
    }
    let message = if nodes.there.is_empty() && !nodes.away.is_empty() {
        "none of its nodes is ready".to_owned()
    } else if nodes.there.is_empty() {
        "no node that an agent runs on matches spec.nodeSelector; label the nodes, or install the node agent"
            .to_owned()
    } else if pools.is_empty() {
        format!(
            "waits for the agents of {} to report",
            listed(nodes.there.iter().map(ResourceExt::name_any))
        )
    } else {
        let whys = pools.iter().map(|(node, pool)| match pool.message.as_str() {
            "" => node.name_any(),
            why => format!("{} ({why})", node.name_any()),
        });
        format!(
            "spec.uplinks select no VF on {}; compare with kubectl get hnode -o yaml",
            listed(whys)
        )
    };
    NewCondition::no(types::READY, reasons::POOL_EMPTY, message)
}

/// Says which nodes are not counted, as they are not ready.
fn not_counted(mut ready: NewCondition, network: &str, away: &[HybridNode]) -> NewCondition {
    let selected = |node: &&HybridNode| node.spec.pools.iter().any(|pool| pool.network == network);
    let names: Vec<_> = away.iter().filter(selected).map(ResourceExt::name_any).collect();
    if !names.is_empty() {
        let (count, they) = match names.len() {
            1 => (
                "1 node that is not ready is".to_owned(),
                listed(names.into_iter()),
            ),
            n => (
                format!("{n} nodes that are not ready are"),
                listed(names.into_iter()),
            ),
        };
        ready.message = format!("{}; {count} not counted: {they}", ready.message);
    }
    ready
}

fn listed(names: impl ExactSizeIterator<Item = String>) -> String {
    let more = names.len().saturating_sub(NAMED);
    let text = names.take(NAMED).collect::<Vec<_>>().join(", ");
    if more > 0 {
        format!("{text} and {more} more")
    } else {
        text
    }
}

fn notes(old: &HybridNetworkStatus, new: &HybridNetworkStatus) -> Vec<Note> {
    let changed = |type_: &str| {
        let now = conditions::find(&new.conditions, type_)?;
        let same = conditions::find(&old.conditions, type_).is_some_and(|before| before.reason == now.reason);
        let note = if now.status == "True" {
            Note::normal
        } else {
            Note::warning
        };
        (!same).then(|| note(now.reason.clone(), now.message.clone()))
    };
    [types::ACCEPTED, types::READY]
        .into_iter()
        .filter_map(changed)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{network, node};

    fn with_vfs(name: &str, total: i32, held: i32, message: &str) -> HybridNode {
        let mut node = node(name, &["net"]);
        let vfs = VfCounts {
            total,
            free: total - held,
            held,
            unhealthy: 0,
        };
        let pool = PoolStatus {
            network: "net".to_owned(),
            vfs,
            message: message.to_owned(),
        };
        node.status = Some(HybridNodeStatus {
            pools: vec![pool],
            ..HybridNodeStatus::default()
        });
        node
    }

    fn on(path: Path) -> NicGlance {
        NicGlance {
            path,
            ..NicGlance::default()
        }
    }

    fn there(there: &[HybridNode]) -> Nodes<'_> {
        Nodes { there, away: &[] }
    }

    fn of(nodes: &[HybridNode], nics: &[NicGlance]) -> HybridNetworkStatus {
        status(&network("net"), there(nodes), nics, &[], Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn counts_are_summed() {
        let mut left = with_vfs("n4", 9, 0, "");
        // A node that is selected no more may report what it had for a while.
        left.spec.pools.clear();
        let nodes = [
            with_vfs("n1", 7, 2, ""),
            with_vfs("n2", 7, 0, ""),
            with_vfs("n3", 0, 0, "no PF"),
            left,
        ];
        let status = of(
            &nodes,
            &[on(Path::FastPath), on(Path::Standby), on(Path::FastPath)],
        );
        assert_eq!(
            status.vfs,
            VfCounts {
                total: 14,
                free: 12,
                held: 2,
                unhealthy: 0
            }
        );
        assert_eq!(
            (status.nodes, status.nics, status.on_fast_path, status.on_standby),
            (2, 3, 2, 1)
        );
        let ready = conditions::find(&status.conditions, types::READY).unwrap();
        assert_eq!(
            (ready.reason.as_str(), ready.message.as_str()),
            (reasons::POOL_READY, "14 VFs on 2 nodes")
        );
    }

    #[test]
    fn what_is_kept_of_a_node_for_a_network_says_the_same_of_it() {
        let mut whole = with_vfs("n1", 7, 2, "why");
        whole.spec.pools.extend(node("n1", &["other"]).spec.pools);
        let pools = &mut whole.status.as_mut().unwrap().pools;
        pools.extend(with_vfs("n1", 9, 9, "").status.unwrap().pools);
        pools[1].network = "other".to_owned();
        let slim = of_network(&whole, "net");
        assert_eq!(of(std::slice::from_ref(&slim), &[]), of(&[whole], &[]));
        assert_eq!((slim.spec.pools.len(), slim.status.unwrap().pools.len()), (1, 1));
    }

    #[test]
    fn a_pool_of_which_nothing_can_be_used_is_not_ready() {
        let ready = |nodes: &[HybridNode]| {
            let status = of(nodes, &[]);
            let ready = conditions::find(&status.conditions, types::READY).unwrap();
            (ready.reason.clone(), ready.message.clone())
        };
        let why = "7 of its 7 VFs cannot be used: it has no IOMMU group";
        let mut sick = with_vfs("n1", 7, 0, why);
        let pools = &mut sick.status.as_mut().unwrap().pools;
        (pools[0].vfs.free, pools[0].vfs.unhealthy) = (0, 7);
        let (reason, message) = ready(&[sick.clone(), with_vfs("n2", 0, 0, "no PF")]);
        assert_eq!(
            (reason.as_str(), message),
            (
                reasons::POOL_UNHEALTHY,
                format!("none of 7 VFs can be used; n1: {why}")
            )
        );
        assert_eq!(ready(&[sick, with_vfs("n2", 7, 7, "")]).0, reasons::POOL_READY);
    }

    #[test]
    fn an_empty_pool_says_what_to_do() {
        let message = |nodes: &[HybridNode]| {
            let status = of(nodes, &[]);
            let ready = conditions::find(&status.conditions, types::READY).unwrap();
            assert_eq!(
                (ready.status.as_str(), ready.reason.as_str()),
                ("False", reasons::POOL_EMPTY)
            );
            ready.message.clone()
        };
        assert!(message(&[]).contains("spec.nodeSelector"));
        assert!(message(&[node("n1", &["net"])]).contains("n1"));
        let many: Vec<_> = (0..5)
            .map(|n| with_vfs(&format!("n{n}"), 0, 0, "no PF is named ens9"))
            .collect();
        let text = message(&many);
        assert!(
            text.contains("n0 (no PF is named ens9)") && text.contains("and 2 more"),
            "{text}"
        );
    }

    #[test]
    fn a_spec_that_is_not_valid_is_not_accepted() {
        let mut network = network("net");
        let odd = serde_json::json!({"matchExpressions": [{"key": "zone", "operator": "Near"}]});
        network.spec.node_selector = serde_json::from_value(odd).ok();
        let status = status(&network, there(&[]), &[], &[], Timestamp::UNIX_EPOCH);
        let accepted = conditions::find(&status.conditions, types::ACCEPTED).unwrap();
        assert_eq!(accepted.status, "False");
        assert!(
            accepted.message.contains("spec.nodeSelector"),
            "{}",
            accepted.message
        );
        assert_eq!(notes(&HybridNetworkStatus::default(), &status).len(), 2);
        assert_eq!(notes(&status, &status), []);
    }

    #[test]
    fn a_network_stays_while_nics_are_attached_to_it() {
        let mut network = network("net");
        network.metadata.finalizers = Some(vec!["other".to_owned()]);
        assert_eq!(finalizers(&network, false), None);
        let guarded = finalizers(&network, true).unwrap();
        assert_eq!(guarded, ["other", NETWORK_FINALIZER]);
        network.metadata.finalizers = Some(guarded);
        assert_eq!(finalizers(&network, true), None);
        assert_eq!(finalizers(&network, false).unwrap(), ["other"]);

        network.metadata.deletion_timestamp = network.metadata.creation_timestamp.clone();
        assert_eq!(finalizers(&network, true), None);
        let names: Vec<_> = (0..5).map(|n| format!("ns/eth{n}")).collect();
        let status = status(
            &network,
            there(&[with_vfs("n1", 7, 5, "")]),
            &[],
            &names,
            Timestamp::UNIX_EPOCH,
        );
        let ready = conditions::find(&status.conditions, types::READY).unwrap();
        assert_eq!(
            (ready.reason.as_str(), ready.message.as_str()),
            (
                reasons::NETWORK_IN_USE,
                "5 NICs are attached to it, and it is deleted when they have left: ns/eth0, ns/eth1, ns/eth2 and 2 more"
            )
        );
        assert!(notes(&HybridNetworkStatus::default(), &status)[1].warning);
        // It is let go of, whatever else still names it.
        assert_eq!(finalizers(&network, false).unwrap(), ["other"]);
    }

    #[test]
    fn nodes_that_are_not_ready_are_not_counted() {
        let away = [with_vfs("n8", 7, 0, ""), with_vfs("n9", 7, 7, "")];
        let of = |there: &[HybridNode], away: &[HybridNode]| {
            let nodes = Nodes { there, away };
            let status = status(&network("net"), nodes, &[], &[], Timestamp::UNIX_EPOCH);
            let ready = conditions::find(&status.conditions, types::READY).unwrap();
            (
                status.vfs.total,
                status.nodes,
                ready.reason.clone(),
                ready.message.clone(),
            )
        };
        let (total, nodes, reason, message) = of(&[with_vfs("n1", 7, 0, "")], &away);
        assert_eq!((total, nodes, reason.as_str()), (7, 1, reasons::POOL_READY));
        assert_eq!(
            message,
            "7 VFs on 1 node; 2 nodes that are not ready are not counted: n8, n9"
        );
        let (total, _, reason, message) = of(&[], &away[..1]);
        assert_eq!((total, reason.as_str()), (0, reasons::POOL_EMPTY));
        assert_eq!(
            message,
            "none of its nodes is ready; 1 node that is not ready is not counted: n8"
        );
    }

    #[test]
    fn a_node_is_away_when_something_says_so() {
        let node = |value| serde_json::from_value::<Node>(value).unwrap();
        let ready = |status: &str| {
            node(serde_json::json!({"status": {"conditions": [{"type": "Ready", "status": status}]}}))
        };
        assert!(!is_away(&ready("True")));
        assert!(is_away(&ready("False")) && is_away(&ready("Unknown")));
        assert!(!is_away(&node(serde_json::json!({}))), "it is not known");
        let taint = serde_json::json!({"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"});
        assert!(is_away(&node(serde_json::json!({"spec": {"taints": [taint]}}))));
    }
}
