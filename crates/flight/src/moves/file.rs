//! A `QemuSave` or a `QemuRestore` as a [`Move`] with one end: where the VM is, or where it comes to. Pure. An operator drives it:
//! `save` decides on its phase.
//!
//! | stage | save: goal, order | restore: goal, order |
//! |---|---|---|
//! | `Preparing` | `FastPath`, Prepare: can the file be made? | `FastPath`, Prepare: can the file be loaded? |
//! | `Leaving` | `Standby`, Prepare | |
//! | `Moving` | `Standby`, Save | `FastPath`, Load |
//! | `Arrived` | `Detached` (`End`), `Standby` (`Pause`) or `FastPath`, Save | `FastPath`, Load |
//! | `Returning` | `Standby`, Cancel; `FastPath` once the VM is known to run, or has kept its VFs | `Detached`, GiveUp; `FastPath` while QEMU was told nothing |

use hybridnic_api::conditions::{self, types};
use hybridnic_api::v1alpha1::{
    AfterSave, FileOrder, Goal, MigrationEnd, MigrationPhase, MigrationState, MigrationStep, ObjectRef,
    QemuRestore, QemuSave, StateFileStatus,
};
use kube::ResourceExt;

use super::ends::Ends;
use super::qemu::{since, stage};
use super::{Driver, Going, Move, Outcome, Stage, Times};

/// A goal and an order.
pub type Wish = (Goal, Option<MigrationStep>);

/// A file that a VM goes to or comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileMove {
    /// What the agent is told about it.
    pub order: FileOrder,
    /// Whether QEMU may have been told to write or to load it.
    pub begun: bool,
    /// Whether the VFs may have been taken out for it.
    pub left: bool,
}

/// A kind that moves a VM to a file or from one.
pub trait OnFile: ResourceExt {
    /// The VM's name.
    fn vm(&self) -> &str;
    /// The file, and for a save what becomes of the VM.
    fn order(&self) -> FileOrder;
    /// The pod that was asked for.
    fn pod(&self) -> Option<&str>;
    /// How long QEMU may take, in seconds.
    fn deadline(&self) -> Option<i64>;
    /// How it goes.
    fn file_status(&self) -> Option<&StateFileStatus>;

    /// Whether the VM goes to the file, rather than coming from it.
    fn saves(&self) -> bool {
        self.order().saves()
    }

    /// Its phase.
    fn phase(&self) -> MigrationPhase {
        self.file_status().map(|status| status.phase).unwrap_or_default()
    }
}

impl OnFile for QemuSave {
    fn vm(&self) -> &str {
        &self.spec.vm
    }

    fn order(&self) -> FileOrder {
        // A VM that waits for a decision runs on when nobody is left to take it.
        let then = match self.spec.then {
            AfterSave::Pause if self.metadata.deletion_timestamp.is_some() => AfterSave::Continue,
            then => then,
        };
        FileOrder {
            path: self.spec.file.clone(),
            then: Some(then),
            bandwidth: self.spec.bandwidth,
        }
    }

    fn pod(&self) -> Option<&str> {
        None
    }

    fn deadline(&self) -> Option<i64> {
        self.spec.deadline_seconds
    }

    fn file_status(&self) -> Option<&StateFileStatus> {
        self.status.as_ref()
    }
}

impl OnFile for QemuRestore {
    fn vm(&self) -> &str {
        &self.spec.vm
    }

    fn order(&self) -> FileOrder {
        FileOrder {
            path: self.spec.file.clone(),
            then: None,
            bandwidth: None,
        }
    }

    fn pod(&self) -> Option<&str> {
        self.spec.pod.as_deref()
    }

    fn deadline(&self) -> Option<i64> {
        self.spec.deadline_seconds
    }

    fn file_status(&self) -> Option<&StateFileStatus> {
        self.status.as_ref()
    }
}

