//! All that the operator sees of a cluster.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use hybridnic_api::foreign::kubevirt::{
    KubeVirt, LAUNCHER, POD_LABEL, VirtualMachine, VirtualMachineInstance, VirtualMachineInstanceMigration,
};
use hybridnic_api::foreign::multus::NetworkAttachmentDefinition;
use hybridnic_api::v1alpha1::{
    HybridNetwork, HybridNode, MigrationPhase, NicAttachment, QemuMigration, QemuRestore, QemuSave, Runtime,
    VmHybridNic,
};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::ResourceExt;
use kube::core::PartialObjectMeta;

use crate::cache::{Cache, Key};
use crate::kubevirt::Settings;
use crate::moves::claims::Claim;
use crate::moves::file::OnFile;
use crate::moves::{self, Going, Move, Stage};
use crate::pods;
use crate::presence::{AgentPods, Agents, Presence};
use crate::queue::Urgency;
use crate::vm::VmRef;
use crate::watches::Watches;

/// The caches of all kinds.
#[derive(Clone)]
#[allow(missing_docs)]
pub struct World {
    pub nodes: Cache<Node>,
    pub namespaces: Cache<PartialObjectMeta<Namespace>>,
    pub pods: Cache<Pod>,
    pub networks: Cache<HybridNetwork>,
    pub hybrid_nodes: Cache<HybridNode>,
    pub nics: Cache<VmHybridNic>,
    pub attachments: Cache<NicAttachment>,
    pub migrations: Cache<QemuMigration>,
    pub saves: Cache<QemuSave>,
    pub restores: Cache<QemuRestore>,
    pub launchers: Cache<Pod>,
    pub vms: Cache<VirtualMachine>,
    pub vmis: Cache<VirtualMachineInstance>,
    pub vmi_migrations: Cache<VirtualMachineInstanceMigration>,
    pub kubevirts: Cache<KubeVirt>,
    pub nads: Cache<NetworkAttachmentDefinition>,
    /// How KubeVirt's VMs are served; none where they are not.
    pub kubevirt: Option<Arc<Settings>>,
    pub agents: Agents,
}

impl World {
    /// Empty caches, with the watches that fill them; with where the agents' pods are, if that is known, and how KubeVirt's VMs are
    /// served, if they are.
    pub fn new(agents: Option<&AgentPods>, kubevirt: Option<Settings>) -> (Self, Watches) {
        let mut watches = Watches::default();
        let on = kubevirt.is_some();
        let launchers = format!("{POD_LABEL}={LAUNCHER}");
        let world = Self {
            nodes: watches.all(),
            namespaces: watches.all(),
            pods: watches.all(),
            networks: watches.all(),
            hybrid_nodes: watches.all(),
            nics: watches.all(),
            attachments: watches.all(),
            migrations: watches.all(),
            saves: watches.all(),
            restores: watches.all(),
            launchers: watches.foreign(on, Some(&launchers)),
            vms: watches.foreign(on, None),
            vmis: watches.foreign(on, None),
            vmi_migrations: watches.foreign(on, None),
            kubevirts: watches.foreign(on, None),
            nads: watches.foreign(on, None),
            kubevirt: kubevirt.map(Arc::new),
            agents: Agents::watched(&mut watches, agents),
        };
        (world, watches)
    }

    /// Whether a node can take a NIC now, as far as is known.
    pub fn presence(&self, node: &str, now: Instant) -> Presence {
        match self.nodes.glance("", node) {
            Some(true) => Presence::NotReady,
            _ => self.agents.presence_of(node, now),
        }
    }

    /// The nodes of these pods that can take no NIC now.
    pub fn away(&self, pods: &[Arc<Pod>]) -> BTreeSet<String> {
        let nodes = pods.iter().filter_map(|pod| pods::node(pod));
        let away = nodes.filter(|node| self.presence(node, Instant::now()).is_away());
        away.map(ToOwned::to_owned).collect()
    }

    /// The pods of a VM.
    pub fn pods_of(&self, vm: &VmRef) -> Vec<Arc<Pod>> {
        let key = Key::Vm(vm.clone());
        match vm.runtime {
            Runtime::Qemu => self.pods.by(&key),
            Runtime::Kubevirt => self.launchers.by(&key),
        }
    }

    /// The NICs of a VM.
    pub fn nics_of(&self, vm: &VmRef) -> Vec<Arc<VmHybridNic>> {
        self.nics.by(&Key::Vm(vm.clone()))
    }

    /// The moves of a VM, also those that are over.
    pub fn moves_of(&self, vm: &VmRef) -> Vec<Move> {
        let key = Key::Vm(vm.clone());
        match vm.runtime {
            Runtime::Qemu => {
                let migrations = self.migrations.by(&key);
                let moves = migrations.iter();
                let moves = moves.filter_map(|migration| moves::qemu::begun(migration));
                let (saves, restores) = (self.saves.by(&key), self.restores.by(&key));
                let saves = saves.iter().filter_map(|save| moves::file::begun(save.as_ref()));
                let restores = restores
                    .iter()
                    .filter_map(|restore| moves::file::begun(restore.as_ref()));
                moves.chain(saves).chain(restores).collect()
            }
            Runtime::Kubevirt => moves::kubevirt::moves(moves::kubevirt::Inputs {
                migrations: &self.vmi_migrations.by(&key),
                pods: &self.pods_of(vm),
                attachments: &self.attachments_of_vm(vm),
                vmi: self.vmis.get(&vm.namespace, &vm.name).as_deref(),
            }),
        }
    }

