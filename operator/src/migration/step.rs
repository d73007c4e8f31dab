//! The next state of a migration. Pure: [`step`] maps what is seen to the status that should be.
//!
//! ```text
//!  Pending ─► PreparingTarget ─► SwitchingToStandby ─► Transferring ─► Completing ─► Succeeded
//!     │              │                   │                  │  ▲            ▲
//!     ▼              └───────────────────┴───────► RollingBack ─────────────┘ the target has the VM after all
//!  Failed, Cancelled ◄──────────────────────────────────────┘
//! ```
//! The phase is all that is decided here. What it means for each NIC is in [`crate::nic::desired`].

use std::sync::Arc;
use std::time::Duration;

use hybridnic_api::conditions::{self, NewCondition, reasons, types};
use hybridnic_api::v1alpha1::{
    AttachmentState, Goal, MigrationEnd, MigrationFailure, MigrationPhase, MigrationPhaseTime,
    MigrationState, MigrationStep, NicAttachment, NoFreeVf, ObjectRef, QemuMigration, QemuMigrationStatus,
    VmHybridNic,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::ResourceExt;

use crate::handover::{self, Ends, Rollback};
use crate::pods;

/// How long the steps may take that wait for an agent.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// For the target to listen.
    pub prepare: Duration,
    /// For the source's VFs to leave the guest. The agent's own deadline for the guest is shorter.
    pub switch: Duration,
}

/// All that decides about a migration.
pub struct View<'a> {
    /// The time.
    pub now: Timestamp,
    /// The migration.
    pub migration: &'a QemuMigration,
    /// Another migration that has the VM, or has the right to it.
    pub blocked_by: Option<String>,
    /// The VM's NICs; once the migration has begun, those that take part.
    pub nics: Vec<NicView>,
    /// The VM's pods.
    pub pods: &'a [Arc<Pod>],
    /// What both ends say; none before they are chosen.
    pub ends: Option<Ends>,
    /// How long to wait.
    pub deadlines: Deadlines,
}

/// A NIC of the VM.
pub struct NicView {
    /// The NIC.
    pub nic: Arc<VmHybridNic>,
    /// Its attachments.
    pub attachments: Vec<Arc<NicAttachment>>,
    /// Why the target's node cannot take it.
    pub target_refusal: Option<String>,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The status that the migration should have.
    pub status: QemuMigrationStatus,
    /// When to look again though nothing has changed.
    pub again: Option<Duration>,
}

/// Why a migration stays where it is, or where it goes.
enum Next {
    Wait {
        reason: &'static str,
        message: String,
        again: Option<Duration>,
    },
    Go(MigrationPhase),
    RollBack {
        reason: &'static str,
        message: String,
    },
    Finish,
}

fn wait(reason: &'static str, message: impl Into<String>) -> Next {
    Next::Wait {
        reason,
        message: message.into(),
        again: None,
    }
}

fn roll_back(reason: &'static str, message: impl Into<String>) -> Next {
    Next::RollBack {
        reason,
        message: message.into(),
    }
}

/// The status that follows from what is seen. Applied to its own result with nothing else changed, it changes nothing.
pub fn step(view: &View<'_>) -> Step {
    let mut status = view.migration.status.clone().unwrap_or_default();
    if status.phase.is_final() {
        return Step { status, again: None };
    }
    status.observed_generation = view.migration.metadata.generation;
    let next = match (status.phase, &view.ends) {
        (MigrationPhase::Pending, _) | (_, None) => pending(view, &mut status),
        (MigrationPhase::PreparingTarget, Some(ends)) => preparing(view, &status, ends),
        (MigrationPhase::SwitchingToStandby, Some(ends)) => switching(view, &status, ends),
        (MigrationPhase::Transferring, Some(ends)) => transferring(view, ends),
        (MigrationPhase::Completing, Some(ends)) => completing(view, &status, ends),
        (_, Some(ends)) => rolling_back(view, &status, ends),
    };
    if let Some(ms) = view
        .ends
        .as_ref()
        .and_then(|ends| ends.source.as_ref()?.downtime_ms)
    {
        status.downtime_ms = Some(ms);
    }
    let again = apply(view, &mut status, next);
    Step { status, again }
}

