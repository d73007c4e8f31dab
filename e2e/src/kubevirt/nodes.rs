//! KubeVirt and Multus on the emulated nodes of a [`Cluster`]: launchers are pods that kubelets start, of an image made from the
//! root that the processes have. virt-handler and Multus are on the nodes as their DaemonSets would put them there, and not as pods.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::process::Command;

use super::node::Given;
use super::{KubeVirt, MULTUS, SCRIPT};
use crate::cluster::{Cluster, Joined};
use crate::controlplane::tools::Built;
use crate::lab::{HOST_ADDRESS, Node, Process};

const IMAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kubevirt/image.sh");
/// For what an emulated node is told to do.
const SOON: Duration = Duration::from_mins(3);
/// What a VM asks of its node, and what it asks of the next one: the version that its QEMU has made of it. virt-handler's labeller
/// would say them.
const MACHINES: [&str; 2] = ["q35", "pc-q35-10.0"];
/// Where a virt-handler's root is on its node.
const ROOT: &str = "/host/kubevirt";

/// The launchers' image, made where it is missing: a cluster's nodes are to be started with it.
pub async fn image() -> Result<PathBuf> {
    super::node::made_by(IMAGE).await
}

/// KubeVirt, running. Dropping it ends its programs.
pub struct OnNodes {
    handlers: Vec<Process>,
    kubevirt: KubeVirt,
}

impl OnNodes {
    /// Installs Multus and KubeVirt, with this `spec.configuration`.
    pub async fn start(cluster: &Cluster, configuration: Value) -> Result<Self> {
        let mut built = Built::by(SCRIPT, &["multus"]).await?;
        let multus = built.take("multus")?;
        cluster.apply(MULTUS).await?;
        let kubevirt = KubeVirt::start(&cluster.control_plane, configuration).await?;
        let root = super::root().await?;
        let mut handlers = Vec::new();
        for node in cluster.lab.nodes() {
            install_multus(cluster, node, &multus).await?;
            handlers.push(start_handler(cluster, node, &root).await?);
        }
        for node in cluster.lab.nodes() {
            for machine in MACHINES {
                let label = format!("machine-type.node.kubevirt.io/{machine}=true");
                cluster.kubectl(&["label", "node", node.name(), &label]).await?;
            }
            let wait = format!("node/{}", node.name());
            let labelled = "--for=jsonpath={.metadata.labels.kubevirt\\.io/schedulable}=true";
            cluster
                .kubectl(&["wait", &wait, labelled, "--timeout=180s"])
                .await?;
        }
        Ok(Self { handlers, kubevirt })
    }

    /// The control half.
    pub fn control_half(&self) -> &KubeVirt {
        &self.kubevirt
    }

    /// How many nodes have a virt-handler.
    pub fn handlers(&self) -> usize {
        self.handlers.len()
    }
}

/// Before the cluster's own network, to which it hands what is not asked for by name.
async fn install_multus(cluster: &Cluster, node: &Node, multus: &Path) -> Result<()> {
    let name = multus.file_name().context("a program without a name")?;
    let shared = node.share().join("bin").join(name);
    if !shared.exists() {
        std::fs::hard_link(multus, &shared).or_else(|_| std::fs::copy(multus, &shared).map(|_| ()))?;
    }
    let login = cluster
        .control_plane
        .login_service_account("kube-system", "multus", None)
        .await?
        .at(HOST_ADDRESS.into());
    let kubeconfig = "/etc/kubernetes/multus.kubeconfig";
    node.put(kubeconfig, login.kubeconfig().as_bytes(), 0o600).await?;
    let default: Value = serde_json::from_str(&Joined::network(node))?;
    let network = json!({
        "cniVersion": "1.0.0", "name": "multus", "type": "multus", "kubeconfig": kubeconfig,
        "delegates": [default],
    });
    node.run("ln -sf /host/bin/multus /usr/lib/cni/multus", SOON)
        .await?;
    node.put(
        "/etc/cni/net.d/00-multus.conf",
        network.to_string().as_bytes(),
        0o600,
    )
    .await?;
    Ok(())
}

/// In the launchers' root, which this host shows the node.
async fn start_handler(cluster: &Cluster, node: &Node, root: &Path) -> Result<Process> {
    let api = Some(HOST_ADDRESS.into());
    let given = Given::new(&cluster.control_plane, node.name(), node.address(), api).await?;
    let shared = node.share().join("kubevirt");
    let copied = Command::new("cp")
        .args(["--archive", "--link"])
        .args([root, &shared])
        .status()
        .await?;
    ensure!(copied.success(), "{} cannot be put into the node", root.display());
    let prepare = format!(
        "set -e; for d in dev proc sys var/lib/kubelet; do mount --rbind /$d {ROOT}/$d; done; \
         mount --rbind /var/lib/kubelet/pods {ROOT}/pods; \
         for d in run tmp var/lib/kubevirt; do mount -t tmpfs none {ROOT}/$d; done; \
         mkdir -p {ROOT}/run/kubevirt {ROOT}/run/kubevirt-libvirt-runtimes"
    );
    node.run(&prepare, SOON)
        .await
        .context("a root for virt-handler")?;
    for (name, text) in &given.files {
        let path = format!("{ROOT}/var/lib/kubevirt/{name}");
        node.put(&path, text.as_bytes(), 0o600).await?;
    }
    let mut argv = vec!["chroot", ROOT, "/usr/bin/virt-handler"];
    argv.extend(given.flags.iter().map(String::as_str));
    let environment = [
        ("PATH", "/usr/sbin:/usr/bin"),
        ("NODE_NAME", node.name()),
        ("GOGC", "400"),
    ];
    Ok(node.spawn(&argv, &environment, "virt-handler").await?)
}
