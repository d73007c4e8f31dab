//! The status that a NIC should have, and which changes are worth an event. Pure.

use std::sync::Arc;

use hybridnic_api::conditions::{self, NewCondition, reasons, types};
use hybridnic_api::v1alpha1::{
    AttachmentState, NicAttachment, NicMigration, NicPhase, ObjectRef, Path, Runtime, StandbyKind,
    VmHybridNic, VmHybridNicStatus,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use kube::ResourceExt;

use super::admit::Refusal;
use super::theirs;
use crate::attachment;
use crate::events::Note;
use crate::moves::{Driver, Move, Outcome, Stage};

/// All that a NIC's status is made from.
pub struct Inputs<'a> {
    /// The NIC.
    pub nic: &'a VmHybridNic,
    /// The time.
    pub now: Timestamp,
    /// Its address; none when it gets none.
    pub mac: Option<String>,
    /// Whether it may be.
    pub admission: Result<(), Refusal>,
    /// Why it would not get its address now. It keeps it while it is attached.
    pub kept: Option<Refusal>,
    /// Pod and node of its VM.
    pub location: Option<(ObjectRef, String)>,
    /// The VM's other pods that run.
    pub other_pods: Vec<String>,
    /// Why it is not attached there.
    pub obstacle: Option<Refusal>,
    /// All its attachments.
    pub attachments: &'a [Arc<NicAttachment>],
    /// The move that has the VM in its hands.
    pub moving: Option<&'a Move>,
    /// All moves of the VM.
    pub moves: &'a [Move],
}

impl Inputs<'_> {
    fn attachment(&self) -> Option<&NicAttachment> {
        let (pod, _) = self.location.as_ref()?;
        self.attachments
            .iter()
            .find(|a| a.spec.pod.uid == pod.uid)
            .map(AsRef::as_ref)
    }

    /// Why the NIC's state is not known: its node cannot be asked to give it back, and its agent's last report may be out of
    /// date; or the report cannot be read.
    fn unknown(&self) -> Option<&Refusal> {
        let unknown = [
            reasons::NODE_UNREACHABLE,
            reasons::ATTACHMENT_UNREADABLE,
            reasons::ARRIVAL_UNPROVEN,
        ];
        self.obstacle
            .as_ref()
            .filter(|obstacle| unknown.contains(&obstacle.reason))
    }

    fn deleting(&self) -> bool {
        self.nic.metadata.deletion_timestamp.is_some()
    }
}

/// The status that follows. Equal to the old one when nothing has changed.
pub fn build_status(inputs: &Inputs<'_>) -> VmHybridNicStatus {
    let mut status = inputs.nic.status.clone().unwrap_or_default();
    let attachment = inputs.attachment();
    let seen = attachment.and_then(|a| a.status.clone()).unwrap_or_default();
    status.observed_generation = inputs.nic.metadata.generation;
    status.runtime = inputs.nic.spec.vm.runtime();
    status.mac.clone_from(&inputs.mac);
    status.pod = inputs.location.as_ref().map(|(pod, _)| pod.clone());
    status.node_name = inputs.location.as_ref().map(|(_, node)| node.clone());
    status.path = seen.path;
    status.vf = seen.vf;
    status.standby = seen.standby;
    status.guest = seen.guest;
    status.last_migration = last_migration(inputs, status.last_migration.take());
    status.phase = phase(inputs, attachment);
    let ready = ready(inputs, attachment);
    let fast_path = fast_path(inputs, attachment, &ready);
    for condition in [accepted(inputs), ready, fast_path] {
        conditions::set(
            &mut status.conditions,
            inputs.nic.metadata.generation,
            inputs.now,
            condition,
        );
    }
    match said(types::STANDBY_FILTER, attachment) {
        Some(condition) => conditions::set(
            &mut status.conditions,
            inputs.nic.metadata.generation,
            inputs.now,
            condition,
        ),
        None => conditions::remove(&mut status.conditions, types::STANDBY_FILTER),
    }
    status
}

