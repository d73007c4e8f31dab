//! The operator's reconcile of a NIC, over the objects of KubeVirt.

use std::collections::BTreeSet;
use std::sync::Arc;

use hybridnic_api::foreign::kubevirt::{
    CREATED_BY_LABEL, MIGRATION_LABEL, MigrationState, VirtualMachineInstance,
    VirtualMachineInstanceMigration, VirtualMachineInstanceMigrationSpec,
    VirtualMachineInstanceMigrationStatus, VirtualMachineInstanceSpec, VirtualMachineInstanceStatus,
};
use hybridnic_api::v1alpha1::{Aside, KubevirtVm, VmHybridNic};
use hybridnic_operator::fence::NodeState;
use hybridnic_operator::moves::ends::Ends;
use hybridnic_operator::moves::kubevirt::{Inputs, moves};
use hybridnic_operator::nic::observed::Observed;
use hybridnic_operator::nic::whereabouts::kubevirt::ObservedVm;
use hybridnic_operator::vm::VmRef;
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::state::{Migration, PODS, Phase, PodPhase, State, View};
use super::world::World;
use crate::objects::{self, NIC, NODE, meta, uid};
use crate::operator::{Write, delete, first_change, put};

/// The pods' names.
pub const POD: [&str; PODS] = ["a", "b", "c"];
/// The migrations' names.
pub const MIGRATION: [&str; 2] = ["m", "n"];
/// The VM's name, and its instance's.
const VM: &str = "vm";

/// One reconcile of a NIC, up to its first write: the operator may die after each.
pub fn reconcile_nic(world: &World, state: &mut State, n: usize) {
    let view = state.cached();
    let write = world.writes.get(&(view, n), || first_write(world, &view, n));
    match write {
        Write::Nothing => {}
        // It says on which version it was decided.
        Write::Spec(pod, spec) => {
            let place = &mut state.places[pod];
            if place.attachments[n] == view.attachments[pod][n] {
                put(&mut place.attachments[n], &mut place.nics[n], spec);
            }
        }
        Write::Delete(pod) => delete(&mut state.places[pod].attachments[n], view.attachments[pod][n]),
        Write::Pod(pod) => state.nic_pods[n] = pod,
    }
}

fn first_write(world: &World, view: &View, n: usize) -> Write {
    let of = |n: usize| {
        let pods = (0..PODS).filter_map(move |pod| Some((pod, view.attachments[pod][n]?)));
        let found = pods.filter_map(move |(pod, a)| {
            let mut found = world.objects.attachment(POD[pod], n, &a)?;
            found.metadata.creation_timestamp = meta(POD[pod], made_at(pod)).creation_timestamp;
            Some(Arc::new(found))
        });
        found.collect::<Vec<_>>()
    };
    let existing = of(n);
    let others: Vec<_> = (0..world.nics).filter(|other| *other != n).flat_map(of).collect();
    let all: Vec<_> = existing.iter().chain(&others).cloned().collect();
    let pods: Vec<_> = (0..PODS).filter_map(|p| pod(view, p)).map(Arc::new).collect();
    let migrations = view.kube.moves.iter().enumerate();
    let migrations: Vec<_> = migrations.filter_map(|(k, m)| migration(k, m)).collect();
    let vmi = vmi(view);
    let moves = moves(Inputs {
        migrations: &migrations,
        pods: &pods,
        attachments: &all,
        vmi: Some(&vmi),
    });
    let moving = moves
        .iter()
        .find(|of| of.has(NIC[n]))
        .map(|of| (of.clone(), Ends::observe(of, &all, &pods)));
    let nic = nic(n, view.nic_pods[n], view.aside);
    let observed = Observed {
        restore: None,
        vm: VmRef::of_nic(&nic),
        kubevirt: ObservedVm {
            vmi: Some(Arc::new(vmi)),
            interface: Some(NIC[n].to_owned()),
            trouble: None,
            is_known: true,
        },
        network: None,
        pods,
        attachments: existing,
        others,
        orphans: Vec::new(),
        unreadable: false,
        nodes: NODE.map(|name| (name.to_owned(), NodeState::Ready)).into(),
        overdue: BTreeSet::new(),
        without_agent: BTreeSet::new(),
        moves,
        moving,
    };
    let end_of = |pod: &str| POD.iter().position(|name| uid(name) == pod).unwrap_or_default();
    first_change(&world.objects, &nic, &objects::mac(n), &observed, end_of).unwrap_or_else(|pod| {
        if pod == view.nic_pods[n] {
            Write::Nothing
        } else {
            Write::Pod(pod)
        }
    })
}

