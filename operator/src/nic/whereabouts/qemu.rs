//! In which of its pods a VM is, if a user starts its QEMU.
//!
//! If several pods run, one has the VM, and the QEMUs of the others wait for it to migrate (`-incoming`). QEMU knows which is
//! which, but only an agent that has a NIC's attachment to a pod asks its QEMU. So it is the first of these that exists:
//!
//! 1. the pod that the NIC is attached to, unless QEMU there says that it waits, and no migration is under way;
//! 2. a pod in which another NIC of the VM carries traffic;
//! 3. if QEMU waits there, the next younger pod that runs. Never an older one, so this ends;
//! 4. the pod that is recorded;
//! 5. one that another NIC of the VM is attached to;
//! 6. the target of the VM's last migration that has succeeded;
//! 7. the oldest that runs, because a pod that waits for a VM is younger than the one that the VM comes from; the oldest that may still run.
//!
//! A wrong choice costs only time: the NIC's parts in the pod that it leaves are gone before it gets any elsewhere.

use std::sync::Arc;

use hybridnic_api::conditions::reasons;
use hybridnic_api::v1alpha1::{AttachmentState, NicAttachment, ObjectRef, VmHybridNic};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::may_have_vm;
use crate::attachment::{self, says_that_it_waits};
use crate::events::Note;
use crate::fence::{self, NodeState};
use crate::moves::{Move, Outcome, Stage};
use crate::nic::observed::{Observed, recorded};
use crate::pods;

/// The pod in which the VM is, or is about to be.
pub(super) fn pod_of_vm<'a>(observed: &'a Observed, recorded: Option<&ObjectRef>) -> Option<&'a Arc<Pod>> {
    let recorded = recorded.and_then(|pod| pods::alive(&observed.pods, &pod.uid));
    let here = recorded.and_then(|pod| observed.attached_to(&uid(pod)));
    let no_vm = here.is_some_and(|here| has_no_vm(observed, here));
    if here.is_some() && !no_vm {
        return recorded;
    }
    let carried = oldest_of(observed, |other| {
        let state = attachment::state(other);
        state == AttachmentState::FastPath || state.is_off_vf()
    });
    if carried.is_some() {
        return carried;
    }
    match recorded {
        Some(pod) if no_vm => next_younger(observed, pod).or(recorded),
        Some(_) => recorded,
        None => oldest_of(observed, |other| !says_that_it_waits(other))
            .or_else(|| pods::alive(&observed.pods, &last_target(&observed.moves)?.uid))
            .or_else(|| pods::active(None, &observed.pods)),
    }
}

/// Whether more must be known than the NIC's own attachments say.
pub(super) fn must_ask(observed: &Observed, recorded: Option<&ObjectRef>) -> bool {
    let pod = recorded.and_then(|pod| pods::alive(&observed.pods, &pod.uid));
    let here = pod.and_then(|pod| observed.attached_to(&uid(pod)));
    here.is_none_or(says_that_it_waits)
}

/// What to report when the NIC goes from a pod whose QEMU waits for the VM to `pod`.
pub(super) fn left(observed: &Observed, nic: &VmHybridNic, pod: &ObjectRef) -> Option<Note> {
    let from = recorded(nic).filter(|from| from.uid != pod.uid)?;
    observed
        .attached_to(&from.uid)
        .filter(|here| has_no_vm(observed, here))?;
    let message = format!(
        "QEMU in the pod {} waits for a VM to migrate there (-incoming), so the VM is not there: the NIC goes to the pod {}, \
         and that QEMU is ended",
        from.name, pod.name
    );
    Some(Note::normal(reasons::VM_INCOMING, message))
}

/// Whether QEMU has no VM where the NIC is attached, and gets none. For a node that does not answer this is out of date.
fn has_no_vm(observed: &Observed, attachment: &NicAttachment) -> bool {
    says_that_it_waits(attachment)
        && observed.under_way().is_none()
        && *observed.node(attachment) == NodeState::Ready
}

/// The oldest pod to which other NICs of the VM are attached as `fits` says.
fn oldest_of(observed: &Observed, fits: impl Fn(&NicAttachment) -> bool) -> Option<&Arc<Pod>> {
    let attached = observed
        .others
        .iter()
        .filter(|other| !fence::leaves(other) && fits(other));
    let pods = attached.filter_map(|other| pods::alive(&observed.pods, &other.spec.pod.uid));
    pods.min_by_key(|pod| age(pod))
}

fn next_younger<'a>(observed: &'a Observed, than: &Pod) -> Option<&'a Arc<Pod>> {
    let younger = observed
        .pods
        .iter()
        .filter(|pod| may_have_vm(pod) && age(pod) > age(than));
    younger.min_by_key(|pod| age(pod))
}

fn uid(pod: &Pod) -> String {
    pod.uid().unwrap_or_default()
}

/// No two pods that exist at the same time have the same.
fn age(pod: &Pod) -> (Option<Timestamp>, String) {
    (pod.creation_timestamp().map(|time| time.0), pod.name_any())
}

fn last_target(moves: &[Move]) -> Option<&ObjectRef> {
    let succeeded = moves
        .iter()
        .filter(|of| of.stage == Stage::Over(Outcome::Succeeded) && !of.target.pod.uid.is_empty());
    let last = succeeded.max_by_key(|of| of.times.finished_at.as_ref().map(|at| at.0))?;
    Some(&last.target.pod)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
