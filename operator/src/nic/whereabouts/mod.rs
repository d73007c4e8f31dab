//! In which of its pods a VM is: asked here, answered for each runtime. Pure.
//!
//! | module | of a VM | goes by |
//! |---|---|---|
//! | [`qemu`] | whose QEMU a user starts | what the agents have heard from the QEMUs in its pods |
//! | [`kubevirt`] | of KubeVirt | where its NICs carry traffic, and which launcher was made for what |

pub mod kubevirt;
pub mod qemu;

use std::sync::Arc;

use hybridnic_api::conditions::reasons;
use hybridnic_api::v1alpha1::{NicAttachment, ObjectRef, Runtime, VmHybridNic};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::admit::Refusal;
use super::observed::Observed;
use crate::events::Note;
use crate::moves::Move;
use crate::vm::VmRef;
use crate::{fence, pods};

impl Observed {
    /// The pod in which the VM is, or is about to be; or why it is in none.
    pub(super) fn whereabouts(&self, recorded: Option<&ObjectRef>) -> Result<&Arc<Pod>, Refusal> {
        let Some(VmRef { runtime, name, .. }) = &self.vm else {
            let message = "spec.vm names no runtime that this version of the operator knows";
            return Err(Refusal::new(reasons::POD_NOT_FOUND, message));
        };
        let (found, missing) = match runtime {
            Runtime::Qemu => (qemu::pod_of_vm(self, recorded), pods::missing(name, &self.pods)),
            Runtime::Kubevirt => (kubevirt::pod_of_vm(self, recorded), kubevirt::missing(self, name)),
        };
        found.ok_or_else(|| Refusal::new(reasons::POD_NOT_FOUND, missing))
    }

    /// Why the NIC's attachments are left as they are: what they hold, or whether their VM runs, is not known.
    pub fn unknown(&self) -> Option<Refusal> {
        if self.unreadable {
            let message = "an attachment of this NIC cannot be read by this version of the operator, whose log says why; nothing is \
                           done about the NIC until it can";
            return Some(Refusal::new(reasons::ATTACHMENT_UNREADABLE, message));
        }
        match self.vm.as_ref()?.runtime {
            Runtime::Kubevirt if self.moving.is_none() && !self.attachments.is_empty() => {
                kubevirt::unknown(self)
            }
            Runtime::Kubevirt | Runtime::Qemu => None,
        }
    }

    /// Whether a pod that has a node can be given the NIC. A launcher does not start before it has.
    pub(super) fn may_attach_to(&self, pod: &Pod) -> bool {
        match self.vm.as_ref().map(|vm| vm.runtime) {
            Some(Runtime::Kubevirt) => !pods::is_finished(pod),
            Some(Runtime::Qemu) | None => pods::is_running(pod),
        }
    }

    /// Whether more must be known than the NIC's own attachments say.
    pub(super) fn must_ask(&self, recorded: Option<&ObjectRef>) -> bool {
        match self.vm.as_ref().map(|vm| vm.runtime) {
            Some(Runtime::Qemu) => qemu::must_ask(self, recorded),
            // It is asked of all NICs of the VM where that is.
            Some(Runtime::Kubevirt) => true,
            None => false,
        }
    }

    /// What to report when the NIC goes to `pod` by itself, from one in which the VM is not.
    pub fn left(&self, nic: &VmHybridNic, pod: &ObjectRef) -> Option<Note> {
        match self.vm.as_ref()?.runtime {
            Runtime::Qemu => qemu::left(self, nic, pod),
            Runtime::Kubevirt => None,
        }
    }

    /// The other pods that may have the VM.
    pub fn other_pods(&self, pod: &ObjectRef) -> Vec<String> {
        let others = self
            .pods
            .iter()
            .filter(|other| may_have_vm(other) && other.metadata.uid.as_deref() != Some(&pod.uid));
        let mut names: Vec<_> = others.map(|other| other.name_any()).collect();
        names.sort();
        names
    }

    /// The NIC's attachment to a pod, unless it is on its way out.
    pub(super) fn attached_to(&self, pod: &str) -> Option<&NicAttachment> {
        let attached = self
            .attachments
            .iter()
            .find(|a| a.spec.pod.uid == pod && !fence::leaves(a));
        attached.map(AsRef::as_ref)
    }

    /// A move that has the VM in its hands.
    pub(super) fn under_way(&self) -> Option<&Move> {
        self.moves
            .iter()
            .find(|of| of.is_under_way() && !of.nics.is_empty())
    }
}

fn may_have_vm(pod: &Pod) -> bool {
    pods::is_running(pod) && pod.metadata.deletion_timestamp.is_none()
}
