//! `Pod`, in which QEMU runs: a user's, or KubeVirt's.

use hybridnic_api::foreign::kubevirt::{CREATED_BY_LABEL, MIGRATION_LABEL, NAME_LABEL, POD_LABEL};
use hybridnic_api::names::VM_LABEL;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus, ResourceRequirements};
use kube::ResourceExt;

use super::{Watched, bare};
use crate::cache::{Key, Object};
use crate::pods;
use crate::triggers::Triggers;
use crate::vm::VmRef;

/// By these it is known what it runs.
const LABELS: [&str; 5] = [VM_LABEL, POD_LABEL, NAME_LABEL, CREATED_BY_LABEL, MIGRATION_LABEL];

/// Only its VM, node, phase, addresses and the devices of ours that it requests matter. A pod that a node owns has no VM, no matter what
/// its labels say: see [`pods::is_of_node`].
impl Object for Pod {
    type Glance = ();

    fn keys(&self) -> Vec<Key> {
        VmRef::of_pod(self).map(Key::Vm).into_iter().collect()
    }

    fn glance(&self) {}

    fn trim(&mut self) {
        let of_node = pods::is_of_node(self);
        bare(self);
        self.labels_mut()
            .retain(|label, _| LABELS.contains(&label.as_str()) && !of_node);
        self.spec = self.spec.take().map(|spec| PodSpec {
            node_name: spec.node_name,
            containers: that_request(spec.containers),
            init_containers: spec.init_containers.map(that_request),
            // For most pods it would be another, and nothing more needs to be known.
            restart_policy: spec.restart_policy.filter(|policy| policy == "Never"),
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

/// The containers that request devices of ours, and only that part of them.
fn that_request(containers: Vec<Container>) -> Vec<Container> {
    let bare = |container: Container| {
        let mut limits = container.resources?.limits?;
        limits.retain(|resource, _| pods::is_ours(resource));
        (!limits.is_empty()).then(|| Container {
            resources: Some(ResourceRequirements {
                limits: Some(limits),
                ..ResourceRequirements::default()
            }),
            ..Container::default()
        })
    };
    containers.into_iter().filter_map(bare).collect()
}

impl Watched for Pod {
    const LABEL: Option<&'static str> = Some(VM_LABEL);

    fn changed(triggers: &Triggers, old: Option<&Self>, new: Option<&Self>) {
        for pod in [old, new].into_iter().flatten() {
            if let Some(vm) = VmRef::of_pod(pod) {
                triggers.vm(&vm);
                for attachment in triggers.world.attachments_of_vm(&vm) {
                    triggers.release(&attachment);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_pod_requests_is_known_and_no_more_of_its_containers() {
        let mut pod = crate::testing::pod("a", "vm", 1, "Running", "n2");
        pod.spec = None;
        assert_eq!(pods::requested(&pod, "fast"), None, "nothing is known of it");
        let limits =
            |limits: serde_json::Value| json!({"name": "c", "image": "i", "resources": {"limits": limits}});
        let spec = json!({
            "nodeName": "n2",
            "containers": [limits(json!({"cpu": "1", "hybridnic.io/fast": "1"})), limits(json!({"hybridnic.io/fast": "2"}))],
            "initContainers": [limits(json!({"hybridnic.io/slow": "1", "memory": "1Gi"})), {"name": "d"}],
        });
        pod.spec = serde_json::from_value(spec).unwrap();
        let counts = |pod: &Pod| ["fast", "slow", "other"].map(|network| pods::requested(pod, network));
        assert_eq!(counts(&pod), [Some(3), Some(1), Some(0)]);
        pod.trim();
        assert_eq!(counts(&pod), [Some(3), Some(1), Some(0)]);
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!(
            (
                spec.containers.len(),
                spec.init_containers.as_ref().unwrap().len()
            ),
            (2, 1)
        );
        pod.trim();
        assert_eq!(counts(&pod), [Some(3), Some(1), Some(0)]);
        let broken = json!({"containers": [limits(json!({"hybridnic.io/fast": "some"}))]});
        pod.spec = serde_json::from_value(broken).unwrap();
        assert_eq!(pods::requested(&pod, "fast"), None);
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
