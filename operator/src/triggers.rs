//! Asks for reconciles. Each kind says which change asks for which: [`crate::kinds`].

use std::sync::Arc;

use hybridnic_api::foreign::kubevirt::{
    KubeVirt, VirtualMachine, VirtualMachineInstance, VirtualMachineInstanceMigration,
};
use hybridnic_api::v1alpha1::{
    HybridNetwork, HybridNode, NicAttachment, QemuMigration, QemuRestore, QemuSave, VmHybridNic,
};

use crate::cache::{Key, Name, Object};
use crate::kinds::Watched;
use crate::metrics::Reconciles;
use crate::moves::{self, Stage};
use crate::nic::release::is_held;
use crate::queue::{Places, Queue, Urgency};
use crate::vm::VmRef;
use crate::world::World;

/// Of the kinds that have many objects.
const MANY: Places = Places {
    urgent: 64,
    others: 16,
    beside_urgent: 2,
};
/// Of the kinds that have few objects, or few of which reconcile at once.
const FEW: Places = Places {
    urgent: 4,
    others: 4,
    beside_urgent: 4,
};

/// The queues of all controllers.
#[allow(missing_docs)]
pub struct Queues {
    pub networks: Queue<HybridNetwork>,
    pub hybrid_nodes: Queue<HybridNode>,
    pub nics: Queue<VmHybridNic>,
    pub attachments: Queue<NicAttachment>,
    pub migrations: Queue<QemuMigration>,
    pub saves: Queue<QemuSave>,
    pub restores: Queue<QemuRestore>,
    pub vms: Queue<VirtualMachine>,
    pub vmis: Queue<VirtualMachineInstance>,
    pub vmi_migrations: Queue<VirtualMachineInstanceMigration>,
    pub kubevirts: Queue<KubeVirt>,
}

impl Queues {
    /// Empty queues.
    pub fn new(reconciles: &Reconciles) -> Self {
        Self {
            networks: Queue::new(reconciles, FEW),
            hybrid_nodes: Queue::new(reconciles, FEW),
            nics: Queue::new(reconciles, MANY),
            attachments: Queue::new(reconciles, FEW),
            migrations: Queue::new(reconciles, MANY),
            saves: Queue::new(reconciles, FEW),
            restores: Queue::new(reconciles, FEW),
            vms: Queue::new(reconciles, FEW),
            vmis: Queue::new(reconciles, FEW),
            vmi_migrations: Queue::new(reconciles, FEW),
            kubevirts: Queue::new(reconciles, FEW),
        }
    }
}

/// Asks for reconciles of what a change concerns. Clones share it.
#[derive(Clone)]
pub struct Triggers {
    /// What is there.
    pub world: World,
    /// Where to ask.
    pub queues: Arc<Queues>,
}

impl Triggers {
    /// Asks for a reconcile of everything, because it is not known what has changed while no operator led. Migrations that have begun come
    /// first.
    pub fn everything(&self) {
        let begun = |stage: Option<Stage>| stage.is_some_and(|stage| Urgency::from(stage) > Urgency::Usual);
        for migration in self.world.migrations.select(begun) {
            QemuMigration::changed(self, None, Some(&migration));
        }
        for save in self.world.saves.select(begun) {
            QemuSave::changed(self, None, Some(&save));
        }
        for restore in self.world.restores.select(begun) {
            QemuRestore::changed(self, None, Some(&restore));
        }
        let (world, queues) = (&self.world, &self.queues);
        all(world.hybrid_nodes.all_names(), &queues.hybrid_nodes);
        all(world.networks.all_names(), &queues.networks);
        all(world.kubevirts.all_names(), &queues.kubevirts);
        all(world.vms.all_names(), &queues.vms);
        all(world.vmis.all_names(), &queues.vmis);
        all(world.nics.all_names(), &queues.nics);
        let held = world.attachments.select(|is_held| is_held);
        let held = held.iter().map(|held| Name::of(held.as_ref())).collect();
        all(held, &queues.attachments);
        all(world.migrations.all_names(), &queues.migrations);
        all(world.saves.all_names(), &queues.saves);
        all(world.restores.all_names(), &queues.restores);
        // Nothing is said of one that is over.
        let going = world.vmi_migrations.select(|going| going);
        let going = going.iter().map(|going| Name::of(going.as_ref())).collect();
        all(going, &queues.vmi_migrations);
    }

