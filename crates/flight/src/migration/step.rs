//! The next state of a migration. Pure: [`step`] maps what is observed to the status that should be.
//!
//! ```text
//!  Pending ─► PreparingTarget ─► SwitchingToStandby ─► Transferring ─► Completing ─► Succeeded
//!     │              │                   │                  │  ▲            ▲
//!     ▼              └───────────────────┴───────► RollingBack ─────────────┘ the target has the VM after all
//!  Failed, Cancelled ◄──────────────────────────────────────┘
//! ```
//! Only the phase is decided here. What it means for each NIC is in [`crate::desired`].

use std::time::Duration;

use hybridnic_api::conditions::reasons;
use hybridnic_api::v1alpha1::{
    Aside, AttachmentState, Goal, MigrationPhase, MigrationReport, MigrationState, MigrationStep,
    NicAttachment, NoFreeVf, QemuMigrationStatus,
};
use kube::ResourceExt;

use super::begin::pending;
use super::encryption;
use super::inputs::{
    Inputs, NicInputs, after, deleting, is_back, lacks_vf, node, ready_reason, source_of, target_of, why,
};
use super::record::{CANCELLED, Next, apply, explain, micro, roll_back, stay};
use crate::attachment::{is_current, report, state};
use crate::moves::ends::{Ends, Rollback};

/// After how long to look again for a node that nothing is known about.
pub const AGAIN: Duration = Duration::from_secs(10);

/// What to do now.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The status that the migration should have.
    pub status: QemuMigrationStatus,
    /// When to look again though nothing has changed.
    pub again: Option<Duration>,
}

/// The status that follows from what is seen. Applied to its own result, with nothing else changed, it changes nothing.
pub fn step(inputs: &Inputs<'_>) -> Step {
    let mut status = inputs.migration.status.clone().unwrap_or_default();
    if status.phase.is_final() {
        return Step { status, again: None };
    }
    status.observed_generation = inputs.migration.metadata.generation;
    let next = match (status.phase, &inputs.ends) {
        (MigrationPhase::Pending, _) | (_, None) => pending(inputs, &mut status),
        (MigrationPhase::PreparingTarget, Some(ends)) => preparing(inputs, &mut status, ends),
        (MigrationPhase::SwitchingToStandby, Some(ends)) => switching(inputs, &status, ends),
        (MigrationPhase::Transferring, Some(ends)) => transferring(inputs, &status, ends),
        (MigrationPhase::Completing, Some(ends)) => completing(inputs, &status, ends),
        (_, Some(ends)) => rolling_back(inputs, &mut status, ends),
    };
    if let Some(ms) = inputs
        .ends
        .as_ref()
        .and_then(|ends| ends.source.as_ref()?.downtime_ms)
    {
        status.downtime_ms = Some(ms);
    }
    let again = apply(inputs, &mut status, next);
    Step { status, again }
}

fn preparing(inputs: &Inputs<'_>, status: &mut QemuMigrationStatus, ends: &Ends) -> Next {
    if let Some(next) = cancelled_or_lost(inputs, ends).or_else(|| encryption::settle(inputs, status, ends)) {
        return next;
    }
    let status = &*status;
    if let Some(what) = encryption::source_is_unknown(inputs, status, ends) {
        return until(inputs, inputs.deadlines.prepare, reasons::TLS_UNAVAILABLE, what);
    }
    let mut waits = Vec::new();
    for nic in &inputs.nics {
        let name = nic.nic.name_any();
        let Some(attachment) = target_of(nic, status) else {
            waits.push(format!(
                "{name}{}",
                after(nic.target_refusal.as_deref().unwrap_or_default())
            ));
            continue;
        };
        let needs_vf =
            nic.nic.spec.no_free_vf == NoFreeVf::Wait && nic.nic.spec.aside() != Some(Aside::GiveVfBack);
        if needs_vf && is_current(attachment) && lacks_vf(attachment) {
            let message = format!(
                "{} has no free VF for the NIC {name}, which says noFreeVf: Wait",
                node(status)
            );
            return roll_back(reasons::TARGET_NO_FREE_VF, message);
        }
        let uid = inputs.migration.uid().unwrap_or_default();
        let report = report(attachment, &uid);
        let known = |r: &MigrationReport| status.encrypted != Some(true) || r.ca.is_some();
        if !report.is_some_and(|r| r.state == MigrationState::Listening && r.port.is_some() && known(r)) {
            let error = report.and_then(|report| report.error.clone());
            let why = error.or_else(|| why(attachment)).unwrap_or_default();
            waits.push(format!("{name}{}", after(&why)));
        }
    }
    if waits.is_empty() {
        return Next::Go(MigrationPhase::SwitchingToStandby);
    }
    let what = format!("{} is not ready for {}", node(status), waits.join(", "));
    until(inputs, inputs.deadlines.prepare, reasons::TARGET_NOT_READY, what)
}

