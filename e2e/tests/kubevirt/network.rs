//! What agent and CNI plugin do, by hand: macvtaps on two nodes' PFs, which are ports of one switch, made in a pod's namespace.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use hybridnic_e2e::controlplane::process::Daemon;
use hybridnic_e2e::kubevirt::{Device, Sandbox};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde_json::{Value, json};

const NETWORKS: &str = "k8s.v1.cni.cncf.io/networks";
/// Where KubeVirt looks for what came of them.
pub const STATUS: &str = "k8s.v1.cni.cncf.io/network-status";

/// A switch with a port for each node, in a network namespace of its own. Dropping it ends it.
pub struct Network {
    holder: Daemon,
    /// Of this cluster alone: a device node's name is of its link's index, on the whole machine.
    index: u32,
}

impl Network {
    /// Makes it, for these nodes.
    pub async fn start(dir: &Path, port: u16, nodes: &[&str]) -> Result<Self> {
        let ready = dir.join("network.ready");
        let mut script = "set -e; ip link add lan type bridge; ip link set lan up".to_owned();
        for node in nodes {
            let _ = write!(
                script,
                "; ip link add {node} type veth peer name port-{node}; ip link set port-{node} master lan up; ip link set {node} up"
            );
        }
        let _ = write!(script, "; touch {}; exec sleep infinity", ready.display());
        let args = ["--net", "/bin/sh", "-c", &script].map(Into::into).into();
        let mut holder = Daemon::new("network", Path::new("/usr/bin/unshare"), args, dir);
        holder.start()?;
        for _ in 0..1000 {
            if ready.exists() {
                return Ok(Self {
                    holder,
                    index: 0x4000_0000 | u32::from(port) << 12,
                });
            }
            holder.check()?;
            // Nothing tells of it.
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        anyhow::bail!("no network after ten seconds")
    }

    /// Makes a pod's links, down, as a CNI plugin is asked to; gives their device nodes and what Multus would say of them.
    /// `first` is the node's own number.
    pub fn attach(
        &self,
        node: &str,
        first: u32,
        pod: &Pod,
        sandbox: &Sandbox,
    ) -> Result<(Vec<Device>, String)> {
        let networks: Vec<Value> = serde_json::from_str(&pod.annotations()[NETWORKS])?;
        let (mut devices, mut status) = (Vec::new(), Vec::new());
        for (n, network) in networks.iter().enumerate() {
            let name = network["interface"].as_str().context("no interface")?;
            let index = self.index | first << 4 | u32::try_from(n)?;
            let mac = network["mac"]
                .as_str()
                .map_or_else(|| format!("02:00:00:00:bb:{n:02x}"), Into::into);
            let link = format!(
                "link add link {node} name {name} index {index} address {mac} mtu 1400 netns {} type macvtap mode bridge",
                sandbox.pid()
            );
            ip(self.holder.pid().context("no network")?, &link)?;
            // The namespace's end takes it away again.
            devices.push(Device(PathBuf::from(format!("/dev/tap{index}"))));
            status.push(json!({
                "name": format!("{}/{}", network["namespace"].as_str().unwrap_or("default"), network["name"].as_str().unwrap_or_default()),
                "interface": name, "mac": mac, "dns": {},
            }));
        }
        Ok((devices, serde_json::to_string(&status)?))
    }
}

fn ip(pid: u32, args: &str) -> Result<()> {
    let output = Command::new("nsenter")
        .arg(format!("--net=/proc/{pid}/ns/net"))
        .arg("ip")
        .args(args.split(' '))
        .output()?;
    ensure!(
        output.status.success(),
        "ip {args}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
