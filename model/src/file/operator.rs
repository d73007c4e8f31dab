//! The operator's controllers of saves, restores and NICs. What they decide is their own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hybridnic_api::v1alpha1::{
    MigrationPhase, QemuRestore, QemuRestoreSpec, QemuSave, QemuSaveSpec, StateFileStatus,
};
use hybridnic_operator::fence::NodeState;
use hybridnic_operator::migration::inputs::Deadlines;
use hybridnic_operator::moves::claims::{Claim, blocked_by};
use hybridnic_operator::moves::ends::Ends;
use hybridnic_operator::moves::file::{OnFile, begun};
use hybridnic_operator::nic::observed::Observed;
use hybridnic_operator::nic::whereabouts::kubevirt::ObservedVm;
use hybridnic_operator::save::inputs::{Inputs, Request};
use hybridnic_operator::save::step::step;
use hybridnic_operator::vm::VmRef;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::api::ObjectMeta;

use super::state::{Move, Moves, RESTORE, SAVE, State};
use super::world::World;
use crate::objects::{self, NIC};
use crate::operator::{self, Write, first_change};
use crate::state::{Api, Id};

/// One reconcile of the save or of the restore. `late`: a deadline that it waits for has passed.
pub fn reconcile_move(world: &World, state: &mut State, which: usize, late: bool) {
    let (api, moves) = (state.base.cached(), state.known_moves());
    let Some(of) = moves.each[which].filter(|_| moves == state.moves) else {
        return;
    };
    let next = world.steps.get(&(api, moves, which, late), || match which {
        SAVE => next_status(world, &api, &moves, &save(world, of, &moves), late),
        _ => next_status(world, &api, &moves, &restore(world, of), late),
    });
    if let Some(of) = &mut state.moves.each[which] {
        of.status = next;
    }
}

/// One reconcile of a NIC, up to its first write.
pub fn reconcile_nic(world: &World, state: &mut State, n: usize) {
    let (api, moves) = (state.base.cached(), state.known_moves());
    let write = world
        .writes
        .get(&(api, moves, n), || first_write(world, &api, &moves, n));
    operator::apply(&mut state.base, n, write, &api);
}

impl State {
    /// The save and the restore as the operator knows them.
    fn known_moves(&self) -> Moves {
        self.late.unwrap_or(self.moves)
    }
}

fn metadata(name: &str, second: i64, of: Move) -> ObjectMeta {
    ObjectMeta {
        deletion_timestamp: of.deleting.then(|| Time(objects::now())),
        ..objects::meta(name, second)
    }
}

fn status(world: &World, of: Move) -> Option<StateFileStatus> {
    world.model.objects.files.get(of.status).cloned()
}

fn save(world: &World, of: Move, moves: &Moves) -> QemuSave {
    QemuSave {
        metadata: metadata("m", 100, of),
        spec: QemuSaveSpec {
            vm: "vm".to_owned(),
            file: "/saves/vm".to_owned(),
            then: moves.then,
            deadline_seconds: Some(600),
            bandwidth: None,
        },
        status: status(world, of),
    }
}

fn restore(world: &World, of: Move) -> QemuRestore {
    QemuRestore {
        metadata: metadata("r", 101, of),
        spec: QemuRestoreSpec {
            vm: "vm".to_owned(),
            file: "/saves/vm".to_owned(),
            pod: None,
            deadline_seconds: Some(600),
        },
        status: status(world, of),
    }
}

/// What the operator's caches have. The VM's pods are not started again.
fn observe(world: &World, api: &Api) -> operator::World {
    let mut all = operator::world(&world.model, api);
    let never = |pod: &Arc<Pod>| {
        let mut pod = pod.as_ref().clone();
        if let Some(spec) = &mut pod.spec {
            spec.restart_policy = Some("Never".to_owned());
        }
        Arc::new(pod)
    };
    all.pods = all.pods.iter().map(never).collect();
    all
}

fn next_status(world: &World, api: &Api, moves: &Moves, object: &impl OnFile, late: bool) -> Id {
    let all = observe(world, api);
    let status = object.file_status().cloned().unwrap_or_default();
    let nics = all.nics.into_iter();
    let nics = nics.filter(|nic| status.end.is_none() || status.nics.contains(&nic.nic.name_any()));
    let kind = |saves| if saves { "save" } else { "restore" };
    let own = Claim::of(kind(object.saves()), object, object.phase());
    let claims = moves.each.iter().enumerate().filter_map(|(which, of)| {
        let of = (*of)?;
        Some(if which == SAVE {
            let save = save(world, of, moves);
            Claim::of(kind(true), &save, save.phase())
        } else {
            let restore = restore(world, of);
            Claim::of(kind(false), &restore, restore.phase())
        })
    });
    let inputs = Inputs {
        now: objects::now(),
        in_phase_for: Duration::from_secs(if late { 1000 } else { 0 }),
        request: Request::of(object),
        blocked_by: blocked_by(&own, claims),
        nics: nics.collect(),
        pods: &all.pods,
        away: BTreeSet::new(),
        ends: begun(object).map(|of| Ends::observe(&of, &all.attachments, &all.pods)),
        deadlines: Deadlines {
            prepare: Duration::from_mins(1),
            switch: Duration::from_mins(2),
        },
    };
    world.model.objects.file_id(step(&inputs).status)
}

fn first_write(world: &World, api: &Api, moves: &Moves, n: usize) -> Write {
    let all = observe(world, api);
    let saved = moves.each[SAVE].and_then(|of| begun(&save(world, of, moves)));
    let restored = moves.each[RESTORE].map(|of| restore(world, of));
    let waits = restored
        .as_ref()
        .filter(|of| of.phase() == MigrationPhase::Pending && of.metadata.deletion_timestamp.is_none());
    let moves: Vec<_> = saved
        .into_iter()
        .chain(restored.as_ref().and_then(begun))
        .collect();
    let nic = &all.nics[n];
    let moving = moves.iter().find(|of| of.has(NIC[n]));
    let moving = moving.map(|of| (of.clone(), Ends::observe(of, &all.attachments, &all.pods)));
    let others = all.attachments.iter();
    let others = others.filter(|other| other.spec.nic.name != NIC[n]).cloned();
    let observed = Observed {
        restore: waits.map(ResourceExt::name_any),
        vm: VmRef::of_nic(&nic.nic),
        kubevirt: ObservedVm::default(),
        network: None,
        others: others.collect(),
        pods: all.pods,
        attachments: nic.attachments.clone(),
        orphans: Vec::new(),
        unreadable: false,
        nodes: BTreeMap::from(objects::NODE.map(|name| (name.to_owned(), NodeState::Ready))),
        overdue: BTreeSet::new(),
        without_agent: BTreeSet::new(),
        moves,
        moving,
    };
    let end_of = |uid: &str| objects::end_of(uid).unwrap_or_default();
    let change = first_change(
        &world.model.objects,
        &nic.nic,
        &objects::mac(n),
        &observed,
        end_of,
    );
    change.unwrap_or_else(|pod| {
        if pod == api.nic_pods[n] {
            Write::Nothing
        } else {
            Write::Pod(pod)
        }
    })
}