    /// The migrations that are asked for and have not ended.
    pub fn going(&self) -> Vec<Going> {
        let migrations = self
            .migrations
            .select(|stage| !matches!(stage, Some(Stage::Over(_))));
        let ours = migrations
            .iter()
            .filter_map(|migration| moves::qemu::going(migration));
        let theirs = self.vmi_migrations.select(|going| going);
        let theirs = theirs.iter().filter_map(|migration| {
            let vm = VmRef::of_kubevirt_migration(migration);
            // Only those of VMs with NICs of ours.
            let is_ours = self.nics.any(&Key::Vm(vm.clone()));
            moves::kubevirt::going(migration, &self.moves_of(&vm)).filter(|_| is_ours)
        });
        ours.chain(theirs).collect()
    }

    /// The saves that are asked for and have not ended.
    pub fn saves_going(&self) -> Vec<Going> {
        let saves = self.saves.select(|stage| !matches!(stage, Some(Stage::Over(_))));
        saves
            .iter()
            .filter_map(|save| moves::file::going(save.as_ref()))
            .collect()
    }

    /// The same of restores.
    pub fn restores_going(&self) -> Vec<Going> {
        let restores = self
            .restores
            .select(|stage| !matches!(stage, Some(Stage::Over(_))));
        restores
            .iter()
            .filter_map(|restore| moves::file::going(restore.as_ref()))
            .collect()
    }

    /// How urgent it is what is to be done for a VM.
    pub fn urgency(&self, vm: &VmRef) -> Urgency {
        let key = Key::Vm(vm.clone());
        match vm.runtime {
            Runtime::Qemu => {
                let stages = self.migrations.glances(&key).into_iter();
                let stages = stages
                    .chain(self.saves.glances(&key))
                    .chain(self.restores.glances(&key));
                stages.flatten().map(Urgency::from).max().unwrap_or_default()
            }
            Runtime::Kubevirt if self.vmi_migrations.glances(&key).contains(&true) => Urgency::Urgent,
            Runtime::Kubevirt => Urgency::Usual,
        }
    }

    /// Everything that moves a VM of the qemu runtime, or wants to.
    pub fn claims(&self, vm: &VmRef) -> Vec<Claim> {
        let key = Key::Vm(vm.clone());
        let migrations = self.migrations.by(&key).into_iter();
        let migrations = migrations.map(|of| Claim::of("migration", of.as_ref(), moves::qemu::phase(&of)));
        let saves = self.saves.by(&key).into_iter();
        let saves = saves.map(|of| Claim::of("save", of.as_ref(), of.phase()));
        let restores = self.restores.by(&key).into_iter();
        let restores = restores.map(|of| Claim::of("restore", of.as_ref(), of.phase()));
        migrations.chain(saves).chain(restores).collect()
    }

    /// A restore of a VM that has not begun: if the VM's NICs are there before it, they do not get their places in the guest from a file.
    pub fn restore_to_come(&self, vm: &VmRef) -> Option<String> {
        if vm.runtime != Runtime::Qemu {
            return None;
        }
        let restores = self.restores.by(&Key::Vm(vm.clone()));
        let waits = |restore: &&Arc<QemuRestore>| {
            restore.phase() == MigrationPhase::Pending && restore.metadata.deletion_timestamp.is_none()
        };
        restores.iter().find(waits).map(|restore| restore.name_any())
    }

    /// The attachments of all NICs of a VM.
    pub fn attachments_of_vm(&self, vm: &VmRef) -> Vec<Arc<NicAttachment>> {
        self.attachments.by(&Key::Vm(vm.clone()))
    }

    /// The attachments of a NIC.
    pub fn attachments_of(&self, nic: &VmHybridNic) -> Vec<Arc<NicAttachment>> {
        self.attachments_by_name(nic).0
    }

    /// Whether an attachment of a NIC, or of a namesake, does not parse.
    pub fn has_unreadable_attachment(&self, nic: &VmHybridNic) -> bool {
        let key = Key::Nic(nic.namespace().unwrap_or_default(), nic.name_any());
        self.attachments.unread_has(&key, None)
    }

    /// The attachments of a NIC, and those that a namesake has left behind.
    pub fn attachments_by_name(
        &self,
        nic: &VmHybridNic,
    ) -> (Vec<Arc<NicAttachment>>, Vec<Arc<NicAttachment>>) {
        let key = Key::Nic(nic.namespace().unwrap_or_default(), nic.name_any());
        let found = self.attachments.by(&key).into_iter();
        found.partition(|a| Some(&a.spec.nic.uid) == nic.metadata.uid.as_ref())
    }
}
