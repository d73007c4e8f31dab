//! What two nodes do, as far as KubeVirt's controller can see it: a kubelet that says that a pod's containers run, and a
//! virt-handler that says what became of a VM. No container and no QEMU.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use hybridnic_e2e::controlplane::ControlPlane;
use hybridnic_e2e::kubevirt::{Kind, NAMESPACE as KUBEVIRT};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};

use crate::NAMESPACE;

/// A node that KubeVirt takes for one of its own.
pub struct StandIn {
    name: &'static str,
    admin: Client,
    handler: Client,
}

impl StandIn {
    /// Publishes it.
    pub async fn start(cluster: &ControlPlane, name: &'static str) -> Result<Self> {
        let node = json!({
            "metadata": {
                "name": name,
                "labels": { "kubernetes.io/hostname": name, "kubevirt.io/schedulable": "true" },
                // Older than five minutes, and the node would count as lost.
                "annotations": { "kubevirt.io/heartbeat": Timestamp::now().to_string() },
            },
        });
        let admin = cluster.client_admin();
        Api::<Node>::all(admin.clone())
            .create(&PostParams::default(), &serde_json::from_value(node)?)
            .await?;
        let login = cluster
            .login_service_account(KUBEVIRT, "kubevirt-handler", Some(("Node", name)))
            .await?;
        let handler = login.client().await?;
        Ok(Self { name, admin, handler })
    }

    /// Takes a pod, as scheduler and kubelet do. Its containers do not run yet.
    pub async fn take(&self, pod: &str) -> Result<()> {
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": { "name": pod },
            "target": { "kind": "Node", "name": self.name },
        });
        let pods = Api::<Pod>::namespaced(self.admin.clone(), NAMESPACE);
        let _: Value = pods
            .create_subresource("binding", pod, &PostParams::default(), &binding)
            .await?;
        Ok(())
    }

    /// The containers of a pod run, and all but these are ready.
    pub async fn run(&self, pod: &Pod, unready: &[&str]) -> Result<()> {
        let spec = pod.spec.as_ref().context("no spec")?;
        let running = |name: &str| {
            json!({
                "name": name, "image": "i", "imageID": "i", "containerID": "containerd://c", "restartCount": 0,
                "ready": !unready.contains(&name), "started": true,
                "state": { "running": { "startedAt": Timestamp::now() } },
            })
        };
        let containers: Vec<_> = spec.containers.iter().map(|c| running(&c.name)).collect();
        let ready = if unready.is_empty() { "True" } else { "False" };
        let status = json!({ "status": {
            "phase": "Running",
            "conditions": [{ "type": "Ready", "status": ready }, { "type": "PodScheduled", "status": "True" }],
            "containerStatuses": containers,
        }});
        let pods = Api::<Pod>::namespaced(self.admin.clone(), NAMESPACE);
        pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(status))
            .await?;
        Ok(())
    }

    /// A pod is deleted, and its containers have ended.
    pub async fn end(&self, pod: &Pod) -> Result<()> {
        let pods = Api::<Pod>::namespaced(self.admin.clone(), NAMESPACE);
        pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(0))
            .await?;
        Ok(())
    }

    /// Says something of a VM, with virt-handler's rights.
    pub async fn report(&self, vmi: &str, patch: Value) -> Result<()> {
        Kind::VirtualMachineInstance
            .api(self.handler.clone(), NAMESPACE)
            .patch(vmi, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        Ok(())
    }
}

/// Waits for a launcher pod with these labels.
pub async fn launcher_with(client: &Client, labels: &str, within: Duration) -> Result<Pod> {
    let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
    let stream = watcher(pods, watcher::Config::default().labels(labels)).applied_objects();
    futures::pin_mut!(stream);
    let found = tokio::time::timeout(within, stream.try_next()).await;
    found
        .with_context(|| format!("no pod with {labels} after {within:?}"))??
        .context("the watch has ended")
}

/// A field of an object, by its path; null where it is not there.
pub fn at<'a>(object: &'a DynamicObject, pointer: &str) -> &'a Value {
    object.data.pointer(pointer).unwrap_or(&Value::Null)
}
