//! A real Kubernetes cluster on the lab's machines: kubelets that join by TLS bootstrap, containerd, runc, the CNI's bridge
//! plugin and kube-proxy. The product comes from its Helm chart, as pods; VMs are pods too.
//!
//! ```text
//! this host: etcd, kube-apiserver, controllers, scheduler, helm, kubectl     10.78.0.1
//!      │ management network
//!  ┌───┴──────────────┐ ┌──────────────────┐
//!  │ n1   10.78.0.11  │ │ n2   10.78.0.12  │   pods: 10.244.1.0/24, 10.244.2.0/24
//!  │ containerd       │ │                  │
//!  │ kubelet          │ │                  │
//!  │ kube-proxy       │ │                  │
//!  │ device plugin    │ │                  │   hands /dev/kvm to pods, as a cluster that runs VMs has one
//!  └──────────────────┘ └──────────────────┘
//! ```
//! A second cluster on the machine has 10.78.1.0/24 and 10.245.0.0/16.
//!
//! [`crate::world`] is the same without kubelets: faster, with pods that are API objects only.

mod devices;
mod evidence;
mod images;
mod node;
mod vm;

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use hybridnic_api::v1alpha1::{HybridNode, VmHybridNic};
use k8s_openapi::api::core::v1::Node as KubeNode;
use kube::core::NamespaceResourceScope;
use kube::runtime::wait::await_condition;
use kube::{Api, Client, Resource};
use serde::{Serialize, de::DeserializeOwned};
use tokio::process::Command;

use crate::controlplane::{ControlPlane, Options};
use crate::lab::{Kernel, Lab, LabOptions, Node, NodeOptions};
use crate::until::until;
use crate::world::{binary, repository};

pub use node::Joined;
pub use vm::{VmPod, VmPodSpec};

/// Where the product is installed.
pub const SYSTEM: &str = "hybridnic-system";
/// Tag of the images that the lab makes.
pub const TAG: &str = "lab";
/// From start to ready; everything is emulated.
const JOIN: Duration = Duration::from_mins(4);
/// For what a program does by itself.
const SOON: Duration = Duration::from_mins(3);
/// What helm waits for.
const HELM: Duration = Duration::from_mins(5);
/// A node needs room for a guest, its images and containers.
const MEMORY: u32 = 4096;

/// A running cluster. Dropping it ends everything.
pub struct Cluster {
    // Dropped in this order.
    joined: Vec<Joined>,
    client: Client,
    /// The control plane.
    pub control_plane: ControlPlane,
    /// The nodes and their networks.
    pub lab: Lab,
}

impl Cluster {
    /// Boots two nodes and joins them. `say` gets what happens.
    pub async fn start(name: &str, say: impl Fn(&str)) -> Result<Self> {
        Self::start_with(name, Kernel::Kube, MEMORY, &images::OWN, &[], say).await
    }

    /// The same for KubeVirt, which brings these images, with nodes that run this kernel and have so much memory, in MiB.
    pub async fn start_for_kubevirt(
        name: &str,
        kernel: Kernel,
        memory: u32,
        its: &[PathBuf],
        say: impl Fn(&str),
    ) -> Result<Self> {
        Self::start_with(name, kernel, memory, &images::KUBEVIRT, its, say).await
    }

    async fn start_with(
        name: &str,
        kernel: Kernel,
        memory: u32,
        ours: &[&str],
        others: &[PathBuf],
        say: impl Fn(&str),
    ) -> Result<Self> {
        let began = Instant::now();
        let say = |what: &str| say(&format!("{:5.1} s  {what}", began.elapsed().as_secs_f64()));
        let options = LabOptions {
            kernel,
            node: NodeOptions {
                memory,
                ..NodeOptions::default()
            },
            ..LabOptions::new(name)
        };
        say("making the images");
        let mut images = images::build(ours).await?;
        images.extend_from_slice(others);
        say("booting the nodes");
        let lab = Lab::start(options).await.context("the lab")?;
        say("starting the control plane");
        let options = Options::new(lab.dir().join("control-plane"))
            .reachable_at(lab.site().host().into())
            .with_nodes();
        let control_plane = ControlPlane::start(options).await.context("the control plane")?;
        control_plane
            .apply(&repository("e2e/cluster/bootstrap.yaml"))
            .await?;
        let client = control_plane.client_admin();
        for node in lab.nodes() {
            // It goes with the link that it leads over.
            lab.net()
                .route(&node.site().pods_of(node.number()), node.address())
                .await?;
        }
        let mut cluster = Self {
            joined: Vec::new(),
            client,
            control_plane,
            lab,
        };
        say("joining the nodes");
        let join = cluster
            .lab
            .nodes()
            .iter()
            .map(|node| Joined::start(node, cluster.lab.nodes().len(), &cluster.control_plane, &images));
        cluster.joined = try_join_all(join).await?;
        for node in cluster.lab.nodes() {
            cluster.ready(node.name()).await?;
        }
        say("the nodes are ready");
        Ok(cluster)
    }

