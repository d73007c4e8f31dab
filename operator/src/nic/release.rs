//! Releases attachments that no agent will ever take back, because their node is off.
//!
//! The agent's finalizer keeps an attachment until none of its parts is left on the node. On a node that is off nothing can run a VM
//! or answer for its MAC. If its agent comes back, it takes back what its journal has and the API server no longer has. This looks
//! only at the attachment, which may have outlived its NIC.

use std::sync::Arc;

use hybridnic_api::names::ATTACHMENT_FINALIZER;
use hybridnic_api::v1alpha1::NicAttachment;
use kube::{Api, Client, ResourceExt};

use crate::controller::{Done, Reconciler};
use crate::fence::lookup::{AGAIN, NodeLookup};
use crate::fence::{NodeState, PodEnd, is_abandoned};
use crate::vm::VmRef;
use crate::world::World;
use crate::write;

/// Reconciles attachments that are being deleted.
pub struct ReleaseReconciler {
    client: Client,
    world: World,
    lookup: NodeLookup,
}

impl ReleaseReconciler {
    /// A reconciler that reads from `world`.
    pub fn new(client: Client, world: World, lookup: NodeLookup) -> Self {
        Self {
            client,
            world,
            lookup,
        }
    }
}

/// Whether it was deleted, and its agent keeps it.
pub fn is_held(attachment: &NicAttachment) -> bool {
    attachment.metadata.deletion_timestamp.is_some() && has_finalizer(attachment)
}

/// Whether its agent has taken it.
pub fn has_finalizer(attachment: &NicAttachment) -> bool {
    let mut finalizers = attachment.finalizers().iter();
    finalizers.any(|finalizer| finalizer == ATTACHMENT_FINALIZER)
}

impl Reconciler for ReleaseReconciler {
    type Kind = NicAttachment;

    async fn reconcile(&self, attachment: Arc<NicAttachment>) -> Result<Done, write::Error> {
        if !is_held(&attachment) {
            return Ok(Done::default());
        }
        let namespace = attachment.namespace().unwrap_or_default();
        let spec = &attachment.spec;
        let node = self.lookup.node(&spec.node_name).await;
        let pods = self.world.pods_of(&VmRef::of_attachment(&attachment));
        if is_abandoned(PodEnd::of(&pods, &spec.pod.uid, &node), &node) {
            tracing::info!(
                node = spec.node_name,
                state = ?node,
                "its node is off; nobody waits for its agent any more"
            );
            let mut finalizers = attachment.finalizers().to_vec();
            finalizers.retain(|finalizer| finalizer != ATTACHMENT_FINALIZER);
            let api = Api::namespaced(self.client.clone(), &namespace);
            write::finalizers(&api, attachment.as_ref(), &finalizers).await?;
        }
        Ok(Done {
            wrote: false,
            again: (node == NodeState::Unknown).then_some(AGAIN),
        })
    }
}
