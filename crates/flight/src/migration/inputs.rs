//! What is observed of a migration, and how it is read.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hybridnic_api::conditions::{self, reasons, types};
use hybridnic_api::v1alpha1::{
    AttachmentState, Goal, NicAttachment, ObjectRef, QemuMigration, QemuMigrationStatus, VmHybridNic,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::encryption::Encryption;
use crate::attachment::{is_current, state};
use crate::moves::ends::Ends;

/// How long the steps may take that wait for an agent.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// For the target to listen.
    pub prepare: Duration,
    /// For the source's VFs to leave the guest. The agent's own deadline for the guest is shorter.
    pub switch: Duration,
}

/// All that decides about a migration.
pub struct Inputs<'a> {
    /// The time.
    pub now: Timestamp,
    /// How long we, an operator or `ctl migrate`, have seen the migration in its phase, by our own steady clock. A status may be
    /// written by another clock.
    pub in_phase_for: Duration,
    /// How long neither end has reported where the VM is, by the same clock.
    pub silent_for: Duration,
    /// The migration.
    pub migration: &'a QemuMigration,
    /// What else has the VM, or has the right to it.
    pub blocked_by: Option<String>,
    /// The VM's NICs; once the migration has begun, those that take part.
    pub nics: Vec<NicInputs>,
    /// The VM's pods.
    pub pods: &'a [Arc<Pod>],
    /// The nodes among them that can take no NIC now.
    pub away: BTreeSet<String>,
    /// The addresses of all of them that are a node's.
    pub of_nodes: BTreeSet<IpAddr>,
    /// What both ends say; none before they are chosen.
    pub ends: Option<Ends>,
    /// How long to wait.
    pub deadlines: Deadlines,
    /// Whether the VM is sent encrypted.
    pub encryption: Encryption,
    /// The command by which a person decides that the source runs the VM on.
    pub decide: String,
}

/// A NIC of the VM.
pub struct NicInputs {
    /// The NIC.
    pub nic: Arc<VmHybridNic>,
    /// Its attachments.
    pub attachments: Vec<Arc<NicAttachment>>,
    /// Why the target's node cannot take it.
    pub target_refusal: Option<String>,
}

/// A NIC's attachment to a pod.
pub fn attachment<'a>(nic: &'a NicInputs, pod: &ObjectRef) -> Option<&'a NicAttachment> {
    nic.attachments
        .iter()
        .find(|a| a.spec.pod.uid == pod.uid)
        .map(AsRef::as_ref)
}

/// A NIC's attachment to the source's pod.
pub fn source_of<'a>(nic: &'a NicInputs, status: &QemuMigrationStatus) -> Option<&'a NicAttachment> {
    attachment(nic, &status.source.as_ref()?.pod)
}

/// A NIC's attachment to the target's pod.
pub fn target_of<'a>(nic: &'a NicInputs, status: &QemuMigrationStatus) -> Option<&'a NicAttachment> {
    attachment(nic, &status.target.as_ref()?.pod)
}

/// Whether a NIC is not accepted, and is in no guest.
pub fn is_refused(nic: &NicInputs) -> bool {
    let conditions = nic.nic.status.iter().flat_map(|status| &status.conditions);
    let refused = conditions
        .into_iter()
        .any(|c| c.type_ == types::ACCEPTED && c.status == "False");
    refused && nic.attachments.is_empty()
}

/// Whether the NIC carries traffic there, or could if it had a VF.
pub fn is_attached(attachment: &NicAttachment) -> bool {
    let state = state(attachment);
    state == AttachmentState::FastPath || state.is_off_vf()
}

/// Whether the NIC is back at its source as well as it can be: on its VF, or without it for a reason that lasts.
pub fn is_back(attachment: &NicAttachment) -> bool {
    let moving = [
        reasons::PROGRESSING,
        reasons::AGENT_PENDING,
        reasons::MIGRATING,
        reasons::GUEST_KEEPS_VF,
    ];
    attachment.spec.goal == Goal::FastPath
        && is_current(attachment)
        && match state(attachment) {
            AttachmentState::FastPath => true,
            state if state.is_off_vf() => {
                ready_reason(attachment).is_some_and(|reason| !moving.contains(&reason))
            }
            _ => false,
        }
}

/// The reason of an attachment's condition `Ready`.
pub fn ready_reason(attachment: &NicAttachment) -> Option<&str> {
    let status = attachment.status.as_ref()?;
    conditions::find(&status.conditions, types::READY).map(|condition| condition.reason.as_str())
}

/// Whether the agent says that no VF is free.
pub fn lacks_vf(attachment: &NicAttachment) -> bool {
    let reason = |type_| {
        let condition = conditions::find(&attachment.status.as_ref()?.conditions, type_)?;
        let lacks = [reasons::NO_FREE_VF, reasons::PF_DRAINED].contains(&condition.reason.as_str());
        Some(condition.status != "True" && lacks)
    };
    [types::READY, types::FAST_PATH]
        .into_iter()
        .any(|type_| reason(type_) == Some(true))
}

/// Why an attachment is not where it should be, in the agent's words.
pub fn why(attachment: &NicAttachment) -> Option<String> {
    let condition = conditions::find(&attachment.status.as_ref()?.conditions, types::READY)?;
    (condition.status != "True").then(|| format!("{}: {}", condition.reason, condition.message))
}

/// A reason in parentheses, if there is one.
pub fn after(why: &str) -> String {
    if why.is_empty() {
        String::new()
    } else {
        format!(" ({why})")
    }
}

/// Whether it was deleted, which cancels it.
pub fn deleting(inputs: &Inputs<'_>) -> bool {
    inputs.migration.metadata.deletion_timestamp.is_some()
}

/// The target's node.
pub fn node(status: &QemuMigrationStatus) -> &str {
    status
        .target
        .as_ref()
        .map(|end| end.node_name.as_str())
        .unwrap_or_default()
}
