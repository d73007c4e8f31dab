//! What every task of the agent shares of its node.

use std::{error::Error, path::PathBuf, sync::Arc, time::Duration};

use hybridnic_api::conditions::reasons;
use hybridnic_net::{
    PciAddress,
    dev::DevNodes,
    multicast::Multicast,
    netlink::{Link, Netlink, NetlinkError},
    sysfs::{DiscoverError, Inventory, Sysfs},
};
use hybridnic_runtime::traces::Traces;
use tokio::sync::{Mutex, watch};
use tracing::warn;

use crate::{
    error::{StepError, chain},
    journal::Journal,
    metrics::Metrics,
    nic::macs::Macs,
    node::{own, pool::Pools},
    troubles::Troubles,
};

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

/// The node's PFs and VFs, or what the node itself does with them, cannot be told.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub enum InventoryError {
    /// By sysfs.
    Discover(#[from] DiscoverError),
    /// By netlink.
    Netlink(#[from] NetlinkError),
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
    /// What macvtaps receive.
    pub multicast: Multicast,
    /// What we hold, on disk.
    pub journal: Journal,
    /// Who holds which VF.
    pub pools: Pools,
    /// What is measured.
    pub metrics: Metrics,
    /// What does not work.
    pub troubles: Troubles,
    /// Which MACs are NICs'.
    pub macs: Macs,
    /// Held while a macvtap is put on a VLAN device, or a VLAN device is removed because nothing is on it.
    pub vlan_devices: Mutex<()>,
    /// Who wants to know where a migration's time goes.
    pub traces: Traces,
    /// Settings.
    pub options: Settings,
    /// Counts device and link events: what was seen of the hardware may be old.
    pub hardware: watch::Sender<u64>,
}

impl Host {
    /// Discovers the node's PFs and VFs again. Reads some files for each VF, off the runtime's workers.
    pub async fn inventory(self: &Arc<Self>) -> Result<Inventory, InventoryError> {
        let host = Arc::clone(self);
        let mut inventory = blocking(move || host.sysfs.discover()).await?;
        own::fill_in(&self.netlink, &mut inventory).await?;
        Ok(inventory)
    }

    /// Takes over from the journal which VFs were given back with their parking MAC before this agent started.
    pub fn load_parked(&self) {
        match self.journal.parked() {
            Ok(parked) => {
                for vf in parked {
                    self.pools.note_parked(vf, true);
                }
            }
            // Then the audit reports them, and somebody looks.
            Err(error) => warn!(
                error = chain(&error),
                "which VFs are parked for good is not known"
            ),
        }
    }

    /// Notes whether a VF is given back with its parking MAC, because its driver takes no other.
    pub fn note_parked(&self, vf: PciAddress, parked: bool) {
        if self.pools.note_parked(vf, parked)
            && let Err(error) = self.journal.set_parked(&self.pools.parked())
        {
            warn!(%vf, error = chain(&error), "the journal does not have which VFs are parked for good");
        }
    }

    /// The interface of a PF, found by the PF's PCI address each time, for its name may change. `None` where it has none here.
    pub async fn pf_link(&self, pf: PciAddress) -> Result<Option<Link>, StepError> {
        let unknown = |e: &dyn Error| {
            StepError::new(
                reasons::VF_UNKNOWN,
                format!("the interface of the PF {pf} cannot be read: {}", chain(e)),
            )
        };
        match self.sysfs.interface_index(pf).map_err(|e| unknown(&e))? {
            None => Ok(None),
            Some(index) => self.netlink.link_by_index(index).await.map_err(|e| unknown(&e)),
        }
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

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use hybridnic_net::testing;

    use super::*;

    /// A node `n1` made of files below `dir`, with PFs that have VFs. Links are those of the machine that runs the test.
    pub(crate) fn host(dir: &Path, pfs: u8, vfs: u8) -> Arc<Host> {
        let (_, metrics) = crate::metrics::metrics();
        std::fs::create_dir(dir.join("sys")).unwrap();
        Arc::new(Host {
            sysfs: testing::make_sysfs(&dir.join("sys"), pfs, vfs).unwrap(),
            dev: DevNodes::new(dir.join("dev")),
            netlink: Netlink::open().unwrap(),
            multicast: Multicast::open().unwrap(),
            journal: Journal::open(dir.join("journal")).unwrap(),
            pools: Pools::default(),
            troubles: Troubles::new(metrics.clone()),
            metrics,
            macs: Macs::default(),
            vlan_devices: Mutex::default(),
            traces: Traces::default(),
            options: Settings {
                node_name: "n1".into(),
                vm_root: dir.join("vms"),
                unplug_deadline: Duration::from_secs(1),
                plug_deadline: Duration::from_secs(1),
                migration_bandwidth: 0,
                migration_downtime_ms: 100,
            },
            hardware: watch::Sender::new(0),
        })
    }

    #[tokio::test]
    async fn what_is_parked_for_good_is_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let (before, [kept, given_back]) = (
            host(dir.path(), 1, 2),
            [0, 1].map(|vf| testing::vf_address(0, vf)),
        );
        before.note_parked(kept, true);
        before.note_parked(given_back, true);
        before.note_parked(given_back, false);
        std::fs::remove_dir_all(dir.path().join("sys")).unwrap();
        let after = host(dir.path(), 1, 2);
        after.load_parked();
        assert_eq!(after.pools.parked(), [kept].into());
    }
}
