//! Reconciles a NIC: dereference → validate → build → apply → status.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hybridnic_api::conditions::{self, types};
use hybridnic_api::names::{NIC_FINALIZER, NIC_LABEL, VM_LABEL, attachment_name};
use hybridnic_api::v1alpha1::{Goal, NicAttachment, NicAttachmentSpec, VmHybridNic, VmHybridNicStatus};
use hybridnic_decisions::mac::{self, Given, HandedOut};
use hybridnic_decisions::network::l2;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ObjectMeta;
use kube::{Api, Client, Resource, ResourceExt};

use super::admit::{self, Refusal};
use super::changes::{Change, Leftover, changes, leaves_vm};
use super::desired::{self, desired_attachments};
use super::echo::{Awaited, Echoes};
use super::observed::{Location, Observed};
use super::patience::Patience;
use super::status::{self, build_status, is_news, notes};
use super::theirs;
use crate::cache::{Key, Name};
use crate::controller::{Done, Reconciler};
use crate::events::Events;
use crate::fence::NodeState;
use crate::fence::lookup::{AGAIN, NodeLookup};
use crate::metrics::{self, Migrations};
use crate::presence::Presence;
use crate::vm::VmRef;
use crate::world::World;
use crate::write;

/// What is to become of a NIC's attachments.
struct Writes<'a> {
    specs: Vec<NicAttachmentSpec>,
    /// Those that were written just now.
    awaited: Awaited,
    /// Whether new ones may be made.
    admission: &'a Result<(), Refusal>,
}

/// Reconciles NICs. The only writer of attachments' specs and of NICs' status.
pub struct NicReconciler {
    client: Client,
    world: World,
    lookup: NodeLookup,
    patience: Patience,
    events: Events,
    metrics: Migrations,
    echoes: Echoes,
    handed_out: Mutex<HandedOut>,
}

impl NicReconciler {
    /// A reconciler that reads from `world`, and waits for nodes that do not answer as `patience` says.
    pub fn new(
        client: Client,
        world: World,
        lookup: NodeLookup,
        patience: Patience,
        events: Events,
        metrics: Migrations,
    ) -> Self {
        Self {
            client,
            world,
            lookup,
            patience,
            events,
            metrics,
            echoes: Echoes::default(),
            handed_out: Mutex::default(),
        }
    }

