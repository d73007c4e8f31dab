//! A node's CNI: thin Multus, as a container runtime starts it, our plugin, and the agent's server with its broker. The test is the kubelet, which
//! has given the devices, and a NIC's task, which makes the link that a pod waits for.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future::BoxFuture;
use hybridnic_agent::broker::Started;
use hybridnic_agent::cni::{Kubelet, Made, Sandboxes, server::Server};
use hybridnic_cni::wire;
use hybridnic_e2e::controlplane::ControlPlane;
use hybridnic_e2e::kubevirt::{Device, thin_multus};
use hybridnic_e2e::world::binary;
use hybridnic_net::{DeviceId, MacAddr, PciAddress};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::network::{self, MTU, Network};

const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
/// In a namespace of mounts, whose `/var/lib/kubelet` is the node's and not this machine's.
const AS_ON_ITS_NODE: &str = "mount -t tmpfs tmpfs /var/lib && mkdir /var/lib/kubelet && mount --bind \"$0\" /var/lib/kubelet && exec \"$1\"";
/// The cluster's own network: no pod here needs it, and Multus must have one.
const NO_NETWORK: &str = "#!/bin/sh\ncat >/dev/null\necho '{\"cniVersion\": \"1.0.0\"}'\n";
/// A kubelet tries again as long as it takes: thin Multus has 2.5 s for its question to the API server, of a machine that may be busy.
const SOON: Duration = Duration::from_mins(1);

/// The devices that each pod has been given, by its uid.
#[derive(Clone, Debug, Default)]
struct Given(Arc<Mutex<BTreeMap<String, Vec<DeviceId>>>>);

impl Given {
    fn with<T>(&self, what: impl FnOnce(&mut BTreeMap<String, Vec<DeviceId>>) -> T) -> T {
        what(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Kubelet for Given {
    fn has_given<'a>(
        &'a self,
        pod: &'a wire::Pod,
        network: &'a str,
        device_id: &'a str,
    ) -> BoxFuture<'a, Result<(), String>> {
        let is = |device: &DeviceId| device.to_string() == device_id;
        let has = self.with(|given| given.get(&pod.uid).is_some_and(|all| all.iter().any(is)));
        let known = (has && network == "fast").then_some(());
        Box::pin(std::future::ready(known.ok_or_else(|| {
            format!("{} has no {device_id} of {network}", pod.name)
        })))
    }
}

/// A node's CNI. Dropping it ends the agent's server.
pub struct Cni {
    node: &'static str,
    dir: PathBuf,
    kubelet: PathBuf,
    multus: PathBuf,
    pf: PciAddress,
    /// The slots that no pod has had.
    slots: std::ops::RangeFrom<u16>,
    given: Given,
    sandboxes: Sandboxes,
    server: JoinHandle<()>,
}

impl Drop for Cni {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Cni {
    /// Puts it on a node, the `number`th of its cluster.
    pub async fn start(cluster: &ControlPlane, node: &'static str, number: u16) -> Result<Self> {
        let dir = cluster.dir().join(node).join("cni");
        let plugins = dir.join("bin");
        fs::create_dir_all(&plugins)?;
        symlink(binary("hybridnic-cni")?, plugins.join(wire::PLUGIN))?;
        fs::write(plugins.join("none"), NO_NETWORK)?;
        fs::set_permissions(plugins.join("none"), fs::Permissions::from_mode(0o755))?;
        let login = cluster
            .login_service_account("kube-system", "multus", None)
            .await?;
        login.write(&dir.join("multus.kubeconfig"))?;
        let config = json!({
            "cniVersion": "1.0.0", "name": "multus-cni-network", "type": "multus", "logLevel": "verbose",
            "kubeconfig": dir.join("multus.kubeconfig"), "cniDir": dir.join("cache"), "binDir": plugins,
            "delegates": [{ "cniVersion": "1.0.0", "name": "none", "type": "none" }],
        });
        fs::write(dir.join("multus.conf"), config.to_string())?;

        let (sandboxes, given) = (Sandboxes::default(), Given::default());
        let broker = Started::new(&binary("hybridnic-agent")?)?.run()?;
        let server = Server::new(sandboxes.clone(), Arc::new(broker), Arc::new(given.clone()));
        let listener = Server::open(&socket(&dir))?;
        Ok(Self {
            node,
            kubelet: cluster.dir().join(node).join("kubelet"),
            multus: thin_multus().await?,
            pf: network::pf(cluster.port()).context("no PF")?,
            slots: number << 8..,
            given,
            sandboxes,
            server: tokio::spawn(async move {
                let error = Arc::new(server).serve(listener).await;
                eprintln!("the agent's server on {node}: {error}");
            }),
            dir,
        })
    }

