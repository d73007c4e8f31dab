//! Condition types and reasons, and how a list of conditions changes.
//!
//! Reasons are a fixed list: events, metrics and the documentation use the same words.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::limits;

/// What a condition is about.
pub mod types {
    /// The object is valid and allowed; if it is not, the reason says why.
    pub const ACCEPTED: &str = "Accepted";
    /// What the object asks for is there.
    pub const READY: &str = "Ready";
    /// The NIC's traffic runs on its VF.
    pub const FAST_PATH: &str = "FastPath";
    /// The standby receives what the VF does. Only there when it does not.
    pub const STANDBY_FILTER: &str = "StandbyFilter";
    /// A migration has ended; true when it succeeded.
    pub const SUCCEEDED: &str = "Succeeded";
    /// A migration's stream is encrypted. Only there when it is not though it should be.
    pub const ENCRYPTED: &str = "Encrypted";
    /// Something of the node does not work as it should, while the rest goes on.
    pub const DEGRADED: &str = "Degraded";
    /// No NIC holds a VF of what is to be drained. Only there when something is.
    pub const DRAINED: &str = "Drained";
}

/// Why a condition is as it is.
pub mod reasons {
    /// The spec is valid and allowed.
    pub const ACCEPTED: &str = "Accepted";
    /// The NIC names a network that does not exist.
    pub const NETWORK_NOT_FOUND: &str = "NetworkNotFound";
    /// The network's namespace selector does not select the NIC's namespace.
    pub const NAMESPACE_NOT_ALLOWED: &str = "NamespaceNotAllowed";
    /// Another NIC has the MAC that this one asks for.
    pub const MAC_CONFLICT: &str = "MacConflict";
    /// The NIC may not have the MAC that it asks for.
    pub const MAC_NOT_ALLOWED: &str = "MacNotAllowed";
    /// Every address of the network's MAC range is taken.
    pub const MAC_RANGE_EXHAUSTED: &str = "MacRangeExhausted";
    /// An attachment of the NIC does not parse.
    pub const ATTACHMENT_UNREADABLE: &str = "AttachmentUnreadable";
    /// No pod with the VM's label is there.
    pub const POD_NOT_FOUND: &str = "PodNotFound";
    /// The VM's pod does not run yet.
    pub const POD_NOT_RUNNING: &str = "PodNotRunning";
    /// KubeVirt, Multus, or our binding in KubeVirt, is missing, or KubeVirt is too old.
    pub const KUBEVIRT_NOT_READY: &str = "KubevirtNotReady";
    /// The interface of KubeVirt's VM cannot be a hybrid NIC as it is.
    pub const INTERFACE_UNFIT: &str = "InterfaceUnfit";
    /// A VM with hybrid NICs cannot migrate in this way.
    pub const MIGRATION_UNSUPPORTED: &str = "MigrationUnsupported";
    /// The NIC waits until it has left its former pod.
    pub const WAITING_FOR_DETACH: &str = "WaitingForDetach";
    /// What keeps the NIC in its former pod does not pass by itself.
    pub const DETACH_STUCK: &str = "DetachStuck";
    /// The NIC may be live on a node that does not answer.
    pub const NODE_UNREACHABLE: &str = "NodeUnreachable";
    /// No node agent reports for the node of the VM's pod.
    pub const AGENT_NOT_FOUND: &str = "AgentNotFound";
    /// The operator does not work with the version of the node's agent.
    pub const AGENT_VERSION_UNSUPPORTED: &str = "AgentVersionUnsupported";
    /// The network does not select the node of the VM's pod.
    pub const NODE_NOT_IN_NETWORK: &str = "NodeNotInNetwork";
    /// No PF of the node matches the network's uplinks.
    pub const NO_UPLINK: &str = "NoUplink";
    /// The agent has not reported on the NIC yet.
    pub const AGENT_PENDING: &str = "AgentPending";
    /// Without a cluster: what a file asks for is not known, or cannot be.
    pub const FILE_UNKNOWN: &str = "FileUnknown";
    /// The agent cannot talk to the VM's QEMU.
    pub const QMP_UNAVAILABLE: &str = "QmpUnavailable";
    /// The VM's QEMU has sent so many events that it is not listened to for a while.
    pub const QMP_FLOOD: &str = "QmpFlood";
    /// What is at the place of the VM's QMP socket is not a socket on which a process of the VM listens.
    pub const QMP_UNTRUSTED: &str = "QmpUntrusted";
    /// The VM has no free hot-pluggable PCIe root port.
    pub const NO_GUEST_PORT: &str = "NoGuestPort";
    /// What runs the VM, such as KubeVirt, has not done its part yet.
    pub const WAITING_FOR_RUNTIME: &str = "WaitingForRuntime";
    /// The VM has no ACPI, without which its guest does not survive the plug of a VF.
    pub const GUEST_NO_ACPI: &str = "GuestNoAcpi";
    /// The VM waits for the migration that will start it.
    pub const VM_INCOMING: &str = "VmIncoming";
    /// A step is being taken towards the goal.
    pub const PROGRESSING: &str = "Progressing";
    /// The NIC's devices are in the guest.
    pub const ATTACHED: &str = "Attached";
    /// The NIC has left the node.
    pub const DETACHED: &str = "Detached";
    /// The VF carries the traffic.
    pub const VF_ACTIVE: &str = "VfActive";
    /// No VF of the network is free on the node.
    pub const NO_FREE_VF: &str = "NoFreeVf";
    /// The node's kernel has vfio groups only, and the VM's pod has got none for this NIC.
    pub const NO_VFIO_GROUP: &str = "NoVfioGroup";
    /// VF and standby were on two PFs, and the NIC goes back to a VF of its standby's.
    pub const SPLIT: &str = "Split";
    /// No VF of the network is free on the node that is not drained.
    pub const PF_DRAINED: &str = "PfDrained";
    /// NICs still hold VFs that are to be drained.
    pub const DRAINING: &str = "Draining";
    /// No NIC holds a VF that is drained.
    pub const DRAINED: &str = "Drained";
    /// What is to be drained is not on the node.
    pub const NOTHING_TO_DRAIN: &str = "NothingToDrain";
    /// The NIC is told to stay on its standby.
    pub const STANDBY_REQUESTED: &str = "StandbyRequested";
    /// The NIC has no standby, and its VF is out of the guest for a migration.
    pub const STEPPED_ASIDE: &str = "SteppedAside";
    /// A migration is under way.
    pub const MIGRATING: &str = "Migrating";
    /// The guest did not let go of the VF in time.
    pub const GUEST_KEEPS_VF: &str = "GuestKeepsVf";
    /// The VF is in the guest, but the guest does not use it.
    pub const GUEST_IGNORES_VF: &str = "GuestIgnoresVf";
    /// The guest did not negotiate the standby feature: no driver, or no net_failover in it.
    pub const GUEST_NO_FAILOVER: &str = "GuestNoFailover";
    /// The guest is to bond VF and standby, and its driver of the standby has not started, or it uses both as two interfaces.
    pub const GUEST_NOT_BONDED: &str = "GuestNotBonded";
    /// The PF's driver or the kernel refused a setting of the VF.
    pub const VF_SETTING_REFUSED: &str = "VfSettingRefused";
    /// The PF's driver has no port profiles.
    pub const PORT_PROFILE_UNSUPPORTED: &str = "PortProfileUnsupported";
    /// The PF's driver or the switch refused what was asked of it with the network's port profile.
    pub const PORT_PROFILE_REFUSED: &str = "PortProfileRefused";
    /// The switch did not answer in time to what was asked of it with the network's port profile.
    pub const PORT_PROFILE_TIMEOUT: &str = "PortProfileTimeout";
    /// The VF could not be bound to vfio-pci or given back.
    pub const VF_BIND_FAILED: &str = "VfBindFailed";
    /// The macvtap or its VLAN device could not be made or changed.
    pub const STANDBY_FAILED: &str = "StandbyFailed";
    /// The VM's QEMU has given the standby's macvtap another MAC: it is shut until that QEMU has ended.
    pub const STANDBY_SEIZED: &str = "StandbySeized";
    /// The guest has VLANs of its own, and a PF's filter may keep them from the standby.
    pub const GUEST_VLANS_FILTERED: &str = "GuestVlansFiltered";
    /// A trusted guest receives for more MACs, and the standby has only the NIC's.
    pub const GUEST_MACS_FILTERED: &str = "GuestMacsFiltered";
    /// QEMU refused a command.
    pub const QEMU_REFUSED: &str = "QemuRefused";
    /// The VF or its PF has gone away.
    pub const VF_LOST: &str = "VfLost";
    /// The VF's state cannot be read at the moment.
    pub const VF_UNKNOWN: &str = "VfUnknown";
    /// The PF has no link.
    pub const PF_LINK_DOWN: &str = "PfLinkDown";
    /// The agent's journal could not be written or read.
    pub const JOURNAL_FAILED: &str = "JournalFailed";
    /// A call of a device's driver does not return.
    pub const DEVICE_HUNG: &str = "DeviceHung";
    /// The kernel does not report changes in a pod's directory to the agent.
    pub const SOCKETS_NOT_WATCHED: &str = "SocketsNotWatched";
    /// The CNI plugin is not on the node, or its socket is not served.
    pub const CNI_UNAVAILABLE: &str = "CniUnavailable";
    /// The kubelet does not get the node's devices, or does not say which pods have which.
    pub const KUBELET_UNREACHABLE: &str = "KubeletUnreachable";
    /// Devices of a network cannot be offered to the kubelet.
    pub const NOT_OFFERED: &str = "NotOffered";
    /// Nothing is known to be wrong with the node.
    pub const ALL_WELL: &str = "AllWell";
    /// Something else on the node uses the VF.
    pub const VF_IN_USE: &str = "VfInUse";
    /// Something does not work, and nothing more exact is known.
    pub const FAILED: &str = "Failed";
    /// The migration is over and the VM runs at its target.
    pub const COMPLETED: &str = "Completed";
    /// The migration was cancelled and the VM runs on at its source.
    pub const CANCELLED: &str = "Cancelled";
    /// There is no pod that the VM could move to.
    pub const NO_TARGET_POD: &str = "NoTargetPod";
    /// The VM has more hybrid NICs than can migrate together.
    pub const TOO_MANY_NICS: &str = "TooManyNics";
    /// Several pods could take the VM, and nothing says which.
    pub const SEVERAL_TARGET_PODS: &str = "SeveralTargetPods";
    /// The target's pod has no address to which a VM's memory may be sent.
    pub const TARGET_ADDRESS_REFUSED: &str = "TargetAddressRefused";
    /// A VM cannot be written to a file, or loaded from it: nothing was done to the VM.
    pub const FILE_REFUSED: &str = "FileRefused";
    /// QEMU has not written or loaded a file within the time that it was given.
    pub const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";
    /// The VM was written to a file and stays paused until somebody says what becomes of it.
    pub const PAUSED: &str = "Paused";
    /// A VM is to be loaded from a file while it runs in a pod; or it was to stay paused beside its file, and runs.
    pub const VM_RUNS: &str = "VmRuns";
    /// The pod of a VM that is to be saved and ended would be started again.
    pub const POD_RESTARTS: &str = "PodRestarts";
    /// The VM has no hybrid NIC.
    pub const NO_NICS: &str = "NoNics";
    /// Another migration of the same VM is under way.
    pub const MIGRATION_BUSY: &str = "MigrationBusy";
    /// The target could not be prepared.
    pub const TARGET_NOT_READY: &str = "TargetNotReady";
    /// The target has no free VF, and a NIC says to wait for one.
    pub const TARGET_NO_FREE_VF: &str = "TargetNoFreeVf";
    /// QEMU at the source or the target cannot encrypt the migration's stream.
    pub const TLS_UNAVAILABLE: &str = "TlsUnavailable";
    /// QEMU's migration failed.
    pub const TRANSFER_FAILED: &str = "TransferFailed";
    /// The target's QEMU or pod has gone.
    pub const TARGET_LOST: &str = "TargetLost";
    /// The source's QEMU or pod has gone.
    pub const SOURCE_LOST: &str = "SourceLost";
    /// The target's QEMU runs a guest already, or waits for another migration.
    pub const TARGET_OCCUPIED: &str = "TargetOccupied";
    /// The source has handed the VM over, and the target has not said that it has it.
    pub const TARGET_SILENT: &str = "TargetSilent";
    /// KubeVirt is done with a migration, and an end has not reported how it ended: it is not proven where the VM is.
    pub const ARRIVAL_UNPROVEN: &str = "ArrivalUnproven";
    /// The source has handed the VM over, the target cannot say whether it ran it, and a person has to decide.
    pub const NEEDS_DECISION: &str = "NeedsDecision";
    /// A network has at least one PF with VFs.
    pub const POOL_READY: &str = "PoolReady";
    /// No node has a PF with VFs for the network.
    pub const POOL_EMPTY: &str = "PoolEmpty";
    /// All nodes of the network are not ready, or their agents are away.
    pub const NODES_AWAY: &str = "NodesAway";
    /// The network has VFs, and none of them can be used.
    pub const POOL_UNHEALTHY: &str = "PoolUnhealthy";
    /// The network is to be deleted, and NICs are attached to it.
    pub const NETWORK_IN_USE: &str = "NetworkInUse";
    /// The node's IOMMU is off, so no VF can be passed to a guest.
    pub const NO_IOMMU: &str = "NoIommu";
    /// The node agent has published what the node has.
    pub const DISCOVERED: &str = "Discovered";
}

