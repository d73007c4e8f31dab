//! The end that gets the VM. QEMU listens there and loads it; the agent starts it, once the journal says so.

use hybridnic_api::v1alpha1::{MigrationReport, MigrationState};
use hybridnic_qmp::commands::{MigrationStatus, RunState};

use super::{Action, Says, Stream, Verdict, VmSeen};
use crate::journal::{Arrival, Begun};

/// Why a target cannot take the VM of a migration that was not begun in its QEMU.
pub const NOT_INCOMING: &str =
    "QEMU at the target was not started with -incoming defer, or runs a guest already";
/// Why a target cannot take the VM of a migration that was not begun in its QEMU.
pub const OTHER_INCOMING: &str = "QEMU at the target already waits for another migration";

/// What the target does, and how far it is.
pub(super) fn listen(
    seen: &VmSeen,
    begun: Option<&Begun>,
    reserved: bool,
    stream: &Stream<'_>,
    says: Says<'_>,
) -> Verdict {
    let status = seen.info.status_or_none();
    let incoming = seen.run == RunState::InMigrate;
    let told = || {
        let report = stream.refusal(says);
        let can = reserved && stream.knows_its_peer() && report.is_none();
        Verdict {
            action: can.then_some(Action::Listen),
            report,
        }
    };
    let Some(begun) = begun else {
        return match (incoming, is_waiting(seen)) {
            // It has received a VM: of this migration or not, the journal cannot tell.
            (false, _) if status == MigrationStatus::Completed => Verdict {
                action: None,
                report: Some(MigrationReport {
                    error: Some(NOT_INCOMING.to_owned()),
                    ..says.report(MigrationState::Active)
                }),
            },
            (false, _) => says.failed(NOT_INCOMING.to_owned()),
            (true, false) => says.failed(OTHER_INCOMING.to_owned()),
            (true, true) => told(),
        };
    };
    if let Some(arrival) = begun.arrival {
        let stopped_halfway = arrival == Arrival::Starting && is_loaded(seen);
        return if stopped_halfway {
            Verdict {
                action: Some(Action::Run),
                report: None,
            }
        } else {
            says.state(MigrationState::Completed)
        };
    }
    match status {
        MigrationStatus::Failed => says.failed(seen.info.error_desc.clone()),
        _ if !incoming => Verdict {
            // Loaded; or started by something else, which has to be in the journal nevertheless.
            action: (is_loaded(seen) || seen.run == RunState::Running).then_some(Action::Run),
            report: Some(says.report(MigrationState::Active)),
        },
        MigrationStatus::None | MigrationStatus::Setup => match seen.info.listening().first() {
            Some(address) => Verdict {
                action: None,
                report: Some(MigrationReport {
                    port: Some(address.port.into()),
                    ca: stream.ca(),
                    ..says.report(MigrationState::Listening)
                }),
            },
            // The journal was written, and the agent died before QEMU was told.
            None => told(),
        },
        _ => says.state(MigrationState::Active),
    }
}

/// The NICs' own tasks end the QEMU; a VM that is about to be started here is not started any more.
pub(super) fn give_up(seen: &VmSeen, begun: Option<&Begun>, stream: &Stream<'_>, says: Says<'_>) -> Verdict {
    match begun {
        // It was never here.
        None => Verdict::default(),
        Some(begun) if begun.arrival == Some(Arrival::Starting) && is_loaded(seen) => Verdict {
            action: Some(Action::Forgo),
            report: None,
        },
        Some(_) => Verdict {
            action: None,
            ..listen(seen, begun, false, stream, says)
        },
    }
}

/// Whether an incoming QEMU has not been told yet where the VM comes from.
pub(super) fn is_waiting(seen: &VmSeen) -> bool {
    seen.info.status_or_none() == MigrationStatus::None && seen.info.listening().is_empty()
}

/// Whether the VM is loaded and has not been started.
pub fn is_loaded(seen: &VmSeen) -> bool {
    seen.run == RunState::Paused && seen.info.status_or_none() == MigrationStatus::Completed
}
