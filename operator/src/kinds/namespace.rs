//! `Namespace`.

use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use kube::core::PartialObjectMeta;

use super::{Watched, bare};
use crate::cache::{Key, Object};
use crate::queue::Urgency;
use crate::triggers::Triggers;

/// Only its labels matter.
impl Object for PartialObjectMeta<Namespace> {
    type Glance = ();

    fn keys(&self) -> Vec<Key> {
        Vec::new()
    }

    fn glance(&self) {}

    fn trim(&mut self) {
        bare(self);
    }
}

impl Watched for PartialObjectMeta<Namespace> {
    fn changed(triggers: &Triggers, old: Option<&Self>, new: Option<&Self>) {
        let changed = old.map(ResourceExt::labels) != new.map(ResourceExt::labels);
        if let Some(namespace) = new.or(old).filter(|_| changed) {
            triggers.nics(&Key::Namespace(namespace.name_any()), Urgency::Usual);
        }
    }
}
