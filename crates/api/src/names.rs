//! Names that more than one program must agree on: labels, finalizers, field managers, object names.

/// API group of every kind.
pub const GROUP: &str = "hybridnic.io";

/// Label on a pod that runs QEMU; its value is the VM's name, as in `spec.vm.qemu.name` of a NIC.
pub const VM_LABEL: &str = "hybridnic.io/vm";

/// Label on a [`crate::v1alpha1::NicAttachment`]: the name of its NIC.
pub const NIC_LABEL: &str = "hybridnic.io/nic";

/// Label on what the operator has made for others, with [`OPERATOR_MANAGER`] as its value.
pub const MADE_LABEL: &str = "app.kubernetes.io/managed-by";

/// Label on a `NetworkAttachmentDefinition` of ours: its network.
pub const NETWORK_LABEL: &str = "hybridnic.io/network";

/// Finalizer with which the operator keeps a NIC until its devices have left the guest and its VF is restored.
pub const NIC_FINALIZER: &str = "hybridnic.io/nic";

/// Finalizer with which the operator keeps a network while a NIC is attached to it.
pub const NETWORK_FINALIZER: &str = "hybridnic.io/network";

/// Finalizer with which the operator turns the deletion of a migration into its cancellation.
pub const MIGRATION_FINALIZER: &str = "hybridnic.io/migration";

/// Finalizer with which the agent keeps an attachment until nothing of it is left on the node.
pub const ATTACHMENT_FINALIZER: &str = "hybridnic.io/attachment";

/// Field manager of the operator's server-side apply.
pub const OPERATOR_MANAGER: &str = "hybridnic-operator";

/// Field manager of the node agent's server-side apply.
pub const AGENT_MANAGER: &str = "hybridnic-agent";

/// Name of the volume in which a VM's pod has its QMP socket, an `emptyDir`.
pub const QMP_VOLUME: &str = "hybridnic";

/// The QMP socket's name in that volume.
pub const QMP_SOCKET: &str = "qmp.sock";

/// Name of the volume in which a launcher of KubeVirt has what is its own, an `emptyDir`.
pub const LAUNCHER_VOLUME: &str = "private";

/// Name of the agent's own QMP socket in that volume. The sidecar of the network binding adds it to the VM.
pub const LAUNCHER_SOCKET: &str = "hybridnic-qmp.sock";

/// Where a kubelet has the directories of its pods, unless it was told otherwise (`--root-dir`).
pub const PODS_DIR: &str = "/var/lib/kubelet/pods";

/// The longest name of a NIC: object names, device ids and labels are made from it.
pub const NIC_NAME_MAX: usize = 50;

/// Name of the attachment of NIC `nic` to pod `pod_uid`.
///
/// One NIC can have two attachments during a migration, even on one node, so the pod is what tells them
/// apart; a pod's uid is unique where its name may come again.
pub fn attachment_name(nic: &str, pod_uid: &str) -> String {
    let short: String = pod_uid
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(10)
        .collect();
    format!("{nic}-{}", short.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attachment_names_are_short_and_tell_pods_apart() {
        let a = attachment_name(&"n".repeat(NIC_NAME_MAX), "0b2e7c1d-90aa-4f6e-8d2f-000000000001");
        assert_eq!(a.len(), NIC_NAME_MAX + 11);
        assert!(a.len() <= 63);
        assert_ne!(
            a,
            attachment_name(&"n".repeat(NIC_NAME_MAX), "1b2e7c1d-90aa-4f6e-8d2f-000000000001")
        );
    }
}
