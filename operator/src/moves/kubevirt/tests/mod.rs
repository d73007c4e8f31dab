//! KubeVirt's moves, played with the operator's and the agents' parts of them.
//!
//! | module | is |
//! |---|---|
//! | `stages` | what follows from what, step by step |
//! | `histories` | what holds in any order |

mod histories;
mod stages;

use hybridnic_api::v1alpha1::{
    AttachedVm, KubevirtVm, MigrationReport, MigrationStep, NicAttachmentSpec, Vm, VmHybridNic,
};
use serde_json::json;

use super::*;
use crate::nic::desired::{self, Place, desired_attachments};
use crate::testing::{attachment, nic, observe, pod, say};

const NICS: [&str; 2] = ["fast", "slow"];
const UID: &str = "m-uid";

/// A VM of KubeVirt with two NICs in the pod `a`, and what happens to it. What the operator sees is in the objects; the true state is
/// beside.
struct World {
    migration: Option<Arc<Migration>>,
    /// Another one of the same VM.
    another: Option<Arc<Migration>>,
    pods: Vec<Arc<Pod>>,
    attachments: Vec<Arc<NicAttachment>>,
    vmi: Option<VirtualMachineInstance>,
    /// Where the VM is.
    vm: Whereabouts,
    /// Its user has paused it: it runs nowhere.
    paused: bool,
    /// The agent at the target says nothing once the VM is there.
    mute: bool,
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
    named("m", UID, phase)
}

fn named(name: &str, uid: &str, phase: &str) -> Arc<Migration> {
    let migration = json!({
        "metadata": {"name": name, "namespace": "ns", "uid": uid, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"vmiName": "vm"},
        "status": {"phase": phase, "migrationState": {"sourcePod": "a", "sourceNode": "n1"}},
    });
    Arc::new(serde_json::from_value(migration).unwrap())
}

/// The VM as KubeVirt has it: on this node by this migration.
fn vmi(node: &str, migration: &str) -> VirtualMachineInstance {
    let vmi = json!({
        "metadata": {"name": "vm", "namespace": "ns", "uid": "vmi-uid"},
        "spec": {},
        "status": {"nodeName": node, "migrationState": {"migrationUid": migration}},
    });
    serde_json::from_value(vmi).unwrap()
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
            another: None,
            pods: vec![launcher("a", 1, "n1", None)],
            attachments: here.to_vec(),
            vmi: Some(vmi("n1", "")),
            vm: Whereabouts::Source,
            paused: false,
            mute: false,
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
        let migrations: Vec<_> = self.another.iter().chain(&self.migration).cloned().collect();
        moves(Inputs {
            migrations: &migrations,
            pods: &self.pods,
            attachments: &self.attachments,
            vmi: self.vmi.as_ref(),
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
                        "2026-01-01T00:00:10Z".parse().unwrap(),
                    ));
                made.spec = spec;
                self.attachments.push(Arc::new(made));
            }
        }
    }

    /// Where the VM is by what its pods say, as `whereabouts` has it.
    fn place(&self) -> Option<(ObjectRef, String)> {
        let come = self.attachments.iter().find(|a| {
            let report = attachment::report(a, UID);
            a.spec.pod.name == "b"
                && a.spec.goal != Goal::Detached
                && report.is_some_and(|report| report.state == MigrationState::Completed)
        });
        let alive = |name: &str| {
            self.pods
                .iter()
                .find(|pod| pod.name_any() == name && !pods::is_finished(pod))
        };
        let says = is_at(self.vmi.as_ref(), UID, "n2");
        let pod = come
            .and_then(|_| alive("b"))
            .or_else(|| alive("b").filter(|_| says))
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
                .filter(|a| {
                    let state = attachment::state(a);
                    matches!(state, AttachmentState::Standby | AttachmentState::Reserved)
                })
                .count();
            assert!(
                out == NICS.len() || self.vm != Whereabouts::Source,
                "the gate is open with a VF in the guest"
            );
        }
        if spec.pod.name == "b" && spec.goal == Goal::Detached && alive("b") {
            assert_ne!(self.vm, Whereabouts::Target, "taken from a VM that has come");
        }
    }

    /// The agent does its part for an attachment, and reports.
    fn act(&mut self, nic: &str, pod: &str) {
        let (vm, paused) = (self.vm, self.paused);
        if pod == "b" && self.mute && vm == Whereabouts::Target {
            return;
        }
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
            // A VM that has come and does not run yet is given nothing.
            Goal::FastPath if here && paused && pod == "b" => AttachmentState::Reserved,
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
            ("b", Whereabouts::Target) if paused => Some((MigrationState::Active, false)),
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

    /// libvirt is done at the target, and KubeVirt says so.
    fn kubevirt_says_so(&mut self) {
        self.vmi = Some(vmi("n2", UID));
    }

    fn awaited(&self) -> Option<End> {
        match self.moves().first().map(|of| of.driver.clone()) {
            Some(Driver::Theirs { awaited, .. }) => awaited,
            _ => None,
        }
    }

    /// The VM is at the target, and neither KubeVirt nor the source has said so.
    fn come() -> Self {
        let mut world = Self::begun();
        for _ in 0..4 {
            world.all_operate();
            world.all_act();
        }
        world.send();
        world.all_act();
        world.arrive();
        world
    }

    /// The target's agent has seen it there.
    fn seen() -> Self {
        let mut world = Self::come();
        for nic in NICS {
            world.act(nic, "b");
        }
        world
    }
}
