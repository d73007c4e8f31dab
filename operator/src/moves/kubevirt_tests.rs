use hybridnic_api::v1alpha1::{
    AttachedVm, KubevirtVm, MigrationReport, MigrationStep, NicAttachmentSpec, Vm, VmHybridNic,
};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::nic::desired::{self, Place, desired_attachments};
use crate::testing::{attachment, nic, observe, pod, say};

const NICS: [&str; 2] = ["fast", "slow"];
const UID: &str = "m-uid";

/// A VM of KubeVirt with two NICs in the pod `a`, and what happens to it. What the operator sees is in the objects; what is so, beside.
struct World {
    migration: Option<Arc<Migration>>,
    pods: Vec<Arc<Pod>>,
    attachments: Vec<Arc<NicAttachment>>,
    /// Where the VM is.
    vm: Whereabouts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whereabouts {
    Source,
    /// It is being sent.
    Leaving,
    Target,
}

fn vm_nic(name: &str) -> VmHybridNic {
    let mut nic = nic(name, "vm", "net", 1);
    nic.spec.vm = Vm {
        qemu: None,
        kubevirt: Some(KubevirtVm {
            name: "vm".to_owned(),
            interface: Some(name.to_owned()),
        }),
    };
    nic
}

fn launcher(name: &str, second: i64, node: &str, migration: Option<&str>) -> Arc<Pod> {
    let mut pod = pod(name, "vm", second, "Pending", node);
    if let Some(uid) = migration {
        pod.labels_mut()
            .insert(MIGRATION_LABEL.to_owned(), uid.to_owned());
    }
    Arc::new(pod)
}

fn migration(phase: &str) -> Arc<Migration> {
    let migration = json!({
        "metadata": {"name": "m", "namespace": "ns", "uid": UID, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"vmiName": "vm"},
        "status": {"phase": phase, "migrationState": {"sourcePod": "a", "sourceNode": "n1"}},
    });
    Arc::new(serde_json::from_value(migration).unwrap())
}

impl World {
    fn new() -> Self {
        let here = NICS.map(|nic| {
            let mut here = attachment(nic, "a", "n1");
            here.spec.vm = AttachedVm::Kubevirt {
                name: "vm".to_owned(),
            };
            observe(&mut here, AttachmentState::FastPath);
            Arc::new(here)
        });
        Self {
            migration: None,
            pods: vec![launcher("a", 1, "n1", None)],
            attachments: here.to_vec(),
            vm: Whereabouts::Source,
        }
    }

    /// A migration whose pod has a node.
    fn begun() -> Self {
        let mut world = Self::new();
        world.migration = Some(migration("Scheduling"));
        world.pods.push(launcher("b", 9, "n2", Some(UID)));
        world
    }

    fn moves(&self) -> Vec<Move> {
        let migrations: Vec<_> = self.migration.iter().cloned().collect();
        moves(Inputs {
            migrations: &migrations,
            pods: &self.pods,
            attachments: &self.attachments,
        })
    }

    fn stage(&self) -> Option<Stage> {
        self.moves().first().map(|of| of.stage)
    }

