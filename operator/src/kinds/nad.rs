//! `NetworkAttachmentDefinition`, which a cluster need not have.

use hybridnic_api::foreign::multus::{NetworkAttachmentDefinition, RESOURCE_ANNOTATION};
use kube::ResourceExt;

use super::{Watched, bare};
use crate::cache::{Key, Object};
use crate::triggers::Triggers;

/// By the network whose name it has, whether or not it is ours.
impl Object for NetworkAttachmentDefinition {
    type Glance = ();

    const OPTIONAL: bool = true;
    const ANNOTATED: bool = true;

    fn keys(&self) -> Vec<Key> {
        vec![Key::Network(self.name_any())]
    }

    fn glance(&self) {}

    fn trim(&mut self) {
        bare(self);
        let ours =
            |label: &str| label.starts_with("hybridnic.io/") || label.starts_with("app.kubernetes.io/");
        self.labels_mut().retain(|label, _| ours(label));
        self.annotations_mut()
            .retain(|name, _| name == RESOURCE_ANNOTATION);
    }
}

impl Watched for NetworkAttachmentDefinition {
    fn changed(triggers: &Triggers, old: Option<&Self>, new: Option<&Self>) {
        if let Some(nad) = new.or(old) {
            triggers.network(&nad.name_any());
        }
        // Whether a VM's network is there.
        if old.is_some() != new.is_some() {
            triggers.kubevirt_nics();
        }
    }
}
