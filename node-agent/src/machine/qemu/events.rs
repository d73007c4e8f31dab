//! QEMU's events in the agent's own words.

use hybridnic_qmp::{Event, commands::MigrationStatus};

use super::super::{Moment, VmEvent};

/// What an event says; `None` where the agent does nothing about it.
pub(super) fn of(event: &Event) -> Option<VmEvent> {
    Some(match event.name.as_str() {
        "STOP" => VmEvent::Stopped,
        "RESUME" => VmEvent::Resumed,
        "RESET" => VmEvent::Reset,
        "SHUTDOWN" => VmEvent::ShutDown,
        "FAILOVER_NEGOTIATED" => VmEvent::FailoverNegotiated,
        "NIC_RX_FILTER_CHANGED" => VmEvent::Receives,
        "DEVICE_DELETED" | "MEM_UNPLUG_ERROR" => VmEvent::Unplugged,
        _ => {
            let status = event.migration_status()?;
            VmEvent::Migration {
                moment: moment(&status),
                word: status.word(),
            }
        }
    })
}

fn moment(status: &MigrationStatus) -> Moment {
    match status {
        MigrationStatus::PreSwitchover => Moment::HandingOver,
        MigrationStatus::Device => Moment::Sending,
        MigrationStatus::Completed => Moment::Completed,
        status if status.is_idle() => Moment::Over,
        _ => Moment::Going,
    }
}