    /// The operator does its part for a NIC.
    fn operate(&mut self, name: &str) {
        let moves = self.moves();
        let moving = moves.iter().find(|of| of.has(name));
        let ends = moving.map(|of| Ends::observe(of, &self.attachments, &self.pods));
        let existing: Vec<_> = self
            .attachments
            .iter()
            .filter(|a| a.spec.nic.name == name)
            .cloned()
            .collect();
        let here = self.place();
        let place = match (moving, &ends) {
            (Some(of), Some(ends)) => Place::Moving(of, ends),
            _ => here.map_or(Place::Nowhere, |(pod, node)| Place::At(pod, node)),
        };
        let nic = vm_nic(name);
        let specs = desired_attachments(&desired::Inputs {
            nic: &nic,
            mac: "02:00:00:00:00:01",
            l2: None,
            interface: Some(name),
            existing: &existing,
            pods: &self.pods,
            place,
        });
        for found in existing {
            let wanted = specs.iter().find(|spec| spec.pod.uid == found.spec.pod.uid);
            let wanted = wanted.cloned().or_else(|| {
                (found.spec.goal != Goal::Detached).then(|| NicAttachmentSpec {
                    goal: Goal::Detached,
                    ..found.spec.clone()
                })
            });
            match wanted {
                Some(spec) if spec != found.spec => self.write(&found, spec),
                None if fence::is_detached(&found) => {
                    self.attachments.retain(|a| a.name_any() != found.name_any());
                }
                Some(_) | None => {}
            }
        }
        for spec in specs {
            let is_new = !self
                .attachments
                .iter()
                .any(|a| a.spec.nic.name == name && a.spec.pod.uid == spec.pod.uid);
            if is_new && spec.goal != Goal::Detached {
                let mut made = attachment(name, &spec.pod.name, &spec.node_name);
                made.metadata.creation_timestamp =
                    Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                        jiff::Timestamp::from_second(10).unwrap(),
                    ));
                made.spec = spec;
                self.attachments.push(Arc::new(made));
            }
        }
    }

    /// Where the VM is by what its pods say, as `whereabouts` has it.
    fn place(&self) -> Option<(ObjectRef, String)> {
        let come = self.attachments.iter().find(|a| {
            a.spec.goal == Goal::FastPath
                && a.status.as_ref().is_some_and(|status| {
                    status
                        .migration
                        .as_ref()
                        .is_some_and(|report| report.state == MigrationState::Completed)
                        && a.spec.pod.name == "b"
                })
        });
        let alive = |name: &str| {
            self.pods
                .iter()
                .find(|pod| pod.name_any() == name && !pods::is_finished(pod))
        };
        let pod = come
            .and_then(|_| alive("b"))
            .or_else(|| alive("a"))
            .or_else(|| alive("b"))?;
        Some((pods::reference(pod), pods::node(pod)?.to_owned()))
    }

    fn write(&mut self, found: &Arc<NicAttachment>, spec: NicAttachmentSpec) {
        self.check(found, &spec);
        let slot = self
            .attachments
            .iter_mut()
            .find(|a| a.name_any() == found.name_any())
            .unwrap();
        let mut changed = NicAttachment::clone(slot);
        changed.spec = spec;
        changed.metadata.generation = changed.metadata.generation.map(|generation| generation + 1);
        *slot = Arc::new(changed);
    }

    /// What may not be ordered.
    fn check(&self, found: &NicAttachment, spec: &NicAttachmentSpec) {
        let (is_source, alive) = (spec.pod.name == "a", |name: &str| {
            self.pods.iter().any(|pod| pod.name_any() == name)
        });
        if is_source && spec.goal == Goal::FastPath && found.spec.goal == Goal::Standby {
            assert_eq!(
                self.vm,
                Whereabouts::Source,
                "a VF for a VM that may run elsewhere"
            );
        }
        if is_source && spec.goal == Goal::Detached && alive("a") {
            assert_eq!(self.vm, Whereabouts::Target, "taken from a VM that runs");
        }
        let opens = matches!(spec.goal, Goal::Standby | Goal::FastPath) && found.spec.goal == Goal::Reserved;
        if !is_source && opens {
            let out = self.attachments.iter().filter(|a| a.spec.pod.name == "a");
            let out = out
                .filter(|a| attachment::state(a) == AttachmentState::Standby)
                .count();
            assert!(
                out == NICS.len() || self.vm != Whereabouts::Source,
                "the gate is open with a VF in the guest"
            );
        }
        if !is_source && spec.goal == Goal::Detached && alive("b") {
            assert_ne!(self.vm, Whereabouts::Target, "taken from a VM that has come");
        }
    }

    /// The agent does its part for an attachment, and reports.
    fn act(&mut self, nic: &str, pod: &str) {
        let vm = self.vm;
        let Some(slot) = self
            .attachments
            .iter_mut()
            .find(|a| a.spec.nic.name == nic && a.spec.pod.name == pod)
        else {
            return;
        };
        let mut acted = NicAttachment::clone(slot);
        let here = match pod {
            "a" => vm != Whereabouts::Target,
            _ => vm == Whereabouts::Target,
        };
        let state = match acted.spec.goal {
            Goal::Standby if here => AttachmentState::Standby,
            // While it is being sent nothing is plugged.
            Goal::FastPath if here && vm == Whereabouts::Leaving => attachment::state(&acted),
            Goal::FastPath if here => AttachmentState::FastPath,
            Goal::Reserved | Goal::Standby | Goal::FastPath => AttachmentState::Reserved,
            // What has come all the same keeps what it has.
            Goal::Detached if here && acted.spec.migration.is_some() => attachment::state(&acted),
            Goal::Detached => AttachmentState::Detached,
        };
        observe(&mut acted, state);
        let order = acted.spec.migration.as_ref();
        let is_off = order.is_some_and(|order| order.step == MigrationStep::Cancel);
        let watches = is_off || order.is_some_and(|order| order.step == MigrationStep::Watch);
        let said = match (pod, vm) {
            ("a", Whereabouts::Source) if is_off => Some((MigrationState::Cancelled, true)),
            ("a", Whereabouts::Source) => Some((MigrationState::Prepared, true)),
            ("a", Whereabouts::Leaving) => Some((MigrationState::Active, false)),
            (_, Whereabouts::Target) => Some((MigrationState::Completed, false)),
            _ => None,
        };
        if let (true, Some((state, kept)), Some(status)) = (watches, said, acted.status.as_mut()) {
            status.migration = Some(MigrationReport {
                kept,
                ..MigrationReport::new(UID, state)
            });
        }
        *slot = Arc::new(acted);
    }

    fn all_act(&mut self) {
        for pod in ["a", "b"] {
            for nic in NICS {
                self.act(nic, pod);
            }
        }
    }

    fn all_operate(&mut self) {
        for nic in NICS {
            self.operate(nic);
        }
    }

    fn settle(&mut self) {
        for _ in 0..8 {
            self.all_act();
            self.all_operate();
        }
    }

    fn goals(&self, pod: &str) -> Vec<Goal> {
        let there = self.attachments.iter().filter(|a| a.spec.pod.name == pod);
        there.map(|a| a.spec.goal).collect()
    }

    fn is_open(&self) -> bool {
        let goals = self.goals("b");
        goals.len() == NICS.len() && goals.iter().all(|goal| *goal != Goal::Reserved)
    }

    fn phase(&mut self, phase: &str) {
        if self.migration.is_some() {
            self.migration = Some(migration(phase));
        }
    }

    fn end_pod(&mut self, name: &str) {
        self.pods.retain(|pod| pod.name_any() != name);
    }

    /// KubeVirt and QEMU do what they may do next.
    fn send(&mut self) {
        self.phase("Running");
        self.vm = Whereabouts::Leaving;
    }

    fn arrive(&mut self) {
        self.vm = Whereabouts::Target;
    }
}