fn nic(n: usize, pod: Option<u8>, aside: Option<Aside>) -> VmHybridNic {
    let mut nic = objects::nic(n, None, aside);
    nic.spec.vm = hybridnic_api::v1alpha1::Vm {
        qemu: None,
        kubevirt: Some(KubevirtVm {
            name: VM.to_owned(),
            interface: Some(NIC[n].to_owned()),
        }),
    };
    if let Some(status) = &mut nic.status {
        status.pod = pod.map(|pod| objects::reference(POD[usize::from(pod)]));
    }
    nic
}

fn node_of(view: &View, pod: usize) -> &'static str {
    match pod {
        0 | 1 => NODE[pod],
        _ => NODE[1 - usize::from(view.kube.moves[1].source)],
    }
}

/// In which second a pod and its attachments are made: each after its migration, which is 5 s after the pod before.
fn made_at(pod: usize) -> i64 {
    10 * i64::try_from(pod).unwrap_or_default() + 1
}

fn pod(view: &View, p: usize) -> Option<Pod> {
    let of = view.kube.pods[p];
    let phase = match of.phase {
        PodPhase::Gone => return None,
        PodPhase::Pending => "Pending",
        PodPhase::Running => "Running",
        PodPhase::Ended => "Succeeded",
    };
    let mut metadata = meta(POD[p], made_at(p));
    metadata.deletion_timestamp = of.leaves.then(|| Time(objects::now()));
    let mut labels = vec![(CREATED_BY_LABEL.to_owned(), uid(VM))];
    if let Some(migration) = p.checked_sub(1) {
        labels.push((MIGRATION_LABEL.to_owned(), uid(MIGRATION[migration])));
    }
    metadata.labels = Some(labels.into_iter().collect());
    Some(Pod {
        metadata,
        spec: Some(PodSpec {
            node_name: Some(node_of(view, p).to_owned()),
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            phase: Some(phase.to_owned()),
            ..PodStatus::default()
        }),
    })
}

fn vmi(view: &View) -> VirtualMachineInstance {
    let node = node_of(view, usize::from(view.kube.vmi));
    let last = view.kube.sent.map(|migration| MigrationState {
        migration_uid: uid(MIGRATION[usize::from(migration)]),
        ..MigrationState::default()
    });
    VirtualMachineInstance {
        metadata: meta(VM, 0),
        spec: VirtualMachineInstanceSpec::default(),
        status: Some(VirtualMachineInstanceStatus {
            phase: "Running".to_owned(),
            node_name: node.to_owned(),
            migration_state: last,
            ..VirtualMachineInstanceStatus::default()
        }),
    }
}

fn migration(k: usize, migration: &Migration) -> Option<Arc<VirtualMachineInstanceMigration>> {
    let phase = match migration.phase {
        _ if !migration.there => return None,
        Phase::None => return None,
        Phase::Scheduling => "Scheduling",
        Phase::Running => "Running",
        Phase::Succeeded => "Succeeded",
        Phase::Failed => "Failed",
    };
    let second = i64::try_from(k).unwrap_or_default();
    let mut metadata = meta(MIGRATION[k], 10 * second + 5);
    metadata.deletion_timestamp = migration.deleting.then(|| Time(objects::now()));
    let mut status = VirtualMachineInstanceMigrationStatus {
        phase: phase.to_owned(),
        ..VirtualMachineInstanceMigrationStatus::default()
    };
    let state = status.migration_state.get_or_insert_default();
    POD[usize::from(migration.source)].clone_into(&mut state.source_pod);
    POD[State::target(k)].clone_into(&mut state.target_pod);
    Some(Arc::new(VirtualMachineInstanceMigration {
        metadata,
        spec: VirtualMachineInstanceMigrationSpec {
            vmi_name: VM.to_owned(),
            ..VirtualMachineInstanceMigrationSpec::default()
        },
        status: Some(status),
    }))
}
