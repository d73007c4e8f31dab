//! What is observed of a save or a restore.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hybridnic_api::v1alpha1::{FileOrder, MigrationReport, NicAttachment, StateFileStatus};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::migration::inputs::{Deadlines, NicInputs, attachment};
use crate::moves::ends::Ends;
use crate::moves::file::OnFile;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The VM.
    pub vm: String,
    /// The file, and for a save what becomes of the VM.
    pub order: FileOrder,
    /// For a restore, the pod that it is to be in.
    pub pod: Option<String>,
    /// How long QEMU may take.
    pub deadline: Option<Duration>,
    /// Whether it was deleted, which cancels it.
    pub deleting: bool,
    /// Generation of its spec.
    pub generation: Option<i64>,
    /// How it goes.
    pub status: StateFileStatus,
}

impl Request {
    /// What an object asks for.
    pub fn of(object: &impl OnFile) -> Self {
        Self {
            vm: object.vm().to_owned(),
            order: object.order(),
            pod: object.pod().map(ToOwned::to_owned),
            deadline: object
                .deadline()
                .and_then(|seconds| u64::try_from(seconds).ok())
                .map(Duration::from_secs),
            deleting: object.meta().deletion_timestamp.is_some(),
            generation: object.meta().generation,
            status: object.file_status().cloned().unwrap_or_default(),
        }
    }

    /// Whether the VM goes to the file.
    pub fn saves(&self) -> bool {
        self.order.saves()
    }
}

/// All that decides about a save or a restore.
pub struct Inputs<'a> {
    /// The time.
    pub now: Timestamp,
    /// How long this operator has seen it in its phase, by its own steady clock.
    pub in_phase_for: Duration,
    /// What is asked for.
    pub request: Request,
    /// What else has the VM in its hands, or has the right to it.
    pub blocked_by: Option<String>,
    /// The VM's NICs; once it has begun, those that take part.
    pub nics: Vec<NicInputs>,
    /// The VM's pods.
    pub pods: &'a [Arc<Pod>],
    /// The nodes among them that can take no NIC now.
    pub away: BTreeSet<String>,
    /// What the one end says; none before it is chosen.
    pub ends: Option<Ends>,
    /// How long to wait.
    pub deadlines: Deadlines,
}

/// What is known of the one end.
#[derive(Clone, Copy, Debug)]
pub struct OneEnd<'a> {
    /// Its last word.
    pub report: Option<&'a MigrationReport>,
    /// Whether its pod has ended or is gone.
    pub gone: bool,
}

impl<'a> OneEnd<'a> {
    /// The one that there is.
    pub fn of(request: &Request, ends: &'a Ends) -> Self {
        if request.saves() {
            Self {
                report: ends.source.as_ref(),
                gone: ends.source_gone,
            }
        } else {
            Self {
                report: ends.target.as_ref(),
                gone: ends.target_gone,
            }
        }
    }
}

/// A NIC's attachment there.
pub fn there<'a>(nic: &'a NicInputs, status: &StateFileStatus) -> Option<&'a NicAttachment> {
    attachment(nic, &status.end.as_ref()?.pod)
}
