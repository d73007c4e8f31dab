//! What the caches hold that matters to a NIC.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hybridnic_api::conditions::reasons;
use hybridnic_api::v1alpha1::{HybridNetwork, NicAttachment, ObjectRef, VmHybridNic};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::admit::Refusal;
use super::desired::Place;
use super::leaving::Hold;
use super::theirs;
use super::whereabouts::kubevirt::ObservedVm;
use crate::events::Note;
use crate::fence::{NodeState, PodEnd, is_abandoned};
use crate::moves::Move;
use crate::moves::ends::Ends;
use crate::pods;
use crate::vm::VmRef;
use crate::world::World;

/// What the caches hold that matters to a NIC.
#[derive(Default)]
pub struct Observed {
    /// Its VM; none if this version does not know the runtime.
    pub vm: Option<VmRef>,
    /// What is observed of it if it is KubeVirt's.
    pub kubevirt: ObservedVm,
    /// Its network.
    pub network: Option<Arc<HybridNetwork>>,
    /// The pods of its VM.
    pub pods: Vec<Arc<Pod>>,
    /// Its attachments.
    pub attachments: Vec<Arc<NicAttachment>>,
    /// Whether there are some that do not parse: what they hold is not known.
    pub unreadable: bool,
    /// Those of the VM's other NICs, if these are asked where the VM is.
    pub others: Vec<Arc<NicAttachment>>,
    /// Those that a namesake has left behind.
    pub orphans: Vec<Arc<NicAttachment>>,
    /// The nodes of all of them.
    pub nodes: BTreeMap<String, NodeState>,
    /// The uids of those whose node has not answered within the time that the operator waits for it.
    pub overdue: BTreeSet<String>,
    /// The nodes among them whose agents are away.
    pub without_agent: BTreeSet<String>,
    /// The moves of its VM, also those that are over.
    pub moves: Vec<Move>,
    /// A restore of its VM that has not begun, and says where the NIC goes.
    pub restore: Option<String>,
    /// The move that has the NIC in its hands, and what both ends say.
    pub moving: Option<(Move, Ends)>,
}

/// Where a NIC's VM runs, or is about to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The pod.
    pub pod: ObjectRef,
    /// Its node.
    pub node: String,
    /// Why the NIC cannot be attached there yet.
    pub wait: Option<Refusal>,
}

impl Observed {
    /// Reads all caches. Nothing is known about the nodes yet.
    pub fn read(world: &World, nic: &VmHybridNic) -> Self {
        let vm = VmRef::of_nic(nic);
        let (pods, moves) = match &vm {
            Some(vm) => (world.pods_of(vm), world.moves_of(vm)),
            None => (Vec::new(), Vec::new()),
        };
        let of_vm = || {
            vm.as_ref()
                .map(|vm| world.attachments_of_vm(vm))
                .unwrap_or_default()
        };
        let name = nic.name_any();
        let mine = moves.iter().find(|of| of.has(&name));
        let moving = mine.map(|of| (of.clone(), Ends::observe(of, &of_vm(), &pods)));
        let network = world.networks.get("", &nic.spec.network);
        let (attachments, orphans) = world.attachments_by_name(nic);
        let mut observed = Self {
            vm: vm.clone(),
            kubevirt: ObservedVm::read(world, nic),
            network,
            pods,
            attachments,
            unreadable: world.has_unreadable_attachment(nic),
            others: Vec::new(),
            orphans,
            nodes: BTreeMap::new(),
            overdue: BTreeSet::new(),
            without_agent: BTreeSet::new(),
            restore: vm.as_ref().and_then(|vm| world.restore_to_come(vm)),
            moves,
            moving,
        };
        if observed.must_ask(recorded(nic)) {
            observed.others = of_vm();
            observed.others.retain(|other| other.spec.nic.name != name);
        }
        observed
    }

    /// The nodes of all attachments.
    pub fn node_names(&self) -> BTreeSet<String> {
        let all = self.attachments.iter().chain(&self.orphans);
        all.map(|attachment| attachment.spec.node_name.clone()).collect()
    }

    /// The uids of the attachments whose node does not answer and whose pod has ended or vanished.
    pub fn lost(&self) -> BTreeSet<String> {
        let all = self.attachments.iter().chain(&self.orphans);
        let lost = all.filter(|attachment| {
            let node = self.node(attachment);
            matches!(node, NodeState::NotReady(_)) && self.pod_end(attachment) != PodEnd::Alive
        });
        lost.filter_map(|attachment| attachment.uid()).collect()
    }

