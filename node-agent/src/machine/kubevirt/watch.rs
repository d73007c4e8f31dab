//! A migration that the runtime drives: what this end's QEMU does of it, and what a NIC may think of its VM meanwhile. Pure.
//!
//! QEMU's own words are about the migration that it was in last, which may be an earlier one: the VM's own arrival, or a try that has
//! failed. So a migration counts as begun at its source once QEMU was seen in it, and a target is known from before its VM came.

use hybridnic_api::v1alpha1::{MigrationReport, MigrationState};
use hybridnic_qmp::commands::{MigrationStatus, RunState};

use super::super::{
    Run,
    qemu::migration::{Sight, VmSeen},
};
use crate::journal::{Role, Watched};

/// Whether QEMU runs the VM.
pub fn is_running(seen: &VmSeen) -> bool {
    seen.run == RunState::Running
}

/// Whether a migration is under way.
pub fn is_under_way(seen: &VmSeen) -> bool {
    !seen.info.status().is_idle()
}

/// What a NIC may think of its VM. `has_run`: whether the VM was seen running in this QEMU.
pub fn run_of(seen: &VmSeen, has_run: bool) -> Run {
    match (&seen.run, seen.info.status()) {
        (RunState::InMigrate, _) => Run::Incoming,
        // libvirt loads a VM paused, and starts it then.
        (RunState::Paused, MigrationStatus::Completed) if !has_run => Run::Incoming,
        // The second is the first, a moment before QEMU's run state follows.
        (RunState::PostMigrate, _) | (RunState::FinishMigrate, MigrationStatus::Completed) => Run::HandedOver,
        // KubeVirt has paused it so that it can be sent, or somebody else has: from this pause it may go.
        (RunState::Paused, status) if has_run && !status.is_idle() => Run::HandingOver,
        (RunState::FinishMigrate, _) | (_, MigrationStatus::PreSwitchover | MigrationStatus::Device) => {
            Run::HandingOver
        }
        _ => Run::Here,
    }
}

/// Which end of a migration this is, when it is looked at for the first time; `None` where that cannot be told.
///
/// `incoming`: whether this QEMU was seen to wait for its VM. `another`: whether it was in another migration that was watched.
pub fn role(seen: Option<&VmSeen>, incoming: bool, another: bool) -> Option<Role> {
    // There is no QEMU yet: the VM is to come.
    let Some(seen) = seen else {
        return Some(Role::Target);
    };
    match (&seen.run, seen.info.status()) {
        (RunState::InMigrate, _) => Some(Role::Target),
        // It has come by this one, or by one before it.
        (_, MigrationStatus::Completed) if another => Some(Role::Source),
        (_, MigrationStatus::Completed) if incoming => Some(Role::Target),
        // It has come while nobody looked, or has left.
        (_, MigrationStatus::Completed) => None,
        _ => Some(Role::Source),
    }
}

/// What is known from now on of a migration that was looked at before.
pub fn look(watched: Watched, seen: &VmSeen) -> Watched {
    let begun = watched.begun || watched.role == Role::Source && is_under_way(seen);
    let arrived = watched.arrived || watched.role == Role::Target && is_running(seen);
    Watched {
        begun,
        arrived,
        ..watched
    }
}

/// What to say of it; `None` where what was said last still stands. `is_off`: whether the runtime has given it up, as far as is known.
pub fn report(
    watched: &Watched,
    is_off: bool,
    sight: Sight<'_>,
    said: Option<&MigrationReport>,
) -> Option<MigrationReport> {
    let uid = &watched.migration;
    let report = |state| MigrationReport::new(uid, state);
    let seen = match sight {
        Sight::Silent => return None,
        Sight::Ended => {
            let over = said.is_some_and(|said| said.uid == *uid && said.state.is_final());
            return match watched {
                Watched { arrived: true, .. } => Some(report(MigrationState::Ended)),
                // A source whose VM has left ends.
                _ if over => None,
                _ => Some(report(MigrationState::Lost)),
            };
        }
        Sight::Up(seen) => seen,
    };
    Some(match watched.role {
        Role::Target => target(watched, seen, report),
        Role::Source => source(watched, is_off, seen, report),
    })
}

fn target(
    watched: &Watched,
    seen: &VmSeen,
    report: impl Fn(MigrationState) -> MigrationReport,
) -> MigrationReport {
    match (watched.arrived, &seen.run, seen.info.status()) {
        (true, _, _) => report(MigrationState::Completed),
        (false, _, MigrationStatus::Failed) => MigrationReport {
            error: seen.info.error_desc.clone(),
            ..report(MigrationState::Failed)
        },
        (false, RunState::InMigrate, _) => report(MigrationState::Listening),
        (false, _, _) => report(MigrationState::Active),
    }
}

fn source(
    watched: &Watched,
    is_off: bool,
    seen: &VmSeen,
    report: impl Fn(MigrationState) -> MigrationReport,
) -> MigrationReport {
    let ms = |n: Option<u64>| n.and_then(|n| i64::try_from(n).ok());
    let (status, here) = (seen.info.status(), run_of(seen, true) == Run::Here);
    let state = match &status {
        status if !status.is_idle() => MigrationState::Active,
        MigrationStatus::Completed if !here => MigrationState::Completed,
        // It was given up before it had begun: QEMU runs the VM, sends it nowhere, and is not told to any more.
        _ if !watched.begun && is_off && here => MigrationState::Cancelled,
        _ if !watched.begun => MigrationState::Prepared,
        MigrationStatus::Failed => MigrationState::Failed,
        _ => MigrationState::Cancelled,
    };
    let completed = state == MigrationState::Completed;
    MigrationReport {
        error: seen
            .info
            .error_desc
            .clone()
            .filter(|_| state == MigrationState::Failed),
        kept: here && status.is_idle(),
        total_ms: ms(seen.info.total_time).filter(|_| completed),
        downtime_ms: ms(seen.info.downtime).filter(|_| completed),
        ..report(state)
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