fn apply(view: &View<'_>, status: &mut QemuMigrationStatus, next: Next) -> Option<Duration> {
    match next {
        Next::Wait {
            reason,
            message,
            again,
        } => {
            let condition = match &status.failure {
                Some(failure) => NewCondition::unknown(types::SUCCEEDED, &failure.reason, &failure.message),
                None => NewCondition::unknown(types::SUCCEEDED, reason, message),
            };
            set(view, status, condition);
            return again;
        }
        Next::Go(phase) => {
            if phase == MigrationPhase::Completing {
                // A rollback that came too late.
                status.failure = None;
            }
            enter(view, status, phase);
            set(
                view,
                status,
                NewCondition::unknown(types::SUCCEEDED, reasons::MIGRATING, explain(phase)),
            );
        }
        Next::RollBack { reason, message } => {
            let condition = NewCondition::unknown(types::SUCCEEDED, reason, &message);
            status.failure = Some(MigrationFailure {
                reason: reason.to_owned(),
                message,
            });
            enter(view, status, MigrationPhase::RollingBack);
            set(view, status, condition);
        }
        Next::Finish => finish(view, status),
    }
    // The change of the status comes back here.
    None
}

fn explain(phase: MigrationPhase) -> &'static str {
    match phase {
        MigrationPhase::PreparingTarget => "the target gets its standbys and reserves VFs",
        MigrationPhase::SwitchingToStandby => "the VFs leave the guest; its standbys carry the traffic",
        MigrationPhase::Transferring => "QEMU sends the VM",
        MigrationPhase::Completing => "the VM runs at the target; the source is cleaned up",
        _ => "",
    }
}

fn set(view: &View<'_>, status: &mut QemuMigrationStatus, condition: NewCondition) {
    conditions::set(
        &mut status.conditions,
        view.migration.metadata.generation,
        view.now,
        condition,
    );
}

/// Microseconds are what the API keeps; with more, a status would never equal what was read back.
fn micro(now: Timestamp) -> MicroTime {
    MicroTime(Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now))
}

fn since(then: &MicroTime, now: Timestamp) -> SignedDuration {
    now.duration_since(then.0).max(SignedDuration::ZERO)
}

fn milliseconds(then: &MicroTime, now: Timestamp) -> i64 {
    i64::try_from(since(then, now).as_millis()).unwrap_or(i64::MAX)
}

fn enter(view: &View<'_>, status: &mut QemuMigrationStatus, phase: MigrationPhase) {
    close(view, status);
    status.phase = phase;
    if !phase.is_final() {
        let started_at = micro(view.now);
        status.phases.push(MigrationPhaseTime {
            name: handover::phase_name(phase),
            started_at,
            ms: None,
        });
    }
}

fn close(view: &View<'_>, status: &mut QemuMigrationStatus) {
    if let Some(last) = status.phases.last_mut().filter(|last| last.ms.is_none()) {
        last.ms = Some(milliseconds(&last.started_at, view.now));
    }
}

fn finish(view: &View<'_>, status: &mut QemuMigrationStatus) {
    let (phase, condition) = match &status.failure {
        None => {
            let to = status
                .target
                .as_ref()
                .map(|end| end.node_name.as_str())
                .unwrap_or_default();
            let message = format!("the VM runs on {to}");
            (
                MigrationPhase::Succeeded,
                NewCondition::yes(types::SUCCEEDED, reasons::COMPLETED, message),
            )
        }
        Some(MigrationFailure { reason, message }) => {
            let cancelled = reason == reasons::CANCELLED;
            let phase = if cancelled {
                MigrationPhase::Cancelled
            } else {
                MigrationPhase::Failed
            };
            (phase, NewCondition::no(types::SUCCEEDED, reason, message))
        }
    };
    enter(view, status, phase);
    status.finished_at = Some(micro(view.now));
    status.total_ms = status.started_at.as_ref().map(|at| milliseconds(at, view.now));
    set(view, status, condition);
}

fn fail(status: &mut QemuMigrationStatus, reason: &str, message: impl Into<String>) -> Next {
    status.failure = Some(MigrationFailure {
        reason: reason.to_owned(),
        message: message.into(),
    });
    Next::Finish
}

fn deleting(view: &View<'_>) -> bool {
    view.migration.metadata.deletion_timestamp.is_some()
}

const CANCELLED: &str = "the migration was deleted; the VM runs on at its source";

