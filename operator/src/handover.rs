//! Where a migrating VM may run, by what both ends report. Pure.
//!
//! ```text
//!              transfer ordered?
//!        no ──────────┴────────── yes
//!   VM is at the source      target says Completed ─────────► VM is at the target
//!                            source says Cancelled ─────────► VM is at the source
//!                            target proven dead ────────────► VM is at the source, perhaps paused
//!                            anything else ─────────────────► not known: no VF at the source
//! ```
//! The target is proven dead when its pod has ended, when its QEMU has failed or gone, or when its agent has taken the NIC's
//! devices away, which it does only to a QEMU that will not run the VM.

use std::sync::Arc;

use hybridnic_api::v1alpha1::{
    AttachmentState, MigrationPhase, MigrationReport, MigrationState, NicAttachment, QemuMigration,
    QemuMigrationStatus,
};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::pods;

/// What both ends of a migration say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
// Each is a thing of its own that is seen or not.
#[allow(clippy::struct_excessive_bools)]
pub struct Ends {
    /// Whether the transfer may have been ordered.
    pub begun: bool,
    /// The last word of the source's QEMU.
    pub source: Option<MigrationReport>,
    /// The last word of the target's QEMU.
    pub target: Option<MigrationReport>,
    /// Whether each of the target's attachments says that the VM runs there.
    pub all_completed: bool,
    /// Whether the source's pod has ended or is no more.
    pub source_gone: bool,
    /// Whether the target's pod has ended or is no more.
    pub target_gone: bool,
    /// Whether nothing of the NICs is left at the target.
    pub target_detached: bool,
}

/// Where a rollback is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rollback {
    /// The transfer was never ordered: the VM has not left the source.
    NotBegun,
    /// The transfer is to be stopped; until the source says that it is, the target may get the VM.
    Cancelling,
    /// The source has gone, or has failed without saying where the VM is; the target is to give up.
    Revoking,
    /// The target is proven dead and the source, which handed the VM over, is to let it run on.
    Resuming,
    /// The VM is at the source, which stopped the transfer.
    Stopped,
    /// The VM is at the source and the target is dead; should the VM be paused there, it is to run on.
    Failed,
}

impl Ends {
    /// What `attachments` and `pods`, all of the VM, say about `migration`; `None` before its ends are chosen.
    pub fn observe(
        migration: &QemuMigration,
        attachments: &[Arc<NicAttachment>],
        pods: &[Arc<Pod>],
    ) -> Option<Self> {
        let status = migration.status.as_ref()?;
        let (source, target) = (&status.source.as_ref()?.pod.uid, &status.target.as_ref()?.pod.uid);
        let uid = migration.uid().unwrap_or_default();
        let at = |pod: &str| -> Vec<&NicAttachment> {
            let here =
                |a: &&Arc<NicAttachment>| a.spec.pod.uid == pod && status.nics.contains(&a.spec.nic.name);
            attachments.iter().filter(here).map(AsRef::as_ref).collect()
        };
        let (sources, targets) = (at(source), at(target));
        let completed =
            |a: &&NicAttachment| report(a, &uid).is_some_and(|r| r.state == MigrationState::Completed);
        Some(Self {
            begun: transfer_ordered(status),
            source: last_word(&sources, &uid),
            target: last_word(&targets, &uid),
            all_completed: !targets.is_empty() && targets.iter().all(completed),
            source_gone: pods::alive(pods, source).is_none(),
            target_gone: pods::alive(pods, target).is_none(),
            target_detached: targets.iter().all(|a| state(a) == AttachmentState::Detached),
        })
    }

    /// What the source's QEMU is known to have come to.
    pub fn source_state(&self) -> Option<MigrationState> {
        self.source.as_ref().map(|report| report.state)
    }

    /// What the target's QEMU is known to have come to.
    pub fn target_state(&self) -> Option<MigrationState> {
        self.target.as_ref().map(|report| report.state)
    }

    /// Whether the target will never run the VM.
    pub fn target_dead(&self) -> bool {
        match self.target_state() {
            Some(MigrationState::Completed) => false,
            Some(MigrationState::Failed | MigrationState::Lost) => true,
            _ => self.target_gone || self.target_detached,
        }
    }

    /// Whether the source's QEMU has gone.
    pub fn source_lost(&self) -> bool {
        self.source_gone || self.source_state() == Some(MigrationState::Lost)
    }

    /// Where the rollback is.
    pub fn rollback(&self) -> Rollback {
        use MigrationState::{Cancelled, Completed, Failed};
        match (self.source_state(), self.target_state()) {
            _ if !self.begun => Rollback::NotBegun,
            // The target's word: the VM is there, whatever the source makes of it.
            (_, Some(Completed)) => Rollback::Cancelling,
            // No VM is left there that could meet its double.
            _ if self.source_lost() => Rollback::Revoking,
            (Some(Cancelled), _) => Rollback::Stopped,
            (Some(Failed), _) if self.target_dead() => Rollback::Failed,
            (Some(Failed), _) => Rollback::Revoking,
            (Some(Completed), _) if self.target_dead() => Rollback::Resuming,
            _ => Rollback::Cancelling,
        }
    }
}

/// Whether the transfer may have been ordered: its phase has begun at some time.
pub fn transfer_ordered(status: &QemuMigrationStatus) -> bool {
    let name = phase_name(MigrationPhase::Transferring);
    status.phase == MigrationPhase::Transferring || status.phases.iter().any(|phase| phase.name == name)
}

/// A phase's name as it is in the API.
pub fn phase_name(phase: MigrationPhase) -> String {
    format!("{phase:?}")
}

/// What an attachment reports about the migration of this uid.
pub fn report<'a>(attachment: &'a NicAttachment, uid: &str) -> Option<&'a MigrationReport> {
    attachment
        .status
        .as_ref()?
        .migration
        .as_ref()
        .filter(|report| report.uid == uid)
}

/// Where an attachment's NIC is.
pub fn state(attachment: &NicAttachment) -> AttachmentState {
    attachment
        .status
        .as_ref()
        .map(|status| status.state)
        .unwrap_or_default()
}

/// All attachments of a VM at one end report on the same QEMU, and some of them late: what cannot be undone wins.
fn last_word(attachments: &[&NicAttachment], uid: &str) -> Option<MigrationReport> {
    let finality = |state: MigrationState| match state {
        MigrationState::Listening => 0,
        MigrationState::Active => 1,
        MigrationState::Completed => 2,
        MigrationState::Lost => 3,
        MigrationState::Failed => 4,
        MigrationState::Cancelled => 5,
    };
    attachments
        .iter()
        .filter_map(|a| report(a, uid))
        .max_by_key(|report| finality(report.state))
        .cloned()
}
