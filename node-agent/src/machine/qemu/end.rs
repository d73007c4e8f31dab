//! The end of a QEMU that will never run the VM.

use std::time::Duration;

use hybridnic_qmp::QmpError;

use super::{
    super::{MachineError, Run, Vm},
    Qemu, migration,
    observe::see_run,
};
use crate::journal::Record;

/// How long it may take to go.
const DEADLINE: Duration = Duration::from_secs(10);

impl Qemu {
    /// Ends it, and waits until it has gone.
    pub async fn end(&self, vm: &Vm, record: &Record) -> Result<(), MachineError> {
        let client = &self.client;
        // The VM is started under the same lock: what is seen here stays true until QEMU gets the command.
        let fate = vm.fate.lock().await;
        let (run, seen, _) = see_run(vm, client, record).await?;
        let order = record.spec.migration.as_ref();
        let listens = order.is_some_and(|order| order.step.receives());
        let arrives = listens && migration::is_loaded(&seen);
        if arrives || !matches!(run, Run::Incoming | Run::HandedOver) {
            return Err(MachineError::Arrived);
        }
        let quit = async {
            client.until_migration_settled().await?;
            client.quit().await
        };
        let told = quit.await;
        drop(fate);
        match told {
            Ok(()) | Err(QmpError::Closed(_)) => {}
            Err(error) => return Err(error.into()),
        }
        match tokio::time::timeout(DEADLINE, client.closed()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(MachineError::Refused(
                "QEMU was told to quit and did not".to_owned(),
            )),
        }
    }
}
