//! In which of its pods a VM is. Pure.
//!
//! Of several pods that run one has the VM; the QEMUs of the others wait for it to migrate (`-incoming`). Which is which is no
//! secret of theirs, but only an agent that has a NIC's attachment to a pod asks its QEMU. So the first of these that there is:
//!
//! 1. the pod that the NIC is attached to, unless QEMU there says that it waits, and no migration is under way;
//! 2. a pod in which another NIC of the VM carries traffic;
//! 3. where QEMU waits, the next younger pod that runs. Never an older one, so this comes to an end;
//! 4. the pod that is recorded;
//! 5. one that another NIC of the VM is attached to;
//! 6. the target of the VM's last migration that has succeeded;
//! 7. the oldest that runs, for one that waits for a VM comes after the one that the VM comes from; the oldest that may yet run.
//!
//! A wrong choice costs time, and no more: what a NIC has in the pod that it leaves is gone before anything of it is elsewhere.

use std::sync::Arc;

use hybridnic_api::conditions::{self, reasons, types};
use hybridnic_api::v1alpha1::{
    AttachmentState, Goal, MigrationPhase, NicAttachment, ObjectRef, QemuMigration, VmHybridNic,
};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use kube::ResourceExt;

use super::known::{Known, nics_of, recorded};
use crate::events::Note;
use crate::fence::NodeState;
use crate::{handover, pods};

impl Known {
    /// The pod in which the VM is, or is about to be.
    pub(super) fn pod_of_vm(&self, recorded: Option<&ObjectRef>) -> Option<&Arc<Pod>> {
        let recorded = recorded.and_then(|known| pods::alive(&self.pods, &known.uid));
        let here = recorded.and_then(|pod| self.attached_to(&uid(pod)));
        let waits = here.is_some_and(|here| self.waits(here));
        if here.is_some() && !waits {
            return recorded;
        }
        let carried = self.oldest_of(|other| {
            matches!(
                handover::state(other),
                AttachmentState::FastPath | AttachmentState::Standby
            )
        });
        if carried.is_some() {
            return carried;
        }
        match recorded {
            Some(pod) if waits => self.next_younger(pod).or(recorded),
            Some(_) => recorded,
            None => self
                .oldest_of(|other| !says_that_it_waits(other))
                .or_else(|| pods::alive(&self.pods, &last_target(&self.migrations)?.uid))
                .or_else(|| pods::active(None, &self.pods)),
        }
    }

    /// Whether more has to be known than the NIC's own attachments say.
    pub(super) fn must_ask(&self, recorded: Option<&ObjectRef>) -> bool {
        let pod = recorded.and_then(|known| pods::alive(&self.pods, &known.uid));
        let here = pod.and_then(|pod| self.attached_to(&uid(pod)));
        here.is_none_or(says_that_it_waits)
    }

    /// The NIC's attachment to a pod, unless it is on its way out.
    pub(super) fn attached_to(&self, pod: &str) -> Option<&NicAttachment> {
        let attached = self
            .attachments
            .iter()
            .find(|a| a.spec.pod.uid == pod && stays(a));
        attached.map(AsRef::as_ref)
    }

    /// A migration that has the VM in its hands.
    pub(super) fn under_way(&self) -> Option<&Arc<QemuMigration>> {
        self.migrations
            .iter()
            .find(|migration| !nics_of(migration).is_empty())
    }

    /// What to tell when the NIC goes from a pod whose QEMU waits for the VM to `pod`.
    pub fn left(&self, nic: &VmHybridNic, pod: &ObjectRef) -> Option<Note> {
        let from = recorded(nic).filter(|from| from.uid != pod.uid)?;
        self.attached_to(&from.uid).filter(|here| self.waits(here))?;
        let message = format!(
            "QEMU in the pod {} waits for a VM to migrate there (-incoming), so the VM is not there: the NIC goes to the pod {}, \
             and that QEMU is ended",
            from.name, pod.name
        );
        Some(Note::normal(reasons::VM_INCOMING, message))
    }

    /// The other pods that may have the VM.
    pub fn other_pods(&self, pod: &ObjectRef) -> Vec<String> {
        let others = self
            .pods
            .iter()
            .filter(|other| may_have_vm(other) && uid(other) != pod.uid);
        let mut names: Vec<_> = others.map(|other| other.name_any()).collect();
        names.sort();
        names
    }

    /// Whether QEMU has no VM where the NIC is attached, and gets none. Of a node that is not heard of this is old.
    fn waits(&self, attachment: &NicAttachment) -> bool {
        says_that_it_waits(attachment)
            && self.under_way().is_none()
            && *self.node(attachment) == NodeState::Ready
    }

    /// The oldest pod to which other NICs of the VM are attached as `fits` says.
    fn oldest_of(&self, fits: impl Fn(&NicAttachment) -> bool) -> Option<&Arc<Pod>> {
        let attached = self.others.iter().filter(|other| stays(other) && fits(other));
        let pods = attached.filter_map(|other| pods::alive(&self.pods, &other.spec.pod.uid));
        pods.min_by_key(|pod| age(pod))
    }

    fn next_younger(&self, than: &Pod) -> Option<&Arc<Pod>> {
        let younger = self
            .pods
            .iter()
            .filter(|pod| may_have_vm(pod) && age(pod) > age(than));
        younger.min_by_key(|pod| age(pod))
    }
}

fn uid(pod: &Pod) -> String {
    pod.uid().unwrap_or_default()
}

/// No two pods that there are at one time have the same.
fn age(pod: &Pod) -> (Option<Timestamp>, String) {
    (pod.creation_timestamp().map(|time| time.0), pod.name_any())
}

fn may_have_vm(pod: &Pod) -> bool {
    pods::is_running(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// Whether an attachment is not on its way out.
fn stays(attachment: &NicAttachment) -> bool {
    attachment.spec.goal != Goal::Detached && attachment.metadata.deletion_timestamp.is_none()
}

/// Whether the agent says, about the attachment as it is now, that QEMU waits for a VM, and no migration brings one.
pub fn says_that_it_waits(attachment: &NicAttachment) -> bool {
    let Some(status) = &attachment.status else {
        return false;
    };
    let about = status.observed_generation;
    let ready = conditions::find(&status.conditions, types::READY);
    attachment.spec.migration.is_none()
        && about.is_some()
        && about == attachment.metadata.generation
        && status.state == AttachmentState::Reserved
        && ready.is_some_and(|ready| ready.status == "False" && ready.reason == reasons::VM_INCOMING)
}

fn last_target(migrations: &[Arc<QemuMigration>]) -> Option<&ObjectRef> {
    let statuses = migrations
        .iter()
        .filter_map(|migration| migration.status.as_ref());
    let succeeded = statuses.filter(|status| status.phase == MigrationPhase::Succeeded);
    let last = succeeded.max_by_key(|status| status.finished_at.as_ref().map(|at| at.0))?;
    last.target.as_ref().map(|end| &end.pod)
}

#[cfg(test)]
#[path = "whereabouts_tests.rs"]
mod tests;
