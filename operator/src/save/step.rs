//! The next state of a save or a restore. Pure: [`step`] maps what is observed to the status that should be.
//!
//! ```text
//!  save      Pending ─► PreparingTarget ─► SwitchingToStandby ─► Transferring ─► Completing ─► Succeeded
//!  restore   Pending ─► PreparingTarget ───────────────────────► Transferring ─► Completing ─► Succeeded
//!               │              └──────────────────┴──────────────────┴─► RollingBack ─► Failed, Cancelled
//! ```
//! What a phase means for each NIC is in [`crate::moves::file`].

use std::time::Duration;

use hybridnic_api::conditions::reasons;
use hybridnic_api::v1alpha1::{
    AfterSave, Aside, AttachmentState, Goal, MigrationPhase, MigrationReport, MigrationState, MigrationStep,
    NoFreeVf, StateFileStatus,
};
use kube::ResourceExt;

use super::begin::pending;
use super::inputs::{Inputs, OneEnd, there};
use super::record::{apply, explain};
use crate::attachment::{is_current, state};
use crate::migration::inputs::{NicInputs, after, is_back, lacks_vf, ready_reason, why};
use crate::migration::record::{Next, roll_back, stay};
use crate::moves::ends::Ends;
use crate::moves::file::told_nothing;

/// What to do now.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The status that it should have.
    pub status: StateFileStatus,
    /// When to look again though nothing has changed.
    pub again: Option<Duration>,
}

/// The status that follows from what is seen. Applied to its own result with nothing else changed, it changes nothing.
pub fn step(inputs: &Inputs<'_>) -> Step {
    let mut status = inputs.request.status.clone();
    if status.phase.is_final() {
        return Step { status, again: None };
    }
    status.observed_generation = inputs.request.generation;
    let next = match (status.phase, &inputs.ends) {
        (MigrationPhase::Pending, _) | (_, None) => pending(inputs, &mut status),
        (phase, Some(ends)) => {
            let end = OneEnd::of(&inputs.request, ends);
            measure(&mut status, end);
            match phase {
                MigrationPhase::PreparingTarget => preparing(inputs, &status, end),
                MigrationPhase::SwitchingToStandby => switching(inputs, &status, end),
                MigrationPhase::Transferring => transferring(inputs, end),
                MigrationPhase::Completing => completing(inputs, &status, end),
                _ => rolling_back(inputs, &status, ends, end),
            }
        }
    };
    let again = apply(inputs, &mut status, next);
    Step { status, again }
}

/// How far QEMU is.
fn measure(status: &mut StateFileStatus, end: OneEnd<'_>) {
    let Some(report) = end.report else { return };
    status.downtime_ms = report.downtime_ms.or(status.downtime_ms);
    if report.written.is_some() {
        (status.written, status.remaining) = (report.written, report.remaining);
    }
}

fn preparing(inputs: &Inputs<'_>, status: &StateFileStatus, end: OneEnd<'_>) -> Next {
    if let Some(next) = cancelled_or_lost(inputs, end) {
        return next;
    }
    let request = &inputs.request;
    let looked_at = end
        .report
        .is_some_and(|r| r.state == MigrationState::Prepared && !r.refused);
    let mut waits = Vec::new();
    for nic in &inputs.nics {
        let name = nic.nic.name_any();
        let Some(attachment) = there(nic, status) else {
            let refusal = nic.target_refusal.as_deref().unwrap_or_default();
            waits.push(format!("{name}{}", after(refusal)));
            continue;
        };
        let needs_vf =
            nic.nic.spec.no_free_vf == NoFreeVf::Wait && nic.nic.spec.aside() != Some(Aside::GiveVfBack);
        if !request.saves() && needs_vf && is_current(attachment) && lacks_vf(attachment) {
            let node = &attachment.spec.node_name;
            let message = format!("{node} has no free VF for the NIC {name}, which says noFreeVf: Wait");
            return roll_back(reasons::TARGET_NO_FREE_VF, message);
        }
        let reserved = is_current(attachment) && state(attachment) == AttachmentState::Reserved;
        if !looked_at || !request.saves() && !reserved {
            let why = why(attachment).unwrap_or_default();
            waits.push(format!("{name}{}", after(&why)));
        }
    }
    if waits.is_empty() {
        return Next::Go(if request.saves() {
            MigrationPhase::SwitchingToStandby
        } else {
            MigrationPhase::Transferring
        });
    }
    let what = format!(
        "{} is not ready for {}",
        status.end.as_ref().map_or("", |end| end.node_name.as_str()),
        waits.join(", ")
    );
    until(inputs, inputs.deadlines.prepare, reasons::TARGET_NOT_READY, what)
}

