//! How a decision on a migration is written into its status: phases with their times, conditions, the end.

use std::time::Duration;

use hybridnic_api::conditions::{self, NewCondition, reasons, types};
use hybridnic_api::limits;
use hybridnic_api::v1alpha1::{MigrationFailure, MigrationPhase, MigrationPhaseTime, QemuMigrationStatus};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

use super::inputs::Inputs;

/// What is said of a migration that was deleted.
pub const CANCELLED: &str = "the migration was deleted; the VM runs on at its source";

/// Why a migration stays where it is, or where it goes.
pub enum Next {
    /// It stays, and says what it waits for.
    Wait {
        /// One of [`reasons`].
        reason: &'static str,
        /// A sentence for a person.
        message: String,
        /// When to look again though nothing has changed.
        again: Option<Duration>,
    },
    /// It goes on.
    Go(MigrationPhase),
    /// It goes back.
    RollBack {
        /// One of [`reasons`].
        reason: &'static str,
        /// A sentence for a person.
        message: String,
    },
    /// It is over; whether well, is in `failure`.
    Finish,
}

/// It stays until something changes.
pub fn stay(reason: &'static str, message: impl Into<String>) -> Next {
    Next::Wait {
        reason,
        message: message.into(),
        again: None,
    }
}

/// It goes back, for this reason.
pub fn roll_back(reason: &'static str, message: impl Into<String>) -> Next {
    Next::RollBack {
        reason,
        message: message.into(),
    }
}

/// Writes what `next` means into `status`; gives when to look again.
pub fn apply(inputs: &Inputs<'_>, status: &mut QemuMigrationStatus, next: Next) -> Option<Duration> {
    match next {
        Next::Wait {
            reason,
            message,
            again,
        } => {
            let undecided = conditions::is_undecided(reason);
            if undecided {
                status.undecided_since.get_or_insert_with(|| micro(inputs.now));
            }
            let condition = match &status.failure {
                // What a person has to do comes before why.
                Some(failure) if !undecided => {
                    let message = format!("{}; {message}", failure.message);
                    NewCondition::unknown(types::SUCCEEDED, &failure.reason, message)
                }
                _ => NewCondition::unknown(types::SUCCEEDED, reason, message),
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
            set(
                inputs,
                status,
                NewCondition::unknown(types::SUCCEEDED, reasons::MIGRATING, explain(phase)),
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
pub fn explain(phase: MigrationPhase) -> &'static str {
    match phase {
        MigrationPhase::PreparingTarget => "the target gets its standbys and reserves VFs",
        MigrationPhase::SwitchingToStandby => "the VFs leave the guest; its standbys carry the traffic",
        MigrationPhase::Transferring => "QEMU sends the VM",
        MigrationPhase::Completing => "the VM is at the target; the source is cleaned up",
        _ => "",
    }
}

fn set(inputs: &Inputs<'_>, status: &mut QemuMigrationStatus, condition: NewCondition) {
    conditions::set(
        &mut status.conditions,
        inputs.migration.metadata.generation,
        inputs.now,
        condition,
    );
}

/// Microseconds are what the API keeps; with more, a status would never equal what was read back.
pub fn micro(now: Timestamp) -> MicroTime {
    MicroTime(Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now))
}

/// How long ago `then` was.
pub fn milliseconds(then: &MicroTime, now: Timestamp) -> i64 {
    let since = now.duration_since(then.0).max(SignedDuration::ZERO);
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Puts a move into a phase: its time begins, and that of the phase before ends.
pub fn enter(
    was: &mut MigrationPhase,
    phases: &mut Vec<MigrationPhaseTime>,
    now: Timestamp,
    phase: MigrationPhase,
) {
    if let Some(last) = phases.last_mut().filter(|last| last.ms.is_none()) {
        last.ms = Some(milliseconds(&last.started_at, now));
    }
    *was = phase;
    if !phase.is_final() {
        // However often it goes back and forth.
        let excess = (phases.len() + 1).saturating_sub(limits::PHASES);
        phases.drain(..excess);
        phases.push(MigrationPhaseTime {
            name: phase.to_string(),
            started_at: micro(now),
            ms: None,
        });
    }
}

/// How one that has failed, or was called off, ends.
pub fn failed(failure: &MigrationFailure) -> (MigrationPhase, NewCondition) {
    let MigrationFailure { reason, message } = failure;
    let phase = if reason == reasons::CANCELLED {
        MigrationPhase::Cancelled
    } else {
        MigrationPhase::Failed
    };
    (phase, NewCondition::no(types::SUCCEEDED, reason, message))
}

fn finish(inputs: &Inputs<'_>, status: &mut QemuMigrationStatus) {
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
        Some(failure) => failed(failure),
    };
    enter(&mut status.phase, &mut status.phases, inputs.now, phase);
    status.finished_at = Some(micro(inputs.now));
    status.total_ms = status.started_at.as_ref().map(|at| milliseconds(at, inputs.now));
    set(inputs, status, condition);
}

/// Ends a migration that has not begun.
pub fn fail(status: &mut QemuMigrationStatus, reason: &str, message: impl Into<String>) -> Next {
    status.failure = Some(failure(reason, &message.into()));
    Next::Finish
}

/// With the ends' own messages, as long as the API takes them.
pub fn failure(reason: &str, message: &str) -> MigrationFailure {
    MigrationFailure {
        reason: reason.to_owned(),
        message: limits::message(message),
    }
}
