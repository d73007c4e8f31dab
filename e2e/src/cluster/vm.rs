//! VMs as real pods: the example that users copy, with the lab's kernel in place of a disk.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use kube::runtime::conditions::is_pod_running;
use kube::runtime::wait::{await_condition, conditions::is_deleted};
use serde_json::{Value, json};

use super::{Cluster, images, node::VM_RESOURCE};
use crate::lab::Inside;
use crate::world::{NicSpec, repository};

const EXAMPLE: &str = "deploy/examples/vm-pod.yaml";
/// Scheduled, its images there already, QEMU started; emulated.
const RUNNING: Duration = Duration::from_mins(3);
const GONE: Duration = Duration::from_mins(2);

/// What a VM's pod is to be like.
#[derive(Debug, Clone)]
pub struct VmPodSpec {
    /// Namespace.
    pub namespace: String,
    /// The VM: value of the pods' label.
    pub vm: String,
    /// Its NICs.
    pub nics: Vec<NicSpec>,
    /// In MiB.
    pub memory: u32,
}

impl VmPodSpec {
    /// A VM of 192 MiB.
    pub fn new(namespace: &str, vm: &str, nics: &[NicSpec]) -> Self {
        Self {
            namespace: namespace.into(),
            vm: vm.into(),
            nics: nics.to_vec(),
            memory: 192,
        }
    }

    /// QEMU's arguments in place of the example's memory, disk and ports.
    fn arguments(&self, cid: u32, incoming: bool) -> Vec<String> {
        let memory = self.memory;
        let mut append =
            "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable no_timer_check".to_owned();
        for nic in &self.nics {
            let _ = write!(append, " lab.nic={}={}/24", nic.mac, nic.address);
        }
        let mut arguments: Vec<String> = [
            "-m",
            &format!("{memory}M"),
            "-object",
            &format!("memory-backend-ram,id=ram,size={memory}M,prealloc=on"),
            "-device",
            &format!("vhost-vsock-pci,guest-cid={cid}"),
            "-kernel",
            "/guest/vmlinux",
            "-initrd",
            "/guest/initrd",
            "-append",
            &append,
        ]
        .map(ToOwned::to_owned)
        .into();
        for port in 0..2 * self.nics.len() {
            arguments.push("-device".into());
            arguments.push(format!("pcie-root-port,id=rp{port},chassis={}", port + 1));
        }
        if incoming {
            arguments.extend(["-incoming".to_owned(), "defer".to_owned()]);
        }
        arguments
    }
}

/// Options of the example that the lab gives itself, each with a value behind it.
fn is_replaced(option: &str, value: &str) -> bool {
    matches!(option, "-m" | "-object" | "-drive") || value.starts_with("pcie-root-port")
}

/// The example's arguments without those, and with these.
fn arguments(example: &[String], own: &[String]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut rest = example.iter().peekable();
    while let Some(option) = rest.next() {
        let value = rest.next_if(|value| !value.starts_with('-'));
        if is_replaced(option, value.map_or("", String::as_str)) {
            continue;
        }
        kept.push(option.clone());
        kept.extend(value.cloned());
    }
    kept.extend(own.iter().cloned());
    kept
}

/// A VM's pod that runs.
pub struct VmPod {
    /// Namespace and name.
    pub namespace: String,
    /// See `namespace`.
    pub pod: String,
    /// The guest.
    pub inside: Inside,
}

impl Cluster {
    fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client(), namespace)
    }

    /// Makes a pod on node `node` and waits until it runs; with `incoming` its QEMU waits for a migration. `cid` is a
    /// number of the guest's own, from 3.
    pub async fn start_vm(
        &self,
        spec: &VmPodSpec,
        pod: &str,
        node: usize,
        cid: u32,
        incoming: bool,
    ) -> Result<VmPod> {
        let path = repository(EXAMPLE);
        let example = self
            .kubectl(&[
                "create",
                "--dry-run=client",
                "-o",
                "json",
                "-f",
                &path.to_string_lossy(),
            ])
            .await?;
        let mut object: Value = serde_json::from_str(&example)?;
        object["metadata"]["name"] = json!(pod);
        object["metadata"]["namespace"] = json!(spec.namespace);
        object["metadata"]["labels"] = json!({ hybridnic_api::names::VM_LABEL: spec.vm });
        object["spec"]["nodeName"] = json!(self.node(node).name());
        let container = &mut object["spec"]["containers"][0];
        container["image"] = json!(images::name("qemu"));
        let args: Vec<String> = serde_json::from_value(container["args"].clone())?;
        container["args"] = json!(arguments(&args, &spec.arguments(cid, incoming)));
        let memory = format!("{}Mi", spec.memory + 256);
        container["resources"] = json!({
            "requests": { "cpu": "100m", "memory": memory },
            "limits": { "memory": memory, VM_RESOURCE: "1" },
        });
        container["volumeMounts"][1] = json!({ "name": "disk", "mountPath": "/guest", "readOnly": true });
        object["spec"]["volumes"][1] = json!({ "name": "disk", "hostPath": { "path": "/host/guest" } });
        let object: Pod = serde_json::from_value(object)?;
        let pods = self.pods(&spec.namespace);
        pods.create(&PostParams::default(), &object).await?;
        tokio::time::timeout(RUNNING, await_condition(pods, pod, is_pod_running()))
            .await
            .with_context(|| format!("the pod {pod} does not run after {RUNNING:?}"))??;
        Ok(VmPod {
            namespace: spec.namespace.clone(),
            pod: pod.into(),
            inside: Inside::new(self.node(node), cid),
        })
    }

    /// Deletes a pod and waits until it is gone.
    pub async fn delete_pod(&self, namespace: &str, pod: &str) -> Result<()> {
        let pods = self.pods(namespace);
        let Some(uid) = pods.get(pod).await?.metadata.uid else {
            return Ok(());
        };
        pods.delete(pod, &DeleteParams::default()).await?;
        tokio::time::timeout(GONE, await_condition(pods, pod, is_deleted(&uid)))
            .await
            .with_context(|| format!("the pod {pod} is still there after {GONE:?}"))??;
        Ok(())
    }

    /// A file of the repository, for `kubectl apply -f`.
    pub async fn apply_file(&self, path: &str) -> Result<String> {
        let path = repository(path);
        Ok(self.control_plane.apply(Path::new(&path)).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::arguments;

    #[test]
    fn the_labs_arguments_take_the_place_of_the_examples() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let example = words("-nodefaults -m 1G -device pcie-root-port,id=rp0 -drive file=x -qmp unix:y");
        assert_eq!(
            arguments(&example, &words("-m 192M")),
            words("-nodefaults -qmp unix:y -m 192M")
        );
    }
}
