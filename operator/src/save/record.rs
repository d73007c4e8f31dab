//! How a decision on a save or a restore is written into its status.

use std::time::Duration;

use hybridnic_api::conditions::{self, NewCondition, reasons, types};
use hybridnic_api::v1alpha1::{AfterSave, MigrationPhase, MigrationState, StateFileStatus};

use super::inputs::{Inputs, OneEnd, Request};
use crate::migration::record::{Next, enter, failed, failure, micro, milliseconds};

/// Writes what `next` means into `status`; gives when to look again.
pub fn apply(inputs: &Inputs<'_>, status: &mut StateFileStatus, next: Next) -> Option<Duration> {
    match next {
        Next::Wait {
            reason,
            message,
            again,
        } => {
            let condition = match &status.failure {
                Some(failure) => {
                    let message = format!("{}; {message}", failure.message);
                    NewCondition::unknown(types::SUCCEEDED, &failure.reason, message)
                }
                None => NewCondition::unknown(types::SUCCEEDED, reason, message),
            };
            set(inputs, status, condition);
            return again;
        }
        Next::Go(phase) => {
            if phase == MigrationPhase::Completing {
                // A rollback that came too late.
                status.failure = None;
            }
            enter(&mut status.phase, &mut status.phases, inputs.now, phase);
            let message = explain(&inputs.request, phase);
            set(
                inputs,
                status,
                NewCondition::unknown(types::SUCCEEDED, reasons::MIGRATING, message),
            );
        }
        Next::RollBack { reason, message } => {
            let condition = NewCondition::unknown(types::SUCCEEDED, reason, &message);
            status.failure = Some(failure(reason, &message));
            let back = MigrationPhase::RollingBack;
            enter(&mut status.phase, &mut status.phases, inputs.now, back);
            set(inputs, status, condition);
        }
        Next::Finish => finish(inputs, status),
    }
    // The change of the status comes back here.
    None
}

/// What happens in a phase.
pub fn explain(request: &Request, phase: MigrationPhase) -> &'static str {
    match (phase, request.order.then) {
        (MigrationPhase::PreparingTarget, Some(_)) => "it is looked whether the file can be written",
        (MigrationPhase::PreparingTarget, None) => "the file is looked at, and the NICs reserve VFs",
        (MigrationPhase::SwitchingToStandby, _) => "the VFs leave the guest; its standbys carry the traffic",
        (MigrationPhase::Transferring, Some(_)) => "QEMU writes the VM to the file",
        (MigrationPhase::Transferring, None) => "QEMU loads the VM from the file",
        (MigrationPhase::Completing, Some(AfterSave::End)) => "the file is whole; QEMU is ended",
        (MigrationPhase::Completing, Some(_)) => "the file is whole; the VM gets its VFs back",
        (MigrationPhase::Completing, None) => "the VM runs",
        _ => "",
    }
}

fn set(inputs: &Inputs<'_>, status: &mut StateFileStatus, condition: NewCondition) {
    let generation = inputs.request.generation;
    conditions::set(&mut status.conditions, generation, inputs.now, condition);
}

fn finish(inputs: &Inputs<'_>, status: &mut StateFileStatus) {
    let (phase, condition) = match &status.failure {
        None => {
            let node = status.end.as_ref().map_or("", |end| end.node_name.as_str());
            let file = &inputs.request.order.path;
            let message = match inputs.request.order.then {
                Some(AfterSave::End) => format!("the VM is in {file}, and runs no more"),
                Some(_) if has_ended(inputs) => {
                    format!("the VM as it was is in {file}; its QEMU has ended since, on {node}")
                }
                Some(_) => format!("the VM as it was is in {file}; it runs on, on {node}"),
                None => format!("the VM runs on {node}"),
            };
            let condition = NewCondition::yes(types::SUCCEEDED, reasons::COMPLETED, message);
            (MigrationPhase::Succeeded, condition)
        }
        Some(failure) => failed(failure),
    };
    enter(&mut status.phase, &mut status.phases, inputs.now, phase);
    status.remaining = None;
    status.finished_at = Some(micro(inputs.now));
    status.total_ms = status.started_at.as_ref().map(|at| milliseconds(at, inputs.now));
    set(inputs, status, condition);
}

/// Whether QEMU has ended.
fn has_ended(inputs: &Inputs<'_>) -> bool {
    inputs.ends.as_ref().is_some_and(|ends| {
        let end = OneEnd::of(&inputs.request, ends);
        end.gone
            || end
                .report
                .is_some_and(|report| report.state == MigrationState::Ended)
    })
}

/// Ends one that has not begun.
pub fn fail(status: &mut StateFileStatus, reason: &str, message: impl Into<String>) -> Next {
    status.failure = Some(failure(reason, &message.into()));
    Next::Finish
}