    async fn run(&self, nic: &VmHybridNic) -> Result<Done, write::Error> {
        let namespace = nic.namespace().unwrap_or_default();
        let api: Api<VmHybridNic> = Api::namespaced(self.client.clone(), &namespace);
        let deleting = nic.metadata.deletion_timestamp.is_some();
        let mut finalizers = nic.finalizers().to_vec();
        let guarded = finalizers.iter().any(|finalizer| finalizer == NIC_FINALIZER);
        if !deleting && !guarded {
            finalizers.push(NIC_FINALIZER.to_owned());
            // Its change comes back here.
            write::finalizers(&api, nic, &finalizers).await?;
            return Ok(Done {
                wrote: true,
                again: None,
            });
        }

        let (observed, again) = self.observe(nic).await;
        let awaited = self
            .echoes
            .awaited(&Name::of(nic), &observed.attachments, Instant::now());
        let again = again.into_iter().chain(awaited.again).min();
        // One that has just been made is not seen yet.
        let gone = observed.attachments.is_empty() && awaited.again.is_none() && !observed.unreadable;
        if deleting && observed.moving.is_none() && gone {
            self.handed_out().settle(nic);
            self.echoes.forget(&Name::of(nic));
            finalizers.retain(|finalizer| finalizer != NIC_FINALIZER);
            if guarded {
                write::finalizers(&api, nic, &finalizers).await?;
            }
            return Ok(Done::default());
        }

        let (admission, given) = self.admit(nic, &observed);
        let (mac, kept) = given.map(|given| (given.mac.to_string(), given.kept)).unzip();
        let kept = kept.flatten().map(|error| mac_refusal(&error));
        let location = observed.location(nic);
        // A user may delete the NIC, but not while one of its attachments cannot be read.
        let unknown = observed.unknown().filter(|_| !deleting || observed.unreadable);
        let left_alone = unknown.is_some();
        let mut obstacle = unknown.or_else(|| obstacle(&observed, &location, deleting));
        // The NIC leaves the wrong pod only once the status says where it goes, because it might be called back.
        let leaves = location
            .as_ref()
            .ok()
            .filter(|_| !deleting && observed.moving.is_none());
        let leaves = leaves.and_then(|location| observed.left(nic, &location.pod));
        let place = observed.place(&location, deleting);
        // An address is used only once the status shows it: from then on no other NIC gets it.
        let recorded = nic.status.as_ref().and_then(|status| status.mac.as_deref());
        let used = observed
            .attachments
            .first()
            .map(|attachment| attachment.spec.mac.as_str());
        let granted = mac.as_deref().filter(|mac| recorded == Some(mac));
        if let Some(mac) = granted.or(used).filter(|_| leaves.is_none() && !left_alone) {
            let l2 = observed.network.as_ref().map(|network| l2(&network.spec));
            let inputs = desired::Inputs {
                nic,
                mac,
                l2,
                interface: observed.kubevirt.interface.as_deref(),
                existing: &observed.attachments,
                pods: &observed.pods,
                place,
            };
            let specs = desired_attachments(&inputs);
            let writes = Writes {
                specs,
                awaited,
                admission: &admission,
            };
            let made = self.apply(nic, &observed, writes, &mut obstacle).await?;
            if let Some(note) = observed.unproven().filter(|_| made) {
                tracing::warn!("{}", note.message);
                self.events.tell(nic, vec![note]);
            }
        }

        let inputs = status::Inputs {
            nic,
            now: Timestamp::now(),
            mac: mac.or_else(|| used.map(ToOwned::to_owned)),
            admission,
            kept,
            other_pods: location
                .as_ref()
                .map(|location| observed.other_pods(&location.pod))
                .unwrap_or_default(),
            location: location.ok().map(|location| (location.pod, location.node)),
            obstacle,
            attachments: &observed.attachments,
            moving: observed.moving.as_ref().map(|(of, _)| of),
            moves: &observed.moves,
        };
        let (old, new) = (nic.status.clone().unwrap_or_default(), build_status(&inputs));
        let wrote = is_news(nic.status.as_ref(), &new);
        if wrote {
            write::apply_status(&api, nic, &new).await?;
            log(&old, &new);
            self.count(nic, &old, &new);
            self.events
                .tell(nic, leaves.into_iter().chain(notes(&old, &new)).collect());
        }
        Ok(Done { wrote, again })
    }

    /// Counts a migration of KubeVirt's that has ended: once, with the first NIC of its VM. Ours are counted where they
    /// are decided on.
    fn count(&self, nic: &VmHybridNic, old: &VmHybridNicStatus, new: &VmHybridNicStatus) {
        let Some(end) = theirs::ended(old, new) else {
            return;
        };
        let Some(vm) = VmRef::of_nic(nic) else { return };
        let first = self.world.nics_of(&vm).first().map(|first| first.name_any());
        if first == Some(nic.name_any()) {
            let change = metrics::Change {
                phases: Vec::new(),
                end: Some(end),
            };
            self.metrics.count(&change);
        }
    }

    /// What matters to the NIC, and when to look again though nothing has changed.
    async fn observe(&self, nic: &VmHybridNic) -> (Observed, Option<Duration>) {
        let mut observed = Observed::read(&self.world, nic);
        observed.nodes = self.lookup.nodes(observed.node_names()).await;
        let name = (nic.namespace().unwrap_or_default(), nic.name_any());
        let waited = self.patience.count(name, observed.lost(), Instant::now());
        observed.overdue = waited.overdue;
        let mut rest = Vec::new();
        for node in observed.node_names() {
            match self.world.agents.presence_of(&node, Instant::now()) {
                Presence::NoAgent => {
                    observed.without_agent.insert(node);
                }
                Presence::Awaited(left) => rest.push(left),
                Presence::There | Presence::NotReady => {}
            }
        }
        let unseen = observed.nodes.values().any(|node| *node == NodeState::Unknown);
        let again = waited
            .again
            .into_iter()
            .chain(unseen.then_some(AGAIN))
            .chain(rest)
            .min();
        (observed, again)
    }

