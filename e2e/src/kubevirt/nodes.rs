//! KubeVirt and Multus on the emulated nodes of a [`Cluster`]: launchers are pods that kubelets start, of an image made from the
//! root that the processes have. virt-handler and Multus are on the nodes as their DaemonSets would put them there, and not as pods.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use serde_json::{Value, json};
use tokio::process::Command;

use super::node::Given;
use super::{KubeVirt, MULTUS, SCRIPT};
use crate::cluster::Cluster;
use crate::controlplane::tools::Built;
use crate::lab::{Kernel, Lab, Node, Process};

const IMAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kubevirt/image.sh");
const GUEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kubevirt/guest.sh");
/// For what an emulated node is told to do.
const SOON: Duration = Duration::from_mins(3);
/// For the end of a program that is killed.
const DEATH: Duration = Duration::from_secs(30);
/// What a VM asks of its node, and what it asks of the next one: the version that its QEMU has made of it. virt-handler's labeller
/// would say them.
const MACHINES: [&str; 2] = ["q35", "pc-q35-10.0"];
/// KubeVirt asks at a migration's target for the guest's image by the digest that the source's node has for it. An image that was
/// imported has none.
const BY_DIGEST: &str = "image=localhost/hybridnic-guest; \
     digest=$(ctr -n k8s.io images ls name==$image:lab | awk 'NR == 2 { print $3 }') && \
     ctr -n k8s.io images tag --force $image:lab $image@$digest";
/// Where container runtimes look for networks.
const CNI_CONFIG: &str = "/etc/cni/net.d";
const MULTUS_CONFIG: &str = "/etc/cni/net.d/multus.d/daemon-config.json";
/// Where a virt-handler's root is on its node.
const ROOT: &str = "/host/kubevirt";

/// The images of launchers and of the guest, made where they are missing: a cluster's nodes are to be started with them.
pub async fn images() -> Result<[PathBuf; 2]> {
    let [kernel, initrd] = Lab::guest(Kernel::Kube).await?;
    Ok([
        super::node::made_by(IMAGE, &[]).await?,
        super::node::made_by(GUEST, &[&kernel, &initrd]).await?,
    ])
}

/// KubeVirt, running. Dropping it ends its programs.
pub struct OnNodes {
    /// What offers VFs for `sriov: {}`.
    pub(super) offers: Vec<Process>,
    halves: Vec<Half>,
    _kubevirt: KubeVirt,
}

/// A node's half of it.
struct Half {
    node: Node,
    /// virt-handler's.
    flags: Vec<String>,
    handler: Process,
    _multus: Process,
}

impl OnNodes {
    /// Installs Multus and KubeVirt, with this `spec.configuration`.
    pub async fn start(cluster: &Cluster, configuration: Value) -> Result<Self> {
        let mut built = Built::by(SCRIPT, &["multus-daemon", "multus-shim"]).await?;
        let multus = [built.take("multus-daemon")?, built.take("multus-shim")?];
        cluster.apply(MULTUS).await?;
        let kubevirt = KubeVirt::start(&cluster.control_plane, configuration).await?;
        let root = super::root().await?;
        let nodes = cluster.lab.nodes().iter();
        let halves = nodes.map(|node| Half::start(cluster, node, &root, &multus));
        Ok(Self {
            offers: Vec::new(),
            halves: try_join_all(halves).await?,
            _kubevirt: kubevirt,
        })
    }

    /// kill -9 of a node's virt-handler, the node counted from 1. Its launchers run on.
    pub async fn kill_handler(&self, node: usize) -> Result<()> {
        Ok(self.halves[node - 1].handler.kill(DEATH).await?)
    }

    /// A new one in its place.
    pub async fn start_handler(&mut self, node: usize) -> Result<()> {
        let half = &mut self.halves[node - 1];
        half.handler = start_handler(&half.node, &half.flags).await?;
        Ok(())
    }
}

