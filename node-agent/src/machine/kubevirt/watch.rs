//! A migration that the runtime drives: what this end's QEMU does in it, and what a NIC may assume about its VM meanwhile. Pure.
//!
//! What QEMU says is about its last migration, which may be an earlier one: the VM's own arrival, or a try that has
//! failed. So a migration counts as begun at its source once QEMU was seen in it, and a target is recognised before its VM arrives.

use hybridnic_api::v1alpha1::{Goal, MigrationReport, MigrationState, MigrationStep};
use hybridnic_qmp::commands::{MigrationStatus, RunState};

use super::super::{
    Run,
    process::ProcessId,
    qemu::migration::{EndSeen, VmSeen},
};
use crate::journal::{Role, VmRecord, Watched};

/// Whether QEMU runs the VM.
pub fn is_running(seen: &VmSeen) -> bool {
    seen.run == RunState::Running
}

/// Whether a migration is under way.
pub fn is_under_way(seen: &VmSeen) -> bool {
    !seen.info.status_or_none().is_idle()
}

/// What a NIC may think of its VM. `has_run`: whether the VM was seen running in this QEMU.
pub fn run_of(seen: &VmSeen, has_run: bool) -> Run {
    match (&seen.run, seen.info.status_or_none()) {
        (RunState::InMigrate, _) => Run::Incoming,
        // libvirt loads a VM paused, and starts it then.
        (RunState::Paused, MigrationStatus::Completed) if !has_run => Run::Incoming,
        // The second is the first, a moment before QEMU's run state follows.
        (RunState::PostMigrate, _) | (RunState::FinishMigrate, MigrationStatus::Completed) => Run::HandedOver,
        // KubeVirt has paused it to send it, or a user has paused it: from this pause it may go.
        (RunState::Paused, status) if has_run && !status.is_idle() => Run::HandingOver,
        (RunState::FinishMigrate, _) | (_, MigrationStatus::PreSwitchover | MigrationStatus::Device) => {
            Run::HandingOver
        }
        _ => Run::Here,
    }
}

/// All that decides which end of a migration this is, when that is looked at for the first time.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoleInputs<'a> {
    /// What QEMU says; `None` where there is none.
    pub seen: Option<&'a VmSeen>,
    /// Whether it was seen to wait for its VM.
    pub incoming: bool,
    /// Whether the VM was seen to run in it.
    pub ran: bool,
    /// Whether it was in another migration that was watched.
    pub another: bool,
    /// Which end it is by what the NICs are told, where that shows.
    pub told: Option<Role>,
}

/// Which end of a migration this is, when it is looked at for the first time; `None` if that is unknown: a source that is
/// taken for a target would be believed to have the VM.
pub fn role(inputs: RoleInputs<'_>) -> Option<Role> {
    let Some(seen) = inputs.seen else {
        // There is no QEMU yet, and the VM is to come; or there is none any more.
        return Some(if inputs.ran { Role::Source } else { Role::Target });
    };
    match (&seen.run, seen.info.status_or_none()) {
        (RunState::InMigrate, _) => Some(Role::Target),
        // It has come by this one, or by one before it.
        (_, MigrationStatus::Completed) if inputs.another => Some(Role::Source),
        (_, MigrationStatus::Completed) if inputs.incoming && !inputs.ran => Some(Role::Target),
        // It has run here already, or has arrived while no agent looked, or has left.
        (_, MigrationStatus::Completed) => inputs.told,
        _ => Some(Role::Source),
    }
}

/// Which end this is by what its NICs are told, where that shows: only a source is asked whether it has its VM after all, and only a
/// target waits for the source.
pub fn told(step: MigrationStep, mut goals: impl Iterator<Item = Goal>) -> Option<Role> {
    match step {
        MigrationStep::Cancel => Some(Role::Source),
        _ if goals.any(|goal| goal == Goal::Reserved) => Some(Role::Target),
        _ => None,
    }
}

/// What is known from now on of a migration that was looked at before.
pub fn learn(watched: Watched, seen: &VmSeen) -> Watched {
    let begun = watched.begun || watched.role == Role::Source && is_under_way(seen);
    let arrived = watched.arrived || watched.role == Role::Target && is_running(seen);
    Watched {
        begun,
        arrived,
        ..watched
    }
}

