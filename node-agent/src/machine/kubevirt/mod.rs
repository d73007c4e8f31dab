//! A VM of KubeVirt: a QEMU that libvirt has started in a launcher pod. The agent talks to it over a monitor of its own beside libvirt's.
//!
//! KubeVirt plugs the standby, migrates the VM and ends it. The agent plugs and unplugs the VF, sets the standby's macvtap up and down at
//! the right moments, and reports what it sees.
//!
//! | module | does | touches |
//! |---|---|---|
//! | [`watch`] | decides what to report about a migration, and what a NIC may assume about its VM meanwhile | nothing |
//! | `adopt` | finds the networks of pods again after a restart | `/proc`, the broker |
//! | `events` | does at once what an event asks for | macvtaps, QEMU, the journal |

mod adopt;
mod events;
pub mod watch;

use hybridnic_qmp::Client;
use tracing::warn;

pub(super) use adopt::adopt;
pub(super) use events::{drive, on_event};

use super::{Duties, MachineError, MachineSeen, Owner, Vm, qemu, qemu::Qemu};
use crate::{error::chain, journal::Record};

/// What KubeVirt sees to.
pub const DUTIES: Duties = Duties {
    standby: Owner::Runtime,
    migration: Owner::Runtime,
    vm_end: Owner::Runtime,
};

/// A session with the QEMU of a launcher. Clones share it.
#[derive(Clone, Debug)]
pub struct Launcher {
    /// Its QEMU.
    pub qemu: Qemu,
    acpi: bool,
}

impl Launcher {
    /// By the session of its second monitor.
    pub async fn new(client: Client) -> Self {
        // It cannot change while QEMU runs.
        let acpi = match client.qom_get::<String>("/machine", "acpi").await {
            Ok(acpi) => acpi != "off",
            // A machine without this property has no ACPI to switch off.
            Err(error) => {
                warn!(error = chain(&error), "QEMU does not say whether the VM has ACPI");
                true
            }
        };
        Self {
            qemu: Qemu::new(client),
            acpi,
        }
    }

    /// What its QEMU says of the guest.
    pub async fn observe(&self, vm: &Vm, record: &Record) -> Result<MachineSeen, MachineError> {
        let client = &self.qemu.client;
        let (devices, seen) = tokio::try_join!(client.peripheral(), qemu::see_vm(client))?;
        let run = watch::run_of(&seen, vm.has_run());
        let devices = self.qemu.devices(&devices, record, run).await?;
        Ok(MachineSeen {
            running: watch::is_running(&seen),
            migrating: watch::is_under_way(&seen),
            acpi: self.acpi,
            ..devices
        })
    }

    /// That it is KubeVirt's to do.
    pub fn not_ours() -> MachineError {
        MachineError::Refused("KubeVirt sees to that, and not the agent".to_owned())
    }
}
