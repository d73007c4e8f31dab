//! `NicAttachment`.

use hybridnic_api::v1alpha1::{NicAttachment, Runtime};

use super::{Watched, namespace_of, unread};
use crate::cache::{Key, Object};
use crate::nic::release::is_held;
use crate::triggers::Triggers;
use crate::vm::VmRef;

/// At a glance, whether it was deleted and its agent keeps it.
impl Object for NicAttachment {
    type Glance = bool;

    fn keys(&self) -> Vec<Key> {
        let spec = &self.spec;
        vec![
            Key::Nic(namespace_of(self), spec.nic.name.clone()),
            Key::Vm(VmRef::of_attachment(self)),
            Key::Node(spec.node_name.clone()),
            Key::Network(spec.network.clone()),
        ]
    }

    fn glance(&self) -> bool {
        is_held(self)
    }

    fn trim(&mut self) {
        unread(self);
        if let Some(status) = &mut self.status {
            status.timeline = Vec::new();
        }
    }
}

impl Watched for NicAttachment {
    fn changed(triggers: &Triggers, old: Option<&Self>, new: Option<&Self>) {
        let Some(attachment) = new.or(old) else { return };
        triggers.nic_of(attachment);
        triggers.release(attachment);
        // A network stays while NICs are attached to it.
        if old.is_some() != new.is_some() {
            triggers.network(&attachment.spec.network);
        }
        let vm = VmRef::of_attachment(attachment);
        let urgency = triggers.world.urgency(&vm);
        triggers.moves(&vm, urgency);
        // The result of a migration follows from the reports of all NICs.
        let report = |a: &Self| {
            a.status
                .as_ref()
                .map(|status| (status.state, status.migration.clone()))
        };
        // The specs say what follows from KubeVirt's migrations; no other object of ours repeats it.
        let told =
            |a: &Self| (vm.runtime == Runtime::Kubevirt).then(|| (a.spec.goal, a.spec.migration.clone()));
        if old.and_then(report) != new.and_then(report) || old.map(told) != new.map(told) {
            triggers.nics(&Key::Vm(vm), urgency);
        }
    }
}
