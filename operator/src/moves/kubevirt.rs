//! KubeVirt's `VirtualMachineInstanceMigration` as a [`Move`]. Pure. KubeVirt drives it and does not ask us; what holds it is that the pod at
//! the target does not start before its link is there.
//!
//! ```text
//!  Preparing ─► Leaving ──────────► Moving ──────────► Arrived ─► Over
//!  the target   the VFs leave       the gate is open:  by the
//!  reserves     at the source       the pod starts     proof
//! ```
//! The target's agent proves that the VM has arrived, once it has seen it run there. But a VM that is paused does not run, and an agent may be
//! away. Then two reports together prove it: KubeVirt's, that this very migration has brought the VM to the target's node, which it says once
//! libvirt is done at the target; and the source's, that its QEMU has let the VM go, or has ended. Neither is enough alone.
//!
//! Nothing is stored for it: how far it is follows from what the attachments have already been told, so it continues after a restart of
//! the operator, and after its object was deleted. It is in charge of the VM's NICs as long as one of them has its order.

use std::collections::BTreeSet;
use std::sync::Arc;

use hybridnic_api::conditions::reasons;
use hybridnic_api::foreign::kubevirt::{
    MIGRATION_LABEL, PhaseTransition, VirtualMachineInstance, VirtualMachineInstanceMigration as Migration,
};
use hybridnic_api::v1alpha1::{
    AttachmentState, Goal, MigrationEnd, MigrationPhaseTime, MigrationState, NicAttachment, ObjectRef,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::ResourceExt;

use super::ends::{Ends, Rollback};
use super::{Driver, End, Going, Move, Outcome, Stage, Times};
use crate::{attachment, fence, pods};

/// All that decides about the moves of a VM.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Its migrations, also those that are over.
    pub migrations: &'a [Arc<Migration>],
    /// Its launchers.
    pub pods: &'a [Arc<Pod>],
    /// The attachments of all its NICs.
    pub attachments: &'a [Arc<NicAttachment>],
    /// The VM as KubeVirt has it.
    pub vmi: Option<&'a VirtualMachineInstance>,
}

/// The moves of a VM, also those that are over, and those whose object is gone while they are in charge of NICs. None
/// begins while another is under way: both would tell the same NICs.
pub fn moves(inputs: Inputs<'_>) -> Vec<Move> {
    let known = inputs.migrations.iter().filter_map(|m| of(&inputs, m));
    let uids: BTreeSet<_> = inputs.migrations.iter().filter_map(|m| m.uid()).collect();
    let orders = inputs
        .attachments
        .iter()
        .filter_map(|a| a.spec.migration.as_ref());
    let lost: BTreeSet<_> = orders
        .map(|order| (&order.migration.uid, &order.migration.name))
        .filter(|(uid, _)| !uids.contains(*uid))
        .collect();
    let lost = lost.into_iter().filter_map(|(uid, name)| {
        let id = ObjectRef {
            name: name.clone(),
            uid: uid.clone(),
        };
        begun(&inputs, id, None)
    });
    let mut moves: Vec<_> = known.chain(lost).collect();
    let has_begun = |of: &Move| inputs.attachments.iter().any(|a| has_order(a, &of.id));
    let mut busy = moves.iter().any(|of| of.is_under_way() && has_begun(of));
    moves.retain(|of| !of.is_under_way() || has_begun(of) || !std::mem::replace(&mut busy, true));
    moves
}

/// How far a migration is, in KubeVirt's word.
pub fn phase(migration: &Migration) -> &str {
    migration
        .status
        .as_ref()
        .map_or("", |status| status.phase.as_str())
}

/// Whether nothing more happens.
pub fn is_final(migration: &Migration) -> bool {
    matches!(phase(migration), "Succeeded" | "Failed")
}

/// Whether it goes to, or comes from, another cluster.
pub fn is_decentralised(migration: &Migration) -> bool {
    migration.spec.send_to.is_some() || migration.spec.receive.is_some()
}