fn pending(view: &View<'_>, status: &mut QemuMigrationStatus) -> Next {
    let vm = &view.migration.spec.vm;
    if deleting(view) {
        return fail(status, reasons::CANCELLED, CANCELLED);
    }
    let nics: Vec<_> = view
        .nics
        .iter()
        .filter(|view| view.nic.metadata.deletion_timestamp.is_none())
        .collect();
    let Some(oldest) = nics
        .iter()
        .min_by_key(|view| (view.nic.creation_timestamp().map(|t| t.0), view.nic.name_any()))
    else {
        let message =
            format!("no VmHybridNic of this namespace is of the VM {vm}: there is nothing to migrate by");
        return fail(status, reasons::NO_NICS, message);
    };
    if let Some(other) = &view.blocked_by {
        let message = format!("waits for the migration {other} of the same VM to end, or to be deleted");
        return wait(reasons::MIGRATION_BUSY, message);
    }
    let known = oldest.nic.status.as_ref().and_then(|status| status.pod.as_ref());
    let Some(source) = pods::active(known, view.pods) else {
        return wait(
            reasons::POD_NOT_FOUND,
            format!("no pod with the label hybridnic.io/vm={vm} runs the VM"),
        );
    };
    let (Some(node), true) = (pods::node(source), pods::is_running(source)) else {
        return wait(
            reasons::POD_NOT_RUNNING,
            format!("the VM's pod {} does not run yet", source.name_any()),
        );
    };
    let from = pods::reference(source);
    let asked = view.migration.spec.target_pod.as_deref();
    let Some((to, to_node)) =
        pods::target(asked, &from.uid, view.pods).and_then(|pod| Some((pod, pods::node(pod)?)))
    else {
        return wait(reasons::NO_TARGET_POD, no_target(vm, asked, &from.name));
    };
    for nic in &nics {
        if !attachment(nic, &from).is_some_and(is_attached) {
            let why = attachment(nic, &from).and_then(why).unwrap_or_default();
            let message = format!(
                "waits for the NIC {} to be attached on {node}{}",
                nic.nic.name_any(),
                after(&why)
            );
            return wait(reasons::AGENT_PENDING, message);
        }
    }
    let end = |node: &str, pod: &Pod| MigrationEnd {
        node_name: node.to_owned(),
        pod: pods::reference(pod),
        pod_ip: pods::address(pod).map(ToOwned::to_owned),
    };
    status.source = Some(end(node, source));
    status.target = Some(end(to_node, to));
    status.nics = nics.iter().map(|view| view.nic.name_any()).collect();
    status.nics.sort();
    status.started_at = Some(micro(view.now));
    Next::Go(MigrationPhase::PreparingTarget)
}

fn no_target(vm: &str, asked: Option<&str>, source: &str) -> String {
    match asked {
        Some(name) if name == source => {
            format!("the VM runs in {name} already; name another pod in spec.targetPod")
        }
        Some(name) => {
            format!("waits for the pod {name} to run, with the label hybridnic.io/vm={vm} and an address")
        }
        None => format!(
            "waits for another running pod with the label hybridnic.io/vm={vm}; its QEMU must run with -incoming defer"
        ),
    }
}

fn preparing(view: &View<'_>, status: &QemuMigrationStatus, ends: &Ends) -> Next {
    if let Some(next) = cancelled_or_lost(view, ends) {
        return next;
    }
    let mut waits = Vec::new();
    for nic in &view.nics {
        let name = nic.nic.name_any();
        let Some(attachment) = target_of(nic, status) else {
            waits.push(format!(
                "{name}{}",
                after(nic.target_refusal.as_deref().unwrap_or_default())
            ));
            continue;
        };
        if nic.nic.spec.no_free_vf == NoFreeVf::Wait && is_current(attachment) && lacks_vf(attachment) {
            let message = format!(
                "{} has no free VF for the NIC {name}, which says noFreeVf: Wait",
                node(status)
            );
            return roll_back(reasons::TARGET_NO_FREE_VF, message);
        }
        let uid = view.migration.uid().unwrap_or_default();
        let report = handover::report(attachment, &uid);
        if !report.is_some_and(|r| r.state == MigrationState::Listening && r.port.is_some()) {
            waits.push(format!("{name}{}", after(&why(attachment).unwrap_or_default())));
        }
    }
    if waits.is_empty() {
        return Next::Go(MigrationPhase::SwitchingToStandby);
    }
    let what = format!("{} is not ready for {}", node(status), waits.join(", "));
    until(
        view,
        status,
        view.deadlines.prepare,
        reasons::TARGET_NOT_READY,
        what,
    )
}

