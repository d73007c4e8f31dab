//! What to do about a reason, in a line. docs/troubleshooting.md says more.

use hybridnic_api::conditions::reasons;

/// What to do about it; for a reason that is not known here, where to read on.
pub fn remedy(reason: &str) -> String {
    match reason {
        reasons::NETWORK_NOT_FOUND => "create the HybridNetwork that the NIC names",
        reasons::NAMESPACE_NOT_ALLOWED => "label the namespace, or change the network's namespaceSelector",
        reasons::MAC_CONFLICT => "delete one of the two NICs, or create this one again with another address",
        reasons::MAC_NOT_ALLOWED => {
            "create the NIC again without spec.mac or with one of the network's macRange, or change the network's macs"
        }
        reasons::MAC_RANGE_EXHAUSTED => "widen spec.macRange of the network",
        reasons::POD_NOT_FOUND => {
            "start the VM; compare its pod's label hybridnic.io/vm with spec.vm.qemu.name, or its name with spec.vm.kubevirt.name"
        }
        reasons::KUBEVIRT_NOT_READY => {
            "install what the message names, or register the binding: it has the command"
        }
        reasons::ARRIVAL_UNPROVEN => "bring back the agent that the message names",
        reasons::INTERFACE_UNFIT => "change the VM as the message says, and restart it",
        reasons::MIGRATION_UNSUPPORTED => "migrate the VM within the cluster",
        reasons::POD_NOT_RUNNING => "kubectl describe pod says why it does not run",
        reasons::AGENT_NOT_FOUND => "run the agent on the pod's node",
        reasons::NODE_NOT_IN_NETWORK => {
            "label the node, change the network's nodeSelector, or run the VM elsewhere"
        }
        reasons::POOL_EMPTY => {
            "compare spec.uplinks with kubectl hybridnic node NAME; create VFs or set numVfs"
        }
        reasons::NODES_AWAY => "bring the nodes back, or their agents: kubectl get nodes, kubectl get pods -A -l app.kubernetes.io/component=agent",
        reasons::POOL_UNHEALTHY => "kubectl hybridnic node NAME says of each VF why it cannot be used",
        reasons::NETWORK_IN_USE => "delete the NICs that the message names, or wait: it goes with the last",
        reasons::NO_IOMMU => "switch the IOMMU on in firmware and kernel (intel_iommu=on)",
        reasons::NO_UPLINK => {
            "compare spec.uplinks with kubectl hybridnic node NAME: PFs in a bond or bridge, of InfiniBand or in switchdev mode do not count"
        }
        reasons::NO_FREE_VF => "free a VF or create more; kubectl hybridnic node NAME shows who holds which",
        reasons::NO_VFIO_GROUP => "restart the VM, or migrate it: its new pod gets a VF with its device",
        reasons::PF_LINK_DOWN => "look at cable and switch",
        reasons::VF_UNKNOWN => {
            "if it does not pass: has the PF its driver, and its interface in the host's namespace?"
        }
        reasons::VF_SETTING_REFUSED => "change the setting of the network that the message names",
        reasons::PORT_PROFILE_REFUSED | reasons::PORT_PROFILE_TIMEOUT => {
            "does the switch answer, and does it know the network's port profile at the PF's port?"
        }
        reasons::PORT_PROFILE_UNSUPPORTED => {
            "take the PF out of the network's uplinks: its driver has no port profiles"
        }
        reasons::VF_BIND_FAILED => "is the module vfio-pci there, and the IOMMU on?",
        reasons::VF_IN_USE => "end the process that uses the VF: fuser /dev/vfio/* /dev/hybridnic/* on the node",
        reasons::JOURNAL_FAILED => {
            "a journal that cannot be written needs room and write access; a record that cannot be read, what docs/troubleshooting.md says"
        }
        reasons::DEVICE_HUNG => {
            "the driver hangs: look for it in the node's kernel log; a reset of the card or the node ends it"
        }
        reasons::SOCKETS_NOT_WATCHED => "raise fs.inotify.max_user_instances on the node",
        reasons::CNI_UNAVAILABLE => {
            "is agent.cni.binDir of the chart the node's directory of CNI plugins, and can it be written?"
        }
        reasons::KUBELET_UNREACHABLE => "does the kubelet run there, with the directories that the agent's pod mounts?",
        reasons::NOT_OFFERED => "VFs of a PF in a PCI domain above 3 are not offered; if the name is too long, make a network with a shorter one",
        reasons::QMP_UNAVAILABLE => {
            "does QEMU listen on qmp.sock in the pod's emptyDir hybridnic, with no other client?"
        }
        reasons::QMP_UNTRUSTED => {
            "QEMU itself makes qmp.sock, in the pod's emptyDir hybridnic; docs/troubleshooting.md says what else may be there"
        }
        reasons::QMP_FLOOD => "its guest may have taken QEMU over: look at the VM, and start it again",
        reasons::NO_GUEST_PORT => "start QEMU with two pcie-root-ports with ids for each hybrid NIC, or one for a NIC without a standby",
        reasons::GUEST_NO_FAILOVER => {
            "the guest needs Linux 4.18 or later with net_failover; or, if the VM is not KubeVirt's, the NIC pairing: Bond, and the guest a bond"
        }
        reasons::GUEST_NOT_BONDED => {
            "the guest needs a bond of mode active-backup with VF and standby in it; docs/guests.md shows some"
        }
        reasons::GUEST_IGNORES_VF => "the guest needs the VF's driver",
        reasons::GUEST_KEEPS_VF => {
            "the guest needs a hot-plug driver (acpiphp or pciehp), and must not be paused"
        }
        reasons::AGENT_PENDING => "does the agent run on the pod's node, and reach the API server?",
        reasons::WAITING_FOR_DETACH => "does the agent run on the node that the message names? kubectl get nicatt",
        reasons::DETACH_STUCK => "do what the message says; the NIC is attached nowhere else before",
        reasons::NODE_UNREACHABLE => {
            "bring the node back; or, if the machine is off, taint it node.kubernetes.io/out-of-service, or delete it"
        }
        reasons::DRAINING => "kubectl hybridnic drain-pf NODE PF --watch says which NICs still hold VFs, and why",
        reasons::NOTHING_TO_DRAIN => "correct spec.drain of the HybridNode, or take it away",
        reasons::PF_DRAINED => "kubectl hybridnic undrain-pf NODE PF when the card is ready; the NIC then takes a VF by itself",
        reasons::STANDBY_REQUESTED => "kubectl hybridnic fast NIC brings it back to a VF",
        reasons::MIGRATING => "kubectl get qmig; for KubeVirt's VMs kubectl get vmim",
        reasons::TARGET_SILENT | reasons::NEEDS_DECISION => {
            "bring the target's node and agent back, or take the decision that the message names"
        }
        reasons::TLS_UNAVAILABLE => "give both ends a QEMU with GnuTLS, or let the VM be sent in plain",
        reasons::VM_INCOMING => "start the VM; or, if it runs in another pod, delete the one that waits",
        reasons::PROGRESSING => "if it does not pass, read the log of the agent on the pod's node",
        other => return format!("docs/troubleshooting.md explains {other}"),
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_reasons_and_others() {
        assert!(remedy(reasons::GUEST_KEEPS_VF).contains("acpiphp"));
        assert_eq!(remedy("Never"), "docs/troubleshooting.md explains Never");
    }

    /// The documentation that an unknown reason is sent to knows every reason of this list.
    #[test]
    fn the_documentation_has_them() {
        let text = include_str!("../../../../docs/troubleshooting.md");
        for reason in [
            reasons::STANDBY_FAILED,
            reasons::QEMU_REFUSED,
            reasons::VF_LOST,
            reasons::FAILED,
        ] {
            assert!(text.contains(&format!("`{reason}`")), "{reason}");
            assert!(remedy(reason).contains("docs/troubleshooting.md"));
        }
    }
}