fn phase(inputs: &Inputs<'_>, attachment: Option<&NicAttachment>) -> NicPhase {
    if inputs.moving.is_some() {
        return NicPhase::Migrating;
    }
    if inputs.deleting() {
        return NicPhase::Detaching;
    }
    let state = attachment.map(attachment::state);
    match (state, &inputs.admission) {
        (Some(AttachmentState::FastPath), _) => NicPhase::FastPath,
        (Some(AttachmentState::Standby), _) => NicPhase::Standby,
        (Some(AttachmentState::Aside), _) => NicPhase::Aside,
        (Some(_), _) => NicPhase::Attaching,
        // A missing thing may come; a wrong one must be fixed.
        (None, Err(refusal)) if refusal.reason != reasons::NETWORK_NOT_FOUND => NicPhase::Failed,
        (None, _) if inputs.obstacle.is_none() && inputs.admission.is_ok() => NicPhase::Attaching,
        (None, _) => NicPhase::Pending,
    }
}

fn accepted(inputs: &Inputs<'_>) -> NewCondition {
    match (&inputs.admission, &inputs.kept) {
        (Ok(()), Some(kept)) => {
            let message = format!(
                "the NIC keeps its address while it is attached, and no longer: {}",
                kept.message
            );
            NewCondition::yes(types::ACCEPTED, kept.reason, message)
        }
        (Ok(()), None) => {
            let message = format!("the NIC may use the network {}", inputs.nic.spec.network);
            NewCondition::yes(types::ACCEPTED, reasons::ACCEPTED, message)
        }
        (Err(refusal), _) => NewCondition::no(types::ACCEPTED, refusal.reason, &refusal.message),
    }
}

fn ready(inputs: &Inputs<'_>, attachment: Option<&NicAttachment>) -> NewCondition {
    if let Some(unknown) = inputs.unknown() {
        return NewCondition::no(types::READY, unknown.reason, &unknown.message);
    }
    let now = word(types::READY, inputs, attachment);
    // The migration reports what passes by itself during it.
    let passes = inputs.moving.is_some() && now.status != Some(true) && is_quiet(&now.reason);
    let before = inputs.nic.status.as_ref().filter(|_| passes);
    let before = before.and_then(|status| conditions::find(&status.conditions, types::READY));
    before.map_or(now, |condition| as_it_is(types::READY, condition))
}

fn fast_path(inputs: &Inputs<'_>, attachment: Option<&NicAttachment>, ready: &NewCondition) -> NewCondition {
    if let Some(unknown) = inputs.unknown() {
        return NewCondition::no(types::FAST_PATH, unknown.reason, &unknown.message);
    }
    let on_vf = attachment
        .and_then(|a| a.status.as_ref())
        .is_some_and(|status| status.path == Path::FastPath);
    // What is attached counts, whatever the NIC's object says by now.
    let standby = attachment.map_or(inputs.nic.spec.standby, |a| a.spec.standby);
    let is_alone = standby == StandbyKind::None;
    match inputs.moving {
        Some(of) if !on_vf && is_alone => {
            let message = format!(
                "the NIC has no standby, and its VF is out of the guest: the VM has no network by this NIC until its VF is back; the \
                 {} {} is under way",
                of.kind(),
                of.id.name
            );
            NewCondition::no(types::FAST_PATH, reasons::STEPPED_ASIDE, message)
        }
        Some(of) if !on_vf => {
            let message = format!("the {} {} is under way", of.kind(), of.id.name);
            NewCondition::no(types::FAST_PATH, reasons::MIGRATING, message)
        }
        _ => or_what_is_wrong(word(types::FAST_PATH, inputs, attachment), ready),
    }
}

/// `kubectl get` shows this condition's reason and message. While the VF carries the traffic, they are about what is wrong, such as a guest
/// that keeps the VF from a migration.
fn or_what_is_wrong(fast_path: NewCondition, ready: &NewCondition) -> NewCondition {
    if fast_path.status != Some(true) || ready.status != Some(false) || is_quiet(&ready.reason) {
        return fast_path;
    }
    NewCondition {
        reason: ready.reason.clone(),
        message: ready.message.clone(),
        ..fast_path
    }
}

/// What the agent says; where there is none, why.
fn word(type_: &'static str, inputs: &Inputs<'_>, attachment: Option<&NicAttachment>) -> NewCondition {
    said(type_, attachment).map_or_else(|| absent(type_, inputs), |said| or_elsewhere(inputs, said))
}