    /// Whether the NIC may be, and its address.
    fn admit(&self, nic: &VmHybridNic, observed: &Observed) -> (Result<(), Refusal>, Option<Given>) {
        let namespace = self
            .world
            .namespaces
            .get("", &nic.namespace().unwrap_or_default());
        let labels = namespace
            .map(|namespace| namespace.labels().clone())
            .unwrap_or_default();
        let attached = !observed.attachments.is_empty() || observed.unreadable;
        let network = match admit::to_network(nic, attached, observed.network.as_deref(), &labels) {
            Ok(network) => network,
            Err(refusal) => return (Err(refusal), None),
        };
        let system = self.world.namespaces.get("", "kube-system");
        let cluster = system.and_then(|namespace| namespace.uid()).unwrap_or_default();
        let range = match &network.spec.mac_range {
            Some(range) => mac::Range::parse(range).map_err(mac::Error::from),
            None => Ok(mac::Range::of_network(&cluster, &nic.spec.network)),
        };
        let own = Name::of(nic);
        let lookup = mac::Lookup {
            holders: &|mac| self.world.nics.by(&Key::Mac(mac.to_string())),
            is_card: &|mac| self.world.hybrid_nodes.any(&Key::Mac(mac.to_string())),
            is_unread: &|mac| self.world.nics.unread_has(&Key::Mac(mac.to_string()), Some(&own)),
        };
        let (macs, whose) = (network.spec.macs, mac::hash(&[&cluster]));
        let rules = range.map(|range| mac::Rules { range, macs, whose });
        match rules.and_then(|rules| mac::assign(nic, rules, attached, &lookup, &mut self.handed_out())) {
            Ok(given) => (Ok(()), Some(given)),
            Err(error) => (Err(mac_refusal(&error)), None),
        }
    }

    fn handed_out(&self) -> std::sync::MutexGuard<'_, HandedOut> {
        self.handed_out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the attachments be as they should. Those that are there already stay as they are told; new ones are made only
    /// where the NIC may be, and the first thing in the way is left in `obstacle`. Says whether one was made.
    async fn apply(
        &self,
        nic: &VmHybridNic,
        observed: &Observed,
        writes: Writes<'_>,
        obstacle: &mut Option<Refusal>,
    ) -> Result<bool, write::Error> {
        let Writes {
            specs,
            awaited,
            admission,
        } = writes;
        let name_of = |spec: &NicAttachmentSpec| attachment_name(&nic.name_any(), &spec.pod.uid);
        let leftover = |attachment: &NicAttachment| Leftover {
            is_abandoned: observed.is_abandoned(attachment),
            leaves_vm: leaves_vm(observed, nic, attachment),
        };
        let api: Api<NicAttachment> =
            Api::namespaced(self.client.clone(), &nic.namespace().unwrap_or_default());
        let mut made = false;
        for change in changes(&nic.name_any(), specs, &observed.attachments, leftover) {
            match change {
                Change::Make(spec) if awaited.has(&name_of(&spec)) => {}
                Change::Make(spec) => {
                    let node = self.world.hybrid_nodes.get("", &spec.node_name);
                    let node = admit::to_node(&nic.spec, &spec.node_name, node.as_deref());
                    match admission.clone().and(node) {
                        Ok(()) => {
                            let name = name_of(&spec);
                            self.give(&api, nic, None, &document(nic, &name, None, spec))
                                .await?;
                            made = true;
                        }
                        Err(refusal) => *obstacle = obstacle.take().or(Some(refusal)),
                    }
                }
                Change::Tell(found, _) | Change::Delete(found) if awaited.has(&found.name_any()) => {}
                Change::Tell(found, spec) => {
                    let told = document(nic, &found.name_any(), found.resource_version(), spec);
                    self.give(&api, nic, Some(found.spec.goal), &told).await?;
                }
                Change::Delete(found) => {
                    write::delete(&api, found).await?;
                    self.written(nic, found);
                }
            }
        }
        Ok(made)
    }

