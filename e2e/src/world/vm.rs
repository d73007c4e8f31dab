//! VMs as pods: the API object, its QEMU on a node, and a stand-in for the kubelet that keeps its status.

use std::{
    fmt::Write as _,
    net::Ipv4Addr,
    sync::{Arc, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use hybridnic_api::{
    names::VM_LABEL,
    v1alpha1::{Pairing, StandbyKind},
};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio_util::task::AbortOnDropHandle;

use super::{NAMESPACE, World, fault::report_loss};
use crate::lab::{Guest, GuestSpec, Manager, managed};

/// The longest that a test runs.
const FOREVER: Duration = Duration::from_hours(2);

/// A NIC that a VM is going to have.
#[derive(Debug, Clone)]
pub struct NicSpec {
    /// Its MAC address.
    pub mac: String,
    /// The address that the guest gives it.
    pub address: Ipv4Addr,
    /// What it has besides its VF.
    pub standby: StandbyKind,
}

impl NicSpec {
    /// A NIC by the last octets of its MAC and of its address, 10.77.NET.HOST.
    pub fn new(net: u8, host: u8) -> Self {
        Self {
            mac: format!("52:54:00:77:{net:02x}:{host:02x}"),
            address: Ipv4Addr::new(10, 77, net, host),
            standby: StandbyKind::Macvtap,
        }
    }

    /// The same with `standby: None`, in a guest that gives its VF the address.
    #[must_use]
    pub fn alone(self) -> Self {
        Self {
            standby: StandbyKind::None,
            ..self
        }
    }
}

/// What a VM is to be like.
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// Its name: the value of its pods' label.
    pub name: String,
    /// Its NICs.
    pub nics: Vec<NicSpec>,
    /// In MiB.
    pub memory: u32,
    /// Whether the guest lets go of devices.
    pub hotplug: bool,
    /// Whether its pods are those of an IPv6-only cluster.
    pub ipv6: bool,
    /// Whether QEMU runs in its pod's control group.
    pub grouped: bool,
    /// How its NICs say that the guest pairs VF and standby.
    pub pairing: Pairing,
    /// Name of its initramfs: see [`GuestSpec::initrd`].
    pub initrd: String,
    /// More of the guest kernel's command line.
    pub kernel_args: String,
}

impl VmSpec {
    /// A VM with these NICs.
    pub fn new(name: &str, nics: &[NicSpec]) -> Self {
        Self {
            name: name.into(),
            nics: nics.to_vec(),
            memory: 192,
            hotplug: true,
            ipv6: false,
            grouped: true,
            pairing: Pairing::NetFailover,
            initrd: "initrd".into(),
            kernel_args: String::new(),
        }
    }

    /// The same with `pairing: Bond`, and a guest that makes the bond.
    #[must_use]
    pub fn bonded(self) -> Self {
        Self {
            pairing: Pairing::Bond,
            kernel_args: "lab.bond=1".into(),
            ..self
        }
    }

    /// The same with Debian's own systemd in the guest, and its network in the hands of this manager: see
    /// [`crate::lab::Lab::add_managed`].
    #[must_use]
    pub fn managed(self, manager: Manager) -> Self {
        Self {
            memory: managed::MEMORY,
            initrd: managed::INITRD.into(),
            kernel_args: manager.kernel_args().into(),
            ..self
        }
    }

    /// The same with NICs that are all [`NicSpec::alone`].
    #[must_use]
    pub fn alone(self) -> Self {
        Self {
            nics: self.nics.into_iter().map(NicSpec::alone).collect(),
            ..self
        }
    }

    /// YAML of a VmHybridNic for NIC number `index`.
    pub fn nic_yaml(&self, index: usize, network: &str) -> String {
        let NicSpec { mac, standby, .. } = &self.nics[index];
        format!(
            "apiVersion: hybridnic.io/v1alpha1\nkind: VmHybridNic\nmetadata:\n  name: {}\n  namespace: {NAMESPACE}\n\
             spec:\n  network: {network}\n  vm:\n    qemu:\n      name: {}\n  mac: \"{mac}\"\n  standby: {standby:?}\n  pairing: {:?}\n---\n",
            self.nic_name(index),
            self.name,
            self.pairing
        )
    }

    /// Name of NIC number `index`.
    pub fn nic_name(&self, index: usize) -> String {
        format!("{}-{index}", self.name)
    }
}

/// A pod with a VM, or with a QEMU that waits for one.
pub struct Vm {
    /// Its pod.
    pub pod: String,
    /// The pod's uid.
    pub pod_uid: String,
    /// Its node, from 1.
    pub node: usize,
    /// The guest; shared with the stand-in for the kubelet.
    pub guest: Arc<Guest>,
    _kubelet: AbortOnDropHandle<()>,
    _watcher: AbortOnDropHandle<()>,
}

impl World {
    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client(), NAMESPACE)
    }

    /// Makes a pod on a node and starts its QEMU; with `incoming` it waits for a migration.
    pub async fn start_vm(&self, spec: &VmSpec, pod: &str, node: usize, incoming: bool) -> Result<Vm> {
        let name = self.node(node).name().to_owned();
        let object: Pod = serde_json::from_value(json!({
            "metadata": { "name": pod, "labels": { VM_LABEL: spec.name } },
            "spec": {
                "nodeName": name,
                "hostNetwork": true,
                "restartPolicy": "Never",
                "containers": [{ "name": "qemu", "image": "lab/qemu" }],
            },
        }))?;
        let object = self.pods().create(&PostParams::default(), &object).await?;
        let pod_uid = object.uid().context("a pod without a uid")?;
        let mut guest = GuestSpec::new(pod);
        guest.namespace = NAMESPACE.into();
        guest.memory = spec.memory;
        guest.incoming = incoming;
        guest.hotplug = spec.hotplug;
        guest.pod_uid.clone_from(&pod_uid);
        guest.grouped = spec.grouped;
        guest.initrd.clone_from(&spec.initrd);
        guest.kernel_args.clone_from(&spec.kernel_args);
        for nic in &spec.nics {
            guest = guest.nic(&nic.mac, &format!("{}/24", nic.address));
            if nic.standby == StandbyKind::None {
                let _ = write!(guest.kernel_args, " lab.lone={}", nic.mac);
            }
        }
        let guest = Arc::new(self.node(node).start_guest(guest).await?);
        self.guests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::clone(&guest));
        let ip = if spec.ipv6 {
            self.node(node).address6()
        } else {
            self.node(node).address()
        };
        self.set_pod_status(
            pod,
            json!({
                "phase": "Running",
                "podIP": ip,
                "podIPs": [{ "ip": ip }],
                "conditions": [{ "type": "Ready", "status": "True" }],
            }),
        )
        .await?;
        let kubelet = tokio::spawn(keep_status(self.pods(), pod.to_owned(), Arc::clone(&guest)));
        let watcher = tokio::spawn(report_loss(Arc::clone(&guest), self.lost.clone()));
        Ok(Vm {
            pod: pod.into(),
            pod_uid,
            node,
            guest,
            _kubelet: AbortOnDropHandle::new(kubelet),
            _watcher: AbortOnDropHandle::new(watcher),
        })
    }

    async fn set_pod_status(&self, pod: &str, status: serde_json::Value) -> Result<()> {
        let patch = json!({ "status": status });
        self.pods()
            .patch_status(pod, &PatchParams::default(), &Patch::Merge(&patch))
            .await?;
        Ok(())
    }

    /// Ends a pod's QEMU and removes the pod.
    pub async fn delete_pod(&self, vm: &Vm) -> Result<()> {
        vm.guest.kill().await?;
        vm.guest.remove_pod().await?;
        self.pods()
            .delete(&vm.pod, &DeleteParams::default().grace_period(0))
            .await?;
        Ok(())
    }
}

/// What a kubelet does when a pod's only container ends.
async fn keep_status(pods: Api<Pod>, pod: String, guest: Arc<Guest>) {
    let code = guest.qemu().wait(FOREVER).await;
    let phase = if matches!(code, Ok(Some(0))) {
        "Succeeded"
    } else {
        eprintln!("--- QEMU of the pod {pod} has ended: {code:?}");
        "Failed"
    };
    let patch = json!({ "status": { "phase": phase } });
    // The pod may be gone already.
    let _ = pods
        .patch_status(&pod, &PatchParams::default(), &Patch::Merge(&patch))
        .await;
}
