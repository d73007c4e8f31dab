//! The end that has the VM, and lets it go. A VM that may have left runs again only on the order to resume.

use hybridnic_api::v1alpha1::{MigrationReport, MigrationState};
use hybridnic_qmp::commands::{MigrationStatus, RunState};

use super::{Action, Says, Verdict, VmSeen};
use crate::journal::{Begun, Custody};

/// What the source does on the way to the hand-over, and how far it is.
pub(super) fn transfer(
    seen: &VmSeen,
    begun: Option<&Begun>,
    custody: Custody,
    uri: Option<String>,
    says: Says<'_>,
) -> Verdict {
    let ms = |n: Option<u64>| n.and_then(|n| i64::try_from(n).ok());
    let status = seen.info.status_or_none();
    // If the journal was written and the agent died before QEMU was told, there is no status, or that of the VM's own
    // arrival: this migration has not completed before the hand-over.
    let arrived =
        seen.run == RunState::Paused && status == MigrationStatus::Completed && custody == Custody::Here;
    if begun.is_none() || status == MigrationStatus::None || arrived {
        return Verdict {
            action: uri.map(Action::Start),
            report: None,
        };
    }
    let state = match status {
        MigrationStatus::Completed if seen.run == RunState::Running => MigrationState::Cancelled,
        MigrationStatus::Completed => MigrationState::Completed,
        MigrationStatus::Failed => MigrationState::Failed,
        // After the hand-over we never cancel; if something else did, the target may have the VM.
        MigrationStatus::Cancelled if custody == Custody::Left => MigrationState::Failed,
        MigrationStatus::Cancelled => MigrationState::Cancelled,
        _ => MigrationState::Active,
    };
    let action = match state {
        MigrationState::Active if status == MigrationStatus::PreSwitchover => Some(Action::HandOver),
        MigrationState::Failed if custody == Custody::Left && seen.run == RunState::Running => {
            Some(Action::Hold)
        }
        _ => None,
    };
    let completed = state == MigrationState::Completed;
    Verdict {
        action,
        report: Some(MigrationReport {
            error: seen.info.error_desc.clone(),
            kept: state == MigrationState::Failed && custody == Custody::Here,
            total_ms: ms(seen.info.total_time).filter(|_| completed),
            downtime_ms: ms(seen.info.downtime).filter(|_| completed),
            ..says.report(state)
        }),
    }
}

/// The migration is called off.
pub(super) fn cancel(seen: &VmSeen, begun: Option<&Begun>, custody: Custody, says: Says<'_>) -> Verdict {
    let status = seen.info.status_or_none();
    if begun.is_none() || status == MigrationStatus::None {
        return says.state(MigrationState::Cancelled);
    }
    let verdict = transfer(seen, begun, custody, None, says);
    // QEMU would run the VM again, whether or not the target has it by then.
    let too_late = custody == Custody::Left || status == MigrationStatus::Device;
    if !status.is_idle() {
        let cancel = !too_late && status != MigrationStatus::Cancelling;
        // An agent died between the note that the VM may leave and the command: it was not sent, or is about to be obeyed.
        let half = status == MigrationStatus::PreSwitchover && custody == Custody::Left;
        let action = cancel.then_some(Action::Cancel);
        return Verdict {
            action: action.or_else(|| half.then_some(Action::HandOver)),
            ..verdict
        };
    }
    if seen.run == RunState::Running && verdict.report.as_ref().is_some_and(|report| report.kept) {
        return says.state(MigrationState::Cancelled);
    }
    verdict
}

/// The VM is to run here again: the target, or a person, has said that it does not run there.
pub(super) fn resume(seen: &VmSeen, says: Says<'_>) -> Verdict {
    let status = seen.info.status_or_none();
    let paused = match seen.run {
        RunState::PostMigrate => true,
        RunState::FinishMigrate => status == MigrationStatus::Completed,
        // We held it.
        RunState::Paused => matches!(status, MigrationStatus::Failed | MigrationStatus::Cancelled),
        _ => false,
    };
    if !paused {
        return says.state(MigrationState::Cancelled);
    }
    let state = if status == MigrationStatus::Completed {
        MigrationState::Completed
    } else {
        MigrationState::Failed
    };
    Verdict {
        action: Some(Action::Resume),
        report: Some(says.report(state)),
    }
}
