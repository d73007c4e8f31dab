//! What an agent says about an attachment.

use hybridnic_api::conditions::{self, reasons, types};
use hybridnic_api::v1alpha1::{AttachmentState, MigrationReport, NicAttachment};

/// What it reports about the migration of this uid.
pub fn report<'a>(attachment: &'a NicAttachment, uid: &str) -> Option<&'a MigrationReport> {
    attachment
        .status
        .as_ref()?
        .migration
        .as_ref()
        .filter(|report| report.uid == uid)
}

/// Where the NIC is.
pub fn state(attachment: &NicAttachment) -> AttachmentState {
    attachment
        .status
        .as_ref()
        .map(|status| status.state)
        .unwrap_or_default()
}

/// Whether its word is about the spec as it is now.
pub fn is_current(attachment: &NicAttachment) -> bool {
    let observed = attachment
        .status
        .as_ref()
        .and_then(|status| status.observed_generation);
    observed.is_some() && observed == attachment.metadata.generation
}

/// Whether it reports that the NIC is not there yet, and waits for this reason.
pub fn waits_for(attachment: &NicAttachment, reason: &str) -> bool {
    let status = attachment.status.as_ref();
    let ready = status.and_then(|status| conditions::find(&status.conditions, types::READY));
    state(attachment) == AttachmentState::Pending
        && ready.is_some_and(|ready| ready.status == "False" && ready.reason == reason)
}

/// Whether the agent says, about the attachment as it is now, that QEMU waits for a VM, and no migration brings one.
pub fn says_that_it_waits(attachment: &NicAttachment) -> bool {
    let Some(status) = &attachment.status else {
        return false;
    };
    let ready = conditions::find(&status.conditions, types::READY);
    attachment.spec.migration.is_none()
        && is_current(attachment)
        && status.state == AttachmentState::Reserved
        && ready.is_some_and(|ready| ready.status == "False" && ready.reason == reasons::VM_INCOMING)
}
