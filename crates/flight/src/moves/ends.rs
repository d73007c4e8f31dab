//! Where a migrating VM may run, according to both ends' reports. Pure.
//!
//! ```text
//!              transfer ordered?
//!        no ──────────┴────────── yes
//!   VM is at the source      target says that it ran there ──────► VM is at the target, or has ended there
//!                            source says that it never left ─────► VM is at the source
//!                            target says that it never ran ──────► VM is at the source, perhaps paused
//!                            anything else ──────────────────────► not known: it runs nowhere new
//! ```
//! Only reports count. A pod that is gone, a QEMU that does not answer and a node that is away prove nothing: the VM may run
//! there. If the source has let the VM go and the target cannot report, a person decides
//! ([`Decision`]).

use std::sync::Arc;

use hybridnic_api::v1alpha1::{Decision, MigrationReport, MigrationState, MigrationStep, NicAttachment};
use k8s_openapi::api::core::v1::Pod;

use super::{Driver, Move, Orders};
use crate::{attachment, pods};

/// What both ends of a move say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// Whether the transfer may have been ordered.
    pub begun: bool,
    /// A person's decision, for when the ends do not know: one that was asked for.
    pub decision: Option<Decision>,
    /// Whether the source is told to resume the VM: the migration's status says so before any NIC is told.
    pub resuming: bool,
    /// Whether a NIC at the target is told to give up.
    pub given_up: bool,
    /// The last word of the source's QEMU.
    pub source: Option<MigrationReport>,
    /// The last word of the target's QEMU.
    pub target: Option<MigrationReport>,
    /// Whether the source's pod has ended or is gone.
    pub source_gone: bool,
    /// Whether all processes of the source's pod have ended, as its kubelet reports.
    pub source_over: bool,
    /// Whether the target's pod has ended or is gone.
    pub target_gone: bool,
    /// Whether all processes of the target's pod have ended, as its kubelet reports or because its node is off.
    pub target_over: bool,
}

/// Where a rollback is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rollback {
    /// The transfer was never ordered: the VM has not left the source.
    NotBegun,
    /// The target has the VM after all.
    Arrived,
    /// The target has the VM, and the source was told to run it on: an end that has not begun does not, until the other has ended.
    Contested,
    /// The transfer is to be stopped; until the source reports that it has stopped, the target may get the VM.
    Cancelling,
    /// The source has gone; the target is to give up.
    Revoking,
    /// The source has let the VM go, and the target has not said whether it ran it: it is to give up, and to confirm that.
    Undecided,
    /// The target never ran the VM. The source will be told to run it on, once the target has been told to give up and the
    /// migration's status says what is to be.
    NeverRan,
    /// The target never ran the VM, and the source, which let it go, is to run it on.
    Resuming,
    /// The VM is at the source, and runs.
    Stopped,
}

impl Ends {
    /// What `attachments` and `pods`, all of the VM, say about a move.
    pub fn observe(of: &Move, attachments: &[Arc<NicAttachment>], pods: &[Arc<Pod>]) -> Self {
        let (source, target) = (&of.source.pod.uid, &of.target.pod.uid);
        let last_word = |pod: &str, rank: fn(MigrationState) -> u8| {
            attachments
                .iter()
                .filter(|a| a.spec.pod.uid == pod && of.nics.contains(&a.spec.nic.name))
                .filter_map(|a| attachment::report(a, &of.id.uid))
                .max_by_key(|report| rank(report.state))
                .cloned()
        };
        let finished = |uid: &str| {
            pods.iter()
                .any(|pod| pod.metadata.uid.as_deref() == Some(uid) && pods::is_finished(pod))
        };
        // KubeVirt begins without asking us.
        let orders = match &of.driver {
            Driver::Ours(orders) => *orders,
            Driver::File(file) => Orders {
                transfer: file.begun,
                ..Orders::default()
            },
            Driver::Theirs { .. } => Orders {
                transfer: true,
                ..Orders::default()
            },
        };
        Self {
            begun: orders.transfer,
            decision: orders.decision,
            resuming: orders.resume,
            given_up: attachments.iter().any(|a| {
                let order = a.spec.migration.as_ref();
                a.spec.pod.uid == *target
                    && order.is_some_and(|order| {
                        order.migration.uid == of.id.uid && order.step == MigrationStep::GiveUp
                    })
            }),
            source: last_word(source, source_rank),
            target: last_word(target, target_rank),
            source_gone: pods::alive(pods, source).is_none(),
            source_over: finished(source),
            target_gone: pods::alive(pods, target).is_none(),
            target_over: finished(target),
        }
    }

    /// What the source's QEMU is known to have come to.
    pub fn source_state(&self) -> Option<MigrationState> {
        self.source.as_ref().map(|report| report.state)
    }

