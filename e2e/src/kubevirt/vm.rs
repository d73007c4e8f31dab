//! A VM of KubeVirt on the lab's nodes, as its user writes it, with the lab's kernel in place of a disk.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use kube::api::{DeleteParams, DynamicObject, PostParams};
use serde_json::{Value, json};

use super::Kind;
use super::node::HANDLER_PORT;
use crate::cluster::Cluster;
use crate::lab::Inside;
use crate::world::NicSpec;

/// Set apart for a VM, as for those of tier `nodes`: with KubeVirt's 100m the kubelet and containerd starve it while they start pods.
const CPU: &str = "500m";
/// The guest's address by the pods' network changes with its node; its user says that this may be.
const PLAIN_MAY_MIGRATE: &str = "kubevirt.io/allow-pod-bridge-network-live-migration";
/// As whom virt-api asks a virt-handler.
const VIRT_API: &str = "kubevirt.io:system:client:virt-handler";
/// Made by `guest.sh`.
const GUEST: &str = "localhost/hybridnic-guest:lab";

/// One interface of a VM.
#[derive(Debug, Clone)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// The definition of its network.
    pub network: String,
    /// What the guest has.
    pub nic: NicSpec,
    /// Whether the VM says its MAC; otherwise it is the operator's to choose.
    pub says_mac: bool,
}

/// A VM.
#[derive(Debug, Clone)]
pub struct Vm {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its interfaces that the tests look at.
    pub interfaces: Vec<Interface>,
    /// How these are bound.
    pub binding: Value,
    /// Whether it has an interface of the pods' network, too, bound by KubeVirt itself.
    pub plain: bool,
    /// More of the guest kernel's command line.
    pub arguments: String,
    /// In MiB.
    pub memory: u32,
}

impl Vm {
    /// A VM of 192 MiB with one interface, of the same name as its network.
    pub fn new(namespace: &str, name: &str, network: &str, nic: NicSpec) -> Self {
        let vm = Self {
            namespace: namespace.into(),
            name: name.into(),
            interfaces: Vec::new(),
            binding: json!({ "binding": { "name": "hybridnic" } }),
            plain: false,
            arguments: String::new(),
            memory: 192,
        };
        vm.and(network, nic)
    }

    /// With one more interface, of the same name as its network.
    #[must_use]
    pub fn and(mut self, network: &str, nic: NicSpec) -> Self {
        self.interfaces.push(Interface {
            name: network.to_owned(),
            network: network.to_owned(),
            nic,
            says_mac: true,
        });
        self
    }

    /// Its first interface says no MAC. The guest gives that interface's address to the NIC which no other address is for.
    #[must_use]
    pub fn with_any_mac(mut self) -> Self {
        self.interfaces[0].says_mac = false;
        self
    }

    /// With an interface of the pods' network beside. KubeVirt migrates such a VM only where it is asked to by an annotation.
    #[must_use]
    pub fn with_plain(mut self) -> Self {
        self.plain = true;
        self
    }

    /// The same with KubeVirt's own `sriov: {}`.
    pub fn with_sriov(namespace: &str, name: &str, nic: NicSpec) -> Self {
        Self {
            binding: json!({ "sriov": {} }),
            arguments: format!("lab.lone={}", nic.mac),
            ..Self::new(namespace, name, super::sriov::NETWORK, nic)
        }
    }

    /// The name of the object of an interface's NIC.
    pub fn nic(&self, interface: &str) -> String {
        format!("{}-{interface}", self.name)
    }

    /// The same of its first interface.
    pub fn first(&self) -> String {
        self.nic(&self.interfaces[0].name)
    }

    /// It, as its user writes it.
    pub fn object(&self) -> Value {
        let mut arguments = format!(
            "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable no_timer_check {}",
            self.arguments
        );
        let (mut interfaces, mut networks) = (Vec::new(), Vec::new());
        if self.plain {
            interfaces.push(json!({ "name": "plain", "bridge": {} }));
            networks.push(json!({ "name": "plain", "pod": {} }));
        }
        for Interface {
            name,
            network,
            nic,
            says_mac,
        } in &self.interfaces
        {
            let mut interface = self.binding.clone();
            interface["name"] = json!(name);
            if *says_mac {
                interface["macAddress"] = json!(nic.mac);
            }
            let mac = if *says_mac { &nic.mac } else { "any" };
            let _ = write!(arguments, " lab.nic={mac}={}/24", nic.address);
            interfaces.push(interface);
            networks.push(json!({ "name": name, "multus": { "networkName": network } }));
        }
        let boot = json!({
            "kernelArgs": arguments,
            "container": { "image": GUEST, "kernelPath": "/boot/vmlinux", "initrdPath": "/boot/initrd" },
        });
        let annotations = if self.plain {
            json!({ PLAIN_MAY_MIGRATE: "" })
        } else {
            json!({})
        };
        json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachine",
            "metadata": { "name": self.name, "namespace": self.namespace },
            "spec": { "runStrategy": "Always", "template": { "metadata": { "annotations": annotations }, "spec": {
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

    /// Its user has it paused, or run on (`unpause`). `virtctl` asks virt-api, which asks the node's virt-handler: so does this.
    pub async fn tell(&self, cluster: &Cluster, what: &str) -> Result<()> {
        let vmis = Kind::VirtualMachineInstance.api(cluster.client(), &self.namespace);
        let vmi = vmis.get(&self.name).await?;
        let node = vmi.data["status"]["nodeName"].as_str();
        let node = cluster.lab.nodes().iter().find(|n| Some(n.name()) == node);
        let address = node.context("on no node of ours")?.address();
        let dir = cluster.lab.dir();
        let file = |name: &str, text: &str| -> Result<String> {
            let path = dir.join(name);
            std::fs::write(&path, text)?;
            Ok(path.display().to_string())
        };
        let pair = cluster.control_plane.client_certificate(VIRT_API)?;
        let certificate = file("virt-api.crt", &pair.certificate)?;
        let (key, options) = (file("virt-api.key", &pair.key)?, file("options.json", "{}")?);
        cluster
            .kubectl(&[
                "--kubeconfig=/dev/null",
                "--insecure-skip-tls-verify",
                &format!("--server=https://{address}:{HANDLER_PORT}"),
                &format!("--client-certificate={certificate}"),
                &format!("--client-key={key}"),
                "replace",
                &format!(
                    "--raw=/v1/namespaces/{}/virtualmachineinstances/{}/{what}",
                    self.namespace, self.name
                ),
                "-f",
                &options,
            ])
            .await?;
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