fn switching(view: &View<'_>, status: &QemuMigrationStatus, ends: &Ends) -> Next {
    if let Some(next) = cancelled_or_lost(view, ends) {
        return next;
    }
    let mut waits = Vec::new();
    for nic in &view.nics {
        let Some(attachment) = source_of(nic, status) else {
            continue;
        };
        // What the agent says about an older goal says nothing about this one.
        let told = attachment.spec.goal == Goal::Standby
            && attachment
                .spec
                .migration
                .as_ref()
                .is_some_and(|order| order.step == MigrationStep::Prepare)
            && is_current(attachment);
        let reason = ready_reason(attachment).filter(|_| told);
        if told && handover::state(attachment) == AttachmentState::Standby {
            continue;
        }
        let waiting = format!(
            "{}{}",
            nic.nic.name_any(),
            after(&why(attachment).filter(|_| told).unwrap_or_default())
        );
        if reason == Some(reasons::GUEST_KEEPS_VF) {
            return roll_back(reasons::GUEST_KEEPS_VF, waiting);
        }
        waits.push(waiting);
    }
    if waits.is_empty() {
        return Next::Go(MigrationPhase::Transferring);
    }
    let what = format!("the source is not on standby with {}", waits.join(", "));
    until(view, status, view.deadlines.switch, reasons::FAILED, what)
}

fn transferring(view: &View<'_>, ends: &Ends) -> Next {
    use MigrationState::{Cancelled, Failed};
    if ends.all_completed {
        return Next::Go(MigrationPhase::Completing);
    }
    let text = |report: &Option<_>| error_of(report.as_ref());
    if deleting(view) {
        return roll_back(reasons::CANCELLED, CANCELLED);
    }
    match ends.source_state() {
        // Its end of the stream is broken off; why is what the other end knows best.
        Some(Failed) => {
            return roll_back(
                reasons::TRANSFER_FAILED,
                format!("QEMU at the source{}", text(&ends.source)),
            );
        }
        Some(Cancelled) => {
            return roll_back(reasons::TRANSFER_FAILED, "QEMU at the source was told to cancel");
        }
        _ => {}
    }
    if ends.target_dead() {
        let lost = format!("QEMU at the target{}", text(&ends.target));
        let reason = if ends.source_lost() {
            reasons::SOURCE_LOST
        } else {
            reasons::TARGET_LOST
        };
        return roll_back(reason, lost);
    }
    if ends.source_lost() {
        return roll_back(
            reasons::SOURCE_LOST,
            "the source's pod or QEMU has ended before the target had the VM",
        );
    }
    wait(reasons::MIGRATING, explain(MigrationPhase::Transferring))
}

fn completing(view: &View<'_>, status: &QemuMigrationStatus, ends: &Ends) -> Next {
    let target = status.target.as_ref().map(|end| &end.pod);
    for nic in &view.nics {
        // The NIC must know its new pod before the migration lets go of it.
        if nic.nic.status.as_ref().and_then(|status| status.pod.as_ref()) != target {
            return wait(reasons::MIGRATING, explain(MigrationPhase::Completing));
        }
        let left = source_of(nic, status).is_some_and(|a| handover::state(a) != AttachmentState::Detached);
        if left && !ends.source_gone {
            return wait(reasons::MIGRATING, explain(MigrationPhase::Completing));
        }
    }
    Next::Finish
}

fn rolling_back(view: &View<'_>, status: &QemuMigrationStatus, ends: &Ends) -> Next {
    // A cancel that came too late, or a failure that was none: the target has the last word.
    if ends.begun && ends.all_completed {
        return Next::Go(MigrationPhase::Completing);
    }
    let waiting = || wait(reasons::MIGRATING, explain(MigrationPhase::RollingBack));
    let settled = matches!(
        ends.rollback(),
        Rollback::NotBegun | Rollback::Stopped | Rollback::Failed
    );
    if ends.source_lost() {
        // No VM is left to bring back, unless the target still gets it.
        return if settled || ends.target_dead() {
            Next::Finish
        } else {
            waiting()
        };
    }
    let back = |nic: &NicView| source_of(nic, status).is_none_or(is_back);
    if settled && view.nics.iter().all(back) {
        Next::Finish
    } else {
        waiting()
    }
}

