//! The nodes' PFs, which are ports of one switch, and macvtaps on them.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use hybridnic_e2e::controlplane::process::Daemon;
use hybridnic_net::{DeviceId, MacAddr, PciAddress};

/// Of all macvtaps: not the one that everything has by itself.
pub const MTU: u32 = 1400;

/// The address of the nodes' PFs as their devices have it, of the port of this cluster alone: a device node's name is of its link's index, on the
/// whole machine.
pub fn pf(port: u16) -> Option<PciAddress> {
    let [bus, devfn] = port.to_be_bytes();
    PciAddress::new(0, bus, devfn >> 3, devfn & 7)
}

/// A switch with a port for each node, in a network namespace of its own. Dropping it ends it.
pub struct Network {
    holder: Daemon,
}

impl Network {
    /// Makes it, for these nodes.
    pub async fn start(dir: &Path, nodes: &[&str]) -> Result<Self> {
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
                return Ok(Self { holder });
            }
            holder.check()?;
            // Nothing tells of it.
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        anyhow::bail!("no network after ten seconds")
    }

    /// Makes a macvtap for a device, down, on a node's PF and in the network namespace of a process. The namespace's end takes it away.
    pub fn macvtap(&self, node: &str, device: DeviceId, name: &str, mac: MacAddr, pid: u32) -> Result<()> {
        let link = format!(
            "link add link {node} name {name} index {} address {mac} mtu {MTU} netns {pid} type macvtap mode bridge",
            device.ifindex()
        );
        ip(self.holder.pid().context("no network")?, &link)
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
