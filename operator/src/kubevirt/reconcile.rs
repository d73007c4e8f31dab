//! Writes what makes KubeVirt's VMs ours.

use std::collections::{BTreeSet, HashMap};
use std::error::Error as _;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use hybridnic_api::conditions::reasons;
use hybridnic_api::foreign::kubevirt::{
    KubeVirt, VirtualMachine, VirtualMachineInstance, VirtualMachineInstanceMigration,
};
use hybridnic_api::foreign::multus::NetworkAttachmentDefinition;
use hybridnic_api::v1alpha1::{HybridNetwork, VmHybridNic};
use kube::{Api, Client, ResourceExt};

use super::nics::Machine;
use super::{Settings, binding, nads, nics};
use crate::cache::{Key, Object};
use crate::controller::{Done, Reconciler};
use crate::events::{Events, Note};
use crate::moves;
use crate::select::selects;
use crate::vm::VmRef;
use crate::world::World;
use crate::write;

/// The events that were sent for objects that are looked at again and again.
#[derive(Default)]
struct Told(Mutex<HashMap<String, Vec<Note>>>);

impl Told {
    /// Those of `notes` that were not sent for this object when it was looked at last.
    fn news(&self, object: String, notes: Vec<Note>) -> Vec<Note> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = if notes.is_empty() {
            told.remove(&object)
        } else {
            told.insert(object, notes.clone())
        };
        let before = before.unwrap_or_default();
        notes.into_iter().filter(|note| !before.contains(note)).collect()
    }
}

/// Makes the NICs of VMs, looked at by one of their two kinds.
pub struct MachineReconciler<K> {
    client: Client,
    world: World,
    events: Events,
    told: Told,
    kind: PhantomData<fn() -> K>,
}

impl<K> MachineReconciler<K> {
    /// A reconciler that reads from `world`.
    pub fn new(client: Client, world: World, events: Events) -> Self {
        Self {
            client,
            world,
            events,
            told: Told::default(),
            kind: PhantomData,
        }
    }
}

impl<K: Object> MachineReconciler<K> {
    async fn run(&self, of: &K) -> Result<Done, write::Error> {
        let (namespace, name) = (of.namespace().unwrap_or_default(), of.name_any());
        let machine = Machine {
            vm: self.world.vms.get(&namespace, &name),
            vmi: self.world.vmis.get(&namespace, &name),
        };
        let nics = self.world.nics_of(&VmRef::kubevirt(&namespace, &name));
        let plan = nics::plan(&machine, &nics, |nic| self.world.nics.get(&namespace, nic));
        let api: Api<VmHybridNic> = Api::namespaced(self.client.clone(), &namespace);
        let mut notes = plan.notes;
        notes.extend(nics::misfits(&machine, |namespace, network| {
            let found = self.world.nads.get(namespace, network);
            found.is_some_and(|nad| nad.is_ours(network))
        }));
        for nic in &plan.make {
            match write::create(&api, nic).await {
                Err(error) if error.is_invalid() => {
                    let why = error.source().map(ToString::to_string).unwrap_or_default();
                    let message = format!("the NIC {} cannot be made for the VM: {why}", nic.name_any());
                    notes.push(Note::warning(reasons::INTERFACE_UNFIT, message));
                    continue;
                }
                // The cache does not have it yet, or it is not ours: the next look shows it.
                Err(error) if error.is_conflict() => {}
                done => done?,
            }
            tracing::info!(
                nic = nic.name_any(),
                vm = name,
                namespace,
                "a NIC for an interface of KubeVirt's"
            );
        }
        for nic in &plan.delete {
            write::delete(&api, nic.as_ref()).await?;
        }
        let notes = self.told.news(format!("{namespace}/{name}"), notes);
        self.events.tell(of, notes);
        Ok(Done::default())
    }
}

impl Reconciler for MachineReconciler<VirtualMachine> {
    type Kind = VirtualMachine;

    async fn reconcile(&self, vm: Arc<VirtualMachine>) -> Result<Done, write::Error> {
        self.run(vm.as_ref()).await
    }
}

impl Reconciler for MachineReconciler<VirtualMachineInstance> {
    type Kind = VirtualMachineInstance;

    async fn reconcile(&self, vmi: Arc<VirtualMachineInstance>) -> Result<Done, write::Error> {
        // One of a VM is looked at with it.
        let name = (vmi.namespace().unwrap_or_default(), vmi.name_any());
        if self.world.vms.get(&name.0, &name.1).is_some() {
            return Ok(Done::default());
        }
        self.run(vmi.as_ref()).await
    }
}

