//! `VmHybridNic`.

use hybridnic_api::conditions::{self, reasons, types};
use hybridnic_api::v1alpha1::{NicPhase, Path, Runtime, VmHybridNic, WantedPath};
use hybridnic_decisions::mac;

use super::{Watched, namespace_of, unread};
use crate::cache::{Key, Name, Object};
use crate::queue::Urgency;
use crate::triggers::Triggers;
use crate::vm::VmRef;

/// What of NICs is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NicGlance {
    /// What is to carry its traffic.
    pub asked: WantedPath,
    /// What carries it.
    pub path: Path,
    /// Where it is in its life.
    pub phase: NicPhase,
    /// Whether it waits for a node that does not answer.
    pub lost: bool,
}

impl Object for VmHybridNic {
    type Glance = NicGlance;

    fn keys(&self) -> Vec<Key> {
        let status = self.status.as_ref();
        let has = status.and_then(|status| status.mac.as_ref());
        let macs = self.spec.mac.iter().chain(has);
        let mut macs: Vec<_> = macs.map(|mac| mac.to_ascii_lowercase()).collect();
        macs.dedup();
        let mut keys: Vec<_> = macs.into_iter().map(Key::Mac).collect();
        keys.push(Key::Namespace(namespace_of(self)));
        keys.push(Key::Network(self.spec.network.clone()));
        keys.extend(VmRef::of_nic(self).map(Key::Vm));
        keys.extend(status.and_then(|status| status.node_name.clone()).map(Key::Node));
        keys
    }

    fn glance(&self) -> NicGlance {
        let asked = self.spec.path;
        let Some(status) = &self.status else {
            return NicGlance {
                asked,
                ..NicGlance::default()
            };
        };
        let ready = conditions::find(&status.conditions, types::READY);
        NicGlance {
            asked,
            path: status.path,
            phase: status.phase,
            lost: ready.is_some_and(|ready| ready.reason == reasons::NODE_UNREACHABLE),
        }
    }

    fn trim(&mut self) {
        // By its owner it is known that it was made for a VM of KubeVirt's.
        let mut owners = self.metadata.owner_references.take().unwrap_or_default();
        owners.retain(|owner| owner.controller == Some(true));
        unread(self);
        self.metadata.owner_references = (!owners.is_empty()).then_some(owners);
    }
}

impl Watched for VmHybridNic {
    fn changed(triggers: &Triggers, old: Option<&Self>, new: Option<&Self>) {
        let Some(nic) = new.or(old) else { return };
        let vm = VmRef::of_nic(nic);
        let urgency = vm
            .as_ref()
            .map_or(Urgency::Usual, |vm| triggers.world.urgency(vm));
        triggers.queues.nics.add(Name::of(nic), urgency);
        if old.map(Object::glance) != new.map(Object::glance) {
            triggers.network(&nic.spec.network);
        }
        if let Some(vm) = &vm {
            triggers.moves(vm, urgency);
            // One that was made for an interface may have to be made again.
            if new.is_none() && vm.runtime == Runtime::Kubevirt {
                triggers.machine(vm);
            }
        }
        // A NIC that waits for the address may have it once this one is gone, or was refused.
        let was_refused = old.is_some_and(mac::is_refused);
        if new.is_none_or(|new| !was_refused && mac::is_refused(new)) {
            for key in nic.keys().iter().filter(|key| matches!(key, Key::Mac(_))) {
                triggers.nics(key, Urgency::Usual);
            }
        }
    }
}