    /// What the target's QEMU is known to have come to.
    pub fn target_state(&self) -> Option<MigrationState> {
        self.target.as_ref().map(|report| report.state)
    }

    /// Whether the VM has gone to the target, as the target or a person says. It may have ended there since.
    pub fn arrived(&self) -> bool {
        match self.target_state() {
            Some(MigrationState::Completed) => !self.is_contested(),
            Some(MigrationState::Ended) => !self.is_taken_back(),
            _ => !self.resuming && self.decided(Decision::AbandonSource),
        }
    }

    /// Whether the target never ran the VM and never will, as it reports or a person says.
    pub fn never_ran(&self) -> bool {
        use MigrationState::{Failed, Lost};
        matches!(self.target_state(), Some(Failed | Lost))
            || self.decided(Decision::ResumeSource)
            || self.is_taken_back()
    }

    /// Whether a person has said that the VM runs at the source: any report of the target comes too late.
    fn is_back_by_decision(&self) -> bool {
        self.decision == Some(Decision::ResumeSource)
            && self.source_state() == Some(MigrationState::Cancelled)
    }

    /// Whether the source runs the VM on, or was told to. That stands, also when the target's report behind it is no longer
    /// heard, or another one comes late: changing it would take the NICs from the only VM that runs.
    fn is_taken_back(&self) -> bool {
        self.resuming || self.is_back_by_decision()
    }

    /// Whether the target reports that it has the VM after the source was told, by a person's decision, to run it on: it may run twice.
    pub fn is_contested(&self) -> bool {
        self.target_state() == Some(MigrationState::Completed) && self.is_taken_back() && !self.source_lost()
    }

    /// Whether the source's QEMU has gone.
    pub fn source_lost(&self) -> bool {
        self.source_gone || self.source_state() == Some(MigrationState::Lost)
    }

    /// Whether the source's QEMU is proven to have ended.
    pub fn source_ended(&self) -> bool {
        self.source_over || self.source_state() == Some(MigrationState::Lost)
    }

    /// Whether the VM is no longer only at the source, and the target has not reported whether it ran it.
    pub fn is_silent(&self) -> bool {
        use MigrationState::{Completed, Ended, Failed, Lost};
        let spoken = matches!(self.target_state(), Some(Completed | Ended | Failed | Lost));
        self.begun && !spoken && (self.has_left() || self.source_lost())
    }

    /// Whether the source has let the VM go.
    pub fn has_left(&self) -> bool {
        match &self.source {
            Some(report) => match report.state {
                MigrationState::Completed => true,
                MigrationState::Failed => !report.kept,
                _ => false,
            },
            None => false,
        }
    }

    fn decided(&self, decision: Decision) -> bool {
        self.is_silent() && self.decision == Some(decision)
    }

    /// Where the rollback is.
    pub fn rollback(&self) -> Rollback {
        use MigrationState::{Cancelled, Failed};
        match self.source_state() {
            _ if !self.begun => Rollback::NotBegun,
            // The target reports that the VM is there, no matter what the source says.
            _ if self.arrived() => Rollback::Arrived,
            // No VM is left there that could meet its double.
            _ if self.source_lost() => Rollback::Revoking,
            Some(Cancelled) => Rollback::Stopped,
            _ if self.is_contested() => Rollback::Contested,
            // What the source was told stands until it reports that it has done it, no matter what is heard, or not heard, meanwhile.
            // A failure after which it has kept the VM is not such a report: it may have died on its way, with the VM still paused.
            _ if self.resuming => Rollback::Resuming,
            Some(Failed) if !self.has_left() => Rollback::Stopped,
            _ if self.has_left() && self.never_ran() => Rollback::NeverRan,
            _ if self.has_left() => Rollback::Undecided,
            _ => Rollback::Cancelling,
        }
    }
}

/// All attachments of a VM at one end report on the same QEMU, and some of them late: the latest report wins.
fn source_rank(state: MigrationState) -> u8 {
    match state {
        MigrationState::Prepared => 0,
        MigrationState::Listening | MigrationState::Active => 1,
        MigrationState::Completed => 2,
        MigrationState::Failed => 3,
        // Also after one of these, when the VM was told to run on.
        MigrationState::Cancelled => 4,
        MigrationState::Lost | MigrationState::Ended => 5,
    }
}

/// As [`source_rank`]. That the VM ran there stays true, no matter what else is reported.
fn target_rank(state: MigrationState) -> u8 {
    match state {
        MigrationState::Prepared => 0,
        MigrationState::Listening => 1,
        MigrationState::Active | MigrationState::Cancelled => 2,
        MigrationState::Lost => 3,
        MigrationState::Failed => 4,
        MigrationState::Completed => 5,
        MigrationState::Ended => 6,
    }
}