    /// Gives a pod its devices and links, each with its MAC, in the network namespace of a process.
    pub async fn attach(
        &mut self,
        network: &Network,
        pod: &Pod,
        macs: &[MacAddr],
        pid: u32,
    ) -> Result<Vec<Device>> {
        let uid = pod.uid().context("a pod without a uid")?;
        let networks: Vec<Value> = serde_json::from_str(&pod.annotations()[NETWORKS])?;
        let names: Vec<_> = networks
            .iter()
            .map(|network| network["interface"].as_str().unwrap_or_default())
            .collect();
        ensure!(names.len() == macs.len(), "{names:?} are not {macs:?}");
        let pf = self.pf;
        let devices: Vec<_> = self.slots.by_ref().take(names.len()).collect();
        let devices: Option<Vec<_>> = devices.into_iter().map(|slot| DeviceId::new(pf, slot)).collect();
        let devices = devices.context("no such slot")?;
        self.given
            .with(|given| given.insert(uid.clone(), devices.clone()));
        self.checkpoint()?;
        let links: Vec<_> = names.into_iter().zip(devices.iter().copied()).zip(macs).collect();
        let end = Instant::now() + SOON;
        loop {
            let added = tokio::select! {
                added = self.multus("ADD", pod, pid) => added?,
                never = self.nics(network, &uid, &links, pid) => match never? {},
            };
            if added.status.success() {
                break;
            }
            let said = String::from_utf8_lossy(&added.stdout);
            ensure!(Instant::now() < end, "Multus on {}: {said}", self.node);
            eprintln!("Multus is asked again: {said}");
            self.detach(pod, pid).await?;
            sleep(Duration::from_secs(1)).await;
        }
        Ok(devices.into_iter().map(|device| Device(device.node())).collect())
    }

    /// Takes its links away again.
    pub async fn detach(&self, pod: &Pod, pid: u32) -> Result<()> {
        let deleted = self.multus("DEL", pod, pid).await?;
        let said = String::from_utf8_lossy(&deleted.stdout);
        ensure!(deleted.status.success(), "Multus on {}: {said}", self.node);
        Ok(())
    }

    /// What thin Multus reads where the kubelet serves no list of pods' resources.
    fn checkpoint(&self) -> Result<()> {
        let entries = self.given.with(|given| {
            let entry = |(uid, devices): (&String, &Vec<DeviceId>)| {
                json!({
                    "PodUID": uid, "ContainerName": "compute", "ResourceName": "hybridnic.io/fast",
                    "DeviceIDs": { "-1": devices }, "AllocResp": "",
                })
            };
            given.iter().map(entry).collect::<Vec<_>>()
        });
        let checkpoint =
            json!({ "Data": { "PodDeviceEntries": entries, "RegisteredDevices": {} }, "Checksum": 0 });
        let plugins = self.kubelet.join("device-plugins");
        fs::create_dir_all(&plugins)?;
        fs::write(
            plugins.join("kubelet_internal_checkpoint"),
            checkpoint.to_string(),
        )?;
        Ok(())
    }

    /// Makes each link of a pod that is waited for, and so answers; does not end by itself.
    async fn nics(
        &self,
        network: &Network,
        uid: &str,
        links: &[((&str, DeviceId), &MacAddr)],
        pid: u32,
    ) -> Result<Infallible> {
        let mut changes = self.sandboxes.subscribe();
        loop {
            for ((name, device), mac) in links {
                let Some(sandbox) = self.sandboxes.of(uid, name).filter(|sandbox| sandbox.waits) else {
                    continue;
                };
                ensure!(
                    sandbox.device == *device,
                    "{name} asks by {}, and has {device}",
                    sandbox.device
                );
                network.macvtap(self.node, *device, name, **mac, pid)?;
                let made = Made { mac: **mac, mtu: MTU };
                ensure!(
                    self.sandboxes.answer(uid, name, &sandbox.container, made),
                    "{name} waits no more"
                );
            }
            changes.changed().await?;
        }
    }

    /// Starts Multus as a container runtime does.
    async fn multus(&self, command: &str, pod: &Pod, pid: u32) -> Result<Output> {
        let (name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
        let namespace = pod.namespace().unwrap_or_default();
        let container = uid.replace('-', "");
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={container};K8S_POD_UID={uid}"
        );
        let output = Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "private",
                "/bin/sh",
                "-c",
                AS_ON_ITS_NODE,
            ])
            .args([&self.kubelet, &self.multus])
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", container)
            .env("CNI_NETNS", format!("/proc/{pid}/ns/net"))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", args)
            .env("CNI_PATH", self.dir.join("bin"))
            .env("HYBRIDNIC_CNI_SOCKET", socket(&self.dir))
            .stdin(Stdio::from(fs::File::open(self.dir.join("multus.conf"))?))
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .output();
        Ok(output.await?)
    }
}

/// Where the agent listens.
fn socket(dir: &Path) -> PathBuf {
    dir.join("agent/cni.sock")
}