fn cancelled_or_lost(view: &View<'_>, ends: &Ends) -> Option<Next> {
    if deleting(view) {
        return Some(roll_back(reasons::CANCELLED, CANCELLED));
    }
    if ends.source_lost() {
        return Some(roll_back(
            reasons::SOURCE_LOST,
            "the source's pod or QEMU has ended",
        ));
    }
    let gone = ends.target_gone
        || matches!(
            ends.target_state(),
            Some(MigrationState::Failed | MigrationState::Lost)
        );
    gone.then(|| {
        roll_back(
            reasons::TARGET_LOST,
            format!("QEMU at the target{}", error_of(ends.target.as_ref())),
        )
    })
}

fn until(
    view: &View<'_>,
    status: &QemuMigrationStatus,
    deadline: Duration,
    late: &'static str,
    what: String,
) -> Next {
    let passed = status
        .phases
        .last()
        .map(|phase| since(&phase.started_at, view.now).unsigned_abs())
        .unwrap_or_default();
    match deadline.checked_sub(passed) {
        Some(left) if !left.is_zero() => Next::Wait {
            reason: reasons::MIGRATING,
            message: what,
            again: Some(left),
        },
        _ => roll_back(late, format!("after {} s {what}", deadline.as_secs())),
    }
}

fn error_of(report: Option<&hybridnic_api::v1alpha1::MigrationReport>) -> String {
    match report.and_then(|report| report.error.as_deref()) {
        Some(error) => format!(" has failed: {error}"),
        None => " has ended or failed".to_owned(),
    }
}

fn node(status: &QemuMigrationStatus) -> &str {
    status
        .target
        .as_ref()
        .map(|end| end.node_name.as_str())
        .unwrap_or_default()
}

fn attachment<'a>(nic: &'a NicView, pod: &ObjectRef) -> Option<&'a NicAttachment> {
    nic.attachments
        .iter()
        .find(|a| a.spec.pod.uid == pod.uid)
        .map(AsRef::as_ref)
}

fn source_of<'a>(nic: &'a NicView, status: &QemuMigrationStatus) -> Option<&'a NicAttachment> {
    attachment(nic, &status.source.as_ref()?.pod)
}

fn target_of<'a>(nic: &'a NicView, status: &QemuMigrationStatus) -> Option<&'a NicAttachment> {
    attachment(nic, &status.target.as_ref()?.pod)
}

fn is_attached(attachment: &NicAttachment) -> bool {
    matches!(
        handover::state(attachment),
        AttachmentState::FastPath | AttachmentState::Standby
    )
}

/// Whether the agent's word is about the spec as it is now.
fn is_current(attachment: &NicAttachment) -> bool {
    let observed = attachment
        .status
        .as_ref()
        .and_then(|status| status.observed_generation);
    observed.is_some() && observed == attachment.metadata.generation
}

fn is_back(attachment: &NicAttachment) -> bool {
    let moving = [
        reasons::PROGRESSING,
        reasons::AGENT_PENDING,
        reasons::MIGRATING,
        reasons::GUEST_KEEPS_VF,
    ];
    attachment.spec.goal == Goal::FastPath
        && is_current(attachment)
        && match handover::state(attachment) {
            AttachmentState::FastPath => true,
            AttachmentState::Standby => {
                ready_reason(attachment).is_some_and(|reason| !moving.contains(&reason))
            }
            _ => false,
        }
}

fn ready_reason(attachment: &NicAttachment) -> Option<&str> {
    let status = attachment.status.as_ref()?;
    conditions::find(&status.conditions, types::READY).map(|condition| condition.reason.as_str())
}

fn lacks_vf(attachment: &NicAttachment) -> bool {
    let reason = |type_| {
        let condition = conditions::find(&attachment.status.as_ref()?.conditions, type_)?;
        Some(condition.status != "True" && condition.reason == reasons::NO_FREE_VF)
    };
    [types::READY, types::FAST_PATH]
        .into_iter()
        .any(|type_| reason(type_) == Some(true))
}

/// Why an attachment is not where it should be, in the agent's words.
fn why(attachment: &NicAttachment) -> Option<String> {
    let condition = conditions::find(&attachment.status.as_ref()?.conditions, types::READY)?;
    (condition.status != "True").then(|| format!("{}: {}", condition.reason, condition.message))
}

fn after(why: &str) -> String {
    if why.is_empty() {
        String::new()
    } else {
        format!(" ({why})")
    }
}

#[cfg(test)]
#[path = "step_tests.rs"]
mod tests;