#[test]
fn a_migration_goes_from_gate_to_gate() {
    let mut world = World::begun();
    assert_eq!(world.stage(), Some(Stage::Preparing));
    world.all_operate();
    assert_eq!(world.goals("b"), [Goal::Reserved; 2]);
    assert_eq!(world.goals("a"), [Goal::FastPath; 2]);
    let order = world.attachments[0].spec.migration.clone().unwrap();
    assert_eq!(
        (order.step, order.migration.uid.as_str()),
        (MigrationStep::Watch, UID)
    );
    assert_eq!(order.nics, NICS);
    // One NIC is ready, the other is not.
    world.act("fast", "b");
    assert_eq!(world.stage(), Some(Stage::Preparing));
    world.all_act();
    assert_eq!(world.stage(), Some(Stage::Leaving));
    world.all_operate();
    assert_eq!(world.goals("a"), [Goal::Standby; 2]);
    assert_eq!(world.goals("b"), [Goal::Reserved; 2]);
    world.act("fast", "a");
    assert_eq!(world.stage(), Some(Stage::Leaving));
    world.all_act();
    assert_eq!(world.stage(), Some(Stage::Moving));
    world.all_operate();
    assert_eq!(world.goals("b"), [Goal::Standby; 2]);
    world.send();
    world.settle();
    assert_eq!(world.stage(), Some(Stage::Moving));
    world.arrive();
    world.all_act();
    assert_eq!(world.stage(), Some(Stage::Arrived));
    world.settle();
    assert_eq!(world.goals("b"), [Goal::FastPath; 2]);
    world.phase("Succeeded");
    world.end_pod("a");
    assert_eq!(world.stage(), Some(Stage::Over(Outcome::Succeeded)));
    world.settle();
    assert_eq!(world.goals("a"), []);
    assert!(world.attachments.iter().all(|a| a.spec.migration.is_none()));
    assert_eq!(world.stage(), Some(Stage::Over(Outcome::Succeeded)));
}