/// A migration that has not ended, as it is counted: by the words of our own phases if it is in charge of the NICs.
pub fn going(migration: &Migration, moves: &[Move]) -> Option<Going> {
    let stage = moves
        .iter()
        .find(|of| Some(&of.id.uid) == migration.metadata.uid.as_ref())
        .map(|of| of.stage);
    let phase = match stage {
        Some(Stage::Over(_)) => return None,
        None if is_final(migration) => return None,
        None => hybridnic_api::v1alpha1::MigrationPhase::Pending,
        Some(stage) => super::qemu::phase_of(stage),
    };
    Some(Going {
        phase: phase.into(),
        since: migration.creation_timestamp().map(|time| time.0),
        undecided: None,
    })
}

fn of(inputs: &Inputs<'_>, migration: &Migration) -> Option<Move> {
    if is_decentralised(migration) {
        return None;
    }
    let id = ObjectRef {
        name: migration.name_any(),
        uid: migration.uid()?,
    };
    begun(inputs, id, Some(migration))
}

/// The move that a migration is; none before its target has a node, and none where it ended before that.
fn begun(inputs: &Inputs<'_>, id: ObjectRef, migration: Option<&Migration>) -> Option<Move> {
    let ordered: Vec<_> = inputs.attachments.iter().filter(|a| has_order(a, &id)).collect();
    let target = target(inputs, &ordered, &id, migration);
    let settled = ordered.iter().all(|a| fence::is_detached(a));
    if settled {
        // Nothing is in its hands.
        let migration = migration?;
        if is_final(migration) {
            return Some(over(inputs, id, migration, target));
        }
        // It begins, or it has ended before it did, or what it had is back already.
        let pod = pods::alive(inputs.pods, &target.as_ref()?.pod.uid)?;
        if pod.metadata.deletion_timestamp.is_some() || !ordered.is_empty() {
            return None;
        }
    }
    let source = source(inputs, &ordered, target.as_ref(), migration)?;
    let told = ordered
        .iter()
        .filter_map(|a| a.spec.migration.as_ref())
        .find(|order| !order.nics.is_empty());
    let nics = told.map_or_else(|| nics_in(inputs, &source.pod.uid), |order| order.nics.clone());
    let target = target.unwrap_or_default();
    let mut of = Move {
        id,
        nics,
        source,
        target,
        stage: Stage::Preparing,
        driver: not_open(),
        times: times(migration),
    };
    let ends = Ends::observe(&of, inputs.attachments, inputs.pods);
    of.times.downtime_ms = ends.source.as_ref().and_then(|report| report.downtime_ms);
    let at = At::of(&of, inputs.attachments);
    let stage = stage(inputs, &of, &ends, &at, migration);
    let driver = Driver::Theirs {
        open: at.is_open(),
        awaited: awaited(stage, &ends, migration),
    };
    Some(Move { stage, driver, ..of })
}

fn not_open() -> Driver {
    Driver::Theirs {
        open: false,
        awaited: None,
    }
}

/// Whether KubeVirt says that this migration has brought the VM to this node, not an earlier one.
pub fn is_at(vmi: Option<&VirtualMachineInstance>, migration: &str, node: &str) -> bool {
    let status = vmi.and_then(|vmi| vmi.status.as_ref());
    status.is_some_and(|status| {
        let last = status.migration_state.as_ref();
        !node.is_empty()
            && status.node_name == node
            && last.is_some_and(|last| last.migration_uid == migration)
    })
}

/// Whether the VM is no longer at the source: its QEMU says so, or its end is proven.
fn has_let_go(ends: &Ends) -> bool {
    ends.source_state() == Some(MigrationState::Completed) || ends.source_ended()
}

/// Whether KubeVirt says of the VM that this move has brought it to its target.
fn is_named(of: &Move, vmi: Option<&VirtualMachineInstance>) -> bool {
    let another_node = of.source.node_name != of.target.node_name;
    another_node && is_at(vmi, &of.id.uid, &of.target.node_name)
}

/// Whether the VM is at the target although no agent has seen it run there.
fn has_come(of: &Move, ends: &Ends, vmi: Option<&VirtualMachineInstance>) -> bool {
    is_named(of, vmi) && has_let_go(ends)
}