    /// Whether no agent will ever take an attachment back.
    pub fn is_abandoned(&self, attachment: &NicAttachment) -> bool {
        is_abandoned(self.pod_end(attachment), self.node(attachment))
    }

    /// Why the NIC may not be attached to a pod yet, or why it is not gone yet: it may be live elsewhere.
    pub fn held(&self, pod: Option<&ObjectRef>) -> Option<Refusal> {
        let is_it = |attachment: &NicAttachment| Some(&attachment.spec.pod.uid) == pod.map(|pod| &pod.uid);
        let others = self.attachments.iter().filter(|attachment| !is_it(attachment));
        // What a namesake has left in the same pod has the name that the NIC's own attachment will have: it must be gone.
        let refusal = |attachment: &NicAttachment| {
            let end = self.pod_end(attachment);
            let overdue = attachment.uid().is_some_and(|uid| self.overdue.contains(&uid));
            let hold = match Hold::of(attachment, end, self.node(attachment), overdue) {
                Hold::Over | Hold::Overdue if is_it(attachment) => Hold::Detaching,
                hold => hold,
            };
            let away = self.without_agent.contains(&attachment.spec.node_name);
            hold.without_agent(away).refusal(attachment, end)
        };
        let refusals: Vec<_> = others.chain(&self.orphans).filter_map(|a| refusal(a)).collect();
        // What needs a person comes first.
        let rank = |refusal: &Refusal| match refusal.reason {
            reasons::NODE_UNREACHABLE => 0,
            reasons::DETACH_STUCK => 1,
            _ => 2,
        };
        refusals.into_iter().min_by_key(rank)
    }

    /// What to report when the NIC is attached elsewhere without proof that it has left its former pod.
    pub fn unproven(&self) -> Option<Note> {
        let mut all = self.attachments.iter().chain(&self.orphans);
        let lost = all.find(|attachment| attachment.uid().is_some_and(|uid| self.overdue.contains(&uid)))?;
        let node = &lost.spec.node_name;
        let message = format!(
            "attached again though nothing proves that the NIC has left node {node}, which has not answered for as long as \
             --node-loss-timeout says"
        );
        Some(Note::warning(reasons::NODE_UNREACHABLE, message))
    }

    pub(super) fn node(&self, attachment: &NicAttachment) -> &NodeState {
        self.nodes
            .get(&attachment.spec.node_name)
            .unwrap_or(&NodeState::Unknown)
    }

    /// The NIC's attachments whose pods are not known to have ended.
    pub(super) fn alive(&self) -> impl Iterator<Item = &NicAttachment> {
        let all = self.attachments.iter().map(AsRef::as_ref);
        all.filter(|attachment| self.pod_end(attachment) == PodEnd::Alive)
    }

    fn pod_end(&self, attachment: &NicAttachment) -> PodEnd {
        PodEnd::of(&self.pods, &attachment.spec.pod.uid, self.node(attachment))
    }

    /// Where the NIC's VM is, for its attachments. `leaves`: the NIC is to go.
    pub fn place(&self, location: &Result<Location, Refusal>, leaves: bool) -> Place<'_> {
        match (&self.moving, location) {
            (Some((of, ends)), _) => Place::Moving(of, ends),
            (
                None,
                Ok(Location {
                    pod,
                    node,
                    wait: None,
                }),
            ) if !leaves => Place::At(pod.clone(), node.clone()),
            (None, _) => Place::Nowhere,
        }
    }

    /// The pod of the VM, and its node; or why there is none.
    pub fn location(&self, nic: &VmHybridNic) -> Result<Location, Refusal> {
        if let Some((of, _)) = &self.moving {
            let end = of.whereabouts();
            return Ok(Location {
                pod: end.pod.clone(),
                node: end.node_name.clone(),
                wait: theirs::awaited(of),
            });
        }
        let trouble = || self.kubevirt.trouble.clone();
        let found = self
            .whereabouts(recorded(nic))
            .map_err(|missing| trouble().unwrap_or(missing))?;
        let Some(node) = pods::node(found) else {
            let message = format!("the pod {} has no node yet", found.name_any());
            let missing = Refusal::new(reasons::POD_NOT_RUNNING, message);
            return Err(trouble().unwrap_or(missing));
        };
        let pod = pods::reference(found);
        // A node that does not answer takes nothing from a VM that may still run there. An attachment that is on its way out is not
        // there: calling it back would mean attaching it again.
        let attached = self.attached_to(&pod.uid).is_some();
        let wait = if attached {
            None
        } else if let Some(of) = self.under_way() {
            let message = format!(
                "waits for the {} {}, which began without this NIC",
                of.kind(),
                of.id.name
            );
            Some(Refusal::new(reasons::MIGRATING, message))
        } else if let Some(restore) = &self.restore {
            let message = format!("waits for the restore {restore} of the VM to begin");
            Some(Refusal::new(reasons::MIGRATING, message))
        } else {
            let message = format!("the pod {} does not run yet", pod.name);
            let starts =
                (!self.may_attach_to(found)).then(|| Refusal::new(reasons::POD_NOT_RUNNING, message));
            trouble().or(starts).or_else(|| self.held(Some(&pod)))
        };
        Ok(Location {
            pod,
            node: node.to_owned(),
            wait,
        })
    }
}