/// Registers the binding, where the operator may.
pub struct BindingReconciler {
    client: Client,
    settings: Settings,
    events: Events,
    told: Told,
}

impl BindingReconciler {
    /// A reconciler that registers what `settings` say.
    pub fn new(client: Client, settings: Settings, events: Events) -> Self {
        Self {
            client,
            settings,
            events,
            told: Told::default(),
        }
    }
}

impl Reconciler for BindingReconciler {
    type Kind = KubeVirt;

    async fn reconcile(&self, kubevirt: Arc<KubeVirt>) -> Result<Done, write::Error> {
        let Settings {
            sidecar, register, ..
        } = &self.settings;
        if kubevirt.metadata.deletion_timestamp.is_some() || sidecar.is_empty() {
            return Ok(Done::default());
        }
        let mut notes = Vec::new();
        if *register && !binding::is_current(&kubevirt, sidecar) {
            let api: Api<KubeVirt> =
                Api::namespaced(self.client.clone(), &kubevirt.namespace().unwrap_or_default());
            write::merge_into(
                &api,
                kubevirt.as_ref(),
                "register the binding",
                &binding::patch(sidecar),
            )
            .await?;
            tracing::info!(
                kubevirt = kubevirt.name_any(),
                sidecar,
                "the network binding is registered"
            );
        } else if !binding::is_registered(&kubevirt) {
            let message = format!(
                "the network binding is not registered, and this operator may not register it: {}",
                binding::command(&kubevirt, sidecar)
            );
            notes.push(Note::warning(reasons::KUBEVIRT_NOT_READY, message));
        }
        let news = self.told.news(kubevirt.name_any(), notes);
        self.events.tell(kubevirt.as_ref(), news);
        Ok(Done::default())
    }
}

/// Says of migrations to and from other clusters that a VM with NICs of ours cannot go that way. The API server refuses them by a policy of the
/// chart, except those that were there before the policy or before the NIC.
pub struct ElsewhereReconciler {
    world: World,
    events: Events,
    told: Told,
}

impl ElsewhereReconciler {
    /// A reconciler that reads from `world`.
    pub fn new(world: World, events: Events) -> Self {
        Self {
            world,
            events,
            told: Told::default(),
        }
    }
}

impl Reconciler for ElsewhereReconciler {
    type Kind = VirtualMachineInstanceMigration;

    async fn reconcile(&self, migration: Arc<VirtualMachineInstanceMigration>) -> Result<Done, write::Error> {
        let vm = VmRef::of_kubevirt_migration(&migration);
        let notes = elsewhere(&migration, self.world.nics.any(&Key::Vm(vm)));
        let news = self.told.news(migration.uid().unwrap_or_default(), notes);
        self.events.tell(migration.as_ref(), news);
        Ok(Done::default())
    }
}

/// What to report about a migration to or from another cluster of a VM that has NICs of ours, or has none.
fn elsewhere(migration: &VirtualMachineInstanceMigration, has_nics: bool) -> Vec<Note> {
    let is_one = moves::kubevirt::is_decentralised(migration) && !moves::kubevirt::is_final(migration);
    let message = "the VM has hybrid NICs, and cannot migrate to or from another cluster: QEMU does not send a VM that has a VF. Delete this \
                   migration, and migrate the VM within its cluster. Or first take its interfaces with the binding hybridnic out, restart \
                   it, and delete the VmHybridNics that you have made for it";
    let note = || Note::warning(reasons::MIGRATION_UNSUPPORTED, message);
    (is_one && has_nics).then(note).into_iter().collect()
}

/// Keeps the definitions of networks.
pub struct Definitions {
    client: Client,
    world: World,
    settings: Option<Settings>,
    events: Events,
    told: Told,
}

impl Definitions {
    /// Where `settings` is none there are none.
    pub fn new(client: Client, world: World, settings: Option<Settings>, events: Events) -> Self {
        Self {
            client,
            world,
            settings,
            events,
            told: Told::default(),
        }
    }

