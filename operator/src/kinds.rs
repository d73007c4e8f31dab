//! What the caches hold of each kind, and what it is looked up by.

use std::net::IpAddr;

use hybridnic_api::conditions::{self, reasons, types};
use hybridnic_api::names::VM_LABEL;
use hybridnic_api::v1alpha1::{
    HybridNetwork, HybridNode, NicAttachment, NicPhase, Path, PfStatus, QemuMigration, VmHybridNic,
};
use k8s_openapi::api::core::v1::{
    Namespace, Node, NodeCondition, NodeSpec, NodeStatus, Pod, PodSpec, PodStatus,
};
use kube::ResourceExt;
use kube::core::PartialObjectMeta;

use crate::cache::{Key, Object};
use crate::fence::OUT_OF_SERVICE;
use crate::moves::{self, Stage};
use crate::nic::release::is_held;
use crate::pods;
use crate::presence;
use crate::version::{self, Support};
use crate::vm::VmRef;

/// Of a node only its labels and addresses matter, whether it is ready, and whether it is said to be off; at a glance, whether
/// nothing on it can take a NIC.
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

/// Of a namespace only its labels matter.
impl Object for PartialObjectMeta<Namespace> {
    type Glance = ();

    fn keys(&self) -> Vec<Key> {
        Vec::new()
    }

    fn glance(&self) {}

    fn trim(&mut self) {
        bare(self);
    }
}

/// Of a pod only its VM, node, phase and addresses matter. One that a node owns has no VM, whatever its labels say: see
/// [`pods::is_of_node`].
impl Object for Pod {
    type Glance = ();

    fn keys(&self) -> Vec<Key> {
        VmRef::of_pod(self).map(Key::Vm).into_iter().collect()
    }

    fn glance(&self) {}

    fn trim(&mut self) {
        let of_node = pods::is_of_node(self);
        bare(self);
        self.labels_mut().retain(|label, _| label == VM_LABEL && !of_node);
        self.spec = self.spec.take().map(|spec| PodSpec {
            node_name: spec.node_name,
            ..PodSpec::default()
        });
        self.status = self.status.take().map(|status| PodStatus {
            phase: status.phase,
            pod_ip: status.pod_ip,
            // Of most pods it would be the same one again.
            pod_ips: status.pod_ips.filter(|ips| ips.len() > 1),
            ..PodStatus::default()
        });
    }
}

impl Object for HybridNetwork {
    type Glance = ();

    fn keys(&self) -> Vec<Key> {
        Vec::new()
    }

    fn glance(&self) {}

    fn trim(&mut self) {
        unread(self);
    }
}

/// What is known of a node's agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Agent {
    /// This operator works with its version.
    Supported,
    /// It does not.
    Unsupported,
    /// The agent has not said its version yet.
    Unknown,
}

/// Of a node its pools matter, and the MACs of its PFs; not the VFs in them.
impl Object for HybridNode {
    type Glance = Agent;

    fn keys(&self) -> Vec<Key> {
        let pools = self.status.iter().flat_map(|status| &status.pools);
        let reported = pools.map(|pool| &pool.network);
        let selected = self.spec.pools.iter().map(|pool| &pool.network);
        let mut networks: Vec<_> = selected.chain(reported).collect();
        networks.sort();
        networks.dedup();
        let networks = networks.into_iter().cloned().map(Key::Network);
        networks.chain(macs_of(self).map(Key::Mac)).collect()
    }

    fn glance(&self) -> Agent {
        match version::of_agent(self) {
            Support::Yes => Agent::Supported,
            Support::No(_) => Agent::Unsupported,
            Support::Unknown => Agent::Unknown,
        }
    }

    fn trim(&mut self) {
        unread(self);
        if let Some(status) = &mut self.status {
            let macs = std::mem::take(&mut status.pfs)
                .into_iter()
                .filter_map(|pf| pf.mac);
            let bare = |mac| PfStatus {
                mac: Some(mac),
                ..PfStatus::default()
            };
            status.pfs = macs.map(bare).collect();
        }
    }
}

/// The MACs of a node's PFs, lower case.
pub fn macs_of(node: &HybridNode) -> impl Iterator<Item = String> {
    let pfs = node.status.iter().flat_map(|status| &status.pfs);
    pfs.filter_map(|pf| Some(pf.mac.as_ref()?.to_ascii_lowercase()))
}