    /// Waits until a node's kubelet says that it is ready.
    pub async fn ready(&self, node: &str) -> Result<()> {
        let api: Api<KubeNode> = Api::all(self.client.clone());
        let is_ready = |node: Option<&KubeNode>| {
            let conditions = node
                .and_then(|n| n.status.as_ref())
                .and_then(|s| s.conditions.as_ref());
            conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
        };
        let ready = tokio::time::timeout(JOIN, await_condition(api, node, is_ready)).await;
        ready.with_context(|| format!("{node} is not ready after {JOIN:?}"))??;
        Ok(())
    }

    /// A client with the administrator's rights.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Node `number`, from 1.
    pub fn node(&self, number: usize) -> &Node {
        &self.lab.nodes()[number - 1]
    }

    /// What makes node `number` a node.
    pub fn joined(&mut self, number: usize) -> &mut Joined {
        &mut self.joined[number - 1]
    }

    /// Waits until a NIC is as `is` says.
    pub async fn until_nic(
        &self,
        namespace: &str,
        name: &str,
        what: &str,
        is: impl Fn(&VmHybridNic) -> bool,
    ) -> Result<VmHybridNic> {
        until(Api::namespaced(self.client(), namespace), name, SOON, what, is).await
    }

    /// Waits until an object in a namespace is as `is` says.
    pub async fn until_object<K>(
        &self,
        namespace: &str,
        name: &str,
        what: &str,
        is: impl Fn(&K) -> bool,
    ) -> Result<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned
            + Serialize
            + Send
            + 'static,
    {
        until(Api::namespaced(self.client(), namespace), name, SOON, what, is).await
    }

    /// Waits until a node's object is as `is` says.
    pub async fn until_node(
        &self,
        number: usize,
        what: &str,
        is: impl Fn(&HybridNode) -> bool,
    ) -> Result<HybridNode> {
        until(Api::all(self.client()), self.node(number).name(), SOON, what, is).await
    }

    /// Cuts a node's power and lets it boot and join again, as a machine that was reset. Its journal is on its disk.
    pub async fn reboot(&mut self, number: usize) -> Result<()> {
        let node = self.node(number).clone();
        node.reboot().await.context("the reset")?;
        self.joined[number - 1].after_boot().await?;
        self.ready(node.name()).await
    }

    /// Runs kubectl and gives what it printed; a failure is an error with its message.
    pub async fn kubectl(&self, args: &[&str]) -> Result<String> {
        let output = self.control_plane.kubectl(args).await?;
        ensure!(
            output.status.success(),
            "kubectl {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs `kubectl hybridnic` as an administrator and gives what it printed; a failure is an error with that and its message.
    pub async fn plugin(&self, args: &[&str]) -> Result<String> {
        let output = Command::new(binary("kubectl-hybridnic")?)
            .args(args)
            .env("KUBECONFIG", self.control_plane.kubeconfig_admin())
            .output()
            .await?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "kubectl hybridnic {args:?}: {text}{error}"
        );
        Ok(text)
    }

    /// Applies YAML with kubectl, as a user would.
    pub async fn apply(&self, yaml: &str) -> Result<String> {
        let file = self.lab.dir().join("apply.yaml");
        std::fs::write(&file, yaml)?;
        Ok(self.control_plane.apply(&file).await?)
    }

    /// `helm COMMAND` on the product's release; `install` and `upgrade` take the chart of this repository with the lab's
    /// images and these values. Waits until all is ready.
    pub async fn helm(&self, command: &[&str], values: &[&str]) -> Result<String> {
        let chart = repository("deploy/chart");
        let image = images::value();
        let timeout = format!("{}s", HELM.as_secs());
        let mut args: Vec<&str> = command.to_vec();
        args.extend(["--namespace", SYSTEM, "--timeout", timeout.as_str()]);
        if command.first() != Some(&"test") {
            args.push("--wait");
        }
        if matches!(command.first(), Some(&("install" | "upgrade"))) {
            args.push(path(&chart)?);
            for value in [image.as_str()].iter().chain(values) {
                args.extend(["--set", value]);
            }
        }
        let output = self.control_plane.helm(&args).await?;
        ensure!(
            output.status.success(),
            "helm {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no UTF-8")
}