    /// Notes that an attachment was written, after a decision on the version that `attachment` has.
    fn written(&self, nic: &VmHybridNic, attachment: &NicAttachment) {
        let (name, over) = (attachment.name_any(), attachment.resource_version());
        self.echoes.written(Name::of(nic), name, over, Instant::now());
    }

    /// Writes an attachment, and a line when its goal is another than before.
    async fn give(
        &self,
        api: &Api<NicAttachment>,
        nic: &VmHybridNic,
        before: Option<Goal>,
        attachment: &NicAttachment,
    ) -> Result<(), write::Error> {
        write::apply_object(api, attachment).await?;
        self.written(nic, attachment);
        let spec = &attachment.spec;
        if before != Some(spec.goal) {
            tracing::info!(
                node = spec.node_name,
                pod = spec.pod.name,
                migration = spec.migration.as_ref().map(|order| order.migration.name.as_str()),
                from = ?before,
                to = ?spec.goal,
                "goal"
            );
        }
        Ok(())
    }
}

/// Why the NIC cannot be where it should be yet, or is not gone yet.
fn obstacle(observed: &Observed, location: &Result<Location, Refusal>, deleting: bool) -> Option<Refusal> {
    match location {
        _ if deleting && observed.moving.is_none() => observed.held(None),
        Ok(location) => location.wait.clone(),
        Err(refusal) => Some(refusal.clone()),
    }
}

fn mac_refusal(error: &mac::Error) -> Refusal {
    Refusal::new(error.reason(), error.to_string())
}

/// A line when the NIC's traffic has moved, or its phase has changed.
fn log(old: &VmHybridNicStatus, new: &VmHybridNicStatus) {
    if (old.path, old.phase, &old.node_name) == (new.path, new.phase, &new.node_name) {
        return;
    }
    let why = conditions::find(&new.conditions, types::FAST_PATH);
    tracing::info!(
        node = new.node_name,
        vf = new.vf.as_ref().map(|vf| vf.pci_address.as_str()),
        pf = new.vf.as_ref().map(|vf| vf.pf.as_str()),
        phase = ?new.phase,
        path = ?new.path,
        reason = why.map(|why| why.reason.as_str()),
        "NIC"
    );
}

impl Reconciler for NicReconciler {
    type Kind = VmHybridNic;

    async fn reconcile(&self, nic: Arc<VmHybridNic>) -> Result<Done, write::Error> {
        self.run(&nic).await
    }
}

/// An attachment as the operator applies it: all of the operator's fields.
fn document(
    nic: &VmHybridNic,
    name: &str,
    version: Option<String>,
    spec: NicAttachmentSpec,
) -> NicAttachment {
    let owner = OwnerReference {
        // The NIC's finalizer waits for its attachments; a garbage collector that waited too could only get in the way.
        block_owner_deletion: None,
        ..nic.controller_owner_ref(&()).unwrap_or_default()
    };
    let mut attachment = NicAttachment::new(name, spec);
    attachment.metadata = ObjectMeta {
        name: Some(name.to_owned()),
        namespace: nic.namespace(),
        resource_version: version,
        labels: Some(
            [
                (NIC_LABEL.to_owned(), nic.name_any()),
                (VM_LABEL.to_owned(), attachment.spec.vm.name().to_owned()),
            ]
            .into(),
        ),
        owner_references: Some(vec![owner]),
        ..ObjectMeta::default()
    };
    attachment
}