/// A condition before it is merged into a list: what is true now, without the time of its last change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCondition {
    /// One of [`types`].
    pub type_: &'static str,
    /// Whether it holds; `None` is `Unknown`.
    pub status: Option<bool>,
    /// One of [`reasons`].
    pub reason: String,
    /// A sentence for a person, with what to do where there is something to do.
    pub message: String,
}

impl NewCondition {
    /// A condition that holds.
    pub fn yes(type_: &'static str, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            type_,
            status: Some(true),
            reason: reason.into(),
            message: message.into(),
        }
    }

    /// A condition that does not hold.
    pub fn no(type_: &'static str, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            type_,
            status: Some(false),
            reason: reason.into(),
            message: message.into(),
        }
    }

    /// A condition about which nothing is known yet.
    pub fn unknown(type_: &'static str, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            type_,
            status: None,
            reason: reason.into(),
            message: message.into(),
        }
    }
}

/// Merges `new` into `conditions`: the transition time of a condition whose status stays is kept. Its words may be QEMU's, the
/// kernel's or a user's; as much of them as the API takes is kept, and nothing that controls a terminal.
pub fn set(conditions: &mut Vec<Condition>, generation: Option<i64>, now: Timestamp, new: NewCondition) {
    let NewCondition {
        type_,
        status,
        reason,
        message,
    } = new;
    let status = match status {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let old = conditions.iter().position(|c| c.type_ == type_);
    let since = match old {
        Some(at) if conditions[at].status == status => conditions[at].last_transition_time.clone(),
        _ => Time(now),
    };
    let condition = Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: limits::word(&reason),
        message: limits::message(&message),
        observed_generation: generation,
        last_transition_time: since,
    };
    match old {
        Some(at) => conditions[at] = condition,
        None => conditions.push(condition),
    }
}

