//! `HybridNetwork`.

use hybridnic_api::v1alpha1::HybridNetwork;
use kube::ResourceExt;

use super::{Watched, unread};
use crate::cache::{Key, Object};
use crate::queue::Urgency;
use crate::triggers::Triggers;

impl Object for HybridNetwork {
    type Glance = ();

    fn keys(&self) -> Vec<Key> {
        Vec::new()
    }

    fn glance(&self) {}

    fn trim(&mut self) {
        unread(self);
    }
}

impl Watched for HybridNetwork {
    fn changed(triggers: &Triggers, old: Option<&Self>, new: Option<&Self>) {
        let Some(network) = new.or(old) else { return };
        triggers.network(&network.name_any());
        if old.map(|network| &network.spec) == new.map(|network| &network.spec) {
            return;
        }
        for node in triggers.world.hybrid_nodes.all_names() {
            triggers.queues.hybrid_nodes.add(node, Urgency::Usual);
        }
        triggers.nics(&Key::Network(network.name_any()), Urgency::Usual);
    }
}
