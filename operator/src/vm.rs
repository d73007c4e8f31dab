//! Which VM: its namespace, its name, and what runs it.

use hybridnic_api::foreign::kubevirt::{LAUNCHER, NAME_LABEL, POD_LABEL, VirtualMachineInstanceMigration};
use hybridnic_api::names::VM_LABEL;
use hybridnic_api::v1alpha1::{NicAttachment, QemuMigration, Runtime, VmHybridNic};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::moves::file::OnFile;

/// A VM. Two runtimes may have one of the same name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VmRef {
    /// What runs it, and knows in which of its pods it is.
    pub runtime: Runtime,
    /// Its namespace.
    pub namespace: String,
    /// Its name; for [`Runtime::Qemu`] the value of its pods' label.
    pub name: String,
}

impl VmRef {
    /// A VM of the qemu runtime.
    pub fn qemu(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            runtime: Runtime::Qemu,
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// A VM of KubeVirt.
    pub fn kubevirt(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            runtime: Runtime::Kubevirt,
            ..Self::qemu(namespace, name)
        }
    }

    /// The VM of a NIC; none if this version does not know the runtime.
    pub fn of_nic(nic: &VmHybridNic) -> Option<Self> {
        let vm = &nic.spec.vm;
        Some(Self {
            runtime: vm.runtime()?,
            namespace: namespace(nic),
            name: vm.name()?.to_owned(),
        })
    }

    /// The VM of an attachment.
    pub fn of_attachment(attachment: &NicAttachment) -> Self {
        let vm = &attachment.spec.vm;
        Self {
            runtime: vm.runtime(),
            namespace: namespace(attachment),
            name: vm.name().to_owned(),
        }
    }

    /// The VM that a pod runs, or may run.
    pub fn of_pod(pod: &Pod) -> Option<Self> {
        let labels = pod.labels();
        if labels.get(POD_LABEL).is_some_and(|what| what == LAUNCHER) {
            return Some(Self::kubevirt(namespace(pod), labels.get(NAME_LABEL)?));
        }
        Some(Self::qemu(namespace(pod), labels.get(VM_LABEL)?))
    }

    /// The VM of a migration.
    pub fn of_migration(migration: &QemuMigration) -> Self {
        Self::qemu(namespace(migration), &migration.spec.vm)
    }

    /// The VM of a save or a restore.
    pub fn on_file(object: &impl OnFile) -> Self {
        Self::qemu(namespace(object), object.vm())
    }

    /// The VM of a migration of KubeVirt's.
    pub fn of_kubevirt_migration(migration: &VirtualMachineInstanceMigration) -> Self {
        Self::kubevirt(namespace(migration), &migration.spec.vmi_name)
    }
}

fn namespace(object: &impl ResourceExt) -> String {
    object.namespace().unwrap_or_default()
}
