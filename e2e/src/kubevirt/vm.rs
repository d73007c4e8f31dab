//! A VM of KubeVirt on the lab's nodes, as its user writes it, with the lab's kernel in place of a disk.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use kube::api::{DeleteParams, DynamicObject, PostParams};
use serde_json::{Value, json};

use super::Kind;
use crate::cluster::Cluster;
use crate::lab::Inside;
use crate::world::NicSpec;

/// Set apart for a VM, as for those of tier `nodes`: with KubeVirt's 100m the kubelet and containerd starve it while they start pods.
const CPU: &str = "500m";
/// Made by `guest.sh`.
const GUEST: &str = "localhost/hybridnic-guest:lab";

/// A VM.
#[derive(Debug, Clone)]
pub struct Vm {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its interfaces: name, and what the guest has.
    pub nics: Vec<(String, NicSpec)>,
    /// How its interfaces are bound.
    pub binding: Value,
    /// The definition of their network.
    pub network: String,
    /// More of the guest kernel's command line.
    pub arguments: &'static str,
    /// In MiB.
    pub memory: u32,
}

impl Vm {
    /// A VM of 192 MiB with one interface, `fast`, of the network of that name.
    pub fn new(namespace: &str, name: &str, nic: NicSpec) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            nics: vec![("fast".to_owned(), nic)],
            binding: json!({ "binding": { "name": "hybridnic" } }),
            network: "fast".to_owned(),
            arguments: "",
            memory: 192,
        }
    }

    /// With one more interface of the same network.
    #[must_use]
    pub fn and(mut self, interface: &str, nic: NicSpec) -> Self {
        self.nics.push((interface.to_owned(), nic));
        self
    }

    /// The same with KubeVirt's own `sriov: {}`.
    pub fn with_sriov(namespace: &str, name: &str, nic: NicSpec) -> Self {
        Self {
            binding: json!({ "sriov": {} }),
            network: super::sriov::NETWORK.to_owned(),
            arguments: "lab.lone=1",
            ..Self::new(namespace, name, nic)
        }
    }

    /// The name of the object of an interface's NIC.
    pub fn nic(&self, interface: &str) -> String {
        format!("{}-{interface}", self.name)
    }

    fn object(&self) -> Value {
        let mut arguments = format!(
            "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable no_timer_check {}",
            self.arguments
        );
        let mut interfaces = Vec::new();
        let mut networks = Vec::new();
        for (name, nic) in &self.nics {
            let _ = write!(arguments, " lab.nic={}={}/24", nic.mac, nic.address);
            let mut interface = self.binding.clone();
            interface["name"] = json!(name);
            interface["macAddress"] = json!(nic.mac);
            interfaces.push(interface);
            networks.push(json!({ "name": name, "multus": { "networkName": self.network } }));
        }
        let boot = json!({
            "kernelArgs": arguments,
            "container": { "image": GUEST, "kernelPath": "/boot/vmlinux", "initrdPath": "/boot/initrd" },
        });
        json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
            "metadata": { "name": self.name, "namespace": self.namespace },
            "spec": { "runStrategy": "Always", "template": { "spec": {
                "evictionStrategy": "LiveMigrate",
                "terminationGracePeriodSeconds": 0,
                "domain": {
                    "cpu": { "model": "host-passthrough" },
                    "memory": { "guest": format!("{}Mi", self.memory) },
                    "resources": { "requests": { "cpu": CPU } },
                    "firmware": { "kernelBoot": boot },
                    "devices": {
                        "autoattachPodInterface": false, "autoattachGraphicsDevice": false, "autoattachMemBalloon": false,
                        // The way in for what looks at the guest.
                        "autoattachVSOCK": true,
                        "interfaces": interfaces,
                    },
                },
                "networks": networks,
            }}},
        })
    }

    /// Its user makes it.
    pub async fn create(&self, cluster: &Cluster) -> Result<()> {
        let vms = Kind::VirtualMachine.api(cluster.client(), &self.namespace);
        let vm: DynamicObject = serde_json::from_value(self.object())?;
        vms.create(&PostParams::default(), &vm).await?;
        Ok(())
    }

    /// Its user stops it for good. It may still be there when this returns.
    pub async fn delete(&self, cluster: &Cluster) -> Result<()> {
        let vms = Kind::VirtualMachine.api(cluster.client(), &self.namespace);
        vms.delete(&self.name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Its guest on the node that KubeVirt says it runs on.
    pub async fn inside(&self, cluster: &Cluster) -> Result<Inside> {
        let vmis = Kind::VirtualMachineInstance.api(cluster.client(), &self.namespace);
        let vmi = vmis.get(&self.name).await?;
        let status = &vmi.data["status"];
        let cid = status["VSOCKCID"].as_u64().context("the VM has no vsock")?;
        let node = status["nodeName"].as_str().context("the VM is nowhere")?;
        let node = cluster.lab.nodes().iter().find(|n| n.name() == node);
        Ok(Inside::new(
            node.context("on no node of ours")?,
            u32::try_from(cid)?,
        ))
    }
}
