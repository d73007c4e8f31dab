//! A VM that goes to a file, or comes from one: a migration with one end. Pure.
//!
//! ```text
//!  save   Writing ─► Whole ─► Named      the file has its name only once it is whole and on disk
//!            └─────────┴────────┴──► Spoilt     it is given up: what was written goes, with its name if it has that
//! ```
//! The VM may run on from `Whole`, if it is to; its QEMU is ended only from `Named`.

use hybridnic_api::v1alpha1::{
    AfterSave, Goal, MigrationOrder, MigrationReport, MigrationState, MigrationStep,
};
use hybridnic_qmp::commands::{MigrationStatus, RunState};

use super::{
    Action, NOT_INCOMING, OTHER_INCOMING, Says, Verdict, VmSeen,
    target::{is_loaded, is_waiting},
};
use crate::{
    journal::{Arrival, Begun, SaveStage},
    machine::{Run, qemu::state_file::Manifest},
};

/// What to do with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileAction {
    /// See whether it can be written, or loaded.
    Look,
    /// Make it under another name, and let QEMU write the VM there.
    Write,
    /// QEMU has written all: run the VM on if so, put the file on disk, and give it its name.
    Seal {
        /// Whether the VM is run on first.
        resume: bool,
    },
    /// Remove what was written, and run the VM on if it is paused for it.
    Discard {
        /// Whether the VM is run on.
        resume: bool,
    },
    /// Let QEMU load the VM from it.
    Load,
}

impl FileAction {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Look => "LookAtFile",
            Self::Write => "WriteFile",
            Self::Seal { .. } => "SealFile",
            Self::Discard { .. } => "DiscardFile",
            Self::Load => "LoadFile",
        }
    }
}

/// What is known of the file of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileSeen {
    /// It can be written.
    Writable,
    /// It can be loaded: it is whole, and of this VM.
    Loadable(Manifest),
    /// QEMU was told to load it. It says so itself a moment later.
    Told(Manifest),
    /// Neither; why.
    Refused(String),
    /// It was given up. What was written is removed, with its name if it had that; the log says if that was not possible.
    Gone,
}

/// Why a VM is not ended for its file, and why no snapshot of its disks fits that.
const RUN_ON: &str = "something else has run the VM on: it is ahead of what is in the file";

/// Why a file was given up, as far as the journal knows.
const GIVEN_UP: &str = "the file was given up; the log of the node's agent says why";

fn refused(says: Says<'_>, state: MigrationState, why: &str) -> Verdict {
    Verdict {
        action: None,
        report: Some(MigrationReport {
            error: Some(why.to_owned()),
            refused: true,
            ..says.report(state)
        }),
    }
}

fn act(action: FileAction, report: Option<MigrationReport>) -> Verdict {
    Verdict {
        action: Some(Action::File(action)),
        report,
    }
}

/// Nothing has begun.
pub(super) fn prepare(
    seen: &VmSeen,
    order: &MigrationOrder,
    file: Option<&FileSeen>,
    says: Says<'_>,
) -> Verdict {
    let loads = order.restores();
    if loads && seen.run != RunState::InMigrate {
        return refused(says, MigrationState::Prepared, NOT_INCOMING);
    }
    if loads && !is_waiting(seen) {
        return refused(says, MigrationState::Prepared, OTHER_INCOMING);
    }
    match file {
        None | Some(FileSeen::Gone) => act(FileAction::Look, None),
        Some(FileSeen::Refused(why)) => refused(says, MigrationState::Prepared, why),
        Some(FileSeen::Writable | FileSeen::Loadable(_) | FileSeen::Told(_)) => {
            says.state(MigrationState::Prepared)
        }
    }
}

