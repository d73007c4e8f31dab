//! What is seen of a NIC's guest in QEMU.

use std::collections::BTreeMap;

use hybridnic_qmp::{Client, QmpError};

use super::{
    super::{MachineError, MachineSeen, Run, Vm},
    Qemu,
    migration::{self, RunInputs, VmSeen},
};
use crate::{journal::Record, nic::ids};

impl Qemu {
    /// What QEMU says of the guest.
    pub async fn observe(&self, vm: &Vm, record: &Record) -> Result<MachineSeen, MachineError> {
        let see_run = see_run(vm, &self.client, record);
        let (devices, (run, _, running)) = tokio::try_join!(self.client.peripheral(), see_run)?;
        let seen = self.devices(&devices, record, run).await?;
        Ok(MachineSeen { running, ..seen })
    }

    /// What it says of a NIC's devices.
    pub(in super::super) async fn devices(
        &self,
        devices: &BTreeMap<String, String>,
        record: &Record,
        run: Run,
    ) -> Result<MachineSeen, MachineError> {
        let (id, nic) = (ids::standby(&record.spec), &record.spec.nic.name);
        let standby = devices.contains_key(&id);
        let failover = if standby && run == Run::Here {
            match self.client.standby_negotiated(&id).await {
                Ok(negotiated) => negotiated,
                // This QEMU does not know: assume that the guest does.
                Err(QmpError::Command { .. } | QmpError::Decode { .. }) => Some(true),
                Err(error) => return Err(error.into()),
            }
        } else {
            None
        };
        Ok(MachineSeen {
            run,
            running: false,
            standby,
            vf: devices.keys().find(|id| ids::is_vf(id, nic)).cloned(),
            failover,
            // A NIC of a VM that we send is not asked to take its VF meanwhile.
            migrating: false,
            acpi: true,
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
    let run = migration::run_of(RunInputs {
        seen: &seen,
        goal: record.spec.goal,
        order,
        begun: begun.as_ref(),
        same,
    });
    Ok((run, seen, status.running))
}
