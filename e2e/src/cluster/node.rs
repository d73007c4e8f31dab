//! What makes a machine of the lab a node: containerd, kubelet, kube-proxy and a device plugin, each a process that can be
//! ended and started again.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::images;
use crate::controlplane::{ControlPlane, tools::NodeTools};
use crate::lab::{COMMON, Node, Process};

/// In `bootstrap.yaml` too.
const BOOTSTRAP_TOKEN: &str = "labtok.0123456789abcdef";
/// What a pod asks for that runs a VM.
pub const VM_RESOURCE: &str = "lab.hybridnic.io/vm";
/// Emulated machines take their time.
const SOON: Duration = Duration::from_mins(2);
/// An image's every octet is counted into a sum, by an emulated processor.
const IMPORT: Duration = Duration::from_mins(6);
const DEATH: Duration = Duration::from_secs(30);
/// Where all nodes see one directory of this host, in place of a file server's.
pub(super) const SHARED: &str = "/common";

/// A node's processes.
pub struct Joined {
    node: Node,
    nodes: usize,
    files: Vec<(&'static str, String)>,
    kubelet: Option<Process>,
    device_plugin: Option<Process>,
    proxy: Option<Process>,
    containerd: Option<Process>,
}

impl Joined {
    /// Makes a machine a node of the cluster; returns when its kubelet has been started.
    pub async fn start(
        node: &Node,
        nodes: usize,
        control_plane: &ControlPlane,
        images: &[PathBuf],
    ) -> Result<Self> {
        let tools = control_plane
            .tools()
            .nodes
            .clone()
            .context("no tools for nodes")?;
        fill_share(node, &tools, images)?;
        let mut joined = Self {
            node: node.clone(),
            nodes,
            files: files(node, control_plane)?,
            kubelet: None,
            device_plugin: None,
            proxy: None,
            containerd: None,
        };
        joined.containerd().await?;
        // It has no pods yet that would miss their images.
        let (imported, begun) = tokio::join!(import(node), joined.kubernetes());
        imported?;
        begun?;
        Ok(joined)
    }

    /// The configuration of the network of a node's pods.
    pub fn network(node: &Node) -> String {
        CNI.replace("SUBNET", &node.site().pods_of(node.number()))
    }

    /// What follows a boot: all processes are started; of those before it none is left.
    pub async fn after_boot(&mut self) -> Result<()> {
        self.containerd().await?;
        import(&self.node).await?;
        self.kubernetes().await
    }

    /// Prepares a machine that has booted, and starts its container runtime.
    async fn containerd(&mut self) -> Result<()> {
        (self.kubelet, self.device_plugin) = (None, None);
        (self.proxy, self.containerd) = (None, None);
        let node = &self.node;
        for (path, text) in &self.files {
            node.put(path, text.as_bytes(), 0o600).await?;
        }
        node.run(&prepare(node, self.nodes), SOON).await?;
        let containerd = node
            .spawn(
                &["containerd", "--config", "/etc/containerd/config.toml"],
                &[],
                "containerd",
            )
            .await?;
        self.containerd = Some(containerd);
        node.run("until ctr version >/dev/null 2>&1; do sleep 0.2; done", SOON)
            .await
            .context("containerd")?;
        Ok(())
    }

    /// Starts what makes it a node of Kubernetes.
    async fn kubernetes(&mut self) -> Result<()> {
        let node = &self.node;
        let name = format!("--hostname-override={}", node.name());
        let pods = format!("--cluster-cidr={}", node.site().pods());
        let proxy = node
            .spawn(
                &[
                    "/host/bin/kube-proxy",
                    "--kubeconfig=/etc/kubernetes/proxy.kubeconfig",
                    "--proxy-mode=nftables",
                    &pods,
                    &name,
                ],
                &[],
                "kube-proxy",
            )
            .await?;
        self.proxy = Some(proxy);
        self.start_kubelet().await
    }

    /// Starts the kubelet, and the device plugin, which must register again with each kubelet.
    pub async fn start_kubelet(&mut self) -> Result<()> {
        let node = &self.node;
        let socket = "/var/lib/kubelet/device-plugins/kubelet.sock";
        node.run(&format!("rm -f {socket}"), SOON).await?;
        let (name, ip) = (
            format!("--hostname-override={}", node.name()),
            format!("--node-ip={}", node.address()),
        );
        let kubelet = node
            .spawn(
                &[
                    "/host/bin/kubelet",
                    "--config=/etc/kubernetes/kubelet.yaml",
                    "--bootstrap-kubeconfig=/etc/kubernetes/bootstrap.kubeconfig",
                    "--kubeconfig=/var/lib/kubelet/kubeconfig",
                    &name,
                    &ip,
                ],
                &[],
                "kubelet",
            )
            .await?;
        // Images may be imported meanwhile.
        node.run(&format!("until [ -S {socket} ]; do sleep 0.2; done"), IMPORT)
            .await
            .context("the kubelet")?;
        let plugin = node
            .spawn(
                &[
                    "/host/bin/deviceplugin",
                    VM_RESOURCE,
                    "/dev/kvm",
                    "/dev/vhost-vsock",
                ],
                &[],
                "deviceplugin",
            )
            .await?;
        self.kubelet = Some(kubelet);
        self.device_plugin = Some(plugin);
        Ok(())
    }