#[test]
fn a_pod_asks_for_its_links_one_after_the_other() {
    let mut world = World::begun();
    world.all_operate();
    let wait = |world: &mut World, nic: &str| {
        world.act(nic, "b");
        let mut slots = world.attachments.iter_mut();
        let slot = slots.find(|a| a.spec.nic.name == nic && a.spec.pod.name == "b");
        let slot = Arc::make_mut(slot.unwrap());
        observe(slot, AttachmentState::Pending);
        say(slot, reasons::WAITING_FOR_RUNTIME, "");
    };
    wait(&mut world, "fast");
    wait(&mut world, "slow");
    assert_eq!(world.stage(), Some(Stage::Preparing), "no sandbox has come");
    world.act("fast", "b");
    assert_eq!(
        world.stage(),
        Some(Stage::Leaving),
        "the other is not asked for before"
    );
    world.all_operate();
    assert_eq!(world.goals("a"), [Goal::Standby; 2]);
    for nic in NICS {
        world.act(nic, "a");
    }
    world.all_operate();
    assert_eq!(world.goals("b"), [Goal::Standby; 2]);
}

#[test]
fn one_that_is_deleted_before_the_gate_gives_the_vfs_back_once_the_source_is_known_to_run_the_vm() {
    let mut world = World::begun();
    world.all_operate();
    world.all_act();
    world.all_operate();
    assert_eq!(world.goals("a"), [Goal::Standby; 2]);
    world.migration = None;
    world.end_pod("b");
    // What the source has said is of before it was told to leave; it says the same again.
    world.settle();
    assert_eq!(world.goals("a"), [Goal::FastPath; 2]);
    assert_eq!(world.goals("b"), []);
    assert_eq!(world.stage(), None);
}

#[test]
fn nothing_is_given_back_while_the_source_does_not_speak() {
    let mut world = World::begun();
    world.all_operate();
    for nic in NICS {
        world.act(nic, "b");
    }
    world.all_operate();
    world.phase("Failed");
    world.all_operate();
    assert_eq!(world.stage(), Some(Stage::Returning));
    assert_eq!(world.goals("a"), [Goal::Standby; 2]);
    assert_eq!(world.goals("b"), [Goal::Detached; 2], "no link, no VM");
    world.settle();
    assert_eq!(world.goals("a"), [Goal::FastPath; 2]);
    assert_eq!(world.stage(), Some(Stage::Over(Outcome::Failed)));
}

#[test]
fn one_that_fails_late_leaves_the_source_on_its_standby_until_it_is_known_to_run_there() {
    let mut world = World::begun();
    for _ in 0..4 {
        world.all_operate();
        world.all_act();
    }
    world.send();
    world.all_act();
    world.phase("Failed");
    world.settle();
    assert_eq!(world.goals("a"), [Goal::Standby; 2]);
    world.vm = Whereabouts::Source;
    world.settle();
    assert_eq!(world.goals("a"), [Goal::FastPath; 2]);
}

#[test]
fn what_has_begun_without_leave_is_not_called_back() {
    let mut world = World::begun();
    world.all_operate();
    world.send();
    world.all_act();
    assert_eq!(world.stage(), Some(Stage::Moving));
    world.arrive();
    world.settle();
    assert_eq!(world.stage(), Some(Stage::Arrived));
}

