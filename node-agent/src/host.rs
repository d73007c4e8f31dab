//! What every task of the agent shares of its node.

use std::{path::PathBuf, sync::Arc, time::Duration};

use hybridnic_net::{
    dev::DevNodes,
    netlink::Netlink,
    sysfs::{DiscoverError, Inventory, Sysfs},
};
use hybridnic_runtime::traces::Traces;
use tokio::sync::watch;

use crate::{journal::Journal, metrics::Metrics, node::pool::Pools, troubles::Troubles};

/// Settings that the tasks need.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the node.
    pub node_name: String,
    /// Where the VMs' QMP sockets are.
    pub vm_root: PathBuf,
    /// How long a guest may take to let go of a device.
    pub unplug_deadline: Duration,
    /// How long a guest may take to use a VF.
    pub plug_deadline: Duration,
    /// The most bytes per second of a migration; 0 is no limit.
    pub migration_bandwidth: u64,
    /// The VM's pause that QEMU aims at, in milliseconds.
    pub migration_downtime_ms: u64,
}

/// The node as the tasks reach it.
#[derive(Debug)]
pub struct Host {
    /// PFs, VFs and drivers.
    pub sysfs: Sysfs,
    /// Device nodes.
    pub dev: DevNodes,
    /// Links and VF settings.
    pub netlink: Netlink,
    /// What we hold, on disk.
    pub journal: Journal,
    /// Who holds which VF.
    pub pools: Pools,
    /// What is measured.
    pub metrics: Metrics,
    /// What does not work.
    pub troubles: Troubles,
    /// Who wants to know where a migration's time goes.
    pub traces: Traces,
    /// Settings.
    pub options: Settings,
    /// Counts device and link events: what was seen of the hardware may be old.
    pub hardware: watch::Sender<u64>,
}

impl Host {
    /// Discovers the node's PFs and VFs anew. Reads some files for each VF, off the runtime's workers.
    pub async fn inventory(self: &Arc<Self>) -> Result<Inventory, DiscoverError> {
        let host = Arc::clone(self);
        blocking(move || host.sysfs.discover()).await
    }

    /// Notes that the hardware has changed.
    pub fn hardware_changed(&self) {
        self.hardware.send_modify(|n| *n += 1);
    }
}

/// Runs what may block off the runtime's thread. Panics if it does.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
