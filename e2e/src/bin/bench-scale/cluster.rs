//! Nodes, pods, NICs and migrations of a cluster of any size.

use std::collections::HashSet;

use anyhow::{Context as _, Result, ensure};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use hybridnic_api::names::AGENT_MANAGER;
use hybridnic_api::v1alpha1::{
    HybridNetwork, HybridNode, HybridNodeSpec, NicPhase, QemuMigration, VmHybridNic,
};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::say;

/// Requests at once.
const AT_ONCE: usize = 64;
/// More NICs than these would keep an API server on few processors busy for too long.
const MADE: usize = 2000;
/// Migrations one after the other.
const ALONE: usize = 5;
/// NICs of a namespace.
const OF_A_NAMESPACE: usize = 500;
/// VFs of each of a node's two PFs.
const VFS: usize = 7;

/// How large the cluster is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Nodes, with 14 VFs each.
    pub nodes: usize,
    /// VMs with one NIC each.
    pub nics: usize,
    /// Migrations at once.
    pub migrations: usize,
}

impl Size {
    /// Of the command line.
    pub fn from_args(args: impl Iterator<Item = String>) -> Result<Self> {
        let numbers: Vec<usize> = args.map(|arg| arg.parse()).collect::<Result<_, _>>()?;
        let [nodes, nics, migrations] = numbers[..] else {
            anyhow::bail!("usage: bench-scale NODES NICS MIGRATIONS");
        };
        ensure!(
            nodes > 1 && migrations <= nics,
            "at least two nodes, and a NIC for each migration"
        );
        Ok(Self {
            nodes,
            nics,
            migrations,
        })
    }

    /// In words.
    pub fn told(self) -> String {
        let (nodes, nics) = (self.nodes, self.nics);
        format!(
            "{nodes} nodes with {} VFs, {nics} VMs with a pod and a NIC each, {} migrations at once",
            nodes * 2 * VFS,
            self.migrations
        )
    }

    /// How many NICs are made as a user would; the others are copies of the first of them.
    pub fn made(self) -> usize {
        self.nics.min(MADE)
    }

    /// The VMs that migrate at once, spread over all.
    pub fn movers(self) -> Vec<usize> {
        (0..self.migrations).map(|n| n * self.stride()).collect()
    }

    /// Those that migrate one after the other: neighbours of some of the others, if there are any.
    pub fn soloists(self) -> Vec<usize> {
        let alone = if self.stride() < 2 { 0 } else { ALONE };
        self.movers().into_iter().take(alone).map(|n| n + 1).collect()
    }

    fn stride(self) -> usize {
        self.nics / self.migrations.max(1)
    }
}

/// The namespace of a VM.
pub fn namespace(vm: usize) -> String {
    format!("ns-{}", vm / OF_A_NAMESPACE)
}

/// Makes nodes, and VMs with their pods and NICs.
pub async fn fill(client: &Client, size: Size) -> Result<()> {
    let network = json!({"metadata": {"name": "net"}, "spec": {"uplinks": [{"pfNames": ["ens*"]}]}});
    create::<HybridNetwork>(&Api::all(client.clone()), network).await?;
    say(&format!("{} nodes", size.nodes));
    each(0..size.nodes, |n| node(client.clone(), n)).await?;
    let namespaces = 0..size.nics.div_ceil(OF_A_NAMESPACE);
    each(namespaces, |n| async move {
        let api = Api::<Namespace>::all(client.clone());
        create(&api, json!({"metadata": {"name": format!("ns-{n}")}})).await
    })
    .await?;
    say(&format!("{} pods and NICs", size.made()));
    each(0..size.made(), |n| async move {
        pod(client, n, "a", n % size.nodes).await?;
        let (name, vm) = (format!("vm-{n}-0"), json!({"qemu": {"name": format!("vm-{n}")}}));
        let nic = json!({"metadata": {"name": name}, "spec": {"network": "net", "vm": vm}});
        create::<VmHybridNic>(&Api::namespaced(client.clone(), &namespace(n)), nic).await
    })
    .await
}

/// Makes the pods to which VMs are to move.
pub async fn target_pods(client: &Client, size: Size, vms: &[usize]) -> Result<()> {
    each(vms.iter().copied(), |n| pod(client, n, "b", (n + 1) % size.nodes)).await
}

/// Asks for migrations.
pub async fn migrations(client: &Client, vms: &[usize]) -> Result<()> {
    each(vms.iter().copied(), |n| async move {
        let api = Api::<QemuMigration>::namespaced(client.clone(), &namespace(n));
        let (name, vm) = (migration(n), format!("vm-{n}"));
        create(&api, json!({"metadata": {"name": name}, "spec": {"vm": vm}})).await
    })
    .await
}