#[test]
fn what_goes_to_another_cluster_is_no_move() {
    let mut world = World::begun();
    let mut other = Migration::clone(world.migration.as_ref().unwrap());
    other.spec.send_to = Some(hybridnic_api::foreign::kubevirt::Elsewhere {});
    world.migration = Some(Arc::new(other));
    assert_eq!(world.moves(), []);
}

#[test]
fn a_pod_without_a_node_and_a_migration_that_ended_before_it_had_one_are_no_moves_of_nics() {
    let mut world = World::new();
    world.migration = Some(migration("Pending"));
    world.pods.push(launcher("b", 9, "", Some(UID)));
    assert_eq!(world.moves(), []);
    world.phase("Failed");
    assert_eq!(world.moves()[0].nics, Vec::<String>::new());
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Operate(usize),
    Act(usize, bool),
    Send { without_leave: bool },
    Arrive,
    FailsLate,
    Fails,
    Deleted,
    TargetPodGone,
    Succeeds,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => (0..2_usize).prop_map(Event::Operate),
        12 => (0..2_usize, any::<bool>()).prop_map(|(nic, at)| Event::Act(nic, at)),
        4 => prop::bool::weighted(0.2).prop_map(|without_leave| Event::Send { without_leave }),
        3 => Just(Event::Arrive),
        1 => Just(Event::FailsLate),
        1 => Just(Event::Fails),
        1 => Just(Event::Deleted),
        1 => Just(Event::TargetPodGone),
        2 => Just(Event::Succeeds),
    ]
}

impl World {
    fn happens(&mut self, event: Event) {
        let has_target = self.pods.iter().any(|pod| pod.name_any() == "b");
        let goes_on = self.migration.as_ref().is_some_and(|m| !is_final(m));
        match event {
            Event::Operate(nic) => self.operate(NICS[nic]),
            Event::Act(nic, source) => self.act(NICS[nic], if source { "a" } else { "b" }),
            // QEMU sends no VM that has a VF.
            Event::Send { without_leave }
                if goes_on
                    && has_target
                    && self.vm == Whereabouts::Source
                    && (without_leave || self.is_open()) =>
            {
                let has_vf = self
                    .attachments
                    .iter()
                    .any(|a| a.spec.pod.name == "a" && attachment::state(a) == AttachmentState::FastPath);
                if has_vf {
                    self.phase("Failed");
                } else {
                    self.send();
                }
            }
            Event::Arrive if self.vm == Whereabouts::Leaving && has_target => self.arrive(),
            Event::FailsLate if self.vm == Whereabouts::Leaving => {
                self.vm = Whereabouts::Source;
                self.phase("Failed");
            }
            // KubeVirt's word need not be QEMU's.
            Event::Fails if goes_on => self.phase("Failed"),
            Event::Deleted => self.migration = None,
            Event::TargetPodGone if self.vm != Whereabouts::Target => {
                self.end_pod("b");
                self.vm = Whereabouts::Source;
            }
            Event::Succeeds if self.vm == Whereabouts::Target && goes_on => {
                self.phase("Succeeded");
                self.end_pod("a");
            }
            _ => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// `check` looks at every order on the way.
    #[test]
    fn whatever_kubevirt_does_no_vm_loses_its_nics_and_it_ends_well(
        events in prop::collection::vec(event(), 0..60),
    ) {
        let mut world = World::begun();
        for event in events {
            world.happens(event);
        }
        // It comes to an end: what is being sent arrives, or stays.
        if world.vm == Whereabouts::Leaving {
            world.vm = Whereabouts::Source;
            world.phase("Failed");
        }
        if world.vm == Whereabouts::Target {
            world.phase("Succeeded");
            world.end_pod("a");
        } else {
            world.phase("Failed");
            world.end_pod("b");
        }
        world.settle();
        let at = if world.vm == Whereabouts::Target { "b" } else { "a" };
        let other = if world.vm == Whereabouts::Target { "a" } else { "b" };
        prop_assert_eq!(world.goals(at), [Goal::FastPath; 2]);
        prop_assert_eq!(world.goals(other), []);
        prop_assert!(world.moves().iter().all(|of| !of.is_under_way()));
    }
}