/// The move that it is; none before it has begun.
pub fn begun(object: &impl OnFile) -> Option<Move> {
    let status = object.file_status()?;
    let end = status.end.clone()?;
    let (source, target) = if object.saves() {
        (end, MigrationEnd::default())
    } else {
        (MigrationEnd::default(), end)
    };
    let was = |phase: MigrationPhase| {
        let word: &str = phase.into();
        status.phase == phase || status.phases.iter().any(|phase| phase.name == word)
    };
    Some(Move {
        id: ObjectRef {
            name: object.name_any(),
            uid: object.uid().unwrap_or_default(),
        },
        nics: status.nics.clone(),
        source,
        target,
        stage: stage(status.phase)?,
        driver: Driver::File(FileMove {
            order: object.order(),
            begun: was(MigrationPhase::Transferring),
            left: was(MigrationPhase::SwitchingToStandby),
        }),
        times: Times {
            started_at: status.started_at.clone(),
            finished_at: status.finished_at.clone(),
            downtime_ms: status.downtime_ms,
            phases: status.phases.clone(),
        },
    })
}

/// A save or a restore that has not ended, as it is counted.
pub fn going(object: &impl OnFile) -> Option<Going> {
    let phase = object.phase();
    let status = object.file_status();
    let phases = status.map(|status| status.phases.as_slice());
    let condition = status.and_then(|status| conditions::find(&status.conditions, types::SUCCEEDED));
    // A restore waits for no decision.
    let reason = condition
        .map(|condition| condition.reason.as_str())
        .filter(|_| object.saves());
    (!phase.is_final()).then(|| Going {
        phase: phase.into(),
        since: since(phases.unwrap_or_default(), object),
        undecided: conditions::AWAITS_USER
            .into_iter()
            .find(|asks| reason == Some(asks)),
    })
}

impl FileMove {
    /// Whether the VM goes to the file.
    pub fn saves(&self) -> bool {
        self.order.saves()
    }

    /// What source and target should do in a stage; there is only one of the two.
    pub fn wishes(&self, stage: Stage, ends: &Ends) -> (Wish, Wish) {
        let none = (Goal::Detached, None);
        if self.saves() {
            (self.source(stage, ends), none)
        } else {
            (none, self.target(stage, ends))
        }
    }

    fn source(&self, stage: Stage, ends: &Ends) -> Wish {
        use MigrationStep::{Cancel, Prepare, Save};
        match stage {
            Stage::Preparing => (Goal::FastPath, Some(Prepare)),
            Stage::Leaving => (Goal::Standby, Some(Prepare)),
            Stage::Moving => (Goal::Standby, Some(Save)),
            Stage::Arrived if self.order.then == Some(AfterSave::End) => (Goal::Detached, Some(Save)),
            // It stands still, and takes no VF.
            Stage::Arrived if self.order.then == Some(AfterSave::Pause) => (Goal::Standby, Some(Save)),
            Stage::Arrived => (Goal::FastPath, Some(Save)),
            // A VF is plugged once the VM is known to run again.
            Stage::Returning if self.left && ends.source_state() != Some(MigrationState::Cancelled) => {
                (Goal::Standby, Some(Cancel))
            }
            Stage::Returning => (Goal::FastPath, Some(Cancel)),
            // It decides about no NIC any more.
            Stage::Over(_) => (Goal::FastPath, None),
        }
    }

    fn target(&self, stage: Stage, ends: &Ends) -> Wish {
        use MigrationStep::{GiveUp, Load, Prepare};
        match stage {
            Stage::Preparing | Stage::Leaving => (Goal::FastPath, Some(Prepare)),
            Stage::Moving | Stage::Arrived => (Goal::FastPath, Some(Load)),
            Stage::Returning if told_nothing(self.begun, ends) => (Goal::FastPath, None),
            Stage::Returning => (Goal::Detached, Some(GiveUp)),
            Stage::Over(Outcome::Succeeded) => (Goal::FastPath, None),
            Stage::Over(Outcome::Failed | Outcome::Cancelled) => (Goal::Detached, None),
        }
    }
}

/// Whether the QEMU of a restore was told nothing, and still waits.
pub fn told_nothing(begun: bool, ends: &Ends) -> bool {
    !begun || ends.target.as_ref().is_some_and(|report| report.refused)
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
