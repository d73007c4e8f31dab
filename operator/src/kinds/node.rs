//! `Node`.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Node, NodeCondition, NodeSpec, NodeStatus};
use kube::ResourceExt;

use super::{Watched, bare};
use crate::cache::{Key, Name, Object};
use crate::fence::{NodeState, OUT_OF_SERVICE};
use crate::presence;
use crate::queue::Urgency;
use crate::triggers::Triggers;

/// Only its labels and addresses matter, whether it is ready, and whether it is said to be off; at a glance, whether nothing on it
/// can take a NIC.
impl Object for Node {
    type Glance = bool;

    fn keys(&self) -> Vec<Key> {
        let addresses = self
            .status
            .iter()
            .flat_map(|status| status.addresses.iter().flatten());
        let addresses = addresses.filter_map(|address| address.address.parse::<IpAddr>().ok());
        let mut keys: Vec<_> = addresses.map(|ip| Key::Address(ip.to_canonical())).collect();
        keys.dedup();
        keys
    }

    fn glance(&self) -> bool {
        presence::is_off(self)
    }

    fn trim(&mut self) {
        bare(self);
        let taints = self.spec.take().and_then(|spec| spec.taints).unwrap_or_default();
        let off: Vec<_> = taints
            .into_iter()
            .filter(|taint| taint.key == OUT_OF_SERVICE)
            .collect();
        self.spec = (!off.is_empty()).then(|| NodeSpec {
            taints: Some(off),
            ..NodeSpec::default()
        });
        let status = self.status.take().unwrap_or_default();
        let mut conditions = status.conditions.unwrap_or_default().into_iter();
        let ready = conditions.find(|condition| condition.type_ == "Ready");
        let ready = ready.map(|ready| NodeCondition {
            type_: ready.type_,
            status: ready.status,
            last_transition_time: ready.last_transition_time,
            ..NodeCondition::default()
        });
        self.status = Some(NodeStatus {
            conditions: ready.map(|ready| vec![ready]),
            addresses: status.addresses,
            ..NodeStatus::default()
        });
    }
}

impl Watched for Node {
    fn changed(triggers: &Triggers, old: Option<&Self>, new: Option<&Self>) {
        let Some(name) = new.or(old).map(ResourceExt::name_any) else {
            return;
        };
        // A kubelet's heartbeat is no news.
        if old.map(ResourceExt::labels) != new.map(ResourceExt::labels) {
            let node = Name::new("", &name);
            triggers.queues.hybrid_nodes.add(node, Urgency::Usual);
        }
        if old.map(NodeState::of) == new.map(NodeState::of) {
            return;
        }
        // What waits for the node may go on without it, or with it again.
        for attachment in triggers.world.attachments.by(&Key::Node(name.clone())) {
            triggers.nic_of(&attachment);
            triggers.release(&attachment);
        }
        triggers.moves_on(&name);
        // Nor do its VFs count while it is not ready.
        if let Some(node) = triggers.world.hybrid_nodes.get("", &name) {
            triggers.networks_of(&node);
        }
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
                "status": {"addresses": [{"type": "InternalIP", "address": "::ffff:192.168.1.2"}, {"type": "Hostname", "address": "n1"}],
                    "images": [{"names": ["large"]}], "conditions": [
                    {"type": "DiskPressure", "status": "False", "message": "long"},
                    {"type": "Ready", "status": ready, "message": "long", "lastTransitionTime": "2026-01-01T00:00:00Z"},
                ]},
            }))
            .unwrap();
            let before = NodeState::of(&node);
            node.trim();
            assert_eq!(NodeState::of(&node), before);
            assert_eq!(node.keys(), [Key::Address("192.168.1.2".parse().unwrap())]);
            let left = serde_json::to_string(&node).unwrap();
            for gone in ["large", "long", "10.0.0.0", "DiskPressure", "\"a\""] {
                assert!(!left.contains(gone), "{left}");
            }
        }
    }
}
