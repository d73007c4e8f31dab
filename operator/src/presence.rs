//! Whether a node can take a NIC: its kubelet answers, and its agent is there. Only counts and the choice of a migration's target
//! depend on it; nothing is taken from a node because of it.
//!
//! An agent writes nothing while nothing changes, so its silence says nothing. Its kubelet records whether its pod is ready, and
//! writes only when that changes, so watching the pods costs no write at all, no matter how many nodes there are. An agent that is
//! restarted is missing for a moment, so it counts as away only when its pod has not been ready for a while, by this process's own
//! clock; an operator that takes over starts to count again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hybridnic_api::v1alpha1::Goal;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Serialize};

use crate::cache::{self, Cache, Key, Object};
use crate::fence::NodeState;
use crate::kinds::Watched;
use crate::triggers::Triggers;
use crate::watches::Watches;

/// Where the agents' pods are found, and how long one may not be ready.
#[derive(Clone, Debug)]
pub struct AgentPods {
    /// The namespace that they are in.
    pub namespace: String,
    /// Their labels.
    pub labels: String,
    /// How long an agent that is not ready still counts as there.
    pub patience: Duration,
}

/// A pod of an agent: its node, and whether it is ready.
#[derive(Clone, Debug, Resource, Serialize, Deserialize)]
#[resource(inherit = Pod)]
pub struct AgentPod {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    node_name: String,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Status {
    #[serde(default)]
    conditions: Vec<PodCondition>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct PodCondition {
    #[serde(rename = "type")]
    type_: String,
    status: String,
}

impl AgentPod {
    /// Its node; empty before it has one.
    pub fn node(&self) -> &str {
        &self.spec.node_name
    }

    /// Whether its kubelet says that it is ready.
    pub fn is_ready(&self) -> bool {
        let mut conditions = self.status.conditions.iter();
        conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
    }
}

impl Object for AgentPod {
    type Glance = bool;

    fn keys(&self) -> Vec<Key> {
        vec![Key::Node(self.node().to_owned())]
    }

    fn glance(&self) -> bool {
        self.is_ready()
    }

    fn trim(&mut self) {
        self.metadata.labels = None;
        self.metadata.owner_references = None;
        self.metadata.finalizers = None;
        self.status
            .conditions
            .retain(|condition| condition.type_ == "Ready");
    }
}

/// VFs of a node whose agent is away do not count, and what is to leave it stays.
impl Watched for AgentPod {
    fn changed(triggers: &Triggers, old: Option<&Self>, new: Option<&Self>) {
        let seen = |pod: &Self| (pod.node().to_owned(), pod.is_ready());
        if old.map(seen) == new.map(seen) {
            return;
        }
        let world = &triggers.world;
        for pod in [old, new].into_iter().flatten() {
            // It is waited for from now on.
            world.agents.presence_of(pod.node(), Instant::now());
            if let Some(node) = world.hybrid_nodes.get("", pod.node()) {
                triggers.networks_of(&node);
            }
            // NICs that are to leave the node wait for it.
            for attachment in world.attachments.by(&Key::Node(pod.node().to_owned())) {
                if attachment.spec.goal == Goal::Detached {
                    triggers.nic_of(&attachment);
                }
            }
        }
    }
}

/// Whether nothing on a node can take a NIC: its kubelet does not answer, or it is said to be off. For a node that says
/// nothing this is not known, and what its agent has published counts.
pub fn is_off(node: &Node) -> bool {
    let conditions = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let not_ready = conditions
        .filter(|condition| condition.type_ == "Ready")
        .any(|ready| ready.status != "True");
    not_ready || NodeState::of(node) == NodeState::OutOfService
}

/// Whether a node can take a NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It can, as far as is known.
    There,
    /// Its agent is not there, and is still waited for, this long.
    Awaited(Duration),
    /// Its agent has not been there for a while.
    NoAgent,
    /// It is not ready, or said to be off.
    NotReady,
}

impl Presence {
    /// Whether it cannot.
    pub fn is_away(self) -> bool {
        matches!(self, Self::NoAgent | Self::NotReady)
    }
}

/// What is known of the agents of all nodes. Clones share it.
#[derive(Clone)]
pub struct Agents {
    /// Without a patience it is not known where their pods are.
    patience: Option<Duration>,
    pods: Cache<AgentPod>,
    missing: Arc<Mutex<HashMap<String, Instant>>>,
}

impl Agents {
    /// The agents whose pods are in `pods`; without `patience` nothing is known about them.
    fn new(patience: Option<Duration>, pods: Cache<AgentPod>) -> Self {
        Self {
            patience,
            pods,
            missing: Arc::default(),
        }
    }

    /// The agents whose pods are found there, by a watch of their own. Nothing is known about them if no option says where.
    pub fn watched(watches: &mut Watches, pods: Option<&AgentPods>) -> Self {
        match pods {
            Some(pods) => Self::new(Some(pods.patience), watches.of(&pods.namespace, &pods.labels)),
            None => Self::new(None, cache::cache().0),
        }
    }