fn switching(inputs: &Inputs<'_>, status: &StateFileStatus, end: OneEnd<'_>) -> Next {
    if let Some(next) = cancelled_or_lost(inputs, end) {
        return next;
    }
    let mut waits = Vec::new();
    for nic in &inputs.nics {
        let Some(attachment) = there(nic, status) else {
            continue;
        };
        let order = attachment.spec.migration.as_ref();
        // What the agent says about an older goal says nothing about this one.
        let told = attachment.spec.goal == Goal::Standby
            && order.is_some_and(|order| order.step == MigrationStep::Prepare)
            && is_current(attachment);
        if told && state(attachment).is_off_vf() {
            continue;
        }
        let name = nic.nic.name_any();
        let why = why(attachment).filter(|_| told).unwrap_or_default();
        let waiting = format!("{name}{}", after(&why));
        if told && ready_reason(attachment) == Some(reasons::GUEST_KEEPS_VF) {
            return roll_back(reasons::GUEST_KEEPS_VF, waiting);
        }
        waits.push(waiting);
    }
    if waits.is_empty() {
        return Next::Go(MigrationPhase::Transferring);
    }
    let what = format!("the VM is not on standby with {}", waits.join(", "));
    until(inputs, inputs.deadlines.switch, reasons::FAILED, what)
}

fn transferring(inputs: &Inputs<'_>, end: OneEnd<'_>) -> Next {
    use MigrationState::{Completed, Ended};
    let request = &inputs.request;
    match end.report.map(|report| report.state) {
        Some(Completed) if awaits_user(inputs, end) => return paused(inputs, end),
        // A VM that was loaded and has ended since was not lost on its way.
        Some(Completed | Ended) => return Next::Go(MigrationPhase::Completing),
        _ => {}
    }
    if let Some(next) = cancelled_or_lost(inputs, end) {
        return next;
    }
    let said = end.report.and_then(|report| report.error.as_deref());
    let what = format!(
        "{}{}",
        explain(request, MigrationPhase::Transferring),
        after(said.unwrap_or_default())
    );
    match request.deadline {
        Some(deadline) => until(inputs, deadline, reasons::DEADLINE_EXCEEDED, what),
        None => stay(reasons::MIGRATING, what),
    }
}

/// Whether the VM is in its file, and a user has to say what becomes of it.
fn awaits_user(inputs: &Inputs<'_>, end: OneEnd<'_>) -> bool {
    let completed = end
        .report
        .is_some_and(|report| report.state == MigrationState::Completed);
    inputs.request.order.then == Some(AfterSave::Pause) && completed && !end.gone
}

fn paused(inputs: &Inputs<'_>, end: OneEnd<'_>) -> Next {
    let file = &inputs.request.order.path;
    if let Some(why) = end.report.and_then(|report| report.error.as_ref()) {
        let message = format!(
            "the VM as it was is in {file}, and it is not paused: {why}, and no snapshot of its disks fits the file. Set spec.then to \
             Continue"
        );
        return stay(reasons::VM_RUNS, message);
    }
    let message = format!(
        "the VM is in {file}, and is paused: take the snapshot of its disks now, and then set spec.then to Continue or End"
    );
    stay(reasons::PAUSED, message)
}