/// The name of a VM's migration.
pub fn migration(vm: usize) -> String {
    format!("move-{vm}")
}

/// How many NICs are in a phase that is wanted, from now on.
pub fn watch_nics(client: Client, wanted: fn(NicPhase) -> bool) -> watch::Receiver<usize> {
    let (count, receiver) = watch::channel(0);
    tokio::spawn(async move {
        let events = watcher(Api::<VmHybridNic>::all(client), watcher::Config::default());
        let mut nics = std::pin::pin!(events.default_backoff().applied_objects());
        let mut found = HashSet::new();
        while let Some(nic) = nics.next().await {
            let Ok(nic) = nic else { continue };
            if nic.status.as_ref().is_some_and(|status| wanted(status.phase)) {
                found.insert(nic.uid());
            } else {
                found.remove(&nic.uid());
            }
            count.send_replace(found.len());
        }
    });
    receiver
}

async fn node(client: Client, n: usize) -> Result<()> {
    let name = format!("node-{n}");
    let labels = json!({"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "topology.kubernetes.io/zone": "z1"});
    create::<Node>(
        &Api::all(client.clone()),
        json!({"metadata": {"name": name, "labels": labels}}),
    )
    .await?;
    let api: Api<HybridNode> = Api::all(client);
    api.create(
        &PostParams::default(),
        &HybridNode::new(&name, HybridNodeSpec::default()),
    )
    .await?;
    let vf = |n: usize| json!({"index": n, "pciAddress": format!("0000:01:10.{n}"), "driver": "igbvf", "iommuGroup": 20 + n, "state": "Free"});
    let vfs: Vec<_> = (0..VFS).map(vf).collect();
    let pf = |n: usize| {
        json!({"name": format!("ens{n}"), "pciAddress": format!("0000:0{n}:00.0"), "vendor": "8086", "device": "10c9",
            "driver": "igb", "numaNode": 0, "mac": "52:54:00:00:00:01", "mtu": 1500, "linkUp": true, "totalVfs": VFS, "vfs": vfs})
    };
    let counts = json!({"total": 2 * VFS, "free": 2 * VFS, "held": 0, "unhealthy": 0});
    let status = json!({"agentVersion": env!("CARGO_PKG_VERSION"), "pfCount": 2, "vfs": counts,
        "pools": [{"network": "net", "vfs": counts}], "pfs": [pf(0), pf(1)]});
    let document = json!({"apiVersion": "hybridnic.io/v1alpha1", "kind": "HybridNode", "metadata": {"name": name}, "status": status});
    let params = PatchParams::apply(AGENT_MANAGER).force();
    api.patch_status(&name, &params, &Patch::Apply(&document)).await?;
    Ok(())
}

/// A pod like any other: the operator does not need most of it.
async fn pod(client: &Client, vm: usize, which: &str, node: usize) -> Result<()> {
    let (name, vm_name) = (format!("vm-{vm}-{which}"), format!("vm-{vm}"));
    let variable =
        |n: usize| json!({"name": format!("VARIABLE_{n}"), "value": "a value of an ordinary length"});
    let environment: Vec<_> = (0..10).map(variable).collect();
    let annotations = json!({"kubectl.kubernetes.io/last-applied-configuration": "x".repeat(1500)});
    let pod = json!({
        "metadata": {"name": name, "labels": {"hybridnic.io/vm": vm_name, "app": "vm"}, "annotations": annotations},
        "spec": {"nodeName": format!("node-{node}"),
            "containers": [{"name": "qemu", "image": "registry.example/qemu:1", "env": environment}]},
    });
    let api: Api<Pod> = Api::namespaced(client.clone(), &namespace(vm));
    create(&api, pod).await?;
    let ip = format!("10.{}.{}.{}", vm >> 16 & 0xff, vm >> 8 & 0xff, vm & 0xff);
    let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": "True"}]}});
    api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status))
        .await?;
    Ok(())
}

async fn create<K>(api: &Api<K>, object: Value) -> Result<()>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + Serialize + DeserializeOwned,
{
    let object: K = serde_json::from_value(object)?;
    let name = object.name_any();
    api.create(&PostParams::default(), &object).await.context(name)?;
    Ok(())
}

async fn each<F: Future<Output = Result<()>>>(
    all: impl Iterator<Item = usize>,
    make: impl Fn(usize) -> F,
) -> Result<()> {
    stream::iter(all)
        .map(|n| Ok(make(n)))
        .try_for_each_concurrent(AT_ONCE, |made| made)
        .await
}