/// Which end has to report before it is known where the VM is, or that it stays, although KubeVirt is done.
fn awaited(stage: Stage, ends: &Ends, migration: Option<&Migration>) -> Option<End> {
    let is_done = migration.is_none_or(is_final);
    match stage {
        Stage::Moving if is_done && !has_let_go(ends) => Some(End::Source),
        Stage::Moving if is_done => Some(End::Target),
        Stage::Returning if ends.is_silent() => Some(End::Target),
        Stage::Returning if ends.rollback() == Rollback::Cancelling => Some(End::Source),
        _ => None,
    }
}

fn has_order(attachment: &NicAttachment, id: &ObjectRef) -> bool {
    let order = attachment.spec.migration.as_ref();
    order.is_some_and(|order| order.migration.uid == id.uid)
}

/// The pod that was made for the migration. Once that is gone, the one to which the NICs were attached last, and after the migration was
/// asked for: what was attached before is at the source. Without its object one pod alone may be either end, and is not taken for the
/// target.
fn target(
    inputs: &Inputs<'_>,
    ordered: &[&Arc<NicAttachment>],
    id: &ObjectRef,
    migration: Option<&Migration>,
) -> Option<MigrationEnd> {
    let made_for = |pod: &&Arc<Pod>| pod.labels().get(MIGRATION_LABEL) == Some(&id.uid);
    let mut made = inputs.pods.iter().filter(made_for);
    if let Some(pod) = made.find(|pod| pods::node(pod).is_some()) {
        return end(pod);
    }
    // One that is there and was not made for this is the source.
    let is_alive = |uid: &str| {
        inputs
            .pods
            .iter()
            .any(|pod| pod.metadata.uid.as_deref() == Some(uid))
    };
    let ends: BTreeSet<_> = ordered.iter().map(|a| &a.spec.pod.uid).collect();
    let is_alone = ends.len() < 2;
    let asked = migration.and_then(ResourceExt::creation_timestamp);
    let is_source = |a: &NicAttachment| match (&asked, a.creation_timestamp()) {
        (Some(asked), Some(made)) => made.0 < asked.0,
        _ => is_alone,
    };
    let others = ordered
        .iter()
        .filter(|a| !is_alive(&a.spec.pod.uid) && !is_source(a));
    let last = others.max_by_key(|a| a.creation_timestamp().map(|at| at.0))?;
    Some(end_of(last))
}

/// Where the VM comes from: what is told so already, what KubeVirt says, or the other pod with NICs of the VM.
fn source(
    inputs: &Inputs<'_>,
    ordered: &[&Arc<NicAttachment>],
    target: Option<&MigrationEnd>,
    migration: Option<&Migration>,
) -> Option<MigrationEnd> {
    let is_other = |uid: &str| target.is_none_or(|target| target.pod.uid != uid);
    if let Some(attached) = ordered.iter().find(|a| is_other(&a.spec.pod.uid)) {
        return Some(end_of(attached));
    }
    let state = migration
        .and_then(|migration| migration.status.as_ref())
        .and_then(|status| status.migration_state.as_ref());
    let mut others = inputs
        .pods
        .iter()
        .filter(|pod| is_other(&pod.uid().unwrap_or_default()) && !pods::is_finished(pod));
    let named = state.and_then(|state| others.clone().find(|pod| pod.name_any() == state.source_pod));
    let attached = |pod: &&Arc<Pod>| !nics_in(inputs, &pod.uid().unwrap_or_default()).is_empty();
    named.or_else(|| others.find(attached)).and_then(end)
}

fn end(pod: &Arc<Pod>) -> Option<MigrationEnd> {
    Some(MigrationEnd {
        node_name: pods::node(pod)?.to_owned(),
        pod: pods::reference(pod),
        pod_ip: pods::address(pod).map(ToOwned::to_owned),
    })
}

fn end_of(attachment: &NicAttachment) -> MigrationEnd {
    MigrationEnd {
        node_name: attachment.spec.node_name.clone(),
        pod: attachment.spec.pod.clone(),
        pod_ip: None,
    }
}

/// The NICs that are in a pod.
fn nics_in(inputs: &Inputs<'_>, pod: &str) -> Vec<String> {
    let there = inputs
        .attachments
        .iter()
        .filter(|a| a.spec.pod.uid == pod && !fence::leaves(a));
    let names: BTreeSet<_> = there.map(|a| a.spec.nic.name.clone()).collect();
    names.into_iter().collect()
}

