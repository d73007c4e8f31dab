//! Whether a pod and everything that its node had for it has ended, when they do not say so themselves. Pure.
//!
//! A pod object that has disappeared proves nothing: its kubelet may have deleted it once all containers had ended, or somebody
//! may have deleted it by force while they ran. Kubernetes does not tell the two apart. An end is proven by the kubelet's report, by
//! the agent's, or by a *fence*: somebody has said that the node is off, in the way that Kubernetes itself uses for volumes.
//!
//! | node | pod object | [`PodEnd`] |
//! |---|---|---|
//! | any | its kubelet says that the containers have ended | `Ended` |
//! | deleted | any other | `Fenced` |
//! | any other | there | `Alive` |
//! | out of service | gone | `Fenced` |
//! | any other | gone | `Unknown` |

pub mod lookup;

use std::sync::Arc;

use hybridnic_api::v1alpha1::{AttachmentState, Goal, NicAttachment};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};

use crate::{attachment, pods};

/// The taint by which a person, or a program that switches machines off, says that a node is off. Kubernetes takes volumes
/// from such a node without asking it, whatever the taint's value and effect.
pub const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// What is known of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// Its kubelet answers.
    Ready,
    /// Its kubelet is not ready, or not heard of, since then.
    NotReady(Option<Timestamp>),
    /// It is said to be off, by [`OUT_OF_SERVICE`].
    OutOfService,
    /// The API server says that there is no such node.
    Deleted,
    /// It is not in the cache, and the API server has not said that it is gone.
    Unknown,
}

impl NodeState {
    /// What a node's object says about it.
    pub fn of(node: &Node) -> Self {
        let mut taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
        if taints.any(|taint| taint.key == OUT_OF_SERVICE) {
            return Self::OutOfService;
        }
        let conditions = node.status.iter().flat_map(|status| &status.conditions);
        let ready = conditions.flatten().find(|condition| condition.type_ == "Ready");
        match ready {
            Some(ready) if ready.status == "True" => Self::Ready,
            ready => {
                let since = ready.and_then(|ready| ready.last_transition_time.as_ref());
                Self::NotReady(since.map(|since| since.0))
            }
        }
    }

    /// Whether it is proven, or was said, to be off.
    pub fn is_fenced(&self) -> bool {
        matches!(self, Self::OutOfService | Self::Deleted)
    }
}

/// What is known of a pod's processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodEnd {
    /// Nothing says that they have ended.
    Alive,
    /// Its kubelet says that all containers have ended.
    Ended,
    /// The pod's object is gone, which proves nothing.
    Unknown,
    /// The node is off, and they with it.
    Fenced,
}

impl PodEnd {
    /// What is known of the pod of this uid, whose node is as `node` says. `pods` holds it, if it is there.
    pub fn of(pods: &[Arc<Pod>], uid: &str, node: &NodeState) -> Self {
        let pod = pods.iter().find(|pod| pod.metadata.uid.as_deref() == Some(uid));
        match (pod, node) {
            (Some(pod), _) if pods::is_finished(pod) => Self::Ended,
            (_, NodeState::Deleted) | (None, NodeState::OutOfService) => Self::Fenced,
            (Some(_), _) => Self::Alive,
            (None, _) => Self::Unknown,
        }
    }

    /// Whether they are proven to have ended.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Ended | Self::Fenced)
    }
}

/// Whether no agent will ever take an attachment back: its node is off, and its pod over.
pub fn is_abandoned(pod: PodEnd, node: &NodeState) -> bool {
    node.is_fenced() && pod.is_over()
}

/// Whether an attachment is on its way out: it is told to detach, or is being deleted.
pub fn leaves(attachment: &NicAttachment) -> bool {
    attachment.spec.goal == Goal::Detached || attachment.metadata.deletion_timestamp.is_some()
}

