//! What is seen of a NIC's guest in QEMU.

use hybridnic_qmp::{Client, QmpError};

use super::{
    super::{MachineError, MachineSeen, Run, Vm},
    Qemu,
    migration::{self, VmSeen},
};
use crate::{journal::Record, nic::ids};

impl Qemu {
    /// What QEMU says of the guest.
    pub async fn observe(&self, vm: &Vm, record: &Record) -> Result<MachineSeen, MachineError> {
        let client = &self.client;
        let (devices, (run, _, running)) =
            tokio::try_join!(client.peripheral(), see_run(vm, client, record))?;
        let nic = &record.spec.nic.name;
        let standby = devices.contains_key(&ids::standby(nic));
        let failover = if standby && run == Run::Here {
            match client.standby_negotiated(&ids::standby(nic)).await {
                Ok(negotiated) => negotiated,
                // This QEMU cannot tell: believe that the guest does.
                Err(QmpError::Command { .. } | QmpError::Decode { .. }) => Some(true),
                Err(error) => return Err(error.into()),
            }
        } else {
            None
        };
        Ok(MachineSeen {
            run,
            running,
            standby,
            vf: devices.keys().find(|id| ids::is_vf(id, nic)).cloned(),
            failover,
        })
    }
}

/// What QEMU does with the VM, for a NIC of it; and what it says itself.
pub(super) async fn see_run(
    vm: &Vm,
    client: &Client,
    record: &Record,
) -> Result<(Run, VmSeen, bool), QmpError> {
    let (status, info) = tokio::try_join!(client.query_status(), client.query_migrate())?;
    let seen = VmSeen {
        run: status.status,
        info,
    };
    let order = record.spec.migration.as_ref();
    let migration = order.map_or("", |order| order.migration.uid.as_str());
    let (begun, same) = vm.begun(migration);
    let known = migration::Known {
        begun: begun.as_ref(),
        same,
    };
    let run = migration::run_of(&seen, record.spec.goal, order, known);
    Ok((run, seen, status.running))
}
