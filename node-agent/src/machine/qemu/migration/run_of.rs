//! What a NIC may assume about its VM: while that may run elsewhere, the NIC is silent here.

use hybridnic_api::v1alpha1::{Goal, MigrationOrder, MigrationStep};
use hybridnic_qmp::commands::{MigrationStatus, RunState};

use super::{
    VmSeen, file,
    target::{is_loaded, is_waiting},
};
use crate::{
    journal::{Arrival, Begun, Custody},
    machine::Run,
};

/// All that decides.
#[derive(Clone, Copy, Debug)]
pub struct RunInputs<'a> {
    /// What is seen of the VM's QEMU.
    pub seen: &'a VmSeen,
    /// The NIC's goal.
    pub goal: Goal,
    /// The NIC's order.
    pub order: Option<&'a MigrationOrder>,
    /// The migration that was begun last, as the journal says.
    pub begun: Option<&'a Begun>,
    /// Whether it was begun in the QEMU that is seen.
    pub same: bool,
}

/// What a NIC with this goal and order may think of its VM: where the VM may run elsewhere, the NIC is silent here.
pub fn run_of(inputs: RunInputs<'_>) -> Run {
    let RunInputs {
        seen,
        goal,
        order,
        begun,
        same,
    } = inputs;
    let status = seen.info.status_or_none();
    let plain = match (&seen.run, &status) {
        (RunState::InMigrate, _) => Run::Incoming,
        // The second is the first, a moment before QEMU's run state follows.
        (RunState::PostMigrate, _) | (RunState::FinishMigrate, MigrationStatus::Completed) => Run::HandedOver,
        (RunState::FinishMigrate, _) | (_, MigrationStatus::PreSwitchover | MigrationStatus::Device) => {
            Run::HandingOver
        }
        _ => Run::Here,
    };
    let Some(order) = order else {
        // Something else loads a VM, for example from a file: another device would spoil that, and we must not end it.
        let ours = is_waiting(seen) || begun.is_some() && same;
        return match plain {
            Run::Incoming if !ours => Run::Occupied,
            plain => plain,
        };
    };
    let begun = begun.filter(|begun| begun.migration == order.migration.uid);
    if order.file.is_some() && !matches!(order.step, MigrationStep::Load | MigrationStep::GiveUp) {
        return file::run_of(plain, goal, order, begun);
    }
    match (order.step, begun) {
        (MigrationStep::Listen | MigrationStep::Load | MigrationStep::GiveUp, None)
            if plain == Run::Incoming && is_waiting(seen) =>
        {
            Run::Incoming
        }
        (MigrationStep::Listen | MigrationStep::Load | MigrationStep::GiveUp, None) => Run::Occupied,
        (step @ (MigrationStep::Listen | MigrationStep::Load | MigrationStep::GiveUp), Some(begun))
            if plain == Run::Here =>
        {
            match begun.arrival {
                // Another QEMU than the one that the VM has gone to.
                _ if !same => Run::Occupied,
                // Loaded, and not started.
                None => Run::Incoming,
                Some(Arrival::Starting) if is_loaded(seen) => match step {
                    MigrationStep::GiveUp => Run::Incoming,
                    _ => Run::Starting,
                },
                Some(_) => Run::Here,
            }
        }
        (MigrationStep::Transfer | MigrationStep::Cancel, Some(begun))
            if plain == Run::Here && goal != Goal::FastPath =>
        {
            let ended_badly = status == MigrationStatus::Failed && begun.custody != Custody::Here;
            let left = begun.custody == Custody::Left && status.is_idle();
            if !same || ended_badly || left {
                Run::HandedOver
            } else {
                Run::Here
            }
        }
        _ => plain,
    }
}

#[cfg(test)]
#[path = "run_of_tests.rs"]
mod tests;