/// What is seen of the QEMU whose migration is watched.
#[derive(Clone, Copy, Debug)]
pub struct LauncherSeen<'a> {
    /// What it says; `None` where it cannot be asked.
    pub seen: Option<&'a VmSeen>,
    /// The process that is talked to, or was last.
    pub peer: Option<&'a ProcessId>,
    /// Whether it is proven that there is none.
    pub gone: bool,
}

/// Whether the runtime has given a migration up, by the operator's order; `None` if the order is not one for a VM that is only watched.
pub fn is_off(step: MigrationStep) -> Option<bool> {
    match step {
        MigrationStep::Watch => Some(false),
        MigrationStep::Cancel => Some(true),
        MigrationStep::Prepare
        | MigrationStep::Listen
        | MigrationStep::Transfer
        | MigrationStep::Resume
        | MigrationStep::GiveUp
        | MigrationStep::Save
        | MigrationStep::Load => None,
    }
}

/// What the journal is to know about a migration before anything is reported about it; `None` if it is unknown which end this is.
/// `told`: which end it is by the NICs' orders.
pub fn note(
    record: &VmRecord,
    migration: &str,
    now: LauncherSeen<'_>,
    told: Option<Role>,
) -> Option<Watched> {
    let known = record
        .watched
        .clone()
        .filter(|watched| watched.migration == migration);
    let first = || {
        let another = record.watched.as_ref();
        let another =
            another.is_some_and(|watched| watched.process.is_some() && watched.process.as_ref() == now.peer);
        // Only a QEMU that is proven to be gone counts as none.
        if now.seen.is_none() && !now.gone {
            return None;
        }
        let role = role(RoleInputs {
            seen: now.seen,
            incoming: record.incoming,
            ran: record.ran,
            another,
            told,
        })?;
        let ended = now.seen.is_none() && role == Role::Source;
        Some(Watched {
            migration: migration.to_owned(),
            // A source whose QEMU has ended was in that one.
            process: record.process.clone().filter(|_| ended),
            role,
            begun: false,
            arrived: false,
        })
    };
    let mut watched = known.or_else(first)?;
    if let Some(seen) = now.seen {
        watched.process = watched.process.or_else(|| now.peer.cloned());
        if watched.process.as_ref() == now.peer {
            watched = learn(watched, seen);
        }
    }
    Some(watched)
}

/// What is seen of the QEMU that was in a migration.
pub fn end_seen<'a>(
    watched: &Watched,
    now: LauncherSeen<'a>,
    has_ended: impl Fn(&ProcessId) -> bool,
) -> EndSeen<'a> {
    let process = watched.process.as_ref();
    match now.seen {
        Some(seen) if process.is_none() || process == now.peer => EndSeen::Up(seen),
        _ if process.is_some_and(&has_ended) => EndSeen::Ended,
        _ => EndSeen::Silent,
    }
}

/// What an event asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missed {
    /// The VM stands still: it is silent here.
    Silence,
    /// It runs here.
    Run,
    /// It is to come.
    Incoming,
}

/// What an event would have asked for, where it was missed.
pub fn missed(seen: &VmSeen, record: &VmRecord) -> Option<Missed> {
    match run_of(seen, record.ran) {
        Run::HandingOver | Run::HandedOver => Some(Missed::Silence),
        Run::Here if is_running(seen) && !record.ran => Some(Missed::Run),
        Run::Incoming if seen.run == RunState::InMigrate && !record.incoming => Some(Missed::Incoming),
        _ => None,
    }
}

/// What to report about it; `None` if the last report still stands. `is_off`: whether the runtime has given it up, as far as is known.
pub fn report(
    watched: &Watched,
    is_off: bool,
    end: EndSeen<'_>,
    said: Option<&MigrationReport>,
) -> Option<MigrationReport> {
    let uid = &watched.migration;
    let report = |state| MigrationReport::new(uid, state);
    let seen = match end {
        EndSeen::Silent => return None,
        EndSeen::Ended => {
            let over = said.is_some_and(|said| said.uid == *uid && said.state.is_final());
            return match watched {
                Watched { arrived: true, .. } => Some(report(MigrationState::Ended)),
                // A source whose VM has left ends.
                _ if over => None,
                _ => Some(report(MigrationState::Lost)),
            };
        }
        EndSeen::Up(seen) => seen,
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
    match (watched.arrived, &seen.run, seen.info.status_or_none()) {
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
    let (status, here) = (seen.info.status_or_none(), run_of(seen, true) == Run::Here);
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