/// The VM goes to the file.
pub(super) fn save(
    seen: &VmSeen,
    begun: Option<&Begun>,
    can_begin: bool,
    order: &MigrationOrder,
    says: Says<'_>,
) -> Verdict {
    let then = order.after_save();
    let (resume, ends) = (then == Some(AfterSave::Continue), then == Some(AfterSave::End));
    let paused = is_paused_for_it(seen);
    let start = Verdict {
        action: can_begin.then_some(Action::File(FileAction::Write)),
        report: None,
    };
    match begun.and_then(Begun::save_stage) {
        None => start,
        // It is not done before the VM runs on: its NICs depend on that.
        Some(SaveStage::Named(_)) if resume && paused => Verdict {
            action: Some(Action::Resume),
            report: Some(active(seen, says)),
        },
        // Nothing is taken from a VM that is ahead of what is in the file. And the file goes before anything loads it, because this QEMU may
        // end before the save is called off.
        Some(SaveStage::Named(_)) if !paused && ends => Verdict {
            action: Some(Action::File(FileAction::Discard { resume: false })),
            ..says.failed(RUN_ON.to_owned())
        },
        Some(SaveStage::Named(length)) => named(seen, length, order, says),
        Some(SaveStage::Spoilt) if !paused && ends => says.failed(RUN_ON.to_owned()),
        Some(SaveStage::Spoilt) => says.failed(GIVEN_UP.to_owned()),
        // A VM that runs on although it was to be ended is ahead of what is in the file.
        Some(SaveStage::Whole) if !paused && !resume => says.failed(RUN_ON.to_owned()),
        Some(SaveStage::Whole) => act(FileAction::Seal { resume }, Some(active(seen, says))),
        Some(SaveStage::Writing) => match seen.info.status_or_none() {
            MigrationStatus::Completed if paused => {
                act(FileAction::Seal { resume }, Some(active(seen, says)))
            }
            MigrationStatus::Failed => says.failed(words_of_qemu(seen)),
            MigrationStatus::Cancelled => says.failed("QEMU was told to cancel".to_owned()),
            // The journal was written, and the agent died before QEMU was told: anything else that it says is older. Or something else
            // has run the VM on; then what was written is useless too.
            MigrationStatus::None | MigrationStatus::Completed => start,
            _ => Verdict {
                action: None,
                report: Some(active(seen, says)),
            },
        },
    }
}

/// A save is called off.
pub(super) fn cancel(
    seen: &VmSeen,
    begun: Option<&Begun>,
    file: Option<&FileSeen>,
    order: &MigrationOrder,
    says: Says<'_>,
) -> Verdict {
    let stage = begun.and_then(Begun::save_stage);
    let ends = order.after_save() == Some(AfterSave::End);
    // A VM that was to end and runs is not in the file.
    if let Some(SaveStage::Named(length)) = stage
        && (!ends || is_paused_for_it(seen))
    {
        // It has come too late.
        return named(seen, length, order, says);
    }
    let status = seen.info.status_or_none();
    if stage == Some(SaveStage::Writing) && !status.is_idle() {
        let cancel = (status != MigrationStatus::Cancelling).then_some(Action::Cancel);
        return Verdict {
            action: cancel,
            report: Some(active(seen, says)),
        };
    }
    let resume = stage.is_some() && is_paused_for_it(seen);
    if resume || file != Some(&FileSeen::Gone) {
        return act(FileAction::Discard { resume }, None);
    }
    says.state(MigrationState::Cancelled)
}