impl Half {
    async fn start(cluster: &Cluster, node: &Node, root: &Path, multus: &[PathBuf; 2]) -> Result<Self> {
        let daemon = start_multus(cluster, node, multus.each_ref().map(AsRef::as_ref)).await?;
        let flags = prepare_handler(cluster, node, root).await?;
        let handler = start_handler(node, &flags).await?;
        node.run(BY_DIGEST, SOON)
            .await
            .context("the guest's image by its digest")?;
        for machine in MACHINES {
            let label = format!("machine-type.node.kubevirt.io/{machine}=true");
            cluster.kubectl(&["label", "node", node.name(), &label]).await?;
        }
        let wait = format!("node/{}", node.name());
        let labelled = "--for=jsonpath={.metadata.labels.kubevirt\\.io/schedulable}=true";
        cluster
            .kubectl(&["wait", &wait, labelled, "--timeout=180s"])
            .await?;
        Ok(Self {
            node: node.clone(),
            flags,
            handler,
            _multus: daemon,
        })
    }
}

/// Multus' daemon, the thick plugin, and the shim that hands it what the container runtime asks. The thin one has 2.5 s for its
/// question to the API server, a new connection each time: too little on an emulated node.
async fn start_multus(cluster: &Cluster, node: &Node, programs: [&Path; 2]) -> Result<Process> {
    for program in programs {
        show(node, program)?;
    }
    let login = cluster
        .control_plane
        .login_service_account("kube-system", "multus", None)
        .await?;
    let token = login.bearer().context("a service account without a token")?;
    let account = "/var/run/secrets/kubernetes.io/serviceaccount";
    let authority = cluster.control_plane.authority();
    // It finds the cluster's own network beside its own configuration, and hands on to it what is not asked for by name.
    let config = json!({
        "cniVersion": "1.0.0", "logLevel": "verbose", "logToStderr": true, "multusConfigFile": "auto",
        "cniConfigDir": CNI_CONFIG, "multusAutoconfigDir": CNI_CONFIG, "socketDir": "/run/multus",
    });
    for (path, text) in [
        (format!("{account}/token"), token),
        (format!("{account}/ca.crt"), authority.as_str()),
        (MULTUS_CONFIG.to_owned(), config.to_string().as_str()),
    ] {
        node.put(&path, text.as_bytes(), 0o600).await?;
    }
    node.run("ln -sf /host/bin/multus-shim /usr/lib/cni/multus-shim", SOON)
        .await?;
    let host = node.site().host().to_string();
    let port = cluster.control_plane.port().to_string();
    let environment = [
        ("KUBERNETES_SERVICE_HOST", host.as_str()),
        ("KUBERNETES_SERVICE_PORT", port.as_str()),
        ("MULTUS_NODE_NAME", node.name()),
    ];
    let argv = ["/host/bin/multus-daemon", "-config", MULTUS_CONFIG];
    let daemon = node.spawn(&argv, &environment, "multus-daemon").await?;
    node.run(
        &format!("until [ -e {CNI_CONFIG}/00-multus.conf ]; do sleep 0.2; done"),
        SOON,
    )
    .await
    .context("Multus")?;
    Ok(daemon)
}

/// Puts a program where a node finds it: /host/bin.
pub(super) fn show(node: &Node, program: &Path) -> Result<()> {
    let name = program.file_name().context("a program without a name")?;
    let shared = node.share().join("bin").join(name);
    if !shared.exists() {
        std::fs::hard_link(program, &shared).or_else(|_| std::fs::copy(program, &shared).map(|_| ()))?;
    }
    Ok(())
}

/// What a virt-handler finds in the launchers' root, which this host shows the node. Gives its flags.
async fn prepare_handler(cluster: &Cluster, node: &Node, root: &Path) -> Result<Vec<String>> {
    let api = Some(node.site().host().into());
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
    Ok(given.flags)
}

async fn start_handler(node: &Node, flags: &[String]) -> Result<Process> {
    let mut argv = vec!["chroot", ROOT, "/usr/bin/virt-handler"];
    argv.extend(flags.iter().map(String::as_str));
    let environment = [
        ("PATH", "/usr/sbin:/usr/bin"),
        ("NODE_NAME", node.name()),
        ("GOGC", "400"),
    ];
    Ok(node.spawn(&argv, &environment, "virt-handler").await?)
}
