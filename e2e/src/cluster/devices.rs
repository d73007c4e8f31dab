//! Pods that ask for devices and do nothing with them.

use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Node as KubeNode, Pod};
use kube::{
    Api,
    runtime::{conditions::is_pod_running, wait::await_condition},
};

use super::{Cluster, images};

/// A kubelet says it to the API server every ten seconds.
const SOON: Duration = Duration::from_mins(2);

impl Cluster {
    /// Waits until the scheduler has so many devices of a node to give away.
    pub async fn until_allocatable(&self, node: usize, resource: &str, count: usize) -> Result<()> {
        let api: Api<KubeNode> = Api::all(self.client());
        let count = count.to_string();
        let is = |node: Option<&KubeNode>| {
            let allocatable = node.and_then(|node| node.status.as_ref()?.allocatable.as_ref());
            allocatable
                .and_then(|all| all.get(resource))
                .is_some_and(|n| n.0 == count)
        };
        let waited = tokio::time::timeout(SOON, await_condition(api, self.node(node).name(), is)).await;
        waited.with_context(|| format!("n{node} has not {count} of {resource} after {SOON:?}"))??;
        Ok(())
    }

    /// Makes a pod for a node that asks for so many devices; the scheduler places it.
    pub async fn start_asking(
        &self,
        namespace: &str,
        pod: &str,
        node: usize,
        resource: &str,
        count: usize,
    ) -> Result<()> {
        let (image, node) = (images::name("pause"), self.node(node).name());
        self.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}, namespace: {namespace}}}\nspec:\n  \
             nodeSelector: {{kubernetes.io/hostname: {node}}}\n  terminationGracePeriodSeconds: 0\n  \
             securityContext: {{runAsNonRoot: true, runAsUser: 107, seccompProfile: {{type: RuntimeDefault}}}}\n  \
             containers:\n    - name: main\n      image: {image}\n      imagePullPolicy: Never\n      \
             securityContext: {{allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}\n      \
             resources: {{limits: {{{resource}: \"{count}\"}}}}\n"
        ))
        .await?;
        Ok(())
    }

    /// Waits until a pod runs.
    pub async fn until_running(&self, namespace: &str, pod: &str) -> Result<()> {
        let api: Api<Pod> = Api::namespaced(self.client(), namespace);
        let runs = tokio::time::timeout(SOON, await_condition(api, pod, is_pod_running())).await;
        runs.with_context(|| format!("the pod {pod} does not run after {SOON:?}"))??;
        Ok(())
    }

    /// Waits until the scheduler has found no node for a pod.
    pub async fn until_unschedulable(&self, namespace: &str, pod: &str) -> Result<()> {
        let api: Api<Pod> = Api::namespaced(self.client(), namespace);
        let is = |pod: Option<&Pod>| {
            let conditions = pod.and_then(|pod| pod.status.as_ref()?.conditions.as_ref());
            conditions.is_some_and(|all| {
                all.iter()
                    .any(|c| c.type_ == "PodScheduled" && c.reason.as_deref() == Some("Unschedulable"))
            })
        };
        let waited = tokio::time::timeout(SOON, await_condition(api, pod, is)).await;
        waited.with_context(|| format!("the pod {pod} is scheduled, or not looked at, after {SOON:?}"))??;
        Ok(())
    }
}
