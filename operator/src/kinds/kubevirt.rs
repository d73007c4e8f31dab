//! KubeVirt's kinds: `VirtualMachine`, `VirtualMachineInstance`, `VirtualMachineInstanceMigration`, and `KubeVirt` itself. A cluster
//! need not have them.

use hybridnic_api::foreign::kubevirt::{
    KubeVirt, VirtualMachine, VirtualMachineInstance, VirtualMachineInstanceMigration,
    VirtualMachineInstanceSpec,
};
use kube::ResourceExt;

use super::{Watched, namespace_of, unread};
use crate::cache::{Key, Name, Object};
use crate::kubevirt::interfaces;
use crate::moves;
use crate::queue::Urgency;
use crate::triggers::Triggers;
use crate::vm::VmRef;

/// By the VM, and by the networks that it names.
fn keys(vm: &impl ResourceExt, spec: &VirtualMachineInstanceSpec) -> Vec<Key> {
    let networks = interfaces::of(spec)
        .into_iter()
        .map(|wanted| Key::Network(wanted.network));
    let mut keys: Vec<_> = networks.collect();
    keys.dedup();
    keys.push(Key::Vm(VmRef::kubevirt(namespace_of(vm), vm.name_any())));
    keys
}

/// Removes the interfaces that do not matter here. Those without our binding on networks of Multus stay: the network may be ours.
fn trim_spec(spec: &mut VirtualMachineInstanceSpec) {
    let interfaces = &mut spec.domain.devices.interfaces;
    let is_on_multus = |name: &str| {
        let mut networks = spec.networks.iter();
        networks.any(|network| network.name == name && network.multus.is_some())
    };
    interfaces.retain(|interface| interface.binding.is_some() || is_on_multus(&interface.name));
    spec.networks
        .retain(|network| interfaces.iter().any(|interface| interface.name == network.name));
}

impl Object for VirtualMachine {
    type Glance = ();

    const OPTIONAL: bool = true;

    fn keys(&self) -> Vec<Key> {
        keys(self, &self.spec.template.spec)
    }

    fn glance(&self) {}

    fn trim(&mut self) {
        unread(self);
        trim_spec(&mut self.spec.template.spec);
    }
}

impl Watched for VirtualMachine {
    fn changed(triggers: &Triggers, old: Option<&Self>, new: Option<&Self>) {
        let spec = |vm: &Self| vm.spec.template.spec.clone();
        if old.map(spec) != new.map(spec) {
            for vm in [old, new].into_iter().flatten() {
                triggers.networks_named(vm);
            }
        }
        if let Some(vm) = new.or(old) {
            triggers.machine(&VmRef::kubevirt(namespace_of(vm), vm.name_any()));
        }
    }
}

impl Object for VirtualMachineInstance {
    type Glance = ();

    const OPTIONAL: bool = true;

    fn keys(&self) -> Vec<Key> {
        keys(self, &self.spec)
    }

    fn glance(&self) {}

    fn trim(&mut self) {
        // Its owner is asked for.
        let owners = self.metadata.owner_references.take();
        unread(self);
        self.metadata.owner_references = owners;
        trim_spec(&mut self.spec);
        if let Some(status) = &mut self.status {
            status
                .conditions
                .retain(|condition| condition.type_ == "Synchronized");
        }
    }
}

impl Watched for VirtualMachineInstance {
    fn changed(triggers: &Triggers, old: Option<&Self>, new: Option<&Self>) {
        let Some(vmi) = new.or(old) else { return };
        let vm = VmRef::kubevirt(namespace_of(vmi), vmi.name_any());
        if old.map(|vmi| &vmi.spec) != new.map(|vmi| &vmi.spec) {
            for vmi in [old, new].into_iter().flatten() {
                triggers.networks_named(vmi);
            }
            triggers.machine(&vm);
        }
        triggers.vm(&vm);
    }
}

/// At a glance, whether it has not ended.
impl Object for VirtualMachineInstanceMigration {
    type Glance = bool;

    const OPTIONAL: bool = true;

    fn keys(&self) -> Vec<Key> {
        vec![Key::Vm(VmRef::of_kubevirt_migration(self))]
    }

    fn glance(&self) -> bool {
        !moves::kubevirt::is_final(self)
    }

    fn trim(&mut self) {
        unread(self);
    }
}

impl Watched for VirtualMachineInstanceMigration {
    fn changed(triggers: &Triggers, old: Option<&Self>, new: Option<&Self>) {
        if let Some(migration) = new.or(old) {
            triggers.vm(&VmRef::of_kubevirt_migration(migration));
        }
    }
}

impl Object for KubeVirt {
    type Glance = ();

    const OPTIONAL: bool = true;

    fn keys(&self) -> Vec<Key> {
        Vec::new()
    }

    fn glance(&self) {}

    fn trim(&mut self) {
        unread(self);
        let bindings = &mut self.spec.configuration.network.binding;
        bindings.retain(|name, _| name == hybridnic_api::foreign::kubevirt::BINDING);
    }
}

impl Watched for KubeVirt {
    fn changed(triggers: &Triggers, old: Option<&Self>, new: Option<&Self>) {
        if let Some(kubevirt) = new.or(old) {
            triggers.queues.kubevirts.add(Name::of(kubevirt), Urgency::Usual);
        }
        let what = |of: &Self| (of.spec.clone(), of.status.clone());
        if old.map(what) != new.map(what) {
            triggers.kubevirt_nics();
        }
    }
}