    /// kill -9 of the kubelet. Its containers run on.
    pub async fn kill_kubelet(&mut self) -> Result<()> {
        for process in [self.device_plugin.take(), self.kubelet.take()]
            .into_iter()
            .flatten()
        {
            process.kill(DEATH).await?;
        }
        Ok(())
    }
}

/// Gives a node's container runtime the images that it was given.
async fn import(node: &Node) -> Result<()> {
    node.run(
        "for image in /host/images/*.tar; do ctr -n k8s.io images import --local \"$image\"; done",
        IMPORT,
    )
    .await
    .context("images")?;
    Ok(())
}

/// Puts programs and images where the node sees them.
fn fill_share(node: &Node, tools: &NodeTools, archives: &[PathBuf]) -> Result<()> {
    let share = node.share();
    for (directory, files) in [
        (
            "bin",
            vec![
                tools.kubelet.clone(),
                tools.proxy.clone(),
                tools.device_plugin.clone(),
            ],
        ),
        ("images", archives.to_vec()),
    ] {
        let directory = share.join(directory);
        fs::create_dir_all(&directory)?;
        for file in files {
            let to = directory.join(file.file_name().unwrap_or_default());
            link(&file, &to)?;
        }
    }
    Ok(())
}

/// The cache may be on another file system.
fn link(from: &Path, to: &Path) -> Result<()> {
    let _ = fs::remove_file(to);
    fs::hard_link(from, to)
        .or_else(|_| fs::copy(from, to).map(|_| ()))
        .with_context(|| format!("cannot put {} into the node", from.display()))
}

/// The files of a node's programs, by where they are.
fn files(node: &Node, control_plane: &ControlPlane) -> Result<Vec<(&'static str, String)>> {
    let host = node.site().host().into();
    let bootstrap = control_plane.login_token(BOOTSTRAP_TOKEN).at(host).kubeconfig();
    let proxy = control_plane
        .login("system:kube-proxy", &[])?
        .at(host)
        .kubeconfig();
    let containerd = CONTAINERD.replace("PAUSE", &images::name("pause"));
    Ok(vec![
        ("/etc/kubernetes/ca.crt", control_plane.authority()),
        ("/etc/kubernetes/bootstrap.kubeconfig", bootstrap),
        ("/etc/kubernetes/proxy.kubeconfig", proxy),
        ("/etc/kubernetes/kubelet.yaml", KUBELET.to_owned()),
        ("/etc/cni/net.d/10-lab.conflist", Joined::network(node)),
        ("/etc/containerd/config.toml", containerd),
    ])
}

/// What a machine does before anything runs on it. The journal outlasts a reboot, as a node's disk does; so do the pods'
/// logs, which help with a test that has failed.
fn prepare(node: &Node, nodes: usize) -> String {
    let mut script = String::from(
        "set -e; mkdir -p /var/lib /host/state/hybridnic /host/state/pods; mount -t tmpfs var /var/lib; \
         mkdir -p /var/lib/hybridnic /var/lib/kubelet /var/log/pods /usr/libexec/kubernetes; \
         mount --bind /host/state/hybridnic /var/lib/hybridnic; mount --bind /host/state/pods /var/log/pods; \
         mount --make-rshared /; chmod 666 /dev/kvm /dev/vhost-vsock; \
         echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables; \
         echo '127.0.0.1 localhost' >/etc/hosts; : >/etc/resolv.conf; \
         echo 'root:x:0:0::/root:/bin/sh' >/etc/passwd; ",
    );
    let _ = write!(
        script,
        "mkdir -p {SHARED}; mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none {COMMON} {SHARED}; \
         chmod 777 {SHARED}; "
    );
    for other in 1..=u8::try_from(nodes).unwrap_or(u8::MAX) {
        if other != node.number() {
            let (pods, via) = (node.site().pods_of(other), node.site().node(other));
            let _ = write!(script, "ip route replace {pods} via {via}; ");
        }
    }
    script
}

const KUBELET: &str = "
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: /etc/kubernetes/ca.crt}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
failSwapOn: false
evictionHard: {memory.available: 50Mi}
rotateCertificates: true
resolvConf: /etc/resolv.conf
";

const CONTAINERD: &str = "
version = 3
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
  [plugins.'io.containerd.cri.v1.images'.pinned_images]
    sandbox = 'PAUSE'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
    SystemdCgroup = false
";

const CNI: &str = r#"
{"cniVersion": "1.0.0", "name": "lab", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "SUBNET"}]], "routes": [{"dst": "0.0.0.0/0"}]}}
]}
"#;