    /// Makes the definitions of a network be as they should.
    pub async fn keep(&self, network: &HybridNetwork) -> Result<(), write::Error> {
        let Some(settings) = &self.settings else {
            return Ok(());
        };
        // Where the cluster has no such kind nothing can be made; once it has, its watch asks.
        if !self.world.nads.is_served() {
            return Ok(());
        }
        let name = network.name_any();
        let key = Key::Network(name.clone());
        let may_use = |namespace: &str| self.may_use(network, namespace);
        let mut namespaces = BTreeSet::from([settings.namespace.clone()]);
        namespaces.extend(
            self.named_in(&key)
                .into_iter()
                .filter(|namespace| may_use(namespace)),
        );
        let ours = self.world.nads.by(&key);
        let plan = nads::plan(network, &namespaces, may_use, &ours, |namespace| {
            self.world.nads.get(namespace, &name)
        });
        for nad in &plan.apply {
            let api = self.api(&nad.namespace().unwrap_or_default());
            let written = if nad.metadata.resource_version.is_none() {
                write::create(&api, nad).await
            } else {
                write::apply_object(&api, nad).await
            };
            match written {
                Err(error) if error.is_conflict() => {}
                done => done?,
            }
        }
        for nad in &plan.delete {
            write::delete(&self.api(&nad.namespace().unwrap_or_default()), nad.as_ref()).await?;
        }
        let notes = plan.taken.into_iter().map(|namespace| {
            let message = format!(
                "the NetworkAttachmentDefinition {namespace}/{name} is not hybridnic's and is left alone: VMs of KubeVirt that name it \
                 get no NIC of this network; rename it"
            );
            Note::warning(reasons::INTERFACE_UNFIT, message)
        });
        let news = self.told.news(name.clone(), notes.collect());
        self.events.tell(network, news);
        Ok(())
    }

    fn api(&self, namespace: &str) -> Api<NetworkAttachmentDefinition> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// The namespaces of the VMs that name the network as one of their own.
    fn named_in(&self, key: &Key) -> BTreeSet<String> {
        let Key::Network(network) = key else {
            return BTreeSet::new();
        };
        let (made, running) = (self.world.vms.by(key), self.world.vmis.by(key));
        let made = made.iter().map(|vm| (vm.namespace(), &vm.spec.template.spec));
        let running = running.iter().map(|vmi| (vmi.namespace(), &vmi.spec));
        made.chain(running)
            .filter_map(|(namespace, spec)| {
                let namespace = namespace?;
                let is_own = super::interfaces::of(spec).into_iter().any(|wanted| {
                    wanted.network == *network && wanted.namespace.is_none_or(|named| named == namespace)
                });
                is_own.then_some(namespace)
            })
            .collect()
    }

    fn may_use(&self, network: &HybridNetwork, namespace: &str) -> bool {
        let found = self.world.namespaces.get("", namespace);
        let labels = found
            .map(|namespace| namespace.labels().clone())
            .unwrap_or_default();
        selects(network.spec.namespace_selector.as_ref(), &labels).unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    #[test]
    fn a_migration_to_another_cluster_is_told_of_vms_with_nics_of_ours() {
        let migration = |spec: Value, phase: &str| -> VirtualMachineInstanceMigration {
            from_value(json!({"metadata": {"name": "m"}, "spec": spec, "status": {"phase": phase}})).unwrap()
        };
        let away = json!({"vmiName": "vm", "sendTo": {"migrationID": "x", "connectURL": "y"}});
        let told = elsewhere(&migration(away.clone(), "Pending"), true);
        assert_eq!(told[0].reason, reasons::MIGRATION_UNSUPPORTED);
        // A NIC that a user has made stays when its interface goes.
        for words in [
            "take its interfaces",
            "delete the VmHybridNics that you have made",
        ] {
            assert!(told[0].message.contains(words), "{}", told[0].message);
        }
        let comes = json!({"vmiName": "vm", "receive": {"migrationID": "x"}});
        assert_eq!(elsewhere(&migration(comes, ""), true).len(), 1);
        assert_eq!(elsewhere(&migration(away.clone(), "Pending"), false), []);
        assert_eq!(elsewhere(&migration(away, "Failed"), true), [], "it is over");
        assert_eq!(
            elsewhere(&migration(json!({"vmiName": "vm"}), "Pending"), true),
            []
        );
    }

    #[test]
    fn what_was_told_is_told_again_only_after_it_had_passed() {
        let told = Told::default();
        let note = || vec![Note::warning(reasons::INTERFACE_UNFIT, "x")];
        assert_eq!(told.news("a".to_owned(), note()), note());
        assert_eq!(told.news("a".to_owned(), note()), []);
        assert_eq!(told.news("b".to_owned(), note()), note(), "of another");
        assert_eq!(told.news("a".to_owned(), Vec::new()), []);
        assert_eq!(told.news("a".to_owned(), note()), note());
    }
}