    /// The cluster has got a kind of another project: networks have objects of it, and NICs wait for some.
    pub fn foreign_kind(&self) {
        all(self.world.networks.all_names(), &self.queues.networks);
        all(self.world.kubevirts.all_names(), &self.queues.kubevirts);
        self.kubevirt_nics();
    }

    /// The NICs of a VM, and what moves it.
    pub fn vm(&self, vm: &VmRef) {
        let urgency = self.world.urgency(vm);
        self.nics(&Key::Vm(vm.clone()), urgency);
        self.moves(vm, urgency);
    }

    /// What moves a VM. Of KubeVirt's own migrations those to other clusters: it is said of them that the VM cannot go there.
    pub fn moves(&self, vm: &VmRef, urgency: Urgency) {
        let theirs = Key::Vm(vm.clone());
        let go_on = self.world.vmi_migrations.glances(&theirs).contains(&true);
        let theirs = go_on.then(|| self.world.vmi_migrations.by(&theirs));
        for migration in theirs.into_iter().flatten() {
            if moves::kubevirt::is_decentralised(&migration) {
                self.queues
                    .vmi_migrations
                    .add(Name::of(migration.as_ref()), Urgency::Usual);
            }
        }
        for migration in self.world.migrations.names(&Key::Vm(vm.clone())) {
            self.queues.migrations.add(migration, urgency);
        }
        for save in self.world.saves.names(&Key::Vm(vm.clone())) {
            self.queues.saves.add(save, urgency);
        }
        for restore in self.world.restores.names(&Key::Vm(vm.clone())) {
            self.queues.restores.add(restore, urgency);
        }
    }

    /// The VMs on their way from or to a node.
    pub fn moves_on(&self, node: &str) {
        for migration in self.world.migrations.by(&Key::Node(node.to_owned())) {
            self.vm(&VmRef::of_migration(&migration));
        }
        for save in self.world.saves.by(&Key::Node(node.to_owned())) {
            self.vm(&VmRef::on_file(save.as_ref()));
        }
        for restore in self.world.restores.by(&Key::Node(node.to_owned())) {
            self.vm(&VmRef::on_file(restore.as_ref()));
        }
    }

    /// The NICs with a key.
    pub fn nics(&self, key: &Key, urgency: Urgency) {
        for nic in self.world.nics.names(key) {
            self.queues.nics.add(nic, urgency);
        }
    }

    /// The NIC of an attachment.
    pub fn nic_of(&self, attachment: &NicAttachment) {
        let vm = VmRef::of_attachment(attachment);
        let nic = Name::new(&vm.namespace, &attachment.spec.nic.name);
        self.queues.nics.add(nic, self.world.urgency(&vm));
    }

    /// An attachment that its agent keeps, which may be released.
    pub fn release(&self, attachment: &NicAttachment) {
        if is_held(attachment) {
            let attachment = Name::of(attachment);
            self.queues.attachments.add(attachment, Urgency::Usual);
        }
    }

    /// A network.
    pub fn network(&self, network: &str) {
        self.queues.networks.add(Name::new("", network), Urgency::Usual);
    }

    /// The networks that an object of KubeVirt's names.
    pub fn networks_named(&self, of: &impl Object) {
        for key in of.keys() {
            if let Key::Network(network) = key {
                self.network(&network);
            }
        }
    }

    /// What says which NICs a VM of KubeVirt should have.
    pub fn machine(&self, vm: &VmRef) {
        let name = Name::new(&vm.namespace, &vm.name);
        self.queues.vms.add(name.clone(), Urgency::Usual);
        self.queues.vmis.add(name, Urgency::Usual);
    }

    /// All NICs of KubeVirt's VMs.
    pub fn kubevirt_nics(&self) {
        let world = &self.world;
        for vm in world.vms.all_names().iter().chain(&world.vmis.all_names()) {
            self.vm(&VmRef::kubevirt(vm.namespace(), vm.name()));
        }
    }

    /// The networks that have a pool on a node.
    pub fn networks_of(&self, node: &HybridNode) {
        self.networks_named(node);
    }
}

fn all<K: Object>(names: Vec<Name>, queue: &Queue<K>) {
    for name in names {
        queue.add(name, Urgency::Usual);
    }
}