/// An agent knows only its own node's pods. If the NIC moves by itself, it does not stay long enough for a person to read this.
fn or_elsewhere(inputs: &Inputs<'_>, said: NewCondition) -> NewCondition {
    let waits = inputs.moving.is_none() && said.status == Some(false) && said.reason == reasons::VM_INCOMING;
    match &inputs.location {
        Some((pod, _)) if waits && !inputs.other_pods.is_empty() => NewCondition {
            message: format!(
                "{}; if the VM runs in {}, delete the pod {}: the NIC follows",
                said.message,
                inputs.other_pods.join(" or "),
                pod.name
            ),
            ..said
        },
        _ => said,
    }
}

/// What the agent says, in its own words.
fn said(type_: &'static str, attachment: Option<&NicAttachment>) -> Option<NewCondition> {
    let condition = conditions::find(&attachment?.status.as_ref()?.conditions, type_)?;
    Some(as_it_is(type_, condition))
}

fn as_it_is(type_: &'static str, condition: &Condition) -> NewCondition {
    let status = match condition.status.as_str() {
        "True" => Some(true),
        "False" => Some(false),
        _ => None,
    };
    NewCondition {
        type_,
        status,
        reason: condition.reason.clone(),
        message: condition.message.clone(),
    }
}

fn absent(type_: &'static str, inputs: &Inputs<'_>) -> NewCondition {
    if inputs.deleting() {
        return NewCondition::no(type_, reasons::DETACHED, "the NIC is being deleted");
    }
    if let Some(refusal) = inputs.admission.as_ref().err().or(inputs.obstacle.as_ref()) {
        return NewCondition::no(type_, refusal.reason, &refusal.message);
    }
    let node = inputs
        .location
        .as_ref()
        .map(|(_, node)| node.as_str())
        .unwrap_or_default();
    NewCondition::no(
        type_,
        reasons::AGENT_PENDING,
        format!("the agent of node {node} has not reported on the NIC yet"),
    )
}

/// The youngest move that has begun with this NIC. The object that asked for it may be deleted; what is known about it stays.
fn last_migration(inputs: &Inputs<'_>, known: Option<NicMigration>) -> Option<NicMigration> {
    let name = inputs.nic.name_any();
    let is_theirs = inputs.nic.spec.vm.runtime() == Some(Runtime::Kubevirt);
    let start = |of: &Move| of.times.started_at.as_ref().map(|at| at.0);
    // KubeVirt keeps migrations from before the NIC existed.
    let made = inputs.nic.creation_timestamp().map(|at| at.0);
    let begun = inputs
        .moves
        .iter()
        .filter(|of| !matches!(of.driver, Driver::File(_)))
        .filter(|of| start(of).is_some() && of.nics.contains(&name) && (!is_theirs || start(of) >= made));
    let Some(last) = begun.max_by_key(|of| start(of)) else {
        return if is_theirs {
            called_off(inputs, known)
        } else {
            known
        };
    };
    let known_start = known
        .as_ref()
        .and_then(|known| known.started_at.as_ref())
        .map(|at| at.0);
    if known_start > start(last) {
        return if is_theirs {
            called_off(inputs, known)
        } else {
            known
        };
    }
    // Its result comes from reports of its ends, which are not asked again.
    let has_ended = known.as_ref().is_some_and(|known| known.result.is_some());
    if is_theirs && has_ended && known_start == start(last) {
        return known;
    }
    let order = inputs
        .attachments
        .iter()
        .find(|a| a.spec.pod.uid == last.source.pod.uid)
        .and_then(|a| a.status.as_ref()?.unplug_order);
    let known_order = known
        .filter(|_| known_start == start(last))
        .and_then(|known| known.unplug_order);
    let (result, phases) = match last.stage {
        Stage::Over(outcome) => (Some(outcome.to_string()), last.times.phases.clone()),
        // Those of one that goes on are in its own status.
        _ => (None, Vec::new()),
    };
    Some(NicMigration {
        name: last.id.name.clone(),
        from: last.source.node_name.clone(),
        to: last.target.node_name.clone(),
        result,
        started_at: last.times.started_at.clone(),
        finished_at: last.times.finished_at.clone(),
        downtime_ms: last.times.downtime_ms,
        unplug_order: order.or(known_order),
        phases,
    })
}

