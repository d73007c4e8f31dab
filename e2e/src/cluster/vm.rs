//! VMs as real pods: the example that users copy, with the lab's kernel in place of a disk. Their namespaces are `restricted`, so
//! what is the lab's own comes by volumes that an administrator has made.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hybridnic_api::names::{QMP_VOLUME, VM_LABEL};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use kube::runtime::conditions::is_pod_running;
use kube::runtime::wait::{await_condition, conditions::is_deleted};
use serde_json::{Value, json};

use super::{
    Cluster, images,
    node::{SHARED, VM_RESOURCE},
};
use crate::lab::Inside;
use crate::world::{NicSpec, repository};

const POD: &str = "deploy/examples/vm-pod.yaml";
const SET: &str = "deploy/examples/vm-statefulset.yaml";
/// What the scheduler reserves for a VM. It is the VM's share of a busy node, too: with less, kubelet and containerd
/// starve it while they start pods.
const CPU: &str = "500m";
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
    /// Whether the volume of its QMP socket is in memory: a mount of its own, which the agent has to be shown.
    pub socket_in_memory: bool,
    /// Devices that the pod asks for, one each.
    pub devices: Vec<String>,
}

impl VmPodSpec {
    /// A VM of 192 MiB.
    pub fn new(namespace: &str, vm: &str, nics: &[NicSpec]) -> Self {
        Self {
            namespace: namespace.into(),
            vm: vm.into(),
            nics: nics.to_vec(),
            memory: 192,
            socket_in_memory: false,
            devices: vec![],
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

/// Fits an example's pod to the lab: its image, its kernel in place of a disk, its size.
fn fit(pod: &mut Value, spec: &VmPodSpec, cid: u32, incoming: bool) -> Result<()> {
    let container = &mut pod["containers"][0];
    container["image"] = json!(images::name("qemu"));
    let args: Vec<String> = serde_json::from_value(container["args"].clone())?;
    container["args"] = json!(arguments(&args, &spec.arguments(cid, incoming)));
    let memory = json!(format!("{}Mi", spec.memory + 256));
    let resources = &mut container["resources"];
    for part in ["requests", "limits"] {
        resources[part]["memory"] = memory.clone();
    }
    resources["requests"]["cpu"] = json!(CPU);
    let limits = resources["limits"].as_object_mut().context("no limits")?;
    limits.retain(|name, _| !name.ends_with("/kvm"));
    limits.insert(VM_RESOURCE.to_owned(), json!("1"));
    for device in &spec.devices {
        limits.insert(device.clone(), json!("1"));
    }
    let guest = json!({ "name": "guest", "mountPath": "/guest", "readOnly": true });
    container["volumeMounts"]
        .as_array_mut()
        .context("no mounts")?
        .push(guest);
    let volumes = pod["volumes"].as_array_mut().context("no volumes")?;
    if spec.socket_in_memory {
        let socket = volumes.iter_mut().find(|volume| volume["name"] == QMP_VOLUME);
        socket.context("no volume for the socket")?["emptyDir"]["medium"] = json!("Memory");
    }
    volumes.push(json!({ "name": "guest", "persistentVolumeClaim": { "claimName": "guest" } }));
    Ok(())
}

/// A directory of the nodes for the pods of a namespace, by a claim.
fn volume(namespace: &str, claim: &str, path: &str, mode: &str) -> String {
    format!(
        "apiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: {namespace}-{claim}}}\n\
         spec:\n  capacity: {{storage: 1Gi}}\n  accessModes: [{mode}]\n  storageClassName: \"\"\n  \
         claimRef: {{namespace: {namespace}, name: {claim}}}\n  hostPath: {{path: {path}, type: DirectoryOrCreate}}\n---\n\
         apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {claim}, namespace: {namespace}}}\n\
         spec:\n  accessModes: [{mode}]\n  storageClassName: \"\"\n  volumeName: {namespace}-{claim}\n  \
         resources: {{requests: {{storage: 1Gi}}}}\n---\n"
    )
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

    /// What an administrator does for a namespace with VMs: their pods are to be ordinary ones, and find their disks.
    async fn furnish(&self, namespace: &str) -> Result<()> {
        let restricted = "pod-security.kubernetes.io/enforce=restricted";
        self.kubectl(&["label", "namespace", namespace, restricted, "--overwrite"])
            .await?;
        // The example's disk is the claim `web`.
        let guest = volume(namespace, "guest", "/host/guest", "ReadOnlyMany");
        self.apply(&(guest + &volume(namespace, "web", SHARED, "ReadWriteMany")))
            .await?;
        let bound = "--for=jsonpath={.status.phase}=Bound";
        self.kubectl(&["wait", "pvc", "--all", "-n", namespace, bound, "--timeout=60s"])
            .await?;
        Ok(())
    }

    /// An example as it is in the repository.
    async fn example(&self, path: &str) -> Result<Value> {
        let path = repository(path);
        let text = self
            .kubectl(&[
                "create",
                "--dry-run=client",
                "-o",
                "json",
                "-f",
                &path.to_string_lossy(),
            ])
            .await?;
        Ok(serde_json::from_str(&text)?)
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
        let mut object = self.example(POD).await?;
        object["metadata"]["name"] = json!(pod);
        object["metadata"]["namespace"] = json!(spec.namespace);
        object["metadata"]["labels"] = json!({ VM_LABEL: spec.vm });
        object["spec"]["nodeName"] = json!(self.node(node).name());
        fit(&mut object["spec"], spec, cid, incoming)?;
        self.furnish(&spec.namespace).await?;
        let object: Pod = serde_json::from_value(object)?;
        self.pods(&spec.namespace)
            .create(&PostParams::default(), &object)
            .await?;
        self.running(spec, pod, node, cid).await
    }

    /// Makes the example's StatefulSet and waits until its two pods run: the one that boots the VM, on node 1, and the one
    /// that waits for it. Whichever has the VM has the guest of `cid` on its node.
    pub async fn start_vm_set(&self, spec: &VmPodSpec, cid: u32) -> Result<[VmPod; 2]> {
        let mut object = self.example(SET).await?;
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        fit(&mut object["spec"]["template"]["spec"], spec, cid, false)?;
        let sets: Api<StatefulSet> = Api::namespaced(self.client(), &spec.namespace);
        self.furnish(&spec.namespace).await?;
        self.kubectl(&["cordon", self.node(2).name()]).await?;
        sets.create(&PostParams::default(), &serde_json::from_value(object)?)
            .await?;
        let boots = self.running(spec, &format!("{name}-0"), 1, cid).await?;
        self.kubectl(&["uncordon", self.node(2).name()]).await?;
        let waits = self.running(spec, &format!("{name}-1"), 2, cid).await?;
        Ok([boots, waits])
    }

    async fn running(&self, spec: &VmPodSpec, pod: &str, node: usize, cid: u32) -> Result<VmPod> {
        let runs = await_condition(self.pods(&spec.namespace), pod, is_pod_running());
        tokio::time::timeout(RUNNING, runs)
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
