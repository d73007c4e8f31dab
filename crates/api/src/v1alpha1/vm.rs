//! Virtual machines, by the runtime that runs them.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{Display, IntoStaticStr};

use crate::limits;

/// What runs a VM.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, Display, IntoStaticStr,
)]
#[cfg_attr(test, derive(strum::VariantArray))]
#[serde(rename_all = "camelCase")]
#[strum(serialize_all = "camelCase")]
pub enum Runtime {
    /// Somebody starts QEMU in a pod, and this operator migrates the VM.
    Qemu,
    /// KubeVirt starts the VM and migrates it.
    Kubevirt,
}

/// A virtual machine, by the runtime that runs it. Exactly one runtime is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.qemu) != has(self.kubevirt)")
    .message("vm must name exactly one runtime, as in vm: {qemu: {name: my-vm}} or vm: {kubevirt: {name: my-vm}}"))]
pub struct Vm {
    /// A VM whose QEMU runs in a pod with the label `hybridnic.io/vm: NAME`, in the NIC's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu: Option<QemuVm>,
    /// A VM of KubeVirt, in the NIC's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubevirt: Option<KubevirtVm>,
}

/// A VM of the qemu runtime.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct QemuVm {
    /// Value of the label `hybridnic.io/vm` on the VM's pods.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$')")
        .message("the VM's name must be the value of its pods' label hybridnic.io/vm"))]
    pub name: String,
}

/// A VM of KubeVirt.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct KubevirtVm {
    /// Name of the `VirtualMachine`, which is that of its `VirtualMachineInstance` too.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$')")
        .message("the VM's name must be the name of a VirtualMachine or VirtualMachineInstance"))]
    pub name: String,
    /// Name of the interface in the VM's `spec.domain.devices.interfaces`; without it, its only one with the binding `hybridnic` on
    /// the NIC's network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = limits::LABEL))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_-]+$')")
        .message("interface must be the name of an interface of the VM, as in \"fast\""))]
    pub interface: Option<String>,
}

impl Vm {
    /// What runs it; none where that is a runtime that this version does not know.
    pub fn runtime(&self) -> Option<Runtime> {
        Some(self.attached()?.runtime())
    }

    /// Its name; none where its runtime is one that this version does not know.
    pub fn name(&self) -> Option<&str> {
        let qemu = self.qemu.as_ref().map(|vm| vm.name.as_str());
        qemu.or_else(|| self.kubevirt.as_ref().map(|vm| vm.name.as_str()))
    }

    /// As an attachment names it.
    pub fn attached(&self) -> Option<AttachedVm> {
        match (&self.qemu, &self.kubevirt) {
            (Some(QemuVm { name }), _) => Some(AttachedVm::Qemu { name: name.clone() }),
            (None, Some(KubevirtVm { name, .. })) => Some(AttachedVm::Kubevirt { name: name.clone() }),
            (None, None) => None,
        }
    }
}

/// The virtual machine of an attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum AttachedVm {
    /// A VM whose QEMU somebody starts.
    Qemu {
        /// Value of the label `hybridnic.io/vm` on its pods.
        #[schemars(length(max = limits::LABEL))]
        name: String,
    },
    /// A VM of KubeVirt.
    Kubevirt {
        /// Name of the `VirtualMachine`.
        #[schemars(length(max = limits::LABEL))]
        name: String,
    },
}

impl AttachedVm {
    /// What runs it.
    pub fn runtime(&self) -> Runtime {
        match self {
            Self::Qemu { .. } => Runtime::Qemu,
            Self::Kubevirt { .. } => Runtime::Kubevirt,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Qemu { name } | Self::Kubevirt { name } => name,
        }
    }
}