fn completing(inputs: &Inputs<'_>, status: &StateFileStatus, end: OneEnd<'_>) -> Next {
    use MigrationState::{Cancelled, Completed, Ended, Failed, Lost};
    let request = &inputs.request;
    let state_there = end.report.map(|report| report.state);
    // A rollback that came too late.
    if awaits_user(inputs, end) {
        return paused(inputs, end);
    }
    // A VM that something has run on is not in the file: it is not ended, and the file goes. So it is with one that was called off before
    // it was to be ended.
    if let (Some(AfterSave::End), Some(report)) = (request.order.then, end.report)
        && matches!(report.state, Failed | Cancelled | Lost)
    {
        return roll_back(reasons::TRANSFER_FAILED, words(report));
    }
    let ended = end.gone || state_there == Some(Ended);
    for nic in &inputs.nics {
        let attachment = there(nic, status);
        let done = match request.order.then {
            // A NIC that has left proves nothing about QEMU. And as long as it is there, its agent may still give the file up.
            Some(AfterSave::End) => ended && attachment.is_none_or(|a| state(a) == AttachmentState::Detached),
            _ if end.gone => true,
            Some(AfterSave::Continue | AfterSave::Pause) => {
                ended || state_there == Some(Completed) && attachment.is_none_or(is_back)
            }
            // The NIC must know its pod before the restore lets go of it.
            None => {
                let known = nic.nic.status.as_ref().and_then(|status| status.pod.as_ref());
                known == status.end.as_ref().map(|end| &end.pod)
            }
        };
        if !done {
            let message = format!(
                "{}; {}",
                explain(request, MigrationPhase::Completing),
                waits_for(nic, status)
            );
            return stay(reasons::MIGRATING, message);
        }
    }
    Next::Finish
}

fn rolling_back(inputs: &Inputs<'_>, status: &StateFileStatus, ends: &Ends, end: OneEnd<'_>) -> Next {
    use MigrationState::{Cancelled, Completed, Ended};
    let state_there = end.report.map(|report| report.state);
    // A cancel that came too late: the file has its name, or the VM has run.
    if ends.begun && matches!(state_there, Some(Completed | Ended)) {
        return Next::Go(MigrationPhase::Completing);
    }
    if is_lost(end) {
        return Next::Finish;
    }
    if inputs.request.saves() {
        if state_there != Some(Cancelled) {
            return stay(
                reasons::MIGRATING,
                "waits for QEMU to have stopped, and for what it has written to be removed",
            );
        }
        let left = |nic: &&NicInputs| there(nic, status).is_some_and(|a| !is_back(a));
        return match inputs.nics.iter().find(left) {
            Some(nic) => stay(reasons::MIGRATING, waits_for(nic, status)),
            None => Next::Finish,
        };
    }
    // Nothing was told to QEMU, which waits on: another QemuRestore may follow.
    if told_nothing(ends.begun, ends) {
        return Next::Finish;
    }
    let left = |nic: &&NicInputs| there(nic, status).is_some_and(|a| state(a) != AttachmentState::Detached);
    match inputs.nics.iter().find(left) {
        Some(nic) => stay(reasons::MIGRATING, waits_for(nic, status)),
        None => Next::Finish,
    }
}

/// What is waited for of a NIC.
fn waits_for(nic: &NicInputs, status: &StateFileStatus) -> String {
    let attachment = there(nic, status);
    let why = after(&attachment.and_then(why).unwrap_or_default());
    let node = attachment.map_or("", |a| a.spec.node_name.as_str());
    format!("waits for {} on {node}{why}", nic.nic.name_any())
}

fn is_lost(end: OneEnd<'_>) -> bool {
    end.gone
        || end
            .report
            .is_some_and(|report| report.state == MigrationState::Lost)
}

fn cancelled_or_lost(inputs: &Inputs<'_>, end: OneEnd<'_>) -> Option<Next> {
    let request = &inputs.request;
    if request.deleting {
        let message = if request.saves() {
            "the save was deleted; the VM runs on"
        } else {
            "the restore was deleted"
        };
        return Some(roll_back(reasons::CANCELLED, message));
    }
    if let Some(report) = end.report {
        match report.state {
            _ if report.refused => {
                let why = report.error.clone().unwrap_or_default();
                return Some(roll_back(reasons::FILE_REFUSED, why));
            }
            MigrationState::Failed | MigrationState::Cancelled => {
                return Some(roll_back(reasons::TRANSFER_FAILED, words(report)));
            }
            MigrationState::Lost if !request.saves() => {
                let message = "QEMU has ended before the VM ran: the log of its pod says why it could not load the file";
                return Some(roll_back(reasons::TRANSFER_FAILED, message));
            }
            _ => {}
        }
    }
    let reason = if request.saves() {
        reasons::SOURCE_LOST
    } else {
        reasons::TARGET_LOST
    };
    is_lost(end).then(|| roll_back(reason, "the VM's pod or its QEMU has ended"))
}

fn words(report: &MigrationReport) -> String {
    match &report.error {
        Some(error) => error.clone(),
        None => "QEMU has failed, or was told to cancel by something else".to_owned(),
    }
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

#[cfg(test)]
#[path = "step_tests.rs"]
mod tests;