    /// Whether a node can take a NIC, going by its agent.
    pub fn presence_of(&self, node: &str, now: Instant) -> Presence {
        let Some(patience) = self.patience else {
            return Presence::There;
        };
        let ready = self.pods.glances(&Key::Node(node.to_owned())).contains(&true);
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if ready {
            missing.remove(node);
            return Presence::There;
        }
        let since = *missing.entry(node.to_owned()).or_insert(now);
        match patience.checked_sub(now.saturating_duration_since(since)) {
            Some(left) if !left.is_zero() => Presence::Awaited(left),
            _ => Presence::NoAgent,
        }
    }

    /// A node is gone.
    pub fn forget(&self, node: &str) {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        missing.remove(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::runtime::watcher::Event;
    use serde_json::json;

    const MINUTE: Duration = Duration::from_mins(1);

    fn pod(name: &str, node: Option<&str>, ready: Option<&str>) -> AgentPod {
        let conditions = ready.map(|status| json!([{"type": "Ready", "status": status, "message": "long"}]));
        let mut pod = json!({
            "metadata": {"name": name, "namespace": "ns", "resourceVersion": "1", "labels": {"large": "label"}},
            "spec": {"containers": [{"image": "large"}]},
            "status": {"phase": "Running"},
        });
        if let Some(node) = node {
            pod["spec"]["nodeName"] = json!(node);
        }
        if let Some(conditions) = conditions {
            pod["status"]["conditions"] = conditions;
        }
        serde_json::from_value(pod).unwrap()
    }

    /// Agents with these pods.
    fn agents(patience: Option<Duration>, pods: Vec<AgentPod>) -> Agents {
        let (cache, mut feed) = cache::cache();
        let agents = Agents::new(patience, cache);
        for pod in pods {
            feed.apply(Event::Apply(pod.into()), &|_, _| {});
        }
        agents
    }

    #[test]
    fn a_node_is_off_when_something_says_so() {
        let node = |value| serde_json::from_value::<Node>(value).unwrap();
        let ready =
            |status: &str| node(json!({"status": {"conditions": [{"type": "Ready", "status": status}]}}));
        assert!(!is_off(&ready("True")));
        assert!(is_off(&ready("False")) && is_off(&ready("Unknown")));
        assert!(!is_off(&node(json!({}))), "it is not known");
        let taint = json!({"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"});
        assert!(is_off(&node(json!({"spec": {"taints": [taint]}}))));
    }

    #[test]
    fn little_is_kept_of_a_pod() {
        let mut pod = pod("a", Some("n1"), Some("True"));
        pod.trim();
        let left = serde_json::to_string(&pod).unwrap();
        assert!(!left.contains("large") && !left.contains("long"), "{left}");
        assert!(pod.is_ready() && pod.node() == "n1");
    }

    #[test]
    fn without_knowing_their_pods_all_are_there() {
        let agents = agents(None, Vec::new());
        assert_eq!(agents.presence_of("n1", Instant::now()), Presence::There);
        assert_eq!(
            agents.presence_of("n1", Instant::now() + 60 * MINUTE),
            Presence::There
        );
    }

    #[test]
    fn an_agent_is_away_only_after_a_while() {
        let pods = vec![
            // A roll-out: the old one goes, the new one is there already.
            pod("old", Some("n1"), Some("False")),
            pod("new", Some("n1"), Some("True")),
            pod("sick", Some("n2"), Some("False")),
            pod("young", Some("n3"), None),
            pod("nowhere", None, None),
        ];
        let (agents, now) = (agents(Some(2 * MINUTE), pods), Instant::now());
        for node in ["n2", "n3", "n4"] {
            assert_eq!(
                agents.presence_of(node, now),
                Presence::Awaited(2 * MINUTE),
                "{node}"
            );
            assert_eq!(
                agents.presence_of(node, now + MINUTE),
                Presence::Awaited(MINUTE),
                "{node}"
            );
            assert_eq!(
                agents.presence_of(node, now + 2 * MINUTE),
                Presence::NoAgent,
                "{node}"
            );
        }
        assert_eq!(agents.presence_of("n1", now + 9 * MINUTE), Presence::There);
        agents.forget("n4");
        assert_eq!(
            agents.presence_of("n4", now + 9 * MINUTE),
            Presence::Awaited(2 * MINUTE)
        );
    }

    #[test]
    fn one_that_comes_back_is_there_at_once_and_is_waited_for_anew() {
        let (cache, mut feed) = cache::cache();
        let agents = Agents::new(Some(2 * MINUTE), cache);
        let now = Instant::now();
        let mut say = |ready: &str, version: &str| {
            let mut pod = pod("a", Some("n1"), Some(ready));
            pod.metadata.resource_version = Some(version.to_owned());
            feed.apply(Event::Apply(pod.into()), &|_, _| {});
        };
        say("False", "1");
        assert_eq!(agents.presence_of("n1", now), Presence::Awaited(2 * MINUTE));
        assert_eq!(agents.presence_of("n1", now + 3 * MINUTE), Presence::NoAgent);
        say("True", "2");
        assert_eq!(agents.presence_of("n1", now + 4 * MINUTE), Presence::There);
        say("False", "3");
        assert_eq!(
            agents.presence_of("n1", now + 5 * MINUTE),
            Presence::Awaited(2 * MINUTE)
        );
    }
}