/// Whether the agent says, about the current attachment, that none of its parts is left on the node.
pub fn is_detached(attachment: &NicAttachment) -> bool {
    leaves(attachment)
        && attachment::is_current(attachment)
        && attachment::state(attachment) == AttachmentState::Detached
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Node;
    use serde_json::json;

    use super::*;
    use crate::testing::{attachment, meta, observe, pod};

    fn node(ready: Option<&str>, taint: Option<&str>) -> NodeState {
        let at = "2026-01-01T00:00:00Z";
        let ready = ready.map(|status| json!({"type": "Ready", "status": status, "lastTransitionTime": at}));
        let taint = taint.map(|effect| json!({"key": OUT_OF_SERVICE, "effect": effect}));
        let other = json!({"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"});
        let taints: Vec<_> = taint.into_iter().chain([other]).collect();
        let pressure = json!({"type": "MemoryPressure", "status": "True"});
        let conditions: Vec<_> = [pressure].into_iter().chain(ready).collect();
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n1"}, "spec": {"taints": taints}, "status": {"conditions": conditions},
        }))
        .unwrap();
        NodeState::of(&node)
    }

    #[test]
    fn a_node_is_ready_or_not_or_said_to_be_off() {
        let since = Some("2026-01-01T00:00:00Z".parse().unwrap());
        assert_eq!(node(Some("True"), None), NodeState::Ready);
        assert_eq!(node(Some("Unknown"), None), NodeState::NotReady(since));
        assert_eq!(node(Some("False"), None), NodeState::NotReady(since));
        assert_eq!(
            node(None, None),
            NodeState::NotReady(None),
            "it has never said so"
        );
        assert_eq!(NodeState::of(&Node::default()), NodeState::NotReady(None));
        for effect in ["NoExecute", "NoSchedule"] {
            assert_eq!(node(Some("Unknown"), Some(effect)), NodeState::OutOfService);
        }
    }

    #[test]
    fn a_pod_is_over_by_proof_only() {
        use NodeState::{Deleted, NotReady, OutOfService, Ready, Unknown};
        use PodEnd::{Alive, Ended, Fenced, Unknown as NotKnown};
        let running = [Arc::new(pod("a", "vm", 1, "Running", "n1"))];
        let mut leaving = pod("a", "vm", 1, "Running", "n1");
        leaving
            .metadata
            .deletion_timestamp
            .clone_from(&meta("a", 5).creation_timestamp);
        let leaving = [Arc::new(leaving)];
        let unheard = [Arc::new(pod("a", "vm", 1, "Unknown", "n1"))];
        let failed = [Arc::new(pod("a", "vm", 1, "Failed", "n1"))];
        let namesake = [Arc::new({
            let mut pod = pod("a", "vm", 1, "Failed", "n1");
            pod.metadata.uid = Some("another".to_owned());
            pod
        })];
        let nodes = [Ready, NotReady(None), Unknown, OutOfService, Deleted];
        let of = |pods: &[Arc<Pod>]| nodes.each_ref().map(|node| PodEnd::of(pods, "a-uid", node));
        for pods in [&running, &leaving, &unheard] {
            assert_eq!(of(pods), [Alive, Alive, Alive, Alive, Fenced], "{pods:?}");
        }
        assert_eq!(of(&failed), [Ended; 5]);
        for pods in [&[][..], &namesake] {
            assert_eq!(
                of(pods),
                [NotKnown, NotKnown, NotKnown, Fenced, Fenced],
                "{pods:?}"
            );
        }
    }

    #[test]
    fn an_agent_is_not_waited_for_only_where_its_node_is_off() {
        let ends = [PodEnd::Alive, PodEnd::Unknown, PodEnd::Ended, PodEnd::Fenced];
        let of = |node: NodeState| ends.map(|end| is_abandoned(end, &node));
        assert_eq!(of(NodeState::Ready), [false; 4]);
        assert_eq!(of(NodeState::NotReady(None)), [false; 4]);
        assert_eq!(of(NodeState::Unknown), [false; 4]);
        assert_eq!(of(NodeState::OutOfService), [false, false, true, true]);
        assert_eq!(of(NodeState::Deleted), [false, false, true, true]);
    }

    #[test]
    fn only_what_the_agent_says_of_the_last_goal_counts() {
        let mut there = attachment("eth0", "a", "n1");
        assert!(!is_detached(&there));
        observe(&mut there, AttachmentState::Detached);
        assert!(!is_detached(&there), "it is to be there, and will be");
        there.spec.goal = Goal::Detached;
        assert!(is_detached(&there));
        there.metadata.generation = Some(2);
        assert!(!is_detached(&there), "said of an older goal");
        there.spec.goal = Goal::FastPath;
        there.metadata.deletion_timestamp = there.metadata.creation_timestamp.clone();
        assert!(!is_detached(&there));
        observe(&mut there, AttachmentState::Detached);
        assert!(is_detached(&there), "what is deleted leaves");
        there.status.as_mut().unwrap().observed_generation = None;
        assert!(!is_detached(&there));
    }
}