/// Takes the condition of a type off the list, if it has it.
pub fn remove(conditions: &mut Vec<Condition>, type_: &str) {
    conditions.retain(|c| c.type_ != type_);
}

/// The condition of a type, if the list has it.
pub fn find<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

/// The reasons of a migration of which a person has to say where its VM goes on, or may have to.
pub const UNDECIDED: [&str; 2] = [reasons::TARGET_SILENT, reasons::NEEDS_DECISION];

/// Whether a migration's reason is one of [`UNDECIDED`].
pub fn is_undecided(reason: &str) -> bool {
    UNDECIDED.contains(&reason)
}

/// The reasons of a save whose user has to say what becomes of its VM.
pub const AWAITS_USER: [&str; 2] = [reasons::PAUSED, reasons::VM_RUNS];

/// Whether a save's reason means that its user has to say what becomes of its VM.
pub fn awaits_user(reason: &str) -> bool {
    AWAITS_USER.contains(&reason)
}

/// Whether the condition of a type is there and true.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|c| c.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_others_are_cut_and_steer_nothing() {
        let mut list = Vec::new();
        let said = format!("\u{1b}[2J\u{202e}{}", "ä".repeat(5000));
        let condition = NewCondition::no(types::READY, reasons::QEMU_REFUSED, said);
        set(&mut list, None, Timestamp::UNIX_EPOCH, condition);
        assert_eq!(list[0].message.chars().count(), limits::MESSAGE);
        assert!(list[0].message.starts_with("�[2J�ä") && list[0].message.ends_with("ä…"));
        // As it is written, so it is read: the next time there is nothing new.
        let before = list.clone();
        let again = NewCondition::no(types::READY, list[0].reason.clone(), list[0].message.clone());
        set(&mut list, None, Timestamp::UNIX_EPOCH, again);
        assert_eq!(list, before);
    }

    #[test]
    fn transition_time_changes_with_the_status_only() {
        let (t1, t2) = (
            Timestamp::from_second(1).unwrap(),
            Timestamp::from_second(2).unwrap(),
        );
        let mut list = Vec::new();
        set(
            &mut list,
            Some(1),
            t1,
            NewCondition::no(types::READY, reasons::POD_NOT_FOUND, "a"),
        );
        set(
            &mut list,
            Some(2),
            t2,
            NewCondition::no(types::READY, reasons::POD_NOT_RUNNING, "b"),
        );
        assert_eq!(list.len(), 1);
        assert_eq!(list[0].last_transition_time, Time(t1));
        assert_eq!(
            (list[0].reason.as_str(), list[0].observed_generation),
            (reasons::POD_NOT_RUNNING, Some(2))
        );
        set(
            &mut list,
            Some(2),
            t2,
            NewCondition::yes(types::READY, reasons::ATTACHED, "c"),
        );
        assert_eq!(list[0].last_transition_time, Time(t2));
        assert!(is_true(&list, types::READY));
    }
}