/// The attachments of a move, by end.
struct At<'a> {
    of: &'a ObjectRef,
    nics: usize,
    source: Vec<&'a NicAttachment>,
    target: Vec<&'a NicAttachment>,
}

impl<'a> At<'a> {
    fn of(of: &'a Move, all: &'a [Arc<NicAttachment>]) -> Self {
        let at = |end: &MigrationEnd| {
            let there = all
                .iter()
                .filter(|a| a.spec.pod.uid == end.pod.uid && of.nics.contains(&a.spec.nic.name));
            there.map(AsRef::as_ref).collect()
        };
        Self {
            of: &of.id,
            nics: of.nics.len(),
            source: at(&of.source),
            target: at(&of.target),
        }
    }

    /// Whether the pod at the target has got a link, or was told that it gets one.
    fn is_open(&self) -> bool {
        let told = |a: &&NicAttachment| matches!(a.spec.goal, Goal::Standby | Goal::FastPath);
        self.target.iter().any(|a| told(a) && has_order(a, self.of))
    }

    /// Whether the source was told to give its VFs up.
    fn is_told(&self) -> bool {
        let told = |a: &&NicAttachment| a.spec.goal == Goal::Standby && has_order(a, self.of);
        self.source.iter().any(told)
    }

    /// Whether the source is on its standbys: no VF is in the guest. A NIC of a VM that has arrived paused and has not run since carries
    /// nothing.
    fn is_out(&self) -> bool {
        let out = |a: &&&NicAttachment| {
            let state = attachment::state(a);
            self.says(a, Goal::Standby)
                && matches!(state, AttachmentState::Standby | AttachmentState::Reserved)
        };
        self.source.iter().filter(out).count() == self.nics
    }

    /// Whether the target has reserved all that it can before its pod has a link. The pod's interfaces ask for their links one after the
    /// other, the next once the one before has its own: of those that have not asked, nothing can be reserved yet.
    fn is_reserved(&self) -> bool {
        let told = self.target.iter().filter(|a| self.says(a, Goal::Reserved));
        let told: Vec<_> = told.collect();
        let reserved = |a: &&&&NicAttachment| attachment::state(a) == AttachmentState::Reserved;
        let unasked = |a: &&&&NicAttachment| attachment::waits_for(a, reasons::WAITING_FOR_RUNTIME);
        let (reserved, unasked) = (
            told.iter().filter(reserved).count(),
            told.iter().filter(unasked).count(),
        );
        reserved > 0 && reserved + unasked == self.nics
    }

    /// Whether its agent's report is about this goal in this move.
    fn says(&self, attachment: &NicAttachment, goal: Goal) -> bool {
        attachment.spec.goal == goal && has_order(attachment, self.of) && attachment::is_current(attachment)
    }
}