fn switching(inputs: &Inputs<'_>, status: &QemuMigrationStatus, ends: &Ends) -> Next {
    if let Some(next) = cancelled_or_lost(inputs, ends) {
        return next;
    }
    let mut waits = Vec::new();
    for nic in &inputs.nics {
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
        if told && state(attachment).is_off_vf() {
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
    until(inputs, inputs.deadlines.switch, reasons::FAILED, what)
}

fn transferring(inputs: &Inputs<'_>, status: &QemuMigrationStatus, ends: &Ends) -> Next {
    use MigrationState::{Cancelled, Failed};
    if ends.arrived() {
        return Next::Go(MigrationPhase::Completing);
    }
    if deleting(inputs) {
        return roll_back(reasons::CANCELLED, CANCELLED);
    }
    match ends.source_state() {
        // Its end of the stream is broken off; the other end knows best why.
        Some(Failed) => {
            return roll_back(
                reasons::TRANSFER_FAILED,
                format!("QEMU at the source{}", error_of(ends.source.as_ref())),
            );
        }
        Some(Cancelled) => {
            return roll_back(reasons::TRANSFER_FAILED, "QEMU at the source was told to cancel");
        }
        _ => {}
    }
    if ends.source_lost() {
        return source_lost(ends);
    }
    if ends.never_ran() {
        return roll_back(
            reasons::TARGET_LOST,
            format!("QEMU at the target{}", error_of(ends.target.as_ref())),
        );
    }
    if ends.is_silent() {
        return silent(inputs, status, ends);
    }
    // The source still has the VM, or will say that it has let it go.
    if ends.target_gone {
        return roll_back(reasons::TARGET_LOST, "the target's pod has ended or is gone");
    }
    let said = [(&status.source, &ends.source), (&status.target, &ends.target)];
    let errors = said.iter().filter_map(|(end, report)| {
        let error = report.as_ref()?.error.as_deref()?;
        Some(format!("; {} says: {error}", end.as_ref()?.node_name))
    });
    let message: String = std::iter::once(explain(MigrationPhase::Transferring).to_owned())
        .chain(errors)
        .collect();
    stay(reasons::MIGRATING, message)
}

/// The VM's source is gone. Only a proven end means that nothing runs there; a pod object that is gone does not.
fn source_lost(ends: &Ends) -> Next {
    let message = if ends.source_ended() {
        "the source's pod or QEMU has ended before the target had the VM"
    } else {
        "the source's pod object is gone before the target had the VM; that does not prove that its QEMU has ended: \
         the VM may still run there: make sure that it does not before you start it again"
    };
    roll_back(reasons::SOURCE_LOST, message)
}

/// How long a target may take to report that it has the VM before its silence is reported.
const SILENCE: Duration = Duration::from_secs(30);

/// The source has let the VM go, or has gone, and the target does not say what became of it. Nothing is done, because anything could
/// run the VM twice, or end the only one.
fn silent(inputs: &Inputs<'_>, status: &QemuMigrationStatus, ends: &Ends) -> Next {
    let decide = format!(
        "decide with: {} once you are sure that it does not run there and cannot be started there, best by ending its pod first; or \
         with AbandonSource if it runs there",
        inputs.decide
    );
    let node = node(status);
    let (gone, meanwhile) = if ends.has_left() {
        ("the source has let the VM go", "the VM is paused")
    } else {
        ("the source is gone", "nothing is done")
    };
    if ends.target_gone {
        let message = format!(
            "{gone}, and the target's pod is gone: nothing proves whether the VM ran, or runs, on {node}; {decide}"
        );
        // No event of the migration shows whether the node is off.
        return Next::Wait {
            reason: reasons::NEEDS_DECISION,
            message,
            again: Some(AGAIN),
        };
    }
    let error = ends.target.as_ref().and_then(|report| report.error.clone());
    let error = after(&error.unwrap_or_default());
    match SILENCE.checked_sub(inputs.silent_for) {
        Some(left) if !left.is_zero() => Next::Wait {
            reason: reasons::MIGRATING,
            message: format!("{gone}; waits for {node} to say that it has it{error}"),
            again: Some(left),
        },
        _ => {
            let message = format!(
                "{gone}, and {node} does not say whether it has it{error}; {meanwhile} until that node's agent and QEMU answer; if \
                 they never will, {decide}"
            );
            stay(reasons::TARGET_SILENT, message)
        }
    }
}

fn completing(inputs: &Inputs<'_>, status: &QemuMigrationStatus, ends: &Ends) -> Next {
    let target = status.target.as_ref().map(|end| &end.pod);
    for nic in &inputs.nics {
        // The NIC must know its new pod before the migration lets go of it.
        if nic.nic.status.as_ref().and_then(|status| status.pod.as_ref()) != target {
            return stay(reasons::MIGRATING, explain(MigrationPhase::Completing));
        }
        let left = source_of(nic, status).filter(|a| state(a) != AttachmentState::Detached);
        if let Some(left) = left.filter(|_| !ends.source_gone) {
            let message = format!("{}; {}", explain(MigrationPhase::Completing), leaves(nic, left));
            return stay(reasons::MIGRATING, message);
        }
    }
    Next::Finish
}

/// What is waited for of a NIC.
fn leaves(nic: &NicInputs, attachment: &NicAttachment) -> String {
    let why = after(&why(attachment).unwrap_or_default());
    format!(
        "waits for {} on {}{why}",
        nic.nic.name_any(),
        attachment.spec.node_name
    )
}

fn rolling_back(inputs: &Inputs<'_>, status: &mut QemuMigrationStatus, ends: &Ends) -> Next {
    // A cancel that came too late, or a false failure: the target decides.
    if ends.begun && ends.arrived() {
        return Next::Go(MigrationPhase::Completing);
    }
    let settled = matches!(ends.rollback(), Rollback::NotBegun | Rollback::Stopped);
    if ends.source_lost() {
        // No VM is left to bring back, unless the target still gets it.
        return if settled || ends.never_ran() || ends.target_over {
            Next::Finish
        } else {
            silent(inputs, status, ends)
        };
    }
    if ends.rollback() == Rollback::Undecided {
        return silent(inputs, status, ends);
    }
    if ends.is_contested() {
        let message = format!(
            "the VM may run twice: {} says that it has it, after the decision that it does not run there; end one of its pods at once",
            node(status)
        );
        return stay(reasons::NEEDS_DECISION, message);
    }
    if ends.rollback() == Rollback::NeverRan && revoked(inputs, status) {
        status.resuming_since = Some(micro(inputs.now));
    }
    let source = status.source.as_ref().map_or("", |end| end.node_name.as_str());
    match ends.rollback() {
        Rollback::NotBegun | Rollback::Stopped => {}
        Rollback::NeverRan | Rollback::Resuming => {
            let message = format!("waits for QEMU on {source} to run the VM on");
            return stay(reasons::MIGRATING, message);
        }
        _ => {
            let message = format!("waits for QEMU on {source} to say that the transfer has stopped");
            return stay(reasons::MIGRATING, message);
        }
    }
    for nic in &inputs.nics {
        if let Some(attachment) = source_of(nic, status).filter(|attachment| !is_back(attachment)) {
            return stay(reasons::MIGRATING, leaves(nic, attachment));
        }
    }
    Next::Finish
}

/// Whether no NIC at the target has the order to receive the VM any more: an agent that starts again cannot read it.
fn revoked(inputs: &Inputs<'_>, status: &QemuMigrationStatus) -> bool {
    let listens = |attachment: &NicAttachment| {
        let order = attachment.spec.migration.as_ref();
        order.is_some_and(|order| order.step == MigrationStep::Listen)
    };
    let mut targets = inputs.nics.iter().filter_map(|nic| target_of(nic, status));
    !targets.any(listens)
}

fn cancelled_or_lost(inputs: &Inputs<'_>, ends: &Ends) -> Option<Next> {
    if deleting(inputs) {
        return Some(roll_back(reasons::CANCELLED, CANCELLED));
    }
    if ends.source_lost() {
        return Some(source_lost(ends));
    }
    let text = || format!("QEMU at the target{}", error_of(ends.target.as_ref()));
    if ends.target_state() == Some(MigrationState::Failed) {
        return Some(roll_back(reasons::TARGET_NOT_READY, text()));
    }
    let gone = ends.target_gone || ends.never_ran();
    gone.then(|| roll_back(reasons::TARGET_LOST, text()))
}

/// The phase stays until its deadline. It begins again with a new leader: the clock that wrote the status may be another.
fn until(inputs: &Inputs<'_>, deadline: Duration, late: &'static str, what: String) -> Next {
    match deadline.checked_sub(inputs.in_phase_for) {
        Some(left) if !left.is_zero() => Next::Wait {
            reason: reasons::MIGRATING,
            message: what,
            again: Some(left),
        },
        _ => roll_back(late, format!("after {} s {what}", deadline.as_secs())),
    }
}

fn error_of(report: Option<&MigrationReport>) -> String {
    match report.and_then(|report| report.error.as_deref()) {
        Some(error) => format!(" has failed: {error}"),
        None => " has ended or failed".to_owned(),
    }
}

#[cfg(test)]
#[path = "step_tests.rs"]
mod tests;