/// A migration of KubeVirt's that was deleted before it had ended, or before the NICs had, and is no longer in charge of anything.
fn called_off(inputs: &Inputs<'_>, known: Option<NicMigration>) -> Option<NicMigration> {
    let known = known?;
    if known.result.is_some() || inputs.moves.iter().any(Move::is_under_way) {
        return Some(known);
    }
    let has_come = inputs
        .moves
        .iter()
        .any(|of| of.id.name == known.name && of.stage == Stage::Over(Outcome::Succeeded));
    let outcome = if has_come {
        Outcome::Succeeded
    } else {
        Outcome::Cancelled
    };
    Some(NicMigration {
        result: Some(outcome.to_string()),
        finished_at: Some(MicroTime(inputs.now)),
        ..known
    })
}

/// Whether a status is worth a write of its own: during a migration, a device that comes or goes without the traffic
/// is written with what follows.
pub fn is_news(old: Option<&VmHybridNicStatus>, new: &VmHybridNicStatus) -> bool {
    let Some(old) = old else { return true };
    if new.phase != NicPhase::Migrating {
        return old != new;
    }
    let mut seen = VmHybridNicStatus {
        vf: old.vf.clone(),
        standby: old.standby.clone(),
        guest: old.guest.clone(),
        ..new.clone()
    };
    if let (Some(seen), Some(old)) = (&mut seen.last_migration, &old.last_migration) {
        (seen.unplug_order, seen.downtime_ms) = (old.unplug_order, old.downtime_ms);
    }
    *old != seen
}

/// What a change of the status is worth telling.
pub fn notes(old: &VmHybridNicStatus, new: &VmHybridNicStatus) -> Vec<Note> {
    let mut notes = Vec::new();
    let why = conditions::find(&new.conditions, types::FAST_PATH);
    let reason = why.map_or(reasons::FAILED, |why| why.reason.as_str());
    let because = why.map(|why| format!(": {}", why.message)).unwrap_or_default();
    let stepped_aside = |status: &VmHybridNicStatus| {
        let fast = conditions::find(&status.conditions, types::FAST_PATH);
        fast.is_some_and(|fast| fast.reason == reasons::STEPPED_ASIDE)
    };
    // A migration moves the traffic from path to path, and has events of its own; but none says that a VM has lost its network.
    let tells = new.phase != NicPhase::Migrating || stepped_aside(old) != stepped_aside(new);
    if old.path != new.path && tells {
        let node = new.node_name.as_deref().unwrap_or_default();
        match new.path {
            Path::FastPath => {
                let vf = new
                    .vf
                    .as_ref()
                    .map(|vf| format!("{} of {}", vf.pci_address, vf.pf))
                    .unwrap_or_default();
                notes.push(Note::normal(
                    reasons::VF_ACTIVE,
                    format!("the VF {vf} on {node} carries the traffic"),
                ));
            }
            Path::Standby => {
                notes.push(Note::normal(
                    reason,
                    format!("the standby on {node} carries the traffic{because}"),
                ));
            }
            Path::None if [reasons::STEPPED_ASIDE, reasons::STANDBY_REQUESTED].contains(&reason) => {
                notes.push(Note::normal(
                    reason,
                    format!("the NIC carries no traffic{because}"),
                ));
            }
            Path::None => notes.push(Note::normal(reasons::DETACHED, "the NIC carries no traffic")),
        }
    }
    notes.extend(theirs::note(old, new));
    for type_ in [types::ACCEPTED, types::READY] {
        let Some(now) = conditions::find(&new.conditions, type_) else {
            continue;
        };
        let before = conditions::find(&old.conditions, type_).map(|before| before.reason.as_str());
        let told = notes.iter().any(|note| note.reason == now.reason);
        if now.status == "False" && !is_quiet(&now.reason) && before != Some(now.reason.as_str()) && !told {
            notes.push(Note::warning(&now.reason, now.message.clone()));
        }
    }
    notes
}

/// Not a failure: it passes by itself, or is what was asked for.
fn is_quiet(reason: &str) -> bool {
    [
        reasons::PROGRESSING,
        reasons::AGENT_PENDING,
        reasons::POD_NOT_FOUND,
        reasons::POD_NOT_RUNNING,
        reasons::VM_INCOMING,
        reasons::MIGRATING,
        reasons::WAITING_FOR_DETACH,
        reasons::DETACHED,
    ]
    .contains(&reason)
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