fn stage(inputs: &Inputs<'_>, of: &Move, ends: &Ends, at: &At<'_>, migration: Option<&Migration>) -> Stage {
    use MigrationState::{Active, Completed, Ended, Failed};
    // Without its object it is over for KubeVirt.
    let is_final = migration.is_none_or(is_final);
    let has_ordered = |there: &[&NicAttachment]| there.iter().any(|a| has_order(a, &of.id));
    // Of one whose object is gone the VM itself may show it.
    let has_succeeded = migration.map_or_else(
        || is_named(of, inputs.vmi),
        |migration| phase(migration) == "Succeeded",
    );
    if has_succeeded && !has_ordered(&at.target) {
        // It was over before, and the target has new orders, or none: what is left of it is the source's, which has yet to say so.
        return Stage::Over(Outcome::Succeeded);
    }
    if ends.arrived() || has_come(of, ends, inputs.vmi) {
        // The VM is proven to be at the target. What its source still holds stays held until its agent, or proof that its node is off,
        // says otherwise, and the move need not wait for that, only until the source is told: without KubeVirt's object, which may go at
        // any time, nothing else shows that it is not to get the VM back. If KubeVirt is wrong and says that the migration failed, the move does
        // wait: nothing would show later that the VM has arrived.
        let is_told = at.source.iter().all(|a| fence::leaves(a));
        let is_detached = at.source.iter().all(|a| fence::is_detached(a));
        // Of a VM that has ended at its target, too, KubeVirt removes all migrations.
        let has_ended = migration.is_none() && ends.target_gone;
        let left = is_detached || (is_told && ends.source_gone && (has_succeeded || has_ended));
        return if is_final && left {
            Stage::Over(Outcome::Succeeded)
        } else {
            Stage::Arrived
        };
    }
    if ends.source_gone && ends.target_gone {
        return Stage::Over(Outcome::Failed);
    }
    let leaves = |pod: &Arc<Pod>| pod.metadata.deletion_timestamp.is_some();
    let target_leaves = pods::alive(inputs.pods, &of.target.pod.uid).is_none_or(leaves);
    let has_failed = migration.is_none_or(|migration| phase(migration) == "Failed");
    if has_failed || target_leaves {
        return if at.is_told() {
            Stage::Returning
        } else {
            Stage::Over(Outcome::Failed)
        };
    }
    // It may have begun without waiting for us: a VM that is on its way is not called back.
    let is_under_way = matches!(ends.source_state(), Some(Active | Completed | Failed))
        || matches!(ends.target_state(), Some(Active | Completed | Ended));
    if at.is_open() || is_under_way || at.is_out() {
        Stage::Moving
    } else if at.is_told() || at.is_reserved() {
        Stage::Leaving
    } else {
        Stage::Preparing
    }
}

/// One that has ended and has nothing in its hands.
fn over(inputs: &Inputs<'_>, id: ObjectRef, migration: &Migration, target: Option<MigrationEnd>) -> Move {
    let state = migration
        .status
        .as_ref()
        .and_then(|status| status.migration_state.clone())
        .unwrap_or_default();
    let end = |node: &str, pod: &str| MigrationEnd {
        node_name: node.to_owned(),
        pod: ObjectRef {
            name: pod.to_owned(),
            uid: String::new(),
        },
        pod_ip: None,
    };
    let target = target.unwrap_or_else(|| end(&state.target_node, &state.target_pod));
    let source = end(&state.source_node, &state.source_pod);
    // What ended before a pod had a node has met no NIC.
    let nics = if target.node_name.is_empty() {
        Vec::new()
    } else {
        nics_of_vm(inputs)
    };
    let outcome = if phase(migration) == "Succeeded" {
        Outcome::Succeeded
    } else {
        Outcome::Failed
    };
    Move {
        id,
        nics,
        source,
        target,
        stage: Stage::Over(outcome),
        driver: not_open(),
        times: times(Some(migration)),
    }
}

fn nics_of_vm(inputs: &Inputs<'_>) -> Vec<String> {
    let names: BTreeSet<_> = inputs
        .attachments
        .iter()
        .map(|a| a.spec.nic.name.clone())
        .collect();
    names.into_iter().collect()
}

/// When it began and ended, and its phases, by KubeVirt.
fn times(migration: Option<&Migration>) -> Times {
    let Some(migration) = migration else {
        return Times::default();
    };
    let steps = migration
        .status
        .as_ref()
        .map(|status| status.phase_transition_timestamps.as_slice())
        .unwrap_or_default();
    let at = |step: &PhaseTransition| step.phase_transition_timestamp.0;
    let phases = steps.iter().enumerate().map(|(n, step)| MigrationPhaseTime {
        name: hybridnic_api::limits::word(&step.phase),
        started_at: MicroTime(at(step)),
        ms: steps
            .get(n + 1)
            .and_then(|next| i64::try_from(at(next).duration_since(at(step)).as_millis()).ok()),
    });
    let phases = hybridnic_api::limits::first(phases.collect(), hybridnic_api::limits::PHASES);
    Times {
        started_at: migration.creation_timestamp().map(|time| MicroTime(time.0)),
        finished_at: steps
            .last()
            .filter(|_| is_final(migration))
            .map(|last| MicroTime(at(last))),
        downtime_ms: None,
        phases,
    }
}

#[cfg(test)]
mod tests;