/// The pod in which the NIC's VM was last.
pub fn recorded(nic: &VmHybridNic) -> Option<&ObjectRef> {
    nic.status.as_ref()?.pod.as_ref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moves::{Outcome, Stage};
    use crate::testing::{a_move, attachment, nic, observe, pod};
    use hybridnic_api::v1alpha1::{AttachmentState, Goal};

    fn known(pods: Vec<Pod>) -> Observed {
        Observed {
            vm: Some(VmRef::qemu("ns", "vm")),
            kubevirt: ObservedVm::default(),
            network: None,
            pods: pods.into_iter().map(Arc::new).collect(),
            attachments: Vec::new(),
            others: Vec::new(),
            orphans: Vec::new(),
            unreadable: false,
            nodes: BTreeMap::from([("n1".to_owned(), NodeState::Ready)]),
            overdue: BTreeSet::new(),
            without_agent: BTreeSet::new(),
            moves: Vec::new(),
            restore: None,
            moving: None,
        }
    }

    fn wait_reason(observed: &Observed) -> Option<&'static str> {
        match observed.location(&nic("eth0", "vm", "net", 1)) {
            Ok(location) => location.wait.map(|refusal| refusal.reason),
            Err(refusal) => Some(refusal.reason),
        }
    }

    #[test]
    fn a_nic_waits_for_its_pod() {
        assert_eq!(wait_reason(&known(Vec::new())), Some(reasons::POD_NOT_FOUND));
        assert_eq!(
            wait_reason(&known(vec![pod("a", "vm", 1, "Pending", "")])),
            Some(reasons::POD_NOT_RUNNING)
        );
        assert_eq!(
            wait_reason(&known(vec![pod("a", "vm", 1, "Pending", "n1")])),
            Some(reasons::POD_NOT_RUNNING)
        );
        assert_eq!(
            wait_reason(&known(vec![pod("a", "vm", 1, "Running", "n1")])),
            None
        );
    }

    /// Or a VM that cannot be served would say so, then that it has no node, and then so again.
    #[test]
    fn what_is_wrong_with_a_vm_is_said_before_its_pod_has_a_node() {
        let unfit = Refusal::new(reasons::INTERFACE_UNFIT, "no ACPI");
        for pods in [Vec::new(), vec![pod("a", "vm", 1, "Pending", "")]] {
            let mut observed = known(pods);
            observed.kubevirt.trouble = Some(unfit.clone());
            assert_eq!(wait_reason(&observed), Some(reasons::INTERFACE_UNFIT));
        }
    }

    #[test]
    fn a_pod_that_is_not_heard_of_keeps_what_it_has() {
        let mut observed = known(vec![pod("a", "vm", 1, "Unknown", "n1")]);
        assert_eq!(wait_reason(&observed), Some(reasons::POD_NOT_RUNNING));
        observed.attachments.push(Arc::new(attachment("eth0", "a", "n1")));
        assert_eq!(wait_reason(&observed), None);
    }

    #[test]
    fn a_nic_that_comes_during_a_migration_waits_for_its_end() {
        let mut observed = known(vec![pod("a", "vm", 1, "Running", "n1")]);
        let mut other = a_move("m", "c", "d");
        other.nics = vec!["eth1".to_owned()];
        other.stage = Stage::Moving;
        observed.moves = vec![other.clone()];
        assert_eq!(wait_reason(&observed), Some(reasons::MIGRATING));
        other.stage = Stage::Over(Outcome::Succeeded);
        observed.moves = vec![other];
        assert_eq!(wait_reason(&observed), None);
    }

    #[test]
    fn the_vm_of_a_runtime_that_is_not_known_is_nowhere() {
        let mut observed = known(vec![pod("a", "vm", 1, "Running", "n1")]);
        observed.vm = None;
        assert_eq!(wait_reason(&observed), Some(reasons::POD_NOT_FOUND));
    }

    /// The pod `a` was on `n1` and has vanished; the VM starts again in `b` on `n2`.
    fn lost(node: NodeState) -> Observed {
        let mut observed = known(vec![pod("b", "vm", 2, "Running", "n2")]);
        observed.attachments = vec![Arc::new(attachment("eth0", "a", "n1"))];
        observed.nodes = BTreeMap::from([("n1".to_owned(), node)]);
        observed
    }

    #[test]
    fn a_nic_goes_to_another_pod_only_when_it_has_left_the_one_before() {
        let old = |change: fn(&mut NicAttachment)| {
            let mut observed = lost(NodeState::Ready);
            let mut old = attachment("eth0", "a", "n1");
            change(&mut old);
            observed.attachments = vec![Arc::new(old)];
            wait_reason(&observed)
        };
        assert_eq!(old(|_| {}), Some(reasons::WAITING_FOR_DETACH));
        assert_eq!(
            old(|old| old.spec.goal = Goal::Detached),
            Some(reasons::WAITING_FOR_DETACH),
            "told is not done"
        );
        let left = |old: &mut NicAttachment| {
            old.spec.goal = Goal::Detached;
            observe(old, AttachmentState::Detached);
        };
        assert_eq!(old(left), None);

        // A pod that is attached already is not held back by another, but one that is on its way out is: calling back the target
        // of a migration that has failed proves nothing about its source.
        let mut both = lost(NodeState::NotReady(None));
        both.attachments.push(Arc::new(attachment("eth0", "b", "n2")));
        assert_eq!(wait_reason(&both), None);
        for change in [
            (|b| b.spec.goal = Goal::Detached) as fn(&mut NicAttachment),
            |b| b.metadata.deletion_timestamp = b.metadata.creation_timestamp.clone(),
        ] {
            let mut leaving = attachment("eth0", "b", "n2");
            change(&mut leaving);
            both.attachments[1] = Arc::new(leaving);
            assert_eq!(wait_reason(&both), Some(reasons::NODE_UNREACHABLE));
        }
        // One that does not run yet waits for that.
        let mut starts = lost(NodeState::NotReady(None));
        starts.pods = vec![Arc::new(pod("b", "vm", 2, "Pending", "n2"))];
        assert_eq!(wait_reason(&starts), Some(reasons::POD_NOT_RUNNING));
    }

    #[test]
    fn a_lost_node_holds_a_nic_until_it_is_fenced() {
        assert_eq!(
            wait_reason(&lost(NodeState::NotReady(None))),
            Some(reasons::NODE_UNREACHABLE)
        );
        assert_eq!(
            wait_reason(&lost(NodeState::Unknown)),
            Some(reasons::WAITING_FOR_DETACH)
        );
        assert_eq!(wait_reason(&lost(NodeState::OutOfService)), None);
        assert_eq!(wait_reason(&lost(NodeState::Deleted)), None);
        let mut overdue = lost(NodeState::NotReady(None));
        assert_eq!(overdue.lost().len(), 1);
        overdue.overdue = overdue.lost();
        assert_eq!(wait_reason(&overdue), None);
        assert!(
            lost(NodeState::Ready).lost().is_empty(),
            "its agent is there to be asked"
        );
    }

    #[test]
    fn what_a_namesake_left_is_waited_for() {
        let mut observed = lost(NodeState::NotReady(None));
        observed.orphans = std::mem::take(&mut observed.attachments);
        assert_eq!(wait_reason(&observed), Some(reasons::NODE_UNREACHABLE));
        observed.nodes = BTreeMap::from([("n1".to_owned(), NodeState::Deleted)]);
        assert_eq!(wait_reason(&observed), None);
        // In the same pod it has the name of the next attachment.
        observed.orphans = vec![Arc::new(attachment("eth0", "b", "n1"))];
        assert_eq!(wait_reason(&observed), Some(reasons::WAITING_FOR_DETACH));
    }

    #[test]
    fn of_several_reasons_the_one_that_needs_a_person_is_told() {
        let mut observed = lost(NodeState::NotReady(None));
        observed
            .attachments
            .insert(0, Arc::new(attachment("eth0", "c", "n3")));
        observed.nodes.insert("n3".to_owned(), NodeState::Ready);
        assert_eq!(wait_reason(&observed), Some(reasons::NODE_UNREACHABLE));
        assert_eq!(observed.node_names().len(), 2);
    }
}