/// What of NICs is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NicGlance {
    /// What carries its traffic.
    pub path: Path,
    /// Where it is in its life.
    pub phase: NicPhase,
    /// Whether it waits for a node that does not answer.
    pub lost: bool,
}

impl Object for VmHybridNic {
    type Glance = NicGlance;

    fn keys(&self) -> Vec<Key> {
        let status = self.status.as_ref();
        let has = status.and_then(|status| status.mac.as_ref());
        let macs = self.spec.mac.iter().chain(has);
        let mut macs: Vec<_> = macs.map(|mac| mac.to_ascii_lowercase()).collect();
        macs.dedup();
        let mut keys: Vec<_> = macs.into_iter().map(Key::Mac).collect();
        keys.push(Key::Namespace(namespace(self)));
        keys.push(Key::Network(self.spec.network.clone()));
        keys.extend(VmRef::of_nic(self).map(Key::Vm));
        keys.extend(status.and_then(|status| status.node_name.clone()).map(Key::Node));
        keys
    }

    fn glance(&self) -> NicGlance {
        let Some(status) = &self.status else {
            return NicGlance::default();
        };
        let ready = conditions::find(&status.conditions, types::READY);
        NicGlance {
            path: status.path,
            phase: status.phase,
            lost: ready.is_some_and(|ready| ready.reason == reasons::NODE_UNREACHABLE),
        }
    }

    fn trim(&mut self) {
        unread(self);
    }
}

/// At a glance, whether it was deleted and its agent keeps it.
impl Object for NicAttachment {
    type Glance = bool;

    fn keys(&self) -> Vec<Key> {
        let spec = &self.spec;
        vec![
            Key::Nic(namespace(self), spec.nic.name.clone()),
            Key::Vm(VmRef::of_attachment(self)),
            Key::Node(spec.node_name.clone()),
            Key::Network(spec.network.clone()),
        ]
    }

    fn glance(&self) -> bool {
        is_held(self)
    }

    fn trim(&mut self) {
        unread(self);
        if let Some(status) = &mut self.status {
            status.timeline = Vec::new();
        }
    }
}

/// At a glance, its stage; none before it begins.
impl Object for QemuMigration {
    type Glance = Option<Stage>;

    fn keys(&self) -> Vec<Key> {
        let status = self.status.iter();
        let ends = status
            .flat_map(|status| [&status.source, &status.target])
            .flatten();
        let mut keys: Vec<_> = ends.map(|end| Key::Node(end.node_name.clone())).collect();
        keys.dedup();
        keys.push(Key::Vm(VmRef::of_migration(self)));
        keys
    }

    fn glance(&self) -> Option<Stage> {
        moves::qemu::stage(moves::qemu::phase(self))
    }

    fn trim(&mut self) {
        unread(self);
    }
}

fn namespace(object: &impl ResourceExt) -> String {
    object.namespace().unwrap_or_default()
}

/// What nobody reads of our kinds. Their finalizers are written as a whole, so all of them are kept.
fn unread(object: &mut impl ResourceExt) {
    let meta = object.meta_mut();
    meta.labels = None;
    meta.owner_references = None;
    meta.generate_name = None;
    meta.self_link = None;
}

/// What belongs to other programs.
fn bare(object: &mut impl ResourceExt) {
    let meta = object.meta_mut();
    meta.owner_references = None;
    meta.finalizers = None;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fence::NodeState;
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

    #[test]
    fn a_pod_that_a_node_owns_is_no_vms() {
        let mut pod = crate::testing::pod("web-x-n2", "vm", 1, "Running", "n2");
        pod.trim();
        assert_eq!(pod.keys(), [Key::Vm(VmRef::qemu("ns", "vm"))]);
        let owner =
            json!([{"apiVersion": "v1", "kind": "Node", "name": "n2", "uid": "u", "controller": true}]);
        pod.metadata.owner_references = serde_json::from_value(owner).unwrap();
        pod.trim();
        assert_eq!(pod.keys(), []);
        // Nor is it once more.
        pod.trim();
        assert_eq!(pod.keys(), []);
    }
}