/// The VM comes from the file. QEMU loads it; the agent starts it, once the journal says so.
pub(super) fn load(
    seen: &VmSeen,
    begun: Option<&Begun>,
    can_begin: bool,
    file: Option<&FileSeen>,
    says: Says<'_>,
) -> Verdict {
    let incoming = seen.run == RunState::InMigrate;
    let status = seen.info.status_or_none();
    let start = Verdict {
        action: can_begin.then_some(Action::File(FileAction::Load)),
        report: None,
    };
    let Some(begun) = begun else {
        return match file {
            Some(FileSeen::Refused(why)) => refused(says, MigrationState::Failed, why),
            // It has received a VM: from this file or not, the journal cannot tell.
            _ if !incoming && status == MigrationStatus::Completed => Verdict {
                action: None,
                report: Some(MigrationReport {
                    error: Some(NOT_INCOMING.to_owned()),
                    ..says.report(MigrationState::Active)
                }),
            },
            _ if !incoming => refused(says, MigrationState::Failed, NOT_INCOMING),
            _ if !is_waiting(seen) => refused(says, MigrationState::Failed, OTHER_INCOMING),
            _ => start,
        };
    };
    if let Some(arrival) = begun.arrival {
        return if arrival == Arrival::Starting && is_loaded(seen) {
            Verdict {
                action: Some(Action::Run),
                report: None,
            }
        } else {
            says.state(MigrationState::Completed)
        };
    }
    match status {
        MigrationStatus::Failed => says.failed(words_of_qemu(seen)),
        _ if !incoming => Verdict {
            // Loaded; or started by something else, which has to be in the journal nevertheless.
            action: (is_loaded(seen) || seen.run == RunState::Running).then_some(Action::Run),
            report: Some(says.report(MigrationState::Active)),
        },
        // The journal was written, and the agent died before QEMU was told.
        MigrationStatus::None if !matches!(file, Some(FileSeen::Told(_))) => start,
        _ => says.state(MigrationState::Active),
    }
}

/// What a NIC may think of a VM that goes to a file, or of one that nothing was done to yet. It is nowhere else: it may only be paused.
pub(super) fn run_of(plain: Run, goal: Goal, order: &MigrationOrder, begun: Option<&Begun>) -> Run {
    let stage = begun.and_then(Begun::save_stage);
    let ends = order.step == MigrationStep::Save
        && order.after_save() == Some(AfterSave::End)
        && goal == Goal::Detached;
    match plain {
        // It goes on from the file: this QEMU is ended.
        Run::HandedOver if ends && matches!(stage, Some(SaveStage::Named(_))) => Run::HandedOver,
        // It was to be ended, and something else has run it on, or the file was given up: nothing is taken from it.
        Run::Here | Run::HandedOver if ends => Run::HandingOver,
        Run::HandedOver | Run::HandingOver => Run::Here,
        plain => plain,
    }
}

/// Why QEMU has failed, if it says so.
fn words_of_qemu(seen: &VmSeen) -> Option<String> {
    let why = seen.info.error_desc.as_ref();
    why.map(|why| format!("QEMU has failed: {why}"))
}

/// Whether QEMU has paused the VM because all of it is written.
fn is_paused_for_it(seen: &VmSeen) -> bool {
    match seen.run {
        RunState::PostMigrate => true,
        RunState::FinishMigrate => seen.info.status_or_none() == MigrationStatus::Completed,
        _ => false,
    }
}

fn active(seen: &VmSeen, says: Says<'_>) -> MigrationReport {
    let octets = |n: u64| i64::try_from(n).ok();
    let ram = seen.info.ram.as_ref();
    MigrationReport {
        written: ram.and_then(|ram| octets(ram.transferred)),
        remaining: ram.and_then(|ram| octets(ram.remaining)),
        ..says.report(MigrationState::Active)
    }
}

fn completed(seen: &VmSeen, says: Says<'_>) -> MigrationReport {
    let ms = |n: Option<u64>| n.and_then(|n| i64::try_from(n).ok());
    MigrationReport {
        total_ms: ms(seen.info.total_time),
        downtime_ms: ms(seen.info.downtime),
        ..says.report(MigrationState::Completed)
    }
}

/// The VM is in a file that has its name. A user who waits to take a snapshot of its disks has to know if it did not wait too.
fn named(seen: &VmSeen, length: u64, order: &MigrationOrder, says: Says<'_>) -> Verdict {
    let waits = order.after_save() == Some(AfterSave::Pause);
    let ran_on = waits && !is_paused_for_it(seen);
    let report = MigrationReport {
        written: i64::try_from(length).ok(),
        error: ran_on.then(|| RUN_ON.to_owned()),
        ..completed(seen, says)
    };
    Verdict {
        action: None,
        report: Some(report),
    }
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
