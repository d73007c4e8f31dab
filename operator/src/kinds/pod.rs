//! `Pod`, in which QEMU runs: somebody's, or KubeVirt's.

use hybridnic_api::foreign::kubevirt::{CREATED_BY_LABEL, MIGRATION_LABEL, NAME_LABEL, POD_LABEL};
use hybridnic_api::names::VM_LABEL;
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use kube::ResourceExt;

use super::{Watched, bare};
use crate::cache::{Key, Object};
use crate::pods;
use crate::triggers::Triggers;
use crate::vm::VmRef;

/// By these it is known what it runs.
const LABELS: [&str; 5] = [VM_LABEL, POD_LABEL, NAME_LABEL, CREATED_BY_LABEL, MIGRATION_LABEL];

/// Only its VM, node, phase and addresses matter. One that a node owns has no VM, whatever its labels say: see
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
        self.labels_mut()
            .retain(|label, _| LABELS.contains(&label.as_str()) && !of_node);
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
